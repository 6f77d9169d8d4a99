"""Clients that are slow, broken or gone: what it costs the server, and what the others notice of it."""

import asyncio
import gc
import gzip
import json
import logging
import socket
import threading
import time
from contextlib import suppress

import pytest
from serving_parts import BODY, SUPERSET, listening_server, said_to

from rerank.serving.asking import Refusal
from rerank.serving.limits import Limits

pytest.importorskip("fastapi", reason="serving is the extra serve")
httpx2 = pytest.importorskip("httpx2")

HEAD = b"POST /rerank HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


@pytest.fixture
def served():
    """(port, scorer, metrics) of a server on a real socket, with short patience."""
    with listening_server() as server:
        yield server


def counted(port, line):
    """Whether the server's metrics come to hold a line."""
    for _ in range(100):
        if line in httpx2.get(f"http://127.0.0.1:{port}/metrics").text:
            return True
        time.sleep(0.05)
    return False


def alive(port):
    return httpx2.post(f"http://127.0.0.1:{port}/rerank", json=BODY).status_code == 200


def test_a_head_that_never_ends_is_closed_in_time(served):
    port, _, _ = served
    began = time.monotonic()
    assert said_to(port, b"POST /rerank HTTP/1.1\r\nHost: a\r\nX-A: ") == b""
    assert 0.3 < time.monotonic() - began < 3.0 and alive(port)


def test_a_body_that_never_ends_is_answered_408(served):
    port, _, _ = served
    head = b"POST /rerank HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    answer = said_to(port, head)
    assert answer.startswith(b"HTTP/1.1 408 ") and SUPERSET == set(json.loads(answer.partition(b"\r\n\r\n")[2]))
    assert alive(port)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00", "not https://"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/2 is not spoken"),
        (b"GET\r\n\r\n", "RFC 9112"),
        (b"POST /rerank twice HTTP/1.1\r\n\r\n", "RFC 9112"),
    ],
)
def test_what_is_no_http_is_refused_in_json(raw, said, served):
    port, _, _ = served
    answer = said_to(port, raw)
    assert answer.startswith(b"HTTP/1.1 400 ") and json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == 400
    assert answer.count(b"HTTP/1.1 ") == 1 and said in answer.decode()
    assert alive(port)


def test_a_client_that_leaves_withdraws_its_question(served):
    port, scorer, _ = served
    texts = [f"wait {i} " + "word " * 4000 for i in range(20)]
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.post(f"http://127.0.0.1:{port}/rerank", json={"query": "a", "documents": texts}, timeout=0.3)
    assert scorer.begun.is_set()
    assert counted(port, 'rerank_disconnects_total{path="/rerank"} 1.0')
    assert counted(port, 'rerank_requests_total{path="/rerank",status="499"} 1.0')
    assert alive(port)


def test_one_connection_may_carry_many_requests(served):
    port, _, _ = served
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}") as client:
        assert [client.post("/rerank", json=BODY).status_code for _ in range(20)] == [200] * 20


def test_a_client_that_leaves_while_its_body_comes_is_counted_as_gone_and_is_no_fault(served, caplog):
    port, _, _ = served
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(HEAD + b"Content-Length: 1000000\r\n\r\n" + b" " * 500_000)
        time.sleep(0.1)
    assert counted(port, 'rerank_disconnects_total{path="/rerank"} 1.0')
    assert 'status="500"' not in httpx2.get(f"http://127.0.0.1:{port}/metrics").text
    assert not [record for record in caplog.records if record.name.startswith(("rerank", "uvicorn"))]


