"""Reranking with BEIR's dictionaries: the order of `rank`, and numbers that BEIR's evaluation and ours agree on."""

import random

import numpy as np
import pytest
from ranking_models import a_reranker, constant_reranker, snippet_of

from rerank import evaluate
from rerank.errors import InputError, Mismatch
from rerank.integrations.beir import CrossEncoder, Rerank
from rerank.ties import apart
from rerank.types import Run

WORDS = "tea cup csv file read lines Faust tragedy number python poem river night 17 list of the".split()
QUERIES = {"q1": "who wrote faust", "q2": "read a csv file", "10": "a cup of tea"}


@pytest.fixture(scope="module")
def reranker(tiny_bert):
    return a_reranker(tiny_bert)


@pytest.fixture(scope="module")
def corpus():
    draw = random.Random(3)
    return {
        f"d{i:02}": {"title": draw.choice(["", "a title"]), "text": " ".join(draw.choices(WORDS, k=5))}
        for i in range(40)
    }


@pytest.fixture(scope="module")
def results(corpus):
    """Fifteen documents a query with distinct first-stage scores, not sorted by them."""
    draw = random.Random(5)
    return {q: {d: round(draw.random(), 6) for d in draw.sample(sorted(corpus), 15)} for q in QUERIES}


@pytest.fixture(scope="module")
def qrels(results):
    draw = random.Random(7)
    return {q: {d: draw.randint(1, 2) for d in draw.sample(sorted(by_doc), 4)} for q, by_doc in results.items()}


def joined(document):
    return f"{document['title']} {document['text']}".strip()


# Oracle


def test_the_order_is_that_of_rank_and_best_first(reranker, corpus, results):
    found = Rerank(reranker).rerank(corpus, QUERIES, results, top_k=10)
    first = Run.from_scores(results).top(10)
    for query_id, by_doc in found.items():
        doc_ids = first.doc_ids(query_id)
        hits = reranker.rank(QUERIES[query_id], [joined(corpus[d]) for d in doc_ids])
        assert list(by_doc) == [doc_ids[hit.index] for hit in hits]
        assert list(by_doc.values()) == pytest.approx([hit.score for hit in hits], abs=1e-5)


def test_beirs_own_class_over_our_model_gives_the_same(reranker, corpus, results):
    beir = pytest.importorskip("beir.reranking", reason="pip install beir==2.2.0 to compare with BEIR")
    theirs = beir.Rerank(CrossEncoder(reranker), batch_size=4).rerank(corpus, QUERIES, results, top_k=10)
    ours = Rerank(reranker).rerank(corpus, QUERIES, results, top_k=10)
    assert set(theirs) == set(ours)
    for query_id in ours:
        assert ours[query_id] == pytest.approx(theirs[query_id], abs=1e-5)


@pytest.mark.parametrize("constant", [False, True])
def test_beirs_evaluation_and_ours_agree_also_when_scores_are_equal(
    constant, reranker, tiny_bert, corpus, results, qrels
):
    theirs = pytest.importorskip("beir.retrieval.evaluation", reason="pip install beir==2.2.0 to compare with BEIR")
    ranker = constant_reranker(tiny_bert) if constant else reranker
    first = Run.from_scores(results)
    scores = {}
    for query_id in QUERIES:
        doc_ids = first.doc_ids(query_id)
        hits = ranker.rank(QUERIES[query_id], [joined(corpus[d]) for d in doc_ids])
        scores[query_id] = {doc_ids[hit.index]: hit.score for hit in hits}
    ours = evaluate(Run.from_scores(scores, before=first), qrels, ["nDCG@10", "AP@10", "R@5", "P@5"]).mean
    found = Rerank(ranker).rerank(corpus, QUERIES, results, top_k=100)
    ndcg, ap, recall, precision = theirs.EvaluateRetrieval.evaluate(qrels, found, [5, 10])
    values = [ndcg["NDCG@10"], ap["MAP@10"], recall["Recall@5"], precision["P@5"]]
    assert values == pytest.approx([ours[m] for m in ("nDCG@10", "AP@10", "R@5", "P@5")], abs=1e-5)


def test_equal_scores_come_out_strictly_falling_in_float32_and_in_first_stage_order(tiny_bert, corpus, results):
    found = Rerank(constant_reranker(tiny_bert)).rerank(corpus, QUERIES, results, top_k=15)
    for query_id, by_doc in found.items():
        assert list(by_doc) == sorted(results[query_id], key=results[query_id].get, reverse=True)
        assert (np.diff(np.float32(list(by_doc.values()))) < 0).all()


# Invariance


def test_results_in_another_order_give_the_same_ranking(tiny_bert, corpus, results):
    rerank = Rerank(constant_reranker(tiny_bert)).rerank
    turned = {q: dict(reversed(by_doc.items())) for q, by_doc in results.items()}
    for given in (results, {q: dict.fromkeys(by_doc, 1.0) for q, by_doc in results.items()}):
        mirrored = {q: {d: given[q][d] for d in by_doc} for q, by_doc in turned.items()}
        assert [list(v) for v in rerank(corpus, QUERIES, given, 7).values()] == [
            list(v) for v in rerank(corpus, QUERIES, mirrored, 7).values()
        ]


