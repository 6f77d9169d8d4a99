"""Reranking a retriever's results as BEIR does, with BEIR's dictionaries.

    from rerank.integrations.beir import Rerank

    results = Rerank("runs/quickstart/model").rerank(corpus, queries, results, top_k=100)
    EvaluateRetrieval.evaluate(qrels, results, [10])

`Rerank` takes the place of `beir.reranking.Rerank`; beir itself is not imported. A document is its title and its text,
joined as BEIR joins them. Where theirs stops with a TypeError or a KeyError (a title that is null, a document that the
corpus lacks), this one goes on, or says which document it is. Documents with equal logits keep the first stage's order:
their scores come out one float32 apart, because BEIR's evaluation would order them by document id.

For pipelines that construct `beir.reranking.Rerank(model)` themselves, `CrossEncoder` is such a model:

    from rerank.integrations.beir import CrossEncoder

    model = CrossEncoder("runs/quickstart/model")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from rerank.errors import InputError, Mismatch
from rerank.integrations.loading import reranker_of
from rerank.ties import apart
from rerank.types import Run

if TYPE_CHECKING:
    import numpy as np

    from rerank.reranker import Reranker

Document = Mapping[str, Any]
"""What BEIR keeps of a document: its text, and perhaps a title; a number or None is no text."""


@final
class CrossEncoder:
    """The `predict` that `beir.reranking.Rerank` asks a model for.

    `model` is a folder, an id on the hub or a `rerank.Reranker`; `how` is what `Reranker.from_pretrained` takes.
    """

    def __init__(self, model: str | Path | Reranker, **how: Any) -> None:
        self.reranker = reranker_of(model, **how)

    def predict(
        self, sentences: Sequence[tuple[str, str]], batch_size: int = 32, show_progress_bar: bool = True
    ) -> np.ndarray:
        """Logits, float32 [n], of (query, document) pairs, each a tuple or a list.

        The engine makes batches of so many tokens, whatever `batch_size` says, and shows no progress.
        """
        _check_count(batch_size, "batch_size")
        return self.reranker.predict(sentences)


@final
class Rerank:
    """Reranks the best `top_k` results of each query, all of them in one call of the engine.

    `batch_size` is taken because BEIR's has it; batches are made by tokens. `how` is what
    `Reranker.from_pretrained` takes.
    """

    def __init__(self, model: str | Path | Reranker, batch_size: int = 128, **how: Any) -> None:
        _check_count(batch_size, "batch_size")
        self.reranker = reranker_of(model, **how)

    def rerank(
        self,
        corpus: Mapping[str, Document],
        queries: Mapping[str, str],
        results: Mapping[str, Mapping[str, float]],
        top_k: int,
    ) -> dict[str, dict[str, float]]:
        """query id -> doc id -> score, best first, of the `top_k` best results of each query."""
        _check_count(top_k, "top_k")
        run = Run.from_scores(results).top(top_k)
        unknown = [query_id for query_id in run.rankings if query_id not in queries]
        if unknown:
            raise Mismatch(f"results has {len(unknown)} queries that queries lacks, first {unknown[0]!r}")
        questions = [
            (queries[query_id], [text_of(corpus, doc_id, query_id) for doc_id in run.doc_ids(query_id)])
            for query_id in run.rankings
        ]
        reranked: dict[str, dict[str, float]] = {}
        for query_id, hits in zip(run.rankings, self.reranker.rank_many(questions), strict=True):
            doc_ids = run.doc_ids(query_id)
            scores = apart([hit.score for hit in hits])
            reranked[query_id] = {doc_ids[hit.index]: score for hit, score in zip(hits, scores, strict=True)}
        return reranked


def text_of(corpus: Mapping[str, Document], doc_id: str, query_id: str) -> str:
    """The title and the text of a document as BEIR joins them; null and absent ones are empty."""
    if doc_id not in corpus:
        raise Mismatch(
            f"results of query {query_id!r} name document {doc_id!r}, which corpus lacks: load the corpus that was "
            "searched, or drop the document from the results"
        )
    parts = []
    for name in ("title", "text"):
        value = corpus[doc_id].get(name)
        if value is not None and not isinstance(value, str):
            raise InputError(f"document {doc_id!r}: {name} must be a text or null, not {type(value).__name__}")
        parts.append(value or "")
    return " ".join(parts).strip()


def _check_count(value: Any, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} must be a whole number of at least 1, not {value!r}")
