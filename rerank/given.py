"""What a caller hands over, checked before a model sees it: each function gives the value back, or says what is wrong.

The messages name the place (`document 3`), what was found there and what is allowed.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Mapping, Sequence, Set
from numbers import Real
from typing import Any, SupportsFloat

from rerank.errors import InputError


def is_list(value: Any) -> bool:
    """Whether a value holds things in an order: a list, an array [n], a column; no text, mapping, set or table."""
    if isinstance(value, str | bytes | bytearray | Mapping | Set):
        return False
    return isinstance(value, Collection) and getattr(value, "ndim", 1) == 1


def checked_text(text: Any, what: str) -> str:
    """The text as a `str` that can be written as UTF-8."""
    if not isinstance(text, str):
        raise InputError(f"{what} must be a text, not {type(text).__name__}")
    try:
        text.encode("utf8")
    except UnicodeEncodeError as error:
        raise InputError(f"{what} has a lone surrogate at character {error.start}: it is not valid Unicode") from None
    return str(text)  # those of NumPy are a kind of their own


def checked_texts(documents: Sequence[str | Mapping[str, Any]]) -> list[str]:
    """The text of each document, which is a text or a mapping with one."""
    if not is_list(documents):
        raise InputError(f"documents must be a list of texts, not {type(documents).__name__}")
    texts = []
    for i, document in enumerate(documents):
        if isinstance(document, Mapping):
            if "text" not in document:
                raise InputError(f"document {i} is a mapping without 'text'; it has {sorted(map(str, document))}")
            document = document["text"]
        texts.append(checked_text(document, f"document {i}"))
    return texts


def is_number(value: Any) -> bool:
    """Whether a value is one number, also one of NumPy or of torch; a truth value and a text are none."""
    return isinstance(value, SupportsFloat) and type(value).__name__ not in ("bool", "bool_")


def checked_scores(values: Sequence[float], what: str, n: int) -> tuple[float, ...]:
    """The `n` scores as floats, each finite or NaN."""
    needed = f"{what} must hold a finite number for each document (NaN where it was not found)"
    if isinstance(values, str | bytes | Mapping | Set):
        raise InputError(f"{needed}, not be a {type(values).__name__}")
    try:
        wrong = next(((i, value) for i, value in enumerate(values) if not is_number(value)), None)
        numbers = () if wrong is not None else tuple(float(value) for value in values)
    except (TypeError, ValueError, OverflowError):
        raise InputError(needed) from None
    if wrong is not None:
        raise InputError(f"{needed}; that of document {wrong[0]} is {wrong[1]!r:.60}")
    if len(numbers) != n:
        raise InputError(f"{what} has {len(numbers)} scores for {n} documents")
    infinite = next((i for i, number in enumerate(numbers) if math.isinf(number)), None)
    if infinite is not None:
        raise InputError(f"{needed}; that of document {infinite} is {numbers[infinite]}")
    return numbers


def checked_count(value: Any, what: str, otherwise: str = "") -> int:
    """The whole number of at least 1; `otherwise` says what else is allowed."""
    try:
        count = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        count = 0
    if count < 1:
        raise InputError(f"{what} must be a whole number of at least 1{otherwise}, not {value!r}")
    return count


def checked_top_k(value: Any) -> int | None:
    """How many documents are wanted; None for all."""
    return None if value is None else checked_count(value, "top_k", ", or None for all")


def checked_floor(min_probability: Any) -> float:
    """The least probability that is kept; 0 for None."""
    if min_probability is None:
        return 0.0
    allowed = isinstance(min_probability, Real) and not isinstance(min_probability, bool)
    if not allowed or not 0.0 <= min_probability <= 1.0:
        raise InputError(f"min_probability must be a number from 0 to 1, or None for all, not {min_probability!r}")
    return float(min_probability)
