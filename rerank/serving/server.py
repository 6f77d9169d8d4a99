"""`rerank serve`: listen, load, answer, and end without losing a question.

The port is taken and answers (503, loading) before the models are there. SIGTERM ends the server when every question
that was taken has its answer; new ones are refused (503) meanwhile, and a second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from rerank.errors import InputError, RerankError, need
from rerank.listening import EVERYWHERE, HERE, host_of, is_here, listening
from rerank.serving.limits import Limits
from rerank.serving.shelf import Shelf, aliases_of, named

if TYPE_CHECKING:
    from uvicorn import Server

logger = logging.getLogger("rerank.serving")

PAUSE = 0.05
"""Seconds between two looks at whether all is answered."""
GRACE = 5
"""Seconds in which answers, and refusals of what could not be answered, are written at the end."""
KEY_LENGTH = 16
"""Characters of a key, at least."""


def serve(
    models: Sequence[str],
    host: str = "127.0.0.1",
    port: int = 8000,
    keys: Sequence[str] = (),
    insecure: bool = False,
    aliases: Sequence[str] = (),
    limits: Limits | None = None,
    loading: Mapping[str, Any] | None = None,
    turn_tokens: int | None = None,
    at_most: int | None = None,
    drain: float | None = None,
    log: bool = False,
) -> None:
    """Nothing, once a signal ends it; until then the models can be asked at http://HOST:PORT.

    `models`: folders or hub ids, `NAME=MODEL` each or alone; the first answers where a request names none. `keys`: one
    of them has to come with every question; an address that others can reach needs one, or `insecure`. `aliases`:
    `OTHER=NAME`, `*=NAME` for every other name. `loading`: arguments of `Reranker.from_pretrained`. `turn_tokens` and
    `at_most`: tokens, and questions, that a model reads at once. `drain`: seconds that questions have to be answered in
    after SIGTERM; None: as many as a request may take. `log`: a line for each request. Port 0 takes a free one.
    """
    need("fastapi", "serve")
    need("uvicorn", "serve")
    need("prometheus_client", "serve")
    from rerank.serving.app import app_of

    if not models:
        raise InputError("give a model to serve: a folder or a hub id")
    _check_keys(keys, host, insecure)
    listed = [named(model) for model in models]
    limits = limits or Limits()
    drain = limits.seconds if drain is None else drain
    if not 0 <= drain <= threading.TIMEOUT_MAX:
        raise InputError(f"--drain must be a number of seconds, at least 0, not {drain!r}")
    shelf = Shelf(listed, aliases_of(aliases, listed), limits, loading, turn_tokens, at_most)
    with listening(host, port) as listener:
        port = listener.getsockname()[1]
        # A server that is for this machine and asks for no key looks at the name that it is called by: a page whose
        # name is bound anew to this machine (DNS rebinding) is then found out.
        hosts = {host_of(name, 80) for name in (*HERE, host)} if is_here(host) and not keys else None
        if log:
            logging.getLogger("rerank.serving.requests").setLevel(logging.INFO)
        app = app_of(shelf, keys, hosts, log)
        _run(app, shelf, listener, f"http://{host_of(EVERYWHERE.get(host, host), port)}", drain)


def checked_key(key: str, where: str = "a key") -> str:
    """The key; InputError that begins with `where` it stands where it is too short, or no header could carry it."""
    if len(key) < KEY_LENGTH or not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(
            f"{where}: a key has at least {KEY_LENGTH} letters, digits and signs of ASCII, and no blanks; this one has "
            f"{len(key)}, or others (python -c 'import secrets; print(secrets.token_urlsafe(32))' makes a good one)"
        )
    return key


def _check_keys(keys: Sequence[str], host: str, insecure: bool) -> None:
    for key in keys:
        checked_key(key)
    if not is_here(host) and not keys and not insecure:
        raise InputError(
            f"--host {host!r} lets others reach this server, and it asks for no key: give --key-file or --key-env, or "
            "--insecure where something else keeps strangers out"
        )


def _run(app: Any, shelf: Shelf, listener: socket.socket, url: str, drain: float) -> None:
    """Load beside the server that already answers; an error of loading ends it and is raised."""
    from rich.console import Console

    console = Console()

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    failures: list[BaseException] = []
    server = _server_of(app, shelf, drain)

    def load() -> None:
        try:
            shelf.fill(told=say)
        except BaseException as error:  # it is raised again below, by the main thread
            failures.append(error)
            server.should_exit = True
            return
        say(f"{url}   a page to try it; {url}/docs for programs (Ctrl-C ends it)")

    threading.Thread(target=load, name="loading", daemon=True).start()
    server.run(sockets=[listener])
    ended = shelf.close(0.0)
    if failures:
        wrong = failures[0]
        known = isinstance(wrong, RerankError | OSError)
        raise wrong if known else InputError(f"a model could not be loaded: {wrong}") from wrong
    say("ended")
    if not ended:  # a turn that does not end would be torn down within the engine, and abort
        _exit(0)


def _exit(status: int) -> None:
    """End the process now, with what was printed."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _server_of(app: Any, shelf: Shelf, drain: float) -> Server:
    """uvicorn's server, which answers what it has taken before it ends."""
    import uvicorn

    from rerank.serving.protocol import patient

    class Draining(uvicorn.Server):
        """Ends by the first signal when all is answered, by the second at once."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if shelf.draining or not shelf.desks:
                _exit(128 + sig)
            if sig != signal.SIGINT:  # by which it is ended at a terminal, and has done nothing wrong
                self._captured_signals.append(sig)
            shelf.draining = True
            if self.server_state.tasks:
                logger.warning("%s: answering what was asked, then ending", signal.Signals(sig).name)
            threading.Thread(target=self._end_when_answered, daemon=True).start()

        def _end_when_answered(self) -> None:
            until = time.monotonic() + drain
            while self.server_state.tasks and time.monotonic() < until:
                time.sleep(PAUSE)
            shelf.refuse_all()
            self.should_exit = True

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            await super().shutdown(sockets)
            await asyncio.sleep(PAUSE)  # what was cut off is told so

    return Draining(
        uvicorn.Config(
            app,
            http=patient(shelf.limits.body_seconds),
            ws="none",
            lifespan="off",
            log_level="error",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE,
            timeout_keep_alive=30,
        )
    )
