"""What keeps a stage near where it began: the anchor's strength, KL and reference, the temperature, extra terms."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rerank import plackett_luce
from rerank.lists import batch_of
from rerank.models.policy import FirstStageWeights, ScorePolicy
from rerank.objective.calibration import cross_entropy
from rerank.randomness import generator
from rerank.rewards import ndcg
from rerank.teachers import Judged
from rerank.training.anchoring import ENOUGH, FEW, Anchoring, anchor_strength
from rerank.training.clone import Clone
from rerank.training.log import Log
from rerank.training.loop import Context
from rerank.training.refine import Refine
from rerank.training.schedule import Schedule
from rerank.types import CandidateList

FAST = {"head_learning_rate": 0.1, "evaluations": 1, "warmup": 0.0, "weight_decay": 0.0, "clip_norm": 100.0}


class Table(nn.Module):
    """A scorer with a score of its own for each document: what it learns of one says nothing of another."""

    def __init__(self, lists, spread=1.0):
        super().__init__()
        self.place = {d: i for i, d in enumerate(d for c in lists for d in c.doc_ids)}
        self.score = nn.Parameter(torch.randn(len(self.place), generator=generator("table")) * spread)

    def encode(self, lists):
        return [d for c in lists for d in c.doc_ids]

    def logits(self, items):
        return self.score[torch.tensor([self.place[d] for d in items])]

    def body(self):
        return []


def made_lists(sizes=(6, 5, 7, 6, 4, 6, 5, 6)):
    return [
        CandidateList(
            query_id=f"q{q}",
            query=f"query {q}",
            doc_ids=tuple(f"q{q}-d{i}" for i in range(size)),
            texts=("",) * size,
            features={"bm25": tuple(float(size - i) for i in range(size))},
            labels=tuple(2 if i == q % size else int(i == (q + 2) % size) for i in range(size)),
            pool=(2, 1),
        )
        for q, size in enumerate(sizes)
    ]


LISTS = made_lists()


def made_policy(spread=1.0, first_stage=None):
    weights = None if first_stage is None else FirstStageWeights({"bm25": first_stage})
    return ScorePolicy(Table(LISTS, spread), weights)


def moved(policy, by=0.5):
    """The policy with other scores."""
    other = copy.deepcopy(policy)
    with torch.no_grad():
        other.scorer.score += by * torch.randn(other.scorer.score.shape, generator=generator("moved"))
    return other


def no_loss(scores, batch, view, key):
    return torch.zeros(len(batch.lists)), {}


def anchoring_of(policy, schedule, **settings):
    return Anchoring(policy, LISTS, schedule, Context("stage"), **settings)


def steps_of(run, tmp_path):
    """The records of the steps that `run(context)` logs."""
    log = Log(tmp_path / "metrics.jsonl")
    run(Context("stage", log=log))
    log.close()
    written = (tmp_path / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, written) if "loss" in record]


# Strength


@pytest.mark.parametrize(
    ("n_lists", "strength"),
    [(0, 1.0), (1, 1.0), (50, 1.0), (100, 0.5), (250, 0.2), (499, 50 / 499), (500, 0), (9000, 0)],
)
def test_the_automatic_anchor_is_whole_for_few_lists_and_none_for_many(n_lists, strength):
    assert (FEW, ENOUGH) == (50, 500)
    assert anchor_strength("auto", n_lists) == pytest.approx(strength)


@given(n_lists=st.integers(0, 2000), more=st.integers(0, 2000), fixed=st.floats(0, 100))
def test_more_lists_never_have_a_stronger_anchor_and_a_number_is_taken_as_it_is(n_lists, more, fixed):
    assert 0.0 <= anchor_strength("auto", n_lists + more) <= anchor_strength("auto", n_lists) <= 1.0
    assert anchor_strength(fixed, n_lists) == fixed


def test_the_control_gets_the_anchor_reference_and_temperature_of_refinement():
    policy = made_policy()
    shared = {"anchor": "auto", "list_size": 5}
    control, refine = anchoring_of(policy, Clone(**shared)), anchoring_of(policy, Refine(**shared), tempered=True)
    assert control.weight == refine.weight == 1.0
    assert control.temperatures == refine.temperatures
    batch, scores = batch_of(LISTS), moved(policy).all_views(LISTS)[0]
    (one, said), (two, also) = (a.around(no_loss)(scores, batch, 0, 0) for a in (control, refine))
    assert torch.equal(one, two) and said == also and said["kl"] > 0.01


def test_the_stages_report_the_same_anchor_for_the_same_judged_lists():
    judged = [*LISTS, CandidateList("flat", "", ("x", "y"), ("", ""), labels=(1, 1))]
    orderings = list(Judged()(judged))
    for anchor, wanted in (("auto", 1.0), (0.25, 0.25), (0.0, 0.0)):
        control = Clone(steps=1, anchor=anchor, **FAST).run(made_policy(), judged, orderings, Context("labels"))
        refined = Refine(steps=1, anchor=anchor, **FAST).run(made_policy(), judged, ndcg(3), Context("refined"))
        assert control["anchor"] == refined["anchor"] == wanted
        assert control["lists"] == refined["lists"] == len(LISTS)


# KL and gradient


def test_the_kl_of_a_policy_to_itself_is_zero_and_has_no_gradient():
    policy = made_policy(first_stage=1.0)
    anchoring = anchoring_of(policy, Schedule(anchor=3.0))
    for view, scores in enumerate(policy.all_views(LISTS)):
        losses, facts = anchoring.around(no_loss)(scores, batch_of(LISTS), view, 0)
        assert losses.tolist() == pytest.approx([0.0] * len(LISTS), abs=1e-6)
        assert facts["kl"] == pytest.approx(0.0, abs=1e-6)
        losses.sum().backward(retain_graph=True)
    assert policy.scorer.score.grad.abs().max() < 1e-6


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_an_anchored_loss_has_the_value_and_the_gradient_of_its_formula(weight):
    policy = made_policy()
    anchoring = anchoring_of(policy, Schedule(anchor=weight), temperature=0.7)
    batch = batch_of(LISTS)
    reference = policy.all_views(LISTS)[0].detach()
    scores = moved(policy).all_views(LISTS)[0].detach().requires_grad_()
    slope = torch.arange(scores.shape[1], dtype=torch.float32)

    def objective(scores, batch, view, key):
        return (scores.masked_fill(~batch.mask, 0.0) * slope).sum(-1), {"kept": 5.0}

    losses, facts = anchoring.around(objective)(scores, batch, 0, 0)
    (gradient,) = torch.autograd.grad(losses.sum(), scores)
    losses = losses.detach()
    for b, c in enumerate(LISTS):
        n = len(c)
        p = (scores[b, :n].detach() / 0.7).double().softmax(-1)
        q = (reference[b, :n] / 0.7).double().softmax(-1)
        kl = (p * (p / q).log()).sum()
        own = (scores[b, :n].detach() * slope[:n]).sum()
        assert float(losses[b]) == pytest.approx(float(own + weight * kl), abs=1e-4)
        wanted = slope[:n] + weight / 0.7 * p * ((p / q).log() - kl)
        assert gradient[b, :n].tolist() == pytest.approx(wanted.tolist(), abs=1e-5)
        assert not gradient[b, n:].any()
    assert facts["kept"] == 5.0 and facts["kl"] > 0


def test_each_view_has_its_own_reference_and_temperature():
    policy = made_policy(first_stage=3.0)
    anchoring = anchoring_of(policy, Schedule(anchor=1.0))
    assert anchoring.temperatures[0] > 1.2 * anchoring.temperatures[1], "the residual widens the served scores"
    served, plain = policy.all_views(LISTS).detach()
    facts = [anchoring.around(no_loss)(plain, batch_of(LISTS), view, 0)[1]["kl"] for view in (0, 1)]
    assert facts[0] > 0.01 and facts[1] == pytest.approx(0.0, abs=1e-6)
    assert not torch.equal(served, plain)


def test_a_stage_that_asks_for_nothing_keeps_its_objective_and_no_copy_of_the_policy():
    anchoring = anchoring_of(made_policy(), Schedule())
    assert anchoring.around(no_loss) is no_loss
    assert anchoring.reference is None
    assert anchoring.temperatures == [1.0, 1.0]


def test_the_reference_is_a_still_copy():
    policy = made_policy().train()
    anchoring = anchoring_of(policy, Schedule(anchor=1.0))
    before = anchoring.reference.scorer.score.clone()
    scores = moved(policy).all_views(LISTS)[0]
    losses, _ = anchoring.around(no_loss)(scores, batch_of(LISTS), 0, 0)
    losses.sum().backward()
    with torch.no_grad():
        policy.scorer.score += 1.0
    assert not anchoring.reference.training, "dropout is noise that no policy could follow"
    assert anchoring.reference.scorer.score.grad is None
    assert torch.equal(anchoring.reference.scorer.score, before)


def test_an_anchor_holds_the_control_as_it_holds_refinement():
    def kl(stage, anchor):
        policy = made_policy()
        settings = {"steps": 30, "anchor": anchor, **FAST}
        if stage == "labels":
            Clone(**settings).run(policy, LISTS, list(Judged()(LISTS)), Context("stage"))
        else:
            Refine(**settings).run(policy, LISTS, ndcg(3), Context("stage"))
        views = [p.all_views(LISTS)[0].detach() for p in (policy, made_policy())]
        return float(plackett_luce.top1_kl(*views, batch_of(LISTS).mask).mean())

    for stage in ("labels", "refined"):
        free, held, tied = (kl(stage, anchor) for anchor in (0.0, 1.0, 30.0))
        assert free > held > tied
        assert tied < 0.2 * free


# What moves


def test_the_reference_is_moved_up_to_the_policy_every_so_many_steps(tmp_path):
    def divergences(folder, **settings):
        folder.mkdir()
        stage = Refine(steps=10, anchor=0.1, temperature=1.0, **settings, **FAST)
        found = steps_of(lambda context: stage.run(made_policy(), LISTS, ndcg(3), context), folder)
        return [record["kl"] for record in found]

    moving, still = divergences(tmp_path / "a", reset_reference=3), divergences(tmp_path / "b")
    at_rest = [step for step, kl in enumerate(moving) if kl < 1e-6]
    assert at_rest == [0, 3, 6, 9]
    assert [step for step, kl in enumerate(still) if kl < 1e-6] == [0]
    assert moving[:4][:3] == still[:3], "until the first move nothing differs"
    assert max(moving[4:]) < max(still[4:])


def test_the_temperature_follows_the_policy_at_evaluations_where_it_was_asked_to():
    for keep, evaluated, factor in ((True, True, 4.0), (True, False, 1.0), (False, True, 1.0)):
        policy = made_policy(first_stage=1.0)
        anchoring = anchoring_of(policy, Schedule(keep_entropy=keep), tempered=True)
        handed_out = anchoring.temperatures
        before = list(handed_out)
        with torch.no_grad():
            policy.scorer.score *= 4.0
            policy.first_stage.weight *= 4.0
        anchoring.after_step(1, evaluated)
        assert handed_out == pytest.approx([factor * t for t in before], rel=1e-3)


def test_a_fixed_temperature_stays_fixed():
    policy = made_policy()
    anchoring = anchoring_of(policy, Schedule(keep_entropy=True), tempered=True, temperature=0.3)
    with torch.no_grad():
        policy.scorer.score *= 4.0
    anchoring.after_step(1, True)
    assert anchoring.temperatures == [0.3, 0.3]


def test_what_has_moved_is_taken_up_again_from_its_tensors():
    schedule = Schedule(anchor=1.0, reset_reference=1, keep_entropy=True)
    policy = made_policy(first_stage=1.0)
    one, other = anchoring_of(policy, schedule), anchoring_of(policy, schedule)
    one.policy = moved(policy, 3.0)
    one.after_step(1, True)
    assert one.temperatures != other.temperatures
    other.restore({name: tensor.clone() for name, tensor in one.tensors().items()})
    assert other.temperatures == one.temperatures
    for name, tensor in one.reference.state_dict().items():
        assert torch.equal(tensor, other.reference.state_dict()[name]), name


def test_a_reference_that_was_fitted_before_the_first_step_is_taken_up_by_a_policy_that_was_not():
    fitted, unfitted = made_policy(first_stage=2.0), made_policy(first_stage=0.0)
    one, other = (anchoring_of(policy, Schedule(anchor=1.0)) for policy in (fitted, unfitted))
    other.restore(one.tensors())
    assert other.temperatures == one.temperatures
    assert other.first_temperature == one.first_temperature == one.temperatures[0]
    assert other.reference.first_stage.as_dict() == {"bm25": 2.0}


# Extra terms


def entropy_after(**settings):
    policy = made_policy()
    Refine(steps=40, temperature=1.0, anchor=0.0, utility="linear", **settings, **FAST).run(
        policy, LISTS, ndcg(3), Context("stage")
    )
    return float(plackett_luce.top1_entropy(policy.all_views(LISTS)[0].detach(), batch_of(LISTS).mask).mean())


def test_an_entropy_floor_leaves_the_policy_more_doubt():
    free, floored, higher = entropy_after(), entropy_after(entropy_floor=0.8), entropy_after(entropy_floor=1.2)
    assert free + 0.1 < floored < higher


def test_an_entropy_floor_below_what_there_is_costs_nothing():
    scores = torch.zeros(len(LISTS), 7).masked_fill(~batch_of(LISTS).mask, -torch.inf)
    for floor, dear in ((0.1, False), (1.5, True)):
        anchoring = anchoring_of(made_policy(), Schedule(entropy_floor=floor), temperature=1.0)
        losses, _ = anchoring.around(no_loss)(4 * scores, batch_of(LISTS), 0, 0)
        peaked = torch.arange(7.0).expand_as(scores).masked_fill(~batch_of(LISTS).mask, -torch.inf) * 9
        lacking, _ = anchoring.around(no_loss)(peaked, batch_of(LISTS), 0, 0)
        assert not losses.any(), "equal scores have all the entropy there is"
        assert (lacking > 0.05).all() and bool((lacking > 0.5).all()) == dear


def test_the_calibration_term_is_its_share_of_the_cross_entropy_of_the_bare_scores():
    policy = made_policy()
    scores, batch = policy.all_views(LISTS)[0], batch_of(LISTS)
    anchoring = anchoring_of(policy, Schedule(calibration=0.25), tempered=True, temperature=0.1)
    losses, _ = anchoring.around(no_loss)(scores, batch, 0, 0)
    assert torch.allclose(losses, 0.25 * cross_entropy(scores, batch.labels, batch.mask))


def test_lists_that_nobody_judged_have_no_part_in_the_calibration_term():
    policy, lists = made_policy(), [LISTS[0], replace(LISTS[1], labels=None)]
    scores, batch = policy.all_views(lists)[0].detach().requires_grad_(), batch_of(lists)
    losses, _ = anchoring_of(policy, Schedule(calibration=0.25)).around(no_loss)(scores, batch, 0, 0)
    [gradient] = torch.autograd.grad(losses.sum(), scores)
    assert losses[0] > 0 == losses[1]
    assert gradient[0].any() and not gradient[1].any()


def test_the_calibration_term_moves_the_level_of_the_scores_and_hardly_their_order():
    lists, batch = LISTS, batch_of(LISTS)

    def after(stage, **settings):
        policy = made_policy()
        with torch.no_grad():
            policy.scorer.score += 3.0
        if stage is None:
            return policy.all_views(lists)[0].detach()
        settings = {"steps": 150, **FAST, **settings}
        if stage is Clone:
            Clone(**settings).run(policy, lists, list(Judged()(lists)), Context("stage"))
        else:
            Refine(anchor=0.0, temperature=1.0, **settings).run(policy, lists, ndcg(3), Context("stage"))
        return policy.all_views(lists)[0].detach()

    def away(scores):
        return abs(float(scores[batch.mask].sigmoid().mean() - (batch.labels > 0)[batch.mask].float().mean()))

    def worth(scores):
        return float(ndcg(3)(plackett_luce.best(scores, batch.mask)[:, None], batch).mean())

    began = after(None)
    for stage in (Refine, Clone):
        plain, calibrated = after(stage), after(stage, calibration=0.1)
        loss, better = (cross_entropy(scores, batch.labels, batch.mask).mean() for scores in (plain, calibrated))
        assert better < 0.7 * loss
        assert away(calibrated) < 0.7 * away(plain)
        assert worth(calibrated) > worth(plain) - 0.02 > worth(began)
