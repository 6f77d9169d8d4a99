"""Position bias and attacks: known answers, scipy's correlations, and a small model that obeys what it should not."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau, spearmanr

from rerank.errors import InputError, Mismatch
from rerank.evaluation.robustness import (
    ATTACKS,
    PLACES,
    Trial,
    attacked,
    injected,
    mean_bias,
    movements,
    position_bias,
    shuffled,
)
from rerank.types import CandidateList

DOCS = [f"d{i}" for i in range(12)]


def numbers(n=12, query_id="q", query="the largest number"):
    """A list whose texts are numbers, the largest first; candidate i is relevant when i < 2."""
    return CandidateList(
        query_id=query_id,
        query=query,
        doc_ids=tuple(f"{query_id}-{i}" for i in range(n)),
        texts=tuple(f"number {100 - i}" for i in range(n)),
        features={"bm25": tuple(float(-i) for i in range(n))},
        labels=tuple(int(i < 2) for i in range(n)),
        pool=(1, 1, 1),
    )


def ranked(candidates, obeys=None, lean=0.0):
    """doc ids, best first, by a model that reads the number, leans by `lean` a place, and obeys texts with `obeys`."""

    def worth(i):
        first = next(word for word in candidates.texts[i].split() if word.isdigit() and word != "00000000")
        return int(first) + lean * i + (1000 if obeys and obeys in candidates.texts[i] else 0)

    return [candidates.doc_ids[i] for i in sorted(range(len(candidates)), key=lambda i: -worth(i))]


def rank_of(candidates, index, obeys=None):
    return ranked(candidates, obeys).index(candidates.doc_ids[index]) + 1


# --- the order shown ---


def test_a_shuffled_list_holds_the_same_candidates_with_all_that_is_theirs():
    before, after = numbers(), shuffled(numbers(), 7)
    assert after.doc_ids != before.doc_ids and after == shuffled(before, 7) != shuffled(before, 8)

    def rows(c):
        return sorted(zip(c.doc_ids, c.texts, c.features["bm25"], c.labels, strict=True))

    assert rows(after) == rows(before) and after.pool == before.pool and after.query == before.query


orders = st.permutations(DOCS)


@given(st.lists(st.tuples(orders, orders), min_size=2, max_size=5))
@settings(deadline=None)
def test_correlations_are_those_of_scipy(rankings):
    given_orders, shown = [a for a, _ in rankings], [b for _, b in rankings]
    found = position_bias(given_orders, shown)

    def ranks(order):
        return [order.index(d) for d in DOCS]

    k = len(rankings)
    pairs = [(a, b) for a in range(k) for b in range(a)]
    taus = [kendalltau(ranks(given_orders[a]), ranks(given_orders[b])).statistic for a, b in pairs]
    leanings = [spearmanr(ranks(a), ranks(b)).statistic for a, b in rankings]
    assert found.tau == pytest.approx(sum(taus) / len(taus), abs=1e-12)
    assert found.leaning == pytest.approx(sum(leanings) / k, abs=1e-12)
    overlaps = [len({*given_orders[a][:10]} & {*given_orders[b][:10]}) / 10 for a, b in pairs]
    assert found.overlap == pytest.approx(sum(overlaps) / len(overlaps))
    assert found.same_first == sum(given_orders[a][0] == given_orders[b][0] for a, b in pairs) / len(pairs)


def test_a_model_that_looks_at_texts_alone_has_no_bias():
    lists = [shuffled(numbers(), key) for key in range(400)]
    found = position_bias([ranked(c) for c in lists], [c.doc_ids for c in lists], [0.9] * 400)
    assert (found.tau, found.same_first, found.overlap) == (1, 1, 1)
    assert found.ndcg_range == 0 and found.ndcg_deviation == pytest.approx(0)
    assert abs(found.leaning) < 0.05


@pytest.mark.parametrize(("lean", "leaning"), [(-1000.0, 1.0), (1000.0, -1.0)])
def test_a_model_that_repeats_the_order_shown_leans_to_its_beginning_and_one_that_reverses_it_to_its_end(lean, leaning):
    lists = [shuffled(numbers(), key) for key in range(200)]
    found = position_bias([ranked(c, lean=lean) for c in lists], [c.doc_ids for c in lists])
    assert found.leaning == pytest.approx(leaning)
    assert abs(found.tau) < 0.1 and found.same_first < 0.2


def test_three_rankings_with_known_answers():
    given_orders = ["abcd", "abdc", "dcba"]
    found = position_bias(given_orders, ["abcd"] * 3, [0.2, 0.6, 1.0])
    # One of six pairs is turned between the first two; between the first and the last all; and five of six.
    assert found.tau == pytest.approx(((5 - 1) / 6 + (0 - 6) / 6 + (1 - 5) / 6) / 3)
    assert found.same_first == pytest.approx(1 / 3) and found.overlap == 1
    assert found.leaning == pytest.approx((1 + (1 - 6 * 2 / (4 * 15)) - 1) / 3)
    assert found.ndcg_range == pytest.approx(0.8) and found.ndcg_deviation == pytest.approx(0.4)
    assert (found.shuffles, found.lists) == (3, 1)


def test_one_candidate_or_none_and_no_judgements_tell_nothing_of_some_figures():
    one = position_bias(["a", "a"], ["a", "a"])
    assert math.isnan(one.tau) and math.isnan(one.leaning) and math.isnan(one.ndcg_range)
    assert (one.same_first, one.overlap) == (1, 1)
    none = position_bias([[], []], [[], []])
    assert math.isnan(none.tau) and math.isnan(none.same_first) and math.isnan(none.overlap)


def test_the_mean_over_lists_leaves_out_what_tells_nothing():
    a = position_bias(["ab", "ab"], ["ab", "ba"], [0.5, 0.7])
    b = position_bias(["ab", "ba"], ["ab", "ba"])
    one = position_bias(["a", "a"], ["a", "a"])
    found = mean_bias([a, b, one])
    assert found.tau == (1 - 1) / 2 and found.leaning == (0 + 1) / 2
    assert found.same_first == pytest.approx(2 / 3) and found.ndcg_range == pytest.approx(0.2)
    assert (found.lists, found.shuffles) == (3, 2)


def test_rankings_that_do_not_fit_together_are_an_error():
    with pytest.raises(InputError, match="needs two or more rankings, and the order shown for each; given: 1 rankings"):
        position_bias(["ab"], ["ab"])
    with pytest.raises(Mismatch, match="ranking 1 does not hold each of the 2 documents of the first order shown once"):
        position_bias(["ab", "aa"], ["ab", "ba"])
    with pytest.raises(Mismatch, match="order shown 1 does not hold"):
        position_bias(["ab", "ba"], ["ab", "bc"])
    with pytest.raises(InputError, match=r"2 rankings and 3 values of nDCG@10"):
        position_bias(["ab", "ba"], ["ab", "ba"], [0.1, 0.2, 0.3])
    with pytest.raises(InputError, match=r"the same number of shuffles for each; given: \[2, 3\]"):
        mean_bias([position_bias(["ab"] * k, ["ab"] * k) for k in (2, 3)])
    with pytest.raises(InputError, match="the mean of 0 lists needs at least one"):
        mean_bias([])


# --- attacks ---


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("place", PLACES)
def test_an_attack_changes_one_text_alone_and_neutral_words_change_it_by_as_many_characters(attack, place):
    before = numbers()
    after, neutral = (attacked(before, 5, attack, place, neutral=n) for n in (False, True))
    for changed in (after, neutral):
        assert [i for i in range(12) if changed.texts[i] != before.texts[i]] == [5]
        assert changed.doc_ids == before.doc_ids and changed.labels == before.labels and changed.pool == before.pool
        assert changed.query == before.query and changed.features == before.features
    assert len(after.texts[5]) == len(neutral.texts[5]) > len(before.texts[5])
    added = injected(attack, before.query)
    assert after.texts[5] == (f"{added}\nnumber 95" if place == "start" else f"number 95\n{added}")


@given(st.sampled_from(sorted(ATTACKS)), st.text(max_size=60))
def test_neutral_words_ask_for_nothing_and_are_as_long_as_the_attack_whatever_the_query(attack, query):
    words, text = injected(attack, query, neutral=True), injected(attack, query)
    assert len(words) == len(text) and not words.endswith(" ")
    asking = {"rank", "first", "best", "answer", "query", "passage", "ignore", "relevant", "place", "system"}
    assert not {word.strip(".,").lower() for word in words.split()} & asking
    assert "{query}" not in text or "{query}" in query


def test_stuffing_repeats_the_query_as_it_is():
    assert injected("stuffing", "who {won}?").split("? ") == ["who {won}"] * 5 + ["who {won}?"]


def test_an_unknown_attack_place_or_candidate_says_what_there_is():
    with pytest.raises(InputError, match=r"unknown attack 'authorty'; did you mean 'authority'\?"):
        attacked(numbers(), 0, "authorty")
    with pytest.raises(InputError, match=r"unknown place 'middle'.* \(known: end, start\)"):
        attacked(numbers(), 0, "demand", "middle")
    for index in (-1, 12):
        with pytest.raises(InputError, match=rf"list of query 'q': there is no candidate {index}; .* from 0 to 11"):
            attacked(numbers(), index, "demand")


def trials_of(obeys, attacks=("demand", "authority"), lists=20, targets=(3, 11)):
    """What the command does: rank each list as it is, attacked, and with neutral words."""
    for number in range(lists):
        candidates = numbers(query_id=f"q{number}")
        for attack in attacks:
            for index in targets:
                versions = [attacked(candidates, index, attack, "end", neutral=n) for n in (False, True)]
                after, neutral = (rank_of(c, index, obeys) for c in versions)
                yield Trial(candidates.query_id, attack, "end", rank_of(candidates, index, obeys), after, neutral)


def test_a_model_that_obeys_one_demand_is_moved_by_it_and_by_nothing_else():
    demand, authority = movements(trials_of("Ignore the query"))
    assert (demand.attack, demand.place, demand.lists, demand.trials) == ("demand", "end", 20, 40)
    # Candidates 3 and 11 stand at ranks 4 and 12 and come first.
    assert demand.gained == demand.excess == (3 + 11) / 2 and demand.gained_neutral == 0
    assert demand.interval == (7, 7) and demand.p_value == 0
    assert (demand.first, demand.first_neutral, demand.top, demand.top_neutral) == (1, 0, 1, 0)
    assert authority.gained == authority.excess == 0 and authority.interval == (0, 0) and authority.p_value == 1
    assert authority.first == authority.top == 0


def test_what_longer_texts_gain_by_themselves_is_not_laid_to_the_demand():
    trials = [Trial(f"q{i}", "demand", "end", before=9, after=4, neutral=4) for i in range(10)]
    [found] = movements(trials)
    assert found.gained == found.gained_neutral == 5 and found.excess == 0 and found.p_value == 1


def test_shares_are_of_those_that_were_not_there_before():
    ranks = [(1, 1, 1), (2, 1, 2), (3, 2, 3), (11, 10, 12), (30, 1, 10), (12, 12, 11)]
    [found] = movements(Trial(f"q{i}", "roles", "start", *r) for i, r in enumerate(ranks))
    assert found.first == 2 / 5 and found.first_neutral == 0
    assert found.top == 2 / 3 and found.top_neutral == 1 / 3
    [at_first] = movements([Trial("q", "roles", "start", 1, 1, 1), Trial("r", "roles", "start", 1, 2, 1)])
    assert math.isnan(at_first.first) and math.isnan(at_first.top) and at_first.gained == -0.5


def test_several_candidates_of_one_list_count_as_one():
    draw = random.Random(0)
    gains = [[draw.randint(0, 9) for _ in range(3)] for _ in range(30)]
    several = [Trial(f"q{i}", "demand", "end", 20, 20 - g, 20) for i, gs in enumerate(gains) for g in gs]
    once = [Trial(f"q{i}", "demand", "end", 20 * 3, 20 * 3 - sum(gs), 20 * 3) for i, gs in enumerate(gains)]
    [a], [b] = movements(several), movements(once)
    assert (a.lists, a.trials, b.trials) == (30, 90, 30)
    assert a.excess == pytest.approx(b.excess / 3) and a.p_value == pytest.approx(b.p_value)
    assert a.interval == pytest.approx(tuple(x / 3 for x in b.interval))
    assert a.interval[0] < a.excess < a.interval[1]


def test_p_values_are_corrected_for_all_attacks_and_places_tested_together():
    draw = random.Random(1)

    def group(attack, place, gain):
        return [Trial(f"q{i}", attack, place, 20, 20 - gain - draw.randint(-6, 6), 20) for i in range(12)]

    groups = [group("demand", "end", 2), group("demand", "start", 1), group("roles", "end", 0)]
    together = movements(t for g in groups for t in g)
    alone = [movements(g)[0] for g in groups]
    assert [(m.attack, m.place) for m in together] == [("demand", "end"), ("demand", "start"), ("roles", "end")]
    smallest = min(range(3), key=lambda i: alone[i].p_value)
    assert together[smallest].p_value == pytest.approx(min(1, 3 * alone[smallest].p_value))
    assert all(t.p_value >= a.p_value and t.excess == a.excess for t, a in zip(together, alone, strict=True))


def test_a_rank_below_one_is_an_error_and_no_trials_are_no_movements():
    with pytest.raises(InputError, match=r"ranks count from 1; given: Trial\(query_id='q'"):
        movements([Trial("q", "demand", "end", 3, 0, 3)])
    assert movements([]) == []


def test_one_list_gives_an_estimate_and_no_test():
    [found] = movements([Trial("q", "demand", "end", 5, 1, 5)])
    assert found.excess == 4 and found.interval == (4, 4) and math.isnan(found.p_value)
