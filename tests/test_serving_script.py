"""benchmarks/serving.py: the load is what it says, what is asked comes back checked, and every part runs."""

import asyncio
import json
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

from serving.asking import CANCELLED, MALFORMED, OVER, Known, Request, drawn, fault, rows_of  # noqa: E402
from serving.fuzz import Told, _faults, memory  # noqa: E402
from serving.hostile_bodies import ANSWERED, REFUSED, hostile_body  # noqa: E402
from serving.hostile_wire import Case, cases  # noqa: E402
from serving.load import Reply, closed_loop, loaded, once, open_loop, percentile, request  # noqa: E402
from serving.material import Question  # noqa: E402
from serving.soak import Tally, _agreement  # noqa: E402

from rerank.serving.asking import Refusal  # noqa: E402
from rerank.serving.limits import Limits  # noqa: E402
from rerank.serving.wire.bodies import body_of  # noqa: E402
from rerank.serving.wire.dialects import asked  # noqa: E402


# ------------------------------------------------------------------------------------------------------------ the load
@contextmanager
def answering(seconds=0.0, chunked=False, closing=False):
    """(port, notes) of a server that answers with the query it was sent, in its own thread."""
    notes, ready, loop = {"open": 0, "most": 0, "connections": 0}, threading.Event(), asyncio.new_event_loop()

    async def one(reader, writer):
        notes["connections"] += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                query = json.loads(await reader.readexactly(size))["query"].encode()
                notes["open"] += 1
                notes["most"] = max(notes["most"], notes["open"])
                await asyncio.sleep(seconds)
                notes["open"] -= 1
                if chunked:
                    body = b"".join(b"1\r\n%c\r\n" % byte for byte in query) + b"0\r\n\r\n"
                    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
                else:
                    more = b"Connection: close\r\n" if closing else b""
                    writer.write(b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (more, len(query), query))
                if closing:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    async def run():
        server = await asyncio.start_server(one, "127.0.0.1", 0)
        notes["port"], notes["stop"] = server.sockets[0].getsockname()[1], asyncio.Event()
        ready.set()
        await notes["stop"].wait()
        server.close()
        await asyncio.sleep(0.05)  # connections see their end

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    ready.wait(10)
    try:
        yield notes["port"], notes
    finally:
        loop.call_soon_threadsafe(notes["stop"].set)
        thread.join(10)
        loop.close()


def asks(number):
    return [request("/rerank", {"query": f"q{i}"}) for i in range(number)]


@pytest.mark.parametrize("how", [{}, {"chunked": True}, {"closing": True}])
def test_a_closed_loop_gives_the_answer_of_each_request_in_its_place(how):
    with answering(**how) as (port, notes):
        load = loaded(closed_loop(port, asks(40), 4))
    assert [reply.body.decode() for reply in load.replies] == [f"q{i}" for i in range(40)]
    assert notes["connections"] == (40 if how.get("closing") else 4)


def test_a_closed_loop_has_as_many_open_requests_as_clients_and_no_more():
    with answering(seconds=0.02) as (port, notes):
        load = loaded(closed_loop(port, asks(24), 6))
    assert notes["most"] == 6
    assert min(reply.seconds for reply in load.replies) >= 0.02
    assert load.seconds >= 24 / 6 * 0.02


def test_an_open_loop_does_not_wait_for_answers_before_it_sends_more():
    with answering(seconds=0.3) as (port, notes):
        load = loaded(open_loop(port, asks(20), 200.0))
    assert notes["most"] == 20  # all are sent in a tenth of a second, none is answered before three
    assert load.seconds < 20 * 0.3
    assert len(load.replies) == 20


def test_a_server_that_says_nothing_is_an_error_and_not_an_answer():
    async def cut(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        writer.close()

    async def ask():
        async with await asyncio.start_server(cut, "127.0.0.1", 0) as server:
            with pytest.raises(asyncio.IncompleteReadError):
                await once(server.sockets[0].getsockname()[1], asks(1)[0])
            await asyncio.sleep(0.05)  # both sides see the end

    asyncio.run(ask())


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.95, 95), (0.99, 99), (1.0, 100), (0.001, 1)])
def test_a_percentile_is_the_smallest_value_that_the_share_does_not_exceed(share, value):
    values = list(range(1, 101))
    random.Random(0).shuffle(values)
    assert percentile(values, share) == value


