"""Utilities of the expected reward: their formulas, the weight they give a list, and what they make of rewards."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rerank.errors import InputError
from rerank.lists import batch_of
from rerank.objective.expected import expected_reward
from rerank.objective.utility import SMALLEST, utility_named
from rerank.rewards import ndcg, success
from rerank.training.refine import Refine
from rerank.types import CandidateList

# name -> (u(E), the weight of the list's gradient), as the table of the design has them
FORMULAS = {
    "linear": (lambda e: e, lambda e: 1.0),
    "log": (math.log, lambda e: 1 / e),
    "power:0.3": (lambda e: (e**0.3 - 1) / 0.3, lambda e: e ** (0.3 - 1)),
    "power:.75": (lambda e: (e**0.75 - 1) / 0.75, lambda e: e ** (0.75 - 1)),
    "pass@1": (lambda e: e, lambda e: 1.0),
    "pass@8": (lambda e: 1 - (1 - e) ** 8, lambda e: 8 * (1 - e) ** 7),
    "pass@1000": (lambda e: 1 - (1 - e) ** 1000, lambda e: 1000 * (1 - e) ** 999),
}
NAMES = list(FORMULAS)
inside = st.floats(1e-5, 1 - 1e-5)


def weights(name, expected):
    """du / dE."""
    expected = torch.as_tensor(expected).detach().requires_grad_()
    (weight,) = torch.autograd.grad(utility_named(name)(expected).sum(), expected)
    return weight


def made_batch(*labels):
    lists = [
        CandidateList(f"q{b}", "", tuple(f"{b}-{i}" for i in range(len(row))), ("",) * len(row), labels=row, pool=row)
        for b, row in enumerate(labels)
    ]
    return batch_of(lists)


# Formulas


@pytest.mark.parametrize("name", NAMES)
@given(expected=st.lists(inside, min_size=1, max_size=5))
def test_a_utility_and_the_weight_it_gives_a_list_are_the_formulas(name, expected):
    value, weight = FORMULAS[name]
    given_ = torch.tensor(expected, dtype=torch.float64)
    assert utility_named(name)(given_).tolist() == pytest.approx([value(e) for e in expected], rel=1e-9, abs=1e-12)
    assert weights(name, given_).tolist() == pytest.approx([weight(e) for e in expected], rel=1e-9, abs=1e-12)


def test_the_powers_lie_between_the_logarithm_and_the_expectation_itself():
    expected = torch.tensor([0.01, 0.2, 0.6, 0.99], dtype=torch.float64)
    assert torch.allclose(utility_named("power:0.000001")(expected), expected.log(), atol=2e-5)
    assert torch.allclose(utility_named("power:0.999999")(expected), expected - 1, atol=2e-5)
    for lower, upper in (("log", "power:0.3"), ("power:0.3", "power:.75"), ("power:.75", "linear")):
        assert (weights(lower, expected) > weights(upper, expected)).all()


@pytest.mark.parametrize("name", NAMES)
@given(one=inside, other=inside)
def test_more_reward_never_has_less_utility_and_no_smaller_list_less_weight(name, one, other):
    low, high = sorted((one, other))
    expected = torch.tensor([low, high], dtype=torch.float64)
    worse, better = utility_named(name)(expected).tolist()
    assert worse <= better
    heavy, light = weights(name, expected).tolist()
    assert heavy >= light * (1 - 1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_a_utility_keeps_shape_and_precision(name):
    for dtype, shape in ((torch.float32, ()), (torch.float32, (2, 3)), (torch.float64, (0,))):
        found = utility_named(name)(torch.full(shape, 0.25, dtype=dtype))
        assert (found.shape, found.dtype) == (torch.Size(shape), dtype)


# What they make of rewards


def test_minus_the_log_of_expected_success_at_one_is_softmax_cross_entropy():
    scores = torch.tensor([[2.0, -1.0, 0.5, 3.0], [0.3, 0.1, -8.0, 9.0]], dtype=torch.float64, requires_grad=True)
    batch = made_batch((0, 1, 0, 0), (0, 0, 1))
    masked = scores.masked_fill(~batch.mask, -torch.inf)
    found = -utility_named("log")(expected_reward(masked, success(1), batch))
    wanted = torch.nn.functional.cross_entropy(masked, torch.tensor([1, 2]), reduction="none")
    assert found.tolist() == pytest.approx(wanted.tolist(), abs=1e-6)
    (gradient,) = torch.autograd.grad(found.sum(), scores, retain_graph=True)
    (cross_entropys,) = torch.autograd.grad(wanted.sum(), scores)
    assert torch.allclose(gradient, cross_entropys, atol=1e-6)


def test_several_relevant_documents_share_the_cross_entropy():
    scores = torch.tensor([[2.0, -1.0, 0.5, 3.0, 0.0]], dtype=torch.float64)
    found = -utility_named("log")(expected_reward(scores, success(1), made_batch((0, 1, 0, 0, 2))))
    assert float(found) == pytest.approx(-math.log(float(scores.softmax(-1)[0, [1, 4]].sum())), abs=1e-6)


@pytest.mark.parametrize("k", [2, 3])
def test_pass_at_k_is_the_chance_that_one_of_k_draws_succeeds(k):
    scores = torch.tensor([[1.0, -0.5, 0.2]], dtype=torch.float64)
    first = scores.softmax(-1)[0].tolist()
    draws = product(range(3), repeat=k)
    wanted = sum(math.prod(first[d] for d in drawn) for drawn in draws if 1 in drawn)
    found = utility_named(f"pass@{k}")(expected_reward(scores, success(1), made_batch((0, 1, 0))))
    assert float(found) == pytest.approx(wanted, abs=1e-6)


def test_the_gradient_in_the_scores_is_the_policy_gradient_times_the_weight_of_the_list():
    scores = torch.tensor([[2.0, -1.0, 0.5], [0.3, 0.1, -4.0]], dtype=torch.float64, requires_grad=True)
    batch = made_batch((0, 1, 0), (0, 1, 2))
    expected = expected_reward(scores, ndcg(3), batch)
    (policy_gradient,) = torch.autograd.grad(expected.sum(), scores)
    for name, (_, weight) in FORMULAS.items():
        (found,) = torch.autograd.grad(utility_named(name)(expected_reward(scores, ndcg(3), batch)).sum(), scores)
        share = torch.tensor([weight(e) for e in expected.tolist()], dtype=torch.float64)
        assert torch.allclose(found, policy_gradient * share[:, None], rtol=1e-8, atol=1e-12), name


# Ends


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_is_infinite_where_a_list_has_no_hope_or_nothing_to_gain(name, dtype):
    # Sums in float32 leave [0, 1] by a little.
    expected = torch.tensor([-1e-7, 0.0, 1e-12, 1.0, 1.0 + 1e-6], dtype=dtype)
    assert utility_named(name)(expected).isfinite().all()
    found = weights(name, expected)
    assert found.isfinite().all()
    assert (found >= 0).all()


@pytest.mark.parametrize("name", ["log", "power:0.3"])
def test_a_list_without_any_hope_has_no_weight_and_the_least_hope_has_the_most(name):
    none, least, little = weights(name, torch.tensor([0.0, 2 * SMALLEST, 0.1], dtype=torch.float64)).tolist()
    assert none == 0.0
    assert least == pytest.approx(FORMULAS[name][1](2 * SMALLEST)) and least > little
    assert float(utility_named(name)(torch.tensor(0.0))) == pytest.approx(FORMULAS[name][0](SMALLEST), rel=1e-5)


def test_a_solved_list_has_no_weight_in_pass_at_k():
    assert weights("pass@8", torch.tensor([1.0, 1.0 + 1e-6])).tolist() == [0.0, 0.0]


# Spellings


@pytest.mark.parametrize(
    "name",
    [
        *("", "Log", " log", "logarithm", "power", "power:", "power:0", "power:0.0", "power:1", "power:1.5"),
        *("power:-0.5", "power:nan", "power:0.5\n", "pass@", "pass@0", "pass@-1", "pass@2.5", "pass@10000", "pass@k"),
    ],
)
def test_a_utility_that_is_not_known_is_named_with_those_that_are(name):
    with pytest.raises(InputError, match=r"utility .* is not known: give 'log', 'linear', 'power:A'.* or 'pass@K'"):
        utility_named(name)
    with pytest.raises(InputError, match="utility"):
        Refine(utility=name)
