"""Micro-batches by token budget: items of like length together, so that little of a batch is padding.

An item is one (query, document) pair as its scorer encodes it: hashable, and `len(item)` is its cost in tokens.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rerank.lists import mask_of
from rerank.types import CandidateList


class PairScorer(Protocol):
    """A scorer whose work is a flat sequence of independent (query, document) items."""

    def encode(self, lists: Sequence[CandidateList]) -> Sequence[Sized]:
        """One item for each candidate of each list, in order."""
        ...

    def logits(self, items: Sequence[Any]) -> Tensor:
        """Logits [n] of one micro-batch, in float32."""
        ...

    def body(self) -> list[nn.Parameter]:
        """The trainable parameters that are pretrained; the others are heads, which learn faster."""
        ...


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


def score_items(scorer: PairScorer, items: Sequence[Sized], budget: int) -> Tensor:
    """Logits [n] of all items in their own order, a micro-batch at a time; keeps the graph if gradients are on."""
    # Equal items are scored once: float sums differ from place to place, and equal texts must tie.
    place = {item: i for i, item in enumerate(dict.fromkeys(items))}
    distinct = list(place)
    groups = micro_batches([len(item) for item in distinct], budget)
    if not groups:
        return torch.zeros(0)
    parts = [scorer.logits([distinct[i] for i in group]) for group in groups]
    order = torch.tensor([i for group in groups for i in group], device=parts[0].device)
    flat = torch.cat(parts)
    flat = torch.zeros_like(flat).index_copy(0, order, flat)
    return flat[torch.tensor([place[item] for item in items], device=flat.device)]


def padded(flat: Tensor, lists: Sequence[CandidateList]) -> Tensor:
    """Flat logits [n] as scores [B, N], -inf where padded."""
    mask = mask_of(lists).to(flat.device)
    scores = torch.full(mask.shape, -torch.inf, device=flat.device, dtype=flat.dtype)
    return scores.masked_scatter(mask, flat)
