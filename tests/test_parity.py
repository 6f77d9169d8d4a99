"""Our figures are trec_eval's: on random runs full of ties as they stand on disk, on constant scorers, on known runs.

BM25 of our own on SciFact (.676) is in test_retrieval.py; small oracles of each measure are in test_evaluation.py.
"""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator

from rerank.data import read_run
from rerank.data.trec import read_qrels, write_qrels, write_run
from rerank.evaluation import evaluate
from rerank.models.backbones import load_cross_encoder
from rerank.models.loading import save_policy
from rerank.models.policy import ScorePolicy
from rerank.reranker import Reranker
from rerank.types import Run

DATA = Path(__file__).parents[2] / "shared" / "data"
RUNS = 5_000

MEASURES = {
    "nDCG": "ndcg",
    "nDCG@1": "ndcg_cut_1",
    "nDCG@10": "ndcg_cut_10",
    "nDCG@100": "ndcg_cut_100",
    "AP": "map",
    "AP@10": "map_cut_10",
    "RR": "recip_rank",
    "R@5": "recall_5",
    "R@100": "recall_100",
    "P@1": "P_1",
    "P@10": "P_10",
    "Success@1": "success_1",
    "Success@5": "success_5",
}
"""Ours -> trec_eval's name of it."""
OF_A_LEVEL = ("AP", "AP@10", "RR", "R@5", "R@100", "P@1", "P@10", "Success@1", "Success@5")
"""Measures that ask from which grade on a document is relevant."""


def random_runs(seed=0):
    """(scores, order before, qrels) of 5,000 runs, each a query of its own: few levels of score, so that most tie."""
    rng = np.random.default_rng(seed)
    scores, before, qrels = {}, {}, {}
    for i in range(RUNS):
        size, levels = int(rng.integers(1, 40)), int(rng.choice([1, 2, 3, 8]))
        scale = float(rng.choice([1.0, -3.5, 1e-8, 1e30]))
        docs = [f"{rng.choice(['d', 'D', '', 'x-'])}{n}" for n in rng.permutation(1000)[:size]]
        query = f"q{i}"
        scores[query] = dict(zip(docs, (rng.integers(0, levels, size) * scale).tolist(), strict=True))
        before[query] = tuple((doc, 0.0) for doc in rng.permutation(docs).tolist())
        judged = [doc for doc in docs if rng.random() < 0.5] + [f"elsewhere{n}" for n in range(rng.integers(0, 6))]
        grades = rng.integers(-1, 4, len(judged)).tolist()
        # A query with negative grades alone is more than trec_eval's Python survives.
        qrels[query] = {**dict(zip(judged, grades, strict=True)), "one": int(rng.integers(0, 2))}
    return scores, Run(before), qrels


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    """(our run, its file read by trec_eval's own reader, that of its first ten, judgements by ours, by trec_eval's)."""
    folder = tmp_path_factory.mktemp("parity")
    scores, before, qrels = random_runs()
    run = Run.from_scores(scores, before=before)
    write_run(run, folder / "run.trec")
    write_run(run.top(10), folder / "top.trec")
    write_qrels(qrels, folder / "qrels.txt")
    with (
        open(folder / "run.trec") as file,
        open(folder / "top.trec") as top,
        open(folder / "qrels.txt") as judged,
    ):
        read = pytrec_eval.parse_run(file), pytrec_eval.parse_run(top), pytrec_eval.parse_qrel(judged)
    return run, scores, read_run(folder / "run.trec"), *read, read_qrels(folder / "qrels.txt")


def trec_eval(run, qrels, names, level=1):
    wanted = {re.sub(r"_(\d+)$", r".\1", name) for name in names}
    return pytrec_eval.RelevanceEvaluator(qrels, wanted, relevance_level=level).evaluate(run)


def test_the_runs_are_full_of_ties_and_trec_eval_alone_would_break_them_otherwise(on_disk):
    run, scores, _, _, _, judged, _ = on_disk
    assert run.tie_rate() > 0.4
    strings = {q: {str(d): s for d, s in by_doc.items()} for q, by_doc in scores.items()}
    raw, ours = trec_eval(strings, judged, ["ndcg"]), evaluate(run, judged, ["nDCG"]).per_query["nDCG"]
    differ = sum(abs(raw[q]["ndcg"] - ours[q]) > 1e-9 for q in ours)
    assert differ > RUNS / 4, "else the comparisons below would prove nothing about ties"


def test_every_measure_is_trec_evals_of_the_written_run_to_the_last_bit(on_disk):
    run, _, again, written, _, judged, qrels = on_disk
    assert {q: [d for d, _ in r] for q, r in again.rankings.items()} == {q: list(run.doc_ids(q)) for q in run.rankings}
    assert qrels == judged
    expected = trec_eval(written, judged, MEASURES.values())
    for source in (run, again):
        found = evaluate(source, qrels, MEASURES)
        assert (found.n, found.missing) == (RUNS, 0)
        for ours, theirs in MEASURES.items():
            assert found.per_query[ours] == {q: values[theirs] for q, values in expected.items()}, ours
            assert found.mean[ours] == pytest.approx(np.mean([v[theirs] for v in expected.values()]), abs=1e-12)


