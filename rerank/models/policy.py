"""A scorer as a Plackett-Luce policy, with the first stage's scores as a learned residual.

    served score = scorer(query, document) + sum_f weight_f * first-stage score f, standardised within the list

A fresh scorer begins at 0, so before training the ranking is the first stage's own: learning starts from what is
already known. Training applies its loss to both views, with and without the residual, in one forward pass: the plain
scorer stays a good ranker by itself, and that is what is exported for use without a first stage.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, final

import torch
from torch import Generator, Tensor, nn

from rerank import plackett_luce
from rerank.engine.batching import ItemScorer, padded, score_items
from rerank.engine.memory import out_of_memory, scoring_budget
from rerank.errors import TrainingError
from rerank.lists import features_of, mask_of
from rerank.models.calibration import Calibration
from rerank.prompting.scales import Window
from rerank.prompting.windows import Windowing, run_plans
from rerank.randomness import key_of
from rerank.types import CandidateList, Rollout, Run

logger = logging.getLogger("rerank.models")


@final
class FirstStageWeights(nn.Module):
    """One learned weight for each first-stage score."""

    def __init__(self, initial: Mapping[str, float], active: bool = True) -> None:
        super().__init__()
        self.names = tuple(initial)
        self.weight = nn.Parameter(torch.tensor([float(v) for v in initial.values()]))
        self.active = active
        """Whether the residual is part of the served score; chosen on the dev lists."""

    def features(self, lists: Sequence[CandidateList]) -> Tensor:
        """First-stage scores [B, N, F], standardised within each list, 0 where padded."""
        return features_of(lists, self.names).to(self.weight.device)

    def forward(self, lists: Sequence[CandidateList]) -> Tensor:
        """The residual [B, N], 0 where padded."""
        return self.features(lists) @ self.weight

    def as_dict(self) -> dict[str, float]:
        """Retriever name -> weight."""
        return dict(zip(self.names, self.weight.detach().tolist(), strict=True))


@final
class ScorePolicy(nn.Module):
    """Plackett-Luce over the scores of a `ItemScorer`; implements `types.Policy` and `types.Scorer`."""

    def __init__(
        self, scorer: nn.Module, first_stage: FirstStageWeights | None = None, budget: int | None = None
    ) -> None:
        super().__init__()
        self.scorer = scorer
        self.first_stage = first_stage
        self.budget = _budget_of(scorer) if budget is None else budget
        """Tokens of one micro-batch; halved for good where memory does not hold so many."""
        self._told = False
        self.calibration: Calibration | None = None
        """From scores to probabilities, once fitted; no part of what is trained, and stale after more training."""

    @property
    def item_scorer(self) -> ItemScorer:
        """The scorer, as the engine sees it."""
        return self.scorer  # type: ignore[return-value]

    @property
    def in_order(self) -> bool:
        """Whether scores depend on the order in which candidates come."""
        return bool(getattr(self.scorer, "in_order", False))

    def views(self, flat: Tensor, lists: Sequence[CandidateList]) -> Tensor:
        """Scores [V, B, N] from flat logits: the served view first, then, where there is a residual, the plain one."""
        plain = padded(flat, lists)
        if self.first_stage is None or not self.first_stage.active:
            return plain[None]
        return torch.stack([plain + self.first_stage(lists), plain])

    def all_views(self, lists: Sequence[CandidateList]) -> Tensor:
        """Scores [V, B, N] of lists."""
        return self.views(self._of_lists(lists, self.logits), lists)

    def served_views(self, lists: Sequence[CandidateList]) -> Tensor:
        """As `all_views`, for scores that are handed out: an error where one is no number."""
        return self.views(self.served_of(lists), lists)

    def served_of(self, lists: Sequence[CandidateList]) -> Tensor:
        """The scorer's own logits [n] of each candidate of each list, in order; all finite."""
        return self._of_lists(lists, self.served_logits)

    def _of_lists(self, lists: Sequence[CandidateList], logits: Callable[[Sequence[Any]], Tensor]) -> Tensor:
        """Flat logits [n] of lists; by windows where the scorer reads whole lists, and no gradient is wanted."""
        if getattr(self.scorer, "windowing", None) is None or torch.is_grad_enabled():
            return logits(self.item_scorer.encode(lists))

        def ask(shown: Sequence[CandidateList], windows: Sequence[Window]) -> list[list[float]]:
            found = logits(self.item_scorer.encode(shown))
            return [row.tolist() for row in found.split([len(window) for window in windows])]

        return by_windows(self.scorer, lists, ask)

    def logits(self, items: Sequence[Any]) -> Tensor:
        """Logits [n] of encoded pairs, a micro-batch at a time, in as much memory as there is."""
        while True:
            try:
                return score_items(self.item_scorer, items, self.budget)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or self.budget <= max(map(len, items)):
                    raise
            # Outside of the except block: there the error's traceback would still hold the tensors.
            self.budget //= 2
            if not self._told:
                self._told = True
                logger.warning(
                    "out of memory; from here on at most %d tokens are scored at once (and fewer, if need be)",
                    self.budget,
                )

    def served_logits(self, items: Sequence[Any]) -> Tensor:
        """As `logits`, for scores that are handed out: an error where one is no number."""
        found = self.logits(items)
        finite = torch.isfinite(found)
        if not bool(finite.all()):
            raise TrainingError(
                f"{int((~finite).sum())} of {len(found)} logits are not finite: the weights are broken, or too large "
                "for this number format; try precision = 'float32', or an earlier model"
            )
        return found

    def scores(self, lists: Sequence[CandidateList]) -> Tensor:
        """Scores [B, N], -inf where padded."""
        return self.all_views(lists)[0]

    def forward(self, lists: Sequence[CandidateList]) -> Tensor:
        """Scores [B, N], -inf where padded."""
        return self.scores(lists)

    def sample(self, lists: Sequence[CandidateList], n: int, generator: Generator) -> Rollout:
        """`n` rankings of each list with the log-probabilities of the whole rankings."""
        with torch.no_grad():
            scores = self.scores(lists)
            mask = mask_of(lists).to(scores.device)
            rankings = plackett_luce.sample(scores, mask, n, generator)
            log_probs = plackett_luce.log_prob(scores, mask, rankings)
        return Rollout(rankings, log_probs, torch.ones_like(log_probs, dtype=torch.bool))

    def log_probs(self, lists: Sequence[CandidateList], rankings: Tensor) -> Tensor:
        """Log-probabilities [B, S] of the first K places of rankings [B, S, K]."""
        scores = self.scores(lists)
        return plackett_luce.log_prob(scores, mask_of(lists).to(scores.device), rankings)


