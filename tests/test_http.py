"""One POST that survives a busy server: addresses, keys, waits, and what is asked again, over real sockets."""

import ast
import gzip
import json
import logging
import re
import subprocess
import sys
import threading
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path

import pytest
from chat_stub import Stub

from rerank import http
from rerank.errors import EndpointError, InputError
from rerank.http import LARGEST, LONGEST_WAIT, Connection, Manner, check_url, is_local, waiting

QUICK = {"first_wait": 0.001, "timeout": 10.0}
BODY = b'{"messages": [{"content": ""}]}'


class Saying(Stub):
    """A server that answers each request with the next of some (status, headers, body)."""

    def __init__(self, *answers):
        super().__init__(lambda number, body: str(number))
        self.answers = answers

    def how(self, number, body):
        return f"answer {number}"  # a name that no handler has

    def say(self, handler, body, how):
        status, headers, payload = self.answers[min(int(how.split()[1]), len(self.answers) - 1)]
        self.send(handler, status, payload, headers)


def read(payload, seconds):
    """The body's JSON, with the seconds."""
    try:
        return json.loads(payload), seconds
    except ValueError:
        raise ValueError("is not JSON") from None


def asked(stub, pause=None, retried=lambda: None, **manner):
    with Connection(stub.url, Manner(**{**QUICK, **manner}), retried) as connection:
        return connection.ask(BODY, "a key", read, *([pause] if pause else []))


# --------------------------------------------------------------------------------------------------------- addresses
@pytest.mark.parametrize(
    "url", ["http://h", "https://h/v1", "HTTP://h:80/a/b", "http://[::1]:8000/v1", "http://1.2.3.4"]
)
def test_http_addresses_with_or_without_port_and_path_are_allowed(url):
    check_url(url, "")


@pytest.mark.parametrize(
    "url",
    [
        *("", "h", "h:80", "ftp://h", "file:///etc/passwd", "http://", "http:///v1", "http://h/a b", "http://h/\n"),
        *("http://h:x", "http://h:99999", "http://[::1", "http://h/\x07", " http://h", "javascript:alert(1)"),
    ],
)
def test_what_is_no_http_address_is_refused(url):
    with pytest.raises(InputError, match=r"must be http\(s\)://"):
        check_url(url, "")


@pytest.mark.parametrize(
    "url",
    ["http://u:PASS@h", "http://PASS@h", "http://u:PASS#@h", "http://h/?k=PASS", "http://h/#PASS", "http://h:PASS"],
)
def test_what_may_be_a_password_is_not_repeated(url):
    with pytest.raises(InputError) as raised:
        check_url(url, "say where keys go")
    assert "PASS" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://localhost:8000/v1", True),
        ("http://LOCALHOST", True),
        ("http://127.0.0.1", True),
        ("http://127.9.9.9:1", True),
        ("http://[::1]:8000", True),
        ("http://0.0.0.0:8000", True),
        ("http://a.localhost", True),
        ("http://localhost.example.org", False),
        ("http://127.0.0.1.example.org", False),
        ("http://10.0.0.1", False),
        ("http://192.168.1.5:8000", False),
        ("http://128.0.0.1", False),
        ("http://example.org/127.0.0.1", False),
    ],
)
def test_an_address_is_of_this_machine_by_its_host_alone(url, local):
    assert is_local(url) == local


