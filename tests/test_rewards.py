"""Rewards: values as arithmetic, against trec_eval and scipy, and the conventions that decide them."""

import math
import operator
import pickle
import random
from itertools import permutations
from types import SimpleNamespace

import pytest
import pytrec_eval
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from rerank.lists import batch_of
from rerank.rewards import (
    REWARDS,
    Factors,
    FunctionReward,
    RewardError,
    alpha_ndcg,
    average_precision,
    dcg,
    err,
    headroom,
    kendall,
    minimum,
    mixture,
    ndcg,
    precision,
    r_precision,
    rbo,
    rbp,
    recall,
    reciprocal_rank,
    success,
    value_by_rank,
    value_of,
    vector,
    with_labels,
)
from rerank.types import CandidateList, Ordering

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
        (average_precision(), (1, 0, 1, 1), (1 + 2 / 3 + 3 / 4) / 3),
        (average_precision(2), (1, 0, 1, 1), 1 / 3),  # by all relevant documents, not by those above the cutoff
        (average_precision(level=2), (1, 2, 0, 3), (1 / 2 + 2 / 4) / 2),
        (r_precision(), (1, 0, 1, 1, 0), 2 / 3),
        (r_precision(level=2), (1, 2, 3), 1 / 2),
        (r_precision(1), (1, 1, 0), 1 / 2),
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
    assert worth(average_precision(), grades, pool=pool) == 1
    assert worth(average_precision(ideal="judged"), grades, pool=pool) == 1 / 2
    assert worth(r_precision(), (0, 1), pool=(1, 1, 1)) == 0
    assert worth(r_precision(ideal="judged"), (0, 1), pool=(1, 1, 1)) == pytest.approx(1 / 3)


def test_without_a_cutoff_the_ideal_counts_judged_documents_beyond_the_list():
    assert worth(ndcg(None, ideal="judged"), (2,), pool=(2, 2, 2)) == pytest.approx(1 / (1 + 1 / LOG3 + 1 / 2))


def test_a_candidate_pays_at_its_first_place_only():
    assert worth(dcg(10), (1, 3), [1, 1]) == pytest.approx(3)
    assert worth(recall(10), (1, 1, 0), [0, 0, 0]) == 1 / 2
    assert worth(dcg(10), (1, 3), [1, 0]) == pytest.approx(3 + 1 / LOG3)
    assert worth(average_precision(), (1, 1, 0), [0, 0, 1]) == pytest.approx((1 + 2 / 3) / 2)


def test_padding_is_worth_nothing_wherever_it_is_ranked():
    ids = ("a", "b")
    lists = [CandidateList("q", "", ids, ids, {}, (0, 1)), CandidateList("p", "", ("a",), ("a",), {}, (1,))]
    batch = batch_of(lists)
    rankings = torch.tensor([[[0, 1]], [[1, 0]]])  # the second list ranks its padding first
    assert reciprocal_rank(10)(rankings, batch)[:, 0].tolist() == [1 / 2, 1 / 2]
    careless = Factors(torch.ones(2, 2), torch.ones(2), counted=torch.ones(2, 2))
    assert value_of(rankings, careless, batch.mask)[:, 0].tolist() == [1 + 2, 1]


def test_a_weight_may_differ_between_lists():
    mask = torch.ones(2, 2, dtype=torch.bool)
    factors = Factors(torch.tensor([[1.0, 2.0], [1.0, 2.0]]), torch.tensor([[1.0, 0.5], [0.0, 1.0]]))
    assert value_of(torch.tensor([[[1, 0]], [[1, 0]]]), factors, mask).tolist() == [[2 + 0.5], [1]]


def test_the_places_of_a_ranking_pay_what_the_ranking_is_worth():
    ids = ("a", "b", "c")
    batch = batch_of([CandidateList("q", "", ids, ids, {}, (1, 0, 1))])
    [term] = average_precision(2).terms(batch)
    pays = value_by_rank(torch.tensor([[[0, 2, 1], [1, 0, 2]]]), term, batch.mask)
    assert pays.tolist() == [[[1 / 2, 1 / 2], [0, 1 / 4]]]
    assert value_by_rank(torch.tensor([[[0]]]), term, batch.mask).tolist() == [[[1 / 2]]]


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


