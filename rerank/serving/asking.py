"""What every dialect says in the end: a question with its texts, an answer with its hits, or why there is none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

from rerank.errors import RerankError


@final
@dataclass(frozen=True)
class Question:
    """One list to rank, as any dialect asks for it."""

    query: str
    texts: tuple[str, ...]
    model: str | None = None
    """None: the server's first model."""
    top_n: int | None = None
    """How many hits are wanted; None: all."""
    raw: bool = False
    """Logits instead of numbers from 0 to 1."""
    min_probability: float | None = None
    """Hits that are less probable are left out; for calibrated models."""
    first_stage: Mapping[str, tuple[float, ...]] | None = None
    """Retriever -> a score for each text, where the model was trained with them."""
    max_tokens: int | None = None
    """Tokens of a document that are read, where that is less than the model reads."""
    truncate: bool = True
    """Whether a pair that is longer than the model reads is cut; refused otherwise."""
    warnings: tuple[str, ...] = ()
    """What was given and had no effect."""


@final
@dataclass(frozen=True)
class Hit:
    """One document of an answer."""

    index: int
    """Its place in the question's texts."""
    score: float
    """From 0 to 1, or a logit where the question said `raw`; hits are ordered by logits either way."""
    text: str


@final
@dataclass(frozen=True)
class Answer:
    """The hits of a question, best first."""

    model: str
    hits: tuple[Hit, ...]
    tokens: int
    """Tokens that the model read."""
    request_id: str
    created: int
    """Seconds since 1970."""
    warnings: tuple[str, ...] = ()
    waited: float = 0.0
    """Seconds in the queue."""
    scoring: float = 0.0
    """Seconds of the turns in which the model read it."""


@final
@dataclass(eq=False)
class Refusal(RerankError):
    """Why a request has no answer: an HTTP status, and a body that every client finds its own field in.

    `kind` is TEI's word for it: Validation, Empty, Unauthorized, Overloaded, Unhealthy, Backend.
    """

    status: int
    message: str
    kind: str = "Validation"
    retry_after: float | None = None
    """Seconds after which the same request may be answered."""
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(self.message)

    def body(self, request_id: str) -> dict[str, Any]:
        """The body: `message` is Cohere's field, `error` and `error_type` TEI's, `detail` Jina's, `code` vLLM's."""
        said = {"message": self.message, "error": self.message, "error_type": self.kind, "detail": self.message}
        return {**said, "code": self.status, "request_id": request_id}

    def all_headers(self) -> dict[str, str]:
        """The headers, with Retry-After in whole seconds where there is one."""
        if self.retry_after is None:
            return dict(self.headers)
        return {**self.headers, "Retry-After": str(max(1, math.ceil(self.retry_after)))}
