"""Sampled policy gradients: against autograd, literal formulas, and enumeration of all pairs of rankings."""

import math
from itertools import permutations
from typing import NamedTuple

import pytest
import torch

from rerank import plackett_luce
from rerank.errors import InputError
from rerank.lists import ListBatch, batch_of
from rerank.objective.sampled import ESTIMATORS, leave_one_out, list_clip, reinforced
from rerank.rewards import average_precision, err, ndcg, rbp, reciprocal_rank
from rerank.types import CandidateList

INF = math.inf
BLACK_BOX = ["reinforce", "rloo", "dr_grpo", "grpo"]
ADDITIVE = ["pl_rank", "pl_rank_rb", "stochastic_rank"]
UNBIASED = ["reinforce", "rloo", "reward_to_go", "pl_rank", "pl_rank_rb"]


class Term(NamedTuple):
    gain: torch.Tensor
    weight: torch.Tensor
    survival: torch.Tensor | None = None
    counted: torch.Tensor | None = None


class Terms:
    """A sum of terms, and its value by the definition, ranking by ranking in Python."""

    name = "terms"

    def __init__(self, *terms):
        self.parts = terms

    def terms(self, lists):
        return self.parts

    def places(self, ranking, b):
        """What each place earns."""
        out = [0.0] * len(ranking)
        for gain, weight, survival, counted in self.parts:
            weights, reach, seen = (weight if weight.ndim == 1 else weight[b]).tolist(), 1.0, 1.0
            for r, d in enumerate(ranking[: len(weights)]):
                out[r] += weights[r] * float(gain[b, d]) * reach * seen
                reach *= 1.0 if survival is None else float(survival[b, d])
                seen += 0.0 if counted is None else float(counted[b, d])
        return out

    def __call__(self, rankings, lists):
        rows = [[sum(self.places(ranking, b)) for ranking in row] for b, row in enumerate(rankings.tolist())]
        return torch.tensor(rows, dtype=torch.float64)


class Opaque:
    """The same reward without its terms."""

    name = "opaque"

    def __init__(self, reward, cutoff=None):
        self.reward, self.cutoff, self.widths = reward, cutoff, []

    def __call__(self, rankings, lists):
        self.widths.append(rankings.shape[-1])
        return self.reward(rankings, lists)


def batch(mask):
    zero = torch.zeros(mask.shape)
    return ListBatch(zero, mask, zero, ())