# ----------------------------------------------------------------------------------------------------------- trec_eval
@pytest.fixture(scope="module")
def judged():
    """(lists, one random ranking of each, qrels): unjudged and negative candidates, judged documents outside."""
    rng = random.Random(1)
    lists, rankings, qrels = [], [], {}
    for i in range(60):
        docs = [f"d{j}" for j in range(rng.randint(1, 20))]
        grades = {d: rng.choice([-1, 0, 0, 1, 2]) for d in docs if rng.random() < 0.8}
        grades |= {f"x{j}": rng.choice([0, 1, 2]) for j in range(rng.randint(0, 8))} | {"other": 0}
        labels = tuple(grades.get(d, 0) for d in docs)
        lists.append(CandidateList(f"q{i}", "", tuple(docs), tuple(docs), {}, labels, tuple(grades.values())))
        rankings.append([*rng.sample(range(len(docs)), len(docs)), *range(len(docs), 20)])
        qrels[f"q{i}"] = grades
    return lists, rankings, qrels


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize(
    ("make", "measure"),
    [
        (lambda **level: average_precision(ideal="judged", **level), "map"),
        (lambda **level: average_precision(5, ideal="judged", **level), "map_cut.5"),
        (lambda **level: average_precision(30, ideal="judged", **level), "map_cut.30"),
        (lambda **level: r_precision(ideal="judged", **level), "Rprec"),
        (lambda **level: recall(5, ideal="judged", **level), "recall.5"),
        (lambda **level: precision(10, **level), "P.10"),
        (lambda **level: reciprocal_rank(None, **level), "recip_rank"),
        (lambda **level: success(5, **level), "success.5"),
    ],
)
def test_a_measure_of_a_random_ranking_is_trec_evals(make, measure, level, judged):
    lists, rankings, qrels = judged
    values = make(level=level)(torch.tensor(rankings)[:, None], batch_of(lists))[:, 0].tolist()
    run = {
        c.query_id: {c.doc_ids[d]: -float(place) for place, d in enumerate(order[: len(c)])}
        for c, order in zip(lists, rankings, strict=True)
    }
    found = pytrec_eval.RelevanceEvaluator(qrels, {measure}, relevance_level=level).evaluate(run)
    assert values == pytest.approx([found[c.query_id][measure.replace(".", "_")] for c in lists], abs=1e-6)
    assert len(set(values)) > (1 if measure == "success.5" else 5)


# ----------------------------------------------------------------------------------------------------------- diversity
def alpha_dcg(ranked, covered, alpha, cutoff):
    """The sum of Clarke et al. (2008), document by document."""
    seen, total = {}, 0.0
    for place, d in enumerate(ranked[:cutoff]):
        total += sum((1 - alpha) ** seen.get(c, 0) for c in covered.get(d, ())) / math.log2(place + 2)
        for c in covered.get(d, ()):
            seen[c] = seen.get(c, 0) + 1
    return total


def greedily(doc_ids, covered, alpha):
    """Documents in ndeval's order: the largest gain each time, of equal ones the last id."""
    ranked = []
    while len(ranked) < len(doc_ids):
        left = sorted(set(doc_ids) - set(ranked), reverse=True)
        gains = [alpha_dcg([*ranked, d], covered, alpha, None) - alpha_dcg(ranked, covered, alpha, None) for d in left]
        ranked.append(left[max(range(len(left)), key=lambda i: round(gains[i], 9))])
    return ranked


def list_of(n, query_id="q", labels=None):
    ids = tuple(f"d{i}" for i in range(n))
    return CandidateList(query_id, "text", ids, ids, {}, labels or (0,) * n)


