"""Results over several sets as files: Markdown to read, CSV to calculate with (LaTeX stands in `latex`)."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from rerank.evaluation.across import Across
from rerank.evaluation.comparison import Cell, Comparison
from rerank.evaluation.grid import (
    MEAN,
    TEXTUAL,
    Row,
    comparison_rows,
    cost_rows,
    grid,
    notes,
    probe_rows,
    published_rows,
)
from rerank.evaluation.wording import decimal

COLUMNS = (
    "suite", "set", "arm", "measure", "mean", "low", "high", "queries", "p", "p_holm", "against", "tie_rate", "p50",
    "p95", "pairs_per_second",
)  # fmt: skip
"""The columns of the CSV."""
PROBED = (
    "probe",
    "measure",
    "plain",
    "perturbed",
    "drop",
    "low",
    "high",
    "p",
    "p_holm",
    "queries",
    "left_out",
    "moved",
)
"""And what the CSV of the probes has of each."""


def markdown(a: Across) -> str:
    """What `Across.to_markdown` returns."""
    parts = [f"# {_escaped(a.suite)}\n"]
    parts += [_markdown_measure(a, m) for m in a.measures]
    parts += ["\n".join([*map(_escaped, notes(a)), ""])]
    parts += [
        _markdown_table(title, head, rows)
        for title, head, rows in (comparison_rows(a), cost_rows(a), published_rows(a), probe_rows(a))
        if rows
    ]
    return "\n".join(parts)


def csv_lines(a: Across) -> str:
    """What `Across.to_csv` returns: a line for each test of an arm, one for an arm without a test.

    A set that is absent has a line without arm, measure and numbers.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for name, table in a.tables.items():
        for arm, cells in table.arms.items():
            speed, ties = a.speed.get(name, {}).get(arm), a.ties.get(name, {}).get(arm)
            cost = [ties, *([speed.p50, speed.p95, speed.pairs_per_second] if speed else [None] * 3)]
            for m in a.measures:
                for row in _csv_rows(arm, m, cells[m], table.queries, a.by_set[name]):
                    writer.writerow(_numbers([a.suite, name, *row, *cost]))
    for name in a.absent:
        writer.writerow(_numbers([a.suite, name, *[None] * (len(COLUMNS) - 2)]))
    queries = sum(a.tables[name].queries for name in a.counted)
    for arm, means in a.means.items() if len(a.tables) > 1 else ():
        for m in a.measures:
            for row in _csv_rows(arm, m, means[m], queries, a.comparisons):
                writer.writerow(_numbers([a.suite, MEAN, *row, *[None] * 4]))
    return out.getvalue()


def probe_lines(a: Across) -> str:
    """What `Across.probes_to_csv` returns: a line for each probe of an arm on a set."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["suite", "set", "arm", *PROBED])
    for name, arms in a.probes.items():
        for arm, drops in arms.items():
            writer.writerows(_numbers([a.suite, name, arm, *(drop.get(key) for key in PROBED)]) for drop in drops)
    return out.getvalue()


def _markdown_measure(a: Across, measure: str) -> str:
    arms = a.arms
    lines = [_line(["set", "queries", *arms]), _line(["---", *["---:"] * (len(arms) + 1)])]
    for row in grid(a, measure):
        label = _escaped(row.label) if row.kind == "set" else f"*{_escaped(row.label)}*"
        shown = [_shown(a, row, arm, measure) for arm in arms]
        lines.append(f"| {' | '.join([label, str(row.queries), *shown])} |")
    return "\n".join([f"## {measure}\n", *lines, ""])


def _shown(a: Across, row: Row, arm: str, measure: str) -> str:
    if arm not in row.values:
        return ""
    number = decimal(row.values[arm])
    number = f"**{number}**" if arm in row.best else number
    interval = ""
    if row.kind == "mean":
        cell = a.means[arm][measure]
        interval = f" [{decimal(cell.low)}, {decimal(cell.high)}]"
    return f"{number}{row.marks.get(arm, '')}{interval}"


def _markdown_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    sides = ["---" if column in TEXTUAL else "---:" for column in head]
    lines = [f"## {title}\n", _line(head), _line(sides), *map(_line, rows)]
    return "\n".join([*lines, ""])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_escaped, cells)) + " |"


def _escaped(text: str) -> str:
    """The text on one line, with nothing that Markdown or the HTML within it would take for its own."""
    plain = " ".join(str(text).split()).replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*")
    # A `<` before a space (as in "p < .05") begins no tag.
    return re.sub(r"<(?! )", "&lt;", plain.replace("&", "&amp;"))


def _csv_rows(arm: str, measure: str, cell: Cell, queries: int, tests: Sequence[Comparison]) -> Iterator[list[Any]]:
    start = [arm, measure, cell.mean, cell.low, cell.high, queries]
    own = [c for c in tests if c.arm == arm and c.measure == measure]
    for c in own:
        yield [*start, c.p, c.p_holm, c.against]
    if not own:
        yield [*start, None, None, None]


def _numbers(row: Sequence[Any]) -> list[Any]:
    """The row with every digit of its numbers; what is no number is left empty."""
    return ["" if v is None or (isinstance(v, float) and not math.isfinite(v)) else v for v in row]
