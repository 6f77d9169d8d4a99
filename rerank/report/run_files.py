"""Reading the files of a run's folder for its report: what is absent is empty, what is broken is named."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from rerank.errors import DataError, RerankError

Found = TypeVar("Found")

logger = logging.getLogger("rerank.evaluation")

DAMAGED = (TypeError, KeyError, ValueError, AttributeError, IndexError, ArithmeticError, RecursionError)
"""What reading a file whose values are of other kinds than they should be ends in."""


def read_as(path: Path, found_in: Callable[[dict[str, Any]], Found]) -> Found:
    """What `found_in` makes of the file; its complaint, where there is one, names the file."""
    content = read_json(path)
    try:
        return found_in(content)
    except DAMAGED as error:
        raise DataError.at(path, None, damage(error)) from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where the file is absent."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError.at(path, getattr(error, "lineno", None), f"this is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise DataError.at(path, None, f"a JSON object is needed, this is a {type(content).__name__}")
    return content


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The records of a file; lines that a killed run left unfinished are left out and counted."""
    if not path.is_file():
        return []
    # Unlike a table, a log has nothing that depends on every line: what can be read is worth showing.
    records, broken = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            records.append(record)
        else:
            broken.append(number)
    if broken:
        lines = f"{len(broken)} line{'s' if len(broken) > 1 else ''}"
        logger.warning("%s:%d: %s left out, from here on: no JSON object", path, broken[0], lines)
    return records


def damage(error: Exception) -> str:
    """What a message says of values that the report could not be made of."""
    if isinstance(error, RerankError):
        return str(error)
    problem = f"a value is missing or of another kind than the report needs ({type(error).__name__}: {error})"
    return f"{problem}; evaluate the run again"
