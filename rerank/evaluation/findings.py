"""What the report says beyond its table: whether the gain is real, the audit, what training did, calibration.

Each is made from a file of the run (or a key of `summary.json`) into records that the template writes down; where a
value is absent or no finite number, the page shows a dash. Arms of several models are told apart by their names: where
there are `light clone` and `light refined`, what begins with `light ` belongs to the model `light`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rerank.errors import InputError
from rerank.evaluation.drawing import MOST_SERIES, Axis, Plot, Spot, is_number, plot, round_axis, spots
from rerank.evaluation.tables import Comparison, Table
from rerank.evaluation.wording import Said, decimal, p_value, signed

_CLONE, _REFINED = "clone", "refined"
_GROUPS = {"main": "Main arms", "control": "Controls", "corrupted": "Corrupted lessons", "": "Other arms"}
_DASH = decimal(float("nan"))


class Interval(NamedTuple):
    """One arm of the forest plot: its difference to the clone; places in percent."""

    arm: str
    difference: float
    x: float
    left: float
    right: float
    seeds: tuple[float, ...]
    measurable: bool
    p: str


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


class Audited(NamedTuple):
    """The audit of one model."""

    model: str
    advice: str
    rows: tuple[tuple[str, str], ...]
    """(what, number)."""


class Grid(NamedTuple):
    """A table of numbers, ready to be written down."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    """(arm, cells)."""


class Diagnosed(NamedTuple):
    """What training did to the arms of one model."""

    model: str
    styles: tuple[tuple[str, int], ...]
    """(arm, the number of its colour), for the legend."""
    undrawn: tuple[str, ...]
    """Arms that the plots have no colour left for."""
    lists: int | None
    numbers: Grid
    plots: tuple[Plot, ...]
    correlations: Grid | None
    weights: Grid | None


class Calibrated(NamedTuple):
    """How true one model's probabilities are."""

    model: str
    how: str
    numbers: Grid
    spots: tuple[Spot, ...]
    thresholds: tuple[tuple[str, str, str], ...]
    """(wanted precision, threshold, recall)."""


def models_of(arms: Iterable[str]) -> dict[str, list[str]]:
    """Model -> its arms; "" holds the arms of a model without a name and those that all models share."""
    arms = list(arms)
    # A model has both: "longer clone" and "labels refined" are arms of a model, no models.
    names = [a[: -len(_CLONE) - 1] for a in arms if a.endswith(f" {_CLONE}")]
    names = sorted((n for n in names if f"{n} {_REFINED}" in arms), key=len, reverse=True)
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
        clone = f"{model} {_CLONE}".strip()
        if clone not in table.arms:
            continue
        candidates = arms if model == "" else [*shared, *arms]
        tested = [c for c in (_tested(table, arm, clone) for arm in candidates) if c is not None]
        if tested:
            found.append(_forest(table, clone, tested, groups))
    return found


def audits(content: Any) -> list[Audited]:
    """The audits under `summary.json`'s "audit" (model -> what `Audit.to_json` gave)."""
    found = []
    for model, audited in _objects(content, "audit").items():
        rows = [(_spoken(key), _amount(key, value)) for key, value in audited.items() if is_number(value)]
        found.append(Audited(model, str(audited.get("advice") or ""), tuple(rows)))
    return [a for a in found if a.rows or a.advice]


def diagnoses(content: Mapping[str, Any]) -> list[Diagnosed]:
    """What `diagnosis.json` holds, model by model."""
    arms = _objects(content.get("arms"), "arms")
    return [_diagnosed(model, {arm: arms[arm] for arm in names}) for model, names in models_of(arms).items()]


def calibrations(content: Mapping[str, Any]) -> list[Calibrated]:
    """What `calibration.json` holds, model by model."""
    return [_calibrated(model, facts) for model, facts in _objects(content, "calibration").items()]


def _tested(table: Table, arm: str, other: str) -> Comparison | None:
    try:
        return table.between(arm, other)
    except InputError:
        return None