# ------------------------------------------------------------------------------------------------- answers are checked
KNOWN = Known(Question("q", ("a", "b", "c")), [1.0, -2.0, 3.0])


def reply_of(rows, status=200, headers=None):
    body = json.dumps({"results": [{"index": i, "relevance_score": s} for i, s in rows]}).encode()
    return Reply(status, headers or {}, body, 0.1)


def test_a_right_answer_has_no_fault_and_each_wrong_one_has():
    whole = Request("list, cohere", b"", KNOWN)
    assert fault(whole, reply_of([(2, 3.0), (0, 1.0), (1, -2.0)])) is None
    assert fault(whole._replace(top_n=1), reply_of([(2, 3.0)])) is None
    assert fault(whole._replace(raw=False, top_n=1), reply_of([(2, 0.95257)])) is None
    wrong = {
        "lost": [(2, 3.0), (0, 1.0)],
        "twice": [(2, 3.0), (2, 3.0), (1, -2.0)],
        "unknown": [(2, 3.0), (0, 1.0), (3, -2.0)],
        "order": [(0, 1.0), (2, 3.0), (1, -2.0)],
        "score": [(2, 3.1), (0, 1.0), (1, -2.0)],
    }
    assert [name for name, rows in wrong.items() if fault(whole, reply_of(rows)) is None] == []
    assert "order" in fault(whole._replace(top_n=1), reply_of([(0, 1.0)]))  # not the best one
    assert "500" in fault(whole, reply_of([], 500))
    assert "Retry-After" in fault(whole, reply_of([], 429))
    assert fault(whole, reply_of([], 429, {"retry-after": "2"})) is None
    assert "read" in fault(whole, Reply(200, {}, b'{"results": [{"index"', 0.1))


def test_documents_that_tie_within_rounding_may_stand_in_either_order():
    tied = Request("list, cohere", b"", Known(Question("q", ("a", "b")), [1.0, 1.0 + 1e-6]))
    assert fault(tied, reply_of([(0, 1.0), (1, 1.0)])) is None
    assert fault(tied, reply_of([(1, 1.0), (0, 1.0)])) is None


def test_rows_are_read_in_every_dialect():
    rows = [{"index": 1, "relevance_score": 0.5}]
    assert rows_of({"results": rows}) == rows_of({"data": rows}) == rows_of([{"index": 1, "score": 0.5}]) == [(1, 0.5)]


def test_the_soak_asks_for_everything_in_its_shares():
    draw = random.Random(0)
    pool = {"cross-encoder list": [KNOWN], "light small": [KNOWN]}
    found = [drawn(draw, pool) for _ in range(3000)]
    counts = Counter(one.kind.partition(",")[0] for one in found)
    assert set(counts) == {
        "malformed", "over a limit", "cross-encoder list", "light small",
        "cancelled cross-encoder list", "cancelled light small",
    }  # fmt: skip
    for share, number in (
        (MALFORMED, counts["malformed"]),
        (OVER, counts["over a limit"]),
        (CANCELLED, sum(one.cancelled for one in found)),
    ):
        assert number / 3000 == pytest.approx(share, abs=0.02)


def test_counts_agree_only_where_each_answer_was_counted_once():
    tally = Tally(statuses=Counter({200: 5, 422: 1}), cancelled=2)
    right = Counter({"200": 6, "422": 1, "gone": 1})
    assert _agreement(tally, Counter(), right)["agree"]
    assert not _agreement(tally, Counter(), Counter({"200": 4, "422": 1}))["agree"]  # one is missing
    assert not _agreement(tally, Counter(), Counter({"200": 8, "422": 1}))["agree"]  # one too many


