"""Paired tests over queries: is a difference of two means more than the luck of which queries were asked?

t = mean(d) / (sd(d) / sqrt(n)),  d = a - b per query          Student (1908); two-sided
t = mean(d) / sqrt(v_q + v_s),  d [seeds, queries]             min F': Clark (1973), two random factors
    v_q = var over queries of the mean over seeds / queries,  v_s the same the other way round,
    with Satterthwaite's (1946) degrees of freedom
t = D / sqrt(sum_s w_s^2 var(d_s) / n_s),  D = sum_s w_s mean(d_s)      a stratified mean: Cochran (1977, ch. 5)
    over fixed sets s of n_s queries each, with Satterthwaite's degrees of freedom
W = sum of the ranks of |d| with the sign of d                 Wilcoxon (1945); over sets: Demsar (2006)
interval: percentiles of the mean over resampled queries       Efron (1979); within each set, where there are several
Holm (1979): the i-th smallest of m p-values times m - i + 1, made monotone and cut at 1
d_z = mean(d) / sd(d)                                          Cohen (1988)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rerank.errors import InputError
from rerank.evaluation.comparison import EQUAL

_BLOCK = 1 << 22
"""Resampled values held at a time: keeps the bootstrap of many queries within some 100 MB."""


def paired_t(a: ArrayLike, b: ArrayLike) -> float:
    """The two-sided p-value of the paired t-test; 1 for equal inputs, NaN for fewer than two pairs."""
    from scipy.special import stdtr

    differences = _differences(a, b)
    n = len(differences)
    if n < 2:
        return math.nan
    mean, deviation = float(differences.mean()), float(differences.std(ddof=1))
    if deviation == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stdtr(n - 1, -abs(mean) / (deviation / math.sqrt(n))))


def crossed_t(differences: ArrayLike) -> float:
    """The two-sided p-value of the mean of [seeds, queries], both drawn at random; the paired t-test for one seed.

    It asks whether the difference would be there with new queries *and* new seeds. Measured on 100 queries without a
    true difference, where the luck of training is three times that of the queries' draw or more, it called one in
    13 / 7 / 6 % with 2 / 3 / 5 seeds (a test over queries alone: 59 / 53 / 47 %); where it is small, in 2 to 4 %.
    """
    table = np.asarray(differences, dtype=np.float64)
    if table.ndim != 2 or len(table) == 0 or not np.isfinite(table).all():
        raise InputError(f"differences [seeds, queries], all finite, are needed; these have shape {table.shape}")
    seeds, queries = table.shape
    by_query, by_seed = table.mean(axis=0), table.mean(axis=1)
    if seeds == 1 or queries < 2:
        return paired_t(by_query, np.zeros(queries))
    return stratified_t([by_query], [1.0], by_seed)


def stratified_t(differences: Sequence[ArrayLike], weights: Sequence[float], by_seed: ArrayLike = ()) -> float:
    """The two-sided p-value of the weighted sum of the sets' mean differences; the paired t-test for one set.

    `differences` holds one row of queries for each set. The sets are fixed, their queries drawn at random. With
    several seeds, drawn at random too, `by_seed` holds the weighted sum in each of them. NaN where a set has fewer
    than two queries: nothing tells how much its mean would vary.
    """
    from scipy.special import stdtr

    rows = [np.asarray(row, dtype=np.float64) for row in differences]
    _check_strata(rows, weights)
    if min(len(row) for row in rows) < 2:
        return math.nan
    mean = math.fsum(w * float(row.mean()) for w, row in zip(weights, rows, strict=True))
    parts = [(w * w * float(row.var(ddof=1)) / len(row), len(row) - 1) for w, row in zip(weights, rows, strict=True)]
    seeds = np.asarray(by_seed, dtype=np.float64)
    if len(seeds) > 1:
        parts.append((float(seeds.var(ddof=1)) / len(seeds), len(seeds) - 1))
    variance = math.fsum(part for part, _ in parts)
    if variance == 0:
        return 1.0 if mean == 0 else 0.0
    # Shares, not the variances themselves, whose squares may vanish.
    freedom = 1 / math.fsum((part / variance) ** 2 / degrees for part, degrees in parts)
    return float(2 * stdtr(freedom, -abs(mean) / math.sqrt(variance)))


def signed_rank(differences: ArrayLike) -> float:
    """The two-sided p-value of Wilcoxon's signed-rank test, differences of 0 left out; 1 where all are 0.

    What is not above `EQUAL` is rounding and counts as 0. Exact for up to 13 differences, and for up to 50 that are
    neither 0 nor of equal size.
    """
    from scipy.stats import wilcoxon

    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise InputError(f"a signed-rank test needs one finite difference of each set; given shape {values.shape}")
    values = values[abs(values) > EQUAL]
    return float(wilcoxon(values).pvalue) if len(values) else 1.0


def effect_size(a: ArrayLike, b: ArrayLike) -> float:
    """Cohen's d_z; 0 for equal inputs, infinite for a constant difference, NaN for fewer than two pairs."""
    differences = _differences(a, b)
    if len(differences) < 2:
        return math.nan
    mean, deviation = float(differences.mean()), float(differences.std(ddof=1))
    if deviation == 0:
        return 0.0 if mean == 0 else math.copysign(math.inf, mean)
    return mean / deviation


