"""Calibrate: after training, fit the map from scores to probabilities of relevance. Weights and rankings stay.

    affine    minimise the cross-entropy of sigmoid(a * s + b), a > 0, by Newton steps    Lin, Lin and Weng (2007)
    isotonic  the closest map that never falls, by pooling adjacent violators             Zadrozny and Elkan (2002)

1. Targets are Platt's (1999): (n+ + 1) / (n+ + 2) for the n+ relevant candidates, 1 / (n- + 2) for the others. The
   optimum is finite even where scores separate the two perfectly, and no probability is ever 0 or 1. The isotonic map
   gets them too (the original has 0 and 1).
2. Scores that do not rise with relevance (a <= 0 would fit best) get the base rate for every candidate, aloud.
3. The probability is that of a candidate among candidates like those fitted on: deeper lists have a lower base rate.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, final

import numpy as np
import torch

from rerank.errors import InputError
from rerank.models.calibration import KINDS, LARGEST, SMALLEST, Calibration
from rerank.models.language.generative import AnyPolicy
from rerank.training.loop import Context
from rerank.types import CandidateList, Qrels

logger = logging.getLogger("rerank.training")

STEPS = 100
"""Newton steps at most; a convex function of two numbers needs some ten."""
FLAT = 1e-6
"""Slope, a deviation of the scores, of a map for scores that say nothing."""


class Labelled(NamedTuple):
    """Scores of judged candidates, all lists in one row."""

    served: np.ndarray
    """[n] float64 logits."""
    plain: np.ndarray | None
    """[n] logits without the first stage's scores; None where these are the served ones."""
    relevant: np.ndarray
    """[n] bool."""
    lists: int
    """Lists they come from."""
    left_out: dict[str, int]
    """What takes no part: lists without judgements, unjudged candidates (where they are known and excluded)."""


@torch.inference_mode()
def labelled_scores(
    policy: AnyPolicy,
    lists: Sequence[CandidateList],
    level: int = 1,
    qrels: Qrels | None = None,
    at_once: int = 16,
) -> Labelled:
    """The policy's scores and whether each candidate is relevant (a grade of at least `level`), for judged lists.

    A list's labels do not tell an unjudged candidate from one judged 0: both count as not relevant. Given `qrels`, the
    unjudged ones are left out.
    """
    policy.eval()
    judged = [c for c in lists if c.labels is not None]
    views: list[list[np.ndarray]] = []
    relevant, unjudged = [], 0
    for start in range(0, len(judged), at_once):
        group = judged[start : start + at_once]
        known = [_known(c, qrels) for c in group]
        unjudged += sum(len(k) - int(k.sum()) for k in known)
        labels = [np.array([label >= level for label in c.labels or ()], dtype=bool) for c in group]
        relevant += [row[k] for row, k in zip(labels, known, strict=True)]
        scores = policy.all_views(group).cpu().double().numpy()
        for view, rows in enumerate(scores):
            views += [[]] if view == len(views) else []
            views[view] += [row[: len(c)][k] for row, c, k in zip(rows, group, known, strict=True)]
    served, *plain = [np.concatenate(rows) for rows in views] or [np.zeros(0)]
    left_out = {"lists_without_judgements": len(lists) - len(judged), "unjudged_left_out": unjudged}
    row = np.concatenate(relevant) if relevant else np.zeros(0, dtype=bool)
    return Labelled(served, plain[0] if plain else None, row, len(judged), left_out)


def _known(candidates: CandidateList, qrels: Qrels | None) -> np.ndarray:
    """Which candidates take part, [n] bool."""
    if qrels is None:
        return np.ones(len(candidates), dtype=bool)
    grades = qrels.get(candidates.query_id, {})
    return np.array([doc_id in grades for doc_id in candidates.doc_ids], dtype=bool)


