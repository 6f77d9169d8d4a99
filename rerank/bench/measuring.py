"""What each ranking cost and how many of its scores were equal, written down as it goes: NAME.timing.jsonl.

    {"query": "q7", "documents": 100, "ties": 0, "seconds": 0.0312}

A line comes before its ranking is kept, so that an interrupted arm has all of them when it is finished; of a query that
was ranked twice the last line counts. Ties are neighbours with equal raw scores, before a file tells them apart. A line
that cannot be read is dropped aloud; of what no line tells, speed and ties are unknown.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from rerank.evaluation.across import Speed
from rerank.experiment.journal import Ranking

logger = logging.getLogger("rerank.bench")

ENDING = ".timing.jsonl"
LARGEST = 2**53
"""No count or time of ours is larger."""

Timed: TypeAlias = tuple[str, Ranking, float]
"""(query id, ranking, seconds)."""


def recorded(path: Path, found: Iterator[Timed]) -> Iterator[tuple[str, Ranking]]:
    """(query id, ranking) of what is found; what it cost goes to `path`, before the ranking is handed on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = _read(path, aloud=True)
    with path.open("w", encoding="utf8") as file:
        file.writelines(json.dumps(record) + "\n" for record in whole)  # without a line that was cut short
        file.flush()
        for query_id, ranking, seconds in found:
            ties = sum(a[1] == b[1] for a, b in pairwise(ranking))
            record = {"query": query_id, "documents": len(ranking), "ties": ties, "seconds": round(seconds, 7)}
            file.write(json.dumps(record) + "\n")
            file.flush()
            yield query_id, ranking


def speed_of(path: Path, query_ids: Sequence[str]) -> Speed | None:
    """How fast the queries were ranked; None where nothing says so."""
    found = [record for record in _of(path, query_ids) if record["documents"]]
    if not found:
        return None
    seconds = [record["seconds"] for record in found]
    p50, p95 = np.quantile(seconds, [0.5, 0.95]).tolist()
    return Speed(len(found), sum(record["documents"] for record in found), sum(seconds), p50, p95)


def tie_rate_of(path: Path, query_ids: Sequence[str]) -> float:
    """Share of neighbouring candidates with equal raw scores, over all queries that the file tells of.

    NaN where it tells of none. Queries that it does not tell of are counted aloud.
    """
    found = _of(path, query_ids, aloud=True)
    if len(found) < len(query_ids):
        run = path.name.removesuffix(ENDING) + ".trec"
        logger.warning(
            "%s %s %d of %d queries: what they cost and how many scores were equal is unknown; delete %s beside it to "
            "measure them anew",
            path,
            "tells nothing of" if path.is_file() else "is gone, and with it what it told of",
            len(query_ids) - len(found),
            len(query_ids),
            run,
        )
    if not found:
        return math.nan
    pairs = sum(max(record["documents"] - 1, 0) for record in found)
    return sum(record["ties"] for record in found) / pairs if pairs else 0.0


def _of(path: Path, query_ids: Sequence[str], aloud: bool = False) -> list[Mapping[str, Any]]:
    """The last record of each of the queries."""
    latest = {record["query"]: record for record in _read(path, aloud)}
    return [latest[query_id] for query_id in query_ids if query_id in latest]


def _read(path: Path, aloud: bool) -> list[Mapping[str, Any]]:
    """The records of the file; lines that are none are counted aloud."""
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    found = [_record(line) for line in lines if line.strip()]
    whole = [record for record in found if record is not None]
    if aloud and len(whole) < len(found):
        lost = len(found) - len(whole)
        logger.warning("%s: %d of %d lines cannot be read; they are left out", path, lost, len(found))
    return whole


def _record(line: bytes) -> Mapping[str, Any] | None:
    try:
        record = json.loads(line.decode("utf8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("query"), str):
        return None
    counts = _is_number(record.get("documents"), int) and _is_number(record.get("ties"), int)
    if not counts or not _is_number(record.get("seconds"), int, float):
        return None
    return record if record["ties"] < max(record["documents"], 1) else None


def _is_number(value: object, *kinds: type) -> bool:
    """Whether it is one of these kinds, at least 0 and finite; a bool is no number."""
    return type(value) in kinds and 0 <= value <= LARGEST  # type: ignore[operator]
