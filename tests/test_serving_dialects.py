"""Dialects: what our own client of each sends is understood, and what is written is read back with the same scores."""

import json
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from rerank.bench.dialects import DIALECTS as CLIENTS
from rerank.bench.dialects import scores_in
from rerank.serving.asking import Answer, Hit, Question, Refusal
from rerank.serving.wire.dialects import DIALECTS, ROUTES, asked, dialect_of
from rerank.serving.wire.openapi import examples

SPOKEN = {
    "/rerank": "cohere",
    "/v1/rerank": "cohere",
    "/v2/rerank": "cohere",
    "/infinity/rerank": "cohere",
    "/infinity/v1/rerank": "cohere",
    "/tei/rerank": "tei",
    "/voyage/rerank": "voyage",
    "/voyage/v1/rerank": "voyage",
    "/weaviate/rerank": "weaviate",
    "/score": "vllm-score",
    "/v1/score": "vllm-score",
}
RANKED = [path for path, name in SPOKEN.items() if name == "cohere"]
texts = st.text(st.characters(codec="utf-8"), max_size=20)
queries = texts.filter(str.strip)
scored = st.lists(st.tuples(texts, st.floats(0, 1)), max_size=8)


def answers_of(found, scores):
    """An answer to each question, its texts scored in turn."""
    left, answers = iter(scores), []
    for question in found.questions:
        hits = [Hit(i, next(left), text) for i, text in enumerate(question.texts)]
        best = sorted(hits, key=lambda hit: -hit.score)[: question.top_n]
        answers.append(Answer("tiny", tuple(best), 7, "an-id", 1_700_000_000, question.warnings))
    return answers


def spoken(path, body, scores=()):
    """What the server answers, as a client reads it."""
    found = asked(path, json.loads(json.dumps(body)))
    return json.loads(json.dumps(found.write(answers_of(found, scores or [1 / (i + 2) for i in range(99)]))))


def question_of(path, **fields):
    return asked(path, {"query": "q", **fields}).questions[0]


def refusal(path, body):
    with pytest.raises(Refusal) as caught:
        asked(path, body)
    assert caught.value.status == 422
    return caught.value.message


@pytest.mark.parametrize("path", ["/rerank with texts", *SPOKEN])
@given(query=queries, documents=scored)
def test_what_our_client_sends_is_understood_and_what_is_written_is_read_back(path, query, documents):
    client = CLIENTS[SPOKEN.get(path, "tei")]
    given, scores = [text for text, _ in documents], [score for _, score in documents]
    # Our client never asks about no document: Cohere's top_n would be 0.
    body = (
        client.request(query, given, "a-model", {}) if given or not client.count else {"query": query, "documents": []}
    )
    path = path.split()[0]
    found = asked(path, json.loads(json.dumps(body)))
    [question] = found.questions
    assert (question.query, question.texts) == (query, tuple(given))
    assert question.model == body.get("model")
    assert question.warnings == ()
    assert question.raw == (client in (CLIENTS["tei"], CLIENTS["weaviate"]))
    assert scores_in(spoken(path, body, scores), given, client) == scores


