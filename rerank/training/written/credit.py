"""What the actions of written answers are worth: rewards from a place on, advantages, the KL still to come.

Shapes: B lists, S answers to each, K places, N candidates.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rerank.errors import InputError, nearest
from rerank.lists import ListBatch
from rerank.models.language.permutations import Choice, Writer
from rerank.objective.draws import centred, earned_by_place, leave_one_out, terms_of, to_go_of
from rerank.types import Reward

ESTIMATORS = ("reward_to_go", "rloo", "dr_grpo", "grpo", "reinforce")


def written_estimator(estimator: str, reward: Reward) -> str:
    """The estimator, "auto" resolved; InputError where it is none for written rankings, or not for `reward`."""
    has_places = getattr(reward, "terms", None) is not None
    if estimator == "auto":
        return "reward_to_go" if has_places else "rloo"
    if estimator not in ESTIMATORS:
        raise InputError(
            f"estimator {estimator!r} is not for a model that writes its ranking{nearest(estimator, ESTIMATORS)}"
        )
    if estimator == "reward_to_go" and not has_places:
        name = getattr(reward, "name", type(reward).__name__)
        raise InputError(f"reward_to_go needs a reward that is a sum over places; {name} is not one: use rloo")
    return estimator


def advantages(estimator: str, to_go: Tensor) -> Tensor:
    """Advantages [B, S, K] of the action at each place, given what is earned from there on."""
    if estimator == "reward_to_go":
        return leave_one_out(to_go)
    total = to_go[..., 0]
    if estimator == "grpo":
        credit = centred(total) / (total.std(1, keepdim=True) + 1e-4)
    else:
        credit = {"rloo": leave_one_out, "dr_grpo": centred}.get(estimator, torch.clone)(total)
    return credit[..., None].expand_as(to_go)


def earned_to_go(reward: Reward, rankings: Tensor, lists: ListBatch) -> Tensor:
    """What each place of rankings [B, S, K] and those after it earn, [B, S, K]; at the first place, the reward."""
    return to_go_of(earned_by_place(terms_of(reward, lists, "reward_to_go"), rankings, lists.mask))


# -------------------------------------------------------------------------------------- what an answer's tokens say
def old_log_probs(writer: Writer) -> Tensor:
    """The log-probabilities [U] with which the actions of an answer were drawn."""
    found = torch.zeros(writer.choices[-1].unit + 1 if writer.choices else 0)
    for choice, weights in zip(writer.choices, writer.weighed, strict=True):
        found[choice.unit] += weights[choice.taken]
    return found


def entropy_of(writer: Writer) -> float:
    """Nats a place of the choices that an answer was given; of free text, what its tokens surprised by."""
    found = dict[int, float]()
    for choice, weights in zip(writer.choices, writer.weighed, strict=True):
        here = -weights[0] if choice.whole else -sum(math.exp(w) * w for w in weights)
        found[choice.place] = found.get(choice.place, 0.0) + here
    return sum(found.values()) / max(1, len(found))


def kl_by_place(writer: Writer, log_q: Tensor, places: int) -> Tensor:
    """KL [K] of the choices at each place to a reference that gave the options log-probabilities `log_q`."""
    found, start, reference = torch.zeros(places), 0, log_q.tolist()
    for choice, weights in zip(writer.choices, writer.weighed, strict=True):
        found[choice.place] += _kl(choice, weights, reference[start : start + len(weights)])
        start += len(weights)
    return found


def _kl(choice: Choice, log_p: tuple[float, ...], log_q: list[float]) -> float:
    """Exact where all options are known; the log-ratio of what was taken where they are the whole vocabulary."""
    if choice.whole:
        return log_p[0] - log_q[0]
    return sum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True))
