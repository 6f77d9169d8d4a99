"""Backward through lists of any length in bounded memory (gradient caching; Gao et al. 2021, for list losses).

A loss needs the scores of a whole list at once, but the scores do not need each other's graph. So, when the lists do
not fit: scores without graph -> loss and d loss / d score -> each micro-batch again with its graph, fed with its part
of that gradient. Dropout is keyed by micro-batch, hence the same in both passes. When the lists fit, one pass.

Where the weights are divided among processes each micro-batch is work for all of them: `in_rounds` gives every process
the same number of micro-batches, those without one of their own an idle one whose gradient is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized

import torch
from torch import Tensor

from rerank.engine.batching import ItemScorer, flat_order, micro_batches, width_of
from rerank.randomness import dropout_key, key_of

LossOf = Callable[[Tensor], Tensor]
"""Flat logits [n] -> the loss."""


def backward(
    scorer: ItemScorer, items: Sequence[Sized], loss_of: LossOf, budget: int, graph_tokens: int, key: int
) -> Tensor:
    """Accumulates the gradients of `loss_of(flat logits [n])` into the parameters; returns the loss, detached.

    `budget` bounds the tokens of a micro-batch, `graph_tokens` the tokens whose activations are kept at once.
    """
    groups, order = _grouped(items, budget)
    n = len(groups)
    if sum(map(len, items)) <= graph_tokens:
        flat = torch.cat([_logits(scorer, items, groups, i, key) for i in range(n)])
        loss = loss_of(flat[order.argsort().to(flat.device)])
        loss.backward()
        return loss.detach()
    with torch.no_grad():
        flat = torch.cat([_logits(scorer, items, groups, i, key) for i in range(n)])
    loss, gradient = _at_scores(flat, order, loss_of)
    for i, part in enumerate(gradient.split(_widths(items, groups))):
        _logits(scorer, items, groups, i, key).backward(part)
    return loss


def in_rounds(
    scorer: ItemScorer,
    items: Sequence[Sized],
    loss_of: LossOf,
    budget: int,
    key: int,
    rounds: int,
    idle: Sequence[Sized],
    last: Callable[[bool], None],
) -> Tensor:
    """As `backward`, in exactly `rounds` micro-batches a pass, `idle` standing in where the items need fewer.

    `last` is told before each backward whether it is the last one, after which gradients are to be summed.
    """
    groups, order = _grouped(items, budget)
    with torch.no_grad():
        parts = [_logits(scorer, items, groups, i, key) for i in range(len(groups))]
        for _ in range(rounds - len(groups)):
            scorer.logits(idle)
    loss, gradients = torch.zeros(()), []
    if parts:
        loss, gradient = _at_scores(torch.cat(parts), order, loss_of)
        gradients = list(gradient.split(_widths(items, groups)))
    for i in range(rounds):
        last(i == rounds - 1)
        if i < len(groups):
            _logits(scorer, items, groups, i, key).backward(gradients[i])
        else:
            (scorer.logits(idle) * 0.0).sum().backward()
    return loss


def rounds_of(items: Sequence[Sized], budget: int) -> int:
    """The number of micro-batches that `items` make."""
    return len(micro_batches([len(item) for item in items], budget))


def _grouped(items: Sequence[Sized], budget: int) -> tuple[list[list[int]], Tensor]:
    """Micro-batches of indices, and the logits' places in the order in which they are scored."""
    groups = micro_batches([len(item) for item in items], budget)
    return groups, flat_order(items, groups)


def _widths(items: Sequence[Sized], groups: list[list[int]]) -> list[int]:
    """The number of logits of each micro-batch."""
    return [sum(width_of(items[i]) for i in group) for group in groups]


def _logits(scorer: ItemScorer, items: Sequence[Sized], groups: list[list[int]], index: int, key: int) -> Tensor:
    with dropout_key(key_of(key, index), _device_of(scorer)):
        return scorer.logits([items[i] for i in groups[index]])


def _at_scores(flat: Tensor, order: Tensor, loss_of: LossOf) -> tuple[Tensor, Tensor]:
    """(the loss, its gradient with respect to `flat`), where flat[i] is the logit at place order[i]."""
    leaf = flat[order.argsort().to(flat.device)].requires_grad_()
    loss = loss_of(leaf)
    loss.backward()
    gradient = torch.zeros_like(flat) if leaf.grad is None else leaf.grad[order.to(flat.device)]
    return loss.detach(), gradient


def _device_of(scorer: ItemScorer) -> torch.device:
    parameters = getattr(scorer, "parameters", None)
    return next(parameters()).device if parameters is not None else torch.device("cpu")
