"""Micro-batches by token budget: items of like length together, so that little of a batch is padding.

An item is what its scorer reads at once: a (query, document) pair, or the prompt of a whole list. It is hashable,
`len(item)` is its cost in tokens, and `item.width`, 1 where there is none, the number of logits that it is given.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rerank.lists import mask_of
from rerank.types import CandidateList


class ItemScorer(Protocol):
    """A scorer whose work is a flat sequence of independent items."""

    def encode(self, lists: Sequence[CandidateList]) -> Sequence[Sized]:
        """Items whose logits, one after another, are those of each candidate of each list, in order."""
        ...

    def logits(self, items: Sequence[Any]) -> Tensor:
        """Logits [n] of one micro-batch, in float32: `width_of` an item many for each."""
        ...

    def body(self) -> list[nn.Parameter]:
        """The trainable parameters that are pretrained; the others are heads, which learn faster."""
        ...


def width_of(item: Any) -> int:
    """The number of logits that an item is given."""
    return getattr(item, "width", 1)


def by_list(items: Sequence[Sized], lists: Sequence[CandidateList]) -> list[list[Sized]]:
    """The items of each list, from all of them."""
    found: list[list[Sized]] = []
    coming = iter(items)
    for candidates in lists:
        row: list[Sized] = []
        held = 0
        while held < len(candidates):
            row.append(next(coming))
            held += width_of(row[-1])
        found.append(row)
    return found


def flat_order(items: Sequence[Any], groups: Sequence[Sequence[int]]) -> Tensor:
    """Where each logit belongs, [n], when the items are scored group by group."""
    starts = [0]
    for item in items:
        starts.append(starts[-1] + width_of(item))
    return torch.tensor([at for group in groups for i in group for at in range(starts[i], starts[i + 1])]).long()


def micro_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices in groups of like length, each at most `budget` tokens with its padding (or a single item)."""
    groups: list[list[int]] = []
    # Longest first: the largest batch is met at once, so a machine that is too small says so at the start.
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= budget:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def score_items(scorer: ItemScorer, items: Sequence[Sized], budget: int) -> Tensor:
    """Logits [n] of all items in their own order, a micro-batch at a time; keeps the graph if gradients are on."""
    # Equal items are scored once: float sums differ from place to place, and equal texts must tie.
    place = {item: i for i, item in enumerate(dict.fromkeys(items))}
    distinct = list(place)
    groups = micro_batches([len(item) for item in distinct], budget)
    if not groups:
        return torch.zeros(0)
    flat = torch.cat([scorer.logits([distinct[i] for i in group]) for group in groups])
    flat = torch.zeros_like(flat).index_copy(0, flat_order(distinct, groups).to(flat.device), flat)
    if len(distinct) == len(items):
        return flat
    rows = flat.split([width_of(item) for item in distinct])
    return torch.cat([rows[place[item]] for item in items])


def padded(flat: Tensor, lists: Sequence[CandidateList]) -> Tensor:
    """Flat logits [n] as scores [B, N], -inf where padded."""
    mask = mask_of(lists).to(flat.device)
    scores = torch.full(mask.shape, -torch.inf, device=flat.device, dtype=flat.dtype)
    return scores.masked_scatter(mask, flat)
