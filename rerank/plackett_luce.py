r"""Plackett-Luce: the distribution over rankings that scores define.

    pi(y_1 ... y_K) = prod_r exp(s_{y_r}) / sum_{d not in y_1..y_{r-1}} exp(s_d)

Shapes: scores [B, N] with -inf where padded, mask [B, N], rankings [B, S, K] of candidate indices, best first.
Places beyond a list's length are ignored. All functions are differentiable in the scores unless they sample.

Sources: Plackett (1975); Luce (1959); Gumbel-top-k sampling as in Kool et al. (2019).
"""

from __future__ import annotations

import torch
from torch import Tensor

# A padded candidate gets the smallest real score minus this much: it is never drawn before a real one in float32,
# and everything stays finite (with -inf a list shorter than K gives inf - inf).
PADDING_GAP = 60.0


def filled(scores: Tensor, mask: Tensor) -> Tensor:
    """Scores [B, N], at least float32, with finite values on the padding, below all real ones."""
    scores = scores if scores.dtype == torch.float64 else scores.float()
    lowest = scores.masked_fill(~mask, torch.inf).amin(-1, keepdim=True)
    lowest = torch.where(lowest.isfinite(), lowest, torch.zeros_like(lowest))
    return torch.where(mask, scores, lowest.detach() - PADDING_GAP)


def best(scores: Tensor, mask: Tensor) -> Tensor:
    """The most likely ranking [B, N] (candidate indices; equal scores in first-stage order, padding last)."""
    return scores.float().masked_fill(~mask, -torch.inf).sort(dim=-1, descending=True, stable=True).indices


def sample(scores: Tensor, mask: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
    """`n` exact draws of whole rankings, [B, n, N], padding last."""
    s = filled(scores.detach(), mask)[:, None, :].expand(-1, n, -1)
    noise = torch.empty(s.shape, device=s.device).exponential_(generator=generator)
    perturbed = s - noise.clamp(min=torch.finfo(torch.float32).tiny).log()
    return perturbed.masked_fill(~mask[:, None, :], -torch.inf).argsort(dim=-1, descending=True)


def step_log_probs(scores: Tensor, mask: Tensor, rankings: Tensor) -> Tensor:
    """log pi(y_r | y_1 ... y_{r-1}) of each place, [B, S, K]; 0 at places beyond the list's length."""
    s = filled(scores, mask)
    n_places = rankings.shape[-1]
    wide = s[:, None, :].expand(-1, rankings.shape[1], -1)
    placed = wide.gather(-1, rankings)
    # logsumexp over what is left after the last place, then cumulated backwards: no cancellation, no sort.
    rest = wide.scatter(-1, rankings, -torch.inf)
    tail = rest.logsumexp(-1, keepdim=True)
    cumulated = torch.cat([tail, placed.flip(-1)], -1).logcumsumexp(-1)[..., 1:].flip(-1)
    real = mask[:, None, :].expand(-1, rankings.shape[1], -1).gather(-1, rankings)
    return (placed - cumulated[..., :n_places]).masked_fill(~real, 0.0)


def log_prob(scores: Tensor, mask: Tensor, rankings: Tensor) -> Tensor:
    """log pi of the first K places of rankings [B, S, K], as [B, S]."""
    return step_log_probs(scores, mask, rankings).sum(-1)


def top1_log_probs(scores: Tensor, mask: Tensor) -> Tensor:
    """log-probability of each candidate being ranked first, [B, N]; -inf on the padding."""
    return filled(scores, mask).masked_fill(~mask, -torch.inf).log_softmax(-1).masked_fill(~mask, -torch.inf)


def top1_kl(scores: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """KL(policy || reference) of the distribution over who is ranked first, [B]; exact, 0 for empty lists."""
    p, q = top1_log_probs(scores, mask), top1_log_probs(reference, mask)
    zero = torch.zeros_like(p)
    p, q = torch.where(mask, p, zero), torch.where(mask, q, zero)
    return (torch.where(mask, p.exp(), zero) * (p - q)).sum(-1)


def entropy_by_rank(scores: Tensor, mask: Tensor, rankings: Tensor, cutoff: int) -> Tensor:
    """Entropy in nats of the choice at each of the first `cutoff` ranks, [K]; mean over lists and given rankings.

    The conditional entropy given the places before is computed exactly, so a few sampled rankings suffice.
    Places at which fewer than two candidates are left are not counted.
    """
    s = filled(scores, mask)[:, None, :].expand(-1, rankings.shape[1], -1)
    left = mask[:, None, :].expand_as(s)
    out = []
    for r in range(min(cutoff, rankings.shape[-1])):
        log_p = s.masked_fill(~left, -torch.inf).log_softmax(-1)
        log_p = torch.where(left, log_p, torch.zeros_like(log_p))  # before the product, or its gradient is 0 * inf
        entropy = -(torch.where(left, log_p.exp(), torch.zeros_like(log_p)) * log_p).sum(-1)
        counted = (left.sum(-1) > 1).to(entropy.dtype)
        out.append((entropy * counted).sum() / counted.sum().clamp(min=1.0))
        left = left.scatter(-1, rankings[..., r : r + 1], False)
    return torch.stack(out)


def top1_entropy(scores: Tensor, mask: Tensor) -> Tensor:
    """Entropy in nats of the distribution over who is ranked first, [B]."""
    p = torch.where(mask, top1_log_probs(scores, mask), torch.zeros_like(scores, dtype=torch.float32))
    return -(torch.where(mask, p.exp(), torch.zeros_like(p)) * p).sum(-1)
