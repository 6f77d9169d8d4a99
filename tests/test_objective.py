"""Imitation losses against plain Python and sentence-transformers; the anchor and the entropy floor."""

import math
from itertools import combinations, permutations

import pytest
import torch

from rerank import plackett_luce
from rerank.errors import InputError
from rerank.lists import ListBatch
from rerank.objective.anchor import anchored, entropy_floor
from rerank.objective.imitation import LOSSES, lambda_rank, list_mle, list_net, margin_mse, rank_net

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


def softmax_by_hand(s, ranks, values):
    kept = ordered_of(ranks)
    if len(kept) < 2:
        return 0.0
    total, normaliser = sum(values[i] for i in kept), sum(math.exp(s[i]) for i in kept)
    return -sum(values[i] / total * math.log(math.exp(s[i]) / normaliser) for i in kept)


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
    "softmax": softmax_by_hand,
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


# -------------------------------------------------------------------------------------------------------------- anchor
def graded():
    scores = torch.tensor([[0.3, -1.2, 0.8, 0.1], [0.0, 0.4, -0.2, -INF]])
    labels = torch.tensor([[0.0, 2.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    return scores, ListBatch(labels, scores.isfinite(), labels, ())


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


def test_the_anchor_of_whole_rankings_is_their_kl_a_place_and_needs_rankings():
    scores, batch = graded()
    policy = (scores + torch.tensor([1.0, 0.0, 0.0, 0.0])).requires_grad_()
    rankings = plackett_luce.sample(policy, batch.mask, 4, torch.Generator().manual_seed(0), 2)
    expected = 0.5 / 2 * plackett_luce.ranking_kl(policy, scores, batch.mask, rankings, 2)
    found = anchored(torch.zeros(2), policy, scores, batch.mask, 0.5, "ranking", rankings)
    assert torch.allclose(found, expected) and (found > 0).all()
    found.sum().backward()
    assert (policy.grad[:, 0] > 0).all()
    with pytest.raises(InputError, match="'ranking' needs rankings drawn from the scores"):
        anchored(torch.zeros(2), policy, scores, batch.mask, 0.5, "ranking")
    with pytest.raises(InputError, match="must be one of top1, ranking, not 'both'"):
        anchored(torch.zeros(2), policy, scores, batch.mask, 0.5, "both")


# ------------------------------------------------------------------------------------------------------- entropy floor
def floor_of(scores, mask, floor, cutoff, samples=200):
    rankings = plackett_luce.sample(scores, mask, samples, torch.Generator().manual_seed(0), cutoff)
    return entropy_floor(scores, mask, rankings, floor, cutoff)


def test_the_floor_is_what_the_choices_at_each_rank_lack():
    # A first place that is certain and four even candidates after it: entropies 0, log 4, log 3.
    scores, mask = torch.tensor([[60.0, 0.0, 0.0, 0.0, 0.0]]), torch.ones(1, 5, dtype=torch.bool)
    assert floor_of(scores, mask, 0.9, 3).item() == pytest.approx(0.9 / 3, rel=1e-5)
    assert floor_of(torch.zeros(1, 5), mask, 0.9, 3).item() == 0.0
    # Of five candidates no choice can have more than log 5 nats: a floor of 3 asks for 90 % of what is possible.
    wanted = [0.9 * math.log(n) for n in (5, 4, 3)]
    lacking = [wanted[0], max(0.0, wanted[1] - math.log(4)), max(0.0, wanted[2] - math.log(3))]
    assert floor_of(scores, mask, 3.0, 3).item() == pytest.approx(sum(lacking) / 3, rel=1e-5)


def test_ranks_without_a_choice_and_empty_lists_lack_nothing():
    scores = torch.tensor([[5.0, -INF, -INF], [-INF] * 3, [30.0, 0.0, -INF]])
    found = floor_of(scores, scores.isfinite(), 0.4, 3)
    assert found[:2].tolist() == [0.0, 0.0]
    assert found[2].item() == pytest.approx(0.4, rel=1e-5)  # one choice, and it is certain


def test_the_gradient_of_the_floor_is_that_of_the_expected_entropies():
    scores, mask = torch.tensor([[2.0, 0.5, -0.3, -1.0]]).double(), torch.ones(1, 4, dtype=torch.bool)
    leaf, other = (scores.clone().requires_grad_() for _ in range(2))
    rankings = torch.tensor(sorted({order[:2] for order in permutations(range(4))}))[None]
    chance = plackett_luce.log_prob(leaf, mask, rankings).exp()[0]
    steps = plackett_luce.step_log_probs(leaf, mask, rankings)[0]
    # Entropy of the second choice: that of both places less that of the first.
    first = plackett_luce.top1_entropy(leaf, mask)[0]
    second = -(chance * steps.sum(-1)).sum() - first
    exact = ((1.2 - first) + (0.9 * math.log(3) - second)) / 2
    exact.backward()
    draws = plackett_luce.sample(scores, mask, 40_000, torch.Generator().manual_seed(0), 2)
    found = entropy_floor(other, mask, draws, 1.2, 2).sum()
    found.backward()
    assert found.item() == pytest.approx(exact.item(), abs=0.01) and found > 0.1
    assert torch.allclose(other.grad, leaf.grad, atol=0.01) and leaf.grad.abs().max() > 0.1
