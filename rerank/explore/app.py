"""The page and its few questions over HTTP, for one person on this machine.

    GET /                 the page, one file
    GET /api/session      what the run is
    GET /api/queries      test queries that hold the words typed so far
    GET /api/rank         the columns of a query
    GET /api/explain      which sentences of a document carry its score

A page of another site may make a browser ask any address: requests that such a page starts are refused
(Sec-Fetch-Site), and so are those whose Host is not a name and the port that are served, which is how a name that is
bound anew to this machine shows itself (DNS rebinding), and a page of another port. What is not a question of the list
is refused with JSON that says why.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import webbrowser
from collections.abc import Awaitable, Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rerank.errors import InputError, RerankError, need
from rerank.explore.answers import answer_json, stretches_json
from rerank.explore.session import QUERY_LENGTH, Session, open_session
from rerank.listening import EVERYWHERE, HERE, content_security, host_of, listening

if TYPE_CHECKING:
    from fastapi import FastAPI

logger = logging.getLogger("rerank.explore")

PATIENCE = 30.0
"""Seconds that a question waits for the one before it."""
ID_LENGTH = 2000
"""Characters of an id that are read."""
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def serve(
    folder: Path, host: str = "127.0.0.1", port: int = 8899, open_browser: bool = True, base: Path | None = None
) -> None:
    """Nothing, once Ctrl-C ends it; until then the run in `folder` can be tried at http://HOST:PORT.

    Port 0 takes a free one. `base` is where the paths of the run's recipe start, where they are not found without it.
    """
    need("fastapi", "serve")
    uvicorn = need("uvicorn", "serve")
    from rich.console import Console

    console = Console()

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    with listening(host, port) as listener:  # a port that is taken is told before anything is loaded
        if host not in HERE:
            logger.warning("listening on %s: whoever can reach this machine there can read the run's texts", host)
        try:
            port = listener.getsockname()[1]
            app = app_of(open_session(folder, base, say), host, port)
            url = f"http://{host_of(EVERYWHERE.get(host, host), port)}/"
            say(f"{url}   (Ctrl-C ends it)")
            if open_browser:
                threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
            settings = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2, server_header=False)
            uvicorn.Server(settings).run(sockets=[listener])
        except KeyboardInterrupt:
            say("ended")


def app_of(session: Session, host: str = HERE[0], port: int = 8899) -> FastAPI:
    """The application, which answers to `host` and to the names of this very machine, at `port` alone."""
    need("fastapi", "serve")
    from fastapi import FastAPI, Response
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException

    page = files("rerank.explore").joinpath("page.html").read_text(encoding="utf8")
    policy = content_security(page)
    turn = threading.Lock()
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(_Guard, host=host, port=port)

    def answered(work: Callable[[], Any]) -> Any:
        """The answer to one question; one at a time, for the models are shared."""
        if not turn.acquire(timeout=PATIENCE):
            return told("the model is busy with an earlier question: try again in a moment", 503)
        try:
            return told_json(work())
        finally:
            turn.release()

    def told_json(content: Any, status: int = 200) -> Any:
        # ASCII alone: a text may hold a lone surrogate, which UTF-8 cannot write.
        return Response(json.dumps(content, allow_nan=False), status, media_type="application/json")

    def told(problem: str, status: int) -> Any:
        return told_json({"error": problem}, status)

    @app.get("/", response_model=None)
    def root() -> Any:
        return Response(page, media_type="text/html", headers={"Content-Security-Policy": policy})

    @app.get("/api/session", response_model=None)
    def facts() -> Any:
        return told_json(session_json(session))

    @app.get("/api/queries", response_model=None)
    def queries(q: str = "") -> Any:
        found = session.suggested(_limited(q, "q", QUERY_LENGTH))
        return told_json([{"id": query_id, "text": text} for query_id, text in found])

    @app.get("/api/rank", response_model=None)
    def rank(q: str = "", id: str | None = None, model: str | None = None) -> Any:
        return answered(lambda: _ranked(session, *_asked(q, id, model)))

    @app.get("/api/explain", response_model=None)
    def explain(doc: str, column: str, q: str = "", id: str | None = None, model: str | None = None) -> Any:
        return answered(lambda: _explained(session, _limited(doc, "doc", ID_LENGTH), column, *_asked(q, id, model)))

    app.add_exception_handler(InputError, lambda _, error: told(str(error), 400))
    app.add_exception_handler(RerankError, lambda _, error: told(str(error), 500))
    app.add_exception_handler(RequestValidationError, lambda _, error: told(_missing(error), 422))
    app.add_exception_handler(HTTPException, lambda _, error: told(_said(error), getattr(error, "status_code", 400)))
    return app


# ------------------------------------------------------------------------------------------------------------- answers
def session_json(session: Session) -> dict[str, Any]:
    """What the page says of the run before anything is asked."""
    settings = session.recipe.retrieval
    return {
        "name": session.recipe.name,
        "collection": session.collection.name,
        "documents": len(session.collection.documents),
        "queries": len(session.test_ids),
        "depth": settings.depth,
        "retrievers": [retriever.name for retriever in session.run.retrievers],
        "models": session.names,
        "measure": session.measure,
        "longest": QUERY_LENGTH,
        "notes": [*session.run.notes, *session.policies(session.names[0]).notes],
        "examples": [{"id": query_id, "text": text} for query_id, text in session.suggested("")],
    }


def _asked(q: str, query_id: str | None, model: str | None) -> tuple[str, str | None, str | None]:
    """Query, query id and model of a request, none of them longer than such things are."""
    _limited(q, "q", QUERY_LENGTH)
    return (
        q,
        _limited(query_id, "id", ID_LENGTH) or None,
        None if model is None else _limited(model, "model", ID_LENGTH),
    )


def _limited(value: Any, name: str, most: int) -> Any:
    if value is not None and len(value) > most:
        raise InputError(f"{name} has {len(value)} characters; at most {most} are taken")
    return value


def _ranked(session: Session, q: str, query_id: str | None, model: str | None) -> dict[str, Any]:
    began = time.perf_counter()
    answer = session.ranked(q, query_id, model)
    found = answer.candidates
    grades = session.collection.qrels.get(found.query_id, {}) if found is not None else {}
    told = answer_json(answer, grades, session.recipe.retrieval.language)
    notes = session.policies(session.names[0] if model is None else model).notes
    seconds = round(time.perf_counter() - began, 4)
    return {**told, "measure": session.measure, "notes": list(notes), "seconds": seconds}


def _explained(
    session: Session, doc_id: str, column: str, q: str, query_id: str | None, model: str | None
) -> dict[str, Any]:
    cut = session.explained(doc_id, column, q, query_id, model)
    length = len(session.collection.documents[doc_id])
    return stretches_json(cut, session.query_of(q, query_id)[1], session.recipe.retrieval.language, length)


def _missing(error: Any) -> str:
    """What a request lacks, in one line."""
    fields = sorted({str(problem["loc"][-1]) for problem in error.errors()})
    return f"the request is not understood: look at {', '.join(fields)}"


def _said(error: Any) -> str:
    allowed = "GET /, /api/session, /api/queries?q=, /api/rank?q=, /api/explain?q=&doc=&column="
    return f"{getattr(error, 'detail', 'this is not possible')}; there is {allowed}"


# ---------------------------------------------------------------------------------------------------------------- guard
class _Guard:
    """Passes on what this machine's own browser asks for this page; adds the headers that every answer has."""

    def __init__(self, app: Any, host: str, port: int) -> None:
        self.app, self.port, self.everywhere = app, port, host in EVERYWHERE
        self.served = [host_of(name, port) for name in (EVERYWHERE.get(host, host), *HERE)]

    async def __call__(self, scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def with_headers(message: Any) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                own = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        problem = self._problem(scope)
        if problem is not None:
            await _refuse(with_headers, problem, 403)
            return
        try:
            await self.app(scope, receive, with_headers)
        except Exception as error:  # a fault of ours: where it comes from is for this terminal alone
            if begun:
                raise
            logger.error("%r failed", scope["path"], exc_info=error)
            await _refuse(with_headers, "this failed; the terminal tells more", 500)

    def _problem(self, scope: Mapping[str, Any]) -> str | None:
        """Why a request is refused."""
        headers = [(name.decode("latin1"), value.decode("latin1")) for name, value in scope["headers"]]
        named = [value for name, value in headers if name == "host"]
        served = self.served
        if self.everywhere and scope.get("server"):  # the address of this machine at which the request arrived
            served = [*served, host_of(str(scope["server"][0]), self.port)]
        if len(named) != 1 or named[0].casefold() not in served:
            given = ", ".join(named)[:80]
            return f"this page is not served under the name {given!r}: open it as http://{self.served[0]}/"
        site = next((value for name, value in headers if name == "sec-fetch-site"), "none")
        if scope["path"].startswith("/api/") and site not in ("none", "same-origin"):
            return "another site asked for this; only the page itself may"
        return None


async def _refuse(send: Callable[[Any], Awaitable[None]], problem: str, status: int) -> None:
    body = json.dumps({"error": problem}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
