"""Several sets in one table: against scipy and arithmetic by hand, by simulation, and as it is written for readers."""

import csv
import io
import json
import logging
import math
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank.errors import InputError, Mismatch
from rerank.evaluation.across import Across, Speed, across
from rerank.evaluation.comparison import Comparison
from rerank.evaluation.grid import MEAN, grid
from rerank.evaluation.latex import escaped
from rerank.evaluation.over_sets import weights_of
from rerank.evaluation.probes import Drop
from rerank.evaluation.significance import (
    bootstrap_intervals,
    crossed_t,
    holm,
    signed_rank,
    stratified_intervals,
    stratified_t,
)
from rerank.evaluation.tables import compare
from rerank.evaluation.wording import conclusion
from rerank.types import Run

FIRST, LIGHT, BIG = "bm25", "light on bm25", "big on bm25"
PAIRS = [(LIGHT, FIRST), (BIG, FIRST), (BIG, LIGHT)]
MEASURES = ["nDCG@10", "RR@10", "Judged@10"]


def table_of(name, gains, queries=30, measures=MEASURES, pairs=PAIRS, seeds=1):
    """A table over random lists in which an arm's scores follow the judgements by its gain."""
    rng = np.random.default_rng(list(name.encode()))
    grades = {f"{name}{i}": {f"d{j}": int(rng.random() < 0.3 or j == 0) for j in range(12)} for i in range(queries)}

    def run(arm, gain):
        scores = {q: {d: rng.normal() + gain * g for d, g in docs.items()} for q, docs in grades.items()}
        return Run.from_scores(scores, arm)

    runs = {arm: [run(arm, gain) for _ in range(seeds)] for arm, gain in gains.items()}
    tested = [(a, b) for a, b in pairs if a in gains and b in gains]
    return compare(runs, grades, measures, tested)


@pytest.fixture(scope="module")
def tables():
    return {
        "scifact": table_of("scifact", {FIRST: 0, LIGHT: 1, BIG: 1.2}),
        "forum-a": table_of("forum-a", {FIRST: 0, LIGHT: 0.8, BIG: 1}),
        "forum-b": table_of("forum-b", {FIRST: 0, LIGHT: -1.5, BIG: 1}, queries=50),
        "arguana": table_of("arguana", {FIRST: 0, LIGHT: 1.5, BIG: 1}, queries=40),
    }


GROUPS = {"forum-a": "forum", "forum-b": "forum"}


@pytest.fixture(scope="module")
def results(tables):
    return across("local", tables, groups=GROUPS)


# The tests of significance.


def test_the_stratified_test_of_one_set_is_the_paired_t_test():
    from scipy.stats import ttest_rel

    rng = np.random.default_rng(0)
    a, b = rng.normal(0.3, 1, 25), rng.normal(0, 1, 25)
    assert stratified_t([a - b], [1.0]) == pytest.approx(ttest_rel(a, b).pvalue, rel=1e-12)


def test_the_stratified_test_of_two_sets_is_welchs_test_of_one_against_the_other_turned_round():
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(1)
    first, second = rng.normal(0.4, 1, 12), rng.normal(0.2, 3, 30)
    # mean(x) + mean(y) = mean(x) - mean(-y): its variance and its degrees of freedom are Welch's.
    expected = ttest_ind(first, -second, equal_var=False).pvalue
    assert stratified_t([first, second], [0.5, 0.5]) == pytest.approx(expected, rel=1e-12)


def test_the_stratified_test_of_one_set_with_seeds_is_the_crossed_test():
    table = np.random.default_rng(2).normal(0.2, 1, (3, 20))
    assert stratified_t([table.mean(0)], [1.0], table.mean(1)) == pytest.approx(crossed_t(table), rel=1e-12)


