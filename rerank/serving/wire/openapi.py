"""The description of the server as an OpenAPI 3.1 document: every path with its schemas, an example and its refusals.

Requests are described by the models that read them, responses by the types that are written; the examples are asked and
answered by the same code as real requests are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from pydantic import TypeAdapter

from rerank.serving.asking import Answer, Hit, Refusal
from rerank.serving.wire.dialects import COHERE, DIALECTS, TEI, Dialect, asked

OPEN = {
    "/": "A page to try the model on",
    "/docs": "This document as a page",
    "/openapi.json": "This document",
    "/health": "Whether a question would be answered now: 200 or 503 (also /ready, /tei/health, /infinity/health)",
    "/live": "Whether the server runs",
    "/info": "The model, its limits and versions, as TEI tells them (also /tei/info)",
    "/v1/models": "The models as OpenAI lists them, each with the first-stage scores it wants (also /models)",
    "/metrics": "Counters and times for Prometheus",
    "/meta": "The model, as Weaviate asks for it",
    "/.well-known/ready": "204 where the server is ready, as Weaviate asks for it",
    "/.well-known/live": "204 where the server runs, as Weaviate asks for it",
}
"""What is answered with GET -> a line on it."""

REFUSALS = {
    400: "The body is no JSON object: broken, not UTF-8, nested too deep, a key twice, a number that is not finite.",
    401: "The key is missing or wrong.",
    403: "A page of another site asked for this in a browser.",
    404: "There is no model of this name; the message names those there are.",
    408: "The body did not arrive in time.",
    413: "The body, a text, or the number of documents or tokens is above a limit; the message names it.",
    415: "The content type is not application/json, or the content encoding is not identity, gzip or deflate.",
    421: "The Host is none of this machine's names, where no key is asked for: other sites could lead a browser here.",
    422: "A field is missing or not allowed; the message names each with its place.",
    429: "Too many documents, or bytes of bodies, wait; Retry-After says when to ask again.",
    503: "The model is being loaded, the server is ending or its memory is full; Retry-After says when to ask again.",
    504: "The answer would come too late.",
}
"""Status -> when it is answered."""

ABOUT = (
    "A reranker behind the interfaces of Cohere, Jina, vLLM, TEI, Voyage, Infinity and Weaviate. Scores are from 0 to "
    "1 (calibrated probabilities where the model is calibrated), or logits where raw_scores is true; results come best "
    "first, by logit, and equal ones in the order of the documents. Fields that are not known are ignored with a "
    "warning. An error has one body with the field of every client.\n\n"
    "A model that was trained with the scores of its first stage ranks better with them: `/v1/models` lists their "
    "names, and a request gives all of them in `first_stage`, each with a number (or null) for every document."
)
QUERY = "who wrote Faust"
DOCUMENTS = ("The Rhine is a river in Europe.", "Faust is a play by Goethe.")
SCORES = (0.013, 0.982)
LOGITS = (-4.33, 4.0)
MODEL = "reranker"
CREATED = 1_767_225_600
REFERENCE = "#/components/schemas/{model}"


def openapi() -> dict[str, Any]:
    """The OpenAPI document of `rerank serve`."""
    kinds = _kinds()
    schemas, definitions = TypeAdapter.json_schemas(
        [(name, "serialization" if name.startswith("answer") else "validation", kind) for name, kind in kinds.items()],
        ref_template=REFERENCE,
    )
    named = {name: schemas[(name, mode)] for name, mode in schemas}
    posted = {path: _post(dialect, path, line, named) for dialect in DIALECTS for path, line in dialect.paths.items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "rerank", "version": version("rerank"), "description": ABOUT},
        "paths": {**posted, **{path: _get(line) for path, line in OPEN.items()}},
        "components": {
            "schemas": {**definitions["$defs"], "Refusal": _refusal_schema()},
            "responses": {f"Refusal{status}": _refused(status, line) for status, line in REFUSALS.items()},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def examples(dialect: Dialect) -> tuple[dict[str, Any], Any]:
    """(request, response) of a dialect: a real answer to a question that it can read."""
    path, body = next(iter(dialect.paths)), _example(dialect)
    found = asked("/tei/rerank" if dialect is TEI else path, body)
    answers = []
    for question in found.questions:
        scores = LOGITS if question.raw else SCORES
        hits = [Hit(i, scores[i], text) for i, text in enumerate(question.texts)]
        best = sorted(hits, key=lambda hit: -hit.score)[: question.top_n]
        answers.append(Answer(MODEL, tuple(best), 24, "2f1c6a", CREATED))
    return body, found.write(answers)


def _example(dialect: Dialect) -> dict[str, Any]:
    documents = list(DOCUMENTS)
    if dialect.name == "score":
        return {"text_1": QUERY, "text_2": documents}
    own: Mapping[str, dict[str, Any]] = {
        "cohere": {"documents": documents, "top_n": 2, "return_documents": True},
        "tei": {"texts": documents, "return_text": True},
        "infinity": {"documents": documents, "return_documents": True},
        "voyage": {"documents": documents, "top_k": 2},
        "weaviate": {"documents": documents},
    }
    return {"query": QUERY, **own[dialect.name]}


def _kinds() -> dict[str, TypeAdapter[Any]]:
    """Each request and answer by a name."""
    requests = {f"request {dialect.name}": TypeAdapter(dialect.request) for dialect in DIALECTS}
    return {**requests, **{f"answer {dialect.name}": TypeAdapter(dialect.response) for dialect in DIALECTS}}


def _post(dialect: Dialect, path: str, line: str, named: Mapping[str, Any]) -> dict[str, Any]:
    """The path item of a path that ranks; the bare /rerank speaks two dialects."""
    spoken = (COHERE, TEI) if path == "/rerank" else (dialect,)
    pairs = {one.name: examples(one) for one in spoken}
    asking = {name: {"value": request} for name, (request, _) in pairs.items()}
    answering = {name: {"value": response} for name, (_, response) in pairs.items()}
    said = {
        "description": "The ranking.",
        "content": _content([named[f"answer {one.name}"] for one in spoken], answering),
    }
    return {
        "post": {
            "operationId": path.strip("/").replace("/", "_"),
            "summary": line,
            "tags": [" and ".join(pairs)],
            "security": [{"key": []}, {}],
            "requestBody": {
                "required": True,
                "content": _content([named[f"request {one.name}"] for one in spoken], asking),
            },
            "responses": {
                "200": said,
                **{str(status): {"$ref": f"#/components/responses/Refusal{status}"} for status in REFUSALS},
            },
        }
    }


def _content(schemas: Sequence[Any], shown: Mapping[str, Any]) -> dict[str, Any]:
    schema = schemas[0] if len(schemas) == 1 else {"oneOf": list(schemas)}
    return {"application/json": {"schema": schema, "examples": dict(shown)}}


def _get(line: str) -> dict[str, Any]:
    return {"get": {"summary": line, "tags": ["server"], "responses": {"200": {"description": line}}}}


def _refusal_schema() -> dict[str, Any]:
    lines = {
        "message": "What was given, what is allowed, what to do next: Cohere's field.",
        "error": "The same: TEI's field.",
        "error_type": "TEI's word for the kind: Validation, Unauthorized, Overloaded, Unhealthy, Backend.",
        "detail": "The same as message: Jina's field.",
        "request_id": "What the server's log knows the request by; X-Request-Id has it too.",
    }
    properties: dict[str, Any] = {name: {"type": "string", "description": line} for name, line in lines.items()}
    listed = {
        "type": "array",
        "items": {"type": "object"},
        "description": "In a 422 at /infinity: what Infinity's own reads.",
    }
    properties["detail"] = {"oneOf": [properties["detail"], listed]}
    properties["code"] = {"type": "integer", "description": "The status: vLLM's field."}
    return {
        "title": "Refusal",
        "description": "Why there is no answer.",
        "type": "object",
        "properties": properties,
        "required": sorted(properties),
    }


def _refused(status: int, line: str) -> dict[str, Any]:
    schema = {"$ref": REFERENCE.format(model="Refusal")}
    example = Refusal(status, line).body("2f1c6a")
    said = {"description": line, "content": {"application/json": {"schema": schema, "example": example}}}
    if status not in (429, 503):
        return said
    seconds = {"description": "Seconds after which to ask again.", "schema": {"type": "integer", "minimum": 1}}
    return {**said, "headers": {"Retry-After": seconds}}
