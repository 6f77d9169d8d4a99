"""`train`: one recipe, start to report."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console

from rerank.composition import FIRST_STAGE, check_parts
from rerank.errors import RerankError
from rerank.evaluation.changes import changes_json, largest_changes
from rerank.evaluation.report import write_report
from rerank.evaluation.tables import Table, compare
from rerank.experiment.arms import CLONE, LABELS, REFINED, arm_name, keep_run, train_arms
from rerank.experiment.lists import Lists, prepare
from rerank.experiment.teaching import teach
from rerank.experiment.workspace import Workspace, claim, disclaim, locked, write_json
from rerank.models.loading import load_encoder
from rerank.recipe import Recipe
from rerank.training.log import Log
from rerank.types import CandidateList, Run

PACKAGES = ("rerank", "torch", "transformers", "sentence-transformers", "faiss-cpu", "bm25s", "pytrec-eval-terrier")


def train(recipe: Recipe, out: Path, resume: bool = False, console: Console | None = None, command: str = "") -> Table:
    """Carry out `recipe` in the folder `out`; returns the table that is also in `out/table.json`.

    An interrupted run goes on with `resume=True`; a folder that already holds a run is refused without it.
    """
    check_parts(recipe)
    claim(out, recipe, resume)
    try:
        with locked(out):
            work = Workspace(recipe, out, resume, Log(out / "metrics.jsonl", console))
            try:
                return _carry_out(work, command)
            finally:
                work.log.close()
    except RerankError:
        if not resume:
            disclaim(out)
        raise


def _carry_out(work: Workspace, command: str) -> Table:
    recipe = work.recipe
    needs_encoder = "dense" in recipe.retrieval.retrievers or any(m.kind == "light" for m in recipe.models)
    encoder = load_encoder(recipe.retrieval.encoder) if needs_encoder else None
    with work.timed("retrieve"):
        lists = prepare(work, encoder)
    orderings, teacher_runs = teach(work, lists)
    runs = {FIRST_STAGE: _run_of(lists.test.lists), **teacher_runs}
    for run in runs.values():
        keep_run(work, run)
    against: list[tuple[str, str]] = []
    seconds: dict[str, float] = {}
    for model in recipe.models:
        arms = train_arms(work, model, encoder, lists, orderings)
        runs |= arms.runs
        seconds |= arms.seconds
        against += arms.against
        against += [(arm_name(model, REFINED), teacher) for teacher in teacher_runs]
        # The table grows model by model: whoever waits sees the first result early, and a kill loses none of it.
        table = _conclude(work, runs, lists, against, seconds, command)
    return table


def _run_of(lists: list[CandidateList]) -> Run:
    scores = {c.query_id: tuple(zip(c.doc_ids, c.features[FIRST_STAGE], strict=True)) for c in lists}
    return Run(scores, FIRST_STAGE)


def _conclude(
    work: Workspace,
    runs: Mapping[str, Run],
    lists: Lists,
    against: list[tuple[str, str]],
    seconds: Mapping[str, float],
    command: str,
) -> Table:
    """Table, changes, summary and report of what has been done so far."""
    recipe, out = work.recipe, work.out
    table = compare(runs, lists.collection.qrels, recipe.evaluation.measures, against, seconds)
    write_json(out / "table.json", table.to_json())
    last = [name for name in runs if name.endswith(REFINED)][-1]
    changes = largest_changes(
        runs[FIRST_STAGE], runs[last], lists.collection.qrels, lists.collection, recipe.evaluation.measures[0]
    )
    write_json(out / "changes.json", changes_json(changes, FIRST_STAGE, last))
    write_json(out / "summary.json", _summary(work, lists, command))
    write_report(out)
    if work.log.console is not None:
        work.log.console.print(table.to_rich())
        for arm, meaning in legend(recipe).items():
            work.log.say(f"  {arm}: {meaning}")
        work.log.say("")
        for sentence in table.verdict():
            work.log.say(f"  {sentence}")
    return table


def _summary(work: Workspace, lists: Lists, command: str) -> dict[str, Any]:
    return {
        "title": work.recipe.name,
        "command": command,
        "recipe": work.recipe.text,
        "versions": versions(),
        "data": lists.facts,
        "legend": legend(work.recipe),
        "notes": work.notes,
        "seeds": [work.recipe.seed],
        "seconds": work.seconds,
        "seconds_total": round(time.monotonic() - work.log.began, 1),
    }


def legend(recipe: Recipe) -> dict[str, str]:
    """Arm -> what it is."""
    several = "" if len(recipe.models) == 1 else "MODEL "
    refine, control = recipe.refine_of(recipe.models[0]), recipe.control_of(recipe.models[0])
    return {
        FIRST_STAGE: "the candidates in the order in which they were retrieved",
        "teacher": f"whose orderings are cloned ({recipe.teacher.kind})",
        f"{several}{CLONE}": "learned from the teacher's orderings alone",
        f"{several}{LABELS}": f"the control: the clone, then the same labels and steps through {control.loss}",
        f"{several}{REFINED}": f"the clone, then {refine.reward} by reinforcement learning",
        f"{several}{REFINED} alone": "the refined model without first-stage scores, as it is exported",
    }


def versions() -> dict[str, str]:
    """The versions and the machine that a result depends on."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    found["cores"] = str(os.cpu_count())
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
