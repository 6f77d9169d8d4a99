"""Requests that are wrong as HTTP: shapes that two servers read differently, floods, and clients that leave or hang.

A case is what is written to a fresh connection, how, and what may come back. What is no HTTP is refused by the HTTP
library before our code sees it: any 4xx or a closed connection will do, an answer of 5xx or none at all will not.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from typing import NamedTuple

from serving.hostile_bodies import ANSWERED, REFUSED, good, hostile_body
from serving.load import HOST, head

BROKEN = "broken"
"""4xx of whatever body, or a closed connection."""
TAKEN = "taken"
"""200, 4xx of whatever body, or a closed connection: servers may be lenient."""
LEFT = "left"
"""Nobody waits for an answer."""
PATH = "/v2/rerank"


class Case(NamedTuple):
    """One hostile request."""

    kind: str
    message: bytes
    expect: str
    answers: int = 1
    """Responses that a whole conversation has."""
    pause: float = 0.0
    """Seconds between pieces of the message; 0: it is written at once."""
    ending: str = ""
    """After the message: "half" closes the writing side, "reset" breaks the connection off."""


def cases(number: int, seed: int = 0) -> list[Case]:
    """So many cases: two bodies for each case of the wire; the same for the same seed."""
    draw = random.Random(seed)
    return [_wire(draw) if i % 3 == 2 else _of_body(draw) for i in range(number)]


def _of_body(draw: random.Random) -> Case:
    body = hostile_body(draw)
    return Case(
        body.kind, _post(body.content, {"Content-Type": "application/json", **body.headers}, body.path), body.expect
    )


def _wire(draw: random.Random) -> Case:
    return draw.choice(MAKERS)(draw)


def _post(content: bytes, headers: Mapping[str, str] | None = None, path: str = PATH, method: str = "POST") -> bytes:
    """The bytes of a request; a header that is given as "" is left out."""
    named = {"Host": HOST, "Content-Length": str(len(content)), "Content-Type": "application/json", **(headers or {})}
    return head(method, path, {name: value for name, value in named.items() if value}) + content


def _good(draw: random.Random) -> bytes:
    return json.dumps(good(draw)).encode()


def _chunked(content: bytes, size: int = 7) -> bytes:
    parts = [content[i : i + size] for i in range(0, len(content), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


CHUNKED = {"Content-Length": "", "Transfer-Encoding": "chunked"}


# ------------------------------------------------------------------------------------------------------------- framing
def _right_chunks(draw: random.Random) -> Case:
    message = _post(b"", CHUNKED) + _chunked(_good(draw), draw.randint(1, 30))
    return Case("chunked", message, ANSWERED, pause=draw.choice([0.0, 0.002]))


def _wrong_chunks(draw: random.Random) -> Case:
    tail = draw.choice(
        [b"zz\r\nabc\r\n0\r\n\r\n", b"ffffffffffffffffff\r\nabc", b"-5\r\nabc\r\n0\r\n\r\n",
         b"3\r\nabcdef\r\n0\r\n\r\n",
         b"5;" + b"x" * 70_000 + b"\r\nabcde\r\n0\r\n\r\n", b"\r\n\r\n", b"0x5\r\nabcde\r\n0\r\n\r\n"]
    )  # fmt: skip
    return Case("broken chunks", _post(b"", CHUNKED) + tail, BROKEN, ending="half")


def _two_lengths(draw: random.Random) -> Case:
    body = _good(draw)
    n, smuggled = len(body), b"POST /v2/rerank HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n"
    lines = draw.choice(
        [f"Content-Length: 5\r\nContent-Length: {n}", f"Content-Length: {n}, 5", f"Content-Length: +{n}",
         f"Content-Length: {n}\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 4",
         "Transfer-Encoding: xchunked", "Transfer-Encoding: chunked, identity", "Transfer-Encoding : chunked",
         "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", "Content-Length: -1",
         "Content-Length: 0x10", "Content-Length: 99999999999999999999999", "Content-Length: a"]
    )  # fmt: skip
    start = f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{lines}\r\n\r\n"
    return Case("smuggling", start.encode() + body + smuggled, TAKEN, ending="half")


def _pipelined(draw: random.Random) -> Case:
    n = draw.randint(2, 10)
    return Case("pipelined", _post(_good(draw)) * n, ANSWERED, answers=n)


def _short_body(draw: random.Random) -> Case:
    body = _good(draw)
    message = _post(body, {"Content-Length": str(len(body) + draw.randint(1, 500))})
    return Case("body that ends early", message, TAKEN, ending=draw.choice(["half", "reset"]))


def _waits_for_leave(draw: random.Random) -> Case:
    value, expect = draw.choice([("100-continue", ANSWERED), ("200-ok", TAKEN)])
    return Case("expect", _post(_good(draw), {"Expect": value}), expect)


# ---------------------------------------------------------------------------------------------------------- first lines
def _version(draw: random.Random) -> Case:
    version, expect = draw.choice(
        [(b"1.0", ANSWERED), (b"0.9", TAKEN), (b"9.9", TAKEN), (b"2.0", TAKEN), (b"x", BROKEN)]
    )
    return Case(
        f"HTTP/{version.decode()}",
        _post(_good(draw)).replace(b"HTTP/1.1", b"HTTP/" + version, 1),
        expect,
        ending="half",
    )


def _method(draw: random.Random) -> Case:
    method = draw.choice(["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "BREW", "post", "POST" * 30])
    # A HEAD has no body, and what is no method of HTTP does not reach us.
    known = method in ("GET", "PUT", "DELETE", "PATCH", "TRACE")
    return Case("method", _post(b"", {"Content-Length": ""}, method=method), REFUSED if known else TAKEN, ending="half")


def _target(draw: random.Random) -> Case:
    targets = (
        "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/v2/rerank%00", "/v2//rerank", "/V2/RERANK",
        "/v3/rerank", "/.env", "/static/../rerank/x", "/docs/../../x", "/%ff%fe", "/" + "a" * 5000,
        "/v1/models/../../etc", "/v1/models/%2e%2e%2fx",
    )  # fmt: skip
    return Case("target", _post(_good(draw), path=draw.choice(targets)), TAKEN)


def _strange_target(draw: random.Random) -> Case:
    targets = (
        "http://127.0.0.1/v2/rerank",
        "//v2/rerank",
        "*",
        "v2/rerank",
        "/" + "a" * 100_000,
        "/v2/rerank#x",
        "/\x7f",
    )
    return Case("strange target", _post(_good(draw), path=draw.choice(targets)), TAKEN, ending="half")


def _no_http(draw: random.Random) -> Case:
    messages = (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\r\n" * 500,
        b"GET\r\n\r\n", b"\x00" * 3000, b"POST /v2/rerank\r\n\r\n", b"SSH-2.0-x\r\n", b"GET / HTTP/1.1\nHost: x\n\n",
        draw.randbytes(2000),
    )  # fmt: skip
    return Case("no HTTP", draw.choice(messages), TAKEN, ending="half")


# ------------------------------------------------------------------------------------------------------------- headers
def _header(draw: random.Random) -> Case:
    lines = (
        b"no colon here", b": no name", b"X-A: a\x00b", b"X A: b", b"X-A: a\r\n folded", b"Host: a\r\nHost: b",
        b"X-\xff: \xfe",
        b"Authorization: Bearer \xff\xfe", b"Authorization: Basic =", b"Connection: upgrade\r\nUpgrade: websocket",
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk", b"X-Request-Id: a\tb",
        b"Range: bytes=0-",
        b"X-Request-Id: " + b"x" * 5000, b"Cookie: " + b"a=b; " * 500,
        b"X-Forwarded-For: " + b"1.1.1.1, " * 200, b"Accept: */;q=x",
    )  # fmt: skip
    start, _, rest = _post(_good(draw)).partition(b"\r\n")
    return Case(
        "header", start + b"\r\n" + draw.choice(lines) + b"\r\n" + rest, TAKEN, ending=draw.choice(["", "half"])
    )


def _header_flood(draw: random.Random) -> Case:
    n, size = draw.choice([(150, 10), (5000, 10), (100, 3000), (1, 500_000)])
    flood = {f"X-{i}": "y" * size for i in range(n)}
    return Case("header flood", _post(_good(draw), flood), TAKEN, ending="half")


def _without_host(draw: random.Random) -> Case:
    return Case("no Host", _post(_good(draw), {"Host": ""}), TAKEN)


def _without_type(draw: random.Random) -> Case:
    return Case("no content type", _post(_good(draw), {"Content-Type": ""}), REFUSED)


# ------------------------------------------------------------------------------------------------------------- clients
def _gone(draw: random.Random) -> Case:
    whole = _post(_good(draw))
    return Case("left in the middle", whole[: draw.randrange(1, len(whole))], LEFT, ending="reset")


def _gone_after(draw: random.Random) -> Case:
    return Case("left before the answer", _post(_good(draw)), LEFT, ending="reset")


def _half_closed(draw: random.Random) -> Case:
    return Case("half-closed", _post(_good(draw)), TAKEN, ending="half")


def _dripped(draw: random.Random) -> Case:
    return Case("slow client", _post(_good(draw)), ANSWERED, pause=0.001)


MAKERS: tuple[Callable[[random.Random], Case], ...] = (
    _right_chunks, _wrong_chunks, _two_lengths, _two_lengths, _pipelined, _short_body, _waits_for_leave, _version,
    _method, _target, _strange_target, _no_http, _header, _header, _header_flood, _without_host, _without_type,
    _gone, _gone_after, _half_closed, _dripped,
)  # fmt: skip