@given(st.lists(st.tuples(queries, texts, st.floats(0, 1)), min_size=2, max_size=6))
def test_pairs_are_asked_one_by_one_and_answered_in_their_order(pairs):
    left, right, scores = map(list, zip(*pairs, strict=True))
    for first, second in (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2")):
        body = {first: left, second: right}
        found = asked("/score", body)
        assert [(question.query, question.texts) for question in found.questions] == [(a, (b,)) for a, b, _ in pairs]
        answer = spoken("/score", body, scores)
        assert [row["score"] for row in answer["data"]] == scores
        assert [row["index"] for row in answer["data"]] == list(range(len(pairs)))
        assert answer["usage"] == {"prompt_tokens": 7 * len(pairs), "total_tokens": 7 * len(pairs)}


@pytest.mark.parametrize(("first", "second"), [("q", "d"), ("q", ["d"]), (["q"], "d"), (["q"], ["d"])])
def test_one_text_and_a_list_of_one_mean_the_same_to_score(first, second):
    assert asked("/score", {"text_1": first, "text_2": second}).questions == (Question("q", ("d",)),)


@pytest.mark.parametrize("path", RANKED)
def test_documents_come_back_where_they_are_asked_for_in_the_shape_of_the_dialect(path):
    shape = "one" if path.startswith("/infinity") else {"text": "one"}
    [row] = spoken(path, {"query": "q", "documents": ["one"], "return_documents": True})["results"]
    assert row == {"index": 0, "relevance_score": 0.5, "document": shape}
    [row] = spoken(path, {"query": "q", "documents": ["one"], "return_documents": False})["results"]
    assert row == {"index": 0, "relevance_score": 0.5}
    [row] = spoken(path, {"query": "q", "documents": ["one"], "return_documents": None})["results"]
    assert ("document" in row) == (path in ("/rerank", "/v1/rerank"))


def test_tei_and_voyage_give_texts_back_as_texts():
    assert spoken("/rerank", {"query": "q", "texts": ["one"], "return_text": True}) == [
        {"index": 0, "score": 0.5, "text": "one"}
    ]
    answer = spoken("/voyage/v1/rerank", {"query": "q", "documents": ["one"], "return_documents": True})
    assert answer["data"] == [{"index": 0, "relevance_score": 0.5, "document": "one"}]


def test_weaviate_scores_one_property_or_documents_in_their_order():
    answer = spoken("/weaviate/rerank", {"query": "q", "documents": ["a", "b"]}, [-2.5, 3.5])
    assert answer == {"query": "q", "scores": [{"document": "a", "score": -2.5}, {"document": "b", "score": 3.5}]}
    assert spoken("/weaviate/rerank", {"query": "q", "property": "a"}, [3.5]) == {
        "query": "q",
        "property": "a",
        "score": 3.5,
    }


def test_an_object_comes_back_with_its_other_fields():
    document = {"id": 7, "text": "one", "url": None}
    [row] = spoken("/v1/rerank", {"query": "q", "documents": [document]})["results"]
    assert row["document"] == document


def test_many_rank_fields_cost_no_more_for_many_documents():
    fields = [f"field {i}" for i in range(90_000)]
    began = time.monotonic()
    documents = [{"field 7": "b", "field 3": "a", "other": "c"}] * 20_000
    found = question_of("/v1/rerank", documents=documents, rank_fields=fields)
    assert set(found.texts) == {"field 3: a\nfield 7: b"}
    assert time.monotonic() - began < 5.0  # minutes, were each document asked for each field


def test_rank_fields_are_read_as_lines_and_the_text_alone_as_it_is():
    document = {"title": "Faust", "text": "A play.", "year": 1808, "none": None}
    for fields, text in (
        (["title", "year", "none", "missing"], "title: Faust\nyear: 1808"),
        (["year", "text"], "year: 1808\ntext: A play."),
        (["text"], "A play."),
        ([], "A play."),
    ):
        assert question_of("/v1/rerank", documents=[document, "plain"], rank_fields=fields).texts == (text, "plain")
    [row] = spoken("/v1/rerank", {"query": "q", "documents": [{"title": "Faust"}], "rank_fields": ["title"]})["results"]
    assert row["document"] == {"title": "Faust", "text": "title: Faust"}
    message = refusal("/v1/rerank", {"query": "q", "documents": ["a", {"b": 1}], "rank_fields": ["title"]})
    assert message.startswith("documents.1: must have one of the rank_fields")


def test_the_answer_of_rerank_has_the_fields_of_cohere_jina_and_vllm():
    answer = spoken("/v1/rerank", {"query": "q", "documents": ["a", "b"], "top_n": 1, "unheard": 1}, [0.1, 0.9])
    warning = "the field unheard is not known here and was ignored"
    assert answer == {
        "id": "an-id",
        "object": "rerank",
        "model": "tiny",
        "created": 1_700_000_000,
        "results": [{"index": 1, "relevance_score": 0.9, "document": {"text": "b"}}],
        "meta": {
            "api_version": {"version": "1"},
            "billed_units": {"search_units": 1},
            "tokens": {"input_tokens": 7},
            "warnings": [warning],
        },
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }


@pytest.mark.parametrize(
    ("path", "field"), [("/rerank", "texts"), ("/v1/rerank", "documents"), ("/v2/rerank", "documents")]
)
def test_no_document_is_answered_with_no_result(path, field):
    answer = spoken(path, {"query": "q", field: []})
    assert (answer if field == "texts" else answer["results"]) == []


@pytest.mark.parametrize(
    ("given", "wanted"),
    [(None, None), (1, 1), (2, 2), (3, None), (10**400, None)],
    ids=["none", "1", "2", "all", "huge"],
)
@pytest.mark.parametrize("path", [*RANKED, "/tei/rerank", "/voyage/rerank"])
def test_top_n_above_the_number_of_documents_is_all_of_them(path, given, wanted):
    count, field = ("top_k" if "voyage" in path else "top_n"), ("texts" if "tei" in path else "documents")
    assert question_of(path, **{field: ["a", "b", "c"], count: given}).top_n == wanted


def test_top_n_of_zero_is_all_at_the_bare_path_only():
    assert question_of("/rerank", documents=["a"], top_n=0).top_n is None
    for path in RANKED[1:]:
        assert "top_n: must be a whole number of at least 1" in refusal(
            path, {"query": "q", "documents": ["a"], "top_n": 0}
        )


@pytest.mark.parametrize("path", [*RANKED, "/tei/rerank", "/voyage/rerank"])
@pytest.mark.parametrize("value", [-1, "3", 2.5, 3.0, True, [], {}, math.inf])
def test_a_count_that_is_no_whole_number_is_refused(path, value):
    count, field = ("top_k" if "voyage" in path else "top_n"), ("texts" if "tei" in path else "documents")
    assert refusal(path, {"query": "q", field: ["a"], count: value}).startswith(f"{count}: must be a whole number")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"query": None}, "query: must be a text, not null"),
        ({"query": ["q"]}, "query: must be a text, not a list"),
        ({"query": ""}, "query: must have words"),
        ({"query": " \t\u2003\n"}, "query: must have words"),
        ({"documents": None}, "documents: must be a list of texts"),
        ({"documents": "abc"}, "documents: must be a list of texts or of objects with 'text', not the text 'abc'"),
        ({"documents": {"0": "a"}}, "documents: must be a list"),
        ({"documents": ["a", "b", "c", None]}, "documents.3: must be a text or an object with 'text', not null"),
        ({"documents": [1.5]}, "documents.0: must be a text or an object with 'text', not the number 1.5"),
        ({"documents": [["a"]]}, "documents.0: must be a text or an object with 'text', not a list"),
        ({"documents": [{"title": "a"}]}, "documents.0: must be a text or an object with 'text', not an object"),
        ({"documents": [{"text": 3}]}, "documents.0: its 'text' must be a text, not the number 3"),
        ({"model": 3}, "model: must be a text, not the number 3"),
        ({"return_documents": "yes"}, "return_documents: must be true or false, not the text 'yes'"),
        ({"raw_scores": 1}, "raw_scores: must be true or false, not the number 1"),
        ({"max_tokens_per_doc": -1}, "max_tokens_per_doc: must be a whole number"),
        ({"min_probability": 1.5}, "min_probability: must be a number from 0 to 1, not the number 1.5"),
        ({"min_probability": True}, "min_probability: must be a number from 0 to 1, not true"),
        ({"first_stage": [1]}, "first_stage: must be an object of retriever names"),
        ({"first_stage": {"bm25": [1]}}, "first_stage.bm25: must have a score for each of the 2 documents, and has 1"),
        ({"first_stage": {"bm25": [1, "2"]}}, "first_stage.bm25.1: must be a finite number, or null"),
        ({"first_stage": {"bm25": [1, 10**400]}}, "first_stage.bm25.1: must be a finite number, or null"),
        ({"first_stage": {"bm25": "1"}}, "first_stage.bm25: must be a list with a score for each document"),
        ({"rank_fields": [1]}, "rank_fields.0: must be a text, not the number 1"),
        ({"texts": ["a"]}, "texts and documents: give one of them"),
    ],
)
def test_a_field_that_is_not_allowed_is_refused_in_our_words(fields, said):
    assert refusal("/rerank", {"query": "q", "documents": ["a", "b"], **fields}).startswith(said)


