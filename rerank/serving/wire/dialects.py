"""The dialects of rerank endpoints: which path speaks which, what a body asks in it, how its answer is written.

    dialect    path                            request                                answer
    cohere     /rerank /v1/rerank /v2/rerank   query documents top_n                  results, best first
    tei        /rerank /tei/rerank             query texts                            a bare list, best first
    infinity   /infinity/rerank                query documents top_n                  results; documents as plain texts
    voyage     /voyage/v1/rerank               query documents top_k                  data, best first
    weaviate   /weaviate/rerank                query documents (or property)          scores: logits in the order given
    score      /score /v1/score                text_1 text_2 (and three more names)   data, in the order given

The first one is that of Cohere v1 and v2, Jina and vLLM, whose answers are parts of one. At the bare /rerank, TEI's
requests are told by their `texts`. Infinity's clients want a document as a text and vLLM's as an object, in answer to
equal requests: so Infinity has its own path, and /rerank speaks vLLM's.

Documents come back where `return_documents` says so. Left out, it is true at /rerank and /v1/rerank, as vLLM and Jina
have it (no client of Cohere v1 or Infinity that leaves it out minds), and false at /v2/rerank and elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias, final

from pydantic import BaseModel

from rerank.serving.asking import Answer, Question, Refusal
from rerank.serving.wire import answers as written
from rerank.serving.wire.bodies import named
from rerank.serving.wire.fields import TOLD, Place
from rerank.serving.wire.schemas import (
    PAIRS,
    InfinityRequest,
    RerankRequest,
    ScoreRequest,
    TeiRequest,
    VoyageRequest,
    WeaviateRequest,
    ignored,
    read,
    refused,
)

MOST = 2**31 - 1
"""Above this a number of tokens is as good as none."""


class Asked(NamedTuple):
    """What a request asks, and how its answers are written."""

    questions: tuple[Question, ...]
    """At least one, all of the same model; /score may ask several, whose texts are together the request's documents."""
    write: Callable[[Sequence[Answer]], Any]
    """The JSON body of the response, from an answer for each question."""


Body: TypeAlias = Mapping[str, Any]


@final
@dataclass(frozen=True)
class Dialect:
    """How a kind of server is asked, and how it answers."""

    name: str
    paths: Mapping[str, str]
    """Path -> a line on it."""
    request: type[BaseModel]
    response: Any
    """The type of what `Asked.write` gives."""
    read: Callable[[Body, str], Asked]
    """A body and its path -> what it asks."""


def asked(path: str, body: Body) -> Asked:
    """The questions of a request to a path of `ROUTES`, and how to write their answers; Refusal where it has none."""
    dialect = dialect_of(path, body)
    found = dialect.read(body, path)
    warnings = ignored(dialect.request, body)
    if not warnings:
        return found
    # Said once, though a request may ask many questions.
    first = replace(found.questions[0], warnings=(*found.questions[0].warnings, *warnings))
    return found._replace(questions=(first, *found.questions[1:]))


def dialect_of(path: str, body: Body) -> Dialect:
    """The dialect of a request; at /rerank it is TEI's where it has `texts`."""
    given = {name for name in ("texts", "documents") if body.get(name) is not None}
    if path == "/rerank" and "texts" in given:
        if "documents" in given:
            raise Refusal(422, "texts and documents: give one of them; texts are TEI's, documents everybody else's")
        return TEI
    if path not in _BY_PATH:
        raise Refusal(404, f"nothing is answered at {named(path)}; at {', '.join(ROUTES)} something is")
    return _BY_PATH[path]


def _ranked(body: Body, path: str) -> Asked:
    request = read(RerankRequest, body)
    if request.top_n == 0 and path != "/rerank":
        raise Refusal(422, "top_n: must be a whole number of at least 1 (leave it out for all), not the number 0")
    texts = _texts_of(request.documents, request.rank_fields or ())
    raw = bool(request.raw_scores) or request.use_activation is False
    tokens = min(request.max_tokens_per_doc, MOST) if request.max_tokens_per_doc else None
    question = replace(_question(request, texts, request.top_n or None), raw=raw, max_tokens=tokens)
    wanted = path != "/v2/rerank" if request.return_documents is None else request.return_documents
    documents = request.documents if wanted else None
    version = "1" if path == "/v1/rerank" else "2"
    return Asked((question,), lambda answers: written.ranking(answers[0], documents, version))


