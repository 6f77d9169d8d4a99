"""Imitation losses against plain Python and sentence-transformers; the sampled gradient and the anchor."""

import math
from itertools import combinations

import pytest
import torch

from rerank import plackett_luce
from rerank.errors import InputError
from rerank.lists import ListBatch
from rerank.objective.anchor import anchored
from rerank.objective.expected import FINE, expected_metric
from rerank.objective.imitation import LOSSES, lambda_rank, list_mle, list_net, margin_mse, rank_net
from rerank.objective.sampled import leave_one_out, rloo
from rerank.rewards import ndcg
from rerank.testing import every_ranking

INF = math.inf

# (scores, ranks, values) of each list: full, partial, tied ranks, two, one, nothing ordered, empty
LISTS = [
    ([0.3, -1.2, 2.0, 0.7, 0.1], [2, 1, 5, 3, 4], [2.0, 3.0, 0.0, 1.0, 0.5]),
    ([1.0, 0.5, -0.5, 0.2], [INF, 2, 1, INF], [9.0, 1.0, 2.0, 7.0]),
    ([0.4, 1.4, -0.3], [1, 1, 3], [2.0, 2.0, 0.0]),
    ([0.0, 1.0], [1, 2], [1.0, 0.0]),
    ([0.7], [1], [1.0]),
    ([0.7, 0.2], [INF, INF], [1.0, 0.0]),
    ([], [], []),
]


def tensors(lists=LISTS, width=6):
    scores, ranks = torch.full((len(lists), width), -INF).double(), torch.full((len(lists), width), INF)
    values, mask = torch.zeros(len(lists), width), torch.zeros(len(lists), width, dtype=torch.bool)
    for b, (s, r, v) in enumerate(lists):
        scores[b, : len(s)], ranks[b, : len(s)] = torch.tensor(s).double(), torch.tensor(r, dtype=torch.float32)
        values[b, : len(s)], mask[b, : len(s)] = torch.tensor(v), True
    return scores, ranks, mask, values


# ------------------------------------------------------------------------------------- the losses once more, in Python
def ordered_of(ranks):
    return [i for i, r in enumerate(ranks) if r < INF]


def rank_net_by_hand(s, ranks, values):
    kept = ordered_of(ranks)
    pairs = [math.log1p(math.exp(s[j] - s[i])) for i in kept for j in kept if ranks[i] < ranks[j]]
    return sum(pairs) / max(len(pairs), 1)


def list_mle_by_hand(s, ranks, values):
    left, places = sorted(range(len(s)), key=lambda i: ranks[i]), []
    for i in sorted(ordered_of(ranks), key=lambda i: ranks[i]):
        places.append(math.log(sum(math.exp(s[j]) for j in left)) - s[i])
        left.remove(i)
    return sum(places) / max(len(places), 1)


def list_net_by_hand(s, ranks, values):
    kept = ordered_of(ranks)
    if len(kept) < 2:
        return 0.0
    targets, chances = ([math.exp(x[i]) for i in kept] for x in (values, s))
    return -sum(t / sum(targets) * math.log(c / sum(chances)) for t, c in zip(targets, chances, strict=True))


def margin_mse_by_hand(s, ranks, values):
    pairs = [(s[i] - s[j] - (values[i] - values[j])) ** 2 for i, j in combinations(ordered_of(ranks), 2)]
    return sum(pairs) / max(len(pairs), 1)


def lambda_rank_by_hand(s, ranks, values):
    place = {d: n for n, d in enumerate(sorted(range(len(s)), key=lambda i: -s[i]))}
    kept = ordered_of(ranks)
    ideal = sum(v / math.log2(n + 2) for n, v in enumerate(sorted((values[i] for i in kept), reverse=True)))
    total = 0.0
    for i in kept:
        for j in kept:
            if values[i] > values[j]:
                swap = (values[i] - values[j]) * abs(1 / math.log2(place[i] + 2) - 1 / math.log2(place[j] + 2)) / ideal
                total += swap * math.log1p(math.exp(s[j] - s[i]))
    return total