def test_alpha_ndcg_counts_a_second_document_on_a_subtopic_less():
    reward = alpha_ndcg({"q": {"d0": ["a"], "d1": ["a", "b"], "d2": ["b"]}}, cutoff=2)
    rankings = torch.tensor([[[1, 2, 0], [1, 0, 2], [0, 2, 1], [0, 1, 2]]])
    ideal = 2 + 0.5 / LOG3  # d1, then either
    worths = [ideal, ideal, 1 + 1 / LOG3, 1 + (1 + 0.5) / LOG3]
    assert reward(rankings, batch_of([list_of(3)]))[0].tolist() == pytest.approx([w / ideal for w in worths])


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("cutoff", [1, 3, 10])
def test_alpha_ndcg_of_every_ranking_is_its_definition(alpha, cutoff):
    rng = random.Random(0)
    lists = [list_of(n, f"q{n}") for n in (5, 4, 1, 3)]
    subtopics = {
        c.query_id: {d: rng.sample("abcd", rng.randint(0, 3)) for d in (*c.doc_ids, "x1", "x2")} for c in lists[:3]
    }
    for ideal in ("candidates", "judged"):
        reward = alpha_ndcg(subtopics, cutoff, alpha, ideal)
        for c in lists:
            covered = subtopics.get(c.query_id, {})
            pool = greedily(c.doc_ids if ideal == "candidates" else covered, covered, alpha)
            best = alpha_dcg(pool, covered, alpha, cutoff)
            orders = list(permutations(range(len(c))))
            true = [
                alpha_dcg([c.doc_ids[d] for d in order], covered, alpha, cutoff) / (best or 1.0) for order in orders
            ]
            others = [other for other in lists if other is not c]  # beside lists of other lengths
            rankings = torch.arange(5).repeat(4, len(orders), 1)
            rankings[0, :, : len(c)] = torch.tensor(orders)
            assert reward(rankings, batch_of([c, *others]))[0].tolist() == pytest.approx(true, abs=1e-5)


def test_the_ideal_takes_the_last_id_of_equal_documents_as_ndeval_does():
    reward = alpha_ndcg({"q": {"d0": ["a", "b"], "d1": ["a", "c"], "d2": ["b", "d"]}}, cutoff=2)
    values = reward(torch.tensor([[[2, 1, 0], [0, 1, 2]]]), batch_of([list_of(3)]))[0].tolist()
    assert values == pytest.approx([1, (2 + 1.5 / LOG3) / (2 + 2 / LOG3)])  # d2 and d1 share no subtopic, d0 and d1 do


def test_a_ranking_may_beat_the_greedy_ideal():
    reward = alpha_ndcg({"q": {"d2": ["a", "b"], "d1": ["a", "c"], "d0": ["b", "d"]}}, cutoff=2)
    assert reward(torch.tensor([[[1, 0, 2]]]), batch_of([list_of(3)])).item() > 1.1


def test_a_list_without_subtopics_is_worth_nothing():
    reward = alpha_ndcg({"q": {"x": ["a"]}, "p": {"d0": ["a"]}})
    rankings = torch.tensor([[[0, 1]], [[0, 1]], [[1, 0]]])
    assert reward(rankings, batch_of([list_of(2), list_of(2, "unknown"), list_of(2, "p")]))[:2].tolist() == [[0], [0]]
    assert alpha_ndcg({})(rankings, batch_of([list_of(2)] * 3)).tolist() == [[0]] * 3


def test_subtopics_and_settings_that_mean_something_else_are_refused():
    with pytest.raises(ValueError, match=r"query 'q', document 'd': '12' is no list; give a list"):
        alpha_ndcg({"q": {"d": "12"}})
    with pytest.raises(ValueError, match=r"document 'd': None is no list"):
        alpha_ndcg({"q": {"d": None}})
    for none in (None, {"q": ["d"]}, "q"):
        with pytest.raises(ValueError, match=r"give query id -> doc id -> the subtopics"):
            alpha_ndcg(none)


# ----------------------------------------------------------------------------------------------------------- agreement
def orders_of(n):
    return torch.tensor(list(permutations(range(n))))[None]


