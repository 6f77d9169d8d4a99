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

from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, final

from rerank.errors import need
from rerank.integrations.first_stage import FirstStage
from rerank.integrations.loading import LazyReranker
from rerank.reranker import Reranker

try:
    from langchain_core.callbacks import Callbacks
    from langchain_core.cross_encoders import BaseCrossEncoder
    from langchain_core.documents import BaseDocumentCompressor, Document
    from pydantic import Field

    from rerank.integrations.settings import RankerSettings
except ModuleNotFoundError:
    need("langchain_core.cross_encoders", "langchain")
    raise


@final
class RerankCompressor(RankerSettings, BaseDocumentCompressor):
    """Documents best first, each a copy with its score in `metadata["relevance_score"]`; ids are kept.

    The order is that of `Reranker.rank`. A score of that name which a document brings along is replaced.
    """

    first_stage: dict[str, str] | None = Field(default=None, frozen=True)
    """Retriever -> the metadata key of its score, for a model that was trained with such scores."""

    first_stage_remedy: ClassVar[str] = "give first_stage={'NAME': 'METADATA KEY', ...}"

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
