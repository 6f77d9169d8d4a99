"""Ragged candidate lists as padded tensors: [B, N] with a mask that is True where a candidate is real.

Padding: scores are -inf, labels and gains 0, features NaN; indices are always valid. Pure functions, nothing random.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rerank.errors import InputError
from rerank.types import CandidateList, Ordering


class ListBatch(NamedTuple):
    """B candidate lists as tensors: what rewards see."""

    labels: Tensor
    """[B, N] grades, 0 where unjudged or padded."""
    mask: Tensor
    """[B, N] True where a candidate is real."""
    pool: Tensor
    """[B, M] grades of all judged documents of the query, 0 where padded."""
    lists: tuple[CandidateList, ...]
    """The lists themselves, for rewards that look at ids or texts."""


def pad(rows: Sequence[Sequence[float]], value: float, width: int | None = None) -> Tensor:
    """Rows of different lengths as a float32 tensor [B, N], filled up with `value`."""
    width = max((len(row) for row in rows), default=0) if width is None else width
    out = torch.full((len(rows), width), value, dtype=torch.float32)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.as_tensor(row, dtype=torch.float32)
    return out


def mask_of(lists: Sequence[CandidateList]) -> Tensor:
    """[B, N] True where a candidate is real."""
    width = max((len(candidates) for candidates in lists), default=0)
    lengths = torch.tensor([len(candidates) for candidates in lists])
    return torch.arange(width)[None, :] < lengths[:, None]


def batch_of(lists: Sequence[CandidateList], device: torch.device | str = "cpu") -> ListBatch:
    """The padded tensors of lists; a list without judgements has grade 0 everywhere.

    Where a list tells its labels and no pool, the labels are all that is known to be judged.
    """
    mask = mask_of(lists)
    labels = pad([c.labels or (0,) * len(c) for c in lists], 0.0, mask.shape[1])
    pool = pad([c.pool or c.labels or () for c in lists], 0.0)
    return ListBatch(labels.to(device), mask.to(device), pool.to(device), tuple(lists))


def features_of(lists: Sequence[CandidateList], names: Sequence[str]) -> Tensor:
    """First-stage scores [B, N, F] standardised within each list (mean 0, deviation 1); 0 where padded.

    A candidate that a retriever did not score stands half a deviation below that retriever's worst: it lost
    against all that were found, by an unknown margin. A constant feature becomes 0.
    """
    mask = mask_of(lists)
    columns = []
    for name in names:
        missing = [c.query_id for c in lists if name not in c.features]
        if missing:
            known = sorted({n for c in lists for n in c.features})
            raise InputError(f"query {missing[0]!r} has no first-stage score {name!r}; its lists have {known}")
        columns.append(_standardised(pad([c.features[name] for c in lists], math.nan, mask.shape[1]), mask))
    if not columns:
        return torch.zeros(*mask.shape, 0)
    return torch.stack(columns, -1)


def _standardised(values: Tensor, mask: Tensor) -> Tensor:
    """[B, N] with mean 0 and deviation 1 over the found candidates of each list."""
    found = mask & values.isfinite()
    count = found.sum(-1, keepdim=True).clamp(min=1)
    filled = values.masked_fill(~found, 0.0)
    mean = filled.sum(-1, keepdim=True) / count
    centred = (filled - mean).masked_fill(~found, 0.0)
    deviation = (centred.square().sum(-1, keepdim=True) / count).sqrt()
    scaled = centred / deviation.clamp(min=1e-6)
    lowest = scaled.masked_fill(~found, math.inf).amin(-1, keepdim=True)
    lowest = torch.where(lowest.isinf(), torch.zeros_like(lowest), lowest - 0.5)
    return torch.where(found, scaled, lowest.expand_as(scaled)).masked_fill(~mask, 0.0)


def ranks_of(ordering: Ordering, candidates: CandidateList) -> list[float]:
    """The teacher's rank (1 = best) of each candidate; inf where the teacher did not order it."""
    position = {doc_id: i + 1.0 for i, doc_id in enumerate(ordering.doc_ids)}
    return [position.get(doc_id, math.inf) for doc_id in candidates.doc_ids]


def check_scores(scores: Tensor, mask: Tensor) -> None:
    """Raise InputError unless `scores` and `mask` are [B, N] and every real candidate has a finite score."""
    if scores.ndim != 2 or scores.shape != mask.shape:
        raise InputError(f"scores {list(scores.shape)} and mask {list(mask.shape)} must both be [B, N]")
    if not bool(scores.masked_select(mask).isfinite().all()):
        where = (~scores.isfinite() & mask).nonzero()[0].tolist()
        raise InputError(f"the score of list {where[0]}, candidate {where[1]} is {float(scores[tuple(where)])}")
