"""The cached gradient of every loss and reward is that of one graph over the same dropped units, adapters included."""

import warnings

import peft
import pytest
import torch

from rerank.engine.batching import micro_batches
from rerank.engine.gradient_cache import backward, in_rounds, rounds_of
from rerank.lists import batch_of
from rerank.models.backbones import load_cross_encoder
from rerank.models.policy import FirstStageWeights, ScorePolicy
from rerank.objective.imitation import LOSSES
from rerank.randomness import dropout_key, key_of
from rerank.rewards import ndcg
from rerank.training.anchoring import Anchoring
from rerank.training.clone import Clone, _Imitation
from rerank.training.loop import Context, fit
from rerank.training.optimizing import groups_of
from rerank.training.refine import Refine, _Reinforcement
from rerank.training.schedule import Schedule
from rerank.types import CandidateList, Ordering

SIZES = (7, 2, 4)
BUDGET = 120


def made_lists():
    lists = []
    for q, size in enumerate(SIZES):
        texts = tuple(" ".join("abcdefgh"[(i + j + q) % 8] for j in range((11 * i + q) % 20 + 1)) for i in range(size))
        labels = tuple((i + q) % 3 for i in range(size))
        features = {"bm25": tuple(float(size - i) for i in range(size))}
        ids = tuple(f"q{q}d{i}" for i in range(size))
        lists.append(CandidateList(f"q{q}", f"query {q}", ids, texts, features, labels, labels))
    return lists