@pytest.mark.parametrize("level", [2, 3])
def test_a_higher_lowest_grade_is_trec_evals_level(on_disk, level):
    run, _, _, written, _, judged, qrels = on_disk
    names = {f"{m.partition('@')[0]}(rel={level}){m[len(m.partition('@')[0]) :]}": MEASURES[m] for m in OF_A_LEVEL}
    found, expected = evaluate(run, qrels, names), trec_eval(written, judged, names.values(), level)
    for ours, theirs in names.items():
        assert found.per_query[ours] == {q: values[theirs] for q, values in expected.items()}, ours


def test_a_cut_reciprocal_rank_is_trec_evals_of_the_cut_run(on_disk):
    run, _, _, _, top, judged, qrels = on_disk
    expected = trec_eval(top, judged, ["recip_rank"])
    assert evaluate(run, qrels, ["RR@10"]).per_query["RR@10"] == {q: v["recip_rank"] for q, v in expected.items()}


def test_judged_is_trec_evals_precision_where_every_judged_document_is_relevant(on_disk):
    run, _, _, written, _, judged, qrels = on_disk
    anything = {q: dict.fromkeys(grades, 1) for q, grades in judged.items()}
    expected = trec_eval(written, anything, ["P_10"])
    found = evaluate(run, qrels, ["Judged@10"]).per_query["Judged@10"]
    for q, value in found.items():  # trec_eval counts the places of a short list that are not there as misses
        assert value == pytest.approx(expected[q]["P_10"] * 10 / min(10, len(run.rankings[q])), abs=1e-12)


# A scorer that says nothing


def pool(seed, queries=2_000, size=60):
    """(random order before, qrels) whose relevant documents have the ids that trec_eval ranks first among equals."""
    rng = np.random.default_rng(seed)
    docs = [f"d{n:02}" for n in range(size)]
    before, qrels = {}, {}
    for i in range(queries):
        grades = np.sort(rng.integers(0, 4, size) * (rng.random(size) < 0.2))
        qrels[f"q{i}"] = dict(zip(docs, grades.tolist(), strict=True))
        before[f"q{i}"] = tuple((doc, float(-r)) for r, doc in enumerate(rng.permutation(docs).tolist()))
    return Run(before), qrels


def chance(qrels, cutoff):
    """(expected nDCG, expected P) of a random order, query by query: mean gain times the sum of the discounts."""
    ndcg, precision = [], []
    for grades in (np.array(list(by_doc.values()), dtype=float) for by_doc in qrels.values()):
        discount = 1 / np.log2(np.arange(2, cutoff + 2))
        ideal = (np.sort(grades)[::-1][:cutoff] * discount).sum()
        ndcg.append(grades.mean() * discount.sum() / ideal if ideal else 0.0)
        precision.append((grades > 0).mean())
    return np.array(ndcg), np.array(precision)


def test_a_constant_scorer_has_the_figures_of_the_order_that_it_was_given(tmp_path):
    before, qrels = pool(1)
    constant = Run.from_scores({q: dict.fromkeys(before.doc_ids(q), 0.5) for q in before.rankings}, before=before)
    write_run(constant, tmp_path / "constant.trec")
    assert constant.tie_rate() == 1.0
    expected = evaluate(before, qrels, MEASURES).per_query
    for run in (constant, read_run(tmp_path / "constant.trec")):
        assert evaluate(run, qrels, MEASURES).per_query == expected


def test_a_constant_scorer_over_a_random_order_is_at_the_level_of_chance_and_not_above(tmp_path):
    before, qrels = pool(2)
    constant = Run.from_scores({q: dict.fromkeys(before.doc_ids(q), 0.5) for q in before.rankings}, before=before)
    found = evaluate(constant, qrels, ["nDCG@10", "P@10"]).per_query
    for measure, expected in zip(("nDCG@10", "P@10"), chance(qrels, 10), strict=True):
        gap = np.array(list(found[measure].values())) - expected
        error = gap.std(ddof=1) / math.sqrt(len(gap))
        assert abs(gap.mean()) < 4 * error < 0.02, measure
    raw = {q: dict.fromkeys(before.doc_ids(q), 0.5) for q in before.rankings}
    flattered = np.mean([v["ndcg_cut_10"] for v in trec_eval(raw, qrels, ["ndcg_cut_10"]).values()])
    assert flattered > 0.99, "handed the raw scores, trec_eval breaks these ties by id, which here are the answers"