@final
@dataclass(frozen=True, kw_only=True)
class Calibrate:
    """Settings of the calibration."""

    kind: Literal["affine", "isotonic"] = "affine"
    """affine: two numbers, right for few lists; isotonic: any rising map, needs some thousand candidates."""
    level: int = 1
    """The lowest grade that counts as relevant."""
    unjudged: Literal["negative", "exclude"] = "negative"
    """Candidates without a judgement: not relevant, or left out (needs qrels: labels alone do not tell them apart)."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"kind must be {' or '.join(map(repr, KINDS))}, not {self.kind!r}")
        if isinstance(self.level, bool) or not isinstance(self.level, int) or self.level < 1:
            raise InputError(f"level must be a grade of at least 1, not {self.level!r}")
        if self.unjudged not in ("negative", "exclude"):
            raise InputError(f"unjudged must be 'negative' or 'exclude', not {self.unjudged!r}")

    def run(
        self,
        policy: AnyPolicy,
        lists: Sequence[CandidateList],
        context: Context | None = None,
        qrels: Qrels | None = None,
    ) -> dict[str, Any]:
        """Set `policy.calibration`, fitted on lists that training did not see; returns what was fitted on how much.

        `context` names model and stage in the log; `qrels` are asked for by `unjudged = "exclude"` alone.
        """
        if self.unjudged == "exclude" and qrels is None:
            raise InputError(
                "unjudged = 'exclude' needs qrels: a list's labels are 0 both for unjudged and for judged 0. Give "
                "run(..., qrels=collection.qrels), or take unjudged = 'negative'"
            )
        found = labelled_scores(policy, lists, self.level, qrels if self.unjudged == "exclude" else None)
        for what, n in found.left_out.items():
            if n:
                logger.warning("calibration: %d %s", n, what.replace("_", " "))
        calibration = self.fit(found.served, found.relevant)
        if found.plain is not None:
            plain = self.fit(found.plain, found.relevant, "scores without the first stage's")
            calibration = replace(calibration, plain=plain)
        policy.calibration = calibration
        if context is not None:
            n = len(found.relevant)
            context.log.say(f"{context.model}: {self.kind} calibration on {n} candidates of {found.lists} lists")
        return {
            "kind": self.kind,
            "a": calibration.a,
            "b": calibration.b,
            "n": len(found.relevant),
            "base_rate": float(found.relevant.mean()),
            "lists": found.lists,
            "level": self.level,
            "unjudged": self.unjudged,
            **found.left_out,
        }

    def fit(self, scores: np.ndarray, relevant: np.ndarray, what: str = "scores") -> Calibration:
        """The calibration of logits [n] to relevance [n] (bool); `what` is how a warning calls the scores."""
        scores, relevant = np.asarray(scores, dtype=np.float64), np.asarray(relevant, dtype=bool)
        if scores.ndim != 1 or scores.shape != relevant.shape:
            raise InputError(f"scores {list(scores.shape)} and relevant {list(relevant.shape)} must both be [n]")
        n, positive = len(relevant), int(relevant.sum())
        if not 0 < positive < n:
            raise InputError(
                f"calibration needs relevant and other candidates; of {n}, {positive} have a grade of at least "
                f"{self.level}: give judged lists that hold both, or set level to a grade that only some reach"
            )
        if not np.isfinite(scores).all():
            where = int((~np.isfinite(scores)).nonzero()[0][0])
            raise InputError(f"calibration needs finite scores; that of candidate {where} is {scores[where]}")
        targets = np.where(relevant, (positive + 1.0) / (positive + 2.0), 1.0 / (n - positive + 2.0))
        return (_affine if self.kind == "affine" else _isotonic)(scores, targets, what)


def _affine(scores: np.ndarray, targets: np.ndarray, what: str) -> Calibration:
    """The map of the module docstring; scores are standardised while it is fitted, so that any scale converges."""
    mean, deviation = float(scores.mean()), float(scores.std())
    # The mean of equal float64 numbers may miss them by a rounding: that is no deviation.
    deviation = deviation if deviation > 1e-12 * max(1.0, abs(mean)) else 1.0
    base = float(targets.mean())
    prior = float(np.log(base / (1.0 - base)))
    slope, shift = _newton((scores - mean) / deviation, targets, prior)
    if slope < FLAT:
        logger.warning("calibration: %s do not rise with relevance; every candidate gets about the base rate", what)
        slope, shift = FLAT, prior
    a = min(max(slope / deviation, SMALLEST), LARGEST)
    return Calibration("affine", a=a, b=shift - a * mean)


def _newton(z: np.ndarray, targets: np.ndarray, prior: float) -> tuple[float, float]:
    """(slope, shift) of the least cross-entropy; (0, prior) where the z say nothing."""
    x = np.stack([z, np.ones_like(z)])
    w = np.array([0.0, prior])

    def loss(w: np.ndarray) -> float:
        f = w @ x
        return float((np.logaddexp(0.0, f) - targets * f).mean())

    now = loss(w)
    for _ in range(STEPS):
        p = 1.0 / (1.0 + np.exp(-np.clip(w @ x, -700, 700)))
        gradient = x @ (p - targets) / len(z)
        # Far out p (1 - p) is 0 in floating point; the ridge keeps the step finite, and the line search honest.
        hessian = (x * (p * (1.0 - p))) @ x.T / len(z) + 1e-12 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while size > 1e-10 and loss(w - size * step) > now - 1e-4 * size * float(gradient @ step):
            size /= 2.0
        then = loss(w - size * step)
        if then >= now:
            break
        w, now = w - size * step, then
    return float(w[0]), float(w[1])


def _isotonic(scores: np.ndarray, targets: np.ndarray, what: str) -> Calibration:
    """Equal scores are pooled first; each block of the fit is a level stretch between two knots."""
    from scipy.optimize import isotonic_regression

    at, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    means = np.bincount(place, weights=targets) / counts
    fitted = isotonic_regression(means, weights=counts)
    if len(fitted.blocks) == 2:
        logger.warning("calibration: %s do not rise with relevance; every candidate gets the base rate", what)
    knots: list[tuple[float, float]] = []
    for first, end in zip(fitted.blocks[:-1], fitted.blocks[1:], strict=True):
        value = min(max(float(fitted.x[first]), 0.0), 1.0)
        knots += [(float(at[i]), value) for i in sorted({int(first), int(end) - 1})]
    return Calibration("isotonic", knots=tuple(knots))
