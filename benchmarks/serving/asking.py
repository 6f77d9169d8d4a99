"""The requests of the soak: who asks for what, and whether what came back is right.

Right is: every document once (the best `top_n`), in the order of the logits that `Reranker.rank` gives in a process of
its own, with those logits or their logistic as scores. Where two logits differ by less than the tolerance, either order
is right: batches of other shapes round differently.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from serving.hostile_bodies import REFUSED, hostile_body
from serving.load import HOST, Reply, head, request
from serving.material import Question

TOLERANCE = 1e-3


class Known(NamedTuple):
    """A question whose logits are known."""

    question: Question
    logits: list[float]


class Request(NamedTuple):
    """One request of the soak."""

    kind: str
    message: bytes
    known: Known | None = None
    """None: it has to be refused."""
    statuses: tuple[int, ...] = (200, 429)
    top_n: int | None = None
    raw: bool = True
    cancelled: bool = False


Pool = Mapping[str, Sequence[Known]]
"""Model and size -> questions: "cross-encoder small", "light list", ..."""
CANCELLED, MALFORMED, OVER = 0.06, 0.06, 0.03
"""Their shares of all requests."""


def drawn(draw: random.Random, pool: Pool) -> Request:
    """Some request."""
    share = draw.random()
    if share < MALFORMED:
        return _malformed(draw)
    if share < MALFORMED + OVER:
        return _over(draw)
    kind = draw.choice(list(pool))
    known, model = draw.choice(pool[kind]), kind.split()[0]
    made = draw.choice((_cohere, _cohere, _tei, _voyage, _score))(draw, known, model)
    cancelled = share > 1.0 - CANCELLED
    return made._replace(kind=f"{'cancelled ' if cancelled else ''}{kind}, {made.kind}", cancelled=cancelled)


def _cohere(draw: random.Random, known: Known, model: str) -> Request:
    raw, top_n = draw.random() < 0.5, draw.choice([None, None, 1, 3, 1000])
    body: dict[str, Any] = {"model": model, "query": known.question.query, "documents": known.question.texts}
    body |= {"raw_scores": raw} if raw else {}
    body |= {"top_n": top_n} if top_n else {}
    path = draw.choice(["/rerank", "/v1/rerank", "/v2/rerank"])
    return Request("cohere", request(path, body), known, top_n=top_n, raw=raw)


def _tei(draw: random.Random, known: Known, model: str) -> Request:
    raw = draw.random() < 0.5
    # TEI's requests name no model: they go to the server's first.
    if model != "cross-encoder":
        return _cohere(draw, known, model)
    body = {"query": known.question.query, "texts": known.question.texts, "raw_scores": raw}
    return Request("tei", request(draw.choice(["/rerank", "/tei/rerank"]), body), known, raw=raw)


def _voyage(draw: random.Random, known: Known, model: str) -> Request:
    body = {"model": model, "query": known.question.query, "documents": known.question.texts}
    return Request("voyage", request("/voyage/v1/rerank", body), known, raw=False)


def _score(draw: random.Random, known: Known, model: str) -> Request:
    body = {"model": model, "text_1": known.question.query, "text_2": known.question.texts}
    return Request("score", request("/score", body), known, raw=False)


def _malformed(draw: random.Random) -> Request:
    while True:
        body = hostile_body(draw)
        if body.expect == REFUSED and body.kind not in ("bomb", "too large"):
            break
    named = {"Host": HOST, "Content-Type": "application/json", "Content-Length": str(len(body.content)), **body.headers}
    message = head("POST", body.path, named) + body.content
    return Request(f"malformed, {body.kind}", message, statuses=(400, 404, 413, 415, 422))


def _over(draw: random.Random) -> Request:
    documents = draw.choice([["a"] * 1001, ["a" * 100_001], ["a" * 90_000] * 200])
    return Request("over a limit", request("/v2/rerank", {"query": "a", "documents": documents}), statuses=(413,))


# ------------------------------------------------------------------------------------------------------------ checking
def fault(asked: Request, reply: Reply) -> str | None:
    """What is wrong with an answer; None where it is right."""
    if reply.status not in asked.statuses:
        return f"{asked.kind}: answered {reply.status} {reply.body[:300]!r}"
    if reply.status == 429 and not reply.headers.get("retry-after", "").isdigit():
        return f"{asked.kind}: 429 without Retry-After"
    if asked.known is None or reply.status != 200:
        return None
    try:
        rows = rows_of(json.loads(reply.body))
    except (ValueError, KeyError, TypeError) as error:
        return f"{asked.kind}: the answer cannot be read ({error!r}): {reply.body[:300]!r}"
    if asked.kind.endswith("score"):  # its rows are in the order of the documents
        rows = sorted(rows, key=lambda row: -asked.known.logits[row[0]])
    wrong = _wrong(rows, asked.known.logits, asked.top_n, asked.raw)
    return None if wrong is None else f"{asked.kind}: {wrong}"


def rows_of(answer: Any) -> list[tuple[int, float]]:
    """(document, score) of each row of an answer, in its order, whatever the dialect."""
    rows = answer if isinstance(answer, list) else answer["results"] if "results" in answer else answer["data"]
    return [(row["index"], row["relevance_score"] if "relevance_score" in row else row["score"]) for row in rows]


def _wrong(rows: list[tuple[int, float]], logits: list[float], top_n: int | None, raw: bool) -> str | None:
    n = len(logits)
    found = [index for index, _ in rows]
    if len(found) != min(top_n or n, n) or len(set(found)) != len(found) or not set(found) <= set(range(n)):
        return f"{found} are not the best {top_n or n} of {n} documents"
    own = [logits[index] for index in found]
    left = [logits[index] for index in set(range(n)) - set(found)]
    if any(b - a > TOLERANCE for a, b in itertools.pairwise(own)) or max(left, default=own[-1]) - own[-1] > TOLERANCE:
        return f"{found} is not the order of {logits}"
    scores = own if raw else [1.0 / (1.0 + math.exp(-logit)) for logit in own]
    off = max(abs(score - told) for score, (_, told) in zip(scores, rows, strict=True))
    return f"scores are off by {off}" if off > TOLERANCE else None
