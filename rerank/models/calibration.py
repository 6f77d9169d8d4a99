"""From logits to probabilities of relevance: a map that is kept beside the weights and never changes an order.

    affine    p(s) = sigmoid(a * s + b), a > 0                                         Platt (1999)
    isotonic  p(s) = straight lines between knots, level before the first and after the last
                                                                                       Zadrozny and Elkan (2002)

Losses of Plackett-Luce do not see a shift of all scores, so a ranker's logits say nothing about probabilities until
this map is fitted to judged lists (`training.calibrate`). An isotonic map may give neighbours one probability:
documents are ordered by their logits, never by these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple, TypeGuard, final

import torch
from torch import Tensor

from rerank.errors import InputError, nearest

KINDS = ("affine", "isotonic")
FIELDS = ("kind", "a", "b", "knots", "plain")
LARGEST, SMALLEST = 1e30, 1e-30
"""Bounds of what a field may hold: float32 still computes with it."""


class Fault(NamedTuple):
    """What is wrong with a calibration: the field, what it holds, what is allowed."""

    field: str
    value: Any
    allowed: str


@final
@dataclass(frozen=True)
class Calibration:
    """The map of the module docstring, checked when it is made."""

    kind: Literal["affine", "isotonic"]
    a: float | None = None
    b: float | None = None
    """affine: the slope, above 0, and the shift."""
    knots: tuple[tuple[float, float], ...] = ()
    """isotonic: (logit, probability), both rising."""
    plain: Calibration | None = None
    """For the scores without the first stage's, of a model that has both."""

    def __post_init__(self) -> None:
        found = fault(self.as_dict())
        if found is not None:
            raise InputError(f"calibration: {found.field} is {found.value!r:.60}; allowed is {found.allowed}")

    def probability(self, scores: Tensor) -> Tensor:
        """Probabilities of relevance, in the shape of `scores`, at least float32; 0 where padded (-inf)."""
        scores = scores if scores.dtype == torch.float64 else scores.float()
        if self.a is not None and self.b is not None:
            return torch.sigmoid(self.a * scores + self.b)
        return _between(scores, self.knots).masked_fill(scores == -torch.inf, 0.0)

    def as_dict(self) -> dict[str, Any]:
        """The fields that this kind has, as JSON holds them."""
        found: dict[str, Any] = {"kind": self.kind}
        if self.a is not None or self.b is not None:
            found |= {"a": self.a, "b": self.b}
        if self.knots:
            found["knots"] = [list(knot) for knot in self.knots]
        if self.plain is not None:
            found["plain"] = self.plain.as_dict()
        return found

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Calibration:
        """The calibration that `as_dict` gave."""
        found = fault(table)
        if found is not None:
            raise InputError(f"calibration: {found.field} is {found.value!r:.60}; allowed is {found.allowed}")
        plain = table.get("plain")
        return cls(
            kind=table["kind"],
            a=None if table.get("a") is None else float(table["a"]),
            b=None if table.get("b") is None else float(table["b"]),
            knots=tuple((float(score), float(p)) for score, p in table.get("knots") or ()),
            plain=None if plain is None else cls.from_dict(plain),
        )


def _between(scores: Tensor, knots: tuple[tuple[float, float], ...]) -> Tensor:
    """Linear interpolation; each step of it is monotone in floating point too."""
    at, values = torch.tensor(knots, dtype=scores.dtype, device=scores.device).T.contiguous()
    if len(knots) == 1:
        return torch.where(scores.isnan(), scores, values[0])
    right = torch.searchsorted(at, scores.detach().contiguous()).clamp(1, len(knots) - 1)
    x0, x1, y0, y1 = at[right - 1], at[right], values[right - 1], values[right]
    # Knots that are one number in this precision are a step.
    share = ((scores.clamp(at[0], at[-1]) - x0) / (x1 - x0).clamp(min=torch.finfo(scores.dtype).tiny)).clamp(0.0, 1.0)
    return torch.where(scores >= x1, y1, torch.minimum(y0 + (y1 - y0) * share, y1))


def fault(table: Any) -> Fault | None:
    """The first thing that is wrong with a calibration as JSON holds it; None where all is well."""
    if not isinstance(table, Mapping):
        return Fault("calibration", table, f"a table of {', '.join(FIELDS)}")
    unknown = next((key for key in table if key not in FIELDS), None)
    if unknown is not None:
        return Fault("calibration", {unknown: table[unknown]}, f"a table without {unknown!r}{nearest(unknown, FIELDS)}")
    kind = table.get("kind")
    if kind not in KINDS:
        return Fault("calibration.kind", kind, " or ".join(map(repr, KINDS)))
    found = _fault_of_affine(table) if kind == "affine" else _fault_of_isotonic(table)
    if found is not None or table.get("plain") is None:
        return found
    inner = fault(table["plain"])
    return None if inner is None else inner._replace(field=inner.field.replace("calibration", "calibration.plain", 1))


def _fault_of_affine(table: Mapping[str, Any]) -> Fault | None:
    a, b = table.get("a"), table.get("b")
    if not (_is_number(a) and a >= SMALLEST):
        return Fault("calibration.a", a, "a number above 0 (a map that falls would turn the ranking over)")
    if not _is_number(b):
        return Fault("calibration.b", b, "a finite number")
    return (
        Fault("calibration.knots", table["knots"], "nothing: an affine map has a and b") if table.get("knots") else None
    )


def _fault_of_isotonic(table: Mapping[str, Any]) -> Fault | None:
    knots = table.get("knots")
    allowed = "a list of one or more [logit, probability], logits rising, probabilities from 0 to 1 and never falling"
    for name in ("a", "b"):
        if table.get(name) is not None:
            return Fault(f"calibration.{name}", table[name], "nothing: an isotonic map has knots")
    if not isinstance(knots, list | tuple) or not knots or not all(_is_knot(knot) for knot in knots):
        return Fault("calibration.knots", knots, allowed)
    rising = all(left[0] < right[0] and left[1] <= right[1] for left, right in pairwise(knots))
    return None if rising else Fault("calibration.knots", knots, allowed)


def _is_knot(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value)) and 0 <= value[1] <= 1


def _is_number(value: Any) -> TypeGuard[float]:
    # abs(NaN) <= x is False, and an integer that no float holds is compared exactly.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST
