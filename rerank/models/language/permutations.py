"""Answers token by token: what a generative reranker may write next, and what it chose.

    [ 3 ] > [ 1 2 ] > [ 7 ]        the model chooses the tokens of names; brackets and ">" are put in for it

`Permutation` is the mask: at each step the tokens that go on with the name of a candidate that is not ranked yet. It
holds the candidates left and what is written of the next name, so a step costs as much as there are candidates (there
are n! permutations, and no automaton or regular expression over them is ever built). A name that another one begins
with ("1" and "12") is told apart by the token that closes it. Where one token alone is allowed it is put in: the last
name always is.

`Free` is text without a mask, such as a thought before the answer. `Writer` is one answer as it grows: it keeps what
was chosen among what (`Choice`), so that one forward pass over the finished text gives the same log-probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, final

import numpy as np

from rerank.errors import InputError
from rerank.models.language.prompt_tokens import added, name_ids, within
from rerank.models.texts import ID


class Choice(NamedTuple):
    """One token that a model chose."""

    at: int
    """Where the token stands that it was chosen after."""
    options: tuple[int, ...]
    """The tokens that were allowed; the chosen one alone where all were (`whole`)."""
    taken: int
    """Which of the options."""
    whole: bool
    """Whether the whole vocabulary was allowed."""
    place: int
    """The place of the ranking that it decides; what is thought before an answer counts to the first place."""
    unit: int
    """The action that it is part of: the name at a place, or a thought token by itself."""


class Written(NamedTuple):
    """A prompt with an answer, as the engine's item: a log-probability for each option of each choice."""

    ids: bytes
    """Token ids of type `ID`, up to the last that anything was chosen after."""
    choices: tuple[Choice, ...]

    @property
    def width(self) -> int:
        """Numbers that the item is given."""
        return sum(len(choice.options) for choice in self.choices)

    def __len__(self) -> int:
        return len(self.ids) // ID.itemsize


class Grammar(NamedTuple):
    """The tokens that answers are made of."""

    names: tuple[tuple[int, ...], ...]
    between: tuple[int, ...]
    """What closes a name and opens the next: "] > ["."""
    close: tuple[int, ...]
    """What closes the last name: "]"."""

    def answer_tokens(self) -> int:
        """Tokens of the longest answer."""
        return sum(map(len, self.names)) + len(self.between) * len(self.names)


def grammar_of(tokenizer: Any, names: Sequence[str], ids: Sequence[tuple[int, ...]]) -> Grammar:
    """The tokens of answers that write `names` with `ids`, brackets and all as the tokenizer would write them."""
    if len(set(ids)) < len(ids):
        raise InputError(
            f"the tokenizer {type(tokenizer).__name__} writes two of {len(names)} names in the same tokens: lower "
            "window, or take the other naming"
        )

    first, second = names[0], names[-1]
    opened, begun = "x\n[", name_ids(tokenizer, first)
    close = added(tokenizer, f"{opened}{first}", "]") or within(tokenizer, "]")
    whole, end = added(tokenizer, opened, f"{first}] > [{second}]") or (), (*name_ids(tokenizer, second), *close)
    fits = whole[: len(begun)] == begun and whole[-len(end) :] == end and len(whole) > len(begun) + len(end)
    return Grammar(tuple(ids), whole[len(begun) : -len(end)] if fits else within(tokenizer, "] > ["), close)


class Turn(Protocol):
    """A part of an answer."""

    @property
    def done(self) -> bool:
        """Whether nothing is left to choose."""
        ...

    @property
    def place(self) -> int:
        """The place that is being written."""
        ...

    def begin(self) -> tuple[int, ...]:
        """Tokens that stand before the first choice."""
        ...

    def options(self) -> tuple[int, ...] | None:
        """The tokens that may be chosen next; None for the whole vocabulary."""
        ...

    def take(self, token: int) -> tuple[int, ...]:
        """Tokens that the model is to read: the chosen one and those that follow from it."""
        ...


@final
class Permutation:
    """The mask: an order of `candidates`, their first `places` written, the others following as they come."""

    def __init__(self, grammar: Grammar, candidates: Sequence[int], places: int | None = None) -> None:
        self.grammar = grammar
        self.left = list(candidates)
        self.order: list[int] = []
        self.places = len(self.left) if places is None else min(places, len(self.left))
        self.begun: tuple[int, ...] = ()
        """What is written of the next name."""

    @property
    def place(self) -> int:
        """The place that is being written."""
        return len(self.order)

    @property
    def done(self) -> bool:
        """Whether nothing is left to choose."""
        return self.place >= self.places or len(self.left) <= 1

    @property
    def whole_order(self) -> tuple[int, ...]:
        """All candidates: those that are written, then the others as they came."""
        return (*self.order, *self.left)

    def begin(self) -> tuple[int, ...]:
        """The tokens that all names begin with, mostly none."""
        return self._forced()

    def options(self) -> tuple[int, ...]:
        """The tokens that go on with the name of a candidate that is left, in the order of the candidates."""
        depth, names = len(self.begun), self.grammar.names
        going_on = (names[i] for i in self.left if names[i][:depth] == self.begun)
        return tuple(dict.fromkeys(name[depth] if len(name) > depth else self._end for name in going_on))

    def take(self, token: int) -> tuple[int, ...]:
        """The chosen token with all that follows from it."""
        return (*self._write(token), *self._forced())

    def towards(self, candidate: int) -> int:
        """The token that goes on with the name of `candidate`."""
        name, depth = self.grammar.names[candidate], len(self.begun)
        return name[depth] if len(name) > depth else self._end

    @property
    def _end(self) -> int:
        """The token that tells that a name is complete."""
        return (self.grammar.close if self.place == self.places - 1 else self.grammar.between)[0]

    def _write(self, token: int) -> tuple[int, ...]:
        named = [i for i in self.left if self.grammar.names[i] == self.begun]
        if not named or token != self._end:
            self.begun = (*self.begun, token)
            return (token,)
        self.left.remove(named[0])
        self.order.append(named[0])
        self.begun = ()
        return self.grammar.between

    def _forced(self) -> tuple[int, ...]:
        forced: tuple[int, ...] = ()
        while not self.done and len(options := self.options()) == 1:
            forced += self._write(options[0])
        return forced


