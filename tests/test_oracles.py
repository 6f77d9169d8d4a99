"""The exact expected metric against enumeration and large samples, and the rewards against trec_eval."""

import math
import random
from itertools import permutations

import pytest
import pytrec_eval
import torch

from rerank import plackett_luce
from rerank.errors import InputError
from rerank.lists import ListBatch, batch_of
from rerank.objective import nodes
from rerank.objective.expected import (
    FINE,
    Grid,
    expected_metric,
    expected_reward,
    exposure,
    is_exact,
    placement,
)
from rerank.rewards import (
    REWARDS,
    Factors,
    average_precision,
    err,
    kendall,
    ndcg,
    precision,
    rbp,
    recall,
    reciprocal_rank,
    success,
    value_of,
)
from rerank.types import CandidateList

CUTOFFS = [None, 1, 3, 10]


# ------------------------------------------------------------------------------------ the measures once more, in Python
def discounted(grades):
    return sum(max(g, 0) / math.log2(place + 2) for place, g in enumerate(grades))


def first_relevant(grades):
    return next((place for place, g in enumerate(grades) if g >= 1), None)


def stopping(grades):
    total, reach = 0.0, 1.0
    for place, g in enumerate(grades):
        stop = (2**g - 1) / 2**4
        total, reach = total + reach * stop / (place + 1), reach * (1 - stop)
    return total


def n_relevant(grades):
    return sum(g >= 1 for g in grades)


def precisions(grades):
    return sum(n_relevant(grades[: place + 1]) / (place + 1) for place, g in enumerate(grades) if g >= 1)


# measure -> (grades of the ranked places above the cutoff, grades of the whole list, cutoff or length) -> value
BY_HAND = {
    "nDCG": lambda top, all_, k: discounted(top) / (discounted(sorted(all_, reverse=True)[:k]) or 1.0),
    "DCG": lambda top, all_, k: discounted(top),
    "RR": lambda top, all_, k: 0.0 if first_relevant(top) is None else 1 / (first_relevant(top) + 1),
    "Success": lambda top, all_, k: float(first_relevant(top) is not None),
    "R": lambda top, all_, k: n_relevant(top) / max(n_relevant(all_), 1),
    "P": lambda top, all_, k: n_relevant(top) / k,
    "AP": lambda top, all_, k: precisions(top) / max(n_relevant(all_), 1),
    "Rprec": lambda top, all_, k: n_relevant(top[: n_relevant(all_)]) / max(n_relevant(all_), 1),
    "RBP": lambda top, all_, k: sum(0.2 * 0.8**place * (g >= 1) for place, g in enumerate(top)),
    "ERR": lambda top, all_, k: stopping(top),
}

GRADES = [(0, 3, 1, 0, 2, 1), (1, 0, 2), (4,), (), (0, 0, 0, 0), (2, 2), (0, 1)]


def batch_with(grades, width=7):
    labels = torch.zeros(len(grades), width)
    mask = torch.zeros(len(grades), width, dtype=torch.bool)
    for b, row in enumerate(grades):
        labels[b, : len(row)] = torch.tensor(row, dtype=torch.float32)
        mask[b, : len(row)] = True
    return ListBatch(labels, mask, labels, ())


def random_scores(mask, spread=1.5, seed=0, dtype=torch.float64):
    scores = torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * spread
    return scores.masked_fill(~mask, -torch.inf)


def enumerated(scores, name, cutoff):
    """E[metric] of each list by visiting all of its rankings; differentiable."""
    out = []
    for row, grades in zip(scores, GRADES, strict=True):
        total = torch.zeros((), dtype=scores.dtype)
        for order in permutations(range(len(grades))):
            ranked = row[list(order)]
            log_p = sum((ranked[r] - ranked[r:].logsumexp(0) for r in range(len(order))), torch.zeros(()))
            k = cutoff or max(len(grades), 1)
            total = total + log_p.exp() * BY_HAND[name]([grades[d] for d in order][:k], grades, k)
        out.append(total)
    return torch.stack(out) if out else scores.new_zeros(0)


@pytest.fixture(scope="module")
def truths():
    """(measure, cutoff) -> (value, gradient) of the fixed lists, in float64."""
    batch, found = batch_with(GRADES), {}

    def truth(name, cutoff):
        if (name, cutoff) not in found:
            scores = random_scores(batch.mask).requires_grad_()
            values = enumerated(scores, name, cutoff)
            [gradient] = torch.autograd.grad(values.sum(), scores)
            found[name, cutoff] = values.detach(), gradient
        return found[name, cutoff]

    return truth


def exact(name, cutoff, dtype, grid):
    batch = batch_with(GRADES)
    scores = random_scores(batch.mask).to(dtype).requires_grad_()
    values = expected_reward(scores, REWARDS[name](cutoff=cutoff), batch, grid)
    [gradient] = torch.autograd.grad(values.sum(), scores)
    return values.detach(), gradient