def _tei(body: Body, path: str) -> Asked:
    request = read(TeiRequest, body)
    question = replace(_question(request, request.texts, request.top_n), truncate=request.truncate is not False)
    return Asked((question,), lambda answers: written.tei_rows(answers[0], bool(request.return_text)))


def _infinity(body: Body, path: str) -> Asked:
    request = read(InfinityRequest, body)
    question = _question(request, request.documents, request.top_n)
    return Asked((question,), lambda answers: written.infinity_ranking(answers[0], bool(request.return_documents)))


def _voyage(body: Body, path: str) -> Asked:
    request = read(VoyageRequest, body)
    question = replace(_question(request, request.documents, request.top_k), truncate=request.truncation is not False)
    return Asked((question,), lambda answers: written.voyage_ranking(answers[0], bool(request.return_documents)))


def _weaviate(body: Body, path: str) -> Asked:
    request = read(WeaviateRequest, body)
    query, documents = request.query, request.documents
    if documents is not None and request.property is not None:
        raise Refusal(422, "documents and property: give one of them")
    if documents is not None:
        question = Question(query, tuple(documents), raw=True)
        return Asked((question,), lambda answers: written.document_scores(answers[0], query))
    if request.property is None:
        raise Refusal(422, "documents: is missing; give a list of texts, or property with one text")
    question = Question(query, (request.property,), raw=True)
    return Asked((question,), lambda answers: written.property_score(answers[0], query))


def _scored(body: Body, path: str) -> Asked:
    """The questions of pairs: one for all texts of a query (1:1, 1:N), or one for each pair (N:N)."""
    request = read(ScoreRequest, body)
    left, right = _sides(request)
    firsts, seconds = getattr(request, left), getattr(request, right)
    firsts = [firsts] if isinstance(firsts, str) else firsts
    seconds = [seconds] if isinstance(seconds, str) else seconds
    if len(firsts) not in (1, len(seconds)) or not firsts:
        counts = f"{left} has {len(firsts)} and {right} {len(seconds)}"
        raise Refusal(422, f"{left}: must be one text, or as many as {right}; {counts}")
    one = isinstance(getattr(request, left), str)
    blank: list[tuple[Place, str]] = [
        ((left,) if one else (left, i), "must have words, not be empty or blank")
        for i, query in enumerate(firsts)
        if not query.strip()
    ]
    if blank:
        raise refused(blank)
    raw = bool(request.raw_scores) or request.use_activation is False
    lists = [(firsts[0], seconds)] if len(firsts) == 1 else [(a, [b]) for a, b in zip(firsts, seconds, strict=True)]
    questions = tuple(Question(query, tuple(texts), request.model, raw=raw) for query, texts in lists)
    return Asked(questions, written.scores)


def _sides(request: ScoreRequest) -> tuple[str, str]:
    """The names of the two sides that a request has; Refusal where it has none, half or two of them."""
    given = {name for pair in PAIRS for name in pair if getattr(request, name) is not None}
    found = [pair for pair in PAIRS if given == set(pair)]
    if len(found) == 1:
        return found[0]
    allowed = ", ".join(f"{left} with {right}" for left, right in PAIRS)
    said = ", ".join(sorted(given)) or "none of them"
    raise Refusal(422, f"the two sides of the pairs: give {allowed}; the body has {said}")


def _question(request: Any, texts: Sequence[str], wanted: int | None) -> Question:
    """The question of a request of any ranking dialect, by the fields that all of them have."""
    n = len(texts)
    stages: Mapping[str, tuple[float, ...]] | None = request.first_stage
    uneven: list[tuple[Place, str]] = [
        (("first_stage", name), f"must have a score for each of the {n} documents, and has {len(scores)}")
        for name, scores in (stages or {}).items()
        if len(scores) != n
    ]
    if uneven:
        raise refused(uneven)
    return Question(
        request.query,
        tuple(texts),
        request.model,
        top_n=None if wanted is None or wanted >= n else wanted,
        raw=bool(request.raw_scores),
        min_probability=request.min_probability,
        first_stage=stages or None,
    )


