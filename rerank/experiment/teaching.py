"""What the teachers say: orderings of the training lists, and, for the table, of the test lists."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, final

from rerank.composition import chat_settings, teachers_of
from rerank.data import candidate_lists, load_collection, read_run
from rerank.errors import InputError
from rerank.experiment.lists import Lists, Part
from rerank.experiment.workspace import Workspace
from rerank.recipe import TeacherChoice
from rerank.teachers import Chat, Estimate, Remembered
from rerank.teachers.ledger import kept_in
from rerank.types import CandidateList, Ordering, Run, Teacher

ANSWERS = "answers.jsonl"
"""What a chat teacher was told, word for word."""
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
    _check_shown(work.recipe.teacher, [c for part in (*lists.train, *lists.held_out, lists.test) for c in part.lists])
    sources = _Teachers(work)
    train = [o for part in lists.train for teacher in sources.of(part) for o in _asked(work, teacher, part)]
    asked = sum(len(part.lists) for part in lists.train)
    if asked and not train and work.recipe.teacher.kind == "chat":  # before more is paid for
        raise InputError(_none_ordered("chat", asked, [t for part in lists.train for t in sources.of(part)]))
    runs: dict[str, Run] = {}
    dev: list[Ordering] = []
    if work.recipe.teacher.kind != "judged":
        for part in lists.held_out:
            some = Part(part.source, part.lists[:DEV_LISTS])
            dev += [o for teacher in sources.of(part) for o in _asked(work, teacher, some)]
        for teacher in sources.of(lists.test):
            found = {o.query_id: o for o in _asked(work, teacher, lists.test)}
            if found:
                name = "teacher" if work.recipe.teacher.kind != "recorded" else f"teacher {teacher.name}"
                runs[name] = _run(found, lists.test.lists, name)
    work.log.say(f"{len(train)} orderings to clone")
    return Orderings(train, dev, runs)


@final
class _Teachers:
    """The teachers of a run: recorded ones have files for each source; any other is made once, with its budget."""

    def __init__(self, work: Workspace) -> None:
        self.work = work
        self._made: list[Teacher] | None = None

    def of(self, part: Part) -> list[Teacher]:
        recipe = self.work.recipe
        if recipe.teacher.kind == "recorded":
            return teachers_of(recipe.teacher, [recipe.base / path for path in part.source.teachers])
        if self._made is None:
            answers = self.work.out / ANSWERS
            self._made = teachers_of(recipe.teacher, (), recipe.retrieval.retrievers, answers)
        return self._made


def teach_run(
    collection: str,
    run: Path,
    out: Path,
    choice: TeacherChoice,
    recordings: Sequence[Path] = (),
    depth: int | None = None,
) -> str:
    """What was done, in words: a teacher's orderings of the candidates of `run`, in or added to the file `out`."""
    lists = _lists_of(collection, run, depth)
    if out.resolve() == run.resolve():
        raise InputError(f"--out {out} is the run itself; orderings need a file of their own")
    _check_shown(choice, lists)
    teachers = teachers_of(choice, recordings, answers=answers_beside(out))
    count = sum(1 for one in teachers for _ in Remembered(one, out)(lists))
    if count == 0:
        raise InputError(_none_ordered(choice.kind, len(lists), teachers))
    done = f"{count} orderings of {len(lists)} lists: {out}"
    return "\n".join([done, *(one.summary for one in teachers if isinstance(one, Chat) and one.counts.lists)])


def estimate_run(collection: str, run: Path, out: Path, choice: TeacherChoice, depth: int | None = None) -> Estimate:
    """What asking a chat teacher would take; nothing is asked."""
    if choice.kind != "chat":
        raise InputError(f"--dry-run is of --teacher chat, which costs; {choice.kind!r} asks nobody")
    lists = _lists_of(collection, run, depth)
    return Chat(chat_settings(choice), answers_beside(out)).estimate(lists)


def answers_beside(out: Path) -> Path:
    """Where a chat teacher keeps its answers to the questions that made the orderings `out`."""
    return out.with_name(f"{out.name.removesuffix('.jsonl')}.{ANSWERS}")


def _lists_of(collection: str, run: Path, depth: int | None) -> list[CandidateList]:
    return candidate_lists(load_collection(collection), read_run(run), depth=depth)


def _check_shown(choice: TeacherChoice, lists: Sequence[CandidateList]) -> None:
    """Nothing, when a chat teacher can be shown the longest list; told before it is asked about the others."""
    if choice.kind == "chat":
        settings = chat_settings(choice)
        settings.build_windowing().plan(max(map(len, lists), default=0), settings.window).close()


def _none_ordered(kind: str, n_lists: int, teachers: Sequence[Teacher]) -> str:
    """What is said where no list was ordered: for a chat teacher, where its answers are."""
    chats = [one for one in teachers if isinstance(one, Chat) and one.counts.unnamed]
    where = kept_in(chats[0].answers.path) if chats else ""
    return f"the teacher {kind!r} ordered none of the {n_lists} lists; nothing was written{where}"


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
