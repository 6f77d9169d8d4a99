"""An iterator whose next element is made in a thread while the present one is worked on.

The elements and their order are those of the iterable. An error in the thread is raised where the element is asked for,
as it was raised there; leaving the `with` block ends the thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Generic, TypeVar, final

from rerank.errors import TrainingError

T = TypeVar("T")

LOOK = 1.0
"""Seconds after which whoever waits looks whether the thread is still there."""


@final
class Prefetched(Generic[T]):
    """Iterates over `items`, made at most `ahead` elements in advance by a thread of its own."""

    def __init__(self, items: Iterable[T], ahead: int = 1) -> None:
        self.ahead = ahead
        self._ready: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = self._done = self._resting = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, args=(iter(items),), name="rerank prefetch", daemon=True)
        self._thread.start()

    def _work(self, items: Iterator[T]) -> None:
        try:
            while self._wait_for_room():
                try:
                    item = next(items)
                except StopIteration:
                    break
                with self._changed:
                    self._ready.append(item)
                    self._changed.notify_all()
        except BaseException as error:  # also SystemExit: the thread must not end without a word
            self._error = error
        finally:
            with self._changed:
                self._done = True
                self._changed.notify_all()

    def _wait_for_room(self) -> bool:
        """Whether another element is to be made, once there is a place for it."""
        with self._changed:
            self._resting = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._closed or len(self._ready) < self.ahead)
            self._resting = False
            return not self._closed

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        with self._changed:
            while not (self._ready or self._done):
                self._changed.wait(LOOK)
                if not self._thread.is_alive() and not (self._ready or self._done):
                    raise TrainingError("the thread that prepares the next step has died; run again with --resume")
            if self._ready:
                item = self._ready.popleft()
                self._changed.notify_all()
                return item
        if self._error is not None:
            raise self._error
        raise StopIteration

    def settle(self) -> None:
        """Returns when the thread rests: nothing that it shares with its user changes before the next element."""
        with self._changed:
            while not (self._done or (self._resting and len(self._ready) >= self.ahead)):
                self._changed.wait(LOOK)
                if not self._thread.is_alive():
                    return

    def close(self) -> None:
        """Ends the thread after the element that it is at."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> Prefetched[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
