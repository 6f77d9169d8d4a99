"""Reading a written permutation: what a generative listwise model said, strictly.

    [3] > [1] > [2]

That, and nothing around it, is an answer. A model that thinks first must say where its answer begins: after the last
</think>, or between the last <answer> and </answer>. Reasoning is never searched for names. Whatever else is wrong is
named (`FAULTS`), and the order is repaired: first what was named validly, then the others in the order shown.

Where words stand around the answer, only a chain counts, two names or more that are joined by ">": neither "none of the
top 10 beats [4]" nor "[1], [2] are off topic" orders anything. Of several chains the last is the answer, unless one
before it says otherwise: which of the two was meant, or quoted from a document, nobody can tell, and nothing is said.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from rerank.errors import InputError

FAULTS = ("empty", "words", "unknown", "repeated", "missing", "unclosed")
"""empty: nothing was answered; words: something else than names joined by ">"; unknown: a name that no candidate has
(0, or beyond the last); repeated: a name written twice; missing: a candidate left out; unclosed: no </answer>,
</think>."""

NAME = r"\[[^\[\]\n]{0,40}\]"
WELL_FORMED = re.compile(rf"{NAME}(?:\s*>\s*{NAME})*")
CHAIN = re.compile(rf"{NAME}(?:\s*>\s*{NAME})+")


class Answer(NamedTuple):
    """What a text says about the order of n candidates."""

    order: tuple[int, ...]
    """All of range(n): what was named, in its order, then the others in the order in which they were shown."""
    named: int
    """How many candidates were named validly; 0 means that `order` says nothing."""
    faults: tuple[str, ...]
    """Those of `FAULTS` that the text has, in that order; none where it is well formed."""


def written(order: Sequence[int], names: Sequence[str]) -> str:
    """The answer that says `order`: "[3] > [1] > [2]"."""
    return " > ".join(f"[{names[i]}]" for i in order)


def read_answer(text: str, names: Sequence[str]) -> Answer:
    """The answer of a text to a prompt whose candidates were called `names`.

    >>> read_answer("[2] > [3] > [1]", "123")
    Answer(order=(1, 2, 0), named=3, faults=())
    >>> read_answer("Sure! [2] > [9] > [2]", "123")
    Answer(order=(1, 0, 2), named=1, faults=('words', 'unknown', 'repeated', 'missing'))
    """
    place = {name: i for i, name in enumerate(names)}
    if len(place) < len(names):
        raise InputError(f"two candidates have one name in {list(names)}: an answer could mean either")
    body, faults = _answer_part(text)
    said, words = _said(body)
    order: dict[int, None] = {}
    for name in said:
        if name in place:
            if place[name] in order:
                faults.add("repeated")
            order[place[name]] = None
        else:
            faults.add("unknown" if _is_like(name, names) else "words")
    named = len(order)
    order.update(dict.fromkeys(range(len(names))))
    if words:
        faults.add("words")
    if not body and names:
        faults.add("empty")
    elif named < len(names):
        faults.add("missing")
    return Answer(tuple(order), named, tuple(fault for fault in FAULTS if fault in faults))


def _answer_part(text: str) -> tuple[str, set[str]]:
    """The part of a text that is to be read as its answer, and what is wrong with the way it is marked."""
    _, _, rest = text.rpartition("</think>")
    if "<think>" in rest:
        return "", {"unclosed"}  # cut off while it thought: whatever stands there is no answer
    _, opened, answer = rest.rpartition("<answer>")
    if not opened:
        return rest.strip(), set()
    answer, closed, after = answer.partition("</answer>")
    faults = set() if closed else {"unclosed"}
    return answer.strip(), faults | ({"words"} if after.strip() else set())


def _said(body: str) -> tuple[list[str], bool]:
    """The names that are written, without their brackets, and whether anything else is written."""
    if WELL_FORMED.fullmatch(body):
        return re.findall(r"\[(.*?)\]", body), False
    chains: list[list[str]] = [re.findall(r"\[(.*?)\]", chain.group()) for chain in CHAIN.finditer(body)]
    last = chains[-1] if chains else []
    return [] if any(_contradicts(other, last) for other in chains) else last, bool(body)


def _contradicts(other: Sequence[str], chain: Sequence[str]) -> bool:
    """Whether `other` names two of the names of `chain` the other way round; a name counts where it stands first."""
    place = {name: i for i, name in reversed(list(enumerate(chain)))}
    shared = [place[name] for name in dict.fromkeys(other) if name in place]
    return shared != sorted(shared)


def _is_like(name: str, names: Sequence[str]) -> bool:
    """Whether `name` is of the kind of `names`: digits where they are digits, else as short as they are."""
    if all(re.fullmatch(r"[0-9]+", known) for known in names):
        return re.fullmatch(r"[0-9]+", name) is not None
    return re.fullmatch(rf"[A-Za-z0-9]{{1,{max(map(len, names), default=1)}}}", name) is not None
