"""Clone and refine on tiny models: what they learn, what they count, and that a kill changes nothing."""

import copy
import json
import math
import types
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rerank import plackett_luce
from rerank.errors import InputError, TrainingError
from rerank.lists import batch_of, mask_of
from rerank.models.backbones import load_cross_encoder
from rerank.models.policy import FirstStageWeights, ScorePolicy
from rerank.objective.expected import expected_reward
from rerank.objective.sampled import ESTIMATORS
from rerank.objective.utility import utility_named
from rerank.randomness import generator
from rerank.rewards import FunctionReward, headroom, kendall, minimum, mixture, ndcg, reciprocal_rank
from rerank.rewards import with_labels as under_labels
from rerank.training import loop
from rerank.training.anchoring import Anchoring, automatic_temperature
from rerank.training.audit import audit, in_band
from rerank.training.clone import Clone
from rerank.training.headroom import has_headroom, relevant_first
from rerank.training.log import Log
from rerank.training.loop import Context, Dev, fit
from rerank.training.refine import Refine, _Reinforcement
from rerank.training.sampling import sublist
from rerank.training.schedule import Schedule
from rerank.types import CandidateList, Ordering

N = 6
FAST = {"learning_rate": 2e-3, "head_learning_rate": 1e-2, "lists_per_step": 4, "evaluations": 1, "warmup": 0.0}


