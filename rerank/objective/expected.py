r"""The exact expected metric under Plackett-Luce, and its gradient: policy gradients without sampling.

Let every candidate d arrive at a random time T_d ~ Exponential(rate e^{s_d}); sorting by arrival is a Plackett-Luce
draw. Given that d arrives at t, the others have arrived before it independently, with probability
p_j = 1 - exp(-e^{s_j} t). So for any metric of the form

    sum_d gain_d * weight[rank_d] * prod of survival_j over the documents j ranked before d

the expectation is a one-dimensional integral (q = 1 - p, c = survival):

    E = integral dt sum_d gain_d e^{s_d} q_d(t) sum_k weight_{k+1} [z^k] prod_{j != d} (q_j + p_j c_j z)

The sum over d with its leave-one-out product is the first-order part of one product of dual numbers, so the cost is
O(Q N K) a list for Q nodes. All terms are positive: nothing cancels. With t = e^x the integrand is smooth and decays
at both ends, and the trapezoid rule converges exponentially in the step.

Shapes: scores, gain, survival, mask [B, N]; weight [K]. float64 stays float64, all else is computed in float32.

Relatives: placement probabilities as an expected Poisson binomial by numerical integration (MPL, ECIR 2026); numerical
integration of Plackett-Luce likelihoods (Ma et al. 2021); SoftRank (Taylor et al. 2008) for Gaussian noise.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rerank.errors import InputError
from rerank.lists import check_scores


class Grid(NamedTuple):
    """The nodes of the integral over x = log t; the defaults keep the relative gradient error near 1e-5."""

    step: float = 0.4
    before: float = 12.0
    """Starts this far before log of the mean first arrival; what lies earlier is added in closed form."""
    after: float = 3.0
    """Ends this far after the mean arrival of the K-th candidate."""


FINE = Grid(step=0.2, before=20.0, after=4.0)
"""Errors near 1e-8 in float64; for tests and as an oracle."""

# Lists are taken through the product in groups whose working set stays below about this many bytes.
CHUNK_BYTES = 256 * 2**20


def expected_metric(
    scores: Tensor,
    gain: Tensor,
    weight: Tensor,
    mask: Tensor,
    survival: Tensor | None = None,
    grid: Grid | None = None,
) -> Tensor:
    """E[metric] of each list under the Plackett-Luce policy of `scores`, [B]; differentiable in the scores.

    A list without candidates has expectation 0. Only first derivatives are available: value and gradient are
    computed together, a group of lists at a time, and nothing but the gradient [B, N] is kept.
    """
    check_scores(scores, mask)
    if weight.ndim != 1 or gain.shape != scores.shape:
        raise InputError(
            f"gain must be {list(scores.shape)} and weight [K], not {list(gain.shape)}, {list(weight.shape)}"
        )
    return _Expected.apply(scores, gain, weight, mask, survival, grid or Grid())


def exposure(scores: Tensor, weight: Tensor, mask: Tensor, grid: Grid | None = None) -> Tensor:
    """E[weight[rank_d]] of each candidate, [B, N]: its expected share of attention; 0 on the padding."""
    grid = grid or Grid()
    wide = scores.detach().to(_working(scores))
    shares = torch.zeros_like(wide)
    for rows in _groups(wide, weight, mask, grid):
        with torch.enable_grad():
            gain = torch.zeros_like(wide[rows]).requires_grad_()
            total = _integral(wide[rows], gain, weight, mask[rows], None, grid).sum()
            shares[rows] = torch.autograd.grad(total, gain)[0]
    return shares.masked_fill(~mask, 0.0)


class _Expected(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores, gain, weight, mask, survival, grid):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        wide = scores.detach().to(_working(scores))
        values, gradients = wide.new_zeros(wide.shape[0]), torch.zeros_like(wide)
        for rows in _groups(wide, weight, mask, grid):
            with torch.enable_grad():
                s = wide[rows].requires_grad_()
                value = _integral(s, gain[rows], weight, mask[rows], None if survival is None else survival[rows], grid)
                gradients[rows] = torch.autograd.grad(value.sum(), s)[0]
            values[rows] = value.detach()
        ctx.save_for_backward(gradients)
        ctx.dtype = scores.dtype
        return values

    @staticmethod
    def backward(ctx, upstream):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        (gradients,) = ctx.saved_tensors
        return (upstream[:, None] * gradients).to(ctx.dtype), None, None, None, None, None


def _working(scores: Tensor) -> torch.dtype:
    return torch.float64 if scores.dtype == torch.float64 else torch.float32


def _groups(scores: Tensor, weight: Tensor, mask: Tensor, grid: Grid) -> list[Tensor]:
    """Row indices of the lists that have candidates, in groups that fit CHUNK_BYTES."""
    rows = mask.any(-1).nonzero().squeeze(-1)
    if rows.numel() == 0:
        return []
    _, count = _nodes(scores[rows], weight.shape[0], mask[rows], grid)
    # Two polynomials of degree below K a candidate and node, kept by autograd for about three tree levels.
    a_list = count * scores.shape[1] * min(weight.shape[0], scores.shape[1]) * 8 * scores.element_size()
    return list(rows.split(max(1, CHUNK_BYTES // max(1, a_list))))


def _nodes(scores: Tensor, cutoff: int, mask: Tensor, grid: Grid) -> tuple[Tensor, int]:
    """First node of each list [B] and the number of nodes that covers the longest."""
    real = scores.detach().masked_fill(~mask, -torch.inf)
    start = -real.logsumexp(-1) - grid.before
    last = torch.minimum(mask.sum(-1), torch.tensor(cutoff, device=mask.device)).clamp(min=1) - 1
    kth = real.sort(dim=-1, descending=True).values.gather(-1, last[:, None]).squeeze(-1)
    span = float((-kth + grid.after - start).max())
    return start, math.ceil(span / grid.step) + 1


def _integral(s: Tensor, gain: Tensor, weight: Tensor, mask: Tensor, survival: Tensor | None, grid: Grid) -> Tensor:
    """The trapezoid sum of the module docstring for lists that have at least one candidate, [B]."""
    s = s.to(_working(s)).masked_fill(~mask, -torch.inf)
    start, count = _nodes(s, weight.shape[0], mask, grid)
    x = start[:, None] + grid.step * torch.arange(count, device=s.device, dtype=s.dtype)
    # Padding: rate 0, so q = 1 and p = 0, the neutral element of the product.
    rate = (torch.where(mask, s, torch.zeros_like(s))[:, None, :] + x[:, :, None]).clamp(max=60.0).exp()
    rate = torch.where(mask[:, None, :], rate, torch.zeros_like(rate))
    q, p = (-rate).exp(), -torch.expm1(-rate)
    arrival = gain.to(s.dtype)[:, None, :] * rate * q * grid.step
    if survival is not None:
        p = p * survival.to(s.dtype)[:, None, :]
    degree = min(weight.shape[0], s.shape[1])
    counts, value = _product(torch.stack([q, p], -1), arrival[..., None], degree)
    del counts
    weight = weight.to(s.dtype)
    # Before the first node whoever arrives is first, at a rate that falls by e^step a node: a geometric series. Without
    # it a list whose rankings are all worth the same would have a gradient of about e^-before instead of 0.
    early = (gain.to(s.dtype) * rate[:, 0]).sum(-1) * weight[0] * (grid.step / math.expm1(grid.step))
    return early + (value * weight[: value.shape[-1]]).sum((-1, -2))


def _product(a: Tensor, b: Tensor, degree: int) -> tuple[Tensor, Tensor]:
    """prod_j (a_j + eps b_j) over dimension -2, as polynomials in z cut below z^degree; [B, Q, degree] each."""
    a, b = a[..., :degree], b[..., :degree]
    while a.shape[-2] > 1:
        if a.shape[-2] % 2:
            one = torch.zeros_like(a[..., :1, :])
            one[..., 0] = 1.0
            a = torch.cat([a, one], -2)
            b = torch.cat([b, torch.zeros_like(b[..., :1, :])], -2)
        a1, a2, b1, b2 = a[..., 0::2, :], a[..., 1::2, :], b[..., 0::2, :], b[..., 1::2, :]
        a, b = _times(a1, a2, degree), _times(a1, b2, degree) + _times(a2, b1, degree)
    return a.squeeze(-2), b.squeeze(-2)


def _times(a: Tensor, b: Tensor, degree: int) -> Tensor:
    """Product of polynomials (coefficients in the last dimension), cut below z^degree."""
    n = min(a.shape[-1] + b.shape[-1] - 1, degree)
    shorter, longer = (a, b) if a.shape[-1] <= b.shape[-1] else (b, a)
    out = longer.new_zeros(*torch.broadcast_shapes(a.shape[:-1], b.shape[:-1]), n)
    for i in range(min(shorter.shape[-1], n)):
        width = min(longer.shape[-1], n - i)
        out[..., i : i + width] = out[..., i : i + width] + shorter[..., i : i + 1] * longer[..., :width]
    return out
