"""A rerank server for tests: a real HTTP server that scores by the number in a text, and misbehaves on demand.

    with RerankStub("tei", ["503", "twice"]) as stub:     # refuses the first request, answers the second with a fault
        HttpReranker(f"tei+{stub.url}").scores("query", ["3", "1"])

It is strict: a request with a field that the dialect does not have, or without one that it needs, is answered 422. A
behaviour is a name in `FAULTS`, or one of the chat stub's: a status, "busy", "drop", "slow", "trickle", "redirect".
"""

import random
import re

from chat_stub import HANDLERS, Stub

# dialect -> (fields that a request needs, fields that it may have, documents that it may have)
SPEAKS = {
    "cohere": ({"query", "documents"}, {"model", "top_n", "max_tokens_per_doc", "return_documents"}, 1000),
    "jina": ({"model", "query", "documents"}, {"top_n", "return_documents"}, 1000),
    "infinity": ({"query", "documents"}, {"model", "top_n", "return_documents", "raw_scores"}, 2048),
    "tei": ({"query", "texts"}, {"truncate", "truncation_direction", "raw_scores", "return_text"}, 32),
    "voyage": ({"query", "documents", "model"}, {"top_k", "truncation", "return_documents"}, 1000),
    "weaviate": ({"query", "documents"}, set(), 10**6),
    "vllm-score": ({"text_1", "text_2"}, {"model", "use_activation", "truncate_prompt_tokens"}, 10**6),
}
NUMBER = re.compile(r"-?\d+(\.\d+)?")


def by_number(query, texts):
    """The first number of each text, a tenth of it added for each word of the query; -1 where there is none."""
    return [float(m.group()) + 0.1 * len(query.split()) if (m := NUMBER.search(t)) else -1.0 for t in texts]


def rows_of(dialect, texts, scores):
    """The rows of an answer, as the dialect orders and writes them."""
    falling = sorted(range(len(texts)), key=lambda i: -scores[i])
    if dialect == "weaviate":
        return [{"document": text, "score": score} for text, score in zip(texts, scores, strict=True)]
    if dialect == "vllm-score":
        return [{"index": i, "object": "score", "score": score} for i, score in enumerate(scores)]
    if dialect == "tei":
        return [{"index": i, "score": scores[i]} for i in falling]
    if dialect == "infinity":  # sorted by nobody
        random.Random(len(texts)).shuffle(falling)
    document = {"document": {"text": "..."}} if dialect == "jina" else {}
    return [{"index": i, "relevance_score": scores[i], **document} for i in falling]


def answer_of(dialect, rows, query):
    """The whole answer."""
    return {
        "cohere": {"id": "1", "results": rows, "meta": {"api_version": {"version": "2"}}},
        "jina": {"model": "m", "usage": {"total_tokens": 3}, "results": rows},
        "infinity": {"object": "rerank", "results": rows, "model": "m", "usage": {}, "id": "1", "created": 1},
        "tei": rows,
        "voyage": {"object": "list", "data": rows, "model": "m", "usage": {"total_tokens": 3}},
        "weaviate": {"query": query, "scores": rows},
        "vllm-score": {"id": "1", "object": "list", "created": 1, "model": "m", "data": rows, "usage": {}},
    }[dialect]


def changed(number, **fields):
    """A fault: other fields in one row; None takes the field away."""

    def change(rows):
        row = {**rows[number], **fields}
        rows[number] = {name: value for name, value in row.items() if value is not None}
        return rows

    return change


FAULTS = {
    "well": lambda rows: rows,
    "twice": lambda rows: [*rows[:-1], rows[0]],
    "more": lambda rows: [*rows, rows[0]],
    "missing": lambda rows: rows[:-1],
    "none": lambda rows: [],
    "swapped": lambda rows: rows[::-1],
    "outside": changed(0, index=99),
    "negative": changed(0, index=-1),
    "text index": changed(0, index="0"),
    "truth index": changed(0, index=True),
    "no index": changed(0, index=None),
    "no score": changed(0, score=None, relevance_score=None),
    "nan": changed(0, score=float("nan"), relevance_score=float("nan")),
    "infinite": changed(0, score=float("inf"), relevance_score=float("inf")),
    "huge": changed(0, score=10**400, relevance_score=10**400),
    "text score": changed(0, score="0.5", relevance_score="0.5"),
    "truth score": changed(0, score=True, relevance_score=True),
    "row": lambda rows: ["first", *rows[1:]],
}


class RerankStub(Stub):
    """The server of one dialect; `base` is its url without a path, `scorer` what it scores with."""

    def __init__(self, dialect="cohere", behaviour=(), delay=0.0, scorer=by_number):
        super().__init__(behaviour, delay)
        self.dialect, self.scorer = dialect, scorer

    def start(self, port=0):
        """Serve at a port of one's own, or at the one given."""
        super().start(port)
        self.base = self.url.removesuffix("/v1")
        self.url = f"{self.base}/{'score' if self.dialect == 'vllm-score' else 'rerank'}"

    def how(self, number, body):
        how = super().how(number, body)
        return f" {how}" if how in FAULTS else how  # a name that the chat stub does not have, lest it answers

    def say(self, handler, body, how):
        """The answer of the dialect, with the fault that is asked for."""
        needed, more, most = SPEAKS[self.dialect]
        texts = body.get("texts") or body.get("documents") or body.get("text_2") or []
        if not needed <= set(body) <= needed | more:
            return self.send(handler, 422, {"error": f"fields {sorted(body)}", "error_type": "Validation"})
        if not 1 <= len(texts) <= most or not all(isinstance(text, str) for text in texts):
            return self.send(handler, 413, {"error": f"batch size {len(texts)} > maximum allowed {most}"})
        query = body.get("query") or body.get("text_1") or ""
        rows = FAULTS[how.strip()](rows_of(self.dialect, texts, self.scorer(query, texts)))
        with self.lock:
            self.answered.append(body)
        return self.send(handler, 200, answer_of(self.dialect, rows, query))


assert not {f" {name}" for name in FAULTS} & set(HANDLERS)
