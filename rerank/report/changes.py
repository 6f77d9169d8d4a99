"""A query that a change helped or hurt, with what the reader would have seen before and after."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import final

from rerank.types import Collection

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


def most_moved(old: Mapping[str, float], new: Mapping[str, float], n: int) -> list[str]:
    """The up to `n` queries whose value grew most, most first, then the up to `n` whose value fell most, likewise."""
    # Python's sort is stable: queries that changed alike stay in the order in which they were given.
    by_gain = sorted(old, key=lambda q: old[q] - new[q])
    gained = [q for q in by_gain[:n] if new[q] > old[q]]
    return gained + [q for q in reversed(by_gain[-n:]) if new[q] < old[q]]


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
