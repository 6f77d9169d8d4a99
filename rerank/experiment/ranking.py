"""The test lists as a trained policy ranks them, and the files that say so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rerank.data import write_run
from rerank.engine.processes import by_all, is_main, own_groups
from rerank.experiment.workspace import Workspace
from rerank.models.language.generative import AnyPolicy
from rerank.models.policy import rerank_lists
from rerank.training.log import Log
from rerank.types import CandidateList, Run

AT_ONCE = 16
"""Test lists that are scored together."""


def ranked(policy: AnyPolicy, lists: Sequence[CandidateList], name: str, log: Log) -> dict[str, Run]:
    """The policy's runs over lists by view; each process ranks a part of the lists, in the company they always have."""

    def own() -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        with log.progress(f"{name}: test lists", len(lists)):
            for places in own_groups(len(lists), AT_ONCE):
                group = [lists[i] for i in places]
                for view, run in rerank_lists(policy, group, name, at_once=AT_ONCE).items():
                    found.setdefault(view, {}).update(run.rankings)
                log.advance(places.stop, "")
        return found

    views: dict[str, dict[str, Any]] = {}
    for found in by_all(own):
        for view, rankings in found.items():
            views.setdefault(view, {}).update(rankings)
    return {view: Run({c.query_id: by_query[c.query_id] for c in lists}, name) for view, by_query in views.items()}


def keep_run(work: Workspace, run: Run, seed: int = 0) -> None:
    """Write what an arm ranked to `runs/ARM.trec`; `ARM.seed-K.trec` for a further seed."""
    if not is_main():
        return
    folder = work.out / "runs"
    folder.mkdir(exist_ok=True)
    suffix = f".seed-{seed}" if seed else ""
    write_run(run, folder / f"{run.name.replace(' ', '-')}{suffix}.trec")
