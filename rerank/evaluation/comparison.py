"""The records of a table: the mean of an arm with its interval, and the difference of two arms with its test."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, final

from rerank.evaluation.wording import LEVEL

EQUAL = 1e-9
"""Differences below this are rounding: the query is a tie."""


class Cell(NamedTuple):
    """The mean of one measure for one arm, with its bootstrap interval over queries."""

    mean: float
    low: float
    high: float
    spread: float = math.nan
    """Standard deviation, over the seeds, of the arm's mean; NaN for one seed."""


@final
@dataclass(frozen=True)
class Comparison:
    """`arm` minus `against` on one measure, over the same queries."""

    arm: str
    against: str
    measure: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    wins: int
    losses: int
    ties: int
    effect: float
    """Cohen's d_z."""
    by_seed: tuple[float, ...] = ()
    """The mean difference in each seed; empty where both arms have one run."""

    @property
    def measurable(self) -> bool:
        """Whether the difference is called one: corrected p below .05, an interval without 0, seeds of one mind."""
        return self.p_holm < LEVEL and (self.low > 0 or self.high < 0) and self.seeds_agree

    def reversed(self) -> Comparison:
        """The same comparison as `against` minus `arm`."""
        return replace(
            self,
            arm=self.against,
            against=self.arm,
            difference=-self.difference,
            low=-self.high,
            high=-self.low,
            wins=self.losses,
            losses=self.wins,
            effect=-self.effect,
            by_seed=tuple(-d for d in self.by_seed),
        )

    @property
    def seeds_agree(self) -> bool:
        """Whether every seed has the direction of the difference (True of one seed)."""
        direction = math.copysign(1.0, self.difference)
        return all(difference * direction > EQUAL for difference in self.by_seed)

    @property
    def seeds_won(self) -> tuple[int, int] | None:
        """(seeds in which `arm` is above, seeds); None where both arms have one run."""
        return (sum(d > EQUAL for d in self.by_seed), len(self.by_seed)) if self.by_seed else None

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary that `from_json` reads; numbers that are not finite become None."""
        # How many seeds were won follows from `by_seed`; it is written for readers of the file.
        won = list(self.seeds_won) if self.seeds_won else None
        return {**{k: finite(v) for k, v in asdict(self).items()}, "by_seed": list(self.by_seed), "seeds_won": won}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Comparison:
        """The comparison that `to_json` wrote."""
        values: dict[str, Any] = {k: math.nan if v is None else v for k, v in data.items() if k != "seeds_won"}
        return cls(**{**values, "by_seed": tuple(values.get("by_seed", ()))})


def cell_json(cell: Cell, test: Comparison | None) -> dict[str, Any]:
    """A cell as a plain dictionary, beside it the p-values of the first test that its arm was the subject of."""
    return {
        "mean": finite(cell.mean),
        "interval": [finite(cell.low), finite(cell.high)],
        "spread": finite(cell.spread),
        "p": finite(test.p) if test else None,
        "p_holm": finite(test.p_holm) if test else None,
        "against": test.against if test else None,
    }


def cell_from_json(data: Mapping[str, Any]) -> Cell:
    """The cell that `cell_json` wrote."""
    low, high = data["interval"]
    return Cell(number(data["mean"]), number(low), number(high), number(data.get("spread")))


def finite(value: Any) -> Any:
    """The value as JSON has it: None for a number that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def number(value: float | None) -> float:
    """The number that `finite` wrote: NaN for None."""
    return math.nan if value is None else float(value)