def made_lists(n=8, size=N):
    """Lists with two relevant candidates (grades 2 and 1) at places that differ from list to list."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    lists = []
    for q in range(n):
        texts = tuple(f"{letters[(5 * q + 3 * i) % 26]}{letters[(7 * q + i) % 26]} {q}{i}" for i in range(size))
        labels = [0] * size
        labels[(q + 2) % size], labels[(2 * q + 1) % size] = 1, 2
        lists.append(
            CandidateList(
                query_id=f"q{q}",
                query=f"{letters[q % 26]} {letters[(3 * q) % 26]}",
                doc_ids=tuple(f"q{q}-d{i}" for i in range(size)),
                texts=texts,
                features={"bm25": tuple(float(size - i) for i in range(size))},
                labels=tuple(labels),
                pool=tuple(g for g in labels if g > 0),
            )
        )
    return lists


def ordering_of(candidates, teacher="t", shift=2, keep=None):
    """An arbitrary ordering of a list: the candidates from `shift` on, then those before, cut to `keep`."""
    order = [*range(shift, len(candidates)), *range(shift)][:keep]
    return Ordering(candidates.query_id, tuple(candidates.doc_ids[i] for i in order), teacher)


def agreement(policy, lists, orderings):
    """Mean nDCG of the policy's rankings when the teacher's places are the grades."""
    total = 0.0
    for candidates, ordering in zip(lists, orderings, strict=True):
        grades = {d: len(ordering.doc_ids) - i for i, d in enumerate(ordering.doc_ids)}
        labels = tuple(grades.get(d, 0) for d in candidates.doc_ids)
        total += mean_reward(policy, [with_labels(candidates, labels)], ndcg(len(candidates)))
    return total / len(lists)


def mean_reward(policy, lists, reward):
    with torch.inference_mode():
        scores = policy.eval().scores(lists)
    return float(reward(plackett_luce.best(scores, mask_of(lists))[:, None], batch_of(lists)).mean())


class Table(torch.nn.Module):
    """A scorer with a score of its own for each document, that counts its calls: what it learns of one list says
    nothing of another."""

    def __init__(self, lists):
        super().__init__()
        self.place = {d: i for i, d in enumerate(d for c in lists for d in c.doc_ids)}
        start = [-0.5 * i for c in lists for i in range(len(c))]
        self.score = torch.nn.Parameter(torch.tensor(start))
        self.calls = 0

    def encode(self, lists):
        return [d for c in lists for d in c.doc_ids]

    def logits(self, items):
        self.calls += 1
        return self.score[torch.tensor([self.place[d] for d in items])]

    def body(self):
        return []


def tabled(lists, first_stage=None):
    """A policy over a table of scores in first-stage order."""
    return ScorePolicy(Table(lists), None if first_stage is None else FirstStageWeights({"bm25": first_stage}))


def expected_under(policy, lists, reward):
    with torch.no_grad():
        return expected_reward(policy.all_views(lists)[0], reward, batch_of(lists))


@pytest.fixture(scope="module")
def fresh(tiny_bert):
    """A policy over a random cross-encoder with dropout and a small head."""
    scorer, _ = load_cross_encoder(str(tiny_bert), max_length=48, precision="float32", device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        torch.nn.init.normal_(scorer.model[-1].linear.weight, std=0.05)
    return ScorePolicy(scorer, None, budget=400)


@pytest.fixture
def policy(fresh):
    return copy.deepcopy(fresh)


@pytest.fixture
def calm(policy):
    """The policy without dropout."""
    policy.scorer.set_dropout(0.0)
    return policy


@pytest.fixture(scope="module")
def biased(fresh):
    """(lists, a policy cloned from a teacher that puts the relevant candidates below others)."""
    lists = made_lists()
    learnt = copy.deepcopy(fresh)
    learnt.scorer.set_dropout(0.0)
    orderings = []
    for c in lists:
        order = sorted(range(N), key=lambda i: (c.labels[i] > 0, i))
        order[2], order[-1] = order[-1], order[2]
        orderings.append(Ordering(c.query_id, tuple(c.doc_ids[i] for i in order), "biased"))
    Clone(steps=90, **FAST).run(learnt, lists, orderings, Context("clone"))
    assert agreement(learnt, lists, orderings) > 0.97
    return lists, learnt


def records(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


# What the stages learn


@pytest.mark.parametrize("loss", ["rank_net", "list_mle", "list_net", "margin_mse", "lambda_rank", "softmax"])
def test_a_tiny_model_learns_the_orderings_of_eight_lists_by_heart(loss, calm):
    lists = made_lists()
    orderings = [ordering_of(c) for c in lists]
    before = agreement(calm, lists, orderings)
    report = Clone(loss=loss, steps=90, **FAST).run(calm, lists, orderings, Context("clone"))
    after = agreement(calm, lists, orderings)
    assert before < 0.9
    assert after > (0.97 if loss != "margin_mse" else 0.95)
    assert (report["lists"], report["lists_without_ordering"], report["steps"]) == (8, 0, 90)


def first_is_relevant(doc_ids, candidates):
    return float(candidates.labels[candidates.doc_ids.index(doc_ids[0])]) / 2


REWARDS = {"exact": ndcg(10), "rloo": ndcg(10), "function": FunctionReward(first_is_relevant)}


@pytest.mark.parametrize("kind", list(REWARDS))
@pytest.mark.parametrize("utility", ["log", "linear"])
def test_refining_raises_the_reward_of_a_clone_of_a_biased_teacher(kind, utility, biased):
    lists, clone = biased
    learnt, reward = copy.deepcopy(clone), REWARDS[kind]
    estimator = "rloo" if kind == "rloo" else "auto"
    settings = Refine(steps=60, estimator=estimator, utility=utility, anchor=0.0, **FAST)
    before = mean_reward(clone, lists, reward)
    report = settings.run(learnt, lists, reward, Context("refine"))
    assert report["estimator"] == ("exact" if kind == "exact" else "rloo")
    after = mean_reward(learnt, lists, reward)
    assert before < 0.75
    assert after > (0.97 if kind == "exact" else before + 0.15)


def test_the_expected_reward_in_the_log_is_what_the_utility_is_taken_of(biased, tmp_path):
    lists, clone = biased
    for utility, of in (("log", math.log), ("linear", lambda e: e)):
        log = Log(tmp_path / f"{utility}.jsonl")
        settings = Refine(steps=3, utility=utility, anchor=0.0, **{**FAST, "lists_per_step": 1})
        settings.run(copy.deepcopy(clone), lists, ndcg(10), Context("refine", log=log))
        log.close()
        steps = [r for r in records(tmp_path / f"{utility}.jsonl") if "loss" in r]
        assert len(steps) == 3
        for record in steps:
            assert record["loss"] == pytest.approx(-of(record["expected"]), rel=1e-4)
            assert "kl" not in record, "without an anchor there is no reference to be away from"


def test_an_anchored_loss_in_the_log_is_the_utility_and_its_share_of_the_kl(biased, tmp_path):
    lists, clone = biased
    log = Log(tmp_path / "metrics.jsonl")
    settings = Refine(steps=4, anchor=0.5, **{**FAST, "lists_per_step": 1})
    settings.run(copy.deepcopy(clone), lists, ndcg(10), Context("refine", log=log))
    log.close()
    steps = [r for r in records(tmp_path / "metrics.jsonl") if "loss" in r]
    assert steps[0]["kl"] == pytest.approx(0.0, abs=1e-5), "the first step starts at the clone"
    assert steps[-1]["kl"] > 1e-4
    for record in steps:
        assert record["loss"] == pytest.approx(-math.log(record["expected"]) + 0.5 * record["kl"], rel=1e-4)


def test_the_anchor_keeps_the_policy_nearer_to_its_clone(biased):
    lists, clone = biased
    moved = []
    for anchor in (0.0, 0.5, 20.0):
        learnt = copy.deepcopy(clone)
        Refine(steps=25, anchor=anchor, temperature=1.0, **FAST).run(learnt, lists, ndcg(10), Context("refine"))
        with torch.inference_mode():
            kl = plackett_luce.top1_kl(learnt.eval().scores(lists), clone.eval().scores(lists), mask_of(lists))
        moved.append(float(kl.mean()))
    assert moved[0] > moved[1] > moved[2]
    assert moved[2] < 0.2 * moved[0]


def test_training_with_first_stage_scores_improves_both_views(calm):
    lists = made_lists()
    orderings = [ordering_of(c) for c in lists]
    both = ScorePolicy(calm.scorer, FirstStageWeights({"bm25": 1.0}), budget=400)
    before = {view: run for view, run in zip(("served", "plain"), both.eval().all_views(lists).detach(), strict=True)}
    Clone(steps=90, **FAST).run(both, lists, orderings, Context("clone"))
    assert agreement(both, lists, orderings) > 0.97
    assert agreement(ScorePolicy(both.scorer, None), lists, orderings) > 0.97
    assert not torch.equal(before["served"], before["plain"])


def test_only_the_plain_scores_are_trained_when_they_have_the_whole_loss(calm):
    lists = made_lists()
    both = ScorePolicy(calm.scorer, FirstStageWeights({"bm25": 1.0}), budget=400)
    settings = Clone(steps=3, plain_weight=1.0, fit_first_stage=False, **FAST)
    settings.run(both, lists, [ordering_of(c) for c in lists], Context("clone"))
    assert both.first_stage.as_dict()["bm25"] == 1.0


# Several and partial orderings


def test_two_teachers_that_order_different_parts_are_both_followed(calm):
    lists = made_lists(4)
    first = [Ordering(c.query_id, tuple(c.doc_ids[i] for i in (4, 0, 2)), "a") for c in lists]
    second = [Ordering(c.query_id, tuple(c.doc_ids[i] for i in (5, 1, 3)), "b") for c in lists]
    Clone(steps=90, **FAST).run(calm, lists, [*first, *second], Context("clone"))
    with torch.inference_mode():
        scores = calm.eval().scores(lists)
    for best, middle, worst in ((4, 0, 2), (5, 1, 3)):
        assert (scores[:, best] > scores[:, middle]).all()
        assert (scores[:, middle] > scores[:, worst]).all()


def test_teachers_who_contradict_each_other_leave_the_scores_together(calm):
    lists = made_lists(4)
    torch.nn.init.normal_(calm.scorer.model[-1].linear.weight, std=0.5)
    with torch.inference_mode():
        before = calm.eval().scores(lists).std(-1).mean()
    there = [ordering_of(c, "a") for c in lists]
    back = [Ordering(o.query_id, o.doc_ids[::-1], "b") for o in there]
    Clone(steps=60, **FAST).run(calm, lists, [*there, *back], Context("clone"))
    with torch.inference_mode():
        assert calm.eval().scores(lists).std(-1).mean() < 0.2 * before


def test_equal_teacher_scores_are_ties_and_prefer_nothing(calm):
    lists = made_lists(4)
    tied = [Ordering(c.query_id, c.doc_ids, "t", (1.0,) * N) for c in lists]
    start = {name: p.clone() for name, p in calm.state_dict().items()}
    Clone(steps=5, weight_decay=0.0, **FAST).run(calm, lists, tied, Context("clone"))
    for name, value in calm.state_dict().items():
        assert torch.equal(value, start[name]), name


def test_lists_without_an_ordering_of_two_candidates_are_left_out_and_counted(calm):
    lists = made_lists(5)
    orderings = [
        ordering_of(lists[0]),
        ordering_of(lists[1], keep=1),
        Ordering("q2", ("elsewhere-1", "elsewhere-2"), "t"),
        Ordering("unknown query", lists[3].doc_ids, "t"),
        Ordering("q4", ("elsewhere", *lists[4].doc_ids[:2]), "t"),
    ]
    report = Clone(steps=1, **FAST).run(calm, lists, orderings, Context("clone"))
    assert (report["lists"], report["lists_without_ordering"]) == (2, 3)


def test_orderings_of_nothing_are_refused(calm):
    lists = made_lists(2)
    for orderings in ([], [ordering_of(lists[0], keep=1)]):
        with pytest.raises(InputError, match="no teacher ordered two candidates of any of the 2 lists"):
            Clone(steps=1).run(calm, lists, orderings, Context("clone"))


# What refinement leaves out


def with_labels(candidates, labels):
    return replace(candidates, labels=labels)


def test_lists_without_headroom_are_dropped_and_counted(calm):
    base = made_lists(5)
    lists = [
        base[0],
        with_labels(base[1], (0,) * N),
        with_labels(base[2], (1,) * N),
        with_labels(base[3], None),
        with_labels(base[4], (0, -1, -2, 0, 0, 0)),
    ]
    assert [has_headroom(c) for c in lists] == [True, False, False, False, False]
    report = Refine(steps=1, **FAST).run(calm, lists, ndcg(10), Context("refine"))
    assert (report["lists"], report["lists_without_headroom"]) == (1, 4)
    with pytest.raises(InputError, match="none of the 4 lists has a relevant candidate to move"):
        Refine(steps=1, **FAST).run(calm, lists[1:], ndcg(10), Context("refine"))


def test_a_function_may_reward_lists_without_labels(calm):
    lists = [with_labels(c, None) for c in made_lists(3)]
    reward = FunctionReward(lambda doc_ids, candidates: float(doc_ids[0].endswith("d3")), cutoff=1)
    before = mean_reward(calm, lists, reward)
    report = Refine(steps=80, anchor=0.0, **FAST).run(calm, lists, reward, Context("refine"))
    assert report["lists"] == 3
    assert mean_reward(calm, lists, reward) > max(before, 0.6)


def test_an_exact_gradient_of_a_plain_function_is_refused(calm):
    reward = FunctionReward(first_is_relevant, "mine")
    for unknown, name in ((reward, "mine"), (mixture({ndcg(3): 1.0, reward: 1.0}), "mine")):
        with pytest.raises(InputError, match=f"the expectation of .*{name} is not known: give a sampled .* as rloo"):
            Refine(steps=1, estimator="exact").run(calm, made_lists(), unknown, Context("refine"))


def test_relevant_candidates_come_first_by_grade():
    (one,) = made_lists(1)
    assert relevant_first(with_labels(one, (0, 1, 0, 2, -1, 1))) == [3, 1, 5]
    assert relevant_first(with_labels(one, None)) == []


# Estimators and rewards

QUICK = {"head_learning_rate": 0.05, "evaluations": 1, "warmup": 0.0, "weight_decay": 0.0, "clip_norm": 100.0}


@pytest.mark.parametrize("estimator", ["auto", "exact", *ESTIMATORS])
def test_every_estimator_raises_the_expected_reward(estimator):
    lists = made_lists()
    policy = tabled(lists)
    before = expected_under(policy, lists, ndcg(3))
    settings = Refine(steps=50, estimator=estimator, temperature=1.0, anchor=0.0, samples=8, **QUICK)
    report = settings.run(policy, lists, ndcg(3), Context("refine"))
    after = expected_under(policy, lists, ndcg(3))
    assert after.mean() > before.mean() + 0.2
    assert (after > before).all()
    exact = estimator in ("auto", "exact")
    assert (report["estimator"], report["utility"]) == (("exact", "log") if exact else (estimator, "linear"))


@pytest.mark.parametrize("utility", ["log", "linear", "power:0.5", "pass@4"])
def test_every_utility_is_taken_as_it_is_given(utility):
    lists = made_lists()
    policy = tabled(lists)
    settings = Refine(steps=20, utility=utility, temperature=1.0, anchor=0.0, **QUICK)
    assert settings.run(policy, lists, ndcg(3), Context("refine"))["utility"] == utility
    assert expected_under(policy, lists, ndcg(3)).mean() > expected_under(tabled(lists), lists, ndcg(3)).mean() + 0.1


def test_grpo_says_what_it_does_to_rare_luck_and_no_other_estimator_does(caplog):
    lists = made_lists()
    for estimator in ("exact", *ESTIMATORS):
        caplog.clear()
        with caplog.at_level("INFO", "rerank.training"):
            Refine(steps=1, estimator=estimator, **QUICK).run(tabled(lists), lists, ndcg(3), Context("refine"))
        assert ("note: grpo divides by the deviation" in caplog.text) == (estimator == "grpo")


def grades_of_a_second_judge(lists):
    return {c.query_id: {c.doc_ids[-1]: 2, c.doc_ids[-2]: 1} for c in lists}


NEW_REWARDS = {
    "mixture": lambda lists: mixture({ndcg(3): 0.8, reciprocal_rank(5): 0.2}),
    "minimum": lambda lists: minimum([ndcg(3), under_labels(ndcg(3), grades_of_a_second_judge(lists))]),
    "with_labels": lambda lists: under_labels(ndcg(3), grades_of_a_second_judge(lists)),
    "kendall": lambda lists: kendall([ordering_of(c, shift=3) for c in lists]),
    "headroom": lambda lists: headroom(ndcg(3)),
    "mixture with kendall": lambda lists: mixture({ndcg(3): 0.5, kendall([ordering_of(c) for c in lists]): 0.5}),
}


@pytest.mark.parametrize("name", list(NEW_REWARDS))
def test_combined_rewards_are_refined_through_their_exact_expectation(name):
    lists = made_lists()
    policy, reward = tabled(lists), NEW_REWARDS[name](lists)
    before = expected_under(policy, lists, reward)
    report = Refine(steps=50, temperature=1.0, anchor=0.0, **QUICK).run(policy, lists, reward, Context("refine"))
    after = expected_under(policy, lists, reward)
    assert report["estimator"] == "exact"
    assert report["utility"] == ("linear" if name == "headroom" else "log")
    assert after.mean() > before.mean() + 0.15
    assert (after > before).all()


@pytest.mark.parametrize("name", ["with_labels", "kendall"])
def test_rewards_that_do_not_look_at_the_lists_labels_need_none(name):
    lists = [with_labels(c, None) for c in made_lists()]
    policy, reward = tabled(lists), NEW_REWARDS[name](lists)
    before = expected_under(policy, lists, reward)
    report = Refine(steps=50, temperature=1.0, anchor=0.0, **QUICK).run(policy, lists, reward, Context("refine"))
    assert (report["lists"], report["lists_without_headroom"]) == (8, 0)
    assert (expected_under(policy, lists, reward) > before).all()


@pytest.mark.parametrize("estimator", ["auto", "rloo"])
def test_rewards_that_can_be_negative_get_linear_utility_and_refuse_any_other(estimator):
    lists, reward = made_lists(), headroom(ndcg(3))
    for utility in ("log", "power:0.5", "pass@2"):
        with pytest.raises(InputError, match=r"headroom\(nDCG@3\) can be negative: only utility 'linear'"):
            Refine(steps=1, utility=utility, estimator=estimator).run(tabled(lists), lists, reward, Context("refine"))
    for utility in ("auto", "linear"):
        settings = Refine(steps=1, utility=utility, estimator=estimator, **QUICK)
        assert settings.run(tabled(lists), lists, reward, Context("refine"))["utility"] == "linear"


def test_a_function_that_returns_no_number_is_an_input_error(caplog):
    lists = made_lists()
    for found, message in ((math.nan, "not a finite number|nan"), ("much", "much")):
        reward = FunctionReward(lambda doc_ids, candidates, found=found: found, "mine")
        with pytest.raises(InputError, match=message):
            Refine(steps=1, **QUICK).run(tabled(lists), lists, reward, Context("refine"))


# The band


def test_the_band_keeps_the_lists_that_the_audit_puts_into_it_and_no_other_moves():
    lists = [*made_lists(), with_labels(made_lists(9)[8], (0,) * N)]
    start = tabled(lists)
    usable = [c for c in lists if has_headroom(c)]
    band = (0.4, 0.85)
    kept = {usable[i].query_id for i in in_band(audit(start, usable, ndcg(3)), *band)}
    assert 0 < len(kept) < len(usable)
    policy = copy.deepcopy(start)
    settings = Refine(steps=4, band=band, anchor=0.0, **QUICK)
    report = settings.run(policy, lists, ndcg(3), Context("refine"))
    assert report["lists"] == len(kept)
    assert report["lists_out_of_band"] == len(usable) - len(kept)
    assert report["lists_without_headroom"] == 1
    moved = {
        c.query_id for c in lists if not torch.equal(policy.all_views([c]).detach(), start.all_views([c]).detach())
    }
    assert moved == kept


def test_a_band_without_a_list_is_refused_and_no_band_keeps_all():
    lists = [with_labels(c, (2, 1, 0, 0, 0, 0)) for c in made_lists()]
    with pytest.raises(InputError, match=r"band = \[0.1, 0.9\] keeps none of 8 lists: widen it"):
        Refine(steps=1, band=(0.1, 0.9)).run(tabled(lists), lists, ndcg(3), Context("refine"))
    report = Refine(steps=1, **QUICK).run(tabled(lists), lists, ndcg(3), Context("refine"))
    assert (report["lists"], report["lists_out_of_band"]) == (8, 0)


# What a step computes


def reinforcement(lists, **settings):
    refine = Refine(**{"estimator": "rloo", "anchor": 0.0, "temperature": 0.5, "samples": 6, **settings})
    anchoring = Anchoring(tabled(lists), lists, refine, Context("refine"), True, temperature=refine.temperature)
    return _Reinforcement(refine, ndcg(3), refine.estimator, refine.utility, anchoring)


@pytest.mark.parametrize("estimator", list(ESTIMATORS))
@pytest.mark.parametrize("utility", ["linear", "log", "pass@4"])
def test_a_sampled_step_has_the_value_of_the_utility_and_the_gradient_of_the_estimate(estimator, utility):
    lists = [c.subset(range(size)) for c, size in zip(made_lists(4), (6, 4, 5, 6), strict=True)]
    batch = batch_of(lists)
    objective = reinforcement(lists, estimator=estimator, utility=utility, list_clip=1e9)
    scores = tabled(lists).all_views(lists)[0].detach().requires_grad_()
    losses, facts = objective(scores, batch, 0, 17)
    (gradient,) = torch.autograd.grad(losses.sum(), scores)
    found = ESTIMATORS[estimator](scores.detach() / 0.5, ndcg(3), batch, 6, generator(17))
    value = found.value.clone().requires_grad_()
    utilities = utility_named(utility)(value)
    (slope,) = torch.autograd.grad(utilities.sum(), value)
    assert torch.allclose(losses.detach(), -utilities.detach(), atol=1e-6)
    assert torch.allclose(gradient, -slope[:, None] * found.gradient / 0.5, atol=1e-6)
    assert gradient.abs().sum() > 0.1 and not gradient[~batch.mask].any()
    assert facts["expected"] == pytest.approx(float(found.value.mean()))


def test_a_sampled_gradient_of_a_list_is_cut_to_so_many_times_the_median():
    lists = made_lists(7)
    batch = batch_of(lists)

    def norms(clip):
        scores = tabled(lists).all_views(lists)[0].detach()
        scores[0] *= 0.01  # a list without any preference has by far the largest gradient
        scores[1:] *= 4.0
        scores.requires_grad_()
        losses, _ = reinforcement(lists, samples=64, utility="linear", list_clip=clip)(scores, batch, 0, 3)
        return torch.autograd.grad(losses.sum(), scores)[0].norm(dim=-1)

    free, cut = norms(1e9), norms(2.0)
    limit = 2.0 * free[free > 0].quantile(0.5)
    assert (free > limit).any()
    assert cut.tolist() == pytest.approx(free.clamp(max=limit).tolist(), rel=1e-4)


def test_a_step_of_refinement_scores_its_lists_as_often_as_a_step_of_cloning():
    lists = made_lists()
    orderings = [ordering_of(c) for c in lists]

    def calls(stage, steps, **settings):
        policy = tabled(lists, first_stage=1.0)
        settings = {"steps": steps, "fit_first_stage": False, "lists_per_step": 3, **QUICK, **settings}
        made = Clone(**settings) if stage == "clone" else Refine(**settings)
        made.run(policy, lists, orderings if stage == "clone" else ndcg(3), Context(stage))
        return policy.scorer.calls

    def a_step(stage, **settings):
        return (calls(stage, 7, **settings) - calls(stage, 2, **settings)) / 5

    cloned = a_step("clone")
    assert cloned == 1
    for estimator in ("exact", "rloo", "pl_rank_rb"):
        assert a_step("refine", anchor=0.0, estimator=estimator) == cloned
    # An anchor asks the reference, which is a policy of its own: the trained one is still scored once.
    assert a_step("refine", anchor=1.0) == a_step("clone", anchor=1.0) == cloned


# Temperature


@given(scale=st.sampled_from([0.3, 1.0, 30.0]), entropy=st.sampled_from([0.5, 1.25, 2.0]), seed=st.integers(0, 5))
def test_the_automatic_temperature_leaves_the_entropy_asked_for(scale, entropy, seed):
    scores = torch.randn(6, 40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    mask = torch.ones(6, 40, dtype=torch.bool)
    temperature = automatic_temperature(scores, mask, entropy)
    draws = plackett_luce.sample(scores / temperature, mask, 64, generator("other draws"))
    found = plackett_luce.entropy_by_rank(scores / temperature, mask, draws, 10).mean()
    assert float(found) == pytest.approx(entropy, abs=0.05)


def test_the_automatic_temperature_scales_with_the_scores_and_ignores_padding_and_shifts():
    scores = torch.randn(4, 12, generator=torch.Generator().manual_seed(3))
    mask = torch.ones(4, 12, dtype=torch.bool)
    plain = automatic_temperature(scores, mask, 1.25)
    assert automatic_temperature(3 * scores, mask, 1.25) == pytest.approx(3 * plain, rel=1e-3)
    assert automatic_temperature(scores + 50, mask, 1.25) == pytest.approx(plain, rel=1e-3)
    wide = torch.cat([scores, torch.full((4, 3), -torch.inf)], 1)
    wide_mask = torch.cat([mask, torch.zeros(4, 3, dtype=torch.bool)], 1)
    assert automatic_temperature(wide, wide_mask, 1.25) == pytest.approx(plain, rel=0.1)


@pytest.mark.parametrize("value", [0.0, 5.0, -3.0])
def test_the_temperature_of_scores_that_are_all_equal_is_one(value):
    scores, mask = torch.full((3, 5), value), torch.ones(3, 5, dtype=torch.bool)
    assert automatic_temperature(scores, mask, 1.25) == 1.0


def test_short_lists_get_most_of_the_entropy_they_allow():
    scores = torch.tensor([[3.0, 1.0, 0.0]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    temperature = automatic_temperature(scores, mask, 1.25)
    draws = plackett_luce.sample(scores / temperature, mask, 256, generator("t"))
    most = (math.log(3) + math.log(2) + 0.0) / 3
    found = float(plackett_luce.entropy_by_rank(scores / temperature, mask, draws, 10).mean())
    assert found == pytest.approx(0.9 * most, abs=0.03)
    assert automatic_temperature(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), 1.25) == 1.0


# Steps that fail


def failing(*bad):
    """An objective that is not finite at the steps `bad` (counted from 0)."""
    calls = iter(range(10**6))

    def objective(scores, batch, view, key):
        losses = (scores * torch.arange(scores.shape[1])).sum(-1) * 0.01
        return losses * (torch.nan if next(calls) in bad else 1.0), {}

    return objective


ONE_GROUP = Schedule(steps=8, **FAST)


def test_a_step_without_a_finite_loss_is_skipped_and_counted(calm, tmp_path):
    log = Log(tmp_path / "metrics.jsonl")
    lists = made_lists()
    report = fit(calm, lists, failing(1, 2, 3, 4, 6), lambda c: [], ONE_GROUP, Context("stage", log=log))
    log.close()
    assert report["skipped_steps"] == 5
    assert all(torch.isfinite(p).all() for p in calm.parameters())
    steps = [r for r in records(tmp_path / "metrics.jsonl") if "loss" in r]
    assert [r["loss"] is None for r in steps] == [False, True, True, True, True, False, True, False]


def test_a_skipped_step_leaves_the_weights_as_they_were(calm):
    start = {name: p.clone() for name, p in calm.state_dict().items()}
    fit(calm, made_lists(), failing(0, 1, 2), lambda c: [], Schedule(steps=3, **FAST), Context("stage"))
    for name, value in calm.state_dict().items():
        assert torch.equal(value, start[name]), name


def test_five_failing_steps_in_a_row_end_the_stage(calm):
    with pytest.raises(TrainingError, match=r"5 steps in a row had a loss or gradient that is not finite .*'stage'"):
        fit(calm, made_lists(), failing(2, 3, 4, 5, 6), lambda c: [], ONE_GROUP, Context("stage"))


# Selection on dev lists


def test_the_weights_handed_over_are_never_worse_on_dev_than_those_at_the_start(biased):
    lists, clone = biased
    for select, wild in (("best", 0.5), ("best", 2e-3)):
        learnt = copy.deepcopy(clone)
        dev = Dev(lists, ndcg(10), "nDCG@10")
        before = dev.measure(learnt)["served"]
        upside_down = [Ordering(c.query_id, tuple(sorted(c.doc_ids, reverse=True)), "t") for c in lists]
        settings = Clone(steps=6, select=select, **{**FAST, "learning_rate": wild, "evaluations": 3})
        report = settings.run(learnt, lists, upside_down, Context("clone", dev=dev))
        after = dev.measure(learnt)["served"]
        assert after >= before
        assert report["dev"] == pytest.approx(after)


def test_a_stage_that_only_harms_hands_back_the_very_weights_it_got(biased):
    lists, clone = biased
    learnt = copy.deepcopy(clone)
    start = {name: p.clone() for name, p in learnt.state_dict().items()}
    worst_first = FunctionReward(lambda doc_ids, candidates: 1.0 - first_is_relevant(doc_ids, candidates) - 5.0)
    dev = Dev(lists, worst_first, "mine")
    settings = Refine(steps=20, anchor=0.0, **{**FAST, "evaluations": 4})
    report = settings.run(learnt, lists, ndcg(10), Context("refine", dev=dev))
    assert report["best_step"] == 0
    assert all(torch.equal(value, start[name]) for name, value in learnt.state_dict().items())
    assert dev.measure(learnt)["served"] >= dev.measure(clone)["served"]


def test_select_last_hands_over_the_last_weights_and_reports_their_dev_measure(biased):
    lists, clone = biased
    last, none = copy.deepcopy(clone), copy.deepcopy(clone)
    dev = Dev(lists, ndcg(10), "nDCG@10")
    orderings = [ordering_of(c) for c in lists]
    report = Clone(steps=6, select="last", **FAST).run(last, lists, orderings, Context("clone", dev=dev))
    Clone(steps=6, **FAST).run(none, lists, orderings, Context("clone"))
    assert report["best_step"] == 6
    assert report["dev"] == pytest.approx(dev.measure(last)["served"])
    assert all(torch.equal(value, none.state_dict()[name]) for name, value in last.state_dict().items())


def test_the_dev_measure_is_that_of_pytrec_eval(calm):
    import pytrec_eval

    lists = made_lists()
    measured = Dev(lists, ndcg(10, ideal="judged"), "nDCG@10").measure(calm)["served"]
    with torch.inference_mode():
        scores = calm.eval().scores(lists)
    run = {c.query_id: dict(zip(c.doc_ids, row, strict=False)) for c, row in zip(lists, scores.tolist(), strict=True)}
    qrels = {c.query_id: dict(zip(c.doc_ids, c.labels, strict=True)) for c in lists}
    found = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(run)
    assert measured == pytest.approx(sum(v["ndcg_cut_10"] for v in found.values()) / len(lists), abs=1e-5)


def test_a_dev_measure_that_is_no_number_names_its_reward(calm):
    dev = Dev(made_lists(), Scripted(calm, [math.nan]), "mine")
    with pytest.raises(InputError, match=r"reward Scripted: .* query 'q0' is not a finite number"):
        Refine(steps=1, **QUICK).run(calm, made_lists(), ndcg(3), Context("refine", dev=dev))


# Kill and resume


def graded_by_teacher(lists):
    """The lists with the teacher's first places as labels, so that cloning raises their nDCG."""
    return [with_labels(c, tuple(max(0, 3 - ordering_of(c).doc_ids.index(d)) for d in c.doc_ids)) for c in lists]


