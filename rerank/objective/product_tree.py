r"""The product of one factor for each candidate as a binary tree, upwards for the value and downwards for its gradient.

A factor is a polynomial in z (cut below z^degree) whose coefficients are numbers a + b eps + c eta + d eps eta with
eps^2 = eta^2 = 0. It is kept as a list of 1 (a), 2 (a, b) or 4 (a, b, c, d) tensors [coefficient, N, M]: N candidates,
M nodes of the integral. The places 0, 1, 2, 3 of the list are sets of two bits, and two parts multiply to something
only if their sets are disjoint. Candidates are paired by halves, so every slice is a contiguous block.
"""

from __future__ import annotations

import torch
from torch import Tensor


def upwards(leaves: list[Tensor], degree: int) -> list[list[Tensor]]:
    """All levels of the tree, from the leaves to the product of all candidates; odd ones get a neutral factor more."""
    levels = [leaves]
    while (n := levels[-1][0].shape[1]) > 1:
        if n % 2:
            levels[-1] = [torch.cat([part, torch.zeros_like(part[:, :1])], 1) for part in levels[-1]]
            levels[-1][0][0, -1] = 1.0
        half = levels[-1][0].shape[1] // 2
        left, right = [part[:, :half] for part in levels[-1]], [part[:, half:] for part in levels[-1]]
        levels.append([_product_part(left, right, kind, degree) for kind in range(len(leaves))])
    return levels


def downwards(levels: list[list[Tensor]], toward: list[Tensor]) -> list[Tensor]:
    """The derivative in each coefficient of the leaves, given that in those of the root."""
    for level in reversed(levels[:-1]):
        half = level[0].shape[1] // 2
        toward = [part[:, :half] for part in toward]
        below = [torch.empty_like(part) for part in level]
        for one, other in ((slice(0, half), slice(half, None)), (slice(half, None), slice(0, half))):
            for kind, part in enumerate(below):
                disjoint = [k for k in range(len(level)) if k & kind == 0]
                for k in disjoint:
                    _correlate(toward[kind | k], level[k][:, other], part[:, one], fresh=k == disjoint[0])
        toward = below
    return toward


def without_each(levels: list[list[Tensor]], degree: int) -> Tensor:
    """The product (its first part) of all candidates but one, for each one, [coefficient, N, M]."""
    others = torch.ones_like(levels[-1][0][:1])
    for level in reversed(levels[:-1]):
        inside = level[0]
        half = inside.shape[1] // 2
        left, right, others = inside[:, :half], inside[:, half:], others[:, :half]
        others = torch.cat([_convolve(right, others, degree), _convolve(left, others, degree)], 1)
    return others


def _product_part(left: list[Tensor], right: list[Tensor], kind: int, degree: int) -> Tensor:
    total = _convolve(left[0], right[kind], degree)
    for part in range(1, kind + 1):
        if part & ~kind == 0:
            total = _convolve(left[part], right[kind ^ part], degree, total)
    return total


def _convolve(a: Tensor, b: Tensor, degree: int, out: Tensor | None = None) -> Tensor:
    """Product of polynomials cut below z^degree, added to `out` if given."""
    a, b = (a, b) if len(a) <= len(b) else (b, a)
    n = min(len(a) + len(b) - 1, degree)
    first = 0
    if out is None:
        width = min(len(b), n)
        out = torch.empty(n, *b.shape[1:], dtype=b.dtype, device=b.device)
        torch.mul(b[:width], a[0], out=out[:width])
        out[width:] = 0.0
        first = 1
    for i in range(first, min(len(a), n)):
        width = min(len(b), n - i)
        out[i : i + width].addcmul_(b[:width], a[i])
    return out


def _correlate(toward: Tensor, b: Tensor, out: Tensor, fresh: bool) -> None:
    """Derivative in a of <toward, a b>, added to `out` or written there if `fresh`: out_j = sum_i toward_{i+j} b_i."""
    if fresh:
        width = min(len(out), len(toward))
        torch.mul(toward[:width], b[0], out=out[:width])
        out[width:] = 0.0
    for i in range(int(fresh), min(len(b), len(toward))):
        width = min(len(out), len(toward) - i)
        out[:width].addcmul_(toward[i : i + width], b[i])
