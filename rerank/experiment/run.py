"""`train`: one recipe, start to report.

Launched as several processes (`torchrun`, `accelerate launch`), all of them go through this file. The main one claims
the folder, retrieves, asks the teachers, concludes and writes; the others read what it wrote. They share the steps of
training, the dev lists and the test lists; audits and diagnoses, which are small, each makes for itself.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from rerank.composition import FIRST_STAGE, check_parts
from rerank.engine.processes import by_main, is_main, main_first, started
from rerank.errors import RerankError
from rerank.evaluation.tables import Table, compare
from rerank.experiment.arms import REFINED, arms_of, meaning_of
from rerank.experiment.cards import write_cards
from rerank.experiment.lists import Lists, prepare
from rerank.experiment.ranking import keep_run
from rerank.experiment.stamp import commit, hardware, versions
from rerank.experiment.teaching import teach
from rerank.experiment.training import ModelTraining, Trained, arm_name, check_lists
from rerank.experiment.workspace import Workspace, claim, disclaim, locked, write_json
from rerank.models.backbones import load_encoder
from rerank.recipe import Recipe
from rerank.report.side_by_side import side_by_side
from rerank.report.writing import write_report
from rerank.training.log import Log
from rerank.types import CandidateList, Run


def train(recipe: Recipe, out: Path, resume: bool = False, console: Console | None = None, command: str = "") -> Table:
    """Carry out `recipe` in the folder `out`; returns the table that is also in `out/table.json`.

    An interrupted run goes on with `resume=True`; a folder that already holds a run is refused without it.
    """
    with started():
        check_parts(recipe)
        by_main(lambda: claim(out, recipe, resume))
        log = Log(out / "metrics.jsonl", console) if is_main() else Log()
        try:
            with ExitStack() as held:
                by_main(lambda: held.enter_context(locked(out)))
                held.callback(log.close)
                return _carry_out(Workspace(recipe, out, resume, log), command)
        except RerankError:
            if not resume and is_main():
                disclaim(out)
            raise


def _carry_out(work: Workspace, command: str) -> Table:
    recipe = work.recipe
    needs_encoder = "dense" in recipe.retrieval.retrievers or any(m.kind == "light" for m in recipe.models)
    encoder = load_encoder(recipe.retrieval.encoder) if needs_encoder else None
    with work.timed("retrieve"):
        lists = main_first(lambda: prepare(work, encoder))
    check_lists(recipe, lists)
    orderings = by_main(lambda: teach(work, lists))
    fixed = {FIRST_STAGE: [_run_of(lists.test.lists)], **{name: [run] for name, run in orderings.test.items()}}
    for runs in fixed.values():
        keep_run(work, runs[0])
    models: list[Trained] = []
    for model in recipe.models:
        training = ModelTraining(work, model, encoder, lists, orderings)
        training.found.against += [(arm_name(model, REFINED), teacher) for teacher in orderings.test]
        models.append(training.found)
        for number in range(recipe.seeds):
            training.seed(number)
            # The table grows as models and seeds do: whoever waits sees the first result early, and a kill loses none.
            last = number == recipe.seeds - 1
            table = by_main(partial(_conclude, work, fixed, models, lists, command, said=last))
    return table


def _run_of(lists: list[CandidateList]) -> Run:
    scores = {c.query_id: tuple(zip(c.doc_ids, c.features[FIRST_STAGE], strict=True)) for c in lists}
    return Run(scores, FIRST_STAGE)


def _conclude(
    work: Workspace, fixed: Mapping[str, list[Run]], models: Sequence[Trained], lists: Lists, command: str, said: bool
) -> Table:
    """Table, changes, diagnosis, calibration, summary and report of what has been done so far; `said`: shown too."""
    recipe, out = work.recipe, work.out
    runs = {**fixed, **{arm: found for model in models for arm, found in model.runs.items()}}
    against = [pair for model in models for pair in model.against if all(arm in runs for arm in pair)]
    seconds = {arm: taken for model in models for arm, taken in model.seconds.items()}
    table = compare(runs, lists.collection.qrels, recipe.evaluation.measures, against, seconds)
    write_json(out / "table.json", table.to_json())
    last = arm_name(recipe.models[len(models) - 1], REFINED)
    groups = {arm: group for model in models for arm, group in model.groups.items()}
    shown = {arm: found[0] for arm, found in runs.items() if groups.get(arm) != "corrupted"}
    judged, primary = lists.collection, recipe.evaluation.measures[0]
    told = side_by_side(shown, judged.qrels, judged, primary, FIRST_STAGE, last)
    write_json(out / "changes.json", told.to_json())
    write_json(out / "diagnosis.json", {"arms": {arm: d for model in models for arm, d in model.diagnosis.items()}})
    write_json(out / "calibration.json", {name: c for model in models for name, c in model.calibration.items()})
    summary = _summary(work, models, lists, command, table)
    write_json(out / "summary.json", summary)
    write_report(out)
    write_cards(work, models, lists, table, summary)
    if said and work.log.console is not None:
        _show(work, table)
    return table


def _show(work: Workspace, table: Table) -> None:
    """The table on the console, what its arms mean, and what may be said."""
    assert work.log.console is not None  # the caller has looked
    work.log.console.print(table.to_rich(work.log.console.width))
    for arm, meaning in legend(work.recipe, table.arms).items():
        work.log.say(f"  {arm}: {meaning}")
    work.log.say("")
    for sentence in table.verdict():
        work.log.say(f"  {sentence}")


def _summary(work: Workspace, models: Sequence[Trained], lists: Lists, command: str, table: Table) -> dict[str, Any]:
    return {
        "title": work.recipe.name,
        "command": command,
        "recipe": work.recipe.text,
        "versions": versions(),
        "data": lists.facts,
        "legend": legend(work.recipe, table.arms),
        "notes": work.notes,
        "audit": {name: audited for model in models for name, audited in model.audit.items()},
        "groups": {arm: group for model in models for arm, group in model.groups.items()},
        "hardware": hardware(),
        "commit": commit(),
        "base": Path(os.path.relpath(work.recipe.base, work.out)).as_posix(),
        "seeds": [work.recipe.seed + number for number in range(work.recipe.seeds)],
        "seconds": work.seconds,
        "seconds_total": round(time.monotonic() - work.log.began, 1),
    }


def legend(recipe: Recipe, rows: Collection[str]) -> dict[str, str]:
    """Arm -> what it is, for the arms that have a row in the table (with several models, one entry for all)."""
    several = "" if len(recipe.models) == 1 else "MODEL "
    refine, control = recipe.refine_of(recipe.models[0]), recipe.control_of(recipe.models[0])
    known = {
        FIRST_STAGE: "the candidates in the order in which they were retrieved",
        "teacher": f"whose orderings are cloned ({recipe.teacher.kind})",
        **{f"{several}{arm.name}": meaning_of(arm, refine, control) for arm in arms_of(recipe)},
        f"{several}{REFINED} alone": "the refined model as it ranks without first-stage scores",
    }
    arms = [arm.removeprefix(several) for arm in known]
    there = {arm for arm in arms for model in recipe.models if arm_name(model, arm) in rows}
    there |= {arm for arm in arms for row in rows if row == arm or (arm == "teacher" and row.startswith("teacher "))}
    return {arm: meaning for arm, meaning in known.items() if arm.removeprefix(several) in there}