def problem(n_lists=6, width=12, seed=0, cutoff=5, spread=1.0):
    """Scores, mask (of lengths width, 1, 0, cutoff - 1, width ...) and an additive reward of two terms, in float64."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([width, 1, 0, cutoff - 1] + [width] * n_lists)[:n_lists]
    mask = torch.arange(width) < lengths[:, None]
    scores = (torch.randn(n_lists, width, generator=draw).double() * spread).masked_fill(~mask, -INF)
    gain = torch.rand(2, n_lists, width, generator=draw).double() * mask
    discount = 1 / torch.arange(2.0, cutoff + 2).double().log2()
    return scores, mask, Terms(Term(gain[0], discount), Term(gain[1], torch.rand(n_lists, 3, generator=draw).double()))


def generator(seed=7):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def drawing(monkeypatch):
    """Makes given rankings the ones that are drawn."""

    def fix(rankings):
        monkeypatch.setattr(plackett_luce, "sample", lambda *args: rankings[..., : args[4]])

    return fix


# ---------------------------------------------------------------------------------------------------------- advantages
def test_an_advantage_is_the_reward_minus_the_mean_of_the_others():
    found = leave_one_out(torch.tensor([[1.0, 2.0, 6.0], [0.5, 0.5, 0.5]]))
    assert found.tolist() == [pytest.approx([1 - 4, 2 - 3.5, 6 - 1.5]), [0, 0, 0]]


def test_rewards_that_differ_by_float_jitter_have_no_advantage():
    assert (leave_one_out(0.3 + 1e-7 * torch.randn(4, 16, generator=generator()).double()) == 0).all()


@pytest.mark.parametrize("name", ["rloo", "dr_grpo", "grpo", "reward_to_go", "pl_rank_rb"])
def test_one_sample_is_too_few_to_compare(name):
    scores, mask, reward = problem()
    with pytest.raises(InputError, match="at least 2 sampled rankings a list, not 1"):
        ESTIMATORS[name](scores, reward, batch(mask), 1, generator())


# ------------------------------------------------------------------------------ the closed forms against literal ones
def by_hand(rewards, name):
    n = rewards.shape[1]
    others = (rewards.sum(1, keepdim=True) - rewards) / (n - 1)
    centred = rewards - rewards.mean(1, keepdim=True)
    return {
        "reinforce": rewards,
        "rloo": rewards - others,
        "reward_to_go": rewards - others,
        "dr_grpo": centred,
        "grpo": centred / (centred.square().sum(1, keepdim=True) / (n - 1)).sqrt().add(1e-4),
    }[name]


@pytest.mark.parametrize("name", [*BLACK_BOX, "reward_to_go"])
def test_an_estimate_is_the_autograd_gradient_of_advantages_times_log_probabilities(name):
    scores, mask, reward = problem()
    found = ESTIMATORS[name](scores, reward, batch(mask), 8, generator())
    rankings = plackett_luce.sample(scores, mask, 8, generator(), 5)
    places = torch.tensor(
        [[reward.places(y, b) for y in row] for b, row in enumerate(rankings.tolist())], dtype=torch.float64
    )
    to_go = places.flip(-1).cumsum(-1).flip(-1)
    if name != "reward_to_go":
        to_go = to_go[..., :1].expand_as(to_go)
    leaf = scores.clone().requires_grad_()
    steps = plackett_luce.step_log_probs(leaf, mask, rankings)
    (by_hand(to_go, name) * steps).sum(-1).mean(-1).sum().backward()
    assert torch.allclose(found.gradient, leaf.grad, atol=1e-12)
    assert found.value.tolist() == pytest.approx(places.sum(-1).mean(-1).tolist())
    assert found.gradient[0].abs().max() > 0.01


def chances_left(scores, ranking, r):
    left = [d for d in range(len(scores)) if d not in ranking[:r]]
    total = sum(math.exp(scores[d]) for d in left)
    return {d: math.exp(scores[d]) / total for d in left}


@pytest.mark.parametrize("name", ["pl_rank", "pl_rank_rb"])
def test_pl_rank_is_its_formula_summed_over_all_places_and_candidates(name):
    scores, mask, reward = problem(n_lists=1)
    found = ESTIMATORS[name](scores, reward, batch(mask), 6, generator())
    rankings = plackett_luce.sample(scores, mask, 6, generator(), 5)[0].tolist()
    worth = [[sum(reward.places([d] * 5, 0)[r : r + 1]) for r in range(5)] for d in range(12)]
    earned = torch.tensor([reward.places(y, 0) for y in rankings], dtype=torch.float64)
    to_go = torch.cat([earned.flip(-1).cumsum(-1).flip(-1), torch.zeros(6, 1)], -1)
    following = leave_one_out(to_go[None])[0] if name == "pl_rank_rb" else to_go
    expected = torch.zeros(12).double()
    for i, ranking in enumerate(rankings):
        for r in range(5):
            chances = chances_left(scores[0].tolist(), ranking, r)
            mean = sum(p * worth[d][r] for d, p in chances.items())
            risk = following[i, r + 1] + mean if name == "pl_rank_rb" else to_go[i, r]
            expected[ranking[r]] += following[i, r + 1]
            for d, p in chances.items():
                expected[d] += p * (worth[d][r] - risk)
    assert torch.allclose(found.gradient[0], expected / 6, atol=1e-12)


def stochastic_by_hand(noisy, scores, gain, weight, published=False):
    """The sum over candidates and places of one draw, with the k-th best of the others found by sorting them.

    As published, a candidate in the top is compared with the next one at the places k <= its own, beside the k-th at
    k < its own, and not at all at the places after it (the places k >= its own are meant).
    """
    order = sorted(range(len(scores)), key=lambda d: -noisy[d])
    cutoff = min(len(weight), len(scores) - 1)
    out = [0.0] * len(scores)
    for d in range(len(scores)):
        position = order.index(d)
        others = [(k, e) for k, e in enumerate([e for e in order if e != d][:cutoff])]
        if published:
            others = [(k, order[k]) for k in range(cutoff) if k < position]
            others += [(k, order[k + 1]) for k in range(cutoff) if k <= position < cutoff]
        for k, other in others:
            u = noisy[other] - scores[d]
            step = weight[k] - (weight[k + 1] if k + 1 < len(weight) else 0.0)
            out[d] += math.exp(-u - math.exp(-u)) * step * (gain[d] - gain[other])
    return out


def test_stochastic_rank_is_its_formula_with_the_others_sorted_anew_for_each_candidate():
    scores, mask, reward = problem(n_lists=1, width=7)
    found = ESTIMATORS["stochastic_rank"](scores, reward, batch(mask), 5, generator())
    noisy = plackett_luce.perturbed(scores, mask, 5, generator())[0].tolist()
    expected = torch.zeros(7).double()
    for term in reward.parts:
        weight = (term.weight if term.weight.ndim == 1 else term.weight[0]).tolist()
        for row in noisy:
            expected += torch.tensor(stochastic_by_hand(row, scores[0].tolist(), term.gain[0].tolist(), weight)) / 5
    assert torch.allclose(found.gradient[0], expected, atol=1e-7)


# -------------------------------------------------------------------------------------------------- expected estimates
def prefixes(n, width, k):
    """All rankings of n candidates cut to k places; padding fills places beyond the list."""
    rows = {(*order, *range(n, width))[:k] for order in permutations(range(n))}
    return torch.tensor(sorted(rows))


def exact(scores, mask, reward, k):
    """Expected reward and its gradient for one list, by enumeration."""
    rankings = prefixes(int(mask.sum()), mask.shape[1], k)[None]
    leaf = scores.clone().requires_grad_()
    value = (plackett_luce.log_prob(leaf, mask, rankings).exp() * reward(rankings, None)).sum()
    value.backward()
    return value.detach(), leaf.grad[0]


def small(kind, n, width=5):
    """One list of n candidates and a reward of the kind."""
    draw = torch.Generator().manual_seed(n)
    mask = torch.arange(width)[None] < n
    scores = torch.randn(1, width, generator=draw).double().masked_fill(~mask, -INF)
    gain, relevant = (x.double() * mask for x in (torch.rand(1, width, generator=draw), mask & (scores > -0.5)))
    weight = torch.tensor([1.0, 0.63, 0.5]).double()
    first = Term(gain, weight)
    second = {
        "additive": Term(relevant, torch.tensor([[0.5, 0.5]]).double()),
        "cascade": Term(relevant, weight, 1 - gain),
        "average precision": Term(relevant, 1 / torch.arange(1.0, 4).double(), None, relevant),
    }[kind]
    return scores, mask, Terms(first, second)


KINDS = ["additive", "cascade", "average precision"]


@pytest.mark.parametrize("n", [5, 2])
@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in UNBIASED for kind in KINDS if kind == "additive" or name not in ADDITIVE],
)
def test_the_estimates_of_all_pairs_of_rankings_weighed_by_probability_are_the_exact_value_and_gradient(
    name, kind, n, drawing
):
    scores, mask, reward = small(kind, n)
    value, gradient = exact(scores, mask, reward, 3)
    rankings = prefixes(n, 5, 3)
    chance = plackett_luce.log_prob(scores, mask, rankings[None])[0].exp()
    pairs = torch.cartesian_prod(torch.arange(len(rankings)), torch.arange(len(rankings)))
    many = Terms(
        *(Term(*(x if x is None or x.ndim == 1 else x.expand(len(pairs), -1) for x in t)) for t in reward.parts)
    )
    drawing(rankings[pairs])
    found = ESTIMATORS[name](scores.expand(len(pairs), -1), many, batch(mask.expand(len(pairs), -1)), 2, None)
    weight = chance[pairs].prod(-1)
    assert weight.sum().item() == pytest.approx(1.0)
    assert (weight @ found.value).item() == pytest.approx(value.item(), abs=1e-12)
    assert torch.allclose(weight @ found.gradient, gradient, atol=1e-12)
    assert gradient.abs().max() > 0.005


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_mean_of_many_real_draws_is_the_exact_gradient_but_for_those_that_are_scaled(name):
    copies, size = 4000, 4
    for n in (5, 2):
        scores, mask, reward = small("additive", n)
        value, gradient = exact(scores, mask, reward, 3)
        wide = Terms(*(Term(t.gain.expand(copies, -1), t.weight.expand(copies, -1)) for t in reward.parts))
        found = ESTIMATORS[name](
            scores.expand(copies, -1), wide, batch(mask.expand(copies, -1)), size, generator(5 + n)
        )
        share = {"dr_grpo": (size - 1) / size}.get(name, 1.0)
        noise = found.gradient.std(0) / copies**0.5
        within = (found.gradient.mean(0) - share * gradient).abs() <= 4 * noise + 1e-9
        assert within.all() if name != "grpo" else not within[mask[0]].any()
        assert (found.value.mean() - value).abs() <= 4 * found.value.std() / copies**0.5
        assert noise.max() < 0.05


def test_stochastic_rank_with_the_published_mask_is_biased_and_with_the_right_one_is_not():
    mask, n = torch.ones(1, 5, dtype=torch.bool), 2000
    scores, gain = torch.randn(2, 5, generator=generator(2)).double()
    weight = 1 / torch.arange(2.0, 7).double().log2()
    _, gradient = exact(scores[None], mask, Terms(Term(gain[None], weight)), 5)
    noisy = plackett_luce.perturbed(scores[None], mask, n, generator())[0].tolist()
    errors, noises = [], []
    for published in (False, True):
        rows = [stochastic_by_hand(z, scores.tolist(), gain.tolist(), weight.tolist(), published) for z in noisy]
        each = torch.tensor(rows, dtype=torch.float64)
        errors.append(each.mean(0) - gradient)
        noises.append(each.std(0) / n**0.5)
    assert (errors[0].abs() <= 4 * noises[0]).all()
    assert (errors[1].abs() > 8 * noises[1]).any()
    assert errors[0].norm() < 0.03 * gradient.norm() and errors[1].norm() > 0.1 * gradient.norm()


def test_on_graded_lists_the_errors_stand_in_the_order_of_the_table():
    draw = generator(1)
    scores, grades = torch.randn(4, 60, generator=draw), torch.randint(0, 4, (4, 60), generator=draw).float()
    lists = ListBatch(grades, grades >= 0, grades, ())
    reward = ndcg(10)
    reference = ESTIMATORS["stochastic_rank"](scores, reward, lists, 1500, draw).gradient
    errors = {}
    for name in ("reinforce", "rloo", "reward_to_go", "pl_rank_rb", "stochastic_rank"):
        found = [ESTIMATORS[name](scores, reward, lists, 16, generator(seed)).gradient for seed in range(20)]
        errors[name] = float((torch.stack(found) - reference).square().sum(-1).mean().sqrt())
    assert sorted(errors, key=errors.get, reverse=True) == list(errors)
    assert errors["stochastic_rank"] < 0.5 * errors["pl_rank_rb"]


# ---------------------------------------------------------------------------------------------------------- invariance
@pytest.mark.parametrize("name", [*BLACK_BOX, "reward_to_go", "pl_rank_rb"])
def test_the_gradient_of_every_draw_sums_to_zero_over_a_list(name):
    scores, mask, reward = problem()
    found = ESTIMATORS[name](scores, reward, batch(mask), 8, generator())
    assert found.gradient.sum(-1).abs().max() < 1e-12
    assert found.gradient.abs().max() > 0.01


@pytest.mark.parametrize("name", ["rloo", "dr_grpo", "grpo", "reward_to_go", "pl_rank_rb", "stochastic_rank"])
def test_where_all_rankings_earn_the_same_the_gradient_is_exactly_zero(name):
    scores, mask, _ = problem()
    even = Terms(Term(mask * 0.7, torch.tensor([1.0, 0.6, 0.3]).double()))
    found = ESTIMATORS[name](scores.float(), even, batch(mask), 8, generator())
    assert (found.gradient == 0).all()
    assert found.value[0].item() == pytest.approx(0.7 * 1.9)
    assert found.value[1].item() == pytest.approx(0.7)  # one candidate: the first place alone is filled


@pytest.mark.parametrize("name", ["pl_rank_rb", "stochastic_rank"])
def test_a_number_added_to_all_gains_changes_the_value_and_not_the_gradient(name):
    scores, mask, reward = problem()
    raised = Terms(*(term._replace(gain=(term.gain + 3) * mask) for term in reward.parts))
    plain, other = (ESTIMATORS[name](scores, r, batch(mask), 8, generator()) for r in (reward, raised))
    assert torch.allclose(plain.gradient, other.gradient, atol=1e-12)
    assert (other.value - plain.value)[0].item() == pytest.approx(
        3 * float(sum(term.weight.reshape(-1, term.weight.shape[-1])[0].sum() for term in reward.parts))
    )


@pytest.mark.parametrize("name", ["reward_to_go", *ADDITIVE])
def test_the_estimate_of_a_sum_is_the_sum_of_the_estimates_on_the_same_draws(name):
    scores, mask, reward = problem()
    first, second = reward.parts
    second = second._replace(weight=torch.nn.functional.pad(second.weight, (0, 2)))  # as many places, the same draws
    both, *each = (
        ESTIMATORS[name](scores, Terms(*terms), batch(mask), 8, generator())
        for terms in ((first, second), (first,), (second,))
    )
    assert torch.allclose(both.gradient, each[0].gradient + each[1].gradient, atol=1e-12)
    assert torch.allclose(both.value, each[0].value + each[1].value)


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name != "stochastic_rank"])
def test_more_padding_another_order_of_candidates_and_a_shift_of_scores_change_nothing(name, drawing):
    scores, mask, reward = problem()
    rankings = plackett_luce.sample(scores, mask, 8, generator())
    drawing(rankings)
    plain = ESTIMATORS[name](scores, reward, batch(mask), 8, None)

    def moved(change, fill):
        parts = tuple(Term(change(t.gain, 0.0), t.weight) for t in reward.parts)
        return change(scores, -INF) + 5, Terms(*parts), batch(change(mask, False)), fill

    wide = moved(lambda x, fill: torch.nn.functional.pad(x, (0, 3), value=fill), rankings)
    turned = moved(lambda x, fill: x.flip(-1), 11 - rankings)
    for (s, r, lists, drawn), back in ((wide, lambda g: g[:, :12]), (turned, lambda g: g.flip(-1))):
        drawing(drawn)
        found = ESTIMATORS[name](s, r, lists, 8, None)
        assert torch.allclose(back(found.gradient), plain.gradient, atol=1e-10)
        assert torch.allclose(found.value, plain.value)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_keyed_generator_gives_the_same_estimate_twice_and_another_one_another(name):
    scores, mask, reward = problem()
    one, two, other = (ESTIMATORS[name](scores, reward, batch(mask), 8, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.gradient, two.gradient) and torch.equal(one.value, two.value)
    assert not torch.equal(one.gradient, other.gradient)


# --------------------------------------------------------------------------------------------------------------- edges
@pytest.mark.parametrize("name", ESTIMATORS)
def test_empty_lists_and_padding_have_no_gradient_and_lists_of_one_nothing_to_learn(name):
    scores, mask, reward = problem()
    found = ESTIMATORS[name](scores.float(), reward, batch(mask), 8, generator())
    assert found.gradient.dtype == found.value.dtype == torch.float32
    assert found.gradient.isfinite().all() and found.value.isfinite().all()
    assert (found.gradient[~mask] == 0).all()
    assert found.gradient[1].abs().max() < 1e-6 and found.value[2] == 0
    assert (found.gradient[[0, 3, 4, 5]].abs().amax(-1) > 1e-3).all()


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("shape", [(0, 4), (2, 0), (0, 0)])
def test_no_lists_or_no_candidates_give_an_empty_estimate(name, shape):
    mask = torch.ones(shape, dtype=torch.bool)
    found = ESTIMATORS[name](torch.zeros(shape), ndcg(10), batch(mask), 4, generator())
    assert found.value.shape == shape[:1] and found.gradient.shape == shape


@pytest.mark.parametrize("name", ESTIMATORS)
def test_scores_of_wide_range_give_the_gradient_of_double_precision(name, drawing):
    scores, mask, reward = problem(width=40, spread=60.0)
    single = scores.float()
    if name != "stochastic_rank":
        drawing(plackett_luce.sample(scores, mask, 16, generator()))
    found, other = (ESTIMATORS[name](s, reward, batch(mask), 16, generator()) for s in (single, single.double()))
    assert found.gradient.isfinite().all()
    assert torch.allclose(found.gradient.double(), other.gradient, atol=2e-4)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_half_precision_scores_are_computed_in_single_and_cost_no_graph(name):
    scores, mask, reward = problem()
    leaf = scores.bfloat16().requires_grad_()
    found = ESTIMATORS[name](leaf, reward, batch(mask), 4, generator())
    assert found.gradient.dtype == torch.float32 and not found.gradient.requires_grad


def test_only_the_places_that_the_reward_looks_at_are_drawn():
    scores, mask, reward = problem()
    for cutoff, width in ((3, 3), (None, 12), (50, 12)):
        opaque = Opaque(reward, cutoff)
        ESTIMATORS["rloo"](scores, opaque, batch(mask), 4, generator())
        assert opaque.widths == [width]


# Every measure knows its places: what they earn one by one must add up to what the reward says.
@pytest.mark.parametrize(
    "reward",
    [ndcg(5), average_precision(), average_precision(4), err(6), reciprocal_rank(5), rbp(8)],
    ids=lambda r: r.name,
)
def test_places_of_our_measures_add_up_to_the_reward_of_the_ranking(reward):
    draw = generator(3)
    grades = [torch.randint(0, 3, (n,), generator=draw).tolist() for n in (9, 2, 1, 6)]
    names = [tuple(f"d{i}" for i in range(len(row))) for row in grades]
    lists = batch_of(
        [
            CandidateList(f"q{i}", "", d, d, {}, tuple(g), tuple(g))
            for i, (d, g) in enumerate(zip(names, grades, strict=True))
        ]
    )
    scores = torch.randn(lists.mask.shape, generator=draw).masked_fill(~lists.mask, -INF)
    by_place = ESTIMATORS["reward_to_go"](scores, reward, lists, 16, generator())
    cutoff = getattr(reward, "cutoff", None)
    rankings = plackett_luce.sample(scores, lists.mask, 16, generator(), cutoff)
    assert torch.allclose(by_place.value, reward(rankings, lists).mean(-1), atol=1e-6)
    assert by_place.gradient[0].abs().max() > 0


# -------------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize("name", ["reward_to_go", *ADDITIVE])
def test_a_reward_without_terms_is_sent_to_rloo(name):
    scores, mask, reward = problem()
    with pytest.raises(
        InputError, match=f"{name} needs a reward that is a sum over places .* opaque is not one: use rloo"
    ):
        ESTIMATORS[name](scores, Opaque(reward), batch(mask), 4, generator())


@pytest.mark.parametrize("name", ADDITIVE)
@pytest.mark.parametrize("kind", ["cascade", "average precision"])
def test_a_reward_that_does_not_add_up_is_sent_to_reward_to_go(name, kind):
    scores, mask, reward = small(kind, 5)
    with pytest.raises(InputError, match=f"{name} needs a reward that adds up .* terms .* use reward_to_go or rloo"):
        ESTIMATORS[name](scores, reward, batch(mask), 4, generator())


@pytest.mark.parametrize("name", BLACK_BOX)
def test_what_is_no_reward_is_refused(name):
    scores, mask, _ = problem()
    for wrong, message in (
        (lambda rankings, lists: rankings.float(), r"must be \[6, 4\], not \[6, 4, 12\]"),
        (lambda rankings, lists: 0.5, r"must be \[6, 4\], not float"),
        (lambda rankings, lists: torch.full((6, 4), math.nan), "of a ranking of list 0 is not a finite number"),
    ):
        with pytest.raises(InputError, match=message):
            ESTIMATORS[name](scores, wrong, batch(mask), 4, generator())


@pytest.mark.parametrize("name", ESTIMATORS)
def test_no_samples_and_scores_that_are_not_finite_are_refused(name):
    scores, mask, reward = problem()
    with pytest.raises(InputError, match="samples must be at least 1, not 0"):
        ESTIMATORS[name](scores, reward, batch(mask), 0, generator())
    scores[0, 3] = math.nan
    with pytest.raises(InputError, match="list 0, candidate 3 is nan"):
        ESTIMATORS[name](scores, reward, batch(mask), 4, generator())


# ---------------------------------------------------------------------------------------------------------- reinforced
def test_reinforcing_draws_of_a_score_policy_is_the_leave_one_out_estimate():
    scores, mask, reward = problem()
    rankings = plackett_luce.sample(scores, mask, 8, generator(), 5)
    leaf = scores.clone().requires_grad_()
    reinforced(reward(rankings, None), plackett_luce.log_prob(leaf, mask, rankings)).sum().backward()
    found = ESTIMATORS["rloo"](scores, reward, batch(mask), 8, generator())
    assert torch.allclose(-leaf.grad, found.gradient, atol=1e-12)


def test_reinforcing_equal_rewards_changes_nothing():
    log_probs = torch.randn(3, 5, generator=generator()).requires_grad_()
    loss = reinforced(torch.full((3, 5), 0.7), log_probs)
    loss.sum().backward()
    assert loss.shape == (3,) and (log_probs.grad == 0).all()


# ----------------------------------------------------------------------------------------------------------- list_clip
def test_a_list_is_clipped_to_five_times_the_median_of_those_that_move():
    gradient = torch.tensor([[3.0, -4.0], [0.6, 0.8], [0.0, 0.0], [2.0, 0.0], [30.0, 40.0]])
    found = list_clip(gradient, torch.ones(5, 2, dtype=torch.bool))
    # Norms 5, 1, 0, 2, 50; the median of those above 0 is 3.5.
    assert torch.allclose(found[:4], gradient[:4])
    assert found[4].tolist() == pytest.approx([0.6 * 17.5, 0.8 * 17.5])
    assert list_clip(gradient, torch.ones(5, 2, dtype=torch.bool), most=1.0)[0].norm().item() == pytest.approx(3.5)


def test_fewer_than_three_lists_that_move_are_not_clipped():
    gradient = torch.tensor([[1.0, 0.0], [0.0, 900.0], [0.0, 0.0], [0.0, 0.0]])
    mask = torch.ones(4, 2, dtype=torch.bool)
    assert torch.equal(list_clip(gradient, mask, most=1.0), gradient)
    assert torch.equal(list_clip(gradient[:2], mask[:2], most=1.0), gradient[:2])
    assert torch.equal(list_clip(gradient[2:].repeat(3, 1), mask.repeat(3, 1)[:6]), torch.zeros(6, 2))


def test_what_lies_on_the_padding_does_not_decide_the_clip():
    gradient = torch.tensor([[1.0, 0.0], [1.0, 500.0], [1.0, 0.0], [9.0, 0.0]])
    mask = torch.tensor([[True, True], [True, False], [True, True], [True, True]])
    assert list_clip(gradient, mask)[1, 0] == 1.0
    assert list_clip(gradient, mask)[3, 0].item() == pytest.approx(5.0)
