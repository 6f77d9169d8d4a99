"""Texts to token ids, each text once: the memory that pairs and prompts share."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, final

import numpy as np

TEXTS_KEPT = 500_000
"""Tokenized texts that are remembered before the memory starts anew."""
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
        self._marks = _marks_of(tokenizer)
        self._lock = threading.Lock()  # a loop prepares its next step in a thread of its own

    def __call__(self, texts: Iterable[str]) -> dict[str, bytes]:
        """Text -> ids of type `ID`, for each distinct text."""
        wanted = set(texts)
        with self._lock:
            self._tokenize(wanted)
            return {text: self._ids[text] for text in wanted}

    def __len__(self) -> int:
        """Texts that are remembered now."""
        return len(self._ids)

    def _tokenize(self, texts: set[str]) -> None:
        if len(self._ids) > TEXTS_KEPT:
            self._ids.clear()
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
            self._ids[text] = np.array(ids[: self.kept], dtype=ID).tobytes()

    def _apart(self, text: str) -> list[str]:
        """The text in parts that hold no mark: each is cut after its first character."""
        marks = self._marks.finditer(text) if self._marks else ()
        cuts = [0, *(mark.start() + 1 for mark in marks), len(text)]
        return [text[start:end] for start, end in pairwise(cuts)]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None, "_ids": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


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
