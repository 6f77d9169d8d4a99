"""How much is measured: in full, quickly (does it work on real weights?), or with tiny random weights (for tests)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final


@final
@dataclass(frozen=True)
class Plan:
    """The amounts of one run."""

    length: int = 128
    """Tokens of a pair."""
    queries: int = 48
    """Lists of a round; the other queries warm a side up."""
    documents: int = 20
    """Documents of a list."""
    rounds: int = 5
    """Each with documents of its own: BM25's top 100 is cut into slices."""
    clients: int = 8
    empty: int = 2000
    """Requests without documents: what HTTP alone costs."""
    queue: int = 400
    """Documents that may wait while too much is offered."""
    overload: float = 3.0
    """How many times the measured capacity is offered."""
    overload_seconds: float = 30.0
    overload_rounds: int = 3
    small_clients: int = 16
    small_requests: int = 400
    """Small requests of a round, of 1 to 4 short documents."""
    small_rounds: int = 5
    small_words: int = 12
    hostile: int = 1000
    """Malformed requests of our own generator."""
    passes: int = 5
    """How often they are sent: what still grows when nothing is new is a leak."""
    examples: int = 100
    """Of schemathesis, for each route."""
    slow: bool = True
    """Whether clients that drip and hang for the server's whole patience are among the hostile."""
    soak_clients: int = 6
    soak_minutes: float = 10.0
    in_flight: int = 8
    """Requests that are being answered when SIGTERM comes."""
    tiny: bool = False
    """Random weights of tiny networks, made-up texts: nothing is measured, only tried."""


FULL = Plan()
QUICK = replace(
    FULL,
    queries=8,
    rounds=2,
    empty=200,
    queue=100,
    overload_seconds=5.0,
    overload_rounds=1,
    small_requests=64,
    small_rounds=2,
    hostile=150,
    passes=1,
    examples=5,
    slow=False,
    soak_minutes=0.3,
)
TINY = replace(
    QUICK, queries=4, empty=20, overload_seconds=1.0, small_requests=24, hostile=100, soak_minutes=0.03, tiny=True
)
