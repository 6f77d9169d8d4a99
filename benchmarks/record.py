"""Keep the result of a run: `python benchmarks/record.py runs/trec-dl` writes benchmarks/results/trec-dl.json.

What is kept of `train`: the table without its per-query values, audit, diagnosis and calibration, the notes, data
fingerprints, versions, hardware, commit, command. Of `bench` (`runs/bench-local` -> bench-local.json): the same, with
the table over the sets.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rerank.experiment.stamp import commit, hardware

RESULTS = Path(__file__).parent / "results"


def stamp() -> dict[str, Any]:
    """When, of what and on what a result was measured."""
    today = datetime.now(timezone.utc).date().isoformat()
    return {"date": today, "commit": commit() or "unknown", "hardware": hardware()}


def record(folder: Path) -> Path:
    """The file written for the run in `folder`."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf8"))
    # A folder of one machine says nothing to another.
    summary["command"] = re.sub(r" --out \S+", "", summary["command"])
    bench = summary.get("kind") == "bench"
    name, kept = (folder.name, _of_bench(folder, summary)) if bench else (summary["title"], _of_train(folder, summary))
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**stamp(), **kept}, indent=1) + "\n", encoding="utf8")
    return path


def _of_train(folder: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    table = json.loads((folder / "table.json").read_text(encoding="utf8"))
    table.pop("per_query")
    names = ("command", "recipe", "notes", "seeds", "audit", "versions", "data", "seconds", "seconds_total")
    kept = {key: summary[key] for key in names}
    for name in ("diagnosis", "calibration"):
        kept[name] = json.loads((folder / f"{name}.json").read_text(encoding="utf8"))
    return {**kept, "table": table}


def _of_bench(folder: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    results = json.loads((folder / "results.json").read_text(encoding="utf8"))
    for table in results["sets"].values():
        table.pop("per_query")
    left_out = ("kind", "date", "commit", "hardware")
    return {**{key: value for key, value in summary.items() if key not in left_out}, "results": results}


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python benchmarks/record.py RUN_FOLDER ...")
    for name in sys.argv[1:]:
        print(record(Path(name)))
