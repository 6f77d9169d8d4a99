"""Orderings on disk: files of them, and a teacher that remembers what another one said.

One ordering a line of JSON, appended and flushed as it comes, so that hours of a slow teacher outlive a crash:

    {"query_id": "q1", "doc_ids": ["d3", "d1"], "teacher": "judged", "scores": [2.0, 0.0]}

A remembered line also has a `key`, the sha256 of all that the teacher saw; the same query with other candidates, or
with the same candidates in another order, is another question.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, final

from rerank.errors import DataError, InputError, NotFound
from rerank.types import CandidateList, Ordering, Teacher

from .jsonl import keyed, parsed

logger = logging.getLogger("rerank.teachers.memory")


def write_orderings(path: Path | str, orderings: Iterable[Ordering]) -> None:
    """Nothing; writes one ordering a line. The file appears when all of them are written."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".tmp")
    with fresh.open("w", encoding="utf-8", newline="\n") as stream:
        for ordering in orderings:
            stream.write(json.dumps(_record(ordering)) + "\n")
    os.replace(fresh, path)


def read_orderings(path: Path | str) -> list[Ordering]:
    """The orderings of a file, in its order; `DataError` names the first line that holds none."""
    path = Path(path)
    if not path.is_file():
        raise NotFound(f"{path} is not there: give a file that write_orderings or a Remembered teacher wrote")
    lines = path.read_bytes().split(b"\n")
    return [_ordering(path, number, line)[1] for number, line in enumerate(lines, start=1) if line.strip()]


@final
class Remembered:
    """Orders as `teacher` does, asking it only for lists whose ordering is not yet in the file at `path`.

    Several teachers may share a file. A list that the teacher leaves out is not remembered: the next call asks again.
    """

    def __init__(self, teacher: Teacher, path: Path | str) -> None:
        self.name = teacher.name
        self.teacher = teacher
        self.path = Path(path)

    def __call__(self, lists: Iterable[CandidateList]) -> Iterator[Ordering]:
        """The orderings in the order of `lists`, once the teacher has been asked for all that are missing."""
        asked = [(question_key(candidates, self.name), candidates) for candidates in lists]
        known = _load(self.path)
        missing = {key: candidates for key, candidates in asked if key not in known}
        logger.info("teacher %r: %d of %d orderings remembered", self.name, len(asked) - len(missing), len(asked))
        if missing:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8", newline="\n") as stream:
                for key, ordering in self._ask(missing):
                    stream.write(json.dumps({"key": key, **_record(ordering)}) + "\n")
                    stream.flush()
                    known[key] = ordering
        for key, _ in asked:
            if key in known:
                yield known[key]

    def _ask(self, missing: dict[str, CandidateList]) -> Iterator[tuple[str, Ordering]]:
        """The teacher's answers with their keys.

        An ordering names its query alone, so lists that share a query are asked in separate rounds.
        """
        while missing:
            turn = {candidates.query_id: key for key, candidates in reversed(missing.items())}
            lists = [missing.pop(key) for key in list(missing) if turn[missing[key].query_id] == key]
            for ordering in self.teacher(lists):
                if ordering.query_id not in turn:
                    raise InputError(
                        f"teacher {self.name!r} ordered query {ordering.query_id!r}, which it was not asked for, "
                        "or ordered it twice"
                    )
                yield turn.pop(ordering.query_id), ordering


def question_key(candidates: CandidateList, teacher: str) -> str:
    """The sha256 of the teacher's name, the query, and the candidates' ids and texts in their order."""
    question = [teacher, candidates.query_id, candidates.query, candidates.doc_ids, candidates.texts]
    return hashlib.sha256(json.dumps(question).encode()).hexdigest()


def _load(path: Path) -> dict[str, Ordering]:
    """Key -> ordering of a memory file."""

    def read(number: int, line: bytes) -> tuple[str, Ordering]:
        record, ordering = _ordering(path, number, line)
        if not isinstance(record.get("key"), str):
            raise DataError.at(path, number, "field 'key' is missing: this is not the file of a Remembered teacher")
        return record["key"], ordering

    return keyed(path, "the remembered orderings", read)


def _record(ordering: Ordering) -> dict[str, Any]:
    record: dict[str, Any] = {
        "query_id": ordering.query_id,
        "doc_ids": list(ordering.doc_ids),
        "teacher": ordering.teacher,
    }
    if ordering.scores is not None:
        record["scores"] = list(ordering.scores)
    return record


def _ordering(path: Path, number: int, line: bytes) -> tuple[dict[str, Any], Ordering]:
    """The parsed line and its ordering."""
    try:
        record = parsed(line)
    except ValueError as error:
        raise DataError.at(path, number, f"not JSON ({error}): expected one ordering a line") from None
    problem = _problem(record)
    if problem:
        raise DataError.at(path, number, f"{problem}; an ordering has query_id, doc_ids, teacher, and perhaps scores")
    scores = record.get("scores")
    try:
        ordering = Ordering(
            query_id=record["query_id"],
            doc_ids=tuple(record["doc_ids"]),
            teacher=record["teacher"],
            scores=None if scores is None else tuple(float(s) for s in scores),
        )
    except (ValueError, OverflowError) as error:
        raise DataError.at(path, number, f"field 'scores': {error}; finite numbers are needed") from None
    return record, ordering


def _problem(record: Any) -> str:
    """What is wrong with the parsed line; empty when nothing is."""
    if not isinstance(record, dict):
        return f"a {type(record).__name__} is no ordering"
    for name in ("query_id", "teacher"):
        if not isinstance(record.get(name), str):
            return f"field {name!r} is {record.get(name)!r}, expected a string"
    doc_ids, scores = record.get("doc_ids"), record.get("scores")
    if not isinstance(doc_ids, list) or not all(isinstance(d, str) for d in doc_ids):
        return f"field 'doc_ids' is {doc_ids!r:.80}, expected a list of strings"
    if len(set(doc_ids)) < len(doc_ids):
        return "field 'doc_ids' names a document twice"
    if scores is not None and not (isinstance(scores, list) and len(scores) == len(doc_ids)):
        return "field 'scores' must be a list as long as 'doc_ids'"
    if scores and not all(isinstance(s, int | float) and not isinstance(s, bool) for s in scores):
        return "field 'scores' must hold numbers"
    return ""
