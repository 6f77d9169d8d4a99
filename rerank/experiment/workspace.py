"""The folder of a run, and what the run tells while it goes on.

recipe.toml  data.json               what is run, on which data (a resumed run must find the same)
summary.json                         with what, how long, and what is to be said about it
first_stage/ orderings/              computed once, reused by --resume
arms/                                weights and facts of each finished stage
runs/ARM.trec                        what each arm ranked
metrics.jsonl table.json changes.json    curves; means with intervals and tests; queries that moved
report.html  model/                  to look at; to use
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from rerank.errors import InputError, Mismatch
from rerank.recipe import Recipe
from rerank.training.log import Log

RECIPE = "recipe.toml"
DATA = "data.json"
LOCK = ".lock"


@final
@dataclass
class Workspace:
    """A run while it is carried out."""

    recipe: Recipe
    out: Path
    resume: bool
    log: Log
    seconds: dict[str, float] = field(default_factory=dict)
    """What took how long."""
    notes: list[str] = field(default_factory=list)
    """Facts that the report must tell."""

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Adds the block's time to `seconds[what]`."""
        began = time.monotonic()
        yield
        self.seconds[what] = round(self.seconds.get(what, 0.0) + time.monotonic() - began, 1)

    def note(self, text: str) -> None:
        """Keep a fact for the report and say it now."""
        if text not in self.notes:
            self.notes.append(text)
            self.log.say(f"  note: {text}")


def claim(out: Path, recipe: Recipe, resume: bool) -> None:
    """Make `out` this recipe's folder; refuse a folder that holds another run, or this one without `resume`."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; a run needs a folder")
    written = out / RECIPE
    if written.exists():
        if not resume:
            raise InputError(
                f"{out} already holds a run: add --resume to go on with it, delete it, or choose another --out"
            )
        if written.read_text(encoding="utf8") != recipe.text:
            raise Mismatch(
                f"{written} is not the recipe given: a run is resumed with the recipe it was begun with. "
                f"To begin anew delete {out}, or choose another --out"
            )
    elif resume:
        raise InputError(f"there is no run in {out} to resume")
    elif out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty and holds no run: choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_text(written, recipe.text)


def disclaim(out: Path) -> None:
    """Give a folder back in which nothing was computed, so that a corrected recipe can use it."""
    if any((out / name).exists() for name in ("first_stage", "arms")):
        return
    for name in (RECIPE, DATA, "metrics.jsonl"):
        (out / name).unlink(missing_ok=True)
    if not any(out.iterdir()):
        out.rmdir()


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Only one process works in `out`; a lock whose process is gone is taken over."""
    lock = out / LOCK
    try:
        handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        owner = lock.read_text(encoding="utf8").strip()
        if owner.isdigit() and _alive(int(owner)):
            raise InputError(
                f"process {owner} is working in {out} (its lock is {lock}); wait for it, or choose another --out"
            ) from None
        lock.unlink(missing_ok=True)
        handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    with os.fdopen(handle, "w") as file:
        file.write(str(os.getpid()))
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    draft = path.with_name(f".{path.name}.tmp")
    draft.write_text(text, encoding="utf8")
    os.replace(draft, path)


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all; NaN is refused."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
