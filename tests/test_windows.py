"""Windowing strategies: the classic algorithms' orders, scores on one scale, and windows that keep their promise."""

import math
import random
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import isotonic_regression

from rerank.errors import InputError
from rerank.prompting.scales import falling, one_scale, pieces
from rerank.prompting.windows import (
    Calls,
    Disjoint,
    Full,
    Setwise,
    Sliding,
    Tournament,
    calls,
    run_plans,
    windowing_named,
)

EVERY = [Sliding(), Sliding(stride=1), Disjoint(1), Disjoint(2), Disjoint(3), Tournament(), Setwise(1), Setwise(5)]


def run(windowing, n, window, answer, key=0):
    """The scores of one list and the windows of each round."""
    rounds = []

    def ask(questions):
        rounds.append([shown for _, shown in questions])
        return [answer(shown) for _, shown in questions]

    [scores] = run_plans([windowing.plan(n, window, key)], ask)
    return scores, rounds


def consistent(worth, seed=0):
    """A model that scores documents by their worth, shifted by any constant from prompt to prompt."""
    shifts = random.Random(seed)

    def answer(shown):
        shift = shifts.uniform(-50, 50)
        return [worth[i] + shift for i in shown]

    return answer


def whimsical(seed=0):
    """A model whose every answer is its own, with ties."""
    whims = random.Random(seed)
    return lambda shown: [whims.choice([0.0, 1.0, whims.gauss(0, 3)]) for _ in shown]


def best_first(scores):
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))


def worths(n, seed=0):
    return [x / 7 for x in random.Random(seed).sample(range(10 * n + 1), n)]


sizes = st.tuples(st.integers(0, 45), st.integers(2, 12))
seeds = st.integers(0, 2**32)


# --- the classic algorithms ---


def reference_sliding(n, window, stride, answer):
    """Sliding windows as RankLLM runs them, straightforwardly."""
    order, end, start = list(range(n)), n, n - window
    while end > 0 and start + stride != 0:
        start = max(start, 0)
        shown = order[start:end]
        scores = answer(tuple(shown))
        order[start:end] = [shown[p] for p in sorted(range(len(shown)), key=lambda p: -scores[p])]
        end, start = end - stride, start - stride
    return order


@given(sizes, seeds, st.data())
def test_sliding_ends_in_the_order_of_the_classic_algorithm(size, seed, data):
    n, window = size
    stride = data.draw(st.integers(1, window - 1))
    scores, _ = run(Sliding(stride), n, window, whimsical(seed))
    if n > window:
        assert best_first(scores) == reference_sliding(n, window, stride, whimsical(seed))


def test_sliding_over_a_hundred_asks_nine_windows_of_twenty_as_rankgpt_does():
    _, rounds = run(Sliding(), 100, 20, lambda shown: [-float(i) for i in shown])
    assert rounds == [[tuple(range(start, start + 20))] for start in range(80, -1, -10)]


def test_the_head_of_a_list_that_the_stride_does_not_divide_is_shown_too():
    _, rounds = run(Sliding(10), 25, 20, lambda shown: [-float(i) for i in shown])
    assert rounds == [[tuple(range(5, 25))], [tuple(range(15))]]


@given(st.integers(3, 60), st.integers(2, 12), st.integers(1, 15), seeds)
def test_setwise_puts_the_best_first_and_leaves_the_rest_in_first_stage_order(n, window, top, seed):
    worth = worths(n, seed)
    scores, rounds = run(Setwise(top), n, window, consistent(worth, seed))
    if n > window:
        head = best_first([*worth])[:top]
        assert best_first(scores) == head + [i for i in range(n) if i not in head]
        assert all(len(windows) == 1 for windows in rounds)


def test_setwise_reads_of_an_answer_only_who_is_best():
    worth = worths(30)
    rough = lambda shown: [float(i == max(shown, key=worth.__getitem__)) for i in shown]  # noqa: E731
    assert best_first(run(Setwise(4), 30, 5, rough)[0])[:4] == best_first(worth)[:4]


