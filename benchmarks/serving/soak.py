"""Ten minutes of everything at once, then SIGTERM: no request is lost, none is answered wrongly, the memory is flat.

Small, large and long lists, three models, four dialects, clients that leave, bodies that are malformed or too large.
Every answer is checked while it runs. What the clients counted is compared with what /metrics says: a client that left
may be counted as answered, as gone, or not at all if it left before it was heard; all others exactly once.
"""

from __future__ import annotations

import asyncio
import random
import signal
import statistics
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any, final

from serving.asking import Known, Pool, Request, drawn, fault
from serving.inside import inside
from serving.load import Line, Reply, once, percentile
from serving.material import Material, Question
from serving.plan import Plan
from serving.server import Server, serving

OWN = ("/metrics", "/ready")
"""Paths that the benchmark itself asks."""


@final
@dataclass
class Tally:
    """What the clients have seen so far."""

    statuses: Counter[int] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    cancelled: int = 0
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


def soak(plan: Plan, given: Material, threads: int) -> dict[str, Any]:
    """What was asked, answered, lost and counted."""
    pool = known(plan, given, threads)
    with serving(given.models, threads, "--precision", "float32", "--queue", "250") as server:
        tally, before = Tally(), counted(server)
        start, used = time.perf_counter(), time.process_time()
        mib = asyncio.run(_soak(server, plan, pool, tally))
        seconds, client = time.perf_counter() - start, time.process_time() - used
        counts = _agreement(tally, before, counted(server))
        ending = asyncio.run(_ending(server, plan, pool))
    return {
        "minutes": seconds / 60,
        "clients": plan.soak_clients,
        "requests": sum(tally.statuses.values()) + tally.cancelled + len(tally.lost),
        "statuses": {str(status): number for status, number in sorted(tally.statuses.items())},
        "cancelled": tally.cancelled,
        "lost": len(tally.lost),
        "wrong": len(tally.wrong),
        "first_problems": (tally.lost + tally.wrong)[:20],
        "counts": counts,
        "kinds": dict(sorted(tally.kinds.items())),
        "p95_ms": {kind: 1000 * percentile(values, 0.95) for kind, values in sorted(tally.seconds.items())},
        "spread_of_logits": {
            kind: statistics.median(statistics.pstdev(one.logits) for one in found) for kind, found in pool.items()
        },
        "memory": _slope(mib),
        "client_share_of_a_core": client / seconds,
        "ending": ending,
        "required": {"lost": 0, "wrong": 0, "counts agree": True},
    }


def known(plan: Plan, given: Material, threads: int) -> Pool:
    """The questions of the soak with the logits that a process without a server gives them."""
    lists = given.rounds[0][:12]
    whole = [
        Question(one.query, tuple(dict.fromkeys(text for slices in given.rounds for text in slices[place].texts)))
        for place, one in enumerate(lists)
    ]
    sizes = {"small": given.small(24, plan.small_words, 0), "list": lists, "large": whole[:6], "long": given.long}
    pool: dict[str, list[Known]] = {}
    for model, path in given.models.items():
        with inside(path, threads, "float32") as child:
            for size, questions in sizes.items():
                if model == "cross-encoder" or size in ("small", "list"):
                    scores = child.rank(questions).scores
                    pool[f"{model} {size}"] = [Known(*pair) for pair in zip(questions, scores, strict=True)]
    return pool


async def _soak(server: Server, plan: Plan, pool: Pool, tally: Tally) -> list[tuple[float, float | None]]:
    """(seconds, MiB) of the server, again and again, while the clients ask."""
    start = time.monotonic()
    end = start + 60 * plan.soak_minutes
    clients = [
        asyncio.ensure_future(_client(server.port, random.Random(i), pool, tally, end))
        for i in range(plan.soak_clients)
    ]
    mib = []
    while time.monotonic() < end:
        mib.append((time.monotonic() - start, server.mib()))
        await asyncio.sleep(min(2.0, 0.6 * plan.soak_minutes))
    await asyncio.gather(*clients)
    return [*mib, (time.monotonic() - start, server.mib())]


