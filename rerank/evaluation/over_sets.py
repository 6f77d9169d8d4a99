"""The arithmetic of `across`: which sets count with what weight, the means over them, and their tests.

The formulas stand in `across`. Everything here is a pure function of the sets' tables.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rerank.errors import InputError, Mismatch, nearest
from rerank.evaluation.across import Across, OverSets, Speed, arms_of, measures_of
from rerank.evaluation.comparison import Cell, Comparison
from rerank.evaluation.measures import parse_measure
from rerank.evaluation.probes import corrected_drops
from rerank.evaluation.significance import (
    bootstrap_interval,
    holm,
    paired_t,
    signed_rank,
    stratified_intervals,
    stratified_t,
)
from rerank.evaluation.tables import Table, compared

logger = logging.getLogger("rerank.evaluation")

ENOUGH_GROUPS = 6
"""Of which the signed-rank test can reach p < .05: all six won gives 2 / 2^6 = .03, five give .06."""


def gathered(
    suite: str,
    tables: Mapping[str, Table],
    pairs: Sequence[tuple[str, str]] | None,
    groups: Mapping[str, str],
    ties: Mapping[str, Mapping[str, float]],
    speed: Mapping[str, Mapping[str, Speed]],
    published: Mapping[str, Sequence[Any]],
    probes: Mapping[str, Mapping[str, Sequence[Any]]],
) -> Across:
    """What `across` returns."""
    _check(suite, tables)
    for what, given in (("groups", groups), ("ties", ties), ("speed", speed), ("published", published)):
        _check_sets(what, given, tables)
    _check_sets("probes", probes, tables)
    measures = measures_of(tables)
    chosen = _pairs(tables, pairs)
    arms, counted = counted_sets(tables)
    by_set = _by_set(tables, chosen, measures)
    cells, comparisons = _means(tables, groups, by_set, arms, counted, chosen)
    compared_sets = _over_sets(comparisons, by_set, groups)
    with_sets = [
        replace(c, wins=o.won, ties=o.level, losses=o.lost) for c, o in zip(comparisons, compared_sets, strict=True)
    ]
    return Across(
        suite=suite,
        tables=dict(tables),
        groups={name: groups.get(name, "") for name in tables},
        means=cells,
        comparisons=tuple(with_sets),
        by_set=by_set,
        ties={name: dict(arms) for name, arms in ties.items()},
        speed={name: dict(arms) for name, arms in speed.items()},
        published={name: [_beside(row, tables[name]) for row in rows] for name, rows in published.items()},
        probes=corrected_drops(probes),
        counted=counted,
        over_sets=tuple(compared_sets),
    )


def counted_sets(tables: Mapping[str, Table]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(arms with a mean, the sets that all of them have).

    While no set has all arms, the arm of the fewest sets (the last of equals) is left without a mean, and that is said.
    """
    arms = list(arms_of(tables))
    while True:
        counted = tuple(name for name, table in tables.items() if all(arm in table.arms for arm in arms))
        if counted:
            break
        rarest = min(reversed(arms), key=lambda arm: sum(arm in table.arms for table in tables.values()))
        arms.remove(rarest)
        logger.warning("no set has all arms: %r, of the fewest sets, has no mean over sets", rarest)
    if len(counted) < len(tables):
        left_out = ", ".join(name for name in tables if name not in counted)
        logger.warning("means are over %d of %d sets: some arm is missing from %s", len(counted), len(tables), left_out)
    return tuple(arms), counted


def weights_of(sets: Sequence[str], groups: Mapping[str, str]) -> dict[str, float]:
    """Set -> its weight in a mean: groups weigh the same, and so do the sets within a group. The sum is 1."""
    members: dict[tuple[str, str], int] = {}
    for name in sets:
        members[group_of(name, groups)] = members.get(group_of(name, groups), 0) + 1
    return {name: 1 / (len(members) * members[group_of(name, groups)]) for name in sets}


def group_of(name: str, groups: Mapping[str, str]) -> tuple[str, str]:
    """What tells the group of a set apart: ("group", its name), or ("set", name) for one that stands alone."""
    return ("group", groups[name]) if groups.get(name) else ("set", name)


def _check(suite: str, tables: Mapping[str, Table]) -> None:
    if not tables:
        raise InputError(f"suite {suite!r} has no set with results; a table over sets needs one at least")
    for name, table in tables.items():
        if any(arm not in table.per_query for arm in table.arms):
            raise InputError(f"set {name!r}: its table has no values of single queries; make it with `compare`")
    primaries = {table.measures[0]: name for name, table in tables.items()}
    if len(primaries) > 1:
        named = ", ".join(f"{name}: {measure}" for measure, name in primaries.items())
        raise Mismatch(f"the sets of suite {suite!r} have different primary measures ({named}); give all the same")


