"""Probabilities: fitted maps find what made the labels, never change an order, and are measured as by hand."""

import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import brier_score_loss

from rerank.errors import InputError
from rerank.evaluation.calibration import Bin, brier, calibration_json, ece, reliability, threshold_for
from rerank.models.calibration import Calibration, fault
from rerank.models.policy import FirstStageWeights, ScorePolicy
from rerank.objective.calibration import cross_entropy
from rerank.testing import NumberScorer
from rerank.training import Context
from rerank.training.calibrate import Calibrate, labelled_scores
from rerank.types import CandidateList

AFFINE = Calibration("affine", a=2.0, b=-1.0)
ISOTONIC = Calibration("isotonic", knots=((-1.0, 0.1), (0.0, 0.1), (2.0, 0.5), (3.0, 0.9)))


def simulated(n, a, b, seed=0, mean=0.0, deviation=2.0):
    """Logits and the relevance that probabilities sigmoid(a * s + b) give."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(mean, deviation, n)
    return scores, rng.random(n) < expit(a * scores + b)


def number_lists(n_lists=60, n_candidates=20, a=0.1, b=-6.0, seed=0, judged=True):
    """Lists whose texts name numbers 0 to 99; a candidate is relevant with probability sigmoid(a * number + b)."""
    rng = np.random.default_rng(seed)
    lists = []
    for i in range(n_lists):
        numbers = rng.permutation(100)[:n_candidates].tolist()
        labels = tuple(int(rng.random() < expit(a * number + b)) for number in numbers) if judged else None
        ids, texts = tuple(f"d{j}" for j in range(n_candidates)), tuple(f"number {x}" for x in numbers)
        toy = {"toy": tuple(rng.normal(size=n_candidates).tolist())}
        lists.append(CandidateList(f"q{seed}-{i}", "the largest", ids, texts, toy, labels, labels or ()))
    return lists


def smoothed(relevant):
    n, positive = len(relevant), int(np.sum(relevant))
    return np.where(relevant, (positive + 1) / (positive + 2), 1 / (n - positive + 2))


def probability(calibration, scores):
    return calibration.probability(torch.as_tensor(scores, dtype=torch.float64)).numpy()


# ----------------------------------------------------------------------------------------------------- oracle: the fits
@pytest.mark.parametrize(("a", "b"), [(1.0, 0.0), (0.3, -2.0), (2.5, 1.5)])
def test_an_affine_fit_recovers_the_numbers_that_made_the_labels(a, b):
    found = Calibrate().fit(*simulated(40_000, a, b))
    assert found.a == pytest.approx(a, rel=0.06)
    assert found.b == pytest.approx(b, abs=0.08)


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 2.0), (500.0, 0.01), (-3.0, 1e5)])
def test_an_affine_fit_is_the_least_cross_entropy_with_platts_targets(mean, deviation):
    scores, relevant = simulated(300, 1.0 / deviation, -1.0 - mean / deviation, 3, mean, deviation)
    z, t = (scores - mean) / deviation, smoothed(relevant)
    wanted = minimize(lambda w: np.mean(np.logaddexp(0, w[0] * z + w[1]) - t * (w[0] * z + w[1])), [0, 0], tol=1e-12)
    found = Calibrate().fit(scores, relevant)
    assert found.a * deviation == pytest.approx(wanted.x[0], rel=1e-4)
    np.testing.assert_allclose(probability(found, scores), expit(wanted.x[0] * z + wanted.x[1]), atol=1e-5)


def test_an_isotonic_fit_is_that_of_scikit_learn_with_equal_scores_pooled():
    scores, relevant = simulated(500, 1.0, -1.0, 5)
    scores = scores.round(1)
    theirs = IsotonicRegression(out_of_bounds="clip").fit(scores, smoothed(relevant))
    found = Calibrate(kind="isotonic").fit(scores, relevant)
    np.testing.assert_allclose(probability(found, scores), theirs.predict(scores), atol=1e-9)
    between = np.linspace(-9, 9, 1001)
    np.testing.assert_allclose(probability(found, between), theirs.predict(between), atol=1e-9)


@pytest.mark.parametrize("kind", ["affine", "isotonic"])
def test_on_other_data_of_the_same_kind_the_error_falls(kind):
    found = Calibrate(kind=kind).fit(*simulated(4000, 0.4, -2.0, 1))
    scores, relevant = simulated(4000, 0.4, -2.0, 2)
    before, after = expit(scores), probability(found, scores)
    assert ece(after, relevant) < 0.03 < 0.2 < ece(before, relevant)
    assert brier(after, relevant) < brier(before, relevant) - 0.05


@settings(max_examples=60, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.floats(-1e6, 1e6), st.booleans()), min_size=2, max_size=40).filter(
        lambda rows: len({y for _, y in rows}) == 2
    ),
    kind=st.sampled_from(["affine", "isotonic"]),
)
def test_a_fitted_map_never_falls_and_keeps_away_from_certainty_at_what_it_was_fitted_on(pairs, kind):
    scores, relevant = np.array([s for s, _ in pairs]), np.array([y for _, y in pairs])
    found = Calibrate(kind=kind).fit(scores, relevant)
    between = np.linspace(scores.min() - 1, scores.max() + 1, 300)
    for at in (np.sort(scores), between):
        p = probability(found, at)
        assert (np.diff(p) >= -1e-12).all()
        assert ((p >= 0) & (p <= 1)).all()
    if kind == "isotonic":
        assert 0 < probability(found, scores).min() <= probability(found, scores).max() < 1


def test_an_affine_fit_gives_the_same_probabilities_for_scores_on_any_scale():
    scores, relevant = simulated(400, 1.0, -1.0, 7)
    wanted = probability(Calibrate().fit(scores, relevant), scores)
    for scale, shift in [(1e-3, 0.0), (1e4, 0.0), (1.0, 1e6), (50.0, -300.0)]:
        moved = scores * scale + shift
        np.testing.assert_allclose(probability(Calibrate().fit(moved, relevant), moved), wanted, atol=1e-6)


def test_the_order_of_the_candidates_does_not_matter_to_a_fit():
    scores, relevant = simulated(200, 1.0, -1.0, 8)
    turned = Calibrate(kind="isotonic").fit(scores[::-1], relevant[::-1])
    np.testing.assert_allclose(
        probability(turned, scores), probability(Calibrate(kind="isotonic").fit(scores, relevant), scores), atol=1e-12
    )


# ------------------------------------------------------------------------------------------------------ edges of a fit
@pytest.mark.parametrize("kind", ["affine", "isotonic"])
@pytest.mark.parametrize("relevant", [[True] * 4, [False] * 4, [True], []])
def test_a_fit_without_both_classes_says_what_to_give(relevant, kind):
    with pytest.raises(
        InputError, match=rf"of {len(relevant)}, {sum(relevant)} have a grade of at least 1: give judged"
    ):
        Calibrate(kind=kind).fit(np.arange(float(len(relevant))), np.array(relevant, dtype=bool))


@pytest.mark.parametrize("kind", ["affine", "isotonic"])
@pytest.mark.parametrize("value", [0.0, 0.1, -7.3e8])
def test_constant_scores_get_the_base_rate_aloud(value, kind, caplog):
    relevant = np.array([True, False, False, False] * 5)
    with caplog.at_level(logging.WARNING):
        found = Calibrate(kind=kind).fit(np.full(20, value), relevant)
    assert "scores do not rise with relevance" in caplog.text
    np.testing.assert_allclose(probability(found, np.full(20, value)), smoothed(relevant).mean(), atol=1e-6)


@pytest.mark.parametrize("kind", ["affine", "isotonic"])
def test_scores_that_fall_with_relevance_get_the_base_rate_aloud_and_never_a_falling_map(kind, caplog):
    scores, relevant = np.arange(20.0), np.arange(20) < 5
    with caplog.at_level(logging.WARNING):
        found = Calibrate(kind=kind).fit(scores, relevant)
    assert "scores do not rise with relevance" in caplog.text
    p = probability(found, scores)
    assert (np.diff(p) >= 0).all()
    np.testing.assert_allclose(p, smoothed(relevant).mean(), atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e8])
def test_scores_that_separate_relevance_perfectly_have_a_finite_fit(scale):
    scores, relevant = np.arange(20.0) * scale, np.arange(20) >= 10
    found = Calibrate().fit(scores, relevant)
    p = probability(found, scores)
    assert p[10:].min() > 0.5 > p[:10].max()
    assert (p[0], p[-1]) == (pytest.approx(1 / 12, abs=0.07), pytest.approx(11 / 12, abs=0.07)), "Platt's targets"


def test_a_fit_of_scores_that_are_not_finite_names_the_candidate():
    with pytest.raises(InputError, match="that of candidate 1 is nan"):
        Calibrate().fit(np.array([0.0, math.nan, 1.0]), np.array([True, False, True]))


@pytest.mark.parametrize(
    "wrong", [{"kind": "platt"}, {"level": 0}, {"level": True}, {"level": 1.5}, {"unjudged": "ignore"}]
)
def test_settings_that_are_not_allowed_are_named(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Calibrate(**wrong)


# --------------------------------------------------------------------------------------------------------- on policies
@pytest.mark.parametrize("kind", ["affine", "isotonic"])
def test_a_policy_learns_probabilities_of_lists_and_is_otherwise_as_before(kind):
    policy = ScorePolicy(NumberScorer(0.05))
    before = {name: t.clone() for name, t in policy.state_dict().items()}
    facts = Calibrate(kind=kind).run(policy, number_lists(seed=1), Context(stage="calibrate"))
    held_out = number_lists(seed=2)
    found = labelled_scores(policy, held_out)
    after = probability(policy.calibration, found.served)
    assert ece(after, found.relevant) < 0.06 < 0.3 < ece(expit(found.served), found.relevant)
    assert policy.state_dict().keys() == before.keys()
    assert all(torch.equal(t, before[name]) for name, t in policy.state_dict().items())
    assert (facts["kind"], facts["n"], facts["lists"]) == (kind, 1200, 60)
    assert facts["base_rate"] == np.mean([label for c in number_lists(seed=1) for label in c.labels])
    if kind == "affine":  # labels follow 0.1 * number - 6, scores are 0.05 * number
        assert facts["a"] == policy.calibration.a == pytest.approx(2.0, rel=0.2)
        assert facts["b"] == pytest.approx(-6.0, rel=0.2)
    json.dumps(facts, allow_nan=False)


def test_scores_and_labels_of_lists_do_not_depend_on_how_many_go_at_once_or_on_padding():
    policy = ScorePolicy(NumberScorer(0.05))
    lists = [c.subset(range(1 + i)) for i, c in enumerate(number_lists(7))]
    one, many = labelled_scores(policy, lists, at_once=1), labelled_scores(policy, lists, at_once=16)
    assert one.served.tolist() == many.served.tolist()
    assert one.relevant.tolist() == many.relevant.tolist() == [bool(label) for c in lists for label in c.labels]
    assert len(one.served) == 1 + 2 + 3 + 4 + 5 + 6 + 7
    assert one.plain is None


def test_a_policy_with_first_stage_scores_gets_a_map_for_each_view():
    policy = ScorePolicy(NumberScorer(0.05), FirstStageWeights({"toy": 3.0}))
    lists = number_lists(seed=4)
    Calibrate().run(policy, lists)
    found = labelled_scores(policy, lists)
    assert policy.calibration.plain == Calibrate().fit(found.plain, found.relevant)
    assert policy.calibration.a < policy.calibration.plain.a, "the residual here is noise: served scores say less"
    policy.first_stage.active = False
    Calibrate().run(policy, lists)
    assert policy.calibration.plain is None


def test_lists_without_judgements_take_no_part_aloud(caplog):
    policy = ScorePolicy(NumberScorer(0.05))
    judged = number_lists(20)
    wanted = Calibrate().run(policy, judged)
    with caplog.at_level(logging.WARNING):
        facts = Calibrate().run(policy, [*judged, *number_lists(3, seed=9, judged=False)])
    assert "3 lists without judgements" in caplog.text
    assert facts == {**wanted, "lists_without_judgements": 3}


def test_nothing_but_unjudged_lists_is_refused():
    with pytest.raises(InputError, match="of 0, 0 have a grade"):
        Calibrate().run(ScorePolicy(NumberScorer()), number_lists(3, judged=False))
    with pytest.raises(InputError, match="of 0, 0 have a grade"):
        Calibrate().run(ScorePolicy(NumberScorer()), [])


def test_unjudged_candidates_are_left_out_where_qrels_say_which_they_are(caplog):
    policy = ScorePolicy(NumberScorer(0.05))
    lists = number_lists(20)
    qrels = {c.query_id: dict(list(zip(c.doc_ids, c.labels, strict=True))[:12]) for c in lists}
    with caplog.at_level(logging.WARNING):
        facts = Calibrate(unjudged="exclude").run(policy, lists, qrels=qrels)
    assert "160 unjudged left out" in caplog.text
    assert (facts["n"], facts["unjudged_left_out"]) == (240, 160)
    shorter = [c.subset(range(12)) for c in lists]
    assert Calibrate().run(policy, shorter)["a"] == pytest.approx(facts["a"], rel=1e-9)


def test_to_leave_out_the_unjudged_needs_qrels():
    with pytest.raises(InputError, match=r"'exclude' needs qrels.*take unjudged = 'negative'"):
        Calibrate(unjudged="exclude").run(ScorePolicy(NumberScorer()), number_lists(3))


def test_the_level_says_which_grades_are_relevant():
    policy = ScorePolicy(NumberScorer())
    candidates = CandidateList("q", "", ("a", "b", "c", "d"), ("1", "2", "3", "4"), {}, (0, 1, 2, 3), ())
    assert labelled_scores(policy, [candidates], level=2).relevant.tolist() == [False, False, True, True]
    assert Calibrate(level=3).run(policy, [candidates])["base_rate"] == 1 / 4


@pytest.mark.parametrize("kind", ["affine", "isotonic"])
def test_bm25_of_real_lists_becomes_probabilities_that_hold_for_other_queries(kind):
    from rerank.data import candidate_lists, load_collection
    from rerank.retrieval.bm25 import BM25
    from rerank.retrieval.first_stage import build_first_stage

    folder = Path(__file__).parents[2] / "shared" / "data" / "cacm"
    if not folder.is_dir():
        pytest.skip(f"the CACM collection is not at {folder}")
    train, test = (load_collection(f"{folder}#{split}") for split in ("train", "test"))
    retriever = BM25.build(train.documents)
    found = [build_first_stage(c, [retriever], 50) for c in (train, test)]
    lists = [candidate_lists(c, f.run, f.features) for c, f in zip((train, test), found, strict=True)]
    policy = ScorePolicy(NumberScorer(0.0), FirstStageWeights({"bm25": 1.0}))  # the score is that of BM25 alone
    Calibrate(kind=kind).run(policy, lists[0])
    seen = labelled_scores(policy, lists[1])
    shown = calibration_json(
        policy.calibration.as_dict(), seen.served, probability(policy.calibration, seen.served), seen.relevant
    )
    assert shown["n"] == 20 * 50
    assert shown["ece"] < 0.06 < 0.25 < shown["ece_before"]
    assert shown["brier"] < shown["base_rate"] * (1 - shown["base_rate"]), "better than the base rate for everyone"


# ------------------------------------------------------------------------------------------------------------- the map
def test_an_affine_map_is_a_sigmoid_and_an_isotonic_one_is_straight_between_its_knots():
    scores = torch.tensor([-50.0, -1.0, 0.0, 0.5, 1.0, 2.0, 2.5, 3.0, 70.0], dtype=torch.float64)
    torch.testing.assert_close(AFFINE.probability(scores), torch.sigmoid(2 * scores - 1))
    wanted = [0.1, 0.1, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.9]
    np.testing.assert_allclose(ISOTONIC.probability(scores).numpy(), wanted, atol=1e-12)


@pytest.mark.parametrize("calibration", [AFFINE, ISOTONIC, Calibration("isotonic", knots=((0.0, 0.3),))])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_map_keeps_the_shape_pads_with_zero_and_is_finite_for_huge_logits(calibration, dtype):
    scores = torch.tensor([[1e30, -1e30, 0.0], [3e38, 1.0, -torch.inf]]).to(dtype)
    p = calibration.probability(scores)
    assert p.shape == scores.shape
    assert p.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)
    assert ((p >= 0) & (p <= 1)).all()
    assert p[1, 2] == 0.0
    assert p[0, 0] >= p[0, 2] >= p[0, 1]


def test_a_map_with_one_knot_is_level():
    assert (
        Calibration("isotonic", knots=((5.0, 0.3),)).probability(torch.tensor([-9.0, 5.0, 9.0])).tolist()
        == [pytest.approx(0.3)] * 3
    )


def test_knots_that_are_one_number_in_float32_are_a_step():
    step = Calibration("isotonic", knots=((1.0, 0.2), (1.0 + 1e-12, 0.8)))
    p = step.probability(torch.tensor([0.0, 1.0, 2.0]))
    assert p.isfinite().all()
    assert p.tolist() == sorted(p.tolist())
    assert (p[0].item(), p[2].item()) == (pytest.approx(0.2), pytest.approx(0.8))


@pytest.mark.parametrize("calibration", [AFFINE, ISOTONIC])
def test_a_map_is_differentiable_in_the_scores(calibration):
    scores = torch.tensor([-0.5, 0.7, 2.4], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(calibration.probability, scores)


@settings(max_examples=100, deadline=None)
@given(
    at=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=8, unique=True).map(sorted),
    data=st.data(),
)
def test_an_isotonic_map_is_monotone_in_float32(at, data):
    values = sorted(data.draw(st.lists(st.floats(0, 1), min_size=len(at), max_size=len(at))))
    found = Calibration("isotonic", knots=tuple(zip(at, values, strict=True)))
    scores = torch.tensor([*np.linspace(at[0] - 1, at[-1] + 1, 200), *at]).float().sort().values
    p = found.probability(scores)
    assert (p.diff() >= 0).all()


@pytest.mark.parametrize("calibration", [AFFINE, ISOTONIC, Calibration("affine", a=1.0, b=0.5, plain=ISOTONIC)])
def test_a_map_survives_json_to_the_bit(calibration):
    assert Calibration.from_dict(json.loads(json.dumps(calibration.as_dict(), allow_nan=False))) == calibration


@pytest.mark.parametrize(
    ("table", "field"),
    [
        (None, "calibration"),
        ([], "calibration"),
        ({"kind": "affine", "a": 1.0, "b": 0.0, "slope": 3}, "calibration"),
        ({}, "calibration.kind"),
        ({"kind": "platt", "a": 1.0, "b": 0.0}, "calibration.kind"),
        ({"kind": "affine", "b": 0.0}, "calibration.a"),
        ({"kind": "affine", "a": 0.0, "b": 0.0}, "calibration.a"),
        ({"kind": "affine", "a": -2.0, "b": 0.0}, "calibration.a"),
        ({"kind": "affine", "a": True, "b": 0.0}, "calibration.a"),
        ({"kind": "affine", "a": 10**400, "b": 0.0}, "calibration.a"),
        ({"kind": "affine", "a": 1.0, "b": math.nan}, "calibration.b"),
        ({"kind": "affine", "a": 1.0, "b": math.inf}, "calibration.b"),
        ({"kind": "affine", "a": 1.0, "b": "0"}, "calibration.b"),
        ({"kind": "affine", "a": 1.0, "b": 0.0, "knots": [[0.0, 0.5]]}, "calibration.knots"),
        ({"kind": "isotonic"}, "calibration.knots"),
        ({"kind": "isotonic", "knots": []}, "calibration.knots"),
        ({"kind": "isotonic", "knots": [[0.0, 0.5, 1.0]]}, "calibration.knots"),
        ({"kind": "isotonic", "knots": [[0.0, 1.5]]}, "calibration.knots"),
        ({"kind": "isotonic", "knots": [[0.0, 0.5], [0.0, 0.6]]}, "calibration.knots"),
        ({"kind": "isotonic", "knots": [[0.0, 0.5], [1.0, 0.4]]}, "calibration.knots"),
        ({"kind": "isotonic", "knots": [[0.0, 0.5], [math.nan, 0.6]]}, "calibration.knots"),
        ({"kind": "isotonic", "knots": [[0.0, 0.5]], "a": 1.0}, "calibration.a"),
        ({"kind": "affine", "a": 1.0, "b": 0.0, "plain": {"kind": "affine", "a": -1, "b": 0}}, "calibration.plain.a"),
    ],
)
def test_a_wrong_map_is_refused_by_the_name_of_its_field(table, field):
    assert fault(table).field == field
    with pytest.raises(InputError, match=field.replace(".", r"\.")):
        Calibration.from_dict(table)


def test_a_falling_map_cannot_be_made():
    with pytest.raises(InputError, match=r"calibration\.a is -1\.0; allowed is a number above 0"):
        Calibration("affine", a=-1.0, b=0.0)


# -------------------------------------------------------------------------------------------------------- the measures
def test_ece_and_brier_are_those_computed_by_hand():
    p, y = [0.9, 0.2, 0.1, 0.8], [True, True, False, True]
    # two bins of two: (0.1, 0.2) with 1 of 2 relevant, (0.8, 0.9) with 2 of 2
    assert ece(p, y, bins=2) == pytest.approx(0.5 * abs(0.15 - 0.5) + 0.5 * abs(0.85 - 1.0))
    assert brier(p, y) == pytest.approx((0.1**2 + 0.8**2 + 0.1**2 + 0.2**2) / 4)
    assert [b.count for b in reliability(p, y, bins=2)] == [2, 2]
    assert ece(p, y, bins=1) == pytest.approx(abs(0.5 - 0.75))


def test_brier_is_that_of_scikit_learn():
    scores, relevant = simulated(100, 1.0, 0.0)
    assert brier(expit(scores), relevant) == pytest.approx(brier_score_loss(relevant, expit(scores)))


def test_bins_have_equal_mass_and_never_part_equal_probabilities():
    p = np.arange(30) / 30
    assert [b.count for b in reliability(p, p > 0.5, bins=15)] == [2] * 15
    tied = reliability([0.1] * 7 + [0.2, 0.3, 0.4], [True] * 3 + [False] * 7, bins=5)
    assert tied[0].count == 7
    assert (tied[0].predicted, tied[0].observed) == (pytest.approx(0.1), pytest.approx(3 / 7))
    assert sum(b.count for b in tied) == 10


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]), st.booleans()), min_size=1, max_size=30),
    bins=st.integers(1, 20),
    data=st.data(),
)
def test_measures_do_not_depend_on_the_order_of_the_candidates(rows, bins, data):
    turned = data.draw(st.permutations(rows))
    p, y = zip(*rows, strict=True)
    q, z = zip(*turned, strict=True)
    assert ece(p, y, bins) == pytest.approx(ece(q, z, bins), abs=1e-12)
    assert threshold_for(0.6, p, y) == threshold_for(0.6, q, z)
    assert sum(b.count for b in reliability(p, y, bins)) == len(rows)
    assert abs(np.mean(p) - np.mean(y)) - 1e-12 <= ece(p, y, bins) <= 1


@settings(max_examples=80, deadline=None)
@given(
    rows=st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9, 1.0]), st.booleans()), min_size=1, max_size=20),
    wanted=st.sampled_from([0.0, 0.25, 0.5, 2 / 3, 0.8, 1.0]),
)
def test_a_threshold_is_the_smallest_that_reaches_the_precision(rows, wanted):
    p, y = np.array([a for a, _ in rows]), np.array([b for _, b in rows])
    reached = [t for t in sorted(set(p.tolist())) if y[p >= t].mean() >= wanted]
    found = threshold_for(wanted, p, y)
    if not reached:
        assert found is None
        return
    assert found.threshold == reached[0]
    assert found.precision == pytest.approx(y[p >= reached[0]].mean())
    assert found.recall == pytest.approx(y[p >= reached[0]].sum() / y.sum() if y.any() else 0.0)


@pytest.mark.parametrize(
    ("relevant", "wanted"), [([True] * 3, 1.0), ([False] * 3, 0.0)], ids=["all relevant", "none relevant"]
)
def test_one_class_alone_can_be_measured(relevant, wanted):
    p = [0.2, 0.4, 0.6]
    assert ece(p, relevant, bins=3) == pytest.approx(np.mean([abs(x - wanted) for x in p]))
    assert brier(p, relevant) == pytest.approx(np.mean([(x - wanted) ** 2 for x in p]))
    found = threshold_for(0.9, p, relevant)
    assert found is None if wanted == 0.0 else (found.threshold, found.recall) == (0.2, 1.0)


def test_one_candidate_can_be_measured():
    assert ece([0.3], [True]) == pytest.approx(0.7)
    assert reliability([0.3], [True]) == [Bin(0.3, 1.0, 1)]


@pytest.mark.parametrize(
    ("p", "y", "message"),
    [
        ([], [], r"must both be \[n\], n at least 1"),
        ([0.5], [True, False], r"must both be \[n\]"),
        ([[0.5]], [[True]], r"must both be \[n\]"),
        ([0.5, 1.5], [True, False], "that of candidate 1 is 1.5"),
        ([math.nan], [True], "that of candidate 0 is nan"),
        ([0.5, 0.5], [0, 2], r"relevant must be True or False; that of candidate 1 is 2\.0"),
    ],
)
def test_what_cannot_be_measured_is_named(p, y, message):
    for measure in (ece, brier, reliability, lambda p, y: threshold_for(0.5, p, y)):
        with pytest.raises(InputError, match=message):
            measure(p, y)


@pytest.mark.parametrize("wrong", [-0.1, 1.1, math.nan, True, "0.5", None])
def test_a_precision_that_is_none_is_refused(wrong):
    with pytest.raises(InputError, match="precision must be from 0 to 1"):
        threshold_for(wrong, [0.5], [True])


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True])
def test_a_number_of_bins_that_is_none_is_refused(wrong):
    with pytest.raises(InputError, match="bins must be a whole number of at least 1"):
        ece([0.5], [True], bins=wrong)


def test_what_a_report_shows_is_before_and_after_by_the_same_measures():
    scores, relevant = simulated(600, 0.5, -2.0, 11)
    found = Calibrate().fit(scores, relevant)
    p = probability(found, scores)
    shown = json.loads(json.dumps(calibration_json(found.as_dict(), scores, p, relevant), allow_nan=False))
    assert shown["ece_before"] == pytest.approx(ece(expit(scores), relevant))
    assert shown["brier_before"] == pytest.approx(brier(expit(scores), relevant))
    assert (shown["ece"], shown["brier"]) == (pytest.approx(ece(p, relevant)), pytest.approx(brier(p, relevant)))
    assert (shown["kind"], shown["a"], shown["b"], shown["n"]) == ("affine", found.a, found.b, 600)
    assert shown["base_rate"] == pytest.approx(relevant.mean())
    assert sum(b["count"] for b in shown["bins"]) == 600
    assert shown["bins"][0].keys() == {"predicted", "observed", "count"}
    for row in shown["thresholds"]:
        t = threshold_for(row["precision"], p, relevant)
        assert (row["threshold"], row["recall"]) == ((t.threshold, t.recall) if t else (None, None))
    assert len(shown["thresholds"]) == 5


def test_a_report_can_be_made_of_an_isotonic_map_huge_logits_and_precisions_out_of_reach():
    scores, relevant = np.array([-1e9, 1e9, 2e9, 3e9]), np.array([True, False, True, False])
    found = Calibrate(kind="isotonic").fit(scores, relevant)
    shown = calibration_json(found.as_dict(), scores, probability(found, scores), relevant)
    assert (shown["a"], shown["b"]) == (None, None)
    assert shown["brier_before"] == pytest.approx(3 / 4)
    assert {"precision": 0.95, "threshold": None, "recall": None} in shown["thresholds"]
    json.dumps(shown, allow_nan=False)


# -------------------------------------------------------------------------------------------------------- the loss term
def test_cross_entropy_is_the_one_computed_by_hand_and_padding_counts_nothing():
    scores = torch.tensor([[2.0, -1.0, 0.5], [0.3, -torch.inf, -torch.inf]], dtype=torch.float64)
    labels = torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    first = -(math.log(expit(2.0)) + math.log(1 - expit(-1.0)) + math.log(expit(0.5))) / 3
    wanted = torch.tensor([first, -math.log(1 - expit(0.3))], dtype=torch.float64)
    torch.testing.assert_close(cross_entropy(scores, labels, mask), wanted)
    level2 = -(math.log(expit(2.0)) + math.log(1 - expit(-1.0)) + math.log(1 - expit(0.5))) / 3
    assert cross_entropy(scores, labels, mask, level=2)[0] == pytest.approx(level2)


def test_the_gradient_of_cross_entropy_is_probability_minus_relevance_a_candidate():
    scores = torch.tensor([[2.0, -1e4, 1e4, -torch.inf]], requires_grad=True)
    mask = torch.tensor([[True, True, True, False]])
    loss = cross_entropy(scores, torch.tensor([[0.0, 1.0, 1.0, 0.0]]), mask)
    (gradient,) = torch.autograd.grad(loss.sum(), scores)
    assert loss.isfinite().all()
    torch.testing.assert_close(gradient, torch.tensor([[expit(2.0) / 3, -1 / 3, 0.0, 0.0]], dtype=torch.float32))


def test_cross_entropy_of_an_empty_list_is_zero_and_of_half_precision_is_float32():
    scores = torch.full((1, 3), -torch.inf, dtype=torch.bfloat16)
    loss = cross_entropy(scores, torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.bool))
    assert loss.tolist() == [0.0]
    assert loss.dtype is torch.float32


def test_cross_entropy_sees_the_level_of_the_scores_which_ranking_losses_do_not():
    labels, mask = torch.tensor([[1.0, 0.0, 0.0, 0.0]]), torch.ones(1, 4, dtype=torch.bool)
    shift = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([shift], max_iter=50)

    def closure():
        optimizer.zero_grad()
        loss = cross_entropy(torch.zeros(1, 4) + shift, labels, mask).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert shift.item() == pytest.approx(logit(1 / 4), abs=1e-3), "the best constant is the base rate"
