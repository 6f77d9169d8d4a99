"""What each step sees: which lists, which of their candidates, and which of these are this process's own.

All of it depends on the seed and the step alone. Every process makes the same choice, and takes its hand of it: whole
lists, dealt so that each process has about as many tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Sized
from typing import NamedTuple, TypeAlias

import torch

from rerank.engine.batching import ItemScorer, by_list
from rerank.engine.processes import dealt, rank, world
from rerank.randomness import generator
from rerank.training.schedule import Schedule
from rerank.types import CandidateList

Important: TypeAlias = Callable[[CandidateList], Sequence[int]]
"""Indices of the candidates that a sample of the list must hold, most important first."""


Names: TypeAlias = tuple[str | int, ...]
"""Seed, model and stage: what all draws of a stage are keyed by."""


class Portion(NamedTuple):
    """One process's part of a step."""

    places: list[int]
    """Where each list stands among all of the step: what its draws are keyed by."""
    lists: list[CandidateList]
    items: list[list[Sized]]
    """What is read of each list: its pairs, or its prompt."""
    n_lists: int
    """Lists of the whole step."""
    n_pairs: int
    """Candidates of the whole step."""
    idle: list[Sized]
    """The cheapest item of the whole step, for a process that has to take part without work of its own."""


def portions(
    scorer: ItemScorer,
    lists: Sequence[CandidateList],
    important: Important,
    schedule: Schedule,
    names: Names,
    start: int,
) -> Iterator[Portion]:
    """This process's part of each step from `start` on."""
    # A model that reads candidates in an order must not learn that the first stage's is a good one.
    shuffled = schedule.shuffle and getattr(scorer, "in_order", False)
    for chosen in step_lists(lists, important, schedule, names, start, shuffled):
        flat = list(scorer.encode(chosen))
        items = by_list(flat, chosen)
        own = dealt([sum(map(len, row)) for row in items], world())[rank()] if world() > 1 else range(len(chosen))
        yield Portion(
            list(own),
            [chosen[i] for i in own],
            [items[i] for i in own],
            len(chosen),
            sum(map(len, chosen)),
            [min(flat, key=len)] if flat else [],
        )


def step_lists(
    lists: Sequence[CandidateList],
    important: Important,
    schedule: Schedule,
    names: Names,
    start: int,
    shuffled: bool = False,
) -> Iterator[list[CandidateList]]:
    """The sub-lists of each step from `start` on, in first-stage order or shuffled."""
    per_step = min(schedule.lists_per_step, len(lists))
    order: list[int] = []
    order_of = -1
    for step in range(start, schedule.total_steps(len(lists))):
        chosen = []
        for position in range(step * per_step, (step + 1) * per_step):
            epoch, place = divmod(position, len(lists))
            if epoch != order_of:
                order = torch.randperm(len(lists), generator=generator(*names, "order", epoch)).tolist()
                order_of = epoch
            index = order[place]
            draw = generator(*names, "candidates", epoch, index)
            sample = sublist(lists[index], important(lists[index]), schedule.list_size, draw)
            chosen.append(sample.subset(torch.randperm(len(sample), generator=draw).tolist()) if shuffled else sample)
        yield chosen


def sublist(candidates: CandidateList, important: Sequence[int], size: int, draw: torch.Generator) -> CandidateList:
    """At most `size` candidates in first-stage order: up to half of them the important ones, the rest a fair sample."""
    if len(candidates) <= size:
        return candidates
    kept = list(important)[: size // 2]
    taken = set(kept)
    others = [i for i in torch.randperm(len(candidates), generator=draw).tolist() if i not in taken]
    return candidates.subset(sorted(kept + others[: size - len(kept)]))
