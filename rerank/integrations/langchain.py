"""A reranker for LangChain: a document compressor that keeps the scores.

    from rerank.integrations.langchain import RerankCompressor

    compressor = RerankCompressor(model="runs/quickstart/model/light", top_n=3)
    for document in compressor.compress_documents(documents, "who wrote Faust"):
        print(document.metadata["relevance_score"], document.page_content)

In a chain it stands behind a retriever, as `base_compressor` of langchain_classic's `ContextualCompressionRetriever`.
Only langchain-core is needed. Extra: `langchain`.

Scores are from 0 to 1, as in all adapters for applications: the probability of relevance where the model is calibrated,
else the logistic of the logit; `scores="logit"` gives logits. A model that was trained with first-stage scores gets
them from the metadata: `first_stage={"bm25": "bm25_score"}` maps each retriever to the key under which its score is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, Literal, final

from rerank.errors import need
from rerank.integrations.first_stage import FirstStage
from rerank.integrations.loading import LazyReranker, check_settings, written
from rerank.reranker import Reranker

try:
    from langchain_core.callbacks import Callbacks
    from langchain_core.cross_encoders import BaseCrossEncoder
    from langchain_core.documents import BaseDocumentCompressor, Document
    from pydantic import ConfigDict, Field, PrivateAttr, field_serializer, field_validator, model_validator
except ModuleNotFoundError:
    need("langchain_core.cross_encoders", "langchain")
    raise


@final
class RerankCompressor(BaseDocumentCompressor):
    """Documents best first, each a copy with its score in `metadata["relevance_score"]`; ids are kept.

    The order is that of `Reranker.rank`. A score of that name which a document brings along is replaced.
    """

    model: str | Reranker = Field(frozen=True)
    """A folder, an id on the hub, or a loaded reranker. Loaded when first used, then kept."""
    top_n: int | None = Field(default=None, ge=1, strict=True)
    """How many documents are kept; all by default."""
    min_probability: float | None = Field(default=None, ge=0.0, le=1.0)
    """Documents that are less probably relevant are dropped; for calibrated models."""
    scores: Literal["relevance", "logit"] = "relevance"
    """relevance: from 0 to 1, the probability where the model is calibrated; logit: the model's own number."""
    first_stage: dict[str, str] | None = Field(default=None, frozen=True)
    """Retriever -> the metadata key of its score, for a model that was trained with such scores."""
    device: str | None = Field(default=None, frozen=True)
    precision: str | None = Field(default=None, frozen=True)
    max_length: int | None = Field(default=None, frozen=True)
    backend: str | None = Field(default=None, frozen=True)
    reading: dict[str, Any] | None = Field(default=None, frozen=True)
    """These five as in `Reranker.from_pretrained`; None leaves it to decide."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", validate_assignment=True)

    _ranker: LazyReranker = PrivateAttr()

    def __init__(self, model: str | Path | Reranker | None = None, **settings: Any) -> None:
        super().__init__(model=model, **settings)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, settings: Any) -> Any:
        return check_settings(settings, cls.model_fields)

    @field_validator("model", mode="before")
    @classmethod
    def _as_text(cls, model: Any) -> Any:
        return str(model) if isinstance(model, Path) else model

    @field_serializer("model", when_used="json")
    def _written(self, model: str | Reranker) -> str:
        return written(model)

    def model_post_init(self, context: Any, /) -> None:
        """Check how the model is to be loaded; nothing is read yet."""
        self._ranker = self._lazily()

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> RerankCompressor:
        """A copy, with the model of this one unless `update` wants another, or this one loaded otherwise."""
        made = super().model_copy(update=update, deep=deep)
        wanted = made._lazily()
        made._ranker = made._ranker if made._ranker == wanted else wanted
        return made

    def _lazily(self) -> LazyReranker:
        how = {"device": self.device, "precision": self.precision, "max_length": self.max_length}
        first_stage = FirstStage(self.first_stage, "give first_stage={'NAME': 'METADATA KEY', ...}")
        return LazyReranker(self.model, first_stage, **how, backend=self.backend, reading=self.reading)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """The best documents for the query, best first."""
        texts = [document.page_content for document in documents]

        def column(key: str) -> list[Any]:
            return [document.metadata.get(key) for document in documents]

        return [
            _scored(documents[hit.index], hit.relevance if self.scores == "relevance" else hit.score)
            for hit in self._ranker.rank(query, texts, self.top_n, self.min_probability, column)
        ]

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """`compress_documents`, in the model's own thread."""
        return await self._ranker.in_turn(partial(self.compress_documents, documents, query, callbacks))


@final
class RerankCrossEncoder(BaseCrossEncoder):
    """A reranker where LangChain asks for a cross-encoder, as its `CrossEncoderReranker(model=...)` does.

    That class drops the scores it ranks by, and has none of a first stage to give; `RerankCompressor` has both.
    """

    def __init__(self, model: str | Path | Reranker, **how: Any) -> None:
        self._ranker = LazyReranker(model, FirstStage(None, "RerankCompressor takes them, as first_stage"), **how)

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        """The logit of each (query, document) pair: who sorts by it has the order of `Reranker.rank`."""
        return self._ranker.predict(text_pairs)


def _scored(document: Document, score: float) -> Document:
    """A copy of the document with its score."""
    return document.model_copy(update={"metadata": {**deepcopy(document.metadata), "relevance_score": score}})
