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


@pytest.mark.parametrize("cutoff", [1, 2, 3, 4, 9])
def test_with_a_cutoff_the_first_places_of_the_same_rankings_are_drawn(cutoff):
    whole, top = (pl.sample(SCORES, MASK, 50, torch.Generator().manual_seed(3), k) for k in (None, cutoff))
    real = MASK[:, None].expand(-1, 50, -1).gather(-1, whole)[..., :cutoff]
    assert torch.equal(top[real], whole[..., :cutoff][real])  # where a list has ended, any padding may stand
    assert not MASK[:, None].expand(-1, 50, -1).gather(-1, top)[~real].any()
    assert top.shape == (4, 50, min(cutoff, 4)) and (top.sort(-1).values.diff(dim=-1) > 0).all()


def test_the_noise_is_fine_where_rankings_are_decided():
    # The earliest thousandth of a million arrivals: noise from uniform numbers of 24 bits has about 30 ties there.
    even = torch.zeros(1, 1000)
    noise = pl.perturbed(even, even == 0, 1000, torch.Generator().manual_seed(0)).flatten()
    early = noise[noise > -math.log(1e-3)]
    assert len(early) == pytest.approx(1000, abs=4.5 * 1000**0.5)
    assert len(early) - len(early.unique()) < 8
    assert noise.isfinite().all()


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


# ------------------------------------------------------------------------- entropy and divergence of whole rankings
def prefixes(n, width, k):
    """All rankings of n candidates cut to k places, padding last, [R, k]."""
    return torch.tensor(sorted({(*order, *range(n, width))[:k] for order in permutations(range(n))}))


def divergences(kind, scores, mask, rankings, cutoff):
    """The estimate from given rankings, and what it estimates for the ranking's log-probabilities."""
    reference = torch.linspace(-1, 2, scores.shape[1]).expand_as(scores).double().masked_fill(~mask, -INF)
    if kind == "entropy":
        return pl.ranking_entropy(scores, mask, rankings, cutoff), -pl.log_prob(scores, mask, rankings)
    found = pl.ranking_kl(scores, reference, mask, rankings, cutoff)
    return found, pl.log_prob(scores, mask, rankings) - pl.log_prob(reference, mask, rankings)


@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize(("n", "cutoff"), [(5, 2), (4, 3), (4, 5), (2, 3), (1, 2), (0, 2)])
@pytest.mark.parametrize("kind", ["entropy", "kl"])
def test_estimates_of_all_rankings_weighed_by_probability_are_the_exact_value_and_gradient(kind, n, cutoff, together):
    mask = torch.arange(5)[None] < n
    scores = torch.tensor([[0.3, -1.2, 2.0, 0.7, -0.1]]).double().masked_fill(~mask, -INF)
    rankings = prefixes(n, 5, cutoff)
    leaf = scores.clone().requires_grad_()
    chance = pl.log_prob(leaf, mask, rankings[None])[0].exp()
    exact = (chance * divergences(kind, leaf, mask, rankings[None], cutoff)[1][0]).sum()
    exact.backward()

    picks = torch.cartesian_prod(*[torch.arange(len(rankings))] * together).reshape(-1, together)
    weight = chance.detach()[picks].prod(-1)
    other = scores.clone().requires_grad_()
    rows = [x.expand(len(picks), -1) for x in (other, mask)]
    found = (weight * divergences(kind, *rows, rankings[picks], cutoff)[0]).sum()
    found.backward()
    assert found.item() == pytest.approx(exact.item(), abs=1e-12)
    assert torch.allclose(other.grad, leaf.grad, atol=1e-12)
    assert n < 2 or leaf.grad.abs().max() > 0.01


