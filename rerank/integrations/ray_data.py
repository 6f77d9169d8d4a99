"""A reranker for Ray Data: one score for each row of (query, text), on as many machines as Ray has.

    scored = dataset.map_batches(RankBatch, fn_constructor_args=("runs/quickstart/model/light",), concurrency=2,
                                 batch_size=256)

Ray is not imported here: the class is an ordinary callable over batches of columns. The model is loaded in the actor,
when its first batch comes. Extra: `ray`.

Scores are logits, without first-stage scores: those are read beside those of the other documents of a query, and a
batch need not hold a query's documents all. For the same reason a listwise model's scores depend on the batches here:
it reads the rows of one query that come in one batch as one list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, final

from rerank.errors import InputError
from rerank.integrations.first_stage import FirstStage

if TYPE_CHECKING:
    import numpy as np

    from rerank.reranker import Reranker


@final
@dataclass(frozen=True)
class RankBatch:
    """Adds the column `score` (float32 logits) to batches with the columns `query` and `text`."""

    model: str
    device: str | None = None
    precision: str = "auto"
    max_length: int | None = None
    backend: str = "torch"
    reading: Mapping[str, Any] | None = field(default=None, hash=False)
    """How a language model reads lists."""

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The batch with its scores; each row is scored for itself, unless the model is listwise."""
        missing = [name for name in ("query", "text") if name not in batch]
        if missing:
            raise InputError(f"the batch has the columns {sorted(batch)} and lacks {missing}; rename yours to these")
        pairs = list(zip(batch["query"].tolist(), batch["text"].tolist(), strict=True))
        return {**batch, "score": self._reranker.predict(pairs)}

    def __reduce__(self) -> tuple[Any, ...]:
        """The settings alone: a loaded model is not sent, the other side loads its own."""
        return type(self), tuple(getattr(self, one.name) for one in fields(self))

    @cached_property
    def _reranker(self) -> Reranker:
        from rerank.reranker import Reranker

        how = (self.device, self.precision, self.max_length, self.backend, self.reading)
        reranker = Reranker.from_pretrained(self.model, *how)
        FirstStage(None, "Reranker.rank takes them").scores(reranker.wants, lambda place: ())
        return reranker
