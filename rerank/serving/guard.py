"""What stands before every answer: keys, hosts, request ids, counting; and what a fault of ours is told as.

A request without the key that the server wants is refused before its body is read. Keys are compared in constant time.

A page of another site may make a browser post anywhere; such requests are refused (Sec-Fetch-Site), for a server on
this machine would otherwise work for every site that its user visits. A site whose name is made to lead to this machine
(DNS rebinding) is no other site to the browser: it is told by its Host, where the server has `hosts` of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, final

from rerank.serving.asking import Refusal
from rerank.serving.metrics import CLIENT_LEFT, Metrics

logger = logging.getLogger("rerank.serving")
requests = logging.getLogger("rerank.serving.requests")

OPEN = {"/", "/docs", "/openapi.json", "/health", "/live", "/ready", "/tei/health", "/infinity/health"}
"""Paths that need no key: two pages without anything of the models, and what load balancers ask."""
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(?::\d*)?")
HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}
FAILED = "this failed; the server's log tells more"
ENDED = "the server ended before this was answered: ask another one"

Send = Callable[[Any], Awaitable[None]]


class Gone(Exception):
    """Nobody waits for the answer any more."""


@final
class Guard:
    """An ASGI middleware around the application.

    `hosts`: the names, without a port, that a request may give as its Host; None: any. `log`: a line for each request.
    """

    def __init__(
        self,
        app: Any,
        keys: Sequence[str],
        metrics: Metrics,
        paths: Collection[str],
        hosts: Collection[str] | None = None,
        log: bool = False,
    ) -> None:
        self.app, self.metrics, self.paths, self.hosts, self.log = app, metrics, frozenset(paths), hosts, log
        self._keys = [_digest(key) for key in keys]

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        """Nothing; answers one request, or refuses it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.monotonic()
        exchange = Exchange(scope, send)
        self.metrics.begun()
        try:
            self._check(exchange)
            await self.app(exchange.scope, receive, exchange.send)
        except Gone:
            exchange.status = CLIENT_LEFT
        except asyncio.CancelledError:
            if exchange.status is None:
                await _refuse(exchange, Refusal(503, ENDED, "Unhealthy", retry_after=5.0))
            raise
        except Refusal as refusal:
            await _refuse(exchange, refusal)
        except Exception as error:  # a fault of ours: where it comes from is for the log alone
            if exchange.status is not None:
                raise
            logger.error("request %s to %s failed", exchange.request_id, _shown(exchange.path), exc_info=error)
            await exchange.refuse(Refusal(500, FAILED, "Backend"))
        finally:
            self._note(exchange, time.monotonic() - began)

    def _note(self, exchange: Exchange, seconds: float) -> None:
        """Count a request that is over, and log it where that is wanted: nothing of its texts, and no key."""
        known = exchange.path in self.paths
        status = CLIENT_LEFT if exchange.status is None else exchange.status
        self.metrics.request(exchange.path if known else "other", status, seconds)
        if self.log:
            path = exchange.path if known else _shown(exchange.path)
            asked = exchange.scope["state"].get("documents")
            documents = "" if asked is None else f" documents={asked}"
            requests.info(
                "%s %s %d %.1f ms%s request=%s",
                exchange.scope["method"],
                path,
                status,
                seconds * 1e3,
                documents,
                exchange.request_id,
            )

    def _check(self, exchange: Exchange) -> None:
        """Nothing, or the refusal of a request that has no right to be answered."""
        path, headers = exchange.path, exchange.headers
        if "content-length" in headers and "transfer-encoding" in headers:
            said = "the request has both Content-Length and Transfer-Encoding: send one of them"
            raise Refusal(400, said, headers={"Connection": "close"})  # a proxy may see two requests in it (RFC 9112)
        if self.hosts is not None and exchange.host and exchange.host not in self.hosts:
            raise Refusal(
                421,
                f"the Host is {_shown(exchange.host)}, and this server answers to {', '.join(sorted(self.hosts))}: it "
                "asks for no key, and other sites could lead a browser here; with --key-file any Host is answered",
                kind="Unauthorized",
            )
        if exchange.scope["method"] == "POST" and headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise Refusal(403, "a page of another site asked for this: ask from a program", kind="Unauthorized")
        if self._keys and path not in OPEN and "/.well-known/" not in path:
            self._check_key(exchange.scope)

    def _check_key(self, scope: Mapping[str, Any]) -> None:
        """Nothing, or the refusal of a request without a right key in any of its headers.

        Programs that cannot be told to leave Authorization out send something there, and the key as X-API-Key.
        """
        given, wrong = _keys_of(scope)
        # All keys are looked at, so that the time tells nothing of which one it was.
        right = [hmac.compare_digest(_digest(key), wanted) for _, key in given for wanted in self._keys]
        if any(right):
            return
        if given:
            problem = f"is wrong (in {' and in '.join(dict.fromkeys(name for name, _ in given))})"
        else:
            problem = f"is missing: {wrong}send Authorization: Bearer KEY"
        raise Refusal(401, f"the key {problem}", "Unauthorized", headers={"WWW-Authenticate": "Bearer"})