# ----------------------------------------------------------------------------------------------------- hostile requests
def test_hostile_requests_are_the_same_for_the_same_seed():
    assert cases(300, seed=1) == cases(300, seed=1)
    assert cases(300, seed=1) != cases(300, seed=2)


LATER = ("too large", "option model", "option min_probability", "option first_stage", "bomb")
"""Kinds that are refused behind the dialects: by limits, by the shelf, by the model."""


def test_our_dialects_refuse_what_the_generator_says_is_wrong_and_take_what_it_says_is_right():
    draw = random.Random(0)
    surprises = []
    for _ in range(1500):
        body = hostile_body(draw)
        if body.expect not in (ANSWERED, REFUSED) or body.kind in LATER:
            continue
        headers = {name.lower(): value for name, value in {"Content-Type": "application/json", **body.headers}.items()}
        try:
            asked(body.path, body_of(body.content, headers, Limits()))
            became = ANSWERED
        except Refusal as refusal:
            became = REFUSED if 400 <= refusal.status < 500 else str(refusal.status)
        if became != body.expect:
            surprises.append((became, body.kind, body.content[:100], body.headers))
    assert surprises == []


def test_a_server_error_a_bare_refusal_and_silence_are_faults():
    case = Case("a", b"x", REFUSED)
    whole = {"message": "m", "error": "m", "error_type": "t", "detail": "m", "code": 422, "request_id": "i"}
    assert _faults(case, Told((422,), (json.dumps(whole).encode(),))) == []
    assert _faults(case, Told((500,), (json.dumps({**whole, "code": 500}).encode(),)))
    assert _faults(case, Told((422,), (b"Unprocessable",)))
    assert _faults(case, Told((422,), (json.dumps({**whole, "code": 400}).encode(),)))
    assert _faults(case, Told((200,), (b"{}",)))
    assert _faults(case, Told((), ()))
    assert _faults(case, Told((), (), silent=True))


def test_memory_that_grows_has_a_slope_and_memory_that_has_grown_has_none():
    assert memory([100.0] * 4 + [200.0] * 20, 20)["mib_a_thousand"] == pytest.approx(0.0)
    assert memory([100.0 + i for i in range(20)], 20)["mib_a_thousand"] == pytest.approx(1000 / 20)
    assert memory([None] * 20, 20) == {}


# -------------------------------------------------------------------------------------------------------- the whole way
def run(tmp_path, *parts):
    place = tmp_path / "serving.json"
    place.write_text(json.dumps({"peer": {"date": "2026-01-01"}}))
    command = [sys.executable, str(BENCHMARKS / "serving.py"), *parts, "--tiny", "--threads", "1", "--out", str(place)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(part in done.stdout for part in parts)
    found = json.loads(place.read_text())
    assert found["peer"] == {"date": "2026-01-01"}  # what was measured before is still there
    return found


@pytest.mark.slow
def test_the_server_and_the_process_without_one_give_the_same_scores(tmp_path):
    found = run(tmp_path, "throughput")["throughput"]
    assert found["largest_score_difference"] < 0.05  # bfloat16, in batches of other shapes
    assert set(found["ratios"]) == {"server / inside", "server / inside together"}
    assert found["lists_a_round"] == 4 and found["date"] and found["commit"] and found["hardware"]


@pytest.mark.slow
def test_every_part_runs_on_tiny_models(tmp_path):
    found = run(tmp_path, "queue", "batching", "fuzz", "soak")
    for section in found["queue"]["rounds"]:
        assert section["accepted"]["requests"] + section["refused"]["requests"] == section["offered_requests"]
    assert set(found["batching"]["models"]) == {"cross-encoder", "listwise"}
    assert found["fuzz"]["faults"] == 0, found["fuzz"]["faults_first"]
    assert found["fuzz"]["alive"]
    soak = found["soak"]
    assert soak["lost"] == soak["wrong"] == 0, soak["first_problems"]
    assert soak["counts"]["agree"], soak["counts"]
    assert soak["ending"]["answered_rightly"] == soak["ending"]["in_flight"], soak["ending"]
