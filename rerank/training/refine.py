"""Refine: raise a reward from where cloning ended (reinforcement learning in score space).

1. A factorised reward (nDCG, RR, recall, ...) is optimised through its exact expectation under Plackett-Luce: the
   policy gradient without samples, groups, clipping or importance ratios. Any other reward goes through RLOO.
2. The objective of a list is u(E), not E: u = log gives lists where the reward is rare the weight that their
   probability takes away (with Success@1 it is softmax cross-entropy).
3. Scores are divided by a temperature fixed at the start, so that the policy explores `entropy` nats a rank: a cloned
   policy is nearly deterministic and would have no gradient.
4. KL to the clone over who is ranked first keeps the policy near what was learned.
5. Lists in which no ranking earns more than another are dropped, and counted.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor

from rerank import plackett_luce
from rerank.errors import InputError
from rerank.lists import ListBatch, mask_of
from rerank.models.policy import ScorePolicy
from rerank.objective.anchor import anchored
from rerank.objective.expected import expected_metric
from rerank.objective.sampled import rloo
from rerank.randomness import generator
from rerank.training.loop import Context, Schedule, fit
from rerank.types import CandidateList, Reward

Utility = Literal["log", "linear"]
Estimator = Literal["auto", "exact", "rloo"]


@final
@dataclass(frozen=True, kw_only=True)
class Refine(Schedule):
    """Settings of a refinement stage."""

    reward: str = "nDCG@10"
    """A measure (nDCG@k, RR@k, R@k, P@k, Success@k, RBP, ERR@k, DCG@k) or `module:function` of your own."""
    estimator: Estimator = "auto"
    """auto: exact where the reward allows it, else rloo."""
    utility: Utility = "log"
    """What is maximised of a list's expected reward: its log, or the reward itself."""
    anchor: float = 0.2
    """Weight of the KL to the clone."""
    entropy: float = 1.25
    """Nats a rank that the temperature leaves the policy at the start."""
    temperature: float | None = None
    """Fixed temperature instead of the automatic one."""
    samples: int = 16
    """Rankings drawn from a list (rloo)."""
    learning_rate: float = 2e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (("estimator", get_args(Estimator)), ("utility", get_args(Utility))):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        if self.temperature is not None and not 0 < self.temperature < 1e6:
            raise InputError(f"temperature must be greater than 0, not {self.temperature!r}")
        if not 0 <= self.anchor < 1e6:
            raise InputError(f"anchor must be at least 0, not {self.anchor!r}")
        if not 0 < self.entropy < 100:
            raise InputError(f"entropy must be greater than 0 nats, not {self.entropy!r}")
        if self.samples < 2:
            raise InputError(f"samples must be at least 2, not {self.samples!r}: each is compared with the others")

    def run(
        self, policy: ScorePolicy, lists: Sequence[CandidateList], reward: Reward, context: Context
    ) -> dict[str, Any]:
        """Train `policy` in place to earn `reward`; returns counts, the temperature and the dev measure."""
        exact = self.estimator == "exact" or (self.estimator == "auto" and hasattr(reward, "factors"))
        if exact and not hasattr(reward, "factors"):
            raise InputError(f"estimator 'exact' needs a factorised reward; {_name(reward)} is not one: use 'rloo'")
        usable = [c for c in lists if c.labels is not None and has_headroom(c)] if exact else list(lists)
        if not usable:
            raise InputError(f"none of the {len(lists)} lists has a relevant candidate to move: nothing to refine")
        reference = _Reference(policy)
        temperatures = self._temperatures(reference, usable, context)
        objective = _Reinforcement(self, reward, exact, reference, temperatures)
        report = fit(policy, usable, objective, relevant_first, self, context)
        return {
            **report,
            "lists": len(usable),
            "lists_without_headroom": len(lists) - len(usable),
            "estimator": "exact" if exact else "rloo",
            "temperature": temperatures[0],
        }

    def _temperatures(self, reference: _Reference, lists: Sequence[CandidateList], context: Context) -> list[float]:
        """One temperature a view, from a sample of lists as the policy stands before the first step."""
        if self.temperature is not None:
            return [self.temperature] * 2
        order = torch.randperm(len(lists), generator=generator(context.seed, "temperature")).tolist()[:32]
        some = [_cut(lists[i], self.list_size) for i in order]
        mask = mask_of(some)
        return [automatic_temperature(s, mask, self.entropy) for s in reference.views(some).cpu()]


def has_headroom(candidates: CandidateList) -> bool:
    """Whether some ranking of the list earns more than another: a relevant candidate and one of another grade."""
    grades = {max(0, label) for label in candidates.labels or ()}
    return len(grades) > 1