def test_all_queries_are_scored_in_one_call(reranker, corpus, results, monkeypatch):
    calls = []
    inner = type(reranker).rank_many
    monkeypatch.setattr(
        type(reranker), "rank_many", lambda self, q, **how: calls.append(len(q)) or inner(self, q, **how)
    )
    Rerank(reranker).rerank(corpus, QUERIES, results, top_k=3)
    assert calls == [3]


# Edges


def test_no_results_and_queries_without_results_are_kept_empty(reranker, corpus):
    assert Rerank(reranker).rerank(corpus, QUERIES, {}, top_k=3) == {}
    assert Rerank(reranker).rerank(corpus, QUERIES, {"q1": {}}, top_k=3) == {"q1": {}}


@pytest.mark.parametrize("document", [{"title": None, "text": "tea"}, {"text": "tea"}, {"title": "tea", "text": None}])
def test_a_title_or_text_that_is_null_or_absent_is_empty(document, reranker):
    found = Rerank(reranker).rerank({"d": document}, {"q": "cup"}, {"q": {"d": 1.0}}, top_k=3)
    assert found["q"]["d"] == pytest.approx(reranker.rank("cup", ["tea"])[0].score, abs=1e-6)


def test_predict_takes_lists_and_tuples_and_gives_the_logits(reranker):
    model = CrossEncoder(reranker)
    pairs = [["cup", "tea"], ["cup", "a csv file"]]
    found = model.predict(pairs, batch_size=1, show_progress_bar=False)
    np.testing.assert_array_equal(found, reranker.predict([tuple(pair) for pair in pairs]))
    assert model.predict([]).shape == (0,)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([], []),
        ([2.0, 1.0], [2.0, 1.0]),
        ([1.0, 1.0, 1.0 - 2**-24], [1.0, 1.0 - 2**-24, 1.0 - 2**-23]),  # float32 below 1 are 2**-24 apart
        ([16777217.0, 16777216.0], [16777217.0, 16777215.0]),  # one number in float32
        ([0.0, -0.0], [0.0, -(2.0**-149)]),
    ],
)
def test_scores_are_held_apart_by_one_float32_each(scores, expected):
    assert apart(scores) == expected


# Bad input


def test_a_document_that_the_corpus_lacks_and_a_query_that_is_unknown_are_named(reranker, corpus):
    with pytest.raises(Mismatch, match="results of query 'q1' name document 'd99', which corpus lacks"):
        Rerank(reranker).rerank(corpus, QUERIES, {"q1": {"d01": 1.0, "d99": 2.0}}, top_k=3)
    with pytest.raises(Mismatch, match="1 queries that queries lacks, first 'q9'"):
        Rerank(reranker).rerank(corpus, QUERIES, {"q9": {"d01": 1.0}}, top_k=3)


def test_a_text_that_is_none_and_a_score_that_is_no_number_are_refused(reranker):
    with pytest.raises(InputError, match="document 'd': text must be a text or null, not int"):
        Rerank(reranker).rerank({"d": {"text": 7}}, {"q": "cup"}, {"q": {"d": 1.0}}, top_k=3)
    with pytest.raises(InputError, match="document 'd': text has a lone surrogate at character 1"):
        Rerank(reranker).rerank({"d": {"text": "x\ud800"}}, {"q": "cup"}, {"q": {"d": 1.0}}, top_k=3)
    with pytest.raises(InputError, match="document 'd' must be a mapping with text and perhaps title, not str"):
        Rerank(reranker).rerank({"d": "just text"}, {"q": "cup"}, {"q": {"d": 1.0}}, top_k=3)
    with pytest.raises(InputError, match="query 'q' must be a text, not NoneType"):
        Rerank(reranker).rerank({"d": {"text": "x"}}, {"q": None}, {"q": {"d": 1.0}}, top_k=3)
    with pytest.raises(ValueError, match="query 'q': the score of document 'd' is NaN"):
        Rerank(reranker).rerank({"d": {"text": "x"}}, {"q": "cup"}, {"q": {"d": float("nan")}}, top_k=3)
    with pytest.raises(InputError, match="score nan is not a finite float32"):
        apart([1.0, float("nan")])


@pytest.mark.parametrize("value", [0, -1, True, "3", 2.5, None])
def test_a_count_that_is_none_is_refused(value, reranker, corpus, results):
    with pytest.raises(InputError, match="top_k must be a whole number of at least 1"):
        Rerank(reranker).rerank(corpus, QUERIES, results, top_k=value)
    with pytest.raises(InputError, match="batch_size"):
        Rerank(reranker, batch_size=value)
    with pytest.raises(InputError, match="batch_size"):
        CrossEncoder(reranker).predict([("a", "b")], batch_size=value)


def test_the_example_of_the_module_runs(reranker, tmp_path, corpus, results, qrels, monkeypatch):
    evaluation = pytest.importorskip("beir.retrieval.evaluation", reason="pip install beir==2.2.0 to run the example")
    monkeypatch.chdir(tmp_path)
    reranker.save_pretrained("runs/quickstart/model/light")
    names = {"corpus": corpus, "queries": QUERIES, "results": results, "qrels": qrels}
    exec(snippet_of("rerank.integrations.beir"), names | {"EvaluateRetrieval": evaluation.EvaluateRetrieval})
