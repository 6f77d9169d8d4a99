"""One POST, whatever lies between: what the clients of servers have in common (chat models, rerank endpoints).

    with Connection("http://localhost:8000/rerank", Manner(timeout=60.0)) as connection:
        answer = connection.ask(body, key="q1", read=lambda payload, seconds: json.loads(payload))

What may pass (busy, restarting, a dropped connection, a time-out, a body cut short) is asked again, after waits that
grow; what will not (a wrong key, an unknown model, a redirect) is an `EndpointError` at once, with what to do about it.

A key is read from the environment when the connection is opened. No setting, message, log or file holds it; redirects
are not followed, since they could carry it elsewhere; a server on this machine is never asked through a proxy.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar, final
from urllib.parse import urlsplit

from rerank.errors import EndpointError, InputError, need

logger = logging.getLogger("rerank.http")

Answer = TypeVar("Answer")

LONGEST_WAIT = 60.0
"""Seconds between two attempts, at most, whatever the server asks for."""
LARGEST = 16 * 2**20
"""Bytes of a response that are read."""
PASSING = frozenset({408, 409, 425, 429, *range(500, 600)}) - {501, 505}
"""Status codes of what may pass; 501 and 505 say that the server cannot do this at all."""


def check_url(url: str, keys: str) -> None:
    """Nothing; raises InputError unless `url` is http(s)://host[:port][/path]; `keys` says where a key belongs."""
    allowed = "must be http(s)://host[:port]/path, such as http://localhost:8000/v1"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:  # its words may hold a part of a password
        raise InputError(f"url {allowed}: this one has no host or port that can be read") from None
    if "@" in url or parts.query or parts.fragment:  # nor is it repeated
        raise InputError(f"url {allowed}, without a password or a query; {keys}")
    if parts.scheme not in ("http", "https") or not host or re.search(r"\s", url) or not url.isprintable():
        raise InputError(f"url = {url!r} {allowed}")


def check_variable(name: str, value: object) -> None:
    """Nothing; raises InputError unless `value` is None or the name of an environment variable.

    Names are in capitals, so that a key given by mistake is refused, and not repeated.
    """
    if value is not None and not (isinstance(value, str) and re.fullmatch(r"[A-Z_][A-Z0-9_]*", value)):
        raise InputError(f"{name} is the NAME of an environment variable, such as OPENAI_API_KEY, not a key")


