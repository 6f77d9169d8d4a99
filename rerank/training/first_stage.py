"""Before a scorer learns anything: the weights of the first-stage scores, fitted alone.

A handful of weights and standardised features need no network, so the whole training set is one batch and the fit takes
a second. What the scorer then learns is what the first stage does not know already.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rerank.lists import batch_of
from rerank.models.policy import FirstStageWeights
from rerank.randomness import generator
from rerank.training.step import Objective
from rerank.types import CandidateList

STEPS = 200
LISTS = 256
"""Lists that are used at most; a few weights need no more."""


def fit_first_stage(
    weights: FirstStageWeights, lists: Sequence[CandidateList], objective: Objective, seed: int, most: int = LISTS
) -> None:
    """Move `weights` in place to the minimum of `objective` over at most `most` lists, ranked by the residual alone."""
    order = torch.randperm(len(lists), generator=generator(seed, "first stage")).tolist()[:most]
    some = [lists[i] for i in sorted(order)]
    batch = batch_of(some, weights.weight.device)
    optimizer = torch.optim.Adam(weights.parameters(), lr=0.05)
    features = weights.features(some)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1.0 - step / STEPS)
        optimizer.zero_grad()
        scores = (features @ weights.weight).masked_fill(~batch.mask, -torch.inf)
        losses, _ = objective(scores, batch, 0, step)
        losses.mean().backward()
        optimizer.step()