class Killed(Exception):
    """What stands for a kill in these tests."""


def killed_after(step):
    log = Log()

    def advance(at, facts):
        if at == step:
            raise Killed

    log.advance = advance
    return log


def clone_stage(policy, lists, context):
    settings = Clone(steps=10, **{**FAST, "evaluations": 5, "list_size": 4})
    return settings.run(policy, lists, [ordering_of(c) for c in lists], context)


def refine_stage(reward, **settings):
    def run(policy, lists, context):
        made = Refine(steps=10, samples=4, **settings, **{**FAST, "evaluations": 5, "list_size": 4})
        return made.run(policy, lists, reward, context)

    return run


KINDS = {
    "clone": clone_stage,
    "clone with first-stage scores": clone_stage,
    "clone in several passes": lambda policy, lists, context: Clone(
        steps=10, **{**FAST, "evaluations": 5, "graph_tokens": 60}
    ).run(policy, lists, [ordering_of(c) for c in lists], context),
    "refine exact": refine_stage(ndcg(10)),
    "refine rloo": refine_stage(ndcg(10), estimator="rloo"),
    "refine function": refine_stage(FunctionReward(first_is_relevant)),
    "refine with a moving reference and temperature": refine_stage(
        ndcg(10), anchor=0.5, reset_reference=3, keep_entropy=True, entropy_floor=1.0, calibration=0.1
    ),
    "clone with first-stage scores and an anchor": lambda policy, lists, context: Clone(
        steps=10, anchor=5.0, keep_entropy=True, **{**FAST, "evaluations": 5}
    ).run(policy, lists, [ordering_of(c) for c in lists], context),
    "refine with first-stage scores and no clone before": refine_stage(ndcg(10), fit_first_stage=True, anchor=0.5),
}


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize(("killed_at", "select"), [(5, "dev"), (8, "dev"), (5, "no dev")])
def test_a_killed_stage_ends_with_the_same_bits_as_one_that_was_not(
    kind, killed_at, select, policy, tmp_path, monkeypatch
):
    clock = iter(range(0, 10**9, 100))  # every evaluation is more than a minute after the last
    monkeypatch.setattr(loop, "time", types.SimpleNamespace(monotonic=lambda: float(next(clock))))
    lists = made_lists()
    dev = Dev(lists if kind.startswith("refine") else graded_by_teacher(lists), ndcg(10), "nDCG@10")
    dev = dev if select == "dev" else None
    run = KINDS[kind]
    if "first-stage" in kind:
        policy = ScorePolicy(policy.scorer, FirstStageWeights({"bm25": 1.0}), budget=400)
    whole, torn, resumed = (copy.deepcopy(policy) for _ in range(3))
    wanted = run(whole, lists, Context("stage", folder=tmp_path / "a", dev=dev))
    with pytest.raises(Killed):
        run(torn, lists, Context("stage", folder=tmp_path / "b", dev=dev, log=killed_after(killed_at)))
    assert [p.name for p in (tmp_path / "b").iterdir()] == [f"step-{killed_at // 2 * 2:06d}"]
    torch.rand(7)  # the global stream stands elsewhere, as it does in a new process
    found = run(resumed, lists, Context("stage", folder=tmp_path / "b", dev=dev, resume=True))
    assert found == wanted
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert not (tmp_path / "b").exists(), "a finished stage leaves no checkpoint"
    assert wanted["best_step"] > 0 or "first-stage" in kind  # there the fit before the first step may be the best
    assert not all(torch.equal(value, policy.state_dict()[name]) for name, value in whole.state_dict().items())


