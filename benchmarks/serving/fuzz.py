"""A thousand malformed requests, then schema fuzzing: no 5xx, no hang, no crash, no leak, and a word to every client.

Our own generator (hostile_bodies.py, hostile_wire.py) writes to fresh connections, several at once. After every few of
them a right request must get the answer that it got at first. schemathesis, where it is installed, goes through every
path of /openapi.json. Memory is the server's own, looked at all the while: what counts is the slope over the second
half of the requests, which are the same again and again: every text is known, every buffer as large as it gets.
"""

from __future__ import annotations

import asyncio
import json
import socket
import statistics
import struct
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from serving.hostile_bodies import ANSWERED, EITHER, REFUSED
from serving.hostile_wire import BROKEN, LEFT, TAKEN, Case, cases
from serving.load import HOST, once, read_reply, request
from serving.material import Material
from serving.plan import Plan
from serving.server import Server, fetch, serving

FIELDS = {"message", "error", "error_type", "detail", "code", "request_id"}
"""Of every refusal."""
AT_ONCE = 4
EVERY = 20
"""Hostile requests between two looks at the server."""
PATIENCE = 30.0
HALF = 0.3
"""Seconds that an answer is waited for before the writing side is closed."""
LIMITS = ("--max-body", "2000000", "--max-characters", "100000", "--max-documents", "1000")


class Told(NamedTuple):
    """What came back for a case."""

    statuses: tuple[int, ...]
    """Empty: the connection was closed without an answer."""
    bodies: tuple[bytes, ...]
    silent: bool = False
    """Neither an answer nor an end of the connection within the patience."""
    seconds: float = 0.0


def fuzz(plan: Plan, given: Material, threads: int, schemathesis: str | None) -> dict[str, Any]:
    """What became of all requests, what was wrong with it, and how the memory went."""
    with serving({"model": given.models["cross-encoder"]}, threads, *LIMITS) as server:
        own = asyncio.run(_own(server, plan))
        loris = asyncio.run(_loris(server)) if plan.slow else None
        schema = _schemathesis(server, schemathesis, plan)
        alive = server.process.poll() is None and fetch(server.port, "/ready")[0] == 200
        found = {**own, "held connections": loris, "schemathesis": schema, "alive": alive}
        found["exit_code"] = server.end()
    found["required"] = {"faults": 0, "alive": True}
    return found


# ------------------------------------------------------------------------------------------------------------ our own
async def _own(server: Server, plan: Plan) -> dict[str, Any]:
    """Our own cases, checked one by one."""
    made = cases(plan.hostile) * plan.passes
    right = request("/v2/rerank", {"query": "green tea", "documents": ["tea", "green leaves", "water"]})
    expected = (await once(server.port, right)).content["results"]
    start, mib, faults, kinds = time.perf_counter(), [server.mib()], [], Counter[str]()
    slowest: tuple[float, str] = (0.0, "")
    for first in range(0, len(made), EVERY):
        part = made[first : first + EVERY]
        gate = asyncio.Semaphore(AT_ONCE)
        told = await asyncio.gather(*(_behind(gate, server.port, case) for case in part))
        for case, one in zip(part, told, strict=True):
            kinds.update({f"{case.expect}: {','.join(map(str, one.statuses[:1])) or 'closed'}": 1})
            slowest = max(slowest, (one.seconds, case.kind))
            faults += _faults(case, one)
        reply = await once(server.port, right)
        if reply.status != 200 or not _same(reply.content["results"], expected):
            faults.append(f"a right request after {part[-1].kind!r} was answered {reply.status} {reply.body[:200]!r}")
        mib.append(server.mib())
    return {
        "requests": len(made),
        "passes": plan.passes,
        "seconds": time.perf_counter() - start,
        "kinds": dict(Counter(case.kind for case in made).most_common()),
        "answers": dict(sorted(kinds.items())),
        "faults": len(faults),
        "faults_first": faults[:20],
        "slowest": {"seconds": slowest[0], "kind": slowest[1]},
        "memory": memory(mib, EVERY),
    }


async def _behind(gate: asyncio.Semaphore, port: int, case: Case) -> Told:
    async with gate:
        start = time.perf_counter()
        try:
            told = await asyncio.wait_for(_tell(port, case), PATIENCE)
        except asyncio.TimeoutError:
            told = Told((), (), silent=True)
        return told._replace(seconds=time.perf_counter() - start)


async def _tell(port: int, case: Case) -> Told:
    """What a server answers to a case."""
    reader, writer = await asyncio.open_connection(HOST, port, limit=2**20)
    statuses: list[int] = []
    bodies: list[bytes] = []

    async def listen() -> None:
        while len(statuses) < case.answers:
            status, _, body = await read_reply(reader)
            statuses.append(status)
            bodies.append(body)

    try:
        await _write(writer, case)
        if case.ending == "reset":
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            return Told((), ())
        listening = asyncio.ensure_future(listen())
        if case.ending == "half" and not (await asyncio.wait({listening}, timeout=HALF))[0]:
            writer.write_eof()
        await listening
    except (asyncio.IncompleteReadError, OSError):
        pass  # closed: what was answered before that is told
    except (ValueError, IndexError, asyncio.LimitOverrunError) as error:
        return Told((0,), (repr(error).encode(),))
    finally:
        writer.close()
    return Told(tuple(statuses), tuple(bodies))


