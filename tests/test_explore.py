"""`rerank explore`: the columns are the run's own, the parts of a score sum to it, and the page is safe to open."""

import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from tiny_language_models import folder_of

from rerank.data import read_run, write_run
from rerank.errors import InputError, MissingDependency, NotFound
from rerank.experiment import train
from rerank.explore.session import QUERY_LENGTH, open_session
from rerank.explore.why import found_by, marked, reason, stretches, terms_of
from rerank.recipe import load_recipe
from rerank.types import CandidateList, Run

TOPICS = ("river", "copper", "violin", "harbour", "lantern", "orchard", "glacier", "saddle", "anchor", "meadow")
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> \u202e\U0001f980 &amp;"
SENTENCES = "The {topic} is old. It was {word} in spring! Nobody {word} the {topic} again; was it {other}? {word}."

RECIPE = """
name = "topics"
controls = []
[data]
dev = 0.25
train = "topics#train"
test = {{ collection = "topics#test", limit = 9 }}
[retrieval]
encoder = "{bert}"
depth = 8
[teacher]
kind = "fused"
[[models]]
name = "light"
kind = "light"
hidden = 8
first_stage = "on"
clone = {{ head_learning_rate = 1e-2 }}
refine = {{ head_learning_rate = 1e-2 }}
[[models]]
name = "cross"
kind = "cross-encoder"
backbone = "{bert}"
max_length = 64
depth = 5
first_stage = "on"
[[models]]
name = "low rank"
kind = "cross-encoder"
backbone = "{bert}"
max_length = 64
lora = 2
[[models]]
name = "listwise"
kind = "listwise"
backbone = "{language}"
window = 8
document_tokens = 16
[[models]]
name = "writes"
kind = "generative"
backbone = "{language}"
window = 8
document_tokens = 16
refine = {{ steps = 1, lists_per_step = 1, list_size = 4 }}
[clone]
steps = 2
lists_per_step = 4
select = "last"
evaluations = 1
[refine]
steps = 2
lists_per_step = 4
select = "last"
evaluations = 1
[evaluation]
measures = ["nDCG@10", "RR@10"]
"""

STORED = """
name = "stored"
controls = []
seeds = 2
[data]
dev = 0.25
train = {{ collection = "topics#train", run = "topics/run.trec" }}
test = {{ collection = "topics#test", run = "topics/run.trec" }}
[retrieval]
retrievers = []
[teacher]
kind = "judged"
[[models]]
kind = "cross-encoder"
backbone = "{bert}"
max_length = 64
[clone]
steps = 3
lists_per_step = 4
select = "last"
head_learning_rate = 0.05
[refine]
steps = 3
lists_per_step = 4
select = "last"
head_learning_rate = 0.05
"""
"""No retriever of its own, two seeds, a model without a name."""


