"""A factorised reward: one definition gives both its value on a ranking and its exact expectation.

    term(y) = sum_r weight_r * gain[y_r] * prod_{q < r} survival[y_q] * (1 + sum_{q < r} counted[y_q])

and the reward is the sum of its terms: most measures have one, a measure over subtopics or depths one for each.

Shapes: gain, survival and counted [B, N], weight [K] or [B, K], rankings [B, S, R] of candidate indices, best first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor


class Factors(NamedTuple):
    """One term of a factorised reward, for B lists."""

    gain: Tensor
    """[B, N] what each candidate is worth; 0 on the padding."""
    weight: Tensor
    """[K] how much each rank counts; [B, K] where that differs between lists."""
    survival: Tensor | None = None
    """[B, N] probability that the reader goes on after this candidate; None where always 1."""
    counted: Tensor | None = None
    """[B, N] what this candidate adds to the factor of those ranked after it (average precision); None for nothing."""


def value_of(rankings: Tensor, factors: Factors, mask: Tensor) -> Tensor:
    """Rewards [B, S] of rankings [B, S, R]; padding, and a candidate that was ranked before, are worth nothing."""
    return value_by_rank(rankings, factors, mask).sum(-1)


def value_by_rank(rankings: Tensor, factors: Factors, mask: Tensor) -> Tensor:
    """What each of the first K places of rankings [B, S, R] pays, [B, S, min(K, R)]; its sum is `value_of`."""
    gain, weight, survival, counted = factors
    top = rankings[..., : weight.shape[-1]]
    depth = top.shape[-1]
    void = _repeated(top)

    def ranked(values: Tensor) -> Tensor:
        return values[:, None, :].expand(-1, rankings.shape[1], -1).gather(-1, top)

    weight = weight[:depth] if weight.ndim == 1 else weight[:, None, :depth]
    worth = (ranked(torch.where(mask, gain, torch.zeros_like(gain))) * weight).masked_fill(void, 0.0)
    if survival is not None:
        reach = ranked(survival).cumprod(-1)
        worth = worth * torch.cat([torch.ones_like(reach[..., :1]), reach[..., :-1]], -1)
    if counted is not None:
        seen = ranked(torch.where(mask, counted, torch.zeros_like(counted))).masked_fill(void, 0.0)
        worth = worth * (1.0 + seen.cumsum(-1) - seen)
    return worth


def _repeated(rankings: Tensor) -> Tensor:
    """True where a place of a ranking holds a candidate that an earlier place holds already."""
    order = rankings.sort(dim=-1, stable=True)
    same = torch.zeros_like(rankings, dtype=torch.bool)
    same[..., 1:] = order.values[..., 1:] == order.values[..., :-1]
    return torch.zeros_like(same).scatter(-1, order.indices, same)


@final
@dataclass(frozen=True)
class Factorised:
    """A reward given by its terms; `name` is its spelling in recipes and tables."""

    name: str
    terms: Callable[[Any], tuple[Factors, ...]]
    """lists (with .labels, .mask, .pool) -> terms, whose sum the reward is."""
    cutoff: int | None = None
    """Only so many places matter; None where all may."""
    graded: bool = True
    """Whether it pays by the lists' own labels: then a list of one grade alone has nothing to gain."""

    def __call__(self, rankings: Tensor, lists: Any) -> Tensor:
        """Rewards [B, S] of rankings [B, S, R]."""
        total = torch.zeros(rankings.shape[:2], device=rankings.device)
        for factors in self.terms(lists):
            total = total + value_of(rankings, factors, lists.mask)
        return total