def _forest(table: Table, clone: str, tested: Sequence[Comparison], groups: Mapping[str, Any]) -> Forest:
    ends = [v for c in tested for v in (c.low, c.high, c.difference, *c.by_seed) if is_number(v)]
    axis = round_axis(min(0.0, *ends), max(0.0, *ends))
    grouped: dict[str, list[Interval]] = {title: [] for title in _GROUPS.values()}
    for c in tested:
        seeds = tuple(axis.at(d) for d in c.by_seed)
        places = axis.at(c.difference), axis.at(c.low), axis.at(c.high)
        interval = Interval(c.arm, c.difference, *places, seeds, c.measurable, p_value(c.p_holm))
        grouped[_GROUPS.get(str(groups.get(c.arm)), _GROUPS[""])].append(interval)
    shown = tuple((title, tuple(rows)) for title, rows in grouped.items() if rows)
    held = _held(table, clone, groups)
    concluded = table.concluded(held[0].arm, [c.against for c in held]) if held else None
    primary = table.measures[0]
    decisive = max(held, key=lambda c: table.arms[c.against][primary].mean) if held else None
    corrupted = _corrupted(clone, [c for c in tested if groups.get(c.arm) == "corrupted"])
    return Forest(clone, axis, axis.at(0.0), shown, concluded, decisive, corrupted)


def _held(table: Table, clone: str, groups: Mapping[str, Any]) -> list[Comparison]:
    """The refined arm of the clone's model against each of its controls that it was tested against."""
    model = clone[: -len(_CLONE)].strip()
    refined = f"{model} {_REFINED}".strip()
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


def _diagnosed(model: str, arms: Mapping[str, Mapping[str, Any]]) -> Diagnosed:
    first = [f"{model} {stage}".strip() for stage in (_REFINED, _CLONE)]
    ordered = sorted(arms, key=lambda arm: first.index(arm) if arm in first else len(first))
    styles = {arm: i for i, arm in enumerate(ordered[:MOST_SERIES])}
    numbers = ["greedy", "expected", "kl", "distinct_top", "agreement", "label_agreement"]
    titles = ("greedy", "expected", "KL", "distinct tops", "τ with teacher", "τ with labels")
    places = (3, 3, 3, 1, 3, 3)
    rows = tuple(
        (arm, tuple(_shown(found.get(key), n) for key, n in zip(numbers, places, strict=True)))
        for arm, found in arms.items()
    )
    best = {arm: _points(found.get("best_at")) for arm, found in arms.items()}
    entropy = {arm: _places(found.get("entropy_by_rank")) for arm, found in arms.items()}
    plots = (
        plot("Best of k sampled rankings", "k", best, styles, doubling=True),
        plot("Entropy by rank, in nats", "rank", entropy, styles, doubling=False),
    )
    drawn = {s.name for p in plots if p is not None for s in p.series}
    counts = {found.get("lists") for found in arms.values() if is_number(found.get("lists"))}
    return Diagnosed(
        model=model,
        styles=tuple((arm, style) for arm, style in styles.items() if arm in drawn),
        undrawn=tuple(arm for arm in ordered[MOST_SERIES:] if len(best[arm]) > 1 or len(entropy[arm]) > 1),
        lists=counts.pop() if len(counts) == 1 else None,
        numbers=Grid(titles, rows),
        plots=tuple(p for p in plots if p is not None),
        correlations=_correlations(arms),
        weights=_weights(arms),
    )


def _correlations(arms: Mapping[str, Mapping[str, Any]]) -> Grid | None:
    """The correlations of scores with what should not decide alone; None where no arm has any."""
    known = {arm: _mapping(found.get("correlations")) for arm, found in arms.items()}
    columns = tuple(dict.fromkeys(name for by_name in known.values() for name in by_name))
    rows = tuple((arm, tuple(_signed(v.get(name)) for name in columns)) for arm, v in known.items() if v)
    return Grid(columns, rows) if columns else None


