"""Small requests: what it gives that requests share a turn. The same server, with and without `--one-at-a-time`.

Sixteen clients ask about 1 to 4 short documents each. Both servers stand ready, one is asked at a time, and they change
places in every round. Beside them `Reranker.rank` of the same questions, which has neither queue nor HTTP.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from serving.inside import inside
from serving.load import Load, latencies
from serving.material import Material
from serving.plan import Plan
from serving.server import Server, serving
from serving.throughput import asked

REQUIRED = 1.3
SIDES = ("default", "one at a time")


def batching(plan: Plan, given: Material, threads: int) -> dict[str, Any]:
    """For each model: requests a second of both, and their ratio."""
    found = {name: _of_model(path, plan, given, threads) for name, path in given.models.items()}
    return {
        "clients": plan.small_clients,
        "documents": "1 to 4",
        "words": plan.small_words,
        "ratios": {name: one["ratio"] for name, one in found.items()},
        "required": {"cross-encoder": REQUIRED},
        "models": found,
    }


def _of_model(path: Path, plan: Plan, given: Material, threads: int) -> dict[str, Any]:
    rounds: dict[str, list[Load]] = {side: [] for side in SIDES}
    alone: list[float] = []
    with (
        serving({"model": path}, threads) as default,
        serving({"model": path}, threads, "--one-at-a-time") as one,
        inside(path, threads) as child,
    ):
        servers = dict(zip(SIDES, (default, one), strict=True))
        for side in SIDES:
            asked(servers[side], given.warm, 2)
        child.rank(given.warm)
        for number in range(plan.small_rounds):
            questions = given.small(plan.small_requests, plan.small_words, number)
            for side in SIDES if number % 2 == 0 else SIDES[::-1]:
                rounds[side].append(asked(servers[side], questions, plan.small_clients))
            alone.append(len(questions) / child.rank(questions).seconds)
        shared = _shared(default)
    paces = {side: [plan.small_requests / load.seconds for load in loads] for side, loads in rounds.items()}
    return {
        "ratio": statistics.median(a / b for a, b in zip(*paces.values(), strict=True)),
        "requests_per_second": {side: statistics.median(pace) for side, pace in paces.items()},
        "requests_per_second_all": paces,
        "requests_per_second_inside": statistics.median(alone),
        "latency": {side: latencies([r for load in loads for r in load.replies]) for side, loads in rounds.items()},
        "requests_a_turn": shared,
        "client_share_of_a_core": statistics.median(load.took()["client_share_of_a_core"] for load in rounds[SIDES[0]]),
    }


def _shared(server: Server) -> float:
    """Requests that shared a turn, on average."""
    counted = server.metrics()
    total, turns = (
        sum(value for name, value in counted.items() if name.startswith(f"rerank_turn_requests_{part}"))
        for part in ("sum", "count")
    )
    return total / max(turns, 1.0)
