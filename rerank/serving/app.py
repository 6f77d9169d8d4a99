"""The application: which path is answered by what. Every question goes the one way that `answer` shows."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from importlib.resources import files
from typing import TYPE_CHECKING, Any, TypeVar

from rerank.errors import need
from rerank.listening import content_security
from rerank.serving.asking import Answer, Question, Refusal
from rerank.serving.guard import Guard, headers_of
from rerank.serving.limits import Limits, too_large
from rerank.serving.shelf import Shelf
from rerank.serving.telling import health_of, info_of, meta_of, models_of
from rerank.serving.wire.bodies import body_of
from rerank.serving.wire.dialects import ROUTES, asked
from rerank.serving.wire.openapi import openapi

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response

T = TypeVar("T")

LARGE = 100_000
"""Bytes of a body from which on it is read beside the event loop."""
CLIENT_LEFT = 499
"""The status of what nobody reads any more, as nginx has it."""
PAGES = {"/": "page.html", "/docs": "docs.html"}


class Gone(Exception):
    """Nobody waits for the answer any more."""


def app_of(shelf: Shelf, keys: Sequence[str] = ()) -> FastAPI:
    """The application over the models of a shelf; `keys`: one of them has to come with every question."""
    need("fastapi", "serve")
    from fastapi import FastAPI

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    # Threads of the loop's own pool would each keep a share of the memory that a large body took.
    beside = ThreadPoolExecutor(1, "bodies")

    async def answer(request: Request) -> Response:
        return await _answer(shelf, request, beside)

    for path in ROUTES:
        app.add_route(path, answer, methods=["POST"])
    for path, tell in _tellings(shelf).items():
        app.add_route(path, _at_once(tell), methods=["GET"])
    for path, file in PAGES.items():
        app.add_route(path, _at_once(_page(file)), methods=["GET"])
    _add_refusals(app)
    paths = {str(getattr(route, "path", "")) for route in app.routes}
    app.add_middleware(Guard, keys=keys, metrics=shelf.metrics, paths=paths)
    return app


def _at_once(tell: Callable[[Request], Response]) -> Callable[[Request], Awaitable[Response]]:
    """`tell` on the event loop, where the framework would use a thread: it takes no time."""

    async def telling(request: Request) -> Response:
        return tell(request)

    return telling


async def _answer(shelf: Shelf, request: Request, beside: Executor) -> Response:
    """A request's way from its bytes to its answer."""
    from starlette.responses import Response

    began = time.monotonic()
    shelf.check_open()
    raw = await _body(request, shelf.limits)
    headers = headers_of(request.scope)
    if len(raw) > LARGE:
        body = await asyncio.get_running_loop().run_in_executor(beside, body_of, raw, headers, shelf.limits)
    else:
        body = body_of(raw, headers, shelf.limits)
    question = asked(request.url.path, body)
    deadline = began + shelf.limits.seconds
    try:
        answers = await _while_connected(request, _answers(shelf, question.questions, request, deadline))
    except Gone:
        return Response(status_code=CLIENT_LEFT)
    return told(question.write(answers), headers=_timing(answers, time.monotonic() - began))


def told(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A response of JSON."""
    from starlette.responses import Response

    body = json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    return Response(body, status, headers, media_type="application/json")


async def _answers(shelf: Shelf, questions: Sequence[Question], request: Request, deadline: float) -> Sequence[Answer]:
    """The answer to each question of one request."""
    documents = sum(len(question.texts) for question in questions)
    if documents > shelf.limits.documents:
        raise too_large(f"{documents:,} documents", f"{shelf.limits.documents:,} in a request", "documents")
    request_id = request.state.request_id
    asking = [shelf.desk_of(question.model).ask(question, request_id, deadline) for question in questions]
    tasks = [asyncio.ensure_future(one) for one in asking]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:  # where one was refused, nobody waits for the others
            task.cancel()


async def _body(request: Request, limits: Limits) -> bytes:
    """The body as it came, no larger and no slower than is allowed."""
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > limits.body:
        raise too_large(f"a body of {int(announced):,} bytes", f"{limits.body:,}", "body")

    async def read() -> bytes:
        chunks, size = [], 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > limits.body:
                raise too_large(f"a body of more than {limits.body:,} bytes", f"{limits.body:,}", "body")
            chunks.append(chunk)
        return b"".join(chunks)

    try:
        return await asyncio.wait_for(read(), limits.body_seconds)
    except asyncio.TimeoutError:
        raise Refusal(
            408, f"the body did not arrive within {limits.body_seconds:g} seconds", headers={"Connection": "close"}
        ) from None


async def _while_connected(request: Request, work: Awaitable[T]) -> T:
    """What `work` gives; cancelled, and Gone, where the client leaves before."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Gone
    finally:
        working.cancel()
        leaving.cancel()


def _timing(answers: Sequence[Answer], seconds: float) -> dict[str, str]:
    """Where the time went, in TEI's headers and in the standard one, and what was given and had no effect."""
    waited = max((answer.waited for answer in answers), default=0.0) * 1e3
    scoring = max((answer.scoring for answer in answers), default=0.0) * 1e3
    tokens = sum(answer.tokens for answer in answers)
    told = {
        "x-compute-tokens": str(tokens),
        "x-total-time": str(round(seconds * 1e3)),
        "x-queue-time": str(round(waited)),
        "x-inference-time": str(round(scoring)),
        "Server-Timing": f"queue;dur={waited:.1f}, model;dur={scoring:.1f}, total;dur={seconds * 1e3:.1f}",
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


def _add_refusals(app: FastAPI) -> None:
    """Let the guard tell, in our words, what the framework refuses (404, 405)."""
    from starlette.exceptions import HTTPException

    async def refused(_: Request, error: Any) -> Any:
        detail = {404: "there is nothing at this path", 405: "this method is not allowed here"}
        known = f"POST {', '.join(ROUTES)}; /docs lists them with examples"
        problem = f"{detail.get(error.status_code, error.detail)}; there is {known}"
        raise Refusal(error.status_code, problem, headers=dict(error.headers or {}))

    app.add_exception_handler(HTTPException, refused)
