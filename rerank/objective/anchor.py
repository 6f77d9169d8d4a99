"""What keeps the policy from going too far: nearness to its clone, and choices that stay open.

KL between the distributions over who is ranked first is exact, deterministic and costs a softmax; it is the
default anchor. "ranking" is the KL of the first K places, from sampled rankings, a place: it also holds what comes
after the first. Both are estimates that may be differentiated (`plackett_luce` on those that may not).

The expected metric is greatest for a policy without any doubt, and such a policy has no gradient: the entropy floor
pays for keeping some.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from rerank.errors import InputError
from rerank.plackett_luce import choice_entropies, ranking_kl, top1_kl

Anchor = Literal["top1", "ranking"]

REACHABLE = 0.9
"""Share of the greatest possible entropy that a floor may ask for: the last choices of a list are between few."""


def anchored(
    objective: Tensor,
    scores: Tensor,
    reference: Tensor,
    mask: Tensor,
    weight: float,
    kind: Anchor = "top1",
    rankings: Tensor | None = None,
) -> Tensor:
    """`objective` [B] (to be minimised) plus `weight` times KL(policy || reference), [B].

    kind "ranking" needs `rankings` [B, S, K] drawn from `scores`; it is the KL of their K places divided by K.
    """
    if kind not in get_args(Anchor):
        raise InputError(f"anchor kind must be one of {', '.join(get_args(Anchor))}, not {kind!r}")
    if weight == 0.0:
        return objective
    if kind == "top1":
        return objective + weight * top1_kl(scores, reference.detach(), mask)
    if rankings is None:
        raise InputError("anchor kind 'ranking' needs rankings drawn from the scores; kind 'top1' needs none")
    cutoff = rankings.shape[-1]
    return objective + weight / max(1, cutoff) * ranking_kl(scores, reference, mask, rankings, cutoff)


def entropy_floor(scores: Tensor, mask: Tensor, rankings: Tensor, floor: float, cutoff: int) -> Tensor:
    """How far choices are below `floor` nats, [B]: mean over the first `cutoff` ranks of max(0, floor - H).

    H is the expected entropy of the choice, from `rankings` [B, S, K] drawn from `scores`. Ranks at which a list has
    no choice do not count, and where few candidates are left the floor is at most 90 % of what is possible.
    """
    entropies, choice = choice_entropies(scores, mask, rankings, cutoff)
    left = mask.sum(-1, keepdim=True) - torch.arange(entropies.shape[-1], device=mask.device)
    wanted = (REACHABLE * left.clamp(min=1).to(entropies.dtype).log()).clamp(max=floor)
    lacking = (wanted - entropies).clamp(min=0.0).masked_fill(~choice, 0.0)
    return lacking.sum(-1) / choice.sum(-1).clamp(min=1)
