"""An OpenAI-compatible HTTP endpoint (vLLM, SGLang, Ollama, OpenAI): one question, one answer, whatever lies between.

    POST {url}/chat/completions   {"model": ..., "messages": [...], "temperature": 0.0, "max_tokens": 176}

What is asked again, what is an error at once, and how a key is kept: see `rerank.http`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, final

from rerank.http import Connection, Manner

from .chat_settings import ChatSettings

START = "start the server first (for example `vllm serve MODEL --port 8000`, or `ollama serve`)"
NO_KEY = "no key was sent: give the NAME of the environment variable that holds one in key_variable"
SPENT = "all answers so far are kept: ask again later, and it goes on from here"
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


@final
class Endpoint:
    """A connection to the server that `settings` name, for use in a `with` block, by any number of threads.

    `retried` is called before each attempt that is not the first.
    """

    def __init__(self, settings: ChatSettings, retried: Callable[[], None] = lambda: None) -> None:
        address = f"{settings.url.rstrip('/').removesuffix('/chat/completions')}/chat/completions"
        manner = Manner(
            key_variable=settings.key_variable,
            insecure=True,  # said aloud: who names a variable and an http url means both
            timeout=settings.timeout,
            retries=settings.retries,
            first_wait=settings.first_wait,
            start=START,
            no_key=NO_KEY,
            advice=ADVICE,
            spent=SPENT,
        )
        self._connection = Connection(address, manner, retried)

    def __enter__(self) -> Endpoint:
        self._connection.open()
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def ask(self, body: Mapping[str, Any], key: str, pause: Callable[[float], object] = time.sleep) -> Reply:
        """The reply to a request; `key` names it for the draws of its waits, and `pause` waits."""
        return self._connection.ask(json.dumps(body).encode(), key, read_reply, pause)