@pytest.mark.parametrize("cutoff", [1, 3, 10])
@pytest.mark.parametrize("teacher", [("d2", "d0", "d3", "d1"), ("d3", "away", "d1"), ("d0",)])
def test_rank_biased_overlap_is_its_definition_over_the_ordered_candidates(teacher, cutoff):
    batch = batch_of([list_of(4)])
    own = [d for d in teacher if d != "away"]
    weights = [0.8 ** (d - 1) for d in range(1, min(cutoff, len(own)) + 1)]
    found = rbo({"q": teacher}, 0.8, cutoff)(orders_of(4), batch)[0]
    for order, value in zip(orders_of(4)[0].tolist(), found.tolist(), strict=True):
        ranked = [f"d{i}" for i in order]
        overlap = sum(w * len({*ranked[:d]} & {*own[:d]}) / d for d, w in enumerate(weights, 1))
        assert value == pytest.approx(overlap / sum(weights), abs=1e-6)
    assert found.max() == pytest.approx(1)


def test_kendall_agreement_of_whole_orders_is_scipys_tau():
    batch = batch_of([list_of(5)])
    teacher = (3, 0, 4, 1, 2)
    found = kendall({"q": [f"d{i}" for i in teacher]})(orders_of(5), batch)[0]
    places = [teacher.index(i) for i in range(5)]
    for order, value in zip(orders_of(5)[0].tolist(), found.tolist(), strict=True):
        tau = kendalltau(places, [order.index(i) for i in range(5)]).statistic
        assert value == pytest.approx((tau + 1) / 2, abs=1e-6)


def test_ties_and_documents_that_the_teacher_did_not_order_are_no_pairs():
    batch = batch_of([list_of(4)])
    tied = Ordering("q", ("d2", "d0", "d1"), "t", scores=(2.0, 1.0, 1.0))  # d2 before d0 and d1; d3 was not ordered
    rankings = torch.tensor([[[2, 0, 1, 3], [2, 1, 0, 3], [3, 0, 2, 1], [3, 1, 0, 2], [0, 1, 2, 3]]])
    assert kendall([tied])(rankings, batch).tolist() == [[1, 1, 1 / 2, 0, 0]]
    assert kendall([Ordering("q", tied.doc_ids, "t")])(rankings[:, :2], batch)[0].tolist() == pytest.approx([1, 2 / 3])


def test_a_pair_agrees_only_if_the_ranking_holds_one_of_it():
    batch = batch_of([list_of(3)])
    reward = kendall({"q": ("d0", "d1", "d2")})
    assert reward(torch.tensor([[[0], [2]]]), batch)[0].tolist() == pytest.approx([2 / 3, 0])
    assert reward(torch.tensor([[[0, 0, 0], [0, 0, 1]]]), batch)[0].tolist() == pytest.approx([2 / 3, 1])


def test_the_expected_kendall_agreement_is_the_mean_over_all_rankings():
    lists = [list_of(4), list_of(2, "p"), list_of(3, "unordered")]
    reward = kendall({"q": ("d1", "d3", "d0"), "p": ("d1", "d0")})
    mask = batch_of(lists).mask
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 4, generator=draw, dtype=torch.float64).masked_fill(~mask, -torch.inf).requires_grad_()
    expected = reward.expected(scores, batch_of(lists))
    for b, c in enumerate(lists):
        mean = 0.0
        for order in permutations(range(len(c))):
            left = scores[b, list(order)]
            share = math.prod((left[r] - left[r:].logsumexp(0)).exp().item() for r in range(len(order)))
            mean += share * reward(torch.tensor([[order]]), batch_of([c])).item()
        assert expected[b].item() == pytest.approx(mean, abs=1e-6)
    [gradient] = torch.autograd.grad(expected.sum(), scores)
    assert gradient.isfinite().all() and (gradient[~mask] == 0).all() and gradient[0].abs().max() > 0.01


