"""Cloning and refinement of models that write: gradients against enumeration, learning, resuming, what is refused."""

import copy
import dataclasses
import itertools
import json
import types

import pytest
import tiny_language_models as tiny
import torch

from rerank.errors import InputError
from rerank.lists import batch_of
from rerank.models.language.answering import Writing
from rerank.models.language.generative import GenerativePolicy, GenerativeScorer
from rerank.models.language.reading import Reading
from rerank.prompting.prompts import Prompt
from rerank.rewards import FunctionReward, average_precision, err, ndcg, reciprocal_rank
from rerank.teachers.judged import Judged
from rerank.training import Clone, Context, Dev, Log, Refine, loop
from rerank.training.sampling import Portion
from rerank.training.step import Room
from rerank.training.written.actions import CLIP, learn, surrogate
from rerank.training.written.anchor import WrittenAnchor
from rerank.training.written.credit import advantages, earned_to_go, written_estimator
from rerank.training.written.stages import _Rollouts, clone_written, refine_written, target_of
from rerank.types import CandidateList, Ordering

BARE = Prompt(instruction="", request="", fenced=False)
TOKENIZER = tiny.tokenizer()


def policy(naming="letters", hidden=32, sharp=4.0, seed=0, **writing):
    model = tiny.model(hidden=hidden, seed=seed)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(sharp)
    reading = Reading(window=6, naming=naming, prompt=BARE, document_tokens=8, query_tokens=8)
    return GenerativePolicy(GenerativeScorer(model, TOKENIZER, reading, "float32", Writing(**writing))).eval()


def best_alone(lists):
    """The lists with only the greatest number relevant."""
    grades = [tuple(int(label == len(c) - 1) for label in c.labels) for c in lists]
    return [dataclasses.replace(c, labels=row, pool=row) for c, row in zip(lists, grades, strict=True)]


def portion_of(made, lists):
    items = [[item] for item in made.scorer.encode(lists)]
    return Portion(list(range(len(lists))), list(lists), items, len(lists), sum(map(len, lists)), [items[0][0]])


def taken(made):
    """The gradient that lies in the parameters, as one vector; it is removed."""
    found = torch.cat([p.grad.flatten() for p in made.parameters() if p.grad is not None])
    for p in made.parameters():
        p.grad = None
    return found


def gradient_of(made, value):
    value.backward()
    return taken(made)


def room_for(made, graph_tokens=100_000):
    return Room(made, graph_tokens)


def rollouts(made, reward, estimator="reward_to_go", samples=8, weight=0.0, price=0.5):
    return _Rollouts(reward, estimator, samples, WrittenAnchor(made, weight, 0), price)


def moved(made, seed=7, size=0.02):
    """Weights that differ a little."""
    other = copy.deepcopy(made)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(size * torch.randn(p.shape, generator=draw))
    return other


# ----------------------------------------------------------------------------------------------------------- gradients
@pytest.mark.parametrize("estimator", ["rloo", "grpo", "dr_grpo", "reinforce", "reward_to_go"])
def test_a_step_on_its_own_answers_takes_the_plain_policy_gradient(estimator):
    made, lists, reward = policy("numbers"), tiny.numbers(3, n=5), ndcg(cutoff=10)
    objective = rollouts(made, reward, estimator)
    prompts = made.scorer.encode(lists)
    noise = torch.rand(3, 8, made.scorer.answering.most_choices, generator=torch.Generator().manual_seed(0))
    drafts = made.drafts(prompts, list(noise.double()))
    lessons, facts = objective.lessons(made, lists, drafts)
    _, cut = learn(made, lessons, 1.0 / 24, 0.0, room_for(made), 0)
    found = taken(made)
    assert cut == 0.0
    rankings = made.rollout(lists, drafts).rankings
    batch = batch_of(lists)
    if estimator == "reward_to_go":
        credit = advantages(estimator, earned_to_go(reward, rankings, batch))
        totals = [made.log_probs(lists, rankings[..., : k + 1]) for k in range(5)]
        steps = torch.stack([totals[0], *(b - a for a, b in itertools.pairwise(totals))], -1)
        wanted = gradient_of(made, -(credit * steps).sum(-1).mean())
    else:
        credit = advantages(estimator, reward(rankings, batch)[..., None])[..., 0]
        wanted = gradient_of(made, -(credit * made.log_probs(lists, rankings)).mean())
    assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-6 + 1e-4 * float(wanted.abs().max()))
    assert facts["expected"] == pytest.approx(float(reward(rankings, batch).mean()))


