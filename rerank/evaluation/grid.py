"""What stands in the tables over several sets, whatever they are written as: rows, marks, and the notes below them.

One table for each measure: a row for each set, a mean for each group of sets, then the mean over all; a column for each
arm. What differs measurably is marked, and a line below says what the marks mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rerank.evaluation.across import Across
from rerank.evaluation.comparison import EQUAL, Comparison
from rerank.evaluation.wording import LEVEL, decimal, p_value, said_absent, signed

FIRST_STAGE, OTHER = "†", "‡"
"""Marks of an arm that differs measurably from the first stage that it reorders, and from another arm."""

MEAN = "mean over sets"

TEXTUAL = frozenset({"set", "arm", "comparison", "measure", "what", "source", "probe"})
"""Titles of columns that hold words: they stand on the left."""


class Row(NamedTuple):
    """One line of a measure's table."""

    label: str
    kind: str
    """"set", "group" (the mean of its sets) or "mean" (over all)."""
    queries: int
    values: dict[str, float]
    """Arm -> mean, for the arms that the row has."""
    marks: dict[str, str]
    best: frozenset[str]
    """The arms with the highest value; none where a high value is no merit."""


def grid(a: Across, measure: str) -> list[Row]:
    """The rows of one measure's table: each set, each group after its sets, and the mean over all."""
    rows: list[Row] = []
    seen: set[str] = set()
    for name, table in a.tables.items():
        values = {arm: cells[measure].mean for arm, cells in table.arms.items()}
        rows.append(_row(name, "set", table.queries, values, a.by_set[name], measure))
        seen.add(name)
        group = a.groups.get(name, "")
        members = [s for s in a.tables if group and a.groups.get(s) == group]
        if len(members) > 1 and seen.issuperset(members) and len(members) < len(a.tables):
            rows += _group_row(a, group, members, measure)
    if len(a.tables) > 1 and a.means:
        values = {arm: cells[measure].mean for arm, cells in a.means.items()}
        queries = sum(a.tables[name].queries for name in a.counted)
        rows.append(_row(MEAN, "mean", queries, values, a.comparisons, measure))
    return rows


def notes(a: Across, reasons: bool = True) -> list[str]:
    """What must be said below a measure's table: marks, how the means are made, and who is missing where (and why)."""
    said = ["Best in bold."]
    every = [c for own in [*a.by_set.values(), a.comparisons] for c in own]
    marked = [c for c in every if c.measurable and not _no_merit(c.measure)]
    others = [c.against for c in a.comparisons if _mark(c) == OTHER]
    if any(_mark(c) == FIRST_STAGE for c in marked):
        said.append(f"{FIRST_STAGE}: measurably different from the first stage that the arm reorders.")
    if any(_mark(c) == OTHER for c in marked):
        said.append(f"{OTHER}: measurably different from {' or '.join(dict.fromkeys(others))}.")
    if marked:
        said.append(f"Paired t-tests, p < {decimal(LEVEL, 2)} after Holm over all sets and pairs of a measure.")
    if len(a.tables) > 1:
        said.append(_how_means_are_made(a))
    for arm, sets in a.missing().items():
        said.append(f"{arm} is missing from {', '.join(sets)}.")
    if reasons:
        said += [s if s.endswith(".") else f"{s}." for s in map(str, said_absent(a.absent))]
    elif a.absent:
        said.append(f"Missing: {', '.join(a.absent)}.")
    return said


def comparison_rows(a: Across) -> tuple[str, list[str], list[list[str]]]:
    """(title, column titles, rows) of the comparisons over the sets."""
    title = "Differences over the sets"
    head = ["comparison", "measure", "difference", "95 % interval", "p (Holm)", "won / level / lost", "signed ranks"]
    rows = [
        [
            f"{c.arm} - {c.against}",
            c.measure,
            signed(c.difference),
            f"{signed(c.low)} to {signed(c.high)}",
            p_value(c.p_holm),
            f"{over.won} / {over.level} / {over.lost}",
            p_value(over.signed_rank_holm),
        ]
        for c, over in zip(a.comparisons, a.over_sets, strict=True)
        if not _no_merit(c.measure)
    ]
    return title, head, rows


