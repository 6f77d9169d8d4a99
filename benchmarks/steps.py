"""What a refine step costs beside a clone step on the same lists: `python benchmarks/steps.py [--steps N]`.

The cross-encoder on MiniLM, lists of 16 functions with their docstring's first sentence, 8 lists a step; clone
(RankNet), refine (exact nDCG@10, no anchor), the same with an anchor (one more forward pass, for the reference), and
refine with RLOO. The stages are run in turn, several times; figures are medians of pairs per second over all steps but
the first of a turn. Writes benchmarks/results/steps.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import torch
from record import RESULTS, stamp

from rerank.data import candidate_lists, load_collection
from rerank.models.backbones import load_cross_encoder
from rerank.models.policy import ScorePolicy
from rerank.retrieval.bm25 import BM25
from rerank.rewards import ndcg
from rerank.teachers import Judged
from rerank.training import Clone, Context, Log, Refine
from rerank.types import CandidateList

LISTS, CANDIDATES = 64, 16


def lists_of() -> list[CandidateList]:
    """Lists of code search that hold the function looked for."""
    collection = load_collection("code#train")
    collection = collection.select(sorted(collection.queries)[: 4 * LISTS])
    run = BM25.build(collection.documents, language="code").retrieve(collection.queries, CANDIDATES)
    found = [c for c in candidate_lists(collection, run, {"bm25": run}) if c.labels and max(c.labels) > 0]
    return [c for c in found if len(c) == CANDIDATES][:LISTS]


def pairs_per_second(stage: str, lists: list[CandidateList], policy: ScorePolicy, steps: int, turn: int) -> list[float]:
    """The speed of each step but the first."""
    shared = {"steps": steps, "list_size": CANDIDATES, "evaluations": 1, "select": "last"}
    with tempfile.TemporaryDirectory() as folder:
        log = Log(Path(folder) / "metrics.jsonl")
        context = Context(stage, seed=turn, log=log)
        if stage == "clone":
            Clone(fit_first_stage=False, **shared).run(policy, lists, Judged()(lists), context)
        else:
            anchor = 0.2 if stage == "refine anchored" else 0.0
            estimator = "rloo" if stage == "refine rloo" else "exact"
            settings = Refine(anchor=anchor, estimator=estimator, temperature=1.0, **shared)
            settings.run(policy, lists, ndcg(10), context)
        log.close()
        records = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    speeds = [record["pairs_per_second"] for record in records if "pairs_per_second" in record]
    return speeds[1:]


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4, help="Steps of a turn.")
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    scorer, _ = load_cross_encoder("minilm", max_length=128)
    policy, lists = ScorePolicy(scorer), lists_of()
    speeds: dict[str, list[float]] = {name: [] for name in ("clone", "refine", "refine anchored", "refine rloo")}
    for turn in range(given.turns):
        for stage in speeds:
            speeds[stage] += pairs_per_second(stage, lists, policy, given.steps, turn)
    medians = {stage: statistics.median(found) for stage, found in speeds.items()}
    content = {
        **stamp(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "pairs_per_second": medians,
        "cost_of_a_step": {stage: medians["clone"] / found for stage, found in medians.items()},
    }
    (RESULTS / "steps.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf8")
    print(json.dumps(content["cost_of_a_step"], indent=1))


if __name__ == "__main__":
    main()
