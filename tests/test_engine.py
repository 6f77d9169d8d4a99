"""The engine: micro-batches, scores in any order, gradients through the cache, precision by name."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rerank.engine.batching import micro_batches, padded, score_items
from rerank.engine.gradient_cache import backward
from rerank.engine.precision import autocast, compute_dtype
from rerank.errors import InputError
from rerank.models.backbones import load_cross_encoder
from rerank.randomness import dropout_key
from rerank.types import CandidateList

CPU = torch.device("cpu")
LENGTHS = st.lists(st.integers(1, 60), max_size=40)


def lists_of_unequal_lengths():
    """Three lists of 7, 1 and 4 candidates whose texts have from 1 to 60 words."""
    sizes = (7, 1, 4)
    texts = [" ".join(["w"] * ((i * 17) % 60 + 1)) + f" {i}" for i in range(sum(sizes))]
    made, at = [], 0
    for b, size in enumerate(sizes):
        own = tuple(texts[at : at + size])
        made.append(CandidateList(f"q{b}", f"query number {b}", tuple(f"d{at + i}" for i in range(size)), own))
        at += size
    return made


@pytest.fixture
def scorer(tiny_bert):
    """A cross-encoder with dropout on and a head that is not zero."""
    made, fresh = load_cross_encoder(str(tiny_bert), max_length=96, precision="float32", device="cpu")
    assert fresh
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        torch.nn.init.normal_(made.model[2].linear.weight, std=0.3)
    return made.train()


def list_loss(flat):
    """A loss in which each score's gradient depends on all other scores."""
    return -flat.log_softmax(0)[2] + (flat * torch.arange(len(flat))).tanh().mean() + flat.square().mean()


def gradients(module):
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad(set_to_none=True)
    return found


def assert_equal_gradients(found, wanted):
    assert found.keys() == wanted.keys()
    assert any(float(w.abs().max()) > 1e-4 for w in wanted.values())
    scale = max(float(w.norm()) for w in wanted.values())
    for name, want in wanted.items():
        assert float((found[name] - want).norm()) <= 1e-5 * scale, name


@given(lengths=LENGTHS, budget=st.integers(1, 200))
def test_micro_batches_hold_every_index_exactly_once(lengths, budget):
    groups = micro_batches(lengths, budget)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))


@given(lengths=LENGTHS, budget=st.integers(1, 200))
def test_a_micro_batch_with_its_padding_fits_the_budget_or_is_a_single_item(lengths, budget):
    for group in micro_batches(lengths, budget):
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= budget


@given(lengths=LENGTHS, budget=st.integers(1, 200))
def test_no_item_of_a_micro_batch_is_shorter_than_any_of_a_later_one(lengths, budget):
    groups = [[lengths[i] for i in group] for group in micro_batches(lengths, budget)]
    assert all(min(a) >= max(b) for a, b in pairwise(groups))


@given(lengths=LENGTHS, budget=st.integers(1, 200))
def test_micro_batches_are_as_full_as_the_budget_allows(lengths, budget):
    groups = micro_batches(lengths, budget)
    for group in groups[:-1]:
        assert (len(group) + 1) * lengths[group[0]] > budget


def test_scores_do_not_depend_on_the_order_or_company_of_the_items(scorer):
    scorer.eval()
    items = scorer.encode(lists_of_unequal_lengths())
    with torch.inference_mode():
        together = score_items(scorer, items, budget=300)
        alone = torch.cat([scorer.logits([item]) for item in items])
        order = torch.randperm(len(items), generator=torch.Generator().manual_seed(1))
        shuffled = score_items(scorer, [items[i] for i in order], budget=150)
    assert float(alone.std()) > 1e-3
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(shuffled, together[order], atol=1e-5, rtol=0)


def test_no_items_give_no_scores(scorer):
    assert score_items(scorer, [], budget=100).shape == (0,)


def test_padded_puts_flat_logits_in_place_and_minus_infinity_elsewhere():
    lists = lists_of_unequal_lengths()
    scores = padded(torch.arange(12.0), lists)
    assert scores.shape == (3, 7)
    assert scores[1].tolist() == [7.0] + [-torch.inf] * 6
    assert scores[2, :4].tolist() == [8.0, 9.0, 10.0, 11.0]


@pytest.mark.parametrize("budget", [60, 200, 10_000])
@pytest.mark.parametrize("graph_tokens", [1, 10**9])
def test_the_gradient_is_the_plain_one_without_dropout_whatever_the_batches(scorer, budget, graph_tokens):
    scorer.eval()
    items = scorer.encode(lists_of_unequal_lengths())
    wanted_loss = list_loss(scorer.logits(items))
    wanted_loss.backward()
    wanted = gradients(scorer)
    loss = backward(scorer, items, list_loss, budget, graph_tokens, key=5)
    assert not loss.requires_grad
    assert float(loss) == pytest.approx(float(wanted_loss.detach()), rel=1e-5)
    assert_equal_gradients(gradients(scorer), wanted)


