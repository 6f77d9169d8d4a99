"""What a server counts, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, final

from rerank.errors import need

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
CLIENT_LEFT = 499
"""The status of what nobody reads any more, as nginx has it."""


@final
class Metrics:
    """Counters, histograms and gauges of one server, in a registry of their own."""

    def __init__(self) -> None:
        prometheus = need("prometheus_client", "serve")
        self.registry = prometheus.CollectorRegistry()
        counter, gauge, histogram = prometheus.Counter, prometheus.Gauge, prometheus.Histogram
        own = {"registry": self.registry}
        self._requests = counter("rerank_requests", "Requests, by path and status.", ["path", "status"], **own)
        answered = "Seconds from the head of a request to its answer."
        self._seconds = histogram("rerank_request_seconds", answered, ["path"], buckets=SECONDS, **own)
        self._gone = counter("rerank_disconnects", "Requests whose client left before the answer.", ["path"], **own)
        self._documents = counter("rerank_documents", "Documents that were read.", ["model"], **own)
        self._tokens = counter("rerank_tokens", "Tokens that were read, as the model counts them.", ["model"], **own)
        together, turns = "Requests that a model read together, in one turn.", "Seconds of a model's turns."
        self._turn_seconds = histogram("rerank_turn_seconds", turns, ["model"], buckets=SECONDS, **own)
        self._turn_size = histogram("rerank_turn_requests", together, ["model"], buckets=SIZES, **own)
        self._waiting = gauge("rerank_waiting_documents", "Documents that are not read yet.", ["model"], **own)
        self._open = gauge("rerank_open_requests", "Requests that are being answered.", **own)

    def begun(self) -> None:
        """Count a request that came in."""
        self._open.inc()

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count a request that is over."""
        self._open.dec()
        self._requests.labels(path, str(status)).inc()
        if status == CLIENT_LEFT:
            self._gone.labels(path).inc()
        else:
            self._seconds.labels(path).observe(seconds)

    def turn(self, model: str, requests: int, documents: int, tokens: int, seconds: float) -> None:
        """Count a turn of a model."""
        self._documents.labels(model).inc(documents)
        self._tokens.labels(model).inc(tokens)
        self._turn_seconds.labels(model).observe(seconds)
        self._turn_size.labels(model).observe(requests)

    def watch(self, model: str, waiting: Callable[[], int]) -> None:
        """Let the gauge of a model's queue ask `waiting`."""
        self._waiting.labels(model).set_function(waiting)

    def text(self) -> tuple[bytes, str]:
        """(the page that Prometheus reads, its content type)."""
        prometheus = need("prometheus_client", "serve")
        return prometheus.generate_latest(_Lasting(self.registry)), prometheus.CONTENT_TYPE_LATEST


class _Lasting(NamedTuple):
    """A registry without the times at which its series began, which double the page and which nobody asks for."""

    registry: Any

    def collect(self) -> Iterator[Any]:
        """Every family of series."""
        for family in self.registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family