def metric_of(scores, mask, gain, cutoff=10, **rest):
    """E[DCG] and its gradient in the scores."""
    scores = scores.clone().requires_grad_()
    weight = 1.0 / torch.arange(2, cutoff + 2, dtype=scores.dtype).log2()
    values = expected_metric(scores, gain.to(scores.dtype), weight, mask, **rest)
    return values.detach(), torch.autograd.grad(values.sum(), scores)[0]


# -------------------------------------------------------------------------------------------------- exact = enumerated
@pytest.mark.parametrize("cutoff", CUTOFFS)
@pytest.mark.parametrize("name", REWARDS)
def test_the_expectation_and_its_gradient_are_those_of_all_rankings(name, cutoff, truths):
    true_values, true_gradient = truths(name, cutoff)
    values, gradient = exact(name, cutoff, torch.float64, FINE)
    # The weights and gains are made in float32, so 1e-6 and not 1e-8.
    assert (values - true_values).abs().max() < 1e-6 * true_values.max().clamp(min=1)
    assert (gradient - true_gradient).abs().max() < 1e-6 * true_values.max().clamp(min=1)


@pytest.mark.parametrize("cutoff", CUTOFFS)
@pytest.mark.parametrize("name", REWARDS)
def test_the_default_grid_in_float32_is_within_its_stated_error(name, cutoff, truths):
    true_values, true_gradient = truths(name, cutoff)
    values, gradient = exact(name, cutoff, torch.float32, Grid())
    assert values.dtype == gradient.dtype == torch.float32
    assert (values - true_values).abs().max() < 1e-6 * true_values.max()
    scale = true_gradient.abs().amax(-1)
    assert ((gradient - true_gradient).abs().amax(-1) <= 1e-5 * scale + 5e-7).all()


@pytest.mark.parametrize("name", REWARDS)
def test_a_list_without_candidates_or_without_relevant_ones_has_no_gradient(name):
    values, gradient = exact(name, 1, torch.float32, Grid())
    assert values[3] == values[4] == 0
    assert (gradient[3:5] == 0).all()
    # One candidate, and two of equal grade: all rankings are worth the same (up to float32).
    assert (gradient[[2, 5]].abs() < 5e-7).all()
    assert gradient[0].abs().max() > 1e-3


def test_a_batch_without_any_candidate_has_expectation_zero():
    nothing = torch.zeros(2, 0)
    assert expected_metric(nothing, nothing, torch.ones(3), nothing.bool()).tolist() == [0.0, 0.0]
    padded = torch.full((2, 3), -torch.inf)
    assert expected_metric(padded, torch.zeros(2, 3), torch.ones(3), padded.isfinite()).tolist() == [0.0, 0.0]


