"""What the report of a bench says: everything its template needs, from `results.json` and the files of each set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rerank.evaluation.across import Across, Speed
from rerank.evaluation.tables import Cell, Comparison, Table
from rerank.evaluation.wording import decimal, p_value, signed
from rerank.report.drawing import Axis, is_number, round_axis
from rerank.report.explored import Explored, explored
from rerank.report.forests import Interval, interval, interval_axis
from rerank.report.run_files import read_as, read_json
from rerank.report.side_by_side import MOST_BYTES, SideBySide

FIRST_SENTENCES = 4
"""Sentences of the verdict that stand at the top; the others are a click away."""

MEAN = "mean over sets"

_DASH = decimal(float("nan"))


class Number(NamedTuple):
    """One arm on one set and measure, with its test."""

    cell: Cell | None
    tested: Comparison | None
    best: bool


class Matrix(NamedTuple):
    """Sets by arms on one measure."""

    measure: str
    rows: tuple[tuple[str, int | None, tuple[Number, ...]], ...]
    """(set, its queries or None for the mean, one number an arm)."""


class SetForest(NamedTuple):
    """One arm minus another on each set, and over all of them."""

    arm: str
    against: str
    axis: Axis
    zero: float
    rows: tuple[Interval, ...]


class Took(NamedTuple):
    """What ranking took an arm, over the sets."""

    arm: str
    cells: tuple[str, ...]


class Sane(NamedTuple):
    """A published figure beside ours."""

    name: str
    arm: str
    measure: str
    published: str
    ours: str
    difference: str
    far: bool
    what: str
    source: str
    link: bool


class Probed(NamedTuple):
    """One probe over sets and arms."""

    probe: str
    meaning: str
    axis: Axis
    zero: float
    rows: tuple[Interval, ...]


class OneSet(NamedTuple):
    """What folds out for one set."""

    name: str
    group: str
    table: Table
    comparisons: tuple[Comparison, ...]
    explored: Explored | None


MEANINGS = {
    "shuffle": "the same candidates in another order",
    "distract": "documents of other queries added to the candidates",
    "n-1": "the best relevant document taken out",
    "first-stage": "the candidates of another first stage",
    "typos": "two keyboard slips in the query",
}

FAR = 0.02
"""A difference to a published figure that is worth a look: index settings differ, or something is wrong."""


def bench_page(folder: Path) -> dict[str, Any]:
    """What `bench.html.j2` is filled with."""
    results = read_as(folder / "results.json", Across.from_json)
    summary = read_json(folder / "summary.json")
    primary = results.measures[0]
    own = results.of(results.best, primary) if results.best else []
    lead = next(iter([*own, *(c for c in results.comparisons if c.measure == primary)]), None)
    return {
        "title": str(summary.get("title") or results.suite),
        "results": results,
        "primary": primary,
        "lead": lead,
        "said": results.said(),
        "first_sentences": FIRST_SENTENCES,
        "matrices": [_matrix(results, measure) for measure in results.measures],
        "forests": _forests(results, primary),
        "took": _took(results),
        "sane": _sane(results),
        "probes": _probes(results),
        "sets": _sets(results, folder),
        "summary": summary,
        "absent": [] if (folder / "summary.json").is_file() else ["summary.json"],
    }


def _matrix(results: Across, measure: str) -> Matrix:
    rows: list[tuple[str, int | None, tuple[Number, ...]]] = []
    for name, table in results.tables.items():
        cells = {arm: table.arms[arm][measure] for arm in results.arms if arm in table.arms}
        rows.append((name, table.queries, _numbers(results.arms, cells, results.by_set.get(name, ()), measure)))
    means = {arm: cells[measure] for arm, cells in results.means.items() if measure in cells}
    if len(results.tables) > 1 and means:
        rows.append((MEAN, None, _numbers(results.arms, means, results.comparisons, measure)))
    return Matrix(measure, tuple(rows))


def _numbers(
    arms: Sequence[str], cells: Mapping[str, Cell], comparisons: Sequence[Comparison], measure: str
) -> tuple[Number, ...]:
    tested = {c.arm: c for c in reversed(comparisons) if c.measure == measure}
    best = max((cell.mean for cell in cells.values()), default=0.0)
    return tuple(Number(cells.get(arm), tested.get(arm), arm in cells and cells[arm].mean == best) for arm in arms)


def _forests(results: Across, primary: str) -> list[SetForest]:
    """Each tested pair: its difference over all sets, then on every set."""
    pairs = {(c.arm, c.against): c for c in results.comparisons if c.measure == primary}
    own = {(name, c.arm, c.against): c for name, cs in results.by_set.items() for c in cs if c.measure == primary}
    found = []
    for arm, against in dict.fromkeys([*pairs, *((arm, against) for _, arm, against in own)]):
        by_set = {name: c for name in results.tables if (c := own.get((name, arm, against))) is not None}
        over = pairs.get((arm, against)) if len(by_set) > 1 else None
        axis = interval_axis([*by_set.values(), *([over] if over else [])])
        rows = [interval(over, axis, MEAN, whole=True)] if over else []
        rows += [interval(c, axis, name) for name, c in by_set.items()]
        found.append(SetForest(arm, against, axis, axis.at(0.0), tuple(rows)))
    return found


def _took(results: Across) -> list[Took]:
    """Speed and ties of each arm that has either, over the sets."""
    found = []
    for arm in results.arms:
        speeds = [by_arm[arm] for by_arm in results.speed.values() if arm in by_arm]
        ties = [by_arm[arm] for by_arm in results.ties.values() if is_number(by_arm.get(arm))]
        if speeds or ties:
            found.append(Took(arm, (*_speeds(speeds), _range([f"{100 * t:.1f}" for t in sorted(ties)], " %"))))
    return found


def _speeds(speeds: Sequence[Speed]) -> tuple[str, str, str, str]:
    """Queries, p50, p95 (the range over sets) and pairs a second (over all)."""
    seconds = sum(s.seconds for s in speeds if is_number(s.seconds))
    if not speeds:
        return _DASH, _DASH, _DASH, _DASH
    p50, p95 = (sorted(getattr(s, p) for s in speeds if is_number(getattr(s, p))) for p in ("p50", "p95"))
    pairs = f"{sum(s.pairs for s in speeds) / seconds:,.0f}" if seconds > 0 else _DASH
    return f"{sum(s.queries for s in speeds):,}", _range(*_latencies(p50)), _range(*_latencies(p95)), pairs


def _latencies(seconds: Sequence[float]) -> tuple[list[str], str]:
    if seconds and max(seconds) >= 10:
        return [f"{s:.1f}" for s in seconds], " s"
    return [f"{1000 * s:.0f}" if s >= 0.01 else f"{1000 * s:.1f}" for s in seconds], " ms"


def _range(sorted_numbers: Sequence[str], unit: str) -> str:
    """The first and the last, or the one that both are."""
    if not sorted_numbers:
        return _DASH
    low, high = sorted_numbers[0], sorted_numbers[-1]
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"


def _sane(results: Across) -> list[Sane]:
    """Each published figure beside ours."""
    return [_beside(name, row) for name, rows in results.published.items() for row in rows]


def _beside(name: str, row: Mapping[str, Any]) -> Sane:
    published, ours = (float(row[k]) if is_number(row.get(k)) else float("nan") for k in ("value", "measured"))
    source = str(row.get("source") or "")
    return Sane(
        name=name,
        arm=str(row.get("arm", "")),
        measure=str(row.get("measure", "")),
        published=decimal(published),
        ours=decimal(ours),
        difference=signed(ours - published),
        far=abs(ours - published) > FAR,
        what=str(row.get("what") or ""),
        source=source,
        # Where it says where it stands on the web, one may go there; other schemes are only words.
        link=source.startswith(("https://", "http://")) and not any(letter.isspace() for letter in source),
    )


def _probes(results: Across) -> list[Probed]:
    rows: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for name, by_arm in results.probes.items():
        for arm, drops in by_arm.items():
            for drop in drops:
                rows.setdefault(str(drop.get("probe")), []).append((f"{arm}, {name}", dict(drop)))
    return [_probed(probe, told) for probe, told in rows.items()]


def _probed(probe: str, told: Sequence[tuple[str, dict[str, Any]]]) -> Probed:
    """What a probe costs each arm on each set: to the right of 0 it hurts."""
    ends = [float(d[k]) for _, d in told for k in ("drop", "low", "high") if is_number(d.get(k))]
    axis = round_axis(min([0.0, *ends]), max([0.0, *ends]))
    rows = []
    for name, drop in told:
        if not is_number(drop.get("drop")):
            continue
        cost = float(drop["drop"])
        low, high = (float(drop[k]) if is_number(drop.get(k)) else cost for k in ("low", "high"))
        p = next((float(drop[k]) for k in ("p_holm", "p") if is_number(drop.get(k))), float("nan"))
        moved = f", {100 * drop['moved']:.0f} % moved" if is_number(drop.get("moved")) else ""
        measurable = p < 0.05 and (low > 0 or high < 0)
        places = axis.at(cost), axis.at(low), axis.at(high)
        rows.append(Interval(name, cost, *places, (), measurable, p_value(p), told=f"p {p_value(p)}{moved}"))
    return Probed(probe, MEANINGS.get(probe, ""), axis, axis.at(0.0), tuple(rows))


def _sets(results: Across, folder: Path) -> list[OneSet]:
    """Each set with its queries; together they keep to what one page may take."""
    found, left = [], MOST_BYTES
    for number, (name, table) in enumerate(results.tables.items()):
        told = read_as(folder / "sets" / name / "changes.json", SideBySide.from_json)
        queries = explored(name, table, told, left // (len(results.tables) - number), n=3)
        left -= queries.size if queries else 0
        found.append(OneSet(name, results.groups.get(name, ""), table, results.by_set.get(name, ()), queries))
    return found