@pytest.mark.parametrize("make", [rbo, kendall])
def test_an_ordering_that_is_none_is_refused(make):
    with pytest.raises(ValueError, match=r"query 'q'.* must be doc ids, best first, each once"):
        make({"q": ("a", "a")})
    with pytest.raises(ValueError, match=r"query 'q'.* must be doc ids, best first, each once"):
        make({"q": "abc"})
    with pytest.raises(ValueError, match=r"query 'q'.* must be doc ids, best first, each once"):
        make({"q": None})
    with pytest.raises(ValueError, match=r"orderings None: give query id -> doc ids, or records"):
        make(None)
    with pytest.raises(ValueError, match=r"'d1' is no ordering: a record has query_id and doc_ids"):
        make(["d1"])
    with pytest.raises(ValueError, match=r"two orderings of query 'q'"):
        make([Ordering("q", ("a",), "t"), Ordering("q", ("b",), "u")])


# --------------------------------------------------------------------------------------------------------- combinations
def test_a_mixture_is_the_weighted_mean_whatever_the_weights_sum_to():
    first, second = ndcg(10), reciprocal_rank(10)
    mixed = mixture({first: 3, second: 1})
    grades = (0, 1, 2)
    assert worth(mixed, grades) == pytest.approx(0.75 * worth(first, grades) + 0.25 * worth(second, grades))
    assert worth(mixture([(first, 0.3), (second, 0.1)]), grades) == pytest.approx(worth(mixed, grades))
    assert (mixed.name, mixed.cutoff, mixed.signed) == ("0.75 nDCG@10 + 0.25 RR@10", 10, False)
    assert mixture({ndcg(5): 1, average_precision(): 1}).cutoff is None


@pytest.mark.parametrize(
    "weights",
    [
        [],
        [(ndcg(), 0.0)],
        [(ndcg(), 2.0), (dcg(), -1.0)],
        [(ndcg(), math.nan)],
        [ndcg()],
        [(ndcg(), "1")],
        "nDCG@10",
    ],
)
def test_a_mixture_needs_rewards_with_weights_above_zero(weights):
    with pytest.raises(ValueError, match=r"each weight above 0"):
        mixture(weights)


@pytest.mark.parametrize(
    "make",
    [
        lambda: mixture({"nDCG@10": 1.0}),
        lambda: minimum(["nDCG@10", "RR@10"]),
        lambda: minimum("nDCG@10"),
        lambda: vector(["nDCG@10"], recall_for_short_lists),
        lambda: headroom(None),
        lambda: with_labels("nDCG@10", {}),
    ],
)
def test_a_name_is_no_reward_to_combine(make):
    with pytest.raises(ValueError, match=r"is no reward; make one, such as ndcg\(cutoff=10\)"):
        make()


def test_the_minimum_of_two_label_sources_is_the_worse_one_of_each_ranking():
    people, teacher = ndcg(2), with_labels(ndcg(2), {"q": {"d0": 2, "d2": 1}})
    batch = batch_of([list_of(3, labels=(0, 1, 2))])
    both = torch.stack([people(orders_of(3), batch), teacher(orders_of(3), batch)])
    assert torch.equal(minimum([people, teacher])(orders_of(3), batch), both.amin(0))
    assert both.argmin(0).unique().tolist() == [0, 1]
    with pytest.raises(ValueError, match="minimum of no rewards"):
        minimum([])


def recall_for_short_lists(lists):
    short = (lists.mask.sum(-1) < 3).float()
    return torch.stack([1.0 - short, short], -1)


def test_a_vector_has_weights_for_each_list():
    reward = vector([reciprocal_rank(10), recall(1)], recall_for_short_lists)
    batch = batch_of([list_of(3, labels=(0, 1, 1)), list_of(2, "p", labels=(1, 1))])
    assert reward(torch.tensor([[[0, 1, 2]], [[0, 1, 2]]]), batch).tolist() == [[1 / 2], [1 / 2]]
    assert reward(torch.tensor([[[1, 2, 0]], [[1, 0, 2]]]), batch).tolist() == [[1], [1 / 2]]
    with pytest.raises(ValueError, match=r"are \[2\]; they must be \[B, M\] = \[2, 1\]"):
        vector([recall(1)], lambda lists: torch.ones(2))(torch.tensor([[[0]], [[0]]]), batch)


