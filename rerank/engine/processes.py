"""Several processes at one training run (`torchrun`, `accelerate launch`): who is who, and what they tell each other.

    started()          joins the processes of the launch; alone, nothing happens and nothing is initialised
    by_main(work)      the main process works, all get the result          files, teachers that cost money
    by_all(work)       each works, all get the results by rank             a step, a part of the dev lists
    main_first(work)   each works, the others after the main one           what is read once somebody has written it
    sum_gradients      one all-reduce over all parameters                  a step of data parallelism

What fails on one process fails on all of them with the same error, so that none waits for another that has gone.
Inside `work` there must be no other of these calls. All run on one set of weights: `equal_weights` sees to that.
"""

from __future__ import annotations

import logging
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rerank.errors import InputError, TrainingError

logger = logging.getLogger("rerank.engine")

T = TypeVar("T")

ANSWER = timedelta(minutes=30)
"""How long a process waits for the others in a step before it gives up."""
WORK = timedelta(days=7)
"""How long the others wait while the main process retrieves or asks a teacher."""

_groups: dict[str, Any] = {}
"""The process groups for Python objects: `answer` and `work`, by how long they wait."""


def world() -> int:
    """The number of processes."""
    return dist.get_world_size() if _joined() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if _joined() else 0


def is_main() -> bool:
    """Whether this process writes files and talks to the person who watches."""
    return rank() == 0


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def sharded() -> bool:
    """Whether weights, gradients and optimizer state are to be divided among the processes (FSDP2).

    Asked for with `RERANK_SHARD=full`, or `accelerate launch --use_fsdp`; data parallelism otherwise.
    """
    asked = os.environ.get("RERANK_SHARD", "")
    if asked not in ("", "full", "none"):
        raise InputError(f"RERANK_SHARD is {asked!r}; 'full' divides the weights among processes, 'none' does not")
    if asked:
        return asked == "full" and world() > 1
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" and world() > 1


