r"""The exact expected metric under Plackett-Luce, and its gradient: policy gradients without sampling.

Let every candidate d arrive at a random time T_d ~ Exponential(rate e^{s_d}); sorting by arrival is a Plackett-Luce
draw. Given that d arrives at t, the others have arrived before it independently, with probability
p_j = 1 - exp(-e^{s_j} t). So for any metric of the form

    sum_d gain_d * weight[rank_d] * prod of survival_j over the documents j ranked before d

the expectation is a one-dimensional integral (q = 1 - p, c = survival):

    E = integral dt sum_d gain_d e^{s_d} q_d(t) sum_k weight_{k+1} [z^k] prod_{j != d} (q_j + p_j c_j z)

The sum over d with its leave-one-out product is the eps part of one product of numbers with eps^2 = 0,

    prod_j (q_j + p_j c_j z + eps gain_j e^{s_j} q_j)

so the cost is O(N K) a node of the integral. With average precision a gain is multiplied by 1 + the sum of `counted`
over the documents ranked before: one more such number, the factor gains eta p_j counted_j z, and E takes the
eps (1 + eta) part. All terms are positive: nothing cancels. The gradient is the same tree of products walked
downwards; where the integral is evaluated, and how exactly, is told in `nodes`.

Shapes: scores, gain, survival, counted, mask [B, N]; weight [K] or [B, K]; inside [N, M] for M nodes of all lists.
float64 stays float64, all else is computed in float32.

Relatives: placement probabilities as an expected Poisson binomial by numerical integration (MPL, ECIR 2026); numerical
integration of Plackett-Luce likelihoods (Ma et al. 2021); SoftRank (Taylor et al. 2008) for Gaussian noise.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rerank.errors import InputError
from rerank.lists import ListBatch, check_scores
from rerank.objective.nodes import FINE, Grid, Nodes, nodes_of
from rerank.objective.product_tree import downwards, upwards, without_each

__all__ = ["FINE", "Grid", "expected_metric", "expected_reward", "exposure", "is_exact", "placement"]


def expected_metric(
    scores: Tensor,
    gain: Tensor,
    weight: Tensor,
    mask: Tensor,
    survival: Tensor | None = None,
    counted: Tensor | None = None,
    grid: Grid | None = None,
) -> Tensor:
    """E[metric] of each list under the Plackett-Luce policy of `scores`, [B]; differentiable in the scores.

    A list without candidates has expectation 0. Only first derivatives are available: value and gradient are
    computed together, a chunk of nodes at a time, and nothing but the gradient [B, N] is kept.
    """
    term = _checked(scores, gain, weight, mask, survival, counted)
    slope = scores.requires_grad and torch.is_grad_enabled()
    return _Expected.apply(scores, term, mask, grid or Grid(), slope)


def expected_reward(scores: Tensor, reward: Any, lists: ListBatch, grid: Grid | None = None) -> Tensor:
    """E[reward] of each list under the Plackett-Luce policy of `scores`, [B], for any reward that `is_exact`.

    A combination (`parts` and `combine`) becomes that combination of its parts' expectations: the expectation itself
    where it is linear, and for a minimum the minimum of the expectations.
    """
    if not is_exact(reward):
        name = getattr(reward, "name", type(reward).__name__)
        raise InputError(
            f"the expectation of the reward {name!r} is not known: it has neither `terms` nor `expected` nor exact "
            "`parts` with `combine`; estimate it from sampled rankings instead (rerank.objective.sampled)"
        )
    if (terms := getattr(reward, "terms", None)) is not None:
        total = torch.zeros(scores.shape[0], dtype=_working(scores), device=scores.device)
        for term in terms(lists):
            total = total + expected_metric(
                scores, term.gain, term.weight, lists.mask, term.survival, term.counted, grid
            )
        return total
    if (expected := getattr(reward, "expected", None)) is not None:
        check_scores(scores, lists.mask)
        return expected(scores.to(_working(scores)), lists)
    parts = [expected_reward(scores, part, lists, grid) for part in reward.parts]
    return reward.combine(torch.stack(parts, -1)[:, None, :], lists)[:, 0]


def is_exact(reward: Any) -> bool:
    """Whether the expectation of `reward` under Plackett-Luce is known: by terms, in closed form or from its parts."""
    if callable(getattr(reward, "terms", None)) or callable(getattr(reward, "expected", None)):
        return True
    parts = getattr(reward, "parts", ())
    return bool(parts) and callable(getattr(reward, "combine", None)) and all(map(is_exact, parts))


def exposure(scores: Tensor, weight: Tensor, mask: Tensor, grid: Grid | None = None) -> Tensor:
    """E[weight[rank_d]] of each candidate, [B, N]: its expected share of attention; 0 on the padding."""
    wide = scores.detach()
    term = _checked(wide, torch.zeros_like(wide), weight, mask, None, None)
    return _integrated(wide, term, mask, grid or Grid(), slope=True).share


def placement(scores: Tensor, mask: Tensor, cutoff: int, grid: Grid | None = None) -> Tensor:
    """P(rank of d = r) of each candidate for r = 1 .. `cutoff`, [B, N, K]; 0 on the padding and beyond a list's end.

    One pass for all ranks: the product of all candidates but d, found by walking down the tree of products.
    """
    if cutoff < 1:
        raise InputError(f"placement needs a cutoff of at least 1, not {cutoff}")
    wide = scores.detach()
    term = _checked(wide, torch.zeros_like(wide), wide.new_ones(cutoff), mask, None, None)
    chances = term.gain.new_zeros(cutoff, scores.shape[1], scores.shape[0])
    if chances.numel():
        nodes = nodes_of(wide, term.weight, mask, grid or Grid())
        rate, once, twice = nodes.before_the_first()
        crowd = rate.sum(0)
        chances[0] = rate * (once - twice * crowd)
        chances[1:2] = rate * twice * (crowd - rate)
        for rows, x, step in nodes.chunks(kinds=1, degree=cutoff, extra=3 * cutoff):
            rate, q, p = nodes.arrivals(rows, x)
            others = without_each(upwards([torch.stack([q, p][:cutoff])], cutoff), cutoff)[:, : len(rate)]
            chances[: len(others)].index_add_(2, rows, others * (rate * q * step))
    return chances.permute(2, 1, 0).contiguous()


# ------------------------------------------------------------------------------------------------------- the integral
class _Term(NamedTuple):
    """Factors in the working precision; [B, N] and weight [B, K], or turned and for the list of each node."""

    gain: Tensor
    weight: Tensor
    survival: Tensor | None
    counted: Tensor | None

    def turned(self) -> _Term:
        return _Term(*(None if part is None else part.T.contiguous() for part in self))  # type: ignore[arg-type]

    def at(self, rows: Tensor) -> _Term:
        return _Term(*(None if part is None else part.index_select(1, rows) for part in self))  # type: ignore[arg-type]


class _Integral(NamedTuple):
    value: Tensor
    """[B]"""
    slope: Tensor
    """[B, N] derivative in the scores."""
    share: Tensor
    """[B, N] derivative in the gains."""


class _Expected(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores, term, mask, grid, slope):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        found = _integrated(scores.detach(), term, mask, grid, slope)
        ctx.save_for_backward(found.slope)
        ctx.dtype = scores.dtype
        return found.value

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        (slope,) = ctx.saved_tensors
        return (upstream[:, None] * slope).to(ctx.dtype), None, None, None, None


def _working(scores: Tensor) -> torch.dtype:
    return torch.float64 if scores.dtype == torch.float64 else torch.float32


def _checked(
    scores: Tensor, gain: Tensor, weight: Tensor, mask: Tensor, survival: Tensor | None, counted: Tensor | None
) -> _Term:
    """The factors in the working precision, if they fit; that the scores are finite is seen to in `nodes_of`."""
    if scores.ndim != 2 or scores.shape != mask.shape:
        check_scores(scores, mask)
    if weight.ndim not in (1, 2) or not weight.shape[-1] or (weight.ndim == 2 and len(weight) != len(scores)):
        raise InputError(f"weight must be [K] or [{len(scores)}, K] with K > 0, not {list(weight.shape)}")
    for name, values in (("gain", gain), ("survival", survival), ("counted", counted)):
        if values is not None and values.shape != scores.shape:
            raise InputError(f"{name} must be {list(scores.shape)} like the scores, not {list(values.shape)}")
    if survival is not None and counted is not None:
        raise InputError("a term with both survival and counted has no known expectation: give at most one of them")
    kind = _working(scores)

    def real(values: Tensor) -> Tensor:
        return values.detach().to(kind).masked_fill(~mask, 0.0)

    return _Term(
        gain=real(gain),
        weight=weight.detach().to(kind).expand(len(scores), -1),
        survival=None if survival is None else real(survival),
        counted=None if counted is None else real(counted),
    )


def _integrated(scores: Tensor, term: _Term, mask: Tensor, grid: Grid, slope: bool) -> _Integral:
    """The trapezoid sum of the module docstring; without `slope` only its value is meant to be read."""
    if not scores.numel():
        return _Integral(term.gain.new_zeros(len(scores)), torch.zeros_like(term.gain), torch.zeros_like(term.gain))
    nodes = nodes_of(scores, term.weight, mask, grid)
    kinds, degree = 2 if term.counted is None else 4, term.weight.shape[1]
    term = term.turned()
    total = _before_the_first_node(nodes, term)
    for rows, x, step in nodes.chunks(kinds, degree):
        rate, q, p = nodes.arrivals(rows, x)
        here = term.at(rows)
        levels = upwards(_leaves(here, rate * q * step, q, p), degree)
        # The eps (1 + eta) part of the root, weighed by rank.
        toward = [torch.zeros_like(part) for part in levels[-1]]
        for kind in range(1, kinds, 2):
            part = levels[-1][kind]
            toward[kind] = here.weight[: len(part), None]
            total.value.index_add_(0, rows, (part * toward[kind]).sum((0, 1)))
        if slope:
            share, turn = _through_the_leaves(downwards(levels, toward), here, rate, q, step)
            total.share.index_add_(1, rows, share)
            total.slope.index_add_(1, rows, turn)
    return _Integral(total.value, total.slope.T.contiguous(), total.share.T.contiguous())


def _before_the_first_node(nodes: Nodes, term: _Term) -> _Integral:
    """What the nodes before the first would add ([B] and [N, B]), to second order: at most two have arrived there.

    Without it a list whose rankings are all worth the same would have a gradient of about e^-before instead of 0.
    """
    rate, once, twice = nodes.before_the_first()
    first = term.weight[0]
    second = term.weight[1] if len(term.weight) > 1 else torch.zeros_like(first)
    # What one earlier arrival lets pass: its survival, or 1 and what it counts.
    passed = rate if term.survival is None else rate * term.survival
    passed = passed if term.counted is None else passed + rate * term.counted
    earned = term.gain * rate
    share = rate * (once * first + twice * (second * (passed.sum(0) - passed) - first * rate.sum(0)))
    others = passed * (earned.sum(0) - earned)
    slope = term.gain * share + twice * (second * others - first * earned.sum(0) * rate)
    return _Integral((term.gain * share).sum(0), slope, share)


def _leaves(term: _Term, arrival: Tensor, q: Tensor, p: Tensor) -> list[Tensor]:
    """The factor of each candidate, as `product_tree` wants it; `arrival` is the probability density of arriving."""
    degree = len(term.weight)
    staying = p if term.survival is None else p * term.survival
    leaves = [torch.stack([q, staying][:degree]), (arrival * term.gain)[None]]
    if term.counted is not None:
        leaves += [torch.stack([torch.zeros_like(p), p * term.counted][:degree]), torch.zeros_like(p)[None]]
    return leaves


def _through_the_leaves(
    toward: list[Tensor], term: _Term, rate: Tensor, q: Tensor, step: Tensor
) -> tuple[Tensor, Tensor]:
    """Derivatives [N, M] in the gains and in the scores, given those in the coefficients of the leaves."""
    n = len(rate)  # the tree may have one neutral factor more
    leaving = rate * q
    share = toward[1][0, :n] * leaving * step
    moved = -toward[0][0, :n]
    if len(toward[0]) > 1:
        moved += toward[0][1, :n] if term.survival is None else toward[0][1, :n] * term.survival
        if term.counted is not None:
            moved += toward[2][1, :n] * term.counted
    return share, leaving * moved + share * term.gain * (1.0 - rate)
