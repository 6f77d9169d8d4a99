"""Measures against pytrec_eval, tests against scipy and hand arithmetic, tables and what they say."""

import json
import logging
import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from rerank.errors import InputError, Mismatch
from rerank.evaluation import (
    Cell,
    Measure,
    Table,
    bootstrap_interval,
    bootstrap_intervals,
    compare,
    effect_size,
    evaluate,
    holm,
    paired_t,
    parse_measure,
)
from rerank.evaluation.significance import crossed_t
from rerank.evaluation.tables import Comparison
from rerank.evaluation.wording import decimal, p_value, sentence, signed
from rerank.types import Run

DATA = Path(__file__).parents[2] / "shared" / "data"

ORACLE = {
    "nDCG": "ndcg",
    "nDCG@10": "ndcg_cut_10",
    "nDCG@3": "ndcg_cut_3",
    "AP": "map",
    "AP@5": "map_cut_5",
    "RR": "recip_rank",
    "R@5": "recall_5",
    "P@5": "P_5",
    "Success@3": "success_3",
}


def random_case(seed):
    """Scores with many ties, grades from -1 to 3, judged documents outside the list, unjudged queries in the run."""
    rng = random.Random(seed)
    levels = rng.choice([1, 2, 5, 10**9])
    scores, qrels = {}, {}
    for q in range(rng.randint(1, 5)):
        pool = [f"d{i}" for i in rng.sample(range(60), rng.randint(2, 40))]
        listed = rng.sample(pool, rng.randint(1, len(pool)))
        scores[f"q{q}"] = {d: float(rng.randrange(levels)) for d in listed}
        qrels[f"q{q}"] = {d: rng.randint(-1, 3) for d in rng.sample(pool, rng.randint(1, len(pool)))}
        # pytrec_eval itself, our oracle, does not survive a query with negative grades alone.
        qrels[f"q{q}"][rng.choice(pool)] = rng.randint(0, 3)
    scores["unjudged"] = {"d1": 1.0}
    return Run.from_scores(scores), qrels


def oracle(run, qrels, rel=1):
    """pytrec_eval's own values of a run whose ties are already broken."""
    strict = {q: {d: float(-i) for i, (d, _) in enumerate(r)} for q, r in run.rankings.items()}
    wanted = {"ndcg", "ndcg_cut.3,10", "map", "map_cut.5", "recip_rank", "recall.5", "P.5", "success.3"}
    return pytrec_eval.RelevanceEvaluator(qrels, wanted, relevance_level=rel).evaluate(strict)


@pytest.mark.parametrize("block", range(10))
def test_every_measure_equals_trec_eval_on_random_runs_with_ties(block):
    for seed in range(block * 30, block * 30 + 30):
        run, qrels = random_case(seed)
        found, expected = evaluate(run, qrels, ORACLE), oracle(run, qrels)
        for name, trec_name in ORACLE.items():
            assert found.per_query[name] == {q: expected[q][trec_name] for q in qrels}, (seed, name)
            assert found.mean[name] == pytest.approx(sum(v[trec_name] for v in expected.values()) / len(qrels))


def test_a_higher_relevance_level_equals_trec_eval_with_that_level():
    names = {"AP(rel=2)": "map", "RR(rel=2)": "recip_rank", "R(rel=2)@5": "recall_5", "P(rel=2)@5": "P_5"}
    differ = 0
    for seed in range(60):
        run, qrels = random_case(seed)
        found, expected, plain = evaluate(run, qrels, names), oracle(run, qrels, rel=2), oracle(run, qrels)
        for name, trec_name in names.items():
            assert found.per_query[name] == {q: expected[q][trec_name] for q in qrels}
            differ += any(expected[q][trec_name] != plain[q][trec_name] for q in qrels)
    assert differ > 50, "the levels must matter for this test to mean something"


def test_reciprocal_rank_is_cut_and_judged_counts_what_somebody_judged():
    run = Run({"q": tuple((d, 0.0) for d in "abcd")})
    qrels = {"q": {"c": 1, "a": 0, "elsewhere": 2}}
    found = evaluate(run, qrels, ["RR@2", "RR@3", "RR", "Judged@2", "Judged@3", "Judged@10"]).mean
    assert found == {"RR@2": 0, "RR@3": 1 / 3, "RR": 1 / 3, "Judged@2": 1 / 2, "Judged@3": 2 / 3, "Judged@10": 2 / 4}


