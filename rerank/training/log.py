"""What a run tells: a line of `metrics.jsonl` for each fact, and a progress bar for the person who watches.

A record always has `model`, `stage`, `step` and `seconds` (since the run began); the other keys say what they are:
`loss`, `pairs_per_second`, `expected`, `entropy`, `kl`, and the dev measure under its own name (`nDCG@10`).
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

logger = logging.getLogger("rerank.training")

PAUSE = 60.0
"""Seconds after which a log file is told where a stage is."""


@final
class Log:
    """Appends records to a JSONL file and draws progress on a console; either may be absent."""

    def __init__(self, path: Path | None = None, console: Console | None = None) -> None:
        self.path = path
        self.console = console
        self.began = time.monotonic()
        self._file: IO[str] | None = None
        self._bar: tuple[Progress, Any] | None = None
        self._title, self._total, self._said = "", 0, 0.0

    def record(self, **facts: Any) -> None:
        """Write one line; it is on disk when this returns."""
        if self.path is None:
            return
        if self._file is None:
            _mend_tail(self.path)
            self._file = self.path.open("a", encoding="utf8")
        facts["seconds"] = round(time.monotonic() - self.began, 2)
        self._file.write(json.dumps({k: _short(v) for k, v in facts.items()}) + "\n")
        self._file.flush()

    def say(self, text: str) -> None:
        """One line for the person who watches."""
        if self.console is not None:
            self.console.print(text, highlight=False, markup=False)
        else:
            logger.info(text)

    @contextmanager
    def progress(self, title: str, total: int, done: int = 0) -> Iterator[None]:
        """A bar for `total` steps while the block runs; a line now and then where the console is not a terminal."""
        self._title, self._total, self._said = title, total, time.monotonic()
        if self.console is None or not self.console.is_terminal:
            yield
            return
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[facts]}"),
            console=self.console,
            transient=True,
        )
        with bar:
            self._bar = (bar, bar.add_task(title, total=total, completed=done, facts=""))
            try:
                yield
            finally:
                self._bar = None

    def advance(self, step: int, facts: str) -> None:
        """Move the bar to `step` and show `facts` beside it; or say so, where there is no bar and it takes long."""
        if self._bar is None and self.console is not None and time.monotonic() - self._said > PAUSE:
            self._said = time.monotonic()
            self.say(f"{self._title}: step {step} of {self._total}  {facts}")
        if self._bar is not None:
            bar, task = self._bar
            bar.update(task, completed=step, facts=facts)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _mend_tail(path: Path) -> None:
    """Cut off a last line that a kill left unfinished, so that what follows stands on lines of its own."""
    if path.exists() and (data := path.read_bytes()) and not data.endswith(b"\n"):
        path.write_bytes(data[: data.rfind(b"\n") + 1])


def _short(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no NaN
    return float(f"{value:.6g}") if isinstance(value, float) else value
