"""A rerank endpoint over real HTTP: every dialect, faulty answers, what is survived, what is kept secret."""

import json
import logging
import random
import re
import sys
import threading
import time

import pytest
from rerank_stub import FAULTS, RerankStub, answer_of, by_number, rows_of

from rerank.bench.dialects import DIALECTS, address_of, normalised, scores_in
from rerank.bench.endpoint import KEY_VARIABLE, HttpReranker
from rerank.errors import EndpointError, InputError, MissingDependency

QUICK = {"first_wait": 0.001, "timeout": 10.0}
SECRET = 'sk-"very\\secret'


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


def numbers(n, seed=0):
    """Texts with different numbers, in no order."""
    drawn = random.Random(seed).sample(range(10 * n), n)
    return [f"this is {number / 7} of them" for number in drawn]


def asked(stub, texts, query="what is it", url="{url}", **more):
    with HttpReranker(url.format(url=stub.url, base=stub.base), **{**QUICK, **more}) as reranker:
        return reranker.scores(query, texts)


# ---------------------------------------------------------------------------------------------------------- dialects
SPOKEN = {
    "cohere": ("{url}", "m"),
    "jina": ("{url}", "m"),
    "infinity": ("cohere+{url}", None),
    "tei": ("tei+{url}", None),
    "voyage": ("voyage+{url}", "m"),
    "weaviate": ("weaviate+{url}", None),
    "vllm-score": ("{url}", None),
}


@pytest.mark.parametrize("dialect", SPOKEN)
@pytest.mark.parametrize("n", [1, 2, 31])
def test_every_dialect_gives_the_servers_scores_bit_for_bit_in_the_order_of_the_texts(dialect, n):
    url, model = SPOKEN[dialect]
    texts = numbers(n)
    with RerankStub(dialect) as stub:
        assert asked(stub, texts, url=url, model=model) == by_number("what is it", texts)
        assert len(stub.bodies) == 1


@pytest.mark.parametrize(
    ("dialect", "expected"),
    [
        ("cohere", {"query": "q", "documents": ["1", "2"], "top_n": 2, "model": "m"}),
        ("voyage", {"query": "q", "documents": ["1", "2"], "top_k": 2, "model": "m"}),
        ("tei", {"query": "q", "texts": ["1", "2"], "raw_scores": True, "truncate": True}),
        ("weaviate", {"query": "q", "documents": ["1", "2"]}),
        ("vllm-score", {"text_1": "q", "text_2": ["1", "2"]}),
    ],
)
def test_a_request_has_the_fields_of_its_dialect_and_no_more(dialect, expected):
    with RerankStub(dialect) as stub:
        asked(stub, ["1", "2"], "q", url=SPOKEN[dialect][0], model=expected.get("model"))
        assert stub.bodies == [expected]
        assert stub.headers[0]["content-type"] == "application/json"
        assert "authorization" not in stub.headers[0]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h:1", ("cohere", "http://h:1/rerank", None)),
        ("http://h:1/", ("cohere", "http://h:1/rerank", None)),
        ("https://h/v2", ("cohere", "https://h/v2/rerank", None)),
        ("https://h/api/v1/", ("cohere", "https://h/api/v1/rerank", None)),
        ("https://h/v1/rerank/", ("cohere", "https://h/v1/rerank", None)),
        ("https://h/some/where", ("cohere", "https://h/some/where", None)),
        ("http://h/v1/score", ("vllm-score", "http://h/v1/score", None)),
        ("vllm-score+http://h/v1", ("vllm-score", "http://h/v1/score", None)),
        ("cohere+http://h/score", ("cohere", "http://h/score", None)),
        ("TEI+HTTP://h", ("tei", "HTTP://h/rerank", None)),
        ("http://h/rerank#org/model@v1", ("cohere", "http://h/rerank", "org/model@v1")),
        ("voyage+https://h/v1/rerank#rerank%202.5", ("voyage", "https://h/v1/rerank", "rerank 2.5")),
    ],
)
def test_the_url_tells_dialect_path_and_model(url, expected):
    assert address_of(url) == expected


def test_the_prefix_decides_where_the_path_says_something_else():
    with RerankStub("tei") as stub:
        assert asked(stub, ["4", "5"], "q", url="tei+{base}/score") == by_number("q", ["4", "5"])
        assert stub.paths == ["/score"]


