"""What keeps a stage near where it began, and both stages share: the reference, its temperature, the anchor, entropy.

Scores are divided by a temperature before anything probabilistic is asked of them: a trained policy is nearly
deterministic, and the KL or the entropy of its bare scores would speak of the first document alone.

The reference is the policy before the first step. It may be moved up to the present policy every so many steps
(`reset_reference`), and the temperature may follow the policy so that it keeps its entropy (`keep_entropy`); what has
moved is part of a checkpoint.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from rerank import plackett_luce
from rerank.lists import ListBatch, mask_of
from rerank.models.policy import ScorePolicy
from rerank.objective.anchor import anchored, entropy_floor
from rerank.objective.calibration import cross_entropy
from rerank.randomness import generator
from rerank.training.loop import Context
from rerank.training.schedule import Schedule
from rerank.training.step import Objective
from rerank.types import CandidateList

ENTROPY = 1.25
"""Nats a rank that the automatic temperature leaves a policy."""
SAMPLE = 32
"""Lists that the automatic temperature is found on."""
FEW, ENOUGH = 50, 500
"""Judged lists: at most FEW get the full anchor, ENOUGH and more none."""


def anchor_strength(anchor: float | str, n_lists: int) -> float:
    """The weight of the anchor: the number given, or for "auto" FEW / n_lists, at most 1 and 0 from ENOUGH lists on.

    With some fifty judged lists the anchor decides more than the loss; with many hundred it only holds learning back
    (docs/results.md).
    """
    if anchor != "auto":
        return float(anchor)
    return 0.0 if n_lists >= ENOUGH else min(1.0, FEW / max(1, n_lists))


@final
class Anchoring:
    """Wraps a stage's objective: adds anchor, entropy floor and calibration term; owns reference and temperature."""

    def __init__(
        self,
        policy: ScorePolicy,
        lists: Sequence[CandidateList],
        schedule: Schedule,
        context: Context,
        tempered: bool = False,
        entropy: float = ENTROPY,
        temperature: float | None = None,
    ) -> None:
        """`tempered`: the objective itself divides by `temperatures`; `temperature` fixes them."""
        self.policy, self.schedule, self.entropy, self.fixed = policy, schedule, entropy, temperature
        self.weight = anchor_strength(schedule.anchor, len(lists))
        order = torch.randperm(len(lists), generator=generator(context.seed, "temperature")).tolist()[:SAMPLE]
        self.sample = [lists[i].subset(range(min(schedule.list_size, len(lists[i])))) for i in order]
        self.reference = copy.deepcopy(policy).eval().requires_grad_(False) if self.weight else None
        self.tempered = tempered or bool(self.weight or schedule.entropy_floor)
        self.temperatures = self._temperatures() if self.tempered else [1.0, 1.0]
        self.first_temperature = self.temperatures[0]
        """The served view's at the start of the stage."""
        self._last: tuple[Sequence[CandidateList], Tensor] | None = None

    def _temperatures(self) -> list[float]:
        """One temperature a view, as the policy stands."""
        if self.fixed is not None:
            return [self.fixed] * 2
        self.policy.eval()
        with torch.no_grad():
            views = self.policy.all_views(self.sample).cpu()
        mask = mask_of(self.sample)
        return [automatic_temperature(scores, mask, self.entropy) for scores in views]

    def around(self, objective: Objective) -> Objective:
        """`objective` with the terms that this stage was asked for."""
        schedule = self.schedule
        if not (self.weight or schedule.entropy_floor or schedule.calibration):
            return objective

        def regularised(scores: Tensor, batch: ListBatch, view: int, key: int) -> tuple[Tensor, dict[str, float]]:
            losses, facts = objective(scores, batch, view, key)
            tempered = scores / self.temperatures[view]
            if self.weight:
                reference = self._views(batch.lists)[view] / self.temperatures[view]
                with torch.no_grad():
                    facts["kl"] = float(plackett_luce.top1_kl(tempered, reference, batch.mask).mean())
                losses = anchored(losses, tempered, reference, batch.mask, self.weight)
            if schedule.entropy_floor:
                draw = generator(key, "entropy", device=scores.device)
                rankings = plackett_luce.sample(tempered, batch.mask, 4, draw, cutoff=10)
                losses = losses + entropy_floor(tempered, batch.mask, rankings, schedule.entropy_floor, 10)
            if schedule.calibration:
                # The labels of a list that nobody judged are 0 and say nothing about its candidates.
                judged = torch.tensor([c.labels is not None for c in batch.lists], device=losses.device)
                losses = losses + schedule.calibration * judged * cross_entropy(scores, batch.labels, batch.mask)
            return losses, facts

        return regularised

    def _views(self, lists: Sequence[CandidateList]) -> Tensor:
        """The reference's scores [V, B, N].

        Only the last answer is kept: float sums differ with a batch's company, so scores kept from earlier steps
        would depend on which steps there were, and a resumed run would not end with the same bits.
        """
        assert self.reference is not None  # asked only where the anchor has a weight
        if self._last is None or self._last[0] is not lists:
            with torch.no_grad():
                self._last = (lists, self.reference.all_views(lists))
        return self._last[1]

    # ------------------------------------------------------------------------------- what moves as the stage goes on
    def after_step(self, step: int, evaluated: bool) -> None:
        """Move the reference or the temperature up to the policy where it is time."""
        every = self.schedule.reset_reference
        if every and step % every == 0 and self.reference is not None:
            self.reference.load_state_dict(self.policy.state_dict())
        if evaluated and self.tempered and self.schedule.keep_entropy:
            self.temperatures[:] = self._temperatures()

    def tensors(self) -> dict[str, Tensor]:
        """What a policy as it was handed to the stage does not tell, for a checkpoint."""
        known = {"temperatures": self.temperatures, "first_temperature": self.first_temperature}
        moved = {name: torch.tensor(value, dtype=torch.float64) for name, value in known.items()}
        for name, tensor in (self.reference.state_dict() if self.reference is not None else {}).items():
            # The first-stage weights are fitted before the reference is taken, and a resumed stage does not fit them.
            if self.schedule.reset_reference or name.startswith("first_stage."):
                moved[f"reference.{name}"] = tensor
        return moved

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what `tensors` gave."""
        self.temperatures[:] = tensors["temperatures"].tolist()
        self.first_temperature = float(tensors.get("first_temperature", tensors["temperatures"][0]))
        kept = {name.removeprefix("reference."): t for name, t in tensors.items() if name.startswith("reference.")}
        if kept and self.reference is not None:
            self.reference.load_state_dict(kept, strict=False)


def automatic_temperature(scores: Tensor, mask: Tensor, entropy: float, cutoff: int = 10) -> float:
    """The temperature at which the policy's mean entropy over the first `cutoff` ranks is `entropy` nats.

    Bisection on a logarithmic scale between 0.01 and 100. Where the wish is more than the lists allow (short lists),
    90 % of the greatest possible entropy is aimed at.
    """
    lists = mask.sum(-1) > 1
    scores, mask = scores[lists].double().detach(), mask[lists]

    def mean_entropy(temperature: float) -> float:
        draws = plackett_luce.sample(scores / temperature, mask, 8, generator("temperature"))
        return float(plackett_luce.entropy_by_rank(scores / temperature, mask, draws, cutoff).mean())

    spread = scores.masked_fill(~mask, -torch.inf).amax(-1) - scores.masked_fill(~mask, torch.inf).amin(-1)
    if not bool((spread > 0).any()):
        return 1.0
    wanted = min(entropy, 0.9 * mean_entropy(1e6))
    low, high = 0.01, 100.0
    for _ in range(30):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if mean_entropy(middle) < wanted else (low, middle)
    return (low * high) ** 0.5
