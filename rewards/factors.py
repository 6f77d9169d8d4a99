"""A factorised reward: one definition gives both its value on a ranking and its exact expectation.

    reward(y) = sum_r weight_r * gain[y_r] * prod_{q < r} survival[y_q]

Shapes: gain and survival [B, N], weight [K], rankings [B, S, R] of candidate indices, best first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor


class Factors(NamedTuple):
    """What a factorised reward is made of, for B lists."""

    gain: Tensor
    """[B, N] what each candidate is worth; 0 on the padding."""
    weight: Tensor
    """[K] how much each rank counts."""
    survival: Tensor | None
    """[B, N] probability that the reader goes on after this candidate; None where always 1."""


def value_of(rankings: Tensor, factors: Factors, mask: Tensor) -> Tensor:
    """Rewards [B, S] of rankings [B, S, R]; padding, and a candidate that was ranked before, are worth nothing."""
    gain, weight, survival = factors
    depth = min(rankings.shape[-1], weight.shape[0])
    top = rankings[..., :depth]

    def ranked(values: Tensor) -> Tensor:
        return values[:, None, :].expand(-1, rankings.shape[1], -1).gather(-1, top)

    worth = ranked(torch.where(mask, gain, torch.zeros_like(gain))) * weight[:depth]
    worth = worth.masked_fill(_repeated(top), 0.0)
    if survival is not None:
        reach = ranked(survival).cumprod(-1)
        worth = worth * torch.cat([torch.ones_like(reach[..., :1]), reach[..., :-1]], -1)
    return worth.sum(-1)


def _repeated(rankings: Tensor) -> Tensor:
    """True where a place of a ranking holds a candidate that an earlier place holds already."""
    order = rankings.sort(dim=-1, stable=True)
    same = torch.zeros_like(rankings, dtype=torch.bool)
    same[..., 1:] = order.values[..., 1:] == order.values[..., :-1]
    return torch.zeros_like(same).scatter(-1, order.indices, same)


@final
@dataclass(frozen=True)
class Factorised:
    """A reward given by its factors; `name` is its spelling in recipes and tables."""

    name: str
    factors: Callable[[Any], Factors]
    """lists (with .labels, .mask, .pool) -> factors."""

    def __call__(self, rankings: Tensor, lists: Any) -> Tensor:
        """Rewards [B, S] of rankings [B, S, R]."""
        return value_of(rankings, self.factors(lists), lists.mask)
