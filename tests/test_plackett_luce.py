"""Plackett-Luce: against the product formula in Python, by enumeration, and by frequencies."""

import math
from itertools import permutations

import pytest
import torch

from rerank import plackett_luce as pl

INF = math.inf
SCORES = torch.tensor([[0.3, -1.2, 2.0, 0.7], [1.0, 0.5, -INF, -INF], [0.4, -INF, -INF, -INF], [-INF] * 4]).double()
MASK = SCORES.isfinite()


def probability(scores, order):
    """The product of the module docstring, in plain Python."""
    left, p = list(range(len(scores))), 1.0
    for d in order:
        p *= math.exp(scores[d]) / sum(math.exp(scores[j]) for j in left)
        left.remove(d)
    return p


def orders_of(n, width, k=None):
    """All rankings of the first `n` of `width` candidates, [1, n!, k or width]."""
    rows = [(*order, *range(n, width)) for order in permutations(range(n))]
    return torch.tensor(rows)[None, :, :k]


@pytest.mark.parametrize("row", [0, 1, 2])
def test_probabilities_are_the_product_and_sum_to_one(row):
    n = int(MASK[row].sum())
    orders = orders_of(n, 4)
    found = pl.log_prob(SCORES[row : row + 1], MASK[row : row + 1], orders).exp()[0]
    assert found.tolist() == pytest.approx([probability(SCORES[row, :n].tolist(), o[:n]) for o in orders[0].tolist()])
    assert found.sum().item() == pytest.approx(1.0)


def test_the_first_places_have_the_probability_of_all_rankings_that_begin_so():
    whole = pl.log_prob(SCORES[:1], MASK[:1], orders_of(4, 4)).exp()[0]
    top = torch.tensor([[[2, 0]]])
    begins = (orders_of(4, 4)[0, :, :2] == top[0]).all(-1)
    assert pl.log_prob(SCORES[:1], MASK[:1], top).exp().item() == pytest.approx(whole[begins].sum().item())


def test_an_empty_list_has_one_ranking_of_probability_one():
    assert pl.log_prob(SCORES, MASK, torch.arange(4).expand(4, 1, 4))[3].item() == 0.0


def test_steps_beyond_the_list_are_zero_and_the_others_add_up():
    orders = torch.arange(4).expand(4, 1, 4)
    steps = pl.step_log_probs(SCORES, MASK, orders)
    assert (steps[1, 0, 2:] == 0).all() and (steps[2] == 0).all()
    assert torch.equal(steps.sum(-1), pl.log_prob(SCORES, MASK, orders))
    assert steps[0, 0, 0].item() == pytest.approx(math.log(probability(SCORES[0].tolist(), [0])))


def test_adding_a_number_to_all_scores_or_more_padding_changes_nothing():
    orders = orders_of(4, 4)
    plain = pl.log_prob(SCORES[:1], MASK[:1], orders)
    assert torch.allclose(pl.log_prob(SCORES[:1] + 100, MASK[:1], orders), plain)
    wide = torch.nn.functional.pad(SCORES[:1], (0, 3), value=-INF)
    assert torch.allclose(pl.log_prob(wide, wide.isfinite(), orders_of(4, 7)), plain)