@given(st.integers(3, 60), st.integers(2, 12), seeds)
def test_a_tournament_ranks_by_round_reached_and_then_by_worth(n, window, seed):
    worth = worths(n, seed)
    scores, rounds = run(Tournament(), n, window, consistent(worth, seed))
    reached = {i: 0 for i in range(n)}
    for number, windows in enumerate(rounds, start=1):
        reached.update((i, number) for shown in windows for i in shown)
    if n > window:
        last = rounds[-1][0]
        assert best_first(scores)[: len(last)] == sorted(last, key=lambda i: -worth[i])
        assert best_first(scores)[0] == best_first(worth)[0]
        # A candidate that met nobody in a round (windows of two) went on without being seen there.
        if window > 2:
            assert best_first(scores) == sorted(range(n), key=lambda i: (-reached[i], -worth[i]))


def test_a_tournament_deals_the_first_stage_in_a_snake_and_sends_the_better_halves_on():
    _, rounds = run(Tournament(), 8, 4, lambda shown: [float(i) for i in shown])
    assert rounds == [[(0, 3, 4, 7), (1, 2, 5, 6)], [(6, 7, 4, 5)]]


def test_disjoint_with_one_shuffle_deals_all_ranks_to_each_window():
    _, rounds = run(Disjoint(1), 10, 4, whimsical())
    assert rounds == [[(0, 3, 6, 9), (1, 4, 7), (2, 5, 8)]]


@given(st.integers(1, 60), st.integers(2, 12), st.integers(2, 5), seeds)
def test_disjoint_asks_one_round_that_shows_each_candidate_once_a_shuffle_and_joins_the_list(n, window, shuffles, key):
    _, rounds = run(Disjoint(shuffles), n, window, whimsical(), key)
    [windows] = rounds
    lengths = [len(shown) for shown in windows]
    assert max(lengths) - min(lengths) <= 1
    assert set(pieces(n, windows)) == {0}
    shown = np.bincount([i for w in windows for i in w], minlength=n)
    # Windows that come out the same in two shuffles are asked once.
    assert (shown >= 1).all() and (shown <= shuffles).all()
    if n >= 40 and window >= 8:
        assert (shown == shuffles).all()


def test_disjoint_asks_no_window_twice():
    _, [windows] = run(Disjoint(20), 2, 5, whimsical())
    assert sorted(windows) == [(0, 1), (1, 0)]


def test_disjoint_shows_a_list_that_fits_in_several_orders_and_averages_the_place_away():
    worth, n = worths(12), 12

    def leaning(shown):
        return [worth[i] - 0.3 * place for place, i in enumerate(shown)]

    scores, [windows] = run(Disjoint(400), n, 20, leaning)
    assert len(windows) == 400 and all(sorted(shown) == list(range(n)) for shown in windows)
    known = np.array(scores) - np.mean(scores)
    assert np.abs(known - (np.array(worth) - np.mean(worth))).max() < 0.3
    alone = np.array(leaning(range(n)))
    assert np.abs(alone - alone.mean() - (np.array(worth) - np.mean(worth))).max() > 1.5


# --- a list that fits one window ---


@pytest.mark.parametrize("windowing", [Full(), Sliding(), Tournament(), Setwise(), Disjoint(1)])
@pytest.mark.parametrize("n", [1, 2, 7, 8])
def test_a_list_that_fits_is_shown_once_and_keeps_its_scores_bit_for_bit(windowing, n):
    given_scores = [0.1 + 1e-17, -0.0, 1e-300, 3.3, 3.3, -1e29, math.pi, 2.0][:n]
    scores, rounds = run(windowing, n, 8, lambda shown: given_scores)
    assert [s.hex() for s in scores] == [s.hex() for s in given_scores]
    assert rounds == [[tuple(range(n))]]


@pytest.mark.parametrize("windowing", [Full(), *EVERY])
def test_an_empty_list_asks_nothing(windowing):
    assert run(windowing, 0, 5, whimsical()) == ([], [])


def test_a_single_candidate_is_asked_about_once_however_many_shuffles():
    assert run(Disjoint(5), 1, 4, lambda shown: [2.5]) == ([2.5], [[(0,)]])


