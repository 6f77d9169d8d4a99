"""How a request arrives: its body, within its size, its time and the memory of all bodies together; and who leaves.

An exception holds every frame it went through, with all that is named there. Where such a frame names the future that
holds the exception, both hold each other and the body until the collector comes by, which is rare in a process with a
million objects of torch. So no frame here names a future when an exception leaves it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar, final

from rerank.serving.asking import Refusal
from rerank.serving.guard import Gone, headers_of
from rerank.serving.limits import Limits, too_large
from rerank.serving.wire.bodies import body_of
from rerank.serving.wire.dialects import Asked, asked

if TYPE_CHECKING:
    from starlette.requests import Request

T = TypeVar("T")

LARGE = 100_000
"""Bytes of a body from which on it is read beside the event loop, and only where there is memory for it."""


@final
class Arrivals:
    """What reads the bodies of one server, and counts the bytes of those that are not read yet."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.held = 0
        """Bytes of all bodies that have come and are not read yet."""
        # Threads of the loop's own pool would each keep a share of the memory that a large body took.
        self._beside = ThreadPoolExecutor(1, "bodies")

    async def asked(self, request: Request, deadline: float) -> Asked:
        """What a request asks, by `deadline` on the monotonic clock; Refusal where its body is not in order."""
        raw = bytearray()
        try:
            await self._receive(request, raw)
            if len(raw) <= LARGE and "content-encoding" not in request.headers:
                return _read(request, raw, self.limits)
            reading = asyncio.get_running_loop().run_in_executor(self._beside, _read, request, raw, self.limits)
            try:
                return await while_connected(request, reading, deadline - time.monotonic())
            except asyncio.TimeoutError:
                raise self._late() from None
            finally:
                del reading
        finally:
            self.held -= len(raw)

    async def _receive(self, request: Request, raw: bytearray) -> None:
        """Nothing; `raw` grows by the body as it comes, no larger and no slower than is allowed."""
        announced = request.headers.get("content-length", "0")
        if announced.isdigit() and int(announced[:20]) > self.limits.body:
            raise too_large(f"a body of {int(announced[:20]):,} bytes", f"{self.limits.body:,}", "body")
        until = time.monotonic() + self.limits.body_seconds
        more = True
        while more:
            try:
                message = await asyncio.wait_for(request.receive(), max(0.0, until - time.monotonic()))
            except asyncio.TimeoutError:
                raise self._slow() from None
            if message["type"] == "http.disconnect":
                raise Gone
            chunk, more = message.get("body", b""), message.get("more_body", False)
            raw += chunk
            self.held += len(chunk)
            self._check(len(raw))

    def _check(self, size: int) -> None:
        """Nothing, or the refusal of a body of which so much has come."""
        if size > self.limits.body:
            raise too_large(f"a body of more than {self.limits.body:,} bytes", f"{self.limits.body:,}", "body")
        # A flood of large bodies does not shut out the small ones, of which a connection holds as much anyway.
        if size > LARGE and self.held > self.limits.bodies:
            raise Refusal(
                429,
                f"{self.held:,} bytes of large requests are on their way, and {self.limits.bodies:,} may (rerank serve "
                "--max-bodies sets it): try again later",
                kind="Overloaded",
                retry_after=1.0,
            )

    def _slow(self) -> Refusal:
        said = f"the body did not arrive within {self.limits.body_seconds:g} seconds"
        return Refusal(408, said, headers={"Connection": "close"})

    def _late(self) -> Refusal:
        return Refusal(
            504,
            f"the body was not read within {self.limits.seconds:g} seconds (rerank serve --timeout sets it): many "
            "large ones are waiting; send fewer documents",
            kind="Timeout",
        )


async def while_connected(request: Request, work: Awaitable[T], seconds: float | None = None) -> T:
    """What `work` gives; cancelled, and Gone, where the client leaves before, or TimeoutError after `seconds`."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(left())
    del work
    try:
        timeout = None if seconds is None else max(0.0, seconds)
        await asyncio.wait({working, leaving}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        if leaving.done():
            raise Gone
        raise asyncio.TimeoutError
    finally:
        working.cancel()
        leaving.cancel()
        del working, leaving


def _read(request: Request, raw: bytearray, limits: Limits) -> Asked:
    return asked(request.scope["path"], body_of(bytes(raw), headers_of(request.scope), limits))
