"""Texts to token ids, each text once: the memory that pairs and prompts share."""

from __future__ import annotations

import math
import re
import sys
import threading
import time
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, final

import numpy as np

BYTES_KEPT = 1 << 30
"""Bytes of texts and of their ids that a memory holds at most, between calls: some 500,000 passages."""
ENTRY = 100
"""Bytes that a dictionary takes for an entry, beside what the entry points to."""
HOUR = 3600.0
"""Seconds, at least, from one telling that texts are cut to the next."""
STRUCTURE = re.compile(r"[<>\[\]{}|]")
"""What tells a token that marks structure from an added word, or a run of blanks."""
ID = np.dtype(np.int32)
"""How token ids lie in an item's bytes: quick to hash and to join."""


@final
class TextIds:
    """The token ids of the texts that a tokenizer was asked for, cut to `kept` tokens (None: whole).

    Special tokens inside a text are split into plain pieces, and so are other added tokens that mark structure (Qwen3
    has `</think>` and `<tool_call>` as such): a text cannot forge any.
    """

    def __init__(self, tokenizer: Any, kept: int | None) -> None:
        self.tokenizer, self.kept = tokenizer, kept
        self._ids: dict[str, bytes] = {}
        self.held = 0
        """Bytes that are remembered now."""
        self._marks = _marks_of(tokenizer)
        self._lock = threading.Lock()  # a loop prepares its next step in a thread of its own

    def __call__(self, texts: Iterable[str]) -> dict[str, bytes]:
        """Text -> ids of type `ID`, for each distinct text."""
        wanted = set(texts)
        with self._lock:
            self._tokenize(wanted)
            found = {text: self._ids[text] for text in wanted}
            if self.held > BYTES_KEPT:
                self._drop(BYTES_KEPT // 2)
            return found

    def __len__(self) -> int:
        """Texts that are remembered now."""
        return len(self._ids)

    def forget(self, beyond: int = 0) -> None:
        """Nothing; where more than `beyond` bytes are held, all is forgotten. Ids that were given out stay good."""
        with self._lock:
            if self.held > beyond:
                self._drop(0)

    def _drop(self, kept: int) -> None:
        """Nothing; of the texts, the longest remembered go, until at most `kept` bytes are left."""
        if kept == 0:
            self._ids, self.held = {}, 0  # a dictionary that is cleared one by one keeps its size
            return
        for text in list(self._ids):
            if self.held <= kept:
                break
            self.held -= _size(text, self._ids.pop(text))

    def _tokenize(self, texts: set[str]) -> None:
        new = sorted(text for text in texts if text not in self._ids)
        if not new:
            return
        parts = [self._apart(text) for text in new]
        flat = [part for of_text in parts for part in of_text]
        encoded = iter(
            self.tokenizer(flat, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        )
        for text, of_text in zip(new, parts, strict=True):
            ids = [token for _ in of_text for token in next(encoded)]
            self._ids[text] = found = np.array(ids[: self.kept], dtype=ID).tobytes()
            self.held += _size(text, found)

    def _apart(self, text: str) -> list[str]:
        """The text in parts that hold no mark: each is cut after its first character."""
        marks = self._marks.finditer(text) if self._marks else ()
        cuts = [0, *(mark.start() + 1 for mark in marks), len(text)]
        return [text[start:end] for start, end in pairwise(cuts)]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None, "_ids": {}, "held": 0}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


@final
class Cuts:
    """How many texts are cut, by kind: told at the first of them, and from then on at most once an hour."""

    def __init__(self) -> None:
        self._counted: dict[str, list[int]] = {}
        self._told: dict[str, float] = {}

    def since(self, kind: str, cut: int, of: int) -> tuple[int, int] | None:
        """(texts that were cut since this was last told, of how many); None where it is not the time to tell."""
        counted = self._counted.setdefault(kind, [0, 0])
        counted[0] += cut
        counted[1] += of
        if not counted[0] or time.monotonic() - self._told.get(kind, -math.inf) < HOUR:
            return None
        self._told[kind] = time.monotonic()
        self._counted.pop(kind, None)  # another thread may tell too
        return counted[0], counted[1]

    def __reduce__(self) -> tuple[type[Cuts], tuple[()]]:
        return Cuts, ()  # the clock of another machine is another one


def size_of_key(text: str) -> int:
    """Bytes that a text takes as the key of a dictionary."""
    return sys.getsizeof(text) + ENTRY


def _size(text: str, ids: bytes) -> int:
    return size_of_key(text) + sys.getsizeof(ids)


def _marks_of(tokenizer: Any) -> re.Pattern[str] | None:
    """Finds the added tokens that are not special, and so are never split, and hold a bracket or a bar."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    found = sorted({str(token) for token in added if not token.special and STRUCTURE.search(str(token))})
    # The longest first, so that a token is not taken for one that it begins with.
    return re.compile("|".join(map(re.escape, sorted(found, key=len, reverse=True)))) if found else None


def plain(tokenizer: Any) -> Any:
    """The tokenizer, which from now on neither pads nor cuts by itself (some tokenizer files ask for it)."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_padding()
        backend.no_truncation()
    return tokenizer
