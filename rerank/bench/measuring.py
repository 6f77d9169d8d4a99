"""What each ranking cost and how many of its scores were equal, written down as it goes: NAME.timing.jsonl.

    {"query": "q7", "documents": 100, "ties": 0, "seconds": 0.0312}

A line comes before its ranking is kept, so that an interrupted arm has all of them when it is finished; of a query that
was ranked twice the last line counts. Ties are neighbours with equal raw scores, before a file tells them apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from rerank.evaluation.across import Speed
from rerank.experiment.journal import Ranking

Timed: TypeAlias = tuple[str, Ranking, float]
"""(query id, ranking, seconds)."""


def recorded(path: Path, found: Iterator[Timed]) -> Iterator[tuple[str, Ranking]]:
    """(query id, ranking) of what is found; what it cost goes to `path`, before the ranking is handed on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = [line for line in _lines(path) if _record(line) is not None]
    with path.open("w", encoding="utf8") as file:
        file.writelines(line + "\n" for line in whole)  # without a line that a killed process cut short
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
    """Share of neighbouring candidates with equal raw scores, over all queries; 0 where nothing says so."""
    found = _of(path, query_ids)
    pairs = sum(max(record["documents"] - 1, 0) for record in found)
    return sum(record["ties"] for record in found) / pairs if pairs else 0.0


def _of(path: Path, query_ids: Sequence[str]) -> list[Mapping[str, Any]]:
    """The last record of each of the queries."""
    latest = {record["query"]: record for line in _lines(path) if (record := _record(line)) is not None}
    return [latest[query_id] for query_id in query_ids if query_id in latest]


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf8").split("\n") if path.is_file() else []


def _record(line: str) -> Mapping[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(record, dict) and {"query", "documents", "ties", "seconds"} <= record.keys()
    return record if whole else None
