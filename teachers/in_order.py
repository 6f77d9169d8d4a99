"""Work done at the same time, its results in order; a failure stops what comes after it, and nothing before it.

    for ordering in in_order(work, lists, at_once=4):
        ...

    def work(candidates, turn):
        answers = turn.together(ask, windows)   # of all lists' windows four are under way at a time
        ...

    def ask(window, wait):
        wait(2.0)                               # no longer than until something before it has failed

A place is (item) or (item, part), compared as Python compares tuples.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from typing import Protocol, TypeAlias, TypeVar, final

T = TypeVar("T")
R = TypeVar("R")

Place: TypeAlias = tuple[float, ...]


class Wait(Protocol):
    """How a part waits."""

    def __call__(self, seconds: float = 0.0) -> None:
        """Wait so long; raise Halted as soon as something before the part has failed."""
        ...


class Halted(Exception):
    """Something before this has failed: it is not to go on."""


@final
class _Halt:
    """The first place that failed."""

    def __init__(self) -> None:
        self._first: Place = (math.inf,)
        self._changed = threading.Condition()

    def at(self, place: Place) -> None:
        """Stop all that comes after `place`."""
        with self._changed:
            self._first = min(self._first, place)
            self._changed.notify_all()

    def wait(self, place: Place, seconds: float = 0.0) -> None:
        """Wait so long; raise Halted as soon as what is done at `place` is not to go on."""
        with self._changed:
            if self._changed.wait_for(lambda: place > self._first, timeout=seconds):
                raise Halted

    def run(self, place: Place, work: Callable[[], R]) -> R:
        """What `work` returns; where it fails, all that comes after `place` is stopped."""
        try:
            self.wait(place)
            return work()
        except BaseException:
            self.at(place)
            raise


@final
class Turn:
    """One item's place: for its work to wait, and to have its parts done."""

    def __init__(self, place: int, halt: _Halt, pool: Executor) -> None:
        self._place, self._halt, self._pool = place, halt, pool

    def wait(self, seconds: float = 0.0) -> None:
        """Wait so long; raise Halted as soon as an item before this one has failed."""
        self._halt.wait((self._place,), seconds)

    def together(self, work: Callable[[T, Wait], R], parts: Sequence[T]) -> list[R]:
        """`work(part, wait)` of each part; as many parts, of all items together, are under way as items may be."""
        begun: list[Future[R]] = []
        for i, part in enumerate(parts):
            place = (self._place, i)
            one = partial(work, part, partial(self._halt.wait, place))
            begun.append(self._pool.submit(self._halt.run, place, one))
        return [done.result() for done in begun]


def in_order(work: Callable[[T, Turn], R], items: Iterable[T], at_once: int) -> Generator[R, None, None]:
    """`work(item, turn)` of each item, in their order, each as soon as it and all before it are done.

    When one fails, those before it go on, those after it stop at their next wait; so do all when the caller stops.
    """
    halt, begun = _Halt(), deque[Future[R]]()
    # Pools of their own: an item that waits for its parts must not take the place of one of them.
    of_items = ThreadPoolExecutor(at_once, thread_name_prefix="item")
    of_parts = ThreadPoolExecutor(at_once, thread_name_prefix="part")
    try:
        for place, item in enumerate(items):
            turn = Turn(place, halt, of_parts)
            begun.append(of_items.submit(halt.run, (place,), partial(work, item, turn)))
            while begun and (begun[0].done() or len(begun) >= 2 * at_once):
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        halt.at(())
        of_items.shutdown(wait=True, cancel_futures=True)
        of_parts.shutdown(wait=True, cancel_futures=True)
