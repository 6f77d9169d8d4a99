"""Files of JSON lines that grow while someone answers, each line with the key of its question.

    {"key": "5f1c...", ...}

A crash can cut the last line short, and do no other damage: that line is dropped, aloud. Whatever else cannot be read
means that the file is someone else's; it is refused, and left as it is.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from rerank.errors import InputError

logger = logging.getLogger("rerank.teachers.jsonl")

T = TypeVar("T")

LINE_START = b'{"key": "'
"""How every line begins."""


def keyed(path: Path, holds: str, read: Callable[[int, bytes], tuple[str, T]]) -> dict[str, T]:
    """Key -> value of the lines of a file, empty where there is none; the file then ends where a next line may begin.

    `read` gives key and value of a line, by its number and bytes, or raises; `holds` says in words what lines hold.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the file that is to hold {holds}")
    data = path.read_bytes() if path.is_file() else b""
    end = _torn_at(data)
    # The file may be someone else's: nothing in it is touched before every whole line has proved to be ours.
    known = dict(read(number, line) for number, line in enumerate(data[:end].split(b"\n"), start=1) if line.strip())
    if end < len(data):
        logger.warning("%s: the last line was cut short (%d bytes); dropped", path, len(data) - end)
        os.truncate(path, end)
    elif data and not data.endswith(b"\n"):
        with path.open("ab") as stream:
            stream.write(b"\n")
    return known


def parsed(line: bytes) -> Any:
    """The value of a JSON text; `ValueError` for everything that cannot be read."""
    try:
        return json.loads(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _torn_at(data: bytes) -> int:
    """Where a torn last line begins: the beginning of one of our lines that is no JSON; else the length of `data`."""
    start = data.rfind(b"\n", 0, max(len(data) - 1, 0)) + 1
    line = data[start:].rstrip(b"\r\n")
    ours = line.startswith(LINE_START) or LINE_START.startswith(line)
    try:
        parsed(line or b"{}")
    except ValueError:
        return start if ours else len(data)
    return len(data)