def write_topics(folder):
    """A BEIR folder of sixty short documents on ten topics, and thirty queries; one of each is hostile."""
    (folder / "qrels").mkdir(parents=True)
    words = ("sold", "painted", "found", "mended", "lost", "drawn")
    documents, queries = {}, {}
    for i, topic in enumerate(TOPICS):
        for j, word in enumerate(words):
            other = TOPICS[(i + j) % len(TOPICS)]
            documents[f"{topic}-{j}"] = SENTENCES.format(topic=topic, word=word, other=other)
    documents["river-0"] = f"{HOSTILE} river {documents['river-0']}"
    grades = {"train": [], "test": []}
    for topic in TOPICS:
        for j in range(3):
            query_id, split = f"q-{topic}-{j}", "test" if j == 0 else "train"
            queries[query_id] = f"who {words[j]} the {topic}"
            grades[split] += [f"{query_id}\t{topic}-{j}\t2", f"{query_id}\t{topic}-{j + 1}\t1"]
    for name, texts in (("corpus", documents), ("queries", queries)):
        lines = [json.dumps({"_id": key, "text": text}) for key, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf8")
    for split, lines in grades.items():
        (folder / f"qrels/{split}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, tiny_bert):
    """A finished run of five kinds of models."""
    pytest.importorskip("peft", reason="one of the models has low-rank adapters (extra lora)")
    base = tmp_path_factory.mktemp("explore")
    write_topics(base / "topics")
    language = folder_of(tmp_path_factory.mktemp("language"), "qwen3", chat=True)
    recipe = base / "topics.toml"
    recipe.write_text(RECIPE.format(bert=tiny_bert, language=language), encoding="utf8")
    train(load_recipe(recipe), base / "runs" / "topics", command=f"rerank train {recipe}")
    return base / "runs" / "topics"


@pytest.fixture(scope="module")
def session(run_folder):
    return open_session(run_folder)


@pytest.fixture
def copied(run_folder, tmp_path):
    """A copy of the run in which things may be missing; its recipe's folder is still known."""
    shutil.copytree(run_folder, tmp_path / "run")
    return tmp_path / "run"


# ------------------------------------------------------------------------------------------------------ the columns
@pytest.mark.parametrize("model", ["light", "cross", "low rank", "listwise", "writes"])
def test_columns_of_test_queries_are_the_rankings_of_the_run(session, run_folder, model):
    measured = json.loads((run_folder / "table.json").read_text(encoding="utf8"))["arms"]
    values = {"clone": [], "refined": []}
    for query_id in session.test_ids:
        answer = session.ranked("", query_id, model)
        stored = read_run(run_folder / "runs" / "first-stage.trec")
        assert [row.doc_id for row in answer.columns[0].rows] == list(stored.doc_ids(query_id))
        for column in answer.columns[1:]:
            ranking = dict(read_run(run_folder / "runs" / f"{model.replace(' ', '-')}-{column.name}.trec").rankings)
            scores = dict(ranking[query_id])
            for row, below in zip(column.rows, column.rows[1:], strict=False):
                # A vector or logit depends in its last bits on what was computed with it: near ties may change.
                assert scores[row.doc_id] > scores[below.doc_id] - 0.02
            assert all(abs(scores[row.doc_id] - row.score) < 0.02 for row in column.rows if row.score is not None)
            values[column.name].append(column.value)
    for stage, found in values.items():
        mean = measured[f"{model} {stage}"]["nDCG@10"]["mean"]
        assert sum(found) / len(found) == pytest.approx(mean, abs=0.05)


def test_clone_and_refined_are_two_models(session):
    _, clone, refined = session.ranked("copper", None, "light").columns
    assert [row.score for row in clone.rows] != [row.score for row in refined.rows]


@pytest.mark.parametrize("model", ["light", "cross", "low rank", "listwise", "writes"])
def test_the_parts_of_a_score_sum_to_it_and_lifts_sum_to_nothing_over_the_list(session, model):
    for column in session.ranked("a violin lost in the meadow", None, model).columns[1:]:
        rows = [row for row in column.rows if row.score is not None]
        for row in rows:
            assert sum(row.parts.values()) == pytest.approx(row.score, abs=1e-4)
        for part in rows[0].parts:
            assert sum(row.lifts[part] for row in rows) == pytest.approx(0, abs=1e-3)


def test_first_stage_scores_are_parts_where_they_are_part_of_the_score_alone(session):
    parts = {model: set(session.ranked("copper", None, model).columns[-1].rows[0].parts) for model in session.names}
    assert parts["light"] == {"network", "first stage", "bm25", "dense"}
    assert parts["writes"] == {"network"}


def test_moves_are_counted_from_the_first_stage(session):
    first, *others = session.ranked("who painted the glacier", None, "light").columns
    before = {row.doc_id: row.rank for row in first.rows}
    for column in others:
        assert [row.rank for row in column.rows] == list(range(1, len(column.rows) + 1))
        assert all(row.moved == before[row.doc_id] - row.rank for row in column.rows)


def test_documents_below_the_depth_of_a_model_keep_their_place_and_have_no_score(session):
    first, _, refined = session.ranked("who painted the glacier", None, "cross").columns
    assert len(first.rows) == 8
    assert [row.doc_id for row in refined.rows[5:]] == [row.doc_id for row in first.rows[5:]]
    assert [row.score is None for row in refined.rows] == [False] * 5 + [True] * 3
    with pytest.raises(InputError, match="below depth 5"):
        session.explained(first.rows[6].doc_id, "refined", "who painted the glacier", None, "cross")


def test_words_of_a_test_query_are_that_query_and_other_words_are_judged_by_nobody(session):
    query_id = session.test_ids[0]
    typed = session.ranked(f"  {session.collection.queries[query_id]} ")
    assert typed.candidates.query_id == query_id
    assert typed.columns[0].value is not None
    assert session.ranked("some other words about a river").columns[0].value is None
    assert session.query_of("some other words", query_id) == ("typed", "some other words")  # the text counts
    assert session.query_of("", query_id) == (query_id, session.collection.queries[query_id])


def test_a_query_without_candidates_is_answered_with_no_columns(session):
    found = open_session(session.run.folder)
    found.run.retrievers[:] = [r for r in found.run.retrievers if r.name == "bm25"]
    assert found.ranked("zzzzqqq").columns == []


def test_suggestions_hold_all_words_and_begin_with_what_was_typed(session):
    assert [text for _, text in session.suggested("SOLD river")] == [
        text for q in session.test_ids if "river" in (text := session.collection.queries[q])
    ]
    assert session.suggested("no such words at all") == []
    assert len(session.suggested("")) == 6


# --------------------------------------------------------------------------------------------------- what is missing
def test_a_clone_that_was_removed_is_said_and_left_out(copied, run_folder):
    shutil.rmtree(copied / "arms" / "light-clone")
    found = open_session(copied, run_folder.parents[1])
    assert [column.name for column in found.ranked("copper").columns] == ["first stage", "refined"]
    assert "light clone is not in the folder" in " ".join(found.policies("light").notes)


def test_a_model_folder_that_was_removed_is_made_of_its_arm(copied, run_folder, session):
    shutil.rmtree(copied / "model" / "light")
    found = open_session(copied, run_folder.parents[1]).ranked("copper").columns[2]
    expected = session.ranked("copper", None, "light").columns[2]
    assert [row.score for row in found.rows] == pytest.approx([row.score for row in expected.rows], abs=1e-3)


def test_a_stored_first_stage_that_was_removed_is_retrieved_anew(copied, run_folder, session):
    shutil.rmtree(copied / "first_stage")
    found = open_session(copied, run_folder.parents[1])
    query_id = session.test_ids[0]
    assert [row.doc_id for row in found.ranked("", query_id).columns[0].rows] == [
        row.doc_id for row in session.ranked("", query_id).columns[0].rows
    ]
    assert "retrieved anew" in " ".join(found.run.notes)


def test_a_collection_that_is_not_found_asks_for_the_folder_of_the_recipe(copied, tmp_path):
    (copied / "summary.json").write_text("{}", encoding="utf8")
    with pytest.raises(InputError, match="give that folder as base"):
        open_session(copied)
    with pytest.raises(NotFound, match="holds no run"):
        open_session(tmp_path)


def test_a_collection_that_changed_is_said(copied, run_folder, tmp_path):
    shutil.copytree(run_folder.parents[1] / "topics", tmp_path / "topics")
    corpus = tmp_path / "topics" / "corpus.jsonl"
    corpus.write_text(corpus.read_text(encoding="utf8").replace("spring", "autumn"), encoding="utf8")
    assert "is not what the run was made on" in " ".join(open_session(copied, tmp_path).run.notes)


def test_a_run_of_stored_candidates_answers_its_test_queries_alone_and_by_the_seed_that_was_kept(
    tmp_path, tiny_bert, session
):
    write_topics(tmp_path / "topics")
    documents = list(session.collection.documents)
    queries = [f"q-{topic}-{j}" for topic in TOPICS for j in range(3)]
    order = {q: {d: float(-((7 * i + n) % 60)) for i, d in enumerate(documents)} for n, q in enumerate(queries)}
    write_run(Run.from_scores(order, "stored").top(6), tmp_path / "topics" / "run.trec")
    recipe = tmp_path / "stored.toml"
    recipe.write_text(STORED.format(bert=tiny_bert), encoding="utf8")
    train(load_recipe(recipe), tmp_path / "run")
    found = open_session(tmp_path / "run", tmp_path)
    with pytest.raises(InputError, match="only its test queries can be asked"):
        found.ranked("copper")
    column = found.ranked("", "q-river-0").columns[2]
    scores = [row.score for row in column.rows]
    kept = []
    for seed in ("", ".seed-1"):
        ranking = read_run(tmp_path / "run" / "runs" / f"refined{seed}.trec").rankings["q-river-0"]
        if [score for _, score in ranking] == pytest.approx(scores, abs=1e-3):
            kept.append(seed)
            clone = read_run(tmp_path / "run" / "runs" / f"clone{seed}.trec").rankings["q-river-0"]
            own = found.ranked("", "q-river-0").columns[1]
            assert [score for _, score in clone] == pytest.approx([row.score for row in own.rows], abs=1e-3)
    assert len(kept) == 1


# ------------------------------------------------------------------------------------------------------------ why
@pytest.mark.parametrize("model", ["light", "cross", "low rank", "listwise", "writes"])
def test_a_sentence_weighs_what_the_network_loses_without_it(session, model):
    row = session.ranked("who painted the glacier", None, model).columns[-1].rows[0]
    cut = session.explained(row.doc_id, "refined", "who painted the glacier", None, model)
    assert "".join(text for text, _ in cut) == session.collection.documents[row.doc_id]
    assert len(cut) > 1
    policy = session.policies(model).refined
    candidates = session.candidates(*session.query_of("who painted the glacier"))
    place = candidates.doc_ids.index(row.doc_id)
    without = "".join(text for text, _ in cut[1:])
    texts = (*candidates.texts[:place], without, *candidates.texts[place + 1 :])
    if model in ("listwise", "writes"):
        other = CandidateList("q", candidates.query, candidates.doc_ids, texts)
        alone = policy.served_of([other]).tolist()[place]
    else:
        alone = policy.served_of([CandidateList("q", candidates.query, ("d",), (without,))]).tolist()[0]
    assert cut[0][1] == pytest.approx(row.parts["network"] - alone, abs=0.03)


def test_a_document_of_one_sentence_is_weighed_against_an_empty_text(session, monkeypatch):
    query = "a lantern"
    candidates = session.candidates(*session.query_of(query))
    short = CandidateList(
        candidates.query_id, query, candidates.doc_ids, ("Lantern light.", *candidates.texts[1:]), candidates.features
    )
    monkeypatch.setattr(session, "candidates", lambda *_: short)
    ((text, weight),) = session.explained(short.doc_ids[0], "refined", query, None, "cross")
    policy = session.policies("cross").refined
    whole, empty = policy.served_of([CandidateList("q", query, ("a", "b"), ("Lantern light.", ""))]).tolist()
    assert (text, weight) == ("Lantern light.", pytest.approx(whole - empty, abs=1e-4))


def test_stretches_are_the_text_and_few():
    texts = [
        "",
        " ",
        "One.",
        HOSTILE,
        "a\n\n\nb" * 50,
        "No end " * 900,
        "." * 5000,
        "A b. C d! E f? " * 200,
        "\u6c34\u3002\u706b\uff01" * 40,
    ]
    for text in texts:
        for most in (1, 8, 24):
            cut = stretches(text, most)
            assert "".join(cut) == (text if text.strip() else "")
            assert len(cut) <= most
    assert stretches("The first sentence is here. The second one is there.") == [
        "The first sentence is here. ",
        "The second one is there.",
    ]


def test_words_are_marked_by_their_stems():
    assert marked("He sorts; sorting is slow.", terms_of("sort", "english"), "english")[1::2] == ["sorts", "sorting"]
    assert marked("def readLines(fd)", terms_of("read a line", "code"), "code")[1::2] == ["read", "Lines"]
    assert marked("\u4fe1\u606f\u68c0\u7d22", terms_of("\u606f\u68c0\u7d22", "chinese"), "chinese") == [
        "\u4fe1",
        "\u606f\u68c0\u7d22",
        "",
    ]
    assert "".join(marked(HOSTILE, terms_of("script", "english"), "english")) == HOSTILE


def test_a_reason_names_the_parts_that_matter_in_their_order():
    assert reason(7, {"network": 2.14, "bm25": -0.31, "dense": 0.01}) == "up 7: network +2.1, bm25 \u22120.3"
    assert reason(-2, {"network": 0.0}) == "down 2"
    assert reason(0, {"bm25": 1.0}) == "stays: bm25 +1.0"
    assert found_by({"bm25": (1.0, 3.0), "dense": (float("nan"), 0.5)}, 0) == "bm25 2nd, dense did not find it"


# ------------------------------------------------------------------------------------------------------------ HTTP
@pytest.fixture
def client(session):
    pytest.importorskip("fastapi", reason="the page is served by the extra serve")
    pytest.importorskip("httpx2", reason="the test client of starlette needs it")
    from fastapi.testclient import TestClient

    from rerank.explore.app import app_of

    return TestClient(app_of(session), base_url="http://127.0.0.1:8899", raise_server_exceptions=False)


def test_the_answer_as_json_holds_each_document_once_and_its_text_as_it_is(client, session):
    told = client.get("/api/rank", params={"q": "river", "model": "light"}).json()
    assert {row["doc_id"] for column in told["columns"] for row in column["rows"]} == set(told["documents"])
    assert "".join(told["documents"]["river-0"]["pieces"]) == session.collection.documents["river-0"]
    assert [column["name"] for column in told["columns"]] == ["first stage", "clone", "refined"]


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("/api/rank", "the query is empty"),
        ("/api/rank?q=%20%20", "the query is empty"),
        (f"/api/rank?q={'a' * (QUERY_LENGTH + 1)}", "at most 1000"),
        ("/api/rank?q=river&model=none", "has no model 'none'"),
        ("/api/rank?q=river&id=none", "no test query with the id 'none'"),
        ("/api/explain?q=river", "look at column, doc"),
        ("/api/explain?q=river&doc=none&column=refined", "no candidate of this query"),
        ("/api/explain?q=river&doc=river-0&column=first%20stage", "ask for clone or refined"),
        (f"/api/explain?q=river&doc={'a' * 3000}&column=refined", "at most 2000"),
        ("/nothing", "Not Found"),
        ("/docs", "Not Found"),
        ("/openapi.json", "Not Found"),
    ],
)
def test_a_question_that_cannot_be_answered_is_refused_with_json_that_says_why(client, path, problem):
    response = client.get(path)
    assert 400 <= response.status_code < 500
    assert problem in response.json()["error"]


