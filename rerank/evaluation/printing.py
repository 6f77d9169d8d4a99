"""The table of one set for readers: as Markdown, and for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rerank.evaluation.comparison import Cell
from rerank.evaluation.tables import Table
from rerank.evaluation.wording import decimal, p_value, signed

if TYPE_CHECKING:
    from rich.table import Table as RichTable


def markdown(table: Table) -> str:
    """What `Table.to_markdown` returns."""
    several = table.several_seeds
    extra = [*(["seeds"] if several else []), *(["seconds"] if table.seconds else [])]
    lines = [_row(["arm", *table.measures, *extra]), _row(["---"] + ["---:"] * (len(table.measures) + len(extra)))]
    for arm, cells in table.arms.items():
        shown = [f"{_with_spread(c)} [{decimal(c.low)}, {decimal(c.high)}]" for c in cells.values()]
        seeds = [str(table.seeds.get(arm, 1))] if several else []
        lines.append(_row([arm, *shown, *seeds, *([_seconds(table, arm)] if table.seconds else [])]))
    spread = "; ± is the standard deviation over seeds" if several else ""
    lines += ["", f"{table.queries} judged queries; 95 % bootstrap intervals in brackets{spread}.", ""]
    if table.comparisons:
        titles = ["comparison", "measure", "difference", "95 % interval", "p (Holm)", "d_z", "wins / ties / losses"]
        titles += ["seeds above"] if several else []
        lines += [_row(titles), _row(["---", "---", *["---:"] * (len(titles) - 2)])]
    for c in table.comparisons:
        interval = f"{signed(c.low)} to {signed(c.high)}"
        counts = f"{c.wins} / {c.ties} / {c.losses}"
        won = [f"{c.seeds_won[0]} of {c.seeds_won[1]}" if c.seeds_won else ""] if several else []
        numbers = [signed(c.difference), interval, p_value(c.p_holm), decimal(c.effect, 2), counts, *won]
        lines.append(_row([f"{c.arm} - {c.against}", c.measure, *numbers]))
    return "\n".join(lines).rstrip() + "\n"


def rich_table(table: Table, width: int = 80) -> RichTable:
    """What `Table.to_rich` returns."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table as RichTable

    primary, others = table.measures[0], _fitting(table, width)
    caption = f"{table.queries} judged queries; 95 % bootstrap interval, p after Holm"
    if table.several_seeds:
        caption += "; ± over seeds"
    if len(others) < len(table.measures) - 1:
        caption += f"\nno room here for {', '.join(table.measures[1 + len(others) :])}"
    out = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=caption)
    out.add_column("arm", min_width=_arm_width(table))
    for title in (primary, *others):
        out.add_column(escape(_title(title)), justify="right", min_width=_width(title, title == primary))
    if table.comparisons:
        out.add_column("p", justify="right", min_width=_p_width(table))
    if table.seconds:
        out.add_column("seconds", justify="right", min_width=7)
    for arm, cells in table.arms.items():
        test = next(iter(table.of(arm)), None)
        cell = cells[primary]
        mean = f"[bold]{_with_spread(cell)}[/]" if arm == table.best else _with_spread(cell)
        evidence = f"{p_value(test.p_holm)}\n[dim]{escape(test.against)}[/]" if test else ""
        out.add_row(
            escape(arm),
            f"{mean}\n[dim]{decimal(cell.low)} to {decimal(cell.high)}[/]",
            *(decimal(cells[m].mean) for m in others),
            *([evidence] if table.comparisons else []),
            *([_seconds(table, arm)] if table.seconds else []),
        )
    return out


def _fitting(table: Table, width: int) -> tuple[str, ...]:
    """The measures after the primary one that `width` columns have room for; the others are in the files."""
    between = 2  # what the frame puts before and after a column
    taken = between + _arm_width(table) + between + _width(table.measures[0], primary=True) + between
    taken += (_p_width(table) + between if table.comparisons else 0) + (7 + between if table.seconds else 0)
    fitting = []
    for measure in table.measures[1:]:
        taken += _width(measure) + between
        if taken > width:
            break
        fitting.append(measure)
    return tuple(fitting)


def _arm_width(table: Table) -> int:
    return min(18, max(map(len, table.arms)))


def _p_width(table: Table) -> int:
    """Room for the longest name of an arm that was tested against, within bounds."""
    named = [len(test.against) for arm in table.arms if (test := next(iter(table.of(arm)), None))]
    return min(14, max([6, *named]))


def _width(measure: str, primary: bool = False) -> int:
    return max(12 if primary else 7, *map(len, _title(measure).split("\n")))


def _title(measure: str) -> str:
    """The long spellings, RR(rel=2)@10, break after their name rather than push the numbers together."""
    return measure.replace("(", "\n(").replace(")@", ")\n@")


def _seconds(table: Table, arm: str) -> str:
    return f"{table.seconds[arm]:.1f}" if arm in table.seconds else ""


def _with_spread(cell: Cell) -> str:
    return f"{decimal(cell.mean)} ± {decimal(cell.spread)}" if math.isfinite(cell.spread) else decimal(cell.mean)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
