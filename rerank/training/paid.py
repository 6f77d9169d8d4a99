"""What a reward pays, in numbers that can be computed with; the fault of a user's own reward is told by its name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from rerank.errors import InputError
from rerank.lists import ListBatch
from rerank.types import Reward


def paid(reward: Reward, rankings: Tensor, lists: ListBatch) -> Tensor:
    """Rewards [B, S] of rankings [B, S, K]; InputError where `reward` fails, or pays something else than numbers."""
    with blamed(reward):
        found: Any = reward(rankings, lists)
    return checked_pay(reward, found, list(rankings.shape[:2]), lists)


def checked_pay(reward: Reward, found: Any, shape: list[int], lists: ListBatch) -> Tensor:
    """`found` where it is a tensor of `shape`, lists first, of finite numbers; else InputError."""
    given = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
    if given != shape:
        raise InputError(f"reward {name_of(reward)}: it must pay a tensor {shape}, not {given}")
    if not bool(found.isfinite().all()):
        row = int((~found.isfinite()).reshape(len(found), -1).any(-1).nonzero()[0])
        raise InputError(
            f"reward {name_of(reward)}: what it pays for a ranking of query {lists.lists[row].query_id!r} is not a "
            "finite number: mend the reward, or the grades of the query"
        )
    return found


@contextmanager
def blamed(reward: Reward) -> Iterator[None]:
    """Whatever a reward of the user's own raises in the block is an InputError that names it; the cause is chained."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # code that is not ours may fail in any way
        said = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise InputError(f"reward {name_of(reward)}: {said}") from error


def name_of(reward: Reward) -> str:
    """What a message calls the reward."""
    return str(getattr(reward, "name", type(reward).__name__))
