r"""Policy gradients from sampled rankings: for rewards without a known expectation, and to measure the exact one by.

Every estimator is `(scores, reward, lists, samples, generator) -> Estimate` and says which rewards it takes:

    any reward      reinforce        R_i
                    rloo             R_i - mean of the others'; unbiased. Kool et al. (2019)
                    dr_grpo          R_i - mean; rloo times (S - 1) / S. Liu et al. (2025)
                    grpo             (R_i - mean) / (std + 1e-4); biased. Shao et al. (2024)
    sum of places   reward_to_go     each place is credited with the reward from there on, minus the others' mean
    additive        pl_rank          what could have been placed counts too (`objective.additive`)
                    pl_rank_rb
                    stochastic_rank

A sum of places has `.terms`; it is additive if no term has survival or counts. Only the places that the reward looks at
are drawn (`.cutoff`, or the longest weight of its terms). Gradients are in closed form (`objective.draws`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from rerank.errors import InputError
from rerank.lists import ListBatch
from rerank.objective.additive import pl_rank, pl_rank_rb, stochastic_rank
from rerank.objective.draws import (
    Estimate,
    centred,
    checked,
    drawn,
    earned_by_place,
    estimate_of,
    leave_one_out,
    name_of,
    places_of,
    score_function,
    terms_of,
    to_go_of,
)
from rerank.types import Reward

__all__ = [
    "ESTIMATORS",
    "Estimate",
    "Estimator",
    "dr_grpo",
    "grpo",
    "leave_one_out",
    "list_clip",
    "pl_rank",
    "pl_rank_rb",
    "reinforce",
    "reinforced",
    "reward_to_go",
    "rloo",
    "stochastic_rank",
]

Estimator: TypeAlias = Callable[[Tensor, Reward, ListBatch, int, torch.Generator | None], Estimate]


# ---------------------------------------------------------------------------------------------------------- any reward
def reinforce(
    scores: Tensor, reward: Reward, lists: ListBatch, samples: int, generator: torch.Generator | None = None
) -> Estimate:
    """The plain score-function estimate, for any reward: unbiased, and the noisiest of all."""
    return _black_box(scores, reward, lists, samples, generator, torch.clone)


def rloo(
    scores: Tensor, reward: Reward, lists: ListBatch, samples: int, generator: torch.Generator | None = None
) -> Estimate:
    """The leave-one-out estimate, for any reward; unbiased."""
    return _black_box(scores, reward, lists, samples, generator, leave_one_out)


def dr_grpo(
    scores: Tensor, reward: Reward, lists: ListBatch, samples: int, generator: torch.Generator | None = None
) -> Estimate:
    """The estimate with rewards minus their mean, for any reward: (samples - 1) / samples of `rloo`."""
    return _black_box(scores, reward, lists, samples, generator, centred)


def grpo(
    scores: Tensor, reward: Reward, lists: ListBatch, samples: int, generator: torch.Generator | None = None
) -> Estimate:
    """The estimate with rewards standardised within each list, for any reward. Biased, and dangerous.

    One lucky ranking of 16 has advantage 3.75 however little it earned, so lists on which the reward is rare get a
    gradient 10 to 60 times too long. Prefer rloo, or whatever stands below it in the table.
    """
    return _black_box(scores, reward, lists, samples, generator, _standardised)


def _standardised(rewards: Tensor) -> Tensor:
    return centred(rewards) / (rewards.std(1, keepdim=True) + 1e-4)


def _black_box(
    scores: Tensor,
    reward: Reward,
    lists: ListBatch,
    samples: int,
    generator: torch.Generator | None,
    advantages: Callable[[Tensor], Tensor],
) -> Estimate:
    if (nothing := checked(scores, lists, samples)) is not None:
        return nothing
    with torch.no_grad():
        draw = drawn(scores, lists.mask, samples, generator, _cutoff(reward, lists))
        rewards = _rewards(reward, draw.rankings, lists).to(draw.chance)
        coefficients = advantages(rewards)[..., None].expand_as(draw.chance)
        return estimate_of(rewards.mean(-1), score_function(draw, coefficients), lists.mask)


def _rewards(reward: Reward, rankings: Tensor, lists: ListBatch) -> Tensor:
    found: Any = reward(rankings, lists)
    shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
    if shape != list(rankings.shape[:2]):
        raise InputError(f"rewards of rankings {list(rankings.shape)} must be {list(rankings.shape[:2])}, not {shape}")
    if not bool(found.isfinite().all()):
        row = int((~found.isfinite()).any(-1).nonzero()[0])
        where = f"query {lists.lists[row].query_id!r}" if lists.lists else f"list {row}"
        raise InputError(f"{name_of(reward)} of a ranking of {where} is not a finite number: mend the reward")
    return found


def _cutoff(reward: Reward, lists: ListBatch) -> int:
    """How many places the reward looks at: no others need be drawn."""
    declared = getattr(reward, "cutoff", None)
    if declared is None and (terms := getattr(reward, "terms", None)) is not None:
        return places_of(terms(lists), lists.mask)
    width = lists.mask.shape[1]
    return width if declared is None else max(1, min(int(declared), width))


# ---------------------------------------------------------------------------------------------------- sums over places
def reward_to_go(
    scores: Tensor, reward: Reward, lists: ListBatch, samples: int, generator: torch.Generator | None = None
) -> Estimate:
    """The leave-one-out estimate in which a place is credited with the reward from there on; needs `reward.terms`."""
    if (nothing := checked(scores, lists, samples)) is not None:
        return nothing
    terms = terms_of(reward, lists, "reward_to_go")
    with torch.no_grad():
        draw = drawn(scores, lists.mask, samples, generator, places_of(terms, lists.mask))
        to_go = to_go_of(earned_by_place(terms, draw.rankings, lists.mask, draw.chance.dtype))
        return estimate_of(to_go[..., 0].mean(-1), score_function(draw, leave_one_out(to_go)), lists.mask)


# ------------------------------------------------------------------------------------------- beside the estimators
def reinforced(rewards: Tensor, log_probs: Tensor) -> Tensor:
    """Surrogate loss [B] whose gradient is minus the leave-one-out policy gradient; rewards and log_probs are [B, S].

    For policies that are more than a score a candidate, such as models that write a permutation.
    """
    return -(leave_one_out(rewards).detach() * log_probs).mean(-1)


def list_clip(gradient: Tensor, mask: Tensor, most: float = 5.0) -> Tensor:
    """Gradient [B, N] in which no list's norm is more than `most` times the median of the lists that have one.

    A batch with fewer than three such lists is left as it is: it has no median to speak of.
    """
    norm = gradient.masked_fill(~mask, 0.0).norm(dim=-1, keepdim=True)
    if norm.numel() < 3:
        return gradient
    moving = norm > 0
    limit = most * norm.masked_fill(~moving, torch.nan).nanquantile(0.5)
    factor = torch.where(moving, limit / norm, torch.ones_like(norm)).clamp(max=1.0)
    return gradient * torch.where(moving.sum() < 3, torch.ones_like(factor), factor)


ESTIMATORS: dict[str, Estimator] = {
    "reinforce": reinforce,
    "rloo": rloo,
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "reward_to_go": reward_to_go,
    "pl_rank": pl_rank,
    "pl_rank_rb": pl_rank_rb,
    "stochastic_rank": stochastic_rank,
}
"""The estimators a recipe may name."""
