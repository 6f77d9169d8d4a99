"""What training did to a policy: each finding against enumeration, scipy or a case worked out by hand."""

import json
import math
from itertools import combinations, permutations
from pathlib import Path

import pytest
import torch
from scipy.stats import kendalltau, spearmanr

from rerank import plackett_luce
from rerank.data import candidate_lists, read_beir, read_run
from rerank.errors import InputError
from rerank.lists import batch_of, mask_of
from rerank.models.policy import FirstStageWeights, ScorePolicy
from rerank.objective.expected import FINE, expected_reward
from rerank.rewards import FunctionReward, ndcg
from rerank.testing import NumberScorer, toy_lists
from rerank.training.diagnosis import best_of, diagnose, kendall_tau, spearman_rho, weights_changed
from rerank.types import CandidateList, Ordering

DL = Path(__file__).parents[2] / "shared" / "data" / "trec-dl-19-20"


def listed(numbers, labels=None, name="q", lengths=None, **features):
    """A list whose texts name `numbers`, filled up with dots to `lengths`."""
    texts = [f"{number}" for number in numbers]
    texts = texts if lengths is None else [t + "." * (n - len(t)) for t, n in zip(texts, lengths, strict=True)]
    return CandidateList(
        query_id=name,
        query="query",
        doc_ids=tuple(f"d{number}" for number in numbers),
        texts=tuple(texts),
        features={name: tuple(values) for name, values in features.items()},
        labels=None if labels is None else tuple(labels),
        pool=tuple(labels or ()),
    )


def policy(weight=1.0):
    return ScorePolicy(NumberScorer(weight))


def first_is_d2(doc_ids, candidates):
    return float(doc_ids[0] == "d2")


# best@k