def test_headroom_is_zero_for_the_first_stage_one_for_the_ideal_and_negative_below():
    reward = headroom(reciprocal_rank(10))
    grades = (0, 1, 0)
    assert (reward.signed, mixture({reward: 1.0}).signed) == (True, True)
    assert worth(reward, grades) == 0
    assert worth(reward, grades, [1, 0, 2]) == 1
    assert worth(reward, grades, [0, 2, 1]) == pytest.approx((1 / 3 - 1 / 2) / (1 - 1 / 2))


@pytest.mark.parametrize("grades", [(1, 0), (0, 0), (2, 2)])
def test_a_list_without_headroom_is_worth_nothing_in_every_ranking(grades):
    assert worth(headroom(ndcg(10)), grades, [1, 0]) == worth(headroom(ndcg(10)), grades, [0, 1]) == 0


def test_other_labels_stand_in_for_the_grades_and_for_the_judged_pool():
    batch = batch_of([list_of(3, labels=(0, 0, 3)), list_of(1, "unknown", labels=(1,))])
    other = {"q": {"d1": 0.5, "away": 2.0}}
    rankings = torch.tensor([[[1, 0, 2]], [[0, 1, 2]]])
    assert with_labels(ndcg(1), other)(rankings, batch).tolist() == [[1], [0]]
    assert with_labels(ndcg(1, ideal="judged"), other)(rankings, batch).tolist() == [[0.5 / 2], [0]]
    assert with_labels(headroom(ndcg(1)), other)(rankings, batch).tolist() == [[1], [0]]
    grade_of_first = FunctionReward(lambda ids, c: c.labels[c.doc_ids.index(ids[0])] / len(c.pool or (1,)), "first")
    assert with_labels(grade_of_first, other)(rankings, batch).tolist() == [[0.5 / 2], [0]]


@pytest.mark.parametrize("grade", [math.nan, math.inf, -math.inf, 1e39, None, "2"])
def test_other_labels_are_finite_numbers(grade):
    with pytest.raises(ValueError, match=r"the grade of query 'q', document 'd1' is .*; grades are finite numbers"):
        with_labels(mixture({ndcg(): 1.0}), {"q": {"d0": 1, "d1": grade}})


@pytest.mark.parametrize("grades", [None, {"q": None}, {"q": [1, 0]}])
def test_other_labels_are_by_query_and_document(grades):
    with pytest.raises(ValueError, match=r"give query id -> doc id -> grade"):
        with_labels(ndcg(), grades)


def test_the_headroom_under_other_labels_is_theirs():
    reward = with_labels(headroom(ndcg(1)), {"q": {"d1": 2}})
    assert worth(reward, (1, 0), [1, 0]) == 1  # under the labels of the list there is none
    assert worth(reward, (1, 0), [0, 1]) == 0


def test_other_labels_keep_what_makes_a_reward_exact():
    other, teacher = {"q": {"d1": 1}}, kendall({"q": ("d1", "d0")})
    assert callable(with_labels(ndcg(), other).terms)
    assert callable(with_labels(teacher, other).expected)
    assert len(with_labels(mixture({ndcg(): 1, teacher: 1}), other).parts) == 2
    plain = with_labels(FunctionReward(operator.length_hint, "f", 7), other, "people")
    assert not any(hasattr(plain, kind) for kind in ("terms", "expected", "parts"))
    assert (plain.name, plain.cutoff) == ("people", 7)


