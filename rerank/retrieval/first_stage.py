"""The first stage: what retrievers find for each query, fused, with every retriever's score of every candidate.

    queries -> retrieve (each to `depth`) -> fuse -> cut to `depth` -> score all candidates by all retrievers

A reranker that also reads the first-stage scores needs all of them: a candidate that only BM25 found gets its dense
score too, so no feature is ever missing.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from rerank.errors import DataError, InputError, Mismatch, NotFound, nearest
from rerank.retrieval.fusion import reciprocal_rank_fusion, weighted_fusion
from rerank.types import Collection, Retriever, Run

logger = logging.getLogger("rerank.retrieval.first_stage")

FUSIONS = ("rrf", "weighted")
SCORES_FILE = "first_stage.json"
RUN_FILE = "run.trec"
_FORMAT = 1


@final
@dataclass(frozen=True)
class FirstStage:
    """The candidates of each query, and each retriever's score of each of them."""

    run: Run
    """The fused candidates, best first."""
    features: dict[str, Run]
    """Retriever name -> its scores of exactly the candidates of `run`."""

    def save(self, folder: Path | str) -> None:
        """Nothing; writes `first_stage.json` with every score in full, and `run.trec` for other tools.

        A TREC file nudges equal scores apart, so `load` reads the JSON alone.
        """
        from rerank.data.trec import write_run

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_run(self.run, folder / RUN_FILE)
        features = {name: run.scores for name, run in self.features.items()}
        queries = {}
        for query_id, ranking in self.run.rankings.items():
            queries[query_id] = {
                "doc_ids": [d for d, _ in ranking],
                "scores": [s for _, s in ranking],
                "features": {name: [scores[query_id][d] for d, _ in ranking] for name, scores in features.items()},
            }
        fresh = folder / (SCORES_FILE + ".tmp")
        with fresh.open("w", encoding="utf-8") as stream:
            json.dump({"format": _FORMAT, "name": self.run.name, "queries": queries}, stream, allow_nan=False)
        os.replace(fresh, folder / SCORES_FILE)

    @classmethod
    def load(cls, folder: Path | str) -> FirstStage:
        """The first stage that `save` left in `folder`, equal to the last bit."""
        path = Path(folder) / SCORES_FILE
        if not path.is_file():
            raise NotFound(f"{path} is not there: run the first stage and save it to this folder")
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["format"] != _FORMAT:
                raise DataError.at(path, None, f"format {stored['format']!r}, expected {_FORMAT}: retrieve again")
            return cls(*_runs(stored))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError.at(path, None, f"not a stored first stage ({error!r}): retrieve again") from None


def build_first_stage(
    collection: Collection,
    retrievers: Sequence[Retriever],
    depth: int = 100,
    fusion: str | None = "rrf",
    weights: Mapping[str, float] | None = None,
) -> FirstStage:
    """The `depth` best candidates of every query of `collection`, with every retriever's score of each.

    `fusion` is "rrf", "weighted" (z-scores, `weights` by retriever name, all 1 if None), or None for a single
    retriever, whose own run is then kept as it is.
    """
    names = _check_retrievers(retrievers)
    if fusion is None and len(retrievers) > 1:
        raise InputError(f"fusion = None with {len(names)} retrievers ({', '.join(names)}): choose 'rrf' or 'weighted'")
    if fusion is not None and fusion not in FUSIONS:
        raise InputError(f"fusion = {fusion!r}{nearest(str(fusion), FUSIONS)}; None keeps the run of one retriever")
    if weights is not None and (fusion != "weighted" or set(weights) != set(names)):
        raise InputError(
            f"weights for {sorted(weights)} with fusion = {fusion!r}: weights belong to fusion = 'weighted', "
            f"one for each retriever ({', '.join(names)})"
        )
    runs = [retriever.retrieve(collection.queries, depth) for retriever in retrievers]
    if fusion == "rrf":
        run = reciprocal_rank_fusion(runs, depth=depth, name="+".join(names))
    elif fusion == "weighted":
        run = weighted_fusion(
            runs, [1.0 if weights is None else weights[n] for n in names], depth, name="+".join(names)
        )
    else:
        run = runs[0]
    empty = sum(not run.rankings.get(query_id) for query_id in collection.queries)
    if empty:
        logger.warning("first stage: %d of %d queries have no candidate", empty, len(collection.queries))
    return FirstStage(run, features_for(collection, run, retrievers))


def features_for(collection: Collection, run: Run, retrievers: Sequence[Retriever]) -> dict[str, Run]:
    """Retriever name -> its score of every candidate of `run`, a run of one's own or a stored one."""
    names = _check_retrievers(retrievers)
    lost = [query_id for query_id in run.rankings if query_id not in collection.queries]
    if lost:
        raise Mismatch(
            f"{len(lost)} of {len(run.rankings)} queries of run {run.name!r} are not in collection "
            f"{collection.name!r}, the first is {lost[0]!r}: take the collection that the run was made on"
        )
    features = {}
    for name, retriever in zip(names, retrievers, strict=True):
        scores: dict[str, dict[str, float]] = {}
        for query_id in run.rankings:
            doc_ids = run.doc_ids(query_id)
            values = retriever.score(collection.queries[query_id], doc_ids) if doc_ids else []
            scores[query_id] = dict(zip(doc_ids, _finite(values, doc_ids, f"{name}, query {query_id!r}"), strict=True))
        features[name] = Run.from_scores(scores, name, before=run)
    return features


def _runs(stored: Mapping[str, Any]) -> tuple[Run, dict[str, Run]]:
    """The run and the features of a parsed file."""
    rankings: dict[str, tuple[tuple[str, float], ...]] = {}
    features: dict[str, dict[str, dict[str, float]]] = {}
    for query_id, row in stored["queries"].items():
        rankings[query_id] = tuple(zip(row["doc_ids"], row["scores"], strict=True))
        for name, values in row["features"].items():
            features.setdefault(name, {})[query_id] = dict(zip(row["doc_ids"], values, strict=True))
    run = Run(rankings, stored["name"])
    return run, {name: Run.from_scores(scores, name, before=run) for name, scores in features.items()}


def _finite(values: Sequence[float], doc_ids: Sequence[str], where: str) -> Sequence[float]:
    """The values, one a document, each finite."""
    if len(values) != len(doc_ids):
        raise InputError(f"{where}: {len(values)} scores for {len(doc_ids)} documents")
    for doc_id, value in zip(doc_ids, values, strict=True):
        if not math.isfinite(value):
            raise InputError(f"{where}, document {doc_id!r}: the score is {value}")
    return values


def _check_retrievers(retrievers: Sequence[Retriever]) -> list[str]:
    names = [retriever.name for retriever in retrievers]
    if not names:
        raise InputError("no retrievers: give at least one, for example BM25.build(collection.documents)")
    if len(set(names)) < len(names):
        raise InputError(f"two retrievers bear the same name, and names tell features apart: {', '.join(names)}")
    return names
