"""Clone: learn a teacher's orderings (behaviour cloning). With `teachers.Judged` this is supervised learning to rank.

1. Candidates a teacher did not order take no part in the pair losses (see `objective.imitation`).
2. A list may have several orderings (several teachers): it is scored once, and its loss is their mean.
3. Each step sees a sample of the list: the teacher's first places always, the others anew each time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor

from rerank.errors import InputError, nearest
from rerank.lists import ListBatch, ranks_of
from rerank.models.language.generative import AnyPolicy, GenerativePolicy
from rerank.objective.imitation import LOSSES
from rerank.training.anchoring import ENTROPY, Anchoring
from rerank.training.first_stage import fit_first_stage
from rerank.training.loop import Context, fit
from rerank.training.schedule import Schedule
from rerank.training.written.stages import clone_written
from rerank.types import CandidateList, Ordering

NEEDS_VALUES = ("list_net", "margin_mse", "lambda_rank", "softmax")


@final
@dataclass(frozen=True, kw_only=True)
class Clone(Schedule):
    """Settings of a cloning stage."""

    loss: str = "rank_net"
    """rank_net, list_mle, list_net, softmax, margin_mse or lambda_rank."""
    unranked: Literal["ignore", "last"] = "ignore"
    """Candidates that a teacher did not order: left out of its loss, or tied below all that it ordered (right for a
    teacher that searched by itself, wrong for one that was shown only a part of the candidates)."""

    entropy: float | None = None
    """Divide the scores in the loss by the temperature that leaves so many nats a rank, as refinement does."""
    fit_first_stage: bool = True
    """Fit the weights of the first-stage scores alone before the first step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unranked not in ("ignore", "last"):
            raise InputError(f"unranked must be 'ignore' or 'last', not {self.unranked!r}")
        if self.entropy is not None and not 0 < self.entropy < 100:
            raise InputError(f"entropy must be greater than 0 nats, not {self.entropy!r}")
        if self.loss not in LOSSES:
            raise InputError(f"loss {self.loss!r} is not known{nearest(self.loss, LOSSES)}")

    def run(
        self,
        policy: AnyPolicy,
        lists: Sequence[CandidateList],
        orderings: Iterable[Ordering],
        context: Context,
    ) -> dict[str, Any]:
        """Train `policy` in place on the lists that have an ordering; returns counts and the dev measure."""
        if isinstance(policy, GenerativePolicy):
            return clone_written(policy, lists, orderings, self, context)
        by_query: dict[str, list[Ordering]] = {}
        for ordering in orderings:
            by_query.setdefault(ordering.query_id, []).append(ordering)
        usable = [c for c in lists if any(_orders(o, c) for o in by_query.get(c.query_id, ()))]
        if not usable:
            raise InputError(f"no teacher ordered two candidates of any of the {len(lists)} lists: nothing to clone")
        objective = _Imitation(self.loss, by_query, self.unranked == "last")
        if self.fit_first_stage and policy.first_stage is not None and not context.resumable():
            fit_first_stage(policy.first_stage, usable, objective, context.seed)
        tempered = self.entropy is not None
        anchoring = Anchoring(policy, usable, self, context, tempered, self.entropy or ENTROPY)
        objective.temperatures = anchoring.temperatures if tempered else None
        report = fit(policy, usable, anchoring.around(objective), objective.important, self, context, anchoring)
        without = len(lists) - len(usable)
        return {**report, "lists": len(usable), "lists_without_ordering": without, "anchor": anchoring.weight}


@final
class _Imitation:
    def __init__(self, loss: str, orderings: dict[str, list[Ordering]], unranked_last: bool) -> None:
        self.loss, self.orderings, self.unranked_last = loss, orderings, unranked_last
        self.temperatures: list[float] | None = None
        """One a view, where the stage wants its scores divided."""

    def important(self, candidates: CandidateList) -> list[int]:
        """Indices in the order of the best rank that any teacher gives."""
        ranks = [ranks_of(o, candidates) for o in self.orderings[candidates.query_id]]
        best = [min(column) for column in zip(*ranks, strict=True)]
        return [i for i in sorted(range(len(best)), key=lambda i: best[i]) if math.isfinite(best[i])]

    def __call__(self, scores: Tensor, batch: ListBatch, view: int, key: int) -> tuple[Tensor, dict[str, float]]:
        """The mean loss over each list's orderings, [B]."""
        scores = scores if self.temperatures is None else scores / self.temperatures[view]
        rows = [(b, o) for b, c in enumerate(batch.lists) for o in self.orderings[c.query_id]]
        owner = torch.tensor([b for b, _ in rows], device=scores.device)
        ranks = torch.full((len(rows), scores.shape[1]), torch.inf)
        values = torch.zeros(len(rows), scores.shape[1])
        for i, (b, ordering) in enumerate(rows):
            candidates = batch.lists[b]
            row_ranks = _tied(ranks_of(ordering, candidates), ordering, candidates)
            if self.unranked_last:
                row_ranks = [min(rank, len(ordering.doc_ids) + 1.0) for rank in row_ranks]
            ranks[i, : len(candidates)] = torch.tensor(row_ranks)
            if self.loss in NEEDS_VALUES:
                values[i, : len(candidates)] = torch.tensor(_values(ordering, candidates))
        losses = LOSSES[self.loss](scores[owner], ranks.to(scores.device), batch.mask[owner], values.to(scores.device))
        total = torch.zeros(len(batch.lists), device=scores.device).index_add(0, owner, losses)
        return total / torch.bincount(owner, minlength=len(batch.lists)).clamp(min=1), {}


def _orders(ordering: Ordering, candidates: CandidateList) -> bool:
    """Whether the ordering prefers some candidate to another one."""
    return sum(map(math.isfinite, ranks_of(ordering, candidates))) > 1


def _tied(ranks: list[float], ordering: Ordering, candidates: CandidateList) -> list[float]:
    """Ranks in which candidates of equal teacher score share the best rank among them."""
    if ordering.scores is None:
        return ranks
    first: dict[float, float] = {}
    for position, score in enumerate(ordering.scores):
        first.setdefault(score, position + 1.0)
    score_of = dict(zip(ordering.doc_ids, ordering.scores, strict=True))
    return [
        first[score_of[doc_id]] if math.isfinite(rank) else rank
        for doc_id, rank in zip(candidates.doc_ids, ranks, strict=True)
    ]


def _values(ordering: Ordering, candidates: CandidateList) -> list[float]:
    """The teacher's scores; where it has none, 1 / log2(rank + 1), as if the places were nDCG gains."""
    if ordering.scores is not None:
        by_doc = dict(zip(ordering.doc_ids, ordering.scores, strict=True))
    else:
        by_doc = {d: 1.0 / math.log2(i + 2) for i, d in enumerate(ordering.doc_ids)}
    return [by_doc.get(doc_id, 0.0) for doc_id in candidates.doc_ids]
