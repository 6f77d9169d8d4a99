"""Several sets in one table: the arms' means over the sets, and what the differences between them are worth.

    {set: Table} -> across -> Across -> verdict(), to_markdown(), to_latex(), to_csv(), to_json()

D = mean over groups of the mean over their sets of mean(d),  d = a - b per query. The sets of a group (the forums of
CQADupStack) count together as one; a set without a group is a group of its own.

The sets are fixed: the claim is about these sets, and only their queries were drawn at random, in each set apart.

    t = D / sqrt(sum_s w_s^2 var(d_s) / n_s)     a stratified mean, Cochran (1977, ch. 5); degrees of freedom as
                                                 Satterthwaite (1946); w_s = 1 / (groups * sets of the group)
    interval: percentiles of D, the queries resampled within each set; Efron and Tibshirani (1993, ch. 8)
    p of the means: corrected by Holm within a measure; p of the sets' own differences: over all sets and pairs of one
    measure

Whether an arm would win on *other* sets is another question, for which a set is one draw. To that speaks the count of
sets won, level and lost (each by its own corrected test) and, with six groups or more, Wilcoxon's signed-rank test
over the groups' differences (Demsar 2006), corrected as the means are. Five groups could not reach p < .05.

A mean is never one over different sets for different arms: means are over the sets that all arms have, a comparison
over the sets that both of its arms have, and either says which. An arm that shares no set with the others has no mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, final

from rerank.errors import InputError, nearest
from rerank.evaluation.comparison import Cell, Comparison, cell_from_json, cell_json, finite, number
from rerank.evaluation.tables import Table
from rerank.evaluation.wording import Said, said_absent, said_best, said_over_sets, said_within_set

if TYPE_CHECKING:
    from rich.table import Table as RichTable


class Speed(NamedTuple):
    """What ranking took: seconds in all, and the median and 95th percentile of the seconds of a query."""

    queries: int
    pairs: int
    """Queries with documents that were scored."""
    seconds: float
    p50: float
    p95: float

    @property
    def pairs_per_second(self) -> float:
        """Pairs scored in a second; NaN where no time was measured."""
        return self.pairs / self.seconds if self.seconds > 0 else math.nan


class OverSets(NamedTuple):
    """Beside a comparison of means: the sets it is over, how many its arm won, and the test over groups of sets."""

    arm: str
    against: str
    measure: str
    sets: tuple[str, ...]
    groups: int
    won: int
    level: int
    lost: int
    signed_rank: float
    """Wilcoxon's p; NaN with fewer than six groups."""
    signed_rank_holm: float