@final
class Exchange:
    """A request, and what it is told."""

    def __init__(self, scope: Mapping[str, Any], send: Send) -> None:
        self.headers = headers_of(scope)
        self.path, self.host = _target_of(scope["path"], self.headers.get("host", ""))
        given = self.headers.get("x-request-id", "")
        self.request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        self.scope = {**scope, "path": self.path, "state": {**scope.get("state", {}), "request_id": self.request_id}}
        self.status: int | None = None
        self._send = send

    async def send(self, message: Any) -> None:
        """Nothing; sends a part of the answer, its head with the headers that all answers have."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = {**HEADERS, "X-Request-ID": self.request_id}
            message = {**message, "headers": [*message.get("headers", []), *_encoded(own)]}
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        """Nothing; sends a refusal."""
        told = refusal.body(self.request_id)
        if refusal.status == 422 and self.path.startswith("/infinity/"):  # as Infinity's own client reads it
            told["detail"] = [{"loc": ["body"], "msg": refusal.message, "type": "value_error"}]
        body = json.dumps(told).encode()
        headers = {**refusal.all_headers(), "Content-Type": "application/json", "Content-Length": str(len(body))}
        await self.send({"type": "http.response.start", "status": refusal.status, "headers": _encoded(headers)})
        await self.send({"type": "http.response.body", "body": body})


async def _refuse(exchange: Exchange, refusal: Refusal) -> None:
    """Send a refusal, with a line in the log where it is no fault of the client's."""
    if refusal.status >= 500:
        path = _shown(exchange.path)
        logger.warning("request %s to %s: %d, %s", exchange.request_id, path, refusal.status, refusal.message)
    await exchange.refuse(refusal)


def headers_of(scope: Mapping[str, Any]) -> dict[str, str]:
    """Header, in small letters, -> value; several of one name are joined, as HTTP has it."""
    found: dict[str, str] = {}
    for key, text in _fields(scope):
        found[key] = f"{found[key]}, {text}" if key in found else text
    return found


def _fields(scope: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name.decode("latin1").lower(), value.decode("latin1")) for name, value in scope["headers"]]


def _encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode("latin1")) for name, value in headers.items()]


def _shown(text: str) -> str:
    """A text of a stranger, for a message or the log: on one line, and not long."""
    return ascii(text[:80])


def _target_of(path: str, host: str) -> tuple[str, str]:
    """(path, name of the host without a port) that a request asks, from its target and its Host.

    The target may be the whole address, which then has the word (RFC 9112, 3.2.2). A slash at the end means nothing
    here: addresses are often configured with one, and after a redirect many clients do not ask again.
    """
    if path.casefold().startswith(("http://", "https://")):
        host, _, path = path.partition("://")[2].partition("/")
        path = f"/{path}"
    found = HOST.fullmatch(host)
    return path.removesuffix("/") or "/", (found[1] if found else host).casefold()


def _keys_of(scope: Mapping[str, Any]) -> tuple[list[tuple[str, str]], str]:
    """([(header, the key in it)], what is wrong with a header that has none)."""
    given: list[tuple[str, str]] = []
    wrong = ""
    for name, value in _fields(scope):
        if name == "authorization":
            scheme, _, key = value.strip().partition(" ")
            if scheme.casefold() == "bearer" and key.strip():
                given.append(("Authorization", key.strip()))
            else:  # it may hold a key: it is not repeated
                wrong = "Authorization holds no 'Bearer KEY'; "
        elif name == "x-api-key" and value.strip():
            given.append(("X-API-Key", value.strip()))
    return given, wrong


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf8", "surrogateescape")).digest()
