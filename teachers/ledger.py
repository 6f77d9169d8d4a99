"""What asking has taken or would take: requests, faults, tokens, money; and the purse that no request may overdraw."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, final

from rerank.errors import OverBudget

from .answered import NOTHING, Taken
from .chat_settings import ChatSettings
from .endpoint import Reply


@final
@dataclass(frozen=True)
class Counts:
    """What a Chat has done since it was made."""

    lists: int = 0
    left_out: int = 0
    """Lists without an ordering: of fewer than two candidates, or with no useful answer."""
    unnamed: int = 0
    """... of them, those about which no answer names a candidate."""
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

    def since(self, before: Counts) -> Counts:
        """What was done after `before`."""
        numbers = {f.name: getattr(self, f.name) - getattr(before, f.name) for f in fields(self) if f.name != "faults"}
        return Counts(**numbers, faults=dict(Counter(self.faults) - Counter(before.faults)))

    def in_words(self, priced: bool) -> str:
        """One line; what did not happen is not in it, nor the cost unless the prices are known."""
        faults = ", ".join(f"{n} {fault}" for fault, n in sorted(self.faults.items()))
        told = [
            (True, f"{self.lists} lists" + (f", {self.left_out} left out" if self.left_out else "")),
            (True, f"{self.requests} answers asked for, {self.cached} there already"),
            (self.retries, f"{self.retries} attempts repeated"),
            (self.malformed, f"{self.malformed} malformed ({faults})"),
            (self.repaired, f"{self.repaired} windows repaired, {self.useless} of them without a name"),
            (self.documents_cut, f"{self.documents_cut} documents cut"),
            (self.requests, f"tokens {self.tokens_in} in, {self.tokens_out} out"),
            (self.uncounted, f"{self.uncounted} answers uncounted by the server"),
            (priced, f"cost {self.cost:.6g}"),
            (True, f"{self.seconds:.1f} s"),
        ]
        return "; ".join(words for said, words in told if said)


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


def losses(found: Counts, settings: ChatSettings, answers: Path | None) -> Iterator[str]:
    """What was lost, a line each, and what may be done about it; `answers` is the file of the answers."""
    if short := found.left_out - found.unnamed:
        yield f"{short} of {found.lists} lists left out: fewer than two candidates"
    if not found.requests + found.cached:
        return
    if found.unnamed:
        yield f"{found.unnamed} of {found.lists} lists left out: no answer names a candidate{kept_in(answers)}"
    if found.repaired > (found.useless if found.unnamed else 0):  # else it is said already
        without = f" ({found.useless} of them name none)" if found.useless else ""
        yield f"{found.repaired} windows repaired: what their answers leave out{without} follows in first-stage order"
    if cut := found.faults.get("cut"):
        yield f"{cut} answers reached max_tokens: raise it"
    if found.documents_cut:
        yield f"{found.documents_cut} documents cut to document_words = {settings.document_words}"
    if found.uncounted and settings.priced:
        yield f"the server did not count the tokens of {found.uncounted} answers: their cost is an estimate"


def kept_in(answers: Path | None) -> str:
    """Where it can be read what the model said, and how it is asked anew; nothing where there is no file."""
    if answers is None:
        return ""
    return (
        f". What the model said can be read in {answers}. Those answers are kept and not asked for again: delete the "
        "file, or their lines, to ask anew"
    )


@final
class Ledger:
    """The counts, kept by many threads, and the purse, out of which all that was `taken` before has been paid."""

    def __init__(self, settings: ChatSettings, taken: Taken = NOTHING) -> None:
        self.counts = Counts()
        self._taken, self._spent = taken, settings.cost(taken.tokens_in, taken.tokens_out)
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
            foreseen = self._taken.foreseen_in + self._foreseen
            ratio = max(1.0, (self._taken.tokens_in + found.tokens_in) / foreseen) if foreseen else 1.0
            cost = self._settings.cost(tokens_in * ratio, tokens_out)
            now = found.cost + self._reserved
            if most is not None and self._spent + now + cost > most:
                raise OverBudget(
                    f"the next request could cost {cost:.6g}, after {self._spent:.6g} for the answers that were kept "
                    f"before and {now:.6g} spent now or under way: that could pass max_cost = {most:g}. All answers "
                    "are kept: raise max_cost and go on"
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
