"""The gradients of one step: whatever its lists need in memory, and however many processes share them.

The loss of a step is the mean over its lists, and each process adds up what its own lists contribute: its lists in
groups that fit, each group through the gradient cache. Then one all-reduce, after which every process holds the
gradients of the whole step. Out of memory on the way, the step is begun again from clean gradients with half the
tokens at once and the same random keys; what is learned from stays the same.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar, final

import torch
from torch import Tensor, nn

from rerank.engine.gradient_cache import backward, in_rounds, rounds_of
from rerank.engine.memory import graph_tokens_on, out_of_memory
from rerank.engine.processes import by_all, sum_gradients
from rerank.errors import TrainingError
from rerank.lists import ListBatch, batch_of
from rerank.models.policy import ScorePolicy
from rerank.randomness import key_of
from rerank.training.sampling import Portion
from rerank.training.sharding import Shards
from rerank.types import CandidateList

logger = logging.getLogger("rerank.training")

T = TypeVar("T")

Objective: TypeAlias = Callable[[Tensor, ListBatch, int, int], tuple[Tensor, dict[str, float]]]
"""(scores [B, N], the lists, index of the view, key for draws) -> (loss of each list [B], facts for the log)."""


class Found(NamedTuple):
    """What a step found, beside the gradients that it left in the parameters."""

    loss: float
    facts: dict[str, float]


@final
class Room:
    """How many tokens fit at once in this stage; halved where memory runs out, and put back at the end."""

    def __init__(self, policy: ScorePolicy, graph_tokens: int | None) -> None:
        self.policy, self.graph_tokens = policy, graph_tokens or 0
        self.first_budget = policy.budget
        self._told = False

    def measure(self, portion: Portion) -> None:
        """Nothing; settles how many tokens may have a graph at once, where the schedule left that to the device."""
        if not self.graph_tokens:
            items = [item for row in portion.items for item in row]
            device = next(self.policy.parameters()).device
            self.graph_tokens = graph_tokens_on(device, self.policy.item_scorer, items)

    def halve(self, longest: int, where: str) -> None:
        """Half the budget and the tokens with a graph; an error where one item of `longest` tokens is too much."""
        if max(self.policy.budget, self.graph_tokens) <= longest:
            raise TrainingError(
                f"{where}: a single pair of {longest} tokens does not fit into memory. Lower max_length, take a "
                "smaller backbone, or a larger device; what was finished before is kept"
            )
        self.policy.budget = max(1, self.policy.budget // 2)
        self.graph_tokens = max(1, self.graph_tokens // 2)
        if not self._told:
            self._told = True
            logger.warning(
                "%s: out of memory; from here on at most %d tokens are scored and %d kept for gradients at once (and "
                "fewer, if need be). The lists of a step stay the same, it only takes longer",
                where,
                self.policy.budget,
                self.graph_tokens,
            )

    def fitting(self, work: Callable[[], T], clean: Callable[[], None], longest: int, where: str) -> T:
        """What `work` returns, once it fits; `clean` undoes what a failed attempt left."""
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
            # Outside of the except block: there the error's traceback would still hold the tensors.
            clean()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.halve(longest, where)

    def restore(self) -> None:
        """Give the policy its own budget back."""
        self.policy.budget = self.first_budget


class WholeStep(Protocol):
    """An objective over more than the scores of a step's lists, such as rankings that are written token by token."""

    def gradients(self, policy: Any, portion: Portion, room: Room, key: int, where: str) -> Found:
        """Leaves the gradients of the whole step in the parameters of all processes (see `shared_gradients`)."""
        ...


def gradients(
    policy: ScorePolicy, portion: Portion, objective: Objective, plain_weight: float, room: Room, key: int, where: str
) -> Found:
    """Leaves the gradients of the whole step in the parameters of all processes; returns its loss and facts."""
    room.measure(portion)
    longest = max((len(item) for row in portion.items for item in row), default=1)

    def attempt() -> Found:
        loss, facts = 0.0, dict[str, float]()
        for lists, items, place in _fitting(portion, room.graph_tokens):
            loss_of = _loss_of(policy, lists, objective, plain_weight, portion.n_lists, key_of(key, place), facts)
            made = key_of(key, place)
            loss += float(backward(policy.item_scorer, items, loss_of, policy.budget, room.graph_tokens, made))
        return Found(loss, facts)

    return shared_gradients(policy, attempt, room, longest, where)


