"""The comparison table: arms by measures, with intervals, paired tests and the sentences that follow from them.

The first measure is the primary one; the verdict speaks of it alone. Holm's correction runs over the pairs compared
within one measure. "Better" and "worse" are said only when the corrected p-value is below .05 *and* the paired
bootstrap interval of the difference leaves out 0; otherwise the arms "do not differ measurably".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, final

import numpy as np

from rerank.errors import InputError, nearest
from rerank.evaluation.measures import Evaluation, Measure, evaluate, parse_measure
from rerank.evaluation.significance import bootstrap_intervals, effect_size, holm, paired_t
from rerank.types import Qrels, Run

if TYPE_CHECKING:
    from rich.table import Table as RichTable

LEVEL = 0.05
"""The corrected p-value below which a difference is called one."""
EQUAL = 1e-9
"""Differences below this are rounding: the query is a tie."""


@final
@dataclass(frozen=True)
class Cell:
    """The mean of one measure for one arm, with its bootstrap interval."""

    mean: float
    low: float
    high: float


@final
@dataclass(frozen=True)
class Comparison:
    """`arm` minus `against` on one measure, over the same queries."""

    arm: str
    against: str
    measure: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    wins: int
    losses: int
    ties: int
    effect: float
    """Cohen's d_z."""

    @property
    def measurable(self) -> bool:
        """Whether the difference is called one: corrected p below .05 and an interval without 0."""
        return self.p_holm < LEVEL and (self.low > 0 or self.high < 0)


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
    """arm -> measure -> query id -> value."""
    missing: dict[str, int] = field(default_factory=dict)
    """arm -> judged queries that it has no document for (each counts 0)."""
    without_relevant: int = 0
    """Judged queries without a relevant document (each counts 0 for every arm)."""

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
        tested = [c for c in self.comparisons if c.measure == self.measures[0]]
        return [sentence(c, self.queries, len(tested)) for c in tested]

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary that `from_json` reads; numbers that are not finite become None."""
        return {
            "queries": self.queries,
            "measures": list(self.measures),
            "arms": {arm: {m: self._cell_json(arm, m) for m in cells} for arm, cells in self.arms.items()},
            "comparisons": [{k: _finite(v) for k, v in asdict(c).items()} for c in self.comparisons],
            "seconds": dict(self.seconds),
            "missing": dict(self.missing),
            "without_relevant": self.without_relevant,
            "per_query": self.per_query,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Table:
        """The table that `to_json` wrote."""
        try:
            return cls(
                measures=tuple(data["measures"]),
                arms={
                    arm: {m: Cell(_number(c["mean"]), *map(_number, c["interval"])) for m, c in cells.items()}
                    for arm, cells in data["arms"].items()
                },
                comparisons=[_comparison(c) for c in data["comparisons"]],
                queries=data["queries"],
                seconds=dict(data.get("seconds") or {}),
                per_query=dict(data.get("per_query") or {}),
                missing=dict(data.get("missing") or {}),
                without_relevant=data.get("without_relevant", 0),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"this is not a table written by Table.to_json: {error!r}") from error

    def to_markdown(self) -> str:
        """Two Markdown tables: arms by measures with intervals, and the comparisons."""
        timed = ["seconds"] if self.seconds else []
        lines = [_row(["arm", *self.measures, *timed]), _row(["---"] + ["---:"] * (len(self.measures) + len(timed)))]
        for arm, cells in self.arms.items():
            shown = [f"{decimal(c.mean)} [{decimal(c.low)}, {decimal(c.high)}]" for c in cells.values()]
            lines.append(_row([arm, *shown, *([self._seconds(arm)] if timed else [])]))
        lines += ["", f"{self.queries} judged queries; 95 % bootstrap intervals in brackets.", ""]
        if self.comparisons:
            lines += [
                _row(["comparison", "measure", "difference", "95 % interval", "p (Holm)", "wins / ties / losses"]),
                _row(["---", "---", "---:", "---:", "---:", "---:"]),
            ]
        for c in self.comparisons:
            interval = f"{signed(c.low)} to {signed(c.high)}"
            counts = f"{c.wins} / {c.ties} / {c.losses}"
            pair = f"{c.arm} - {c.against}"
            lines.append(_row([pair, c.measure, signed(c.difference), interval, p_value(c.p_holm), counts]))
        return "\n".join(lines).rstrip() + "\n"

    def to_rich(self) -> RichTable:
        """A table for the terminal: the primary measure with its interval, and each arm's first test on it."""
        from rich import box
        from rich.markup import escape
        from rich.table import Table as RichTable

        primary = self.measures[0]
        table = RichTable(
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            caption=f"{self.queries} judged queries; 95 % bootstrap interval, p after Holm",
        )
        table.add_column("arm", min_width=min(16, max(map(len, self.arms))))
        for title in (*self.measures, *(["p"] if self.comparisons else []), *(["seconds"] if self.seconds else [])):
            # The long spellings, RR(rel=2)@10, break after their name rather than push the numbers together.
            shown = escape(title.replace("(", "\n(").replace(")@", ")\n@"))
            table.add_column(shown, justify="right", min_width=12 if title == primary else 7)
        for arm, cells in self.arms.items():
            test = next(iter(self.of(arm)), None)
            cell = cells[primary]
            mean = f"[bold]{decimal(cell.mean)}[/]" if arm == self.best else decimal(cell.mean)
            evidence = f"{p_value(test.p_holm)}\n[dim]{escape(test.against)}[/]" if test else ""
            table.add_row(
                escape(arm),
                f"{mean}\n[dim]{decimal(cell.low)} to {decimal(cell.high)}[/]",
                *(decimal(cells[m].mean) for m in self.measures[1:]),
                *([evidence] if self.comparisons else []),
                *([self._seconds(arm)] if self.seconds else []),
            )
        return table

    def _cell_json(self, arm: str, measure: str) -> dict[str, Any]:
        cell, first = self.arms[arm][measure], next(iter(self.of(arm, measure)), None)
        return {
            "mean": _finite(cell.mean),
            "interval": [_finite(cell.low), _finite(cell.high)],
            "p": _finite(first.p) if first else None,
            "p_holm": _finite(first.p_holm) if first else None,
            "against": first.against if first else None,
        }

    def _seconds(self, arm: str) -> str:
        return f"{self.seconds[arm]:.1f}" if arm in self.seconds else ""