@pytest.fixture(scope="module")
def constant_model(tiny_bert, tmp_path_factory):
    """Folder of a cross-encoder that gives every pair the same score: its head is as it is before it learns."""
    scorer, fresh = load_cross_encoder(str(tiny_bert), 64, precision="float32", device="cpu")
    assert fresh
    folder = tmp_path_factory.mktemp("constant") / "model"
    save_policy(ScorePolicy(scorer), folder)
    return folder


def test_a_constant_model_leaves_the_documents_in_the_order_in_which_they_came(constant_model):
    texts = ["never", "gives", "a reason", "to move", "anything"]
    ranked = Reranker.from_pretrained(constant_model, device="cpu", precision="float32").rank("why", texts)
    assert [hit.index for hit in ranked] == list(range(5)) and len({hit.score for hit in ranked}) == 1


def test_the_evaluator_of_sentence_transformers_judges_a_constant_scorer_on_no_order_at_all(constant_model):
    # Of one and the same constant scorer over one list, it says three things: its nDCG is the mean over all orders of
    # the tied documents, its MRR that of the reversed list, its MAP again another. None is the order a user would see.
    texts = [f"text {i}" for i in range(12)]
    sample = {"query": "q", "positive": texts[:3], "negative": texts[3:]}
    model = CrossEncoder(str(constant_model), device="cpu")
    theirs = CrossEncoderRerankingEvaluator([sample], write_csv=False)(model)
    qrels = {"q": {text.replace(" ", ""): int(i < 3) for i, text in enumerate(texts)}}
    shown = Run.from_scores(
        {"q": dict.fromkeys(qrels["q"], 0.0)}, before=Run({"q": tuple((d, 0.0) for d in qrels["q"])})
    )
    ours = evaluate(shown, qrels, ["nDCG@10", "RR@10", "AP"]).mean
    assert ours == {"nDCG@10": 1.0, "RR@10": 1.0, "AP": 1.0}, "the positives were given first, and stay there"
    assert theirs["mrr@10"] == pytest.approx(1 / 10), "the last of the three, in the reversed list"
    assert theirs["map"] == pytest.approx(3 / 12)
    assert theirs["ndcg@10"] == pytest.approx(chance(qrels, 10)[0][0])


def test_the_evaluator_of_sentence_transformers_has_no_grades_and_no_documents_that_were_not_found():
    # A perfect binary order can be a poor graded one: 1.00 there, .65 by trec_eval.
    grades = {"a": 1, "b": 1, "c": 1, "d": 3, "e": 3, "not found": 2}
    run = Run({"q": tuple((d, float(-i)) for i, d in enumerate("abcde"))})

    class Ordered:
        """Scores texts in the order of the run."""

        model_card_data = type("Card", (), {"set_evaluation_metrics": lambda *a, **k: None})()

        def predict(self, pairs, **settings):
            return np.array([-float("abcde".index(text)) for _, text in pairs])

    sample = {"query": "q", "positive": list("abcde"), "negative": []}
    theirs = CrossEncoderRerankingEvaluator([sample], write_csv=False)(Ordered())
    expected = trec_eval({"q": dict(run.rankings["q"])}, {"q": grades}, ["ndcg_cut_10"])["q"]["ndcg_cut_10"]
    assert theirs["ndcg@10"] == pytest.approx(1.0)
    assert evaluate(run, {"q": grades}, ["nDCG@10"]).mean["nDCG@10"] == pytest.approx(expected)
    assert expected == pytest.approx(0.6486, abs=1e-4)


# Known figures


@pytest.mark.parametrize(
    ("run", "judged", "published"),
    [
        ("dl19.firststage.bm25", "train", 0.5058),
        ("dl20.firststage.bm25", "test", 0.4796),
        ("dl19.teacher.rankvicuna-over-bm25", "train", 0.6682),
        ("dl20.teacher.rankvicuna-over-bm25", "test", 0.6549),
    ],
)
def test_published_figures_of_trec_dl_come_out_of_the_files(run, judged, published, tmp_path):
    folder = DATA / "trec-dl-19-20"
    if not folder.is_dir():
        pytest.skip("trec-dl-19-20 is not in the folder shared/data beside the checkout")
    found, qrels = read_run(folder / "runs" / f"{run}.trec"), read_qrels(folder / "qrels_full" / f"{judged}.tsv")
    assert evaluate(found, qrels, ["nDCG@10"]).mean["nDCG@10"] == pytest.approx(published, abs=5e-5)
    write_run(found, tmp_path / "again.trec")
    with open(tmp_path / "again.trec") as file:
        theirs = trec_eval(pytrec_eval.parse_run(file), qrels, ["ndcg_cut_10"])
    assert sum(v["ndcg_cut_10"] for v in theirs.values()) / len(qrels) == pytest.approx(published, abs=5e-5)
