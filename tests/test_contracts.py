"""Every part of ours passes the public contract tests, and every contract test can fail."""

from copy import copy
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from rerank import plackett_luce
from rerank.errors import InputError
from rerank.lists import mask_of
from rerank.models.backbones import load_cross_encoder
from rerank.models.encoder import VectorStore
from rerank.models.light import LightScorer
from rerank.models.policy import FirstStageWeights, ScorePolicy
from rerank.rewards import (
    REWARDS,
    ClosedForm,
    Factorised,
    Factors,
    FunctionReward,
    alpha_ndcg,
    average_precision,
    err,
    headroom,
    kendall,
    minimum,
    mixture,
    ndcg,
    r_precision,
    rbo,
    recall,
    reciprocal_rank,
    vector,
    with_labels,
)
from rerank.teachers import Fused, Judged, Recorded, Remembered, Scored
from rerank.testing import (
    ContractError,
    NumberScorer,
    check_policy,
    check_reward,
    check_teacher,
    every_ranking,
    toy_lists,
)
from rerank.types import CandidateList, Ordering, Rollout, Run

LEVELLED = ("RR", "Success", "R", "P", "AP", "Rprec", "RBP")


# ------------------------------------------------------------------------------------------------------- ours pass them
@pytest.mark.parametrize("cutoff", [None, 1, 3, 10])
@pytest.mark.parametrize("name", REWARDS)
def test_a_measure_keeps_the_promises_of_a_reward(name, cutoff):
    check_reward(REWARDS[name](cutoff=cutoff), bounds=None if name == "DCG" else (0.0, 1.0))


@pytest.mark.parametrize("level", [2, 3])
@pytest.mark.parametrize("name", LEVELLED)
def test_a_binary_measure_keeps_the_promises_at_a_higher_level(name, level):
    check_reward(REWARDS[name](cutoff=3, level=level), bounds=(0.0, 1.0))