def test_a_server_on_this_machine_is_never_asked_through_a_proxy(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody answers there
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with Saying((200, (), b"1")) as stub:
        assert asked(stub)[0] == 1


# -------------------------------------------------------------------------------------------------------------- keys
@pytest.mark.parametrize("url", ["http://192.0.2.1/v1", "HTTP://example.org"])
def test_a_key_goes_over_http_to_another_machine_only_when_told_and_then_aloud(monkeypatch, caplog, url):
    monkeypatch.setenv("A_KEY", "sk-secret")
    with pytest.raises(InputError, match="readable to all") as raised:
        Connection(url, Manner(key_variable="A_KEY")).open()
    with Connection(url, Manner(key_variable="A_KEY", insecure=True)):
        assert "readable to all" in caplog.text
    assert "sk-secret" not in str(raised.value) + caplog.text


@pytest.mark.parametrize("url", ["https://example.org/v1", "http://localhost:1"])
def test_over_https_and_on_this_machine_a_key_is_sent_without_a_word(monkeypatch, caplog, url):
    monkeypatch.setenv("A_KEY", "sk-secret")
    with Connection(url, Manner(key_variable="A_KEY")):
        assert not caplog.records


@pytest.mark.parametrize("key", ["sk-1234", 'with"quote', "with\\slash", "a+b/c=="])
@pytest.mark.parametrize("written", ["plain", "json"])
def test_a_key_that_the_server_repeats_is_masked(monkeypatch, key, written):
    monkeypatch.setenv("A_KEY", key)
    payload = (f"no such key: {key}" if written == "plain" else json.dumps({"no such key": key})).encode()
    with Saying((401, (), payload)) as stub, pytest.raises(EndpointError, match="its key was sent") as raised:
        asked(stub, key_variable="A_KEY")
    assert "***" in str(raised.value)
    assert key not in str(raised.value)
    assert json.dumps(key)[1:-1] not in str(raised.value)


def test_the_key_that_was_sent_is_masked_even_where_the_variable_has_changed_since(monkeypatch):
    monkeypatch.setenv("A_KEY", "sk-before")
    with Saying((401, (), b"wrong: sk-before")) as stub:
        with Connection(stub.url, Manner(key_variable="A_KEY", **QUICK)) as connection:
            monkeypatch.setenv("A_KEY", "sk-after")
            with pytest.raises(EndpointError) as raised:
                connection.ask(BODY, "q", read)
    assert "sk-before" not in str(raised.value)


def test_a_key_in_the_place_where_a_redirect_leads_is_masked(monkeypatch):
    monkeypatch.setenv("A_KEY", "sk-1234")
    with Saying((302, [("location", "http://elsewhere/?key=sk-1234")], b"")) as stub:
        with pytest.raises(EndpointError, match=r"redirects to http://elsewhere/\?key=\*\*\*; redirects are not"):
            asked(stub, key_variable="A_KEY")


@pytest.mark.parametrize("expected", [True, False])
def test_a_variable_that_is_not_set_is_told_of_where_a_key_is_expected(monkeypatch, caplog, expected):
    monkeypatch.delenv("A_KEY", raising=False)
    with Saying((200, (), b"1")) as stub:
        asked(stub, key_variable="A_KEY", key_expected=expected)
        assert "authorization" not in stub.headers[0]
    assert ("A_KEY is not set" in caplog.text) == expected


def test_a_key_with_characters_that_no_key_has_is_refused_and_not_repeated(monkeypatch):
    monkeypatch.setenv("A_KEY", "sk-\u00fc1")
    with pytest.raises(InputError, match="A_KEY holds characters that no key has") as raised:
        Connection("https://h", Manner(key_variable="A_KEY")).open()
    assert "\u00fc" not in str(raised.value)


# ------------------------------------------------------------------------------------------------------------- waits
def test_waits_grow_are_drawn_by_key_and_have_a_bound():
    assert waiting(1.0, 3, "a") == waiting(1.0, 3, "a") != waiting(1.0, 3, "b")
    for attempt in range(5):
        for key in ("a", "b", "\ud800"):
            assert 0.5 * 2**attempt <= waiting(1.0, attempt, key) <= 2**attempt
    assert waiting(1.0, 10**6, "a") <= LONGEST_WAIT
    assert waiting(0.001, 0, "a", "7") == 7.0
    assert waiting(0.0, 0, "a", "86400") == LONGEST_WAIT
    later = datetime.now(timezone.utc) + timedelta(seconds=30)
    assert 25 < waiting(0.0, 0, "a", format_datetime(later, usegmt=True)) <= 30


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("name", ["Retry-After", "retry-after"])
def test_a_retry_after_is_the_least_that_is_waited(status, name):
    waits = []
    with Saying((status, [(name, "7")], b"busy"), (status, (), b"busy"), (200, (), b"1")) as stub:
        asked(stub, pause=waits.append)
    assert waits[0] == 7.0
    assert waits[1] < 0.01


# ----------------------------------------------------------------------------------------------------- asked again
@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529])
def test_a_status_that_may_pass_is_asked_again_and_counted(status):
    again = []
    with Saying((status, (), b"busy"), (status, (), b"busy"), (200, (), b'"here"')) as stub:
        assert asked(stub, retried=lambda: again.append(1))[0] == "here"
        assert stub.bodies == [json.loads(BODY)] * 3
    assert len(again) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410, 413, 418, 422, 424, 501, 505])
