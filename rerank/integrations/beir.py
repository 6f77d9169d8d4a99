"""Reranking a retriever's results as BEIR does, with BEIR's dictionaries.

    from rerank.integrations.beir import Rerank

    results = Rerank("runs/quickstart/model/light").rerank(corpus, queries, results, top_k=100)
    EvaluateRetrieval.evaluate(qrels, results, [10])

`Rerank` takes the place of `beir.reranking.Rerank`; beir itself is not imported. A document is its title and its text,
joined as BEIR joins them. Where theirs stops with a TypeError or a KeyError (a title that is null, a document that the
corpus lacks), this one goes on, or says which document it is. Documents with equal logits keep the first stage's order:
their scores come out one float32 apart, because BEIR's evaluation would order them by document id. Scores are logits,
as in all adapters for evaluation.

A model that was trained with first-stage scores gets them with `Rerank(model, first_stage="bm25")`, where the results
that are reranked are those of bm25; `first_stage={"bm25": "score", "dense": dense_results}` adds those of another run.

For pipelines that construct `beir.reranking.Rerank(model)` themselves, `CrossEncoder` is such a model:

    from rerank.integrations.beir import CrossEncoder

    model = CrossEncoder("runs/quickstart/model/light")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, final

from rerank.errors import InputError, Mismatch
from rerank.given import checked_count, checked_text
from rerank.integrations.first_stage import OWN, FirstStage
from rerank.integrations.loading import reranker_of
from rerank.ties import apart
from rerank.types import Run

if TYPE_CHECKING:
    import numpy as np

    from rerank.reranker import Reranker

Document: TypeAlias = Mapping[str, Any]
"""What BEIR keeps of a document: its text, and perhaps a title; a number or None is no text."""
Results: TypeAlias = Mapping[str, Mapping[str, float]]
"""Query id -> doc id -> score."""


@final
class CrossEncoder:
    """The `predict` that `beir.reranking.Rerank` asks a model for.

    `model` is a folder, an id on the hub or a `rerank.Reranker`; `how` is what `Reranker.from_pretrained` takes.
    """

    def __init__(self, model: str | Path | Reranker, **how: Any) -> None:
        self.reranker = reranker_of(model, **how)
        self._first_stage = FirstStage(None, "rerank.integrations.beir.Rerank takes them, as first_stage")

    def predict(
        self, sentences: Sequence[tuple[str, str]], batch_size: int = 32, show_progress_bar: bool = True
    ) -> np.ndarray:
        """Logits, float32 [n], of (query, document) pairs, each a tuple or a list.

        The engine makes batches of so many tokens, whatever `batch_size` says, and shows no progress.
        """
        checked_count(batch_size, "batch_size")
        self._first_stage.scores(self.reranker.wants, lambda place: ())
        return self.reranker.predict(sentences)


@final
class Rerank:
    """Reranks the best `top_k` results of each query, all of them in one call of the engine.

    `batch_size` is taken because BEIR's has it; batches are made by tokens. `how` is what
    `Reranker.from_pretrained` takes. A document that the results of a retriever lack was not found by it.
    """

    def __init__(
        self,
        model: str | Path | Reranker,
        batch_size: int = 128,
        first_stage: str | Mapping[str, str | Results] | None = None,
        **how: Any,
    ) -> None:
        checked_count(batch_size, "batch_size")
        self._runs, places = _runs_of(first_stage)
        self._first_stage = FirstStage(places, "give first_stage='NAME', or {'NAME': RESULTS, ...}")
        self.reranker = reranker_of(model, **how)
        self._first_stage.check(self.reranker.wants)

    def rerank(
        self,
        corpus: Mapping[str, Document],
        queries: Mapping[str, str],
        results: Results,
        top_k: int,
    ) -> dict[str, dict[str, float]]:
        """query id -> doc id -> score, best first, of the `top_k` best results of each query."""
        run = Run.from_scores(results).top(checked_count(top_k, "top_k"))
        unknown = [query_id for query_id in run.rankings if query_id not in queries]
        if unknown:
            raise Mismatch(f"results has {len(unknown)} queries that queries lacks, first {unknown[0]!r}")
        questions = [
            (
                checked_text(queries[query_id], f"query {query_id!r}"),
                [text_of(corpus, doc_id, query_id) for doc_id in run.doc_ids(query_id)],
            )
            for query_id in run.rankings
        ]
        reranked: dict[str, dict[str, float]] = {}
        found = self.reranker.rank_many(questions, first_stages=self._first_stages(run, results))
        for query_id, hits in zip(run.rankings, found, strict=True):
            doc_ids = run.doc_ids(query_id)
            scores = apart([hit.score for hit in hits])
            reranked[query_id] = {doc_ids[hit.index]: score for hit, score in zip(hits, scores, strict=True)}
        return reranked

    def _first_stages(self, run: Run, results: Results) -> list[dict[str, list[float]]] | None:
        """For each query of the run, retriever -> the score of each of its documents; None where there are none."""
        pairs = [(query_id, doc_id) for query_id in run.rankings for doc_id in run.doc_ids(query_id)]

        def column(place: str) -> list[Any]:
            scores = self._runs.get(place, results)
            return [scores.get(query_id, {}).get(doc_id) for query_id, doc_id in pairs]

        found = self._first_stage.scores(self.reranker.wants, column)
        if found is None:
            return None
        stages: dict[str, dict[str, list[float]]] = {q: {name: [] for name in found} for q in run.rankings}
        for name, scores in found.items():
            for (query_id, _), score in zip(pairs, scores, strict=True):
                stages[query_id][name].append(score)
        return list(stages.values())


def _runs_of(first_stage: Any) -> tuple[dict[str, Results], Any]:
    """(retriever -> its results, the setting with that name in their place)."""
    if not isinstance(first_stage, Mapping):
        return {}, first_stage
    runs = {name: place for name, place in first_stage.items() if isinstance(place, Mapping)}
    strange = [place for place in first_stage.values() if not isinstance(place, Mapping) and place != OWN]
    if strange:
        raise InputError(
            f"first_stage: {strange[0]!r:.60} holds no scores; give {OWN!r}, which are those of the results that are "
            "reranked, or other results (query id -> doc id -> score)"
        )
    return runs, {name: name if name in runs else OWN for name in first_stage}


def text_of(corpus: Mapping[str, Document], doc_id: str, query_id: str) -> str:
    """The title and the text of a document as BEIR joins them; null and absent ones are empty."""
    if doc_id not in corpus:
        raise Mismatch(
            f"results of query {query_id!r} name document {doc_id!r}, which corpus lacks: load the corpus that was "
            "searched, or drop the document from the results"
        )
    parts = []
    if not isinstance(corpus[doc_id], Mapping):
        kind = type(corpus[doc_id]).__name__
        raise InputError(f"document {doc_id!r} must be a mapping with text and perhaps title, not {kind}")
    for name in ("title", "text"):
        value = corpus[doc_id].get(name)
        if value is not None and not isinstance(value, str):
            raise InputError(f"document {doc_id!r}: {name} must be a text or null, not {type(value).__name__}")
        parts.append(checked_text(value or "", f"document {doc_id!r}: {name}"))
    return " ".join(parts).strip()
