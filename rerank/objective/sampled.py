r"""Policy gradients for rewards that are known only for sampled rankings.

RLOO (leave-one-out REINFORCE; Kool et al. 2019): with S rankings of a list and rewards R_i,

    gradient = mean_i (R_i - mean_{j != i} R_j) * d log pi(y_i)

unbiased, and not divided by the standard deviation of the rewards: that division (GRPO) scales rare lucky lists up
by one to two orders of magnitude.
"""

from __future__ import annotations

from torch import Tensor

from rerank.errors import InputError


def leave_one_out(rewards: Tensor) -> Tensor:
    """Advantages [B, S]: each reward minus the mean of the list's others; exactly 0 where all rewards agree."""
    n = rewards.shape[-1]
    if n < 2:
        raise InputError(f"leave-one-out needs at least 2 sampled rankings a list, not {n}")
    advantages = (rewards - rewards.mean(-1, keepdim=True)) * (n / (n - 1))
    spread = rewards.amax(-1, keepdim=True) - rewards.amin(-1, keepdim=True)
    return advantages.masked_fill(spread < 1e-6, 0.0)


def rloo(rewards: Tensor, log_probs: Tensor) -> Tensor:
    """Surrogate loss [B] whose gradient is minus the RLOO policy gradient; rewards and log_probs are [B, S]."""
    return -(leave_one_out(rewards).detach() * log_probs).mean(-1)
