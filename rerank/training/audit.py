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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from rerank import plackett_luce
from rerank.errors import InputError
from rerank.lists import ListBatch, batch_of, check_scores, mask_of
from rerank.models.policy import ScorePolicy
from rerank.objective.expected import expected_reward, is_exact
from rerank.randomness import generator
from rerank.training.anchoring import ENTROPY, FEW, SAMPLE, automatic_temperature
from rerank.types import CandidateList, Reward

AT_ONCE = 16
"""Lists that are scored, and whose rankings are drawn, together."""

EQUAL = 1e-6
"""Rewards that differ by less are equal: float32 sums of the same terms in another order differ by that much."""

LONE = 0.05
"""A list of which less than this share of its ideal is expected earns by luck: of 16 draws, most often none does."""

CEILING = 0.5
"""Below this mean top ceiling more is lost by the first stage than any order of its candidates can give back."""

MISSED = 1 / 3
"""Above this share of judged lists without a relevant candidate, deeper candidates are worth more than their order."""

HEADROOM = 0.02
"""Below this share of the ideal a gain is no more than the difference between two seeds."""

REACH = 0.25
"""With fewer of the lists at the edge than this, most steps of refinement would see no ranking worth learning from."""


# ------------------------------------------------------------------------------------------------------------- drawing
@torch.no_grad()
def scores_of(policy: ScorePolicy, lists: Sequence[CandidateList], at_once: int = AT_ONCE) -> Tensor:
    """The policy's scores of lists as one tensor [B, N] on the CPU, -inf where padded; `at_once` lists a pass."""
    policy.eval()
    mask = mask_of(lists)
    out = torch.full(mask.shape, -torch.inf)
    for start in range(0, len(lists), at_once):
        found = policy.scores(lists[start : start + at_once]).float().cpu()
        out[start : start + at_once, : found.shape[1]] = found
    check_scores(out, mask)
    return out


def drawn(scores: Tensor, batch: ListBatch, samples: int, cutoff: int | None, *key: str | int) -> Tensor:
    """`samples` rankings of each list, [B, S, K]; the draws of a list are a function of `key` and its query alone."""
    width = batch.mask.shape[1]
    places = width if cutoff is None else min(cutoff, width)
    out = torch.arange(places).expand(len(batch.lists), samples, places).clone()
    for row, candidates in enumerate(batch.lists):
        n = len(candidates)
        draw = generator(*key, candidates.query_id)
        ranked = plackett_luce.sample(scores[row : row + 1, :n], batch.mask[row : row + 1, :n], samples, draw, places)
        out[row, :, : ranked.shape[-1]] = ranked[0]
    return out


def expected_of(scores: Tensor, reward: Reward, batch: ListBatch, rewards: Tensor) -> Tensor:
    """The expected reward [B] under the policy: exact where it is known, else the mean of the sampled `rewards`."""
    return expected_reward(scores, reward, batch).float() if is_exact(reward) else rewards.mean(1)


