"""A desk: where the questions for one model are looked at, handed to its turns, and answered."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import final

import torch

from rerank.errors import InputError
from rerank.reranker import Reranker
from rerank.serving.asking import Answer, Hit, Question, Refusal
from rerank.serving.limits import Limits
from rerank.serving.metrics import Metrics
from rerank.serving.reading import Reader
from rerank.serving.turns import Turns
from rerank.serving.works import Work
from rerank.types import CandidateList


@final
class Desk:
    """One model and those who ask it."""

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
        self.name, self.reranker, self.limits = name, reranker, limits
        self.reader = Reader(reranker)
        self.calibrated = reranker.calibrated()
        self.turns = Turns(name, self.reader, limits, metrics, turn_tokens, at_most, device)

    async def ask(self, question: Question, request_id: str, deadline: float) -> Answer:
        """The answer to a question, by `deadline` on the monotonic clock; Refusal where there will be none.

        Cancelling this withdraws the question.
        """
        [answer] = await self.ask_all([question], request_id, deadline)
        return answer

    async def ask_all(self, questions: Sequence[Question], request_id: str, deadline: float) -> list[Answer]:
        """The answers to all questions of one request: they are taken together, or refused together."""
        lists = [self._checked(question) for question in questions]
        now = time.monotonic()
        works = [
            Work.of(self.reader, question, candidates, now, deadline)
            for question, candidates in zip(questions, lists, strict=True)
        ]
        waiting = [work for work in works if len(work.candidates)]
        if waiting:
            self.turns.put(waiting)
            try:
                await self._read(waiting, deadline)
            finally:
                self.turns.leave(waiting)
        return [self._answer(work, request_id) for work in works]

    async def _read(self, works: Sequence[Work], deadline: float) -> None:
        """Nothing, once all of them are read; the first Refusal, or one for the time being over."""
        reads = [asyncio.wrap_future(work.future) for work in works]
        seconds = max(0.0, deadline - time.monotonic())
        done, late = await asyncio.wait(reads, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        for refusal in [read.exception() for read in done]:
            if refusal is not None:
                # A copy: `works` holds the refusal itself, whose traceback would hold this frame with all texts.
                raise replace(refusal) if isinstance(refusal, Refusal) else refusal
        if late:
            raise self._late()

    def start(self) -> None:
        """Begin to answer."""
        self.turns.start()

    def stop(self, seconds: float) -> bool:
        """End when all is answered, or refuse what is left after so many seconds; whether it ended."""
        return self.turns.stop(seconds)

    @property
    def alive(self) -> bool:
        """Whether somebody reads."""
        return self.turns.alive

    @property
    def waiting(self) -> int:
        """Documents that are not read yet."""
        return self.turns.waiting

    def _checked(self, question: Question) -> CandidateList:
        """The list of a question that is within the limits; Refusal where it is not."""
        self.limits.check(question)
        given, wants = question.first_stage, self.reranker.wants
        if given is not None:  # what of it has no effect is told with the answer
            given = {name: scores for name, scores in given.items() if name in wants} or None
        try:
            candidates = self.reranker.candidates(question.query, question.texts, given)
        except InputError as error:
            raise Refusal(422, str(error)) from error
        if question.min_probability is not None and not self.reranker.calibrated(bool(candidates.features)):
            raise Refusal(
                422, f"min_probability needs a calibrated model, and {self.name!r} has scores and no probabilities"
            )
        return candidates

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
            (*question.warnings, *self.reader.notes(question), *self._first_stage_notes(question)),
            waited=began - work.arrived,
            scoring=work.scoring,
        )

    def _first_stage_notes(self, question: Question) -> list[str]:
        """What of the first stage's scores had no effect, or would have had one."""
        given, wants = question.first_stage or {}, self.reranker.wants
        named = ", ".join(wants)
        if wants and not any(name in wants for name in given):
            return [f"this model was trained with first-stage scores, and ranks worse without them: {named}"]
        unknown = ", ".join(name for name in given if name not in wants)
        read = f"this model reads {named}" if wants else "this model was trained without"
        return [f"first_stage: {unknown} had no effect; {read}"] if unknown else []
