"""One set of a suite: collection -> first stages -> models on them -> table, and the files that say that it is done.

    SETS/SET/table.json  changes.json  facts.json  qrels.txt     what was found, and by which judgements
    SETS/SET/done.json                                of what it was made; written last, and only when nothing failed

A set whose `done.json` tells of the same models, first stages and files is read back without its collection. What
fails (a model, a first stage, the whole set) is told and left out; what else the set has is measured all the same. A
set that fails as a whole keeps the files that it had, and they count where they are of the same job.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from rerank.bench.arms import ELSEWHERE, Arm, Lists, arm_name, compared_stages, probe_arm, rank_arm
from rerank.bench.first_stages import Ground, first_stage
from rerank.bench.plan import (
    Failure,
    Found,
    NotAsked,
    Plan,
    can_pass,
    check_places,
    finished,
    job_of,
    mark_done,
    mark_undone,
    published_of,
)
from rerank.bench.suites import BenchSet, Published, excluded
from rerank.data import fingerprint, load_collection, read_qrels, write_qrels
from rerank.digests import digest_of
from rerank.errors import InputError, Mismatch, RerankError
from rerank.evaluation.across import Speed
from rerank.evaluation.measures import evaluate, parse_measure
from rerank.evaluation.tables import Table, compare
from rerank.experiment.lists import limited
from rerank.experiment.workspace import write_json
from rerank.report.side_by_side import side_by_side
from rerank.types import Collection, Run

logger = logging.getLogger("rerank.bench")

APART = 0.02
"""A first stage further than this from its published figure is told."""

_STALE = re.compile(r"(.+?[/\\])\.?([^/\\]+?\.trec)(?:\.manifest\.json|\.journal)?\b.*--overwrite\.?", re.DOTALL)
"""A message that tells of a file in the way, and would have everything done anew."""


def measure_set(bench_set: BenchSet, plan: Plan, folder: Path) -> Found:
    """The table of one set and what belongs to it, measured in `folder` or read from it."""
    found = Found()
    job: dict[str, Any] = {}
    with _told(found, bench_set.name, "", plan):
        check_places(folder)
        job = job_of(bench_set, plan)
        before = None if plan.overwrite else finished(folder, job)
        if before is not None:
            plan.say(f"{bench_set.name}: done before")
            return before
        _measure(bench_set, plan, folder, found)
        if found.table is not None and not found.failures:
            mark_done(folder, job)
    before = finished(folder, job, unseen=True) if job and found.table is None else None
    return found if before is None else _kept(bench_set.name, before, found, plan)


def _kept(name: str, before: Found, found: Found, plan: Plan) -> Found:
    """What a set has from before, where the same job failed this time."""
    before.failures = found.failures
    note = "it could not be measured this time; its numbers are those of the same job from before"
    before.notes.append(note)
    plan.say(f"{name}: note: {note}")
    return before


@contextmanager
def _told(found: Found, set_name: str, arm: str, plan: Plan) -> Iterator[None]:
    """Whatever fails in the block is told, and put with what is found; only an interruption gets through."""
    try:
        yield
    except Exception as error:
        known = isinstance(error, RerankError | OSError)
        problem = str(error) if known else f"{type(error).__name__}: {error}"
        if known:
            problem = _STALE.sub(lambda told: _advised(told, set_name), problem)
        found.failures.append(Failure(set_name, arm, problem, can_pass(error)))
        if not isinstance(error, NotAsked):
            plan.say(f"{set_name}{f', {arm}' if arm else ''} FAILED: {problem}")
        if not known:  # a fault of ours or of a library: where it comes from must not be lost
            logger.error("%s: %s", set_name, problem, exc_info=error)


def _advised(told: re.Match[str], set_name: str) -> str:
    """The message, and in place of doing everything anew what is enough: this file, or this set."""
    problem = re.split(r"\. (?=Choose|Compute|Ask)|: (?=compute|choose)", told[0])[0]
    run = Path(told[1], told[2])
    there = [str(path) for path in (run, run.with_name(f".{run.name}.journal")) if path.exists()]
    return (
        f"{problem}. To make this one anew, and nothing else, delete {' and '.join(there)}, then give this command "
        f"again; `--set {set_name} --overwrite` makes all of {set_name} anew, endpoints that cost money too"
    )


def _measure(bench_set: BenchSet, plan: Plan, folder: Path, found: Found) -> None:
    ground = _ground(bench_set, plan, found)
    if plan.overwrite:
        mark_undone(folder)  # from here on its runs are others
    runs: dict[str, Run] = {}
    arms: dict[str, dict[str, Arm]] = {system.name: {} for system in plan.systems}
    for choice in plan.first_stages:
        with _told(found, ground.name, choice.name, plan):
            first = first_stage(choice, ground, folder / choice.name, plan.build, plan.overwrite, plan.place)
            runs[choice.name], found.ties[choice.name] = first.run, first.tie_rate
            _say(plan, ground, choice.name, first.run)
            lists = Lists(ground.collection, first, plan.overwrite, plan.console, plan.place, ground.barred)
            for arm in _models_on(lists, ground, plan, found):
                runs[arm.name] = arm.run
                arms[arm.model][choice.name] = arm
    if ELSEWHERE in plan.probes:
        _swap_stages(ground, arms, plan, found)
    if runs:
        _conclude(bench_set, plan, folder, found, ground.collection, runs)


def _models_on(lists: Lists, ground: Ground, plan: Plan, found: Found) -> Iterator[Arm]:
    """The arms of one first stage, with the probes of each."""
    for system in plan.systems:
        name = arm_name(system.name, lists.first.name)
        where = f"{ground.name}, {name}"
        with _told(found, ground.name, name, plan), plan.asked(system, where) as asked:
            arm = rank_arm(lists, asked)
            found.ties[name] = arm.tie_rate
            if arm.speed is not None:
                found.speed[name] = arm.speed
            _say(plan, ground, name, arm.run, arm.speed)
            yield arm
            if plan.probes:
                found.probes[name] = probe_arm(lists, asked, arm, plan.probes, plan.measures[0])


def _ground(bench_set: BenchSet, plan: Plan, found: Found) -> Ground:
    """The judged queries of a set, and what their first stages need to know."""
    loaded = load_collection(bench_set.collection, bench_set.base)
    own = loaded.qrels  # which documents are no candidates is the set's own word, whoever judges
    if bench_set.name in plan.qrels:
        loaded = _judged_by(loaded, plan.qrels[bench_set.name], found)
    judged = loaded.select(q for q in loaded.queries if loaded.qrels.get(q))
    if not judged.queries:
        raise InputError(f"set {bench_set.name} has no judged query: there is nothing to measure")
    collection = limited(judged, plan.limit)
    documents = fingerprint(Collection(loaded.documents, {}))
    asked = fingerprint(Collection({}, collection.queries, collection.qrels))
    found.collection = {
        "name": loaded.name,
        "documents": len(loaded.documents),
        "queries": len(loaded.queries),
        "judged": len(judged.queries),
        "measured": len(collection.queries),
        "fingerprint": digest_of([documents, asked])[:16],
    }
    if bench_set.note:
        found.notes.append(bench_set.note)
    if len(collection.queries) < len(judged.queries):
        found.notes.append(f"{len(collection.queries)} of {len(judged.queries)} judged queries, chosen by their ids")
    barred = excluded(bench_set, collection, own)
    return Ground(bench_set.name, collection, documents, barred, bench_set.judged_pool, plan.settings(bench_set))


def _judged_by(collection: Collection, path: Path, found: Found) -> Collection:
    """The collection with the judgements of a file."""
    qrels = read_qrels(path)
    known = {q: grades for q, grades in qrels.items() if q in collection.queries}
    if not known:
        raise Mismatch(f"{path} judges no query of {collection.name}: its queries are {list(qrels)[:3]}")
    if n := len(qrels) - len(known):
        have = "query that {} judges has no text and is" if n == 1 else "queries that {} judges have no text and are"
        found.notes.append(f"{n} {have.format(path.name)} left out")
    return replace(collection, qrels=known)


def _say(plan: Plan, ground: Ground, arm: str, run: Run, speed: Speed | None = None) -> None:
    """One line with the figure of an arm, as soon as it is there."""
    primary = plan.measures[0]
    value = evaluate(run, ground.collection.qrels, [primary], aloud=False).mean[primary]  # the table says it
    cost = f", {1000 * speed.p50:.0f} ms a query" if speed else ""
    plan.say(f"{ground.name}: {arm}: {primary} {value:.4f} ({len(ground.collection.queries)} queries{cost})")


def _swap_stages(ground: Ground, arms: Mapping[str, Mapping[str, Arm]], plan: Plan, found: Found) -> None:
    """The probe of other first stages: each arm against the same model on the first stage that was named next."""
    for by_first in arms.values():
        for arm, other in pairwise(by_first.values()):
            with _told(found, ground.name, arm.name, plan):
                drop = compared_stages(arm, other, ground.collection, plan.measures[0])
                found.probes.setdefault(arm.name, []).append(drop)


def _conclude(
    bench_set: BenchSet, plan: Plan, folder: Path, found: Found, collection: Collection, runs: Mapping[str, Run]
) -> None:
    """Table, changes and facts of a set, in its folder."""
    seconds = {arm: speed.seconds for arm, speed in found.speed.items()}
    table = compare(runs, collection.qrels, plan.measures, _pairs(plan, runs), seconds)
    found.table = table
    for arm, missing in table.missing.items():
        if missing and arm in {c.name for c in plan.first_stages}:
            have = "has no candidate of {}; it" if missing == 1 else "have no candidate of {}; each"
            found.notes.append(f"{missing} of {table.queries} queries {have.format(arm)} counts 0")
    found.notes += [note for row in published_of(bench_set, plan) if (note := _far_apart(row, table))]
    for note in found.notes:
        plan.say(f"{bench_set.name}: note: {note}")
    shown = side_by_side(runs, collection.qrels, collection, plan.measures[0], *_most_telling(plan, table))
    mark_undone(folder)
    write_qrels(collection.qrels, folder / "qrels.txt")  # of what was measured: other tools give the same figures
    write_json(folder / "changes.json", shown.to_json())
    write_json(folder / "table.json", table.to_json())
    write_json(folder / "facts.json", found.facts())


def _pairs(plan: Plan, arms: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Each model against its first stage, then each further model against the first one on the same first stage."""
    pairs = []
    for choice in plan.first_stages:
        own = [arm_name(system.name, choice.name) for system in plan.systems]
        pairs += [(arm, choice.name) for arm in own]
        pairs += [(arm, own[0]) for arm in own[1:]]
    return [pair for pair in pairs if all(arm in arms for arm in pair)]


def _most_telling(plan: Plan, table: Table) -> tuple[str, str]:
    """(first stage, the best model on it), of the best model there is; without models, first and last first stage."""
    primary = plan.measures[0]
    stages = {arm_name(s.name, c.name): c.name for c in plan.first_stages for s in plan.systems}
    there = [arm for arm in table.arms if stages.get(arm) in table.arms]
    if not there:
        return next(iter(table.arms)), list(table.arms)[-1]
    best = max(there, key=lambda arm: table.arms[arm][primary].mean)
    return stages[best], best


def _far_apart(row: Published, table: Table) -> str:
    measure = str(parse_measure(row.measure))
    cell = table.arms.get(row.arm, {}).get(measure)
    if cell is None or abs(cell.mean - row.value) <= APART:
        return ""
    return (
        f"{row.arm} has {measure} {cell.mean:.4f} here and {row.value:.4f} in print ({row.what}; {row.source}): more "
        f"than {APART} apart. Other settings of the index can do that; so can other data"
    )