# --- scores on one scale ---


@given(st.integers(2, 60), st.integers(2, 12), st.integers(2, 4), seeds)
@settings(deadline=None)
def test_disjoint_recovers_a_consistent_model_from_shifted_windows(n, window, shuffles, seed):
    worth = worths(n, seed)
    scores, _ = run(Disjoint(shuffles), n, window, consistent(worth, seed), seed)
    assert best_first(scores) == best_first(worth)
    assert np.ptp(np.subtract(scores, worth)) < 1e-6


@given(st.integers(2, 60), st.integers(2, 12), seeds, st.data())
@settings(deadline=None)
def test_sliding_recovers_the_head_of_a_list_and_every_difference_that_its_order_allows(n, window, seed, data):
    stride = data.draw(st.integers(1, window - 1))
    worth = worths(n, seed)
    scores, rounds = run(Sliding(stride), n, window, consistent(worth, seed))
    assert best_first(scores)[: window - stride] == best_first(worth)[: window - stride]
    asked = [(shown, np.array(consistent(worth, k)(shown))) for k, [shown] in enumerate(rounds)]
    assert np.ptp(one_scale(n, asked) - worth) < 1e-6
    if best_first(scores) == best_first(worth):
        assert np.ptp(np.subtract(scores, worth)) < 1e-6


@given(st.integers(0, 60), seeds)
def test_sliding_recovers_a_list_whose_candidates_are_near_their_places(n, seed):
    order = sorted(range(n), key=lambda i: (i // 5, random.Random(seed + i).random()))
    worth = [0.0] * n
    for place, i in enumerate(order):
        worth[i] = -1.5 * place
    scores, _ = run(Sliding(10), n, 20, consistent(worth, seed))
    assert best_first(scores) == best_first(worth)
    assert n == 0 or np.ptp(np.subtract(scores, worth)) < 1e-6


def test_the_scale_is_the_least_squares_solution_of_smallest_offsets():
    draw = np.random.default_rng(3)
    windows = [(0, 1, 2, 3), (2, 3, 4, 5), (5, 0, 6), (6, 4)]
    asked = [(w, draw.normal(size=len(w)) + 4) for w in windows]
    rows, targets = [], []
    for k, (window, scores) in enumerate(asked):
        for i, score in zip(window, scores, strict=True):
            rows.append([*(float(j == i) for j in range(7)), *(float(j == k) for j in range(4))])
            targets.append(score)
    solution = np.linalg.lstsq(np.array(rows), np.array(targets), rcond=None)[0]
    scale, offsets = solution[:7], solution[7:]
    np.testing.assert_allclose(one_scale(7, asked), scale + offsets.mean(), atol=1e-9)


def test_windows_that_share_no_candidate_are_level_in_the_mean():
    asked = [((0, 1), np.array([5.0, 3.0])), ((2, 3), np.array([-7.0, -3.0]))]
    np.testing.assert_allclose(one_scale(4, asked), [0.5, -1.5, -2.5, 1.5], atol=1e-12)


def test_a_candidate_that_was_never_asked_about_stands_below_all_others():
    scale = one_scale(4, [((0, 2), np.array([-9.0, -6.0]))])
    assert np.isnan(scale).tolist() == [False, True, False, True]
    scores = falling(scale, [2, 0, 1, 3])
    assert [scores[2], scores[0]] == pytest.approx([-6, -9]) and best_first(scores) == [2, 0, 1, 3]


values = st.lists(
    st.one_of(st.floats(-(2.0**99), 2.0**99, width=32), st.sampled_from([0.0, 1.0, 1.0 + 1e-12])),
    min_size=1,
    max_size=40,
)


@given(values, seeds)
@example([0.0] * 40, 0)
@example([1e-30, 1e-30, 0.0, 1e-45], 0)
@example([2.0**24 - 1] * 30, 0)
def test_falling_scores_sort_into_the_order_given_also_in_float32(given_values, seed):
    order = random.Random(seed).sample(range(len(given_values)), len(given_values))
    scores = falling(given_values, order)
    single = np.float32(scores)
    assert np.isfinite(single).all()
    assert all(single[a] > single[b] for a, b in pairwise(order))


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=40))
def test_falling_scores_are_the_isotonic_regression_but_for_what_sets_ties_apart(given_values):
    fitted = isotonic_regression(given_values, increasing=False).x
    np.testing.assert_allclose(falling(given_values, range(len(given_values))), fitted, atol=40 * 2e-5)