# -------------------------------------------------------------------------------------------------------- invariances
def long_lists(n_lists=4, n=100, spread=2.0, dtype=torch.float64, seed=1):
    draw = torch.Generator().manual_seed(seed)
    mask = torch.ones(n_lists, n, dtype=torch.bool)
    mask[-1, n // 3 :] = False
    gain = torch.randint(0, 4, (n_lists, n), generator=draw).to(dtype) * mask
    scores = torch.randn(n_lists, n, generator=draw, dtype=dtype) * spread
    return scores.masked_fill(~mask, -torch.inf), mask, gain


def test_the_gradient_of_a_list_sums_to_zero():
    scores, mask, gain = long_lists()
    _, gradient = metric_of(scores, mask, gain, grid=FINE)
    assert gradient.sum(-1).abs().max() < 1e-7
    assert gradient.abs().max() > 0.01


def test_adding_a_number_to_all_scores_changes_nothing():
    scores, mask, gain = long_lists()
    for one, other in zip(metric_of(scores, mask, gain), metric_of(scores + 50, mask, gain), strict=True):
        assert torch.allclose(one, other, atol=1e-10)


def test_more_padding_and_another_candidate_order_change_nothing():
    scores, mask, gain = long_lists()
    values, gradient = metric_of(scores, mask, gain)
    pad = torch.nn.functional.pad
    wide = metric_of(pad(scores, (0, 5), value=-torch.inf), pad(mask, (0, 5)), pad(gain, (0, 5)))
    assert torch.allclose(wide[0], values, atol=1e-12)
    assert torch.allclose(wide[1][:, :100], gradient, atol=1e-12)
    assert (wide[1][:, 100:] == 0).all()
    turned = metric_of(scores.flip(-1), mask.flip(-1), gain.flip(-1))
    assert torch.allclose(turned[0], values, atol=1e-12)
    assert torch.allclose(turned[1].flip(-1), gradient, atol=1e-12)


def test_a_gain_for_everyone_does_not_change_the_gradient():
    scores, mask, gain = long_lists()
    plain = metric_of(scores, mask, gain, grid=FINE)
    raised = metric_of(scores, mask, gain + 3, grid=FINE)
    assert torch.allclose(raised[1], plain[1], atol=1e-6)
    bonus = 3 * sum(1 / math.log2(place + 2) for place in range(10))
    assert torch.allclose(raised[0], plain[0] + bonus, atol=1e-6)


def test_the_upstream_gradient_scales_each_list():
    scores, mask, gain = long_lists()
    _, gradient = metric_of(scores, mask, gain)
    leaf = scores.clone().requires_grad_()
    weight = 1.0 / torch.arange(2, 12, dtype=torch.float64).log2()
    share = torch.tensor([1.0, 0.0, -2.0, 0.5], dtype=torch.float64)
    (expected_metric(leaf, gain, weight, mask) * share).sum().backward()
    assert torch.allclose(leaf.grad, gradient * share[:, None], atol=1e-12)


@pytest.mark.parametrize("spread", [30.0, 100.0])
def test_wide_score_ranges_stay_finite_and_right_in_float32(spread):
    scores, mask, gain = long_lists(n=40)
    scores = torch.where(mask, (scores / scores.masked_fill(~mask, 0).abs().max()) * spread / 2, scores)
    true = metric_of(scores, mask, gain, grid=FINE)
    found = metric_of(scores.float(), mask, gain)
    for one, other in zip(found, true, strict=True):
        assert one.isfinite().all()
        assert (one - other).abs().max() < 1e-3 * other.abs().max()


def n_chunks(scores, mask):
    found = nodes.nodes_of(scores, torch.ones(len(scores), 10, dtype=scores.dtype), mask, Grid())
    return len(list(found.chunks(kinds=2, degree=10)))


def test_nodes_in_small_chunks_give_what_they_give_together(monkeypatch):
    scores, mask, gain = long_lists(n_lists=5)
    together = metric_of(scores, mask, gain), placement(scores, mask, 3)
    assert n_chunks(scores, mask) == 1
    monkeypatch.setattr(nodes, "CHUNK_BYTES", 2**19)
    assert n_chunks(scores, mask) > 5
    for one, other in zip(metric_of(scores, mask, gain), together[0], strict=True):
        assert torch.allclose(one, other, atol=1e-12)
    assert torch.allclose(placement(scores, mask, 3), together[1], atol=1e-12)


def test_bad_shapes_and_scores_are_refused():
    good = torch.zeros(2, 3)
    with pytest.raises(InputError, match=r"scores \[2, 3\] and mask \[2, 2\]"):
        expected_metric(good, good, torch.ones(2), torch.ones(2, 2, dtype=torch.bool))
    mask = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(InputError, match=r"gain must be \[2, 3\] like the scores, not \[2, 2\]"):
        expected_metric(good, good[:, :2], torch.ones(2), mask)
    with pytest.raises(InputError, match=r"weight must be \[K\] or \[2, K\] with K > 0, not \[3, 4\]"):
        expected_metric(good, good, torch.ones(3, 4), mask)
    with pytest.raises(InputError, match="both survival and counted"):
        expected_metric(good, good, torch.ones(2), mask, good, good)
    with pytest.raises(InputError, match="cutoff of at least 1, not 0"):
        placement(good, mask, 0)
    with pytest.raises(InputError, match="list 1, candidate 2 is nan"):
        bad = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, math.nan]])
        expected_metric(bad, good, torch.ones(2), torch.ones(2, 3, dtype=torch.bool))


# ------------------------------------------------------------------------------------------------------ large samples
@pytest.mark.parametrize(
    "reward",
    [ndcg(10), reciprocal_rank(10), err(20), recall(10), average_precision(), average_precision(10)],
    ids=lambda r: r.name,
)
def test_a_hundred_candidates_agree_with_a_large_sample_within_its_noise(reward):
    scores, mask, grades = long_lists(2, dtype=torch.float32)
    grades = torch.where(grades == 3, 2.0, 0.0)
    batch = ListBatch(grades, mask, grades, ())
    rankings = plackett_luce.sample(scores, mask, 20_000, torch.Generator().manual_seed(2))
    sampled = reward(rankings, batch)
    values = expected_reward(scores, reward, batch)
    noise = sampled.std(-1) / sampled.shape[1] ** 0.5
    assert (noise < 0.005).all()
    assert ((values - sampled.mean(-1)).abs() < 4 * noise).all()


def test_the_log_of_expected_success_at_one_is_softmax_cross_entropy():
    scores, mask, _ = long_lists()
    relevant = torch.zeros_like(mask).scatter(1, torch.tensor([[3, 5], [0, 9], [7, 8], [1, 2]]), True)
    batch = ListBatch(relevant.double(), mask, relevant.double(), ())
    ours, theirs = (scores.clone().requires_grad_() for _ in range(2))
    loss = -expected_reward(ours, success(1), batch, FINE).log()
    known = -(theirs.log_softmax(-1).exp() * relevant).sum(-1).log()
    assert (loss - known).abs().max() < 1e-6
    # The gradient of the softmax at -inf is 0, as ours is.
    assert torch.allclose(*(torch.autograd.grad(x.sum(), s)[0] for x, s in ((loss, ours), (known, theirs))), atol=1e-6)


