"""Rewards: values as arithmetic, and the conventions that decide them."""

import math
import pickle
from types import SimpleNamespace

import pytest
import torch

from rerank.lists import batch_of
from rerank.rewards import (
    REWARDS,
    Factors,
    FunctionReward,
    RewardError,
    dcg,
    err,
    ndcg,
    precision,
    rbp,
    recall,
    reciprocal_rank,
    success,
    value_of,
)
from rerank.types import CandidateList

LOG3 = math.log2(3)


def worth(reward, grades, order=None, pool=None):
    """The reward of one ranking (first-stage order unless given) of one list with these grades."""
    ids = tuple(f"d{i}" for i in range(len(grades)))
    batch = batch_of([CandidateList("q", "text", ids, ids, {}, tuple(grades), tuple(pool or grades))])
    ranking = list(range(len(grades))) if order is None else order
    return reward(torch.tensor([[ranking]]), batch).item()


@pytest.mark.parametrize(
    ("reward", "grades", "expected"),
    [
        (ndcg(10), (1, 2), (1 + 2 / LOG3) / (2 + 1 / LOG3)),  # .8597, as trec_eval
        (ndcg(10, "exponential"), (1, 2), (1 + 3 / LOG3) / (3 + 1 / LOG3)),  # .7967, as gdeval
        (ndcg(1), (1, 2), 1 / 2),
        (ndcg(10), (0, -1, 3), (3 / 2) / 3),
        (dcg(10), (1, 2), 1 + 2 / LOG3),
        (dcg(1, "exponential"), (3, 2), 2**3 - 1),
        (reciprocal_rank(10), (0, 0, 1, 1), 1 / 3),
        (reciprocal_rank(2), (0, 0, 1, 1), 0),
        (reciprocal_rank(10, level=2), (1, 1, 2), 1 / 3),
        (success(2), (0, 1, 0), 1),
        (success(1), (0, 1, 0), 0),
        (recall(2), (1, 0, 1, 1), 1 / 3),
        (recall(2, level=2), (1, 2, 2), 1 / 2),
        (precision(3), (1, 0, 1, 1), 2 / 3),
        (precision(10), (1, 0, 1, 1), 3 / 10),  # by the cutoff, not by the length of the list
        (precision(None), (1, 0, 1, 1), 3 / 4),
        (rbp(None), (1, 0, 2), 0.2 * (1 + 0.8**2)),
        (rbp(2, persistence=0.5), (0, 1, 1), 0.5 * 0.5),
        (err(20), (4, 4), 15 / 16 + 1 / 16 * 15 / 16 / 2),
        (err(20, highest=1), (0, 1), 1 / 2 / 2),
        (err(20, highest=2), (7, 0), 3 / 4),  # a grade above the highest counts as the highest
    ],
)
def test_a_reward_is_its_arithmetic(reward, grades, expected):
    assert worth(reward, grades) == pytest.approx(expected, abs=1e-6)


def test_the_ranking_decides_which_grade_meets_which_discount():
    assert worth(ndcg(10), (0, 1, 2), [2, 1, 0]) == pytest.approx(1)
    assert worth(ndcg(10), (0, 1, 2), [1, 2, 0]) == pytest.approx((1 + 2 / LOG3) / (2 + 1 / LOG3))


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("grades", [(0, 0, 0), (-1, 0), (0,)])
def test_a_list_without_a_relevant_document_is_worth_nothing(name, grades):
    assert worth(REWARDS[name](), grades) == 0


def test_a_level_below_one_counts_no_unjudged_document_as_relevant():
    assert worth(reciprocal_rank(10, level=0), (0, 1)) == 1 / 2


def test_the_ideal_is_over_the_candidates_or_over_all_judged():
    grades, pool = (1, 0), (1, 0, 3)
    assert worth(ndcg(10), grades, pool=pool) == 1
    assert worth(ndcg(10, ideal="judged"), grades, pool=pool) == pytest.approx(1 / (3 + 1 / LOG3))
    assert worth(ndcg(1, ideal="judged"), grades, pool=pool) == pytest.approx(1 / 3)
    assert worth(recall(10), grades, pool=pool) == 1
    assert worth(recall(10, ideal="judged"), grades, pool=pool) == 1 / 2


def test_without_a_cutoff_the_ideal_counts_judged_documents_beyond_the_list():
    assert worth(ndcg(None, ideal="judged"), (2,), pool=(2, 2, 2)) == pytest.approx(1 / (1 + 1 / LOG3 + 1 / 2))


def test_a_candidate_pays_at_its_first_place_only():
    assert worth(dcg(10), (1, 3), [1, 1]) == pytest.approx(3)
    assert worth(recall(10), (1, 1, 0), [0, 0, 0]) == 1 / 2
    assert worth(dcg(10), (1, 3), [1, 0]) == pytest.approx(3 + 1 / LOG3)


