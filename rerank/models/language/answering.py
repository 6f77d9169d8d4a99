"""How a generative model answers: what stands before, within and after an order, and how it is read.

    prompt [   3] > [1] > [2]                          the mask from the first token on
    prompt     thought </think> [   3] > [1] > [2]     thinking: free text, then the mask
    prompt [   free text, to its end                   not constrained: read strictly, and repaired

A thought ends with "</think>" or "<answer>", or at its limit, where "</think>" is put in for the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from rerank.errors import DataError, InputError
from rerank.models.language.permutations import Choice, Free, Permutation, Turn, Writer, Written, grammar_of
from rerank.models.language.prompt_tokens import PromptItem, PromptTokenizer, within
from rerank.prompting.answers import read_answer
from rerank.types import CandidateList

LEAD = "\n["
"""What stands between a thought and the first name."""
OPENINGS = ("</think>", "<answer>")
"""What ends a thought; each opens the answer."""
CLOSING = "</answer>"
LEAST_GAP = 1e-3
"""Between the scores of neighbours, so that sorting by them in float32 gives the ranking that was written."""
TAIL = 16
"""Tokens in which an opening is looked for: no tokenizer needs more for one."""


def _repaired(order: Sequence[int], named: int, window: Sequence[int] | None) -> tuple[int, ...]:
    """An order whose first `named` were named, the others by their places `window` in the first stage."""
    rest = order[named:] if window is None else sorted(order[named:], key=lambda i: window[i])
    return (*order[:named], *rest)


def falling_scores(permutation: Permutation, writer: Writer, order: Sequence[int]) -> list[float]:
    """The score of each candidate; they fall along `order`, which `writer` wrote by taking the most likely tokens."""
    gaps, first = [LEAST_GAP] * len(order), 0.0
    again = Permutation(permutation.grammar, range(len(order)), permutation.places)
    again.begin()
    for choice, weights in zip(writer.choices, writer.weighed, strict=True):
        if choice.whole:
            continue  # a thought
        place, token = again.place, choice.options[choice.taken]
        first += weights[choice.taken] if place == 0 else 0.0
        rival = order[place + 1]
        name = permutation.grammar.names[rival]
        if name[: len(again.begun)] == again.begun and again.towards(rival) != token:
            other = weights[choice.options.index(again.towards(rival))]
            gaps[place] = max(LEAST_GAP, weights[choice.taken] - other)
        again.take(token)
    scores, score = [0.0] * len(order), first
    for place, candidate in enumerate(order):
        scores[candidate] = score
        score -= gaps[place]
    return scores


@final
@dataclass(frozen=True, kw_only=True)
class Writing:
    """What a generative model writes, for recipes and `rerank.json`."""

    places: int | None = None
    """Places that are written; the other candidates follow in first-stage order. None: all."""
    constrained: bool = True
    """Whether only names that are left can be written; free answers can be malformed, and are then repaired."""
    thinking: int = 0
    """Tokens that may be thought before the answer; 0: it begins at once."""
    answer_tokens: int | None = None
    """Tokens of an answer that is not constrained; None: a few more than the longest well-formed one."""

    def __post_init__(self) -> None:
        for name, least in (("places", 1), ("thinking", 0), ("answer_tokens", 1)):
            value = getattr(self, name)
            if value is None and name != "thinking":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"{name} must be a whole number of at least {least}, not {value!r}")
        if not isinstance(self.constrained, bool):
            raise InputError(f"constrained must be true or false, not {self.constrained!r}")
        if self.constrained and self.answer_tokens is not None:
            raise InputError("answer_tokens bounds answers that are written freely: set constrained = false with it")

    def as_dict(self) -> dict[str, Any]:
        """The settings, for a JSON file."""
        return asdict(self)


def saved_writing(saved: Mapping[str, Any], file: Path) -> Writing:
    """What a saved model writes, as its settings in `file` say."""
    try:
        return Writing(**saved.get("writing", {}))
    except (InputError, TypeError) as error:
        raise DataError.at(file, None, f"field 'writing': {error}: save the model anew") from error


@final
class Answering:
    """Makes the writers of answers to prompts, and reads what they wrote."""

    def __init__(self, prompts: PromptTokenizer, writing: Writing) -> None:
        self.prompts, self.writing, self.tokenizer = prompts, writing, prompts.tokenizer
        self.grammar = grammar_of(prompts.tokenizer, prompts.names, prompts.name_ids)
        stops = {self.tokenizer.eos_token_id, *self._ends_of_turn()}
        self.stops = frozenset(token for token in stops if token is not None)
        self._brackets: dict[int, int] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Answering:
        """Itself: copies of a policy share it, for nothing in it is trained."""
        return self

    @property
    def answer_tokens(self) -> int:
        """Tokens of the longest answer after a thought."""
        longest = self.grammar.answer_tokens()
        return longest if self.writing.constrained else self.writing.answer_tokens or longest + 8

    @property
    def most_tokens(self) -> int:
        """Tokens that may follow a prompt."""
        return self.writing.thinking + len(self._closed_thought()) + self.answer_tokens

    @property
    def most_choices(self) -> int:
        """Random numbers that an answer may need."""
        return self.writing.thinking + 1 + self.answer_tokens

    def check_context(self, context: int | None) -> None:
        """Nothing, when a full prompt and its answer fit into the tokens that the model reads; else an InputError."""
        self.prompts.check_context(context)
        longest = self.prompts.longest() + self.most_tokens
        if context is not None and longest > context:
            raise InputError(
                f"a full prompt with its answer has up to {longest} tokens ({self.most_tokens} are written), and the "
                f"model reads {context}: lower window, document_tokens or thinking"
            )

    def encode(self, lists: Sequence[CandidateList]) -> list[PromptItem]:
        """One prompt for each list; before a thought it does not open the answer."""
        return self.prompts.encode(lists)

    def writer(self, item: PromptItem, noise: Sequence[float] = ()) -> Writer:
        """An answer to a prompt that is yet to be written; drawn with `noise`, or greedy without."""
        turns: list[Turn] = []
        if self.writing.thinking:
            turns.append(Free(self.writing.thinking, self._opens, self.stops, self._after_thought))
        if self.writing.constrained:
            turns.append(Permutation(self.grammar, range(item.width), self.writing.places))
        else:
            turns.append(Free(self.answer_tokens, self._is_over, self.stops, place_of=self._place(item.width)))
        return Writer(item.ids, turns, noise)

    def retraced(self, item: PromptItem, order: Sequence[int], among: Sequence[int] | None = None) -> Written:
        """The answer that writes `order`, after an empty thought where one is thought.

        The candidates `among` were to be chosen from (None: all that the prompt shows).
        """
        order = order if self.writing.places is None else order[: self.writing.places]
        opened = PromptItem(item.ids + Writer.packed(self._closed_thought()), item.width)
        if not self.writing.constrained:
            return self._free_text(opened, order)
        left = range(item.width) if among is None else among
        permutation = Permutation(self.grammar, left, self.writing.places)
        writer = Writer(opened.ids, [permutation])
        while not writer.done and permutation.place < len(order):
            writer.take(permutation.towards(order[permutation.place]))
        return writer.written()

    def _free_text(self, item: PromptItem, order: Sequence[int]) -> Written:
        """Every token of the text that says `order` as a choice from the whole vocabulary, its end included."""
        grammar, tokens, places = self.grammar, list[int](), list[int]()
        end = self.tokenizer.eos_token_id
        final = (*grammar.close, *(() if end is None else (end,)))
        for place, candidate in enumerate(order):
            is_final = place + 1 == min(item.width, self.writing.places or item.width)
            # Where only the first places are given, the last of them is closed and the answer goes on.
            after = final if is_final else grammar.between if place + 1 < len(order) else grammar.between[:1]
            part = (*grammar.names[candidate], *after)
            tokens.extend(part)
            places.extend([place] * len(part))
        start = len(item) - 1
        chosen = zip(tokens, places, strict=True)
        choices = tuple(Choice(start + i, (token,), 0, True, place, place) for i, (token, place) in enumerate(chosen))
        return Written(item.ids + Writer.packed(tokens[:-1]), choices)

    def read(
        self, writer: Writer, n: int, window: Sequence[int] | None = None
    ) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """(the order of all n candidates that an answer says, what is wrong with it).

        What it leaves out follows by the places `window` of the candidates in the first stage (None: as they come).
        """
        if isinstance(writer.answer, Permutation):
            return _repaired(writer.answer.whole_order, len(writer.answer.order), window), ()
        said = self.tokenizer.decode(writer.fed, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        answer = read_answer(said if self.writing.thinking else f"[{said}", self.prompts.names[:n])
        order = _repaired(answer.order, answer.named, window)
        if self.writing.places is None or n <= self.writing.places:
            return order, answer.faults
        # Where a part of the places is asked for, the others are not missing.
        enough = answer.named >= self.writing.places
        return order, tuple(fault for fault in answer.faults if not (enough and fault == "missing"))

    # ------------------------------------------------------------------------------------------------- free text's ends
    def _opens(self, tokens: Sequence[int]) -> bool:
        return any(mark in self._tail(tokens) for mark in OPENINGS)

    def _is_over(self, tokens: Sequence[int]) -> bool:
        """Whether a free answer has ended: with its tag after a thought, else with its line."""
        tail = self._tail(tokens[-1:]) if not self.writing.thinking else self._tail(tokens)
        return CLOSING in tail or (not self.writing.thinking and "\n" in tail)

    def _tail(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(
            list(tokens[-TAIL:]), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def _after_thought(self, ended: bool) -> tuple[int, ...]:
        return within(self.tokenizer, LEAD) if ended else self._closed_thought()

    def _closed_thought(self) -> tuple[int, ...]:
        parts = (OPENINGS[0], LEAD) if self.writing.thinking else ()
        return tuple(token for part in parts for token in within(self.tokenizer, part))

    def _place(self, n: int) -> Any:
        def place(tokens: Sequence[int]) -> int:
            """The place that the token after `tokens` is part of: names are closed by brackets."""
            return min(sum(self._closes(token) for token in tokens), max(0, n - 1))

        return place

    def _closes(self, token: int) -> int:
        if token not in self._brackets:
            self._brackets[token] = self._tail([token]).count("]")
        return self._brackets[token]

    def _ends_of_turn(self) -> list[int]:
        """The tokens with which chat models end what they say."""
        known = self.tokenizer.get_vocab()
        return [known[mark] for mark in ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>") if mark in known]