# ------------------------------------------------------------------------------------------------- any factorised term
def rankings_of(n):
    return torch.tensor(list(permutations(range(n))))[None]


def mean_over_rankings(scores, mask, rankings, values):
    """E[values] with the values [B, S] of all rankings; differentiable."""
    return (plackett_luce.log_prob(scores, mask, rankings).exp() * values).sum(-1)


@pytest.mark.parametrize("with_", ["nothing", "survival", "counted"])
@pytest.mark.parametrize("depth", [1, 2, 4, 5, 7])
def test_terms_of_any_numbers_with_weights_of_each_list_are_exact(with_, depth):
    draw = torch.Generator().manual_seed(depth)
    scores, gain, other = (torch.randn(3, 5, generator=draw, dtype=torch.float64) for _ in range(3))
    weight = torch.randn(3, depth, generator=draw, dtype=torch.float64)  # of either sign, and not falling
    mask = torch.ones(3, 5, dtype=torch.bool)
    factors = Factors(gain, weight, **({} if with_ == "nothing" else {with_: other.sigmoid()}))
    rankings = rankings_of(5).expand(3, -1, -1)
    true, ours = (scores.clone().requires_grad_() for _ in range(2))
    wanted = mean_over_rankings(true, mask, rankings, value_of(rankings, factors, mask))
    found = expected_metric(ours, gain, weight, mask, factors.survival, factors.counted, FINE)
    assert torch.allclose(found, wanted, atol=1e-8)
    assert torch.allclose(*(torch.autograd.grad(x.sum(), s)[0] for x, s in ((found, ours), (wanted, true))), atol=1e-7)


def test_a_cutoff_of_each_lists_own_is_that_cutoff_alone():
    scores, mask, gain = long_lists()
    cutoffs = torch.tensor([3, 10, 1, 7])
    weight = (torch.arange(10) < cutoffs[:, None]).double()
    together = expected_metric(scores, gain, weight, mask, grid=FINE)
    for b, cutoff in enumerate(cutoffs.tolist()):
        alone = expected_metric(scores[b, None], gain[b, None], weight[0].new_ones(cutoff), mask[b, None], grid=FINE)
        assert torch.allclose(together[b], alone[0], atol=1e-10)


def subsets_placed(scores, gain, weight):
    """E[metric] of one list, rank by rank over the sets that may have been placed before; differentiable."""
    n, total = len(scores), scores.new_zeros(())
    chances = {0: scores.new_ones(())}
    for rank in range(min(len(weight), n)):
        after = {}
        for placed, chance in chances.items():
            left = [d for d in range(n) if not placed >> d & 1]
            for d, share in zip(left, scores[left].softmax(-1) * chance, strict=True):
                total = total + weight[rank] * gain[d] * share
                after[placed | 1 << d] = after.get(placed | 1 << d, 0.0) + share
        chances = after
    return total


def test_nine_candidates_agree_with_the_sum_over_all_sets_placed_before():
    draw = torch.Generator().manual_seed(5)
    scores, gain = torch.randn(9, generator=draw, dtype=torch.float64) * 2, torch.rand(9, generator=draw).double()
    weight = 1.0 / torch.arange(2, 8, dtype=torch.float64).log2()
    true, ours = (scores.clone().requires_grad_() for _ in range(2))
    wanted = subsets_placed(true, gain, weight)
    found = expected_metric(ours[None], gain[None], weight, torch.ones(1, 9, dtype=torch.bool), grid=FINE)[0]
    assert abs(found - wanted) < 1e-8
    assert torch.allclose(*(torch.autograd.grad(x, s)[0] for x, s in ((found, ours), (wanted, true))), atol=1e-8)


# ------------------------------------------------------------------------------------- the gradient at full length
def full_length(kind, cutoff, n=100):
    scores, mask, gain = long_lists(n=n, spread={"peaked": 4.0, "equal": 0.0}.get(kind, 1.0))
    if kind == "buried":
        gain = torch.zeros_like(gain).index_fill_(1, torch.tensor([0]), 1.0)
        scores[:, 0] = -3.0
    return scores, mask, gain


@pytest.mark.parametrize("cutoff", [1, 10, 30, 100])
@pytest.mark.parametrize("kind", ["random", "peaked", "buried", "equal"])
def test_the_default_grid_keeps_its_promise_at_full_length(kind, cutoff):
    scores, mask, gain = full_length(kind, cutoff)
    true_values, true = metric_of(scores, mask, gain, cutoff, grid=FINE)
    for dtype, bound in ((torch.float64, 5e-6), (torch.float32, 2e-5)):
        values, gradient = metric_of(scores.to(dtype), mask, gain, cutoff)
        assert ((gradient - true).norm(dim=-1) <= bound * true.norm(dim=-1)).all()
        assert torch.allclose(values.double(), true_values, rtol=1e-5)