async def _write(writer: asyncio.StreamWriter, case: Case) -> None:
    size = max(1, len(case.message) // 100) if case.pause else len(case.message)
    for first in range(0, len(case.message), max(size, 1)):
        writer.write(case.message[first : first + size])
        await writer.drain()
        if case.pause:
            await asyncio.sleep(case.pause)


def _faults(case: Case, told: Told) -> list[str]:
    """What is wrong with an answer."""
    where = f"{case.kind} ({case.message[:60]!r}...{case.message[-60:]!r})"
    if case.expect == LEFT:
        return []
    if told.silent:
        return [f"{where}: neither answered nor closed in {PATIENCE:.0f} s"]
    found = [f"{where}: answered {status}" for status in told.statuses if status >= 500 or status < 200]
    complete = len(told.statuses) == case.answers
    allowed = {ANSWERED: (200, 200), REFUSED: (400, 499), EITHER: (200, 499), BROKEN: (400, 499), TAKEN: (200, 499)}
    low, high = allowed[case.expect]
    if case.expect in (ANSWERED, REFUSED, EITHER) and not complete:
        found.append(f"{where}: {len(told.statuses)} answers of {case.answers}")
    found += [f"{where}: answered {s}, not {low} to {high}" for s in told.statuses if not low <= s <= high and s < 500]
    if case.expect in (REFUSED, EITHER):
        pairs = zip(told.statuses, told.bodies, strict=True)
        found += [f"{where}: {s} with {b[:200]!r}" for s, b in pairs if s >= 400 and not _whole(s, b)]
    return found


def _whole(status: int, body: bytes) -> bool:
    """Whether a refusal has a field for every client."""
    try:
        said = json.loads(body)
    except ValueError:
        return False
    return isinstance(said, dict) and set(said) >= FIELDS and said["code"] == status


def _same(found: Any, expected: Any) -> bool:
    return [row["index"] for row in found] == [row["index"] for row in expected] and all(
        abs(a["relevance_score"] - b["relevance_score"]) < 1e-3 for a, b in zip(found, expected, strict=True)
    )


def memory(mib: list[float | None], every: int) -> dict[str, Any]:
    """Before, after, and the slope over the second half, of the server's memory; {} where it is not known."""
    known = [value for value in mib if value is not None]
    if len(known) < 4:
        return {}
    half = known[len(known) // 2 :]
    slope = statistics.linear_regression(range(len(half)), half).slope
    return {
        "mib_before": known[0],
        "mib_at_half": half[0],
        "mib_after": known[-1],
        "mib_a_thousand": 1000 * slope / every,
        "mib_on_the_way": [round(known[place * (len(known) - 1) // 10], 1) for place in range(11)],
    }


# --------------------------------------------------------------------------------------------------------- slow clients
async def _loris(server: Server, connections: int = 50) -> dict[str, Any]:
    """Connections that send a byte a second and never end: how long they are borne, and what others feel of it."""
    right = request("/v2/rerank", {"query": "green tea", "documents": ["tea", "leaves"]})
    start = time.perf_counter()
    held = asyncio.gather(*(_drip(server.port, body=i % 2 == 0) for i in range(connections)))
    await asyncio.sleep(1.0)
    others = [await once(server.port, right) for _ in range(20)]
    closed = await held
    return {
        "connections": connections,
        "statuses": dict(Counter(map(str, closed))),
        "seconds": time.perf_counter() - start,
        "others_answered": sum(reply.status == 200 for reply in others),
        "others_slowest_ms": 1000 * max(reply.seconds for reply in others),
    }


async def _drip(port: int, body: bool) -> int | str:
    """The status that a client gets that never ends its headers, or its body; "closed" for none."""
    message = request("/v2/rerank", {"query": "q" * 500, "documents": []})
    message = message if body else b"POST /v2/rerank HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Long: " + b"y" * 500
    reader, writer = await asyncio.open_connection(HOST, port)
    answer = asyncio.ensure_future(read_reply(reader))
    start = message.index(b"\r\n\r\n") + 4 if body else 40
    writer.write(message[:start])
    try:
        for place in range(start, start + 90):
            if (await asyncio.wait({answer}, timeout=1.0))[0]:
                return answer.result()[0]
            writer.write(message[place : place + 1])
            await writer.drain()
    except (asyncio.IncompleteReadError, OSError):
        return "closed"
    finally:
        answer.cancel()
        writer.close()
    return "borne for 90 s"


# --------------------------------------------------------------------------------------------------------- schemathesis
def _schemathesis(server: Server, program: str | None, plan: Plan) -> dict[str, Any] | None:
    """What schemathesis found; None where it is not installed."""
    if program is None:
        return None
    before = server.mib()
    with tempfile.TemporaryDirectory() as folder:
        har = Path(folder) / "requests.har"
        command = [program, "run", f"http://{HOST}:{server.port}/openapi.json", "--seed", "0", "--no-shrink"]
        command += ["--phases", "examples,coverage,fuzzing", "--max-examples", str(plan.examples), "--mode", "all"]
        command += ["--checks", "not_a_server_error,content_type_conformance,response_schema_conformance"]
        command += ["--continue-on-failure", "--report-har-path", str(har), "--request-timeout", "60"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=3600, check=False)
        statuses = _statuses(har)
    return {
        "exit_code": done.returncode,
        "statuses": statuses,
        "requests": sum(statuses.values()),
        "server_errors": sum(number for status, number in statuses.items() if status.startswith("5")),
        "mib": [before, server.mib()],
        "findings": [line.strip() for line in done.stdout.splitlines() if line.strip().startswith("❌ ST")],
        "said": [] if statuses else [*done.stdout.splitlines()[-20:], *done.stderr.splitlines()[-20:]],
    }


def _statuses(har: Path) -> dict[str, int]:
    entries = json.loads(har.read_text(encoding="utf8"))["log"]["entries"] if har.exists() else []
    return dict(sorted(Counter(str(entry["response"]["status"]) for entry in entries).items()))
