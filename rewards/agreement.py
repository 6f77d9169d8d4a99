"""Rewards for agreeing with a teacher's ordering: rank-biased overlap (top-heavy) and Kendall agreement (all pairs).

Both take the teacher's orderings as query id -> doc ids, best first, or as records with `.query_id` and `.doc_ids`
(a record's `.scores`, where it has them, say which of its documents are tied). They need lists with `.lists`.

- Grades are not looked at: judged or not, a candidate is where the teacher puts it.
- Documents of an ordering that are no candidates are left out, the others move up: what this list can reach is 1.
- A candidate that the teacher did not order is in no top of the teacher's, and in no pair.
- A list that has no ordering is worth 0 in every ranking.

Sources: Webber et al. (2010) for rank-biased overlap; Kendall (1938). The closed form of the expected agreement is
Plackett-Luce's own: P(i before j) = sigmoid(s_i - s_j).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor

from .factors import Factorised, Factors
from .settings import check_settings

Orderings = Mapping[str, Sequence[str]] | Iterable[Any]
Ranks = Mapping[str, Mapping[str, int]]
"""query id -> doc id -> rank in the teacher's ordering, from 0."""


def rbo(orderings: Orderings, persistence: float = 0.9, cutoff: int = 10) -> Factorised:
    """Rank-biased overlap with the teacher's top, in [0, 1]: 1 for a ranking that begins as the teacher's does.

    sum_d persistence^(d-1) * |top d of both| / d over the depths d = 1 ... cutoff (fewer where the teacher ordered
    fewer of the candidates), divided by its largest value. Ties in the teacher stand in the order they were given.
    One term a depth; its expectation is exact.
    """
    check_settings("rbo", persistence=persistence, cutoff=cutoff)
    terms = partial(_overlaps, ranks=_ranks(orderings, tied=False), persistence=persistence, cutoff=cutoff)
    return Factorised(f"RBO@{cutoff}", terms, cutoff, graded=False)


def kendall(orderings: Orderings) -> ClosedForm:
    """Share of the teacher's ordered pairs of candidates that a ranking has in the same order, in [0, 1].

    That is (tau + 1) / 2 for a whole ordering without ties. Ties in the teacher are no pairs. A candidate that a
    ranking leaves out comes after all that it holds; a pair of which it holds neither does not agree.
    """
    ranks = _ranks(orderings, tied=True)
    return ClosedForm("Kendall", partial(_agreement, ranks=ranks), partial(_expected_agreement, ranks=ranks))


@final
@dataclass(frozen=True)
class ClosedForm:
    """A reward whose expectation under Plackett-Luce is a formula of the scores."""

    name: str
    value: Callable[[Tensor, Any], Tensor]
    """rankings [B, S, R], lists -> rewards [B, S]."""
    expectation: Callable[[Tensor, Any], Tensor]
    """scores [B, N], lists -> expected rewards [B], differentiable."""
    cutoff: int | None = None
    graded: bool = False
    """Whether it pays by the lists' own labels."""

    def __call__(self, rankings: Tensor, lists: Any) -> Tensor:
        """Rewards [B, S] of rankings [B, S, R]."""
        return self.value(rankings, lists)

    def expected(self, scores: Tensor, lists: Any) -> Tensor:
        """Expected rewards [B] under the Plackett-Luce policy of scores [B, N]; differentiable."""
        return self.expectation(scores, lists)


