"""Results over several sets as one table for a terminal: the primary measure, in as many columns as there are.

Sets down and arms across where that fits; else arms down and sets across; else the arms' means over the sets alone.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rerank.evaluation.across import Across
from rerank.evaluation.grid import Row, grid, notes
from rerank.evaluation.wording import decimal, p_value

if TYPE_CHECKING:
    from rich.table import Table as RichTable


def rich_table(a: Across, width: int = 80) -> RichTable:
    """What `Across.to_rich` returns."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(width=10_000)
    rows = grid(a, a.measures[0])
    for table in (_sets_down(a, rows), _arms_down(a, rows)):
        if Measurement.get(console, console.options, table).maximum <= width:
            return table
    return _means_alone(a, rows)


def _sets_down(a: Across, rows: Sequence[Row]) -> RichTable:
    table = _empty(a, "set")
    for arm in a.arms:
        table.add_column(_broken(arm), justify="right", no_wrap=True)
    for row in rows:
        if row.kind == "mean":
            table.add_section()
        label = _plain(row.label) if row.kind == "set" else f"[italic]{_plain(row.label)}[/]"
        table.add_row(label, *(_shown(a, row, arm) for arm in a.arms))
    return table


def _arms_down(a: Across, rows: Sequence[Row]) -> RichTable:
    table = _empty(a, "arm")
    for row in rows:
        table.add_column(_broken(row.label), justify="right", no_wrap=True)
    for arm in a.arms:
        table.add_row(_plain(arm), *(_shown(a, row, arm) for row in rows))
    return table


def _means_alone(a: Across, rows: Sequence[Row]) -> RichTable:
    """For many arms and many sets: the mean, its first test, and how many sets were won."""
    table = _empty(a, "arm", "The sets one by one stand in the written results.")
    for title in ("mean over\nsets", "p", "sets won /\nlevel / lost"):
        table.add_column(title, justify="right")
    mean = rows[-1]
    for arm in a.arms:
        test = next(iter(a.of(arm)), None)
        evidence = f"{p_value(test.p_holm)}\n[dim]{_plain(test.against)}[/]" if test else ""
        counts = f"{test.wins} / {test.ties} / {test.losses}" if test else ""
        table.add_row(_plain(arm), _shown(a, mean, arm), evidence, counts)
    return table


def _empty(a: Across, first: str, *more: str) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable

    caption = _plain(" ".join([f"{a.measures[0]}.", *notes(a, reasons=False), *more]))
    table = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=caption, caption_justify="left")
    table.add_column(first, overflow="fold")
    return table


def _shown(a: Across, row: Row, arm: str) -> str:
    if arm not in row.values:
        return ""
    # Marks always take their two places, so that the numbers stand below each other.
    marks = row.marks.get(arm, "").ljust(2)
    number = f"[bold]{decimal(row.values[arm])}[/]" if arm in row.best else decimal(row.values[arm])
    if row.kind != "mean":
        return f"{number}{marks}"
    cell = a.means[arm][a.measures[0]]
    return f"{number}{marks}\n[dim]{decimal(cell.low)} to  \n{decimal(cell.high)}  [/]"


def _broken(name: str) -> str:
    """A column's title: broken before its first stage ("light" / "on bm25"), lines of 14 letters at most."""
    lines = [part for line in name.replace(" on ", "\non ").split("\n") for part in textwrap.wrap(line, 14)]
    return _plain("\n".join(lines))


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
