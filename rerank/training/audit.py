"""Audit: what refinement can gain on these lists, from one forward pass and sampled rankings, before any training.

Per list, the reward of the policy's most likely ranking (greedy), of the ranking by grade (ideal) and of rankings drawn
from the policy. From these, what kind of list it is:

    unjudged           nothing is known of its candidates
    without relevant   judged, but no candidate is relevant: the first stage missed them all
    saturated          greedy earns nearly what the ideal does: solved
    at the edge        not solved, and some sampled ranking clearly beats greedy: within reach
    out of reach       not solved, and no sampled ranking clearly beats greedy
    lone success       (of these two) hardly anything is expected, yet some draw earns: rare luck teaches shortcuts

Refinement gains where there is headroom within reach: the edge of competence. Rankings are drawn at the temperature at
which `refine` begins to explore, unless one is given. Draws are keyed by query: they do not depend on a list's company.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rerank import plackett_luce
from rerank.errors import InputError
from rerank.lists import ListBatch, batch_of, check_scores
from rerank.models.language.generative import AnyPolicy
from rerank.training.anchoring import ENTROPY, SAMPLE, automatic_temperature
from rerank.training.audited import EQUAL, Audit, ListAudit
from rerank.training.paid import name_of, paid
from rerank.training.probing import AT_ONCE, drawn, expected_of, scores_of
from rerank.types import CandidateList, Reward

__all__ = ["Audit", "ListAudit", "audit", "audit_scores", "in_band"]


def audit(
    policy: AnyPolicy,
    lists: Sequence[CandidateList],
    reward: Reward,
    *,
    saturated: float = 0.98,
    samples: int = 64,
    seed: int = 0,
    temperature: float | None = None,
) -> Audit:
    """What `reward` can gain on `lists` from where `policy` stands; one forward pass, nothing is trained."""
    scores = scores_of(policy, lists)
    return audit_scores(
        scores, batch_of(lists), reward, saturated=saturated, samples=samples, seed=seed, temperature=temperature
    )


@torch.no_grad()
def audit_scores(
    scores: Tensor,
    batch: ListBatch,
    reward: Reward,
    *,
    saturated: float = 0.98,
    samples: int = 64,
    seed: int = 0,
    temperature: float | None = None,
) -> Audit:
    """The audit of scores [B, N], -inf where padded, whoever gave them: a model, or a run without one."""
    if not batch.lists:
        raise InputError("an audit needs at least one list, not none")
    if not 0 < saturated <= 1:
        raise InputError(f"saturated must be a share of the ideal above 0 and at most 1, not {saturated!r}")
    if samples < 2:
        raise InputError(f"samples must be at least 2, not {samples!r}: an audit looks at how rewards differ")
    if temperature is not None and not 0 < temperature < math.inf:
        raise InputError(f"temperature must be greater than 0, not {temperature!r}")
    check_scores(scores, batch.mask)
    scores = scores.detach().float().cpu()
    warmth = _temperature(scores, batch.mask.cpu()) if temperature is None else temperature
    found: list[ListAudit] = []
    for start in range(0, len(batch.lists), AT_ONCE):
        group = batch_of(batch.lists[start : start + AT_ONCE])
        rows = scores[start : start + AT_ONCE, : group.mask.shape[1]]
        found += _audited(rows, group, reward, samples, seed, warmth)
    return _summary(found, reward, saturated, samples, warmth)


def in_band(found: Audit, low: float, high: float) -> list[int]:
    """Indices of the lists with headroom whose greedy reward is a share of the ideal's from `low` to `high`."""
    if not low <= high:
        raise InputError(f"a band goes from a low share to a high one, not from {low!r} to {high!r}")
    return [i for i, one in enumerate(found.by_list) if one.headroom > EQUAL and low <= one.share <= high]


def _temperature(scores: Tensor, mask: Tensor) -> float:
    """The temperature at which refinement would explore, found on lists spread evenly over all."""
    some = torch.linspace(0, len(scores) - 1, min(SAMPLE, len(scores))).long()
    return automatic_temperature(scores[some], mask[some], ENTROPY)


def _audited(
    scores: Tensor, batch: ListBatch, reward: Reward, samples: int, seed: int, temperature: float
) -> list[ListAudit]:
    """The records of a group of lists."""
    greedy_first = plackett_luce.best(scores, batch.mask)
    by_grade = plackett_luce.best(batch.labels, batch.mask)
    greedy, graded = paid(reward, torch.stack([greedy_first, by_grade], 1), batch).unbind(1)
    tempered = scores / temperature
    cutoff = getattr(reward, "cutoff", None)
    rankings = drawn(tempered, batch, samples, cutoff, seed, "audit")
    rewards = paid(reward, rankings, batch)
    best = rewards.amax(1)
    # What pays by something else than grades may pay more for another ranking than for the one by grade.
    ideal = torch.stack([greedy, graded, best]).amax(0)
    columns = (greedy, ideal, expected_of(tempered, reward, batch, rewards), best, rewards.std(1))
    values = zip(*(column.double().tolist() for column in columns), strict=True)
    return [_record(c, cutoff, *row) for c, row in zip(batch.lists, values, strict=True)]


def _record(
    candidates: CandidateList,
    cutoff: int | None,
    greedy: float,
    ideal: float,
    expected: float,
    best: float,
    deviation: float,
) -> ListAudit:
    relevant = sum(label > 0 for label in candidates.labels or ())
    known = max(relevant, sum(grade > 0 for grade in candidates.pool))
    most = known if cutoff is None else min(cutoff, known)
    return ListAudit(
        query_id=candidates.query_id,
        candidates=len(candidates),
        judged=candidates.labels is not None,
        relevant=relevant,
        recall_ceiling=relevant / known if known else None,
        top_ceiling=min(relevant, most) / most if most else None,
        greedy=greedy,
        ideal=ideal,
        expected=expected,
        best=best,
        deviation=deviation,
    )


def _summary(found: Sequence[ListAudit], reward: Reward, saturated: float, samples: int, temperature: float) -> Audit:
    """The audit as a whole; where the reward pays by grades, its means are over the judged lists."""
    n, graded = len(found), bool(getattr(reward, "graded", False))
    judged = [one for one in found if one.judged]
    counted = judged if graded else list(found)
    kinds = [one.kind(saturated) for one in counted]
    lone = sum(one.lone_success for one, kind in zip(counted, kinds, strict=True) if kind in ("edge", "far"))
    if getattr(reward, "signed", False):
        lone = 0  # 0 is not "nothing" for such a reward: half of all rankings earn more
    return Audit(
        reward=name_of(reward),
        graded=graded,
        lists=n,
        counted=len(counted),
        unjudged=(n - len(judged)) / n,
        without_relevant=sum(one.relevant == 0 for one in judged) / n,
        saturated=kinds.count("saturated") / n,
        at_the_edge=kinds.count("edge") / n,
        out_of_reach=kinds.count("far") / n,
        lone_success=lone / n,
        greedy=_mean([one.greedy for one in counted]),
        ideal=_mean([one.ideal for one in counted]),
        expected=_mean([one.expected for one in counted]),
        headroom=_mean([one.headroom for one in counted]),
        deviation=_mean([one.deviation for one in counted]),
        recall_ceiling=_mean([one.recall_ceiling for one in judged if one.recall_ceiling is not None]),
        top_ceiling=_mean([one.top_ceiling for one in judged if one.top_ceiling is not None]),
        saturated_from=saturated,
        samples=samples,
        temperature=temperature,
        by_list=tuple(found),
    )


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
