"""From rankings to tables: each collection, all of them together, and the one where the sides had equal time."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from record import stamp

from rerank.evaluation.tables import Table, compare
from rerank.types import Qrels, Run

from .journal import EQUAL_STEPS, EQUAL_TIME, TUNING, Journal
from .learning import ARMS, OURS, THEIRS, WITH_FIRST_STAGE
from .plan import DEPTH, HEAD_RATE, LISTS, MINI_BATCH, Plan

MEASURES = ("nDCG@10", "AP", "RR@10")
FIRST, TEACHER = "first stage", "teacher"
AGAINST = (
    *(("refined", peer) for peer in THEIRS),
    ("labels", "st LambdaLoss"),
    ("clone", "st MarginMSELoss"),
    ("refined", "labels"),
    ("refined", "clone"),
    ("refined", FIRST),
    (WITH_FIRST_STAGE, FIRST),
    (WITH_FIRST_STAGE, TEACHER),
)
PACKAGES = ("torch", "transformers", "sentence-transformers", "accelerate", "datasets", "tokenizers", "rerank")
LEFT_OUT = {
    "lightning-ir": "0.0.6 installs beside (it asks for transformers >= 4.50), but not a model can be made with "
    "transformers 5.23: LightningIRTokenizer.from_pretrained raises TypeError: type 'BertTokenizer' is not "
    "subscriptable (tried 2026-11-21)"
}
Runs = Mapping[str, Sequence[Run]]


def results(journal: Journal, plan: Plan, qrels: Mapping[str, Qrels], facts: Mapping[str, Any]) -> dict[str, Any]:
    """What benchmarks/results/peers.json holds."""
    runs = {name: _runs(journal, name, EQUAL_STEPS) for name in qrels}
    tables = {name: _table(found, qrels[name]) for name, found in runs.items()}
    if len(runs) > 1:
        tables["all collections"] = _table(*_together(runs, qrels))
    timed = {}
    for name in plan.timed:
        theirs = _runs(journal, name, EQUAL_TIME) if name in qrels else {}
        if theirs:
            timed[name] = _table({**runs[name], **theirs}, qrels[name])
    return {
        **stamp(),
        "versions": {package: version(package) for package in PACKAGES},
        "settings": {
            "steps": plan.steps,
            "lists a step": LISTS,
            "candidates": DEPTH,
            "head learning rate": HEAD_RATE,
            "mini_batch_size": MINI_BATCH,
            "seeds": plan.seeds,
        },
        "collections": dict(facts),
        "rates": {
            "tried": list(plan.rates),
            "chosen with seed 0 on the dev queries of": dict(plan.tuned_on),
            "dev nDCG@10": {name: _tried(journal, name) for name in dict.fromkeys(dict(plan.tuned_on).values())},
        },
        "left out": LEFT_OUT,
        "step": {name: costs(journal, name) for name in qrels},
        "equal steps": {name: _told(table) for name, table in tables.items()},
        "equal time": {name: {"steps": _steps(journal, name), **_told(table)} for name, table in timed.items()},
        "markdown": {
            **{f"equal steps, {name}": table.to_markdown() for name, table in tables.items()},
            **{f"equal time, {name}": table.to_markdown() for name, table in timed.items()},
        },
    }


def costs(journal: Journal, collection: str) -> dict[str, dict[str, float]]:
    """arm -> seconds a step, by the clock and by the processor (medians over seeds, which were run in turn)."""
    found = {}
    for arm in ARMS:
        entries = journal.of(EQUAL_STEPS, collection=collection, arm=arm)
        if entries:
            found[arm] = {
                name: round(statistics.median(e[name] / e["steps"] for e in entries), 3)
                for name in ("seconds", "processor_seconds")
            }
    return found


def rate_of(journal: Journal, arm: str, collection: str) -> float:
    """The learning rate that the dev queries of a collection chose; the first of equals."""
    tried = journal.of(TUNING, collection=collection, arm="refined" if arm == WITH_FIRST_STAGE else arm)
    return float(max(tried, key=lambda e: e["dev"])["rate"])


def _tried(journal: Journal, collection: str) -> dict[str, dict[str, float]]:
    return {
        arm: {str(e["rate"]): round(e["dev"], 4) for e in journal.of(TUNING, collection=collection, arm=arm)}
        for arm in (*OURS, *THEIRS)
    }


def _steps(journal: Journal, collection: str) -> dict[str, int]:
    return {e["arm"]: e["steps"] for e in journal.of(EQUAL_TIME, collection=collection)}


def _runs(journal: Journal, collection: str, kind: str) -> dict[str, list[Run]]:
    """arm -> its rankings, one a seed."""
    found: dict[str, list[Run]] = {}
    if kind == EQUAL_STEPS:
        found = {name: [journal.run(collection, name)] for name in (FIRST, TEACHER)}
    for arm in ARMS:
        seeds = sorted(e["seed"] for e in journal.of(kind, collection=collection, arm=arm))
        if seeds:
            found[arm] = [journal.run(collection, arm, kind, seed) for seed in seeds]
    return found


def _together(runs: Mapping[str, Runs], qrels: Mapping[str, Qrels]) -> tuple[dict[str, list[Run]], Qrels]:
    """All collections as one, a query's id behind its collection's name; only arms and seeds that all of them have."""
    arms = [arm for arm in next(iter(runs.values())) if all(arm in found for found in runs.values())]
    joined = {
        arm: [
            Run({f"{name}/{q}": ranking for name, seeds in parts for q, ranking in seeds[i].rankings.items()}, arm)
            for i in range(min(len(seeds) for _, seeds in parts))
        ]
        for arm in arms
        for parts in [[(name, found[arm]) for name, found in runs.items()]]
    }
    return joined, {f"{name}/{q}": grades for name, judged in qrels.items() for q, grades in judged.items()}


def _table(runs: Runs, qrels: Qrels) -> Table:
    return compare(runs, qrels, MEASURES, [pair for pair in AGAINST if all(arm in runs for arm in pair)])


def _told(table: Table) -> dict[str, Any]:
    told = table.to_json()
    told.pop("per_query")
    return {"verdict": table.verdict(), **told}