@contextmanager
def started() -> Iterator[None]:
    """Within the block this process is one of those that were launched together; alone it stays alone."""
    sharded()  # a wrong RERANK_SHARD is told before anything was computed
    if _launched() < 2 or _joined():
        yield
        return
    from accelerate import PartialState

    # accelerate chooses device and backend (nccl, gloo, ...) and gives each process a GPU of its own.
    PartialState(cpu=os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true", timeout=ANSWER)
    # Objects travel between CPUs, whatever gradients do: no fact for the log makes a GPU wait.
    _groups["answer"] = dist.new_group(backend="gloo", timeout=ANSWER)
    _groups["work"] = dist.new_group(backend="gloo", timeout=WORK)
    if not is_main():
        # One process talks. Not undone: whatever else the command prints is said by the main one too.
        sys.stdout = open(os.devnull, "w")
        logging.getLogger("rerank").setLevel(logging.ERROR)
    try:
        yield
    finally:
        _groups.clear()
        dist.destroy_process_group()
        PartialState._reset_state()


def _launched() -> int:
    """How many processes there are, as torchrun, accelerate, or the mpirun that accelerate uses on CPUs, says."""
    names = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
    return max(int(os.environ.get(name, "1")) for name in names)


# ------------------------------------------------------------------------------------------------ work and its results
def by_main(work: Callable[[], T]) -> T:
    """What `work` returns on the main process, given to all; the others wait."""
    if world() == 1:
        return work()
    said: list[Any] = [None, None]
    if is_main():
        said = _attempt(work)
    heard = [_portable(said)]
    with _answered():
        dist.broadcast_object_list(heard, src=0, group=_groups.get("work"))
    _raise_any([said if is_main() else heard[0]])
    return said[0] if is_main() else heard[0][0]  # type: ignore[no-any-return]


def by_all(work: Callable[[], T], patient: bool = False) -> list[T]:
    """What `work` returns on each process, by rank; `patient` waits for as long as the slowest needs."""
    if world() == 1:
        return [work()]
    said = _attempt(work)
    heard: list[Any] = [None] * world()
    with _answered():
        dist.all_gather_object(heard, _portable(said), group=_groups.get("work" if patient else "answer"))
    heard[rank()] = said
    _raise_any(heard)
    return [value for value, _ in heard]


def main_first(work: Callable[[], T]) -> T:
    """What `work` returns here; the main process has been through with it before the others begin."""
    kept: list[T] = []
    by_main(lambda: kept.append(work()))
    by_all(lambda: None if kept else kept.append(work()), patient=True)
    return kept[0]


def agreed(what: str, value: object) -> None:
    """Nothing; an error on all processes where `value` differs between them."""
    found = by_all(lambda: value)
    if any(other != found[0] for other in found):
        raise TrainingError(
            f"the processes of this run differ in {what}: {found}. They must run the same recipe on the same files, "
            "and share the folder of the run"
        )


def _attempt(work: Callable[[], Any]) -> list[Any]:
    """[result, None], or [None, the error]."""
    try:
        return [work(), None]
    except Exception as error:
        return [None, error]


def _portable(said: list[Any]) -> list[Any]:
    """The same, with an error that can be sent to another process."""
    error = said[1]
    if error is None:
        return said
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever a strange error class does when it is copied
        return [None, TrainingError(f"process {rank()} failed: {type(error).__name__}: {error}")]
    return [None, error]


def _raise_any(said: Sequence[Sequence[Any]]) -> None:
    own = said[rank()][1] if len(said) > 1 else None
    for number, (_, error) in enumerate(said):
        if error is not None:
            if own is None:
                error.add_note(f"(on process {number} of {world()})")
            raise own or error


@contextmanager
def _answered() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what gloo and nccl raise when a peer is gone or silent
        problem = next(iter(str(error).splitlines()), type(error).__name__)
        raise TrainingError(
            f"process {rank()} of {world()} lost the others: one ended, or did not answer for "
            f"{ANSWER.seconds // 60} minutes ({problem}). Its own message says why; what was finished is kept: launch "
            "the same command again with --resume"
        ) from error


# -------------------------------------------------------------------------------------------------- tensors and shares
def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Sets each parameter's gradient to the sum over all processes: one all-reduce for each dtype that there is.

    All processes give the same parameters; one without a gradient here counts as zero.
    """
    if world() == 1:
        return
    for dtype in dict.fromkeys(p.dtype for p in parameters):
        some = [p for p in parameters if p.dtype == dtype]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in some])
        with _answered():
            dist.all_reduce(flat)
        for p, part in zip(some, flat.split([p.numel() for p in some]), strict=True):
            p.grad = part.view_as(p)


def equal_weights(tensors: Sequence[Tensor]) -> None:
    """Overwrites `tensors` with the main process's."""
    if world() == 1:
        return
    with torch.no_grad():
        for dtype in dict.fromkeys(t.dtype for t in tensors):
            some = [t for t in tensors if t.dtype == dtype]
            flat = torch.cat([t.detach().reshape(-1) for t in some])
            with _answered():
                dist.broadcast(flat, src=0)
            for t, part in zip(some, flat.split([t.numel() for t in some]), strict=True):
                t.copy_(part.view_as(t))


def dealt(costs: Sequence[int], n: int) -> list[list[int]]:
    """Indices of `costs` in `n` hands of like total cost, each in rising order: the dearest first, to the lightest."""
    hands: list[list[int]] = [[] for _ in range(n)]
    totals = [0] * n
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        lightest = totals.index(min(totals))
        hands[lightest].append(index)
        totals[lightest] += costs[index]
    return [sorted(hand) for hand in hands]


def own_groups(n: int, size: int) -> list[range]:
    """This process's groups of `size` neighbours among `n`; a group's company does not depend on who has it."""
    groups = [range(start, min(start + size, n)) for start in range(0, n, size)]
    return groups[rank() :: world()]
