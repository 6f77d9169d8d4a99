"""The application: which path is answered by what. Every question goes the one way that `answer` shows."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from rerank.errors import nearest, need
from rerank.listening import content_security
from rerank.serving.arriving import Arrivals, while_connected
from rerank.serving.asking import Answer, Question, Refusal
from rerank.serving.guard import Guard
from rerank.serving.limits import too_large
from rerank.serving.shelf import Shelf
from rerank.serving.telling import health_of, info_of, meta_of, models_of
from rerank.serving.wire.dialects import ROUTES
from rerank.serving.wire.openapi import openapi

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response

PAGES = {"/": "page.html", "/docs": "docs.html"}


def app_of(shelf: Shelf, keys: Sequence[str] = (), hosts: Collection[str] | None = None, log: bool = False) -> FastAPI:
    """The application over the models of a shelf.

    `keys`: one of them has to come with every question. `hosts`: the names, without a port, that a request may call
    this server by; None: any. `log`: a line for each request at "rerank.serving.requests".
    """
    need("fastapi", "serve")
    from fastapi import FastAPI

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.router.redirect_slashes = False
    arrivals = Arrivals(shelf.limits)

    async def answer(request: Request) -> Response:
        return await _answer(shelf, arrivals, request)

    for path in ROUTES:
        app.add_route(path, answer, methods=["POST"])
    for path, tell in _tellings(shelf).items():
        app.add_route(path, _at_once(tell), methods=["GET"])
    for path, file in PAGES.items():
        app.add_route(path, _at_once(_page(file)), methods=["GET"])
    paths = {str(getattr(route, "path", "")) for route in app.routes}
    _add_refusals(app, paths)
    app.add_middleware(Guard, keys=keys, metrics=shelf.metrics, paths=paths, hosts=hosts, log=log)
    return app


def _at_once(tell: Callable[[Request], Response]) -> Callable[[Request], Awaitable[Response]]:
    """`tell` on the event loop, where the framework would use a thread: it takes no time."""

    async def telling(request: Request) -> Response:
        return tell(request)

    return telling


async def _answer(shelf: Shelf, arrivals: Arrivals, request: Request) -> Response:
    """A request's way from its bytes to its answer."""
    began = time.monotonic()
    shelf.check_open()
    deadline = began + shelf.limits.seconds
    asked = await arrivals.asked(request, deadline)
    arrived = time.monotonic() - began
    request.state.documents = sum(len(question.texts) for question in asked.questions)
    answers = await while_connected(request, _answers(shelf, asked.questions, request, deadline))
    return told(asked.write(answers), headers=_timing(answers, arrived, time.monotonic() - began))


def told(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A response of JSON."""
    from starlette.responses import Response

    body = json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    return Response(body, status, headers, media_type="application/json")


async def _answers(shelf: Shelf, questions: Sequence[Question], request: Request, deadline: float) -> Sequence[Answer]:
    """The answer to each question of one request, all of which ask the same model."""
    documents: int = request.state.documents
    if documents > shelf.limits.documents:
        raise too_large(f"{documents:,} documents", f"{shelf.limits.documents:,} in a request", "documents")
    return await shelf.desk_of(questions[0].model).ask_all(questions, request.state.request_id, deadline)


def _timing(answers: Sequence[Answer], arrived: float, seconds: float) -> dict[str, str]:
    """Where the time went, in TEI's headers and in the standard one, and what was given and had no effect."""
    waited = max((answer.waited for answer in answers), default=0.0) * 1e3
    scoring = max((answer.scoring for answer in answers), default=0.0) * 1e3
    tokens = sum(answer.tokens for answer in answers)
    told = {
        "x-compute-tokens": str(tokens),
        "x-total-time": str(round(seconds * 1e3)),
        "x-queue-time": str(round(waited)),
        "x-inference-time": str(round(scoring)),
        "Server-Timing": f"body;dur={arrived * 1e3:.1f}, queue;dur={waited:.1f}, model;dur={scoring:.1f}, "
        f"total;dur={seconds * 1e3:.1f}",
    }
    warnings = dict.fromkeys(warning for answer in answers for warning in answer.warnings)
    if warnings:
        told["X-Rerank-Warning"] = "; ".join(warnings).encode("ascii", "backslashreplace").decode()[:1000]
    return told


def _tellings(shelf: Shelf) -> dict[str, Callable[[Request], Response]]:
    """Path -> what tells about the server there."""
    from starlette.responses import Response

    def telling(tell: Callable[[], Any]) -> Callable[[Request], Response]:
        return lambda _: told(tell())

    def health(_: Request) -> Response:
        return told(*health_of(shelf))

    def there(_: Request) -> Response:
        return Response(status_code=204 if shelf.desks and not shelf.draining else 503)

    def metrics(_: Request) -> Response:
        text, kind = shelf.metrics.text()
        return Response(text, media_type=kind)

    info, models = telling(lambda: info_of(shelf)), telling(lambda: models_of(shelf))
    return {
        **dict.fromkeys(("/health", "/ready", "/tei/health", "/infinity/health"), health),
        **dict.fromkeys(("/info", "/tei/info"), info),
        **dict.fromkeys(("/models", "/v1/models", "/infinity/models"), models),
        **dict.fromkeys(("/.well-known/ready", "/weaviate/.well-known/ready"), there),
        **dict.fromkeys(("/.well-known/live", "/weaviate/.well-known/live"), lambda _: Response(status_code=204)),
        **dict.fromkeys(("/meta", "/weaviate/meta"), telling(lambda: meta_of(shelf))),
        "/live": telling(lambda: {"status": "alive"}),
        "/openapi.json": telling(openapi),
        "/metrics": metrics,
    }


def _page(file: str) -> Callable[[Request], Response]:
    from starlette.responses import Response

    page = files("rerank.serving").joinpath(file).read_text(encoding="utf8")
    policy = {"Content-Security-Policy": content_security(page), "Cross-Origin-Opener-Policy": "same-origin"}
    return lambda _: Response(page, media_type="text/html", headers=policy)


def _add_refusals(app: FastAPI, paths: Collection[str]) -> None:
    """Let the guard tell, in our words, what the framework refuses (404, 405)."""
    from starlette.exceptions import HTTPException

    async def refused(request: Request, error: Any) -> Any:
        path, headers = request.scope["path"], dict(error.headers or {})
        if error.status_code == 405:
            there = ", ".join(sorted(headers.get("Allow", "another").split(", ")))
            said = f"{request.method} {path}: this method is not allowed here; there is {there}"
        else:
            hint = nearest(path[:100], paths).partition(" (known")[0]
            said = f"there is nothing at {path[:80]!a}{hint} (/docs lists what there is)"
        raise Refusal(error.status_code, said, headers=headers)

    app.add_exception_handler(HTTPException, refused)
