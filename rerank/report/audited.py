"""The audit as the report shows it: each number of `summary.json`'s "audit" with what it means."""

from __future__ import annotations

from typing import Any, NamedTuple

from rerank.report.drawing import is_number
from rerank.report.findings import objects, shown

MEANINGS = {
    "lists": "lists that were looked at",
    "counted": "of them, those that the means are over",
    "saturated": "share of the lists ranked nearly as well as can be: nothing to learn from",
    "at_the_edge": "share on which some sampled ranking beats the most likely one: these teach",
    "out_of_reach": "share with something to gain that no sampled ranking finds",
    "without_relevant": "share without a relevant candidate: no order of it earns anything",
    "unjudged": "share that nobody judged",
    "lone_success": "share that hardly ever earns anything when sampled, and did once",
    "greedy": "mean reward of the most likely ranking",
    "expected": "mean reward of the rankings that would be sampled",
    "ideal": "mean reward of the best order of the same candidates",
    "headroom": "ideal minus greedy: what is left to gain",
    "deviation": "standard deviation of sampled rewards within a list, the mean over lists",
    "recall_ceiling": "share of the relevant documents that are candidates",
    "top_ceiling": "the same, counted up to the reward's cutoff",
}
"""Every row of the page in its order, but for those that a newer audit adds."""

_SETTINGS = {
    "samples": "rankings sampled of each list",
    "temperature": "temperature",
    "saturated_from": "saturated from",
}


class Row(NamedTuple):
    """One number of an audit."""

    title: str
    number: str
    meaning: str


class Audited(NamedTuple):
    """The audit of one model."""

    model: str
    advice: str
    rows: tuple[Row, ...]
    settings: str
    """How it was made."""


def audits(content: Any) -> list[Audited]:
    """The audits under `summary.json`'s "audit" (model -> what `Audit.to_json` gave)."""
    found = [_audited(model, told) for model, told in objects(content, "audit").items()]
    return [a for a in found if a.rows or a.advice]


def _audited(model: str, told: dict[str, Any]) -> Audited:
    numbers = {key: value for key, value in told.items() if is_number(value)}
    # The means are over the lists that count: worth a row where that is not all of them.
    hidden = {*_SETTINGS, *({"counted"} if numbers.get("counted") == numbers.get("lists") else ())}
    ordered = [key for key in (*MEANINGS, *(k for k in numbers if k not in MEANINGS)) if key in numbers.keys() - hidden]
    rows = tuple(Row(_spoken(key), _amount(numbers[key]), MEANINGS.get(key, "")) for key in ordered)
    settings = [f"{title} {_amount(numbers[key])}" for key, title in _SETTINGS.items() if key in numbers]
    reward = [f"reward {told['reward']}"] if told.get("reward") else []
    return Audited(model, str(told.get("advice") or ""), rows, ", ".join([*reward, *settings]))


def _spoken(key: str) -> str:
    """`recall_ceiling` -> `Recall ceiling`."""
    return key.replace("_", " ").capitalize()


def _amount(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else shown(value)
