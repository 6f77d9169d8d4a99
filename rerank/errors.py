"""Every error that rerank raises on purpose.

    RerankError
    ├── InputError           something given to us is wrong: a value, a file, a record
    │   ├── DataError        ... in a file: the message begins with `path:line`
    │   └── RecipeError      ... in a recipe: the message names the key and the nearest known one
    ├── MissingDependency    an optional package is not installed: the message is the line to type
    ├── NotFound             a file, model or data set is not where it was said to be
    ├── Mismatch             two things that belong together do not: an index and its documents, a run and its corpus
    ├── TrainingError        training cannot go on: the message says what is kept on disk
    ├── EndpointError        a server does not answer, or refuses to: what it answered before is kept
    └── OverBudget           the next request could cost more than was allowed: it was not made

A message says what was given, what is allowed and what to do next.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any


class RerankError(Exception):
    """Base of all errors raised on purpose."""


class InputError(RerankError, ValueError):
    """A value given by the user is not allowed."""


class DataError(InputError):
    """A record of a file is wrong; the message begins with `path:line`."""

    @classmethod
    def at(cls, path: Path | str, line: int | None, problem: str) -> DataError:
        """The error for one line of a file (`line` counts from 1; None speaks of the whole file)."""
        return cls(f"{path}:{line}: {problem}" if line is not None else f"{path}: {problem}")


class RecipeError(InputError):
    """A recipe has an unknown key or a value that is not allowed."""


class MissingDependency(RerankError, ImportError):
    """An optional package is needed and not installed."""


class NotFound(RerankError, FileNotFoundError):
    """A file, model or data set is not where it was said to be."""


class Mismatch(RerankError, ValueError):
    """Two things that belong together do not."""


class TrainingError(RerankError, RuntimeError):
    """Training cannot go on."""


class EndpointError(RerankError):
    """An endpoint does not answer, or refuses to; `status` is that of its response, None where there was none."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Unfinished(RerankError):
    """A part of the work failed; the rest is done, written, and in `found` (None where nothing could be done)."""

    def __init__(self, message: str, found: Any = None) -> None:
        super().__init__(message)
        self.found = found


class OverBudget(RerankError):
    """The next request could pass what may be spent."""


def need(module: str, extra: str) -> ModuleType:
    """The imported optional `module`; where it is missing, an error with the line that installs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # A package that is there but lacks a dependency of its own is another story; do not hide it.
        if error.name is None or module.split(".")[0] != error.name.split(".")[0]:
            raise
        raise MissingDependency(f"this needs the package {module!r}: pip install 'rerank[{extra}]'") from None


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the closest known name, and the list of known names."""
    known = sorted(known)
    folded = {k.casefold(): k for k in known}
    close = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
    hint = f"; did you mean {folded[close[0]]!r}?" if close else ""
    return f"{hint} (known: {', '.join(known)})"