REFUSED = {
    "a field": {"query": "", "documents": ["a"]},
    "a document": {"query": "a", "documents": ["a", 3]},
    "a model": {**BODY, "model": "nobody"},
    "a calibrated model": {**BODY, "min_probability": 0.5},
    "a long text": {"query": "a", "documents": ["w" * 100_001]},
    "many documents": {"query": "a", "documents": ["w" * 200] * 1001},
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_is_forgotten_at_once_and_with_it_the_body(case, served):
    port, _, _ = served

    def alive_now():
        return [one for one in gc.get_objects() if isinstance(one, Refusal | ValueError)]

    gc.collect()
    gc.disable()  # in a server with a model the collector comes by rarely
    try:
        before = len(alive_now())
        for _ in range(3):
            assert httpx2.post(f"http://127.0.0.1:{port}/rerank", json=REFUSED[case]).status_code >= 400
        time.sleep(0.1)
        assert len(alive_now()) == before
    finally:
        gc.enable()


def unread(port, size=1 << 12):
    """A connection whose answer of 5 MB is not read."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    connection.settimeout(20)
    connection.connect(("127.0.0.1", port))
    body = json.dumps({"query": "a", "documents": ["number 3 " * 10_000 + str(i) for i in range(60)]}).encode()
    connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    return connection, len(body)


def read_all(connection, pause=0.0):
    """Bytes that came until the connection ended or fell silent."""
    found = 0
    with suppress(OSError):
        while chunk := connection.recv(1 << 18):
            found += len(chunk)
            time.sleep(pause)
    return found


def test_a_client_that_takes_no_part_of_its_answer_is_cut_off(served):
    port, _, _ = served
    connection, size = unread(port)
    with connection:
        time.sleep(2.5)
        found = read_all(connection)
    assert found < size and alive(port)


def test_a_client_that_reads_slowly_gets_all_of_its_answer():
    with listening_server(Limits(body_seconds=1.0)) as (port, _, _):
        connection, size = unread(port, 1 << 17)
        with connection:
            connection.settimeout(1.5)
            began = time.monotonic()
            found = read_all(connection, pause=0.05)
        assert found > size and time.monotonic() - began > 2.0


def test_bodies_that_are_on_their_way_hold_no_more_than_is_allowed():
    with listening_server(Limits(bodies=400_000, body_seconds=2.0)) as (port, _, _):
        part = HEAD + b"Content-Length: 400000\r\n\r\n" + b" " * 300_000
        with socket.create_connection(("127.0.0.1", port)) as silent:
            silent.sendall(part)
            time.sleep(0.3)
            answer = said_to(port, part, seconds=1.0)
            assert answer.startswith(b"HTTP/1.1 429 ") and b"--max-bodies" in answer and b"retry-after" in answer
            assert alive(port)  # what is small is answered meanwhile
        assert counted(port, 'rerank_disconnects_total{path="/rerank"} 1.0')
        text = {"query": "a", "documents": ["number 3 " * 10_000] * 4}
        assert httpx2.post(f"http://127.0.0.1:{port}/rerank", json=text).status_code == 200


def test_half_a_head_behind_a_request_is_closed_in_time(served):
    port, _, _ = served
    began = time.monotonic()
    answer = said_to(port, b"GET /live HTTP/1.1\r\nHost: a\r\n\r\nGET /li")
    assert answer.startswith(b"HTTP/1.1 200 ") and 0.3 < time.monotonic() - began < 3.0


def test_two_lengths_for_one_body_are_refused_and_the_connection_is_closed(served):
    port, _, _ = served
    body = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /live HTTP/1.1\r\nHost: a\r\n\r\n"
    answer = said_to(port, HEAD + body)
    assert answer.startswith(b"HTTP/1.1 400 ") and answer.count(b"HTTP/1.1") == 1
    assert b"Transfer-Encoding" in answer and b"connection: close" in answer


def test_what_is_cut_off_at_the_end_is_no_fault_in_the_log_and_a_fault_is_one(caplog):
    from rerank.serving.protocol import patient

    patient(1.0)
    for error in (asyncio.CancelledError("cut off"), ValueError("a fault")):
        logging.getLogger("uvicorn.error").error("Exception in ASGI application", exc_info=error)
    assert "a fault" in caplog.text and "cut off" not in caplog.text


# ------------------------------------------------------------------------------------------------- large bodies in line
def arriving(arrivals, raw, deadline=60.0, leaves=False, headers=()):
    """What arrivals make of a body, whose client stays or leaves behind it."""
    from starlette.requests import Request

    messages = [{"type": "http.request", "body": raw}]

    async def receive():
        if messages:
            return messages.pop()
        await asyncio.sleep(0.1 if leaves else 60)
        return {"type": "http.disconnect"}

    named = [(b"content-type", b"application/json"), *headers]
    scope = {"type": "http", "method": "POST", "path": "/rerank", "headers": named}
    return asyncio.run(arrivals.asked(Request(scope, receive), time.monotonic() + deadline))


LONG = json.dumps({"query": "a", "documents": ["number 3 " * 100] * 200}).encode()


def test_what_is_large_or_compressed_is_read_beside_the_event_loop(monkeypatch):
    from rerank.serving import arriving as module

    where = []
    read = module._read
    monkeypatch.setattr(module, "_read", lambda *given: where.append(threading.current_thread().name) or read(*given))
    arrivals = module.Arrivals(Limits())
    encoded = [(b"content-encoding", b"gzip")]
    for raw, headers in ((LONG, ()), (gzip.compress(LONG), encoded), (json.dumps(BODY).encode(), ())):
        assert arriving(arrivals, raw, headers=headers).questions[0].query
    assert [name.startswith("bodies") for name in where] == [True, True, False]
    assert arrivals.held == 0


def test_a_large_body_waits_for_those_before_it_no_longer_than_its_request_may_take():
    from rerank.serving.arriving import Arrivals

    arrivals = Arrivals(Limits())
    arrivals._beside.submit(time.sleep, 1.0)
    began = time.monotonic()
    with pytest.raises(Refusal, match="--timeout") as caught:
        arriving(arrivals, LONG, deadline=0.1)
    assert caught.value.status == 504 and time.monotonic() - began < 0.8 and arrivals.held == 0


def test_a_large_body_whose_client_left_while_it_waited_is_not_read(monkeypatch):
    from rerank.serving import arriving as module
    from rerank.serving.guard import Gone

    read = []
    monkeypatch.setattr(module, "_read", lambda *given: read.append(given))
    arrivals = module.Arrivals(Limits())
    before = arrivals._beside.submit(time.sleep, 0.5)
    with pytest.raises(Gone):
        arriving(arrivals, LONG, leaves=True)
    before.result()
    arrivals._beside.submit(int).result()  # whatever stood before it in the line is done
    assert not read and arrivals.held == 0
