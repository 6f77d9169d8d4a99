"""The queries that a change helped and hurt most, with what the reader would have seen before and after."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
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
    # Python's sort is stable: queries that changed alike stay in the order of the judgements.
    by_gain = sorted(old, key=lambda q: old[q] - new[q])
    gained = [q for q in by_gain[:n] if new[q] > old[q]]
    lost = [q for q in reversed(by_gain[-n:]) if new[q] < old[q]]
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
        for query_id in [*gained, *lost]
    ]
    _count_missing_texts(changes, collection)
    return changes


def changes_json(changes: Sequence[Change], before: str, after: str) -> dict[str, Any]:
    """What a run folder keeps in `changes.json`; `before` and `after` are the names of the two arms."""
    return {"before": before, "after": after, "changes": [asdict(change) for change in changes]}


def changes_from_json(content: Mapping[str, Any]) -> list[Change]:
    """The changes that `changes_json` wrote; none of an empty mapping."""
    try:
        return [
            Change(**{**change, **{side: tuple(Place(**p) for p in change[side]) for side in ("before", "after")}})
            for change in content.get("changes", [])
        ]
    except (KeyError, TypeError) as error:
        raise InputError(f"these are not changes written by changes_json: {error!r}") from error


def _places(query_id: str, run: Run, other: Run, qrels: Qrels, collection: Collection, shown: int) -> tuple[Place, ...]:
    grades = qrels.get(query_id, {})
    elsewhere = {d: rank for rank, d in enumerate(other.doc_ids(query_id), start=1)}
    return tuple(
        Place(rank, d, _cut(collection.documents.get(d, "")), grades.get(d), elsewhere.get(d))
        for rank, d in enumerate(run.doc_ids(query_id)[:shown], start=1)
    )


def _cut(text: str) -> str:
    """The beginning of the text, with an ellipsis where something is left out."""
    return text if len(text) <= TEXT_LENGTH else text[: TEXT_LENGTH - 1].rstrip() + "…"


def _count_missing_texts(changes: Sequence[Change], collection: Collection) -> None:
    documents = {p.doc_id for c in changes for p in (*c.before, *c.after)} - set(collection.documents)
    queries = {c.query_id for c in changes} - set(collection.queries)
    if documents or queries:
        logger.warning(
            "collection %r lacks the text of %d documents and %d queries that the runs name; they are shown by id only",
            collection.name,
            len(documents),
            len(queries),
        )