async def _client(port: int, draw: random.Random, pool: Pool, tally: Tally, end: float) -> None:
    line = Line(port)
    while time.monotonic() < end:
        asked = drawn(draw, pool)
        tally.kinds[asked.kind.partition(",")[0]] += 1
        if asked.cancelled:
            await _cancel(port, asked, draw.uniform(0.0, 0.3))
            tally.cancelled += 1
            continue
        reply = await _ask(line, asked, tally)
        if reply is not None and (problem := fault(asked, reply)) is not None:
            tally.wrong.append(problem)
    line.close()


async def _ask(line: Line, asked: Request, tally: Tally) -> Reply | None:
    """The reply to a request; None, and a note, where there is none."""
    try:
        reply = await line.ask(asked.message)
    except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
        line.close()
        tally.lost.append(f"{asked.kind}: {error!r}")
        return None
    tally.statuses[reply.status] += 1
    if reply.status == 200:
        tally.seconds[asked.kind.partition(",")[0]].append(reply.seconds)
    return reply


async def _cancel(port: int, asked: Request, seconds: float) -> None:
    line = Line(port)
    task = asyncio.ensure_future(line.ask(asked.message))
    await asyncio.wait({task}, timeout=seconds)
    task.cancel()
    line.close()
    await asyncio.gather(task, return_exceptions=True)


# ------------------------------------------------------------------------------------------------------------- counting
def counted(server: Server) -> Counter[str]:
    """Requests by status, and "gone", as /metrics has them; the benchmark's own paths left out."""
    found: Counter[str] = Counter()
    for name, value in server.metrics().items():
        if any(f'path="{path}"' in name for path in OWN):
            continue
        if name.startswith("rerank_requests_total{"):
            status = name.split('status="')[1].split('"')[0]
            if status != "499":  # of clients that left, whom "gone" counts
                found[status] += int(value)
        elif name.startswith("rerank_disconnects_total{"):
            found["gone"] += int(value)
    return found


def _agreement(tally: Tally, before: Counter[str], after: Counter[str]) -> dict[str, Any]:
    """Whether the server has counted what the clients have."""
    server = {name: number - before[name] for name, number in sorted(after.items()) if number != before[name]}
    clients = {str(status): number for status, number in tally.statuses.items()}
    more = {name: server.get(name, 0) - clients.get(name, 0) for name in {*server, *clients}}
    # What the server counted beyond the clients' answers can only be of clients that left.
    agree = min(more.values(), default=0) >= 0 and sum(more.values()) <= tally.cancelled + len(tally.lost)
    return {"server": server, "clients": clients, "of clients that left": more, "agree": agree}


def _slope(mib: list[tuple[float, float | None]]) -> dict[str, Any]:
    """Before, after, and MiB a minute over the second half; {} where it is not known."""
    known = [(seconds, value) for seconds, value in mib if value is not None]
    half = known[len(known) // 2 :]
    if len(half) < 2:
        return {}
    slope = statistics.linear_regression(*zip(*half, strict=True)).slope
    return {
        "mib_before": known[0][1],
        "mib_at_half": half[0][1],
        "mib_after": known[-1][1],
        "mib_a_minute": 60 * slope,
    }


# --------------------------------------------------------------------------------------------------------------- ending
async def _ending(server: Server, plan: Plan, pool: Pool) -> dict[str, Any]:
    """What becomes of requests that are being answered when SIGTERM comes, and of one that comes after it."""
    draw, asked = random.Random(0), []
    while len(asked) < plan.in_flight:
        one = drawn(draw, {"cross-encoder large": pool["cross-encoder large"]})
        if one.known is not None and not one.cancelled:
            asked.append(one)
    tasks = [asyncio.ensure_future(once(server.port, one.message)) for one in asked]
    await asyncio.sleep(0.05)  # they are written, and the first of them is being read
    answered_before = sum(task.done() for task in tasks)
    server.process.send_signal(signal.SIGTERM)
    await asyncio.sleep(0.02)
    late = Tally()
    await _ask(Line(server.port), asked[0], late)
    replies = await asyncio.gather(*tasks, return_exceptions=True)
    problems = [fault(one, r) if isinstance(r, Reply) else repr(r) for one, r in zip(asked, replies, strict=True)]
    return {
        "in_flight": plan.in_flight,
        "answered_before_the_signal": answered_before,
        "answered_rightly": problems.count(None),
        "problems": [problem for problem in problems if problem is not None],
        "a_request_after_it": [*map(str, late.statuses), *late.lost],
        "exit_code": await asyncio.to_thread(server.wait),
    }
