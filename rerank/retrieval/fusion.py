"""Fusion: several rankings of the same documents made into one. Pure functions; the columns are scores of one query.

    reciprocal ranks   f(d) = sum over the columns c with d of  w_c / (k + rank_c(d))      Cormack et al. (2009)
    weighted           f(d) = sum over the columns c of         w_c * n_c(score_c(d))      n: z-score or min-max

A column gives a score to each of the N documents, NaN where its retriever did not find one. A missing document counts 0
in the first form and takes the lowest normalised score of the column in the second. Sums are exact (`math.fsum`), so
the order in which runs are given changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from rerank.errors import InputError, nearest
from rerank.types import Run

NORMALISATIONS = ("zscore", "minmax")


def reciprocal_rank_fusion(runs: Sequence[Run], k: float = 60, depth: int | None = None, name: str = "rrf") -> Run:
    """The run of the summed 1 / (k + rank), over all queries of all `runs`; a run that lacks a document adds nothing.

    >>> a, b = Run({"q": (("x", 9.0), ("y", 8.0))}), Run({"q": (("y", 0.2), ("z", 0.1))})
    >>> reciprocal_rank_fusion([a, b]).doc_ids("q")
    ('y', 'x', 'z')
    """
    _check_runs(runs)
    fused = {}
    for query_id in _query_ids(runs):
        # The order of a run is its word, ties and all: the places stand in for the scores.
        places = [{d: -float(i) for i, d in enumerate(run.doc_ids(query_id))} for run in runs]
        doc_ids, columns = _columns(places)
        fused[query_id] = dict(zip(doc_ids, fuse_ranks(columns, k), strict=True))
    return _cut(Run.from_scores(fused, name), depth)


def weighted_fusion(
    runs: Sequence[Run],
    weights: Sequence[float],
    depth: int | None = None,
    normalise: str = "zscore",
    name: str = "weighted",
) -> Run:
    """The run of the weighted sum of normalised scores, over all queries of all `runs`; one weight a run."""
    _check_runs(runs)
    if len(weights) != len(runs):
        raise InputError(
            f"{len(weights)} weights for {len(runs)} runs: give one weight a run, in the order of the runs"
        )
    by_column = {str(i): weight for i, weight in enumerate(weights)}
    fused = {}
    for query_id in _query_ids(runs):
        doc_ids, columns = _columns([dict(run.rankings.get(query_id, ())) for run in runs])
        fused[query_id] = dict(zip(doc_ids, fuse_scores(columns, by_column, normalise), strict=True))
    return _cut(Run.from_scores(fused, name), depth)


def fuse_scores(
    columns: Mapping[str, Sequence[float]], weights: Mapping[str, float], normalise: str = "zscore"
) -> list[float]:
    """The weighted sum [N] of the normalised columns; columns without a weight do not count.

    >>> fuse_scores({"bm25": [3.0, 1.0, float("nan")]}, {"bm25": 2.0}, "minmax")
    [2.0, 0.0, 0.0]
    """
    if normalise not in NORMALISATIONS:
        raise InputError(f"normalise = {normalise!r}{nearest(str(normalise), NORMALISATIONS)}")
    table = _table(columns, weights)
    rows = [weights[name] * _normalised(values, normalise) for name, values in table.items()]
    return [math.fsum(parts) for parts in zip(*(row.tolist() for row in rows), strict=True)]


def fuse_ranks(
    columns: Mapping[str, Sequence[float]], k: float = 60, weights: Mapping[str, float] | None = None
) -> list[float]:
    """The sum [N] of weight / (k + rank); ties in a column keep the order of the documents, all weights are 1 if None.

    >>> fuse_ranks({"bm25": [3.0, 9.0], "dense": [0.5, float("nan")]}, k=1) == [1 / 3 + 1 / 2, 1 / 2]
    True
    """
    if not (math.isfinite(k) and k >= 0):
        raise InputError(f"k = {k!r}: expected a number of at least 0 (60 is the usual one)")
    weights = dict.fromkeys(columns, 1.0) if weights is None else weights
    rows = []
    for name, values in _table(columns, weights).items():
        found = np.flatnonzero(~np.isnan(values))
        ranked = found[np.argsort(-values[found], kind="stable")]
        row = np.zeros(len(values))
        row[ranked] = weights[name] / (k + np.arange(1, len(ranked) + 1))
        rows.append(row.tolist())
    return [math.fsum(parts) for parts in zip(*rows, strict=True)]


def _normalised(values: np.ndarray, normalise: str) -> np.ndarray:
    """The column [N] on a common scale; constant columns become 0, they tell nothing."""
    missing = np.isnan(values)
    found = values[~missing]
    if not len(found) or found.min() == found.max():
        return np.zeros(len(values))
    found = found / np.abs(found).max()  # both forms are free of scale, and huge scores must not overflow
    centre, spread = (found.mean(), found.std()) if normalise == "zscore" else (found.min(), np.ptp(found))
    scaled = (found - centre) / spread if spread > 0 else np.zeros(len(found))
    column = np.full(len(values), scaled.min())
    column[~missing] = scaled
    return column


def _table(columns: Mapping[str, Sequence[float]], weights: Mapping[str, float]) -> dict[str, np.ndarray]:
    """The columns that have a weight, as float64 arrays [N], checked."""
    unknown = [name for name in weights if name not in columns]
    if unknown:
        raise InputError(f"a weight for {unknown[0]!r}, which is no column{nearest(unknown[0], columns)}")
    if not weights:
        raise InputError(
            f"no weights, so nothing to fuse; there are the columns {', '.join(sorted(columns)) or 'none'}"
        )
    bad = {name: weight for name, weight in weights.items() if not math.isfinite(weight)}
    if bad:
        raise InputError(f"weights must be finite numbers, got {bad}")
    table = {name: np.asarray(columns[name], dtype=np.float64) for name in weights}
    if len({len(values) for values in table.values()}) > 1:
        raise InputError(f"columns of different lengths: { {name: len(values) for name, values in table.items()} }")
    for name, values in table.items():
        if np.isinf(values).any():
            raise InputError(f"column {name!r} has an infinite score at place {int(np.isinf(values).argmax())}")
    return table


def _columns(scores: Sequence[Mapping[str, float]]) -> tuple[list[str], dict[str, list[float]]]:
    """The union of the documents, sorted, and each run's column of scores with NaN where it lacks a document."""
    doc_ids = sorted({d for by_doc in scores for d in by_doc})
    return doc_ids, {str(i): [by_doc.get(d, math.nan) for d in doc_ids] for i, by_doc in enumerate(scores)}


def _query_ids(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(query_id for run in runs for query_id in run.rankings))


def _check_runs(runs: Sequence[Run]) -> None:
    if not runs:
        raise InputError("no runs to fuse: give at least one")
    for run in runs:
        for query_id, ranking in run.rankings.items():
            for doc_id, score in ranking:
                if not math.isfinite(score):
                    raise InputError(f"run {run.name!r}, query {query_id!r}, document {doc_id!r}: the score is {score}")


def _cut(run: Run, depth: int | None) -> Run:
    if depth is not None and depth < 1:
        raise InputError(f"depth = {depth!r}: expected a positive integer, or None for all documents")
    return run if depth is None else run.top(depth)
