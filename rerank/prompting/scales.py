"""The scores of many windows on one scale, and scores that fall along a given order. numpy alone.

A window's scores are relative: a listwise model may shift its logits by any constant from one prompt to the next. So

    score[w, i] = s_i + b_w            least squares, the b of smallest norm (their sum is 0)

puts the candidates of all windows of a list on one scale, as far as windows share candidates. Pieces of a list that no
window joins are level in the mean: nothing else is known of how their scales lie.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Window: TypeAlias = tuple[int, ...]
"""The candidates shown in one prompt, in the order in which they are shown."""

Asked: TypeAlias = list[tuple[Window, NDArray[np.float64]]]
"""The windows of a list so far, with the scores of their places."""

LARGEST = 1e30
"""The largest size of a score: sums and differences of such stay finite in float32."""


def one_scale(n: int, asked: Asked) -> NDArray[np.float64]:
    """s [n] of score[w, i] = s_i + b_w; NaN for a candidate that was in no window."""
    # b_w = mean of window w's (score - s) leaves normal equations in s, a graph Laplacian: one constant is free in each
    # piece of the list that windows join. Adding 1 1' there picks the solution whose mean is 0 in each piece.
    piece = np.array(pieces(n, (window for window, _ in asked)))
    matrix = (piece[:, None] == piece[None, :]).astype(np.float64)
    pull, times = np.zeros(n), np.zeros(n)
    for window, scores in asked:
        shown = list(window)
        pull[shown] += scores - scores.mean()
        times[shown] += 1
        matrix[np.ix_(shown, shown)] -= 1 / len(shown)
    matrix[np.diag_indices(n)] += times
    scale = np.linalg.solve(matrix, pull)
    offsets = [float((scores - scale[list(window)]).mean()) for window, scores in asked]
    return np.where(times > 0, scale + np.mean(offsets), np.nan)


def falling(values: Sequence[float] | NDArray[np.float64], order: Sequence[int]) -> list[float]:
    """Scores [n] that fall strictly along `order`, also in float32, and are as near to `values` as such can be.

    The nearest in least squares that do not rise (pool adjacent violators); those that are then equal in float32 are
    set apart by the spacing of float32 at the list's largest score. NaN (never asked) stands below all others.
    """
    known = np.asarray(values, dtype=np.float64)
    known = np.where(np.isnan(known), np.nanmin(known) - 1, known)
    pools: list[tuple[float, int]] = []
    for i in order:
        level, count = float(known[i]), 1
        while pools and pools[-1][0] < level:
            above, size = pools.pop()
            level, count = (above * size + level * count) / (size + count), size + count
        pools.append((level, count))
    # The spacing at twice the size stays enough when steps lead beyond the largest.
    step = float(np.spacing(np.float32(2 * np.abs(known).max() or 1.0)))
    out, last = [0.0] * len(known), float("inf")
    for i, level in zip(order, (level for level, count in pools for _ in range(count)), strict=True):
        last = level if np.float32(level) < np.float32(last) else last - step
        out[i] = last
    return out


def pieces(n: int, windows: Iterable[Window]) -> list[int]:
    """For each candidate the smallest one that windows join it to, from one to the next."""
    piece = list(range(n))
    for window in windows:
        met = {piece[i] for i in window}
        if len(met) > 1:
            piece = [min(met) if label in met else label for label in piece]
    return piece


def without_noise(scale: NDArray[np.float64]) -> NDArray[np.float64]:
    """The scale to nine digits of its width: what is equal must tie, whatever a machine makes of the last digits."""
    grain = float(np.ptp(scale)) * 1e-9
    return np.round(scale / grain) if grain > 0 else scale
