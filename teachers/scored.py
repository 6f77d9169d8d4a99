"""A scorer as teacher: a cross-encoder that reads each pair, or a bi-encoder that compares vectors.

Orders by score in canonical order and keeps the scores, so that a student can learn their distances (MarginMSE and its
kin). Scores of a cross-encoder are logits: a sigmoid rounds good candidates to the same 1.0.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, final

from rerank.errors import InputError
from rerank.types import CandidateList, Ordering

logger = logging.getLogger("rerank.teachers.scored")


def by_score(candidates: CandidateList, scores: Sequence[float], teacher: str) -> Ordering:
    """The ordering by score, best first; ties keep the first-stage order. A score that is not finite is an error."""
    if len(scores) != len(candidates):
        raise InputError(
            f"teacher {teacher!r}, query {candidates.query_id!r}: {len(scores)} scores for {len(candidates)} candidates"
        )
    for doc_id, score in zip(candidates.doc_ids, scores, strict=True):
        if not math.isfinite(score):
            raise InputError(
                f"teacher {teacher!r}, query {candidates.query_id!r}, document {doc_id!r}: the score is {score}; "
                "look at this text and at the precision that the teacher computes in"
            )
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    return Ordering(
        query_id=candidates.query_id,
        doc_ids=tuple(candidates.doc_ids[i] for i in order),
        teacher=teacher,
        scores=tuple(float(scores[i]) for i in order),
    )


def scored_orderings(
    lists: Iterable[CandidateList],
    score: Callable[[CandidateList], Sequence[float]],
    teacher: str,
    log: logging.Logger,
) -> Iterator[Ordering]:
    """One ordering a list by `score`; lists of fewer than two candidates are left out, and counted at the end."""
    total = short = 0
    for candidates in lists:
        total += 1
        if len(candidates) < 2:
            short += 1
            continue
        yield by_score(candidates, score(candidates), teacher)
    if short:
        log.warning("teacher %r left out %d of %d lists: %s", teacher, short, total, "fewer than two candidates")


@final
class Scored:
    """Orders by the scores of a model.

    `scorer` has `predict(pairs)`, a score for each (query, text), as `sentence_transformers.CrossEncoder` and our own
    `Reranker` have, or else `encode(texts)`, a vector for each text, compared by cosine.
    """

    def __init__(self, scorer: Any, name: str) -> None:
        self.name = name
        if callable(getattr(scorer, "predict", None)):
            self._score = _pair_scores(scorer.predict)
        elif callable(getattr(scorer, "encode", None)):
            self._score = _cosines(scorer.encode)
        else:
            raise InputError(
                f"teacher {name!r}: {type(scorer).__name__} has neither predict(list of (query, text)) -> scores "
                "nor encode(list of text) -> vectors"
            )

    def __call__(self, lists: Iterable[CandidateList]) -> Iterator[Ordering]:
        """One ordering a list, with scores; lists of fewer than two candidates are left out."""
        yield from scored_orderings(lists, self._score, self.name, logger)


def _pair_scores(predict: Callable[..., Any]) -> Callable[[CandidateList], list[float]]:
    """The function that scores a list pair by pair, by logits where `predict` lets its caller choose."""
    parameters = inspect.signature(predict).parameters

    def score(candidates: CandidateList) -> list[float]:
        options: dict[str, Any] = {}
        if "activation_fn" in parameters:
            from torch.nn import Identity

            options["activation_fn"] = Identity()
        if "show_progress_bar" in parameters:
            options["show_progress_bar"] = False
        return _floats(predict([(candidates.query, text) for text in candidates.texts], **options))

    return score


def _cosines(encode: Callable[..., Any]) -> Callable[[CandidateList], list[float]]:
    """The function that scores a list by the cosine of the vectors of query and text."""
    import numpy as np

    def score(candidates: CandidateList) -> list[float]:
        vectors = np.asarray(encode([candidates.query, *candidates.texts]), dtype=np.float64)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / np.where(lengths == 0, 1, lengths)
        return _floats((vectors[1:] * vectors[0]).sum(axis=1))

    return score


def _floats(scores: Any) -> list[float]:
    """The scores as Python floats, from an array, a tensor on any device, or a list; one column or none."""
    values = scores.tolist() if hasattr(scores, "tolist") else list(scores)
    if values and isinstance(values[0], list):
        if len(values[0]) != 1:
            raise InputError(
                f"the scorer gives {len(values[0])} scores a pair: a teacher needs a model with one output"
            )
        values = [row[0] for row in values]
    return [float(value) for value in values]