def test_without_a_difference_p_is_uniform_and_with_one_the_test_finds_it():
    from scipy.stats import kstest

    rng = np.random.default_rng(3)
    sets, weights = ((15, 1.0), (40, 3.0), (60, 0.3)), (0.5, 0.25, 0.25)

    def p_values(difference, trials):
        return [stratified_t([rng.normal(difference, s, n) for n, s in sets], weights) for _ in range(trials)]

    p = np.array(p_values(0.0, 3000))
    assert kstest(p, "uniform").pvalue > 0.01
    # Three standard errors of a share of 5 % over 3,000 trials are 1.2 %.
    assert np.mean(p < 0.05) == pytest.approx(0.05, abs=0.012)
    assert np.mean(np.array(p_values(0.8, 200)) < 0.05) > 0.9


def test_sets_of_one_query_cannot_be_tested_and_sets_without_variance_can():
    assert math.isnan(stratified_t([[0.1, 0.2], [0.3]], [0.5, 0.5]))
    assert stratified_t([[0.0, 0.0], [0.0, 0.0]], [0.5, 0.5]) == 1
    assert stratified_t([[0.1, 0.1], [0.2, 0.2]], [0.5, 0.5]) == 0
    rows = [[0.1, 0.2, 0.4], [0.5, 0.5]]
    # The second set adds to the mean and nothing to the variance.
    assert stratified_t(rows, [0.5, 0.5]) < stratified_t(rows[:1], [0.5])


def test_stratified_intervals_are_those_of_one_set_and_shift_by_a_constant_one():
    values = np.random.default_rng(4).random((30, 2))
    one = stratified_intervals([values], [1.0])
    assert one == bootstrap_intervals(values)
    both = stratified_intervals([values, np.full((7, 2), 3.0)], [0.5, 0.5])
    for (low, high), (low_one, high_one) in zip(both, one, strict=True):
        assert (low, high) == pytest.approx((low_one / 2 + 1.5, high_one / 2 + 1.5))


def test_a_column_without_weight_in_a_set_does_not_see_it():
    rng = np.random.default_rng(5)
    first, second = rng.random((20, 2)), rng.random((10, 2))
    seen, unseen = stratified_intervals([first, second], [[0.5, 1.0], [0.5, 0.0]])
    assert unseen == bootstrap_intervals(first)[1]
    assert seen != bootstrap_intervals(first)[0]


def test_the_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(6)
    weights = [1 / 3] * 3
    covered = 0
    for i in range(200):
        sets = [rng.normal(mean, 1, (n, 1)) for mean, n in ((0.0, 40), (1.0, 60), (2.0, 80))]
        [(low, high)] = stratified_intervals(sets, weights, n=400, seed=i)
        covered += low <= 1 <= high
    # Three standard errors of 95 % over 200 trials are 4.6 %.
    assert covered / 200 == pytest.approx(0.95, abs=0.05)