def test_one_refusal_tells_the_problems_of_all_fields_and_of_the_first_five_documents():
    message = refusal("/v2/rerank", {"query": 1, "documents": [None] * 1000, "top_n": "3"})
    places = [problem.split(":")[0] for problem in message.split("; ")]
    assert places == ["query", *(f"documents.{i}" for i in range(4)), "and 2 more problems"]
    message = refusal("/v2/rerank", {"docs": ["a"], "question": "q"})
    assert message == "query: is missing; documents: is missing (the body has docs, question)"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "the two sides of the pairs: give text_1 with text_2"),
        ({"text_1": "a"}, "the body has text_1"),
        ({"text_1": "a", "items": ["b"]}, "the body has items, text_1"),
        ({"text_1": "a", "text_2": "b", "data_1": "a", "data_2": "b"}, "the two sides"),
        ({"text_1": ["a", "b"], "text_2": ["c", "d", "e"]}, "text_1 has 2 and text_2 3"),
        ({"text_1": [], "text_2": []}, "text_1 has 0 and text_2 0"),
        ({"text_1": [], "text_2": ["a"]}, "text_1 has 0 and text_2 1"),
        ({"text_1": ["a", " "], "text_2": ["c", "d"]}, "text_1.1: must have words"),
        ({"queries": "", "documents": ["c", "d"]}, "queries: must have words"),
        ({"text_1": ["a", 1], "text_2": ["c", "d"]}, "text_1.1: must be a text, not the number 1"),
        ({"data_1": "a", "data_2": {"content": []}}, "data_2: must be a text or a list of texts, not an object"),
    ],
)
def test_pairs_that_do_not_match_are_refused(body, said):
    assert said in refusal("/score", body)


