"""How rerank endpoints are spoken to: what is asked, what is answered, and what is wrong with an answer. Pure.

    dialect     request                                  response                                       who speaks it
    cohere      model query documents top_n              results: [{index, relevance_score}]            the default
    tei         query texts raw_scores truncate          [{index, score}]                               TEI
    voyage      model query documents top_k              data: [{index, relevance_score}]               Voyage
    weaviate    query documents                          scores: [{document, score}], in their order    Weaviate
    vllm-score  model text_1 text_2                      data: [{index, score}]                         vLLM, at /score

Cohere's own shape (v1 and v2) is that of Jina, vLLM, Infinity, OpenRouter, OpenVINO and many others too.

An answer is taken whole or not at all: a document that is left out, comes twice or has no finite score is an error,
never a silent zero.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, final
from urllib.parse import unquote, urlsplit

from rerank.errors import InputError, nearest
from rerank.http import check_url

LARGEST = (2.0 - 2.0**-23) * 2.0**127
"""The largest float32, in which a run is written."""
NAMED = 5
"""Documents that an error names, at most."""


@final
@dataclass(frozen=True)
class Dialect:
    """How a kind of server is asked, and how it answers."""

    documents: str
    """The field of the request that holds the texts."""
    query: str = "query"
    count: str | None = None
    """The field that says of how many documents a score is wanted."""
    model: bool = True
    """Whether the request names a model."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the request."""
    rows: str | None = None
    """The field of the answer that holds a row for each document; None: the answer is those rows."""
    score: str = "score"
    index: str | None = "index"
    """The field of a row that says which document it is about; None: the rows are in the order of the documents."""
    path: str = "rerank"
    """What the path of the url ends with, where the url stops before it."""
    at_once: int = 1000
    """Documents that a server takes in one request."""
    apart: bool = False
    """Whether the score of a document is known not to depend on the others of its request."""

    def request(self, query: str, texts: Sequence[str], model: str | None, extra: Mapping[str, Any]) -> dict[str, Any]:
        """The body of a request; `extra` fields take the place of those that the dialect adds by itself."""
        body = {self.query: query, self.documents: list(texts), **self.more, **extra}
        if self.count:
            body[self.count] = len(texts)
        if self.model and model:
            body["model"] = model
        return body

    @property
    def taken(self) -> set[str]:
        """The fields of a request that are not open to `extra`."""
        return {"model", self.query, self.documents, *([self.count] if self.count else [])}


DIALECTS: Mapping[str, Dialect] = MappingProxyType(
    {
        "cohere": Dialect("documents", count="top_n", rows="results", score="relevance_score"),
        "tei": Dialect("texts", model=False, more={"raw_scores": True, "truncate": True}, at_once=32, apart=True),
        "voyage": Dialect("documents", count="top_k", rows="data", score="relevance_score"),
        "weaviate": Dialect("documents", model=False, rows="scores", index=None),
        "vllm-score": Dialect("text_2", query="text_1", rows="data", path="score", apart=True),
    }
)


@final
class Address(NamedTuple):
    """Where an endpoint is, and how it is spoken to."""

    dialect: str
    url: str
    """With its whole path."""
    model: str | None


def address_of(url: str, model: str | None = None) -> Address:
    """What an url with a dialect before it and a model behind it says; InputError where it says nothing allowed.

    >>> address_of("tei+http://localhost:8080")
    Address(dialect='tei', url='http://localhost:8080/rerank', model=None)
    >>> address_of("http://localhost:8000/v1/score#BAAI/bge-reranker-base")
    Address(dialect='vllm-score', url='http://localhost:8000/v1/score', model='BAAI/bge-reranker-base')
    """
    before = re.match(r"([a-z0-9_.-]+)\+(?=https?:)", url, re.IGNORECASE)
    name, plain = (before[1].lower(), url[before.end() :]) if before else ("", url)
    plain, _, behind = plain.partition("#")
    check_url(plain, "the key is read from the environment")
    if behind and model and unquote(behind) != model:
        raise InputError(f"the url names the model {unquote(behind)!r}, and model is {model!r}: give one of them")
    model = model or unquote(behind) or None
    plain = plain.rstrip("/")
    path = urlsplit(plain).path
    name = name or ("vllm-score" if path.endswith("/score") else "cohere")
    if name not in DIALECTS:
        raise InputError(f"{name!r} before the url is no dialect{nearest(name, DIALECTS)}")
    if model and not DIALECTS[name].model:
        raise InputError(f"model = {model!r}: a server of the dialect {name!r} has one model, and is told of none")
    if re.fullmatch(r"(/.*)?/v[0-9]+|", path):
        plain = f"{plain}/{DIALECTS[name].path}"
    return Address(name, plain, model)


