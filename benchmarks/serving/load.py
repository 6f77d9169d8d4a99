"""The load: many clients on one thread, as few instructions a request as asyncio allows. Plain HTTP/1.1, keep-alive.

Requests are bytes that were made before the clock starts, answers stay bytes until it has stopped: a client that shares
two cores with the server it measures must not be what is measured. How much it took of them is part of each result.

    closed loop   so many clients, each sends its next request when the last one is answered: throughput
    open loop     requests come at their times whether or not others are answered: what a queue has to bear
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, final

HOST = "127.0.0.1"
PATIENCE = 300.0
"""Seconds after which an answer that does not come is an error of the benchmark, never a hang."""


class Reply(NamedTuple):
    """One answer."""

    status: int
    headers: Mapping[str, str]
    """Names in small letters."""
    body: bytes
    seconds: float
    """Since the request was due: an open loop that falls behind says so."""

    @property
    def content(self) -> Any:
        """The body's JSON; None where it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


class Load(NamedTuple):
    """What came back, and what it took."""

    replies: list[Reply]
    """In the order of the requests."""
    seconds: float
    client_seconds: float
    """Processor time of the client."""

    def took(self) -> dict[str, float]:
        """How long, and what part of one core the client took meanwhile."""
        return {"seconds": self.seconds, "client_share_of_a_core": self.client_seconds / max(self.seconds, 1e-9)}


def request(path: str, content: Any, headers: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a POST of JSON."""
    body = json.dumps(content).encode()
    named = {"Host": HOST, "Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}
    return head("POST", path, named) + body


def head(method: str, path: str, headers: Mapping[str, str]) -> bytes:
    """The bytes of a request before its body."""
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin1")


@final
class Line:
    """One connection, opened when it is needed and again when the server has closed it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def ask(self, message: bytes, due: float | None = None) -> Reply:
        """The answer to a request, timed since it was `due` (now, where that is not said)."""
        due = time.perf_counter() if due is None else due
        if self.writer is None or self.reader is None or self.reader.at_eof():
            self.close()
            self.reader, self.writer = await asyncio.open_connection(HOST, self.port, limit=2**20)
        self.writer.write(message)
        await self.writer.drain()
        status, headers, body = await asyncio.wait_for(read_reply(self.reader), PATIENCE)
        if headers.get("connection", "").lower() == "close":
            self.close()
        return Reply(status, headers, body, time.perf_counter() - due)

    def close(self) -> None:
        """Nothing; the connection is given up, answered or not."""
        if self.writer is not None:
            self.writer.close()
        self.reader = self.writer = None


async def once(port: int, message: bytes) -> Reply:
    """The answer to a request on a connection of its own."""
    line = Line(port)
    try:
        return await line.ask(message)
    finally:
        line.close()


async def read_reply(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body); IncompleteReadError where the server ends it before that."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin1").split("\r\n")
    status = int(lines[0].split(" ", 2)[1])
    if status == 100:
        return await read_reply(reader)
    named = (line.partition(":") for line in lines[1:] if line)
    headers = {name.strip().lower(): value.strip() for name, _, value in named}
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return status, headers, b"".join([chunk async for chunk in _chunks(reader)])
    if "content-length" in headers:
        return status, headers, await reader.readexactly(int(headers["content-length"]))
    return status, headers, b"" if status in (204, 304) else await reader.read()


async def _chunks(reader: asyncio.StreamReader) -> Any:
    while size := int((await reader.readline()).split(b";")[0], 16):
        yield await reader.readexactly(size)
        await reader.readline()
    while (await reader.readline()).strip():
        pass  # trailers


# --------------------------------------------------------------------------------------------------------------- loops
def loaded(work: Coroutine[Any, Any, list[Reply]]) -> Load:
    """The replies of a loop, with the time it took."""
    start, used = time.perf_counter(), time.process_time()
    replies = asyncio.run(work)
    return Load(replies, time.perf_counter() - start, time.process_time() - used)


async def closed_loop(port: int, requests: Sequence[bytes], clients: int) -> list[Reply]:
    """The answer to each request, asked by so many clients at once."""
    replies: list[Reply | None] = [None] * len(requests)
    waiting = iter(enumerate(requests))
    await asyncio.gather(*(_client(port, waiting, replies) for _ in range(clients)))
    return [reply for reply in replies if reply is not None]


async def _client(port: int, waiting: Iterator[tuple[int, bytes]], replies: list[Reply | None]) -> None:
    line = Line(port)
    for place, message in waiting:
        replies[place] = await line.ask(message)
    line.close()


async def open_loop(port: int, requests: Sequence[bytes], rate: float) -> list[Reply]:
    """The answer to each request; one is sent every 1/`rate` seconds."""
    start, idle = time.perf_counter() + 0.05, [Line(port)]

    async def one(message: bytes, due: float) -> Reply:
        line = idle.pop() if idle else Line(port)
        reply = await line.ask(message, due)
        idle.append(line)
        return reply

    tasks = []
    for number, message in enumerate(requests):
        due = start + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(one(message, due)))
    replies = list(await asyncio.gather(*tasks))
    for line in idle:
        line.close()
    return replies


# ------------------------------------------------------------------------------------------------------------- figures
def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that a `share` of all does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def latencies(replies: Sequence[Reply]) -> dict[str, float]:
    """p50, p95 and p99 in milliseconds."""
    values = [1000 * reply.seconds for reply in replies]
    return {f"p{round(100 * share)}_ms": percentile(values, share) for share in (0.5, 0.95, 0.99)} if values else {}
