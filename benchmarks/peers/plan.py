"""How much is trained: in full (an hour on one core), or quickly (does it work?)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

DEPTH = 10
"""Candidates of a list."""
LISTS = 4
"""Lists of a step."""
HEAD_RATE = 1e-3
"""Learning rate of the head, on both sides; the transformer's is chosen."""
MINI_BATCH = 8
"""Pairs that sentence-transformers runs at once: its fastest in the trial of benchmarks/results/speed-cpu.json."""
QUERY_TOKENS, DOCUMENT_TOKENS, MAX_LENGTH = 32, 48, 96
"""Texts are cut to so many tokens before either side sees them, so that nobody's way of truncating decides."""


@final
@dataclass(frozen=True)
class Plan:
    """The amounts of one run."""

    collections: tuple[str, ...] = ("semeval", "scifact", "cosqa")
    seeds: int = 3
    steps: int = 16
    rates: tuple[float, ...] = (1e-4, 3e-4)
    tuned_on: tuple[tuple[str, str], ...] = (("semeval", "semeval"), ("scifact", "scifact"), ("cosqa", "scifact"))
    """Collection, and the one whose dev queries its rates are chosen on: cosqa's lists hold one relevant candidate, as
    scifact's do."""
    dev: int = 50
    """Held-out training queries that rates are chosen on."""
    test: int = 100
    """Test queries of each collection, drawn by the hash of their ids."""
    timed: tuple[str, ...] = ("semeval",)
    """Collections on which the sides also get equal time."""


FULL = Plan()
QUICK = Plan(collections=("semeval",), seeds=1, steps=2, dev=4, test=6)
