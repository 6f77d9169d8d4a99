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


@final
@dataclass(frozen=True)
class FunctionReward:
    """`function(ranked doc ids, candidate list) -> float`; a value that is not a finite number is an error."""

    function: Callable[[tuple[str, ...], Any], float]
    name: str = "function"
    cutoff: int | None = 10
    """How many ranked ids the function sees; None for all."""

    def __call__(self, rankings: Tensor, lists: Any) -> Tensor:
        """Rewards [B, S] of rankings [B, S, R] for lists that carry their candidate lists in `.lists`."""
        out = torch.zeros(rankings.shape[:2], device=rankings.device)
        for b, candidates in enumerate(lists.lists):
            depth = len(candidates) if self.cutoff is None else min(self.cutoff, len(candidates))
            for i, ranking in enumerate(rankings[b, :, :depth].tolist()):
                # A malformed ranking may repeat a candidate; it counts once, at its first place.
                doc_ids = tuple(dict.fromkeys(candidates.doc_ids[j] for j in ranking))
                out[b, i] = self._checked(self.function(doc_ids, candidates), candidates.query_id)
        return out

    def _checked(self, value: Any, query_id: str) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(
                f"the reward {self.name!r} returned {value!r} for query {query_id!r}; it must return a finite number"
            )
        return number
