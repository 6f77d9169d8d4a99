"""From gradients to weights: who learns how fast, how long a gradient may be, what is no number any more."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rerank.models.policy import ScorePolicy
from rerank.training.schedule import Schedule


def groups_of(policy: ScorePolicy, schedule: Schedule) -> list[dict[str, Any]]:
    """Optimizer groups: the transformer at its own rate, heads and first-stage weights faster; frozen ones nowhere."""
    body = {id(p) for p in policy.item_scorer.body()}
    residual = set() if policy.first_stage is None else {id(p) for p in policy.first_stage.parameters()}
    everything = [p for p in policy.parameters() if p.requires_grad]
    parts = [
        ([p for p in everything if id(p) in body], schedule.learning_rate, schedule.weight_decay),
        (
            [p for p in everything if id(p) not in body and id(p) not in residual],
            schedule.head_learning_rate,
            schedule.weight_decay,
        ),
        ([p for p in everything if id(p) in residual], schedule.first_stage_learning_rate, 0.0),
    ]
    return [{"params": ps, "lr": rate, "weight_decay": decay} for ps, rate, decay in parts if ps]


def rate_share(step: int, total: int, warmup: float) -> float:
    """The share of the learning rate at `step` of `total`: rising, then falling to 0."""
    warm = max(1, round(total * warmup))
    return min((step + 1) / warm, (total - step) / max(1, total - warm))


def clipped(parameters: Iterable[nn.Parameter], longest: float) -> float:
    """The norm of all gradients, which are cut to `longest`; also of those that are divided among processes."""
    parameters = [p for p in parameters if p.grad is not None]
    divided = [p for p in parameters if hasattr(p, "full_tensor")]
    if not divided:
        return float(nn.utils.clip_grad_norm_(parameters, longest))
    here = [p.grad for p in parameters if p.grad is not None and not hasattr(p, "full_tensor")]
    there: Any = nn.utils.get_total_norm([p.grad for p in divided if p.grad is not None])
    norm = math.hypot(float(there.full_tensor()), float(nn.utils.get_total_norm(here)) if here else 0.0)
    if norm > longest:
        for p in parameters:
            assert p.grad is not None  # filtered above
            p.grad.mul_(longest / (norm + 1e-6))
    return norm


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every number in `tensors` is finite."""
    found: Sequence[Tensor] = [t.isfinite().all() for t in tensors if t.is_floating_point()]
    return not found or bool(torch.stack([f.to(found[0].device) for f in found]).all())