# ----------------------------------------------------------------------------------------------------------- all alike
TEACHER = {"q": ("d3", "d1", "d0", "elsewhere", "d4")}
ASPECTS = {"q": {"d0": ["a"], "d1": ["a", "b"], "d2": ["b", "c"], "d4": ["c"], "elsewhere": ["d"]}}
OTHER = {"q": {"d2": 2.0, "d0": 0.5}}
EVERY = {
    **{f"{name}@{cutoff}": make(cutoff) for name, make in REWARDS.items() for cutoff in (None, 2)},
    "alpha-nDCG": alpha_ndcg(ASPECTS, 3),
    "alpha-nDCG, judged": alpha_ndcg(ASPECTS, 10, ideal="judged"),
    "RBO": rbo(TEACHER, cutoff=3),
    "Kendall": kendall(TEACHER),
    "mixture": mixture({average_precision(): 2.0, kendall(TEACHER): 1.0}),
    "minimum": minimum([ndcg(3), with_labels(ndcg(3), OTHER), rbo(TEACHER)]),
    "vector": vector([reciprocal_rank(2), recall(1)], recall_for_short_lists),
    "headroom": headroom(err(3)),
    "other labels": with_labels(mixture({average_precision(): 1.0, headroom(ndcg(2)): 1.0}), OTHER),
}
FIRST_STAGE = ("headroom", "other labels")
"""Rewards that look at the order of the list itself."""

grades = st.lists(st.integers(-1, 3), min_size=1, max_size=4)


@pytest.mark.parametrize("name", EVERY)
@given(grades=grades, data=st.data())
def test_no_ranking_with_repeats_gaps_or_padding_beats_the_best_whole_one(name, grades, data):
    n = len(grades)
    batch = batch_of([list_of(n, labels=tuple(grades)), list_of(6, "wider")])
    malformed = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=6), label="ranking")
    rankings = torch.tensor([[[*order, *range(n, 6)] for order in permutations(range(n))]] * 2)
    best = EVERY[name](rankings, batch)[0].max()
    assert EVERY[name](torch.tensor([[malformed]] * 2), batch)[0, 0] <= best + 1e-5


@pytest.mark.parametrize("name", [n for n in EVERY if n.rsplit("@")[0] in REWARDS])
@given(grades=grades)
def test_no_ranking_beats_the_one_by_grade_whose_value_is_at_most_one(name, grades):
    batch = batch_of([list_of(len(grades), labels=tuple(grades))])
    by_grade = torch.tensor([[sorted(range(len(grades)), key=lambda d: -grades[d])]])
    ideal = EVERY[name](by_grade, batch).item()
    assert EVERY[name](orders_of(len(grades)), batch).max() <= ideal + 1e-6
    assert ideal <= 1 + 1e-6 or name.startswith("DCG")
    if name.startswith(("nDCG", "AP@None", "Rprec@None")):
        assert ideal == pytest.approx(float(max(grades) > 0))


