"""What is shown for one query: columns of rows, and the same as JSON, each document once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, final

from rerank.explore.why import marked, terms_of
from rerank.types import CandidateList

TYPED = "typed"
"""The id of a query that is none of the test set's."""
TEXT_LENGTH = 4000
"""Characters of a document that are shown."""


@final
@dataclass(frozen=True)
class Row:
    """One document in one column."""

    doc_id: str
    rank: int
    score: float | None
    """None below the depth to which the model reranks."""
    moved: int
    """Places above the first stage's."""
    reason: str
    parts: Mapping[str, float] = field(default_factory=dict)
    """Part -> its share of the score; they sum to it."""
    lifts: Mapping[str, float] = field(default_factory=dict)
    """Part -> by how much it lifts the document above the mean of the list."""


class Column(NamedTuple):
    """One ranking of the candidates."""

    name: str
    rows: list[Row]
    value: float | None
    """What the run's first measure says of it; None where nobody judged the query."""


class Answer(NamedTuple):
    """What is shown for one query."""

    candidates: CandidateList | None
    """None where the first stage finds nothing."""
    columns: list[Column]


def answer_json(answer: Answer, grades: Mapping[str, int], language: str) -> dict[str, Any]:
    """The answer as JSON, with the words of the query marked in the texts; `grades` are those of its judged documents.

    `pieces` of a text: every second one is a word of the query.
    """
    candidates = answer.candidates
    if candidates is None:
        return {"query_id": None, "judged": False, "documents": {}, "columns": []}
    terms = terms_of(candidates.query, language)
    documents = {
        doc_id: {
            "pieces": marked(text[:TEXT_LENGTH], terms, language),
            "length": len(text),
            "cut": len(text) > TEXT_LENGTH,
            "grade": grades.get(doc_id),
        }
        for doc_id, text in zip(candidates.doc_ids, candidates.texts, strict=True)
    }
    return {
        "query_id": None if candidates.query_id == TYPED else candidates.query_id,
        "judged": bool(grades),
        "documents": documents,
        "columns": [
            {"name": column.name, "value": column.value, "rows": [asdict(row) for row in column.rows]}
            for column in answer.columns
        ],
    }


def stretches_json(cut: Sequence[tuple[str, float]], query: str, language: str, length: int) -> dict[str, Any]:
    """Stretches with their weights as JSON, with the words of the query marked; `length` is that of the whole text."""
    terms = terms_of(query, language)
    read = sum(len(text) for text, _ in cut)
    return {
        "stretches": [{"pieces": marked(text, terms, language), "weight": weight} for text, weight in cut],
        "cut": read < length,
        "read": read,
    }
