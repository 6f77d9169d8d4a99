"""What a long job has computed so far, on disk: the job itself, then one JSON line for each finished query.

Lines are appended and flushed, so a process that is killed loses at most the query it was busy with; a line that was
cut short is taken off when the job goes on. Only one process writes a journal: it holds a lock that the system itself
takes back when the process ends, however it ends.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeAlias, final

from rerank.errors import InputError, Mismatch

logger = logging.getLogger("rerank.experiment")

Ranking: TypeAlias = tuple[tuple[str, float], ...]
"""((doc id, score), ...), best first."""


def differences(there: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """What differs between two descriptions of a job, as words; empty where they are equal."""
    keys = [key for key in {**there, **asked} if there.get(key) != asked.get(key)]
    return "; ".join(f"{key} is {_short(there.get(key))} there and {_short(asked.get(key))} now" for key in keys)


def _short(value: Any) -> str:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else repr(value)


@final
class Journal:
    """The rankings of the first queries of `query_ids`, kept in a file while the others are computed."""

    def __init__(self, path: Path, job: Mapping[str, Any], query_ids: Sequence[str], overwrite: bool = False) -> None:
        self.path = path
        self.done: dict[str, Ranking] = {}
        self._file = _locked(path)
        try:
            self._go_on(job, query_ids, overwrite)
        except BaseException:
            self._file.close()
            raise

    def append(self, query_id: str, ranking: Ranking) -> None:
        """Keep one more ranking; it is with the system when this returns."""
        self._write([query_id, ranking])
        self.done[query_id] = ranking

    def remove(self) -> None:
        """Take the file away: its content is elsewhere."""
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if not self.done:  # nothing was computed, so a corrected command need not be told of this one
            self.remove()

    def _go_on(self, job: Mapping[str, Any], query_ids: Sequence[str], overwrite: bool) -> None:
        self._file.seek(0)
        if overwrite:
            self._file.truncate(0)
        there = _parsed(self._file.readline())
        if not isinstance(there, dict):
            self._file.truncate(0)
            self._write(dict(job))
            return
        if there != job:
            raise Mismatch(
                f"{self.path} holds what was computed for another job: {differences(there, job)}. Ask for that job, "
                "or drop what it computed with --overwrite"
            )
        self._read(query_ids)

    def _read(self, query_ids: Sequence[str]) -> None:
        """Takes over whole lines in the order of the queries, and cuts off what follows them."""
        end = self._file.tell()
        for query_id in query_ids:
            record = _parsed(self._file.readline())
            if not _is_ranking(record, query_id):
                break
            self.done[query_id] = tuple((doc_id, score) for doc_id, score in record[1])
            end = self._file.tell()
        rest = self._file.seek(0, 2) - end
        if rest:
            logger.warning("%s: the last %d bytes are no whole record and are computed again", self.path, rest)
            self._file.truncate(end)

    def _write(self, record: Any) -> None:
        self._file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
        self._file.flush()


def _parsed(line: bytes) -> Any:
    """The JSON of a whole line; None for a line that was cut short or damaged."""
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None


def _is_ranking(record: Any, query_id: str) -> bool:
    if not (isinstance(record, list) and len(record) == 2 and record[0] == query_id and isinstance(record[1], list)):
        return False
    return all(isinstance(pair, list) and [type(value) for value in pair] == [str, float] for pair in record[1])


def _locked(path: Path) -> BinaryIO:
    """The file, opened to append, which no other process holds."""
    file = path.open("a+b")
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InputError(f"another process is computing this and holds {path}; wait for it, or stop it") from None
    return file