def test_weaviate_takes_documents_or_a_property():
    assert "give one of them" in refusal("/weaviate/rerank", {"query": "q", "documents": ["a"], "property": "b"})
    assert "documents: is missing" in refusal("/weaviate/rerank", {"query": "q"})


def test_what_changes_nothing_is_taken_in_silence_and_what_is_not_known_with_a_warning():
    quiet = {
        "priority": 3,
        "relevant_spans": {"mode": "enabled"},
        "truncate_prompt_tokens": -1,
        "truncation_side": "right",
        "anything": None,
    }
    assert question_of("/rerank", documents=["a"], **quiet).warnings == ()
    assert question_of("/rerank", texts=["a"], truncation_direction="Right").warnings == ()
    [warning] = question_of("/rerank", texts=["a"], truncation_direction="Left").warnings
    assert warning == "truncation_direction is the text 'Left', which has no effect here"
    [warning] = question_of("/rerank", documents=["a"], truncate_prompt_tokens=9).warnings
    assert "no effect" in warning
    [warning] = question_of("/voyage/v1/rerank", documents=["a"], topk=1).warnings
    assert warning.endswith("did you mean 'top_k'?")
    many = question_of("/rerank", documents=["a"], **{f"x{i}": 1 for i in range(1000)}).warnings
    assert len(many) == 6
    assert many[-1] == "and 995 more fields that are not known here"
    first, second = asked("/score", {"text_1": ["a", "b"], "text_2": ["c", "d"], "unheard": 1}).questions
    assert (len(first.warnings), len(second.warnings)) == (1, 0)


def test_each_option_reaches_the_question():
    stages = {"bm25": [1, None], "dense": [0.5, 0.25]}
    question = question_of(
        "/rerank",
        documents=["a", "b"],
        model="m",
        top_n=1,
        raw_scores=True,
        min_probability=0,
        first_stage=stages,
        max_tokens_per_doc=5,
    )
    assert (question.model, question.top_n, question.raw, question.max_tokens) == ("m", 1, True, 5)
    assert question.min_probability == 0.0
    assert question.first_stage["dense"] == (0.5, 0.25)
    assert question.first_stage["bm25"][0] == 1.0
    assert math.isnan(question.first_stage["bm25"][1])
    assert question_of("/rerank", documents=["a"], use_activation=False).raw
    assert not question_of("/rerank", documents=["a"], use_activation=True).raw
    assert question_of("/rerank", documents=["a"], max_tokens_per_doc=0).max_tokens is None
    assert question_of("/rerank", documents=["a"], model="default/not-specified").model is None
    assert [question_of("/tei/rerank", texts=["a"], truncate=cut).truncate for cut in (None, True, False)] == [1, 1, 0]
    assert not question_of("/voyage/rerank", documents=["a"], truncation=False).truncate
    assert asked("/score", {"text_1": "a", "text_2": "b", "use_activation": False}).questions[0].raw


names = sorted({field for one in DIALECTS for field in one.request.model_fields})
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "bm25"]), inner, max_size=2),
    max_leaves=4,
)


@given(st.sampled_from(sorted(ROUTES)), st.dictionaries(st.sampled_from(names), anything, max_size=6), st.booleans())
def test_any_json_is_asked_or_refused(path, body, sound):
    if sound:
        body = {**examples(dialect_of(path, {}))[0], **body}
    try:
        found = asked(path, body)
    except Refusal as refused:
        assert refused.status == 422
        assert len(refused.message) < 1500
        return
    for question in found.questions:
        assert question.query.strip()
        assert all(isinstance(text, str) for text in question.texts)
        assert question.top_n is None or 1 <= question.top_n < len(question.texts)
    dialect = dialect_of(path, body)
    TypeAdapter(dialect.response).validate_python(found.write(answers_of(found, [0.5] * 99)), strict=True)


def test_a_path_that_is_not_served_is_no_dialect():
    with pytest.raises(Refusal) as caught:
        asked("/v3/rerank", {"query": "q", "documents": []})
    assert caught.value.status == 404