def by_windows(
    scorer: Any,
    lists: Sequence[CandidateList],
    ask: Callable[[Sequence[CandidateList], Sequence[Window]], Sequence[Sequence[float]]],
) -> Tensor:
    """Scores [n] of each candidate of each list, in order, as the windowing of `scorer` finds them.

    `ask` gets the lists as they are shown in one round, and the places of their candidates in the lists that they are
    windows of; it returns the scores of each.
    """
    windowing: Windowing = scorer.windowing
    plans = [windowing.plan(len(c), scorer.window, key_of("windows", c.query)) for c in lists]

    def shown(asked: Sequence[tuple[int, Window]]) -> Sequence[Sequence[float]]:
        return ask([lists[i].subset(window) for i, window in asked], [window for _, window in asked])

    return torch.tensor([score for row in run_plans(plans, shown) for score in row], device=scorer.device)


def _budget_of(scorer: nn.Module) -> int:
    """Tokens of one micro-batch: the scorer's own number, or what keeps its device busy."""
    device = getattr(scorer, "device", None)
    own: int | None = getattr(scorer, "budget", None)
    return scoring_budget(device if isinstance(device, torch.device) else torch.device("cpu")) if own is None else own


class Serving(Protocol):
    """What ranks lists: a policy of scores, or one that writes."""

    def eval(self) -> Any:
        """Itself, without dropout."""
        ...

    def served_views(self, lists: Sequence[CandidateList]) -> Tensor:
        """Scores [V, B, N], all of them finite."""
        ...


@torch.inference_mode()
def rerank_lists(policy: Serving, lists: Sequence[CandidateList], name: str, at_once: int = 16) -> dict[str, Run]:
    """The policy's runs over lists: `{"served": run}`, and `"plain"` (without first-stage scores) where it differs."""
    policy.eval()
    views: dict[str, dict[str, dict[str, float]]] = {}
    for start in range(0, len(lists), at_once):
        group = lists[start : start + at_once]
        found = policy.served_views(group)
        for view, scores in zip(("served", "plain"), found.tolist(), strict=False):
            for candidates, row in zip(group, scores, strict=True):
                by_doc = dict(zip(candidates.doc_ids, row, strict=False))
                views.setdefault(view, {})[candidates.query_id] = by_doc
    before = Run({c.query_id: tuple((d, -float(i)) for i, d in enumerate(c.doc_ids)) for c in lists})
    return {view: Run.from_scores(scores, name, before) for view, scores in views.items()}


def with_rest(run: Run, lists: Sequence[CandidateList], name: str) -> Run:
    """The run with the candidates of `lists` that it does not rank below it, in first-stage order."""
    rankings = {}
    for candidates in lists:
        ranked = run.rankings[candidates.query_id]
        seen = {d for d, _ in ranked}
        floor = ranked[-1][1] if ranked else 0.0
        rest = [d for d in candidates.doc_ids if d not in seen]
        rankings[candidates.query_id] = (*ranked, *((d, floor - 1.0 - i) for i, d in enumerate(rest)))
    return Run(rankings, name)
