"""Paired tests over queries: is a difference of two means more than the luck of which queries were asked?

t = mean(d) / (sd(d) / sqrt(n)),  d = a - b per query          Student (1908); two-sided
t = mean(d) / sqrt(v_q + v_s),  d [seeds, queries]             min F': Clark (1973), two random factors
    v_q = var over queries of the mean over seeds / queries,  v_s the same the other way round,
    with Satterthwaite's (1946) degrees of freedom
interval: percentiles of the mean over resampled queries       Efron (1979)
Holm (1979): the i-th smallest of m p-values times m - i + 1, made monotone and cut at 1
d_z = mean(d) / sd(d)                                          Cohen (1988)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rerank.errors import InputError

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
    from scipy.special import stdtr

    table = np.asarray(differences, dtype=np.float64)
    if table.ndim != 2 or len(table) == 0 or not np.isfinite(table).all():
        raise InputError(f"differences [seeds, queries], all finite, are needed; these have shape {table.shape}")
    seeds, queries = table.shape
    by_query, by_seed = table.mean(axis=0), table.mean(axis=1)
    if seeds == 1 or queries < 2:
        return paired_t(by_query, np.zeros(queries))
    mean = float(by_query.mean())
    of_queries, of_seeds = float(by_query.var(ddof=1)) / queries, float(by_seed.var(ddof=1)) / seeds
    variance = of_queries + of_seeds
    if variance == 0:
        return 1.0 if mean == 0 else 0.0
    share = of_queries / variance
    freedom = 1 / (share**2 / (queries - 1) + (1 - share) ** 2 / (seeds - 1))
    return float(2 * stdtr(freedom, -abs(mean) / math.sqrt(variance)))


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
    table = np.asarray(columns, dtype=np.float64)
    if table.ndim != 2 or not np.isfinite(table).all():
        raise InputError(f"a bootstrap needs finite values [queries, columns]; this has shape {table.shape}")
    if not 0 < level < 1 or n < 1:
        raise InputError(f"level must lie between 0 and 1 and n must be 1 or more; given: {level}, {n}")
    queries = len(table)
    if queries == 0:
        return [(math.nan, math.nan)] * table.shape[1]
    generator = np.random.default_rng(seed)
    rows = max(1, _BLOCK // queries)
    means = [_resampled(table, min(rows, n - start), generator) for start in range(0, n, rows)]
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail], axis=0)
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


def _resampled(table: NDArray[np.float64], rows: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Means [rows, C] over queries drawn with replacement."""
    queries = len(table)
    drawn = generator.integers(queries, size=(rows, queries)) + np.arange(rows)[:, None] * queries
    # Counting how often each query was drawn turns all columns into one matrix product.
    counts = np.bincount(drawn.ravel(), minlength=rows * queries).reshape(rows, queries)
    return np.asarray(counts.astype(np.float64) @ table / queries)