def test_signed_ranks_are_scipys_and_six_of_one_sign_give_2_in_64():
    assert signed_rank([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) == pytest.approx(2 / 64)
    assert signed_rank([0.1, 0.2, 0.3, 0.4, 0.5]) == pytest.approx(2 / 32)
    assert signed_rank([0.0, 0.0]) == 1
    assert signed_rank([0.1, -0.2, 0.3, 0.0]) == signed_rank([0.1, -0.2, 0.3])


def test_rounding_is_no_sign_for_a_signed_rank_test():
    """0.1 + 0.2 - 0.3 is no set won."""
    assert signed_rank([0.1 + 0.2 - 0.3] * 6) == 1
    assert signed_rank([0.1, -0.2, 0.3, 0.25, 1e-16, -1e-10, 9e-10]) == signed_rank([0.1, -0.2, 0.3, 0.25])
    assert signed_rank([2e-9] * 6) == pytest.approx(2 / 64)


@pytest.mark.parametrize(
    "call",
    [
        lambda: stratified_t([], []),
        lambda: stratified_t([[1.0, 2.0]], [0.5, 0.5]),
        lambda: stratified_t([[1.0, math.nan]], [1.0]),
        lambda: signed_rank([math.nan]),
        lambda: stratified_intervals([[1.0]], [1.0]),
    ],
)
def test_what_cannot_be_tested_is_an_input_error(call):
    with pytest.raises(InputError):
        call()


# The table over sets.


def test_over_one_set_everything_is_as_in_its_own_table():
    table = table_of("one", {FIRST: 0, LIGHT: 0.7, BIG: 0.8})
    a = across("local", {"one": table})
    assert {arm: {m: c[:3] for m, c in cells.items()} for arm, cells in a.means.items()} == {
        arm: {m: pytest.approx(c[:3]) for m, c in cells.items()} for arm, cells in table.arms.items()
    }
    for own, over in zip(table.comparisons, a.comparisons, strict=True):
        assert (over.arm, over.against, over.measure) == (own.arm, own.against, own.measure)
        for value in ("difference", "low", "high", "p", "p_holm", "effect"):
            assert getattr(over, value) == pytest.approx(getattr(own, value), rel=1e-9, abs=1e-12), value


def test_a_mean_is_over_groups_of_their_sets_means(tables, results):
    own = {name: table.arms[LIGHT]["nDCG@10"].mean for name, table in tables.items()}
    expected = (own["scifact"] + own["arguana"] + (own["forum-a"] + own["forum-b"]) / 2) / 3
    assert results.means[LIGHT]["nDCG@10"].mean == pytest.approx(expected)
    c = results.between(LIGHT, FIRST)
    assert c.difference == pytest.approx(expected - results.means[FIRST]["nDCG@10"].mean)
    assert c.low < c.difference < c.high


def test_sets_are_won_level_or_lost_by_tests_corrected_over_all_sets_and_pairs(tables, results):
    for measure in ("nDCG@10", "RR@10"):
        own = [c for comparisons in results.by_set.values() for c in comparisons if c.measure == measure]
        assert len(own) == len(PAIRS) * len(tables)
        assert [c.p_holm for c in own] == holm([c.p for c in own])
    over = next(o for o in results.over_sets if (o.arm, o.against, o.measure) == (LIGHT, FIRST, "nDCG@10"))
    assert (over.won, over.level, over.lost) == (3, 0, 1)
    assert (over.sets, over.groups) == (tuple(tables), 3)
    c = results.between(LIGHT, FIRST)
    assert (c.wins, c.ties, c.losses) == (3, 0, 1)


def test_p_of_the_means_is_corrected_within_a_measure(results):
    for measure in results.measures:
        of_measure = [c for c in results.comparisons if c.measure == measure]
        assert [c.p_holm for c in of_measure] == holm([c.p for c in of_measure])


def test_the_order_of_the_sets_does_not_matter(tables, results):
    turned = across("local", dict(reversed(tables.items())), groups=GROUPS)
    for c in results.comparisons:
        other = turned.between(c.arm, c.against, c.measure)
        assert (other.difference, other.p) == pytest.approx((c.difference, c.p))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=1, max_size=12))
def test_weights_sum_to_1_and_groups_weigh_the_same(groups):
    given_groups = {f"s{i}": group for i, group in enumerate(groups)}
    weights = weights_of(list(given_groups), given_groups)
    assert math.fsum(weights.values()) == pytest.approx(1)
    by_group = {}
    for name, weight in weights.items():
        by_group.setdefault(given_groups[name] or name, []).append(weight)
    assert len({round(math.fsum(w), 12) for w in by_group.values()}) == 1
    assert all(len(set(w)) == 1 for w in by_group.values())


def test_a_group_that_bears_the_name_of_a_set_is_not_that_set():
    assert weights_of(["a", "b", "c"], {"b": "a", "c": "a"}) == {"a": 1 / 2, "b": 1 / 4, "c": 1 / 4}


