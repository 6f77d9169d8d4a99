r"""Policy gradients of rewards that add up over the places: what was not drawn is heard too.

    reward(y) = sum_t sum_r weight_t,r * gain_t,y_r

pl_rank          PL-Rank-3: what a candidate would have earned at each place. Oosterhuis (2022)
pl_rank_rb       ours: the immediate reward is replaced by its mean given the places before
stochastic_rank  each candidate's own noise is integrated out. Ustimenko, Prokhorenkova (2020)

Deviation: the reference code of StochasticRank with Gumbel noise sums over the wrong side of a mask and is biased, on
lists of five or six by a tenth to a half; here candidate d is compared with the k-th best of the others for every k.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rerank import plackett_luce
from rerank.errors import InputError
from rerank.lists import ListBatch
from rerank.objective.draws import (
    Draw,
    Estimate,
    checked,
    drawn,
    estimate_of,
    leave_one_out,
    name_of,
    over_rest,
    places_of,
    scattered,
    terms_of,
    to_go_of,
    weights_of,
)
from rerank.plackett_luce import decayed_sum, filled
from rerank.types import Reward


class _Additive(NamedTuple):
    """A reward sum_t sum_r weight_t,r * gain_t,y_r over T terms."""

    gain: Tensor
    """[B, T, N], 0 on the padding."""
    weight: Tensor
    """[B, T, K]."""

    def at(self, rankings: Tensor) -> Tensor:
        """[B, T, S, K] gains of ranked candidates."""
        shape = (-1, self.gain.shape[1], rankings.shape[1], -1)
        return self.gain[:, :, None, :].expand(*shape).gather(-1, rankings[:, None].expand(*shape))


def pl_rank(
    scores: Tensor, reward: Reward, lists: ListBatch, samples: int, generator: torch.Generator | None = None
) -> Estimate:
    """PL-Rank-3: also candidates that were not placed learn what they would have earned; for additive rewards.

    Unbiased. Its noise grows with the mean of the gains, which `pl_rank_rb` takes out.
    """
    if (nothing := checked(scores, lists, samples)) is not None:
        return nothing
    terms = _additive_terms(reward, lists, "pl_rank")
    with torch.no_grad():
        draw = drawn(scores, lists.mask, samples, generator, places_of(terms, lists.mask))
        additive = _additive(terms, lists.mask, draw.chance)
        gains = additive.at(draw.rankings)
        to_go = to_go_of((gains * additive.weight[:, :, None]).sum(1))
        gradient = _pl_rank(draw, additive, gains, _following(to_go), to_go)
        return estimate_of(to_go[..., 0].mean(-1), gradient, lists.mask)


def pl_rank_rb(
    scores: Tensor, reward: Reward, lists: ListBatch, samples: int, generator: torch.Generator | None = None
) -> Estimate:
    """PL-Rank-3 with the immediate reward replaced by its mean given the places before, and a leave-one-out baseline.

    Unbiased, sums to zero over each list, and does not see a number added to all gains of a list; the value is made of
    the same means. For additive rewards.
    """
    if (nothing := checked(scores, lists, samples)) is not None:
        return nothing
    terms = _additive_terms(reward, lists, "pl_rank_rb")
    with torch.no_grad():
        draw = drawn(scores, lists.mask, samples, generator, places_of(terms, lists.mask))
        additive, taken_out = _middled(_additive(terms, lists.mask, draw.chance), lists.mask)
        gains = additive.at(draw.rankings)
        means = (_mean_gains(draw, additive, gains) * additive.weight[:, :, None]).sum(1)
        following = leave_one_out(_following(to_go_of((gains * additive.weight[:, :, None]).sum(1))))
        gradient = _pl_rank(draw, additive, gains, following, following + means)
        return estimate_of(means.sum(-1).mean(-1) + taken_out, gradient, lists.mask)


def _additive_terms(reward: Reward, lists: ListBatch, estimator: str) -> tuple[Any, ...]:
    terms = terms_of(reward, lists, estimator)
    if any(term.survival is not None or term.counted is not None for term in terms):
        raise InputError(
            f"{estimator} needs a reward that adds up over the places (nDCG, recall, precision, RBP); in "
            f"{name_of(reward)} the worth of a place depends on those above it: use reward_to_go or rloo"
        )
    return terms


def _additive(terms: Sequence[Any], mask: Tensor, like: Tensor) -> _Additive:
    gain = like.new_zeros(mask.shape[0], len(terms), mask.shape[1])
    for t, term in enumerate(terms):
        gain[:, t] = torch.where(mask, term.gain, torch.zeros_like(term.gain)).to(like)
    return _Additive(gain, weights_of(terms, mask.shape[0], like))


def _middled(additive: _Additive, mask: Tensor) -> tuple[_Additive, Tensor]:
    """Gains minus the middle of their range, so that equal gains become exact zeros; what that takes out, [B]."""
    real = mask[:, None]
    low, high = (additive.gain.masked_fill(~real, sign * torch.inf) for sign in (1, -1))
    middle = (low.amin(-1, keepdim=True) + high.amax(-1, keepdim=True)) / 2
    gain = torch.where(real, additive.gain - middle, torch.zeros_like(additive.gain))
    places = torch.arange(additive.weight.shape[-1], device=mask.device) < mask.sum(-1, keepdim=True)
    middle = torch.where(mask.any(-1)[:, None], middle[..., 0], torch.zeros_like(middle[..., 0]))
    return additive._replace(gain=gain), (middle * (additive.weight * places[:, None]).sum(-1)).sum(-1)


def _following(to_go: Tensor) -> Tensor:
    """What the places after each earn, [B, S, K]."""
    return torch.cat([to_go[..., 1:], torch.zeros_like(to_go[..., :1])], -1)


def _mean_gains(draw: Draw, additive: _Additive, gains: Tensor) -> Tensor:
    """Expected gain of each place given the places before, [B, T, S, K]: summed from the last place backwards."""
    shares = draw.chance[:, None] * gains
    shares[..., -1] += additive.gain @ draw.rest.mT
    decay = torch.cat([torch.zeros_like(draw.decay[..., :1]), draw.decay[..., 1:].flip(-1)], -1)
    return decayed_sum(shares.flip(-1), decay[:, None]).flip(-1)


def _pl_rank(draw: Draw, additive: _Additive, gains: Tensor, following: Tensor, risk: Tensor) -> Tensor:
    """Mean over the samples of: what followed a candidate, plus what it would have earned minus the risk at each place.

    Both sums over the places at which it could have been chosen are decayed sums, as in the module docstring.
    """
    worth = decayed_sum(additive.weight[:, :, None].expand_as(gains), draw.decay[:, None])
    spent = decayed_sum(risk, draw.decay)
    placed = following + draw.chance * ((gains * worth).sum(1) - spent)
    last = over_rest(draw, torch.cat([worth[..., -1], spent[:, None, :, -1]], 1))
    unplaced = (additive.gain * last[:, :-1]).sum(1) - last[:, -1]
    return (scattered(draw, placed) + unplaced) / draw.rankings.shape[1]


# -------------------------------------------------------------------------------------------------- stochastic ranking
def stochastic_rank(
    scores: Tensor, reward: Reward, lists: ListBatch, samples: int, generator: torch.Generator | None = None
) -> Estimate:
    """StochasticRank with Gumbel noise: the gradient of each candidate's chance to pass each place; additive rewards.

        sum_k f(v_k - s_d) (w_k - w_{k+1}) (g_d - g of the k-th),      f(u) = exp(-u - e^{-u})

    where v_k is the k-th best perturbed score of the others. Unbiased. The best for few samples (4 to 8); its cost is
    samples x K x N, so prefer pl_rank_rb for many.
    """
    if (nothing := checked(scores, lists, samples)) is not None:
        return nothing
    terms = _additive_terms(reward, lists, "stochastic_rank")
    with torch.no_grad():
        s, n_places = filled(scores, lists.mask), places_of(terms, lists.mask)
        noisy = plackett_luce.perturbed(s, lists.mask, samples, generator)
        # One more than K: the k-th best of the others is the (k + 1)-th of all for those among the first k.
        top = noisy.topk(min(n_places + 1, s.shape[1]), dim=-1)
        additive, taken_out = _middled(_additive(terms, lists.mask, s[:, None, :n_places]), lists.mask)
        # Where there is no k-th other, d is above it whatever its noise: a threshold that nothing passes.
        passed = top.values.masked_fill(~top.values.isfinite(), torch.inf).to(s.dtype)
        gains = additive.at(top.indices)
        value = (gains[..., :n_places].mean(2) * additive.weight).sum((1, 2)) + taken_out
        step = additive.weight - torch.cat([additive.weight[..., 1:], torch.zeros_like(additive.weight[..., :1])], -1)
        gradient = _passing_above(s, top.indices, passed, gains, step) + _passing_below(
            s, top.indices, passed, gains, step, additive.gain
        )
        return estimate_of(value, gradient / samples, lists.mask)


def _crossing(distance: Tensor) -> Tensor:
    """f(-distance), in place: the density of Gumbel noise where a candidate stands level with a threshold."""
    x = distance.clamp_(max=30.0).exp_()
    return x.neg().exp_().mul_(x)


def _passing_below(s: Tensor, top: Tensor, passed: Tensor, gains: Tensor, step: Tensor, gain: Tensor) -> Tensor:
    """[B, N] the sum over samples and places for candidates below the top: the k-th of the others is that of all."""
    below = s[:, None, :].expand(-1, top.shape[1], -1).scatter(-1, top, -torch.inf)
    n_terms, out = gain.shape[1], torch.zeros_like(s)
    for k in range(min(step.shape[-1], top.shape[-1])):
        chances = _crossing(below - passed[..., k : k + 1])
        steps = step[:, :, k, None]
        sums = torch.cat([steps.expand(-1, -1, top.shape[1]), (steps * gains[..., k]).sum(1, keepdim=True)], 1)
        found = sums @ chances
        out += (gain * found[:, :n_terms]).sum(1) - found[:, n_terms]
    return out


def _passing_above(s: Tensor, top: Tensor, passed: Tensor, gains: Tensor, step: Tensor) -> Tensor:
    """[B, N] the same for candidates in the top: for the first k, the k-th of the others is the next of all."""
    own = s[:, None, :].expand(-1, top.shape[1], -1).gather(-1, top)
    places = torch.arange(top.shape[-1], device=s.device)
    # One more threshold, for lists no longer than K: nothing passes it.
    passed = torch.cat([passed, torch.full_like(passed[..., :1], torch.inf)], -1)
    others = torch.cat([gains, gains[..., -1:]], -1)
    total = torch.zeros_like(own)
    for k in range(min(step.shape[-1], top.shape[-1])):
        kth = torch.where(places <= k, k + 1, k)
        chances = _crossing(own - passed[..., kth])
        total += ((gains - others[..., kth]) * step[:, :, k, None, None]).sum(1) * chances
    return torch.zeros_like(s).scatter_add_(1, top.flatten(1), total.flatten(1))
