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
    Measure,
    Table,
    bootstrap_interval,
    bootstrap_intervals,
    changes_from_json,
    changes_json,
    compare,
    effect_size,
    evaluate,
    holm,
    largest_changes,
    paired_t,
    parse_measure,
)
from rerank.evaluation.tables import Comparison, decimal, p_value, sentence, signed
from rerank.types import Collection, Run

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


def test_the_largest_changes_show_both_rankings_with_grades_and_movement():
    qrels = {"up": {"x": 1}, "down": {"x": 1}, "same": {"x": 1}, "slightly": {"x": 1}}
    first, second, third = (("x", 3.0), ("y", 2.0), ("z", 1.0)), (("y", 3.0), ("x", 2.0)), (("y", 3.0), ("z", 2.0))
    before = Run({"up": third, "down": first, "same": first, "slightly": second}, "before")
    after = Run({"up": first, "down": second, "same": first, "slightly": first}, "after")
    collection = Collection({"x": "t" * 900, "y": "short", "z": ""}, {q: f"query {q}" for q in qrels}, qrels)
    changes = largest_changes(before, after, qrels, collection, measure="rr", n=5, shown=2)
    assert [(c.query_id, c.difference) for c in changes] == [("up", 1), ("slightly", 1 / 2), ("down", -1 / 2)]
    up = changes[0]
    assert up.query == "query up" and (up.value_before, up.value_after, up.measure) == (0, 1, "RR")
    assert [(p.rank, p.doc_id, p.grade, p.other_rank) for p in up.after] == [(1, "x", 1, None), (2, "y", None, 1)]
    assert len(up.after[0].text) == 400 and up.after[0].text.endswith("…") and up.after[1].text == "short"
    assert [c.query_id for c in largest_changes(before, after, qrels, collection, "RR", n=1)] == ["up", "down"]
    assert changes_from_json(json.loads(json.dumps(changes_json(changes, "before", "after")))) == changes


def test_texts_that_the_collection_lacks_are_counted_aloud(caplog):
    qrels = {"q": {"x": 1}}
    before, after = Run({"q": (("y", 1.0), ("x", 0.0))}), Run({"q": (("x", 1.0), ("y", 0.0))})
    with caplog.at_level(logging.WARNING):
        [change] = largest_changes(before, after, qrels, Collection({"x": "text"}, {}))
    assert change.query == "" and change.after[1].text == ""
    assert "1 documents and 1 queries" in caplog.text


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