def test_the_gradient_of_a_log_probability_is_placed_minus_chances():
    scores = SCORES.clone().requires_grad_()
    order = [2, 0, 1, 3]
    pl.log_prob(scores, MASK, torch.tensor(order).expand(4, 1, 4))[0].sum().backward()
    expected, left, weights = [0.0] * 4, list(order), SCORES[0].exp().tolist()
    for d in order:
        total = sum(weights[j] for j in left)
        for j in left:
            expected[j] += (j == d) - weights[j] / total
        left.remove(d)
    assert scores.grad[0].tolist() == pytest.approx(expected)
    assert scores.grad.isfinite().all() and (scores.grad[~MASK] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_of_wide_range_keep_finite_log_probabilities_and_gradients(dtype):
    scores = torch.tensor([[500.0, -500.0, 0.0, -INF]], dtype=dtype).requires_grad_()
    mask = torch.tensor([[True, True, True, False]])
    found = pl.log_prob(scores, mask, torch.tensor([[[0, 2, 1, 3], [1, 2, 0, 3]]]))
    assert found.tolist() == [pytest.approx([0.0, -1500.0])]
    found.sum().backward()
    assert scores.grad.isfinite().all()


def test_half_precision_scores_are_computed_in_single():
    found = pl.log_prob(SCORES.bfloat16(), MASK, torch.arange(4).expand(4, 1, 4))
    assert found.dtype == torch.float32


# ------------------------------------------------------------------------------------------------------------- drawing
def test_rankings_are_drawn_as_often_as_they_are_likely():
    n = 40_000
    drawn = pl.sample(SCORES, MASK, n, torch.Generator().manual_seed(0))
    for row, count in ((0, 4), (1, 2)):
        orders = orders_of(count, 4)[0]
        frequency = (drawn[row][:, None] == orders[None]).all(-1).double().mean(0)
        exact = torch.tensor([probability(SCORES[row, :count].tolist(), o[:count]) for o in orders.tolist()])
        noise = (exact * (1 - exact) / n).sqrt()
        assert ((frequency - exact).abs() < 4.5 * noise).all()
        assert frequency.sum() == 1


def test_drawn_rankings_hold_each_candidate_once_with_padding_last():
    drawn = pl.sample(SCORES, MASK, 50, torch.Generator().manual_seed(1))
    assert drawn.shape == (4, 50, 4)
    assert (drawn.sort(-1).values == torch.arange(4)).all()
    real = MASK[:, None].expand(-1, 50, -1).gather(-1, drawn)
    assert (real == MASK[:, None]).all()


def test_the_generator_alone_decides_the_draw():
    one, two, other = (pl.sample(SCORES, MASK, 20, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_the_best_ranking_sorts_by_score_with_ties_in_first_stage_order_and_padding_last():
    scores = torch.tensor([[1.0, 2.0, 1.0, 2.0], [-5.0, 0.0, -5.0, 9.0]])
    mask = torch.tensor([[True] * 4, [True, True, True, False]])
    assert pl.best(scores, mask).tolist() == [[1, 3, 0, 2], [1, 0, 2, 3]]


def test_no_ranking_is_likelier_than_the_best():
    log_p = pl.log_prob(SCORES[:1], MASK[:1], orders_of(4, 4))
    assert log_p.max() == pl.log_prob(SCORES[:1], MASK[:1], pl.best(SCORES[:1], MASK[:1])[:, None])


# ------------------------------------------------------------------------------------------------- who is ranked first
def test_the_chance_to_be_first_is_the_softmax():
    found = pl.top1_log_probs(SCORES, MASK)
    assert torch.allclose(found[:3].exp(), SCORES[:3].softmax(-1))
    assert (found[~MASK] == -INF).all()


def test_kl_is_that_of_two_softmaxes_and_its_gradient_is_finite():
    reference = torch.tensor([[1.0, 0.0, 0.5, 2.0]]).expand(4, 4).double().masked_fill(~MASK, -INF)
    scores = SCORES.clone().requires_grad_()
    kl = pl.top1_kl(scores, reference, MASK)
    p, q = SCORES[0].softmax(0), reference[0].softmax(0)
    assert kl[0].item() == pytest.approx(float((p * (p / q).log()).sum()))
    assert (kl[:2] > 0).all() and kl[2].item() == 0 and kl[3].item() == 0
    kl.sum().backward()
    assert scores.grad.isfinite().all() and (scores.grad[2:] == 0).all()


def test_kl_is_zero_with_zero_gradient_when_nothing_has_changed_but_a_shift():
    scores = SCORES.clone().requires_grad_()
    kl = pl.top1_kl(scores, SCORES + 7, MASK)
    assert torch.allclose(kl, torch.zeros(4).double(), atol=1e-12)
    kl.sum().backward()
    assert torch.allclose(scores.grad, torch.zeros(4, 4).double(), atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_kl_is_never_negative(seed):
    draw = torch.Generator().manual_seed(seed)
    one, other = (torch.randn(20, 7, generator=draw) * 4 for _ in range(2))
    assert (pl.top1_kl(one, other, torch.ones(20, 7, dtype=torch.bool)) >= -1e-6).all()


def test_the_entropy_of_the_first_place_is_that_of_the_softmax():
    p = SCORES[0].softmax(0)
    found = pl.top1_entropy(SCORES, MASK)
    assert found.tolist() == pytest.approx([float(-(p * p.log()).sum()), pl.top1_entropy(SCORES, MASK)[1].item(), 0, 0])
    even = torch.zeros(1, 5)
    assert pl.top1_entropy(even, even == 0).item() == pytest.approx(math.log(5))


# ----------------------------------------------------------------------------------------------------- entropy by rank
def test_entropies_by_rank_weighed_by_all_rankings_add_up_to_the_entropy_of_the_ranking():
    orders = orders_of(4, 4)
    chances = pl.log_prob(SCORES[:1], MASK[:1], orders).exp()[0]
    by_rank = [pl.entropy_by_rank(SCORES[:1], MASK[:1], orders[:, i : i + 1], 4) for i in range(24)]
    total = sum(p * rows.sum() for p, rows in zip(chances, by_rank, strict=True))
    assert total.item() == pytest.approx(float(-(chances * chances.log()).sum()))


def test_places_without_a_choice_are_not_counted():
    orders = torch.arange(4).expand(4, 1, 4)
    found = pl.entropy_by_rank(torch.zeros(4, 4), MASK, orders, 10)
    # Lists of 4 and 2 candidates choose at rank 1, the list of 4 alone at ranks 2 and 3; at rank 4 nobody does.
    assert found.tolist() == pytest.approx([(math.log(4) + math.log(2)) / 2, math.log(3), math.log(2), 0.0])


def test_the_gradient_of_the_entropy_is_finite_beside_padding_and_placed_candidates():
    scores = SCORES.clone().requires_grad_()
    pl.entropy_by_rank(scores, MASK, torch.arange(4).expand(4, 1, 4), 3).sum().backward()
    assert scores.grad.isfinite().all()
    assert scores.grad[0].abs().max() > 0
