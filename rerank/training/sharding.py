"""Weights, gradients and optimizer state divided among the processes of a stage (FSDP2, `fully_shard`).

What is trained is a copy of the policy whose scorer is divided: each transformer layer by itself, then the rest. Each
process still has lists of its own. The policy that was given stays whole, and is brought up to date where it is looked
at: at evaluations, when an anchor's reference moves, and at the end. So the saving is in gradients, optimizer state and
activations, three quarters and more of what training holds; the whole policy is one copy of the weights beside it.
The few weights of the first-stage scores are not divided; their gradients are summed as in data parallelism.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from rerank.models.policy import ScorePolicy


@final
class Shards:
    """A policy whose scorer is divided among the processes."""

    def __init__(self, policy: ScorePolicy) -> None:
        from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

        self.source = policy
        self.policy = copy.deepcopy(policy)
        scorer = self.policy.scorer
        for module in list(scorer.modules()):
            if isinstance(module, nn.ModuleList):
                for layer in module:
                    fully_shard(layer)
        fully_shard(scorer)
        # The engine calls `logits`, not `forward`: this is where weights are gathered.
        register_fsdp_forward_method(scorer, "logits")
        self._divided: Any = scorer
        parts: list[Any] = [module for module in scorer.modules() if isinstance(module, FSDPModule)]
        for part in parts:
            # Losses are shares of the step's mean, so gradients are summed; gloo knows no sum with a factor.
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)

    @property
    def whole(self) -> list[nn.Parameter]:
        """The trainable parameters that every process has whole."""
        divided = {id(p) for p in self._divided.parameters()}
        return [p for p in self.policy.parameters() if p.requires_grad and id(p) not in divided]

    def last_round(self, last: bool) -> None:
        """Gradients stay where they are until the last micro-batch of a step; one reduction a step."""
        self._divided.set_requires_gradient_sync(last)
        self._divided.set_is_last_backward(last)

    def weights(self) -> dict[str, Tensor]:
        """The whole weights, by name; a call that all processes make together."""
        return {name: whole(tensor) for name, tensor in self.policy.state_dict().items()}

    def update(self) -> None:
        """Bring the policy that was given up to date."""
        self.source.load_state_dict(self.weights())

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Set the divided weights from whole ones."""
        with torch.no_grad():
            for name, own in self.policy.state_dict().items():
                own.copy_(as_divided(weights[name], own))


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of a divided one, a copy; any other tensor as it is."""
    divided: Any = tensor
    return divided.full_tensor().detach().clone() if hasattr(divided, "full_tensor") else tensor


def as_divided(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor divided as `like` is."""
    if not hasattr(like, "full_tensor"):
        return tensor.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)  # type: ignore[attr-defined]