def test_ndcg_has_linear_gain_and_its_ideal_holds_judged_documents_outside_the_list():
    run = Run({"q": (("a", 2.0), ("b", 1.0))})
    found = evaluate(run, {"q": {"a": 1, "b": 3, "elsewhere": 2}}, ["nDCG@10"]).mean["nDCG@10"]
    assert found == pytest.approx((1 + 3 / math.log2(3)) / (3 + 2 / math.log2(3) + 1 / 2))


def test_a_constant_scorer_is_as_good_as_the_order_that_it_leaves_alone():
    docs = [f"d{i:02}" for i in range(50)]
    constant = {"q": dict.fromkeys(docs, 0.5)}
    # trec_eval breaks ties by descending id, which here puts the relevant documents first.
    qrels = {"q": {d: int(i >= 45) for i, d in enumerate(docs)}}
    flattered = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(constant)["q"]["ndcg_cut_10"]
    assert flattered == 1
    assert evaluate(Run.from_scores(constant), qrels, ["nDCG@10"]).mean["nDCG@10"] == 0
    first_stage = Run.from_scores({"q": {d: random.Random(d).random() for d in docs}})
    unchanged = Run.from_scores(constant, before=first_stage)
    assert evaluate(unchanged, qrels, ["AP"]).mean == evaluate(first_stage, qrels, ["AP"]).mean


def test_scores_that_float32_cannot_tell_apart_keep_their_order():
    run = Run.from_scores({"q": {"z": 1.0, "a": 1.0 + 1e-12}})
    assert evaluate(run, {"q": {"a": 1}}, ["RR"]).mean["RR"] == 1


def test_averages_are_over_judged_queries_and_what_is_missing_is_counted(caplog):
    run = Run({"answered": (("a", 1.0),), "unjudged": (("a", 1.0),), "empty": ()})
    qrels = {"answered": {"a": 1}, "absent": {"a": 1}, "empty": {"a": 1}, "hopeless": {"a": 0}, "nothing": {}}
    with caplog.at_level(logging.WARNING):
        found = evaluate(run, qrels, ["RR"])
    assert (found.n, found.missing, found.without_relevant) == (4, 3, 1)
    assert found.mean["RR"] == 1 / 4
    assert found.per_query["RR"] == {"answered": 1, "absent": 0, "empty": 0, "hopeless": 0}
    assert "3 of 4 judged queries" in caplog.text


def test_queries_with_negative_grades_alone_count_zero_and_do_no_harm():
    run = Run({f"q{i}": tuple((f"d{j}", -float(j)) for j in range(30)) for i in range(200)})
    found = evaluate(run, {q: {"d3": -1, "d5": -2, "outside": -1} for q in run.rankings}, ORACLE)
    assert set(found.mean.values()) == {0.0} and found.without_relevant == 200


@pytest.mark.parametrize(
    ("qrels", "rankings", "error", "words"),
    [
        ({}, {"q": (("a", 1.0),)}, InputError, "no judgements"),
        ({"q": {"a": 1.5}}, {"q": (("a", 1.0),)}, InputError, "not an integer"),
        ({"q": {"a": 1}}, {"q": (("a", 2.0), ("a", 1.0))}, InputError, "'a' twice"),
        ({"q": {"a": 1}}, {"q": (("a", math.nan),)}, InputError, "NaN"),
        ({"1": {"a": 1}}, {"q": (("a", 1.0),)}, Mismatch, "no query in common"),
    ],
)
def test_what_would_give_a_plausible_but_wrong_number_is_refused(qrels, rankings, error, words):
    with pytest.raises(error, match=words):
        evaluate(Run(rankings), qrels, ["nDCG@10"])


@pytest.mark.parametrize(
    ("given", "spelled"),
    [
        ("ndcg@10", "nDCG@10"),
        ("NDCG_CUT_10", "nDCG@10"),
        ("mrr@10", "RR@10"),
        ("recip_rank", "RR"),
        ("map", "AP"),
        ("map_cut_100", "AP@100"),
        ("AP@100", "AP@100"),
        ("recall@100", "R@100"),
        ("precision_5", "P@5"),
        ("success@5", "Success@5"),
        ("judged@10", "Judged@10"),
        ("ap( rel = 2 )", "AP(rel=2)"),
        ("r(REL=2)@100", "R(rel=2)@100"),
        ("P(rel=1)@5", "P@5"),
    ],
)
def test_a_measure_has_one_spelling(given, spelled):
    assert str(parse_measure(given)) == spelled
    assert parse_measure(spelled) == parse_measure(given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("nDGC@10", "did you mean 'nDCG@10'"),
        ("", "unknown measure"),
        ("R", r"write R@10"),
        ("P@0", "1 or more"),
        ("nDCG(rel=2)@10", "leave"),
        ("nDCG@ten", "unknown measure"),
    ],
)
def test_a_measure_that_is_not_known_is_refused_with_help(given, words):
    with pytest.raises(InputError, match=words):
        parse_measure(given)


