"""A desk: where the questions for one model wait, and the thread that reads them in turns.

What waits is bounded in documents, since that is what takes time: beyond it a question is refused at once (429), with
the seconds after which the desk expects to have room. A question whose asker has gone, or whose time is over, leaves
the queue and is read no further. A turn that fails is tried again question by question, so that one cannot take the
others down with it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from typing import final

import torch

from rerank.engine.memory import out_of_memory
from rerank.errors import InputError
from rerank.reranker import Reranker
from rerank.serving.asking import Answer, Hit, Question, Refusal
from rerank.serving.limits import Limits, too_large
from rerank.serving.metrics import Metrics
from rerank.serving.reading import Found, Reader, Slice
from rerank.serving.works import Work, turn_of
from rerank.types import CandidateList

logger = logging.getLogger("rerank.serving")

TURN = 2
"""Micro-batches of the engine in a turn: enough to keep it busy, and soon over."""
FIRST_RATE = 5000.0
"""Tokens a second that a desk expects before it has read any."""
MEMORY = 64 * 2**20
"""Bytes of texts beyond which a model forgets those that it remembers."""
LONGEST_WAIT = 30.0
"""Seconds; a client is not told to wait longer."""


@final
class Desk:
    """One model, its queue and its thread."""

    def __init__(
        self,
        name: str,
        reranker: Reranker,
        limits: Limits,
        metrics: Metrics,
        turn_tokens: int | None = None,
        at_most: int | None = None,
        device: threading.Lock | None = None,
    ) -> None:
        self.name, self.reranker, self.limits, self.metrics = name, reranker, limits, metrics
        self.reader = Reader(reranker)
        budget = int(getattr(reranker.policy, "budget", None) or 2048)
        self.turn_tokens = turn_tokens or TURN * budget
        self.at_most = at_most
        """Questions that share a turn, at most; None: as many as fit."""
        self.calibrated = reranker.calibrated()
        self.rate = FIRST_RATE
        """Tokens a second, as the last turns went."""
        self._device = device or threading.Lock()
        self._works: list[Work] = []
        self._change = threading.Condition()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name=f"desk {name}", daemon=True)

    # ------------------------------------------------------------------------------------------------------- askers
    async def ask(self, question: Question, request_id: str, deadline: float) -> Answer:
        """The answer to a question, by `deadline` on the monotonic clock; Refusal where there will be none.

        Cancelling this withdraws the question.
        """
        candidates = self._checked(question)
        work = Work.of(self.reader, question, candidates, time.monotonic(), deadline)
        if len(candidates):
            self._queue(work)
            try:
                await asyncio.wait_for(asyncio.wrap_future(work.future), max(0.0, work.deadline - time.monotonic()))
            except asyncio.TimeoutError:
                raise self._late() from None
            finally:
                work.future.cancel()
                self._leave(work)
        return self._answer(work, request_id)

    def start(self) -> None:
        """Begin to take turns."""
        self._thread.start()

    def stop(self, seconds: float) -> bool:
        """End when nothing is left to read, or after so many seconds; whether all was read."""
        with self._change:
            self._ending = True
            self._change.notify_all()
        if self._thread.is_alive():
            self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def alive(self) -> bool:
        """Whether the thread that reads is there."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Documents that are not read yet."""
        with self._change:
            return self._waiting()

    def _waiting(self) -> int:
        return sum(work.left for work in self._works)

    def _checked(self, question: Question) -> CandidateList:
        """The list of a question that is within the limits; Refusal where it is not."""
        self.limits.check(question)
        try:
            candidates = self.reranker.candidates(question.query, question.texts, question.first_stage)
        except InputError as error:
            raise Refusal(422, str(error)) from error
        if question.min_probability is not None and not self.reranker.calibrated(bool(candidates.features)):
            raise Refusal(
                422, f"min_probability needs a calibrated model, and {self.name!r} has scores and no probabilities"
            )
        return candidates

    def _queue(self, work: Work) -> None:
        with self._change:
            waiting = self._waiting()
            # One question alone may be larger than the queue: it would never be answered otherwise.
            if self._works and waiting + work.left > self.limits.queue:
                raise self._full(waiting)
            work.due = work.arrived + work.cost / self.rate
            self._works.append(work)
            self._change.notify_all()

    def _leave(self, work: Work) -> None:
        with self._change:
            if work in self._works:
                self._works.remove(work)

    def _full(self, waiting: int) -> Refusal:
        left = sum(sum(work.costs[-work.left :]) for work in self._works if work.left)
        seconds = min(LONGEST_WAIT, left / self.rate)
        return Refusal(
            429,
            f"{waiting:,} documents are waiting for {self.name!r}, and {self.limits.queue:,} may (rerank serve --queue "
            "sets it): try again later",
            kind="Overloaded",
            retry_after=seconds,
        )

    def _late(self) -> Refusal:
        return Refusal(
            504,
            f"there is no answer after {self.limits.seconds:g} seconds (rerank serve --timeout sets it): the server is "
            "busy, or this is too much for it at once; send fewer documents",
            kind="Timeout",
        )

    def _answer(self, work: Work, request_id: str) -> Answer:
        question, features = work.question, bool(work.candidates.features)
        logits = work.future.result() if len(work.candidates) else torch.zeros(0)
        floor = question.min_probability
        wanted = not question.raw and self.reranker.calibrated(features)
        ranked = self.reranker.ranking(
            work.candidates, logits, question.top_n, wanted or floor is not None, 0.0 if floor is None else floor
        )
        hits = tuple(Hit(hit.index, hit.score if question.raw else hit.relevance, hit.text) for hit in ranked)
        began = work.begun or work.arrived
        return Answer(
            self.name,
            hits,
            work.tokens,
            request_id,
            int(time.time()),
            (*question.warnings, *self.reader.notes(question)),
            waited=began - work.arrived,
            scoring=work.scoring,
        )

    # ------------------------------------------------------------------------------------------------------- turns
    def _run(self) -> None:
        while True:
            with self._change:
                self._works = [work for work in self._works if not work.over]
                while not self._works and not self._ending:
                    self._change.wait()
                if not self._works:
                    return
                parts = turn_of(self._works, self.turn_tokens, self.at_most)
            if parts:
                self._turn(parts)

    def _turn(self, parts: Sequence[tuple[Work, Slice]]) -> None:
        began = time.monotonic()
        for work, _ in parts:
            work.begun = work.begun or began
        try:
            with self._device:
                found = self.reader.read([part for _, part in parts])
        except Exception as error:
            self._failed(parts, error)
            return
        seconds = time.monotonic() - began
        self._note(parts, found, seconds)
        for (work, _), own in zip(parts, found, strict=True):
            work.give(own, seconds)
            if work.tokens > self.limits.tokens:
                work.refuse(too_large(f"more than {work.tokens:,} tokens", f"{self.limits.tokens:,}", "tokens"))

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
        self.reranker.forget(MEMORY)
