"""Rewards made of rewards: mixtures, the worst of several, a weight a list, gain over the first stage, other labels.

A combination has `parts` and combines their values. Its exact expectation combines the expectations of its parts,
so it is exact where all of its parts are, and:

- `mixture`, `vector` and `headroom` are linear in the values: that is the expectation of the combination.
- `minimum` is not: what is maximised is the smallest expectation (maximin), not the expectation of the smallest,
  which is never larger. Ask a sampled estimator for the latter.

Gain, ties, unjudged documents and lists without a relevant one are as in the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from functools import partial
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from .agreement import ClosedForm
from .factors import Factorised, Factors
from .settings import is_number

Reward = Callable[[Tensor, Any], Tensor]
"""rankings [B, S, R], lists -> rewards [B, S]."""
Grades = Mapping[str, Mapping[str, float]]
"""query id -> doc id -> grade."""


def mixture(weights: Mapping[Reward, float] | Iterable[tuple[Reward, float]]) -> Combined:
    """The weighted mean of rewards, from reward -> weight (above 0) or pairs of them; weights need not sum to 1."""
    pairs = list(weights.items() if isinstance(weights, Mapping) else weights)
    if not pairs or not all(_is_share(pair) for pair in pairs):
        raise ValueError(f"a mixture of {pairs!r:.80}; give reward -> weight, at least one, each weight above 0")
    total = sum(weight for _, weight in pairs)
    shares = tuple(weight / total for _, weight in pairs)
    names = [f"({_name(part)})" if " " in _name(part) else _name(part) for part, _ in pairs]
    name = " + ".join(f"{share:.3g} {part}" for part, share in zip(names, shares, strict=True))
    return _combined(name, [part for part, _ in pairs], partial(_weighted, shares=shares))


def minimum(rewards: Iterable[Reward]) -> Combined:
    """The smallest of several rewards: robust against whichever label source or measure a ranking serves worst.

    Exact expectation: the smallest of the expectations, list by list (maximin), not the expectation of the smallest.
    """
    parts = list(rewards)
    if not parts:
        raise ValueError("the minimum of no rewards; give at least one")
    return _combined(f"min({', '.join(map(_name, parts))})", parts, _smallest)


def vector(rewards: Iterable[Reward], weights: Callable[[Any], Tensor], signed: bool = False) -> Combined:
    """Several rewards with weights of each list's own: `weights(lists)` gives [B, M], one column a reward.

    Say `signed=True` if a weight may be below 0.
    """
    parts = list(rewards)
    if not parts:
        raise ValueError("a vector of no rewards; give at least one")
    return _combined(f"vector({', '.join(map(_name, parts))})", parts, partial(_by_list, weights=weights), signed)


def headroom(reward: Reward) -> Combined:
    """(reward - reward of the first stage) / (reward of the ideal - reward of the first stage): 0 for no change.

    The first stage is the list's own order, the ideal is the order by grade (equal grades in first-stage order); both
    are 1 apart in every list, however much there is to gain. Worse than the first stage is below 0. Where the
    ideal is no better than the first stage, every ranking is worth 0.
    """
    return _combined(f"headroom({_name(reward)})", [reward], partial(_gained, reward=reward), True)


def with_labels(reward: Any, grades: Grades, name: str | None = None) -> Any:
    """The same reward under another source of labels: query id -> doc id -> grade (fractions are allowed).

    `grades` stands in for the labels of the candidates and for the judged pool; what it does not name has grade 0, a
    query that it does not name has no relevant document. Exact where `reward` is.
    """
    name = name or f"{_name(reward)} of other labels"
    _check_reward(reward, name)
    _check_grades(grades)
    if isinstance(reward, Combined):
        parts = tuple(with_labels(part, grades) for part in reward.parts)
        combine = partial(_combine_relabelled, combine=reward.combine, grades=grades)
        return Combined(name, parts, combine, reward.cutoff, reward.signed, graded=False)
    cutoff = getattr(reward, "cutoff", None)
    if callable(getattr(reward, "terms", None)):
        return Factorised(name, partial(_terms_relabelled, reward=reward, grades=grades), cutoff, graded=False)
    value = partial(_value_relabelled, reward=reward, grades=grades)
    if callable(getattr(reward, "expected", None)):
        return ClosedForm(name, value, partial(_expected_relabelled, reward=reward, grades=grades), cutoff)
    return Relabelled(name, value, cutoff, bool(getattr(reward, "signed", False)))


@final
@dataclass(frozen=True)
class Combined:
    """A reward made of other rewards."""

    name: str
    parts: tuple[Any, ...]
    """M rewards."""
    combine: Callable[[Tensor, Any], Tensor]
    """values [B, S, M] of the parts, lists -> [B, S]; differentiable."""
    cutoff: int | None = None
    """Only so many places matter; None where all may."""
    signed: bool = False
    """Whether values below 0 are possible."""
    graded: bool = True
    """Whether every part pays by the lists' own labels."""

    def __call__(self, rankings: Tensor, lists: Any) -> Tensor:
        """Rewards [B, S] of rankings [B, S, R]."""
        return self.combine(torch.stack([part(rankings, lists) for part in self.parts], -1), lists)


@final
@dataclass(frozen=True)
class Relabelled:
    """A reward of unknown expectation that sees other labels."""

    name: str
    value: Reward
    cutoff: int | None = None
    signed: bool = False

    def __call__(self, rankings: Tensor, lists: Any) -> Tensor:
        """Rewards [B, S] of rankings [B, S, R]."""
        return self.value(rankings, lists)


