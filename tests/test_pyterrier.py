"""The PyTerrier step ranks as `Reranker.rank` does, and `pt.Experiment` measures the ranking that it shows."""

import importlib
import random
import sys
import unittest

import pytest
from ranking_models import a_reranker, constant_reranker, snippet_of

pytest.importorskip("pyterrier", reason="pip install 'rerank[pyterrier]' to test the PyTerrier step")

import ir_measures
import numpy as np
import pandas as pd
import pyterrier as pt
from pyterrier.testing import transformer_test_class

from rerank import evaluate
from rerank.errors import InputError, MissingDependency
from rerank.integrations.pyterrier import RerankTransformer
from rerank.types import Run

# PyTerrier 1.1 writes frames in a way that pandas 3.1 announces the end of.
pytestmark = pytest.mark.filterwarnings("ignore:The inplace keyword in:pandas.errors.Pandas4Warning")

WORDS = "tea cup csv file read lines Faust tragedy number python poem river night 17 list of the".split()
QUERIES = {"q1": "who wrote faust", "q2": "read a csv file", "10": "a cup of tea"}


@pytest.fixture(scope="module")
def reranker(tiny_bert):
    return a_reranker(tiny_bert)


@pytest.fixture(scope="module")
def step(reranker):
    return RerankTransformer(reranker)


@pytest.fixture(scope="module")
def frame():
    """Three queries with twelve candidates each, in first-stage order, with a column of our own."""
    draw = random.Random(3)
    rows = [
        {"qid": qid, "query": query, "docno": f"d{draw.randrange(1000):03}{i}", "rank": i, "score": 20.0 - i}
        | {"text": " ".join(draw.choices(WORDS, k=5)), "length": 5 + i}
        for qid, query in QUERIES.items()
        for i in range(12)
    ]
    return pd.DataFrame(rows)


def judged(frame):
    """Every third candidate of the first stage is relevant, from the last on."""
    chosen = frame[frame["rank"] % 3 == 2]
    qrels = {qid: {docno: 1 + (rank > 8) for docno, rank in zip(own["docno"], own["rank"], strict=True)}
             for qid, own in chosen.groupby("qid")}  # fmt: skip
    table = [{"qid": q, "docno": d, "label": grade} for q, grades in qrels.items() for d, grade in grades.items()]
    return qrels, pd.DataFrame(table)


def experiment(step, frame, measures):
    """What pt.Experiment finds for the step behind a first stage that gives `frame`."""
    first = pt.Transformer.from_df(frame)
    topics = pd.DataFrame([{"qid": qid, "query": query} for qid, query in QUERIES.items()])
    table = pt.Experiment([first >> step], topics, judged(frame)[1], [ir_measures.parse_measure(m) for m in measures])
    return table.iloc[0][measures].to_dict()


# PyTerrier's own contract


def test_the_step_passes_their_conformance_suite(step, monkeypatch):
    monkeypatch.setenv("PT_TEST_TRANSFORMER_REPORTS", "0")  # they are given as warnings
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(transformer_test_class(lambda: step))
    result = unittest.TestResult()
    suite.run(result)
    assert (result.testsRun, result.errors, result.failures) == (2, [], [])


def test_an_inspection_finds_what_goes_in_and_what_comes_out(step):
    assert pt.inspect.transformer_inputs(step) == [["qid", "query", "docno", "text"]]
    outputs = pt.inspect.transformer_outputs(step, ["qid", "query", "docno", "text"])
    assert outputs == ["qid", "query", "docno", "text", "score", "rank"]


def test_no_java_is_started(step, frame):
    step(frame)
    assert not pt.java.started()


# Oracle


def test_the_order_and_the_scores_are_those_of_rank(step, reranker, frame):
    out = step(frame)
    assert out["qid"].drop_duplicates().tolist() == list(QUERIES)
    for qid, own in frame.groupby("qid"):
        hits = reranker.rank(QUERIES[qid], own["text"].tolist())
        rows = out[out["qid"] == qid]
        assert rows["docno"].tolist() == [own["docno"].iloc[hit.index] for hit in hits]
        assert rows["rank"].tolist() == list(range(12))
        assert rows["score"].tolist() == pytest.approx([hit.score for hit in hits], abs=1e-5)


