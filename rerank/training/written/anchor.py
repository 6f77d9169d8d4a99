"""The policy as it was before a stage, for models that write their rankings: what its options were worth then."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from rerank.engine.batching import score_items
from rerank.models.language.generative import GenerativePolicy
from rerank.models.language.permutations import Written


@final
class WrittenAnchor:
    """The policy as it was before the stage, and how much it weighs; moves where it is told to."""

    def __init__(self, policy: GenerativePolicy, weight: float, every: int) -> None:
        self.policy, self.weight, self.every = policy, weight, every
        self.reference = copy.deepcopy(policy).eval().requires_grad_(False) if weight else None

    @torch.no_grad()
    def log_probs(self, items: Sequence[Written], budget: int) -> list[Tensor]:
        """The reference's log-probabilities of the options of each answer."""
        assert self.reference is not None  # asked only where it has a weight
        scorer = self.reference.scorer
        return list(score_items(scorer, items, budget).to(scorer.device).split([item.width for item in items]))

    def after_step(self, step: int, evaluated: bool) -> None:
        """Move the reference up to the policy where it is time."""
        if self.every and step % self.every == 0 and self.reference is not None:
            self.reference.load_state_dict(self.policy.state_dict())

    def tensors(self) -> dict[str, Tensor]:
        """The reference, where it has moved from what the stage was handed."""
        return dict(self.reference.state_dict()) if self.every and self.reference is not None else {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what `tensors` gave."""
        if tensors and self.reference is not None:
            self.reference.load_state_dict(tensors)
