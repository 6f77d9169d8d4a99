"""The server over HTTP: what it answers, whom it refuses, and what it does with clients that are slow or broken."""

import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch

from rerank.errors import InputError
from rerank.models.policy import ScorePolicy
from rerank.reranker import Reranker
from rerank.serving.limits import Limits
from rerank.serving.shelf import Shelf, aliases_of, named
from rerank.testing import NumberScorer

pytest.importorskip("fastapi", reason="serving is the extra serve")
pytest.importorskip("httpx2", reason="the test client of starlette needs it")
httpx2 = pytest.importorskip("httpx2")

KEY = "a-key-of-enough-letters"
BODY = {"query": "which is large", "documents": ["number 3", "number 99", "number 40"]}
SUPERSET = {"message", "error", "error_type", "detail", "code", "request_id"}


class Slow(torch.nn.Module):
    """Scores by numbers; a text that says so takes its time."""

    kind = "number"

    def __init__(self):
        super().__init__()
        self.numbers = NumberScorer()
        self.begun = threading.Event()

    @property
    def device(self):
        return self.numbers.device

    def body(self):
        return []

    def encode(self, lists):
        if any("wait" in text for candidates in lists for text in candidates.texts):
            self.begun.set()
            time.sleep(0.4)
        if any("break" in text for candidates in lists for text in candidates.texts):
            raise RuntimeError("a secret of the model")
        return self.numbers.encode(lists)

    def logits(self, items):
        return self.numbers.logits(items)


def a_shelf(limits=None, aliases=(), scorer=None):
    models = [named("numbers=nowhere"), named("others=elsewhere")]
    shelf = Shelf(models, aliases_of(aliases, models), limits or Limits())
    first = Reranker(ScorePolicy(scorer or Slow()))
    shelf.fill({"numbers": first, "others": Reranker(ScorePolicy(NumberScorer(weight=-0.05)))})
    return shelf


@pytest.fixture
def client_of():
    from fastapi.testclient import TestClient

    from rerank.serving.app import app_of

    shelves = []

    def make(limits=None, keys=(), aliases=(), shelf=None):
        shelves.append(shelf or a_shelf(limits, aliases))
        return TestClient(app_of(shelves[-1], keys), raise_server_exceptions=False)

    yield make
    for shelf in shelves:
        shelf.close()


def refused(response, status):
    """The message of a refusal, whose body has every field that a client looks for."""
    told = response.json()
    assert response.status_code == status, told
    assert set(told) == SUPERSET and told["code"] == status
    assert told["request_id"] == response.headers["x-request-id"]
    return told["message"]


def order(response):
    return [row["index"] for row in response.json()["results"]]


# ------------------------------------------------------------------------------------------------------------ answers
def test_documents_are_ranked_as_in_process(client_of):
    response = client_of().post("/v2/rerank", json={**BODY, "top_n": 2})
    wanted = Reranker(ScorePolicy(NumberScorer())).rank(BODY["query"], BODY["documents"], top_k=2)
    assert order(response) == [hit.index for hit in wanted]
    scores = [row["relevance_score"] for row in response.json()["results"]]
    assert scores == pytest.approx([hit.relevance for hit in wanted], abs=1e-9)


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank", "/infinity/rerank", "/voyage/v1/rerank"])
def test_every_path_takes_the_other_model_by_its_name(path, client_of):
    client = client_of()
    rows = [client.post(path, json={**BODY, "model": name}).json() for name in ("numbers", "others")]
    found = [[row["index"] for row in told.get("results") or told["data"]] for told in rows]
    assert found == [[1, 2, 0], [0, 2, 1]]


def test_a_request_id_is_taken_over_where_it_is_harmless_and_made_otherwise(client_of):
    client = client_of()
    assert client.post("/rerank", json=BODY, headers={"X-Request-ID": "mine-1"}).headers["x-request-id"] == "mine-1"
    made = client.post("/rerank", json=BODY, headers={"X-Request-ID": "a b\tc"}).headers["x-request-id"]
    assert len(made) == 32