def compare(
    runs: Mapping[str, Run],
    qrels: Qrels,
    measures: Sequence[str | Measure],
    against: Sequence[tuple[str, str]],
    seconds: Mapping[str, float] | None = None,
) -> Table:
    """The table of all `runs` (arm -> run), with a paired test of each (arm, other arm) in `against`."""
    if not runs:
        raise InputError("there is no run to compare; give at least one arm")
    _check_arms(runs, against, seconds or {})
    names = tuple(dict.fromkeys(str(parse_measure(m)) for m in measures))
    evaluations = {arm: evaluate(run, qrels, names) for arm, run in runs.items()}
    first = next(iter(evaluations.values()))
    return Table(
        measures=names,
        arms=_cells(evaluations, names),
        comparisons=[c for measure in names for c in _comparisons(evaluations, measure, against)],
        queries=first.n,
        seconds=dict(seconds or {}),
        per_query={arm: {m: dict(e.per_query[m]) for m in names} for arm, e in evaluations.items()},
        missing={arm: e.missing for arm, e in evaluations.items()},
        without_relevant=first.without_relevant,
    )


def sentence(c: Comparison, queries: int, comparisons: int = 1) -> str:
    """What one comparison says, in words; `comparisons` is how many its p-value was corrected for."""
    if math.isnan(c.p_holm):
        difference = f"their difference is {signed(c.difference)} {c.measure}"
        return f"{c.arm} and {c.against} cannot be tested on {queries} judged query; {difference}"
    if not c.measurable:
        return _no_difference(c, comparisons)
    low, high = (c.low, c.high) if c.difference > 0 else (-c.high, -c.low)
    evidence = f"95 % interval {decimal(low)} to {decimal(high)}, p {_relation(c.p_holm)} after Holm"
    word = "better" if c.difference > 0 else "worse"
    return f"{c.arm} is {word} than {c.against} by {decimal(abs(c.difference))} {c.measure} ({evidence})"