def _check_sets(what: str, given: Mapping[str, Any], tables: Mapping[str, Table]) -> None:
    for name in given:
        if name not in tables:
            raise InputError(f"{what}: there is no table of a set {name!r}{nearest(name, tables)}")


def check_absent(absent: Mapping[str, str], tables: Mapping[str, Table]) -> None:
    """Nothing, where no set that is said to be absent has a table."""
    for name in absent:
        if name in tables:
            raise InputError(f"absent: set {name!r} has a table; leave it out of one of the two")


def _pairs(tables: Mapping[str, Table], pairs: Sequence[tuple[str, str]] | None) -> list[tuple[str, str]]:
    """The pairs to compare: those given, or those of the sets' tables in the order in which they come first."""
    if pairs is None:
        return list(dict.fromkeys((c.arm, c.against) for table in tables.values() for c in table.comparisons))
    chosen = [(arm, against) for arm, against in pairs]
    arms = arms_of(tables)
    for i, (arm, against) in enumerate(chosen):
        for name in (arm, against):
            if name not in arms:
                raise InputError(f"there is no arm {name!r} to compare{nearest(name, arms)}")
        if arm == against or (arm, against) in chosen[:i]:
            raise InputError(f"the comparison {arm!r} against {against!r} makes no sense or was given twice")
    return chosen


def _by_set(
    tables: Mapping[str, Table], pairs: Sequence[tuple[str, str]], measures: Sequence[str]
) -> dict[str, tuple[Comparison, ...]]:
    """Set -> its comparisons, Holm's correction within a measure running over all sets and pairs."""
    found: dict[str, list[Comparison]] = {name: [] for name in tables}
    for measure in measures:
        own = [
            (name, _within(table, *pair, measure))
            for name, table in tables.items()
            for pair in pairs
            if pair[0] in table.arms and pair[1] in table.arms
        ]
        for (name, c), p in zip(own, holm([c.p for _, c in own]), strict=True):
            found[name].append(replace(c, p_holm=p))
    return {name: tuple(own) for name, own in found.items()}


def _within(table: Table, arm: str, against: str, measure: str) -> Comparison:
    """The comparison within one set: as its table has it, else tested here."""
    if any(c.measure == measure and {c.arm, c.against} == {arm, against} for c in table.comparisons):
        return table.between(arm, against, measure)
    if max(table.seeds.get(name, 1) for name in (arm, against)) > 1:
        raise InputError(f"{arm!r} and {against!r} have several seeds; give the pair to `compare` for each set")
    a, b = _values(table, arm, measure), _values(table, against, measure)
    low, high = bootstrap_interval(a - b)
    p = paired_t(a, b)
    return compared(arm, against, measure, a[None], b[None], low, high, p, p)


def _values(table: Table, arm: str, measure: str) -> NDArray[np.float64]:
    """[queries] in the order of the judgements, which all arms of a table share."""
    return np.array(list(table.per_query[arm][measure].values()), dtype=np.float64)


def _means(
    tables: Mapping[str, Table],
    groups: Mapping[str, str],
    by_set: Mapping[str, tuple[Comparison, ...]],
    arms: Sequence[str],
    counted: Sequence[str],
    pairs: Sequence[tuple[str, str]],
) -> tuple[dict[str, dict[str, Cell]], list[Comparison]]:
    """Arms' means and differences over the sets; all their intervals from the same resampled queries."""
    measures = measures_of(tables)
    shared = {(a, b): tuple(s for s, t in tables.items() if a in t.arms and b in t.arms) for a, b in pairs}
    tested = [(m, pair) for m in measures for pair in pairs if shared[pair]]
    weights = [weights_of(counted, groups)] * (len(arms) * len(measures))
    weights += [weights_of(shared[pair], groups) for _, pair in tested]
    columns = {name: _columns(table, arms, measures, tested) for name, table in tables.items()}
    matrix = np.array([[weight.get(name, 0.0) for weight in weights] for name in tables])
    intervals = stratified_intervals(list(columns.values()), matrix)
    sums = np.sum([matrix[i] * table.mean(axis=0) for i, table in enumerate(columns.values())], axis=0)
    at = iter(zip(sums.tolist(), intervals, strict=True))
    cells = {arm: {m: _cell(*next(at)) for m in measures} for arm in arms}
    comparisons = [
        _comparison(measure, pair, total, interval, weights_of(shared[pair], groups), tables, by_set)
        for (measure, pair), (total, interval) in zip(tested, at, strict=True)
    ]
    corrected = {m: iter(holm([c.p for c in comparisons if c.measure == m])) for m in measures}
    return cells, [replace(c, p_holm=next(corrected[c.measure])) for c in comparisons]


