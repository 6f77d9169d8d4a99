"""A listwise language model behind an HTTP endpoint as teacher: it is shown a window of candidates and writes an order.

    teacher = Chat(ChatSettings(url="http://localhost:8000/v1", model="Qwen/Qwen3-32B"), answers="answers.jsonl")
    print(teacher.estimate(lists))     # requests, tokens and cost, without a request
    orderings = list(teacher(lists))   # killed at any moment and begun again, it asks only what has no answer yet

Each answer is a line of the file `answers`, on disk before the next round of its list, and is never asked for again
while model, messages and sampling settings stay the same. The line holds what the model wrote: it can be read.

An answer that is malformed is asked for once more; what is still malformed is repaired in first-stage order (never in
the order shown, which a strategy may have shuffled), and counted by fault. A list in whose windows no candidate was
ever named has no ordering: it is left out. Orderings have no scores, because a model that writes names has none.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, final

from rerank.errors import InputError
from rerank.prompting.answers import Answer, read_answer, written
from rerank.prompting.prompts import Prompt, joined, pieces
from rerank.types import CandidateList, Ordering

from .answered import Answers, Question
from .chat_settings import FORMATIVE, ChatSettings
from .endpoint import Endpoint, Reply
from .in_order import Turn, Wait, in_order
from .ledger import Counts, Estimate, Ledger, losses

logger = logging.getLogger("rerank.teachers.chat")

REASONED = Prompt(
    request="Think about it as long as you need. Then write the names of all {n} passages, the best first, in the form "
    "<answer>{form}</answer>, and nothing after it."
)
CONTROL = re.compile(
    r"<(?=\|[^|<>\n]{1,60}\||\uff5c|/?(?:s|think|answer|bos|eos|pad|unk|start_of_turn|end_of_turn)>|</?SYS>)"
    r"|\[(?=/?INST\])"
)
"""The beginning of what the templates of well-known models use as control tokens: a server might obey them."""


class Message(NamedTuple):
    """What is said about one window."""

    content: str
    names: tuple[str, ...]
    """What its candidates are called, in the order shown."""
    query_id: str
    doc_ids: list[str]


@final
class Chat:
    """Orders as the model of `settings` does.

    `answers` is the file of its answers (none: they are forgotten with this object); several Chats may read one file,
    one at a time. `prompt` takes the place of the built-in words. The default name holds a hash of all that decides
    what is said, so that orderings remembered under it are never those of other settings.
    """

    def __init__(
        self,
        settings: ChatSettings,
        answers: Path | str | None = None,
        prompt: Prompt | None = None,
        name: str | None = None,
    ) -> None:
        self.settings = settings
        self.prompt = prompt or (REASONED if settings.reasoning else Prompt())
        self.answers = Answers(answers)
        self._windowing = settings.build_windowing()
        self._ledger = Ledger(settings, self.answers.taken(settings.model))
        self._tokens = _counter(settings.tokenizer)
        formative = [asdict(self.prompt), *(getattr(settings, name) for name in FORMATIVE)]
        self.name = name or f"chat {settings.model} {_digest(formative)[:8]}"

    @property
    def counts(self) -> Counts:
        """What was done since this object was made."""
        return self._ledger.counts

    @property
    def summary(self) -> str:
        """The counts in words."""
        return self.counts.in_words(self.settings.priced)

    def __call__(self, lists: Iterable[CandidateList]) -> Iterator[Ordering]:
        """One ordering a list, without scores, in the order of the lists, as soon as it and those before it are done.

        An error comes where its list would have come. Answers under way are waited for, and kept.
        """
        began, ledger, before = time.monotonic(), self._ledger, self.counts
        try:
            with Endpoint(self.settings, partial(ledger.add, retries=1)) as endpoint:

                def answer(message: Message, wait: Wait) -> Answer:
                    return self._answer(message, ledger, lambda question: self._asked(question, endpoint, wait))

                def order(candidates: CandidateList, turn: Turn) -> Ordering | None:
                    return self._order(candidates, ledger, partial(turn.together, answer))

                # Closed before the endpoint is: answers under way are waited for.
                with closing(in_order(order, lists, self.settings.concurrency)) as orderings:
                    yield from (ordering for ordering in orderings if ordering is not None)
        finally:
            ledger.add(seconds=time.monotonic() - began)
            self._tell(self.counts.since(before))

    def estimate(self, lists: Iterable[CandidateList]) -> Estimate:
        """What asking about `lists` would take, without any request.

        The answers that are there already are followed; the others are taken to keep the order shown. Only for setwise
        windows does the number of requests depend on what is answered.
        """
        ledger = Ledger(replace(self.settings, max_cost=None))
        met: set[str] = set()

        def reply(question: Question) -> Reply:
            known = self.answers.find(question.key)
            if known is not None or question.key in met:
                ledger.add(cached=1)
            else:
                met.add(question.key)
                tokens_in, tokens_out = self._foreseen(question)
                ledger.settle(0.0, Reply("", "", "", tokens_in, tokens_out), tokens_in, tokens_out)
            return known or Reply(written(range(len(question.names)), question.names))

        for candidates in lists:
            self._order(candidates, ledger, lambda asked: [self._answer(one, ledger, reply) for one in asked])
        found = ledger.counts
        cost = found.cost if self.settings.priced else None
        return Estimate(
            *(found.lists, found.left_out, found.requests, found.cached, found.tokens_in, found.tokens_out), cost
        )

    def _order(
        self, candidates: CandidateList, ledger: Ledger, answers: Callable[[list[Message]], list[Answer]]
    ) -> Ordering | None:
        """The ordering of one list; None where there is nothing to order, or nothing useful was said.

        `answers` gives those of one round, which do not depend on each other.
        """
        from rerank.prompting.windows import run_plans

        ledger.add(lists=1)
        if len(candidates) < 2:
            ledger.add(left_out=1)
            return None
        query, texts = shown(candidates.query), self._shown(candidates, ledger)
        named = 0

        def message(window: Sequence[int]) -> Message:
            names = tuple(str(i + 1) for i in range(len(window)))
            content = joined(pieces(query, [texts[i] for i in window], names, self.prompt))
            return Message(content, names, candidates.query_id, [candidates.doc_ids[i] for i in window])

        def ask(windows: Sequence[tuple[int, tuple[int, ...]]]) -> list[list[float]]:
            nonlocal named
            found = answers([message(window) for _, window in windows])
            named += sum(answer.named for answer in found)
            return [_falling(answer, window) for answer, (_, window) in zip(found, windows, strict=True)]

        key = int(_digest(candidates.query_id)[:15], 16)
        [scores] = run_plans([self._windowing.plan(len(candidates), self.settings.window, key)], ask)
        if not named:
            level = logging.INFO if ledger.counts.unnamed else logging.WARNING  # the others are counted at the end
            what = "teacher %r, query %r: left out, no answer names a candidate"
            logger.log(level, what, self.name, candidates.query_id)
            ledger.add(left_out=1, unnamed=1)
            return None
        order = sorted(range(len(candidates)), key=lambda i: -scores[i])
        return Ordering(candidates.query_id, tuple(candidates.doc_ids[i] for i in order), self.name)

    def _answer(self, message: Message, ledger: Ledger, reply: Callable[[Question], Reply]) -> Answer:
        """The first well-formed answer about a window, or else the one that names most."""
        best: Answer | None = None
        for attempt in range(self.settings.again + 1):
            said = reply(self._question(message, attempt))
            answer = read_answer(said.text, message.names)
            if best is None or (answer.named, -len(answer.faults)) > (best.named, -len(best.faults)):
                best = answer
            if not answer.faults:
                return answer
            ledger.add(malformed=1, faults=(*answer.faults, *(["cut"] if said.finish == "length" else [])))
        if best is None:
            raise InputError(f"again = {self.settings.again} asks nothing")
        ledger.add(repaired=1, useless=not best.named)
        return best

    def _question(self, message: Message, attempt: int) -> Question:
        """The request; a second attempt is drawn anew."""
        asked = self.settings
        body: dict[str, Any] = {"model": asked.model, "messages": [{"role": "user", "content": message.content}]}
        body[asked.limit_name] = asked.limit(len(message.names))
        if asked.temperature is not None:
            body["temperature"] = max(asked.temperature, 0.5) if attempt else asked.temperature
        if asked.seed is not None:
            body["seed"] = asked.seed + attempt
        body.update(asked.extra)
        about = {"query_id": message.query_id, "shown": message.doc_ids, "attempt": attempt}
        return Question(body, message.names, _digest([body, attempt]), about)

    def _asked(self, question: Question, endpoint: Endpoint, wait: Wait) -> Reply:
        """The answer that is there, or else the endpoint's, written down."""
        with self.answers.turn(question.key):
            known = self.answers.find(question.key)
            if known is not None:
                self._ledger.add(cached=1)
                return known
            wait()
            tokens_in, tokens_out = self._foreseen(question)
            limit = self.settings.limit(len(question.names))
            reserved, reply = self._ledger.reserve(tokens_in, limit), None
            try:
                reply = endpoint.ask(question.body, question.key, wait)
                self.answers.keep(question, reply, (tokens_in, tokens_out))  # first of all: it has been paid for
            finally:
                self._ledger.settle(reserved, reply, tokens_in, tokens_out)
            return reply

    def _foreseen(self, question: Question) -> tuple[int, int]:
        """Tokens of the prompt (8 are the chat's own) and of its answer, before it is asked."""
        limit = self.settings.limit(len(question.names))
        least = limit if self.settings.reasoning else 5 * len(question.names)
        return 8 + self._tokens(question.body["messages"][0]["content"]), min(least, limit)

    def _shown(self, candidates: CandidateList, ledger: Ledger) -> list[str]:
        """The documents as they are shown."""
        kept = self.settings.document_words
        texts = [shown(text, kept) for text in candidates.texts]
        long = 0 if kept is None else sum(len(text.split(None, kept)) > kept for text in candidates.texts)
        ledger.add(documents_cut=long)
        return texts

    def _tell(self, found: Counts) -> None:
        """What was done, in the log, and a warning of each thing that was lost; nothing of what was never asked."""
        if found.requests + found.cached:
            logger.info("teacher %r: %s", self.name, found.in_words(self.settings.priced))
        for words in losses(found, self.settings, self.answers.path):
            logger.warning("teacher %r: %s", self.name, words)


def shown(text: str, words: int | None = None) -> str:
    """A text as a prompt holds it: cut to so many words, control tokens split, what UTF-8 cannot say replaced."""
    if words is not None and len(parts := text.split(None, words)) > words:
        text = " ".join(parts[:words])
    return CONTROL.sub(lambda found: f"{found.group()} ", text).encode("utf8", "replace").decode("utf8")


def _falling(answer: Answer, window: Sequence[int]) -> list[float]:
    """A score for each place of a window: 0, -1, -2 ... as the answer names them, then the others by first stage."""
    order = (*answer.order[: answer.named], *sorted(answer.order[answer.named :], key=lambda place: window[place]))
    scores = [0.0] * len(order)
    for rank, i in enumerate(order):
        scores[i] = -float(rank)
    return scores


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _counter(folder: str | None) -> Callable[[str], int]:
    """What counts the tokens of a text: the tokenizer of a folder, or a rule of thumb."""
    if folder is None:
        return lambda text: math.ceil(sum(0.25 if c.isascii() else 1.0 for c in text))
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False, verbose=False))
