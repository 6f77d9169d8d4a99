"""How a list that is longer than a prompt is ranked: which candidates are shown together, and one scale for all.

    plan = Sliding(stride=10).plan(n=100, window=20)   yields the windows of a round, is sent their scores, returns [n]

    full        all in one window
    sliding     from the end of the list to its beginning, each window sorted in place    Sun et al. 2023 (RankGPT)
    disjoint    random parts, all asked at once, several times over                       Tang et al. 2023
    tournament  groups in parallel, the better half of each goes on                       Chen et al. 2024 (TourRank)
    setwise     a heap sort whose question is which of a window is best                   Zhuang et al. 2024

TourRank plays several tournaments and adds up points; ours plays one, halves, and reads the scores. The last sliding
window is cut short at the head of the list, as in RankLLM, where RankGPT's code leaves it out.

A window's scores are relative; `prompting.scales` puts those of all windows on one scale, and then they are made to
fall along the order that the strategy found. A list that is shown once, in one window, keeps its scores as they are.

No model and no tokens here; candidates are indices in first-stage order. Equal scores keep the order shown.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from rerank.errors import InputError, nearest
from rerank.prompting.scales import LARGEST, Asked, Window, falling, one_scale, pieces, without_noise

Plan: TypeAlias = Generator[list[Window], list[Sequence[float]], list[float]]
"""Yields the windows of one round, is sent a score for each place of each of them, returns the scores [n]."""


class Windowing(Protocol):
    """A way to rank a list of any length with a model that sees `window` candidates at a time."""

    @property
    def name(self) -> str:
        """What a recipe calls it."""
        ...

    def plan(self, n: int, window: int, key: int = 0) -> Plan:
        """The questions about a list of `n`; all that is drawn at random is a function of `key`."""
        ...


@final
@dataclass(frozen=True)
class Full:
    """The whole list in one window."""

    name: ClassVar[str] = "full"

    def plan(self, n: int, window: int, key: int = 0) -> Plan:
        """One question; a list that does not fit is an error."""
        _check_sizes(n, window)
        if n > window:
            raise InputError(
                f"windowing 'full': {n} candidates do not fit one window of {window}; lower the depth, raise the "
                "window, or take another windowing: sliding, disjoint, tournament, setwise"
            )
        return _in_one(n)


@final
@dataclass(frozen=True)
class Sliding:
    """Windows from the end of the list to its beginning, each sorted in place before the next is shown."""

    name: ClassVar[str] = "sliding"
    stride: int | None = None
    """How far a window lies before the one that it follows; None: half a window."""

    def __post_init__(self) -> None:
        if self.stride is not None:
            _check_whole("windowing 'sliding': stride", self.stride, 1)

    def plan(self, n: int, window: int, key: int = 0) -> Plan:
        """One window after another: the best `window - stride` candidates of a list reach its head."""
        _check_sizes(n, window)
        stride = window // 2 if self.stride is None else self.stride
        if stride >= window:
            raise InputError(
                f"windowing 'sliding': stride must be from 1 to {window - 1}, below the window of {window}; given: "
                f"{stride}. Windows that do not overlap carry no candidate on, so that the list would not be sorted"
            )
        return _in_one(n) if n <= window else _sliding(n, window, stride)


@final
@dataclass(frozen=True)
class Disjoint:
    """The list in parts, all asked in one round, `shuffles` times over; scores are what the parts agree on.

    One shuffle deals the first stage out like cards, so that each part holds candidates from all its ranks. A list
    that fits one window is shown in `shuffles` orders: what depends on a candidate's place in the prompt averages out.
    """

    name: ClassVar[str] = "disjoint"
    shuffles: int = 3
    """How many times each candidate is shown; with 1, nothing tells how the scales of two windows lie."""

    def __post_init__(self) -> None:
        _check_whole("windowing 'disjoint': shuffles", self.shuffles, 1)

    def plan(self, n: int, window: int, key: int = 0) -> Plan:
        """One round."""
        _check_sizes(n, window)
        return _in_one(n) if n <= window and (n < 2 or self.shuffles == 1) else _disjoint(n, window, self.shuffles, key)


@final
@dataclass(frozen=True)
class Tournament:
    """Groups of alike strength; the better half of each goes on, until those that are left fit one window."""

    name: ClassVar[str] = "tournament"

    def plan(self, n: int, window: int, key: int = 0) -> Plan:
        """About log2(n / window) rounds and one, the groups of a round at once."""
        _check_sizes(n, window)
        return _in_one(n) if n <= window else _tournament(n, window)


@final
@dataclass(frozen=True)
class Setwise:
    """Heap sort by questions for the best of a window; below the first `top` places the first-stage order stays."""

    name: ClassVar[str] = "setwise"
    top: int = 10
    """How many places are sorted."""

    def __post_init__(self) -> None:
        _check_whole("windowing 'setwise': top", self.top, 1)

    def plan(self, n: int, window: int, key: int = 0) -> Plan:
        """One question after another; their number depends on the answers."""
        _check_sizes(n, window)
        return _in_one(n) if n <= window else _setwise(n, window, self.top)


_KINDS: dict[str, Callable[..., Windowing]] = {
    kind.name: kind for kind in (Full, Sliding, Disjoint, Tournament, Setwise)
}


def windowing_named(name: str, **settings: Any) -> Windowing:
    """The strategy called `name`, with its settings: `windowing_named("sliding", stride=10)`."""
    kind = _KINDS.get(name)
    if kind is None:
        raise InputError(f"unknown windowing {name!r}{nearest(str(name), _KINDS)}")
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for setting in settings:
        if setting not in known:
            hint = nearest(setting, known) if known else "; it has no settings"
            raise InputError(f"windowing {name!r}: unknown setting {setting!r}{hint}")
    return kind(**settings)


def run_plans(
    plans: Sequence[Plan], ask: Callable[[list[tuple[int, Window]]], Sequence[Sequence[float]]]
) -> list[list[float]]:
    """The scores of each list; `ask` gets all (list index, window) that are open in a round, of all lists together."""
    done: list[list[float]] = [[] for _ in plans]
    answers: dict[int, list[Sequence[float]] | None] = dict.fromkeys(range(len(plans)))
    while answers:
        shown: dict[int, list[Window]] = {}
        for i, answer in answers.items():
            try:
                # A generator that has not begun takes None alone.
                shown[i] = plans[i].send(answer)  # type: ignore[arg-type]
            except StopIteration as end:
                done[i] = end.value
            except InputError as error:
                raise InputError(f"list {i}: {error}") from error
        questions = [(i, window) for i, windows in shown.items() for window in windows]
        scores = list(ask(questions)) if questions else []
        if len(scores) != len(questions):
            raise InputError(f"{len(questions)} windows were asked about and {len(scores)} answers came back")
        in_turn = iter(scores)
        answers = {i: [next(in_turn) for _ in windows] for i, windows in shown.items()}
    return done


class Calls(NamedTuple):
    """What ranking one list costs."""

    windows: int
    rounds: int
    """Questions one after another: those of a round can be asked at once."""


def calls(windowing: Windowing, n: int, window: int) -> Calls:
    """The cost of a list of `n`, found by running the plan with a model that turns the first stage upside down.

    Only Setwise's cost depends on the answers; upside down is about the most it can come to.
    """
    rounds: list[int] = []

    def upside_down(questions: list[tuple[int, Window]]) -> list[list[float]]:
        rounds.append(len(questions))
        return [[float(i) for i in shown] for _, shown in questions]

    run_plans([windowing.plan(n, window)], upside_down)
    return Calls(sum(rounds), len(rounds))


def _in_one(n: int) -> Plan:
    """One window, its scores as they are; none for an empty list."""
    if n == 0:
        return []
    [scores] = yield from _ask([tuple(range(n))], [])
    return [float(score) for score in scores]


def _sliding(n: int, window: int, stride: int) -> Plan:
    asked: Asked = []
    order, end, start = list(range(n)), n, n
    while start > 0:
        start = max(0, end - window)
        shown = tuple(order[start:end])
        [scores] = yield from _ask([shown], asked)
        order[start:end] = _best_first(shown, scores)
        end -= stride
    return falling(one_scale(n, asked), order)


def _disjoint(n: int, window: int, shuffles: int, key: int) -> Plan:
    asked: Asked = []
    yield from _ask(_partitions(n, window, shuffles, key), asked)
    scale = one_scale(n, asked)
    return falling(scale, np.argsort(-without_noise(scale), kind="stable").tolist())


def _partitions(n: int, window: int, shuffles: int, key: int) -> list[Window]:
    """The windows of all shuffles, each once; from two shuffles on they join the whole list."""
    parts = -(-n // window)
    if shuffles == 1:
        return [tuple(range(first, n, parts)) for first in range(parts)]
    from rerank.randomness import key_of  # it loads torch, which an endpoint's client can do without

    orders = [random.Random(key_of("disjoint", key, i)).sample(range(n), n) for i in range(shuffles)]
    cuts = [part * (n // parts) + min(part, n % parts) for part in range(parts + 1)]
    windows = [tuple(order[a:b]) for order in orders for a, b in pairwise(cuts)]
    if len(set(pieces(n, windows))) > 1:
        # Small windows can leave a list in pieces. The first order, turned by half a window, bridges all its own cuts.
        turned = orders[0][-(-n // parts) // 2 :] + orders[0][: -(-n // parts) // 2]
        windows[-parts:] = [tuple(turned[a:b]) for a, b in pairwise(cuts)]
    return list(dict.fromkeys(windows))


def _tournament(n: int, window: int) -> Plan:
    asked: Asked = []
    standing, reached, level = list(range(n)), np.zeros(n), 0
    while True:
        level += 1
        reached[standing] = level
        groups = _snake(standing, window)
        # A candidate alone in its group (windows of two) goes on without a question.
        alone = [group for group in groups if len(group) == 1]
        met = [group for group in groups if len(group) > 1]
        scores = yield from _ask(met, asked)
        if len(groups) == 1:
            break
        ranked = [_best_first(group, of_group) for group, of_group in zip(met, scores, strict=True)] + alone
        through = {i: place for group in ranked for place, i in enumerate(group[: -(-len(group) // 2)])}
        # Who did as well in its group as another stays before it if it stood before it.
        standing = sorted((i for i in standing if i in through), key=through.__getitem__)
    scale = one_scale(n, asked)
    return falling(scale, np.lexsort((-without_noise(scale), -reached)).tolist())


def _snake(standing: Sequence[int], window: int) -> list[Window]:
    """Candidates dealt to and fro into as few groups as hold them: 0 3 4 | 1 2 5."""
    parts = -(-len(standing) // window)
    groups: list[list[int]] = [[] for _ in range(parts)]
    for place, i in enumerate(standing):
        row, column = divmod(place, parts)
        groups[column if row % 2 == 0 else parts - 1 - column].append(i)
    return [tuple(group) for group in groups]


def _setwise(n: int, window: int, top: int) -> Plan:
    """A heap whose parents have as many children as a window has room for beside them, and at least two."""
    asked: Asked = []
    heap, order = list(range(n)), list[int]()
    fan = max(2, window - 1)
    for parent in range((n - 2) // fan, -1, -1):
        yield from _sink(heap, parent, fan, window, asked)
    while len(order) < min(top, n):
        order.append(heap[0])
        last = heap.pop()
        if heap and len(order) < top:
            heap[0] = last
            yield from _sink(heap, 0, fan, window, asked)
    placed = set(order)
    return falling(one_scale(n, asked), [*order, *(i for i in range(n) if i not in placed)])


def _sink(
    heap: list[int], parent: int, fan: int, window: int, asked: Asked
) -> Generator[list[Window], list[Sequence[float]], None]:
    """Nothing; the candidate at `parent` changes places with the best of its children until it is better than all."""
    while fan * parent + 1 < len(heap):
        children = range(fan * parent + 1, min(fan * parent + 1 + fan, len(heap)))
        best = parent
        for first in range(0, len(children), window - 1):
            rivals = [best, *children[first : first + window - 1]]
            [scores] = yield from _ask([tuple(heap[at] for at in rivals)], asked)
            best = rivals[int(np.argmax(scores))]
        if best == parent:
            return
        heap[parent], heap[best] = heap[best], heap[parent]
        parent = best


def _ask(
    windows: list[Window], asked: Asked
) -> Generator[list[Window], list[Sequence[float]], list[NDArray[np.float64]]]:
    """The scores of one round's windows, checked; `asked` keeps them."""
    answers = yield windows
    rows = [np.asarray(answer, dtype=np.float64) for answer in answers]
    for window, row in zip(windows, rows, strict=True):
        if row.shape != (len(window),):
            raise InputError(f"a window of {len(window)} candidates needs as many scores; given: shape {row.shape}")
        wrong = np.flatnonzero(~(np.abs(row) <= LARGEST))
        if len(wrong):
            raise InputError(
                f"the score of candidate {window[wrong[0]]} is {row[wrong[0]]}; it must be finite, and at most "
                f"{LARGEST:g} in size"
            )
    asked.extend(zip(windows, rows, strict=True))
    return rows


def _best_first(window: Sequence[int], scores: NDArray[np.float64]) -> Window:
    return tuple(window[place] for place in np.argsort(-scores, kind="stable"))


def _check_sizes(n: int, window: int) -> None:
    _check_whole("candidates of a list", n, 0)
    _check_whole("window", window, 2)


def _check_whole(what: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{what} must be a whole number of at least {least}; given: {value!r}")