@pytest.mark.parametrize("k", [1, 2, 3, 6, 7])
def test_best_of_k_is_the_mean_of_the_largest_over_all_subsets(k):
    rewards = torch.tensor([[0.3, 0.9, 0.1, 0.3, 0.0, 0.7, 0.2], [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    found = best_of(rewards, k)
    for row, value in zip(rewards.tolist(), found.tolist(), strict=True):
        subsets = list(combinations(row, k))
        assert value == pytest.approx(sum(map(max, subsets)) / len(subsets), abs=1e-6)


def test_best_of_many_is_finite_and_exact_at_both_ends():
    rewards = torch.rand(3, 1024, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(best_of(rewards, 1), rewards.double().mean(-1))
    assert torch.allclose(best_of(rewards, 1024), rewards.double().amax(-1))
    # One success among 1024 is in a subset of half of them with chance one half.
    one = torch.zeros(1, 1024)
    one[0, 17] = 1.0
    assert float(best_of(one, 512)) == pytest.approx(0.5, rel=1e-9)


@pytest.mark.parametrize("k", [0, 4])
def test_the_best_of_more_than_there_are_or_of_none_is_refused(k):
    with pytest.raises(InputError, match=f"best of {k}"):
        best_of(torch.zeros(1, 3), k)


def test_the_curve_rises_from_the_expected_reward_in_powers_of_two():
    found = diagnose(policy(-0.02), toy_lists(8, 6), ndcg(3), samples=100)
    curve = found["best_at"]
    assert list(curve) == ["1", "2", "4", "8", "16", "32", "64"]
    values = list(curve.values())
    assert values == sorted(values)
    assert values[0] == pytest.approx(found["expected"], abs=0.03)
    assert len(diagnose(policy(), toy_lists(1), ndcg(3))["best_at"]) == 9, "1 to 256"


# the policy as a distribution


def test_greedy_and_expected_are_those_of_all_rankings():
    lists = toy_lists(6, 5, seed=2)
    found = diagnose(policy(-0.03), lists, ndcg(3), temperature=0.7, samples=2)
    batch = batch_of(lists)
    with torch.no_grad():
        scores = policy(-0.03).scores(lists)
    greedy = ndcg(3)(plackett_luce.best(scores, batch.mask)[:, None], batch)
    expected = expected_reward(scores.double() / 0.7, ndcg(3), batch, FINE)
    assert found["greedy"] == pytest.approx(float(greedy.mean()), abs=1e-6)
    assert found["expected"] == pytest.approx(float(expected.mean()), abs=1e-5)


def test_a_reward_without_a_known_expectation_is_estimated_from_the_draws():
    found = diagnose(policy(0.5), [listed([1, 2, 3])], FunctionReward(first_is_d2), samples=2000)
    weights = [math.exp(0.5 * n) for n in (1, 2, 3)]
    assert found["expected"] == pytest.approx(weights[1] / sum(weights), abs=0.04)
    assert found["greedy"] == 0.0


def test_entropy_by_rank_is_that_of_all_rankings_whatever_the_lengths_of_the_lists():
    lists = [listed([4, 1, 2, 3], name="a"), listed([1, 2], name="b")]
    found = diagnose(policy(0.8), lists, ndcg(3), cutoff=3, samples=4000)["entropy_by_rank"]
    by_list = [[0.0] * 3 for _ in lists]
    for one, c in zip(by_list, lists, strict=True):
        weights = {d: math.exp(0.8 * int(d[1:])) for d in c.doc_ids}
        for order in permutations(c.doc_ids):
            chance, left = 1.0, dict(weights)
            entropies = []
            for d in order:
                total = sum(left.values())
                entropies.append(-sum(w / total * math.log(w / total) for w in left.values()))
                chance *= left.pop(d) / total
            for rank, entropy in enumerate(entropies[:3]):
                one[rank] += chance * entropy
    # The list of two has a choice at rank 1 alone.
    expected = [(by_list[0][0] + by_list[1][0]) / 2, by_list[0][1], by_list[0][2]]
    assert found == pytest.approx(expected, abs=0.01)


def test_ranks_at_which_no_list_has_a_choice_have_no_entropy():
    assert len(diagnose(policy(), [listed([1, 2, 3])], ndcg(3), cutoff=10)["entropy_by_rank"]) == 2
    assert diagnose(policy(), [listed([1])], ndcg(3))["entropy_by_rank"] == []


def test_distinct_tops_are_sets_one_for_a_policy_without_doubt_and_all_for_one_that_knows_nothing():
    five = [listed([1, 2, 3, 4, 5], labels=[0, 0, 1, 0, 0])]
    assert diagnose(policy(0.0), five, ndcg(2), cutoff=2)["distinct_top"] == 10.0
    assert diagnose(policy(50.0), five, ndcg(2), cutoff=2)["distinct_top"] == 1.0
    short = [*five, listed([1, 2], labels=[0, 1], name="short")]
    assert diagnose(policy(0.0), short, ndcg(2), cutoff=2)["distinct_top"] == 5.5, "both of two: one set"


def test_a_top_larger_than_the_rewards_cutoff_is_looked_at_whole():
    five = [listed([1, 2, 3, 4, 5], labels=[0, 0, 1, 0, 0])]
    assert diagnose(policy(0.0), five, ndcg(1), cutoff=3)["distinct_top"] == 10.0


def test_kl_is_over_who_is_ranked_first_at_the_temperature_and_null_without_a_reference():
    lists = [listed([1, 2])]
    found = diagnose(policy(1.0), lists, ndcg(3), reference=policy(3.0), temperature=2.0, samples=2)
    p, q = 1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(-1.5))
    assert found["kl"] == pytest.approx(p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)), abs=1e-6)
    assert diagnose(policy(), lists, ndcg(3), reference=policy(), samples=2)["kl"] == pytest.approx(0.0, abs=1e-7)
    assert diagnose(policy(), lists, ndcg(3), samples=2)["kl"] is None


# agreement, correlations


def test_agreement_is_taus_mean_over_the_teachers_orderings_of_these_lists():
    lists = [listed([1, 2, 3, 4], name="a"), listed([1, 2, 3], name="b")]
    orderings = [
        Ordering("a", ("d4", "d3", "d2", "d1"), "t"),
        Ordering("a", ("d4", "d3", "d1", "d2"), "u"),  # one of six pairs the other way round
        Ordering("b", ("d1", "d3", "elsewhere"), "t"),  # one pair of candidates, the other way round
        Ordering("unknown", ("d1", "d2"), "t"),
    ]
    found = diagnose(policy(), lists, ndcg(3), orderings=orderings, samples=2)
    assert found["agreement"] == pytest.approx((1 + 4 / 6 - 1) / 3)
    assert diagnose(policy(), lists, ndcg(3), orderings=iter(orderings[:1]), samples=2)["agreement"] == 1.0
    assert diagnose(policy(), lists, ndcg(3), samples=2)["agreement"] is None


def test_orderings_of_other_queries_alone_are_counted_aloud(caplog):
    found = diagnose(policy(), [listed([1, 2])], ndcg(3), orderings=[Ordering("other", ("d1", "d2"), "t")], samples=2)
    assert found["agreement"] is None
    assert "none of the 1 queries with a teacher's ordering is among the 1 lists" in caplog.text


def test_label_agreement_is_scipys_tau_b_over_the_lists_that_have_two_grades():
    lists = [
        listed([1, 2, 3, 4], [0, 1, 0, 2], "a"),
        listed([1, 2, 3], [1, 1, 1], "constant"),
        listed([1, 2, 3], None, "unjudged"),
        listed([3, 1, 2], [2, 1, 0], "b"),
    ]
    wanted = [kendalltau([1, 2, 3, 4], [0, 1, 0, 2]).statistic, kendalltau([3, 1, 2], [2, 1, 0]).statistic]
    found = diagnose(policy(), lists, ndcg(3), samples=2)["label_agreement"]
    assert found == pytest.approx(sum(wanted) / 2)
    assert diagnose(policy(), lists[1:3], ndcg(3), samples=2)["label_agreement"] is None


def test_shortcuts_show_as_correlations_within_lists():
    lists = [
        listed([1, 2, 3, 4], name="a", lengths=[10, 20, 30, 40], bm25=(4.0, 3.0, 2.0, 1.0), dense=(1.0, 1.0, 1.0, 1.0)),
        # Twice as long throughout: between lists nothing is compared.
        listed([4, 3, 2, 1], name="b", lengths=[80, 60, 40, 20], bm25=(0.1, math.nan, 0.3, 0.2), dense=(0.0,) * 4),
    ]
    found = diagnose(policy(), lists, ndcg(3), samples=2)["correlations"]
    assert list(found) == ["length", "position", "bm25", "dense"]
    assert found["length"] == pytest.approx(1.0)
    assert found["position"] == pytest.approx((1 - 1) / 2)
    known = spearmanr([4, 2, 1], [0.1, 0.3, 0.2]).statistic
    assert found["bm25"] == pytest.approx((-1 + known) / 2)
    assert found["dense"] is None


def test_a_column_that_is_constant_or_has_one_row_correlates_with_nothing():
    assert spearman_rho([1, 2, 3], [5, 5, 5]) is None and kendall_tau([1], [2]) is None
    assert spearman_rho([1, 2, math.nan], [3, math.nan, 4]) is None, "one row is known of both"


def test_the_served_scores_are_diagnosed():
    lists = [listed([1, 2, 3, 4], [0, 0, 0, 1], bm25=(4.0, 3.0, 2.0, 1.0))]
    served = ScorePolicy(NumberScorer(0.0), FirstStageWeights({"bm25": 5.0}))
    found = diagnose(served, lists, ndcg(3), samples=2)
    assert found["correlations"]["bm25"] == pytest.approx(1.0) and found["correlations"]["position"] < -0.99
    assert found["greedy"] == 0.0


# weights


def test_the_share_of_changed_weights_by_tolerance():
    before = {"a": torch.zeros(4), "b": torch.zeros(2, 3), "count": torch.tensor(3)}
    after = {"a": torch.tensor([0.0, 5e-7, 2e-5, -0.5]), "b": torch.zeros(2, 3), "count": torch.tensor(4)}
    found = weights_changed(before, after)
    assert found == {
        "dtype": "float32",
        "tolerances": {"0": 0.3, "1e-8": 0.3, "1e-6": 0.2, "1e-5": 0.2, "1e-4": 0.1, "1e-3": 0.1},
    }


def test_a_step_that_bfloat16_cannot_hold_is_no_change_and_a_weight_that_became_nan_is_one():
    before = torch.ones(2, dtype=torch.bfloat16)
    found = weights_changed({"a": before}, {"a": before + torch.tensor([1e-3, math.nan], dtype=torch.bfloat16)})
    assert found["dtype"] == "bfloat16" and set(found["tolerances"].values()) == {0.5}


def test_several_dtypes_are_named_the_most_frequent_first_and_no_weights_are_no_change():
    mixed = {"a": torch.zeros(1), "b": torch.zeros(9, dtype=torch.bfloat16)}
    assert weights_changed(mixed, mixed)["dtype"] == "bfloat16, float32"
    assert weights_changed({}, {})["tolerances"]["0"] == 0.0


def test_weights_of_two_models_are_not_compared():
    with pytest.raises(InputError, match="'b' is in one of the two only"):
        weights_changed({"a": torch.zeros(1)}, {"a": torch.zeros(1), "b": torch.zeros(1)})
    with pytest.raises(InputError, match=r"'a' is \[1\] before and \[2\] after"):
        weights_changed({"a": torch.zeros(1)}, {"a": torch.zeros(2)})


# the whole


def test_findings_do_not_depend_on_the_order_of_the_lists_and_repeat_with_the_seed():
    lists = toy_lists(11, 6, seed=4)
    first = diagnose(policy(-0.02), lists, ndcg(3), seed=3, samples=100)
    again = diagnose(policy(-0.02), lists, ndcg(3), seed=3, samples=100)
    turned = diagnose(policy(-0.02), lists[::-1], ndcg(3), seed=3, samples=100)
    other = diagnose(policy(-0.02), lists, ndcg(3), seed=4, samples=100)
    assert first == again
    assert turned["best_at"] == pytest.approx(first["best_at"], abs=1e-6)
    assert turned["distinct_top"] == first["distinct_top"]
    assert turned["entropy_by_rank"] == pytest.approx(first["entropy_by_rank"], abs=1e-5)
    assert other["best_at"]["4"] != first["best_at"]["4"]


def test_the_findings_have_the_form_that_the_report_reads_and_are_json_without_nan():
    found = diagnose(policy(), [listed([1, 2]), listed([], name="empty")], ndcg(3), samples=4)
    json.dumps(found, allow_nan=False)
    assert list(found) == [
        "lists", "greedy", "expected", "entropy_by_rank", "best_at", "distinct_top", "kl", "agreement",
        "label_agreement", "correlations", "weights_changed",
    ]  # fmt: skip
    assert found["lists"] == 2


def test_a_fault_of_a_reward_is_an_input_error_that_names_it():
    reward = FunctionReward(lambda doc_ids, candidates: 1.0 if doc_ids[0] == "d2" else math.nan, "mine")
    with pytest.raises(InputError, match=r"reward mine: .* returned nan"):
        diagnose(policy(), [listed([1, 2])], reward, samples=64)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"cutoff": 0}, "cutoff and samples"), ({"samples": 0}, "cutoff and samples"), ({"temperature": 0}, "greater")],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        diagnose(policy(), toy_lists(), ndcg(3), **settings)
    with pytest.raises(InputError, match="at least one list"):
        diagnose(policy(), [], ndcg(3))


@pytest.mark.skipif(not DL.is_dir(), reason="the data set trec-dl-19-20 is not in the folder shared/data")
def test_bm25_on_trec_dl_is_diagnosed_as_the_policy_of_its_own_scores():
    run = read_run(DL / "runs" / "dl20.firststage.bm25.trec")
    lists = candidate_lists(read_beir(DL, "test"), run, {"bm25": run})[:8]
    own = ScorePolicy(NumberScorer(0.0), FirstStageWeights({"bm25": 4.0}))
    teacher = [Ordering(c.query_id, c.doc_ids, "first stage") for c in lists]
    found = diagnose(own, lists, ndcg(10), orderings=teacher)
    assert mask_of(lists).shape == (8, 100)
    assert found["agreement"] == pytest.approx(1.0) and found["correlations"]["position"] == pytest.approx(-1.0)
    assert 0 < found["label_agreement"] < 0.6
    assert len(found["entropy_by_rank"]) == 10
    assert found["best_at"]["256"] > found["best_at"]["1"] + 0.05
    assert found["best_at"]["1"] == pytest.approx(found["expected"], abs=0.01)
