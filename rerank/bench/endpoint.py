"""A rerank endpoint as a client sees it: a query and texts go out, a score for each text comes back.

    with HttpReranker("https://api.cohere.com/v2/rerank", model="rerank-v3.5") as reranker:
        reranker.scores("what is a run?", ["A run is ...", "..."])        # [0.97, 0.03]

The url may begin with a dialect, and end with a model: "tei+http://localhost:8080", "http://host/v1/rerank#bge-base".

The dialects are in `rerank.bench.dialects`; without one, /score is vLLM's and all else is Cohere's.

Scores are taken as they are. Those of several requests for one list (`at_once`) are compared with each other, which is
right where the score of a document does not depend on the others of its request; where it may, that is said aloud.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, final

from rerank.bench.dialects import DIALECTS, Dialect, address_of, named, normalised, scores_in
from rerank.errors import EndpointError, InputError
from rerank.http import Connection, Manner, check_variable

logger = logging.getLogger("rerank.bench.endpoint")

BETWEEN_LINES = 60.0
"""Seconds between two lines that say that a request is made again, at least."""
KEY_VARIABLE = "RERANK_API_KEY"
"""The environment variable that holds the key, unless another one is named."""
WHERE = "is the url the one that ends in /rerank or /score, and is this the name under which the server has the model?"
SHAPE = "the server may speak another dialect (write one before the url, such as tei+http://...), or not know a field"
ADVICE = {
    400: "the query or a document may be too long for this server, or at_once be more than it takes, or a field be one "
    "that it does not know",
    404: WHERE,
    405: WHERE,
    413: "the request is too large for the server: a smaller at_once makes it smaller",
    422: SHAPE,
    424: "the model of the server failed: its log says why",
    501: "the server has no such function, or its model is no reranker",
}
NO_ENDPOINT = "start the server first, or look at host and port of the url"


def _read_json(payload: bytes, seconds: float) -> tuple[Any, bytes]:
    try:
        return json.loads(payload), payload
    except (ValueError, RecursionError):
        raise ValueError("is not JSON") from None


def _sendable(text: str) -> str:
    """The text, with ? for what UTF-8 cannot say (lone surrogates)."""
    return text.encode("utf8", "replace").decode("utf8")


@final
class HttpReranker:
    """Scores of a rerank endpoint; any number of threads may ask. It connects when it is first asked.

    `key` is the NAME of the environment variable that holds the key. `at_once` is how many documents one request may
    have (none: 1000; TEI 32), `extra` more fields of each request ({"raw_scores": True}), and `blank` what is sent for
    a document without words, which some servers refuse. `insecure` lets a key go to another machine over http.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        key: str | None = None,
        *,
        at_once: int | None = None,
        timeout: float = 120.0,
        retries: int = 5,
        first_wait: float = 1.0,
        insecure: bool = False,
        extra: Mapping[str, Any] | None = None,
        blank: str = "",
    ) -> None:
        check_variable("key", key)
        self.address = address_of(url, model)
        self.repeated = 0
        """Attempts that were made again: the seconds of those requests hold waits."""
        self._dialect = DIALECTS[self.address.dialect]
        self._at_once = self._dialect.at_once if at_once is None else _checked(at_once)
        self._extra, self._blank = _checked_extra(extra or {}, self._dialect), blank
        self._manner = Manner(
            key_variable=key or KEY_VARIABLE,
            key_expected=key is not None,
            insecure=insecure,
            timeout=timeout,
            retries=retries,
            first_wait=first_wait,
            start=NO_ENDPOINT,
            advice=ADVICE,
            spent="the queries before this one are done: ask again later",
        )
        self._connection = Connection(self.address.url, self._manner)
        self._open, self._said_parts = False, False
        self._lock, self._told = threading.Lock(), -math.inf

    def __enter__(self) -> HttpReranker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def identity(self) -> str:
        """What tells it apart from other endpoints, without a key: dialect, url, model, and what each request holds."""
        told = {"at_once": self._at_once, "blank": self._blank, **self._extra}
        return f"{self.address.dialect} {self.address.url} {self.address.model} {json.dumps(told, sort_keys=True)}"

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        """One score a text, in the order of the texts; none for no text, without a request."""
        if isinstance(texts, str):
            raise InputError("texts is one text, and must be a list of texts")
        wrong = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
        if wrong is not None:
            raise InputError(f"document {wrong} is of type {type(texts[wrong]).__name__}, and must be a text")
        sent = [_sendable(text) if text.strip() or not self._blank else self._blank for text in texts]
        parts = [
            self._asked(query, sent[begin : begin + self._at_once], begin)
            for begin in range(0, len(sent), self._at_once)
        ]
        self._say_parts(parts)
        return [score for part in parts for score in part]

    def close(self) -> None:
        """Nothing; closes the connections. Asked again, it opens new ones."""
        with self._lock:
            if self._open:
                self._connection.close()
            self._open = False

    def _asked(self, query: str, texts: Sequence[str], begin: int) -> list[float]:
        """The scores of one request, for the documents from `begin` on."""
        self._connect()
        body = self._dialect.request(query, texts, self.address.model, self._extra)
        data = json.dumps(body, ensure_ascii=False).encode("utf8", "replace")  # no body has lone surrogates
        waits: list[float] = []

        def pause(wait: float) -> None:
            waits.append(wait)
            self._tell(len(waits), wait)
            time.sleep(wait)

        try:
            answer, payload = self._connection.ask(data, query, _read_json, pause)
        except EndpointError as error:
            empty = [begin + i for i, text in enumerate(texts) if not text.strip()]
            if error.status not in (400, 422) or not empty:
                raise
            advice = "some servers refuse those: send something else for them with blank"
            raise EndpointError(f"{error}. Without words: {named(empty)}; {advice}", error.status) from None
        try:
            return scores_in(answer, texts, self._dialect)
        except ValueError as error:
            whose = (
                f"the answer for documents {begin} to {begin + len(texts) - 1}, counted here from 0," if begin else ""
            )
            excerpt = self._connection.clean(payload.decode("utf8", "replace"))
            raise EndpointError(f"{self.address.url}: {whose or 'the answer'} {error} [{excerpt}]", 200) from None

    def _connect(self) -> None:
        with self._lock:
            if not self._open:
                self._connection.open()
            self._open = True

    def _tell(self, attempt: int, wait: float) -> None:
        """Count an attempt that is made again and say how long it may go on, once a minute at most."""
        with self._lock:
            self.repeated += 1
            if time.monotonic() - self._told < BETWEEN_LINES:
                return
            self._told = time.monotonic()
        left = wait + (self._manner.retries + 1 - attempt) * self._manner.timeout
        logger.warning(
            "%s: no usable answer at attempt %d of %d; asking again in %.1f s, for about %s at most; the seconds of "
            "this query hold the wait",
            self.address.url,
            attempt,
            self._manner.retries + 1,
            wait,
            f"{left:.0f} s" if left < 90 else f"{left / 60:.0f} min",
        )

    def _say_parts(self, parts: Sequence[Sequence[float]]) -> None:
        """Say, once, that scores of several requests are compared, where that could be wrong."""
        if len(parts) < 2 or self._said_parts:
            return
        if normalised(parts):
            what = "its scores look normalised over the documents of one request: they are NOT comparable across them"
        elif not self._dialect.apart:
            what = "their scores are compared, which is right only where each document is scored by itself"
        else:
            return
        self._said_parts = True
        logger.warning(
            "%s: lists are sent in parts of %d documents (at_once); %s", self.address.url, self._at_once, what
        )


def _checked(at_once: int) -> int:
    if isinstance(at_once, bool) or not isinstance(at_once, int) or at_once < 1:
        raise InputError(f"at_once = {at_once!r} must be a whole number of at least 1")
    return at_once


def _checked_extra(extra: Mapping[str, Any], dialect: Dialect) -> dict[str, Any]:
    try:
        json.dumps(extra, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"extra must hold what JSON can say: {error}") from None
    taken = dialect.taken & set(extra)
    if taken:
        raise InputError(f"extra holds {sorted(taken)}, which every request has already: leave them out")
    return dict(extra)
