"""How far the policy has moved from its clone: the penalty that keeps refinement near what was learned.

KL between the distributions over who is ranked first is exact, deterministic and costs a softmax; it is the
default anchor. (Sampled estimates of the KL of whole rankings have a gradient trap: the plain log-ratio has an
expected gradient of zero.)
"""

from __future__ import annotations

from torch import Tensor

from rerank.plackett_luce import top1_kl


def anchored(objective: Tensor, scores: Tensor, reference: Tensor, mask: Tensor, weight: float) -> Tensor:
    """`objective` [B] (to be minimised) plus `weight` times KL(policy || reference), [B]."""
    if weight == 0.0:
        return objective
    return objective + weight * top1_kl(scores, reference.detach(), mask)