@given(st.sampled_from(["nDCG", "RR", "AP"]), st.none() | st.integers(1, 1000), st.integers(1, 4))
def test_spelling_and_parsing_are_inverse(name, cutoff, rel):
    measure = Measure(name, cutoff, 1 if name == "nDCG" else rel)
    assert parse_measure(str(measure)) == measure


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=40))
def test_the_paired_t_test_equals_scipy(pairs):
    a, b = (np.array(side) for side in zip(*pairs, strict=True))
    if (a - b).std(ddof=1) < 1e-6:
        return
    assert paired_t(a, b) == pytest.approx(scipy.stats.ttest_rel(a, b).pvalue, rel=1e-9, abs=1e-12)


def test_the_paired_t_test_at_its_edges():
    assert paired_t([0.2, 0.4, 0.9], [0.2, 0.4, 0.9]) == 1
    assert paired_t([1.0, 1.0], [0.5, 0.5]) == 0
    assert math.isnan(paired_t([1.0], [0.0]))
    assert math.isnan(paired_t([], []))
    with pytest.raises(InputError, match="one value of each system"):
        paired_t([1.0, 2.0], [1.0])
    with pytest.raises(InputError, match="finite"):
        paired_t([1.0, math.nan], [1.0, 0.0])


def test_holm_is_the_arithmetic_of_the_paper():
    # Sorted: .005 * 4, .01 * 3, .03 * 2, .04 * 1; then each is at least as large as the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
    with_gap = holm([0.02, math.nan, 0.01])
    assert with_gap[0] == pytest.approx(0.02) and math.isnan(with_gap[1]) and with_gap[2] == pytest.approx(0.02)
    with pytest.raises(InputError, match="between 0 and 1"):
        holm([1.2])


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_never_lowers_a_p_value_and_lies_below_bonferroni(p_values):
    for p, adjusted in zip(p_values, holm(p_values), strict=True):
        assert p <= adjusted <= min(1.0, p * len(p_values)) or adjusted == pytest.approx(p)


def test_the_effect_size_is_mean_over_deviation_of_the_differences():
    assert effect_size([3.0, 5.0, 4.0], [1.0, 1.0, 1.0]) == pytest.approx(3 / 1)
    assert effect_size([1.0, 2.0], [1.0, 2.0]) == 0
    assert effect_size([1.0, 1.0], [2.0, 2.0]) == -math.inf
    assert math.isnan(effect_size([1.0], [0.0]))


def test_the_bootstrap_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(3)
    intervals = [bootstrap_interval(rng.normal(0.3, 1, 80), n=600, seed=i) for i in range(300)]
    covered = sum(low <= 0.3 <= high for low, high in intervals) / len(intervals)
    assert 0.90 <= covered <= 0.99


def test_the_bootstrap_interval_is_near_the_normal_one_and_repeatable():
    values = np.random.default_rng(0).normal(0, 1, 400)
    half = 1.96 * values.std(ddof=1) / 20
    assert bootstrap_interval(values) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)
    assert bootstrap_interval(values, seed=7) == bootstrap_interval(values, seed=7)
    assert bootstrap_interval(values, seed=7) != bootstrap_interval(values, seed=8)


def test_columns_resampled_together_equal_columns_resampled_alone():
    table = np.random.default_rng(1).random((30, 3))
    alone = [bootstrap_interval(column) for column in table.T]
    assert np.allclose(bootstrap_intervals(table), alone)


def test_the_bootstrap_at_its_edges():
    assert bootstrap_interval([0.25]) == (0.25, 0.25)
    assert all(map(math.isnan, bootstrap_interval([])))
    with pytest.raises(InputError, match="finite"):
        bootstrap_interval([1.0, math.inf])
    with pytest.raises(InputError, match="level"):
        bootstrap_interval([1.0], level=95)


def made_up_runs(n=60, seed=0):
    """Judgements and three arms: one clearly better, two that differ by luck alone."""
    rng = random.Random(seed)
    qrels = {f"q{i}": {f"d{j}": int(j < 3) for j in range(20)} for i in range(n)}

    def arm(noise, name):
        return Run.from_scores(
            {q: {d: grade + rng.gauss(0, noise) for d, grade in grades.items()} for q, grades in qrels.items()}, name
        )

    return {"clone": arm(1.2, "clone"), "labels": arm(1.2, "labels"), "refined": arm(0.5, "refined")}, qrels


PAIRS = [("refined", "clone"), ("labels", "clone"), ("clone", "refined")]


