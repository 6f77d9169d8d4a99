"""Retrieval fusion as teacher: the first-stage scores of each list, fused anew.

The cheapest teacher there is: no model runs, and two retrievers that err differently teach more than either alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import final

from rerank.errors import InputError, nearest
from rerank.retrieval.fusion import NORMALISATIONS, fuse_ranks, fuse_scores
from rerank.types import CandidateList, Ordering

from .scored import scored_orderings

logger = logging.getLogger("rerank.teachers.fused")

METHODS = (*NORMALISATIONS, "rrf")


@final
class Fused:
    """Orders by a weighted sum of the list's features (retriever name -> weight; None weighs every feature 1).

    `method` normalises the scores ("zscore", "minmax") or takes reciprocal ranks ("rrf").
    """

    def __init__(self, weights: Mapping[str, float] | None = None, method: str = "zscore", name: str = "fused") -> None:
        if method not in METHODS:
            raise InputError(f"method = {method!r}{nearest(str(method), METHODS)}")
        self.name = name
        self.method = method
        self.weights = None if weights is None else dict(weights)

    def __call__(self, lists: Iterable[CandidateList]) -> Iterator[Ordering]:
        """One ordering a list, with the fused scores; lists of fewer than two candidates are left out."""
        yield from scored_orderings(lists, self._fuse, self.name, logger)

    def _fuse(self, candidates: CandidateList) -> list[float]:
        features = candidates.features
        weights = dict.fromkeys(features, 1.0) if self.weights is None else self.weights
        missing = [name for name in weights if name not in features]
        if missing or not weights:
            raise InputError(
                f"teacher {self.name!r}, query {candidates.query_id!r}: no feature {', '.join(missing) or 'at all'}; "
                f"the list has {', '.join(sorted(features)) or 'none'}. "
                "Features are the retrievers' scores (retrieval.build_first_stage makes them): name some of those"
            )
        if self.method == "rrf":
            return fuse_ranks(features, weights=weights)
        return fuse_scores(features, weights, self.method)