@pytest.fixture
def policy(tiny_bert):
    """A cross-encoder with dropout on, a head that is not zero, and first-stage scores."""
    scorer, _ = load_cross_encoder(str(tiny_bert), max_length=64, precision="float32", device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        torch.nn.init.normal_(scorer.model[2].linear.weight, std=0.3)
    return ScorePolicy(scorer, FirstStageWeights({"bm25": 0.5}), budget=BUDGET).train()


def objective_of(name, policy, lists):
    if name in LOSSES:
        scores = {c.query_id: tuple(float(len(c) - i) for i in range(len(c))) for c in lists}
        orderings = {c.query_id: [Ordering(c.query_id, c.doc_ids[::-1], "t", scores[c.query_id])] for c in lists}
        return _Imitation(name, orderings, False)
    settings = Refine(anchor=0.0, samples=4)
    anchoring = Anchoring(policy, lists, settings, Context("s"), True, settings.entropy, None)
    return _Reinforcement(settings, ndcg(10), name, "log" if name == "exact" else "linear", anchoring)


def loss_of(policy, lists, objective):
    def loss(flat):
        views = policy.views(flat, lists)
        batch = batch_of(lists)
        return sum(objective(scores, batch, i, 17)[0].mean() for i, scores in enumerate(views))

    return loss


def plain(policy, items, loss, key):
    """The oracle: one graph, each micro-batch under the key that the engine gives it."""
    groups = micro_batches([len(item) for item in items], BUDGET)
    parts = []
    for number, group in enumerate(groups):
        with dropout_key(key_of(key, number), torch.device("cpu")):
            parts.append(policy.scorer.logits([items[i] for i in group]))
    flat = torch.cat(parts)[torch.tensor([i for group in groups for i in group]).argsort()]
    found = loss(flat)
    found.backward()
    return found.detach()


def gradients(module):
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad(set_to_none=True)
    return found


def assert_equal_gradients(found, wanted):
    assert found.keys() == wanted.keys()
    scale = max(float(w.norm()) for w in wanted.values())
    assert scale > 1e-4
    for name, want in wanted.items():
        assert float((found[name] - want).norm()) <= 1e-5 * scale, name


@pytest.mark.parametrize("name", [*LOSSES, "exact", "rloo", "grpo"])
def test_with_dropout_the_cached_gradient_of_a_stage_is_the_plain_one(name, policy):
    lists = made_lists()
    items = list(policy.scorer.encode(lists))
    objective = objective_of(name, policy, lists)
    policy.train()
    loss = loss_of(policy, lists, objective)
    wanted_loss = plain(policy, items, loss, 5)
    wanted = gradients(policy)
    assert "first_stage.weight" in wanted
    for graph_tokens in (1, 10**9):
        found = backward(policy.scorer, items, loss, BUDGET, graph_tokens, 5)
        assert float(found) == pytest.approx(float(wanted_loss), rel=1e-5)
        assert_equal_gradients(gradients(policy), wanted)
    other = plain(policy, items, loss, 6)
    assert float(other) != pytest.approx(float(wanted_loss), rel=1e-4), "dropout was not on"


def test_in_rounds_the_gradient_is_the_same_and_idle_rounds_add_nothing(policy):
    lists = made_lists()
    items = list(policy.scorer.encode(lists))
    loss = loss_of(policy, lists, objective_of("rank_net", policy, lists))
    wanted_loss = backward(policy.scorer, items, loss, BUDGET, 1, 5)
    wanted = gradients(policy)
    rounds, told = rounds_of(items, BUDGET) + 2, []
    found = in_rounds(policy.scorer, items, loss, BUDGET, 5, rounds, items[:1], told.append)
    assert float(found) == float(wanted_loss)
    assert_equal_gradients(gradients(policy), wanted)
    assert told == [False] * (rounds - 1) + [True]
    assert float(in_rounds(policy.scorer, [], loss, BUDGET, 5, 2, items[:1], told.append)) == 0.0
    assert all(float(g.abs().max()) == 0.0 for g in gradients(policy).values())


def test_a_step_that_fits_is_scored_once_and_one_that_does_not_twice(policy, monkeypatch):
    lists = made_lists()
    items = list(policy.scorer.encode(lists))
    calls = []
    logits = policy.scorer.logits
    monkeypatch.setattr(policy.scorer, "logits", lambda batch: calls.append(len(batch)) or logits(batch))
    loss = loss_of(policy, lists, objective_of("rank_net", policy, lists))
    tokens = sum(map(len, items))
    backward(policy.scorer, items, loss, BUDGET, tokens, 5)
    assert sum(calls) == len(items)
    calls.clear()
    backward(policy.scorer, items, loss, BUDGET, tokens - 1, 5)
    assert sum(calls) == 2 * len(items)


@pytest.fixture
def adapted(policy):
    """The policy with a body that peft wrapped: all frozen but the adapters; these are not zero."""
    config = peft.LoraConfig(r=4, target_modules=["query", "value"], lora_dropout=0.1)
    scorer = policy.scorer
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for a name that is going away
        scorer.model[0].model = peft.get_peft_model(scorer.model[0].model, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        for name, p in scorer.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.1)
    return policy.train()


def test_adapters_get_the_plain_gradient_through_the_cache_and_frozen_weights_none(adapted):
    lists = made_lists()
    items = list(adapted.scorer.encode(lists))
    loss = loss_of(adapted, lists, objective_of("rank_net", adapted, lists))
    plain(adapted, items, loss, 5)
    wanted = gradients(adapted)
    assert {n.split(".")[-3] for n in wanted if "lora" in n} == {"lora_A", "lora_B"}
    assert all("lora" in n or "linear" in n or "first_stage" in n for n in wanted)
    backward(adapted.scorer, items, loss, BUDGET, 1, 5)
    assert_equal_gradients(gradients(adapted), wanted)


def test_adapters_are_trained_at_the_rate_of_the_body_and_frozen_weights_have_no_state(adapted):
    lists = made_lists()
    settings = Schedule(learning_rate=1e-3, head_learning_rate=2e-3, first_stage_learning_rate=3e-3)
    sizes = {group["lr"]: len(group["params"]) for group in groups_of(adapted, settings)}
    assert sizes == {1e-3: 2 * 2 * 2, 2e-3: 2, 3e-3: 1}, "A and B of query and value in two layers; head; residual"
    before = {name: p.detach().clone() for name, p in adapted.named_parameters()}
    orderings = [Ordering(c.query_id, c.doc_ids[::-1], "t") for c in lists]
    Clone(steps=3, select="last", evaluations=1, graph_tokens=50, learning_rate=1e-3).run(
        adapted, lists, orderings, Context("s")
    )
    moved = {name for name, p in adapted.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all(("lora" in n) or ("linear" in n) or ("first_stage" in n) for n in moved)
    assert any("lora" in n for n in moved)


def test_a_policy_with_nothing_but_a_frozen_body_still_learns_its_head(policy):
    for p in policy.scorer.body():
        p.requires_grad_(False)
    lists = made_lists()
    before = policy.scorer.model[2].linear.weight.detach().clone()
    objective = objective_of("rank_net", policy, lists)
    fit(policy, lists, objective, lambda c: [], Schedule(steps=2, graph_tokens=1, select="last"), Context("s"))
    assert not torch.equal(policy.scorer.model[2].linear.weight, before)