MEASURES = ["nDCG@10", "nDCG@3", "RR", "AP", "P@5", "R@3"]


@pytest.mark.parametrize("constant", [False, True])
def test_the_numbers_of_an_experiment_are_ours_also_when_all_scores_are_equal(constant, reranker, tiny_bert, frame):
    ranker = constant_reranker(tiny_bert) if constant else reranker
    first = {qid: dict(zip(own["docno"], own["score"], strict=True)) for qid, own in frame.groupby("qid")}
    scores = {
        qid: {own["docno"].iloc[hit.index]: hit.score for hit in ranker.rank(QUERIES[qid], own["text"].tolist())}
        for qid, own in frame.groupby("qid")
    }
    ours = evaluate(Run.from_scores(scores, before=Run.from_scores(first)), judged(frame)[0], MEASURES)
    theirs = experiment(RerankTransformer(ranker), frame, MEASURES)
    assert theirs == pytest.approx(dict(ours.mean))


def test_an_experiment_of_equal_scores_would_differ_without_the_step_keeping_them_apart(tiny_bert, frame):
    kept = experiment(RerankTransformer(constant_reranker(tiny_bert)), frame, ["nDCG@10"])
    plain = experiment(pt.apply.doc_score(lambda row: 1.0), frame, ["nDCG@10"])
    assert kept != pytest.approx(plain)


def test_the_ranks_are_those_that_pyterrier_would_give(step, frame):
    out = step(frame)
    assert out["rank"].tolist() == pt.model.add_ranks(out.drop(columns="rank"))["rank"].tolist()


# Invariance


def test_rows_in_another_order_give_the_same_ranking_even_of_equal_scores(tiny_bert, frame):
    step = RerankTransformer(constant_reranker(tiny_bert))
    mixed = frame.sample(frac=1.0, random_state=5)
    ranked = {qid: own["docno"].tolist() for qid, own in step(frame).groupby("qid")}
    assert {qid: own["docno"].tolist() for qid, own in step(mixed).groupby("qid")} == ranked
    assert ranked["q1"] == frame[frame["qid"] == "q1"]["docno"].tolist()


def test_the_frame_that_came_in_is_left_as_it_was(step, frame):
    before = frame.copy(deep=True)
    step(frame)
    pd.testing.assert_frame_equal(frame, before)


def test_all_queries_are_scored_in_one_call(step, frame, monkeypatch):
    calls = []
    inner = type(step.reranker).rank_many
    monkeypatch.setattr(
        type(step.reranker), "rank_many", lambda self, q, **how: calls.append(len(q)) or inner(self, q, **how)
    )
    step(frame)
    assert calls == [3]


# Edges


def test_other_columns_are_kept_and_score_and_rank_are_new(step, frame):
    out = step(frame)
    assert set(out.columns) == set(frame.columns)
    lengths = dict(zip(frame["docno"], frame["length"], strict=True))
    assert out["length"].tolist() == [lengths[docno] for docno in out["docno"]]


def test_an_empty_frame_gives_an_empty_one_with_score_and_rank(step, frame):
    out = step(frame.iloc[:0])
    assert out.empty
    assert {"score", "rank", "length"} <= set(out.columns)


def test_the_column_of_texts_has_a_name_of_ones_choice(reranker, step, frame):
    renamed = frame.rename(columns={"text": "body"})
    out = RerankTransformer(reranker, text_field="body")(renamed)
    assert out["docno"].tolist() == step(frame)["docno"].tolist()
    with pytest.raises(KeyError, match="body"):
        RerankTransformer(reranker, text_field="body")(frame)


