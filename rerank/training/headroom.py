"""Which lists refinement can learn from: those in which some ranking earns more than another."""

from __future__ import annotations

from collections.abc import Sequence

from rerank.errors import InputError
from rerank.types import CandidateList, Reward


def has_headroom(candidates: CandidateList) -> bool:
    """Whether some ranking of the list earns more than another: a relevant candidate and one of another grade."""
    grades = {max(0, label) for label in candidates.labels or ()}
    return len(grades) > 1


def movable(lists: Sequence[CandidateList], reward: Reward) -> list[CandidateList]:
    """The lists on which `reward` can tell rankings apart: those with headroom, where it pays by their labels."""
    if not getattr(reward, "graded", False):
        return list(lists)  # what pays by something else may have something to gain in any list
    return [c for c in lists if has_headroom(c)]


def relevant_first(candidates: CandidateList) -> list[int]:
    """Indices of the relevant candidates, highest grade first; none for an unjudged list."""
    labels = candidates.labels or ()
    return sorted((i for i, label in enumerate(labels) if label > 0), key=lambda i: -labels[i])


def refinable(lists: Sequence[CandidateList], reward: Reward) -> list[CandidateList]:
    """The movable lists; InputError where there are none."""
    usable = movable(lists, reward)
    if not usable:
        raise InputError(f"none of the {len(lists)} lists has a relevant candidate to move: nothing to refine")
    return usable