VARIANTS = {
    "exponential": ndcg(3, "exponential"),
    "judged ideal": ndcg(3, ideal="judged"),
    "judged ideal, no cutoff": ndcg(None, ideal="judged"),
    "recall of judged": recall(3, ideal="judged"),
    "average precision of judged": average_precision(3, ideal="judged"),
    "R-precision of judged": r_precision(ideal="judged"),
    "two grades": err(3, 2),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_of_a_measure_keeps_the_promises_of_a_reward(name):
    check_reward(VARIANTS[name], bounds=(0.0, 1.0))


def by_number(reverse):
    """An ordering of the first three toy lists' documents by their number, among documents of other lists."""
    numbers = sorted({int(d[1:]) for c in toy_lists() for d in c.doc_ids}, reverse=reverse)
    return {f"q{i}": [f"d{n}" for n in numbers] for i in range(3)}


def aspects():
    """Two digits of each toy document's number are its subtopics."""
    return {c.query_id: {d: [*d[1:].zfill(2)] for d in c.doc_ids[1:]} for c in toy_lists()[1:]}


def shares(lists):
    first = 1.0 / lists.mask.sum(-1).float()
    return torch.stack([first, 1.0 - first], -1)


BEYOND_GRADES = {
    "alpha-nDCG": alpha_ndcg(aspects(), 3),
    "alpha-nDCG without a cutoff to speak of": alpha_ndcg(aspects(), 10, alpha=0.9),
    "rank-biased overlap": rbo(by_number(False), cutoff=3),
    "Kendall": kendall(by_number(False)),
    "mixture": mixture({ndcg(3): 1, kendall(by_number(False)): 2, average_precision(): 1}),
    "nested mixture": mixture({mixture({ndcg(3): 1, err(2): 1}): 1, rbo(by_number(True)): 2}),
    "minimum": minimum([ndcg(3), kendall(by_number(False))]),
    "vector": vector([reciprocal_rank(2), kendall(by_number(False))], shares),
    "other labels": with_labels(average_precision(3), {"q0": {d: 2 for d in toy_lists()[0].doc_ids[1:3]}}),
    "mixture of other labels": with_labels(
        mixture({ndcg(2): 1, kendall(by_number(True)): 1}), {"q1": {toy_lists()[1].doc_ids[2]: 1}}
    ),
}


@pytest.mark.parametrize("name", BEYOND_GRADES)
def test_a_reward_that_looks_beyond_the_grades_keeps_the_promises_of_a_reward(name):
    check_reward(BEYOND_GRADES[name], bounds=(0.0, 1.0), follows_grades=False)


@pytest.mark.parametrize("reward", [ndcg(3), average_precision(), reciprocal_rank(2)], ids=lambda r: r.name)
def test_gain_over_the_first_stage_keeps_the_promises_of_a_reward(reward):
    check_reward(headroom(reward), bounds=(-1000.0, 1.0), follows_first_stage=True)
    check_reward(mixture({headroom(reward): 1.0, reward: 1.0}), follows_first_stage=True)


def test_a_reward_that_looks_at_the_first_stage_has_to_say_so():
    with pytest.raises(ContractError, match="candidates in another order"):
        check_reward(headroom(ndcg(3)))


@pytest.mark.parametrize("cutoff", [None, 1, 3])
def test_a_function_keeps_the_promises_of_a_reward(cutoff):
    def share_of_odd_numbers(doc_ids, candidates):
        return sum(int(d[1:]) % 2 / (1 + place) for place, d in enumerate(doc_ids))

    check_reward(FunctionReward(share_of_odd_numbers, "odd", cutoff), follows_grades=False)


def recorded():
    return Run({c.query_id: tuple((d, 1.0) for d in reversed(c.doc_ids[:3])) for c in toy_lists()[1:]}, "recorded")


@pytest.mark.parametrize(
    "teacher",
    [Judged(), Recorded(recorded()), Scored(NumberScorer(), "numbers"), Fused(), Fused({"toy": 2.0}, "rrf")],
    ids=["judged", "recorded", "scored", "fused", "fused by rank"],
)
def test_a_teacher_keeps_the_promises_alone_and_remembered(teacher, tmp_path):
    check_teacher(teacher)
    check_teacher(Remembered(teacher, tmp_path / "memory.jsonl"))
    check_teacher(teacher, toy_lists(5, 2, seed=1))  # lists of one and two candidates


@pytest.fixture(scope="module")
def cross_encoder(tiny_bert):
    scorer, fresh = load_cross_encoder(str(tiny_bert), max_length=64, device="cpu")
    assert fresh
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.nn.init.normal_(scorer.model[2].linear.weight)  # a fresh head is silent: give it something to say
    return scorer


@pytest.mark.parametrize("budget", [100, 8192])
def test_a_cross_encoder_keeps_the_promises_of_a_policy(cross_encoder, budget):
    check_policy(ScorePolicy(cross_encoder, budget=budget), toy_lists(3, 4))


def test_a_cross_encoder_with_first_stage_weights_keeps_the_promises_of_a_policy(cross_encoder):
    check_policy(ScorePolicy(cross_encoder, FirstStageWeights({"toy": 0.7})), toy_lists(3, 4))


@dataclass
class Letters:
    """Text to a unit vector of its letter counts: a small encoder that is the same on every machine."""

    fingerprint: str = "letters"

    def encode(self, texts):
        counts = np.array([[1.0 + text.count(c) for c in "0123456789 abcde"] for text in texts], dtype=np.float32)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


@pytest.mark.parametrize("training", [True, False])
def test_a_light_scorer_keeps_the_promises_of_a_policy_and_its_mode(training):
    scorer = LightScorer(VectorStore(Letters()), hidden=8)
    torch.nn.init.constant_(scorer.outer.weight, 0.1)
    policy = ScorePolicy(scorer, FirstStageWeights({"toy": 0.7})).train(training)
    check_policy(policy)
    assert policy.training is training


def test_the_number_scorer_keeps_the_promises_of_a_policy():
    check_policy(ScorePolicy(NumberScorer()))


def test_toy_lists_are_judged_have_a_relevant_candidate_and_repeat_by_seed():
    lists = toy_lists(6, 4, seed=3)
    assert lists == toy_lists(6, 4, seed=3) != toy_lists(6, 4, seed=4)
    assert [len(c) for c in lists] == [4, 3, 2, 4, 3, 2]
    assert all(max(c.labels) == 3 for c in lists)
    assert all(
        label == int(text.split()[-1]) // 25 for c in lists for label, text in zip(c.labels, c.texts, strict=True)
    )


def test_the_number_scorer_scores_lists_as_a_policy_and_pairs_alike():
    lists, scorer = toy_lists(), NumberScorer(0.5)
    scores, policy = scorer(lists), ScorePolicy(scorer).scores(lists)
    assert torch.equal(scores, policy)
    assert scorer.predict([("q", lists[0].texts[1]), ("q", "none")]) == [scores[0, 1].item(), 0.0]


def test_every_ranking_holds_each_permutation_of_each_list_with_its_padding_last():
    rankings = every_ranking(torch.tensor([[True, True, True], [True, True, False], [False, False, False]]))
    assert len({tuple(r) for r in rankings[0].tolist()}) == 6
    assert sorted(map(tuple, rankings[1].tolist())) == [(0, 1, 2)] * 3 + [(1, 0, 2)] * 3
    assert rankings[2].tolist() == [[0, 1, 2]] * 6


def test_lists_that_are_too_long_to_enumerate_are_refused():
    with pytest.raises(InputError, match=r"a list has 7 candidates.* at most 6"):
        every_ranking(torch.ones(1, 7, dtype=torch.bool))


# -------------------------------------------------------------------------------------------------- broken rewards fail
def broken(change):
    """nDCG@3 whose values go through `change(values, rankings, lists)`, and whose expectation is not known."""
    return lambda rankings, lists: change(ndcg(3)(rankings, lists), rankings, lists)


draws = iter(range(1000))

BROKEN_REWARDS = {
    "must be [4, 120]": broken(lambda v, r, lists: v.T),
    "must be [4, 120], not float": broken(lambda v, r, lists: 0.5),
    "must be a finite number": broken(lambda v, r, lists: v / 0.0),
    "must lie in [0.0, 1.0]": broken(lambda v, r, lists: 2.0 * v),
    "asked twice": broken(lambda v, r, lists: v * 0.9 ** next(draws)),
    "candidates in another order": broken(lambda v, r, lists: v * (1.0 - 0.1 * (r[..., 0] == 1))),
    "padding a list": broken(lambda v, r, lists: v / lists.mask.shape[1]),
    "sorted by grade": broken(lambda v, r, lists: 1.0 - v),
    "repeats a document": broken(lambda v, r, lists: v + 1.0 * (r[..., 0] == r[..., 1])),
    "holds padding": broken(lambda v, r, lists: torch.where(lists.mask.gather(1, r[:, :, 0]), v, 1.0 + v)),
}


@pytest.mark.parametrize("promise", BROKEN_REWARDS)
def test_a_broken_reward_is_told_which_promise_it_broke(promise):
    with pytest.raises(ContractError) as error:
        check_reward(BROKEN_REWARDS[promise], bounds=(0.0, 1.0))
    assert promise in str(error.value)


@dataclass
class Refactored:
    """A reward whose terms go through `change`."""

    change: object
    reward: object

    def __call__(self, rankings, lists):
        return self.reward(rankings, lists)

    def terms(self, lists):
        return [self.change(term, lists) for term in self.reward.terms(lists)]


# reward, change of its terms
BROKEN_TERMS = {
    "a term must be gain [4, 5]": (ndcg(3), lambda f, lists: f._replace(gain=f.gain[:, :3])),
    "weight [K] or [4, K]": (ndcg(3), lambda f, lists: f._replace(weight=f.weight[None])),
    "gain of padding must be 0": (ndcg(3), lambda f, lists: f._replace(gain=f.gain + 0.1 * ~lists.mask)),
    "survival must be a probability": (ndcg(3), lambda f, lists: f._replace(survival=f.gain + 2.0)),
    "counted must not be negative": (ndcg(3), lambda f, lists: f._replace(counted=-f.gain)),
    "value of each ranking": (ndcg(3), lambda f, lists: f._replace(weight=f.weight.flip(0))),
    "give the value of each ranking": (average_precision(), lambda f, lists: f._replace(counted=None)),
    "the value of each": (rbo(by_number(True)), lambda f, lists: f._replace(gain=f.gain * (f.weight.shape[0] > 1))),
}


@pytest.mark.parametrize("promise", BROKEN_TERMS)
def test_broken_terms_are_told_which_promise_they_broke(promise):
    reward, change = BROKEN_TERMS[promise]
    check_reward(Refactored(lambda f, lists: f, reward), follows_grades=False)
    with pytest.raises(ContractError) as error:
        check_reward(Refactored(change, reward), follows_grades=False)
    assert promise in str(error.value)


def expecting(change):
    """Kendall agreement whose expectation goes through `change(expected, scores)`."""
    good = kendall(by_number(False))
    return ClosedForm("Kendall", good, lambda scores, lists: change(good.expected(scores, lists), scores))


BROKEN_EXPECTATIONS = {
    "the mean over all rankings must be the expectation": expecting(lambda e, s: e + 0.01),
    "must be [4], one a list, not []": expecting(lambda e, s: e.sum()),
    "the gradient must be that of the mean": expecting(lambda e, s: 2.0 * e - e.detach()),
}


@pytest.mark.parametrize("promise", BROKEN_EXPECTATIONS)
def test_a_broken_expectation_is_told_which_promise_it_broke(promise):
    with pytest.raises(ContractError) as error:
        check_reward(BROKEN_EXPECTATIONS[promise], follows_grades=False)
    assert promise in str(error.value)


def test_an_expectation_that_does_not_follow_from_the_terms_is_found(monkeypatch):
    monkeypatch.setattr("rerank.testing.expected_reward", lambda scores, *rest: scores.new_zeros(scores.shape[0]))
    with pytest.raises(ContractError, match="the mean over all rankings must be the expectation"):
        check_reward(ndcg(3))


def test_parts_that_do_not_combine_to_the_value_are_found():
    @dataclass
    class Halved:
        parts: tuple = (ndcg(3), err(3))

        def __call__(self, rankings, lists):
            return ndcg(3)(rankings, lists)

        def combine(self, values, lists):
            return values.mean(-1)

    with pytest.raises(ContractError, match="combining the parts must give the value of each ranking"):
        check_reward(Halved())


def test_a_mixture_with_a_part_of_unknown_expectation_is_checked_ranking_by_ranking():
    first = FunctionReward(lambda doc_ids, candidates: float(doc_ids[0] < "d5"), "first", 1)
    check_reward(mixture({first: 1.0, ndcg(3): 1.0}), bounds=(0.0, 1.0), follows_grades=False)


def test_a_reward_that_pays_for_repeats_through_its_gains_is_found():
    def careless(rankings, lists):
        gain = lists.labels / lists.labels.sum(-1, keepdim=True)
        return gain[:, None].expand(-1, rankings.shape[1], -1).gather(-1, rankings).sum(-1)

    with pytest.raises(ContractError, match=r"repeats a document must not pay more .*'q0'"):
        check_reward(careless)


def test_a_constant_factorised_reward_is_a_reward():
    check_reward(Factorised("one", lambda lists: (Factors(lists.mask.float(), torch.tensor([1.0])),)))


# ------------------------------------------------------------------------------------------------- broken policies fail
class Broken:
    """A policy over the numbers in the texts, with one method replaced."""

    def __init__(self, **methods):
        self.good = ScorePolicy(NumberScorer())
        for name in ("scores", "sample", "log_probs"):
            change = methods.get(name, lambda value, *_: value)
            setattr(self, name, self.changed(getattr(self.good, name), change))

    def changed(self, method, change):
        return lambda lists, *rest: change(method(lists, *rest), lists, *rest)


def position_bias(scores, lists, *rest):
    return scores + torch.arange(scores.shape[1]) / 10


def batch_bias(scores, lists, *rest):
    return scores + len(lists)


def constant_draw(rollout, lists, n, generator):
    return Rollout(rollout.rankings, rollout.log_probs - 1.0, rollout.valid)


def unkeyed_draw(rollout, lists, n, generator):
    policy = ScorePolicy(NumberScorer())
    return policy.sample(lists, n, torch.Generator().manual_seed(next(draws)))


def swapped_draw(rollout, lists, n, generator):
    return rollout._replace(rankings=rollout.rankings.flip(-1))


def upside_down(log_probs, lists, rankings):
    return plackett_luce.log_prob(-NumberScorer()(lists), mask_of(lists), rankings)


def unlikely(log_probs, lists, rankings):
    return 2.0 * log_probs


BROKEN_POLICIES = {
    "scores must be [B, N] = [4, 5], not [4, 4]": {"scores": lambda s, *_: s[:, :4]},
    "score of a candidate must be finite": {"scores": lambda s, *_: s / 0.0},
    "score of padding must be -inf": {"scores": lambda s, *_: s.clamp(min=-50)},
    "alone and in a batch": {"scores": batch_bias},
    "must not depend on the order of its list": {"scores": position_bias},
    "8 samples of 4 lists must be": {"sample": lambda r, *_: r._replace(rankings=r.rankings[:, :2])},
    "hold each index once": {"sample": lambda r, *_: r._replace(rankings=r.rankings * 0)},
    "padding must come last": {"sample": swapped_draw},
    "the same generator": {"sample": unkeyed_draw},
    "must be those that came with them": {"sample": constant_draw},
    "carry no gradient": {"log_probs": lambda p, *_: p.detach()},
    "sum to 1": {"log_probs": unlikely, "sample": lambda r, *_: r._replace(log_probs=2.0 * r.log_probs)},
    "the likeliest ranking": {
        "log_probs": upside_down,
        "sample": lambda r, lists, *_: r._replace(log_probs=upside_down(None, lists, r.rankings).detach()),
    },
}


@pytest.mark.parametrize("promise", BROKEN_POLICIES)
def test_a_broken_policy_is_told_which_promise_it_broke(promise):
    check_policy(Broken())
    with pytest.raises(ContractError) as error:
        check_policy(Broken(**BROKEN_POLICIES[promise]))
    assert promise in str(error.value)


def test_a_policy_whose_gradient_does_not_reach_its_weights_is_found():
    class Detached(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.unused = NumberScorer(), torch.nn.Parameter(torch.ones(()))
            self.inner.weight.requires_grad_(False)
            self.kind = "detached"

        def encode(self, lists):
            return self.inner.encode(lists)

        def logits(self, items):
            return self.inner.logits(items) + torch.zeros((), requires_grad=True)

    with pytest.raises(ContractError, match="reach the policy's weights"):
        check_policy(ScorePolicy(Detached()))


# ------------------------------------------------------------------------------------------------- broken teachers fail
class Teaching:
    """A teacher that keeps the first-stage order, with its orderings replaced by `change(orderings)`."""

    name = "teaching"

    def __init__(self, change):
        self.change = change

    def __call__(self, lists):
        return iter(self.change([Ordering(c.query_id, c.doc_ids, self.name) for c in lists]))


def first(**changes):
    return lambda said: [replace(said[0], **changes), *said[1:]] if said else []


def flip_a_coin(said):
    side = next(draws) % 2
    return [replace(o, doc_ids=o.doc_ids[side:]) for o in said]


def repeat_a_document(said):
    again = copy(said[0])  # the constructor refuses it; what is copied or unpickled goes around the constructor
    object.__setattr__(again, "doc_ids", again.doc_ids[:1] * 2)
    return [again, *said[1:]]


BROKEN_TEACHERS = {
    "must give rerank.Ordering, not str": lambda said: ["q0"],
    "'q9', which it was not asked for": first(query_id="q9"),
    "which is none of its candidates": first(doc_ids=("d1000",)),
    "holds a document twice": repeat_a_document,
    "is empty": first(doc_ids=()),
    "does not name its teacher": first(teacher=""),
    "one score a document": first(scores=(1.0,)),
    "the best first": lambda said: first(scores=tuple(range(len(said[0].doc_ids))))(said),
    "at most one": lambda said: said + said[-1:],
    "in the order of the lists": lambda said: said[::-1],
    "asked twice": flip_a_coin,
    "no lists must give no orderings": lambda said: said or [Ordering("q0", ("d1",), "teaching")],
}


@pytest.mark.parametrize("promise", BROKEN_TEACHERS)
def test_a_broken_teacher_is_told_which_promise_it_broke(promise):
    check_teacher(Teaching(lambda said: said))
    with pytest.raises(ContractError) as error:
        check_teacher(Teaching(BROKEN_TEACHERS[promise]))
    assert promise in str(error.value)


def test_a_teacher_needs_a_name_and_lists_need_query_ids_of_their_own():
    nameless = Teaching(lambda said: said)
    nameless.name = ""
    with pytest.raises(ContractError, match="must have a name, not ''"):
        check_teacher(nameless)
    twice = [CandidateList("q", "text", ("a", "b"), ("1", "2"))] * 2
    with pytest.raises(InputError, match="same query id"):
        check_teacher(Judged(), twice)
