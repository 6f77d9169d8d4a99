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
from rerank.objective import expected
from rerank.objective.expected import FINE, Grid, expected_metric, exposure
from rerank.rewards import REWARDS, err, ndcg, precision, rbp, recall, reciprocal_rank, success
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


# measure -> (grades of the ranked places above the cutoff, grades of the whole list, cutoff or length) -> value
BY_HAND = {
    "nDCG": lambda top, all_, k: discounted(top) / (discounted(sorted(all_, reverse=True)[:k]) or 1.0),
    "DCG": lambda top, all_, k: discounted(top),
    "RR": lambda top, all_, k: 0.0 if first_relevant(top) is None else 1 / (first_relevant(top) + 1),
    "Success": lambda top, all_, k: float(first_relevant(top) is not None),
    "R": lambda top, all_, k: n_relevant(top) / max(n_relevant(all_), 1),
    "P": lambda top, all_, k: n_relevant(top) / k,
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
    gain, weight, survival = REWARDS[name](cutoff=cutoff).factors(batch)
    scores = random_scores(batch.mask).to(dtype).requires_grad_()
    survival = None if survival is None else survival.to(dtype)
    values = expected_metric(scores, gain.to(dtype), weight.to(dtype), batch.mask, survival, grid)
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


def test_lists_in_small_groups_give_what_they_give_together(monkeypatch):
    scores, mask, gain = long_lists(n_lists=5)
    together = metric_of(scores, mask, gain)
    assert len(expected._groups(scores, torch.ones(10), mask, Grid())) == 1
    monkeypatch.setattr(expected, "CHUNK_BYTES", 1)
    assert len(expected._groups(scores, torch.ones(10), mask, Grid())) == 5
    for one, other in zip(metric_of(scores, mask, gain), together, strict=True):
        assert torch.allclose(one, other, atol=1e-10)


def test_bad_shapes_and_scores_are_refused():
    good = torch.zeros(2, 3)
    with pytest.raises(InputError, match=r"scores \[2, 3\] and mask \[2, 2\]"):
        expected_metric(good, good, torch.ones(2), torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(InputError, match=r"gain must be \[2, 3\] and weight \[K\], not \[2, 2\], \[2\]"):
        expected_metric(good, good[:, :2], torch.ones(2), torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(InputError, match="list 1, candidate 2 is nan"):
        bad = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, math.nan]])
        expected_metric(bad, good, torch.ones(2), torch.ones(2, 3, dtype=torch.bool))


# ------------------------------------------------------------------------------------------------------ large samples
@pytest.mark.parametrize("reward", [ndcg(10), reciprocal_rank(10), err(20), recall(10)], ids=lambda r: r.name)
def test_a_hundred_candidates_agree_with_a_large_sample_within_its_noise(reward):
    scores, mask, grades = long_lists(2, dtype=torch.float32)
    grades = torch.where(grades == 3, 2.0, 0.0)
    batch = ListBatch(grades, mask, grades, ())
    rankings = plackett_luce.sample(scores, mask, 20_000, torch.Generator().manual_seed(2))
    sampled = reward(rankings, batch)
    gain, weight, survival = reward.factors(batch)
    values = expected_metric(scores, gain, weight, mask, survival)
    noise = sampled.std(-1) / sampled.shape[1] ** 0.5
    assert (noise < 0.005).all()
    assert ((values - sampled.mean(-1)).abs() < 4 * noise).all()


def test_the_log_of_expected_success_at_one_is_softmax_cross_entropy():
    scores, mask, _ = long_lists()
    relevant = torch.zeros_like(mask).scatter(1, torch.tensor([[3, 5], [0, 9], [7, 8], [1, 2]]), True)
    batch = ListBatch(relevant.double(), mask, relevant.double(), ())
    gain, weight, survival = success(1).factors(batch)
    ours, theirs = (scores.clone().requires_grad_() for _ in range(2))
    loss = -expected_metric(ours, gain, weight, mask, survival, FINE).log()
    known = -(theirs.log_softmax(-1).exp() * relevant).sum(-1).log()
    assert (loss - known).abs().max() < 1e-6
    # The gradient of the softmax at -inf is 0, as ours is.
    assert torch.allclose(*(torch.autograd.grad(x.sum(), s)[0] for x, s in ((loss, ours), (known, theirs))), atol=1e-6)


# ----------------------------------------------------------------------------------------------------------- exposure
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
    monkeypatch.setattr(expected, "CHUNK_BYTES", 1)
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
