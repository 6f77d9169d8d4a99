"""A reranker for Haystack: a ranker component, named and called as Haystack's own rankers are.

    from haystack_integrations.components.rankers.rerank import RerankRanker

    ranker = RerankRanker(model="runs/quickstart/model/light", top_k=3)
    for document in ranker.run(query="who wrote Faust", documents=documents)["documents"]:
        print(document.score, document.content)

A pipeline that is read from YAML may name classes of `haystack_integrations` and of no other third party, unless the
caller lists them. So that is where the class says it lives, and where `haystack_integrations/components/rankers/rerank`
imports it from here. Extra: `haystack`.

Scores are from 0 to 1, as in all adapters for applications: the probability of relevance where the model is calibrated,
else the logistic of the logit; `scale_score=False` gives logits. A model that was trained with first-stage scores gets
them from the documents: `first_stage="bm25"` says that a document's own score is that of bm25, `{"bm25": "score",
"dense": "dense_score"}` that dense's is in its meta.
"""

# No `from __future__ import annotations` in this file: Haystack 2 takes the annotations of `run` as they stand there,
# and does not see that "list[Document]" is list[Document].

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import inf, isnan
from pathlib import Path
from typing import Any, final

from rerank.errors import InputError, need
from rerank.given import checked_count, is_list
from rerank.integrations.first_stage import OWN, FirstStage
from rerank.integrations.loading import LazyReranker, written
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
        first_stage: str | dict[str, str] | None = None,
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
        `first_stage`: retriever -> "score", for the document's own, or a key of its meta; a retriever's name alone
        stands for the first.
        The others are those of `Reranker.from_pretrained`; None leaves it to decide.
        """
        _check(top_k, score_threshold, scale_score)
        if not is_list(meta_fields_to_embed or ()):
            raise InputError(f"meta_fields_to_embed must be a list, as ['title'], not {meta_fields_to_embed!r}")
        self.model = str(model) if isinstance(model, Path) else model
        self.top_k = top_k
        self.scale_score = scale_score
        self.score_threshold = score_threshold
        self.meta_fields_to_embed = list(meta_fields_to_embed or ())
        self.embedding_separator = embedding_separator
        self.device = device.to_torch_str() if isinstance(device, ComponentDevice) else device
        self.how = {"precision": precision, "max_length": max_length, "backend": backend, "reading": reading}
        self.first_stage = first_stage
        stage = FirstStage(first_stage, "give first_stage='NAME', or {'NAME': 'META KEY', ...}")
        self._ranker = LazyReranker(self.model, stage, device=self.device, **self.how)

    def warm_up(self) -> None:
        """Load the model, unless it is loaded."""
        self._ranker.reranker()

    def to_dict(self) -> dict[str, Any]:
        """The settings, as YAML holds them."""
        return default_to_dict(
            self,
            model=written(self.model),
            top_k=self.top_k,
            scale_score=self.scale_score,
            score_threshold=self.score_threshold,
            meta_fields_to_embed=self.meta_fields_to_embed,
            embedding_separator=self.embedding_separator,
            first_stage=self.first_stage,
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
        _check(top_k, score_threshold, scale_score)
        scale = self.scale_score if scale_score is None else scale_score
        floor = self.score_threshold if score_threshold is None else score_threshold
        candidates = _one_of_each_id(documents)

        def column(place: str) -> list[Any]:
            return [document.score if place == OWN else document.meta.get(place) for document in candidates]

        hits = self._ranker.rank(query, [self._text(document) for document in candidates], column=column)
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
        """`run`, in the model's own thread."""
        return await self._ranker.in_turn(partial(self.run, query, documents, top_k, scale_score, score_threshold))

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

    def height(document: Document) -> float:
        return -inf if document.score is None or isnan(document.score) else document.score

    best: dict[str, Document] = {}
    for document in documents:
        if height(document) > height(best.setdefault(document.id, document)):
            best[document.id] = document
    return list(best.values())


def _check(top_k: Any, score_threshold: Any, scale_score: Any) -> None:
    if top_k is not None:
        checked_count(top_k, "top_k", ", or None")
    if scale_score is not None and not isinstance(scale_score, bool):
        raise InputError(f"scale_score must be true or false, not {scale_score!r}")
    if score_threshold is not None and (
        isinstance(score_threshold, bool) or not isinstance(score_threshold, (int, float)) or isnan(score_threshold)
    ):
        raise InputError(f"score_threshold must be a number, or None, not {score_threshold!r}")
