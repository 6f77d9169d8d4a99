"""Lessons that are worth nothing: what training on them gains was not learned from the labels or from the teacher.

    random labels      as many of each grade as there are, dealt out over all lists
    shuffled labels    each list keeps its grades, on other candidates
    inverted labels    the best grade becomes the worst
    shuffled orderings the teacher's candidates in an order that nobody meant

Each keeps lists, candidates and texts as they are, and is a function of the seed alone. A reward that still goes up on
held-out lists after such a lesson pays for something else than relevance (length, position, the loss itself).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from rerank.randomness import generator
from rerank.types import CandidateList, Ordering


def random_labels(lists: Sequence[CandidateList], seed: int) -> list[CandidateList]:
    """The judged lists with all their grades dealt out anew over all their candidates."""
    judged = [c for c in lists if c.labels is not None]
    grades = [label for c in judged for label in c.labels or ()]
    order = iter(torch.randperm(len(grades), generator=generator(seed, "random labels")).tolist())
    return [_labelled(c, [grades[next(order)] for _ in c.doc_ids]) for c in judged]


def shuffled_labels(lists: Sequence[CandidateList], seed: int) -> list[CandidateList]:
    """The judged lists, each with its own grades in another order."""
    return [
        _labelled(c, [c.labels[i] for i in _order(len(c), seed, "shuffled labels", c.query_id)])
        for c in lists
        if c.labels is not None
    ]


def inverted_labels(lists: Sequence[CandidateList]) -> list[CandidateList]:
    """The judged lists, each with its highest grade for its lowest and the other way round."""
    return [
        _labelled(c, [max(c.labels) + min((0, *c.labels)) - label for label in c.labels])
        for c in lists
        if c.labels is not None
    ]


def shuffled_orderings(orderings: Iterable[Ordering], seed: int) -> list[Ordering]:
    """The orderings with their documents in another order; scores stay at their places."""
    return [
        replace(
            o,
            doc_ids=tuple(
                o.doc_ids[i] for i in _order(len(o.doc_ids), seed, "shuffled teacher", o.teacher, o.query_id)
            ),
        )
        for o in orderings
    ]


def _labelled(candidates: CandidateList, labels: Sequence[int]) -> CandidateList:
    """The list under other labels; what else was judged of its query speaks of other documents and is left out."""
    return replace(candidates, labels=tuple(labels), pool=tuple(labels))


def _order(n: int, *key: str | int) -> list[int]:
    return torch.randperm(n, generator=generator(*key)).tolist()
