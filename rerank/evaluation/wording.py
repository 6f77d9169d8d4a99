"""What a comparison says: numbers as statistics prints them, and the sentences made of them.

A sentence claims "better" or "worse" only of a measurable difference (see `tables`); of all others it says why not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rerank.evaluation.across import Across, OverSets
    from rerank.evaluation.comparison import Comparison

LEVEL = 0.05
"""The corrected p-value below which a difference is called one."""


class Said(NamedTuple):
    """What one comparison says."""

    claim: str
    evidence: str
    """Numbers, to be set in brackets; empty where no test was possible."""

    def __str__(self) -> str:
        return f"{self.claim} ({self.evidence})" if self.evidence else self.claim


def sentence(c: Comparison, queries: int, comparisons: int = 1) -> str:
    """What one comparison says, in words; `comparisons` is how many its p-value was corrected for."""
    return str(said(c, queries, comparisons))


def said(c: Comparison, queries: int, comparisons: int = 1, where: str = "") -> Said:
    """The claim of `sentence` and its evidence, apart; `where` (" over 5 sets") follows the measure."""
    if math.isnan(c.p_holm):
        difference = f"their difference is {signed(c.difference)} {c.measure}"
        return Said(f"{c.arm} and {c.against} cannot be tested on {queries} judged query; {difference}", "")
    if not c.measurable:
        return _no_difference(c, comparisons, where)
    low, high = (c.low, c.high) if c.difference > 0 else (-c.high, -c.low)
    word = "better" if c.difference > 0 else "worse"
    seeds = f" in {len(c.by_seed)} of {len(c.by_seed)} seeds" if c.by_seed else ""
    return Said(
        f"{c.arm} is {word} than {c.against} by {decimal(abs(c.difference))} {c.measure}{where}{seeds}",
        f"95 % interval {decimal(low)} to {decimal(high)}, p {_relation(c.p_holm)} after Holm",
    )


def said_best(a: Across) -> Said:
    """Which arm has the highest mean over the sets, and against which of the others that is more than luck."""
    measure, best = a.measures[0], a.best or ""
    where = _where(a.counted, len(a.tables), len(a.absent), "all")
    # The same to nine places is the same: rounding names no winner.
    top = round(a.means[best][measure].mean, 9)
    tops = [arm for arm in a.means if round(a.means[arm][measure].mean, 9) == top]
    has = "has" if len(tops) == 1 else "have"
    claim = f"{_listed(tops)} {has} the highest {measure}{where}: {decimal(a.means[best][measure].mean)}"
    ours = [c if c.arm == best else c.reversed() for c in a.comparisons if c.measure == measure]
    tested = {c.against: c for c in ours if c.arm == best}
    better = [other for other, c in tested.items() if c.measurable and c.difference > 0]
    level = [other for other, c in tested.items() if other not in better and not math.isnan(c.p_holm)]
    untested = [arm for arm in a.means if arm not in (best, *better, *level)]
    told = (("measurably better than", better), ("not measurably better than", level), ("not tested against", untested))
    return Said(claim, "; ".join(f"{what} {_listed(names)}" for what, names in told if names))


def said_absent(absent: Mapping[str, str]) -> list[Said]:
    """What is said of sets (-> why) that were asked for and have no numbers."""
    return [Said(f"{name} is missing: {' '.join(why.split())}", "") for name, why in absent.items()]


def said_over_sets(c: Comparison, over: OverSets, sets: int, comparisons: int = 1, absent: int = 0) -> Said:
    """What a comparison of means over sets says, of `sets` that there are and `absent` more that were asked for."""
    n = len(over.sets)
    where = _where(over.sets, sets, absent, "both")
    if math.isnan(c.p_holm):
        difference = f"their difference{where} is {signed(c.difference)} {c.measure}"
        return Said(f"{c.arm} and {c.against} cannot be tested: a set has one judged query alone; {difference}", "")
    claim, evidence = said(c, 0, comparisons, where)
    if n > 1:
        evidence += f"; {over.won} set{'' if over.won == 1 else 's'} won, {over.level} level, {over.lost} lost"
    if not math.isnan(over.signed_rank_holm):
        of = "sets" if over.groups == n else "groups of sets"
        evidence += f"; signed ranks of {over.groups} {of}, p {_relation(over.signed_rank_holm)}"
    return Said(claim, evidence)


def said_within_set(c: Comparison, own: Sequence[tuple[str, Comparison]]) -> list[Said]:
    """The sets (name, comparison) that do not say what the mean over them says: other directions, then level ones."""
    differing = [
        (name, d) for name, d in own if d.measurable and not (c.measurable and d.difference * c.difference > 0)
    ]
    sentences = []
    for name, d in sorted(differing, key=lambda item: item[1].difference, reverse=True):
        claim, evidence = said(d, 0)
        sentences.append(Said(f"on {name}, {claim}", evidence))
    level = [name for name, d in own if not d.measurable]
    if c.measurable and level:
        sentences.append(Said(f"on {_listed(level)}, {c.arm} and {c.against} do not differ measurably", ""))
    return sentences


def conclusion(refined: str, tested: Sequence[Comparison], means: Mapping[str, float], queries: int) -> Said:
    """What follows for `refined` against all its controls: `tested` holds refined minus each control.

    Being worse than some is said before anything else; then being level with some, the best of them by name.
    """
    if any(math.isnan(c.p_holm) for c in tested):
        return Said(f"{refined} cannot be tested against its controls on {queries} judged query", "")
    worse = [c for c in tested if c.measurable and c.difference < 0]
    better = [c for c in tested if c.measurable and c.difference > 0]
    level = [c for c in tested if not c.measurable]
    than = f"better than {_listed([c.against for c in better])}" if better else ""
    if worse:
        closest = max(level, key=lambda c: means[c.against]).against if level else ""
        parts = [f"worse than {_margins(worse)}", f"level with {closest}" if level else "", than]
        return Said(f"{refined} is {'; '.join(p for p in parts if p)}", "")
    if level:
        best = max(level, key=lambda c: means[c.against])
        is_best = means[best.against] == max(means[c.against] for c in tested)
        rank = f", the best of its {len(tested)} controls" if is_best and len(tested) > 1 else ""
        others = [c.against for c in level if c is not best]
        parts = [f"level with {best.against}{rank}", f"with {_listed(others)}" if others else "", than]
        beside = " (uncorrected)" if best.low > 0 or best.high < 0 else ""  # else it reads as a contradiction
        interval = f"95 % interval{beside} {signed(best.low)} to {signed(best.high)}"
        evidence = f"{signed(best.difference)} {best.measure}, {interval}, p {_relation(best.p_holm)} after Holm"
        return Said(f"{refined} is {'; '.join(p for p in parts if p)}", evidence)
    if len(tested) == 1:
        return Said(f"{refined} is better than its control {_margins(better)}", "")
    nearest = min(better, key=lambda c: c.difference)
    return Said(
        f"{refined} is better than each of its {len(tested)} controls; the nearest is {_margins([nearest])}", ""
    )


def decimal(value: float, places: int = 3) -> str:
    """The number without a leading zero, as statistics prints values that live between 0 and 1: `.431`, `−.012`."""
    if not math.isfinite(value):
        return "–"  # noqa: RUF001 - an en dash stands for "no value"
    text = f"{abs(value):.{places}f}"
    minus = "−" if value < 0 and float(text) else ""  # noqa: RUF001 - the real minus sign
    return minus + (text[1:] if text.startswith("0.") else text)


def signed(value: float, places: int = 3) -> str:
    """The number with its sign: `+.031`, `−.012`, `.000`."""
    text = decimal(value, places)
    return f"+{text}" if value > 0 and float(text) else text


def p_value(p: float) -> str:
    """A p-value as one prints it: `.031`, `< .001`, or an en dash where no test was possible."""
    return "< .001" if p < 0.001 else decimal(p)


def _where(over: Sequence[str], sets: int, absent: int, having: str) -> str:
    """Over which sets a mean is, of `sets` with numbers and `absent` without; `having` says of which arms."""
    n, asked = len(over), sets + absent
    if sets == 1:
        return f" on {over[0]}" + (f" alone, of {asked} sets" if absent else "")
    if n < sets:
        return f" over the {n} of {asked} sets that {'have both' if having == 'both' else 'all have'}"
    return f" over {n} of {asked} sets" if absent else f" over {n} sets"


def _no_difference(c: Comparison, comparisons: int, where: str) -> Said:
    """What is said of a difference that is not measurable; an interval without 0 must not read as a contradiction."""
    claim = f"{c.arm} and {c.against} do not differ measurably in {c.measure}{where}"
    place, p = f"{decimal(c.low)} to {decimal(c.high)}", f"p {_relation(c.p_holm)} after Holm"
    won = f", {c.arm} above in {c.seeds_won[0]} of {c.seeds_won[1]} seeds" if c.seeds_won else ""
    if not (c.low > 0 or c.high < 0):
        return Said(claim, f"{decimal(c.difference)}, 95 % interval {place}, {p}{won}")
    evidence = f"{decimal(c.difference)}, 95 % interval (uncorrected) {place}, {p}{won}"
    if c.p_holm < LEVEL:
        return Said(f"{claim}: their seeds disagree about the direction", evidence)
    if c.p < LEVEL and comparisons > 1:
        return Said(f"{claim} after correction for {comparisons} comparisons", evidence)
    over = " over queries and seeds" if c.by_seed else ""
    return Said(f"{claim}: the test{over} finds no difference", evidence)


def _margins(compared: Sequence[Comparison]) -> str:
    """`labels by .020 nDCG@10 and lambda by .031`."""
    unit = [f" {compared[0].measure}", *[""] * (len(compared) - 1)]
    return _listed([f"{c.against} by {decimal(abs(c.difference))}{u}" for c, u in zip(compared, unit, strict=True)])


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _relation(p: float) -> str:
    return p_value(p) if p < 0.001 else f"= {decimal(p)}"