def test_other_methods_and_broken_texts_end_in_json_too(client):
    assert client.post("/api/rank", content=b"x" * 100).status_code == 405
    for query in ("%ff%fe", "%00", "%ed%a0%80", "%22%27%3Cscript%3E", "%F0%9F%A6%80", "-1" * 400):
        response = client.get(f"/api/rank?q={query}")
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "application/json"


def test_a_failure_is_told_without_a_traceback(client, session, monkeypatch, caplog):
    monkeypatch.setattr(session, "ranked", lambda *_: 1 / 0)
    with caplog.at_level(logging.ERROR, "rerank.explore"):
        response = client.get("/api/rank?q=river")
    assert (response.status_code, response.json()) == (500, {"error": "this failed; the terminal tells more"})
    assert "ZeroDivisionError" in caplog.text, "the terminal tells more"


def test_every_answer_has_the_headers_of_the_guard_also_that_of_a_failure(client, session, monkeypatch):
    answers = [client.get(path) for path in ("/", "/api/session", "/api/rank", "/nothing")]
    answers.append(client.get("/", headers={"Host": "evil.example"}))
    monkeypatch.setattr(session, "ranked", lambda *_: 1 / 0)
    answers.append(client.get("/api/rank?q=river"))
    assert [answer.status_code for answer in answers] == [200, 200, 400, 404, 403, 500]
    for answer in answers:
        for name in ("x-content-type-options", "cache-control", "cross-origin-resource-policy"):
            assert answer.headers.get_list(name) == [answer.headers[name]], (answer.url, name)
        assert answer.headers["content-type"].split(";")[0] in ("application/json", "text/html")


