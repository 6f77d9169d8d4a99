"""The comparison table: arms by measures, with intervals, paired tests and the sentences that follow from them.

The first measure is the primary one; the verdict speaks of it alone. Holm's correction runs over the pairs compared
within one measure. An arm may have several runs, one a seed: its values are means over its seeds, query by query.

"Better" and "worse" are said only of a difference that is measurable:

1. the corrected p-value is below .05. With several seeds the test counts queries and seeds as drawn at random, both
   (min F', Clark 1973; `significance.crossed_t`): training luck would else pass for a gain (Bouthillier et al. 2021);
2. the bootstrap interval of the difference over queries leaves out 0;
3. every seed says so. A direction on which seeds disagree is not claimed, however small p is. (That the mean exceeds
   its standard error over seeds then follows: numbers of one sign never have a mean below it.)

Otherwise the arms "do not differ measurably". The i-th run of an arm and the i-th run of another are of one seed; a
single run (a first stage, a recorded teacher) stands against every seed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from rerank.errors import InputError, nearest
from rerank.evaluation.comparison import EQUAL, Cell, Comparison, cell_from_json, cell_json
from rerank.evaluation.measures import Evaluation, Measure, evaluate, parse_measure
from rerank.evaluation.significance import bootstrap_intervals, crossed_t, effect_size, holm
from rerank.evaluation.wording import Said, conclusion, said
from rerank.types import Qrels, Run

if TYPE_CHECKING:
    from rich.table import Table as RichTable

logger = logging.getLogger("rerank.evaluation")

__all__ = ["EQUAL", "Cell", "Comparison", "Table", "compare"]


@final
@dataclass(frozen=True)
class Table:
    """Arms by measures, the comparisons between them, and the values of every query."""

    measures: tuple[str, ...]
    """The first is the primary one."""
    arms: dict[str, dict[str, Cell]]
    comparisons: list[Comparison]
    queries: int
    seconds: dict[str, float] = field(default_factory=dict)
    per_query: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    """arm -> measure -> query id -> value (its mean over the seeds)."""
    missing: dict[str, int] = field(default_factory=dict)
    """arm -> judged queries that it has no document for (each counts 0), in the worst of its seeds."""
    without_relevant: int = 0
    """Judged queries without a relevant document (each counts 0 for every arm)."""
    seeds: dict[str, int] = field(default_factory=dict)
    """arm -> its number of seeds."""

    @property
    def several_seeds(self) -> bool:
        """Whether some arm has more than one seed."""
        return any(n > 1 for n in self.seeds.values())

    @property
    def best(self) -> str:
        """The arm with the highest mean of the primary measure; the first of equals."""
        return max(self.arms, key=lambda arm: self.arms[arm][self.measures[0]].mean)

    def of(self, arm: str, measure: str | None = None) -> list[Comparison]:
        """The comparisons that `arm` was the subject of, on `measure` (the primary one by default)."""
        wanted = measure or self.measures[0]
        return [c for c in self.comparisons if c.arm == arm and c.measure == wanted]

    def verdict(self) -> list[str]:
        """One plain sentence for each comparison on the primary measure."""
        return [str(s) for s in self.said()]

    def said(self) -> list[Said]:
        """The sentences of the verdict, claim and evidence apart."""
        tested = [c for c in self.comparisons if c.measure == self.measures[0]]
        return [said(c, self.queries, len(tested)) for c in tested]

    def conclusion(self, refined: str, controls: Sequence[str]) -> str:
        """One sentence: is `refined` better than every control, level with the best one, or worse than some?"""
        return str(self.concluded(refined, controls))

    def concluded(self, refined: str, controls: Sequence[str]) -> Said:
        """The claim of `conclusion` and its evidence, apart."""
        if not controls:
            raise InputError(f"there is no control to hold {refined!r} against; name at least one arm")
        primary = self.measures[0]
        means = {arm: cells[primary].mean for arm, cells in self.arms.items()}
        return conclusion(refined, [self.between(refined, control) for control in controls], means, self.queries)

    def between(self, arm: str, against: str, measure: str | None = None) -> Comparison:
        """`arm` minus `against`, as it was tested or turned round; an error where the table has no test of the two."""
        wanted = measure or self.measures[0]
        for c in self.comparisons:
            if c.measure == wanted and (c.arm, c.against) == (arm, against):
                return c
            if c.measure == wanted and (c.against, c.arm) == (arm, against):
                return c.reversed()
        for name in (arm, against):
            if name not in self.arms:
                raise InputError(f"there is no arm {name!r} in the table{nearest(name, self.arms)}")
        raise InputError(
            f"the table has no test of {arm!r} against {against!r} on {wanted}; give the pair to `compare`"
        )

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary that `from_json` reads; numbers that are not finite become None."""
        return {
            "queries": self.queries,
            "measures": list(self.measures),
            "arms": {
                arm: {m: cell_json(cells[m], next(iter(self.of(arm, m)), None)) for m in cells}
                for arm, cells in self.arms.items()
            },
            "comparisons": [c.to_json() for c in self.comparisons],
            "seconds": dict(self.seconds),
            "missing": dict(self.missing),
            "without_relevant": self.without_relevant,
            "seeds": dict(self.seeds),
            "per_query": self.per_query,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Table:
        """The table that `to_json` wrote, also before there were seeds."""
        try:
            return cls(
                measures=tuple(data["measures"]),
                arms={arm: {m: cell_from_json(c) for m, c in cells.items()} for arm, cells in data["arms"].items()},
                comparisons=[Comparison.from_json(c) for c in data["comparisons"]],
                queries=data["queries"],
                seconds=dict(data.get("seconds") or {}),
                per_query=dict(data.get("per_query") or {}),
                missing=dict(data.get("missing") or {}),
                without_relevant=data.get("without_relevant", 0),
                seeds=dict(data.get("seeds") or {}),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"this is not a table written by Table.to_json: {error!r}") from error

    def to_markdown(self) -> str:
        """Two Markdown tables: arms by measures with intervals, and the comparisons."""
        from rerank.evaluation.printing import markdown

        return markdown(self)

    def to_rich(self, width: int = 80) -> RichTable:
        """A table for a terminal of `width` columns: the primary measure with its interval, each arm's first test.

        Measures that there is no room for are named below it.
        """
        from rerank.evaluation.printing import rich_table

        return rich_table(self, width)


def compare(
    runs: Mapping[str, Run | Sequence[Run]],
    qrels: Qrels,
    measures: Sequence[str | Measure],
    against: Sequence[tuple[str, str]],
    seconds: Mapping[str, float] | None = None,
) -> Table:
    """The table of all `runs` (arm -> its run, or one run a seed), with a test of each (arm, other) in `against`."""
    if not runs:
        raise InputError("there is no run to compare; give at least one arm")
    _check_arms(runs, against, seconds or {})
    names = tuple(dict.fromkeys(str(parse_measure(m)) for m in measures))
    evaluations = {arm: [evaluate(run, qrels, names) for run in _seeds(arm, given)] for arm, given in runs.items()}
    first = next(iter(evaluations.values()))[0]
    values = {arm: {m: _values(seeds, m) for m in names} for arm, seeds in evaluations.items()}
    means = {arm: {m: v.mean(axis=0) for m, v in by_measure.items()} for arm, by_measure in values.items()}
    query_ids = list(first.per_query[names[0]])
    return Table(
        measures=names,
        arms=_cells(values, names),
        comparisons=[c for m in names for c in _comparisons({a: v[m] for a, v in values.items()}, m, against)],
        queries=first.n,
        seconds=dict(seconds or {}),
        per_query={
            arm: {m: dict(zip(query_ids, v.tolist(), strict=True)) for m, v in by_measure.items()}
            for arm, by_measure in means.items()
        },
        missing={arm: max(e.missing for e in seeds) for arm, seeds in evaluations.items()},
        without_relevant=first.without_relevant,
        seeds={arm: len(seeds) for arm, seeds in evaluations.items()},
    )


def _check_arms(runs: Mapping[str, Any], against: Sequence[tuple[str, str]], seconds: Mapping[str, float]) -> None:
    for name in [*(arm for pair in against for arm in pair), *seconds]:
        if name not in runs:
            raise InputError(f"there is no arm {name!r} to compare{nearest(name, runs)}")
    for i, pair in enumerate(against):
        if pair[0] == pair[1] or tuple(pair) in [tuple(p) for p in against[:i]]:
            raise InputError(f"the comparison {pair[0]!r} against {pair[1]!r} makes no sense or was given twice")


def _seeds(arm: str, given: Run | Sequence[Run]) -> list[Run]:
    seeds = [given] if isinstance(given, Run) else list(given)
    if not seeds:
        raise InputError(f"arm {arm!r} has no run; give it one, or one for each seed")
    return seeds


def _values(seeds: Sequence[Evaluation], measure: str) -> NDArray[np.float64]:
    """[seeds, queries], the queries in the order of the judgements."""
    return np.array([list(e.per_query[measure].values()) for e in seeds], dtype=np.float64)


def _cells(
    values: Mapping[str, Mapping[str, NDArray[np.float64]]], measures: Sequence[str]
) -> dict[str, dict[str, Cell]]:
    columns = [by_measure[m].mean(axis=0) for by_measure in values.values() for m in measures]
    intervals = iter(bootstrap_intervals(np.array(columns).T))
    return {
        arm: {m: Cell(float(v.mean()), *next(intervals), _spread(v)) for m, v in by_measure.items()}
        for arm, by_measure in values.items()
    }


def _spread(values: NDArray[np.float64]) -> float:
    return float(values.mean(axis=1).std(ddof=1)) if len(values) > 1 else math.nan


def _comparisons(
    values: Mapping[str, NDArray[np.float64]], measure: str, against: Sequence[tuple[str, str]]
) -> list[Comparison]:
    if not against:
        return []
    pairs = [_paired(values, arm, other) for arm, other in against]
    p_values = [crossed_t(a - b) for a, b in pairs]
    intervals = bootstrap_intervals(np.stack([(a - b).mean(axis=0) for a, b in pairs], axis=1))
    tests = zip(against, pairs, intervals, p_values, holm(p_values), strict=True)
    return [compared(*pair, measure, a, b, *interval, p, holm_p) for pair, (a, b), interval, p, holm_p in tests]


def _paired(
    values: Mapping[str, NDArray[np.float64]], arm: str, other: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The values [seeds, queries] of both arms in the seeds that both have; a single run is repeated."""
    a, b = values[arm], values[other]
    if 1 not in (len(a), len(b)) and len(a) != len(b):
        common = min(len(a), len(b))
        counts = f"{arm} has {len(a)} seeds and {other} {len(b)}"
        logger.warning("%s: their difference is that of the first %d seeds", counts, common)
        a, b = a[:common], b[:common]
    seeds = max(len(a), len(b))
    return np.broadcast_to(a, (seeds, a.shape[1])), np.broadcast_to(b, (seeds, b.shape[1]))


def compared(
    arm: str,
    against: str,
    measure: str,
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    low: float,
    high: float,
    p: float,
    p_holm: float,
) -> Comparison:
    """The comparison of values [seeds, queries] whose interval and p-values are known."""
    differences = (a - b).mean(axis=0)
    return Comparison(
        arm=arm,
        against=against,
        measure=measure,
        difference=float(differences.mean()),
        low=low,
        high=high,
        p=p,
        p_holm=p_holm,
        wins=int((differences > EQUAL).sum()),
        losses=int((differences < -EQUAL).sum()),
        ties=int((abs(differences) <= EQUAL).sum()),
        effect=effect_size(a.mean(axis=0), b.mean(axis=0)),
        by_seed=tuple((a - b).mean(axis=1).tolist()) if len(a) > 1 else (),
    )
