"""Rewards for covering the aspects of a query: a second document on the same subtopic pays less than the first.

    alpha-DCG(y) = sum_r 1 / log2(r + 1) * sum over subtopics c of [y_r covers c] * (1 - alpha)^(documents before on c)

One term a subtopic, so its expectation is exact. Source: Clarke et al. (2008); conventions of ndeval:

- Coverage is yes or no; a document that `subtopics` does not name covers nothing, whatever its grade.
- The ideal ranking is built greedily, because the best one is hard to find; of equal documents the last id is first.
  A ranking can beat a greedy ideal, so that values above 1 are possible, if rare.
- A list none of whose candidates covers anything is worth 0 in every ranking. Ties: a ranking has none.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from .factors import Factorised, Factors
from .settings import check_settings

Coverage = Mapping[str, Mapping[str, tuple[int, ...]]]
"""query id -> doc id -> numbers of the subtopics it covers, from 0 for each query."""


def alpha_ndcg(
    subtopics: Mapping[str, Mapping[str, Iterable[Hashable]]],
    cutoff: int = 10,
    alpha: float = 0.5,
    ideal: Literal["candidates", "judged"] = "candidates",
) -> Factorised:
    """alpha-nDCG from query id -> doc id -> the subtopics that the document covers; needs lists with `.lists`.

    `alpha` is how much of its gain a subtopic loses with each document on it; 0 counts every document in full.
    The ideal is over the list's own candidates, or over all documents that `subtopics` names for the query.
    """
    check_settings("alpha-nDCG", alpha=alpha, cutoff=cutoff, ideal=ideal)
    terms = partial(_terms, coverage=_numbered(subtopics), cutoff=cutoff, alpha=alpha, ideal=ideal)
    return Factorised(f"alpha_nDCG@{cutoff}", terms, cutoff, graded=False)


def _numbered(subtopics: Mapping[str, Mapping[str, Iterable[Hashable]]]) -> Coverage:
    """Subtopics of each query as numbers, in the order in which its documents (by id) first name them."""
    if not isinstance(subtopics, Mapping) or not all(isinstance(by_doc, Mapping) for by_doc in subtopics.values()):
        raise ValueError(f"subtopics {subtopics!r:.80}: give query id -> doc id -> the subtopics it covers")
    out: dict[str, dict[str, tuple[int, ...]]] = {}
    for query_id, by_doc in subtopics.items():
        numbers: dict[Hashable, int] = {}
        out[query_id] = {}
        for doc_id, covered in sorted(by_doc.items()):
            if isinstance(covered, str) or not isinstance(covered, Iterable):
                problem = f"subtopics of query {query_id!r}, document {doc_id!r}: {covered!r} is no list"
                raise ValueError(f"{problem}; give a list of subtopics, such as ['history', 'price']")
            named = dict.fromkeys(covered)
            out[query_id][doc_id] = tuple(numbers.setdefault(subtopic, len(numbers)) for subtopic in named)
    return out


def _terms(lists: Any, coverage: Coverage, cutoff: int, alpha: float, ideal: str) -> tuple[Factors, ...]:
    known = [coverage.get(c.query_id, {}) for c in lists.lists]
    n_subtopics = max((n + 1 for by_doc in known for numbers in by_doc.values() for n in numbers), default=1)
    own = [[by_doc.get(d, ()) for d in c.doc_ids] for c, by_doc in zip(lists.lists, known, strict=True)]
    # Sorted by id, so that the greedy ideal does not depend on the order of the candidates.
    pools = [
        [by_doc[d] for d in sorted(by_doc if ideal == "judged" else by_doc.keys() & set(c.doc_ids), reverse=True)]
        for c, by_doc in zip(lists.lists, known, strict=True)
    ]
    covers = _covers(own, lists.mask.shape[1], n_subtopics, lists.labels)
    pool = _covers(pools, max(map(len, pools), default=0), n_subtopics, lists.labels)
    # Places beyond all candidates and beyond the pool that the ideal is taken from cannot matter.
    places = max(1, min(cutoff, max(covers.shape[1], pool.shape[1])))
    weight = 1.0 / torch.arange(2, places + 2, device=covers.device, dtype=covers.dtype).log2()
    best = _greedy(pool, weight, alpha).clamp(min=1e-12)
    gains = covers / best[:, None, None]
    weight = weight[: max(1, covers.shape[1])]
    return tuple(Factors(gains[..., c], weight, 1.0 - alpha * covers[..., c]) for c in range(n_subtopics))


def _covers(rows: Sequence[Sequence[tuple[int, ...]]], width: int, n_subtopics: int, like: Tensor) -> Tensor:
    """[B, width, subtopics] 1 where a document covers a subtopic, in dtype and on the device of `like`."""
    out = torch.zeros(len(rows), width, n_subtopics, dtype=like.dtype)
    found = [(b, d, c) for b, row in enumerate(rows) for d, covered in enumerate(row) for c in covered]
    if found:
        out[tuple(torch.tensor(found).T)] = 1.0
    return out.to(like.device)


def _greedy(covers: Tensor, weight: Tensor, alpha: float) -> Tensor:
    """alpha-DCG [B] of the ranking that takes the document with the largest gain each time, the first of equals."""
    novelty = torch.ones_like(covers[:, 0]) if covers.shape[1] else covers.sum(1)
    left, total = torch.ones_like(covers[..., 0]), covers.new_zeros(covers.shape[0])
    for w in weight[: covers.shape[1]]:
        gain = (covers * novelty[:, None]).sum(-1) * left
        found, place = gain.max(-1)
        total = total + w * found
        taken = covers.gather(1, place[:, None, None].expand(-1, 1, covers.shape[2]))[:, 0]
        novelty = novelty * (1.0 - alpha * taken)
        left = left.scatter(1, place[:, None], 0.0)
    return total