@pytest.mark.parametrize("host", ["127.0.0.1:8899", "localhost:8899", "LocalHost:8899", "[::1]:8899"])
def test_the_names_of_this_machine_are_served_at_the_port_that_is_listened_on(client, host):
    assert client.get("/api/session", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "localhost.evil.example:8899", "127.0.0.1.evil.example", "", "a:b:c", "[::1", "::1:8899"),
        *("192.168.1.7:8899", "10.0.0.1", "[fe80::1]:8899", "127.0.0.2:8899", "0.0.0.0:8899"),
        *("localhost", "localhost:1", "127.0.0.1:88990", "127.0.0.1:8899:8899", "me@127.0.0.1:8899"),
    ],
)
def test_other_names_addresses_and_ports_are_refused(client, host):
    """A name may be bound anew to this machine; another port is another site's."""
    response = client.get("/api/session", headers={"Host": host})
    assert response.status_code == 403
    assert "open it as http://127.0.0.1:8899/" in response.json()["error"]


@pytest.mark.parametrize(
    ("given", "port", "served", "refused"),
    [
        ("192.168.1.7", 9000, ("192.168.1.7:9000", "localhost:9000"), ("192.168.1.8:9000", "192.168.1.7:8899")),
        ("fe80::7", 9000, ("[fe80::7]:9000", "127.0.0.1:9000"), ("[fe80::8]:9000", "fe80::7:9000")),
        ("my-pc.lan", 80, ("my-pc.lan", "MY-PC.lan", "localhost"), ("my-pc.lan:80", "other.lan", "my-pc.lan:8899")),
        # The test client says that requests arrive at `here.example`, as a server says at which address they do.
        ("::", 9000, ("[::1]:9000", "here.example:9000"), ("[::]:9000", "[fe80::8]:9000")),
        ("0.0.0.0", 9000, ("127.0.0.1:9000", "here.example:9000"), ("0.0.0.0:9000", "192.168.1.7:9000")),
    ],
)
def test_the_host_that_is_served_on_is_one_of_the_names(session, given, port, served, refused):
    pytest.importorskip("fastapi", reason="the page is served by the extra serve")
    pytest.importorskip("httpx2", reason="the test client of starlette needs it")
    from fastapi.testclient import TestClient

    from rerank.explore.app import app_of

    client = TestClient(app_of(session, given, port), base_url=f"http://here.example:{port}")
    assert f"open it as http://{served[0]}/" in client.get("/", headers={"Host": "evil.example"}).json()["error"]
    for hosts, status in ((served, 200), (refused, 403)):
        assert [client.get("/api/session", headers={"Host": host}).status_code for host in hosts] == [status] * len(
            hosts
        )


