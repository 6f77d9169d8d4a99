"""Refine: raise a reward from where cloning ended (reinforcement learning in score space).

1. A reward whose expectation under Plackett-Luce is known (nDCG, RR, AP, recall, mixtures ...) is optimised through it:
   the policy gradient without samples, groups, clipping or importance ratios. Any other reward is sampled.
2. The objective of a list is u(E), not E (`objective.utility`): u = log gives lists where the reward is rare the weight
   that their probability takes away. Sampled estimators maximise E itself unless told otherwise; then the estimate
   stands in for E, and the gradient of u is biased.
3. Scores are divided by a temperature, so that the policy explores `entropy` nats a rank: a cloned policy is nearly
   deterministic and would have no gradient.
4. KL to the clone over who is ranked first keeps the policy near what was learned (`anchor`, `training.anchoring`).
5. Lists in which no ranking earns more than another are dropped, and those outside `band`; both are counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor

from rerank import plackett_luce
from rerank.errors import InputError, nearest
from rerank.lists import ListBatch, batch_of
from rerank.models.language.generative import AnyPolicy, GenerativePolicy
from rerank.models.policy import ScorePolicy
from rerank.objective.expected import expected_reward, is_exact
from rerank.objective.sampled import ESTIMATORS, Estimate, list_clip
from rerank.objective.utility import utility_named
from rerank.randomness import generator
from rerank.training.anchoring import ENTROPY, Anchoring
from rerank.training.audit import audit, in_band
from rerank.training.first_stage import fit_first_stage
from rerank.training.headroom import refinable, relevant_first
from rerank.training.loop import Context, fit
from rerank.training.paid import blamed, checked_pay, name_of, paid
from rerank.training.schedule import Schedule
from rerank.training.written.stages import MALFORMED_PRICE, refine_written
from rerank.types import CandidateList, Reward

FITTED = 64
"""Lists that the weights of the first-stage scores are fitted on: an expectation costs more than a pair loss."""


@final
@dataclass(frozen=True, kw_only=True)
class Refine(Schedule):
    """Settings of a refinement stage."""

    reward: str | Mapping[str, float] = "nDCG@10"
    """A measure (`nDCG@10`, `AP`, `RR@10` ...), `module:function` of your own, or a table of these with weights."""
    gain: Literal["linear", "exponential"] = "linear"
    """What a grade is worth in nDCG and DCG: the grade, or 2^grade - 1."""
    ideal: Literal["candidates", "judged"] = "candidates"
    """What nDCG, recall and AP are normalised by: what the list can reach, or all judged documents."""
    estimator: str = "auto"
    """auto: exact where the reward allows it, else rloo; or one of `objective.sampled.ESTIMATORS`."""
    utility: str = "auto"
    """What is maximised of a list's expected reward: 'log', 'linear', 'power:A', 'pass@K'; auto: log where the
    expectation is exact and cannot be negative, else linear."""
    anchor: float | Literal["auto"] = "auto"
    """Weight of the KL to the clone; "auto" chooses it from the number of judged lists."""
    entropy: float = ENTROPY
    """Nats a rank that the temperature leaves the policy at the start."""
    temperature: float | None = None
    """Fixed temperature instead of the automatic one."""
    samples: int = 16
    """Rankings drawn from a list, where the estimator samples."""
    list_clip: float = 5.0
    """A sampled gradient of a list is cut to this many times the median of its batch."""
    malformed_price: float = MALFORMED_PRICE
    """What an answer costs that a model wrote freely (`constrained = false`) and that is malformed."""
    band: tuple[float, ...] = ()
    """(low, high): only lists whose most likely ranking earns this share of what the ideal one does; () for all."""
    fit_first_stage: bool = False
    """Fit the weights of the first-stage scores alone before the first step (where no clone has done it)."""
    learning_rate: float = 2e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.estimator not in ("auto", "exact", *ESTIMATORS):
            known = ["auto", "exact", *ESTIMATORS]
            raise InputError(f"estimator {self.estimator!r} is not known{nearest(self.estimator, known)}")
        if self.utility != "auto":
            utility_named(self.utility)
        for name, allowed in (("gain", ("linear", "exponential")), ("ideal", ("candidates", "judged"))):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        if not 0 < self.entropy < 100:
            raise InputError(f"entropy must be greater than 0 nats, not {self.entropy!r}")
        if self.samples < 2:
            raise InputError(f"samples must be at least 2, not {self.samples!r}: each is compared with the others")
        if not 0 <= self.malformed_price < 1e6:
            raise InputError(f"malformed_price must be at least 0, not {self.malformed_price!r}")
        if not self.list_clip > 0:
            raise InputError(f"list_clip must be greater than 0, not {self.list_clip!r}")
        if self.band and not (len(self.band) == 2 and 0 <= self.band[0] < self.band[1] <= 1):
            raise InputError(f"band must be two shares, low below high, such as [0.1, 0.98], not {list(self.band)!r}")

    def _check_terms(self) -> None:
        super()._check_terms()
        if self.temperature is not None and not 0 < self.temperature < 1e6:
            raise InputError(f"temperature must be greater than 0, not {self.temperature!r}")
        if self.temperature is not None and self.keep_entropy:
            raise InputError(
                f"keep_entropy moves the temperature, temperature = {self.temperature!r} fixes it: give one of the two"
            )

    def run(
        self, policy: AnyPolicy, lists: Sequence[CandidateList], reward: Reward, context: Context
    ) -> dict[str, Any]:
        """Train `policy` in place to earn `reward`; returns counts, the temperature and the dev measure."""
        if isinstance(policy, GenerativePolicy):
            return refine_written(policy, lists, reward, self, context, self.malformed_price)
        estimator, utility = self.check(reward)
        if estimator == "grpo":
            context.log.say(
                "note: grpo divides by the deviation of each list's rewards, which scales rare luck up by one to two "
                "orders of magnitude; rloo does not"
            )
        usable = refinable(lists, reward)
        kept = self.within_band(policy, usable, reward, context.seed)
        if self.fit_first_stage and policy.first_stage is not None and not context.resumable():
            alone = _Reinforcement(self, reward, estimator, utility, self._anchoring(policy, kept, context))
            fit_first_stage(policy.first_stage, kept, alone, context.seed, FITTED)
        anchoring = self._anchoring(policy, kept, context)
        objective = _Reinforcement(self, reward, estimator, utility, anchoring)
        report = fit(policy, kept, anchoring.around(objective), relevant_first, self, context, anchoring)
        return {
            **report,
            "lists": len(kept),
            "lists_without_headroom": len(lists) - len(usable),
            "lists_out_of_band": len(usable) - len(kept),
            "estimator": estimator,
            "utility": utility,
            "anchor": anchoring.weight,
            "temperature": anchoring.first_temperature,
        }

    def _anchoring(self, policy: ScorePolicy, lists: Sequence[CandidateList], context: Context) -> Anchoring:
        return Anchoring(policy, lists, self, context, True, self.entropy, self.temperature)

    def check(self, reward: Reward) -> tuple[str, str]:
        """(estimator, utility), "auto" resolved; InputError where they do not go with `reward`."""
        estimator = self.estimator if self.estimator != "auto" else "exact" if is_exact(reward) else "rloo"
        if estimator == "exact" and not is_exact(reward):
            raise InputError(
                f"the expectation of {name_of(reward)} is not known: give a sampled estimator, such as rloo"
            )
        signed = bool(getattr(reward, "signed", False))
        if self.utility == "auto":
            return estimator, "log" if estimator == "exact" and not signed else "linear"
        if signed and self.utility != "linear":
            raise InputError(f"{name_of(reward)} can be negative: only utility 'linear' is defined for it")
        return estimator, self.utility

    def try_on(self, lists: Sequence[CandidateList], reward: Reward) -> None:
        """InputError where `reward` cannot be refined as set; found out on a few lists, before any work is lost."""
        estimator, _ = self.check(reward)
        batch = batch_of(lists)
        scores = torch.zeros(batch.mask.shape).masked_fill(~batch.mask, -torch.inf)
        paid(reward, plackett_luce.best(scores, batch.mask)[:, None], batch)
        with blamed(reward):
            if estimator == "exact":
                found = expected_reward(scores, reward, batch)
            else:
                found = ESTIMATORS[estimator](scores, reward, batch, 2, generator("trial")).value
        checked_pay(reward, found, [len(lists)], batch)

    def within_band(
        self, policy: AnyPolicy, lists: Sequence[CandidateList], reward: Reward, seed: int
    ) -> list[CandidateList]:
        """The lists that `band` lets through, as `policy` ranks them now; InputError where there are none."""
        if not self.band:
            return list(lists)
        found = audit(policy, lists, reward, seed=seed)
        kept = [lists[i] for i in in_band(found, *self.band)]
        if not kept:
            raise InputError(f"band = {list(self.band)} keeps none of {len(lists)} lists: widen it, or leave it out")
        return kept


@final
class _Reinforcement:
    def __init__(self, settings: Refine, reward: Reward, estimator: str, utility: str, anchoring: Anchoring) -> None:
        self.settings, self.reward, self.estimator, self.anchoring = settings, reward, estimator, anchoring
        self.utility = utility_named(utility)

    def __call__(self, scores: Tensor, batch: ListBatch, view: int, key: int) -> tuple[Tensor, dict[str, float]]:
        """Minus the utility of each list's expected reward, [B]."""
        tempered = scores / self.anchoring.temperatures[view]
        losses, expected = (
            self._exact(tempered, batch) if self.estimator == "exact" else self._sampled(tempered, batch, key)
        )
        return losses, {"expected": float(expected.mean())}

    def _exact(self, scores: Tensor, batch: ListBatch) -> tuple[Tensor, Tensor]:
        expected = expected_reward(scores, self.reward, batch)
        return -self.utility(expected), expected.detach()

    def _sampled(self, scores: Tensor, batch: ListBatch, key: int) -> tuple[Tensor, Tensor]:
        draw = generator(key, device=scores.device)
        try:
            found: Estimate = ESTIMATORS[self.estimator](scores, self.reward, batch, self.settings.samples, draw)
        except ValueError as error:  # a user's function returned what is no reward; its message says what
            raise InputError(str(error)) from error
        expected = found.value.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.utility(expected).sum(), expected)
        gradient = list_clip(found.gradient * slope[:, None], batch.mask, self.settings.list_clip)
        # The loss has the value of the utility and the gradient of the estimate.
        moved = torch.where(batch.mask, scores - scores.detach(), torch.zeros_like(scores))
        return -self.utility(found.value) - (moved * gradient).sum(-1), found.value
