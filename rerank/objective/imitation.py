r"""Losses that make scores agree with a teacher: [B, N] scores and targets in, one loss a list [B] out.

Each loss has the signature `loss(scores, ranks, mask, values)`:

    scores  [B, N]  the policy's logits
    ranks   [B, N]  the teacher's ranks, 1 = best; equal ranks are ties; inf = not ordered by the teacher
    mask    [B, N]  True where a candidate is real
    values  [B, N]  the teacher's scores, or grades; not used by rank_net and list_mle

Candidates the teacher did not order take no part, but for `list_mle`, where they come after all ordered ones.
A list with fewer than two ordered candidates (or without a pair that differs) has loss 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rerank.plackett_luce import filled, top1_log_probs

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _differences(x: Tensor) -> Tensor:
    return x[:, :, None] - x[:, None, :]


def _preferred(ranks: Tensor, mask: Tensor) -> Tensor:
    """[B, N, N] True where the teacher ranks i above j and both are ordered."""
    ordered = mask & ranks.isfinite()
    return (ranks[:, :, None] < ranks[:, None, :]) & ordered[:, :, None] & ordered[:, None, :]


def _pair_mean(loss: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean over the pairs of each list, [B]; 0 for a list without pairs."""
    total = weight.sum((-1, -2))
    return (loss * weight).sum((-1, -2)) / total.clamp(min=1e-12)


def rank_net(scores: Tensor, ranks: Tensor, mask: Tensor, values: Tensor | None = None) -> Tensor:
    """Mean over ordered pairs of log(1 + exp(-(s_i - s_j))). Burges et al. (2005), eq. 3 with certain targets."""
    s = filled(scores, mask)
    return _pair_mean(F.softplus(-_differences(s)), _preferred(ranks, mask).float())


def list_mle(scores: Tensor, ranks: Tensor, mask: Tensor, values: Tensor | None = None) -> Tensor:
    """Minus the Plackett-Luce log-likelihood of the teacher's ranking, a place. Xia et al. (2008).

    A partial ordering is the likelihood of its places with every other candidate still to come.
    Tied candidates are taken in first-stage order.
    """
    s = filled(scores, mask)
    order = ranks.masked_fill(~mask, torch.inf).sort(dim=-1, stable=True)
    placed = s.gather(-1, order.indices)
    # Padding sits PADDING_GAP below the list: its share of the sums is below float32.
    remaining = placed.flip(-1).logcumsumexp(-1).flip(-1)
    counted = order.values.isfinite().float()
    return ((remaining - placed) * counted).sum(-1) / counted.sum(-1).clamp(min=1.0)


def list_net(scores: Tensor, ranks: Tensor, mask: Tensor, values: Tensor) -> Tensor:
    """Cross-entropy between softmax(values) and softmax(scores) over the ordered candidates. Cao et al. (2007)."""
    ordered = mask & ranks.isfinite()
    target = top1_log_probs(values, ordered)
    predicted = top1_log_probs(scores, ordered)
    zero = torch.zeros_like(predicted)
    enough = (ordered.sum(-1) > 1).float()
    return -(torch.where(ordered, target.exp(), zero) * torch.where(ordered, predicted, zero)).sum(-1) * enough


def softmax(scores: Tensor, ranks: Tensor, mask: Tensor, values: Tensor) -> Tensor:
    """Cross-entropy between values / their sum and softmax(scores) over the ordered candidates. Bruch et al. (2019).

    With grades as values it is the contrastive loss of the relevant candidates. `list_net` takes softmax(values) for
    its target: fit for a teacher's scores, but nearly uniform for a few grades of 1 among a hundred of 0.
    """
    ordered = mask & ranks.isfinite()
    worth = torch.where(ordered, values.float().clamp(min=0), torch.zeros_like(values, dtype=torch.float32))
    target = worth / worth.sum(-1, keepdim=True).clamp(min=1e-12)
    predicted = top1_log_probs(scores, ordered)
    enough = (ordered.sum(-1) > 1).float()
    return -(target * torch.where(ordered, predicted, torch.zeros_like(predicted))).sum(-1) * enough


def margin_mse(scores: Tensor, ranks: Tensor, mask: Tensor, values: Tensor) -> Tensor:
    """Mean squared error between the policy's and the teacher's score margins. Hofstätter et al. (2020)."""
    ordered = (mask & ranks.isfinite()).float()
    target = torch.where(ordered > 0, values.float(), torch.zeros_like(values, dtype=torch.float32))
    error = (_differences(filled(scores, mask)) - _differences(target)).square()
    pairs = (ordered[:, :, None] * ordered[:, None, :]).triu(1)
    return _pair_mean(error, pairs)


def lambda_rank(scores: Tensor, ranks: Tensor, mask: Tensor, values: Tensor) -> Tensor:
    """RankNet with each pair weighted by the nDCG (linear gain) that swapping it would change. Burges (2010).

    The mean is taken over lists, not over all pairs of the batch, so long lists do not dominate short ones.
    """
    s = filled(scores, mask)
    ordered = mask & ranks.isfinite()
    gain = torch.where(ordered, values.float().clamp(min=0), torch.zeros_like(s))
    position = s.detach().sort(dim=-1, descending=True, stable=True).indices.argsort(-1)
    discount = 1.0 / (position.float() + 2.0).log2()
    ideal_gain = gain.sort(dim=-1, descending=True).values
    ideal = (ideal_gain / (torch.arange(s.shape[-1], device=s.device) + 2.0).log2()).sum(-1)
    weight = (_differences(gain) * _differences(discount)).abs() / ideal.clamp(min=1e-12)[:, None, None]
    weight = weight * _preferred(-gain, ordered).float()
    return (F.softplus(-_differences(s)) * weight).sum((-1, -2))


LOSSES: dict[str, Loss] = {
    "lambda_rank": lambda_rank,
    "list_mle": list_mle,
    "list_net": list_net,
    "margin_mse": margin_mse,
    "rank_net": rank_net,
    "softmax": softmax,
}
"""The losses a recipe may name."""