def _ranks(orderings: Orderings, tied: bool) -> Ranks:
    """Ranks from 0 of each ordering's documents; with `tied`, equal scores share the rank of the first of them."""
    records: Any = orderings
    if isinstance(records, str) or not isinstance(records, Iterable):
        raise ValueError(f"orderings {records!r:.80}: give query id -> doc ids, or records with query_id and doc_ids")
    given = records.items() if isinstance(records, Mapping) else [(getattr(o, "query_id", None), o) for o in records]
    out: dict[str, dict[str, int]] = {}
    for query_id, ordering in given:
        if query_id is None:
            raise ValueError(f"{ordering!r:.80} is no ordering: a record has query_id and doc_ids")
        if query_id in out:
            raise ValueError(f"two orderings of query {query_id!r}; a reward agrees with one teacher, mix two rewards")
        doc_ids: Any = getattr(ordering, "doc_ids", ordering)
        if isinstance(doc_ids, str) or not isinstance(doc_ids, Collection) or len(set(doc_ids)) < len(doc_ids):
            raise ValueError(f"ordering of query {query_id!r}: {doc_ids!r:.80} must be doc ids, best first, each once")
        scores = getattr(ordering, "scores", None) if tied else None
        places = range(len(doc_ids)) if scores is None else [scores.index(s) for s in scores]
        out[query_id] = dict(zip(doc_ids, places, strict=True))
    return out


def _ranked(lists: Any, ranks: Ranks) -> Tensor:
    """The teacher's ranks [B, N], inf where a candidate was not ordered or is padding."""
    out = torch.full(lists.mask.shape, torch.inf, dtype=torch.float32)
    for b, candidates in enumerate(lists.lists):
        known = ranks.get(candidates.query_id, {})
        row = [known.get(d, torch.inf) for d in candidates.doc_ids]
        out[b, : len(row)] = torch.tensor(row, dtype=torch.float32)
    return out.to(lists.mask.device)


def _overlaps(lists: Any, ranks: Ranks, persistence: float, cutoff: int) -> tuple[Factors, ...]:
    """One recall a depth d: candidates in the teacher's top d, counted while they are in the ranking's top d."""
    ordered = _ranked(lists, ranks)
    # Ranks among the candidates: documents of the ordering that are not in the list leave no gap.
    longest = max(1, min(cutoff, ordered.shape[1]))
    place = (
        ordered.argsort(dim=-1, stable=True).argsort(dim=-1).to(ordered.dtype).masked_fill(ordered.isinf(), torch.inf)
    )
    depths = torch.arange(1, longest + 1, device=place.device, dtype=place.dtype)
    counted = depths <= ordered.isfinite().sum(-1, keepdim=True)
    share = persistence ** (depths - 1.0) * counted
    share = share / share.sum(-1, keepdim=True).clamp(min=1e-12)
    return tuple(
        Factors((place < d).to(place.dtype) * share[:, d - 1 : d] / d, torch.ones_like(depths[:d]))
        for d in range(1, longest + 1)
    )


def _agreement(rankings: Tensor, lists: Any, ranks: Ranks) -> Tensor:
    before, n_pairs = _pairs(lists, ranks)
    depth = rankings.shape[-1]
    places = torch.arange(depth, device=rankings.device).expand_as(rankings)
    # Left out: after all that are there. Repeated: at its first place.
    place = rankings.new_full((*rankings.shape[:2], before.shape[1]), depth)
    place = place.scatter_reduce(-1, rankings, places, "amin")
    agree = torch.zeros(rankings.shape[:2], device=rankings.device)
    for i in range(before.shape[1]):  # a candidate at a time: [B, S, N, N] would not fit for long lists
        agree = agree + ((place[..., i : i + 1] < place) & before[:, None, i]).sum(-1)
    return agree / n_pairs[:, None]


def _expected_agreement(scores: Tensor, lists: Any, ranks: Ranks) -> Tensor:
    before, n_pairs = _pairs(lists, ranks)
    s = torch.where(lists.mask, scores, torch.zeros_like(scores))  # -inf - -inf has no value, and no gradient
    return ((s[:, :, None] - s[:, None, :]).sigmoid() * before).sum((-1, -2)) / n_pairs


def _pairs(lists: Any, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """[B, N, N] True where the teacher ranks i before j and ordered both, and the number of such pairs, at least 1."""
    ordered = _ranked(lists, ranks)
    before = (ordered[:, :, None] < ordered[:, None, :]) & ordered.isfinite()[:, None, :]
    return before, before.sum((-1, -2)).clamp(min=1)
