"""The queue of a model and the thread that reads it in turns.

What waits is bounded in documents, since that is what takes time: beyond it a request is refused at once (429), with
the seconds after which there should be room. A request whose asker has gone, or whose time is over, is read no
further. A turn that fails is tried again question by question, so that one cannot take the others down with it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from rerank.engine.memory import give_back, out_of_memory
from rerank.serving.asking import Refusal
from rerank.serving.limits import Limits, too_large
from rerank.serving.metrics import Metrics
from rerank.serving.reading import Found, Reader, Slice
from rerank.serving.works import Work, turn_of

logger = logging.getLogger("rerank.serving")

TURN, TURN_SECONDS, SMALLEST_TURN = 2, 0.25, 1024
"""A turn is so many micro-batches of the engine, or what is read in so many seconds where that is less, but never fewer
than so many tokens: enough to keep the engine busy, and soon over."""
FIRST_RATE = 5000.0
"""Tokens a second that are expected before any were read."""
MEMORY = 64 * 2**20
"""Bytes of texts beyond which a model forgets those that it remembers."""
LONGEST_WAIT = 30.0
"""Seconds; a client is not told to wait longer."""
IDLE = 10.0
"""Seconds, at least, from one time that memory is given back to the next."""
PATIENCE = 2.0
"""Seconds that the last turn has to end in."""


@final
@dataclass(eq=False)
class Request:
    """The questions of one request that are for one model."""

    works: Sequence[Work]
    tokens: int = 0

    def refuse(self, refusal: Refusal) -> None:
        """Say why none of them is answered."""
        for work in self.works:
            work.refuse(refusal)


@final
class Turns:
    """The works that wait for one model, and the thread that does them."""

    def __init__(
        self,
        name: str,
        reader: Reader,
        limits: Limits,
        metrics: Metrics,
        turn_tokens: int | None = None,
        at_most: int | None = None,
        device: threading.Lock | None = None,
    ) -> None:
        self.name, self.reader, self.limits, self.metrics = name, reader, limits, metrics
        self.at_most = at_most
        """Questions that share a turn, at most; None: as many as fit."""
        self.rate = FIRST_RATE
        """Tokens a second, as the last turns went."""
        self._turn_tokens = turn_tokens
        self._device = device or threading.Lock()
        self._requests: dict[Work, Request] = {}
        """What waits, in the order in which it came, and the request that it is of."""
        self._change = threading.Condition()
        self._ending = False
        self._given_back = 0.0
        self._thread = threading.Thread(target=self._run, name=f"turns of {name}", daemon=True)

    @property
    def turn_tokens(self) -> int:
        """Tokens of a turn, about."""
        if self._turn_tokens is not None:
            return self._turn_tokens
        budget = int(getattr(self.reader.reranker.policy, "budget", None) or SMALLEST_TURN)
        return max(SMALLEST_TURN, min(TURN * budget, int(TURN_SECONDS * self.rate)))

    @property
    def alive(self) -> bool:
        """Whether the thread is there."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Documents that are not read yet."""
        with self._change:
            return self._waiting()

    def start(self) -> None:
        """Begin to take turns."""
        self._thread.start()

    def put(self, works: Sequence[Work]) -> None:
        """Queue what came in one request, all of it; Refusal where there is no room."""
        documents = sum(work.left for work in works)
        request = Request(works)
        with self._change:
            waiting = self._waiting()
            # One request alone may be larger than the queue: it would never be answered otherwise.
            if waiting and waiting + documents > self.limits.queue:
                raise self._full(waiting)
            due = time.monotonic() + sum(work.cost for work in works) / self.rate
            for work in works:
                work.due = due
                self._requests[work] = request
            self._change.notify_all()

    def leave(self, works: Sequence[Work]) -> None:
        """Take out of the queue what nobody waits for, or what is done."""
        with self._change:
            for work in works:
                work.future.cancel()
                self._requests.pop(work, None)

    def refuse_all(self) -> None:
        """Refuse what waits: the server ends."""
        with self._change:
            for work in self._requests:
                work.refuse(Refusal(503, "the server ended before this was read", "Unhealthy", retry_after=5.0))

    def stop(self, seconds: float) -> bool:
        """End when nothing is left to read, or refuse what is left after so many seconds; whether the thread ended."""
        with self._change:
            self._ending = True
            self._change.notify_all()
        if self.alive:
            self._thread.join(max(0.0, seconds))
            self.refuse_all()
            self._thread.join(PATIENCE)
        return not self.alive

    def _waiting(self) -> int:
        return sum(work.left for work in self._requests)

    def _full(self, waiting: int) -> Refusal:
        left = sum(sum(work.costs[-work.left :]) for work in self._requests if work.left)
        return Refusal(
            429,
            f"{waiting:,} documents are waiting for {self.name!r}, and {self.limits.queue:,} may (rerank serve --queue "
            "sets it): try again later",
            kind="Overloaded",
            retry_after=min(LONGEST_WAIT, left / self.rate),
        )

    # ----------------------------------------------------------------------------------------------------- the thread
    def _run(self) -> None:
        while self._wait():
            # What is due is looked up when the device is free: a turn that was chosen before would be stale.
            with self._device:
                with self._change:
                    waiting = [work for work in self._requests if not work.over]
                    parts = turn_of(waiting, self.turn_tokens, self.at_most)
                if parts:
                    self._turn(parts)

    def _wait(self) -> bool:
        """Whether there is something to read; False when all is read and more is not to come."""
        with self._change:
            while all(work.over for work in self._requests):
                if self._ending:
                    return False
                if time.monotonic() - self._given_back > IDLE:
                    self._given_back = time.monotonic()
                    give_back()
                self._change.wait()
            return True

    def _turn(self, parts: Sequence[tuple[Work, Slice]]) -> None:
        began = time.monotonic()
        for work, _ in parts:
            work.begun = work.begun or began
        try:
            found = self.reader.read([part for _, part in parts])
        except Exception as error:
            self._failed(parts, error)
            return
        seconds = time.monotonic() - began
        self._note(parts, found, seconds)
        for (work, _), own in zip(parts, found, strict=True):
            request = self._requests.get(work)
            if request is None:  # its asker has gone
                continue
            request.tokens += own.tokens
            if request.tokens > self.limits.tokens:
                request.refuse(too_large("the request has more tokens", f"{self.limits.tokens:,}", "tokens"))
            work.give(own, seconds)

    def _failed(self, parts: Sequence[tuple[Work, Slice]], error: Exception) -> None:
        if len(parts) > 1:  # which of them it was shows when each is read alone
            for alone in parts:
                self._turn([alone])
            return
        work, part = parts[0]
        if isinstance(error, Refusal):
            work.refuse(error)
            return
        logger.error("%s could not read %d documents", self.name, len(part.candidates), exc_info=error)
        if out_of_memory(error):
            work.refuse(Refusal(503, "the server's memory is full: try again later", "Backend", retry_after=5.0))
        else:
            work.refuse(Refusal(500, f"{self.name!r} could not read this; the server's log tells more", "Backend"))

    def _note(self, parts: Sequence[tuple[Work, Slice]], found: Sequence[Found], seconds: float) -> None:
        """Count a turn, learn how fast the model reads, and keep what it remembers small."""
        documents = sum(len(part.candidates) for _, part in parts)
        cost = sum(sum(work.costs[part.at : part.at + len(part.candidates)]) for work, part in parts)
        self.rate += 0.2 * (cost / max(seconds, 1e-6) - self.rate)
        self.metrics.turn(self.name, len(parts), documents, sum(own.tokens for own in found), seconds)
        self.reader.reranker.forget(MEMORY)