def _weights(arms: Mapping[str, Mapping[str, Any]]) -> Grid | None:
    """The share of weights that changed by more than each tolerance; None where it was not counted."""
    known = {arm: _mapping(found.get("weights_changed")) for arm, found in arms.items()}
    shares = {arm: _mapping(found.get("tolerances")) for arm, found in known.items()}
    columns = tuple(dict.fromkeys(name for by_name in shares.values() for name in by_name))
    rows = tuple(
        (arm, (str(known[arm].get("dtype", _DASH)), *(_percent(by_name.get(name)) for name in columns)))
        for arm, by_name in shares.items()
        if by_name
    )
    return Grid(("stored as", *(f"> {name}" for name in columns)), rows) if columns else None


def _calibrated(model: str, facts: Mapping[str, Any]) -> Calibrated:
    kind = str(facts.get("kind", ""))
    formula = ""
    if is_number(facts.get("a")) and is_number(facts.get("b")):
        formula = (
            f" p = sigmoid({float(facts['a']):.3g} · score {'−' if facts['b'] < 0 else '+'} {abs(facts['b']):.3g})"  # noqa: RUF001
        )
    n, base = facts.get("n"), facts.get("base_rate")
    measured = f"measured on {n:,} candidates" if is_number(n) else "measured on candidates that were not counted"
    relevant = f", {_percent(base)} of them relevant" if is_number(base) else ""
    errors = tuple(
        (title, (_shown(facts.get(f"{key}_before"), 4), _shown(facts.get(key), 4)))
        for title, key in (("Expected calibration error", "ece"), ("Brier score", "brier"))
    )
    keys = ("predicted", "observed", "count")
    bins = [tuple(b[k] for k in keys) for b in _records(facts.get("bins")) if all(is_number(b.get(k)) for k in keys)]
    thresholds = tuple(
        (_percent(t.get("precision")), _shown(t.get("threshold")), _percent(t.get("recall")))
        for t in _records(facts.get("thresholds"))
    )
    how = f"{kind} fit{formula}, {measured}{relevant}"
    return Calibrated(model, how[:1].upper() + how[1:], Grid(("before", "after"), errors), spots(bins), thresholds)


def _objects(content: Any, what: str) -> dict[str, dict[str, Any]]:
    """The objects of an object; an error where it is something else."""
    if content is None:
        return {}
    if not isinstance(content, Mapping) or not all(isinstance(v, Mapping) for v in content.values()):
        raise InputError(f"{what} must be an object of objects, one for each arm or model")
    return {str(name): dict(value) for name, value in content.items()}


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _records(value: Any) -> list[dict[str, Any]]:
    return [dict(v) for v in value if isinstance(v, Mapping)] if isinstance(value, list) else []


def _points(value: Any) -> list[tuple[float, float]]:
    """{"1": a, "2": b} as points; keys that are no numbers are no points."""
    return [(float(k), float(v)) for k, v in _mapping(value).items() if str(k).isdecimal() and is_number(v)]


def _places(value: Any) -> list[tuple[float, float]]:
    """[a, b] as points that count from 1."""
    values = value if isinstance(value, list) else []
    return [(float(i), float(v)) for i, v in enumerate(values, start=1) if is_number(v)]


def _shown(value: Any, places: int = 3) -> str:
    return decimal(float(value), places) if is_number(value) else _DASH


def _signed(value: Any) -> str:
    return signed(float(value), 2) if is_number(value) else _DASH


def _percent(value: Any) -> str:
    """`12.3 %`; what is nearly all does not read as all."""
    if not is_number(value):
        return _DASH
    percent = 100 * float(value)
    return "> 99.9 %" if 99.9 < percent < 100 else f"{percent:.3g} %"


def _spoken(key: str) -> str:
    """`recall_ceiling` -> `Recall ceiling`."""
    return key.replace("_", " ").capitalize()


def _amount(key: str, value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else _shown(value)
