"""What the report says beyond its table and forests: what training did, calibration.

Each is made from a file of the run into records that the template writes down; where a value is absent or no finite
number, the page shows a dash.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from rerank.errors import InputError
from rerank.evaluation.wording import decimal, signed
from rerank.report.drawing import MOST_SERIES, Plot, Spot, is_number, plot, spots
from rerank.report.forests import CLONE, REFINED, models_of

_DASH = decimal(float("nan"))


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


def diagnoses(content: Mapping[str, Any]) -> list[Diagnosed]:
    """What `diagnosis.json` holds, model by model."""
    arms = objects(content.get("arms"), "arms")
    return [_diagnosed(model, {arm: arms[arm] for arm in names}) for model, names in models_of(arms).items()]


def calibrations(content: Mapping[str, Any]) -> list[Calibrated]:
    """What `calibration.json` holds, model by model."""
    return [_calibrated(model, facts) for model, facts in objects(content, "calibration").items()]


def _diagnosed(model: str, arms: Mapping[str, Mapping[str, Any]]) -> Diagnosed:
    first = [f"{model} {stage}".strip() for stage in (REFINED, CLONE)]
    ordered = sorted(arms, key=lambda arm: first.index(arm) if arm in first else len(first))
    styles = {arm: i for i, arm in enumerate(ordered[:MOST_SERIES])}
    numbers = ["greedy", "expected", "kl", "distinct_top", "agreement", "label_agreement"]
    titles = ("greedy", "expected", "KL", "distinct tops", "τ with teacher", "τ with labels")
    places = (3, 3, 3, 1, 3, 3)
    rows = tuple(
        (arm, tuple(shown(found.get(key), n) for key, n in zip(numbers, places, strict=True)))
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
        (title, (shown(facts.get(f"{key}_before"), 4), shown(facts.get(key), 4)))
        for title, key in (("Expected calibration error", "ece"), ("Brier score", "brier"))
    )
    keys = ("predicted", "observed", "count")
    bins = [tuple(b[k] for k in keys) for b in _records(facts.get("bins")) if all(is_number(b.get(k)) for k in keys)]
    thresholds = tuple(
        (_percent(t.get("precision")), shown(t.get("threshold")), _percent(t.get("recall")))
        for t in _records(facts.get("thresholds"))
    )
    how = f"{kind} fit{formula}, {measured}{relevant}"
    return Calibrated(model, how[:1].upper() + how[1:], Grid(("before", "after"), errors), spots(bins), thresholds)


def objects(content: Any, what: str) -> dict[str, dict[str, Any]]:
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


def shown(value: Any, places: int = 3) -> str:
    """The number as the page prints it; a dash where it is none."""
    return decimal(float(value), places) if is_number(value) else _DASH


def _signed(value: Any) -> str:
    return signed(float(value), 2) if is_number(value) else _DASH


def _percent(value: Any) -> str:
    """`12.3 %`; what is nearly all does not read as all."""
    if not is_number(value):
        return _DASH
    percent = 100 * float(value)
    return "> 99.9 %" if 99.9 < percent < 100 else f"{percent:.3g} %"
