"""The queries that a change helped and hurt most, with what the reader would have seen before and after."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

from rerank.errors import InputError
from rerank.evaluation.measures import Measure, evaluate, parse_measure
from rerank.types import Collection, Qrels, Run

logger = logging.getLogger("rerank.evaluation")

TEXT_LENGTH = 400
"""Characters of a document's text that are kept."""


@final
@dataclass(frozen=True)
class Place:
    """One document in one ranking."""

    rank: int
    """Counts from 1."""
    doc_id: str
    text: str
    grade: int | None
    """None where nobody judged it."""
    other_rank: int | None
    """Its rank in the other run, None where it is not there."""


@final
@dataclass(frozen=True)
class Change:
    """One query, its value before and after, and both rankings' first documents."""

    query_id: str
    query: str
    measure: str
    value_before: float
    value_after: float
    before: tuple[Place, ...]
    after: tuple[Place, ...]

    @property
    def difference(self) -> float:
        """What the query gained; negative where it lost."""
        return self.value_after - self.value_before


def largest_changes(
    before: Run,
    after: Run,
    qrels: Qrels,
    collection: Collection,
    measure: str | Measure = "nDCG@10",
    n: int = 5,
    shown: int = 10,
) -> list[Change]:
    """The up to `n` queries that gained most, most first, then the up to `n` that lost most, most first.

    Queries whose value did not change are in neither part.
    """
    if n < 1 or shown < 1:
        raise InputError(f"n and shown must be 1 or more; given: {n}, {shown}")
    name = str(parse_measure(measure))
    old, new = (evaluate(run, qrels, [name]).per_query[name] for run in (before, after))
    changes = [
        Change(
            query_id=query_id,
            query=collection.queries.get(query_id, ""),
            measure=name,
            value_before=old[query_id],
            value_after=new[query_id],
            before=_places(query_id, before, after, qrels, collection, shown),
            after=_places(query_id, after, before, qrels, collection, shown),
        )
        for query_id in most_moved(old, new, n)
    ]
    documents = {p.doc_id for c in changes for p in (*c.before, *c.after)}
    count_missing_texts(documents, {c.query_id for c in changes}, collection)
    return changes


def most_moved(old: Mapping[str, float], new: Mapping[str, float], n: int) -> list[str]:
    """The up to `n` queries whose value grew most, most first, then the up to `n` whose value fell most, likewise."""
    # Python's sort is stable: queries that changed alike stay in the order in which they were given.
    by_gain = sorted(old, key=lambda q: old[q] - new[q])
    gained = [q for q in by_gain[:n] if new[q] > old[q]]
    return gained + [q for q in reversed(by_gain[-n:]) if new[q] < old[q]]


def changes_json(changes: Sequence[Change], before: str, after: str) -> dict[str, Any]:
    """A few changes in a form for `changes.json`; `before` and `after` are the names of the two arms.

    `side_by_side` makes the fuller form, from which a reader may choose any query and any two arms.
    """
    return {"before": before, "after": after, "changes": [asdict(change) for change in changes]}


def changes_from_json(content: Mapping[str, Any]) -> list[Change]:
    """The changes that `changes_json` wrote; none of an empty mapping."""
    if "queries" in content:
        raise InputError("this holds every query under every arm; read it with SideBySide.from_json")
    try:
        return [
            Change(**{**change, **{side: tuple(Place(**p) for p in change[side]) for side in ("before", "after")}})
            for change in content.get("changes", [])
        ]
    except (KeyError, TypeError) as error:
        raise InputError(f"these are not changes written by changes_json: {error!r}") from error


def beginning(text: str) -> str:
    """The part of a text that is kept, with an ellipsis where something is left out."""
    return text if len(text) <= TEXT_LENGTH else text[: TEXT_LENGTH - 1].rstrip() + "…"


def count_missing_texts(doc_ids: Iterable[str], query_ids: Iterable[str], collection: Collection) -> None:
    """Say how many of the documents and queries to be shown have no text in `collection`."""
    documents = set(doc_ids) - set(collection.documents)
    queries = set(query_ids) - set(collection.queries)
    if documents or queries:
        logger.warning(
            "collection %r lacks the text of %d documents and %d queries that the runs name; they are shown by id only",
            collection.name,
            len(documents),
            len(queries),
        )


def _places(query_id: str, run: Run, other: Run, qrels: Qrels, collection: Collection, shown: int) -> tuple[Place, ...]:
    grades = qrels.get(query_id, {})
    elsewhere = {d: rank for rank, d in enumerate(other.doc_ids(query_id), start=1)}
    return tuple(
        Place(rank, d, beginning(collection.documents.get(d, "")), grades.get(d), elsewhere.get(d))
        for rank, d in enumerate(run.doc_ids(query_id)[:shown], start=1)
    )
