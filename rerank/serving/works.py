"""The work that questions are, and what is done of it in the next turn.

A model has one thread, which takes turns: each reads documents of several questions at once, up to a budget of tokens.
A question is due when it would be answered had it come alone, and the turn takes what is due first. So a short question
passes a long one that came just before it, and a long one waits for no more short ones than come while it would have
been read by itself: nobody starves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from rerank.serving.asking import Question, Refusal
from rerank.serving.reading import Found, Reader, Slice
from rerank.types import CandidateList


@final
@dataclass(eq=False)
class Work:
    """A question that waits, is being read, or is done."""

    question: Question
    candidates: CandidateList
    distinct: CandidateList
    """Each text once: equal texts must tie, whatever turns they fall in."""
    places: list[int]
    """Where the text of each candidate stands among the distinct ones."""
    costs: list[int]
    """Of each distinct text, in tokens, about."""
    apart: bool
    """Whether documents may be read in different turns."""
    arrived: float
    deadline: float
    """Both on the monotonic clock, in seconds."""
    due: float = 0.0
    begun: float | None = None
    """When the turn began that read its first document."""
    scoring: float = 0.0
    """Seconds of the turns that it was part of."""
    tokens: int = 0
    future: Future[Tensor] = field(default_factory=Future)
    """Its logits [n]: set when all is read."""
    _found: list[Tensor] = field(default_factory=list)
    _read: int = 0

    @classmethod
    def of(cls, reader: Reader, question: Question, candidates: CandidateList, now: float, deadline: float) -> Work:
        """The work of a question that arrives now."""
        distinct, places = candidates, list(range(len(candidates)))
        if reader.apart:  # a model that reads whole lists is shown them as they are
            firsts: dict[str, int] = {}
            for i, text in enumerate(candidates.texts):
                firsts.setdefault(text, i)
            order = {text: place for place, text in enumerate(firsts)}
            distinct = candidates.subset(list(firsts.values()))
            places = [order[text] for text in candidates.texts]
        costs = [reader.cost(question.query, text) for text in distinct.texts]
        return cls(question, candidates, distinct, places, costs, reader.apart, now, deadline)

    @property
    def cost(self) -> int:
        """Of the whole question, in tokens, about."""
        return sum(self.costs)

    @property
    def left(self) -> int:
        """Documents that are not read yet."""
        return len(self.distinct) - self._read

    @property
    def over(self) -> bool:
        """Whether nobody waits for it any more, or all is read."""
        return self.left == 0 or self.future.done()

    def next(self, budget: int, at_least_one: bool) -> tuple[Slice | None, int]:
        """(the documents that come next, within the budget of tokens, what they cost); None where nothing fits."""
        start, spent = self._read, 0
        end = start
        while end < len(self.costs) and (spent + self.costs[end] <= budget or (at_least_one and end == start)):
            spent += self.costs[end]
            end += 1
        if not self.apart and end < len(self.costs):
            if not at_least_one:
                return None, 0
            end, spent = len(self.costs), self.cost
        if end == start:
            return None, 0
        part = self.distinct if end - start == len(self.distinct) else self.distinct.subset(range(start, end))
        return Slice(self.question, part, start), spent

    def give(self, found: Found, seconds: float) -> None:
        """Take in what was read of the documents that came next; with the last of them the future has its result."""
        self._found.append(found.logits)
        self._read += len(found.logits)
        self.tokens += found.tokens
        self.scoring += seconds
        if self.left == 0:
            self._settle(self.future.set_result, torch.cat(self._found)[self.places])

    def refuse(self, refusal: Refusal) -> None:
        """Say why there will be no logits."""
        self._settle(self.future.set_exception, refusal)

    def _settle(self, how: Callable[[Any], None], what: Any) -> None:
        with suppress(InvalidStateError):  # its asker went away at this very moment
            how(what)


def turn_of(works: Sequence[Work], budget: int, at_most: int | None = None) -> list[tuple[Work, Slice]]:
    """What the next turn reads: of the works that are due first, as much as the budget of tokens holds.

    At least one document is read, however long; `at_most` bounds how many works share a turn.
    """
    found: list[tuple[Work, Slice]] = []
    for work in sorted(works, key=lambda work: work.due)[:at_most]:
        part, spent = work.next(budget, at_least_one=not found)
        if part is None:
            break
        found.append((work, part))
        budget -= spent
    return found