def test_signed_ranks_come_with_six_groups(tables):
    six = {f"{name}-{i}": table for i in (1, 2) for name, table in list(tables.items())[:3]}
    a = across("six", six)
    own = [a.by_set[name][0].difference for name in six]
    assert a.over_sets[0].signed_rank == pytest.approx(signed_rank(own))
    five = across("five", dict(list(six.items())[:5]))
    assert all(math.isnan(over.signed_rank) for over in five.over_sets)
    grouped = across("six", six, groups=dict.fromkeys(list(six)[:2], "g"))
    assert all(math.isnan(over.signed_rank) for over in grouped.over_sets)


def test_signed_ranks_are_over_the_means_of_groups_and_corrected_within_a_measure(tables):
    eight = {f"{name}-{i}": table for i in (1, 2) for name, table in tables.items()}
    # Over the groups' first sets alone all would be won; the mean of this group is a loss.
    a = across("eight", eight, groups={"scifact-1": "g", "forum-b-1": "g", "forum-b-2": "g"})
    for measure in a.measures:
        of_measure = [o for o in a.over_sets if o.measure == measure]
        assert [o.signed_rank_holm for o in of_measure] == holm([o.signed_rank for o in of_measure])
        for o in of_measure:
            own = {name: a.tables[name].between(o.arm, o.against, measure).difference for name in eight}
            members = [own.pop("scifact-1"), own.pop("forum-b-1"), own.pop("forum-b-2")]
            assert o.signed_rank == pytest.approx(signed_rank([*own.values(), sum(members) / 3]))


def test_a_set_that_lacks_an_arm_is_left_out_of_all_means_and_that_is_said(tables, caplog):
    lacking = table_of("lacking", {FIRST: 0, LIGHT: 0.5})
    with caplog.at_level(logging.WARNING, "rerank.evaluation"):
        a = across("local", {**tables, "lacking": lacking})
    assert a.counted == tuple(tables) and a.missing() == {BIG: ("lacking",)}
    assert "4 of 5 sets: some arm is missing from lacking" in caplog.text
    without = across("local", tables)
    assert {arm: cells["nDCG@10"].mean for arm, cells in a.means.items()} == pytest.approx(
        {arm: cells["nDCG@10"].mean for arm, cells in without.means.items()}
    )
    sets = {(o.arm, o.against): len(o.sets) for o in a.over_sets if o.measure == "nDCG@10"}
    assert sets == {(LIGHT, FIRST): 5, (BIG, FIRST): 4, (BIG, LIGHT): 4}
    text = a.to_markdown()
    assert "the 4 of 5 sets that all arms with a mean have" in text and f"{BIG} is missing from lacking." in text
    assert any("over the 4 of 5 sets that have both" in s for s in a.verdict())


def test_an_arm_that_shares_no_set_with_the_others_has_no_mean(tables, caplog):
    alone = table_of("alone", {"recorded": 1}, pairs=[])
    with caplog.at_level(logging.WARNING, "rerank.evaluation"):
        a = across("local", {**tables, "alone": alone})
    assert list(a.means) == [FIRST, LIGHT, BIG] and a.counted == tuple(tables)
    assert "'recorded', of the fewest sets, has no mean" in caplog.text
    assert [row.values for row in grid(a, "nDCG@10") if row.label == "alone"] == [
        {"recorded": alone.arms["recorded"]["nDCG@10"].mean}
    ]
    assert a.to_latex().count(r"\begin{table}") == 4 and a.to_csv() and a.to_rich()


def test_pairs_that_the_sets_did_not_test_are_tested_here_and_alike(tables):
    untested = {name: replace(table, comparisons=[]) for name, table in tables.items()}
    assert across("local", untested).comparisons == ()
    a, b = across("local", untested, pairs=PAIRS), across("local", tables, pairs=PAIRS)
    for c, d in zip(a.comparisons, b.comparisons, strict=True):
        assert c == d
    assert a.between(FIRST, LIGHT).difference == -a.between(LIGHT, FIRST).difference


