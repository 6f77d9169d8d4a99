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
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO, final

from rerank.errors import InputError, Mismatch
from rerank.recipe import Recipe
from rerank.training.log import Log

logger = logging.getLogger("rerank.experiment")

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
    """Only one process works in `out`; the system takes the lock back when that process ends, however it ends."""
    lock = out / LOCK
    with _held(lock) as file:
        # For the reader of a message alone: an id may be that of another process by now, or of another container.
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            with suppress(PermissionError):  # Windows keeps what is open; a file that is left does no harm
                lock.unlink(missing_ok=True)


def _held(lock: Path) -> TextIO:
    """The file of that name, which no other process holds."""
    while True:
        file = lock.open("a+", encoding="utf8", errors="replace")
        try:
            _hold(file)
        except BlockingIOError:
            with file:
                file.seek(0)
                owner = file.read().strip()
            who = f"process {owner}" if owner.isdigit() else "another process"
            raise InputError(
                f"{who} is working in {lock.parent} (its lock is {lock}); wait for it, or choose another --out"
            ) from None
        except BaseException:
            file.close()
            raise
        # Its owner may have ended, and taken the name away, between our opening and our holding the file.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                return file
        file.close()


def _hold(file: TextIO) -> None:
    """Nothing, once the file is ours alone; BlockingIOError where it is another's."""
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:  # some network file systems
        logger.warning("%s cannot be locked (%s): nothing keeps a second process out", file.name, error.strerror)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    draft = path.with_name(f".{path.name}.tmp")
    draft.write_text(text, encoding="utf8")
    os.replace(draft, path)


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all; NaN is refused."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