def _cell(mean: float, interval: tuple[float, float]) -> Cell:
    return Cell(mean, *interval)


def _columns(
    table: Table, arms: Sequence[str], measures: Sequence[str], tested: Sequence[tuple[str, tuple[str, str]]]
) -> NDArray[np.float64]:
    """[queries, arms * measures + tested]; 0 where the set lacks an arm: such a column has no weight here."""
    nothing = np.zeros(len(next(iter(next(iter(table.per_query.values())).values()))))
    values = {(arm, m): _values(table, arm, m) for arm in table.arms for m in measures}
    own = [values.get((arm, m), nothing) for arm in arms for m in measures]
    both = [values[a, m] - values[b, m] if a in table.arms and b in table.arms else nothing for m, (a, b) in tested]
    return np.stack([*own, *both], axis=1)


def _comparison(
    measure: str,
    pair: tuple[str, str],
    difference: float,
    interval: tuple[float, float],
    weights: Mapping[str, float],
    tables: Mapping[str, Table],
    by_set: Mapping[str, tuple[Comparison, ...]],
) -> Comparison:
    """The comparison of means over the sets in `weights`, not yet corrected, sets not yet counted."""
    rows = [_values(tables[s], pair[0], measure) - _values(tables[s], pair[1], measure) for s in weights]
    by_seed = _by_seed([_own(by_set[s], pair, measure) for s in weights], list(weights.values()))
    p = stratified_t(rows, list(weights.values()), by_seed)
    variances = [float(row.var(ddof=1)) if len(row) > 1 else math.nan for row in rows]
    within = math.fsum(w * v for w, v in zip(weights.values(), variances, strict=True))
    none = math.copysign(math.inf, difference) if difference else 0.0
    effect = difference / math.sqrt(within) if within else none
    return Comparison(*pair, measure, difference, *interval, p, p, 0, 0, 0, effect, by_seed)


def _own(comparisons: Sequence[Comparison], pair: tuple[str, str], measure: str) -> Comparison:
    return next(c for c in comparisons if _is(c, pair, measure))


def _is(c: Comparison, pair: tuple[str, str], measure: str) -> bool:
    return (c.arm, c.against) == pair and c.measure == measure


def _by_seed(own: Sequence[Comparison], weights: Sequence[float]) -> tuple[float, ...]:
    """The difference over the sets in each seed; a set whose arms have one run each is the same in every seed."""
    counts = {len(c.by_seed) for c in own if c.by_seed}
    if not counts:
        return ()
    if len(counts) > 1:
        arms = f"{own[0].arm} - {own[0].against}"
        logger.warning("%s: the sets have %s seeds; of each the first %d count", arms, sorted(counts), min(counts))
    seeds = [c.by_seed[: min(counts)] or (c.difference,) * min(counts) for c in own]
    return tuple(math.fsum(w * d for w, d in zip(weights, row, strict=True)) for row in zip(*seeds, strict=True))


def _over_sets(
    comparisons: Sequence[Comparison], by_set: Mapping[str, tuple[Comparison, ...]], groups: Mapping[str, str]
) -> list[OverSets]:
    """Beside each comparison: its sets, those won, level and lost, and the signed-rank test over their groups."""
    found = []
    for c in comparisons:
        pair = (c.arm, c.against)
        having = [name for name, of_set in by_set.items() if any(_is(d, pair, c.measure) for d in of_set)]
        own = {name: _own(by_set[name], pair, c.measure) for name in having}
        by_group: dict[tuple[str, str], list[float]] = {}
        for name, d in own.items():
            by_group.setdefault(group_of(name, groups), []).append(d.difference)
        p = math.nan
        if len(by_group) >= ENOUGH_GROUPS:
            p = signed_rank([math.fsum(values) / len(values) for values in by_group.values()])
        won = sum(d.measurable and d.difference > 0 for d in own.values())
        lost = sum(d.measurable and d.difference < 0 for d in own.values())
        level = len(own) - won - lost
        found.append(OverSets(c.arm, c.against, c.measure, tuple(own), len(by_group), won, level, lost, p, p))
    corrected = {m: iter(holm([o.signed_rank for o in found if o.measure == m])) for m in {o.measure for o in found}}
    return [o._replace(signed_rank_holm=next(corrected[o.measure])) for o in found]


def _beside(row: Any, table: Table) -> dict[str, Any]:
    """A published figure with ours beside it."""
    figure = asdict(row) if is_dataclass(row) and not isinstance(row, type) else dict(row)
    if figure.get("measured") is None:
        cell = table.arms.get(figure["arm"], {}).get(str(parse_measure(figure["measure"])))
        figure["measured"] = cell.mean if cell else None
    return figure