def cost_rows(a: Across) -> tuple[str, list[str], list[list[str]]]:
    """(title, column titles, rows) of ties and speed."""
    head = ["set", "arm", "ties", "queries", "p50 ms", "p95 ms", "pairs/s"]
    rows = []
    for name in a.tables:
        ties, speed = a.ties.get(name, {}), a.speed.get(name, {})
        for arm in [arm for arm in a.arms if arm in ties or arm in speed]:
            s = speed.get(arm)
            took = [str(s.queries), *_milliseconds(s.p50, s.p95), whole(s.pairs_per_second)] if s else [""] * 4
            rows.append([name, arm, _percent(ties.get(arm, math.nan)), *took])
    return "Ties and speed", head, rows


def published_rows(a: Across) -> tuple[str, list[str], list[list[str]]]:
    """(title, column titles, rows) of published figures beside ours."""
    head = ["set", "measure", "arm", "published", "here", "difference", "what", "source"]
    rows: list[list[str]] = []
    for name, figures in a.published.items():
        for f in figures:
            here = math.nan if f.get("measured") is None else float(f["measured"])
            numbers = [decimal(f["value"], 4), decimal(here, 4), signed(here - f["value"], 4)]
            rows.append([name, f["measure"], f["arm"], *numbers, f.get("what", ""), f.get("source", "")])
    return "Published figures", head, rows


def probe_rows(a: Across) -> tuple[str, list[str], list[list[str]]]:
    """(title, column titles, rows) of the probes."""
    head = ["set", "arm", "probe", "measure", "plain", "drop", "95 % interval", "p (Holm)"]
    head += ["queries", "left out", "moved"]
    rows: list[list[str]] = []
    for name, arms in a.probes.items():
        for arm, drops in arms.items():
            for d in drops:
                at: dict[str, Any] = {k: math.nan if v is None else v for k, v in d.items()}
                interval = f"{signed(at['low'])} to {signed(at['high'])}"
                numbers = [decimal(at["plain"]), signed(at["drop"]), interval, p_value(at["p_holm"])]
                counts = [str(at["queries"]), str(at.get("left_out", 0)), _percent(at["moved"])]
                rows.append([name, arm, at["probe"], at["measure"], *numbers, *counts])
    return "Probes (a drop above 0: the probe hurts)", head, rows


def whole(value: float) -> str:
    """The number without decimals, one below 10 with one."""
    if not math.isfinite(value):
        return "–"  # noqa: RUF001 - an en dash stands for "no value"
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _row(
    label: str, kind: str, queries: int, values: Mapping[str, float], tests: Sequence[Comparison], measure: str
) -> Row:
    marks: dict[str, str] = {}
    for c in tests:
        if c.measure == measure and not _no_merit(measure) and c.measurable and _mark(c) not in marks.get(c.arm, ""):
            marks[c.arm] = marks.get(c.arm, "") + _mark(c)
    top = max(values.values())
    best = () if _no_merit(measure) else (arm for arm, v in values.items() if top - v <= EQUAL)
    return Row(label, kind, queries, dict(values), marks, frozenset(best))


def _group_row(a: Across, group: str, members: Sequence[str], measure: str) -> list[Row]:
    """The mean over a group's sets, of the arms that all of them have; no row where no arm is in all."""
    tables = [a.tables[name] for name in members]
    values = {
        arm: math.fsum(t.arms[arm][measure].mean for t in tables) / len(tables)
        for arm in a.arms
        if all(arm in t.arms for t in tables)
    }
    label = f"{group} (mean of {len(members)})"
    return [_row(label, "group", sum(t.queries for t in tables), values, (), measure)] if values else []


def _no_merit(measure: str) -> bool:
    """Whether more is no merit: how many of the documents somebody judged says how far to trust the other figures."""
    return measure.startswith("Judged")


def _mark(c: Comparison) -> str:
    return FIRST_STAGE if c.arm.endswith(f" on {c.against}") else OTHER


def _how_means_are_made(a: Across) -> str:
    if not a.means:
        return "No set has all arms: there is no mean over sets."
    n, of, absent = len(a.counted), len(a.tables), len(a.absent)
    over = f"all {n} sets" if not absent else f"{n} of the {n + absent} sets that were asked for"
    if n < of:
        over = f"the {n} of {of + absent} sets that all arms with a mean have"
    grouped = ", the sets of a group together as one" if any(a.groups.get(name) for name in a.counted) else ""
    return f"Means are over {over}{grouped}; intervals and tests take the sets as fixed and their queries as drawn."


def _milliseconds(*seconds: float) -> list[str]:
    return [whole(s * 1000) for s in seconds]


def _percent(share: float) -> str:
    return f"{share:.1%}" if math.isfinite(share) else "–"  # noqa: RUF001 - an en dash stands for "no value"