def test_scores_that_fall_already_are_left_as_they_are():
    given_values = [3.25, 0.1, 0.0, -1e-3, -1e20]
    assert falling(given_values, range(5)) == given_values


@given(st.integers(13, 60), seeds)
def test_candidates_worth_the_same_stay_in_first_stage_order_whatever_the_last_digits(n, seed):
    worth = [random.Random(seed + i).randrange(3) / 3 for i in range(n)]
    scores, _ = run(Disjoint(3), n, 12, consistent(worth, seed), seed)
    assert best_first(scores) == best_first(worth)


# --- any strategy, any model ---


@pytest.mark.parametrize("windowing", EVERY, ids=str)
@given(sizes, seeds)
@settings(deadline=None, max_examples=60)
def test_every_strategy_asks_well_formed_windows_and_gives_each_candidate_a_score(windowing, size, seed):
    n, window = size
    scores, rounds = run(windowing, n, window, whimsical(seed), seed)
    assert len(scores) == n and np.isfinite(np.float32(scores)).all()
    for shown in (w for windows in rounds for w in windows):
        assert 1 <= len(shown) <= window and len(set(shown)) == len(shown) and set(shown) <= set(range(n))
    assert {i for windows in rounds for w in windows for i in w} == set(range(n))
    if n > window:
        assert len(set(np.float32(scores).tolist())) == n
    assert run(windowing, n, window, whimsical(seed), seed) == (scores, rounds)


def test_only_disjoint_draws_and_another_key_draws_otherwise():
    def windows(windowing, key):
        return run(windowing, 30, 6, lambda shown: [-float(i) for i in shown], key)[1]

    assert windows(Disjoint(), 1) != windows(Disjoint(), 2)
    for windowing in (Sliding(), Disjoint(1), Tournament(), Setwise()):
        assert windows(windowing, 1) == windows(windowing, 2)


def test_lists_go_in_lockstep_and_each_gets_what_it_would_get_alone():
    plans = [Sliding(), Tournament(), Disjoint(2), Setwise(3), Full(), Sliding()]
    lengths = [25, 17, 9, 12, 6, 0]
    lists = [worths(n, n) for n in lengths]
    answered = []

    def ask(questions):
        answered.append([i for i, _ in questions])
        return [[lists[i][c] for c in shown] for i, shown in questions]

    together = run_plans([p.plan(n, 6, 0) for p, n in zip(plans, lengths, strict=True)], ask)
    alone = [run(p, n, 6, lambda w, v=v: [v[i] for i in w]) for p, n, v in zip(plans, lengths, lists, strict=True)]
    assert together == [scores for scores, _ in alone]
    for i, (_, rounds) in enumerate(alone):
        assert [asked.count(i) for asked in answered if i in asked] == [len(windows) for windows in rounds]
        assert all(i in asked for asked in answered[: len(rounds)])
    assert len(answered) == max(len(rounds) for _, rounds in alone)


def test_the_cost_is_known_before_a_model_is_asked():
    assert calls(Full(), 20, 20) == Calls(windows=1, rounds=1)
    assert calls(Sliding(), 100, 20) == Calls(windows=9, rounds=9)
    assert calls(Disjoint(3), 100, 20) == Calls(windows=15, rounds=1)
    assert calls(Disjoint(3), 20, 20) == Calls(windows=3, rounds=1)
    # 100 in 5 groups, 50 in 3 (17, 17 and 16 send 9, 9 and 8 on), 26 in 2 (13 and 13 send 7 and 7 on), 14 in one.
    assert calls(Tournament(), 100, 20) == Calls(windows=5 + 3 + 2 + 1, rounds=4)
    # 100 in a heap of 19 children a parent has 6 parents; upside down, each of the ten best asks for two levels.
    assert calls(Setwise(10), 100, 20).rounds == calls(Setwise(10), 100, 20).windows
    # Pairs make a heap of two children a parent all the same, two questions a level; a chain would ask n^2 / 2.
    assert calls(Setwise(10), 100, 2).windows < 100 * 2 + 10 * 2 * 7
    assert calls(Sliding(), 0, 20) == Calls(windows=0, rounds=0)


