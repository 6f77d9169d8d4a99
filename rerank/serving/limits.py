"""What a server takes: each limit with its name, so that a refusal can say which one it was and how to raise it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from rerank.errors import InputError
from rerank.serving.asking import Question, Refusal

OPTIONS = {
    "documents": "--max-documents",
    "characters": "--max-characters",
    "body": "--max-body",
    "tokens": "--max-tokens",
    "queue": "--queue",
    "seconds": "--timeout",
    "body_seconds": "--body-timeout",
    "bodies": "--max-bodies",
}
"""Limit -> the option of `rerank serve` that sets it."""


@final
@dataclass(frozen=True)
class Limits:
    """The most that one request, and all that wait, may hold."""

    documents: int = 1000
    """Documents of a request."""
    characters: int = 100_000
    """Characters of a query or of a document."""
    body: int = 16 * 2**20
    """Bytes of a body, also once it is decompressed."""
    tokens: int = 1_000_000
    """Tokens of a request, as the model reads them."""
    queue: int = 4000
    """Documents that wait, of all requests together; what comes then is answered 429."""
    seconds: float = 60.0
    """How long a request may take, waiting included; then it is answered 504."""
    body_seconds: float = 20.0
    """How long a body may take to arrive; then it is answered 408."""
    bodies: int = 256 * 2**20
    """Bytes of all bodies that are arriving or being read; what comes then is answered 429."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (value > 0 and math.isfinite(value)):
                raise InputError(f"{OPTIONS[name]} ({name}) must be a finite number above 0, not {value!r}")

    def check(self, question: Question) -> None:
        """Nothing, or the refusal of what is too large."""
        if len(question.texts) > self.documents:
            raise too_large(f"{len(question.texts):,} documents", f"{self.documents:,} in a request", "documents")
        named = {"the query": question.query, **{f"document {i}": text for i, text in enumerate(question.texts)}}
        for name, text in named.items():
            if len(text) > self.characters:
                raise too_large(f"{name} has {len(text):,} characters", f"{self.characters:,}", "characters")


def too_large(given: str, allowed: str, name: str) -> Refusal:
    """The refusal of something larger than the limit `name`."""
    return Refusal(413, f"{given}; at most {allowed} are taken (rerank serve --max-{name} sets it)")
