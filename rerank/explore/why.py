"""Why a document stands where it stands: the parts of its score, its words of the query, the sentences that carry it.

    served score = network + sum_f weight_f * first-stage score f, standardised within the list  (exact)
    lift of a part = the part minus its mean over the list: a ranking does not change when all scores shift
    weight of a sentence = score of the text minus score of the text without it  (occlusion; Zeiler & Fergus 2014)

Occlusion asks the network alone: what the retrievers say of a document, its text with a hole in it would not change.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from rerank.retrieval.bm25 import tokenize
from rerank.types import CandidateList

if TYPE_CHECKING:
    from rerank.models.language.generative import AnyPolicy

NETWORK = "network"
"""What the model itself says, beside the first-stage scores that are added to it."""
STRETCHES, STRETCHES_OF_LISTS = 24, 8
"""Stretches that a text is left out in; fewer where each of them asks for a whole list to be read again."""
SHORTEST = 16
"""Characters below which a sentence is read together with the next."""
SLIGHT = 0.05
"""A part that lifts a document by less than this is not named."""
NAMED = 3
"""Parts that a reason names."""

_WORD = re.compile(r"\w+")
_CODE_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_]+")
_SENTENCE = re.compile(r".+?(?:(?<=[.!?])(?=\s)|(?<=[\u3002\uff01\uff1f])|\n|\Z)\s*", re.DOTALL)
_IDEOGRAPHIC = "\u2e80"
"""From here on in Unicode, nearly all that is a word to `re` is a run of ideographs, kana or hangul."""


class Scored(NamedTuple):
    """The scores of one list, and what each is the sum of."""

    totals: list[float]
    parts: dict[str, list[float]]
    """Part -> its share of each candidate's score; `NETWORK` first."""

    def lifts(self) -> dict[str, list[float]]:
        """Part -> by how much it lifts each candidate above the mean of the list."""
        means = {name: math.fsum(values) / max(len(values), 1) for name, values in self.parts.items()}
        return {name: [value - means[name] for value in values] for name, values in self.parts.items()}


def scored(policy: AnyPolicy, candidates: CandidateList) -> Scored:
    """The policy's scores of one list, taken apart."""
    import torch

    policy.eval()
    with torch.inference_mode():
        flat = policy.served_of([candidates])
        parts = {NETWORK: flat.tolist()}
        weights = policy.first_stage
        if weights is None or not weights.active:
            return Scored(flat.tolist(), parts)
        # The very numbers that the policy adds: `FirstStageWeights.forward` is the sum of these columns.
        shares = weights.features([candidates])[0] * weights.weight
        parts |= {name: shares[:, i].tolist() for i, name in enumerate(weights.names)}
        return Scored(policy.served_views([candidates])[0, 0].tolist(), parts)


def reason(moved: int, lifts: Mapping[str, float]) -> str:
    """In a few words which parts put a document where it is: `up 7: network +2.1, bm25 −0.3`."""
    went = f"up {moved}" if moved > 0 else f"down {-moved}" if moved < 0 else "stays"
    told = sorted(lifts.items(), key=lambda item: -abs(item[1]))
    named = [f"{name} {_signed(value)}" for name, value in told if abs(value) >= SLIGHT][:NAMED]
    return f"{went}: {', '.join(named)}" if named else went


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "\u2212")


def found_by(values: Mapping[str, Sequence[float]], place: int) -> str:
    """At which rank each retriever has a candidate, among those of its list: `bm25 3rd, dense 1st`."""
    told = []
    for name, scores in values.items():
        own = scores[place]
        better = sum(score > own for score in scores)
        told.append(f"{name} {_ordinal(better + 1)}" if math.isfinite(own) else f"{name} did not find it")
    return ", ".join(told)


def _ordinal(n: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th") if n % 100 not in (11, 12, 13) else "th"
    return f"{n}{ending}"


# --------------------------------------------------------------------------------------------------------------- texts
def marked(text: str, terms: set[str], language: str) -> list[str]:
    """The text in pieces, every second of them a word whose stem is one of `terms`.

    >>> marked("Ranks the rankings.", {"rank"}, "english")
    ['', 'Ranks', ' the ', 'rankings', '.']
    """
    pieces: list[str] = []
    end = 0
    for start, stop in _spans(text, terms, language):
        if start < end:  # bigrams overlap: the mark grows
            pieces[-1] += text[end : max(end, stop)]
        else:
            pieces += [text[end:start], text[start:stop]]
        end = max(end, stop)
    return [*pieces, text[end:]]


def terms_of(query: str, language: str) -> set[str]:
    """The stems that BM25 looks for."""
    return set(tokenize(query, language))


def _spans(text: str, terms: set[str], language: str) -> list[tuple[int, int]]:
    """Where words of `terms` begin and end, in order."""
    known: dict[str, bool] = {}
    spans = []
    for match in (_CODE_WORD if language == "code" else _WORD).finditer(text):
        word = match[0]
        if word[0] >= _IDEOGRAPHIC and len(word.lower()) == len(word):
            starts = [
                (at.start(), term) for term in terms for at in re.finditer(f"(?={re.escape(term)})", word.lower())
            ]
            spans += sorted((match.start() + at, match.start() + at + len(term)) for at, term in starts)
            continue
        if word not in known:
            known[word] = not terms.isdisjoint(tokenize(word, language))
        if known[word]:
            spans.append(match.span())
    return spans


def stretches(text: str, most: int = STRETCHES) -> list[str]:
    """The text cut at ends of sentences and lines into at most `most` stretches; together they are the text."""
    enough = max(SHORTEST, len(text) / most)
    found: list[str] = []
    open_one = ""
    for sentence in _SENTENCE.findall(text):
        open_one += sentence
        if len(open_one.strip()) >= SHORTEST and len(open_one) >= enough:
            found.append(open_one)
            open_one = ""
    if open_one.strip() and (not found or len(open_one.strip()) >= SHORTEST) and len(found) < most:
        found.append(open_one)
    elif open_one and found:
        found[-1] += open_one
    return found


# ----------------------------------------------------------------------------------------------------------- occlusion
def reads_lists(policy: AnyPolicy) -> bool:
    """Whether a score depends on the other candidates, so that a changed text asks for the whole list anew."""
    return getattr(policy.scorer, "windowing", None) is not None


def weights_of(policy: AnyPolicy, candidates: CandidateList, place: int, cut: Sequence[str]) -> list[float]:
    """By how much the network's score of the candidate at `place` falls without each of its stretches `cut`."""
    import torch

    variants = ["".join(cut), *("".join((*cut[:i], *cut[i + 1 :])) for i in range(len(cut)))]
    policy.eval()
    with torch.inference_mode():
        if reads_lists(policy):
            before, after = candidates.texts[:place], candidates.texts[place + 1 :]
            lists = [replace(candidates, texts=(*before, text, *after)) for text in variants]
            found = policy.served_of(lists).tolist()[place :: len(candidates)]
        else:
            names = tuple(map(str, range(len(variants))))
            found = policy.served_of([CandidateList("why", candidates.query, names, tuple(variants))]).tolist()
    return [found[0] - without for without in found[1:]]
