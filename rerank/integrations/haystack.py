"""A reranker for Haystack: a ranker component, named and called as Haystack's own rankers are.

    from haystack_integrations.components.rankers.rerank import RerankRanker

    ranker = RerankRanker(model="runs/quickstart/model", top_k=3)
    for document in ranker.run(query="who wrote Faust", documents=documents)["documents"]:
        print(document.score, document.content)

A pipeline that is read from YAML may name classes of `haystack_integrations` and of no other third party, unless the
caller lists them. So that is where the class says it lives, and where `haystack_integrations/components/rankers/rerank`
imports it from here. Extra: pip install 'rerank[haystack]'.
"""

# No `from __future__ import annotations` in this file: Haystack 2 takes the annotations of `run` as they stand there,
# and does not see that "list[Document]" is list[Document].

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from math import isnan
from pathlib import Path
from typing import Any, final

from rerank.errors import InputError, need
from rerank.integrations.loading import LazyReranker
from rerank.reranker import Reranker

try:
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.utils import ComponentDevice
except ModuleNotFoundError:
    need("haystack.utils", "haystack")
    raise


@final
@component
class RerankRanker:
    """Documents best first, in the order of `Reranker.rank`, each a copy with its score.

    Of documents with the same id the one with the highest score is ranked, the first of them where scores are equal.
    """

    __module__ = "haystack_integrations.components.rankers.rerank"

    def __init__(
        self,
        model: str | Path | Reranker,
        *,
        top_k: int | None = 10,
        scale_score: bool = True,
        score_threshold: float | None = None,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        device: str | ComponentDevice | None = None,
        precision: str | None = None,
        max_length: int | None = None,
        backend: str | None = None,
        reading: dict[str, Any] | None = None,
    ) -> None:
        """A ranker whose `model` is a folder, an id on the hub, or a loaded reranker (which YAML cannot hold).

        `top_k`: how many documents are kept, None for all. `scale_score`: scores from 0 to 1, the probability where
        the model is calibrated; otherwise logits. `score_threshold`: documents with a lower score, as it is given out,
        are dropped. `meta_fields_to_embed`: values that stand before the text, with `embedding_separator` between.
        The others are those of `Reranker.from_pretrained`; None leaves it to decide.
        """
        _check(top_k, score_threshold)
        self.model = str(model) if isinstance(model, Path) else model
        self.top_k = top_k
        self.scale_score = scale_score
        self.score_threshold = score_threshold
        self.meta_fields_to_embed = list(meta_fields_to_embed or ())
        self.embedding_separator = embedding_separator
        self.device = device.to_torch_str() if isinstance(device, ComponentDevice) else device
        self.how = {"precision": precision, "max_length": max_length, "backend": backend, "reading": reading}
        self._ranker = LazyReranker(self.model, device=self.device, **self.how)

    def warm_up(self) -> None:
        """Load the model, unless it is loaded."""
        self._ranker.reranker()

    def to_dict(self) -> dict[str, Any]:
        """The settings, as YAML holds them."""
        if isinstance(self.model, Reranker):
            raise InputError(
                "a RerankRanker made of a loaded Reranker cannot be written down: save it with save_pretrained(FOLDER) "
                "and make the ranker with model=FOLDER"
            )
        return default_to_dict(
            self,
            model=self.model,
            top_k=self.top_k,
            scale_score=self.scale_score,
            score_threshold=self.score_threshold,
            meta_fields_to_embed=self.meta_fields_to_embed,
            embedding_separator=self.embedding_separator,
            device=self.device,
            **self.how,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "RerankRanker":
        """The ranker that `to_dict` wrote down."""
        return default_from_dict(cls, data)

    @component.output_types(documents=list[Document])  # type: ignore[untyped-decorator]
    def run(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        scale_score: bool | None = None,
        score_threshold: float | None = None,
    ) -> dict[str, list[Document]]:
        """`{"documents": [...]}`, best first; what is None is as the ranker was made."""
        _check(top_k, score_threshold)
        scale = self.scale_score if scale_score is None else scale_score
        floor = self.score_threshold if score_threshold is None else score_threshold
        candidates = _one_of_each_id(documents)
        hits = self._ranker.rank(query, [self._text(document) for document in candidates])
        scored = [(candidates[hit.index], hit.relevance if scale else hit.score) for hit in hits]
        kept = [replace(document, score=score) for document, score in scored if floor is None or score >= floor]
        return {"documents": kept[: top_k or self.top_k]}

    @component.output_types(documents=list[Document])  # type: ignore[untyped-decorator]
    async def run_async(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        scale_score: bool | None = None,
        score_threshold: float | None = None,
    ) -> dict[str, list[Document]]:
        """`run` in a thread."""
        return await asyncio.to_thread(self.run, query, documents, top_k, scale_score, score_threshold)

    def _text(self, document: Document) -> str:
        """What the model reads of a document."""
        values = [document.meta.get(name) for name in self.meta_fields_to_embed]
        parts = [str(value) for value in values if value is not None]
        if document.content is None and not parts:
            raise InputError(
                f"the document {document.id!r} has no text to rank: its content is None; give its text, or name the "
                "metadata that is to be read in meta_fields_to_embed"
            )
        return self.embedding_separator.join([*parts, document.content or ""])


def _one_of_each_id(documents: Sequence[Document]) -> list[Document]:
    """For each id, at its first place, the document with the highest score; one without a score is below all others."""
    best: dict[str, Document] = {}
    for document in documents:
        kept = best.setdefault(document.id, document)
        if document.score is not None and (kept.score is None or document.score > kept.score):
            best[document.id] = document
    return list(best.values())


def _check(top_k: Any, score_threshold: Any) -> None:
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise InputError(f"top_k must be a whole number of at least 1, or None, not {top_k!r}")
    if score_threshold is not None and (
        isinstance(score_threshold, bool) or not isinstance(score_threshold, (int, float)) or isnan(score_threshold)
    ):
        raise InputError(f"score_threshold must be a number, or None, not {score_threshold!r}")
