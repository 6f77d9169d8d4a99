r"""Draws of rankings and what every sampled policy gradient is made of: advantages and the score function.

The score function of place r is 1[d = y_r] - 1[d not placed before r] e^{s_d} / D_r. With coefficients A_r a place,

    sum_r A_r score_r,d = A_{rank d} - C_{rank d} e^{s_d} / D_{rank d},    C_r = A_r + D_r / D_{r-1} C_{r-1}

and for a candidate that is not placed -C_K e^{s_d} / D_K: one pass over the candidates a ranking, and as D falls and
e^{s_d} <= D no exponent is above 0, whatever the scale of the scores. (Totals minus cumulated sums, as in the
reference code of PL-Rank-2, lose all digits on peaked policies.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rerank import plackett_luce
from rerank.errors import InputError
from rerank.lists import ListBatch, check_scores
from rerank.plackett_luce import decayed_sum, filled
from rerank.types import Reward


class Estimate(NamedTuple):
    """What a sample says about the expected reward of B lists."""

    value: Tensor
    """[B] estimated expected reward."""
    gradient: Tensor
    """[B, N] estimate of its gradient in the scores; 0 on the padding."""


AGREE = 1e-6
"""Rewards of a list that differ by less are equal: float jitter is no signal."""


# ---------------------------------------------------------------------------------------------------------- advantages
def leave_one_out(rewards: Tensor) -> Tensor:
    """Advantages [B, S, ...]: each reward minus the mean of the list's others; exactly 0 where all rewards agree."""
    n = rewards.shape[1]
    if n < 2:
        raise InputError(f"leave-one-out needs at least 2 sampled rankings a list, not {n}")
    return centred(rewards) * (n / (n - 1))


def centred(rewards: Tensor) -> Tensor:
    """Rewards minus their mean over the samples; exactly 0 where all agree."""
    if rewards.shape[1] < 2:
        raise InputError(f"comparing rewards needs at least 2 sampled rankings a list, not {rewards.shape[1]}")
    spread = rewards.amax(1, keepdim=True) - rewards.amin(1, keepdim=True)
    return (rewards - rewards.mean(1, keepdim=True)).masked_fill(spread < AGREE, 0.0)


# --------------------------------------------------------------------------------------------------- sampled rankings
class Draw(NamedTuple):
    """S rankings of each list, and what the gradient needs of them."""

    rankings: Tensor
    """[B, S, K]."""
    chance: Tensor
    """[B, S, K] e^{s_d} / D_r of the candidate placed at r."""
    decay: Tensor
    """[B, S, K] D_r / D_{r-1}."""
    rest: Tensor
    """[B, S, N] e^{s_d} / D_K of the candidates that are not placed, 0 for the others."""

    def of(self, values: Tensor) -> Tensor:
        """[B, S, K] the values [B, N] of the placed candidates."""
        return placed(values, self.rankings)


def placed(values: Tensor, rankings: Tensor) -> Tensor:
    """[B, S, K] the values [B, N] of the candidates of rankings [B, S, K], in their order."""
    return values[:, None, :].expand(-1, rankings.shape[1], -1).gather(-1, rankings)