def relevant_first(candidates: CandidateList) -> list[int]:
    """Indices of the relevant candidates, highest grade first; none for an unjudged list."""
    labels = candidates.labels or ()
    return sorted((i for i, label in enumerate(labels) if label > 0), key=lambda i: -labels[i])


def automatic_temperature(scores: Tensor, mask: Tensor, entropy: float, cutoff: int = 10) -> float:
    """The temperature at which the policy's mean entropy over the first `cutoff` ranks is `entropy` nats.

    Bisection on a logarithmic scale between 0.01 and 100. Where the wish is more than the lists allow (short lists),
    90 % of the greatest possible entropy is aimed at.
    """
    lists = mask.sum(-1) > 1
    scores, mask = scores[lists].double().detach(), mask[lists]

    def mean_entropy(temperature: float) -> float:
        draws = plackett_luce.sample(scores / temperature, mask, 8, generator("temperature"))
        return float(plackett_luce.entropy_by_rank(scores / temperature, mask, draws, cutoff).mean())

    spread = scores.masked_fill(~mask, -torch.inf).amax(-1) - scores.masked_fill(~mask, torch.inf).amin(-1)
    if not bool((spread > 0).any()):
        return 1.0
    wanted = min(entropy, 0.9 * mean_entropy(1e6))
    low, high = 0.01, 100.0
    for _ in range(30):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if mean_entropy(middle) < wanted else (low, middle)
    return (low * high) ** 0.5


@final
class _Reference:
    """The policy as it was before the stage.

    Only the last answer is kept: float sums differ with a batch's company, so scores kept from earlier steps would
    depend on which steps there were, and a resumed run would not end with the same bits.
    """

    def __init__(self, policy: ScorePolicy) -> None:
        self.policy = copy.deepcopy(policy).eval().requires_grad_(False)
        self._last: tuple[Sequence[CandidateList], Tensor] | None = None

    @torch.no_grad()
    def views(self, lists: Sequence[CandidateList]) -> Tensor:
        """Scores [V, B, N]."""
        if self._last is None or self._last[0] is not lists:
            self._last = (lists, self.policy.all_views(lists))
        return self._last[1]


@final
class _Reinforcement:
    def __init__(
        self,
        settings: Refine,
        reward: Reward,
        exact: bool,
        reference: _Reference,
        temperatures: list[float],
    ) -> None:
        self.settings, self.reward, self.exact = settings, reward, exact
        self.reference, self.temperatures = reference, temperatures

    def __call__(self, scores: Tensor, batch: ListBatch, view: int, key: int) -> tuple[Tensor, dict[str, float]]:
        """Minus the utility of each list's expected reward, plus the anchor, [B]."""
        tempered = scores / self.temperatures[view]
        losses, facts = self._exact(tempered, batch) if self.exact else self._sampled(tempered, batch, key)
        reference = self.reference.views(batch.lists)[view] / self.temperatures[view]
        with torch.no_grad():
            facts["kl"] = float(plackett_luce.top1_kl(tempered, reference, batch.mask).mean())
            facts["entropy"] = float(plackett_luce.top1_entropy(tempered, batch.mask).mean())
        return anchored(losses, tempered, reference, batch.mask, self.settings.anchor), facts

    def _exact(self, scores: Tensor, batch: ListBatch) -> tuple[Tensor, dict[str, float]]:
        gain, weight, survival = self.reward.factors(batch)  # type: ignore[attr-defined]
        expected = expected_metric(scores, gain, weight, batch.mask, survival)
        value = expected.clamp(min=1e-6).log() if self.settings.utility == "log" else expected
        return -value, {"expected": float(expected.detach().mean())}

    def _sampled(self, scores: Tensor, batch: ListBatch, key: int) -> tuple[Tensor, dict[str, float]]:
        draw = generator(key, device=scores.device)
        rankings = plackett_luce.sample(scores, batch.mask, self.settings.samples, draw)
        try:
            rewards = self.reward(rankings, batch).to(scores.device)
        except ValueError as error:  # a user's function returned what is no reward; its message says what
            raise InputError(str(error)) from error
        cutoff = getattr(self.reward, "cutoff", None)
        log_probs = plackett_luce.log_prob(scores, batch.mask, rankings[..., :cutoff])
        return rloo(rewards, log_probs), {"expected": float(rewards.mean())}


def _cut(candidates: CandidateList, size: int) -> CandidateList:
    return candidates.subset(range(min(size, len(candidates))))


def _name(reward: Reward) -> str:
    return str(getattr(reward, "name", type(reward).__name__))
