"""Beside infinity_emb 0.0.78: the same checkpoint, texts, clients and thread counts, in float32, each its own process.

Infinity has an environment of its own, for it wants older packages (pip install torch==2.13.0, then
infinity_emb[server,torch]==0.0.78). Both stand ready; they are asked in turns and
change places in every round. Scores are compared as probabilities.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving.load import HOST, Load, closed_loop, latencies, loaded, request
from serving.material import Material, Question
from serving.plan import Plan
from serving.server import Server, free_port, running, serving
from serving.throughput import scores_of

AGREE = 1e-3
SIDES = ("ours", "infinity")


def peer(plan: Plan, given: Material, threads: int, environment: Path) -> dict[str, Any]:
    """Pairs a second and latencies of both, and how far their scores are apart."""
    model = given.models["cross-encoder"]
    port = free_port()
    command = [
        str(environment / "bin" / "infinity_emb"),
        "v2",
        "--model-id",
        str(model),
        "--served-model-name",
        "model",
    ]
    command += ["--host", HOST, "--port", str(port), "--engine", "torch", "--device", "cpu", "--dtype", "float32"]
    command += ["--no-bettertransformer", "--log-level", "warning"]
    quiet = {"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    loads: dict[str, list[Load]] = {side: [] for side in SIDES}
    with (
        serving({"model": model}, threads, "--precision", "float32") as ours,
        running(command, port, threads, "/health", quiet) as theirs,
    ):
        servers = dict(zip(SIDES, (ours, theirs), strict=True))
        for server in servers.values():
            _asked(server, given.warm, plan.clients)
        for number, questions in enumerate(given.rounds):
            for side in SIDES if number % 2 == 0 else SIDES[::-1]:
                loads[side].append(_asked(servers[side], questions, plan.clients))
        mib = {side: server.mib() for side, server in servers.items()}
    pairs = [sum(len(question.texts) for question in questions) for questions in given.rounds]
    paces = {side: [n / load.seconds for n, load in zip(pairs, found, strict=True)] for side, found in loads.items()}
    replies = {side: [reply for load in found for reply in load.replies] for side, found in loads.items()}
    apart = [
        abs(a - b) for pair in zip(*replies.values(), strict=True) for a, b in zip(*map(scores_of, pair), strict=True)
    ]
    return {
        "peer": "infinity_emb 0.0.78, torch, no BetterTransformer",
        "clients": plan.clients,
        "ratios": {"ours / infinity": statistics.median(a / b for a, b in zip(*paces.values(), strict=True))},
        "pairs_per_second": {side: statistics.median(pace) for side, pace in paces.items()},
        "pairs_per_second_all": paces,
        "latency": {side: latencies(found) for side, found in replies.items()},
        "largest_score_difference": max(apart),
        "scores_agree": max(apart) <= AGREE,
        "required": {"scores agree within": AGREE},
        "mib": mib,
    }


def _asked(server: Server, questions: Sequence[Question], clients: int) -> Load:
    """What a server answers; the same bytes for both."""
    bodies = [{"model": "model", "query": query, "documents": texts} for query, texts in questions]
    load = loaded(closed_loop(server.port, [request("/rerank", body) for body in bodies], clients))
    for question, reply in zip(questions, load.replies, strict=True):
        if reply.status != 200 or len(scores_of(reply)) != len(question.texts):
            raise RuntimeError(f"{len(question.texts)} documents were answered {reply.status}: {reply.body[:500]!r}")
    return load