def test_a_stage_repeats_to_the_bit_and_another_seed_gives_other_weights(policy):
    made = []
    for seed in (0, 0, 1):
        one = copy.deepcopy(policy)
        clone_stage(one, made_lists(), Context("stage", seed=seed))
        made.append(one.state_dict())
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    assert not all(torch.equal(made[0][name], made[2][name]) for name in made[0])


class Scripted:
    """A dev reward that is worth one given number after the other, and remembers the weights it was asked about."""

    def __init__(self, policy, values):
        self.policy, self.values, self.seen = policy, iter(values), []

    def __call__(self, rankings, lists):
        self.seen.append({name: p.clone() for name, p in self.policy.state_dict().items()})
        return torch.full(rankings.shape[:2], next(self.values))


def patient(policy, lists, values, patience, log=None, **settings):
    script = Scripted(policy, values)
    context = Context("stage", dev=Dev(lists, script, "mine"), log=log or Log())
    made = Refine(steps=20, patience=patience, anchor=0.0, **{**QUICK, "evaluations": 10, **settings})
    return made.run(policy, lists, ndcg(3), context), script


def test_patience_ends_a_stage_after_so_many_evaluations_without_a_new_best_and_hands_over_the_best():
    lists = made_lists()
    policy = tabled(lists)
    # The start, then an evaluation every second step; the third beats what two idle ones did not.
    report, script = patient(policy, lists, [0.1, 0.3, 0.2, 0.5, 0.4, 0.5], patience=2)
    assert (report["steps"], report["best_step"], report["dev"]) == (10, 6, pytest.approx(0.5))
    assert len(script.seen) == 6
    for name, value in policy.state_dict().items():
        assert torch.equal(value, script.seen[3][name]), name
    assert not torch.equal(script.seen[3]["scorer.score"], script.seen[5]["scorer.score"])


