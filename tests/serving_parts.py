"""A server of two models that score by numbers: in this process, or on a real socket."""

import socket
import threading
import time
from contextlib import contextmanager

import torch

from rerank.models.policy import ScorePolicy
from rerank.reranker import Reranker
from rerank.serving.limits import Limits
from rerank.serving.shelf import Shelf, aliases_of, named
from rerank.testing import NumberScorer

KEY = "a-key-of-enough-letters"
BODY = {"query": "which is large", "documents": ["number 3", "number 99", "number 40"]}
SUPERSET = {"message", "error", "error_type", "detail", "code", "request_id"}


class Slow(torch.nn.Module):
    """Scores by numbers; a text that says so takes its time."""

    kind = "number"

    def __init__(self):
        super().__init__()
        self.numbers = NumberScorer()
        self.begun = threading.Event()

    @property
    def device(self):
        return self.numbers.device

    def body(self):
        return []

    def encode(self, lists):
        if any("wait" in text for candidates in lists for text in candidates.texts):
            self.begun.set()
            time.sleep(0.4)
        if any("break" in text for candidates in lists for text in candidates.texts):
            raise RuntimeError("a secret of the model")
        return self.numbers.encode(lists)

    def logits(self, items):
        return self.numbers.logits(items)


def a_shelf(limits=None, aliases=(), scorer=None):
    models = [named("numbers=nowhere"), named("others=elsewhere")]
    shelf = Shelf(models, aliases_of(aliases, models), limits or Limits())
    first = Reranker(ScorePolicy(scorer or Slow()))
    shelf.fill({"numbers": first, "others": Reranker(ScorePolicy(NumberScorer(weight=-0.05)))})
    return shelf


@contextmanager
def clients():
    """What makes clients of servers in this process, whose desks are closed at the end."""
    from fastapi.testclient import TestClient

    from rerank.serving.app import app_of

    shelves = []

    def make(limits=None, keys=(), aliases=(), shelf=None, **options):
        shelves.append(shelf or a_shelf(limits, aliases))
        return TestClient(app_of(shelves[-1], keys, **options), raise_server_exceptions=False)

    yield make
    for shelf in shelves:
        shelf.close()


@contextmanager
def listening_server(limits=None):
    """(port, scorer, metrics) of a server on a real socket, with short patience."""
    from rerank.listening import listening
    from rerank.serving.app import app_of
    from rerank.serving.server import _server_of

    scorer = Slow()
    shelf = a_shelf(limits or Limits(body_seconds=0.5, seconds=5.0), scorer=scorer)
    server = _server_of(app_of(shelf), shelf, 1.0)
    with listening("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        port = listener.getsockname()[1]
        for _ in range(200):
            if server.started:
                break
            time.sleep(0.02)
        yield port, scorer, shelf.metrics
        server.should_exit = True
        thread.join(10)
    shelf.close()
    assert not thread.is_alive()


def said_to(port, raw, seconds=5.0):
    """What comes back for raw bytes, until the server closes or falls silent."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        connection.sendall(raw)
        found = b""
        while True:
            try:
                chunk = connection.recv(65536)
            except TimeoutError:
                return found
            if not chunk:
                return found
            found += chunk


def refused(response, status):
    """The message of a refusal, whose body has every field that a client looks for."""
    told = response.json()
    assert response.status_code == status, told
    assert set(told) == SUPERSET and told["code"] == status
    assert told["request_id"] == response.headers["x-request-id"]
    return told["message"]


def order(response):
    return [row["index"] for row in response.json()["results"]]