def test_the_table_holds_what_its_parts_say():
    runs, qrels = made_up_runs()
    table = compare(runs, qrels, ["ndcg@10", "mrr@10"], PAIRS, seconds={"clone": 3.5})
    assert table.measures == ("nDCG@10", "RR@10") and table.queries == 60 and table.best == "refined"
    assert table.seconds == {"clone": 3.5} and len(table.comparisons) == 6
    for m in table.measures:
        values = {arm: list(evaluate(run, qrels, [m]).per_query[m].values()) for arm, run in runs.items()}
        of_measure = [c for c in table.comparisons if c.measure == m]
        assert [c.p_holm for c in of_measure] == holm([paired_t(values[a], values[b]) for a, b in PAIRS])
        for c in of_measure:
            a, b = values[c.arm], values[c.against]
            assert c.difference == pytest.approx(table.arms[c.arm][m].mean - table.arms[c.against][m].mean)
            assert c.wins == sum(x > y for x, y in zip(a, b, strict=True)) and c.wins + c.losses + c.ties == 60
            assert (c.low, c.high) == pytest.approx(bootstrap_interval(np.array(a) - np.array(b)))
        for arm, by_measure in table.arms.items():
            assert by_measure[m].low < by_measure[m].mean < by_measure[m].high
            assert list(table.per_query[arm][m].values()) == values[arm]


def test_the_verdict_says_better_worse_or_neither():
    runs, qrels = made_up_runs()
    table = compare(runs, qrels, ["nDCG@10"], PAIRS)
    better, neither, worse = table.verdict()
    c = table.comparisons[0]
    assert better == (
        f"refined is better than clone by {decimal(c.difference)} nDCG@10 "
        f"(95 % interval {decimal(c.low)} to {decimal(c.high)}, p < .001 after Holm)"
    )
    assert neither.startswith("labels and clone do not differ measurably in nDCG@10 (")
    assert worse.startswith(f"clone is worse than refined by {decimal(c.difference)} nDCG@10 (95 % interval .")


def test_a_small_p_value_alone_is_no_gain():
    args = ("a", "b", "nDCG@10", 0.031)
    assert "is better than" in sentence(Comparison(*args, 0.012, 0.05, 0.001, 0.003, 9, 1, 0, 1.0), 10)
    assert "p = .003 after Holm" in sentence(Comparison(*args, 0.012, 0.05, 0.001, 0.003, 9, 1, 0, 1.0), 10)
    assert "do not differ" in sentence(Comparison(*args, -0.001, 0.05, 0.001, 0.003, 9, 1, 0, 1.0), 10)
    assert "do not differ" in sentence(Comparison(*args, 0.012, 0.05, 0.02, 0.06, 9, 1, 0, 1.0), 10)


def test_an_interval_without_0_that_the_correction_overrules_is_said_plainly():
    args = ("a", "b", "nDCG@10", 0.031, 0.012, 0.05)
    corrected = sentence(Comparison(*args, 0.02, 0.06, 9, 1, 0, 1.0), 10, 3)
    assert corrected == (
        "a and b do not differ measurably in nDCG@10 after correction for 3 comparisons "
        "(.031, 95 % interval (uncorrected) .012 to .050, p = .060 after Holm)"
    )
    assert "correction" not in sentence(Comparison(*args, 0.06, 0.06, 9, 1, 0, 1.0), 10, 1)
    assert "the test finds no difference" in sentence(Comparison(*args, 0.06, 0.18, 9, 1, 0, 1.0), 10, 3)


def test_identical_arms_do_not_differ_and_shuffled_ones_seldom_do():
    runs, qrels = made_up_runs()
    same = compare({"a": runs["clone"], "b": runs["clone"]}, qrels, ["nDCG@10"], [("a", "b")]).comparisons[0]
    assert (same.difference, same.p, same.ties, same.measurable) == (0, 1, 60, False)
    called = 0
    for seed in range(40):
        luck, judged = made_up_runs(n=40, seed=seed + 100)
        called += compare(luck, judged, ["nDCG@10"], [("labels", "clone")]).comparisons[0].measurable
    assert called <= 6, "5 % of 40 are 2"


def test_a_table_survives_its_json_form():
    runs, qrels = made_up_runs(n=9)
    table = compare(runs, qrels, ["nDCG@10", "AP"], PAIRS, seconds={"refined": 1.0})
    data = json.loads(json.dumps(table.to_json(), allow_nan=False))
    assert Table.from_json(data) == table
    cell = data["arms"]["refined"]["nDCG@10"]
    assert cell["against"] == "clone" and cell["p_holm"] == table.comparisons[0].p_holm
    assert cell["interval"] == [table.arms["refined"]["nDCG@10"].low, table.arms["refined"]["nDCG@10"].high]
    with pytest.raises(InputError, match="not a table"):
        Table.from_json({"measures": ["nDCG@10"]})