def test_a_stage_that_never_beats_its_start_ends_early_and_hands_the_start_over():
    lists = made_lists()
    policy = tabled(lists)
    report, script = patient(policy, lists, [0.4, 0.4, 0.3], patience=2)
    assert (report["steps"], report["best_step"], report["dev"]) == (4, 0, pytest.approx(0.4))
    assert torch.equal(policy.scorer.score, tabled(lists).scorer.score)
    assert not torch.equal(policy.scorer.score, script.seen[-1]["scorer.score"])


def test_without_patience_all_steps_are_taken():
    lists = made_lists()
    report, _ = patient(tabled(lists), lists, [0.4] * 11, patience=None)
    assert (report["steps"], report["best_step"]) == (20, 0)


def test_a_stage_killed_when_its_patience_had_ended_does_not_go_on_afterwards(tmp_path, monkeypatch):
    clock = iter(range(0, 10**9, 100))
    monkeypatch.setattr(loop, "time", types.SimpleNamespace(monotonic=lambda: float(next(clock))))
    lists = made_lists()
    values = [0.1, 0.5, 0.4, 0.3, *[0.2] * 7]

    def run(policy, folder, values, **context):
        dev = Dev(lists, Scripted(policy, values), "mine")
        settings = Refine(steps=20, patience=2, anchor=0.0, **{**QUICK, "evaluations": 10})
        return settings.run(policy, lists, ndcg(3), Context("stage", folder=tmp_path / folder, dev=dev, **context))

    whole, torn, resumed = (tabled(lists) for _ in range(3))
    wanted = run(whole, "a", values)
    assert (wanted["steps"], wanted["best_step"]) == (6, 2)
    with pytest.raises(Killed):
        run(torn, "b", values, log=killed_after(6))
    found = run(resumed, "b", values[3:], resume=True)
    assert found == wanted
    assert torch.equal(whole.scorer.score, resumed.scorer.score)