@pytest.mark.parametrize("budget", [60, 200, 10_000])
def test_with_dropout_the_cached_gradient_is_that_of_one_pass_with_the_same_key(scorer, budget):
    items = scorer.encode(lists_of_unequal_lengths())
    one = backward(scorer, items, list_loss, budget, 10**9, key=5)
    wanted = gradients(scorer)
    two = backward(scorer, items, list_loss, budget, 1, key=5)
    assert float(two) == pytest.approx(float(one), rel=1e-6)
    assert_equal_gradients(gradients(scorer), wanted)
    other = backward(scorer, items, list_loss, budget, 1, key=6)
    assert float(other) != pytest.approx(float(one), rel=1e-4), "dropout was not on"


def test_with_dropout_one_pass_equals_plain_autograd_over_the_same_dropped_units(scorer, monkeypatch):
    items = scorer.encode(lists_of_unequal_lengths())
    # The oracle knows nothing of caching: one graph over the micro-batches, with the engine's key for each.
    keys = []
    original = dropout_key

    def noted(key, device):
        keys.append(key)
        return original(key, device)

    monkeypatch.setattr("rerank.engine.gradient_cache.dropout_key", noted)
    backward(scorer, items, list_loss, 200, 1, key=5)
    found = gradients(scorer)
    groups = micro_batches([len(item) for item in items], 200)
    assert keys == keys[: len(groups)] * 2, "both passes have the same keys"
    parts = []
    for key, group in zip(keys, groups, strict=False):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key)
            parts.append(scorer.logits([items[i] for i in group]))
    flat = torch.cat(parts)[torch.tensor([i for group in groups for i in group]).argsort()]
    list_loss(flat).backward()
    assert_equal_gradients(found, gradients(scorer))


def test_gradients_accumulate_over_calls(scorer):
    scorer.eval()
    items = scorer.encode(lists_of_unequal_lengths())
    backward(scorer, items, list_loss, 200, 1, key=5)
    once = gradients(scorer)
    for _ in range(2):
        backward(scorer, items, list_loss, 200, 1, key=5)
    twice = gradients(scorer)
    assert_equal_gradients(twice, {name: 2 * g for name, g in once.items()})


def test_a_loss_without_gradient_leaves_the_parameters_alone(scorer):
    items = scorer.encode(lists_of_unequal_lengths())
    backward(scorer, items, lambda flat: (flat * 0).sum(), 200, 1, key=5)
    assert all(float(g.abs().max()) == 0.0 for g in gradients(scorer).values())


class Watched:
    """A scorer that counts the numbers that autograd keeps, and lets go of a batch when its backward begins."""

    def __init__(self, scorer):
        self.scorer, self.parameters = scorer, scorer.parameters
        self.held = self.peak = 0

    def logits(self, batch):
        if not torch.is_grad_enabled():
            return self.scorer.logits(batch)
        before = self.held
        with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor):
            out = self.scorer.logits(batch)
        size = self.held - before
        out.register_hook(lambda gradient: self._release(size))
        return out

    def _keep(self, tensor):
        self.held += tensor.numel()
        self.peak = max(self.peak, self.held)
        return tensor

    def _release(self, size):
        self.held -= size


def test_the_activations_kept_at_once_do_not_grow_with_the_lists(scorer):
    def peak(copies, graph_tokens):
        items = scorer.encode(lists_of_unequal_lengths() * copies)
        watched = Watched(scorer)
        backward(watched, items, lambda flat: flat.square().mean(), budget=200, graph_tokens=graph_tokens, key=1)
        return watched.peak

    assert 0 < peak(20, 1) <= 1.01 * peak(5, 1)
    assert peak(5, 10**9) > 3 * peak(5, 1), "one pass keeps the whole graph"


def test_dropout_by_key_repeats_and_leaves_the_global_stream_alone():
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    draws = []
    for key in (1, 2, 1):
        with dropout_key(key, CPU):
            draws.append(torch.rand(4))
    assert torch.equal(torch.rand(3), wanted)
    assert torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[1])


def test_precisions_by_name():
    assert compute_dtype("float32", CPU) is None
    assert compute_dtype("bfloat16", CPU) is torch.bfloat16
    assert compute_dtype("float16", CPU) is torch.float16
    assert compute_dtype("auto", CPU) in (None, torch.bfloat16)


def test_an_unknown_precision_names_the_nearest():
    with pytest.raises(InputError, match=r"'bfloat61' is not known; did you mean 'bfloat16'\?.*float32"):
        compute_dtype("bfloat61", CPU)


def test_logits_are_float32_under_autocast_and_near_those_of_float32(scorer):
    scorer.eval()
    items = scorer.encode(lists_of_unequal_lengths())
    with torch.inference_mode():
        full = scorer.logits(items)
        scorer.precision = "bfloat16"
        low = scorer.logits(items)
    assert low.dtype == torch.float32
    assert not torch.equal(low, full)
    torch.testing.assert_close(low, full, atol=0.1 * float(full.abs().max()), rtol=0.1)


def test_autocast_to_none_is_plain():
    with autocast(CPU, None):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    with autocast(CPU, torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
