"""What is asked of every client: the order and the scores of in-process `rank`, and an error of its own for a refusal.

Nothing but Python is needed here: this runs in the client's environment. A script of `scripts/` holds one function for
each way its client ranks, as a user writes it, and hands them over:

    def client_v2(server, query, documents, top_n=None):
        client = cohere.ClientV2(api_key=server.key, base_url=server.url)
        answer = client.rerank(model=server.model, query=query, documents=documents, top_n=top_n)
        return [Row(row.index, row.relevance_score) for row in answer.results]

    check(Way(client_v2, raises={401: cohere.UnauthorizedError, ...}))

`run.py` says in the file RERANK_CLIENT_CHECKS which servers there are and what in-process `rank` answered, and reads
the findings from the file named there.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

TOLERANCE = 1e-6
PATIENCE = 30.0
"""Seconds that a call may take, its retries included."""
CROWD = 50
"""Documents of each question that crowds a queue, half of what the queue may hold."""
FRAGMENTS = {401: "key", 404: "tiny", 413: "100", 422: "blank"}
"""What a refusal's message has to say, so that its reader knows what to do."""


class Server(NamedTuple):
    """Where a client is pointed to."""

    url: str
    key: str
    model: str


class Row(NamedTuple):
    """One document of an answer, with what the client passes on."""

    index: int
    score: float | None = None
    text: str | None = None


Rank = Callable[..., Sequence[Row]]
"""(server, query, documents, top_n=None) -> the rows, best first."""


@dataclass(frozen=True)
class Way:
    """One way to rank with a client, and what is known of it."""

    rank: Rank
    raises: Mapping[int, type[BaseException] | tuple[type[BaseException], ...]]
    """Status -> what its user gets to see."""
    tells: Collection[int] = (401, 404, 413, 422)
    """Statuses of refusals whose message reaches the user."""
    names_model: bool = True
    """Whether a model can be named."""
    empty: type[BaseException] | None = None
    """What the client itself raises where there is no document; None: it answers none."""
    long: type[BaseException] | None = None
    """What is raised for documents longer than the model reads, by clients that ask not to cut them."""
    gives_texts: bool = False
    """Whether the rows hold the documents, as the server sent them."""
    more: Mapping[str, Callable[[Server], Any]] = field(default_factory=dict)
    """Checks of this client alone: name -> a function that raises where something is wrong."""

    @property
    def name(self) -> str:
        """The function's name, as words."""
        return self.rank.__name__.replace("_", " ")


class Plan(NamedTuple):
    """What `run.py` says."""

    servers: Mapping[str, Server]
    processes: Mapping[str, int]
    """The process of each server, for who wants to end one."""
    questions: Mapping[str, Any]
    """Name -> query, documents and their ranking in process."""
    findings: str
    """The file that the findings are written to."""


def plan() -> Plan:
    """What `run.py` says."""
    told = json.loads(Path(os.environ["RERANK_CLIENT_CHECKS"]).read_text("utf8"))
    return Plan(**{**told, "servers": {name: Server(**server) for name, server in told["servers"].items()}})


def check(*ways: Way) -> None:
    """Ask everything of each way, and write what was found."""
    warnings.simplefilter("ignore", DeprecationWarning)  # what a client deprecates is between it and its users
    told = plan()
    findings = []
    for way in ways:
        for name, checked in _checks(way, told.servers, told.questions).items():
            findings.append({"way": way.name, "check": name, **_outcome(checked)})
            Path(told.findings).write_text(json.dumps(findings, ensure_ascii=False, indent=1), "utf8")


def _outcome(checked: Callable[[], str | None]) -> dict[str, Any]:
    """Whether a check passed, what it said, and the seconds it took."""
    begun = time.monotonic()
    try:
        said, passed = checked(), True
    except Exception as error:
        said, passed = f"{type(error).__name__}: {error}"[:300], False
    seconds = time.monotonic() - begun
    if passed and seconds > PATIENCE:
        said, passed = f"took {seconds:.0f} s, {PATIENCE:.0f} are allowed", False
    return {"passed": passed, "said": said or "", "seconds": round(seconds, 2)}


def _checks(
    way: Way, servers: Mapping[str, Server], questions: Mapping[str, Any]
) -> dict[str, Callable[[], str | None]]:
    """Name -> check, in the order in which they are made."""
    plain, few = servers["plain"], questions["few"]
    found: dict[str, Callable[[], str | None]] = {}
    for name in ("few", "one", "unicode", "blank", "hundred"):
        found[name] = lambda asked=questions[name]: same(way, plain, asked)
    if way.long is None:
        found["long"] = lambda: same(way, plain, questions["long"])
    else:
        found["long"] = lambda: refused(way.rank, plain, questions["long"], way.long, "long")
    found["top_n"] = lambda: same(way, plain, few, top_n=2)
    found["top_n above n"] = lambda: same(way, plain, few, top_n=50)
    found["none"] = lambda: nothing(way, plain, few)
    if way.names_model:
        other = plain._replace(model="other")
        found["other model"] = lambda: same(way, other, questions["few, other model"])
    for status in way.raises:
        found[str(status)] = lambda status=status: refusal(way, servers, questions, status)
    for name, more in way.more.items():
        found[name] = lambda more=more: more(plain)
    return found


