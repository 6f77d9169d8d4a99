"""The first stage's scores: from where a framework keeps them to where a model reads them.

    first_stage="bm25"                                       what the framework calls the score is bm25's
    first_stage={"bm25": "score", "dense": "dense_score"}    ... and dense's is kept elsewhere, under that name

A model that was trained with the scores of retrievers ranks much better with them. Where they are is a setting of each
adapter whose framework has a place for them: retriever -> place, all the retrievers that the model was trained with
(`Reranker.wants`). A document without such a score was not found by that retriever; the model knows such from its
training.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, final

from rerank.errors import InputError, nearest
from rerank.given import is_number

logger = logging.getLogger("rerank.integrations")

OWN = "score"
"""The place that a retriever's name alone stands for."""
Column: TypeAlias = Callable[[str], Sequence[Any]]
"""Place -> what each document has there; None where it has nothing."""


@final
class FirstStage:
    """Where the scores are; what is amiss is said once.

    `remedy` is told to the user of a model that wants scores and is given none.
    """

    def __init__(self, given: str | Mapping[str, str] | None, remedy: str) -> None:
        self.places = _places(given)
        self.remedy = remedy
        self._told: set[str] = set()

    def check(self, wants: Sequence[str]) -> None:
        """Nothing; InputError where a name is none of those that a model wants, or one of those is missing."""
        if not self.places or not wants:
            return
        trained = f"this model was trained with scores of {', '.join(wants)}"
        for name in self.places:
            if name not in wants:
                raise InputError(f"first_stage: there are no scores of {name!r}; {trained}{nearest(name, wants)}")
        missing = [name for name in wants if name not in self.places]
        if missing:
            raise InputError(f"first_stage lacks {missing}; {trained}: say where each is, or leave first_stage out")

    def scores(self, wants: Sequence[str], column: Column) -> dict[str, list[float]] | None:
        """Retriever -> the score of each document, as `Reranker.rank` takes them; None where there is none to give."""
        if self.places and not wants:
            self._say("this model was trained without first-stage scores: first_stage has no effect")
        elif wants and not self.places:
            names = ", ".join(wants)
            self._say(f"this model was trained with scores of {names}, and ranks worse without them: {self.remedy}")
        if not self.places or not wants:
            return None
        found = {}
        for name, place in self.places.items():
            found[name] = [_number(value, i, place) for i, value in enumerate(column(place))]
            if found[name] and all(map(math.isnan, found[name])):
                self._say(f"no document has a score of {name} under {place!r}: all count as not found by it")
        return found

    def _say(self, warning: str) -> None:
        if warning not in self._told:
            self._told.add(warning)
            logger.warning("%s (said once)", warning)


def _places(given: Any) -> dict[str, str]:
    """Retriever -> place."""
    places = {given: OWN} if isinstance(given, str) else given or {}
    texts = [*places, *places.values()] if isinstance(places, Mapping) else [None]
    if not all(isinstance(text, str) and text for text in texts):
        raise InputError(
            f"first_stage must be the name of a retriever, or map names to where their scores are, such as "
            f"{{'bm25': 'score'}}, not {given!r:.80}"
        )
    return dict(places)


def _number(value: Any, i: int, place: str) -> float:
    """The score as a float; NaN for None."""
    if value is None:
        return math.nan
    if not is_number(value):
        raise InputError(f"document {i}: {place!r} must be a number, as a first-stage score, not {value!r:.60}")
    return float(value)
