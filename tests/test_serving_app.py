"""The server over HTTP: what it answers, and what it refuses to answer."""

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from serving_parts import BODY, clients, order, refused

from rerank.errors import InputError
from rerank.models.policy import ScorePolicy
from rerank.reranker import Reranker
from rerank.serving.limits import Limits
from rerank.serving.shelf import Shelf, named
from rerank.testing import NumberScorer

pytest.importorskip("fastapi", reason="serving is the extra serve")
httpx2 = pytest.importorskip("httpx2", reason="the test client of starlette needs it")


@pytest.fixture
def client_of():
    with clients() as make:
        yield make


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
        texts = [f"text {i} " + "of many words " * 40 for i in range(1000)]
        found = []

        def ask():
            found.append(httpx2.post(f"{url}/rerank", json={"query": "words", "documents": texts}, timeout=60))

        asking = threading.Thread(target=ask)
        asking.start()
        while "rerank_open_requests 2.0" not in httpx2.get(f"{url}/metrics").text:  # that one and this one
            assert asking.is_alive()
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
        ({"keys": ["a key with blanks in it"]}, "no blanks"),
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