def test_a_deep_cut_in_a_long_list_is_as_exact_as_a_shallow_one():
    """A cut after 100 equal candidates is three times as sharp as one after 10: it needs, and gets, shorter steps."""
    scores, mask, gain = full_length("equal", 100, n=400)
    weight = torch.ones(100, dtype=torch.float64)
    ours, true = (scores.clone().requires_grad_() for _ in range(2))
    found = expected_metric(ours, gain, weight, mask)
    wanted = expected_metric(true, gain, weight, mask, grid=FINE)
    assert torch.allclose(found, wanted, rtol=1e-6)
    slope, true_slope = torch.autograd.grad(found.sum(), ours)[0], torch.autograd.grad(wanted.sum(), true)[0]
    assert (slope - true_slope).norm() < 1e-5 * true_slope.norm()


@pytest.mark.parametrize("with_", ["nothing", "survival", "counted"])
def test_what_lies_before_the_first_node_is_added_to_second_order(with_):
    scores, mask, gain = long_lists(spread=0.5)
    other = {} if with_ == "nothing" else {with_: (gain > 0).double()}
    weight = 1.0 / torch.arange(1, 8, dtype=torch.float64)
    found, late = [], []
    for before, out in ((8.0, found), (3.0, late)):
        leaf = scores.clone().requires_grad_()
        values = expected_metric(leaf, gain, weight, mask, grid=FINE._replace(before=before), **other)
        out += [values.detach(), torch.autograd.grad(values.sum(), leaf)[0]]
    # The third order is e^-9, about 1e-4, times a small number; the second would be e^-6.
    for one, true in zip(late, found, strict=True):
        assert (one - true).abs().max() < 2e-5 * true.abs().max()


@pytest.mark.parametrize("with_", ["nothing", "survival", "counted"])
def test_the_gradient_is_that_of_finite_differences(with_):
    scores, mask, gain = long_lists(2, n=21)
    other = {} if with_ == "nothing" else {with_: (gain > 1).double()}
    weight = 1.0 / torch.arange(1, 8, dtype=torch.float64)
    leaf = scores.clone().requires_grad_()
    expected_metric(leaf, gain, weight, mask, grid=FINE, **other).sum().backward()
    step = 1e-4
    for d in (0, 3, 6):
        there = torch.zeros_like(scores)
        there[:, d] = step
        up, down = (expected_metric(scores + sign * there, gain, weight, mask, grid=FINE, **other) for sign in (1, -1))
        assert torch.allclose((up - down) / (2 * step), leaf.grad[:, d], atol=1e-6)
    assert leaf.grad.abs().max() > 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_scores_are_computed_in_float32_and_get_their_gradient_in_their_own_type(dtype):
    scores, mask, gain = long_lists(dtype=torch.float32)
    half = scores.to(dtype)
    leaf = half.clone().requires_grad_()
    weight = 1.0 / torch.arange(2, 12).log2()
    values = expected_metric(leaf, gain, weight, mask)
    values.sum().backward()
    wide_values, wide = metric_of(half.float(), mask, gain)
    assert values.dtype == torch.float32
    assert torch.equal(values, wide_values)
    assert leaf.grad.dtype == dtype
    assert torch.equal(leaf.grad, wide.to(dtype))


@pytest.mark.parametrize("span", [100.0, 1e4])
@pytest.mark.parametrize("cutoff", [10, 40])
def test_scores_far_apart_give_their_own_order(span, cutoff):
    draw = torch.Generator().manual_seed(3)
    scores = torch.stack([torch.randperm(40, generator=draw) for _ in range(3)]) * (span / 40)
    mask, gain = torch.ones(3, 40, dtype=torch.bool), torch.rand(3, 40, generator=draw)
    values, gradient = metric_of(scores, mask, gain, cutoff)
    greedy = gain.gather(1, scores.argsort(-1, descending=True))[:, :cutoff] / torch.arange(2, cutoff + 2).log2()
    assert gradient.isfinite().all()
    # Neighbours 2.5 apart change places now and then, neighbours 250 apart never.
    assert torch.allclose(values, greedy.sum(-1), atol=1e-4 if span == 1e4 else 0.3)
    assert (gradient.abs().max() > 1e-3) == (span == 100.0)