class OtherLabels(NamedTuple):
    """Lists with other grades: what rewards see of a batch."""

    labels: Tensor
    mask: Tensor
    pool: Tensor
    lists: tuple[Any, ...]


def relabelled(lists: Any, grades: Grades) -> OtherLabels:
    """The lists with their grades from `grades`; a list's record has them too, if it is a dataclass with `labels`."""
    known = [grades.get(c.query_id, {}) for c in lists.lists]
    rows = [[by_doc.get(d, 0) for d in c.doc_ids] for c, by_doc in zip(lists.lists, known, strict=True)]
    pools = [list(by_doc.values()) for by_doc in known]
    return OtherLabels(
        _padded(rows, lists.mask.shape[1], lists.labels),
        lists.mask,
        _padded(pools, max(map(len, pools), default=0), lists.labels),
        tuple(_record(c, row, pool) for c, row, pool in zip(lists.lists, rows, pools, strict=True)),
    )


def _record(candidates: Any, labels: Sequence[float], pool: Sequence[float]) -> Any:
    if not is_dataclass(candidates) or not hasattr(candidates, "labels"):
        return candidates
    known: Any = candidates
    return replace(known, labels=tuple(labels), pool=tuple(pool))


def _combined(
    name: str, parts: Sequence[Any], combine: Callable[[Tensor, Any], Tensor], signed: bool = False
) -> Combined:
    for part in parts:
        _check_reward(part, name)
    cutoffs: list[Any] = [getattr(part, "cutoff", None) for part in parts]
    signed = signed or any(getattr(part, "signed", False) for part in parts)
    graded = all(getattr(part, "graded", False) for part in parts)
    return Combined(name, tuple(parts), combine, None if None in cutoffs else max(cutoffs), signed, graded)


def _check_reward(reward: Any, name: str) -> None:
    if not callable(reward):
        raise ValueError(f"{name}: {reward!r:.80} is no reward; make one, such as ndcg(cutoff=10)")


def _check_grades(grades: Grades) -> None:
    if not isinstance(grades, Mapping) or not all(isinstance(by_doc, Mapping) for by_doc in grades.values()):
        raise ValueError(f"grades {grades!r:.80}: give query id -> doc id -> grade")
    for query_id, by_doc in grades.items():
        for doc_id, grade in by_doc.items():
            if not is_number(grade) or abs(grade) > torch.finfo(torch.float32).max:
                given = f"the grade of query {query_id!r}, document {doc_id!r} is {grade!r:.80}"
                raise ValueError(f"{given}; grades are finite numbers (float32)")


def _is_share(pair: Any) -> bool:
    """Whether `pair` is a reward and a weight above 0, small enough that the sum of several is finite."""
    return isinstance(pair, Sequence) and len(pair) == 2 and is_number(pair[1]) and 0 < pair[1] < 1e30


def _name(reward: Any) -> str:
    return str(getattr(reward, "name", type(reward).__name__))


def _padded(rows: Sequence[Sequence[float]], width: int, like: Tensor) -> Tensor:
    full = [[*row, *[0.0] * (width - len(row))] for row in rows]
    return torch.tensor(full, dtype=like.dtype).reshape(len(rows), width).to(like.device)


def _weighted(values: Tensor, lists: Any, shares: tuple[float, ...]) -> Tensor:
    return sum((share * values[..., m] for m, share in enumerate(shares)), torch.zeros_like(values[..., 0]))


def _smallest(values: Tensor, lists: Any) -> Tensor:
    return values.amin(-1)


def _by_list(values: Tensor, lists: Any, weights: Callable[[Any], Tensor]) -> Tensor:
    share = weights(lists)
    needed = [values.shape[0], values.shape[-1]]
    if list(share.shape) != needed:
        raise ValueError(f"the weights of a vector of rewards are {list(share.shape)}; they must be [B, M] = {needed}")
    return (values * share.to(values)[:, None]).sum(-1)


def _gained(values: Tensor, lists: Any, reward: Reward) -> Tensor:
    """values [B, S, 1] from the first stage (0) to the ideal (1)."""
    width = lists.mask.shape[1]
    in_order = torch.arange(width, device=lists.mask.device).expand(lists.mask.shape)
    by_grade = lists.labels.masked_fill(~lists.mask, -torch.inf).sort(dim=-1, descending=True, stable=True).indices
    first, ideal = reward(torch.stack([in_order, by_grade], 1), lists).to(values).split(1, -1)
    room = ideal - first
    # Below this share there is no headroom but rounding; dividing by it would make noise the largest reward.
    some = room > 1e-6 * ideal.abs().clamp(min=1.0)
    gained = (values[..., 0] - first) / torch.where(some, room, torch.ones_like(room))
    return torch.where(some, gained, torch.zeros_like(gained))


def _combine_relabelled(values: Tensor, lists: Any, combine: Callable[[Tensor, Any], Tensor], grades: Grades) -> Tensor:
    return combine(values, relabelled(lists, grades))


def _terms_relabelled(lists: Any, reward: Any, grades: Grades) -> tuple[Factors, ...]:
    return tuple(reward.terms(relabelled(lists, grades)))


def _value_relabelled(rankings: Tensor, lists: Any, reward: Reward, grades: Grades) -> Tensor:
    return reward(rankings, relabelled(lists, grades))


def _expected_relabelled(scores: Tensor, lists: Any, reward: Any, grades: Grades) -> Tensor:
    return reward.expected(scores, relabelled(lists, grades))
