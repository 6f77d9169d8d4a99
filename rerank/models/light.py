"""A light scorer: a small head on the frozen vectors of a bi-encoder. Trains in seconds, ranks at a dot product's cost.

    logit(q, d) = scale * cos(q, d) + head([q*d, |q - d|, q + d])        head: linear, GELU, linear (zero at first)

The vectors are those that a dense index already holds. A fresh head is silent: the scorer begins as cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rerank.models.encoder import VectorStore
from rerank.models.vectors import Vectors, gathered
from rerank.types import CandidateList


class LightItem(NamedTuple):
    """The rows of one (query, document) pair, and the vectors that they are of."""

    query: int
    document: int
    vectors: Vectors

    def __len__(self) -> int:
        return 2


@final
class LightScorer(nn.Module):
    """The scorer of the module docstring; the encoder is frozen and no part of its state."""

    kind = "light"
    budget = 1_000_000
    """Of a micro-batch: an item counts as two tokens, and costs as little as that."""

    def __init__(self, store: VectorStore, hidden: int = 64, dropout: float = 0.1) -> None:
        super().__init__()
        dim = store.dim
        self.store, self.dim, self.hidden = store, dim, hidden
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.dropout = nn.Dropout(dropout)
        self.inner = nn.Linear(3 * dim, hidden)
        self.outer = nn.Linear(hidden, 1)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.scale.device

    def body(self) -> list[nn.Parameter]:
        """Nothing: the encoder is frozen."""
        return []

    def encode(self, lists: Sequence[CandidateList]) -> list[LightItem]:
        """One item for each candidate of each list, in order."""
        vectors, rows = self.store.rows([text for c in lists for text in (c.query, *c.texts)])
        items: list[LightItem] = []
        at = 0
        for c in lists:
            items.extend(LightItem(rows[at], row, vectors) for row in rows[at + 1 : at + 1 + len(c)])
            at += 1 + len(c)
        return items

    def forget(self, beyond: int = 0) -> None:
        """Nothing; forgets the vectors where they hold more than `beyond` bytes. Items that are there stay good."""
        self.store.forget(beyond)

    def logits(self, items: Sequence[LightItem]) -> Tensor:
        """Logits [n] of one micro-batch."""
        numbers = np.array([item[:2] for item in items], dtype=np.int64).reshape(-1, 2)
        pairs = torch.from_numpy(gathered([item.vectors for item in items], numbers)).to(self.device)
        q, d = pairs.unbind(1)
        # Coordinates of unit vectors are of size dim^-1/2; bring the products to size one.
        features = torch.cat([q * d * self.dim, (q - d).abs() * self.dim**0.5, (q + d) * self.dim**0.5], -1)
        head = self.outer(self.dropout(F.gelu(self.inner(features)))).squeeze(-1)
        return self.scale * (q * d).sum(-1) + head
