"""An OpenAI-compatible HTTP endpoint (vLLM, SGLang, Ollama, OpenAI): one question, one answer, whatever lies between.

    POST {url}/chat/completions   {"model": ..., "messages": [...], "temperature": 0.0, "max_tokens": 176}

What may pass (busy, restarting, a dropped connection, a time-out) is asked again, after waits that grow; what will not
(a wrong key, an unknown model, a prompt that is too long) is an `EndpointError` at once.

The key is read from the environment when the connection is opened. No field, message, log or file holds it; redirects
are not followed, since they could carry it elsewhere; a server on this machine is never asked through a proxy.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, final
from urllib.parse import urlsplit

from rerank.errors import EndpointError, InputError, need

from .chat_settings import ChatSettings

logger = logging.getLogger("rerank.teachers.endpoint")

LONGEST_WAIT = 60.0
"""Seconds between two attempts, at most, whatever the server asks for."""
LARGEST = 16 * 2**20
"""Bytes of a response that are read."""
START = "start the server first (for example `vllm serve MODEL --port 8000`, or `ollama serve`)"
MOST_TOKENS = 10**9
"""More than any model reads or writes at once: a server that counts more than that has not counted."""
ADVICE = {
    400: "a prompt that is too long is a smaller window or fewer document_words; another setting may be one that this "
    "server does not know",
    404: "is the url the one that ends in /v1, and is this the name under which the server has the model?",
    422: "the server does not know one of the settings",
}


class Reply(NamedTuple):
    """What a model said."""

    text: str
    reasoning: str = ""
    """What it thought, where the server tells that apart."""
    finish: str = ""
    """Why it stopped: "stop", or "length" where it was cut."""
    tokens_in: int | None = None
    tokens_out: int | None = None
    """As the server counted; None where it does not say."""
    seconds: float = 0.0


def is_local(url: str) -> bool:
    """Whether `url` is of this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def waiting(first: float, attempt: int, key: str, retry_after: str | None = None) -> float:
    """Seconds to wait after attempt 0, 1, 2 ...: twice as long each time, less up to a half that depends on `key`.

    Not less than the server's Retry-After (seconds or a date), and neither is longer than `LONGEST_WAIT`.
    """
    draw = int.from_bytes(hashlib.sha256(f"{key} {attempt}".encode()).digest()[:8], "big") / 2**64
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


