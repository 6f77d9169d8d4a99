"""Where everything in the report's drawings stands: numbers become places, in percent of the drawing.

Percentages let drawings stretch with the page while their letters and lines keep their size. The template only writes
down what stands here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rerank.errors import InputError
from rerank.evaluation.measures import parse_measure
from rerank.evaluation.tables import EQUAL, Table
from rerank.evaluation.wording import decimal

_MOST_BARS = 1000
"""Queries drawn in the plot of gains and losses; of more, the largest gains and losses."""
_MOST_POINTS = 240
"""Points of a curve; of more, neighbours are averaged."""
MOST_SERIES = 10
"""Curves that one plot can show apart."""


class Axis(NamedTuple):
    """A linear axis over round numbers."""

    low: float
    high: float
    ticks: tuple[float, ...]
    places: int
    """Decimal places that its ticks need."""
    doubling: bool = False
    """Whether it stands for powers of two: its values are their logarithms."""

    def at(self, value: float) -> float:
        """The place of `value` in percent of the axis' length."""
        return round(100 * (value - self.low) / (self.high - self.low), 3)

    def label(self, tick: float) -> str:
        """What stands at a tick."""
        if self.doubling:
            return f"{2**tick:,.0f}"
        return "0" if not tick else f"{tick:,.0f}" if self.places == 0 else decimal(tick, self.places)


class Dot(NamedTuple):
    """One arm in the dot plot; places in percent."""

    arm: str
    mean: float
    x: float
    left: float
    right: float


class Bar(NamedTuple):
    """One query in the plot of gains and losses; places and sizes in percent."""

    query_id: str
    difference: float
    x: float
    width: float
    y: float
    height: float
    change: int | None
    """The number of the query's details, where there are any."""


class Gains(NamedTuple):
    """The plot of gains and losses."""

    bars: tuple[Bar, ...]
    """The largest gain first, the largest loss last."""
    top: float
    bottom: float
    zero: float
    """The height of the line of no change, in percent from the top."""
    counts: tuple[int, int, int]
    """All queries that gained, did not change, and lost."""


class Curve(NamedTuple):
    """One quantity over the steps of one stage."""

    title: str
    x: Axis
    y: Axis
    points: tuple[tuple[float, float], ...]
    """In percent, the vertical ones from the top."""
    last: float
    dots: bool
    best: float | None = None
    """Its highest value, where more is better."""


class Series(NamedTuple):
    """One arm's curve in a plot of several."""

    name: str
    style: int
    """The number of its colour: the same arm has the same one in every plot."""
    points: tuple[tuple[float, float], ...]
    """In percent, the vertical ones from the top."""


class Plot(NamedTuple):
    """Several curves over one pair of axes."""

    title: str
    below: str
    """What the horizontal axis counts."""
    x: Axis
    y: Axis
    series: tuple[Series, ...]


class Spot(NamedTuple):
    """A bin of the reliability plot; places in percent."""

    x: float
    y: float
    radius: float
    text: str


def round_axis(low: float, high: float, steps: int = 5) -> Axis:
    """The axis with about `steps` round ticks that covers `low` to `high`."""
    if high - low < 1e-9:
        low, high = low - 0.05, high + 0.05
    rough = (high - low) / steps
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    places = max(0, -math.floor(math.log10(step) + 1e-9), 3 if step == 2.5 * power and power < 0.1 else 0)
    return Axis(first * step, last * step, tuple(round(i * step, 10) for i in range(first, last + 1)), places)


def dots(table: Table) -> list[Dot]:
    """The arms of the dot plot, in the table's order."""
    axis, primary = dot_axis(table), table.measures[0]
    cells = {arm: by_measure[primary] for arm, by_measure in table.arms.items()}
    return [
        Dot(arm, cell.mean, axis.at(cell.mean), axis.at(cell.low), axis.at(cell.high)) for arm, cell in cells.items()
    ]