@pytest.mark.parametrize(
    ("url", "model", "problem"),
    [
        ("cohre+http://h", None, "did you mean 'cohere'"),
        ("ftp://h/rerank", None, "must be http(s)://"),
        ("tei+ftp://h", None, "must be http(s)://"),
        ("h:8000/rerank", None, "must be http(s)://"),
        ("http://h:port/rerank", None, "no host or port that can be read"),
        ("http://h/re rank", None, "must be http(s)://"),
        ("http://h/rerank#a", "b", "names the model 'a', and model is 'b'"),
        ("tei+http://h", "m", "has one model"),
        ("weaviate+http://h#m", None, "has one model"),
    ],
)
def test_an_url_that_says_nothing_allowed_is_refused(url, model, problem):
    with pytest.raises(InputError, match=re.escape(problem)):
        HttpReranker(url, model)


@pytest.mark.parametrize(
    "url", ["http://me:SECRET@h/rerank", "http://h/rerank?key=SECRET", "http://me:SECRET#x@h", "tei+http://SECRET@h"]
)
def test_what_may_be_a_password_in_an_url_is_refused_and_not_repeated(url):
    with pytest.raises(InputError) as raised:
        HttpReranker(url)
    assert "SECRET" not in str(raised.value)


def test_more_fields_of_a_request_are_the_users_and_may_replace_those_of_the_dialect():
    with RerankStub("infinity") as stub:
        asked(stub, ["1"], extra={"raw_scores": True})
        assert stub.bodies[0]["raw_scores"] is True
    with RerankStub("tei") as stub:
        asked(stub, ["1"], url="tei+{url}", extra={"truncate": False})
        assert stub.bodies[0]["truncate"] is False


# ------------------------------------------------------------------------------------------------------------- texts
def test_no_text_needs_no_request_and_no_server():
    assert HttpReranker("http://127.0.0.1:9/rerank").scores("q", []) == []


HARD = [
    "grüße 3",
    "日本語 1",
    "👩‍🔬 7",
    "العربية 2",
    "e\u0301 5",
    'quote " 4 \\ back',
    "line\nbreak\t6",
    "nul \x00 8",
    "",
    "   ",
]


@pytest.mark.parametrize("dialect", ["cohere", "tei", "weaviate", "vllm-score"])
def test_texts_of_all_scripts_and_empty_ones_arrive_as_they_are(dialect):
    with RerankStub(dialect) as stub:
        assert asked(stub, HARD, "été?", url=SPOKEN[dialect][0]) == by_number("été?", HARD)
        body = stub.bodies[0]
    assert HARD in body.values()
    assert "été?" in body.values()


@pytest.mark.parametrize("dialect", ["cohere", "weaviate"])
def test_lone_surrogates_are_sent_as_question_marks(dialect):
    with RerankStub(dialect) as stub:
        assert asked(stub, ["3 \ud83d", "1"], "q \udc00", url=SPOKEN[dialect][0]) == by_number("q ?", ["3 ?", "1"])
        assert stub.bodies[0]["documents"] == ["3 ?", "1"]
        assert stub.bodies[0]["query"] == "q ?"


def test_a_document_without_words_may_be_sent_as_something_else():
    with RerankStub() as stub:
        asked(stub, ["1", "", " \n"], blank="(empty)")
        assert stub.bodies[0]["documents"] == ["1", "(empty)", "(empty)"]


def test_a_refusal_names_the_documents_without_words():
    with RerankStub("cohere", ["400"]) as stub:
        texts = ["1", "", "2", *[" "] * 9]
        with pytest.raises(EndpointError, match=r"Without words: documents 1, 3, 4, 5, 6 and 5 more; .*blank"):
            asked(stub, texts)


@pytest.mark.parametrize(("texts", "problem"), [("one text", "one text"), (["a", None], "document 1 is of type None")])
def test_what_is_no_list_of_texts_is_refused_before_any_request(texts, problem):
    with pytest.raises(InputError, match=problem):
        HttpReranker("http://127.0.0.1:9/rerank").scores("q", texts)


# ------------------------------------------------------------------------------------------------------------- parts
@pytest.mark.parametrize(
    ("dialect", "more", "sizes"), [("tei", {}, [32, 32, 6]), ("cohere", {"at_once": 50}, [50, 20])]
)
def test_more_documents_than_a_server_takes_go_in_parts_with_the_same_scores(dialect, more, sizes):
    texts = numbers(70)
    with RerankStub(dialect) as stub:
        assert asked(stub, texts, url=SPOKEN[dialect][0], **more) == by_number("what is it", texts)
        assert [len(body.get("texts") or body["documents"]) for body in stub.bodies] == sizes
        assert [body.get("top_n") for body in stub.bodies] == ([None] * 3 if dialect == "tei" else sizes)


