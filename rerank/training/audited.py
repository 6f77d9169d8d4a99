"""What an audit found: the record of each list, of all lists, and the one sentence of advice that follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, final

from rerank.errors import InputError
from rerank.training.anchoring import FEW

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

    @property
    def pays_nothing(self) -> bool:
        """Whether no ranking of any list earns anything."""
        return not self.ideal and not (self.saturated or self.at_the_edge or self.out_of_reach)

    def advice(self) -> str:
        """One sentence: what to do next, and the number that decides it."""
        if self.graded and (said := self._about_candidates()):
            return said
        if self.pays_nothing:
            return (
                f"Check the reward: no ranking of any list earns anything by {self.reward}; is its level above all "
                "grades, or are the ids of its orderings others than those of the lists?"
            )
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

    def _about_candidates(self) -> str:
        """What must come before any training on labels: lists that have some; empty where nothing must."""
        if not self.counted:
            return f"Collect labels: none of {self.lists} lists has judgements."
        missed = self.without_relevant * self.lists / self.counted
        if missed > MISSED:
            return (
                f"Deepen the first stage: {_percent(missed)} of the judged lists hold no relevant candidate, "
                "and no order of the candidates can help them."
            )
        return ""

    def _about_labels(self) -> str:
        """Whether the labels that there are suffice; empty where they do."""
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