def same(way: Way, server: Server, question: Mapping[str, Any], top_n: int | None = None) -> None:
    """Nothing, where the client's rows are those of in-process `rank`."""
    documents = question["documents"]
    given = list(documents)
    rows = way.rank(server, question["query"], given, top_n=top_n)
    expected = [tuple(pair) for pair in question["ranking"]][:top_n]
    require([row.index for row in rows] == [index for index, _ in expected], f"order {rows}, expected {expected}")
    for row, (_, score) in zip(rows, expected, strict=True):
        if row.score is not None:
            require(abs(row.score - score) <= TOLERANCE, f"score {row.score}, expected {score}")
        if way.gives_texts:
            text = documents[row.index]
            require((row.text or "") == text, f"text {row.text!r}, expected {text!r}")
    require(given == documents, "the client or the server changed the documents")


def nothing(way: Way, server: Server, question: Mapping[str, Any]) -> str | None:
    """Nothing for no documents: an empty answer, or the client's own refusal to ask."""
    if way.empty is None:
        rows = way.rank(server, question["query"], [])
        require(list(rows) == [], f"{rows} for no documents")
        return None
    return refused(way.rank, server, {**question, "documents": []}, way.empty, None)


def refusal(way: Way, servers: Mapping[str, Server], questions: Mapping[str, Any], status: int) -> str:
    """The name of what the client raises for a refusal of this status."""
    plain, asked, fragment = servers["plain"], questions["few"], FRAGMENTS.get(status)
    expected, fragment = way.raises[status], fragment if status in way.tells else None
    if status == 401:
        return refused(way.rank, plain._replace(key="wrong"), asked, expected, fragment)
    if status == 404:
        return refused(way.rank, plain._replace(model="nobody"), asked, expected, fragment)
    if status == 413:
        return refused(way.rank, plain, {**asked, "documents": ["a text"] * 101}, expected, fragment)
    if status == 422:
        return refused(way.rank, plain, {**asked, "query": "  "}, expected, fragment)
    if status == 429:
        with crowded(servers["full"], questions["hundred"]):
            return refused(way.rank, servers["full"], questions["hundred"], expected, fragment)
    return refused(way.rank, servers[{503: "loading", 504: "late"}[status]], questions["hundred"], expected, fragment)


def refused(
    rank: Rank,
    server: Server,
    question: Mapping[str, Any],
    expected: type[BaseException] | tuple[type[BaseException], ...],
    fragment: str | None,
) -> str:
    """The name of the exception, where it is the expected one and says `fragment`."""
    try:
        rows = rank(server, question["query"], question["documents"])
    except expected as error:
        said = said_by(error)
        require(fragment is None or fragment in said, f"{type(error).__name__} does not say {fragment!r}: {said}")
        return type(error).__name__
    raise AssertionError(f"an answer instead of a refusal: {list(rows)[:3]}")


def said_by(error: BaseException) -> str:
    """What an exception says, the body that it holds, and the same of the exceptions behind it."""
    said = []
    while error is not None:
        said.append(f"{error} {getattr(error, 'body', '')}")
        error = error.__cause__ or error.__context__
    return " | ".join(said)


@contextlib.contextmanager
def crowded(server: Server, question: Mapping[str, Any]) -> Iterator[None]:
    """A server whose queue is full: others ask again and again, as long as this lasts."""
    documents = [f"{text} {i} " * 30 for i, text in enumerate(question["documents"][:CROWD])]
    body = json.dumps({"model": server.model, "query": question["query"], "documents": documents})
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {server.key}"}
    over, full = threading.Event(), threading.Event()

    def ask() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=PATIENCE)
                connection.request("POST", "/v2/rerank", body, headers)
                response = connection.getresponse()
                response.read()
                connection.close()
                if response.status == 429:
                    full.set()
                    time.sleep(0.02)

    askers = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
    for asker in askers:
        asker.start()
    try:
        require(full.wait(PATIENCE), "nobody was ever refused: the queue does not fill")
        yield
    finally:
        over.set()
        for asker in askers:
            asker.join(PATIENCE)


def require(holds: bool, otherwise: str) -> None:
    """Nothing where it holds; the error with what was found otherwise."""
    if not holds:
        raise AssertionError(otherwise)