def earned_by_place(terms: Sequence[Any], rankings: Tensor, mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """What each place of rankings [B, S, K] earns by terms (`types.SummedReward`)."""
    total = torch.zeros(rankings.shape, device=rankings.device, dtype=dtype)
    for term in terms:
        depth = min(term.weight.shape[-1], rankings.shape[-1])
        total[..., :depth] += _earned(term, rankings[..., :depth], mask, dtype)
    return total


def _earned(term: Any, rankings: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
    def of(values: Tensor, padding: float) -> Tensor:
        return placed(values.to(dtype).masked_fill(~mask, padding), rankings)

    weight = term.weight[..., : rankings.shape[-1]].to(dtype)
    earned = of(term.gain, 0.0) * (weight[:, None] if weight.ndim == 2 else weight)
    if term.survival is not None:
        reach = of(term.survival, 1.0).cumprod(-1)
        earned = earned * torch.cat([torch.ones_like(reach[..., :1]), reach[..., :-1]], -1)
    if term.counted is not None:
        seen = of(term.counted, 0.0)
        earned = earned * (1.0 + seen.cumsum(-1) - seen)
    return earned


def drawn(scores: Tensor, mask: Tensor, samples: int, generator: torch.Generator | None, cutoff: int) -> Draw:
    """The first `cutoff` places of `samples` rankings of each list."""
    s = filled(scores, mask)
    rankings = plackett_luce.sample(s, mask, samples, generator, cutoff)
    log_left, rest = plackett_luce.remaining(s, rankings)
    here = log_left[..., :-1]
    placed = s[:, None, :].expand(-1, samples, -1).gather(-1, rankings)
    decay = torch.cat([torch.zeros_like(here[..., :1]), (here[..., 1:] - here[..., :-1]).exp()], -1)
    # What is left at the last place holds y_K itself, so D_K is never 0 and no exponent above 0.
    return Draw(rankings, (placed - here).exp(), decay, rest.sub_(here[..., -1:]).exp_())


def score_function(draw: Draw, coefficients: Tensor) -> Tensor:
    """Mean over the samples of sum_r A_r d log pi(y_r) / ds, [B, N]; coefficients A are [B, S, K]."""
    spent = decayed_sum(coefficients, draw.decay)
    placed = coefficients - draw.chance * spent
    return (scattered(draw, placed) - over_rest(draw, spent[:, None, :, -1])[:, 0]) / coefficients.shape[1]


def scattered(draw: Draw, placed: Tensor) -> Tensor:
    """[B, N] sum over the samples of values [B, S, K] of placed candidates."""
    flat = draw.rankings.flatten(1)
    return placed.new_zeros(flat.shape[0], draw.rest.shape[-1]).scatter_add_(1, flat, placed.flatten(1))


def over_rest(draw: Draw, values: Tensor) -> Tensor:
    """[B, T, N] sum over the samples of values [B, T, S] times the chances of what was not placed."""
    return values @ draw.rest


# ------------------------------------------------------------------------------------- rewards that are sums of places
def terms_of(reward: Reward, lists: ListBatch, estimator: str) -> tuple[Any, ...]:
    """The terms of a reward that is a sum over places; InputError for any other."""
    terms = getattr(reward, "terms", None)
    if terms is None:
        raise InputError(
            f"{estimator} needs a reward that is a sum over places (`.terms`); {name_of(reward)} is not one: use rloo"
        )
    return tuple(terms(lists))


def places_of(terms: Sequence[Any], mask: Tensor) -> int:
    """How many places the terms look at, at most N."""
    return min(max((term.weight.shape[-1] for term in terms), default=1), mask.shape[1])


def weights_of(terms: Sequence[Any], n_lists: int, like: Tensor) -> Tensor:
    """[B, T, K] weights of the terms, cut or filled up with 0 to the places of `like` [B, S, K]."""
    out = like.new_zeros(n_lists, len(terms), like.shape[-1])
    for t, term in enumerate(terms):
        depth = min(term.weight.shape[-1], like.shape[-1])
        out[:, t, :depth] = term.weight[..., :depth].to(like)
    return out


def to_go_of(earned: Tensor) -> Tensor:
    """What each place and those after it earn, [B, S, K]."""
    return earned.flip(-1).cumsum(-1).flip(-1)


# ---------------------------------------------------------------------------------------------------------- in and out
def checked(scores: Tensor, lists: ListBatch, samples: int) -> Estimate | None:
    """The estimate for no candidates at all, or None after the input was found to be in order."""
    check_scores(scores, lists.mask)
    if samples < 1:
        raise InputError(f"samples must be at least 1, not {samples}")
    if scores.numel():
        return None
    return Estimate(torch.zeros(scores.shape[0], device=scores.device), torch.zeros_like(scores, dtype=torch.float32))


def estimate_of(value: Tensor, gradient: Tensor, mask: Tensor) -> Estimate:
    """The estimate with nothing on the padding."""
    return Estimate(value, gradient.masked_fill(~mask, 0.0))


def name_of(reward: Reward) -> str:
    """What a message calls the reward."""
    return str(getattr(reward, "name", type(reward).__name__))
