"""What stands before the application: keys, hosts, paths, ids, the log and the counters."""

import asyncio
import json
import logging

import pytest
from serving_parts import BODY, KEY, SUPERSET, clients, refused

from rerank.serving.guard import Guard
from rerank.serving.limits import Limits
from rerank.serving.metrics import Metrics
from rerank.serving.shelf import Shelf, named

pytest.importorskip("fastapi", reason="serving is the extra serve")
pytest.importorskip("httpx2", reason="the test client of starlette needs it")

HERE = {"127.0.0.1", "localhost", "[::1]"}


@pytest.fixture
def client_of():
    with clients() as make:
        yield make


# ---------------------------------------------------------------------------------------------------------------- keys
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


@pytest.mark.parametrize(
    "given",
    [
        [("Authorization", f"Bearer {KEY}"), ("Authorization", f"Bearer {KEY}")],
        [("Authorization", "Bearer a-key-that-some-programs-force"), ("X-API-Key", KEY)],
        [("Authorization", "Bearer "), ("X-API-Key", KEY)],
        [("X-API-Key", "an-old-key-of-a-proxy"), ("Authorization", f"Bearer {KEY}")],
    ],
)
def test_a_right_key_opens_whatever_else_came_along(given, client_of):
    assert client_of(keys=(KEY,)).post("/rerank", json=BODY, headers=given).status_code == 200


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"Authorization": KEY}, "is missing: Authorization holds no 'Bearer KEY'"),
        ({"Authorization": f"Basic {KEY}"}, "is missing: Authorization holds no 'Bearer KEY'"),
        ({}, "is missing: send Authorization"),
        ({"Authorization": "Bearer wrong"}, "is wrong (in Authorization)"),
        ({"Authorization": "Bearer wrong", "X-API-Key": "bad"}, "is wrong (in Authorization and in X-API-Key)"),
        ({"Authorization": "Basic wrong", "X-API-Key": "bad"}, "is wrong (in X-API-Key)"),
    ],
)
def test_what_is_wrong_with_a_key_is_said_without_repeating_it(given, said, client_of):
    message = refused(client_of(keys=(KEY,)).post("/rerank", json=BODY, headers=given), 401)
    assert said in message and not any(word in message for word in (KEY, "bad"))


# ------------------------------------------------------------------------------------------------------ hosts and paths
def test_a_page_of_another_site_cannot_ask(client_of):
    client = client_of()
    assert "another site" in refused(client.post("/rerank", json=BODY, headers={"Sec-Fetch-Site": "cross-site"}), 403)
    assert client.post("/rerank", json=BODY, headers={"Sec-Fetch-Site": "same-origin"}).status_code == 200


