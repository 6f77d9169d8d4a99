"""How true probabilities of relevance are: ECE, Brier score, reliability, thresholds. numpy alone.

    ECE    sum over bins of (share of the candidates) * |mean probability - share of relevant ones|
    Brier  mean of (probability - relevant)^2                                              Brier (1950)

Bins hold (as far as equal probabilities allow, which are never parted) equally many candidates: with bins of equal
width, nearly all candidates of a reranker lie in the first. Naeini et al. (2015); Nixon et al. (2019).

Throughout: probabilities [n] from 0 to 1, relevant [n] True or False (0 or 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, final

import numpy as np
from numpy.typing import ArrayLike

from rerank.errors import InputError

BINS = 15
PRECISIONS = (0.5, 0.7, 0.8, 0.9, 0.95)
"""Precisions whose thresholds a report shows."""


@final
@dataclass(frozen=True)
class Bin:
    """Candidates of like probability."""

    predicted: float
    """Their mean probability."""
    observed: float
    """The share of them that is relevant."""
    count: int


class Threshold(NamedTuple):
    """Keeping what is at least this probable."""

    threshold: float
    precision: float
    """The share of what is kept that is relevant."""
    recall: float
    """The share of the relevant that is kept."""


def reliability(probabilities: ArrayLike, relevant: ArrayLike, bins: int = BINS) -> list[Bin]:
    """At most `bins` bins of about equally many candidates, from the least probable to the most."""
    p, y = _checked(probabilities, relevant)
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
        raise InputError(f"bins must be a whole number of at least 1, not {bins!r}")
    _, place, counts = np.unique(p, return_inverse=True, return_counts=True)
    # A group of equal probabilities goes where its middle lies, so the order of the candidates does not matter.
    middle = counts.cumsum() - counts / 2.0
    bin_of = np.minimum((middle * bins / len(p)).astype(int), bins - 1)[place]
    found = [bin_of == i for i in np.unique(bin_of)]
    return [Bin(float(p[inside].mean()), float(y[inside].mean()), int(inside.sum())) for inside in found]


def ece(probabilities: ArrayLike, relevant: ArrayLike, bins: int = BINS) -> float:
    """The expected calibration error over bins of equal mass, in [0, 1]."""
    found = reliability(probabilities, relevant, bins)
    n = sum(b.count for b in found)
    return sum(b.count / n * abs(b.predicted - b.observed) for b in found)


def brier(probabilities: ArrayLike, relevant: ArrayLike) -> float:
    """The mean squared difference of probability and outcome, in [0, 1]."""
    p, y = _checked(probabilities, relevant)
    return float(np.square(p - y).mean())


def threshold_for(precision: float, probabilities: ArrayLike, relevant: ArrayLike) -> Threshold | None:
    """The smallest threshold whose kept candidates reach `precision`, with its recall; None where none does.

    The smallest keeps the most. It is chosen on the candidates that are given: on others its precision will vary.
    """
    if isinstance(precision, bool) or not isinstance(precision, int | float) or not 0.0 <= precision <= 1.0:
        raise InputError(f"precision must be from 0 to 1, not {precision!r}")
    p, y = _checked(probabilities, relevant)
    order = np.argsort(-p, kind="stable")
    p, kept = p[order], y[order].cumsum()
    precisions = kept / np.arange(1, len(p) + 1)
    ends = np.append(p[1:] < p[:-1], True)  # equal probabilities are kept together
    reached = (ends & (precisions >= precision)).nonzero()[0]
    if not len(reached):
        return None
    last = reached[-1]
    recall = float(kept[last] / kept[-1]) if kept[-1] else 0.0
    return Threshold(float(p[last]), float(precisions[last]), recall)


def calibration_json(
    calibration: Mapping[str, Any],
    logits: ArrayLike,
    probabilities: ArrayLike,
    relevant: ArrayLike,
    precisions: Sequence[float] = PRECISIONS,
) -> dict[str, Any]:
    """What a report shows of one model: `before` are the sigmoids of the bare logits.

    `calibration` is what `Calibration.as_dict` gives. A precision that no threshold reaches has threshold and recall
    null.
    """
    p, y = _checked(probabilities, relevant)
    before = 1.0 / (1.0 + np.exp(-np.clip(np.asarray(logits, dtype=np.float64), -700, 700)))
    found = {wanted: threshold_for(wanted, p, y) for wanted in precisions}
    return {
        "kind": calibration["kind"],
        "a": calibration.get("a"),
        "b": calibration.get("b"),
        "n": len(p),
        "base_rate": float(y.mean()),
        "ece_before": ece(before, y),
        "ece": ece(p, y),
        "brier_before": brier(before, y),
        "brier": brier(p, y),
        "bins": [asdict(b) for b in reliability(p, y)],
        "thresholds": [
            {"precision": wanted, "threshold": t and t.threshold, "recall": t and t.recall}
            for wanted, t in found.items()
        ],
    }


def _checked(probabilities: ArrayLike, relevant: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 [n]."""
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(relevant, dtype=np.float64)
    if p.ndim != 1 or p.shape != y.shape or not len(p):
        raise InputError(f"probabilities {list(p.shape)} and relevant {list(y.shape)} must both be [n], n at least 1")
    if not ((p >= 0.0) & (p <= 1.0)).all():
        where = int((~((p >= 0.0) & (p <= 1.0))).nonzero()[0][0])
        raise InputError(f"probabilities must be from 0 to 1; that of candidate {where} is {p[where]}")
    if not ((y == 0.0) | (y == 1.0)).all():
        where = int((~((y == 0.0) | (y == 1.0))).nonzero()[0][0])
        raise InputError(f"relevant must be True or False; that of candidate {where} is {y[where]}")
    return p, y
