"""What is finished: a line for each training, and the TREC run of each arm that was measured."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

from rerank.data import read_run, write_run
from rerank.errors import Mismatch
from rerank.types import Run

from .learning import Budget, Learned
from .plan import Plan

TUNING, EQUAL_STEPS, EQUAL_TIME = "tuning", "equal steps", "equal time"


@final
class Journal:
    """The folder of a run; what stands in it is not done again."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder = folder
        self._lines = folder / "journal.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        given, written = json.loads(json.dumps(asdict(plan))), folder / "plan.json"
        if written.exists() and json.loads(written.read_text(encoding="utf8")) != given:
            raise Mismatch(f"{folder} holds a run of another plan: delete it, or give another --out")
        written.write_text(json.dumps(given, indent=1) + "\n", encoding="utf8")
        self.entries: list[dict[str, Any]] = []
        if self._lines.exists():
            whole = self._lines.read_text(encoding="utf8").rpartition("\n")[0]  # a kill may leave half a line
            self.entries = [json.loads(line) for line in whole.splitlines()]
            self._lines.write_text(f"{whole}\n" if whole else "", encoding="utf8")

    def of(self, kind: str, **wanted: object) -> list[dict[str, Any]]:
        """The entries of one kind with these values; of a training that was repeated at another rate, the last."""
        last = {_what(e): e for e in self.entries if e["kind"] == kind}
        return [e for e in last.values() if all(e[name] == value for name, value in wanted.items())]

    def add(self, kind: str, collection: str, arm: str, budget: Budget, learned: Learned, **facts: object) -> None:
        """Nothing; the line is on disk."""
        entry = {"kind": kind, "collection": collection, "arm": arm, **budget._asdict(), **facts}
        entry |= {"seconds": round(learned.seconds, 2), "processor_seconds": round(learned.processor_seconds, 2)}
        self.entries.append(entry)
        with self._lines.open("a", encoding="utf8") as file:
            file.write(json.dumps(entry) + "\n")

    def keep(self, run: Run, collection: str, arm: str, kind: str = EQUAL_STEPS, seed: int | None = None) -> None:
        """Nothing; the ranking is on disk as a TREC run."""
        path = self._path(collection, arm, kind, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_run(run, path)

    def run(self, collection: str, arm: str, kind: str = EQUAL_STEPS, seed: int | None = None) -> Run:
        """The ranking that `keep` wrote."""
        return read_run(self._path(collection, arm, kind, seed))

    def _path(self, collection: str, arm: str, kind: str, seed: int | None) -> Path:
        suffix = "" if seed is None else f".seed-{seed}"
        return self.folder / "runs" / kind.replace(" ", "-") / collection / f"{arm.replace(' ', '-')}{suffix}.trec"


def _what(entry: dict[str, Any]) -> tuple[object, ...]:
    """What tells a training apart from others of its kind; in tuning also its rate."""
    return entry["collection"], entry["arm"], entry["seed"], entry["rate"] if entry["kind"] == TUNING else None