def is_local(url: str) -> bool:
    """Whether `url` is of this machine."""
    host = urlsplit(url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
        return address.is_loopback or address.is_unspecified
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def waiting(first: float, attempt: int, key: str, retry_after: str | None = None) -> float:
    """Seconds to wait after attempt 0, 1, 2 ...: twice as long each time, less up to a half that depends on `key`.

    Not less than the server's Retry-After (seconds or a date), and neither is longer than `LONGEST_WAIT`.
    """
    draw = int.from_bytes(hashlib.sha256(f"{key} {attempt}".encode("utf8", "replace")).digest()[:8], "big") / 2**64
    pause = min(first * 2.0 ** min(attempt, 60), LONGEST_WAIT) * (1.0 - 0.5 * draw)
    return max(pause, min(_seconds(retry_after), LONGEST_WAIT))


def _seconds(retry_after: str | None) -> float:
    """What a Retry-After says, in seconds from now; 0 where it says nothing."""
    if not retry_after:
        return 0.0
    try:
        if re.fullmatch(r"\s*[0-9]{1,9}(\.[0-9]*)?\s*", retry_after):
            return float(retry_after)
        until = parsedate_to_datetime(retry_after)
        return max((until - datetime.now(until.tzinfo and timezone.utc)).total_seconds(), 0.0)
    except (TypeError, ValueError, OverflowError):
        return 0.0


@final
@dataclass(frozen=True, kw_only=True)
class Manner:
    """How a server is asked, and what is said when it refuses."""

    key_variable: str | None = None
    """NAME of the environment variable that holds the key; None: no key."""
    key_expected: bool = True
    """Whether it is said when that variable is not set."""
    insecure: bool = False
    """Whether a key may go to another machine over http, where all between here and there can read it."""
    timeout: float = 300.0
    """Seconds that one answer may take."""
    retries: int = 5
    """More attempts where a request fails in a way that may pass; 5 of them wait between 15 and 31 seconds in all."""
    first_wait: float = 1.0
    """Seconds before the second attempt; each later wait is twice as long, a part of it drawn."""
    start: str = "start the server first"
    """Advice where no server can be reached."""
    no_key: str = "no key was sent"
    """Advice where a key is asked for and none was meant to be sent."""
    advice: Mapping[int, str] = field(default_factory=dict)
    """Advice by status of a refusal; that of 404 is also given where a web page answers."""
    spent: str = "ask again later"
    """Advice where all attempts are spent."""

    def __post_init__(self) -> None:
        check_variable("key_variable", self.key_variable)
        if not (math.isfinite(self.timeout) and self.timeout > 0):
            raise InputError(f"timeout = {self.timeout!r} must be a finite number of seconds above 0")
        if not (math.isfinite(self.first_wait) and self.first_wait >= 0):
            raise InputError(f"first_wait = {self.first_wait!r} must be a finite number of seconds, at least 0")
        if not isinstance(self.retries, int) or isinstance(self.retries, bool) or self.retries < 0:
            raise InputError(f"retries = {self.retries!r} must be a whole number of at least 0")


class _Passing(Exception):
    """Trouble that may pass; `retry_after` is what the server asked for."""

    def __init__(self, trouble: str, status: int | None = None, retry_after: str | None = None) -> None:
        super().__init__(trouble)
        self.status, self.retry_after = status, retry_after


@final
class Connection:
    """A connection to the server at `address`, kept open between requests, for any number of threads.

    It is open in a `with` block, or between `open` and `close`. `retried` is called before each attempt that is not
    the first.
    """

    def __init__(self, address: str, manner: Manner, retried: Callable[[], None] = lambda: None) -> None:
        self.address, self.manner = address, manner
        self._retried = retried
        self._reached = False
        self._client: Any = None

    def __enter__(self) -> Connection:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> Connection:
        """This connection, with its key read; the server is not asked yet."""
        httpx2, key, timeout = need("httpx2", "chat"), self._key(), self.manner.timeout
        self._client = httpx2.Client(
            headers={"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})},
            timeout=httpx2.Timeout(timeout, connect=min(timeout, 10.0), pool=None),
            limits=httpx2.Limits(max_connections=None),  # there are as many as there are threads
            follow_redirects=False,
            trust_env=not is_local(self.address),
        )
        return self

    def close(self) -> None:
        """Nothing; closes what is open."""
        if self._client is not None:
            self._client.close()

    def ask(
        self,
        body: bytes,
        key: str,
        read: Callable[[bytes, float], Answer],
        pause: Callable[[float], object] = time.sleep,
    ) -> Answer:
        """What `read` makes of the response to a request: of its body, and of the seconds that it took.

        Where `read` raises ValueError ("is not JSON"), the request is made again. `key` names the request for the
        draws of its waits, and `pause` waits.
        """
        for attempt in range(self.manner.retries + 1):
            try:
                return self._once(body, read)
            except _Passing as trouble:
                if attempt == self.manner.retries:
                    problem, status = f"{self.address}: {trouble}; asked {attempt + 1} times", trouble.status
                    break
                wait = waiting(self.manner.first_wait, attempt, key, trouble.retry_after)
                why = trouble.status or "no answer"  # a body may repeat the prompt: it is in no log
                logger.info("%s: %s; asking again in %.1f s", self.address, why, wait)
            self._retried()
            pause(wait)
        raise EndpointError(f"{problem}. {_sentence(self.manner.spent)}", status)

    def clean(self, text: str) -> str:
        """The first 200 characters on one line, fit for a terminal, without the key should the server repeat it."""
        key = "" if self._client is None else self._client.headers.get("authorization", "").removeprefix("Bearer ")
        for written in {key, json.dumps(key)[1:-1]} if key else ():
            text = text.replace(written, "***")
        return "".join(c if c.isprintable() else "?" for c in " ".join(text.split())[:200])

    def _once(self, body: bytes, read: Callable[[bytes, float], Answer]) -> Answer:
        import httpx2

        began, timeout = time.monotonic(), self.manner.timeout
        try:
            status, headers, payload = self._exchange(body, began + timeout)
        except httpx2.ConnectError as error:
            if not self._reached:  # later it is a server that restarts
                raise EndpointError(
                    f"{self.address}: no server can be reached ({error}): {self.manner.start}"
                ) from None
            raise _Passing(f"the server cannot be reached any more ({error})") from None
        except httpx2.TimeoutException:
            raise _Passing(f"no whole answer within timeout = {timeout:g} s") from None
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            raise _Passing(f"the connection was dropped ({type(error).__name__}: {self.clean(str(error))})") from None
        self._reached = True
        if not 200 <= status < 300:
            raise self._refusal(status, headers, payload)
        try:
            return read(payload, time.monotonic() - began)
        except ValueError as error:
            problem = f"status {status}, but the body {error}: {self._excerpt(payload)}"
            if payload.lstrip()[:1] == b"<":
                advice = self.manner.advice.get(404, "is the url the right one?")
                raise EndpointError(f"{self.address}: {problem}. A web page answers here: {advice}", status) from None
            raise _Passing(problem, status) from None

    def _exchange(self, body: bytes, deadline: float) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body of the response; an answer that trickles in has no more time than another."""
        import httpx2

        read = bytearray()
        with self._client.stream("POST", self.address, content=body) as response:
            for chunk in response.iter_bytes():
                read += chunk
                if len(read) > LARGEST:
                    problem = f"the response is longer than {LARGEST} bytes: no answer to such a question"
                    raise EndpointError(f"{self.address}: {problem}", response.status_code)
                if time.monotonic() > deadline:
                    raise httpx2.ReadTimeout("the answer took too long")
            return response.status_code, response.headers, bytes(read)

    def _refusal(self, status: int, headers: Mapping[str, str], payload: bytes) -> Exception:
        """The error of a response that is not a success."""
        problem = f"status {status}: {self._excerpt(payload)}"
        if status in PASSING:
            return _Passing(problem, status, headers.get("retry-after"))
        if status in (401, 403):
            advice = self._advice_on_key()
        elif 300 <= status < 400:
            where = self.clean(headers.get("location", "nowhere"))
            advice = f"it redirects to {where}; redirects are not followed: give the url that is meant"
        else:
            advice = self.manner.advice.get(status, "the same request would be refused again")
        return EndpointError(f"{self.address}: {problem}. {_sentence(advice)}", status)

    def _advice_on_key(self) -> str:
        variable = self.manner.key_variable
        if variable is None:
            return self.manner.no_key
        sent = "authorization" in self._client.headers
        return f"the environment variable {variable} {'is set, and its key was sent' if sent else 'is not set'}"

    def _key(self) -> str:
        """The key; empty where none is needed or the variable is not set (the server may need none)."""
        variable = self.manner.key_variable
        key = os.environ.get(variable, "").strip() if variable else ""
        if variable and not key and self.manner.key_expected:
            logger.warning("the environment variable %s is not set: no key is sent", variable)
        if not (key.isascii() and key.isprintable()):
            raise InputError(f"the environment variable {variable} holds characters that no key has")
        if key and urlsplit(self.address).scheme == "http" and not is_local(self.address):
            problem = f"{self.address} is not https: the key travels readable to all between here and there"
            if not self.manner.insecure:
                raise InputError(f"{problem}. Give an https url, unset {variable}, or allow it with insecure")
            logger.warning("%s", problem)
        return key

    def _excerpt(self, payload: bytes) -> str:
        return self.clean(payload.decode("utf8", "replace")) or "(empty)"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"