def test_a_status_that_will_not_pass_is_an_error_at_once_with_its_advice(status):
    with Saying((status, (), b"no\x1b[31m")) as stub:
        with pytest.raises(EndpointError, match=re.escape(f"{stub.url}: status {status}: no?[31m. ")) as raised:
            asked(stub, advice={status: "do this"}, no_key="do this")
        assert len(stub.bodies) == 1
    assert raised.value.status == status
    assert "Do this" in str(raised.value)


@pytest.mark.parametrize("how", ["drop", "slow", "trickle"])
def test_what_the_network_does_to_an_answer_is_asked_again(how):
    with Stub([how]) as stub:
        answer, seconds = asked(stub, timeout=0.3)
        assert 0 < seconds < 0.3  # of the attempt that was answered
        assert len(stub.bodies) == 2
    assert answer["choices"]


def test_a_body_that_cannot_be_read_is_asked_for_again_and_in_the_end_shown():
    with Saying((200, (), b"so {"), (200, (), b"2")) as stub:
        assert asked(stub)[0] == 2
    with Saying((200, (), b"so { " * 500)) as stub:
        with pytest.raises(
            EndpointError, match=r"but the body is not JSON: so \{.*; asked 3 times. Come back"
        ) as raised:
            asked(stub, retries=2, spent="come back")
    assert len(str(raised.value)) < 400


def test_no_retries_is_one_attempt():
    with Saying((503, (), b"busy")) as stub:
        with pytest.raises(EndpointError, match="status 503: busy; asked 1 times"):
            asked(stub, retries=0)
        assert len(stub.bodies) == 1


def test_a_body_without_end_is_read_up_to_a_limit():
    with Saying((200, (), b" " * (LARGEST + 1))) as stub, pytest.raises(EndpointError, match=f"longer than {LARGEST}"):
        asked(stub)
    packed = gzip.compress(b" " * (LARGEST + 1))
    with Saying((200, [("content-encoding", "gzip")], packed)) as stub:
        with pytest.raises(EndpointError, match=f"longer than {LARGEST}"):
            asked(stub)
    with Saying((200, (), b" " * (LARGEST - 1) + b"3")) as stub:
        assert asked(stub)[0] == 3


def test_an_answer_that_says_it_is_packed_and_is_not_is_asked_for_again():
    with Saying((200, [("content-encoding", "gzip")], b"not gzip"), (200, (), b"4")) as stub:
        assert asked(stub)[0] == 4


def test_a_server_that_restarts_is_waited_for_and_one_that_never_was_there_is_not():
    with Saying((200, (), b"5")) as stub:
        with Connection(stub.url, Manner(timeout=10.0, first_wait=0.2)) as connection:
            connection.ask(BODY, "q", read)
            stub.stop()
            back = threading.Timer(0.3, lambda: stub.start(stub.server.server_port))
            back.start()
            assert connection.ask(BODY, "q", read)[0] == 5
            back.join()
    with pytest.raises(EndpointError, match=r"no server can be reached .*: turn it on"):
        asked(stub, first_wait=9.0, start="turn it on")


def test_a_connection_is_kept_open_and_nothing_of_a_body_is_logged(caplog):
    caplog.set_level(logging.DEBUG, "rerank")
    with Saying((503, (), BODY), (200, (), b"1")) as stub, Connection(stub.url, Manner(**QUICK)) as connection:
        for _ in range(4):
            connection.ask(BODY, "q", read)
        assert len(stub.connections) == 1
    assert "status" in caplog.text or "503" in caplog.text
    assert "messages" not in caplog.text


@pytest.mark.parametrize(
    ("manner", "problem"),
    [
        ({"timeout": 0}, "timeout = 0"),
        ({"timeout": float("inf")}, "timeout = inf"),
        ({"retries": True}, "retries = True"),
        ({"retries": -1}, "retries = -1"),
        ({"first_wait": -1.0}, "first_wait = -1.0"),
        ({"key_variable": "sk-1"}, "NAME of an environment variable"),
    ],
)
def test_a_manner_that_is_not_allowed_is_refused(manner, problem):
    with pytest.raises(InputError, match=re.escape(problem)) as raised:
        Manner(**manner)
    assert "sk-1" not in str(raised.value)


def test_it_imports_errors_alone_of_ours_and_nothing_heavy():
    tree = ast.parse(Path(http.__file__).read_text(encoding="utf8"))
    ours = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and (n.module or "").startswith("rerank")}
    assert ours == {"rerank.errors"}
    code = "import sys, rerank.http; assert not {'httpx2', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