def _no_difference(c: Comparison, comparisons: int) -> str:
    """The sentence of a comparison that is not measurable; an interval without 0 must not read as a contradiction."""
    said = f"{c.arm} and {c.against} do not differ measurably in {c.measure}"
    place, p = f"{decimal(c.low)} to {decimal(c.high)}", f"p {_relation(c.p_holm)} after Holm"
    if not (c.low > 0 or c.high < 0):
        return f"{said} ({decimal(c.difference)}, 95 % interval {place}, {p})"
    if c.p < LEVEL and comparisons > 1:
        return (
            f"{said} after correction for {comparisons} comparisons "
            f"({decimal(c.difference)}, 95 % interval (uncorrected) {place}, {p})"
        )
    return f"{said}: the test finds no difference ({decimal(c.difference)}, 95 % interval (uncorrected) {place}, {p})"


def decimal(value: float, places: int = 3) -> str:
    """The number without a leading zero, as statistics prints values that live between 0 and 1: `.431`, `−.012`."""
    if not math.isfinite(value):
        return "–"  # noqa: RUF001 - an en dash stands for "no value"
    text = f"{abs(value):.{places}f}"
    minus = "−" if value < 0 and float(text) else ""  # noqa: RUF001 - the real minus sign
    return minus + (text[1:] if text.startswith("0.") else text)


def signed(value: float, places: int = 3) -> str:
    """The number with its sign: `+.031`, `−.012`, `.000`."""
    text = decimal(value, places)
    return f"+{text}" if value > 0 and float(text) else text


def p_value(p: float) -> str:
    """A p-value as one prints it: `.031`, `< .001`, or an en dash where no test was possible."""
    return "< .001" if p < 0.001 else decimal(p)


def _relation(p: float) -> str:
    return p_value(p) if p < 0.001 else f"= {decimal(p)}"


def _check_arms(runs: Mapping[str, Run], against: Sequence[tuple[str, str]], seconds: Mapping[str, float]) -> None:
    for name in [*(arm for pair in against for arm in pair), *seconds]:
        if name not in runs:
            raise InputError(f"there is no arm {name!r} to compare{nearest(name, runs)}")
    for i, pair in enumerate(against):
        if pair[0] == pair[1] or tuple(pair) in [tuple(p) for p in against[:i]]:
            raise InputError(f"the comparison {pair[0]!r} against {pair[1]!r} makes no sense or was given twice")


def _cells(evaluations: Mapping[str, Evaluation], measures: Sequence[str]) -> dict[str, dict[str, Cell]]:
    columns = [list(e.per_query[m].values()) for e in evaluations.values() for m in measures]
    intervals = iter(bootstrap_intervals(np.array(columns).T))
    return {arm: {m: Cell(e.mean[m], *next(intervals)) for m in measures} for arm, e in evaluations.items()}


def _comparisons(
    evaluations: Mapping[str, Evaluation], measure: str, against: Sequence[tuple[str, str]]
) -> list[Comparison]:
    if not against:
        return []
    values = {arm: np.array(list(e.per_query[measure].values())) for arm, e in evaluations.items()}
    pairs = [(values[arm], values[other]) for arm, other in against]
    p_values = [paired_t(a, b) for a, b in pairs]
    intervals = bootstrap_intervals(np.stack([a - b for a, b in pairs], axis=1))
    return [
        Comparison(
            arm=arm,
            against=other,
            measure=measure,
            difference=float((a - b).mean()),
            low=low,
            high=high,
            p=p,
            p_holm=corrected,
            wins=int((a - b > EQUAL).sum()),
            losses=int((b - a > EQUAL).sum()),
            ties=int((abs(a - b) <= EQUAL).sum()),
            effect=effect_size(a, b),
        )
        for (arm, other), (a, b), (low, high), p, corrected in zip(
            against, pairs, intervals, p_values, holm(p_values), strict=True
        )
    ]


def _comparison(data: Mapping[str, Any]) -> Comparison:
    values: dict[str, Any] = {k: math.nan if v is None else v for k, v in data.items()}
    return Comparison(**values)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