@final
@dataclass(frozen=True)
class Across:
    """Arms by sets, their means over the sets, and the comparisons between them."""

    suite: str
    tables: Mapping[str, Table]
    groups: Mapping[str, str]
    """set -> its group; "" is a group of its own."""
    means: Mapping[str, Mapping[str, Cell]]
    """arm -> measure -> mean over the groups of `counted` sets."""
    comparisons: tuple[Comparison, ...]
    """Of the means; wins, ties and losses are sets, by their own corrected tests; effect is of queries within sets."""
    by_set: Mapping[str, tuple[Comparison, ...]]
    """set -> its comparisons, p corrected over all sets and pairs of one measure."""
    ties: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """set -> arm -> share of neighbouring documents with equal scores."""
    speed: Mapping[str, Mapping[str, Speed]] = field(default_factory=dict)
    """set -> arm -> what ranking took."""
    published: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    """set -> published figures: arm, measure, value, what, source, and `measured`, ours (None where there is none)."""
    probes: Mapping[str, Mapping[str, list[dict[str, Any]]]] = field(default_factory=dict)
    """set -> arm -> drops, with `p_holm` over all of one probe."""
    counted: tuple[str, ...] = ()
    """The sets that `means` are over: those that all arms with a mean have."""
    over_sets: tuple[OverSets, ...] = ()
    """One for each of `comparisons`, in their order."""
    absent: Mapping[str, str] = field(default_factory=dict)
    """Sets that were asked for and have no table -> why."""

    @property
    def measures(self) -> tuple[str, ...]:
        """The measures that all sets have; the first is the primary one."""
        return measures_of(self.tables)

    @property
    def arms(self) -> tuple[str, ...]:
        """All arms, in the order in which the sets name them."""
        return arms_of(self.tables)

    @property
    def best(self) -> str | None:
        """The arm with the highest mean of the primary measure; None where no arm has a mean."""
        return max(self.means, key=lambda arm: self.means[arm][self.measures[0]].mean, default=None)

    def missing(self) -> dict[str, tuple[str, ...]]:
        """Arm -> the sets that lack it, for the arms that some set lacks."""
        lacking = {arm: tuple(s for s, table in self.tables.items() if arm not in table.arms) for arm in self.arms}
        return {arm: sets for arm, sets in lacking.items() if sets}

    def of(self, arm: str, measure: str | None = None) -> list[Comparison]:
        """The comparisons of means that `arm` was the subject of, on `measure` (the primary one by default)."""
        wanted = measure or self.measures[0]
        return [c for c in self.comparisons if c.arm == arm and c.measure == wanted]

    def between(self, arm: str, against: str, measure: str | None = None) -> Comparison:
        """`arm` minus `against` over the sets, as it was tested or turned round; an error where it was not tested."""
        wanted = measure or self.measures[0]
        for c in self.comparisons:
            if c.measure == wanted and {c.arm, c.against} == {arm, against}:
                return c if c.arm == arm else c.reversed()
        for name in (arm, against):
            if name not in self.arms:
                raise InputError(f"there is no arm {name!r} in suite {self.suite!r}{nearest(name, self.arms)}")
        raise InputError(f"{arm!r} was not tested against {against!r} on {wanted}; give the pair to `across`")

    def verdict(self) -> list[str]:
        """Plain sentences on the primary measure: who is best, each comparison, and the sets that say otherwise."""
        return [str(s) for s in self.said()]

    def said(self) -> list[Said]:
        """The sentences of the verdict, claim and evidence apart."""
        primary = self.measures[0]
        tested = [(c, o) for c, o in zip(self.comparisons, self.over_sets, strict=True) if c.measure == primary]
        sentences = [said_best(self)] if len(self.means) > 1 else []
        sentences += said_absent(self.absent)
        for c, over in tested:
            own = [(s, d) for s in over.sets for d in self.by_set[s] if _same(d, c)]
            sentences.append(said_over_sets(c, over, len(self.tables), len(tested), len(self.absent)))
            sentences += said_within_set(c, own) if len(over.sets) > 1 else []
        return sentences

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary that `from_json` reads; numbers that are not finite become None."""
        return {
            "suite": self.suite,
            "measures": list(self.measures),
            "sets": {name: table.to_json() for name, table in self.tables.items()},
            "absent": dict(self.absent),
            "groups": dict(self.groups),
            "counted": list(self.counted),
            "means": {
                arm: {m: cell_json(cell, next(iter(self.of(arm, m)), None)) for m, cell in cells.items()}
                for arm, cells in self.means.items()
            },
            "comparisons": [c.to_json() for c in self.comparisons],
            "over_sets": [{k: _plain(v) for k, v in over._asdict().items()} for over in self.over_sets],
            "by_set": {name: [c.to_json() for c in own] for name, own in self.by_set.items()},
            "ties": {name: {arm: finite(v) for arm, v in arms.items()} for name, arms in self.ties.items()},
            "speed": {name: {arm: _speed_json(v) for arm, v in arms.items()} for name, arms in self.speed.items()},
            "published": {name: [_plain_row(row) for row in rows] for name, rows in self.published.items()},
            "probes": {
                name: {arm: [_plain_row(row) for row in rows] for arm, rows in arms.items()}
                for name, arms in self.probes.items()
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Across:
        """What `to_json` wrote."""
        try:
            return cls(
                suite=data["suite"],
                tables={name: Table.from_json(table) for name, table in data["sets"].items()},
                groups=dict(data["groups"]),
                means={a: {m: cell_from_json(c) for m, c in cells.items()} for a, cells in data["means"].items()},
                comparisons=tuple(Comparison.from_json(c) for c in data["comparisons"]),
                by_set={name: tuple(Comparison.from_json(c) for c in own) for name, own in data["by_set"].items()},
                ties={name: {arm: number(v) for arm, v in arms.items()} for name, arms in data["ties"].items()},
                speed={name: {arm: _speed(v) for arm, v in arms.items()} for name, arms in data["speed"].items()},
                published=dict(data["published"]),
                probes=dict(data["probes"]),
                counted=tuple(data["counted"]),
                over_sets=tuple(_over_sets(over) for over in data["over_sets"]),
                absent=dict(data.get("absent") or {}),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"these are not results written by Across.to_json: {error!r}") from error

    def to_markdown(self) -> str:
        """Markdown: a table of sets by arms for each measure, the comparisons, ties and speed, published figures."""
        from rerank.evaluation.exports import markdown

        return markdown(self)

    def to_latex(self) -> str:
        """LaTeX (booktabs): a table for each measure, then the differences, ties and speed, published figures."""
        from rerank.evaluation.latex import latex

        return latex(self)

    def to_csv(self) -> str:
        """CSV in the long form: a line for each set (and the mean over sets), arm and measure."""
        from rerank.evaluation.exports import csv_lines

        return csv_lines(self)

    def probes_to_csv(self) -> str:
        """CSV of the probes: a line for each set, arm and probe."""
        from rerank.evaluation.exports import probe_lines

        return probe_lines(self)

    def to_rich(self, width: int = 80) -> RichTable:
        """A table for a terminal of `width` columns: the primary measure, sets down and arms across where they fit."""
        from rerank.evaluation.terminal import rich_table

        return rich_table(self, width)


def across(
    suite: str,
    tables: Mapping[str, Table],
    pairs: Sequence[tuple[str, str]] | None = None,
    groups: Mapping[str, str] | None = None,
    ties: Mapping[str, Mapping[str, float]] | None = None,
    speed: Mapping[str, Mapping[str, Speed]] | None = None,
    published: Mapping[str, Sequence[Any]] | None = None,
    probes: Mapping[str, Mapping[str, Sequence[Any]]] | None = None,
    absent: Mapping[str, str] | None = None,
) -> Across:
    """The table over several sets, each with its own table made by `compare`.

    `pairs` (arm, other) are those compared; by default the pairs that the sets' own tables compare. Rows of
    `published` are mappings or dataclasses with arm, measure and value; rows of `probes` are drops or their mappings.
    `absent` are the sets that were asked for and have no table -> why: whatever is written says so.
    """
    from rerank.evaluation.over_sets import check_absent, gathered

    check_absent(absent or {}, tables)
    found = gathered(suite, tables, pairs, groups or {}, ties or {}, speed or {}, published or {}, probes or {})
    return replace(found, absent=dict(absent or {}))


def measures_of(tables: Mapping[str, Table]) -> tuple[str, ...]:
    """The measures that all tables have, in the order of the first."""
    every = [table.measures for table in tables.values()]
    return tuple(m for m in every[0] if all(m in measures for measures in every)) if every else ()


def arms_of(tables: Mapping[str, Table]) -> tuple[str, ...]:
    """All arms of the tables, in the order in which they are named first."""
    return tuple(dict.fromkeys(arm for table in tables.values() for arm in table.arms))


def _same(own: Comparison, c: Comparison) -> bool:
    return (own.arm, own.against, own.measure) == (c.arm, c.against, c.measure)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else finite(value)


def _plain_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _plain(value) for key, value in row.items()}


def _speed_json(speed: Speed) -> dict[str, Any]:
    return {**{k: finite(v) for k, v in speed._asdict().items()}, "pairs_per_second": finite(speed.pairs_per_second)}


def _speed(data: Mapping[str, Any]) -> Speed:
    return Speed(data["queries"], data["pairs"], *(number(data[k]) for k in ("seconds", "p50", "p95")))


def _over_sets(data: Mapping[str, Any]) -> OverSets:
    values = {**data, "sets": tuple(data["sets"])}
    for key in ("signed_rank", "signed_rank_holm"):
        values[key] = number(data[key])
    return OverSets(**values)