@pytest.mark.parametrize(("plain_weight", "asked"), [(0.0, [0]), (0.5, [0, 1]), (1.0, [1])])
def test_a_view_without_a_share_of_the_loss_is_not_computed(plain_weight, asked, tmp_path):
    lists = made_lists()
    calls = []

    def objective(scores, batch, view, key):
        calls.append(view)
        return scores.square().sum(-1), {"view": float(view)}

    log = Log(tmp_path / "metrics.jsonl")
    policy = tabled(lists, first_stage=2.0)
    schedule = Schedule(steps=3, plain_weight=plain_weight, **QUICK)
    fit(policy, lists, objective, lambda c: [], schedule, Context("stage", log=log))
    log.close()
    assert calls == asked * 3
    steps = [r for r in records(tmp_path / "metrics.jsonl") if "loss" in r]
    assert [r["view"] for r in steps] == [float(asked[0])] * 3, "the log speaks of the served view where it has a share"
    moved = policy.first_stage.as_dict()["bm25"] != 2.0
    assert moved == (plain_weight < 1.0), "the first stage has no part in the plain scores"


def test_without_first_stage_scores_there_is_one_view_whatever_its_weight():
    lists = made_lists()
    for plain_weight in (0.0, 0.5, 1.0):
        policy = tabled(lists)
        Refine(steps=10, plain_weight=plain_weight, anchor=0.0, **QUICK).run(policy, lists, ndcg(3), Context("stage"))
        assert expected_under(policy, lists, ndcg(3)).mean() > expected_under(tabled(lists), lists, ndcg(3)).mean()


