"""Cloning and refinement of models that write their rankings (`models.language.generative`), through `training.loop`.

Cloning is the cross-entropy of the teacher's order, a name at a time, each given the teacher's names before it. Where a
teacher holds several candidates equal, their order is drawn anew each time; from where all that is left is equal
nothing is learned.

Refinement draws `samples` answers with the weights as they are and follows the policy gradient. An action is a name (or
a thought token): its advantage is the reward from its place on, where the reward is a sum over places, minus that of
the list's other answers (Rank-GRPO's credit, with a leave-one-out baseline and no division by the deviation); its ratio
to the probability with which it was drawn, cut as in PPO, makes up for samplers that compute otherwise than training.

The anchor is KL(policy || policy before the stage) a place, summed exactly over the names that were possible at each
place drawn, as chances are known for all of them: at least 0, a fraction of the noise of a sampled ratio (k1, k3), and
its gradient has both parts, that of each place's KL and that of coming there (the KL still to come is charged to the
reward). Of free text, whose options are the whole vocabulary, the log-ratio is charged to the reward alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from rerank.engine.gradient_cache import LossOf
from rerank.errors import InputError
from rerank.lists import ListBatch, batch_of, ranks_of
from rerank.models.language.answering import Answering
from rerank.models.language.generative import GenerativePolicy
from rerank.models.language.permutations import Writer, Written
from rerank.randomness import generator, key_of
from rerank.training.anchoring import anchor_strength
from rerank.training.headroom import refinable, relevant_first
from rerank.training.loop import Context, fit
from rerank.training.paid import paid
from rerank.training.sampling import Portion
from rerank.training.step import Found, Room, shared_gradients
from rerank.training.written.actions import Lesson, actions_of, descend, learn
from rerank.training.written.anchor import WrittenAnchor
from rerank.training.written.credit import (
    advantages,
    earned_to_go,
    entropy_of,
    kl_by_place,
    old_log_probs,
)
from rerank.training.written.meaning import check_cloning, check_price, check_refinement
from rerank.types import CandidateList, Ordering, Reward

AUTO_ANCHOR = 0.05
"""What "auto" makes of the anchor with few lists; it fades to 0 with many, as for other policies."""
MALFORMED_PRICE = 0.5
"""What a malformed answer costs: about what a good ranking earns more than a bad one."""


# --------------------------------------------------------------------------------------------------------------- clone
def clone_written(
    policy: GenerativePolicy,
    lists: Sequence[CandidateList],
    orderings: Iterable[Ordering],
    settings: Any,
    context: Context,
) -> dict[str, Any]:
    """Train `policy` in place to write what teachers ordered; `settings` is a `Clone`, the report that of its `run`."""
    check_cloning(settings)
    by_query: dict[str, list[Ordering]] = {}
    for ordering in orderings:
        by_query.setdefault(ordering.query_id, []).append(ordering)
    teaching = _Teaching(by_query, settings.unranked == "last")
    usable = [c for c in lists if teaching.targets(c, 0)]
    if not usable:
        raise InputError(f"no teacher ordered two candidates of any of the {len(lists)} lists: nothing to clone")
    report = fit(policy, usable, teaching, teaching.important, settings, context)  # type: ignore[arg-type]
    return {**report, "lists": len(usable), "lists_without_ordering": len(lists) - len(usable), "anchor": 0.0}


class Target(NamedTuple):
    """What a teacher would write of a list."""

    order: list[int]
    """The places that are learned."""
    among: list[int] | None
    """The candidates that were to be chosen from; None for all."""
    rest: list[int]
    """The other candidates, for whoever has to write them all: those that the teacher ordered first."""


def target_of(ordering: Ordering, candidates: CandidateList, unranked_last: bool, key: int) -> Target:
    """The order of a teacher, ties drawn by `key`, up to where all that is left is equal."""
    ranks, first = ranks_of(ordering, candidates), dict[float, float]()
    if ordering.scores is not None:
        score_of = dict(zip(ordering.doc_ids, ordering.scores, strict=True))
        for position, score in enumerate(ordering.scores):
            first.setdefault(score, position + 1.0)
        ranks = [first[score_of[d]] if r < math.inf else r for d, r in zip(candidates.doc_ids, ranks, strict=True)]
    drawn = torch.randperm(len(ranks), generator=generator(key, "ties", ordering.teacher)).tolist()
    ordered = sorted((i for i, rank in enumerate(ranks) if rank < math.inf), key=lambda i: (ranks[i], drawn[i]))
    unordered = [i for i, rank in enumerate(ranks) if rank == math.inf]
    if not ordered or (unranked_last and unordered):
        return Target(ordered, None, unordered)
    learned = [i for i in ordered if ranks[i] < ranks[ordered[-1]]]
    return Target(learned, sorted(ordered) if unordered else None, [*ordered[len(learned) :], *unordered])


@final
class _Teaching:
    """The objective of cloning."""

    def __init__(self, orderings: dict[str, list[Ordering]], unranked_last: bool) -> None:
        self.orderings, self.unranked_last = orderings, unranked_last

    def important(self, candidates: CandidateList) -> list[int]:
        """Indices in the order of the best rank that any teacher gives."""
        ranks = [ranks_of(ordering, candidates) for ordering in self.orderings[candidates.query_id]]
        best = [min(column) for column in zip(*ranks, strict=True)]
        return [i for i in sorted(range(len(best)), key=lambda i: best[i]) if best[i] < math.inf]

    def targets(self, candidates: CandidateList, key: int) -> list[Target]:
        """What each teacher would write, where that says anything."""
        said = self.orderings.get(candidates.query_id, ())
        found = [target_of(ordering, candidates, self.unranked_last, key) for ordering in said]
        return [target for target in found if target.order]

    def gradients(self, policy: Any, portion: Portion, room: Room, key: int, where: str) -> Found:
        """Leaves the gradients of the whole step in the parameters; its loss."""
        room.measure(portion)
        items: list[Written] = []
        shares: list[float] = []
        for place, candidates, [prompt] in zip(portion.places, portion.lists, portion.items, strict=True):
            targets = self.targets(candidates, key_of(key, place))
            answers = [_answer(policy.scorer.answering, prompt, target) for target in targets]
            answers = [answer for answer in answers if answer.choices]
            items += answers
            shares += [1.0 / (len(answers) * portion.n_lists)] * len(answers)

        def loss_at(group: Sequence[int]) -> LossOf:
            parts = actions_of([items[i] for i in group], policy.scorer.device)
            weight = torch.tensor([shares[i] for i in group], device=policy.scorer.device)
            return lambda flat: -(parts.mean_of_item(parts.log_probs(flat)) * weight).sum()

        keyed = key_of(key, portion.places[0] if portion.places else 0)
        return shared_gradients(
            policy, lambda: Found(descend(policy, items, loss_at, room, keyed), {}), room, _longest(items), where
        )


# -------------------------------------------------------------------------------------------------------------- refine
def refine_written(
    policy: GenerativePolicy,
    lists: Sequence[CandidateList],
    reward: Reward,
    settings: Any,
    context: Context,
    malformed_price: float = MALFORMED_PRICE,
) -> dict[str, Any]:
    """Train `policy` in place to earn `reward`; `settings` is a `Refine`, the report that of its `run`."""
    estimator = check_refinement(settings, reward)
    check_price(malformed_price)
    if estimator == "grpo":
        context.log.say(
            "note: grpo divides by the deviation of each list's rewards, which scales rare luck up by one to two "
            "orders of magnitude; rloo and reward_to_go do not"
        )
    usable = refinable(lists, reward)
    kept = settings.within_band(policy, usable, reward, context.seed)
    weight = anchor_strength(settings.anchor, len(kept)) * (AUTO_ANCHOR if settings.anchor == "auto" else 1.0)
    anchor = WrittenAnchor(policy, weight, settings.reset_reference)
    objective = _Rollouts(reward, estimator, settings.samples, anchor, malformed_price)
    report = fit(policy, kept, objective, relevant_first, settings, context, anchor)  # type: ignore[arg-type]
    policy.tell_faults()
    return {
        **report,
        "lists": len(kept),
        "lists_without_headroom": len(lists) - len(usable),
        "lists_out_of_band": len(usable) - len(kept),
        "estimator": estimator,
        "utility": "linear",
        "anchor": weight,
        "temperature": 1.0,
    }


@final
class _Rollouts:
    """The objective of refinement."""

    def __init__(
        self, reward: Reward, estimator: str, samples: int, anchor: WrittenAnchor, malformed_price: float
    ) -> None:
        self.reward, self.estimator, self.samples, self.anchor = reward, estimator, samples, anchor
        self.price = malformed_price

    def gradients(self, policy: Any, portion: Portion, room: Room, key: int, where: str) -> Found:
        """Leaves the gradients of the whole step in the parameters; its loss and facts."""
        room.measure(portion)
        prompts = [prompt for [prompt] in portion.items]
        longest = max((len(p) for p in prompts), default=1) + policy.scorer.answering.most_tokens
        keyed = key_of(key, portion.places[0] if portion.places else 0)

        def attempt() -> Found:
            if not portion.lists:
                return Found(0.0, {})
            draws = [
                torch.rand(
                    self.samples,
                    policy.scorer.answering.most_choices,
                    generator=generator(key, "answers", place),
                    dtype=torch.float64,
                )
                for place in portion.places
            ]
            drafts = policy.drafts(prompts, draws)
            learned, facts = self.lessons(policy, portion.lists, drafts)
            share = 1.0 / (self.samples * portion.n_lists)
            loss, cut = learn(policy, learned, share, self.anchor.weight, room, keyed)
            facts["clipped"] = cut
            return Found(loss, {name: value * len(portion.lists) / portion.n_lists for name, value in facts.items()})

        return shared_gradients(policy, attempt, room, longest, where)

    def lessons(
        self, policy: GenerativePolicy, lists: Sequence[CandidateList], drafts: Sequence[Sequence[Writer]]
    ) -> tuple[list[Lesson], dict[str, float]]:
        """What is to be learned from answers, and the facts for the log (means over the lists)."""
        rollout = policy.rollout(lists, drafts)
        batch = batch_of(lists, rollout.rankings.device)
        rewards = paid(self.reward, rollout.rankings, batch)
        to_go = self._to_go(rollout.rankings, batch, rewards) - self.price * (~rollout.valid)[..., None]
        items = [[writer.written() for writer in of_list] for of_list in drafts]
        reference = self._reference(policy, items)
        kl = torch.zeros_like(to_go)
        for b, row in enumerate(reference):
            for s, log_q in enumerate(row):
                if log_q is not None:
                    kl[b, s] = kl_by_place(drafts[b][s], log_q, to_go.shape[-1])
        places = torch.tensor([[max(1, len({c.place for c in w.choices})) for w in row] for row in drafts])
        kl = kl / places.to(kl)[..., None]
        credit = advantages(self.estimator, to_go - self.anchor.weight * kl.flip(-1).cumsum(-1).flip(-1)).cpu()
        lessons = [
            Lesson(item, old_log_probs(writer), credit[b, s], log_q, 1.0 / float(places[b, s]))
            for b, row in enumerate(drafts)
            for s, (writer, item, log_q) in enumerate(zip(row, items[b], reference[b], strict=True))
            if item.choices
        ]
        facts = {
            "expected": float(rewards.mean()),
            "malformed": float((~rollout.valid).float().mean()),
            "entropy": sum(entropy_of(writer) for row in drafts for writer in row) / max(1, sum(map(len, drafts))),
        }
        return lessons, facts | ({"kl": float(kl.sum(-1).mean())} if self.anchor.weight else {})

    def _to_go(self, rankings: Tensor, batch: ListBatch, rewards: Tensor) -> Tensor:
        if self.estimator == "reward_to_go":
            return earned_to_go(self.reward, rankings, batch)
        return rewards.float()[..., None].repeat(1, 1, rankings.shape[-1])

    def _reference(self, policy: GenerativePolicy, items: list[list[Written]]) -> list[list[Tensor | None]]:
        if not self.anchor.weight:
            return [[None] * len(row) for row in items]
        flat = iter(self.anchor.log_probs([item for row in items for item in row], policy.budget))
        return [[next(flat) for _ in row] for row in items]


def _answer(answering: Answering, prompt: Any, target: Target) -> Written:
    """What is to be written: the learned places, or, without a mask, an answer that is complete."""
    if not answering.writing.constrained:
        return answering.retraced(prompt, [*target.order, *target.rest])
    return answering.retraced(prompt, target.order, target.among)


def _longest(items: Sequence[Written]) -> int:
    return max(map(len, items), default=1)