def _texts_of(documents: Sequence[str | dict[str, Any]], fields: Sequence[str]) -> list[str]:
    """What is read of each document: it itself, its text, or the lines of the `fields` named."""
    places = {} if list(fields) == ["text"] else {name: place for place, name in enumerate(dict.fromkeys(fields))}
    texts: list[str] = []
    problems: list[tuple[Place, str]] = []
    for i, document in enumerate(documents):
        text, problem = _text_of(document, places)
        texts.append(text)
        if problem:
            problems.append((("documents", i), problem))
        if len(problems) > TOLD:
            break
    if problems:
        raise refused(problems[:TOLD])
    return texts


def _text_of(document: str | dict[str, Any], places: Mapping[str, int]) -> tuple[str, str]:
    """(text, what is wrong) of a document, of which the fields in `places` are read where there are any.

    One that it lacks is left out, but not all of them.
    """
    if isinstance(document, str):
        return document, ""
    if places:
        # Of the fields and the document's keys the fewer are walked through: many of both would take minutes.
        own = sorted(places.keys() & document.keys(), key=places.__getitem__)
        lines = {name: document[name] for name in own if document[name] is not None}
        odd = [
            name for name, value in lines.items() if isinstance(value, bool) or not isinstance(value, str | int | float)
        ]
        if odd:
            return "", f"its {named(odd[0])} must be a text or a number, not {named(lines[odd[0]])}"
        if lines:
            return "\n".join(f"{name}: {value}" for name, value in lines.items()), ""
        return "", f"must have one of the rank_fields at least: {', '.join(map(named, list(places)[:TOLD]))}"
    if "text" not in document:
        return "", "must be a text or an object with 'text', not an object without it"
    if not isinstance(document["text"], str):
        return "", f"its 'text' must be a text, not {named(document['text'])}"
    return document["text"], ""


COHERE = Dialect(
    "cohere",
    MappingProxyType(
        {
            "/rerank": "Rank documents for a query: vLLM, Jina and Cohere; with texts instead of documents, TEI",
            "/v1/rerank": "Rank documents for a query: Cohere v1, Jina, vLLM",
            "/v2/rerank": "Rank documents for a query: Cohere v2",
        }
    ),
    RerankRequest,
    written.Ranking,
    _ranked,
)
TEI = Dialect(
    "tei",
    MappingProxyType({"/tei/rerank": "Rank texts for a query: TEI (text-embeddings-inference)"}),
    TeiRequest,
    list[written.TeiRow],
    _tei,
)
INFINITY = Dialect(
    "infinity",
    MappingProxyType(
        dict.fromkeys(("/infinity/rerank", "/infinity/v1/rerank"), "Rank documents for a query: Infinity")
    ),
    InfinityRequest,
    written.InfinityRanking,
    _infinity,
)
VOYAGE = Dialect(
    "voyage",
    MappingProxyType(dict.fromkeys(("/voyage/v1/rerank", "/voyage/rerank"), "Rank documents for a query: Voyage")),
    VoyageRequest,
    written.VoyageRanking,
    _voyage,
)
WEAVIATE = Dialect(
    "weaviate",
    MappingProxyType({"/weaviate/rerank": "Score documents for a query, in their order: Weaviate's reranker module"}),
    WeaviateRequest,
    written.DocumentScores | written.PropertyScore,
    _weaviate,
)
SCORE = Dialect(
    "score",
    MappingProxyType(dict.fromkeys(("/score", "/v1/score"), "Score pairs of texts, in their order: vLLM")),
    ScoreRequest,
    written.Scores,
    _scored,
)

DIALECTS = (COHERE, TEI, INFINITY, VOYAGE, WEAVIATE, SCORE)
ROUTES: Mapping[str, str] = MappingProxyType({path: line for one in DIALECTS for path, line in one.paths.items()})
"""Every path that is served with POST -> a line on it."""
_BY_PATH = {path: one for one in DIALECTS for path in one.paths}