# Schedules and samples of lists


@given(
    n=st.integers(2, 20),
    size=st.integers(2, 12),
    important=st.lists(st.integers(0, 19), unique=True),
    seed=st.integers(0, 2**31),
)
def test_a_sublist_holds_the_important_ones_up_to_half_and_keeps_first_stage_order(n, size, important, seed):
    candidates = CandidateList("q", "q", tuple(f"{i:02d}" for i in range(n)), ("",) * n, labels=tuple(range(n)))
    important = [i for i in important if i < n]
    found = sublist(candidates, important, size, torch.Generator().manual_seed(seed))
    assert len(found) == min(n, size)
    assert list(found.doc_ids) == sorted(set(found.doc_ids))
    assert {f"{i:02d}" for i in important[: size // 2]} <= set(found.doc_ids)
    assert [f"{label:02d}" for label in found.labels] == list(found.doc_ids)


def test_a_sublist_is_a_function_of_its_draw_and_the_others_are_sampled_fairly():
    candidates = CandidateList("q", "q", tuple(map(str, range(10))), ("",) * 10)
    seen = [0] * 10
    for seed in range(2000):
        one, two = (sublist(candidates, [7], 4, torch.Generator().manual_seed(seed)).doc_ids for _ in range(2))
        assert one == two
        for doc_id in one:
            seen[int(doc_id)] += 1
    assert seen[7] == 2000
    expected = 2000 * 3 / 9
    assert all(abs(seen[i] - expected) < 5 * math.sqrt(expected * (1 - 3 / 9)) for i in range(10) if i != 7)


def test_every_list_is_visited_once_an_epoch(calm, tmp_path):
    seen = []

    def objective(scores, batch, view, key):
        seen.extend(c.query_id for c in batch.lists)
        return scores.sum(-1) * 0.0, {}

    settings = Schedule(epochs=2.0, **{**FAST, "lists_per_step": 2})
    report = fit(calm, made_lists(6), objective, lambda c: [], settings, Context("stage"))
    assert report["steps"] == 6
    assert sorted(seen[:6]) == sorted(seen[6:]) == [f"q{i}" for i in range(6)]
    assert seen[:6] != seen[6:]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lists_per_step", 0),
        ("list_size", 1),
        ("evaluations", 0),
        ("graph_tokens", 0),
        ("learning_rate", 0.0),
        ("learning_rate", -1.0),
        ("learning_rate", math.nan),
        ("head_learning_rate", 0.0),
        ("epochs", 0.0),
        ("steps", -1),
        ("plain_weight", 1.5),
        ("plain_weight", -0.1),
        ("clip_norm", 0.0),
        ("anchor", -1.0),
        ("reset_reference", -1),
        ("entropy_floor", -0.1),
        ("calibration", -0.1),
        ("patience", 0),
        ("minutes", 0.0),
    ],
)
def test_a_setting_out_of_range_is_named(name, value):
    for stage in (Clone, Refine):
        with pytest.raises(InputError, match=name):
            stage(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("estimator", "exakt"),
        ("utility", "sqrt"),
        ("temperature", 0.0),
        ("anchor", -0.1),
        ("anchor", "strong"),
        ("samples", 1),
        ("list_clip", 0.0),
        ("entropy", 0.0),
        ("gain", "cubic"),
        ("ideal", "all"),
        ("band", (0.5,)),
        ("band", (0.5, 0.2)),
        ("band", (0.5, 1.2)),
    ],
)
def test_a_refine_setting_out_of_range_is_named(name, value):
    with pytest.raises(InputError, match=name):
        Refine(**{name: value})


