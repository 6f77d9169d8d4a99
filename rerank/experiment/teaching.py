"""What the teachers say: orderings of the training lists, and, for the table, of the test lists."""

from __future__ import annotations

import time
from typing import NamedTuple

from rerank.composition import teachers_of
from rerank.experiment.lists import Lists, Part
from rerank.experiment.workspace import Workspace
from rerank.teachers import Remembered
from rerank.types import CandidateList, Ordering, Run, Teacher

DEV_LISTS = 64
"""Dev lists that a teacher is asked for, to see what of it a policy keeps; a teacher may cost money."""


class Orderings(NamedTuple):
    """What the teachers say of a run's lists."""

    train: list[Ordering]
    dev: list[Ordering]
    test: dict[str, Run]
    """A run of each teacher on the test lists that it can order."""


def teach(work: Workspace, lists: Lists) -> Orderings:
    """The teachers' orderings of the training lists, of some dev lists and, as runs, of the test lists."""
    train = [o for part in lists.train for teacher in _teachers(work, part) for o in _asked(work, teacher, part)]
    runs: dict[str, Run] = {}
    dev: list[Ordering] = []
    if work.recipe.teacher.kind != "judged":
        for part in lists.held_out:
            some = Part(part.source, part.lists[:DEV_LISTS])
            dev += [o for teacher in _teachers(work, some) for o in _asked(work, teacher, some)]
        for teacher in _teachers(work, lists.test):
            found = {o.query_id: o for o in _asked(work, teacher, lists.test)}
            if found:
                name = "teacher" if work.recipe.teacher.kind != "recorded" else f"teacher {teacher.name}"
                runs[name] = _run(found, lists.test.lists, name)
    work.log.say(f"{len(train)} orderings to clone")
    return Orderings(train, dev, runs)


def _teachers(work: Workspace, part: Part) -> list[Teacher]:
    recordings = [work.recipe.base / path for path in part.source.teachers]
    return teachers_of(work.recipe.teacher, recordings, work.recipe.retrieval.retrievers)


def _asked(work: Workspace, teacher: Teacher, part: Part) -> list[Ordering]:
    began = time.monotonic()
    found = list(Remembered(teacher, work.out / "orderings.jsonl")(part.lists))
    work.seconds["teach"] = round(work.seconds.get("teach", 0.0) + time.monotonic() - began, 1)
    return found


def _run(orderings: dict[str, Ordering], lists: list[CandidateList], name: str) -> Run:
    """The teacher's orderings as a run; what it did not order follows in first-stage order."""
    rankings = {}
    for candidates in lists:
        ordering = orderings.get(candidates.query_id)
        first = ordering.doc_ids if ordering else ()
        rest = [d for d in candidates.doc_ids if d not in set(first)]
        rankings[candidates.query_id] = tuple((d, -float(i)) for i, d in enumerate((*first, *rest)))
    return Run(rankings, name)