def shared_gradients(policy: nn.Module, attempt: Callable[[], Found], room: Room, longest: int, where: str) -> Found:
    """What `attempt` found, summed over all processes, and so are the gradients that it left in the parameters.

    It is begun again, from clean gradients and with half the tokens at once, where memory runs out; `longest` is the
    number of tokens of its longest item.
    """
    parameters = [p for p in policy.parameters() if p.requires_grad]

    def clean() -> None:
        for p in parameters:
            p.grad = None

    def own() -> tuple[Found, list[bool]]:
        return room.fitting(attempt, clean, longest, where), [p.grad is not None for p in parameters]

    told = by_all(own)
    # A parameter that no process has a gradient for stays without one, as it would with one process: no decay.
    moved = [any(column) for column in zip(*(has for _, has in told), strict=True)]
    sum_gradients([p for p, is_moved in zip(parameters, moved, strict=True) if is_moved])
    return _summed([found for found, _ in told])


def sharded_gradients(
    policy: ScorePolicy, shards: Shards, portion: Portion, objective: Objective, plain_weight: float, key: int
) -> Found:
    """As `gradients`, where each process holds a part of every weight: all take as many micro-batches."""
    items = [item for row in portion.items for item in row]
    facts: dict[str, float] = {}
    place = portion.places[0] if portion.places else 0
    key = key_of(key, place)
    loss_of = _loss_of(policy, portion.lists, objective, plain_weight, portion.n_lists, key, facts)
    rounds = max(by_all(lambda: rounds_of(items, policy.budget)))
    try:
        loss = in_rounds(
            policy.item_scorer, items, loss_of, policy.budget, key, rounds, portion.idle, shards.last_round
        )
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise TrainingError(
            "out of memory while the weights are divided among processes, where a step cannot be begun again: lower "
            "[[models]] max_length, or take more processes; then go on in a new folder"
        ) from error
    told = by_all(lambda: (Found(float(loss), facts), [p.grad is not None for p in shards.whole]))
    moved = [any(column) for column in zip(*(has for _, has in told), strict=True)]
    sum_gradients([p for p, is_moved in zip(shards.whole, moved, strict=True) if is_moved])
    return _summed([found for found, _ in told])


def _loss_of(
    policy: ScorePolicy,
    group: Sequence[CandidateList],
    objective: Objective,
    plain_weight: float,
    n_lists: int,
    key: int,
    facts: dict[str, float],
) -> Callable[[Tensor], Tensor]:
    """The loss of a group of lists by its flat logits, as its share of a step of `n_lists`; adds to `facts`."""

    def loss_of(flat: Tensor) -> Tensor:
        views = policy.views(flat, group)
        batch = batch_of(group, flat.device)
        shares = [1.0] if len(views) == 1 else [1.0 - plain_weight, plain_weight]
        out = torch.zeros((), device=flat.device)
        for index, (scores, share) in enumerate(zip(views, shares, strict=True)):
            if share == 0.0:
                continue
            losses, found = objective(scores, batch, index, key_of(key, index))
            out = out + share * losses.sum() / n_lists
            # The served view is what the log speaks of; where it has no share, the plain one.
            for name, value in found.items() if index == 0 or shares[0] == 0.0 else ():
                facts[name] = facts.get(name, 0.0) + value * len(group) / n_lists
        return out

    return loss_of


def _summed(told: Sequence[Found]) -> Found:
    """Loss and facts of the whole step: those of the processes are shares of it already."""
    facts: dict[str, float] = {}
    for found in told:
        for name, value in found.facts.items():
            facts[name] = facts.get(name, 0.0) + value
    return Found(sum(found.loss for found in told), facts)


def _fitting(portion: Portion, graph_tokens: int) -> Iterator[tuple[list[CandidateList], list[Sized], int]]:
    """Groups of whole lists whose activations fit at once (a longer list stands alone): lists, items, first place."""
    group: list[CandidateList] = []
    held: list[Sized] = []
    used = first = 0
    for place, candidates, items in zip(portion.places, portion.lists, portion.items, strict=True):
        cost = sum(map(len, items))
        if group and used + cost > graph_tokens:
            yield group, held, first
            group, held, used = [], [], 0
        first = first if group else place
        group.append(candidates)
        held.extend(items)
        used += cost
    if group:
        yield group, held, first