def test_a_part_that_is_still_too_large_is_refused_with_advice():
    with RerankStub("tei") as stub, pytest.raises(EndpointError, match=r"status 413.*smaller at_once"):
        asked(stub, numbers(40), url="tei+{url}", at_once=40)


def test_scores_compared_across_requests_are_told_of_once_where_they_might_not_be_comparable(caplog):
    with RerankStub() as stub, HttpReranker(stub.url, at_once=3) as reranker:
        for _ in range(3):
            reranker.scores("q", numbers(7))
    assert caplog.text.count("right only where each document is scored by itself") == 1


def test_scores_of_a_server_that_is_known_to_score_each_document_by_itself_are_compared_silently(caplog):
    with RerankStub("tei") as stub:
        asked(stub, numbers(40), url="tei+{url}")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def softmax_like(query, texts):
    return [2.0 ** -(i + 1) for i in range(len(texts) - 1)] + [2.0 ** -(len(texts) - 1)]


@pytest.mark.parametrize(
    "scorer", [softmax_like, lambda query, texts: [i / (len(texts) - 1) for i in range(len(texts))]]
)
def test_scores_normalised_within_a_request_are_told_of_as_not_comparable(scorer, caplog):
    with RerankStub("tei", scorer=scorer) as stub:
        asked(stub, numbers(9), url="tei+{url}", at_once=3)
    assert "NOT comparable" in caplog.text


def test_ordinary_scores_do_not_look_normalised():
    assert not normalised([[0.2, 0.9, 0.1], [0.4, 0.5, 0.0]])
    assert not normalised([[0.0, 1.0], [0.3]])
    assert not normalised([[2.0, -1.0], [0.5, 0.5]])


# ------------------------------------------------------------------------------------------------------------ answers
WRONG = [
    ("twice", "names document 2 twice"),
    ("more", "names document 2 twice"),
    ("missing", "leaves out document 1 of the 4 that were sent"),
    ("none", "leaves out documents 0, 1, 2, 3 of the 4"),
    ("outside", "names document 99, and the documents are 0 to 3"),
    ("negative", "names document -1"),
    ("text index", "names document '0'"),
    ("truth index", "names document True"),
    ("no index", "names document None"),
    ("no score", "has no 'relevance_score' for document 2"),
    ("nan", "has relevance_score = nan for document 2: no finite number"),
    ("infinite", "relevance_score = inf"),
    ("huge", "no finite number"),
    ("text score", "relevance_score = '0.5'"),
    ("truth score", "relevance_score = True"),
    ("row", "holds 'first' where a row"),
]


@pytest.mark.parametrize(("fault", "problem"), WRONG)
def test_an_answer_that_is_not_whole_is_an_error_that_says_which_document(fault, problem):
    with RerankStub("cohere", [fault]) as stub:
        with pytest.raises(EndpointError, match=re.escape(problem)) as raised:
            asked(stub, ["3", "1", "9", "5"])
        assert len(stub.bodies) == 1  # the same would be answered again
    assert str(raised.value).startswith(f"{stub.url}: the answer ")


def test_every_fault_of_the_stub_is_tested():
    assert {fault for fault, _ in WRONG} | {"well", "swapped"} == set(FAULTS)


def test_an_error_in_a_later_part_says_which_documents_it_is_about():
    with RerankStub("tei", ["well", "missing"]) as stub:
        with pytest.raises(EndpointError, match="for documents 32 to 39, counted here from 0, leaves out document"):
            asked(stub, numbers(40), url="tei+{url}")


@pytest.mark.parametrize(
    ("fault", "problem"), [("swapped", "row 0 is about another"), ("missing", "leaves out document 3")]
)
def test_an_answer_without_indices_must_be_in_the_order_of_the_documents(fault, problem):
    with RerankStub("weaviate", [fault]) as stub, pytest.raises(EndpointError, match=problem):
        asked(stub, ["3", "1", "9", "5"], url="weaviate+{url}")


def test_a_server_that_heeds_no_top_n_but_its_own_limit_is_an_error_and_no_silent_zero():
    answer = {"results": [{"index": i, "relevance_score": 0.5} for i in range(10)]}
    with pytest.raises(ValueError, match="leaves out documents 10, 11, 12, 13, 14 and 85 more of the 100 "):
        scores_in(answer, ["x"] * 100, DIALECTS["cohere"])


