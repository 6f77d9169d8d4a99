"""Is the gain real? Every arm against the clone that it began from, and what follows from it.

Arms of several models are told apart by their names: where there are `light clone` and `light refined`, what begins
with `light ` belongs to the model `light`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rerank.errors import InputError
from rerank.evaluation.tables import Comparison, Table
from rerank.evaluation.wording import Said, p_value
from rerank.report.drawing import Axis, is_number, round_axis

CLONE, REFINED = "clone", "refined"

_GROUPS = {"main": "Main arms", "control": "Controls", "corrupted": "Corrupted lessons", "": "Other arms"}


class Interval(NamedTuple):
    """One row of a forest plot, a difference to something at 0; places in percent."""

    arm: str
    difference: float
    x: float
    left: float
    right: float
    seeds: tuple[float, ...]
    measurable: bool
    p: str
    whole: bool = False
    """Whether it is the mean of the others."""
    told: str = ""
    """What stands under its difference where that is not p."""


class Forest(NamedTuple):
    """All arms of one model against its clone."""

    clone: str
    axis: Axis
    zero: float
    groups: tuple[tuple[str, tuple[Interval, ...]], ...]
    """(title, arms)."""
    concluded: Said | None
    """What follows for the refined arm against its controls; None where it has none."""
    decisive: Comparison | None
    """The refined arm against the best of its controls."""
    corrupted: str
    """What follows from the corrupted arms; empty where there is none."""


def models_of(arms: Iterable[str]) -> dict[str, list[str]]:
    """Model -> its arms; "" holds the arms of a model without a name and those that all models share."""
    arms = list(arms)
    # A model has both: "longer clone" and "labels refined" are arms of a model, no models.
    names = [a[: -len(CLONE) - 1] for a in arms if a.endswith(f" {CLONE}")]
    names = sorted((n for n in names if f"{n} {REFINED}" in arms), key=len, reverse=True)
    found: dict[str, list[str]] = {}
    for arm in arms:
        # The longest name that fits: what a model "bge large" owns, a model "bge" would claim.
        owner = next((n for n in names if arm.startswith(f"{n} ")), "")
        found.setdefault(owner, []).append(arm)
    return found


def forests(table: Table, groups: Mapping[str, Any]) -> list[Forest]:
    """Each model's arms against its clone, on the primary measure; `groups` maps arms to main, control, corrupted."""
    found = []
    by_model = models_of(table.arms)
    shared = by_model.get("", [])
    for model, arms in by_model.items():
        clone = f"{model} {CLONE}".strip()
        if clone not in table.arms:
            continue
        candidates = arms if model == "" else [*shared, *arms]
        tested = [c for c in (_tested(table, arm, clone) for arm in candidates) if c is not None]
        if tested:
            found.append(_forest(table, clone, tested, groups))
    return found


def interval_axis(tested: Sequence[Comparison]) -> Axis:
    """The axis over 0 and all intervals."""
    ends = [v for c in tested for v in (c.low, c.high, c.difference, *c.by_seed) if is_number(v)]
    return round_axis(min([0.0, *ends]), max([0.0, *ends]))


def interval(c: Comparison, axis: Axis, name: str = "", whole: bool = False) -> Interval:
    """The row of one comparison, named by its arm or by `name`."""
    # Of one query there is no interval: it is drawn as its point.
    low, high = (v if is_number(v) else c.difference for v in (c.low, c.high))
    seeds = tuple(axis.at(d) for d in c.by_seed)
    places = axis.at(c.difference), axis.at(low), axis.at(high)
    return Interval(name or c.arm, c.difference, *places, seeds, c.measurable, p_value(c.p_holm), whole)


def _tested(table: Table, arm: str, other: str) -> Comparison | None:
    try:
        return table.between(arm, other)
    except InputError:
        return None


def _forest(table: Table, clone: str, tested: Sequence[Comparison], groups: Mapping[str, Any]) -> Forest:
    axis = interval_axis(tested)
    grouped: dict[str, list[Interval]] = {title: [] for title in _GROUPS.values()}
    for c in tested:
        grouped[_GROUPS.get(str(groups.get(c.arm)), _GROUPS[""])].append(interval(c, axis))
    shown = tuple((title, tuple(rows)) for title, rows in grouped.items() if rows)
    held = _held(table, clone, groups)
    concluded = table.concluded(held[0].arm, [c.against for c in held]) if held else None
    primary = table.measures[0]
    decisive = max(held, key=lambda c: table.arms[c.against][primary].mean) if held else None
    corrupted = _corrupted(clone, [c for c in tested if groups.get(c.arm) == "corrupted"])
    return Forest(clone, axis, axis.at(0.0), shown, concluded, decisive, corrupted)


def _held(table: Table, clone: str, groups: Mapping[str, Any]) -> list[Comparison]:
    """The refined arm of the clone's model against each of its controls that it was tested against."""
    # Not stripped: what a name ends with belongs to it.
    model = clone.removesuffix(CLONE).removesuffix(" ")
    refined = f"{model} {REFINED}" if model else REFINED
    controls = [arm for arm in models_of(table.arms)[model] if groups.get(arm) == "control"]
    return [c for c in (_tested(table, refined, control) for control in controls) if c is not None]


def _corrupted(clone: str, tested: Sequence[Comparison]) -> str:
    """What the corrupted arms' differences to the clone say of every gain."""
    if not tested:
        return ""
    gained = [c.arm for c in tested if c.measurable and c.difference > 0]
    if gained:
        them, its = ("gain", "their") if len(gained) > 1 else ("gains", "its")
        return (
            f"{' and '.join(gained)} {them} over {clone} too, at least in part because {its} best step was chosen "
            "on true dev labels: so much of a gain needs no true reward in training, and only what goes beyond it was "
            "learned from the labels"
        )
    which = "The corrupted reward does not gain" if len(tested) == 1 else f"None of {len(tested)} corrupted arms gains"
    return f"{which} measurably over {clone}: no sign that training by itself makes a gain"
