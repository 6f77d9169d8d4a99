"""The judgements as teacher: best grade first, ties in first-stage order.

With it, cloning is supervised listwise training on labels: the control that every other teacher must beat.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import final

from rerank.types import CandidateList, Ordering

from .scored import by_score

logger = logging.getLogger("rerank.teachers.judged")


@final
class Judged:
    """Orders by label, descending; the scores are the labels."""

    def __init__(self, name: str = "judged") -> None:
        self.name = name

    def __call__(self, lists: Iterable[CandidateList]) -> Iterator[Ordering]:
        """One ordering for each list whose labels tell a relevant candidate from another."""
        seen: Counter[str] = Counter()
        for candidates in lists:
            reason = _nothing_to_learn(candidates)
            seen[reason] += 1
            if not reason:
                yield by_score(candidates, [float(label) for label in candidates.labels or ()], self.name)
        left_out = seen.total() - seen[""]
        if left_out:
            reasons = ", ".join(f"{n} {reason}" for reason, n in seen.items() if reason)
            logger.info("teacher %r left out %d of %d lists: %s", self.name, left_out, seen.total(), reasons)


def _nothing_to_learn(candidates: CandidateList) -> str:
    """Why the labels of the list give no order; empty when they do."""
    labels = candidates.labels
    if labels is None:
        return "without labels"
    if max(labels, default=0) <= 0:
        return "without a relevant candidate"
    if len(set(labels)) == 1:
        return "with all labels equal"
    return ""
