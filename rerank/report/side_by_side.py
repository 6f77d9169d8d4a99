"""Every query under every arm, with the first documents of each: what a page needs to compare any two arms.

Each text is there once, however many queries and arms show it. Where all of it would be too long for a page, the
queries that moved most keep their documents. In `changes.json`:

    {"measure", "before", "after", "arms": [arm], "shown": 10, "documents": [[doc id, text]],
     "queries": [[query id, query, [value under each arm], [[number of the document, grade, rank under each arm]]]]}
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, final

from rerank.errors import InputError, nearest
from rerank.evaluation.measures import Measure, evaluate, parse_measure
from rerank.report.changes import Change, Place, beginning, count_missing_texts, most_moved
from rerank.types import Collection, Qrels, Run

logger = logging.getLogger("rerank.evaluation")

MOST_BYTES = 4_000_000
"""What the documents of all queries may take together, as they are written."""

_PLACES = 6
"""Decimal places of a query's value that are written."""


class Document(NamedTuple):
    """A document that some arm shows for a query."""

    doc_id: str
    grade: int | None
    """None where nobody judged it."""
    ranks: tuple[int | None, ...]
    """Under each arm, counted from 1; None where the arm does not have it."""


class Asked(NamedTuple):
    """One query under every arm."""

    query_id: str
    query: str
    values: tuple[float, ...]
    documents: tuple[Document, ...]
    """Empty where they were left out for their length, or no arm has any."""


