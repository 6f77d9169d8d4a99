"""Scores as probabilities while the policy learns: a term beside a ranking loss.

Plackett-Luce gives every shift of a list's scores the same probability, so no loss or reward on rankings can say where
a score of 0 lies. Cross-entropy does, and its gradient (p - y) does not vanish where a wrong score is large, as that of
the Brier score does. Small weights (0.05 to 0.1) set the level and leave the ranking to the other losses.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(scores: Tensor, labels: Tensor, mask: Tensor, level: int = 1) -> Tensor:
    """Mean over the candidates of each list of -log p(is it relevant), p = sigmoid(score), [B]; 0 for an empty list.

    Relevant is a grade (labels [B, N]) of at least `level`; an unjudged candidate counts as not relevant.
    """
    s = (scores if scores.dtype == torch.float64 else scores.float()).masked_fill(~mask, 0.0)
    loss = F.binary_cross_entropy_with_logits(s, (labels >= level).to(s.dtype), reduction="none")
    return loss.masked_fill(~mask, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)
