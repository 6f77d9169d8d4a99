"""The held-out lists that weights are selected on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from rerank import plackett_luce
from rerank.engine import processes
from rerank.lists import batch_of
from rerank.models.language.generative import AnyPolicy
from rerank.training.paid import paid
from rerank.types import CandidateList, Reward

AT_ONCE = 16
"""Lists that are scored together."""


class Dev(NamedTuple):
    """Held-out lists and the reward that selects on them."""

    lists: Sequence[CandidateList]
    reward: Reward
    name: str
    """How the measure is spelled in logs, e.g. `nDCG@10`."""

    def measure(self, policy: AnyPolicy) -> dict[str, float]:
        """Mean reward of the most likely ranking, for the served view and, where it differs, `"plain"`."""
        policy.eval()
        found = [pair for told in processes.by_all(lambda: self._measured(policy)) for pair in told]
        totals: dict[str, float] = {}
        for _, paid_here in sorted(found, key=lambda pair: pair[0]):  # one order, whoever measured what
            for view, total in paid_here.items():
                totals[view] = totals.get(view, 0.0) + total
        return {view: total / len(self.lists) for view, total in totals.items()}

    def _measured(self, policy: AnyPolicy) -> list[tuple[int, dict[str, float]]]:
        """(first list, sum of rewards by view) of each of this process's groups of lists."""
        found = []
        with torch.inference_mode():
            for places in processes.own_groups(len(self.lists), AT_ONCE):
                group = [self.lists[i] for i in places]
                batch = batch_of(group)
                totals = {}
                for view, scores in zip(("served", "plain"), policy.all_views(group).cpu(), strict=False):
                    rankings = plackett_luce.best(scores, batch.mask)[:, None, :]
                    totals[view] = float(paid(self.reward, rankings, batch).sum())
                found.append((places.start, totals))
        return found