def test_what_has_no_effect_is_told_in_a_header(client_of):
    response = client_of().post("/voyage/v1/rerank", json={**BODY, "topk": 3})
    assert "topk" in response.headers["x-rerank-warning"]


def test_the_time_it_took_is_told_in_the_headers_of_tei_and_in_the_standard_one(client_of):
    headers = client_of().post("/tei/rerank", json={"query": "a", "texts": ["wait 1"]}).headers
    assert int(headers["x-total-time"]) >= int(headers["x-inference-time"]) >= 300
    assert "model;dur=" in headers["server-timing"]


def test_a_compressed_body_is_read(client_of):
    raw = gzip.compress(json.dumps(BODY).encode())
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert order(client_of().post("/rerank", content=raw, headers=headers)) == [1, 2, 0]


# ------------------------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize("header", [None, "Bearer wrong-key-of-letters", f"Basic {KEY}", "Bearer", f"Bearer {KEY}x"])
def test_without_the_key_nothing_is_told_but_health_and_the_pages(header, client_of):
    client = client_of(keys=(KEY, "another-key-of-letters"))
    headers = {"Authorization": header} if header else {}
    for ask in (
        lambda: client.post("/rerank", content=b"not even JSON", headers=headers),
        lambda: client.get("/v1/models", headers=headers),
        lambda: client.get("/metrics", headers=headers),
    ):
        response = ask()
        assert "the key is" in refused(response, 401)
        assert response.headers["www-authenticate"] == "Bearer"
    assert [client.get(path, headers=headers).status_code for path in ("/health", "/live", "/", "/docs")] == [200] * 4


@pytest.mark.parametrize(
    "headers", [{"Authorization": f"Bearer {KEY}"}, {"authorization": f"bearer {KEY}"}, {"X-API-Key": KEY}]
)
def test_any_of_the_keys_opens(headers, client_of):
    assert (
        client_of(keys=("another-key-of-letters", KEY)).post("/rerank", json=BODY, headers=headers).status_code == 200
    )


def test_a_page_of_another_site_cannot_ask(client_of):
    client = client_of()
    assert "another site" in refused(client.post("/rerank", json=BODY, headers={"Sec-Fetch-Site": "cross-site"}), 403)
    assert client.post("/rerank", json=BODY, headers={"Sec-Fetch-Site": "same-origin"}).status_code == 200