def test_seeds_count_as_drawn_too():
    table = table_of("seeds", {LIGHT: 0.8, BIG: 1}, pairs=[(BIG, LIGHT)], seeds=3)
    a = across("local", {"seeds": table})
    [own] = table.of(BIG)
    [over] = a.of(BIG)
    assert over.by_seed == pytest.approx(own.by_seed) and over.p == pytest.approx(own.p)
    two = across("local", {"seeds": table, "again": table})
    assert two.of(BIG)[0].by_seed == pytest.approx(own.by_seed)


def test_what_cannot_be_laid_side_by_side_is_refused(tables):
    table = tables["scifact"]
    with pytest.raises(InputError, match="'local' has no set with results"):
        across("local", {})
    with pytest.raises(Mismatch, match=r"different primary measures \(a: nDCG@10, b: RR@10\)"):
        across("local", {"a": table, "b": replace(table, measures=("RR@10", "nDCG@10"))})
    with pytest.raises(InputError, match=r"'a': its table has no values of single queries"):
        across("local", {"a": replace(table, per_query={})})
    with pytest.raises(InputError, match=r"ties: there is no table of a set 'scifacts'; did you mean 'scifact'\?"):
        across("local", {"scifact": table}, ties={"scifacts": {}})
    with pytest.raises(InputError, match=r"no arm 'lite on bm25' to compare; did you mean 'light on bm25'\?"):
        across("local", {"a": table}, pairs=[("lite on bm25", FIRST)])
    with pytest.raises(InputError, match="makes no sense or was given twice"):
        across("local", {"a": table}, pairs=[(LIGHT, FIRST), (LIGHT, FIRST)])
    with pytest.raises(InputError, match=r"was not tested against 'bm25' on RR@10"):
        across("local", {"a": table}, pairs=[(BIG, LIGHT)]).between(LIGHT, FIRST, "RR@10")
    with pytest.raises(InputError, match=r"not results written by Across.to_json"):
        Across.from_json({"suite": "x"})


# What is said of it, and how it is written.


def test_the_verdict_names_the_best_arm_each_difference_and_the_sets_that_say_otherwise(results):
    sentences = results.verdict()
    assert sentences[0].startswith("big on bm25 has the highest nDCG@10 over 4 sets: ")
    assert "measurably better than" in sentences[0]
    [light] = [s for s in sentences if s.startswith("light on bm25 ") and "bm25" in s]
    assert "; 3 sets won, 0 level, 1 lost)" in light
    assert any(s.startswith("on forum-b, light on bm25 is worse than bm25 by ") for s in sentences)
    assert not any(s.startswith("on scifact, light on bm25 is better than bm25") for s in sentences)


def test_sets_that_are_absent_are_counted_and_named_wherever_something_is_said(tables):
    why = "data/alpha#test:\n  <b>no</b> qrels & no R_1"
    a = across("local", tables, groups=GROUPS, absent={"alpha": why})
    told = "alpha is missing: data/alpha#test: <b>no</b> qrels & no R_1"
    assert a.verdict()[0].startswith("big on bm25 has the highest nDCG@10 over 4 of 5 sets: ")
    assert a.verdict()[1] == told
    assert any(" nDCG@10 over 4 of 5 sets (" in s for s in a.verdict())
    assert Across.from_json(json.loads(json.dumps(a.to_json()))).absent == {"alpha": why}
    markdown = a.to_markdown()
    assert "alpha is missing: data/alpha#test: &lt;b>no&lt;/b> qrels &amp; no R_1." in markdown
    assert "Means are over 4 of the 5 sets that were asked for, the sets of a group together as one" in markdown
    assert a.to_latex().count(escaped(told)) == len(a.measures)
    assert "Missing: alpha." in " ".join(shown(a, 120).split())
    assert "local,alpha" + "," * 13 in a.to_csv().splitlines()


