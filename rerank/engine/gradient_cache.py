"""Backward through lists of any length in bounded memory (gradient caching; Gao et al. 2021, for list losses).

A loss needs the scores of a whole list at once, but the scores do not need each other's graph. So, when the lists do
not fit: scores without graph -> loss and d loss / d score -> each micro-batch again with its graph, fed with its part
of that gradient. Dropout is keyed by micro-batch, hence the same in both passes. When the lists fit, one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized

import torch
from torch import Tensor

from rerank.engine.batching import PairScorer, micro_batches
from rerank.randomness import dropout_key, key_of


def backward(
    scorer: PairScorer,
    items: Sequence[Sized],
    loss_of: Callable[[Tensor], Tensor],
    budget: int,
    graph_tokens: int,
    key: int,
) -> Tensor:
    """Accumulates the gradients of `loss_of(flat logits [n])` into the parameters; returns the loss, detached.

    `budget` bounds the tokens of a micro-batch, `graph_tokens` the tokens whose activations are kept at once.
    """
    groups = micro_batches([len(item) for item in items], budget)
    order = torch.tensor([i for group in groups for i in group])
    back = order.argsort()

    def logits(index: int) -> Tensor:
        batch = [items[i] for i in groups[index]]
        with dropout_key(key_of(key, index), _device_of(scorer)):
            return scorer.logits(batch)

    if sum(map(len, items)) <= graph_tokens:
        flat = torch.cat([logits(i) for i in range(len(groups))])
        loss = loss_of(flat[back.to(flat.device)])
        loss.backward()
        return loss.detach()

    with torch.no_grad():
        flat = torch.cat([logits(i) for i in range(len(groups))])
    leaf = flat[back.to(flat.device)].requires_grad_()
    loss = loss_of(leaf)
    loss.backward()
    if leaf.grad is not None:
        for i, part in enumerate(leaf.grad[order.to(leaf.device)].split([len(group) for group in groups])):
            logits(i).backward(part)
    return loss.detach()


def _device_of(scorer: PairScorer) -> torch.device:
    parameters = getattr(scorer, "parameters", None)
    return next(parameters()).device if parameters is not None else torch.device("cpu")