@pytest.mark.parametrize("spoken", ["cohere", "tei", "voyage", "weaviate", "vllm-score"])
@pytest.mark.parametrize("answered", ["cohere", "tei", "voyage", "weaviate", "vllm-score"])
def test_an_answer_in_another_dialect_is_told_by_its_name(spoken, answered):
    answer = answer_of(answered, rows_of(answered, ["1", "2"], [1.0, 2.0]), "q")
    if spoken == answered:
        assert scores_in(answer, ["1", "2"], DIALECTS[spoken]) == [1.0, 2.0]
        return
    with pytest.raises(ValueError, match=f"looks like the dialect {answered}: write that before"):
        scores_in(answer, ["1", "2"], DIALECTS[spoken])


def test_a_server_that_refuses_the_fields_of_another_dialect_is_an_error_that_speaks_of_dialects():
    with (
        RerankStub("tei") as stub,
        pytest.raises(EndpointError, match=r"status 422.*another dialect .*tei\+http") as raised,
    ):
        asked(stub, ["1", "2"])
    assert raised.value.status == 422


# ------------------------------------------------------------------------------------------------------------ trouble
@pytest.mark.parametrize("how", ["408", "425", "429", "500", "502", "503", "504", "drop", "not json", "nested"])
def test_trouble_that_may_pass_is_asked_again_and_counted(how, caplog):
    with RerankStub("cohere", [how, how]) as stub, HttpReranker(stub.url, **QUICK) as reranker:
        assert reranker.scores("q", ["2", "1"]) == by_number("q", ["2", "1"])
        assert stub.bodies[0] == stub.bodies[1] == stub.bodies[2]
        assert reranker.repeated == 2
    assert caplog.text.count("this query hold the wait") == 1


def test_a_retry_after_is_heeded():
    with RerankStub("cohere", ["busy"]) as stub:
        asked(stub, ["1"])
        assert stub.times[1] - stub.times[0] >= 1.0


@pytest.mark.parametrize("how", ["slow", "trickle"])
def test_a_server_that_is_too_slow_is_an_error_that_names_the_time_out(how):
    with RerankStub("cohere", [how] * 9) as stub:
        with pytest.raises(EndpointError, match=r"no whole answer within timeout = 0\.2 s; asked 2 times"):
            asked(stub, ["1"], timeout=0.2, retries=1)
        assert len(stub.bodies) == 2


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (400, "too long for this server"),
        (401, f"The environment variable {KEY_VARIABLE} is not set"),
        (403, KEY_VARIABLE),
        (404, "is the url the one that ends in /rerank"),
        (405, "is the url the one that ends in /rerank"),
        (413, "smaller at_once"),
        (418, "would be refused again"),
        (422, "another dialect"),
        (424, "its log says why"),
        (501, "its model is no reranker"),
    ],
)
def test_a_refusal_is_an_error_at_once_that_says_what_to_do(status, advice):
    with RerankStub("cohere", [str(status)]) as stub:
        with pytest.raises(EndpointError, match=re.escape(advice[1:])) as raised:
            asked(stub, ["1"])
        assert len(stub.bodies) == 1
    assert raised.value.status == status