@given(st.integers(3, 60), st.integers(2, 12), seeds)
@settings(deadline=None)
def test_the_cost_of_all_but_setwise_does_not_depend_on_the_answers(n, window, seed):
    for windowing in (Sliding(), Disjoint(2), Tournament()):
        _, rounds = run(windowing, n, window, whimsical(seed))
        assert calls(windowing, n, window) == (sum(map(len, rounds)), len(rounds))


# --- what is not allowed ---


def test_a_list_that_full_cannot_show_is_an_error_that_says_what_to_do():
    with pytest.raises(InputError, match=r"'full': 21 candidates do not fit one window of 20; lower the depth, raise"):
        Full().plan(21, 20)


@pytest.mark.parametrize("windowing", [Full(), *EVERY], ids=str)
@pytest.mark.parametrize("window", [1, 0, -3, 2.0, True, "20"])
def test_a_window_holds_two_candidates_or_more(windowing, window):
    with pytest.raises(InputError, match="window must be a whole number of at least 2; given"):
        windowing.plan(10, window)


@pytest.mark.parametrize("stride", [20, 21])
def test_sliding_windows_must_overlap(stride):
    with pytest.raises(InputError, match=rf"stride must be from 1 to 19, .*given: {stride}\. Windows that do not over"):
        Sliding(stride).plan(100, 20)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("sliding", {"stride": 0}, r"'sliding': stride must be a whole number of at least 1; given: 0"),
        ("disjoint", {"shuffles": 0}, r"'disjoint': shuffles must be a whole number of at least 1; given: 0"),
        ("setwise", {"top": 0}, r"'setwise': top must be a whole number of at least 1; given: 0"),
        ("setwise", {"top": 1.5}, r"'setwise': top must be a whole number"),
        ("slidng", {}, r"unknown windowing 'slidng'; did you mean 'sliding'\? \(known: disjoint, full, setwise, "),
        ("sliding", {"strid": 5}, r"'sliding': unknown setting 'strid'; did you mean 'stride'\?"),
        ("full", {"stride": 5}, r"'full': unknown setting 'stride'; it has no settings"),
    ],
)
def test_a_wrong_name_or_setting_says_what_is_allowed(kind, settings, message):
    with pytest.raises(InputError, match=message):
        windowing_named(kind, **settings)


def test_a_strategy_is_made_by_its_name():
    made = [windowing_named(kind.name) for kind in (Full, Sliding, Disjoint, Tournament, Setwise)]
    assert made == [Full(), Sliding(), Disjoint(), Tournament(), Setwise()]
    assert windowing_named("sliding", stride=4) == Sliding(4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -3.4e38])
def test_a_score_that_is_no_number_names_list_and_candidate(bad):
    with pytest.raises(InputError, match=r"list 1: the score of candidate 2 is .*must be finite, and at most 1e\+30"):
        run_plans(
            [Full().plan(3, 5), Full().plan(3, 5)], lambda asked: [[0.0, 1.0, 2.0 if i == 0 else bad] for i, _ in asked]
        )


def test_a_wrong_number_of_scores_or_answers_is_an_error():
    with pytest.raises(InputError, match=r"list 0: a window of 3 candidates needs as many scores; given: shape \(2,\)"):
        run_plans([Full().plan(3, 5)], lambda asked: [[0.0, 1.0]])
    with pytest.raises(InputError, match="2 windows were asked about and 1 answers came back"):
        run_plans([Full().plan(3, 5), Full().plan(3, 5)], lambda asked: [[0.0, 1.0, 2.0]])


def test_importing_it_loads_no_torch():
    code = "import sys, rerank.prompting.windows; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
