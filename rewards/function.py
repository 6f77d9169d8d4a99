"""Any Python function as a reward.

    def short_first(doc_ids, candidates):            # ranked ids, best first; the candidate list
        return 1.0 if len(candidates.texts[candidates.doc_ids.index(doc_ids[0])]) < 200 else 0.0

Its expectation is not known in closed form, so training samples rankings (RLOO).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from .settings import check_settings


class RewardError(ValueError):
    """A reward function raised, or returned something that is not a finite number."""


@final
@dataclass(frozen=True)
class FunctionReward:
    """`function(ranked doc ids, candidate list) -> float`; anything but a finite number is a `RewardError`."""

    function: Callable[[tuple[str, ...], Any], float]
    name: str = "function"
    cutoff: int | None = 10
    """How many ranked ids the function sees; None for all."""

    def __post_init__(self) -> None:
        if self.cutoff is not None:
            check_settings(f"the reward {self.name!r}", cutoff=self.cutoff)

    def __call__(self, rankings: Tensor, lists: Any) -> Tensor:
        """Rewards [B, S] of rankings [B, S, R] for lists that carry their candidate lists in `.lists`."""
        out = torch.zeros(rankings.shape[:2], device=rankings.device)
        for b, candidates in enumerate(lists.lists):
            depth = len(candidates) if self.cutoff is None else min(self.cutoff, len(candidates))
            for i, ranking in enumerate(rankings[b, :, :depth].tolist()):
                # A malformed ranking may repeat a candidate; it counts once, at its first place.
                doc_ids = tuple(dict.fromkeys(candidates.doc_ids[j] for j in ranking))
                out[b, i] = self._value(doc_ids, candidates)
        return out

    def _value(self, doc_ids: tuple[str, ...], candidates: Any) -> float:
        """The number that the function returned for one ranking."""
        where = f"for query {candidates.query_id!r}"
        try:
            value = self.function(doc_ids, candidates)
        except Exception as error:
            problem = f"the reward {self.name!r} raised {type(error).__name__}: {error} {where}"
            raise RewardError(f"{problem}; it is called as function(doc_ids, candidates)") from error
        needed = "it must return a finite number"
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # RuntimeError: a tensor of several
            raise RewardError(f"the reward {self.name!r} returned {_shown(value)} {where}; {needed}") from error
        # Rewards are float32; a larger number would become infinite there.
        if not math.isfinite(number) or abs(number) > torch.finfo(torch.float32).max:
            raise RewardError(f"the reward {self.name!r} returned {_shown(value)} {where}; {needed}")
        return number


def _shown(value: Any) -> str:
    """`repr` of a value, cut to a line; its type where it has none (an integer of thousands of digits)."""
    try:
        return f"{value!r:.80}"
    except Exception:
        return f"a value of type {type(value).__name__}"
