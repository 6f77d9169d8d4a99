"""What a page needs of one set's queries: the plot of gains and losses, those that moved most, and all of them as data.

The plot and the largest changes are there without a script; the data is what the page's script makes every query under
every arm of.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from rerank.evaluation.tables import Table
from rerank.report.changes import Change
from rerank.report.drawing import Gains, gains
from rerank.report.side_by_side import SideBySide


class Explored(NamedTuple):
    """One set's queries, ready to be written down."""

    key: str
    """What tells it apart from other sets on the page."""
    measure: str
    pair: tuple[str, str]
    """(before, after), the arms that are compared without a script."""
    gains: Gains
    changes: tuple[Change, ...]
    told: Mapping[str, Any] | None
    """The data of the script; None where only values are known."""
    note: str
    size: int
    """About how many bytes the documents in its data take."""


def explored(key: str, table: Table, told: SideBySide | None, most_bytes: int, n: int = 5) -> Explored | None:
    """What is known of each query of `table`; None where nothing is. The data takes about `most_bytes` at most."""
    pair = (told.before, told.after) if told else next(((c.against, c.arm) for c in table.comparisons), None)
    measure = told.measure if told else table.measures[0]
    per_query = {arm: values[measure] for arm, values in table.per_query.items() if measure in values}
    # Values of the table are means over its seeds; those recorded with the documents are of one run.
    told = told.within(most_bytes).with_values(per_query) if told else None
    if pair is None:
        return None
    if told:
        old, new = told.arms.index(pair[0]), told.arms.index(pair[1])
        differences = {q.query_id: q.values[new] - q.values[old] for q in told.queries}
    else:
        before, after = (per_query.get(arm, {}) for arm in pair)
        differences = {q: after[q] - before[q] for q in before if q in after}
    changes = told.largest(n) if told else []
    drawn = gains(differences, {c.query_id: i for i, c in enumerate(changes)})
    if drawn is None:
        return None
    return Explored(
        key,
        measure,
        pair,
        drawn,
        tuple(changes),
        told.to_json() if told else None,
        _note(table, told),
        told.size() if told else 0,
    )


def _note(table: Table, told: SideBySide | None) -> str:
    """What the values and the documents come from, where they are not of one run."""
    if told is None or not any(table.seeds.get(arm, 1) > 1 for arm in told.arms):
        return ""
    return "Values are means over seeds; the documents are those of the first seed."
