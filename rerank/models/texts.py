"""Texts to token ids, each text once: the memory that pairs and prompts share."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any, final

import numpy as np

TEXTS_KEPT = 500_000
"""Tokenized texts that are remembered before the memory starts anew."""
ID = np.dtype(np.int32)
"""How token ids lie in an item's bytes: quick to hash and to join."""


@final
class TextIds:
    """The token ids of the texts that a tokenizer was asked for, cut to `kept` tokens (None: whole).

    Special tokens inside a text are split into plain pieces: a text cannot forge structure.
    """

    def __init__(self, tokenizer: Any, kept: int | None) -> None:
        self.tokenizer, self.kept = tokenizer, kept
        self._ids: dict[str, bytes] = {}
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
        encoded = self.tokenizer(new, add_special_tokens=False, split_special_tokens=True, verbose=False)
        for text, ids in zip(new, encoded["input_ids"], strict=True):
            self._ids[text] = np.array(ids[: self.kept], dtype=ID).tobytes()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None, "_ids": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


def plain(tokenizer: Any) -> Any:
    """The tokenizer, which from now on neither pads nor cuts by itself (some tokenizer files ask for it)."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_padding()
        backend.no_truncation()
    return tokenizer
