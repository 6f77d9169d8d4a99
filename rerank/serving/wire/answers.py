"""What each dialect answers: the shape of its JSON, and how answers are written in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from typing_extensions import NotRequired, TypedDict

from rerank.serving.asking import Answer, Hit


class ReturnedDocument(TypedDict):
    """The document of a result: as it was given where that was an object."""

    text: str


class Result(TypedDict):
    """One document of a ranking."""

    index: int
    relevance_score: float
    document: NotRequired[ReturnedDocument]


class ApiVersion(TypedDict):
    """Which Cohere API this looks like."""

    version: str


class BilledUnits(TypedDict):
    """One search; nothing is billed."""

    search_units: int


class Tokens(TypedDict):
    """What the model read."""

    input_tokens: int


class Meta(TypedDict):
    """Cohere's word on the request."""

    api_version: ApiVersion
    billed_units: BilledUnits
    tokens: Tokens
    warnings: list[str]


class Usage(TypedDict):
    """What the model read."""

    prompt_tokens: int
    total_tokens: int


class Ranking(TypedDict):
    """Best first; Cohere v1 and v2, Jina and vLLM each find their fields in it."""

    id: str
    object: str
    model: str
    created: int
    results: list[Result]
    meta: Meta
    usage: Usage


class TeiRow(TypedDict):
    """One text of TEI's bare list."""

    index: int
    score: float
    text: NotRequired[str]


class PlainResult(TypedDict):
    """One document of a ranking, its text as it is."""

    index: int
    relevance_score: float
    document: NotRequired[str]


class InfinityRanking(TypedDict):
    """Best first."""

    id: str
    object: str
    model: str
    created: int
    results: list[PlainResult]
    usage: Usage


class VoyageRanking(TypedDict):
    """Best first."""

    object: str
    data: list[PlainResult]
    model: str
    usage: Usage


class DocumentScore(TypedDict):
    """One document with its logit."""

    document: str
    score: float


class DocumentScores(TypedDict):
    """In the order of the documents."""

    query: str
    scores: list[DocumentScore]


class PropertyScore(TypedDict):
    """The logit of one text."""

    query: str
    property: str
    score: float


class ScoreRow(TypedDict):
    """The score of one pair."""

    index: int
    object: str
    score: float


class Scores(TypedDict):
    """In the order of the pairs."""

    id: str
    object: str
    created: int
    model: str
    data: list[ScoreRow]
    usage: Usage


def ranking(answer: Answer, documents: Sequence[str | dict[str, Any]] | None, version: str) -> Ranking:
    """The answer that Cohere, Jina and vLLM share; with the `documents` of the request where they are wanted."""
    results: list[Result] = []
    for hit in answer.hits:
        result: Result = {"index": hit.index, "relevance_score": hit.score}
        if documents is not None:
            result["document"] = _returned(documents[hit.index], hit)
        results.append(result)
    meta: Meta = {
        "api_version": {"version": version},
        "billed_units": {"search_units": 1},
        "tokens": {"input_tokens": answer.tokens},
        "warnings": list(answer.warnings),
    }
    return {
        "id": answer.request_id,
        "object": "rerank",
        "model": answer.model,
        "created": answer.created,
        "results": results,
        "meta": meta,
        "usage": _usage([answer]),
    }


def tei_rows(answer: Answer, texts: bool) -> list[TeiRow]:
    """TEI's bare list, best first; each row with its text where `texts` are wanted."""
    rows: list[TeiRow] = []
    for hit in answer.hits:
        row: TeiRow = {"index": hit.index, "score": hit.score}
        if texts:
            row["text"] = hit.text
        rows.append(row)
    return rows


def infinity_ranking(answer: Answer, documents: bool) -> InfinityRanking:
    """Infinity's answer, best first; a document is a plain text."""
    return {
        "id": answer.request_id,
        "object": "rerank",
        "model": answer.model,
        "created": answer.created,
        "results": _plain(answer, documents),
        "usage": _usage([answer]),
    }


def voyage_ranking(answer: Answer, documents: bool) -> VoyageRanking:
    """Voyage's answer, best first; a document is a plain text."""
    rows = _plain(answer, documents)
    return {"object": "list", "data": rows, "model": answer.model, "usage": _usage([answer])}


def document_scores(answer: Answer, query: str) -> DocumentScores:
    """Weaviate's answer: the documents with their scores, in the order in which they came."""
    rows: list[DocumentScore] = [{"document": hit.text, "score": hit.score} for hit in _as_given(answer)]
    return {"query": query, "scores": rows}


def property_score(answer: Answer, query: str) -> PropertyScore:
    """Weaviate's answer for one text."""
    [hit] = answer.hits
    return {"query": query, "property": hit.text, "score": hit.score}


def scores(answers: Sequence[Answer]) -> Scores:
    """vLLM's answer of /score: a row for each pair, in the order of the pairs."""
    found = [hit.score for answer in answers for hit in _as_given(answer)]
    return {
        "id": answers[0].request_id,
        "object": "list",
        "created": answers[0].created,
        "model": answers[0].model,
        "data": [{"index": i, "object": "score", "score": score} for i, score in enumerate(found)],
        "usage": _usage(answers),
    }


def _returned(document: str | dict[str, Any], hit: Hit) -> ReturnedDocument:
    """A document as an object with a text, other fields of its own kept."""
    if isinstance(document, str):
        return {"text": hit.text}
    own: Any = document if isinstance(document.get("text"), str) else {**document, "text": hit.text}
    return own


def _plain(answer: Answer, documents: bool) -> list[PlainResult]:
    rows: list[PlainResult] = []
    for hit in answer.hits:
        row: PlainResult = {"index": hit.index, "relevance_score": hit.score}
        if documents:
            row["document"] = hit.text
        rows.append(row)
    return rows


def _as_given(answer: Answer) -> list[Hit]:
    return sorted(answer.hits, key=lambda hit: hit.index)


def _usage(answers: Sequence[Answer]) -> Usage:
    tokens = sum(answer.tokens for answer in answers)
    return {"prompt_tokens": tokens, "total_tokens": tokens}