def read_reply(payload: bytes, seconds: float) -> Reply:
    """The reply in a response's body; ValueError says what is wrong with it."""
    try:
        answer = json.loads(payload)
    except (ValueError, RecursionError):
        raise ValueError("is not JSON") from None
    choices = answer.get("choices") if isinstance(answer, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise ValueError("has no choices[0].message")
    usage = answer.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Reply(
        text=_text(message.get("content")),
        reasoning=_text(message.get("reasoning_content") or message.get("reasoning")),
        finish=str(choice.get("finish_reason") or ""),
        tokens_in=_count(usage.get("prompt_tokens")),
        tokens_out=_count(usage.get("completion_tokens")),
        seconds=seconds,
    )


def _text(content: Any) -> str:
    """A message's words: a text, a list of parts that hold texts, or nothing."""
    if isinstance(content, list):
        return "".join(_text(part.get("text")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS else None


class _Passing(Exception):
    """Trouble that may pass; `retry_after` is what the server asked for."""

    def __init__(self, trouble: str, status: int | None = None, retry_after: str | None = None) -> None:
        super().__init__(trouble)
        self.status, self.retry_after = status, retry_after


@final
class Endpoint:
    """A connection to the server that `settings` name, for use in a `with` block, by any number of threads.

    `retried` is called before each attempt that is not the first.
    """

    def __init__(self, settings: ChatSettings, retried: Callable[[], None] = lambda: None) -> None:
        self.settings = settings
        self.address = f"{settings.url.rstrip('/').removesuffix('/chat/completions')}/chat/completions"
        self._retried = retried
        self._reached = False
        self._client: Any = None

    def __enter__(self) -> Endpoint:
        httpx2, key = need("httpx2", "chat"), self._key()
        if key and self.address.startswith("http:") and not is_local(self.address):
            logger.warning("%s is not https: the key travels readable to all between here and there", self.address)
        self._client = httpx2.Client(
            headers={"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})},
            timeout=httpx2.Timeout(self.settings.timeout, connect=min(self.settings.timeout, 10.0), pool=None),
            limits=httpx2.Limits(max_connections=None),  # there are as many as there are threads
            follow_redirects=False,
            trust_env=not is_local(self.address),
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ask(self, body: Mapping[str, Any], key: str, pause: Callable[[float], object] = time.sleep) -> Reply:
        """The reply to a request; `key` names it for the draws of its waits, and `pause` waits."""
        data = json.dumps(body).encode()
        for attempt in range(self.settings.retries + 1):
            try:
                return self._once(data)
            except _Passing as trouble:
                if attempt == self.settings.retries:
                    problem, status = f"{self.address}: {trouble}; asked {attempt + 1} times", trouble.status
                    break
                wait = waiting(self.settings.first_wait, attempt, key, trouble.retry_after)
                why = trouble.status or "no answer"  # a body may repeat the prompt: it is in no log
                logger.info("%s: %s; asking again in %.1f s", self.address, why, wait)
            self._retried()
            pause(wait)
        raise EndpointError(
            f"{problem}. All answers so far are kept: ask again later, and it goes on from here", status
        )

    def _once(self, data: bytes) -> Reply:
        import httpx2

        began = time.monotonic()
        try:
            status, headers, payload = self._exchange(data, began + self.settings.timeout)
        except httpx2.ConnectError as error:
            if not self._reached:  # later it is a server that restarts
                raise EndpointError(f"{self.address}: no server can be reached ({error}): {START}") from None
            raise _Passing(f"the server cannot be reached any more ({error})") from None
        except httpx2.TimeoutException:
            raise _Passing(f"no whole answer within timeout = {self.settings.timeout:g} s") from None
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            raise _Passing(f"the connection was dropped ({type(error).__name__}: {error})") from None
        self._reached = True
        if not 200 <= status < 300:
            raise self._refusal(status, headers, payload)
        try:
            return read_reply(payload, time.monotonic() - began)
        except ValueError as error:
            problem = f"status {status}, but the body {error}: {self._excerpt(payload)}"
            if payload.lstrip()[:1] == b"<":
                raise EndpointError(f"{self.address}: {problem}. A web page answers here: {ADVICE[404]}") from None
            raise _Passing(problem, status) from None

    def _exchange(self, data: bytes, deadline: float) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body of the response; an answer that trickles in has no more time than another."""
        import httpx2

        body = bytearray()
        with self._client.stream("POST", self.address, content=data) as response:
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > LARGEST:
                    raise EndpointError(f"{self.address}: the response is longer than {LARGEST} bytes: no chat answer")
                if time.monotonic() > deadline:
                    raise httpx2.ReadTimeout("the answer took too long")
            return response.status_code, response.headers, bytes(body)

    def _refusal(self, status: int, headers: Mapping[str, str], payload: bytes) -> Exception:
        """The error of a response that is not a success."""
        problem = f"status {status}: {self._excerpt(payload)}"
        if status in (408, 409, 425, 429) or status >= 500:
            return _Passing(problem, status, headers.get("retry-after"))
        if status in (401, 403):
            advice = self._advice_on_key()
        elif 300 <= status < 400:
            where = self._clean(headers.get("location", "nowhere"))
            advice = f"it redirects to {where}; redirects are not followed: give the url that is meant"
        else:
            advice = ADVICE.get(status, "the same request would be refused again")
        return EndpointError(f"{self.address}: {problem}. {advice[0].upper()}{advice[1:]}", status)

    def _advice_on_key(self) -> str:
        if self.settings.key_variable is None:
            return "no key was sent: give the NAME of the environment variable that holds one in key_variable"
        state = (
            "is set, and its key was sent" if os.environ.get(self.settings.key_variable, "").strip() else "is not set"
        )
        return f"the environment variable {self.settings.key_variable} {state}"

    def _key(self) -> str:
        """The key; empty where none is needed or the variable is not set (the server may need none)."""
        key = os.environ.get(self.settings.key_variable, "").strip() if self.settings.key_variable else ""
        if self.settings.key_variable and not key:
            logger.warning("the environment variable %s is not set: no key is sent", self.settings.key_variable)
        if not (key.isascii() and key.isprintable()):
            raise InputError(f"the environment variable {self.settings.key_variable} holds characters that no key has")
        return key

    def _excerpt(self, payload: bytes) -> str:
        return self._clean(payload.decode("utf8", "replace")) or "(empty)"

    def _clean(self, text: str) -> str:
        """The first 200 characters on one line, fit for a terminal, without the key should the server repeat it."""
        key = os.environ.get(self.settings.key_variable, "").strip() if self.settings.key_variable else ""
        line = " ".join((text.replace(key, "***") if key else text).split())
        return "".join(c if c.isprintable() else "?" for c in line[:200])