def gains(differences: Mapping[str, float], detailed: Mapping[str, int]) -> Gains | None:
    """The plot of `differences`; `detailed` maps queries with details to their number. None without differences."""
    if not differences:
        return None
    gained, lost = sum(d > EQUAL for d in differences.values()), sum(d < -EQUAL for d in differences.values())
    ranked = sorted(differences.items(), key=lambda item: -item[1])
    if len(ranked) > _MOST_BARS:
        ranked = ranked[: _MOST_BARS // 2] + ranked[-_MOST_BARS // 2 :]
    top, bottom = max(ranked[0][1], 0.0), min(ranked[-1][1], 0.0)
    if top - bottom < EQUAL:
        top, bottom = 0.5, -0.5
    span, slot = top - bottom, 100 / len(ranked)
    zero, width = 100 * top / span, slot * (0.8 if len(ranked) < 300 else 1)
    drawn = []
    for i, (query_id, difference) in enumerate(ranked):
        height = max(100 * abs(difference) / span, 0.4)
        y = zero - height if difference > 0 else zero
        x, w, y, height = (round(v, 3) for v in (i * slot, width, y, height))
        drawn.append(Bar(query_id, difference, x, w, y, height, detailed.get(query_id)))
    counts = (gained, len(differences) - gained - lost, lost)
    return Gains(tuple(drawn), top, bottom, round(zero, 3), counts)


def stages(records: Iterable[Mapping[str, Any]], primary: str) -> list[tuple[str, list[Curve]]]:
    """(title, curves) of each model's stages, in the order in which they began."""
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        title = " · ".join(str(record[k]) for k in ("model", "stage") if record.get(k) is not None)
        grouped.setdefault(title or "training", []).append(record)
    grouped = {title: _by_step(group) for title, group in grouped.items()}
    found = []
    for title, group in grouped.items():
        measured = _dev_measure(group, primary)
        named = [("loss", "loss"), *([(measured, f"{measured} on dev")] if measured else [])]
        curves = [c for key, label in named if (c := curve(group, key, label, key == measured)) is not None]
        if curves:
            found.append((title, curves))
    return found


def _by_step(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The records that have a step, in its order; a step that a resumed run repeated counts as it last was."""
    last = {float(r["step"]): r for r in records if is_number(r.get("step"))}
    return [last[step] for step in sorted(last)]


def curve(records: Sequence[Mapping[str, Any]], key: str, title: str, more_is_better: bool = False) -> Curve | None:
    """The curve of `key` by step; None where no record has it."""
    known = [(float(r["step"]), float(r[key])) for r in records if is_number(r.get("step")) and is_number(r.get(key))]
    if not known:
        return None
    size = math.ceil(len(known) / _MOST_POINTS)
    blocks = [known[i : i + size] for i in range(0, len(known), size)]
    means = [(sum(s for s, _ in b) / len(b), sum(v for _, v in b) / len(b)) for b in blocks]
    x = round_axis(min(s for s, _ in means), max(s for s, _ in means), steps=3)
    y = round_axis(min(v for _, v in means), max(v for _, v in means), steps=3)
    points = tuple((x.at(s), round(100 - y.at(v), 3)) for s, v in means)
    best = max(v for _, v in known) if more_is_better else None
    return Curve(title, x, y, points, known[-1][1], len(means) <= 24, best)


def _dev_measure(records: Sequence[Mapping[str, Any]], primary: str) -> str | None:
    """The primary measure where the stage recorded it, else the first measure that it did record."""
    keys = list(dict.fromkeys(k for r in records for k in r))
    return primary if primary in keys else next((k for k in keys if _is_measure(k)), None)


def _is_measure(key: str) -> bool:
    try:
        return str(parse_measure(key)) == key
    except InputError:
        return False


def plot(
    title: str,
    below: str,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    styles: Mapping[str, int],
    doubling: bool,
) -> Plot | None:
    """The plot of name -> [(x, y)]; `doubling` draws x by its logarithm. None where no curve has two points."""
    known = {
        name: [(math.log2(x) if doubling else x, y) for x, y in points if math.isfinite(y) and (x > 0 or not doubling)]
        for name, points in curves.items()
        if name in styles
    }
    known = {name: sorted(points) for name, points in known.items() if len(points) > 1}
    if not known:
        return None
    xs, ys = zip(*(point for points in known.values() for point in points), strict=True)
    x, y = (_powers(xs) if doubling else _whole(xs)), round_axis(min(ys), max(ys), steps=4)
    drawn = (
        Series(name, styles[name], tuple((x.at(a), round(100 - y.at(b), 3)) for a, b in points))
        for name, points in known.items()
    )
    # What is written last lies on top: the first style is the refined model's.
    return Plot(title, below, x, y, tuple(sorted(drawn, key=lambda s: -s.style)))


def spots(bins: Iterable[tuple[float, float, int]]) -> tuple[Spot, ...]:
    """The bins (predicted, observed, count) of a reliability plot over 0 to 1; larger where more candidates lie."""
    found = list(bins)
    most = max((count for *_, count in found), default=1) or 1
    return tuple(
        Spot(
            round(100 * predicted, 3),
            round(100 - 100 * observed, 3),
            round(2.5 + 3.5 * math.sqrt(count / most), 2),
            f"predicted {decimal(predicted)}, observed {decimal(observed)}, {count:,} candidates",
        )
        for predicted, observed, count in found
    )


def _powers(values: Sequence[float]) -> Axis:
    low, high = math.floor(min(values)), math.ceil(max(values))
    high = max(high, low + 1)
    step = math.ceil((high - low) / 8)
    return Axis(low, high, tuple(float(t) for t in range(low, high + 1, step)), 0, doubling=True)


def _whole(values: Sequence[float]) -> Axis:
    """An axis from the first to the last of whole numbers."""
    low, high = math.floor(min(values)), math.ceil(max(values))
    step = max(1, math.ceil((high - low) / 9))
    return Axis(low, max(high, low + 1), tuple(float(t) for t in range(low, high + 1, step)), 0)


def is_number(value: Any) -> bool:
    """Whether a value read from JSON is a finite number."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False


def dot_axis(table: Table) -> Axis:
    """The axis of the dot plot: it covers every arm's interval."""
    cells = [by_measure[table.measures[0]] for by_measure in table.arms.values()]
    ends = [v for c in cells for v in (c.low, c.high, c.mean) if math.isfinite(v)]
    return round_axis(min(ends), max(ends))
