"""The gradient of written answers, whatever they are learned from, in bounded memory.

The engine gives an answer a log-probability for each option of each choice. `Actions` says how these add up: the
options that were taken to actions (a name, or a token of a thought), actions to answers. A loss of answers is a sum of
what each contributes, so a step takes them in groups that fit, each in one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rerank.engine.gradient_cache import LossOf, backward
from rerank.models.language.permutations import Written
from rerank.randomness import key_of
from rerank.training.step import Room

CLIP = 0.2
"""How far the chance of an action may move from that with which it was drawn before it earns nothing more."""
MOST_LOG_RATIO = 20.0
"""A ratio of chances beyond its exponential is cut in any case; without this it would be infinite."""


class Actions(NamedTuple):
    """Where the numbers of some answers belong."""

    taken: Tensor
    """[C] which of all options was taken."""
    unit: Tensor
    """[C] the action, counted through all answers."""
    item: Tensor
    """[U] the answer of each action."""
    place: Tensor
    """[U] the place that each action decides."""
    choice: Tensor
    """[O] the choice of each option."""
    owner: Tensor
    """[C] the answer of each choice."""
    masked: Tensor
    """[C] whether all options of a choice are known."""

    def log_probs(self, flat: Tensor) -> Tensor:
        """[U] of actions."""
        return flat.new_zeros(len(self.item)).index_add(0, self.unit, flat[self.taken])

    def mean_of_item(self, values: Tensor) -> Tensor:
        """[R] means of values [U] over the actions of each answer."""
        n = int(self.item[-1]) + 1
        return values.new_zeros(n).index_add(0, self.item, values) / torch.bincount(self.item, minlength=n)

    def kl(self, flat: Tensor, reference: Tensor) -> Tensor:
        """[R] sum over the masked choices of each answer of KL(these chances || those of `reference`)."""
        by_choice = flat.new_zeros(len(self.owner)).index_add(0, self.choice, flat.exp() * (flat - reference))
        found = torch.where(self.masked, by_choice, torch.zeros_like(by_choice))
        return flat.new_zeros(int(self.item[-1]) + 1).index_add(0, self.owner, found)


def actions_of(items: Sequence[Written], device: torch.device) -> Actions:
    """How the numbers of answers, each with a choice, add up."""
    taken, unit, item, place, choice, owner, masked = ([] for _ in range(7))  # type: ignore[var-annotated]
    start = 0
    for row, answer in enumerate(items):
        first = len(item)
        for made in answer.choices:
            if first + made.unit == len(item):
                item.append(row)
                place.append(made.place)
            choice.extend([len(taken)] * len(made.options))
            taken.append(start + made.taken)
            unit.append(first + made.unit)
            owner.append(row)
            masked.append(not made.whole)
            start += len(made.options)
    return Actions(*(torch.tensor(column).to(device) for column in (taken, unit, item, place, choice, owner, masked)))


class Lesson(NamedTuple):
    """An answer that was drawn, and what it teaches."""

    item: Written
    old: Tensor
    """[U] the log-probabilities with which its actions were drawn."""
    credit: Tensor
    """[K] the advantage of the action at each place."""
    reference: Tensor | None
    """[width] the log-probabilities of its options under the anchor; None without one."""
    kl_share: float
    """What its KL is multiplied by to be that of a place."""


def learn(
    policy: Any, lessons: Sequence[Lesson], share: float, anchor: float, room: Room, key: int
) -> tuple[float, float]:
    """(loss, share of actions whose ratio was cut); leaves the gradients in the parameters.

    An answer's loss, times `share`: minus the clipped surrogate of its actions, plus `anchor` times its KL a place.
    """
    device = policy.scorer.device
    cut, n = 0.0, 0

    def loss_at(group: Sequence[int]) -> LossOf:
        chosen = [lessons[i] for i in group]
        parts = actions_of([lesson.item for lesson in chosen], device)
        old = torch.cat([lesson.old for lesson in chosen]).to(device)
        credit = torch.stack([lesson.credit for lesson in chosen]).to(device)[parts.item, parts.place]
        shares = torch.tensor([lesson.kl_share for lesson in chosen], device=device)
        references = [lesson.reference for lesson in chosen if lesson.reference is not None]

        def loss_of(flat: Tensor) -> Tensor:
            nonlocal cut, n
            earned, outside = surrogate(parts.log_probs(flat), old, credit)
            cut, n = cut + float(outside.sum()), n + len(outside)
            loss = -earned.sum() * share
            if references:
                loss = loss + anchor * share * (shares * parts.kl(flat, torch.cat(references).to(device))).sum()
            return loss

        return loss_of

    loss = descend(policy, [lesson.item for lesson in lessons], loss_at, room, key)
    return loss, cut / max(1, n)


def surrogate(log_probs: Tensor, old: Tensor, credit: Tensor) -> tuple[Tensor, Tensor]:
    """(clipped surrogate [U] of actions, whether the clip cuts their gradient [U])."""
    ratio = (log_probs - old).clamp(max=MOST_LOG_RATIO).exp()
    cut = torch.where(credit > 0, ratio > 1.0 + CLIP, ratio < 1.0 - CLIP) & (credit != 0)
    return torch.minimum(ratio * credit, ratio.clamp(1.0 - CLIP, 1.0 + CLIP) * credit), cut


def descend(
    policy: Any, items: Sequence[Written], loss_at: Callable[[Sequence[int]], LossOf], room: Room, key: int
) -> float:
    """The sum of the losses of groups of answers that fit; leaves their gradients in the parameters."""
    loss = 0.0
    for group in _fitting(items, room.graph_tokens):
        chosen, made = [items[i] for i in group], key_of(key, group[0])
        loss += float(backward(policy.item_scorer, chosen, loss_at(group), policy.budget, room.graph_tokens, made))
    return loss


def _fitting(items: Sequence[Written], most: int) -> Iterator[list[int]]:
    """Indices in groups of at most `most` tokens; a longer answer stands alone."""
    group: list[int] = []
    used = 0
    for i, item in enumerate(items):
        if group and used + len(item) > most:
            yield group
            group, used = [], 0
        group.append(i)
        used += len(item)
    if group:
        yield group
