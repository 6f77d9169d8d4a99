"""Pages to look at: `report.html` of a run of `train` or of `bench`, made from the files of its folder alone.

    table.json or results.json, changes.json, summary.json, ... -> write_report -> report.html

Importing this package loads nothing heavy; each name loads its module when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