def bootstrap_interval(values: ArrayLike, level: float = 0.95, n: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """(low, high) of the mean of `values`; give it differences for a paired interval. NaN when there is no value."""
    [interval] = bootstrap_intervals(np.asarray(values, dtype=np.float64).reshape(-1, 1), level, n, seed)
    return interval


def bootstrap_intervals(
    columns: ArrayLike, level: float = 0.95, n: int = 10_000, seed: int = 0
) -> list[tuple[float, float]]:
    """(low, high) of the mean of each column of [queries, C]; all columns see the same resampled queries."""
    return stratified_intervals([columns], [1.0], level, n, seed)


def stratified_intervals(
    tables: Sequence[ArrayLike], weights: ArrayLike, level: float = 0.95, n: int = 10_000, seed: int = 0
) -> list[tuple[float, float]]:
    """(low, high) of each column's weighted sum of means over the sets, queries resampled within each set.

    `tables` holds [queries, C] of each set, `weights` [sets] or, one for each column too, [sets, C]. All columns see
    the same resampled queries. NaN where a set of a weight above 0 has no query.
    """
    sets = [np.asarray(table, dtype=np.float64) for table in tables]
    for table in sets:
        if table.ndim != 2 or not np.isfinite(table).all():
            raise InputError(f"a bootstrap needs finite values [queries, columns]; this has shape {table.shape}")
    if not 0 < level < 1 or n < 1:
        raise InputError(f"level must lie between 0 and 1 and n must be 1 or more; given: {level}, {n}")
    given = np.asarray(weights, dtype=np.float64)
    weight = np.broadcast_to(given if given.ndim == 2 else given[:, None], (len(sets), sets[0].shape[1]))
    generator = np.random.default_rng(seed)
    sums = np.zeros((n, sets[0].shape[1]))
    for table, w in zip(sets, weight, strict=True):
        if len(table) == 0:
            sums[:, w != 0] = math.nan
        elif w.any():
            sums += w * _replicates(table, n, generator)
    tail = (1 - level) / 2
    low, high = np.quantile(sums, [tail, 1 - tail], axis=0)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the order given; NaN (no test was possible) stays NaN and is not counted.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    tested = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for place, i in enumerate(tested):
        if not 0 <= p_values[i] <= 1:
            raise InputError(f"p-value number {i + 1} is {p_values[i]!r}; it must lie between 0 and 1")
        largest = max(largest, min(1.0, (len(tested) - place) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def _differences(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """a - b, checked: the same number of finite values."""
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise InputError(
            f"a paired test needs one value of each system for each query; given shapes: {first.shape}, {second.shape}"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise InputError("a paired test needs finite values; one of the given values is NaN or infinite")
    return first - second


def _check_strata(rows: Sequence[NDArray[np.float64]], weights: Sequence[float]) -> None:
    if not rows or len(rows) != len(weights):
        raise InputError(f"a stratified test needs sets and a weight of each; given {len(rows)} and {len(weights)}")
    if any(row.ndim != 1 or not np.isfinite(row).all() for row in rows):
        raise InputError("a stratified test needs a row of finite differences of each set")


def _replicates(table: NDArray[np.float64], n: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """`n` resampled means [n, C], a block of them at a time."""
    rows = max(1, _BLOCK // len(table))
    return np.concatenate([_resampled(table, min(rows, n - start), generator) for start in range(0, n, rows)])


def _resampled(table: NDArray[np.float64], rows: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Means [rows, C] over queries drawn with replacement."""
    queries = len(table)
    drawn = generator.integers(queries, size=(rows, queries)) + np.arange(rows)[:, None] * queries
    # Counting how often each query was drawn turns all columns into one matrix product.
    counts = np.bincount(drawn.ravel(), minlength=rows * queries).reshape(rows, queries)
    return np.asarray(counts.astype(np.float64) @ table / queries)