@pytest.mark.parametrize("host", ["localhost", "LocalHost:8000", "127.0.0.1:1", "[::1]:8000", "[::1]"])
def test_a_server_with_hosts_answers_to_each_of_them(host, client_of):
    assert client_of(hosts=HERE).post("/rerank", json=BODY, headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.com", "evil.com:8000", "localhost.evil.com", "[::1].evil.com", "127.0.0.1:1:2"])
def test_a_site_that_leads_its_name_to_this_machine_is_refused(host, client_of):
    client = client_of(hosts=HERE)
    for response in (
        client.post("/rerank", json=BODY, headers={"Host": host}),
        client.get("/v1/models", headers={"Host": host}),
    ):
        assert "--key-file" in refused(response, 421)
    assert client_of().post("/rerank", json=BODY, headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("path", ["/rerank/", "/v2/rerank/", "/infinity/rerank/"])
def test_a_slash_at_the_end_of_a_path_changes_nothing(path, client_of):
    client = client_of()
    responses = [client.post(one, json=BODY, follow_redirects=False) for one in (path, path[:-1])]
    assert [response.status_code for response in responses] == [200, 200]
    rows = [[row["index"] for row in response.json()["results"]] for response in responses]
    assert rows[0] == rows[1]
    assert client.get("/v1/models/", follow_redirects=False).json()["data"][0]["id"] == "numbers"
    assert f'path="{path[:-1]}",status="200"}} 2.0' in client.get("/metrics/").text


def test_a_slash_at_the_end_does_not_open_what_needs_a_key(client_of):
    client = client_of(keys=(KEY,))
    assert [client.get(path).status_code for path in ("/v1/models/", "/health/", "/docs/", "/")] == [401, 200, 200, 200]


def test_a_path_or_method_that_is_none_is_refused_with_the_nearest_that_is(client_of):
    client = client_of()
    assert "did you mean '/v2/rerank'? (/docs" in refused(client.post("/v3/rerank", json=BODY), 404)
    response = client.delete("/v1/models")
    said = "DELETE /v1/models: this method is not allowed here; there is GET, HEAD"
    assert refused(response, 405) == said and "GET" in response.headers["allow"]


def told_by(app, scope, body=b""):
    """The messages that an ASGI application sends in answer to one request."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    asyncio.run(app({"type": "http", "method": "GET", "headers": [], **scope}, receive, send))
    return sent


def test_a_target_with_the_whole_address_is_the_path_in_it_and_its_host_counts():
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    guard = Guard(app, (), Metrics(), {"/rerank"}, HERE)
    headers = [(b"host", b"localhost")]
    assert told_by(guard, {"path": "http://LOCALHOST:8000/v1/rerank/", "headers": headers})[0]["status"] == 200
    assert told_by(guard, {"path": "http://127.0.0.1", "headers": headers})[0]["status"] == 200
    assert told_by(guard, {"path": "http://evil.com/rerank", "headers": headers})[0]["status"] == 421
    assert seen == ["/v1/rerank", "/"]


def test_a_request_that_is_cut_off_at_the_end_is_told_so_before_it_is_given_up():
    async def app(scope, receive, send):
        await asyncio.sleep(60)

    sent = []

    async def send(message):
        sent.append(message)

    async def cut_off():
        guard = Guard(app, (), metrics, {"/rerank"})
        task = asyncio.ensure_future(
            guard({"type": "http", "method": "POST", "path": "/rerank", "headers": []}, 0, send)
        )
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    metrics = Metrics()
    asyncio.run(cut_off())
    head, body = sent
    assert head["status"] == 503 and dict(head["headers"])[b"retry-after"] == b"5"
    assert set(json.loads(body["body"])) == SUPERSET
    assert b'rerank_requests_total{path="/rerank",status="503"} 1.0' in metrics.text()[0]


# -------------------------------------------------------------------------------------------------- ids, log, counters
def test_a_request_id_is_taken_over_where_it_is_harmless_and_made_otherwise(client_of):
    client = client_of()
    assert client.post("/rerank", json=BODY, headers={"X-Request-ID": "mine-1"}).headers["x-request-id"] == "mine-1"
    made = client.post("/rerank", json=BODY, headers={"X-Request-ID": "a b\tc"}).headers["x-request-id"]
    assert len(made) == 32


def lines_of(caplog, name):
    return [record.getMessage() for record in caplog.records if record.name == name]


def test_the_log_has_a_line_for_each_request_without_texts_and_keys(client_of, caplog):
    caplog.set_level(logging.INFO, "rerank.serving.requests")
    client = client_of(keys=(KEY,), log=True)
    given = {"Authorization": f"Bearer {KEY}", "X-Request-ID": "mine"}
    client.post("/v2/rerank/?key=in-the-address", json=BODY, headers=given)
    client.post("/rerank", json=BODY, headers={**given, "Authorization": "Bearer wrong"})
    client.get("/odd%0apath", headers=given)
    one, two, three = lines_of(caplog, "rerank.serving.requests")
    assert one.startswith("POST /v2/rerank 200 ") and one.endswith(" ms documents=3 request=mine")
    assert two.startswith("POST /rerank 401 ") and "documents" not in two
    assert three.startswith(r"GET '/odd\npath' 404 ")
    assert not any(word in caplog.text for word in (KEY, "wrong", "number 3", "which is large", "in-the-address"))


def test_there_is_no_line_for_a_request_unless_it_is_wanted(client_of, caplog):
    caplog.set_level(logging.INFO)
    client_of().post("/rerank", json=BODY)
    assert not lines_of(caplog, "rerank.serving.requests")


def test_what_a_server_fails_at_is_in_the_log_with_its_request_id(client_of, caplog):
    client = client_of(Limits(seconds=0.05))
    client.post("/rerank", json={"query": "a", "documents": ["wait"]}, headers={"X-Request-ID": "late-one"})
    client.post("/rerank", json={"query": "a", "documents": [3]}, headers={"X-Request-ID": "wrong-one"})
    [line] = lines_of(caplog, "rerank.serving")
    assert "late-one" in line and "504" in line and "--timeout" in line


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


def test_the_page_of_metrics_explains_each_and_has_no_times_of_their_beginning(client_of):
    client = client_of()
    client.post("/rerank", json=BODY)
    told = client.get("/metrics").text
    assert "_created" not in told
    helps = [line for line in told.splitlines() if line.startswith("# HELP rerank_")]
    assert len(helps) == told.count("# TYPE rerank_") and min(map(len, helps)) > 50


def test_while_models_are_loaded_none_are_listed_rather_than_an_empty_list(client_of):
    empty = client_of(shelf=Shelf([named("a")], {}, Limits()))
    for path in ("/v1/models", "/info", "/meta"):
        response = empty.get(path)
        assert "being loaded" in refused(response, 503) and int(response.headers["retry-after"]) > 0