BY_HAND = {
    "rank_net": rank_net_by_hand,
    "list_mle": list_mle_by_hand,
    "list_net": list_net_by_hand,
    "margin_mse": margin_mse_by_hand,
    "lambda_rank": lambda_rank_by_hand,
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_its_formula_on_full_partial_tied_short_and_empty_lists(name):
    assert LOSSES[name](*tensors()).tolist() == pytest.approx([BY_HAND[name](*row) for row in LISTS], abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_lists_without_a_pair_have_loss_zero_and_all_gradients_are_finite(name):
    scores, ranks, mask, values = tensors()
    scores.requires_grad_()
    loss = LOSSES[name](scores, ranks, mask, values)
    assert (loss[4:] == 0).all() and (loss[:4] > 0).all()
    loss.sum().backward()
    assert scores.grad.isfinite().all()
    assert (scores.grad[~mask] == 0).all() and (scores.grad[4:] == 0).all()
    assert (scores.grad[:4].abs().amax(-1) > 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_does_not_see_padding_company_candidate_order_or_a_shift_of_scores(name):
    scores, ranks, mask, values = tensors()
    loss = LOSSES[name](scores, ranks, mask, values)
    wide = LOSSES[name](*tensors(width=9))
    alone = torch.cat([LOSSES[name](*tensors([row], max(len(row[0]), 1))) for row in LISTS])
    turned = LOSSES[name](*(x.flip(-1) for x in (scores, ranks, mask, values)))
    shifted = LOSSES[name](scores + 3, ranks, mask, values)
    skip = torch.arange(len(LISTS)) != 2  # list_mle takes tied candidates in first-stage order
    assert torch.allclose(wide, loss, atol=1e-6) and torch.allclose(alone, loss, atol=1e-6)
    assert torch.allclose(turned[skip], loss[skip], atol=1e-6) and torch.allclose(shifted, loss, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_downhill_raises_what_the_teacher_prefers(name):
    scores = torch.zeros(1, 3).requires_grad_()
    ranks, values = torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([[0.0, 2.0, 1.0]])
    LOSSES[name](scores, ranks, torch.ones(1, 3, dtype=torch.bool), values).sum().backward()
    worst, best, _ = scores.grad[0].tolist()
    assert best < 0 < worst


@pytest.mark.parametrize("name", LOSSES)
def test_scores_of_wide_range_and_half_precision_keep_losses_finite(name):
    scores = torch.tensor([[300.0, -300.0, 0.0, -INF]]).requires_grad_()
    mask = torch.tensor([[True, True, True, False]])
    ranks, values = torch.tensor([[3.0, 1.0, 2.0, INF]]), torch.tensor([[0.0, 2.0, 1.0, 0.0]])
    loss = LOSSES[name](scores, ranks, mask, values)
    loss.sum().backward()
    assert loss.isfinite().all() and scores.grad.isfinite().all()
    assert LOSSES[name](scores.detach().bfloat16(), ranks, mask, values).dtype == torch.float32


@pytest.mark.parametrize("name", ["rank_net", "list_mle"])
def test_the_losses_of_ranks_need_no_values(name):
    scores, ranks, mask, values = tensors()
    assert torch.equal(LOSSES[name](scores, ranks, mask, None), LOSSES[name](scores, ranks, mask, values))


def test_a_perfect_student_of_margins_has_no_loss_and_others_no_smaller_one():
    scores, ranks, mask, values = tensors()
    assert margin_mse(values + 5, ranks, mask, values).abs().max() < 1e-9
    student = torch.where(mask, values, -INF)
    assert (list_net(student, ranks, mask, values) <= list_net(scores, ranks, mask, values) + 1e-6).all()


def test_list_mle_is_the_likelihood_of_the_teachers_ranking():
    scores, ranks, mask, values = (x[:1, :5] for x in tensors())
    order = ranks.argsort(-1)[:, None]
    expected = -plackett_luce.log_prob(scores, mask, order)[:, 0] / 5
    assert torch.allclose(list_mle(scores, ranks, mask, values), expected)


def test_list_mle_of_a_top_two_is_the_likelihood_of_two_places():
    scores, ranks, mask, values = (x[1:2, :4] for x in tensors())
    expected = -plackett_luce.log_prob(scores, mask, torch.tensor([[[2, 1]]]))[:, 0] / 2
    assert torch.allclose(list_mle(scores, ranks, mask, values), expected)


class Logits(torch.nn.Module):
    """Stands where sentence-transformers' losses expect a CrossEncoder: gives logits that are known."""

    def __init__(self, logits):
        super().__init__()
        self.logits, self.num_labels, self.device = logits, 1, torch.device("cpu")

    def preprocess(self, pairs, *args, **kwargs):
        return {"row": torch.tensor(["abcde".index(document) for _, document in pairs])}

    tokenize = preprocess

    def forward(self, features):
        return {"scores": self.logits[features["row"], None]}


# Theirs is in bits for RankNet, and the sum over places for ListMLE where ours is the mean.
@pytest.mark.parametrize(
    ("loss", "theirs", "options", "unit"),
    [
        (rank_net, "RankNetLoss", {}, 1 / math.log(2)),
        (list_mle, "ListMLELoss", {"respect_input_order": False}, 5.0),
        (list_net, "ListNetLoss", {}, 1.0),
    ],
)
def test_a_loss_is_that_of_sentence_transformers_on_one_full_list(loss, theirs, options, unit):
    from sentence_transformers.cross_encoder import losses

    scores, _, mask, values = (x[:1, :5] for x in tensors())
    other = getattr(losses, theirs)(Logits(scores[0].float()), activation_fn=torch.nn.Identity(), **options)
    found = other([["query"], [["a", "b", "c", "d", "e"]]], [values[0]])
    by_value = (-values).argsort(-1).argsort(-1) + 1.0  # they rank by the labels
    assert loss(scores, by_value, mask, values).item() * unit == pytest.approx(found.item(), rel=1e-5)


def test_lambda_rank_does_not_weigh_a_swap_that_changes_nothing():
    scores = torch.tensor([[2.0, 1.0, 0.0]]).requires_grad_()
    mask = torch.ones(1, 3, dtype=torch.bool)
    lambda_rank(scores, torch.tensor([[1.0, 2.0, 3.0]]), mask, torch.tensor([[1.0, 0.0, 0.0]])).sum().backward()
    first, second, third = scores.grad[0].tolist()
    assert first < 0 < third and second > 0
    # Weights of the two pairs: 1 - 1/log2(3) and 1 - 1/log2(4); ranks two and three are not told apart.
    sigmoid = [1 / (1 + math.exp(1.0)), 1 / (1 + math.exp(2.0))]
    assert second == pytest.approx((1 - 1 / math.log2(3)) * sigmoid[0])
    assert third == pytest.approx((1 - 1 / math.log2(4)) * sigmoid[1])


# ------------------------------------------------------------------------------------------------------------- sampled
def test_an_advantage_is_the_reward_minus_the_mean_of_the_others():
    found = leave_one_out(torch.tensor([[1.0, 2.0, 6.0], [0.5, 0.5, 0.5]]))
    assert found.tolist() == [pytest.approx([1 - 4, 2 - 3.5, 6 - 1.5]), [0, 0, 0]]


def test_one_sample_is_too_few():
    with pytest.raises(InputError, match="at least 2 sampled rankings a list, not 1"):
        leave_one_out(torch.ones(2, 1))


def graded():
    scores = torch.tensor([[0.3, -1.2, 0.8, 0.1], [0.0, 0.4, -0.2, -INF]])
    labels = torch.tensor([[0.0, 2.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    return scores, ListBatch(labels, scores.isfinite(), labels, ())


def rloo_gradient(scores, batch, rankings, reward):
    leaf = scores.clone().requires_grad_()
    log_probs = plackett_luce.log_prob(leaf, batch.mask, rankings)
    rloo(reward(rankings, batch), log_probs).sum().backward()
    return leaf.grad


def test_equal_rewards_give_no_gradient():
    scores, batch = graded()
    rankings = plackett_luce.sample(scores, batch.mask, 8, torch.Generator().manual_seed(0))
    gradient = rloo_gradient(scores, batch, rankings, lambda r, b: torch.full(r.shape[:2], 0.7))
    assert (gradient == 0).all()


def test_the_sampled_gradient_of_every_draw_sums_to_zero_over_a_list():
    scores, batch = graded()
    rankings = plackett_luce.sample(scores, batch.mask, 8, torch.Generator().manual_seed(0))
    assert rloo_gradient(scores, batch, rankings, ndcg(2)).sum(-1).abs().max() < 1e-6


def test_the_mean_of_sampled_gradients_is_the_exact_one_within_their_noise():
    scores, batch = graded()
    groups, size = 4000, 4
    rankings = plackett_luce.sample(scores, batch.mask, groups * size, torch.Generator().manual_seed(3))
    many = ListBatch(*(x.repeat_interleave(groups, 0) for x in batch[:3]), ())
    wide = scores.repeat_interleave(groups, 0)
    each = rloo_gradient(wide, many, rankings.reshape(2 * groups, size, -1), ndcg(2)).reshape(2, groups, -1)
    gain, weight, _ = ndcg(2).factors(batch)
    leaf = scores.clone().requires_grad_()
    (-expected_metric(leaf, gain, weight, batch.mask, grid=FINE)).sum().backward()
    noise = each.std(1) / groups**0.5
    assert (noise < 0.01).all()
    assert ((each.mean(1) - leaf.grad).abs() <= 4 * noise + 1e-6).all()
    assert leaf.grad.abs().max() > 0.05


def test_reinforcing_all_rankings_by_their_probability_is_the_exact_gradient():
    scores, batch = graded()
    rankings = every_ranking(batch.mask)
    leaf, other = (scores.double().requires_grad_() for _ in range(2))
    log_p = plackett_luce.log_prob(leaf, batch.mask, rankings)
    (log_p.detach().softmax(-1) * ndcg(2)(rankings, batch) * log_p).sum().backward()
    gain, weight, _ = ndcg(2).factors(batch)
    expected_metric(other, gain.double(), weight.double(), batch.mask, grid=FINE).sum().backward()
    assert torch.allclose(leaf.grad, other.grad, atol=1e-6)


# -------------------------------------------------------------------------------------------------------------- anchor
def test_the_anchor_adds_its_share_of_the_divergence_and_none_at_the_clone():
    scores, batch = graded()
    objective = torch.tensor([1.0, 2.0])
    moved = scores + torch.tensor([1.0, 0.0, 0.0, 0.0])
    expected = objective + 0.5 * plackett_luce.top1_kl(moved, scores, batch.mask)
    assert torch.allclose(anchored(objective, moved, scores, batch.mask, 0.5), expected)
    assert (expected > objective).all()
    assert torch.allclose(anchored(objective, scores, scores, batch.mask, 0.5), objective)
    assert anchored(objective, moved, scores, batch.mask, 0.0) is objective


def test_the_anchor_pulls_the_policy_and_not_the_clone():
    scores, batch = graded()
    policy = (scores + torch.tensor([1.0, 0.0, 0.0, 0.0])).requires_grad_()
    clone = scores.clone().requires_grad_()
    anchored(torch.zeros(2), policy, clone, batch.mask, 1.0).sum().backward()
    assert (policy.grad[:, 0] > 0).all()
    assert clone.grad is None
