"""What a chat teacher is told: whom to ask, what to show, how to ask, and what it may cost; checked before any request.

    ChatSettings(url="http://localhost:8000/v1", model="Qwen/Qwen3-32B", window=20, windowing="sliding")

A key is never among them: they hold the name of the environment variable that does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, final

from rerank.errors import InputError
from rerank.http import check_url, check_variable

THOUGHT = 8192
"""Tokens that a model may think for, where `max_tokens` does not say."""
FORMATIVE = (
    *("model", "window", "windowing", "windowing_settings", "document_words", "reasoning"),
    *("temperature", "seed", "max_tokens", "limit_name", "extra", "again"),
)
"""Settings that decide what is said; the others decide how it is fetched."""
OPTIONAL = ("document_words", "temperature", "seed", "max_tokens", "price_in", "price_out", "max_cost")


def _check_number(name: str, value: Any, least: int, whole: bool) -> None:
    """Nothing; raises InputError unless `value` is None or a finite number of at least `least`."""
    kind = int if whole else (int, float)
    if value is None and name in OPTIONAL:
        return
    if isinstance(value, bool) or not isinstance(value, kind) or not math.isfinite(value) or value < least:
        raise InputError(f"{name} = {value!r} must be {'a whole' if whole else 'a finite'} number of at least {least}")


def _check_kinds(settings: ChatSettings) -> None:
    """Nothing; raises InputError where a setting is no text, table or truth value and should be one."""
    kinds: dict[str, tuple[type, str]] = {
        **dict.fromkeys(("model", "windowing"), (str, "a text")),
        **dict.fromkeys(("windowing_settings", "extra"), (Mapping, "a table, such as { stride = 10 }")),
        "reasoning": (bool, "true or false"),
    }
    for name, (kind, words) in kinds.items():
        if not isinstance(getattr(settings, name), kind):
            raise InputError(f"{name} = {getattr(settings, name)!r} must be {words}")
    check_variable("key_variable", settings.key_variable)
    folder = settings.tokenizer
    # Any other name would be looked for on the hub.
    if folder is not None and not (isinstance(folder, str) and Path(folder).is_dir()):
        raise InputError(f"tokenizer = {folder!r} is no folder: give the folder of a tokenizer, or leave it out")


def _check_json(extra: Any) -> None:
    try:
        json.dumps(extra, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"extra must hold what JSON can say: {error}") from None


@final
@dataclass(frozen=True, kw_only=True)
class ChatSettings:
    """Whom to ask, and how."""

    url: str
    """As far as /v1: "http://localhost:8000/v1", "https://api.openai.com/v1"."""
    model: str
    """The name under which the server has it."""
    key_variable: str | None = None
    """NAME of the environment variable that holds the key, such as OPENAI_API_KEY; None: no key."""
    window: int = 20
    """Candidates in one prompt, at most."""
    windowing: str = "sliding"
    """How a longer list is ranked: full, sliding, disjoint, tournament, setwise (`rerank.prompting.windows`)."""
    windowing_settings: Mapping[str, Any] = field(default_factory=dict)
    """Its settings: {"stride": 10}, {"shuffles": 3}, {"top": 10}."""
    document_words: int | None = 300
    """Words of a document that are shown; None: all."""
    reasoning: bool = False
    """Whether the model may write free text before its answer, which then stands in <answer>...</answer>."""
    temperature: float | None = 0.0
    """None: not sent (some models refuse any)."""
    seed: int | None = None
    """None: not sent. A second attempt takes the next one, and a temperature of at least 0.5."""
    max_tokens: int | None = None
    """Of an answer; None: enough to name all candidates of the window, and 8192 more for reasoning."""
    limit_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the server calls that limit (reasoning models of OpenAI: the second)."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """More fields of the request, as they are: {"reasoning_effort": "low"}."""
    again: int = 1
    """How many more times a malformed answer is asked for."""
    concurrency: int = 4
    """Requests that are open at once: of several lists, and of the windows of one round of a list."""
    timeout: float = 300.0
    """Seconds that one answer may take."""
    retries: int = 5
    """More attempts where a request fails in a way that may pass; 5 of them wait between 15 and 31 seconds in all."""
    first_wait: float = 1.0
    """Seconds before the second attempt; each later wait is twice as long, a part of it drawn."""
    price_in: float | None = None
    """Of a million tokens of prompts."""
    price_out: float | None = None
    """Of a million tokens of answers."""
    max_cost: float | None = None
    """What the answers of `model` in the file of answers may cost in all, those of earlier runs too (by these prices).

    The request that could pass it is not made. Without a file of answers it is what one Chat may spend.
    """
    tokenizer: str | None = None
    """Folder of a tokenizer that counts tokens beforehand; None: a token for four ASCII characters or one other."""

    def __post_init__(self) -> None:
        check_url(self.url, "name a variable with the key in key_variable")
        _check_kinds(self)
        if not self.model:
            raise InputError("model is empty: give the name under which the server has it")
        for name, least in (("document_words", 1), ("max_tokens", 1), ("again", 0), ("concurrency", 1), ("retries", 0)):
            _check_number(name, getattr(self, name), least, whole=True)
        for name in ("temperature", "timeout", "first_wait", "price_in", "price_out", "max_cost"):
            _check_number(name, getattr(self, name), 0, whole=False)
        if self.timeout == 0:
            raise InputError("timeout = 0 leaves no time for an answer: give seconds")
        if self.limit_name not in ("max_tokens", "max_completion_tokens"):
            raise InputError(f"limit_name = {self.limit_name!r} must be max_tokens or max_completion_tokens")
        if self.max_cost is not None and not self.priced:
            raise InputError("max_cost needs price_in and price_out: what a million tokens of each cost")
        _check_number("seed", self.seed, 0, whole=True)
        _check_json(self.extra)
        taken = {"model", "messages", "stream", "n", "temperature", "seed", self.limit_name} & set(self.extra)
        if taken:
            raise InputError(f"extra holds {sorted(taken)}: those are settings of their own, or not allowed")
        self.build_windowing().plan(2, self.window).close()

    def build_windowing(self) -> Any:
        """The `Windowing` that the settings name."""
        from rerank.prompting.windows import windowing_named

        return windowing_named(self.windowing, **self.windowing_settings)

    @property
    def priced(self) -> bool:
        """Whether what an answer costs is known."""
        return None not in (self.price_in, self.price_out)

    def limit(self, n: int) -> int:
        """Tokens that an answer about `n` candidates may have."""
        return self.max_tokens or 8 * n + 16 + (THOUGHT if self.reasoning else 0)

    def cost(self, tokens_in: float, tokens_out: float) -> float:
        """What so many tokens cost; a price that is not known counts nothing."""
        return math.fsum((tokens_in * (self.price_in or 0.0), tokens_out * (self.price_out or 0.0))) / 1e6