def scores_in(answer: Any, texts: Sequence[str], dialect: Dialect) -> list[float]:
    """The score of each text in an answer; ValueError says what is wrong with it ("names document 3 twice")."""
    rows = _rows(answer, dialect)
    if not isinstance(rows, list):
        raise ValueError(f"{f'has no list {dialect.rows!r}' if dialect.rows else 'is no list'}{_looks_like(answer)}")
    scores: list[float | None] = [None] * len(texts)
    for row_number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"holds {_shown(row)} where a row with {dialect.score!r} should be")
        i = row_number if dialect.index is None else row.get(dialect.index)
        if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < len(texts):
            raise ValueError(f"names document {_shown(i)}, and the documents are 0 to {len(texts) - 1}")
        if scores[i] is not None:
            raise ValueError(f"names document {i} twice")
        if dialect.index is None and not _alike(row.get("document", texts[i]), texts[i]):
            raise ValueError(f"is not in the order of the documents: its row {i} is about another one")
        if dialect.score not in row:
            raise ValueError(f"has no {dialect.score!r} for document {i}{_looks_like(answer)}")
        scores[i] = _number(row[dialect.score], i, dialect.score)
    missing = [i for i, score in enumerate(scores) if score is None]
    if missing:
        raise ValueError(f"leaves out {named(missing)} of the {len(texts)} that were sent")
    return [score for score in scores if score is not None]


def _rows(answer: Any, dialect: Dialect) -> Any:
    """What stands where the rows of an answer do, whatever it is."""
    if dialect.rows is None:
        return answer
    return answer.get(dialect.rows) if isinstance(answer, dict) else None


def _number(value: Any, document: int, name: str) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST
    if not number:  # not a number, infinite, or too large for the file that it would be kept in
        raise ValueError(f"has {name} = {_shown(value)} for document {document}: no finite number that float32 holds")
    return float(value)


def _alike(said: Any, sent: str) -> bool:
    """Whether a server that repeats a document means this one; spaces may have been changed."""
    return isinstance(said, str) and said.split() == sent.split()


def _shown(value: Any) -> str:
    return reprlib.repr(value)  # it may be long or deep


def named(documents: Sequence[int]) -> str:
    """Some documents by number, and how many more."""
    shown = ", ".join(map(str, documents[:NAMED]))
    more = f" and {len(documents) - NAMED} more" if len(documents) > NAMED else ""
    return f"document{'s' if len(documents) > 1 else ''} {shown}{more}"


def _looks_like(answer: Any) -> str:
    """Which dialects an answer looks like, as advice; nothing where it looks like none."""
    alike = []
    for name, dialect in DIALECTS.items():
        rows = _rows(answer, dialect)
        if isinstance(rows, list) and all(isinstance(row, dict) and dialect.score in row for row in rows[:1]):
            alike.append(name)
    return f"; it looks like the dialect {' or '.join(alike)}: write that before the url, and a +" if alike else ""


def normalised(parts: Sequence[Sequence[float]]) -> bool:
    """Whether the scores of each part look as if made comparable within it alone: they sum to 1, or span 0 to 1."""
    summed = all(abs(math.fsum(part) - 1.0) < 1e-3 and min(part) >= 0.0 for part in parts)
    wide = [part for part in parts if len(part) > 2]
    return summed or (len(wide) > 1 and all(min(part) == 0.0 and max(part) == 1.0 for part in wide))