@pytest.mark.parametrize(
    ("content", "headers", "status", "said"),
    [
        (b"{", {}, 400, "JSON"),
        (b'{"query": "a", "query": "b", "documents": []}', {}, 400, "query"),
        (b'{"query": "a", "documents": [], "top_n": NaN}', {}, 400, "NaN"),
        (b'{"query": "\xff", "documents": []}', {}, 400, "UTF-8"),
        (b"[" * 100_000, {}, 400, "deep"),
        (b"[]", {}, 400, "object"),
        (b'{"query": "a", "documents": ["b", null]}', {}, 422, "documents.1"),
        (b'{"query": " ", "documents": ["b"]}', {}, 422, "query"),
        (b'{"query": "a", "documents": ["b"], "top_n": "3"}', {}, 422, "top_n"),
        (b'{"query": "a", "documents": ["b"], "min_probability": 0.5}', {}, 422, "calibrated"),
        (b'{"query": "a", "documents": ["b"], "model": "../../etc/passwd"}', {}, 404, "no model"),
        (b"query=a", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "Content-Type"),
        (b"{}", {"Content-Encoding": "br"}, 415, "br"),
        (b'{"query": "a", "documents": ["break"]}', {}, 500, "log"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_every_clients_words(content, headers, status, said, client_of):
    response = client_of().post("/rerank", content=content, headers={"Content-Type": "application/json", **headers})
    message = refused(response, status)
    assert said in message and "secret" not in message


def test_infinitys_client_finds_the_list_that_it_reads_in_a_422(client_of):
    told = client_of().post("/infinity/rerank", json={"query": "a", "documents": [3]}).json()
    assert told["detail"][0]["msg"] == told["message"]


@pytest.mark.parametrize(
    ("limits", "body", "said"),
    [
        (Limits(documents=2), BODY, "--max-documents"),
        (Limits(characters=9), BODY, "--max-characters"),
        (Limits(body=50), BODY, "--max-body"),
        (Limits(documents=2), {"text_1": ["a", "b", "c"], "text_2": ["a", "b", "c"]}, "--max-documents"),
    ],
)
def test_what_is_too_large_names_the_limit(limits, body, said, client_of):
    path = "/score" if "text_1" in body else "/rerank"
    assert said in refused(client_of(limits).post(path, json=body), 413)


def test_a_bomb_is_refused_at_the_limit(client_of):
    raw = gzip.compress(b'{"query": "' + b"a" * 30_000_000 + b'"}')
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert "--max-body" in refused(client_of().post("/rerank", content=raw, headers=headers), 413)


def test_a_path_or_method_that_is_none_is_refused_with_those_there_are(client_of):
    client = client_of()
    assert "/v2/rerank" in refused(client.post("/v3/rerank", json=BODY), 404)
    response = client.get("/rerank")
    assert "not allowed" in refused(response, 405) and response.headers["allow"] == "POST"


def test_a_request_that_takes_too_long_is_refused_in_time(client_of):
    client = client_of(Limits(seconds=0.05))
    began = time.monotonic()
    assert "--timeout" in refused(client.post("/rerank", json={"query": "a", "documents": ["wait"]}), 504)
    assert time.monotonic() - began < 0.35


# ------------------------------------------------------------------------------------------------------------- telling
def test_health_is_ready_only_while_questions_are_taken(client_of):
    client = client_of()
    assert client.get("/health").json() == {"status": "ready", "models": ["numbers", "others"]}
    assert client.get("/.well-known/ready").status_code == 204
    empty = client_of(shelf=Shelf([named("a")], {}, Limits()))
    response = empty.get("/ready")
    assert response.status_code == 503 and int(response.headers["retry-after"]) > 0
    assert "being loaded" in refused(empty.post("/rerank", json=BODY), 503)
    assert empty.get("/live").status_code == 200


def test_models_and_info_say_what_is_served(client_of):
    client = client_of(aliases=("rerank-v3.5=others",))
    listed = client.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["numbers", "others", "rerank-v3.5"]
    info = client.get("/info").json()
    assert info["model_id"] == "numbers" and info["max_client_batch_size"] == 1000 and "reranker" in info["model_type"]


def test_metrics_count_requests_by_path_and_status_and_documents_by_model(client_of):
    client = client_of()
    client.post("/rerank", json=BODY)
    client.post("/rerank", json={**BODY, "model": "others"})
    client.post("/rerank", content=b"{")
    client.get("/../etc/passwd")
    told = client.get("/metrics").text
    assert 'rerank_requests_total{path="/rerank",status="200"} 2.0' in told
    assert 'rerank_requests_total{path="other",status="404"} 1.0' in told
    assert 'rerank_documents_total{model="others"} 3.0' in told
    assert "rerank_open_requests 1.0" in told  # this very one


# -------------------------------------------------------------------------------------------- clients that misbehave
@pytest.fixture
def served():
    """(port, scorer) of a server on a real socket, with short patience."""
    from rerank.listening import listening
    from rerank.serving.app import app_of
    from rerank.serving.server import _server_of

    scorer = Slow()
    shelf = a_shelf(Limits(body_seconds=0.5, seconds=5.0), scorer=scorer)
    server = _server_of(app_of(shelf), shelf, 1.0)
    with listening("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        port = listener.getsockname()[1]
        for _ in range(200):
            if server.started:
                break
            time.sleep(0.02)
        yield port, scorer
        server.should_exit = True
        thread.join(10)
    shelf.close()
    assert not thread.is_alive()


def said_to(port, raw, seconds=5.0):
    """What comes back for raw bytes, until the server closes or falls silent."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        connection.sendall(raw)
        found = b""
        while True:
            try:
                chunk = connection.recv(65536)
            except TimeoutError:
                return found
            if not chunk:
                return found
            found += chunk


def alive(port):
    return httpx2.post(f"http://127.0.0.1:{port}/rerank", json=BODY).status_code == 200


def test_a_head_that_never_ends_is_closed_in_time(served):
    port, _ = served
    began = time.monotonic()
    assert said_to(port, b"POST /rerank HTTP/1.1\r\nHost: a\r\nX-A: ") == b""
    assert 0.3 < time.monotonic() - began < 3.0 and alive(port)


def test_a_body_that_never_ends_is_answered_408(served):
    port, _ = served
    head = b"POST /rerank HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    answer = said_to(port, head)
    assert answer.startswith(b"HTTP/1.1 408 ") and SUPERSET == set(json.loads(answer.partition(b"\r\n\r\n")[2]))
    assert alive(port)


@pytest.mark.parametrize(
    "raw", [b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"POST /rerank twice HTTP/1.1\r\n\r\n"]
)
def test_what_is_no_http_is_refused_in_json(raw, served):
    port, _ = served
    answer = said_to(port, raw)
    assert answer.startswith(b"HTTP/1.1 400 ") and json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == 400
    assert alive(port)


def test_a_client_that_leaves_withdraws_its_question(served):
    port, scorer = served
    texts = [f"wait {i} " + "word " * 4000 for i in range(20)]
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.post(f"http://127.0.0.1:{port}/rerank", json={"query": "a", "documents": texts}, timeout=0.3)
    assert scorer.begun.is_set()
    for _ in range(100):
        told = httpx2.get(f"http://127.0.0.1:{port}/metrics").text
        if 'rerank_requests_total{path="/rerank",status="499"} 1.0' in told:
            break
        time.sleep(0.05)
    else:
        pytest.fail("the server did not see that its client left")
    assert alive(port)


def test_one_connection_may_carry_many_requests(served):
    port, _ = served
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}") as client:
        assert [client.post("/rerank", json=BODY).status_code for _ in range(20)] == [200] * 20


# ------------------------------------------------------------------------------------------------------------- command
@pytest.fixture(scope="module")
def folder(tiny_bert, tmp_path_factory):
    from sentence_transformers import CrossEncoder

    place = tmp_path_factory.mktemp("served") / "tiny"
    CrossEncoder(str(tiny_bert), num_labels=1).save_pretrained(str(place))
    return place


def test_the_command_serves_a_folder_and_ends_after_its_last_answer(folder):
    command = [sys.executable, "-m", "rerank", "serve", f"tiny={folder}", "--port", "0", "--precision", "float32"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        url = next(line for line in process.stdout if line.startswith("http")).split()[0]
        texts = [f"text {i} " + "of many words " * 40 for i in range(400)]
        found = []

        def ask():
            found.append(httpx2.post(f"{url}/rerank", json={"query": "words", "documents": texts}, timeout=60))

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        asking.join(60)
        status = process.wait(30)
        errors = process.stderr.read()
    wanted = Reranker.from_pretrained(folder, precision="float32").rank("words", texts)
    assert found[0].status_code == 200, found[0].text
    assert order(found[0]) == [hit.index for hit in wanted]
    assert status == -signal.SIGTERM and "answering what was asked" in errors and "Traceback" not in errors


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"models": []}, "give a model"),
        ({"host": "0.0.0.0"}, "asks for no key"),
        ({"keys": ["short"]}, "at least 16"),
        ({"keys": ["a key with blanks in it"]}, "without blanks"),
        ({"aliases": ["a=b"]}, "--alias"),
        ({"port": 70_000}, "port 70000"),
    ],
)
def test_a_server_that_should_not_start_says_why(arguments, said):
    from rerank.serving.server import serve

    with pytest.raises(InputError, match=said):
        serve(**{"models": ["nowhere"], **arguments})


def test_a_model_that_cannot_be_loaded_ends_the_server_with_its_reason(tmp_path):
    from rerank.errors import RerankError
    from rerank.serving.server import serve

    with pytest.raises(RerankError, match="nowhere"):
        serve([str(tmp_path / "nowhere")], port=0)