HITS = {"q1": {"x": 1}, "q2": {"x": 1}, "q3": {"x": 1}}


def placed(*ranks):
    """A run whose only relevant document stands at these ranks, query by query; its RR is their inverse."""
    order = {1: "xyz", 2: "yxz", 3: "yzx"}
    return Run({q: tuple((d, -float(i)) for i, d in enumerate(order[r])) for q, r in zip(HITS, ranks, strict=True)})


def test_an_arm_of_several_seeds_is_its_mean_query_by_query_with_its_spread():
    seeds = [placed(1, 1, 2), placed(1, 2, 3)]
    table = compare({"refined": seeds, "clone": placed(3, 2, 2)}, HITS, ["RR"], [("refined", "clone")])
    assert table.seeds == {"refined": 2, "clone": 1} and table.several_seeds
    assert table.per_query["refined"]["RR"] == pytest.approx(
        {"q1": (1 + 1) / 2, "q2": (1 + 1 / 2) / 2, "q3": (1 / 2 + 1 / 3) / 2}
    )
    first, second, clone = (1 + 1 + 1 / 2) / 3, (1 + 1 / 2 + 1 / 3) / 3, (1 / 3 + 1 / 2 + 1 / 2) / 3
    cell = table.arms["refined"]["RR"]
    assert cell.mean == pytest.approx((first + second) / 2)
    # Two values lie half their distance from their mean; with n - 1 = 1 the deviation is distance / sqrt(2).
    assert cell.spread == pytest.approx((first - second) / math.sqrt(2))
    assert math.isnan(table.arms["clone"]["RR"].spread)
    [c] = table.comparisons
    assert c.difference == pytest.approx((first + second) / 2 - clone)
    assert c.by_seed == pytest.approx((first - clone, second - clone)) and c.seeds_won == (2, 2)
    assert (c.wins, c.ties, c.losses) == (2, 0, 1), "q3: 5/12 lies below 1/2"
    assert c.effect == pytest.approx(effect_size([1, 3 / 4, 5 / 12], [1 / 3, 1 / 2, 1 / 2])), (
        "the effect is that of the seed means over queries"
    )


def test_seeds_of_two_arms_are_paired_in_their_order_and_the_first_ones_where_they_differ_in_number(caplog):
    a, b = [placed(1, 1, 1), placed(2, 2, 2), placed(1, 1, 3)], [placed(2, 2, 2), placed(1, 1, 1)]
    with caplog.at_level(logging.WARNING):
        [c] = compare({"a": a, "b": b}, HITS, ["RR"], [("a", "b")]).comparisons
    assert c.by_seed == pytest.approx((1 - 1 / 2, 1 / 2 - 1)) and c.seeds_won == (1, 2) and c.difference == 0
    assert "a has 3 seeds and b 2: their difference is that of the first 2 seeds" in caplog.text


def test_one_run_in_a_list_is_the_run_itself_and_equal_seeds_change_nothing():
    runs, qrels = made_up_runs(n=20)
    plain = compare(runs, qrels, ["nDCG@10"], PAIRS)
    assert compare({arm: [run] for arm, run in runs.items()}, qrels, ["nDCG@10"], PAIRS) == plain
    assert not plain.several_seeds and all(c.seeds_won is None for c in plain.comparisons)
    repeated = compare({arm: [run] * 3 for arm, run in runs.items()}, qrels, ["nDCG@10"], PAIRS)
    for c, same in zip(plain.comparisons, repeated.comparisons, strict=True):
        assert same.p == pytest.approx(c.p) and same.difference == pytest.approx(c.difference)
        assert same.seeds_won == ((3, 3) if c.difference > 0 else (0, 3))
    with pytest.raises(InputError, match="arm 'clone' has no run"):
        compare({"clone": []}, qrels, ["nDCG@10"], [])


def test_the_test_over_queries_and_seeds_is_the_arithmetic_of_min_f():
    table = np.array([[0.1, 0.3, 0.2, 0.4], [0.2, 0.5, 0.3, 0.2]])
    of_queries = table.mean(axis=0).var(ddof=1) / 4
    of_seeds = table.mean(axis=1).var(ddof=1) / 2
    f1, f2 = table.mean() ** 2 / of_queries, table.mean() ** 2 / of_seeds
    freedom = (f1 + f2) ** 2 / (f1**2 / 1 + f2**2 / 3)  # Clark (1973): each F with the other's degrees of freedom
    assert crossed_t(table) == pytest.approx(scipy.stats.f.sf(f1 * f2 / (f1 + f2), 1, freedom))


