"""Keep the result of a run: `python benchmarks/record.py runs/trec-dl` writes benchmarks/results/trec-dl.json.

What is kept: the table without its per-query values, audit, diagnosis and calibration, the notes, data fingerprints,
versions, hardware, commit, command.
"""

from __future__ import annotations

import json
import re
import sys
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
    table = json.loads((folder / "table.json").read_text(encoding="utf8"))
    summary = json.loads((folder / "summary.json").read_text(encoding="utf8"))
    table.pop("per_query")
    kept = {
        key: summary[key]
        for key in ("command", "recipe", "notes", "seeds", "audit", "versions", "data", "seconds", "seconds_total")
    }
    for name in ("diagnosis", "calibration"):
        kept[name] = json.loads((folder / f"{name}.json").read_text(encoding="utf8"))
    kept["command"] = re.sub(r" --out \S+", "", kept["command"])  # a folder of one machine says nothing to another
    content = {**stamp(), **kept, "table": table}
    path = RESULTS / f"{summary['title']}.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf8")
    return path


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python benchmarks/record.py RUN_FOLDER ...")
    for name in sys.argv[1:]:
        print(record(Path(name)))
