"""Too much: three times what the server can read is offered, whether or not it answers.

What waits is bounded in documents, so what is accepted is answered within

    (documents that may wait + documents of a turn) / documents a second + the time that a request takes by itself

and the rest is told at once (429) when to come again (Retry-After).
"""

from __future__ import annotations

import statistics
from typing import Any

from serving.load import Load, Reply, latencies, loaded, open_loop, percentile, request
from serving.material import Material, Question
from serving.plan import Plan
from serving.server import Server, serving
from serving.throughput import asked, scores_of

REFUSED_MS = 50.0


def overload(plan: Plan, given: Material, threads: int) -> dict[str, Any]:
    """How long accepted and refused requests took, beside the bound."""
    model = given.models["cross-encoder"]
    with serving({"model": model}, threads, "--queue", str(plan.queue)) as server:
        asked(server, given.warm, 1)
        rounds = [_round(server, plan, given, number) for number in range(plan.overload_rounds)]
    within = max(found["accepted"]["p95_ms"] / found["bound_ms"] for found in rounds)
    refused = statistics.median(found["refused"].get("p95_ms", 0.0) for found in rounds)
    return {
        "queue": plan.queue,
        "offered_over_capacity": plan.overload,
        "ratios": {"accepted p95 / bound": within, "refused p95 / 50 ms": refused / REFUSED_MS},
        "required": {"accepted p95 / bound": "at most 1", "refused p95 / 50 ms": "at most 1"},
        "rounds": rounds,
    }


def _round(server: Server, plan: Plan, given: Material, number: int) -> dict[str, Any]:
    questions = given.rounds[number % len(given.rounds)]
    alone = asked(server, questions[: max(2, len(questions) // 4)], 1)
    clients = max(1, min(plan.clients, plan.queue // plan.documents))  # as many as the queue holds
    capacity = len(questions) / asked(server, questions, clients).seconds
    before = server.metrics()
    rate = plan.overload * capacity
    offered = _offered(questions, max(4, round(rate * plan.overload_seconds)))
    load = loaded(open_loop(server.port, offered, rate))
    turn = _documents_of_a_turn(before, server.metrics())
    accepted = [reply for reply in load.replies if reply.status == 200]
    refused = [reply for reply in load.replies if reply.status == 429]
    _check(load, accepted, refused, plan)
    pace = len(accepted) * plan.documents / load.seconds
    own = statistics.median(reply.seconds for reply in alone.replies)
    return {
        "capacity_requests_per_second": capacity,
        "offered_requests": len(load.replies),
        "offered_requests_per_second": rate,
        "accepted_documents_per_second": pace,
        "documents_of_a_turn": turn,
        "alone_ms": 1000 * own,
        "bound_ms": 1000 * ((plan.queue + turn) / pace + own),
        "accepted": {"requests": len(accepted), **latencies(accepted)},
        "refused": {"requests": len(refused), **latencies(refused)},
        "retry_after_s": sorted({int(reply.headers["retry-after"]) for reply in refused}),
        **load.took(),
        "latest_p95_ms": percentile([1000 * reply.seconds for reply in accepted[len(accepted) // 2 :]], 0.95),
    }


def _offered(questions: list[Question], number: int) -> list[bytes]:
    bodies = [{"query": query, "documents": texts} for query, texts in questions]
    made = [request("/v2/rerank", body) for body in bodies]
    return [made[i % len(made)] for i in range(number)]


def _check(load: Load, accepted: list[Reply], refused: list[Reply], plan: Plan) -> None:
    """Nothing; RuntimeError where a request has neither a whole answer nor a refusal that says when to come again."""
    others = sorted({reply.status for reply in load.replies} - {200, 429})
    if others:
        raise RuntimeError(f"too much was answered {others} too")
    if not accepted or any(len(scores_of(reply)) != plan.documents for reply in accepted):
        raise RuntimeError("an accepted request was not answered whole")
    if any(not reply.headers.get("retry-after", "").isdigit() for reply in refused):
        raise RuntimeError("a refusal has no Retry-After in whole seconds")


def _documents_of_a_turn(before: dict[str, float], after: dict[str, float]) -> float:
    """Documents that were read in a turn, on average."""
    read, turns = (
        sum(value - before.get(name, 0.0) for name, value in after.items() if name.startswith(start))
        for start in ("rerank_documents_total", "rerank_turn_seconds_count")
    )
    return read / max(turns, 1.0)