def test_settings_that_contradict_each_other_are_refused():
    for stage in (Clone, Refine):
        with pytest.raises(InputError, match="reset_reference = 5 moves the reference of an anchor, and anchor is 0"):
            stage(anchor=0.0, reset_reference=5)
    assert Refine(reset_reference=5).anchor == "auto"
    with pytest.raises(InputError, match=r"temperature = 1\.0 fixes it"):
        Refine(temperature=1.0, keep_entropy=True)


def test_an_unknown_loss_names_the_nearest():
    with pytest.raises(InputError, match=r"loss 'ranknet' is not known; did you mean 'rank_net'\?"):
        Clone(loss="ranknet")


@pytest.mark.parametrize(("unranked_last", "pushed_down"), [(False, False), (True, True)])
def test_candidates_that_a_teacher_left_out_are_ignored_or_tied_below_all_others(unranked_last, pushed_down):
    from rerank.lists import batch_of
    from rerank.training.clone import _Imitation

    candidates = CandidateList("q", "query", ("a", "b", "c", "d"), ("ta", "tb", "tc", "td"))
    objective = _Imitation("rank_net", {"q": [Ordering("q", ("c", "a"), "teacher")]}, unranked_last)
    scores = torch.zeros(1, 4, requires_grad=True)
    losses, _ = objective(scores, batch_of([candidates]), 0, 0)
    losses.sum().backward()
    a, b, c, d = scores.grad[0].tolist()
    assert c < 0 and c < a, "what the teacher ranks first rises"
    assert (b > 0) == pushed_down and (d > 0) == pushed_down
    assert b == d, "what the teacher left out is tied"
