"""Pages to look at: `report.html` of a run of `train` or of `bench`, made from the files of its folder alone.

    table.json or results.json, changes.json, summary.json, ... -> write_report -> report.html

Importing this package loads nothing heavy; each name loads its module when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rerank.lazily import lazily

if TYPE_CHECKING:
    from rerank.report.changes import Change, Place
    from rerank.report.side_by_side import SideBySide
    from rerank.report.writing import write_report

__all__ = [
    "Change",
    "Place",
    "SideBySide",
    "write_report",
]

_HOME = {
    **dict.fromkeys(("Change", "Place"), "changes"),
    "SideBySide": "side_by_side",
    "write_report": "writing",
}

__getattr__, __dir__ = lazily(__name__, __all__, _HOME)