def test_the_step_cuts_and_composes_as_others_do(step, frame):
    pipeline = pt.Transformer.from_df(frame) % 5 >> step % 2
    out = pipeline(pd.DataFrame([{"qid": "q2", "query": QUERIES["q2"]}]))
    assert out["rank"].tolist() == [0, 1]
    assert set(out["docno"]) <= set(frame[frame["qid"] == "q2"]["docno"].head(5))


def test_a_rank_that_is_missing_comes_last_among_equal_scores(tiny_bert):
    rows = [("a", float("nan")), ("b", 1.0), ("c", 0.0)]
    frame = pd.DataFrame([{"qid": "1", "query": "q", "docno": d, "text": "x", "rank": r} for d, r in rows])
    out = RerankTransformer(constant_reranker(tiny_bert))(frame)
    assert out["docno"].tolist() == ["c", "b", "a"]


@pytest.mark.parametrize(
    "ranks",
    [[1, 0, 2], ["1", "0", "2"], pd.array([1, 0, 2], dtype="Int64"), pd.Series(np.arange(3)[[1, 0, 2]], dtype=object)],
)
def test_ranks_of_any_kind_order_equal_scores(ranks, tiny_bert):
    frame = pd.DataFrame({"qid": "1", "query": "q", "docno": ["a", "b", "c"], "text": "x"}).assign(rank=ranks)
    assert RerankTransformer(constant_reranker(tiny_bert))(frame)["docno"].tolist() == ["b", "a", "c"]


# Bad input


def test_a_rank_that_is_no_number_and_a_column_that_is_there_twice_are_refused(step):
    frame = pd.DataFrame({"qid": "1", "query": "q", "docno": ["a", "b"], "text": "x", "rank": ["0", "last"]})
    with pytest.raises(InputError, match="column 'rank' holds 'last', which is no number"):
        step(frame)
    with pytest.raises(InputError, match="the frame has 2 columns 'text': rename or drop all but one"):
        step(pd.concat([frame, frame[["text"]]], axis=1))
    with pytest.raises(InputError, match="qid '1', docno 'a': the text has a lone surrogate"):
        step(frame.drop(columns="rank").assign(text=pd.Series(["x\ud800", "x"], dtype=object)))


@pytest.mark.parametrize("text", [None, float("nan"), 7])
def test_a_row_without_a_text_is_named(text, step):
    rows = [{"qid": "1", "query": "q", "docno": "d7", "text": "x"}, {"qid": "1", "query": "q", "docno": "d8"}]
    frame = pd.DataFrame(rows).astype(object)
    frame.loc[1, "text"] = text
    with pytest.raises(InputError, match=r"qid '1', docno 'd8'.*'text'.*get_text"):
        step(frame)


def test_one_qid_with_two_queries_is_refused(step):
    rows = [{"qid": "1", "query": query, "docno": query, "text": "x"} for query in ("tea", "coffee")]
    with pytest.raises(InputError, match="two queries, 'tea' and 'coffee'"):
        step(pd.DataFrame(rows))


def test_a_missing_column_is_refused_as_pyterrier_does(step):
    with pytest.raises(pt.validate.InputValidationError, match="docno"):
        step(pd.DataFrame([{"qid": "1", "query": "tea", "text": "x"}]))


def test_without_pyterrier_the_message_is_the_line_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyterrier", None)
    monkeypatch.delitem(sys.modules, "rerank.integrations.pyterrier")
    with pytest.raises(MissingDependency, match=r"pip install 'rerank\[pyterrier\]'"):
        importlib.import_module("rerank.integrations.pyterrier")


def test_the_model_may_be_a_folder_and_the_example_of_the_module_runs(reranker, tmp_path, frame, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reranker.save_pretrained("runs/quickstart/model/light")
    topics = pd.DataFrame([{"qid": "q1", "query": QUERIES["q1"]}])
    names = {"first_stage": pt.Transformer.from_df(frame), "topics": topics}
    exec(snippet_of("rerank.integrations.pyterrier"), names)
    found = names["reranked"](topics)
    expected = RerankTransformer(reranker)(frame[frame["qid"] == "q1"])
    assert found["docno"].tolist() == expected["docno"].tolist()