@final
class Free:
    """Text without a mask, until `ends` says so of the tokens so far, or for `limit` tokens; then `after` is put in."""

    def __init__(
        self,
        limit: int,
        ends: Callable[[Sequence[int]], bool],
        stops: frozenset[int],
        after: Callable[[bool], tuple[int, ...]] = lambda ended: (),
        place_of: Callable[[Sequence[int]], int] = lambda tokens: 0,
    ) -> None:
        """`stops` end the text and are no part of it; `after` is told whether the text ended by itself."""
        self.limit, self.ends, self.stops, self.after, self.place_of = limit, ends, stops, after, place_of
        self.tokens: list[int] = []
        self.done = False
        self.place = 0

    def begin(self) -> tuple[int, ...]:
        """Nothing stands before a free text."""
        return ()

    def options(self) -> None:
        """The whole vocabulary."""
        return None

    def take(self, token: int) -> tuple[int, ...]:
        """The chosen token, and what is put in where the text ends with it."""
        if token in self.stops:
            self.done = True
            return self.after(False)
        self.tokens.append(token)
        self.place = self.place_of(self.tokens)
        ended = self.ends(self.tokens)
        self.done = ended or len(self.tokens) >= self.limit
        return (token, *self.after(ended)) if self.done else (token,)


@final
class Writer:
    """One answer to a prompt, as it is written in `turns`."""

    def __init__(self, prompt: bytes, turns: Sequence[Turn], noise: Sequence[float] = ()) -> None:
        """`noise`: a number from 0 to 1 for each choice; none where the most likely token is to be taken."""
        self.prompt, self.noise = prompt, noise
        self.fed: list[int] = []
        """All tokens after the prompt that the model reads."""
        self.unread: list[int] = []
        self.choices: list[Choice] = []
        self.weighed: list[tuple[float, ...]] = []
        """The log-probabilities of each choice's options."""
        self._turns = list(turns)
        self.answer = turns[-1]
        """The turn that says the order."""
        self._units: dict[tuple[str, int], int] = {}
        self._feed(self._turns[0].begin())
        self._enter()

    @property
    def done(self) -> bool:
        """Whether nothing is left to choose."""
        return not self._turns

    @property
    def log_prob(self) -> float:
        """The log-probability of all that was chosen."""
        return sum(weights[choice.taken] for choice, weights in zip(self.choices, self.weighed, strict=True))

    def options(self) -> tuple[int, ...] | None:
        """The tokens that may be chosen next; None for the whole vocabulary."""
        return self._turns[0].options()

    def take(self, token: int, weights: Sequence[float] = ()) -> None:
        """Nothing; writes one token that was chosen, given the log-probabilities of its options."""
        turn, options = self._turns[0], self.options()
        kept, whole = ((token,), True) if options is None else (options, False)
        # A thought's tokens are actions of their own; those of the name at a place are one.
        key = ("place", turn.place) if len(self._turns) == 1 else ("thought", len(self.choices))
        unit = self._units.setdefault(key, len(self._units))
        last = len(self.prompt) // ID.itemsize + len(self.fed) - 1
        self.choices.append(Choice(last, kept, kept.index(token), whole, turn.place, unit))
        self.weighed.append(tuple(weights))
        self._feed(turn.take(token))
        self._enter()

    def read(self) -> list[int]:
        """The tokens that the model has yet to read; they count as read from here on."""
        unread, self.unread = self.unread, []
        return unread

    def written(self) -> Written:
        """The item that gives the log-probabilities of these choices in one pass."""
        ids = self.prompt + self.packed(self.fed)
        end = self.choices[-1].at + 1 if self.choices else len(self.prompt) // ID.itemsize
        return Written(ids[: end * ID.itemsize], tuple(self.choices))

    @staticmethod
    def packed(tokens: Sequence[int]) -> bytes:
        """Tokens as they lie in an item."""
        return np.array(tokens, dtype=ID).tobytes()

    def _feed(self, tokens: Sequence[int]) -> None:
        self.fed.extend(tokens)
        self.unread.extend(tokens)

    def _enter(self) -> None:
        """Leave turns that are over and begin the next."""
        while self._turns and self._turns[0].done:
            self._turns.pop(0)
            if self._turns:
                self._feed(self._turns[0].begin())
