"""A reranker for Ray Data: one score for each row of (query, text), on as many machines as Ray has.

    scored = dataset.map_batches(RankBatch, fn_constructor_args=("runs/quickstart/model",), concurrency=2,
                                 batch_size=256)

Ray is not imported here: the class is an ordinary callable over batches of columns. The model is loaded in the actor,
when its first batch comes. Extra: pip install 'rerank[ray]'.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, final

from rerank.errors import InputError

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

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The batch with its scores; each row is scored for itself, without first-stage scores."""
        missing = [name for name in ("query", "text") if name not in batch]
        if missing:
            raise InputError(f"the batch has the columns {sorted(batch)} and lacks {missing}; rename yours to these")
        pairs = list(zip(batch["query"].tolist(), batch["text"].tolist(), strict=True))
        return {**batch, "score": self._reranker.predict(pairs)}

    def __reduce__(self) -> tuple[Any, ...]:
        """The settings alone: a loaded model is not sent, the other side loads its own."""
        return type(self), astuple(self)

    @cached_property
    def _reranker(self) -> Reranker:
        from rerank.reranker import Reranker

        return Reranker.from_pretrained(self.model, self.device, self.precision, self.max_length, self.backend)
