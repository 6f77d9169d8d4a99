r"""The field's measures as factorised rewards, in the conventions of trec_eval.

- Relevance: unjudged is 0; negative grades are 0; binary measures count grades >= `level`.
- Ties: a ranking has none; under Plackett-Luce they have probability 0.
- nDCG: gain is the grade itself (`gain="exponential"`: 2^grade - 1), discount log2(rank + 1).
- `ideal` says over what the best possible value is taken: `"candidates"` (what this list can reach; for training) or
  `"judged"` (all judged documents of the query, retrieved or not; what is reported). AP, recall and R-precision
  divide by the relevant documents among those.
- A list without a relevant document is worth 0 in every ranking.

Each function returns a reward for lists with `.labels` [B, N], `.mask` [B, N], `.pool` [B, M].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from .factors import Factorised, Factors
from .settings import check_settings

Gain = Literal["linear", "exponential"]
Ideal = Literal["candidates", "judged"]

HIGHEST = 100
"""The highest grade that has an exponential gain: a sum of larger ones comes near the end of float32."""


def _gains(grades: Tensor, gain: Gain) -> Tensor:
    grades = grades.clamp(min=0.0)
    if gain == "linear":
        return grades
    # Looked at where that costs nothing: elsewhere it would wait for the device, batch after batch.
    if grades.is_cpu and grades.numel() and not grades.max() <= HIGHEST:
        given = f"a grade of {float(grades.max()):g} has no exponential gain (2^grade - 1)"
        raise ValueError(f"{given}; give grades up to {HIGHEST}, or gain='linear'")
    return torch.exp2(grades) - 1.0


def _grades(lists: Any) -> Tensor:
    return torch.where(lists.mask, lists.labels, torch.zeros_like(lists.labels))


def _relevant(lists: Any, level: int) -> Tensor:
    return (lists.mask & (lists.labels >= max(level, 1))).to(lists.labels.dtype)


def _depth(lists: Any, cutoff: int | None) -> int:
    """Places that can matter: no more than the longest list has, and one where all lists are empty."""
    places = max(1, lists.labels.shape[1])
    return places if cutoff is None else min(cutoff, places)


def _discounts(n: int, like: Tensor) -> Tensor:
    return 1.0 / torch.arange(2, n + 2, device=like.device, dtype=like.dtype).log2()


def _reachable(lists: Any, level: int, ideal: Ideal) -> Tensor:
    """Number of relevant documents, [B, 1], at least 1."""
    grades = _grades(lists) if ideal == "candidates" else lists.pool
    return (grades >= max(level, 1)).sum(-1, keepdim=True).clamp(min=1).to(lists.labels.dtype)


def _ndcg(lists: Any, cutoff: int | None, gain: Gain, ideal: Ideal) -> tuple[Factors, ...]:
    gains = _gains(_grades(lists), gain)
    best = (gains if ideal == "candidates" else _gains(lists.pool, gain)).sort(dim=-1, descending=True).values
    weight = _discounts(_depth(lists, cutoff), gains)
    best = best[:, :cutoff]  # without a cutoff every judged document counts, however short the list
    norm = (best * _discounts(best.shape[1], gains)).sum(-1, keepdim=True)
    return (Factors(gains / norm.clamp(min=1e-12), weight),)


def _dcg(lists: Any, cutoff: int | None, gain: Gain) -> tuple[Factors, ...]:
    gains = _gains(_grades(lists), gain)
    return (Factors(gains, _discounts(_depth(lists, cutoff), gains)),)


def _first_hit(lists: Any, cutoff: int | None, level: int, reciprocal: bool) -> tuple[Factors, ...]:
    relevant = _relevant(lists, level)
    weight = torch.ones(_depth(lists, cutoff), device=relevant.device, dtype=relevant.dtype)
    return (Factors(relevant, weight / weight.cumsum(0) if reciprocal else weight, 1.0 - relevant),)


def _share(lists: Any, cutoff: int | None, level: int, ideal: Ideal | None = None) -> tuple[Factors, ...]:
    """Relevant documents in the top: divided by the reachable ones (recall) or by the cutoff (precision)."""
    relevant = _relevant(lists, level)
    weight = torch.ones(_depth(lists, cutoff), device=relevant.device, dtype=relevant.dtype)
    if ideal is not None:
        return (Factors(relevant / _reachable(lists, level, ideal), weight),)
    places = lists.mask.sum(-1, keepdim=True).clamp(min=1) if cutoff is None else float(cutoff)
    return (Factors(relevant / places, weight),)


def _average_precision(lists: Any, cutoff: int | None, level: int, ideal: Ideal) -> tuple[Factors, ...]:
    """At each relevant document the precision up to it: 1 / rank times 1 + the relevant ones before."""
    relevant = _relevant(lists, level)
    ranks = torch.arange(1, _depth(lists, cutoff) + 1, device=relevant.device, dtype=relevant.dtype)
    return (Factors(relevant / _reachable(lists, level, ideal), 1.0 / ranks, counted=relevant),)


def _r_precision(lists: Any, cutoff: int | None, level: int, ideal: Ideal) -> tuple[Factors, ...]:
    relevant, reachable = _relevant(lists, level), _reachable(lists, level, ideal)
    places = torch.arange(_depth(lists, cutoff), device=relevant.device, dtype=relevant.dtype)
    return (Factors(relevant / reachable, (places < reachable).to(relevant.dtype)),)


def _rbp(lists: Any, cutoff: int | None, level: int, persistence: float) -> tuple[Factors, ...]:
    relevant = _relevant(lists, level)
    ranks = torch.arange(_depth(lists, cutoff), device=relevant.device, dtype=relevant.dtype)
    return (Factors(relevant, (1.0 - persistence) * persistence**ranks),)


def _err(lists: Any, cutoff: int | None, highest: int) -> tuple[Factors, ...]:
    stop = (torch.exp2(_grades(lists).clamp(min=0.0, max=highest)) - 1.0) / 2.0**highest
    ranks = torch.arange(1, _depth(lists, cutoff) + 1, device=stop.device, dtype=stop.dtype)
    return (Factors(stop, 1.0 / ranks, 1.0 - stop),)


def ndcg(cutoff: int | None = 10, gain: Gain = "linear", ideal: Ideal = "candidates") -> Factorised:
    """Normalised discounted cumulative gain, in [0, 1]. Järvelin and Kekäläinen (2002); trec_eval's `ndcg_cut`."""
    return _measure("nDCG", cutoff, _ndcg, gain=gain, ideal=ideal)