@pytest.mark.parametrize("name", [n for n in EVERY if n not in FIRST_STAGE])
@given(grades=grades, data=st.data())
def test_neither_the_order_of_the_candidates_nor_padding_changes_a_value(name, grades, data):
    n = len(grades)
    candidates = list_of(n, labels=tuple(grades))
    turn = data.draw(st.permutations(range(n)), label="candidate order")
    order = data.draw(st.permutations(range(n)), label="ranking")
    value = EVERY[name](torch.tensor([[order]]), batch_of([candidates]))
    turned = torch.tensor([[[turn.index(d) for d in order]]])
    assert torch.allclose(EVERY[name](turned, batch_of([candidates.subset(turn)])), value, atol=1e-6)
    wide = torch.tensor([[[*order, *range(n, 6)]], [list(range(6))]])
    assert torch.allclose(EVERY[name](wide, batch_of([candidates, list_of(6, "p")]))[:1], value, atol=1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_an_id_that_is_no_candidate_is_refused(name):
    with pytest.raises((RuntimeError, IndexError)):
        EVERY[name](torch.tensor([[[0, 7]]]), batch_of([list_of(2, labels=(0, 1))]))


@pytest.mark.parametrize("name", EVERY)
def test_a_reward_can_be_sent_to_another_process(name):
    sent = pickle.loads(pickle.dumps(EVERY[name]))
    batch = batch_of([list_of(4, labels=(0, 2, 0, 1))])
    assert torch.equal(sent(orders_of(4), batch), EVERY[name](orders_of(4), batch)) and sent.name == EVERY[name].name


@pytest.mark.parametrize("name", EVERY)
def test_a_list_without_candidates_is_worth_nothing(name):
    empty = batch_of([CandidateList("q", "", (), (), {}, ())])
    assert EVERY[name](torch.zeros(1, 3, 0, dtype=torch.long), empty).tolist() == [[0.0] * 3]


# ------------------------------------------------------------------------------------------------------------ settings
@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: ndcg(0), r"nDCG has cutoff 0; cutoff is a whole number, 1 or more"),
        (lambda: recall(-3), "cutoff -3"),
        (lambda: precision(2.5), "cutoff 2.5"),
        (lambda: err("10"), "cutoff '10'"),
        (lambda: success(True), "cutoff True"),
        (lambda: ndcg(gain="exp"), "nDCG has gain 'exp'; gain is 'linear' or 'exponential'"),
        (lambda: dcg(gain=None), "gain None"),
        (lambda: ndcg(ideal="pool"), "ideal is 'candidates' or 'judged'"),
        (lambda: recall(ideal=None), "ideal None"),
        (lambda: average_precision(ideal="all"), "ideal 'all'"),
        (lambda: reciprocal_rank(level="2"), "level '2'; level is a grade"),
        (lambda: r_precision(level=math.nan), "level nan"),
        (lambda: rbp(persistence=1.0), "persistence is between 0 and 1"),
        (lambda: rbp(persistence=math.nan), "persistence nan"),
        (lambda: err(highest=0), "highest 0; highest is a whole number from 1 to 60"),
        (lambda: err(highest=200), "highest 200"),
        (lambda: rbo({}, cutoff=None), "rbo has cutoff None"),
        (lambda: rbo({}, persistence=0), "rbo has persistence 0"),
        (lambda: alpha_ndcg({}, alpha=1.5), "alpha-nDCG has alpha 1.5"),
        (lambda: alpha_ndcg({}, ideal="pool"), "alpha-nDCG has ideal 'pool'"),
        (lambda: alpha_ndcg({}, cutoff=0), "alpha-nDCG has cutoff 0"),
        (lambda: FunctionReward(operator.length_hint, "mine", 0), "the reward 'mine' has cutoff 0"),
    ],
)
def test_a_setting_that_is_not_allowed_is_refused_when_the_reward_is_made(make, told):
    with pytest.raises(ValueError, match=told):
        make()


@pytest.mark.parametrize(
    "make", [*REWARDS.values(), lambda k: rbo(TEACHER, cutoff=k), lambda k: alpha_ndcg(ASPECTS, k, ideal="judged")]
)
def test_a_cutoff_beyond_all_candidates_makes_no_place_that_nobody_can_take(make):
    batch, rankings = batch_of([list_of(3, labels=(0, 1, 2)), list_of(2, labels=(1, 0))]), torch.tensor([[[2, 0, 1]]])
    far = make(10**20)
    assert all(term.weight.shape[-1] <= 3 for term in far.terms(batch))
    whole = make(10)(rankings.expand(2, 1, 3), batch)
    if far.name.split("@")[0] != "P":  # which divides by its cutoff
        assert far(rankings.expand(2, 1, 3), batch).tolist() == whole.tolist()


def test_a_judged_ideal_of_a_list_that_tells_no_pool_is_that_of_its_labels():
    batch = batch_of([CandidateList("q", "", ("a", "b"), ("", ""), {}, (1, 2), ())])
    both = [ndcg(10, ideal=ideal)(torch.tensor([[[0, 1]]]), batch).item() for ideal in ("judged", "candidates")]
    assert both[0] == both[1] == pytest.approx((1 + 2 / LOG3) / (2 + 1 / LOG3))


def test_grades_that_an_exponential_gain_cannot_hold_are_refused_by_name():
    assert worth(ndcg(10, "exponential"), (100,) * 50) == pytest.approx(1)
    assert worth(ndcg(10), (200, 100)) == 1
    for pool in ([200, 1], [1, 200]):
        with pytest.raises(ValueError, match=r"a grade of 200 has no exponential gain .* grades up to 100, or gain"):
            worth(ndcg(10, "exponential", "judged"), (1, 1), pool=pool)


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
