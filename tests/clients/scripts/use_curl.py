"""curl, for the paths that have no client of their own, for broken requests, and for a server that is told to end."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from urllib.parse import urlsplit

from checks import PATIENCE, Row, Way, check, plan, require


class Refused(Exception):
    """An answer that is none: its status and body."""

    def __init__(self, status, body):
        super().__init__(f"{status}: {body}")
        self.status = status


RAISES = dict.fromkeys((401, 404, 413, 422, 429, 503, 504), Refused)
JSON = ("-H", "Content-Type: application/json")


def curl(server, path, *arguments, body=None, key=True):
    """(status, body) of a request, given `body` on its standard input."""
    own = ["-H", f"Authorization: Bearer {server.key}"] if key else []
    data = ["--data-binary", "@-"] if body is not None else []
    command = ["curl", "-sS", "-w", "\n%{http_code}", "--max-time", "60", *own, *data, *arguments, server.url + path]
    given = body.encode() if isinstance(body, str) else body
    said = subprocess.run(command, input=given, stdout=subprocess.PIPE, check=True).stdout.decode()
    text, _, status = said.rpartition("\n")
    return int(status), text


def posted(server, path, asked):
    status, text = curl(server, path, *JSON, body=json.dumps(asked))
    if status != 200:
        raise Refused(status, text)
    return json.loads(text)


def v2_rerank(server, query, documents, top_n=None):
    asked = {"model": server.model, "query": query, "documents": documents, "top_n": top_n}
    return [Row(row["index"], row["relevance_score"]) for row in posted(server, "/v2/rerank", asked)["results"]]


def rerank(server, query, documents, top_n=None):
    asked = {"model": server.model, "query": query, "documents": documents, "top_n": top_n}
    rows = posted(server, "/rerank", asked)["results"]
    return [Row(row["index"], row["relevance_score"], row["document"]["text"]) for row in rows]


def rerank_of_texts(server, query, documents, top_n=None):
    asked = {"query": query, "texts": documents, "return_text": True}
    rows = posted(server, "/rerank", asked)
    return [Row(row["index"], row["score"], row["text"]) for row in rows[:top_n]]


def score(server, query, documents, top_n=None):
    asked = {"model": server.model, "text_1": query, "text_2": documents}
    rows = posted(server, "/score", asked)["data"]
    require([row["index"] for row in rows] == list(range(len(documents))), "not in the order that was given")
    return sorted((Row(row["index"], row["score"]) for row in rows), key=lambda row: -row.score)[:top_n]


def weaviate(server, query, documents, top_n=None):
    rows = posted(server, "/weaviate/rerank", {"query": query, "documents": documents})["scores"]
    require([row["document"] for row in rows] == documents, "not in the order that was given")
    order = sorted(range(len(rows)), key=lambda i: -rows[i]["score"])
    return [Row(i) for i in order[:top_n]]  # its scores are logits


GOOD = json.dumps({"query": "q", "documents": ["a", "b"]})


def is_refused(status, *arguments, path="/v2/rerank", body=GOOD, key=True, says=""):
    """The check that a request is refused with `status`, in a body in which every client finds its field."""

    def checked(server):
        found, text = curl(server, path, *arguments, body=body, key=key)
        require(found == status, f"{found} instead of {status}: {text}")
        told = json.loads(text)
        require(told["message"] == told["error"] and says in told["message"] and told["code"] == status, text)

    return checked


def ends_when_all_is_answered(_):
    """SIGTERM: new questions are refused, the one that is being read gets its answer, the server ends."""
    server, process = plan().servers["draining"], plan().processes["draining"]
    documents = [f"text {i} " * 60 for i in range(600)]  # seconds of reading
    command = ["curl", "-sS", "-H", f"Authorization: Bearer {server.key}", *JSON, "--data-binary", "@-"]
    asker = subprocess.Popen([*command, f"{server.url}/v2/rerank"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    asker.stdin.write(json.dumps({"query": "q", "documents": documents}).encode())
    asker.stdin.close()
    time.sleep(0.5)
    os.kill(process, signal.SIGTERM)
    time.sleep(0.2)
    status, text = curl(server, "/v2/rerank", *JSON, body=GOOD)
    require(status == 503 and "ending" in text, f"{status}: {text}")
    require(curl(server, "/ready")[0] == 503, "still ready")
    answer = json.loads(asker.stdout.read())
    asker.wait(PATIENCE)
    require(len(answer["results"]) == len(documents), "the question that was being read lost its answer")
    until = time.monotonic() + PATIENCE
    while is_listening(server):
        require(time.monotonic() < until, "all is answered, and the server does not end")
        time.sleep(0.1)


def is_listening(server):
    place = urlsplit(server.url)
    with contextlib.suppress(OSError), socket.create_connection((place.hostname, place.port), timeout=5):
        return True
    return False


BROKEN = {
    "400 broken": is_refused(400, *JSON, body='{"query": "q", "documents": ["a", }'),
    "400 no UTF-8": is_refused(400, *JSON, body=b'{"query": "q\xff", "documents": ["a"]}'),
    "400 key twice": is_refused(400, *JSON, body='{"query": "q", "query": "r", "documents": ["a"]}', says="query"),
    "400 NaN": is_refused(400, *JSON, body='{"query": "q", "documents": ["a"], "top_n": NaN}'),
    "400 no object": is_refused(400, *JSON, body="[]"),
    "400 empty": is_refused(400, *JSON, body=""),
    "401 no key": is_refused(401, *JSON, key=False, says="key"),
    "404 path": is_refused(404, *JSON, path="/v3/rerank"),
    "405 GET": is_refused(405, "-X", "GET"),
    "413 body": is_refused(413, *JSON, body=json.dumps({"query": "q", "documents": ["a" * 17_000_000]})),
    "415 text": is_refused(415, "-H", "Content-Type: text/plain"),
    "415 encoding": is_refused(415, *JSON, "-H", "Content-Encoding: br"),
    "422 document": is_refused(422, *JSON, body='{"query": "q", "documents": ["a", null]}', says="documents.1"),
    "422 top_n": is_refused(422, *JSON, body='{"query": "q", "documents": ["a"], "top_n": -1}', says="top_n"),
}


if __name__ == "__main__":
    without_model = {status: error for status, error in RAISES.items() if status != 404}
    check(
        Way(v2_rerank, RAISES, more=BROKEN),
        Way(rerank, RAISES, gives_texts=True),
        Way(rerank_of_texts, without_model, names_model=False, gives_texts=True),
        Way(score, RAISES),
        Way(weaviate, without_model, names_model=False, more={"SIGTERM": ends_when_all_is_answered}),
    )