def test_what_another_site_asks_for_is_refused(client):
    for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)):
        assert client.get("/api/session", headers={"Sec-Fetch-Site": site}).status_code == status
    assert client.get("/", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200  # a link may lead here


def test_the_page_may_run_its_own_script_alone_and_names_nothing_outside(client):
    response = client.get("/")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert policy.count("'sha256-") == 2
    links = re.findall(r"(?:src|href)\s*=\s*[\"']([^\"']+)", response.text)
    assert set(links) <= {"data:,", "#query"}
    assert set(re.findall(r"https?://[^\s\"'<>]+", response.text)) <= {"http://www.w3.org/2000/svg"}


def test_questions_are_answered_one_at_a_time(client, session, monkeypatch):
    inside, most, ranked = [0], [0], session.ranked

    def slow(*asked):
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.05)
        inside[0] -= 1
        return ranked(*asked)

    monkeypatch.setattr(session, "ranked", slow)
    threads = [threading.Thread(target=client.get, args=(f"/api/rank?q=river+{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1


def test_a_question_that_waited_too_long_is_told_so(client, session, monkeypatch):
    entered, leave, ranked = threading.Event(), threading.Event(), session.ranked

    def held(*asked):
        entered.set()
        leave.wait(10)
        return ranked(*asked)

    monkeypatch.setattr(session, "ranked", held)
    monkeypatch.setattr("rerank.explore.app.PATIENCE", 0.01)
    first = threading.Thread(target=client.get, args=("/api/rank?q=river",))
    first.start()
    assert entered.wait(10)
    response = client.get("/api/rank?q=copper")
    leave.set()
    first.join()
    assert response.status_code == 503
    assert "busy" in response.json()["error"]


def test_without_the_extra_the_line_to_type_is_told(run_folder, monkeypatch):
    from rerank.explore.app import serve

    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises((MissingDependency, ImportError), match="serve"):
        serve(run_folder)


def test_a_port_that_is_taken_is_told_before_anything_is_loaded(tmp_path):
    pytest.importorskip("uvicorn", reason="the page is served by the extra serve")
    from rerank.explore.app import serve

    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(InputError, match="cannot listen on"):
        serve(tmp_path, port=other.getsockname()[1], open_browser=False)
    with pytest.raises(InputError, match="port 70000 is none"):
        serve(tmp_path, port=70000, open_browser=False)


def test_another_address_is_used_with_a_warning_alone(tmp_path, caplog):
    pytest.importorskip("uvicorn", reason="the page is served by the extra serve")
    from rerank.explore.app import serve

    with pytest.raises(NotFound, match="holds no run"):  # nothing is served here: the folder is empty
        serve(tmp_path, host="0.0.0.0", port=0, open_browser=False)
    assert "whoever can reach this machine" in caplog.text
    caplog.clear()
    with pytest.raises(NotFound, match="holds no run"):
        serve(tmp_path, port=0, open_browser=False)
    assert caplog.text == ""


# ------------------------------------------------------------------------------------------------------ a real server
@pytest.fixture
def address(run_folder):
    """The address of a server in a process of its own, which Ctrl-C has to end cleanly."""
    pytest.importorskip("uvicorn", reason="the page is served by the extra serve")
    code = (
        "import signal, sys; from pathlib import Path; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from rerank.explore import serve; serve(Path(sys.argv[1]), port=0, open_browser=False)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "COLUMNS": "200"}
    server = subprocess.Popen(
        [sys.executable, "-c", code, str(run_folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    said = []
    for line in server.stdout:
        said.append(line)
        if found := re.match(r"(http://127\.0\.0\.1:\d+/)", line):
            break
    else:
        pytest.fail("".join(said) + server.stderr.read())
    yield found[1]
    server.send_signal(signal.SIGINT)
    rest, errors = server.communicate(timeout=20)
    assert server.returncode == 0, errors
    assert "ended" in rest
    assert "Traceback" not in errors


@pytest.mark.skipif(os.name == "nt", reason="a process of its own is not sent Ctrl-C on Windows")
def test_a_page_in_a_browser_ranks_explains_and_is_steered_by_keyboard(address):
    playwright = pytest.importorskip("playwright.sync_api", reason="a browser is driven by playwright (extra dev)")
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(names)} is on the path")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        try:
            page = opened.new_page(viewport={"width": 1400, "height": 900})
            complaints, elsewhere = watched(page, address)
            steer(page, address, playwright.expect)
            narrow(opened, address, playwright.expect)
            assert complaints == []
            assert elsewhere == []
        finally:
            opened.close()


def watched(page, address):
    """(what the console complains of, what is asked of other places), filled while the page is used."""
    complaints, elsewhere = [], []
    page.on("console", lambda message: complaints.append(message.text) if message.type != "log" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda asked: elsewhere.append(asked.url) if not asked.url.startswith(address) else None)
    return complaints, elsewhere


def steer(page, address, expect):
    page.goto(address)
    expect(page.locator("#examples a")).to_have_count(6)
    page.keyboard.type("sold river")
    page.locator("#suggestions li").first.wait_for()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator(".column")).to_have_count(3)
    expect(page.locator(".column h2")).to_have_text(["first stage", "clone", "refined"])
    expect(page.locator(".head .value").first).to_contain_text("nDCG@10")
    assert "q=who+sold+the+river" in page.url
    expect(page.locator("#links path")).not_to_have_count(0)
    page.keyboard.press("ArrowDown")  # from the query into the documents
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    focused = page.evaluate("document.activeElement.closest('.row').dataset.doc")
    assert page.evaluate("document.activeElement.closest('.column').id") == "column-1"
    expect(page.locator(".row.now")).to_have_count(3)
    page.keyboard.press("Enter")
    box = page.locator(f"#column-1 .row[data-doc='{focused}'] .detail")
    expect(box.locator("tbody tr")).to_have_count(5)
    box.get_by_role("button").click()
    expect(box.locator(".carry").first).to_be_visible()
    expect(box.locator("button")).to_contain_text("what the network's score loses")
    hostile = page.locator("#column-0 .row[data-doc='river-0']")
    hostile.locator("summary").click()
    expect(hostile.locator(".full")).to_contain_text("<script>document.title='owned'</script>")
    page.fill("#query", HOSTILE)
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("not a test query")
    assert page.title() != "owned"
    page.select_option("#model", "listwise")
    expect(page.locator("#problem")).to_be_hidden()
    page.wait_for_timeout(300)
    page.go_back()
    page.go_back()
    expect(page.locator("#query")).to_have_value("who sold the river")
    expect(page.locator("#status")).to_contain_text("test query q-river-0")


def narrow(browser, address, expect):
    """On a telephone columns are tabs, and nothing is wider than the screen."""
    page = browser.new_page(viewport={"width": 390, "height": 800})
    complaints, _ = watched(page, address)
    page.goto(f"{address}#q=copper")
    expect(page.locator(".column:visible")).to_have_count(1)
    expect(page.locator(".column:visible h2")).to_have_text("refined")
    page.get_by_role("tab", name="clone").click()
    expect(page.locator(".column:visible h2")).to_have_text("clone")
    page.locator(".column:visible summary").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert complaints == []
