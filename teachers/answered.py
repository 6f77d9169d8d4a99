"""What was asked and what was answered, on disk: each answer a line, forced there before its question counts as done.

    {"key": "5f1c...", "model": "m", "query_id": "q1", "shown": ["d3", "d1"], "attempt": 0, "text": "[2] > [1]", ...}

The key names the words and the settings, not the server: the same question has one answer, whoever serves the model.
A line also has the tokens of prompt and answer as the server counted them and, `foreseen`, as reckoned before that.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, final

from rerank.errors import DataError

from .endpoint import Reply
from .jsonl import keyed, parsed


class Question(NamedTuple):
    """One request."""

    body: Mapping[str, Any]
    names: tuple[str, ...]
    """What the candidates of its window are called."""
    key: str
    """The sha256 of the body and of the attempt: the same at every url."""
    about: Mapping[str, Any]
    """Query, doc ids in the order shown, attempt: for whoever reads the answers."""


class Taken(NamedTuple):
    """What some answers have taken."""

    tokens_in: int = 0
    tokens_out: int = 0
    foreseen_in: int = 0
    """What `tokens_in` was reckoned to be before the server counted."""


NOTHING = Taken()


@final
class Answers:
    """The answers in a file, one a line of JSON, appended and forced to disk; without a path, in memory alone."""

    def __init__(self, path: Path | str | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._taken: dict[str, Taken] = {}
        self._known: dict[str, Reply] = {} if self.path is None else _load(self.path, self._taken)
        self._turns: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._known)

    def find(self, key: str) -> Reply | None:
        """The answer to a question, if there is one."""
        return self._known.get(key)

    def turn(self, key: str) -> threading.Lock:
        """What is held while a question is looked up and asked, lest two threads ask the same one."""
        with self._lock:
            return self._turns.setdefault(key, threading.Lock())

    def taken(self, model: str) -> Taken:
        """What all answers of `model` took that were in the file when it was opened."""
        return self._taken.get(model, NOTHING)

    def keep(self, question: Question, reply: Reply, foreseen: tuple[int, int]) -> None:
        """Write an answer down; `foreseen` are its tokens in and out as they were reckoned."""
        record = {"key": question.key, "model": question.body["model"], **question.about, **reply._asdict()}
        record["foreseen"] = foreseen
        with self._lock:
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8", newline="\n") as stream:
                    stream.write(json.dumps(record) + "\n")
                    stream.flush()
                    os.fsync(stream.fileno())
            self._known[question.key] = reply


def _load(path: Path, taken: dict[str, Taken]) -> dict[str, Reply]:
    """Key -> reply of a file of answers; the tokens of every line are added to `taken`, by model."""

    def read(number: int, line: bytes) -> tuple[str, Reply]:
        try:
            record = parsed(line)
            reply, model = _reply(record), str(record["model"])
            foreseen_in, foreseen_out = map(int, record.get("foreseen", (reply.tokens_in or 0, 0)))
            tokens_in = foreseen_in if reply.tokens_in is None else reply.tokens_in
            tokens_out = foreseen_out if reply.tokens_out is None else reply.tokens_out
            before = taken.get(model, NOTHING)
            more = (tokens_in, tokens_out, foreseen_in)
            taken[model] = Taken(*(a + b for a, b in zip(before, more, strict=True)))
            return record["key"], reply
        except (ValueError, KeyError, TypeError, OverflowError):
            raise DataError.at(path, number, "this is no answer of a Chat: give another file") from None

    return keyed(path, "the answers", read)


def _reply(record: Mapping[str, Any]) -> Reply:
    """The reply in a line of the file; ValueError, KeyError or TypeError where there is none."""
    reply = Reply(*(record[name] for name in Reply._fields))
    if not isinstance(record["key"], str) or not isinstance(reply.text, str):
        raise TypeError
    for tokens in (reply.tokens_in, reply.tokens_out):
        if not (tokens is None or (isinstance(tokens, int) and tokens >= 0)):
            raise TypeError
    return reply