def test_what_is_left_of_a_suite_is_not_said_to_be_all_of_it(tables):
    one = across("local", {"scifact": tables["scifact"]}, absent={"alpha": "gone", "beta": "gone"})
    assert one.verdict()[0].startswith("big on bm25 has the highest nDCG@10 on scifact alone, of 3 sets: ")
    lacking = table_of("lacking", {FIRST: 0, LIGHT: 0.5})
    some = across("local", {**tables, "lacking": lacking}, absent={"alpha": "gone"})
    assert "over the 4 of 6 sets that all have" in some.verdict()[0]
    assert any("over the 4 of 6 sets that have both" in s for s in some.verdict())
    assert "over the 4 of 6 sets that all arms with a mean have" in some.to_markdown()
    whole = across("local", tables)
    assert whole.absent == {} and " over 4 sets: " in whole.verdict()[0] and "over all 4 sets" in whole.to_markdown()
    with pytest.raises(InputError, match="absent: set 'scifact' has a table"):
        across("local", tables, absent={"scifact": "gone"})


def test_one_set_won_is_one_set(tables):
    a = across("local", {name: tables[name] for name in ("scifact", "forum-b")}, pairs=[(LIGHT, FIRST)])
    assert any("; 1 set won, 0 level, 1 lost" in s for s in a.verdict())


def test_of_arms_with_the_same_mean_none_is_said_to_have_the_highest_alone(tables):
    a = across("local", tables)
    best = a.means[BIG]["nDCG@10"]
    tied = replace(a, means={**a.means, LIGHT: {**a.means[LIGHT], "nDCG@10": best._replace(mean=best.mean + 1e-12)}})
    assert tied.verdict()[0].startswith("light on bm25 and big on bm25 have the highest nDCG@10 over 4 sets: ")


def test_the_best_arm_is_not_said_to_be_level_where_nothing_could_be_tested(tables):
    tiny = {name: table_of(name, {FIRST: 0, LIGHT: 3}, queries=1) for name in ("a", "b")}
    a = across("local", tiny)
    assert all(math.isnan(c.p_holm) for c in a.comparisons)
    assert "measurably" not in a.verdict()[0] and "not tested against" in a.verdict()[0]


def test_an_interval_beside_zero_of_a_level_control_is_said_to_be_uncorrected():
    base = {"measure": "nDCG@10", "difference": -0.01, "p": 0.03, "p_holm": 0.09, "wins": 1, "losses": 2, "ties": 0}
    c = Comparison("refined", "labels", low=-0.018, high=-0.002, effect=-0.2, **base)
    assert "95 % interval (uncorrected) −.018 to −.002" in str(conclusion("refined", [c], {"labels": 0.5}, 30))  # noqa: RUF001
    around = replace(c, high=0.002)
    assert "95 % interval −.018 to +.002" in str(conclusion("refined", [around], {"labels": 0.5}, 30))  # noqa: RUF001


def test_level_sets_of_a_measurable_mean_are_named():
    small = {
        "clear": table_of("clear", {FIRST: 0, BIG: 3}, queries=60),
        "faint": table_of("faint", {FIRST: 0, BIG: 0}, queries=10),
        "dim": table_of("dim", {FIRST: 0, BIG: 0}, queries=10),
    }
    assert "on faint and dim, big on bm25 and bm25 do not differ measurably" in across("local", small).verdict()


def test_a_set_of_one_query_is_said_to_make_the_mean_untestable(tables):
    a = across("local", {"scifact": tables["scifact"], "tiny": table_of("tiny", {FIRST: 0, LIGHT: 1}, queries=1)})
    [sentence] = [s for s in a.verdict() if "cannot be tested" in s]
    assert sentence.startswith("light on bm25 and bm25 cannot be tested: a set has one judged query alone; their diff")


@dataclass(frozen=True)
class Figure:
    arm: str
    measure: str
    value: float
    what: str
    source: str