@pytest.mark.parametrize(("estimator", "weight"), [("reward_to_go", 0.0), ("rloo", 0.0), ("reward_to_go", 0.5)])
def test_the_expected_gradient_is_that_of_all_rankings_weighed_by_their_chances(estimator, weight):
    """With an anchor, that of the expected reward minus the KL of whole rankings a place."""
    made, reward, n = policy("numbers", hidden=16), ndcg(cutoff=10), 4
    [candidates] = lists = tiny.numbers(1, n=n)
    every = torch.tensor([list(itertools.permutations(range(n)))])
    reference = moved(made)
    log_p = made.log_probs(lists, every)[0]
    with torch.no_grad():
        log_q = reference.log_probs(lists, every)[0]
    value = reward(every, batch_of(lists))[0] - weight * (log_p - log_q) / (n - 1)
    wanted = gradient_of(made, -(log_p.exp() * value).sum())
    objective = rollouts(made, reward, estimator, samples=16, weight=weight)
    objective.anchor.reference = reference
    portion, room = portion_of(made, lists), room_for(made)
    found = []
    for key in range(60):
        objective.gradients(made, portion, room, key, "test")
        found.append(taken(made))
    along = torch.stack(found) @ wanted / wanted.square().sum()
    error = float(along.std()) / len(found) ** 0.5
    assert error < 0.2
    assert float(along.mean()) == pytest.approx(1.0, abs=4 * error)
    # Across it there is nothing but noise.
    other = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(0))
    other -= wanted * (other @ wanted) / wanted.square().sum()
    across = torch.stack(found) @ other
    assert abs(float(across.mean())) < 4 * float(across.std()) / len(found) ** 0.5
    assert len(candidates) == n


def test_a_ratio_far_off_is_cut():
    old, credit = torch.zeros(6), torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0, -1.0])
    now = torch.tensor([0.5, 0.1, -0.5, -0.1, -0.5, 0.5], requires_grad=True)
    earned, cut = surrogate(now, old, credit)
    assert cut.tolist() == [True, False, True, False, False, False]
    (slope,) = torch.autograd.grad(earned.sum(), now)
    assert (slope == 0).tolist() == cut.tolist()
    assert float(earned[0].detach()) == pytest.approx(1 + CLIP)
    far, _ = surrogate(torch.tensor([500.0]), torch.zeros(1), torch.ones(1))
    assert bool(far.isfinite().all())


