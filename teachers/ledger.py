"""What asking has taken or would take: requests, faults, tokens, money; and the purse that no request may overdraw."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, final

from rerank.errors import OverBudget

from .chat_settings import ChatSettings
from .endpoint import Reply


@final
@dataclass(frozen=True)
class Counts:
    """What a Chat has done since it was made."""

    lists: int = 0
    left_out: int = 0
    """Lists without an ordering: of fewer than two candidates, or with no useful answer."""
    requests: int = 0
    """Answers that the endpoint gave."""
    cached: int = 0
    """Answers that were there already."""
    retries: int = 0
    """Attempts that failed in a way that may pass, and were made again."""
    malformed: int = 0
    """Answers with a fault, new or old; `faults` says which ("cut": by the limit of tokens)."""
    faults: Mapping[str, int] = field(default_factory=dict)
    repaired: int = 0
    """Windows whose best answer was malformed: what it left out follows in first-stage order."""
    useless: int = 0
    """... of them, windows in which no candidate was named."""
    documents_cut: int = 0
    """Documents longer than `document_words`."""
    uncounted: int = 0
    """Answers whose tokens the server did not count; the rule of `tokenizer` did."""
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0
    seconds: float = 0.0

    @property
    def malformed_rate(self) -> float:
        """Share of the answers that were malformed."""
        return self.malformed / max(self.requests + self.cached, 1)

    def to_json(self) -> dict[str, Any]:
        """The counts, and the malformed rate, as JSON writes them."""
        return {**asdict(self), "malformed_rate": self.malformed_rate}


@final
@dataclass(frozen=True)
class Estimate:
    """What asking about some lists would take, were every answer well formed."""

    lists: int
    left_out: int
    """Lists of fewer than two candidates."""
    requests: int
    cached: int
    """Questions whose answer is there already."""
    tokens_in: int
    tokens_out: int
    """Five for each name; with reasoning, or where max_tokens is lower, the limit of an answer."""
    cost: float | None
    """None where the prices are not known."""

    def to_json(self) -> dict[str, Any]:
        """The estimate as JSON writes it."""
        return asdict(self)


@final
class Ledger:
    """The counts, kept by many threads, and the purse."""

    def __init__(self, settings: ChatSettings) -> None:
        self.counts = Counts()
        self._settings, self._lock = settings, threading.RLock()
        self._reserved = 0.0
        self._foreseen = 0
        """Tokens that were foreseen for the prompts that the server has counted."""

    def add(self, faults: Iterable[str] = (), **more: float) -> None:
        """Count: `requests=1`, `faults=("missing",)`."""
        with self._lock:
            found = self.counts
            sums: dict[str, Any] = {name: getattr(found, name) + n for name, n in more.items()}
            self.counts = replace(found, **sums, faults=dict(Counter(found.faults) + Counter(faults)))

    def reserve(self, tokens_in: int, tokens_out: int) -> float:
        """What a request may cost at most, set aside; OverBudget where that could pass `max_cost`."""
        with self._lock:
            found, most = self.counts, self._settings.max_cost
            ratio = max(1.0, found.tokens_in / self._foreseen) if self._foreseen else 1.0
            cost = self._settings.cost(tokens_in * ratio, tokens_out)
            if most is not None and found.cost + self._reserved + cost > most:
                raise OverBudget(
                    f"the next request could cost {cost:.6g}, after {found.cost + self._reserved:.6g} spent or under "
                    f"way: that could pass max_cost = {most:g}. All answers are kept: raise max_cost and go on"
                )
            self._reserved += cost
            return cost

    def settle(self, reserved: float, reply: Reply | None, foreseen: int, tokens_out: int) -> None:
        """Give back what was set aside, and count the answer; None: there was none."""
        with self._lock:
            self._reserved -= reserved
            if reply is None:
                return
            uncounted = reply.tokens_in is None or reply.tokens_out is None
            tokens_in = foreseen if reply.tokens_in is None else reply.tokens_in
            tokens_out = tokens_out if reply.tokens_out is None else reply.tokens_out
            cost = self._settings.cost(tokens_in, tokens_out)
            self.add(requests=1, tokens_in=tokens_in, tokens_out=tokens_out, cost=cost, uncounted=uncounted)
            self._foreseen += foreseen
