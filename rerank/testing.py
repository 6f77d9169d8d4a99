"""Contract tests for parts of your own: a reward, policy or teacher that passes its check fits wherever ours do.

    from rerank.testing import check_reward, check_teacher, toy_lists

    def test_my_reward():
        check_reward(MyReward(), bounds=(0.0, 1.0))

    def test_my_teacher():
        check_teacher(MyTeacher(), toy_lists())

A check returns nothing; it raises `ContractError` with a sentence that says which promise was broken, and where.
Everything here is small and exact: lists of at most six candidates, all of whose rankings are looked at.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from itertools import permutations
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from rerank import plackett_luce
from rerank.errors import InputError
from rerank.lists import ListBatch, batch_of, mask_of
from rerank.objective.expected import FINE, expected_reward, is_exact
from rerank.types import CandidateList, Ordering, Policy, Reward, Teacher

MOST = 6
"""Candidates of the longest list that a check takes: 720 rankings."""

TOLERANCE = 1e-4
"""Two float32 computations of one number may differ by this share of it (or by this much, below 1)."""


# ---------------------------------------------------------------------------------------------------------------- toys
def toy_lists(n_lists: int = 4, n_candidates: int = 5, seed: int = 0) -> list[CandidateList]:
    """Judged lists of unequal lengths whose texts name a number; the larger the number, the higher the grade (0 to 3).

    Each has a first-stage score named "toy", a relevant candidate, and judged documents that are no candidates.
    """
    rng = random.Random(seed)
    return [_toy_list(f"q{i}", max(1, n_candidates - i % 3), rng) for i in range(n_lists)]


def _toy_list(query_id: str, n: int, rng: random.Random) -> CandidateList:
    numbers = [*rng.sample(range(75), n - 1), rng.randrange(75, 100)]
    rng.shuffle(numbers)
    labels = tuple(number // 25 for number in numbers)
    return CandidateList(
        query_id=query_id,
        query="which document names the largest number",
        doc_ids=tuple(f"d{number}" for number in numbers),
        texts=tuple(f"this document names {number}" for number in numbers),
        features={"toy": tuple(number / 100 + rng.gauss(0.0, 0.3) for number in numbers)},
        labels=labels,
        pool=(*labels, 2, 1),
    )


class NumberItem(NamedTuple):
    """One pair, as `NumberScorer` sees it."""

    number: float


@final
class NumberScorer(nn.Module):
    """Scores a pair by the first number in the document's text, times one learned weight; 0 where there is none.

    A whole scorer for tests: `ScorePolicy(NumberScorer())` can be trained, and `Scored(NumberScorer(), "numbers")`
    is a teacher.
    """

    kind = "number"

    def __init__(self, weight: float = 0.05) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(float(weight)))

    @property
    def device(self) -> torch.device:
        """Where the weight is."""
        return self.weight.device

    def body(self) -> list[nn.Parameter]:
        """Nothing: no part is pretrained."""
        return []

    def encode(self, lists: Sequence[CandidateList]) -> list[NumberItem]:
        """One item for each candidate of each list, in order."""
        return [NumberItem(_number(text)) for candidates in lists for text in candidates.texts]

    def logits(self, items: Sequence[NumberItem]) -> Tensor:
        """Logits [n] of items."""
        return torch.tensor([item.number for item in items], device=self.device) * self.weight

    def predict(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """One score for each (query, text)."""
        return [_number(text) * self.weight.item() for _, text in pairs]

    def forward(self, lists: Sequence[CandidateList]) -> Tensor:
        """Scores [B, N], -inf where padded."""
        mask = mask_of(lists).to(self.device)
        return torch.full(mask.shape, -torch.inf).to(self.device).masked_scatter(mask, self.logits(self.encode(lists)))


def _number(text: str) -> float:
    found = re.search(r"\d+", text)
    return float(found.group()) if found else 0.0


# -------------------------------------------------------------------------------------------------------------- reward
def check_reward(
    reward: Reward,
    batch: ListBatch | None = None,
    *,
    bounds: tuple[float, float] | None = None,
    follows_grades: bool = True,
    follows_first_stage: bool = False,
) -> None:
    """Nothing; raises `ContractError` unless `reward` keeps the promises of `types.Reward` on `batch` (toy lists).

    `bounds` are the smallest and largest value it promises. `follows_grades=False` is for a reward that looks at
    something other than the labels: then ranking by grade need not be best. `follows_first_stage=True` is for one
    that compares with the list's own order: then listing the candidates in another order may change it.

    A reward that is exact must agree with itself: its `terms`, or its `parts` and `combine`, give the value of each
    ranking, and its expectation is the mean over all rankings (not asked of a combination that is not linear).
    """
    batch = batch_of(toy_lists()) if batch is None else batch
    rankings = every_ranking(batch.mask)
    values = _values(reward, rankings, batch)
    if bounds is not None:
        low, high = bounds
        inside = (values >= low - 1e-6) & (values <= high + 1e-6)
        _promise(inside, f"the reward must lie in [{low}, {high}]", batch.lists, values)
    _promise(_values(reward, rankings, batch) == values, "asked twice, the reward must be the same", batch.lists)
    if not follows_first_stage:
        _check_permuted_candidates(reward, batch, rankings, values)
    wide = _padded_more(batch, 2)
    wide_rankings = every_ranking(wide.mask)
    same = _close(_values(reward, wide_rankings, wide), values)
    _promise(same, "padding a list must not change the reward of its rankings", batch.lists)
    highest = values.amax(-1)
    if follows_grades:
        by_grade = plackett_luce.best(batch.labels, batch.mask)[:, None]
        at_best = _values(reward, by_grade, batch)[:, 0] >= highest - 1e-6
        _promise(at_best[:, None], "no ranking may beat the one sorted by grade", batch.lists)
    _check_malformed(reward, wide, highest)
    if callable(getattr(reward, "terms", None)):
        _check_terms(reward, batch, rankings, values)
    linear = _check_parts(reward, batch, rankings, values) if hasattr(reward, "parts") else True
    if linear and is_exact(reward):
        _check_expectation(reward, batch, rankings, values)


def every_ranking(mask: Tensor) -> Tensor:
    """All rankings of each list [B, n!, N], n the longest list; a shorter list repeats its own, padding comes last."""
    lengths = mask.sum(-1).tolist()
    width = mask.shape[1]
    if max(lengths, default=0) > MOST:
        raise InputError(f"a list has {max(lengths)} candidates; checks look at all rankings: give at most {MOST}")
    most = len(list(permutations(range(max(lengths, default=0)))))
    rows = []
    for n in lengths:
        own = [(*order, *range(n, width)) for order in permutations(range(n))]
        rows.append(own * (most // len(own)))
    return torch.tensor(rows, dtype=torch.long).reshape(len(rows), most, width)


def _values(reward: Reward, rankings: Tensor, batch: ListBatch) -> Tensor:
    values: Any = reward(rankings, batch)
    if not isinstance(values, Tensor) or values.shape != rankings.shape[:2]:
        shape = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ContractError(
            f"rewards of rankings {list(rankings.shape)} must be {list(rankings.shape[:2])}, not {shape}"
        )
    _promise(values.isfinite(), "a reward must be a finite number", batch.lists, values)
    return values.double()


def _padded_more(batch: ListBatch, n: int) -> ListBatch:
    """The batch with `n` more padded candidates in each list, and as many padded judgements."""
    labels, pool = (nn.functional.pad(grades, (0, n)) for grades in (batch.labels, batch.pool))
    return ListBatch(labels, nn.functional.pad(batch.mask, (0, n), value=False), pool, batch.lists)


def _check_permuted_candidates(reward: Reward, batch: ListBatch, rankings: Tensor, values: Tensor) -> None:
    """The same documents, listed in another order: position j of a list now holds its candidate `turn[j]`."""
    width = batch.mask.shape[1]
    turns = [[*reversed(range(n)), *range(n, width)] for n in batch.mask.sum(-1).tolist()]
    turn = torch.tensor(turns, dtype=torch.long).reshape(batch.mask.shape)
    lists = tuple(c.subset(t[: len(c)]) for c, t in zip(batch.lists, turns, strict=True))
    turned = ListBatch(batch.labels.gather(1, turn), batch.mask, batch.pool, lists)
    places = turn.argsort(-1)[:, None].expand(-1, rankings.shape[1], -1).gather(-1, rankings)
    same = _close(_values(reward, places, turned), values)
    _promise(same, "listing the candidates in another order must not change the reward of a ranking", batch.lists)


def _check_malformed(reward: Reward, wide: ListBatch, highest: Tensor) -> None:
    """Rankings that no list allows: one document again and again, or padding before documents."""
    width = wide.mask.shape[1]
    again = torch.arange(width)[:, None].expand(-1, width)[None].expand(len(wide.lists), -1, -1)
    real_again = torch.where(wide.mask[:, :, None], again, torch.zeros_like(again))
    padding_first = wide.labels.masked_fill(~wide.mask, torch.inf).argsort(-1, descending=True)[:, None]
    for rankings, what in ((real_again, "repeats a document"), (padding_first, "holds padding")):
        try:
            values = reward(rankings, wide)
        except Exception:  # to refuse a malformed ranking is as good as to pay nothing for it
            continue
        fair = values <= highest[:, None] + 1e-6
        _promise(fair, f"a ranking that {what} must not pay more than the best real one", wide.lists, values)


def _check_terms(reward: Any, batch: ListBatch, rankings: Tensor, values: Tensor) -> None:
    total = torch.zeros_like(values)
    for term in reward.terms(batch):
        _check_term(term, batch)
        for b, s in torch.cartesian_prod(torch.arange(values.shape[0]), torch.arange(values.shape[1])).tolist():
            total[b, s] += _by_hand(term, b, rankings[b, s].tolist())
    _promise(_close(total, values), "the terms must give the value of each ranking", batch.lists, values)


def _check_term(term: Any, batch: ListBatch) -> None:
    gain, weight, survival, counted = term
    alike = all(x is None or x.shape == batch.mask.shape for x in (gain, survival, counted))
    if not alike or weight.ndim not in (1, 2) or (weight.ndim == 2 and len(weight) != len(batch.mask)):
        shapes = ", ".join(str(None if x is None else list(x.shape)) for x in term)
        raise ContractError(
            f"a term must be gain {list(batch.mask.shape)}, weight [K] or [{len(batch.mask)}, K], survival and counted "
            f"like gain or None; not {shapes}"
        )
    _promise((gain == 0) | batch.mask, "the gain of padding must be 0", batch.lists, gain)
    if survival is not None:
        _promise((survival >= 0) & (survival <= 1), "survival must be a probability", batch.lists, survival)
    if counted is not None:
        _promise((counted >= 0) & counted.isfinite(), "counted must not be negative", batch.lists, counted)


def _by_hand(term: Any, b: int, ranking: list[int]) -> float:
    """What one term pays for one ranking of list `b`, place by place."""
    gain, weight, survival, counted = term
    weights = (weight if weight.ndim == 1 else weight[b]).tolist()
    total, reach, seen = 0.0, 1.0, 1.0
    for place, d in enumerate(ranking[: len(weights)]):
        total += reach * seen * weights[place] * float(gain[b, d])
        reach *= 1.0 if survival is None else float(survival[b, d])
        seen += 0.0 if counted is None else float(counted[b, d])
    return total


def _check_parts(reward: Any, batch: ListBatch, rankings: Tensor, values: Tensor) -> bool:
    """Whether the combination is linear: then its expectation is that of all rankings."""
    parts = torch.stack([_values(part, rankings, batch) for part in reward.parts], -1)
    same = _close(reward.combine(parts, batch), values)
    _promise(same, "combining the parts must give the value of each ranking", batch.lists, values)
    # Between each ranking and the next one, a quarter of the way.
    between = reward.combine(0.75 * parts + 0.25 * parts.roll(1, 1), batch)
    return bool(_close(between, 0.75 * values + 0.25 * values.roll(1, 1)).all())


def _check_expectation(reward: Any, batch: ListBatch, rankings: Tensor, values: Tensor) -> None:
    scores = torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = scores.masked_fill(~batch.mask, -torch.inf).requires_grad_()
    expected = expected_reward(scores, reward, batch, FINE)
    if expected.shape != values.shape[:1]:
        raise ContractError(f"an expectation must be {list(values.shape[:1])}, one a list, not {list(expected.shape)}")
    true = (plackett_luce.log_prob(scores, batch.mask, rankings).softmax(-1) * values).sum(-1)
    same = _close(true.detach(), expected.detach())
    _promise(same[:, None], "the mean over all rankings must be the expectation", batch.lists)
    if expected.requires_grad:
        ours, theirs = (torch.autograd.grad(x.sum(), scores)[0] for x in (expected, true))
        _promise(_close(ours, theirs), "the gradient must be that of the mean over all rankings", batch.lists, ours)


# -------------------------------------------------------------------------------------------------------------- policy
def check_policy(policy: Policy, lists: Sequence[CandidateList] | None = None) -> None:
    """Nothing; raises `ContractError` unless `policy` keeps the promises of `types.Policy` on `lists` (toy lists).

    A torch module is put into evaluation mode for the check and back afterwards: dropout is no part of the policy. A
    policy that says `in_order` reads candidates in the order in which they come, and may score them by it.
    """
    lists = toy_lists() if lists is None else list(lists)
    training = isinstance(policy, nn.Module) and policy.training
    if isinstance(policy, nn.Module):
        policy.eval()
    try:
        _check_scores(policy, lists)
        _check_samples(policy, lists)
        _check_distribution(policy, lists)
    finally:
        if isinstance(policy, nn.Module):
            policy.train(training)


def _check_scores(policy: Policy, lists: Sequence[CandidateList]) -> None:
    mask = mask_of(lists)
    with torch.no_grad():
        scores = policy.scores(lists).cpu()
        if scores.shape != mask.shape:
            raise ContractError(f"scores must be [B, N] = {list(mask.shape)}, not {list(scores.shape)}")
        _promise(scores.isfinite() | ~mask, "the score of a candidate must be finite", lists, scores)
        _promise((scores == -torch.inf) | mask, "the score of padding must be -inf", lists, scores)
        for row, candidates in zip(scores, lists, strict=True):
            n = len(candidates)
            alone = policy.scores([candidates]).cpu()[0]
            _promise(_close(alone, row[:n])[None], "a list must get the same scores alone and in a batch", [candidates])
            if getattr(policy, "in_order", False):
                continue
            turned = policy.scores([candidates.subset(range(n)[::-1])]).cpu()[0].flip(-1)
            same = _close(turned, row[:n])[None]
            _promise(same, "a candidate's score must not depend on the order of its list", [candidates])


def _check_samples(policy: Policy, lists: Sequence[CandidateList], n: int = 8) -> None:
    mask = mask_of(lists)
    draws = [policy.sample(lists, n, torch.Generator().manual_seed(seed)) for seed in (1, 1)]
    rankings, log_probs, valid = (part.cpu() for part in draws[0])
    if rankings.shape != (len(lists), n, mask.shape[1]) or log_probs.shape != valid.shape or valid.ndim != 2:
        raise ContractError(
            f"{n} samples of {len(lists)} lists must be rankings {[len(lists), n, mask.shape[1]]} with log_probs and "
            f"valid [B, S], not {list(rankings.shape)}, {list(log_probs.shape)}, {list(valid.shape)}"
        )
    whole = (rankings.sort(-1).values == torch.arange(mask.shape[1])).all(-1)
    _promise(whole | ~valid, "a sampled ranking must hold each index once", lists)
    real = mask[:, None].expand_as(rankings).gather(-1, rankings.clamp(0, max(mask.shape[1] - 1, 0)))
    last = (real == mask[:, None]).all(-1)
    _promise(last | ~valid, "padding must come last in a sampled ranking", lists)
    _promise((draws[1].rankings.cpu() == rankings).all(-1), "the same generator must give the same rankings", lists)
    again = policy.log_probs(lists, draws[0].rankings)
    _check_differentiable(policy, again)
    same = _close(again.detach().cpu(), log_probs) | ~valid
    _promise(same, "log_probs of sampled rankings must be those that came with them", lists, log_probs)


def _check_differentiable(policy: Policy, log_probs: Tensor) -> None:
    if not log_probs.requires_grad:
        raise ContractError("log_probs must be differentiable; they carry no gradient")
    weights = [p for p in policy.parameters() if p.requires_grad] if isinstance(policy, nn.Module) else []
    if weights:
        found = torch.autograd.grad(log_probs.sum(), weights, allow_unused=True, retain_graph=True)
        reached = [g for g in found if g is not None]
        if not reached or not all(bool(g.isfinite().all()) for g in reached):
            raise ContractError("the gradient of log_probs must reach the policy's weights and be finite")


def _check_distribution(policy: Policy, lists: Sequence[CandidateList]) -> None:
    """Over all rankings of a list, probabilities sum to 1, and sorting by score gives the likeliest."""
    for candidates in lists:
        mask = mask_of([candidates])
        rankings = every_ranking(mask)
        with torch.no_grad():
            log_probs = policy.log_probs([candidates], rankings).cpu().double()
            by_score = plackett_luce.best(policy.scores([candidates]).cpu(), mask)[:, None]
            greedy = policy.log_probs([candidates], by_score).cpu().double()
        one = _close(log_probs.exp().sum(-1), torch.ones(1))
        _promise(one[None], "the probabilities of all rankings of a list must sum to 1", [candidates])
        likeliest = greedy >= log_probs.amax(-1, keepdim=True) - TOLERANCE
        _promise(likeliest, "sorting by score must give the likeliest ranking", [candidates])


# ------------------------------------------------------------------------------------------------------------- teacher
def check_teacher(teacher: Teacher, lists: Sequence[CandidateList] | None = None) -> None:
    """Nothing; raises `ContractError` unless `teacher` keeps the promises of `types.Teacher` on `lists` (toy lists)."""
    lists = toy_lists() if lists is None else list(lists)
    asked = {candidates.query_id: i for i, candidates in enumerate(lists)}
    if len(asked) < len(lists):
        raise InputError("two lists have the same query id; check_teacher tells orderings apart by it")
    if not isinstance(teacher.name, str) or not teacher.name:
        raise ContractError(f"a teacher must have a name, not {teacher.name!r}")
    said = _orderings(teacher, iter(lists))
    for ordering in said:
        if ordering.query_id not in asked:
            raise ContractError(f"the teacher ordered query {ordering.query_id!r}, which it was not asked for")
        _check_ordering(ordering, lists[asked[ordering.query_id]])
    places = [asked[ordering.query_id] for ordering in said]
    if len(set(places)) < len(places):
        raise ContractError("the teacher gave two orderings of one list; it must give at most one")
    if places != sorted(places):
        raise ContractError("orderings must come in the order of the lists")
    if _orderings(teacher, iter(lists)) != said:
        raise ContractError("asked twice, the teacher must order the same lists in the same way")
    if _orderings(teacher, iter(())):
        raise ContractError("a teacher that is given no lists must give no orderings")


def _orderings(teacher: Teacher, lists: Iterable[CandidateList]) -> list[Ordering]:
    said = list(teacher(lists))
    for ordering in said:
        if not isinstance(ordering, Ordering):
            raise ContractError(f"a teacher must give rerank.Ordering, not {type(ordering).__name__}")
    return said


def _check_ordering(ordering: Ordering, candidates: CandidateList) -> None:
    where = f"the ordering of query {ordering.query_id!r}"
    foreign = [d for d in ordering.doc_ids if d not in candidates.doc_ids]
    if foreign:
        raise ContractError(f"{where} holds {foreign[0]!r}, which is none of its candidates")
    if len(set(ordering.doc_ids)) < len(ordering.doc_ids):
        raise ContractError(f"{where} holds a document twice")
    if not ordering.doc_ids:
        raise ContractError(f"{where} is empty; a list that cannot be ordered is to be left out")
    if not ordering.teacher:
        raise ContractError(f"{where} does not name its teacher")
    scores = ordering.scores
    if scores is not None and (len(scores) != len(ordering.doc_ids) or list(scores) != sorted(scores, reverse=True)):
        raise ContractError(f"{where} must have one score a document, the best first, not {scores}")


# ------------------------------------------------------------------------------------------------------------- promises
def _close(a: Tensor, b: Tensor) -> Tensor:
    """Where two tensors agree to TOLERANCE, elementwise."""
    a, b = a.double(), b.double()
    if a.shape != b.shape:
        return torch.zeros(1, dtype=torch.bool)
    return (a - b).abs() <= TOLERANCE * b.abs().clamp(min=1.0)


def _promise(kept: Tensor, promise: str, lists: Sequence[CandidateList], found: Tensor | None = None) -> None:
    """Raise ContractError with the promise and the first list, element and value for which `kept` [B, ...] is False."""
    if bool(kept.all()):
        return
    row, *rest = (~kept).nonzero()[0].tolist()
    what = "" if found is None else f"; found {float(found[(row, *rest)])}"
    raise ContractError(f"{promise}: broken for query {lists[row].query_id!r}, element {rest}{what}")


class ContractError(AssertionError):
    """A part does not keep a promise of its protocol; the message says which one."""
