"""The fields of a request: how each is read, and what its JSON schema says of it.

A field is an annotation with a `Taken`, so that the model of a request is the one place that says both. Nothing is
converted: `true` is no number, "3" is no number, 3.0 is no whole number, and a text passes as it came. What is wrong
is said in our words with its place ("documents.3: must be ..."), at most `TOLD` of a field, so that a list of a million
wrong documents costs as much as one of five.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, final

from pydantic_core import CoreSchema, core_schema

from rerank.serving.wire.bodies import named

TOLD = 5
"""Problems that are told of one body, at most."""
UNNAMED = "default/not-specified"
"""What Infinity's clients call the model where they want the server's own."""

Place = tuple[str | int, ...]
TEXT = {"type": "string"}
DOCUMENT = {
    "anyOf": [TEXT, {"type": "object", "properties": {"text": TEXT}, "additionalProperties": True}],
}


@final
class Amiss(ValueError):
    """What is wrong with a value: (place within it, problem), the first of them."""

    def __init__(self, found: Sequence[tuple[Place, str]]) -> None:
        super().__init__(found)
        self.found = tuple(found)


@final
@dataclass(frozen=True)
class Taken:
    """How a field is read: a function that gives its value or raises Amiss, and the JSON schema of what it takes."""

    read: Callable[[Any], Any]
    schema: Mapping[str, Any]
    optional: bool = True

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._read)

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> dict[str, Any]:
        if not self.optional:
            return dict(self.schema)
        schema = {key: value for key, value in self.schema.items() if key != "description"}
        said = {"description": self.schema["description"]} if "description" in self.schema else {}
        return {"anyOf": [schema, {"type": "null"}], **said}

    def _read(self, value: Any) -> Any:
        return None if value is None and self.optional else self.read(value)


def wrong(must: str, value: Any, *place: str | int) -> Amiss:
    """The error of one value that is not what it must be."""
    return Amiss([(place, f"must be {must}, not {named(value)}")])


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise wrong("a text", value)
    return value


def query_of(value: Any) -> str:
    """A query: a text with something in it."""
    if not _text(value).strip():
        raise Amiss([((), "must have words, not be empty or blank")])
    return value


def _documents(value: Any) -> list[str | dict[str, Any]]:
    if not isinstance(value, list):
        raise wrong("a list of texts or of objects with 'text'", value)
    _raise_first(
        ((i,), f"must be a text or an object with 'text', not {named(document)}")
        for i, document in enumerate(value)
        if not isinstance(document, (str, dict))
    )
    return value


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list):
        raise wrong("a list of texts", value)
    _raise_first(
        ((i,), f"must be a text, not {named(text)}") for i, text in enumerate(value) if not isinstance(text, str)
    )
    return value


def _one_or_more(value: Any) -> str | list[str]:
    if not isinstance(value, (str, list)):
        raise wrong("a text or a list of texts", value)
    return value if isinstance(value, str) else _texts(value)


def _raise_first(problems: Iterable[tuple[Place, str]]) -> None:
    """Amiss with the first few problems, if there is one."""
    found = [problem for problem, _ in zip(problems, range(TOLD), strict=False)]
    if found:
        raise Amiss(found)


def _whole(least: int, zero: bool) -> Callable[[Any], int]:
    """The reader of a whole number of at least `least`, or of 0 where that is taken too."""

    def read(value: Any) -> int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or (value < least and not (zero and value == 0)):
            raise wrong(f"a whole number of at least {least} (leave it out for all)", value)
        return value

    return read


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise wrong("true or false", value)
    return value


def _probability(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise wrong("a number from 0 to 1", value)
    return float(value)


def _first_stage(value: Any) -> dict[str, tuple[float, ...]]:
    if not isinstance(value, dict):
        raise wrong("an object of retriever names, each with a list of scores", value)
    _raise_first(
        ((name,), f"must be a list with a score for each document, not {named(scores)}")
        for name, scores in value.items()
        if not isinstance(scores, list)
    )
    _raise_first(
        ((name, i), f"must be a finite number, or null where the document was not found, not {named(score)}")
        for name, scores in value.items()
        for i, score in enumerate(scores)
        if score is not None and not _finite(score)
    )
    return {
        name: tuple(math.nan if score is None else float(score) for score in scores) for name, scores in value.items()
    }


def _finite(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and -math.inf < value < math.inf and abs(value) < 2.0**128


def model_of(value: Any) -> str | None:
    """The name of a model; None for the server's own."""
    return None if _text(value) == UNNAMED else value


def _yes(description: str) -> Taken:
    return Taken(_bool, {"type": "boolean", "description": description})


def _count(description: str, zero: bool = False) -> Taken:
    """A whole number of at least 1 that may be left out, or be 0 where that is taken too."""
    return Taken(_whole(1, zero), {"type": "integer", "minimum": 0 if zero else 1, "description": description})


SCORES = {"type": "array", "items": {"anyOf": [{"type": "number"}, {"type": "null"}]}}

Query = Annotated[str, Taken(query_of, {**TEXT, "minLength": 1, "description": "What is sought."}, optional=False)]
Documents = Annotated[
    list[str | dict[str, Any]],
    Taken(
        _documents,
        {"type": "array", "items": DOCUMENT, "description": "What is ranked: texts, or objects with a text."},
        optional=False,
    ),
]
Texts = Annotated[
    list[str], Taken(_texts, {"type": "array", "items": TEXT, "description": "What is ranked."}, optional=False)
]
MaybeTexts = Annotated[list[str] | None, Taken(_texts, {"type": "array", "items": TEXT, "description": "Texts."})]
MaybeText = Annotated[str | None, Taken(_text, {**TEXT, "description": "One text."})]
Side = Annotated[
    str | list[str] | None,
    Taken(
        _one_or_more,
        {
            "anyOf": [TEXT, {"type": "array", "items": TEXT}],
            "description": "One side of the pairs: a text, or one for each pair.",
        },
    ),
]
Model = Annotated[str | None, Taken(model_of, {**TEXT, "description": "Which model; left out: the server's first."})]
TopN = Annotated[int | None, _count("How many results are wanted; left out: all.")]
TopNOrAll = Annotated[
    int | None, _count("How many results are wanted; left out: all. At /rerank 0 is all too.", zero=True)
]
MaxTokens = Annotated[
    int | None, _count("Tokens of a document that are read; left out or 0: as many as fit.", zero=True)
]
RankFields = Annotated[
    list[str] | None,
    Taken(
        _texts,
        {
            "type": "array",
            "items": TEXT,
            "description": "Fields of the documents that are read, as 'name: value' lines.",
        },
    ),
]
ReturnDocuments = Annotated[bool | None, _yes("Whether each result holds its document.")]
RawScores = Annotated[bool | None, _yes("true: logits instead of scores from 0 to 1.")]
UseActivation = Annotated[bool | None, _yes("false: logits instead of scores from 0 to 1.")]
Truncate = Annotated[bool | None, _yes("false: refuse what is longer than the model reads, instead of cutting it.")]
MinProbability = Annotated[
    float | None,
    Taken(
        _probability,
        {
            "type": "number",
            "minimum": 0,
            "maximum": 1,
            "description": "Results less probably relevant than this are left out; for calibrated models.",
        },
    ),
]
FirstStage = Annotated[
    dict[str, tuple[float, ...]] | None,
    Taken(
        _first_stage,
        {
            "type": "object",
            "additionalProperties": SCORES,
            "description": "Scores of the retrievers that the model was trained with, one a document; null: not found.",
        },
    ),
]