def test_a_redirect_is_refused_and_the_key_stays_here(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    with RerankStub("cohere", ["redirect"]) as stub:
        with pytest.raises(EndpointError, match="redirects are not followed"):
            asked(stub, ["1"])
        assert stub.paths == ["/rerank"]


def test_a_web_page_is_told_from_an_answer():
    with (
        RerankStub("cohere", ["page"]) as stub,
        pytest.raises(EndpointError, match="A web page answers here: is the url"),
    ):
        asked(stub, ["1"])


def test_a_server_that_is_not_there_is_an_error_at_once():
    with RerankStub() as stub:
        pass
    began = time.monotonic()
    with pytest.raises(EndpointError, match="no server can be reached"):
        asked(stub, ["1"], first_wait=9.0)
    assert time.monotonic() - began < 5.0


# -------------------------------------------------------------------------------------------------------------- keys
def test_the_key_is_sent_and_stands_nowhere_else(monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("STUB_KEY", f" {SECRET}\n")
    monkeypatch.setenv(KEY_VARIABLE, "sk-another")
    with RerankStub("cohere", ["503", "401"]) as stub, HttpReranker(stub.url, key="STUB_KEY", **QUICK) as reranker:
        with pytest.raises(EndpointError, match="STUB_KEY is set, and its key was sent") as raised:
            reranker.scores("q", ["1"])
        assert reranker.scores("q", ["1"]) == by_number("q", ["1"])
        told = [str(raised.value), repr(reranker), repr(vars(reranker)), reranker.identity(), caplog.text]
        assert [headers["authorization"] for headers in stub.headers] == [f"Bearer {SECRET}"] * 3
    assert "***" in str(raised.value)
    for text in told:
        assert SECRET not in text
        assert json.dumps(SECRET)[1:-1] not in text


def test_the_usual_variable_is_read_where_none_is_named(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "sk-usual")
    with RerankStub() as stub:
        asked(stub, ["1"])
        assert stub.headers[0]["authorization"] == "Bearer sk-usual"


def test_a_named_variable_that_is_not_set_is_told_of_and_the_usual_one_is_not_sent_instead(monkeypatch, caplog):
    monkeypatch.setenv(KEY_VARIABLE, "sk-usual")
    with RerankStub() as stub:
        asked(stub, ["1"], key="NO_SUCH_KEY")
        assert "authorization" not in stub.headers[0]
    assert "NO_SUCH_KEY is not set" in caplog.text


def test_a_key_in_the_place_of_a_variables_name_is_refused_and_not_repeated():
    with pytest.raises(InputError, match="NAME of an environment variable") as raised:
        HttpReranker("http://h/rerank", key="sk-secret")
    assert "sk-secret" not in str(raised.value)


def test_a_key_goes_over_http_to_another_machine_only_when_told(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    with pytest.raises(InputError, match=f"readable to all.*https url, unset {KEY_VARIABLE}, or .*insecure") as raised:
        HttpReranker("http://192.0.2.1/rerank").scores("q", ["1"])
    assert SECRET not in str(raised.value)


# -------------------------------------------------------------------------------------------------------- connection
def test_the_connection_is_kept_open_between_requests():
    with RerankStub() as stub, HttpReranker(stub.url, **QUICK) as reranker:
        for _ in range(5):
            reranker.scores("q", numbers(3))
        assert len(stub.bodies) == 5
        assert len(stub.connections) == 1


def test_closed_it_opens_again_when_it_is_asked():
    with RerankStub() as stub:
        reranker = HttpReranker(stub.url, **QUICK)
        reranker.close()
        reranker.scores("q", ["1"])
        reranker.close()
        reranker.close()
        assert reranker.scores("q", ["1"]) == by_number("q", ["1"])
        reranker.close()
        assert len(stub.connections) == 2


def test_many_threads_get_each_its_own_answers():
    wrong = []
    with RerankStub("tei", delay=0.005) as stub, HttpReranker(f"tei+{stub.url}", **QUICK) as reranker:

        def ask(seed):
            for n in (1, 20, 50):
                texts = numbers(n, seed)
                if reranker.scores(f"{seed} " * seed, texts) != by_number("x " * seed, texts):
                    wrong.append((seed, n))

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(1, 9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(stub.bodies) == 8 * 4
        assert 1 < stub.most_open <= 8
    assert not wrong


def test_what_is_measured_is_told_apart_by_dialect_url_model_and_fields_without_a_server():
    made = [
        HttpReranker("http://h/rerank"),
        HttpReranker("http://h/rerank#m"),
        HttpReranker("voyage+http://h/rerank#m"),
        HttpReranker("http://g/rerank#m"),
        HttpReranker("http://h/rerank#m", extra={"use_activation": False}),
        HttpReranker("http://h/rerank#m", at_once=5),
    ]
    assert len({reranker.identity() for reranker in made}) == len(made)
    assert made[1].identity() == HttpReranker("http://h/rerank/", "m", key="SOME_KEY").identity()


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"at_once": 0}, "at_once = 0"),
        ({"at_once": True}, "at_once = True"),
        ({"at_once": 2.5}, "at_once = 2.5"),
        ({"retries": -1}, "retries = -1"),
        ({"timeout": 0}, "timeout = 0"),
        ({"first_wait": float("nan")}, "first_wait = nan"),
        ({"extra": {"documents": []}}, "extra holds ['documents']"),
        ({"extra": {"top_n": 3}}, "extra holds ['top_n']"),
        ({"extra": {"model": "m"}}, "extra holds ['model']"),
        ({"extra": {"x": {1}}}, "what JSON can say"),
    ],
)
def test_a_setting_that_is_not_allowed_is_refused_before_any_request(more, problem):
    with pytest.raises(InputError, match=re.escape(problem)):
        HttpReranker("http://h/rerank", **more)


def test_without_its_package_the_line_that_installs_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(MissingDependency, match=r"pip install 'rerank\[chat\]'"):
        HttpReranker("http://127.0.0.1:9/rerank").scores("q", ["1"])