def test_the_test_over_queries_and_seeds_at_its_edges():
    one = [[0.2, 0.4, -0.1, 0.3]]
    assert crossed_t(one) == paired_t(one[0], [0.0] * 4)
    assert crossed_t(np.zeros((3, 4))) == 1 and crossed_t(np.full((2, 4), 0.5)) == 0
    assert math.isnan(crossed_t([[0.5], [0.4]]))
    with pytest.raises(InputError, match="seeds, queries"):
        crossed_t([0.1, 0.2])


def test_luck_of_training_seldom_passes_for_a_gain_where_a_test_over_queries_alone_often_takes_it_for_one():
    rng = np.random.default_rng(5)
    called = alone = 0
    for _ in range(400):
        # No true difference: each seed is a little better or worse everywhere, each query a little noisy.
        table = rng.normal(0, 0.03, (5, 1)) + rng.normal(0, 0.05, (1, 100)) + rng.normal(0, 0.05, (5, 100))
        called += crossed_t(table) < 0.05
        alone += paired_t(table.mean(axis=0), np.zeros(100)) < 0.05
    assert called <= 400 * 0.08 and alone > 400 * 0.3


def difference(*by_seed, low=0.012, high=0.05, p=0.001, p_holm=0.003, mean=0.031):
    return Comparison("a", "b", "nDCG@10", mean, low, high, p, p_holm, 9, 1, 0, 1.0, by_seed)


def test_better_is_said_only_where_every_seed_says_so():
    agreed = difference(0.02, 0.03, 0.043)
    assert agreed.measurable and agreed.seeds_won == (3, 3)
    assert sentence(agreed, 10) == (
        "a is better than b by .031 nDCG@10 in 3 of 3 seeds (95 % interval .012 to .050, p = .003 after Holm)"
    )
    for seeds in [(0.08, 0.04, -0.027), (0.06, 0.033, 0.0)]:
        split = difference(*seeds)
        assert not split.measurable and split.seeds_won == (2, 3)
        assert sentence(split, 10) == (
            "a and b do not differ measurably in nDCG@10: their seeds disagree about the direction "
            "(.031, 95 % interval (uncorrected) .012 to .050, p = .003 after Holm, a above in 2 of 3 seeds)"
        )
    weak = sentence(difference(0.02, 0.03, low=-0.01, p=0.2, p_holm=0.4), 10)
    assert "better" not in weak and weak.endswith("p = .400 after Holm, a above in 2 of 2 seeds)")
    assert "the test over queries and seeds finds no difference" in sentence(
        difference(0.02, 0.042, p=0.2, p_holm=1), 9
    )


def test_a_comparison_turned_round_says_the_same_of_the_other_arm():
    c = difference(0.02, 0.03, 0.043)
    back = c.reversed()
    assert back.reversed() == c and back.measurable and back.seeds_won == (0, 3)
    assert sentence(back, 10) == (
        "b is worse than a by .031 nDCG@10 in 3 of 3 seeds (95 % interval .012 to .050, p = .003 after Holm)"
    )
    split = difference(0.06, 0.033, 0.0)
    assert not split.measurable and not split.reversed().measurable, "a seed without a difference agrees with nobody"


@given(st.lists(st.floats(0.001, 1), min_size=2, max_size=6))
def test_seeds_of_one_direction_have_a_mean_above_its_standard_error(by_seed):
    error = np.std(by_seed, ddof=1) / math.sqrt(len(by_seed))
    assert difference(*by_seed, mean=float(np.mean(by_seed))).seeds_agree and np.mean(by_seed) > error - 1e-12


def controls_table(**margins):
    """A table in which refined differs from each control by (difference, measurable)."""
    mean = {"refined": 0.5, **{arm: 0.5 - d for arm, (d, _) in margins.items()}}
    return Table(
        measures=("nDCG@10",),
        arms={arm: {"nDCG@10": Cell(m, m - 0.1, m + 0.1)} for arm, m in mean.items()},
        comparisons=[
            Comparison("refined", arm, "nDCG@10", d, d - 0.01, d + 0.01, 0.0, 0.0 if clear else 0.4, 5, 4, 1, 0.3)
            for arm, (d, clear) in margins.items()
        ],
        queries=10,
    )


