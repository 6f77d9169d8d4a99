r"""The field's measures as factorised rewards, in the conventions of trec_eval.

- Relevance: unjudged is 0; negative grades are 0; binary measures count grades >= `level`.
- Ties: a ranking has none; under Plackett-Luce they have probability 0.
- nDCG: gain is the grade itself (`gain="exponential"`: 2^grade - 1), discount log2(rank + 1).
- `ideal` says over what the best possible value is taken: `"candidates"` (what this list can reach; for training) or
  `"judged"` (all judged documents of the query, retrieved or not; what is reported).
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

Gain = Literal["linear", "exponential"]
Ideal = Literal["candidates", "judged"]


def _gains(grades: Tensor, gain: Gain) -> Tensor:
    grades = grades.clamp(min=0.0)
    return grades if gain == "linear" else torch.exp2(grades) - 1.0


def _grades(lists: Any) -> Tensor:
    return torch.where(lists.mask, lists.labels, torch.zeros_like(lists.labels))


def _relevant(lists: Any, level: int) -> Tensor:
    return (lists.mask & (lists.labels >= max(level, 1))).to(lists.labels.dtype)


def _depth(lists: Any, cutoff: int | None) -> int:
    return lists.labels.shape[1] if cutoff is None else cutoff


def _discounts(n: int, like: Tensor) -> Tensor:
    return 1.0 / torch.arange(2, n + 2, device=like.device, dtype=like.dtype).log2()


def _reachable(lists: Any, level: int, ideal: Ideal) -> Tensor:
    """Number of relevant documents, [B, 1], at least 1."""
    grades = _grades(lists) if ideal == "candidates" else lists.pool
    return (grades >= max(level, 1)).sum(-1, keepdim=True).clamp(min=1).to(lists.labels.dtype)


def _ndcg(lists: Any, cutoff: int | None, gain: Gain, ideal: Ideal) -> Factors:
    gains = _gains(_grades(lists), gain)
    best = (gains if ideal == "candidates" else _gains(lists.pool, gain)).sort(dim=-1, descending=True).values
    weight = _discounts(_depth(lists, cutoff), gains)
    best = best[:, :cutoff]  # without a cutoff every judged document counts, however short the list
    norm = (best * _discounts(best.shape[1], gains)).sum(-1, keepdim=True)
    return Factors(gains / norm.clamp(min=1e-12), weight, None)


def _dcg(lists: Any, cutoff: int | None, gain: Gain) -> Factors:
    gains = _gains(_grades(lists), gain)
    return Factors(gains, _discounts(_depth(lists, cutoff), gains), None)


def _first_hit(lists: Any, cutoff: int | None, level: int, reciprocal: bool) -> Factors:
    relevant = _relevant(lists, level)
    weight = torch.ones(_depth(lists, cutoff), device=relevant.device, dtype=relevant.dtype)
    return Factors(relevant, weight / weight.cumsum(0) if reciprocal else weight, 1.0 - relevant)


def _share(lists: Any, cutoff: int | None, level: int, of: Ideal | None) -> Factors:
    """Relevant documents in the top: divided by the reachable ones (recall) or by the cutoff (precision)."""
    relevant = _relevant(lists, level)
    weight = torch.ones(_depth(lists, cutoff), device=relevant.device, dtype=relevant.dtype)
    if of is not None:
        return Factors(relevant / _reachable(lists, level, of), weight, None)
    places = lists.mask.sum(-1, keepdim=True).clamp(min=1) if cutoff is None else cutoff
    return Factors(relevant / places, weight, None)


def _rbp(lists: Any, cutoff: int | None, level: int, persistence: float) -> Factors:
    relevant = _relevant(lists, level)
    ranks = torch.arange(_depth(lists, cutoff), device=relevant.device, dtype=relevant.dtype)
    return Factors(relevant, (1.0 - persistence) * persistence**ranks, None)


def _err(lists: Any, cutoff: int | None, highest: int) -> Factors:
    stop = (torch.exp2(_grades(lists).clamp(min=0.0, max=highest)) - 1.0) / 2.0**highest
    ranks = torch.arange(1, _depth(lists, cutoff) + 1, device=stop.device, dtype=stop.dtype)
    return Factors(stop, 1.0 / ranks, 1.0 - stop)


def ndcg(cutoff: int | None = 10, gain: Gain = "linear", ideal: Ideal = "candidates") -> Factorised:
    """Normalised discounted cumulative gain, in [0, 1]. Järvelin and Kekäläinen (2002); trec_eval's `ndcg_cut`."""
    return Factorised(_name("nDCG", cutoff), partial(_ndcg, cutoff=cutoff, gain=gain, ideal=ideal))


def dcg(cutoff: int | None = 10, gain: Gain = "linear") -> Factorised:
    """Discounted cumulative gain, not normalised: lists with many relevant documents weigh more."""
    return Factorised(_name("DCG", cutoff), partial(_dcg, cutoff=cutoff, gain=gain))


def reciprocal_rank(cutoff: int | None = 10, level: int = 1) -> Factorised:
    """1 / rank of the first relevant document, 0 if it is below the cutoff."""
    return Factorised(_name("RR", cutoff), partial(_first_hit, cutoff=cutoff, level=level, reciprocal=True))


def success(cutoff: int | None = 10, level: int = 1) -> Factorised:
    """1 if any relevant document is above the cutoff."""
    return Factorised(_name("Success", cutoff), partial(_first_hit, cutoff=cutoff, level=level, reciprocal=False))


def recall(cutoff: int | None = 10, level: int = 1, ideal: Ideal = "candidates") -> Factorised:
    """Share of the relevant documents that are above the cutoff."""
    return Factorised(_name("R", cutoff), partial(_share, cutoff=cutoff, level=level, of=ideal))


def precision(cutoff: int | None = 10, level: int = 1) -> Factorised:
    """Share of the first `cutoff` ranks (None: of the whole list) that hold a relevant document."""
    return Factorised(_name("P", cutoff), partial(_share, cutoff=cutoff, level=level, of=None))


def rbp(cutoff: int | None = None, level: int = 1, persistence: float = 0.8) -> Factorised:
    """Rank-biased precision. Moffat and Zobel (2008)."""
    return Factorised(_name("RBP", cutoff), partial(_rbp, cutoff=cutoff, level=level, persistence=persistence))


def err(cutoff: int | None = 20, highest: int = 4) -> Factorised:
    """Expected reciprocal rank for grades up to `highest`. Chapelle et al. (2009)."""
    return Factorised(_name("ERR", cutoff), partial(_err, cutoff=cutoff, highest=highest))


def _name(measure: str, cutoff: int | None) -> str:
    return measure if cutoff is None else f"{measure}@{cutoff}"


REWARDS: dict[str, Callable[..., Factorised]] = {
    "nDCG": ndcg,
    "DCG": dcg,
    "RR": reciprocal_rank,
    "Success": success,
    "R": recall,
    "P": precision,
    "RBP": rbp,
    "ERR": err,
}
"""Measure name, as ir_measures spells it -> function that makes the reward."""
