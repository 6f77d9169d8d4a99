"""Training beside sentence-transformers: `python benchmarks/peers.py [--quick] [--out FOLDER]`.

The same lists, network, batches and steps for ours and for CrossEncoderTrainer with its five losses for reranking, on
three collections with three seeds; which arms there are and how each is set: benchmarks/peers/learning.py; the amounts:
benchmarks/peers/plan.py; the data: benchmarks/peers/material.py.

    1. tuning        every arm tries the same learning rates, with seed 0, on held-out training queries
    2. equal steps   every arm, collection and seed: trained, then a part of the official test queries is ranked
    3. equal time    on one collection: sentence-transformers' arms get as many steps as fit into the time that
                     `refined` took (processor seconds, medians over the seeds)

Test queries are ranked by one scorer, ours, for all arms; lists whose order no measure can see stay as they are. It
goes on where it was ended (FOLDER/journal.jsonl); every ranking is in FOLDER/runs. Writes benchmarks/results/peers.json
(a --quick run only with --results) and prints its tables. One core: about an hour. `pip install -e ".[peers]"` first.
"""

from __future__ import annotations

import os

# Before torch is imported: one thread, on either side, and nobody asks the hub.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from peers.concluding import FIRST, TEACHER, costs, rate_of, results
from peers.journal import EQUAL_STEPS, EQUAL_TIME, TUNING, Journal
from peers.learning import ARMS, OURS, THEIRS, Budget, Learned, learn, start
from peers.material import ROOT, Split, Task, task
from peers.plan import FULL, QUICK, Plan
from record import RESULTS

from rerank.evaluation.measures import evaluate
from rerank.models.policy import ScorePolicy, rerank_lists
from rerank.training.headroom import has_headroom
from rerank.types import Run

PRIMARY = "nDCG@10"


def say(text: str) -> None:
    """Nothing; a line of progress on stderr."""
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def ranked(policy: ScorePolicy, split: Split, name: str) -> Run:
    """The run of a split; lists without two grades keep the first stage's order, for no order of theirs scores."""
    found = rerank_lists(policy, [c for c in split.lists if has_headroom(c)], name)["served"]
    return Run({q: found.rankings.get(q, ranking) for q, ranking in split.first_stage.rankings.items()}, name)


def tune(arm: str, network: Path, given: Task, plan: Plan, journal: Journal) -> None:
    """Nothing; every rate was tried, and what the best one learned has ranked the test queries as seed 0."""
    tried: list[tuple[float, Budget, Learned]] = []
    for rate in plan.rates:
        budget = Budget(plan.steps, rate, 0)
        learned = learn(arm, network, given, budget)
        dev = evaluate(ranked(learned.policy, given.dev, arm), given.dev.qrels, (PRIMARY,)).mean[PRIMARY]
        tried.append((dev, budget, learned))
        say(f"tuning {arm}, rate {rate:g}: dev {PRIMARY} {dev:.4f}, {learned.seconds:.0f} s")
    _, budget, learned = max(tried, key=lambda found: found[0])
    journal.keep(ranked(learned.policy, given.test, arm), given.name, arm, EQUAL_STEPS, 0)
    for dev, at, found in tried:
        journal.add(TUNING, given.name, arm, at, found, dev=dev)
    journal.add(EQUAL_STEPS, given.name, arm, budget, learned)


def measure(kind: str, arm: str, network: Path, given: Task, budget: Budget, journal: Journal) -> None:
    """Nothing; the arm was trained and has ranked the test queries, if it had not before."""
    if journal.of(kind, collection=given.name, arm=arm, **budget._asdict()):
        return
    learned = learn(arm, network, given, budget)
    journal.keep(ranked(learned.policy, given.test, arm), given.name, arm, kind, budget.seed)
    journal.add(kind, given.name, arm, budget, learned)
    say(f"{kind}: {given.name}, {arm}, seed {budget.seed}: {budget.steps} steps, {learned.seconds:.0f} s")


def equal_time(network: Path, given: Task, plan: Plan, journal: Journal) -> None:
    """Nothing; sentence-transformers' arms were trained for as long as `refined` was."""
    cost = {arm: found["processor_seconds"] for arm, found in costs(journal, given.name).items()}
    for seed in range(plan.seeds):
        for arm in THEIRS:
            steps = max(1, round(plan.steps * cost["refined"] / cost[arm]))
            rate = rate_of(journal, arm, dict(plan.tuned_on)[given.name])
            measure(EQUAL_TIME, arm, network, given, Budget(steps, rate, seed), journal)


def carry_out(plan: Plan, folder: Path, train: bool = True) -> dict[str, Any]:
    """The results of the whole plan; without `train`, of what is finished of it."""
    journal = Journal(folder, plan)
    tasks = {}
    for name in plan.collections:
        tasks[name] = given = task(name, plan)
        say(f"{name}: {given.facts}")
        for arm, run in ((FIRST, given.test.first_stage), (TEACHER, given.test.teacher)):
            journal.keep(run, name, arm)
    if train:
        _train(plan, start(folder / "network"), tasks, journal)
    qrels = {name: given.test.qrels for name, given in tasks.items()}
    return results(journal, plan, qrels, {name: given.facts for name, given in tasks.items()})


def _train(plan: Plan, network: Path, tasks: dict[str, Task], journal: Journal) -> None:
    tuned_on = dict(plan.tuned_on)
    for name in dict.fromkeys(tuned_on[name] for name in tasks):
        for arm in (*OURS, *THEIRS):
            if not journal.of(TUNING, collection=name, arm=arm):
                tune(arm, network, tasks[name], plan, journal)
    for seed in range(plan.seeds):
        for name, given in tasks.items():
            for arm in ARMS:
                budget = Budget(plan.steps, rate_of(journal, arm, tuned_on[name]), seed)
                measure(EQUAL_STEPS, arm, network, given, budget, journal)
    for name in plan.timed:
        equal_time(network, tasks[name], plan, journal)


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="does it work? two steps, six test queries")
    parser.add_argument("--conclude", action="store_true", help="train nothing more: tables of what is finished")
    parser.add_argument("--threads", type=int, default=1, help="of the processor")
    parser.add_argument("--out", type=Path, help="journal and rankings (default: runs/peers, or runs/peers-quick)")
    parser.add_argument("--results", type=Path, help="where the result is written")
    given = parser.parse_args()
    if given.threads < 1:
        parser.error(f"--threads is at least 1, not {given.threads}")
    torch.set_num_threads(given.threads)
    plan = QUICK if given.quick else FULL
    found = carry_out(
        plan, given.out or ROOT / "runs" / ("peers-quick" if given.quick else "peers"), not given.conclude
    )
    found["threads"] = given.threads
    tables = found.pop("markdown")
    path = given.results or (None if given.quick else RESULTS / "peers.json")
    if path is not None:
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf8")
    for title, table in tables.items():
        print(f"## {title}\n\n{table}")


if __name__ == "__main__":
    main()