@pytest.mark.parametrize("kind", ["entropy", "kl"])
def test_estimates_from_real_draws_are_right_within_their_noise_and_calmer_than_log_probabilities(kind):
    copies, size = 2000, 4
    mask = torch.ones(1, 5, dtype=torch.bool)
    scores = torch.tensor([[0.3, -1.2, 2.0, 0.7, -0.1]]).double()
    leaf = scores.clone().requires_grad_()
    rankings = prefixes(5, 5, 3)[None]
    chance = pl.log_prob(leaf, mask, rankings).exp()
    exact = (chance * divergences(kind, leaf, mask, rankings, 3)[1]).sum()
    exact.backward()
    many = scores.repeat(copies, 1).requires_grad_()
    wide = mask.expand(copies, -1)
    drawn = pl.sample(many, wide, size, torch.Generator().manual_seed(0), 3)
    found, plain = divergences(kind, many, wide, drawn, 3)
    found.sum().backward()
    noise = many.grad.std(0) / copies**0.5
    assert ((many.grad.mean(0) - leaf.grad).abs() < 4 * noise).all() and noise.max() < 0.02
    assert (found.mean() - exact).abs() < 4 * found.std() / copies**0.5
    assert found.std() < 0.6 * plain.mean(-1).std()


def test_the_kl_of_rankings_is_never_negative_and_zero_without_gradient_where_nothing_changed():
    draw = torch.Generator().manual_seed(0)
    scores, other = (torch.randn(20, 9, generator=draw) * 3 for _ in range(2))
    mask = torch.arange(9) < torch.arange(20)[:, None]
    rankings = pl.sample(scores, mask, 3, draw, 6)
    assert (pl.ranking_kl(scores, other, mask, rankings, 6) >= 0).all()
    leaf = scores.clone().requires_grad_()
    same = pl.ranking_kl(leaf, scores + 4, mask, rankings, 6)
    same.sum().backward()
    assert same.abs().max() < 1e-5 and leaf.grad.abs().max() < 1e-5


def test_the_reference_of_the_kl_is_not_pulled():
    scores, reference = SCORES.clone().requires_grad_(), (SCORES * 0.5).masked_fill(~MASK, -INF).requires_grad_()
    rankings = pl.sample(SCORES, MASK, 4, torch.Generator().manual_seed(0), 2)
    pl.ranking_kl(scores, reference, MASK, rankings, 2).sum().backward()
    assert scores.grad.isfinite().all() and scores.grad[0].abs().max() > 0
    assert reference.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_entropy_and_kl_of_wide_scores_and_whole_or_short_lists_have_finite_gradients(dtype):
    scores = torch.tensor([[500.0, -500.0, 0.0, 30.0], [9.0, 0.0, -INF, -INF], [-INF] * 4], dtype=dtype)
    mask = scores.isfinite()
    leaf = scores.clone().requires_grad_()
    rankings = torch.tensor([[[1, 2, 0, 3], [0, 3, 2, 1]]]).expand(3, -1, -1)
    rankings = torch.where(mask.all(-1)[:, None, None], rankings, torch.arange(4))
    found = pl.ranking_entropy(leaf, mask, rankings, 4) + pl.ranking_kl(leaf, -scores, mask, rankings, 4)
    found.sum().backward()
    assert found.isfinite().all() and leaf.grad.isfinite().all()
    assert found[2] == 0 and (leaf.grad[~mask] == 0).all()


def test_the_entropy_of_even_scores_is_that_of_the_shuffle():
    even = torch.zeros(1, 6)
    rankings = pl.sample(even, even == 0, 2, torch.Generator().manual_seed(0), 4)
    found = pl.ranking_entropy(even, even == 0, rankings, 4)
    assert found.item() == pytest.approx(math.log(6 * 5 * 4 * 3), rel=1e-6)
    by_rank, choice = pl.choice_entropies(even, even == 0, rankings, 4)
    assert by_rank[0].tolist() == pytest.approx([math.log(n) for n in (6, 5, 4, 3)])
    assert choice.all()


def test_a_decayed_sum_is_its_recurrence():
    draw = torch.Generator().manual_seed(0)
    for length in (1, 2, 7, 8, 13):
        values, decay = torch.randn(3, length, generator=draw).double(), torch.rand(3, length, generator=draw).double()
        expected, before = [], torch.zeros(3).double()
        for r in range(length):
            before = values[:, r] + decay[:, r] * before
            expected.append(before)
        assert torch.allclose(pl.decayed_sum(values, decay), torch.stack(expected, -1), atol=1e-12)
