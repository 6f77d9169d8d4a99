"""What each step sees: which lists, which of their candidates, and which of these are this process's own.

All of it depends on the seed and the step alone. Every process makes the same choice, and takes its hand of it: whole
lists, dealt so that each process has about as many tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Sized
from typing import NamedTuple, TypeAlias

import torch

from rerank.engine.batching import PairScorer
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
    """The encoded candidates of each list."""
    n_lists: int
    """Lists of the whole step."""
    n_pairs: int
    """Candidates of the whole step."""
    idle: list[Sized]
    """The cheapest item of the whole step, for a process that has to take part without work of its own."""


def portions(
    scorer: PairScorer,
    lists: Sequence[CandidateList],
    important: Important,
    schedule: Schedule,
    names: Names,
    start: int,
) -> Iterator[Portion]:
    """This process's part of each step from `start` on."""
    for chosen in step_lists(lists, important, schedule, names, start):
        flat = list(scorer.encode(chosen))
        ends = torch.tensor([len(c) for c in chosen]).cumsum(0).tolist()
        items = [flat[end - len(c) : end] for c, end in zip(chosen, ends, strict=True)]
        own = dealt([sum(map(len, row)) for row in items], world())[rank()] if world() > 1 else range(len(chosen))
        yield Portion(
            list(own),
            [chosen[i] for i in own],
            [items[i] for i in own],
            len(chosen),
            len(flat),
            [min(flat, key=len)] if flat else [],
        )


def step_lists(
    lists: Sequence[CandidateList], important: Important, schedule: Schedule, names: Names, start: int
) -> Iterator[list[CandidateList]]:
    """The sub-lists of each step from `start` on."""
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
            chosen.append(sublist(lists[index], important(lists[index]), schedule.list_size, draw))
        yield chosen


def sublist(candidates: CandidateList, important: Sequence[int], size: int, draw: torch.Generator) -> CandidateList:
    """At most `size` candidates in first-stage order: up to half of them the important ones, the rest a fair sample."""
    if len(candidates) <= size:
        return candidates
    kept = list(important)[: size // 2]
    taken = set(kept)
    others = [i for i in torch.randperm(len(candidates), generator=draw).tolist() if i not in taken]
    return candidates.subset(sorted(kept + others[: size - len(kept)]))