@pytest.mark.parametrize(
    ("margins", "said"),
    [
        ({"labels": (0.03, True)}, "refined is better than its control labels by .030 nDCG@10"),
        (
            {"labels": (0.03, True), "longer": (0.02, True)},
            "refined is better than each of its 2 controls; the nearest is longer by .020 nDCG@10",
        ),
        (
            {"labels": (0.03, True), "longer": (0.004, False), "other": (0.006, False)},
            "refined is level with longer, the best of its 3 controls; with other; better than labels "
            "(+.004 nDCG@10, 95 % interval −.006 to +.014, p = .400 after Holm)",  # noqa: RUF001
        ),
        (
            {"labels": (-0.004, False)},
            "refined is level with labels (−.004 nDCG@10, 95 % interval −.014 to +.006, p = .400 after Holm)",  # noqa: RUF001
        ),
        (
            {"labels": (-0.03, True), "longer": (0.0, False), "short": (-0.02, True), "poor": (0.1, True)},
            "refined is worse than labels by .030 nDCG@10 and short by .020; level with longer; better than poor",
        ),
        ({"labels": (0.03, True), "x": (math.nan, False)}, None),
    ],
)
def test_the_conclusion_names_what_refinement_beats_equals_and_loses_to(margins, said):
    table = controls_table(**margins)
    if said is None:
        table.comparisons[1] = Comparison("refined", "x", "nDCG@10", 0.1, 0.1, 0.1, *[math.nan] * 2, 1, 0, 0, math.nan)
        said = "refined cannot be tested against its controls on 10 judged query"
    assert table.conclusion("refined", list(margins)) == said


def test_a_conclusion_needs_controls_and_tests_but_not_their_direction():
    table = controls_table(labels=(0.03, True), longer=(0.02, True))
    assert table.conclusion("labels", ["refined"]) == "labels is worse than refined by .030 nDCG@10"
    with pytest.raises(InputError, match="no control"):
        table.conclusion("refined", [])
    with pytest.raises(InputError, match="no test of 'labels' against 'longer' on nDCG@10; give the pair"):
        table.conclusion("labels", ["longer"])
    with pytest.raises(InputError, match="did you mean 'labels'"):
        table.conclusion("refined", ["lables"])


def test_a_table_of_seeds_survives_its_json_form_and_one_of_an_older_version_is_read():
    runs, qrels = made_up_runs(n=12)
    other, _ = made_up_runs(n=12, seed=4)
    table = compare({arm: [runs[arm], other[arm]] for arm in runs}, qrels, ["nDCG@10"], PAIRS)
    data = json.loads(json.dumps(table.to_json(), allow_nan=False))
    assert Table.from_json(data) == table
    assert data["seeds"] == {"clone": 2, "labels": 2, "refined": 2}
    assert data["arms"]["refined"]["nDCG@10"]["spread"] == table.arms["refined"]["nDCG@10"].spread
    assert data["comparisons"][0]["seeds_won"] == list(table.comparisons[0].seeds_won)
    for cells in data["arms"].values():
        del cells["nDCG@10"]["spread"]
    for c in data["comparisons"]:
        del c["by_seed"], c["seeds_won"]
    old = Table.from_json({k: v for k, v in data.items() if k != "seeds"})
    assert old.seeds == {} and not old.several_seeds and old.comparisons[0].seeds_won is None
    assert math.isnan(old.arms["refined"]["nDCG@10"].spread) and old.per_query == table.per_query


def test_spread_effect_and_seeds_are_shown_where_there_are_any():
    from rich.console import Console

    runs, qrels = made_up_runs(n=12)
    other, _ = made_up_runs(n=12, seed=4)
    several = compare({arm: [runs[arm], other[arm]] for arm in runs}, qrels, ["nDCG@10"], PAIRS)
    spread = f"± {decimal(several.arms['refined']['nDCG@10'].spread)}"
    console = Console(width=100)
    with console.capture() as capture:
        console.print(several.to_rich())
    for shown in (capture.get(), several.to_markdown()):
        assert spread in shown
    assert "| seeds |" in several.to_markdown() and "| 2 of 2 |" in several.to_markdown()
    single = compare(runs, qrels, ["nDCG@10"], PAIRS).to_markdown()
    assert "±" not in single and "seeds" not in single
    assert "| d_z |" in single and f"| {decimal(several.comparisons[0].effect, 2)} |" in several.to_markdown()


