"""What the report of a training run says: everything its template needs, from the files of its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rerank.evaluation.tables import Table
from rerank.report.audited import audits
from rerank.report.drawing import dot_axis, dots, stages
from rerank.report.explored import explored
from rerank.report.findings import calibrations, diagnoses
from rerank.report.forests import forests
from rerank.report.run_files import read_as, read_json, read_jsonl
from rerank.report.side_by_side import MOST_BYTES, SideBySide

FILES = ("summary.json", "diagnosis.json", "calibration.json", "changes.json", "metrics.jsonl")
"""What the report shows beside its table, each file where it is there."""

FIRST_SENTENCES = 6
"""Sentences of the verdict that stand at the top; the others are a click away."""

MOST_STAGES = 8
"""Training stages whose curves are shown at once; the others likewise."""


def train_page(folder: Path) -> dict[str, Any]:
    """What `train.html.j2` is filled with."""
    table = read_as(folder / "table.json", Table.from_json)
    told = read_as(folder / "changes.json", SideBySide.from_json)
    summary = read_json(folder / "summary.json")
    return {
        "title": str(summary.get("title") or folder.resolve().name),
        "table": table,
        "column_best": {m: max(cells[m].mean for cells in table.arms.values()) for m in table.measures},
        "said": table.said(),
        "first_sentences": FIRST_SENTENCES,
        "most_stages": MOST_STAGES,
        "seeds_told": seeds_told(table),
        "axis": dot_axis(table),
        "dots": dots(table),
        "forests": forests(table, _groups(summary)),
        "audits": read_as(folder / "summary.json", lambda content: audits(content.get("audit"))),
        "diagnoses": read_as(folder / "diagnosis.json", diagnoses),
        "calibrations": read_as(folder / "calibration.json", calibrations),
        "explored": explored("run", table, told, MOST_BYTES),
        "stages": stages(read_jsonl(folder / "metrics.jsonl"), table.measures[0]),
        "summary": summary,
        "absent": [name for name in FILES if not (folder / name).is_file()],
    }


def seeds_told(table: Table) -> str:
    """The sentence that says over how many seeds each arm's numbers are means."""
    by_count: dict[int, list[str]] = {}
    for arm in table.arms:
        by_count.setdefault(table.seeds.get(arm, 1), []).append(arm)
    single = by_count.pop(1, [])
    if not by_count:
        return "Each arm is a single run."
    most = max(by_count, key=lambda n: len(by_count[n]))
    others = [f"{', '.join(arms)} over {n}" for n, arms in by_count.items() if n != most]
    alone = [f"{', '.join(single)} {'are single runs' if len(single) > 1 else 'is a single run'}"] if single else []
    return "; ".join([f"Numbers are means over {most} seeds", *others, *alone]) + "."


def _groups(summary: Mapping[str, Any]) -> dict[str, Any]:
    groups = summary.get("groups")
    return dict(groups) if isinstance(groups, Mapping) else {}