def test_padding_is_worth_nothing_wherever_it_is_ranked():
    ids = ("a", "b")
    lists = [CandidateList("q", "", ids, ids, {}, (0, 1)), CandidateList("p", "", ("a",), ("a",), {}, (1,))]
    batch = batch_of(lists)
    rankings = torch.tensor([[[0, 1]], [[1, 0]]])  # the second list ranks its padding first
    assert reciprocal_rank(10)(rankings, batch)[:, 0].tolist() == [1 / 2, 1 / 2]
    careless = Factors(torch.ones(2, 2), torch.ones(2), None)
    assert value_of(rankings, careless, batch.mask)[:, 0].tolist() == [2, 1]


def test_rankings_shorter_than_the_cutoff_are_worth_what_they_hold():
    assert worth(ndcg(10), (2, 1, 0), [0]) == pytest.approx(2 / (2 + 1 / LOG3))


def test_many_rankings_of_many_lists_are_valued_at_once():
    lists = [CandidateList(q, "", ("a", "b"), ("a", "b"), {}, labels) for q, labels in (("p", (0, 1)), ("q", (1, 0)))]
    values = reciprocal_rank(10)(torch.tensor([[[0, 1], [1, 0], [0, 1]]] * 2), batch_of(lists))
    assert values.tolist() == [[1 / 2, 1, 1 / 2], [1, 1 / 2, 1]]


def test_lists_need_labels_mask_and_pool_and_nothing_of_ours():
    lists = SimpleNamespace(labels=torch.tensor([[0.0, 1.0]]), mask=torch.ones(1, 2).bool(), pool=torch.ones(1, 1))
    assert success(1)(torch.tensor([[[1, 0], [0, 1]]]), lists).tolist() == [[1, 0]]


@pytest.mark.parametrize(
    ("reward", "name"), [(ndcg(10), "nDCG@10"), (reciprocal_rank(5), "RR@5"), (rbp(None), "RBP"), (recall(20), "R@20")]
)
def test_a_reward_is_named_as_its_measure(reward, name):
    assert reward.name == name


@pytest.mark.parametrize("name", REWARDS)
def test_a_measure_can_be_sent_to_another_process(name):
    reward = REWARDS[name](5)
    sent = pickle.loads(pickle.dumps(reward))
    assert worth(sent, (0, 2, 1)) == worth(reward, (0, 2, 1)) and sent.name == reward.name


# ----------------------------------------------------------------------------------------------------------- functions
def seen_by(cutoff, order, n=4):
    seen = []
    reward = FunctionReward(lambda doc_ids, candidates: seen.append((doc_ids, candidates.query_id)) or 0.5, "f", cutoff)
    assert worth(reward, (0,) * n, order) == 0.5
    return seen


def test_a_function_sees_the_ranked_ids_above_the_cutoff_and_the_list():
    assert seen_by(None, [3, 1, 0, 2]) == [(("d3", "d1", "d0", "d2"), "q")]
    assert seen_by(2, [3, 1, 0, 2]) == [(("d3", "d1"), "q")]
    assert seen_by(10, [1, 0], n=2) == [(("d1", "d0"), "q")]


def test_a_function_sees_a_repeated_candidate_once():
    assert seen_by(None, [1, 1, 0, 1]) == [(("d1", "d0"), "q")]


def test_a_function_does_not_see_padding():
    lists = [CandidateList(q, "", ids, ids) for q, ids in (("p", ("a", "b", "c")), ("q", ("a",)))]
    lengths = FunctionReward(lambda doc_ids, candidates: float(len(doc_ids)))
    rankings = torch.tensor([[[2, 1, 0]], [[0, 1, 2]]])
    assert lengths(rankings, batch_of(lists)).tolist() == [[3], [1]]


@pytest.mark.parametrize("value", [True, 1, 0.25, torch.tensor(0.25)])
def test_a_function_may_return_anything_that_is_a_number(value):
    assert worth(FunctionReward(lambda *_: value), (0, 1)) == float(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "high", [1.0], 10**400, 1e39, torch.zeros(2)])
def test_a_function_that_returns_no_finite_number_is_named_with_the_query(value):
    with pytest.raises(
        RewardError, match=r"the reward 'mine' returned .* for query 'q'; it must return a finite number"
    ):
        worth(FunctionReward(lambda *_: value, "mine"), (0, 1))


def test_a_function_that_raises_or_takes_other_arguments_is_named_with_the_query_and_the_cause():
    with pytest.raises(RewardError, match=r"the reward 'mine' raised KeyError: 'gone' for query 'q'") as told:
        worth(FunctionReward(lambda *_: {}["gone"], "mine"), (0, 1))
    assert isinstance(told.value.__cause__, KeyError)
    with pytest.raises(RewardError, match=r"raised TypeError: .* it is called as function\(doc_ids, candidates\)"):
        worth(FunctionReward(lambda text: 1.0, "mine"), (0, 1))