# ------------------------------------------------------------------------------------------------------------ auditing
def audit(
    policy: ScorePolicy,
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
    greedy, graded = reward(torch.stack([greedy_first, by_grade], 1), batch).unbind(1)
    tempered = scores / temperature
    cutoff = getattr(reward, "cutoff", None)
    rankings = drawn(tempered, batch, samples, cutoff, seed, "audit")
    rewards = reward(rankings, batch)
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
        reward=str(getattr(reward, "name", type(reward).__name__)),
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


# ------------------------------------------------------------------------------------------------------------- records
@final
class ListAudit(NamedTuple):
    """What was found of one list."""

    query_id: str
    candidates: int
    judged: bool
    relevant: int
    """Candidates of a grade above 0."""
    recall_ceiling: float | None
    """Relevant candidates / judged relevant documents; None where no document is judged relevant."""
    top_ceiling: float | None
    """The same with both counted up to the reward's cutoff: the share of its places that a ranking can fill."""
    greedy: float
    """Reward of the most likely ranking."""
    ideal: float
    """Reward of the ranking by grade, or of the best that was seen where that is more."""
    expected: float
    """Expected reward: exact where it is known, else the mean of the draws."""
    best: float
    """The largest reward of the draws."""
    deviation: float
    """Standard deviation of the rewards of the draws."""

    @property
    def headroom(self) -> float:
        """What the ideal earns beyond greedy."""
        return self.ideal - self.greedy

    @property
    def share(self) -> float:
        """What greedy earns as a share of the ideal; 1 where there is no headroom."""
        if self.headroom <= EQUAL:
            return 1.0
        return 1.0 - self.headroom / abs(self.ideal) if abs(self.ideal) > EQUAL else 0.0

    @property
    def lone_success(self) -> bool:
        """Whether hardly anything is expected, and yet some draw earned something."""
        return self.expected < LONE * self.ideal and self.best > EQUAL

    def kind(self, saturated: float) -> str:
        """saturated, edge, far (out of reach), or nothing: a list that no ranking earns anything on."""
        if abs(self.ideal) <= EQUAL and self.headroom <= EQUAL:
            return "nothing"
        if self.share >= saturated:
            return "saturated"
        # As clearly better as a ranking must be that is not as good as solved.
        clearly = max((1.0 - saturated) * abs(self.ideal), EQUAL)
        return "edge" if self.best - self.greedy >= clearly else "far"


@final
@dataclass(frozen=True, kw_only=True)
class Audit:
    """What was found of all lists; shares are of all lists, means of those that count for the reward."""

    reward: str
    graded: bool
    """Whether the reward pays by grades; then unjudged lists have no part in the means."""
    lists: int
    counted: int
    """Lists that the means are over: the judged ones, or all for a reward that does not look at grades."""
    unjudged: float
    without_relevant: float
    """Share of all lists that are judged and have no relevant candidate."""
    saturated: float
    at_the_edge: float
    out_of_reach: float
    lone_success: float
    greedy: float | None
    """Mean reward; None, as the other means, where no list counts."""
    ideal: float | None
    expected: float | None
    headroom: float | None
    deviation: float | None
    """Mean over lists of the standard deviation of sampled rewards."""
    recall_ceiling: float | None
    """Mean over the judged lists."""
    top_ceiling: float | None
    """Mean over the judged lists; decides whether the first stage is deep enough for this reward."""
    saturated_from: float
    """The share of the ideal from which a list counts as saturated."""
    samples: int
    temperature: float
    """What scores were divided by before rankings were drawn."""
    by_list: tuple[ListAudit, ...] = ()

    @property
    def open(self) -> int:
        """Lists on which something is left to gain."""
        return round((self.at_the_edge + self.out_of_reach) * self.lists)

    def advice(self) -> str:
        """One sentence: what to do next, and the number that decides it."""
        if self.graded and (said := self._about_labels()):
            return said
        ideal, headroom, greedy = self.ideal or 0.0, self.headroom or 0.0, self.greedy or 0.0
        if headroom <= HEADROOM * abs(ideal):
            return (
                f"Collect labels of harder queries: {self.reward} is {greedy:.3f} of at most {ideal:.3f}, "
                f"and {_percent(self.saturated)} of the lists are saturated, so there is next to nothing to gain."
            )
        if self.at_the_edge * self.lists < REACH * self.open:
            return (
                f"Clone longer: of {self.open} lists with something to gain, only "
                f"{round(self.at_the_edge * self.lists)} are at the edge, where a sampled ranking beats the most "
                "likely one; refinement learns from these alone."
            )
        return (
            f"Refine: {_percent(self.at_the_edge)} of the lists are at the edge, and {self.reward} is {greedy:.3f} "
            f"of at most {ideal:.3f}."
        )

    def _about_labels(self) -> str:
        """What must come before any training on labels; empty where nothing must."""
        if not self.counted:
            return f"Collect labels: none of {self.lists} lists has judgements."
        missed = self.without_relevant * self.lists / self.counted
        if missed > MISSED:
            return (
                f"Deepen the first stage: {_percent(missed)} of the judged lists hold no relevant candidate, "
                "and no order of the candidates can help them."
            )
        if self.top_ceiling is not None and self.top_ceiling < CEILING:
            return (
                f"Deepen the first stage: the relevant candidates fill only {_percent(self.top_ceiling)} of what "
                f"{self.reward} looks at, and no order of the candidates can give back the documents it missed."
            )
        with_relevant = round(self.counted - self.without_relevant * self.lists)
        if with_relevant <= FEW:
            return (
                f"Collect labels: {with_relevant} lists with a relevant candidate are few; up to {FEW}, refinement is "
                "held at the clone, because what it gains on so few lists it loses on others."
            )
        return ""

    def to_json(self, by_list: bool = False) -> dict[str, Any]:
        """All numbers and the advice as JSON; with `by_list` those of each list too."""
        numbers = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "by_list"}
        lists = {"by_list": [one._asdict() for one in self.by_list]} if by_list else {}
        return {**numbers, "advice": self.advice(), **lists}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Audit:
        """The audit that `to_json` wrote; without its lists where they were not written."""
        names = {field.name for field in fields(cls)} - {"by_list"}
        missing = sorted(names - content.keys())
        if missing:
            raise InputError(f"this is no audit: it has no {missing[0]!r}; it has {sorted(content)}")
        lists = tuple(ListAudit(**one) for one in content.get("by_list", ()))
        return cls(**{name: content[name] for name in names}, by_list=lists)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