@final
@dataclass(frozen=True)
class SideBySide:
    """Every query with the first documents of every arm."""

    measure: str
    before: str
    after: str
    """The two arms that are compared at first."""
    arms: tuple[str, ...]
    shown: int
    """How many documents of each arm are here."""
    queries: tuple[Asked, ...]
    """Those that moved most first."""
    texts: Mapping[str, str]
    """doc id -> the beginning of its text."""

    def largest(self, n: int = 5) -> list[Change]:
        """From `before` to `after`, the up to `n` queries that gained most, then the up to `n` that lost most."""
        old, new = self.arms.index(self.before), self.arms.index(self.after)
        told = {q.query_id: q for q in self.queries if q.documents}
        before, after = ({query_id: q.values[arm] for query_id, q in told.items()} for arm in (old, new))
        return [self._change(told[query_id], old, new) for query_id in most_moved(before, after, n)]

    def within(self, most_bytes: int) -> SideBySide:
        """The same with documents for the first queries alone, as many as `most_bytes` hold."""
        left = most_bytes
        texts: dict[str, str] = {}
        kept: list[Asked] = []
        for asked in self.queries:
            fresh = {d.doc_id: self.texts[d.doc_id] for d in asked.documents if d.doc_id not in texts}
            left -= len(_written([list(fresh.items()), [d[1:] for d in asked.documents]]))
            # What comes later moved less: once one does not fit, no smaller one behind it is let in.
            kept.append(asked if left >= 0 else asked._replace(documents=()))
            texts.update(fresh if left >= 0 else {})
        return replace(self, queries=tuple(kept), texts=texts)

    def size(self) -> int:
        """About how many bytes its documents take, as they are written."""
        return len(_written([*self.texts.items(), *(d[1:] for asked in self.queries for d in asked.documents)]))

    def with_values(self, per_query: Mapping[str, Mapping[str, float]]) -> SideBySide:
        """The same with the values of `per_query` (arm -> query id -> value), and with the queries that it adds."""

        def told(asked: Asked) -> Asked:
            known = zip(self.arms, asked.values, strict=True)
            return asked._replace(values=tuple(per_query.get(a, {}).get(asked.query_id, v) for a, v in known))

        here = {asked.query_id for asked in self.queries}
        ids = dict.fromkeys(q for arm in self.arms for q in per_query.get(arm, {}) if q not in here)
        empty = (0.0,) * len(self.arms)
        added = tuple(told(Asked(query_id, "", empty, ())) for query_id in ids)
        return replace(self, queries=tuple(told(asked) for asked in self.queries) + added)

    def to_json(self) -> dict[str, Any]:
        """What a run folder keeps in `changes.json`, and what the page reads."""
        number = {doc_id: i for i, doc_id in enumerate(self.texts)}
        return {
            "measure": self.measure,
            "before": self.before,
            "after": self.after,
            "arms": list(self.arms),
            "shown": self.shown,
            "documents": [[doc_id, text] for doc_id, text in self.texts.items()],
            "queries": [
                [
                    asked.query_id,
                    asked.query,
                    [round(value, _PLACES) for value in asked.values],
                    [[number[d.doc_id], d.grade, *d.ranks] for d in asked.documents],
                ]
                for asked in self.queries
            ],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> SideBySide | None:
        """What `to_json` wrote; None of what holds no query."""
        if not content:
            return None
        try:
            return _read(content)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise InputError(f"these are not changes written by SideBySide.to_json: {error!r}") from error

    def _change(self, asked: Asked, old: int, new: int) -> Change:
        places = self._places(asked, old, new), self._places(asked, new, old)
        return Change(asked.query_id, asked.query, self.measure, asked.values[old], asked.values[new], *places)

    def _places(self, asked: Asked, arm: int, other: int) -> tuple[Place, ...]:
        found = [
            Place(rank, d.doc_id, self.texts[d.doc_id], d.grade, d.ranks[other])
            for d in asked.documents
            if (rank := d.ranks[arm]) is not None and rank <= self.shown
        ]
        return tuple(sorted(found, key=lambda place: place.rank))


def side_by_side(
    runs: Mapping[str, Run],
    qrels: Qrels,
    collection: Collection,
    measure: str | Measure = "nDCG@10",
    before: str | None = None,
    after: str | None = None,
    shown: int = 10,
    most_bytes: int = MOST_BYTES,
) -> SideBySide:
    """Every judged query under each arm of `runs`; at first, `before` (or the first arm) meets `after` (the last).

    Queries whose documents would make it longer than `most_bytes` keep their values alone, and are counted aloud.
    """
    if not runs or shown < 1:
        raise InputError(f"at least 1 run and 1 document to show are needed; given: {len(runs)} and {shown}")
    arms = tuple(runs)
    before, after = before or arms[0], after or arms[-1]
    for arm in (before, after):
        if arm not in runs:
            raise InputError(f"there is no arm {arm!r} to compare{nearest(arm, arms)}")
    name = str(parse_measure(measure))
    values = [evaluate(run, qrels, [name], aloud=False).per_query[name] for run in runs.values()]
    found = [
        Asked(
            query_id,
            collection.queries.get(query_id, ""),
            tuple(by_query[query_id] for by_query in values),
            _documents([run.doc_ids(query_id) for run in runs.values()], qrels.get(query_id, {}), shown),
        )
        for query_id in values[0]
    ]
    found.sort(key=_moved(arms.index(before), arms.index(after)))
    doc_ids = dict.fromkeys(d.doc_id for asked in found for d in asked.documents)
    count_missing_texts(doc_ids, values[0], collection)
    texts = {doc_id: beginning(collection.documents.get(doc_id, "")) for doc_id in doc_ids}
    whole = SideBySide(name, before, after, arms, shown, tuple(found), texts)
    kept = whole.within(most_bytes)
    if left_out := without_documents(kept) - without_documents(whole):
        said = "of %d queries, the %d that moved least are kept without their documents: all together take more than %d"
        logger.warning(f"{said} bytes", len(found), left_out, most_bytes)
    return kept


def without_documents(told: SideBySide) -> int:
    """How many queries have no documents here."""
    return sum(not asked.documents for asked in told.queries)


def _moved(old: int, new: int) -> Callable[[Asked], tuple[float, float]]:
    """What sorts queries by how far they moved: between the two arms compared at first, then between any two."""
    return lambda asked: (-abs(asked.values[new] - asked.values[old]), min(asked.values) - max(asked.values))


def _documents(rankings: Sequence[tuple[str, ...]], grades: Mapping[str, int], shown: int) -> tuple[Document, ...]:
    ranks = [{doc_id: rank for rank, doc_id in enumerate(ranking, start=1)} for ranking in rankings]
    union = dict.fromkeys(doc_id for ranking in rankings for doc_id in ranking[:shown])
    return tuple(Document(d, grades.get(d), tuple(by_doc.get(d) for by_doc in ranks)) for d in union)


def _read(content: Mapping[str, Any]) -> SideBySide | None:
    documents = [(str(doc_id), str(text)) for doc_id, text in content["documents"]]
    arms = tuple(str(arm) for arm in content["arms"])
    queries = tuple(_asked(told, documents, len(arms)) for told in content["queries"])
    before, after = str(content["before"]), str(content["after"])
    if not {before, after} <= set(arms):
        raise ValueError(f"{before!r} and {after!r} are not both among the arms {arms}")
    shown = int(content["shown"])
    return (
        SideBySide(str(content["measure"]), before, after, arms, shown, queries, dict(documents)) if queries else None
    )


def _asked(told: Sequence[Any], documents: Sequence[tuple[str, str]], arms: int) -> Asked:
    query_id, query, values, found = told
    read = tuple(
        Document(documents[number][0], None if grade is None else int(grade), tuple(r and int(r) for r in ranks))
        for number, grade, *ranks in found
    )
    if {len(values), *(len(d.ranks) for d in read)} != {arms}:
        raise ValueError(f"query {query_id!r} has not one value and one rank for each of {arms} arms")
    return Asked(str(query_id), str(query), tuple(float(v) for v in values), read)


def _written(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", errors="backslashreplace")
