r"""Results over several sets for a paper: LaTeX tables that need \usepackage{booktabs} and nothing else.

Every name that comes from outside is escaped; signs that old engines lack (minus, dashes, daggers) become commands.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rerank.evaluation.across import Across
from rerank.evaluation.grid import (
    FIRST_STAGE,
    OTHER,
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

_COMMANDS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\u2212": "$-$",
    "\u2013": "--",
    "\u00b1": r"$\pm$",
    FIRST_STAGE: r"$^{\dagger}$",
    OTHER: r"$^{\ddagger}$",
    **{sign: "\\" + sign for sign in "{}$&#%_"},
}


def latex(a: Across) -> str:
    """What `Across.to_latex` returns: a table for each measure, then differences, speed, published figures, probes."""
    parts = [r"% \usepackage{booktabs}", *(_measure(a, m) for m in a.measures)]
    for title, head, rows in (comparison_rows(a), cost_rows(a), published_rows(a), probe_rows(a)):
        if rows:
            shown = [[escaped(cell) for cell in row] for row in rows]
            parts.append(_table(f"{a.suite}: {title}.", f"{a.suite}-{title}", head, shown))
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    r"""The text with everything that LaTeX would take as a command made printable.

    >>> print(escaped("R_1 & 50 % of #2"))
    R\_1 \& 50 \% of \#2
    """
    return "".join(_COMMANDS.get(c, c) for c in " ".join(str(text).split()))


def _measure(a: Across, measure: str) -> str:
    rows: list[list[str]] = []
    for row in grid(a, measure):
        if row.kind == "mean":
            rows.append([])
        label = escaped(row.label) if row.kind == "set" else rf"\emph{{{escaped(row.label)}}}"
        rows.append([label, *(_shown(row, arm) for arm in a.arms)])
    caption = " ".join([f"{measure}, {a.suite}.", *notes(a)])
    return _table(caption, f"{a.suite}-{measure}", ["set", *a.arms], rows)


def _shown(row: Row, arm: str) -> str:
    if arm not in row.values:
        return "--"
    number = escaped(decimal(row.values[arm]))
    number = rf"\textbf{{{number}}}" if arm in row.best else number
    return number + escaped(row.marks.get(arm, ""))


def _table(caption: str, label: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """One table; the cells of `rows` are escaped already, an empty row is a rule."""
    columns = "".join("l" if title in TEXTUAL else "r" for title in head)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escaped(caption)}}}",
        rf"\label{{tab:{re.sub(r'[^a-z0-9]+', '-', label.casefold()).strip('-')}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(map(escaped, head)) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" if row else r"\midrule" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines)