@pytest.fixture(scope="module")
def full(tables):
    drop = Drop("shuffle", "nDCG@10", 0.5, 0.4, 0.1, 0.05, 0.15, 0.02, 30, 0.2, 3)
    none = Drop("typos", "nDCG@10", *[math.nan] * 6, queries=0, moved=math.nan)
    return across(
        "R&D_50%",
        tables,
        groups=GROUPS,
        ties={name: {FIRST: 0.25, LIGHT: 0.0, BIG: 0.0} for name in tables},
        speed={name: {LIGHT: Speed(30, 360, 1.8, 0.05, 0.1234)} for name in tables},
        published={"scifact": [Figure(FIRST, "ndcg@10", 0.679, "flat index", "a | b"), Figure("x", "AP", 0.1, "", "")]},
        probes={"scifact": {LIGHT: [drop, none], BIG: [drop]}},
    )


def test_json_is_strict_and_comes_back_whole(full):
    written = json.dumps(full.to_json(), allow_nan=False)
    again = Across.from_json(json.loads(written))
    assert json.dumps(again.to_json(), allow_nan=False) == written
    assert repr(again.means) == repr(full.means)  # not ==: the spread of a cell is NaN
    assert again.comparisons == full.comparisons and again.by_set == full.by_set
    assert again.speed == full.speed and again.ties == full.ties and again.counted == full.counted
    assert repr(again.over_sets) == repr(full.over_sets)
    assert again.to_markdown() == full.to_markdown() and again.verdict() == full.verdict()


def test_published_figures_stand_beside_ours_and_probes_are_corrected_over_each_probe(full, tables):
    known, unknown = full.published["scifact"]
    assert known["measured"] == tables["scifact"].arms[FIRST]["nDCG@10"].mean and unknown["measured"] is None
    shuffles = [full.probes["scifact"][arm][0] for arm in (LIGHT, BIG)]
    assert [d["p_holm"] for d in shuffles] == [0.04, 0.04]
    assert math.isnan(full.probes["scifact"][LIGHT][1]["p_holm"])


def markdown_cells(line):
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_markdown_tables_are_rectangular_bold_the_best_and_mark_what_differs(full):
    blocks = [b.splitlines() for b in full.to_markdown().split("\n\n") if b.startswith("| ")]
    assert len(blocks) == len(full.measures) + 4
    for block in blocks:
        assert len({len(markdown_cells(line)) for line in block}) == 1
    rows = {markdown_cells(line)[0]: markdown_cells(line)[2:] for line in blocks[0][2:]}
    assert list(rows) == ["scifact", "forum-a", "forum-b", "*forum (mean of 2)*", "arguana", "*mean over sets*"]
    for name, table in full.tables.items():
        for arm, shown in zip(full.arms, rows[name], strict=True):
            best = max(cells["nDCG@10"].mean for cells in table.arms.values())
            assert shown.startswith("**") == (table.arms[arm]["nDCG@10"].mean == best)
            against_first = [c for c in full.by_set[name] if (c.arm, c.against) == (arm, FIRST)]
            assert ("†" in shown) == any(c.measurable for c in against_first if c.measure == "nDCG@10")
    assert "**" not in "".join(blocks[2]), "more judged documents are no merit"
    assert "a \\| b" in full.to_markdown()
    assert full.to_markdown().startswith("# R&amp;D_50%\n") and "| < .001 |" in full.to_markdown()


def test_markdown_takes_no_html_from_names_and_sources(tables):
    figure = Figure(FIRST, "nDCG@10", 0.5, "<img src=x onerror=alert(1)>", "</td>&lt;b")
    text = across("<script>", tables, published={"scifact": [figure]}).to_markdown()
    assert not re.search(r"<[^ ]", text)
    assert "&lt;img src=x" in text and "&lt;/td>&amp;lt;b" in text and text.startswith("# &lt;script>")


def test_latex_escapes_what_comes_from_outside_and_its_rows_have_all_columns(full):
    text = full.to_latex()
    assert r"\caption{nDCG@10, R\&D\_50\%." in text and r"\label{tab:r-d-50-ndcg-10}" in text
    assert re.sub(r"\\[{}]", "", text).count("{") == re.sub(r"\\[{}]", "", text).count("}")
    for table in text.split(r"\begin{table}")[1:]:
        columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", table)[1]
        body = [line for line in table.splitlines() if line.endswith(r" \\")]
        assert body and all(len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1 for line in body)
    assert text.isascii(), "signs are commands"
    assert escaped("\\a~b^c {d} <e>") == (
        r"\textbackslash{}a\textasciitilde{}b\textasciicircum{}c \{d\} \textless{}e\textgreater{}"
    )


