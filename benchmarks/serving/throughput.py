"""Many documents: the server beside `Reranker.rank` of the same lists, and beside what no server could pass.

    inside            `rank` of one list after another, in a process of its own
    inside together   `rank_many` of as many lists as there are clients: the most that batching could give
    server            so many clients at once, each with a list, in a closed loop

The sides take turns, and change places in every round; each round has documents that nobody has seen. The floor of
HTTP is a request without documents: all of a request but the model.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from serving.inside import Inside, Ranking, inside
from serving.load import Load, Reply, closed_loop, latencies, loaded, percentile, request
from serving.material import Material, Question
from serving.plan import Plan
from serving.server import Server, serving

Side = Callable[[Sequence[Question]], "Ranking | Load"]
REQUIRED = 0.9


def throughput(plan: Plan, given: Material, threads: int) -> dict[str, Any]:
    """Pairs a second of each side, and the server's over the others', round by round."""
    model = given.models["cross-encoder"]
    with inside(model, threads) as child, serving({"model": model}, threads) as server:
        sides = sides_of(child, server, plan.clients)
        for side in sides.values():
            side(given.warm)
        used = server.processor_seconds()
        rounds = [_round(sides, questions, number) for number, questions in enumerate(given.rounds)]
        used = None if used is None else (server.processor_seconds() or 0.0) - used
        floor = _floor(server, plan)
    served = [found["server"] for found in rounds]
    replies = [reply for load in served for reply in load.replies]
    paces = {name: [_pairs(found[name]) / found[name].seconds for found in rounds] for name in sides}
    ratios = {
        f"server / {name}": statistics.median(s / i for s, i in zip(paces["server"], paces[name], strict=True))
        for name in ("inside", "inside together")
    }
    calls = [1000 * seconds for found in rounds for seconds in found["inside"].latencies]
    return {
        "clients": plan.clients,
        "documents": plan.documents,
        "lists_a_round": len(given.rounds[0]),
        "pairs_per_second": {name: statistics.median(pace) for name, pace in paces.items()},
        "pairs_per_second_all": paces,
        "ratios": ratios,
        "required": {"server / inside": REQUIRED},
        "latency_server": latencies(replies),
        "latency_inside": {f"p{p}_ms": percentile(calls, p / 100) for p in (50, 95, 99)},
        "largest_score_difference": max(_difference(found) for found in rounds),
        "client_share_of_a_core": statistics.median(load.took()["client_share_of_a_core"] for load in served),
        "server_processor_seconds": used,
        "server_wall_seconds": sum(load.seconds for load in served),
        "floor_of_http": floor,
    }


def sides_of(child: Inside, server: Server, clients: int) -> dict[str, Side]:
    """What ranks the same questions."""
    return {
        "inside": child.rank,
        "inside together": lambda questions: child.rank(questions, clients),
        "server": lambda questions: asked(server, questions, clients),
    }


def asked(server: Server, questions: Sequence[Question], clients: int, model: str | None = None) -> Load:
    """What the server answers to so many clients; RuntimeError where it is not one whole answer each."""
    named = {} if model is None else {"model": model}
    bodies = [{"query": query, "documents": texts, "raw_scores": True, **named} for query, texts in questions]
    load = loaded(closed_loop(server.port, [request("/v2/rerank", body) for body in bodies], clients))
    for question, reply in zip(questions, load.replies, strict=True):
        if reply.status != 200 or len(scores_of(reply)) != len(question.texts):
            raise RuntimeError(f"{len(question.texts)} documents were answered {reply.status}: {reply.body[:500]!r}")
    return load


def scores_of(reply: Reply) -> list[float]:
    """The score of each document in an answer of Cohere's shape, in the order of the documents."""
    rows = reply.content["results"]
    return [row["relevance_score"] for row in sorted(rows, key=lambda row: row["index"])]


def _round(sides: dict[str, Side], questions: Sequence[Question], number: int) -> dict[str, Any]:
    order = list(sides)[number % len(sides) :] + list(sides)[: number % len(sides)]
    found = {name: sides[name](questions) for name in order}
    return {name: found[name] for name in sides}


def _pairs(found: Ranking | Load) -> int:
    own = found.scores if isinstance(found, Ranking) else [scores_of(reply) for reply in found.replies]
    return sum(map(len, own))


def _difference(found: dict[str, Any]) -> float:
    pairs = zip(found["inside"].scores, map(scores_of, found["server"].replies), strict=True)
    return max(abs(a - b) for own, served in pairs for a, b in zip(own, served, strict=True))


def _floor(server: Server, plan: Plan) -> dict[str, Any]:
    """What a request costs that holds no documents."""
    message = request("/v2/rerank", {"query": "nothing", "documents": []})
    alone = loaded(closed_loop(server.port, [message] * (plan.empty // 4), 1))
    many = loaded(closed_loop(server.port, [message] * plan.empty, plan.clients))
    wrong = {reply.status for reply in alone.replies + many.replies} - {200}
    if wrong:
        raise RuntimeError(f"a request without documents was answered {wrong}")
    return {
        "one_client": latencies(alone.replies),
        "requests_per_second": plan.empty / many.seconds,
        **{name: many.took()[name] for name in ("client_share_of_a_core",)},
    }