def test_one_judged_query_is_no_evidence():
    runs, qrels = made_up_runs(n=1)
    table = compare(runs, qrels, ["nDCG@10"], [("refined", "clone")])
    assert "cannot be tested on 1 judged query" in table.verdict()[0]
    assert json.loads(json.dumps(table.to_json(), allow_nan=False))["comparisons"][0]["p"] is None
    assert math.isnan(Table.from_json(table.to_json()).comparisons[0].p)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"runs": {}}, "no run"),
        ({"against": [("refind", "clone")]}, "did you mean 'refined'"),
        ({"against": [("clone", "clone")]}, "makes no sense"),
        ({"against": [("refined", "clone")] * 2}, "given twice"),
        ({"seconds": {"other": 1.0}}, "no arm 'other'"),
        ({"measures": []}, "no measure"),
    ],
)
def test_a_comparison_that_cannot_be_made_is_refused(change, words):
    runs, qrels = made_up_runs(n=5)
    given_ = {"runs": runs, "qrels": qrels, "measures": ["nDCG@10"], "against": [("refined", "clone")], **change}
    with pytest.raises(InputError, match=words):
        compare(**given_)


def test_markdown_and_terminal_tables_show_every_arm_and_keep_hostile_names_harmless():
    from rich.console import Console

    runs, qrels = made_up_runs()
    runs = {"a|b": runs["clone"], "[bold]c": runs["refined"]}
    table = compare(runs, qrels, ["nDCG@10"], [("[bold]c", "a|b")])
    markdown = table.to_markdown()
    assert {line.replace(r"\|", "").count("|") for line in markdown.splitlines() if line.startswith("| a")} == {3}
    console = Console(width=100)
    with console.capture() as capture:
        console.print(table.to_rich())
    assert "[bold]c" in capture.get() and "a|b" in capture.get() and "< .001" in capture.get()


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_a_terminal_table_gives_up_measures_before_it_gives_up_its_test(width):
    from rich.console import Console

    runs, qrels = made_up_runs()
    runs = {"cross-encoder clone": runs["clone"], "cross-encoder refined alone": runs["refined"]}
    pair = [("cross-encoder refined alone", "cross-encoder clone")]
    measures = ["nDCG@10", "RR(rel=2)@10", "R@10", "AP"]
    table = compare(runs, qrels, measures, pair, {"cross-encoder clone": 12345.6})
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table.to_rich(width))
    shown = capture.get()
    assert "12345.6" in shown and "< .001" in shown and "seconds" in shown
    # What is not a column is named below the table.
    assert all(measure in shown.replace("\n", "") or measure.split("(")[0] in shown for measure in measures)
    assert ("no room here for" in shown) == (width < 100)
    assert all(len(line) <= width for line in shown.splitlines())


def test_numbers_are_printed_as_statistics_prints_them():
    assert [decimal(v) for v in (0.4312, -0.0117, 1.0, 0.0, -0.0001, math.nan)] == [
        ".431",
        "−.012",  # noqa: RUF001
        "1.000",
        ".000",
        ".000",
        "–",  # noqa: RUF001
    ]
    assert [signed(v) for v in (0.031, -0.031, 0.0)] == ["+.031", "−.031", ".000"]  # noqa: RUF001
    assert [p_value(v) for v in (0.0004, 0.031, 1.0)] == ["< .001", ".031", "1.000"]


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, rerank.evaluation; dir(rerank.evaluation)\n"
        "bad = {'pytrec_eval', 'matplotlib', 'torch', 'jinja2', 'rich', 'scipy', 'numpy'} & set(sys.modules)\n"
        "assert not bad, bad\n"
        "assert all(getattr(rerank.evaluation, name) for name in rerank.evaluation.__all__)\n"
        "assert not {'matplotlib', 'torch', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1], timeout=120)


@pytest.mark.skipif(
    not (DATA / "trec-dl-19-20").is_dir(), reason="the data set trec-dl-19-20 is not beside the checkout"
)
def test_trec_eval_agrees_on_runs_of_the_deep_learning_track():
    folder = DATA / "trec-dl-19-20"
    qrels: dict[str, dict[str, int]] = {}
    for line in (folder / "qrels" / "test.tsv").read_text().splitlines()[1:]:
        query_id, doc_id, grade = line.split("\t")
        qrels.setdefault(query_id, {})[doc_id] = int(grade)
    for path in sorted((folder / "runs").glob("dl20.*.trec")):
        scores: dict[str, dict[str, float]] = {}
        for line in path.read_text().splitlines():
            query_id, _, doc_id, _, score, _ = line.split()
            scores.setdefault(query_id, {})[doc_id] = float(score)
        common = {q: qrels[q] for q in qrels if q in scores}
        if not common:
            continue
        run = Run.from_scores(scores)
        expected = oracle(run, common)
        for name, trec_name in ORACLE.items():
            assert evaluate(run, common, [name]).per_query[name] == {q: expected[q][trec_name] for q in common}