def test_answers_of_weights_that_have_moved_are_cut_and_counted():
    made, lists = policy(), tiny.numbers(4, n=5)
    noise = torch.rand(4, 8, made.scorer.answering.most_choices, generator=torch.Generator().manual_seed(0))
    drafts = moved(made, size=0.1).drafts(made.scorer.encode(lists), list(noise.double()))
    lessons, _ = rollouts(made, ndcg(cutoff=10)).lessons(made, lists, drafts)
    _, cut = learn(made, lessons, 1.0, 0.0, room_for(made), 0)
    taken(made)
    assert 0.1 < cut < 0.9


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_however_little_fits_at_once_the_gradient_is_the_same(weight):
    made, lists = policy(), tiny.numbers(3, n=5)
    reference, found = moved(made), []
    for graph_tokens, budget in ((100_000, 100_000), (150, 100_000), (40, 60)):
        made.budget = budget
        objective = rollouts(made, ndcg(cutoff=10), samples=4, weight=weight)
        objective.anchor.reference = reference if weight else None
        told = objective.gradients(made, portion_of(made, lists), room_for(made, graph_tokens), 5, "test")
        found.append((told, taken(made)))
    (first, wanted), *others = found
    for told, gradient in others:
        assert told.loss == pytest.approx(first.loss, abs=1e-5)
        assert told.facts == pytest.approx(first.facts, abs=1e-5)
        assert torch.allclose(gradient, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


# -------------------------------------------------------------------------------------------------------------- credit
@pytest.mark.parametrize("reward", [ndcg(cutoff=3), err(cutoff=10), average_precision(), reciprocal_rank(cutoff=2)])
def test_what_is_earned_from_the_first_place_on_is_the_reward(reward):
    lists = [tiny.numbers(1, n=n, seed=n)[0] for n in (5, 3)]
    lists = [dataclasses.replace(c, labels=tuple(min(3, label) for label in c.labels)) for c in lists]
    batch = batch_of(lists)
    draw = torch.Generator().manual_seed(0)
    rows = [[[*torch.randperm(len(c), generator=draw).tolist(), *range(len(c), 5)] for _ in range(6)] for c in lists]
    rankings = torch.tensor(rows)
    to_go = earned_to_go(reward, rankings, batch)
    assert torch.allclose(to_go[..., 0], reward(rankings, batch).float(), atol=1e-5)
    assert (to_go[..., :-1] - to_go[..., 1:] >= -1e-6).all()


def test_places_after_what_counts_get_no_credit():
    [candidates] = best_alone(tiny.numbers(1, n=5))
    first = candidates.labels.index(1)
    others = [i for i in range(5) if i != first]
    rankings = torch.tensor([[[first, *others], [first, *others[::-1]], [*others, first]]])
    credit = advantages("reward_to_go", earned_to_go(reciprocal_rank(cutoff=10), rankings, batch_of([candidates])))
    assert (credit[0, 0, 1:] < 0).all()  # nothing more can be earned, and the third ranking still does
    assert float(credit[0, 0, 0]) > 0 > float(credit[0, 2, 0])


def test_the_estimator_follows_from_the_reward():
    words = FunctionReward(lambda doc_ids, candidates: float(doc_ids[0] == "d0"), "first")
    assert written_estimator("auto", ndcg()) == "reward_to_go"
    assert written_estimator("auto", words) == "rloo"
    with pytest.raises(InputError, match="sum over places"):
        written_estimator("reward_to_go", words)
    with pytest.raises(InputError, match="not for a model that writes its ranking"):
        written_estimator("exact", ndcg())
    with pytest.raises(InputError, match="known: dr_grpo, grpo, reinforce, reward_to_go, rloo"):
        written_estimator("pl_rank", ndcg())


# ------------------------------------------------------------------------------------------------------------- cloning
def candidates_of(n):
    ids = tuple("abcdefgh"[:n])
    return CandidateList("q", "most", ids, ids)


def test_what_a_teacher_did_not_order_is_left_out():
    partly = Ordering("q", ("d", "b", "a"), "t")
    assert target_of(partly, candidates_of(5), False, 0) == ([3, 1], [0, 1, 3], [0, 2, 4])
    assert target_of(partly, candidates_of(5), True, 0) == ([3, 1, 0], None, [2, 4])
    assert target_of(Ordering("q", ("b",), "t"), candidates_of(3), False, 0).order == []


def test_ties_of_a_teacher_are_drawn_anew_and_nothing_is_learned_among_the_last():
    graded = Ordering("q", ("a", "b", "c", "d", "e"), "t", (2.0, 2.0, 2.0, 0.0, 0.0))
    found = {tuple(target_of(graded, candidates_of(5), False, key).order) for key in range(60)}
    assert found == set(itertools.permutations(range(3)))
    level = Ordering("q", ("a", "b"), "t", (1.0, 1.0))
    assert target_of(level, candidates_of(2), False, 0).order == []


@pytest.mark.parametrize("unranked", ["ignore", "last"])
def test_cloning_follows_the_cross_entropy_of_the_teachers_places(unranked):
    made, [candidates] = policy(), tiny.numbers(1, n=4)
    ordering = Ordering(candidates.query_id, ("d2", "d0", "d3"), "t")
    before = copy.deepcopy(made)
    records = []
    log = Log()
    log.record = lambda **facts: records.append(facts)
    Clone(steps=1, unranked=unranked, shuffle=False).run(made, [candidates], [ordering], Context("clone", log=log))
    if unranked == "last":
        with torch.no_grad():
            wanted = -before.log_probs([candidates], torch.tensor([[[2, 0, 3]]]))[0, 0] / 3
        assert records[-1]["loss"] == pytest.approx(float(wanted), abs=1e-4)
    else:
        chance = before.scorer.answering.retraced(before.scorer.encode([candidates])[0], [2, 0], [0, 2, 3])
        assert [len(choice.options) for choice in chance.choices] == [3, 2]
        assert 0 < records[-1]["loss"] < 10
    assert any(not torch.equal(a, b) for a, b in zip(made.parameters(), before.parameters(), strict=True))


def test_several_teachers_count_by_their_mean():
    losses = []
    [candidates] = tiny.numbers(1, n=4)
    orders = [("d2", "d0", "d3", "d1"), ("d1", "d3", "d0", "d2")]
    for chosen in ([0], [1], [0, 1]):
        records, log = [], Log()
        log.record = lambda records=records, **facts: records.append(facts)
        said = [Ordering(candidates.query_id, orders[i], f"t{i}") for i in chosen]
        clone_written(policy(), [candidates], said, Clone(steps=1, shuffle=False), Context("clone", log=log))
        losses.append(records[-1]["loss"])
    assert losses[2] == pytest.approx((losses[0] + losses[1]) / 2, abs=1e-5)


def test_a_model_learns_to_write_an_order_by_numbers_in_the_text():
    lists, held_out = tiny.numbers(400, n=4, highest=20), tiny.numbers(60, n=4, seed=5, highest=20, start=1000)
    dev = Dev(held_out, ndcg(cutoff=10), "nDCG@10")
    made = policy(hidden=64, sharp=1.0)
    settings = Clone(steps=330, lists_per_step=16, learning_rate=3e-3, evaluations=2)
    report = settings.run(made, lists, Judged()(lists), Context("clone", dev=dev))
    assert report["dev"] > 0.95 and report["lists"] == 400 and report["lists_without_ordering"] == 0


def test_refinement_alone_raises_the_reward_of_a_weak_model(tmp_path):
    lists = best_alone(tiny.numbers(400, n=4, highest=20))
    dev = Dev(best_alone(tiny.numbers(60, n=4, seed=5, highest=20, start=1000)), reciprocal_rank(cutoff=10), "RR@10")
    made = policy(hidden=64, sharp=1.0)
    begun = Clone(steps=75, lists_per_step=16, learning_rate=3e-3, evaluations=1)
    begun.run(made, lists, Judged()(lists), Context("clone"))
    before = dev.measure(made)["served"]
    settings = Refine(steps=70, lists_per_step=16, samples=4, learning_rate=3e-3, evaluations=4, graph_tokens=16_000)
    log = Log(tmp_path / "metrics.jsonl")
    report = settings.run(made, lists, reciprocal_rank(cutoff=10), Context("refine", dev=dev, log=log))
    log.close()
    assert 0.5 < before < 0.75 and report["dev"] > before + 0.06
    assert report["estimator"] == "reward_to_go" and 0 < report["anchor"] < 0.05
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {"expected", "malformed", "clipped", "entropy", "kl"} <= set(records[1])
    assert all(record["clipped"] == 0.0 for record in records[1:])


@pytest.mark.slow
def test_refinement_alone_brings_a_weak_model_far():
    lists = best_alone(tiny.numbers(400, n=4, highest=20))
    dev = Dev(best_alone(tiny.numbers(60, n=4, seed=5, highest=20, start=1000)), reciprocal_rank(cutoff=10), "RR@10")
    made = policy(hidden=64, sharp=1.0)
    begun = Clone(steps=75, lists_per_step=16, learning_rate=3e-3, evaluations=1)
    begun.run(made, lists, Judged()(lists), Context("clone"))
    assert dev.measure(made)["served"] < 0.75
    pace = {"lists_per_step": 16, "samples": 8, "learning_rate": 2e-3, "evaluations": 8, "graph_tokens": 16_000}
    settings = Refine(steps=400, anchor=0.0, **pace)
    assert settings.run(made, lists, reciprocal_rank(cutoff=10), Context("refine", dev=dev))["dev"] > 0.82


# -------------------------------------------------------------------------------------------------------- free answers
def test_free_answers_are_cloned_until_they_are_well_formed_and_malformed_ones_are_priced():
    made, lists = policy(hidden=64, sharp=1.0, constrained=False), tiny.numbers(60, n=3, highest=10)
    prompts, reward = made.scorer.encode(lists[:4]), ndcg(cutoff=10)
    noise = torch.rand(4, 8, made.scorer.answering.most_choices, generator=torch.Generator().manual_seed(0)).double()
    found = []
    for _ in range(2):
        drafts = made.drafts(prompts, list(noise))
        valid = made.rollout(lists[:4], drafts).valid
        found.append(float(valid.float().mean()))
        cheap, dear = (
            rollouts(made, reward, "reinforce", price=price).lessons(made, lists[:4], drafts) for price in (0.0, 0.5)
        )
        assert dear[1]["malformed"] == pytest.approx(1 - found[-1])
        gap = [float((a.credit - b.credit).mean()) for a, b in zip(cheap[0], dear[0], strict=True)]
        assert gap == pytest.approx((0.5 * (~valid).float()).flatten().tolist())
        settings = Clone(steps=120, lists_per_step=16, learning_rate=3e-3, evaluations=1)
        settings.run(made, lists, Judged()(lists), Context("clone"))
    assert found[0] == 0.0 and found[1] > 0.5


def test_a_model_that_thinks_learns_from_its_thoughts():
    made, lists = policy(thinking=4), tiny.numbers(2, n=3)
    objective = rollouts(made, ndcg(cutoff=10), samples=4, weight=0.1)
    objective.anchor.reference = moved(made)
    facts = objective.gradients(made, portion_of(made, lists), room_for(made), 0, "test").facts
    assert facts["clipped"] == 0.0 and facts["malformed"] == 0.0
    assert float(taken(made).norm()) > 0


# -------------------------------------------------------------------------------------------------------------- stages
class Killed(Exception):
    """What stands for a kill in these tests."""


def killed_after(step):
    log = Log()

    def advance(at, facts):
        if at == step:
            raise Killed

    log.advance = advance
    return log


STAGES = {
    "clone": lambda made, lists, context: Clone(steps=6, lists_per_step=2, evaluations=6).run(
        made, lists, Judged()(lists), context
    ),
    "refine": lambda made, lists, context: Refine(
        steps=6, lists_per_step=2, samples=3, evaluations=6, learning_rate=1e-3, anchor=0.2, reset_reference=2
    ).run(made, lists, ndcg(cutoff=10), context),
}


@pytest.mark.parametrize("stage", list(STAGES))
def test_a_killed_stage_ends_with_the_same_bits_as_one_that_was_not(stage, tmp_path, monkeypatch):
    clock = iter(range(0, 10**9, 100))  # every evaluation is more than a minute after the last
    monkeypatch.setattr(loop, "time", types.SimpleNamespace(monotonic=lambda: float(next(clock))))
    lists, run = tiny.numbers(6, n=4), STAGES[stage]
    dev = Dev(lists, ndcg(cutoff=10), "nDCG@10")
    whole, torn, resumed = (policy() for _ in range(3))
    wanted = run(whole, lists, Context(stage, folder=tmp_path / "a", dev=dev))
    with pytest.raises(Killed):
        run(torn, lists, Context(stage, folder=tmp_path / "b", dev=dev, log=killed_after(3)))
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["step-000003"]
    found = run(resumed, lists, Context(stage, folder=tmp_path / "b", dev=dev, resume=True))
    assert found == wanted and wanted["steps"] == 6
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"temperature": 2.0}, "temperature = 2.0"),
        ({"entropy": 0.5}, "entropy = 0.5"),
        ({"entropy_floor": 0.1}, "entropy_floor"),
        ({"keep_entropy": True}, "keep_entropy"),
        ({"calibration": 0.1}, "calibration"),
        ({"list_clip": 2.0}, "list_clip"),
        ({"utility": "log"}, "maximises 'linear'"),
        ({"estimator": "exact"}, "known: dr_grpo, grpo, reinforce, reward_to_go, rloo"),
    ],
)
def test_settings_without_a_meaning_for_written_rankings_are_refused(settings, said):
    with pytest.raises(InputError, match=said):
        Refine(steps=1, **settings).run(policy(), tiny.numbers(2, n=3), ndcg(cutoff=10), Context("refine"))


@pytest.mark.parametrize(("settings", "said"), [({"loss": "margin_mse"}, "margin_mse"), ({"anchor": 1.0}, "anchor")])
def test_losses_of_scores_are_refused_in_cloning(settings, said):
    lists = tiny.numbers(2, n=3)
    with pytest.raises(InputError, match=said):
        Clone(steps=1, **settings).run(policy(), lists, Judged()(lists), Context("clone"))


def test_lists_without_anything_to_learn_are_told_by_number():
    lists = [dataclasses.replace(c, labels=(0, 0, 0), pool=()) for c in tiny.numbers(2, n=3)]
    with pytest.raises(InputError, match="none of the 2 lists"):
        refine_written(policy(), lists, ndcg(cutoff=10), Refine(steps=1), Context("refine"))
    with pytest.raises(InputError, match="of any of the 2 lists"):
        clone_written(policy(), lists, [], Clone(steps=1), Context("clone"))
    with pytest.raises(InputError, match="malformed_price"):
        refine_written(policy(), lists, ndcg(cutoff=10), Refine(steps=1), Context("refine"), malformed_price=-1.0)