def test_one_group_or_one_set_has_no_second_line_of_means(tables):
    forums = {name: tables[name] for name in GROUPS}
    assert [row.label for row in grid(across("f", forums, groups=GROUPS), "nDCG@10")] == [*forums, MEAN]
    one = across("one", {"scifact": tables["scifact"]})
    assert [row.label for row in grid(one, "nDCG@10")] == ["scifact"] and MEAN not in one.to_csv()


def test_differences_in_what_was_judged_are_not_written_as_differences_of_arms(full):
    tables = full.to_markdown().split("## Differences over the sets")
    assert "| Judged@10 |" not in tables[1] and "## Judged@10" in tables[0]
    assert full.between(LIGHT, FIRST, "Judged@10").measure == "Judged@10"


def test_the_best_arm_is_not_said_to_beat_what_it_was_not_tested_against(tables):
    a = across("local", tables, pairs=[(LIGHT, FIRST)])
    assert a.best == BIG
    assert a.verdict()[0].endswith(f"(not tested against {FIRST} and {LIGHT})")


def test_csv_has_every_number_in_full(full, tables):
    rows = list(csv.DictReader(io.StringIO(full.to_csv())))
    assert list(rows[0]) == (
        "suite,set,arm,measure,mean,low,high,queries,p,p_holm,against,tie_rate,p50,p95,pairs_per_second".split(",")
    )
    for name, table in tables.items():
        for arm, cells in table.arms.items():
            found = [r for r in rows if (r["set"], r["arm"], r["measure"]) == (name, arm, "nDCG@10")]
            tested = [c.against for c in full.by_set[name] if (c.arm, c.measure) == (arm, "nDCG@10")]
            assert [r["against"] for r in found] == (tested or [""])
            assert {float(r["mean"]) for r in found} == {cells["nDCG@10"].mean}
            assert {r["tie_rate"] for r in found} == {"0.25" if arm == FIRST else "0.0"}
            assert {r["pairs_per_second"] for r in found} == {"200.0" if arm == LIGHT else ""}
    over = [r for r in rows if (r["set"], r["arm"], r["against"]) == (MEAN, BIG, LIGHT)]
    assert [float(r["p"]) for r in over] == [full.between(BIG, LIGHT, m).p for m in full.measures]


def shown(a, width=80):
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=width).print(a.to_rich(width))
    return out.getvalue()


def many(arms, sets):
    names = [FIRST, *(f"a-rather-long-model-{i} on bm25" for i in range(arms - 1))]
    gains = {name: i / arms for i, name in enumerate(names)}
    pairs = [(name, FIRST) for name in names[1:]]
    return across("m", {f"set-{i}": table_of(f"set-{i}", gains, 12, ["nDCG@10"], pairs) for i in range(sets)})


@pytest.mark.parametrize(("arms", "sets", "first"), [(3, 10, "set"), (10, 3, "arm"), (10, 12, "arm")])
def test_the_terminals_table_fits_80_columns_without_cutting_a_number(arms, sets, first):
    a = many(arms, sets)
    text = shown(a)
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    assert next(line.split()[0] for line in text.splitlines() if line.split()[:1] in (["set"], ["arm"])) == first
    for arm in a.arms:
        assert f"{a.means[arm]['nDCG@10'].mean:.3f}"[1:] in text


def test_names_with_markup_are_printed_as_they_are():
    table = table_of("m", {FIRST: 0, "[red]x[/] on bm25": 1}, pairs=[("[red]x[/] on bm25", FIRST)])
    assert "[red]x[/]" in shown(across("s", {"[bold]": table, "b": table}))
    assert "[bold]" in shown(across("s", {"[bold]": table, "b": table}))
