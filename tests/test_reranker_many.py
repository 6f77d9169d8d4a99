"""Many questions at once, arrays for lists, and what callers that batch for themselves can get wrong."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from ranking_models import a_reranker

from rerank.errors import InputError

QUESTIONS = [("who wrote faust", ["a cup of tea", "Faust. A tragedy!"]), ("tea", ["csv", "tea", "cup"]), ("none", [])]
SCORES = [{"bm25": [3.0, 1.0]}, None, {"bm25": []}]


@pytest.fixture(scope="module")
def reranker(tiny_bert):
    return a_reranker(tiny_bert, first_stage={"bm25": 2.0})


@pytest.fixture(scope="module")
def plain(tiny_bert):
    return a_reranker(tiny_bert)


def close(found, expected):
    """Whether two rankings are the same, up to the order of sums in batches of other sizes."""
    assert [hit.index for hit in found] == [hit.index for hit in expected]
    np.testing.assert_allclose([hit.score for hit in found], [hit.score for hit in expected], atol=1e-5)


# Many questions


def test_many_questions_are_ranked_as_each_alone_each_with_its_first_stage_scores_or_without(reranker):
    found = reranker.rank_many(QUESTIONS, first_stages=SCORES)
    for hits, question, scores in zip(found, QUESTIONS, SCORES, strict=True):
        close(hits, reranker.rank(*question, first_stage=scores))
    assert found[0][0].score != pytest.approx(reranker.rank(*QUESTIONS[0])[0].score)
    for hits, question in zip(reranker.rank_many(iter(QUESTIONS), top_k=1), QUESTIONS, strict=True):
        close(hits, reranker.rank(*question, top_k=1))


@pytest.mark.parametrize("questions", [("q", ["a"]), [("q", ["a"], 3)], [("q",)], ["qa"], None, 3, {"q": ["a"]}])
def test_questions_that_are_no_pairs_are_refused(questions, plain):
    with pytest.raises(InputError, match=r"rank_many takes a sequence of \(query, documents\) pairs"):
        plain.rank_many(questions)


@pytest.mark.parametrize(
    ("questions", "told", "problem"),
    [
        ([("q", ["a"]), ("z", ["a", None])], {}, "question 1: document 1 must be a text, not NoneType"),
        ([("q", ["a"]), (None, ["a"])], {}, "question 1: query must be a text"),
        ([("q", ["a"])], {"first_stages": [{"bm25": [1.0, 2.0]}]}, "question 0: .* has 2 scores for 1 documents"),
        ([("q", ["a"])], {"first_stages": []}, "first_stages has 0 entries for 1 questions"),
        ([], {"top_k": 0}, "top_k must be a whole number"),
    ],
)
def test_what_is_wrong_with_many_questions_names_the_question(questions, told, problem, reranker):
    with pytest.raises(InputError, match=problem):
        reranker.rank_many(questions, **told)


# Lists of other kinds


@pytest.mark.parametrize("kind", [tuple, np.array, lambda texts: np.array(texts, dtype=object), pd.Series])
def test_documents_may_be_an_array_or_a_column(kind, plain):
    texts = QUESTIONS[1][1]
    found = plain.rank("tea", kind(texts), top_k=np.int64(2), first_stage=None)
    assert found == plain.rank("tea", texts, top_k=2)
    assert {type(hit.text) for hit in found} == {str}


@pytest.mark.parametrize(
    "documents", [np.array([["a", "b"]]), pd.DataFrame({"text": ["a"]}), np.array("a"), {"a": 1}.keys()]
)
def test_a_table_a_bare_array_and_a_set_are_no_list_of_documents(documents, plain):
    with pytest.raises(InputError, match="documents must be a list of texts, not "):
        plain.rank("tea", documents)


@pytest.mark.parametrize("scores", ["12", ["1", "2"], [True, False], {1.0: 1, 2.0: 2}, [np.True_, np.False_]])
def test_texts_and_truth_values_are_no_first_stage_scores(scores, reranker):
    with pytest.raises(InputError, match=r"first_stage\['bm25'\] must hold a finite number for each document"):
        reranker.rank("tea", ["a", "b"], first_stage={"bm25": scores})


@pytest.mark.parametrize("scores", [(3, math.nan), np.float32([3, math.nan]), torch.tensor([3, math.nan])])
def test_numbers_of_any_kind_are_first_stage_scores(scores, reranker):
    expected = reranker.rank("tea", ["a", "b"], first_stage={"bm25": [3.0, math.nan]})
    assert reranker.rank("tea", ["a", "b"], first_stage={"bm25": scores}) == expected


def test_a_retriever_that_the_model_does_not_know_is_named_and_one_too_many_is_said_once(tiny_bert, caplog):
    made = a_reranker(tiny_bert, first_stage={"bm25": 2.0})
    with pytest.raises(InputError, match=r"first_stage lacks \['bm25'\].*; 'bm52' is unknown; did you mean 'bm25'"):
        made.rank("tea", ["a"], first_stage={"bm52": [1.0]})
    for _ in range(3):
        made.rank("tea", ["a"], first_stage={"bm25": [1.0], "dense": [1.0]})
    assert caplog.text.count("first_stage holds scores of ['dense'], and this model reads those of ['bm25']") == 1


# Callers that batch for themselves


def test_logits_that_are_not_one_for_each_document_are_refused_and_nothing_is_dropped(plain):
    candidates = plain.candidates("tea", ["a", "b"])
    for logits in (torch.zeros(1), torch.zeros(3), torch.zeros(2, 1), torch.zeros(0)):
        with pytest.raises(InputError, match="one logit for each of 2 documents is needed"):
            plain.ranking(candidates, logits)
    for top_k in (0, -1, 2.5):
        with pytest.raises(InputError, match="top_k must be a whole number"):
            plain.ranking(candidates, torch.zeros(2), top_k=top_k)
    with pytest.raises(InputError, match="min_probability must be"):
        plain.ranking(candidates, torch.zeros(2), min_probability=2)
    assert [hit.index for hit in plain.ranking(candidates, torch.tensor([1.0, 2.0], requires_grad=True))] == [1, 0]