def dcg(cutoff: int | None = 10, gain: Gain = "linear") -> Factorised:
    """Discounted cumulative gain, not normalised: lists with many relevant documents weigh more."""
    return _measure("DCG", cutoff, _dcg, gain=gain)


def reciprocal_rank(cutoff: int | None = 10, level: int = 1) -> Factorised:
    """1 / rank of the first relevant document, 0 if it is below the cutoff."""
    return _measure("RR", cutoff, partial(_first_hit, reciprocal=True), level=level)


def success(cutoff: int | None = 10, level: int = 1) -> Factorised:
    """1 if any relevant document is above the cutoff."""
    return _measure("Success", cutoff, partial(_first_hit, reciprocal=False), level=level)


def recall(cutoff: int | None = 10, level: int = 1, ideal: Ideal = "candidates") -> Factorised:
    """Share of the relevant documents that are above the cutoff."""
    return _measure("R", cutoff, _share, level=level, ideal=ideal)


def precision(cutoff: int | None = 10, level: int = 1) -> Factorised:
    """Share of the first `cutoff` ranks (None: of the whole list) that hold a relevant document."""
    return _measure("P", cutoff, _share, level=level)


def average_precision(cutoff: int | None = None, level: int = 1, ideal: Ideal = "candidates") -> Factorised:
    """Mean over the relevant documents of the precision at each one's rank, 0 for those below the cutoff.

    Divided by all relevant documents whatever the cutoff, as trec_eval's `map` and `map_cut`.
    """
    return _measure("AP", cutoff, _average_precision, level=level, ideal=ideal)


def r_precision(cutoff: int | None = None, level: int = 1, ideal: Ideal = "candidates") -> Factorised:
    """Share of the first R ranks that hold a relevant document, R the number of relevant ones; trec_eval's `Rprec`.

    A cutoff looks at the first `cutoff` of these R ranks alone (and divides by R all the same).
    """
    return _measure("Rprec", cutoff, _r_precision, level=level, ideal=ideal)


def rbp(cutoff: int | None = None, level: int = 1, persistence: float = 0.8) -> Factorised:
    """Rank-biased precision. Moffat and Zobel (2008)."""
    return _measure("RBP", cutoff, _rbp, level=level, persistence=persistence)


def err(cutoff: int | None = 20, highest: int = 4) -> Factorised:
    """Expected reciprocal rank for grades up to `highest`. Chapelle et al. (2009)."""
    return _measure("ERR", cutoff, _err, highest=highest)


def _measure(name: str, cutoff: int | None, terms: Callable[..., tuple[Factors, ...]], **settings: Any) -> Factorised:
    check_settings(name, **settings, **({} if cutoff is None else {"cutoff": cutoff}))
    return Factorised(name if cutoff is None else f"{name}@{cutoff}", partial(terms, cutoff=cutoff, **settings), cutoff)


REWARDS: dict[str, Callable[..., Factorised]] = {
    "nDCG": ndcg,
    "DCG": dcg,
    "RR": reciprocal_rank,
    "Success": success,
    "R": recall,
    "P": precision,
    "AP": average_precision,
    "Rprec": r_precision,
    "RBP": rbp,
    "ERR": err,
}
"""Measure name, as ir_measures spells it -> function that makes the reward."""
