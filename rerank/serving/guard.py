"""What stands before every answer: keys, request ids, counting; and what a fault of ours is told as.

A request without the key that the server wants is refused before its body is read. Keys are compared in constant time.
A page of another site may make a browser post anywhere; such requests are refused (Sec-Fetch-Site), for a server on
this machine would otherwise work for every site that its user visits.
"""

from __future__ import annotations

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
from rerank.serving.metrics import Metrics

logger = logging.getLogger("rerank.serving")

OPEN = {"/", "/docs", "/openapi.json", "/health", "/live", "/ready", "/tei/health", "/infinity/health"}
"""Paths that need no key: two pages without anything of the models, and what load balancers ask."""
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}

Send = Callable[[Any], Awaitable[None]]


@final
class Guard:
    """An ASGI middleware around the application."""

    def __init__(self, app: Any, keys: Sequence[str], metrics: Metrics, paths: Collection[str]) -> None:
        self.app, self.metrics, self.paths = app, metrics, frozenset(paths)
        self._keys = [_digest(key) for key in keys]

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        """Nothing; answers one request, or refuses it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = headers_of(scope)
        given = headers.get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        path = scope["path"] if scope["path"] in self.paths else "other"
        status: int | None = None

        async def answer(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = {**HEADERS, "X-Request-ID": request_id}
                added = [(name.lower().encode(), value.encode("latin1")) for name, value in own.items()]
                message = {**message, "headers": [*message.get("headers", []), *added]}
            await send(message)

        began = time.monotonic()
        self.metrics.begun()
        try:
            self._check(scope, headers)
            await self.app(scope, receive, answer)
        except Refusal as refusal:
            await refuse(answer, refusal, request_id, as_list=scope["path"].startswith("/infinity/"))
        except Exception as error:  # a fault of ours: where it comes from is for the log alone
            if status is not None:
                raise
            logger.error("request %s to %r failed", request_id, scope["path"], exc_info=error)
            await refuse(answer, Refusal(500, "this failed; the server's log tells more", "Backend"), request_id)
        finally:
            self.metrics.request(path, status, time.monotonic() - began)

    def _check(self, scope: Mapping[str, Any], headers: Mapping[str, str]) -> None:
        """Nothing, or the refusal of a request that has no right to be answered."""
        path = scope["path"]
        if scope["method"] == "POST" and headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise Refusal(403, "a page of another site asked for this: ask from a program", kind="Unauthorized")
        if not self._keys or path in OPEN or "/.well-known/" in path:
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        key = key.strip() if scheme.casefold() == "bearer" else headers.get("x-api-key", "")
        # All keys are looked at, so that the time tells nothing of which one it was.
        found = [hmac.compare_digest(_digest(key), wanted) for wanted in self._keys]
        if not any(found):
            problem = "is wrong" if key else "is missing: send Authorization: Bearer KEY"
            raise Refusal(401, f"the key {problem}", "Unauthorized", headers={"WWW-Authenticate": "Bearer"})


async def refuse(send: Send, refusal: Refusal, request_id: str, as_list: bool = False) -> None:
    """Send a refusal; `as_list`: what is wrong with the fields is told as Infinity's own client reads it."""
    told = refusal.body(request_id)
    if as_list and refusal.status == 422:
        told["detail"] = [{"loc": ["body"], "msg": refusal.message, "type": "value_error"}]
    body = json.dumps(told).encode()
    headers = {**refusal.all_headers(), "Content-Type": "application/json", "Content-Length": str(len(body))}
    raw = [(name.lower().encode(), value.encode("latin1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def headers_of(scope: Mapping[str, Any]) -> dict[str, str]:
    """Header, in small letters, -> value; several of one name are joined, as HTTP has it."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin1").lower(), value.decode("latin1")
        found[key] = f"{found[key]}, {text}" if key in found else text
    return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf8", "surrogateescape")).digest()