def test_one_relevant_document_far_below_the_rest_keeps_its_small_chance():
    scores = torch.tensor([[0.0, 0.0, -60.0]], dtype=torch.float64, requires_grad=True)
    gain = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    loss = -expected_metric(scores, gain, torch.ones(1, dtype=torch.float64), torch.ones(1, 3, dtype=torch.bool)).log()
    loss.sum().backward()
    assert loss.item() == pytest.approx(60 + math.log(2), rel=1e-6)
    assert torch.allclose(scores.grad, torch.tensor([[0.5, 0.5, -1.0]], dtype=torch.float64), atol=1e-5)


def test_second_derivatives_are_refused_and_none_are_computed_without_need():
    scores, mask, gain = long_lists()
    leaf = scores.clone().requires_grad_()
    value = expected_metric(leaf, gain, torch.ones(3, dtype=torch.float64), mask).square().sum()
    [slope] = torch.autograd.grad(value, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        slope.square().sum().backward()
    with torch.no_grad():
        assert not expected_metric(leaf, gain, torch.ones(3, dtype=torch.float64), mask).requires_grad


# -------------------------------------------------------------------------------------------------------- any reward
class Summed:
    """A reward of two terms of different depth, one of them a cascade."""

    name = "summed"

    def terms(self, lists):
        found = lists.labels.double()
        return (
            Factors(found, torch.tensor([1.0, 0.5, 0.25])),
            Factors(found.clamp(max=1), torch.ones(5), 1 - 0.5 * found.clamp(max=1)),
        )

    def __call__(self, rankings, lists):
        return sum(value_of(rankings, term, lists.mask) for term in self.terms(lists))


class FirstBeforeSecond:
    name = "first before second"

    def expected(self, scores, lists):
        return (scores[:, 0] - scores[:, 1]).sigmoid()

    def __call__(self, rankings, lists):
        return ((rankings == 0).int().argmax(-1) < (rankings == 1).int().argmax(-1)).double()


class Together:
    name = "together"

    def __init__(self, parts, combine):
        self.parts, self.combine = parts, combine


def small_batch():
    batch = batch_with([(0, 3, 1, 0, 2), (1, 0, 0, 2, 0)], 5)
    return batch, random_scores(batch.mask), rankings_of(5).expand(2, -1, -1)


@pytest.mark.parametrize("reward", [Summed(), FirstBeforeSecond()], ids=lambda reward: reward.name)
def test_sums_of_terms_and_closed_forms_are_the_means_over_all_rankings(reward):
    batch, scores, rankings = small_batch()
    true, ours = (scores.clone().requires_grad_() for _ in range(2))
    wanted = mean_over_rankings(true, batch.mask, rankings, reward(rankings, batch))
    found = expected_reward(ours, reward, batch, FINE)
    assert is_exact(reward)
    assert torch.allclose(found, wanted, atol=1e-8)
    assert torch.allclose(*(torch.autograd.grad(x.sum(), s)[0] for x, s in ((found, ours), (wanted, true))), atol=1e-7)


def test_a_combination_combines_the_expectations_of_its_parts_and_passes_their_gradients_on():
    batch, scores, rankings = small_batch()
    parts = (Summed(), FirstBeforeSecond())
    shares = torch.tensor([[0.25, 2.0], [1.0, -1.0]], dtype=torch.float64)
    weighted = Together(parts, lambda values, lists: (values * shares[:, None]).sum(-1))
    smallest = Together((weighted, FirstBeforeSecond()), lambda values, lists: values.amin(-1))
    values = torch.stack([part(rankings, batch) for part in parts], -1)
    true, ours = (scores.clone().requires_grad_() for _ in range(2))
    wanted = mean_over_rankings(true, batch.mask, rankings, weighted.combine(values, batch))
    found = expected_reward(ours, weighted, batch, FINE)
    assert torch.allclose(found, wanted, atol=1e-7)
    assert torch.allclose(*(torch.autograd.grad(x.sum(), s)[0] for x, s in ((found, ours), (wanted, true))), atol=1e-7)
    second = expected_reward(scores, FirstBeforeSecond(), batch)
    assert is_exact(smallest)
    assert torch.allclose(expected_reward(scores, smallest, batch, FINE), torch.minimum(found.detach(), second))


def test_a_closed_form_gets_scores_that_were_checked_and_widened():
    batch, scores, _ = small_batch()
    reward = kendall({"a": ["a-0", "a-1"]})
    half = torch.zeros(2, 5, dtype=torch.float16, requires_grad=True)
    assert expected_reward(half, FirstBeforeSecond(), batch).dtype == torch.float32
    assert expected_reward(scores, FirstBeforeSecond(), batch).dtype == torch.float64
    assert torch.autograd.grad(expected_reward(half, FirstBeforeSecond(), batch).sum(), half)[0].dtype == torch.float16
    with pytest.raises(InputError, match=r"list 0, candidate 2 is nan"):
        bad = scores.index_fill(1, torch.tensor([2]), math.nan)
        expected_reward(bad, Together((reward,), lambda values, lists: values[..., 0]), batch)
    with pytest.raises(InputError, match=r"scores \[2, 4\] and mask \[2, 5\]"):
        expected_reward(scores[:, :4], reward, batch)


@pytest.mark.parametrize("reward", [ndcg(None), ndcg(10), kendall({})], ids=lambda reward: reward.name)
def test_lists_that_are_all_empty_are_expected_to_earn_nothing(reward):
    batch = batch_of([CandidateList("q", "", (), (), {}, ())] * 2)
    assert expected_reward(torch.zeros(2, 0), reward, batch).tolist() == [0, 0]


def test_a_cutoff_far_beyond_all_candidates_costs_no_more_than_the_longest_list():
    batch, scores, _ = small_batch()
    found = expected_reward(scores, ndcg(10**20), batch)
    assert torch.equal(found, expected_reward(scores, ndcg(5), batch))


@pytest.mark.parametrize("parts", [(), (Summed(), Together((), None)), (lambda rankings, lists: rankings,)])
def test_a_reward_without_a_known_expectation_is_named_and_the_way_out_given(parts):
    reward = Together(parts, lambda values, lists: values.sum(-1))
    batch, scores, _ = small_batch()
    assert not is_exact(reward)
    with pytest.raises(InputError, match=r"'together' is not known: .* estimate it"):
        expected_reward(scores, reward, batch)


# --------------------------------------------------------------------------------------------- placement and exposure
def test_placement_is_the_share_of_all_rankings_that_have_the_candidate_there():
    batch = batch_with([(0, 0, 0, 0, 0), (0, 0, 0)], 5)
    scores = random_scores(batch.mask)
    chances = placement(scores, batch.mask, 6, FINE)
    assert chances.shape == (2, 5, 6)
    for b, n in enumerate((5, 3)):
        rankings = rankings_of(n)
        share = plackett_luce.log_prob(scores[b : b + 1, :n], batch.mask[b : b + 1, :n], rankings).exp()[0]
        for d, rank in permutations(range(n), 2):
            assert chances[b, d, rank] == pytest.approx(float(share[rankings[0, :, rank] == d].sum()), abs=1e-8)
    assert (chances[1, 3:] == 0).all()
    assert chances[1, :, 3:].abs().max() < 1e-8


def test_placement_sums_to_one_and_weighed_by_rank_is_the_exposure():
    scores, mask, _ = long_lists(n=101)
    chances = placement(scores, mask, 20, FINE)
    assert torch.allclose(chances.sum(1), torch.ones(4, 20, dtype=torch.float64), atol=1e-7)
    assert torch.allclose(placement(scores, mask, 101, FINE).sum(-1), mask.double(), atol=1e-7)
    weight = torch.rand(20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.allclose(chances @ weight, exposure(scores, weight, mask, FINE), atol=1e-8)
    assert torch.allclose(placement(scores, mask, 1, FINE)[..., 0], scores.softmax(-1), atol=1e-8)
    assert placement(scores[:0], mask[:0], 3).shape == (0, 101, 3)


def test_exposure_is_shared_out_in_full():
    scores, mask, _ = long_lists()
    weight = 1.0 / torch.arange(2, 52, dtype=torch.float64).log2()
    shares = exposure(scores, weight, mask, FINE)
    assert torch.allclose(shares.sum(-1)[:3], weight.sum().expand(3), atol=1e-6)
    assert torch.allclose(shares.sum(-1)[3], weight[:33].sum(), atol=1e-6)  # the short list: 33 candidates
    assert (shares[3, 33:] == 0).all()
    assert (shares[mask] > 0).all()


def test_exposure_at_rank_one_is_the_softmax_and_gains_weighed_by_it_are_the_metric():
    scores, mask, gain = long_lists()
    first = exposure(scores, torch.ones(1, dtype=torch.float64), mask, FINE)
    assert torch.allclose(first, scores.softmax(-1), atol=1e-7)
    weight = 1.0 / torch.arange(2, 12, dtype=torch.float64).log2()
    values, _ = metric_of(scores, mask, gain, grid=FINE)
    assert torch.allclose((exposure(scores, weight, mask, FINE) * gain).sum(-1), values, atol=1e-7)


def test_candidates_of_equal_score_share_alike():
    mask = torch.tensor([[True, True, True, False]])
    shares = exposure(torch.zeros(1, 4).masked_fill(~mask, -torch.inf), torch.tensor([1.0, 0.5]), mask)
    assert torch.allclose(shares, torch.tensor([[0.5, 0.5, 0.5, 0.0]]), atol=1e-5)


def test_a_list_without_candidates_has_no_exposure_and_does_not_disturb_its_neighbours(monkeypatch):
    scores, _, _ = long_lists(3)
    empty = torch.cat([scores, torch.full_like(scores[:1], -torch.inf)])
    weight = torch.ones(2, dtype=torch.float64)
    shares = exposure(empty, weight, empty.isfinite())
    assert (shares[3] == 0).all()
    assert torch.allclose(shares[:3], exposure(scores, weight, scores.isfinite()), atol=1e-10)
    monkeypatch.setattr(nodes, "CHUNK_BYTES", 1)
    assert torch.allclose(exposure(empty, weight, empty.isfinite()), shares, atol=1e-10)


# ---------------------------------------------------------------------------------------------------------- trec_eval
def judged_lists(n=40, seed=0):
    """(lists, qrels, run, scores): grades from -1 to 3, ties everywhere, unjudged candidates, judged outsiders."""
    rng = random.Random(seed)
    lists, qrels, run, scores = [], {}, {}, []
    for i in range(n):
        query_id, docs = f"q{i}", [f"d{j}" for j in range(rng.randint(1, 25))]
        rng.shuffle(docs)
        grades = {d: rng.choice([-1, 0, 0, 1, 2, 3]) for d in docs if rng.random() < 0.7}
        grades |= {f"outside{j}": rng.choice([0, 1, 3]) for j in range(rng.randint(0, 30))}
        grades = {d: min(g, 0) for d, g in grades.items()} if i % 8 == 0 else grades
        grades["other"] = 0  # trec_eval drops a query that has no judgement
        labels = tuple(grades.get(d, 0) for d in docs)
        lists.append(CandidateList(query_id, "", tuple(docs), tuple(docs), {}, labels, tuple(grades.values())))
        scores.append([float(rng.randint(0, 3)) for _ in docs])
        order = sorted(range(len(docs)), key=lambda j, s=scores[-1]: -s[j])
        qrels[query_id], run[query_id] = grades, {docs[j]: -float(place) for place, j in enumerate(order)}
    return lists, qrels, run, scores


@pytest.fixture(scope="module")
def judged():
    return judged_lists()


def ours(reward, judged):
    lists, _, _, scores = judged
    batch = batch_of(lists)
    padded = torch.full(batch.mask.shape, -torch.inf)
    for b, row in enumerate(scores):
        padded[b, : len(row)] = torch.tensor(row)
    return reward(plackett_luce.best(padded, batch.mask)[:, None], batch)[:, 0].tolist()


def theirs(measure, judged, level=1, depth=None):
    lists, qrels, run, _ = judged
    run = {q: dict(list(docs.items())[:depth]) for q, docs in run.items()}
    found = pytrec_eval.RelevanceEvaluator(qrels, {measure}, relevance_level=level).evaluate(run)
    return [found[c.query_id][measure.replace(".", "_")] for c in lists]


@pytest.mark.parametrize(
    ("reward", "measure", "level"),
    [
        (ndcg(10, ideal="judged"), "ndcg_cut.10", 1),
        (ndcg(5, ideal="judged"), "ndcg_cut.5", 1),
        (ndcg(1, ideal="judged"), "ndcg_cut.1", 1),
        (ndcg(None, ideal="judged"), "ndcg", 1),
        (reciprocal_rank(None), "recip_rank", 1),
        (reciprocal_rank(None, level=2), "recip_rank", 2),
        (recall(5, ideal="judged"), "recall.5", 1),
        (recall(20, level=3, ideal="judged"), "recall.20", 3),
        (precision(5), "P.5", 1),
        (precision(30, level=2), "P.30", 2),
        (success(1), "success.1", 1),
        (success(5, level=2), "success.5", 2),
    ],
)
def test_a_reward_is_what_trec_eval_reports(reward, measure, level, judged):
    assert ours(reward, judged) == pytest.approx(theirs(measure, judged, level), abs=1e-6)
    assert 0.05 < sum(ours(reward, judged)) / 40 < 0.95


def test_reciprocal_rank_with_a_cutoff_is_trec_evals_on_the_cut_run(judged):
    assert ours(reciprocal_rank(3), judged) == pytest.approx(theirs("recip_rank", judged, depth=3), abs=1e-6)


def test_the_ideal_over_the_candidates_is_trec_evals_with_only_their_judgements(judged):
    lists, qrels, run, scores = judged
    own = {c.query_id: {d: g for d, g in qrels[c.query_id].items() if d in c.doc_ids or d == "other"} for c in lists}
    cut = (lists, own, run, scores)
    for reward, measure in ((ndcg(10), "ndcg_cut.10"), (ndcg(None), "ndcg"), (recall(5), "recall.5")):
        assert ours(reward, judged) == pytest.approx(theirs(measure, cut), abs=1e-6)
        assert ours(reward, judged) != pytest.approx(theirs(measure, judged), abs=1e-3)


def test_rank_biased_precision_is_its_sum():
    batch = batch_with([(1, 0, 2)], 3)
    value = rbp(None, persistence=0.5)(torch.tensor([[[2, 1, 0]]]), batch)
    assert value.item() == pytest.approx(0.5 * (1 + 0.25))
