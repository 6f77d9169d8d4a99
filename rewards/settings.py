"""What a reward may be made with: a misspelt or impossible setting is refused when the reward is made, not used."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any


def check_settings(reward: str, **settings: Any) -> None:
    """Raise ValueError, naming the reward and the setting, for a value that is not allowed."""
    for name, value in settings.items():
        fits, allowed = _ALLOWED[name]
        if not fits(value):
            raise ValueError(f"{reward} has {name} {value!r}; {name} is {allowed}")


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


_ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "cutoff": (lambda v: _is_whole(v) and v >= 1, "a whole number, 1 or more"),
    "level": (is_number, "a grade: a number"),
    "gain": (lambda v: v in ("linear", "exponential"), "'linear' or 'exponential'"),
    "ideal": (lambda v: v in ("candidates", "judged"), "'candidates' or 'judged'"),
    "persistence": (lambda v: is_number(v) and 0 < v < 1, "between 0 and 1"),
    "alpha": (lambda v: is_number(v) and 0 <= v <= 1, "in [0, 1]"),
    # 2^60 is far from the end of float32, and no scale of grades is as long.
    "highest": (lambda v: _is_whole(v) and 1 <= v <= 60, "a whole number from 1 to 60"),
}
