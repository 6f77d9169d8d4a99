"""A suite, carried out: every set measured, one table over them, files to quote and a report to look at.

    OUT/sets/SET/FIRST/first_stage.trec  MODEL.trec  MODEL.timing.jsonl  MODEL.probe-PROBE.trec
    OUT/sets/SET/table.json  changes.json  facts.json  done.json
    OUT/results.json  results.md  results.tex  results.csv     the table over the sets (`evaluation.across`)
    OUT/summary.json  report.html                              of what, with what, how long; to look at
    OUT/failed.json                                            of a command that measured nothing, in place of these
    OUT/results.before.json  summary.before.json               results that had more, where a part failed since

The folder is the state: the same command goes on after an interruption where it was, and adding a model, a first stage
or a probe later keeps what is there. Models are loaded once for all sets.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console

from rerank.bench.arms import ELSEWHERE
from rerank.bench.first_stages import RETRIEVED, Retrievers, first_stage_choices
from rerank.bench.plan import DAMAGED, Failure, Found, Plan, check_places, published_of
from rerank.bench.sets import measure_set
from rerank.bench.suites import Suite
from rerank.bench.systems import Endpoint, ModelChoice, check_names, system_of
from rerank.data import read_qrels
from rerank.errors import InputError, NotFound, Unfinished, nearest
from rerank.evaluation.across import Across, across
from rerank.evaluation.measures import parse_measure
from rerank.evaluation.probes import PROBES
from rerank.experiment.reranking import AUTOMATIC, Loading, model_digest
from rerank.experiment.stamp import commit, hardware, versions
from rerank.experiment.workspace import RECIPE, locked, write_json, write_text
from rerank.report.writing import write_report

JUDGED = "Judged@10"
RESULTS, SUMMARY, FAILED = "results.json", "summary.json", "failed.json"
WRITTEN = (RESULTS, "results.md", "results.tex", "results.csv", SUMMARY, "report.html", FAILED)
UNORDERED = ("R", "P", "Success", "Judged")
"""Measures that see which documents are above their cutoff, not their order."""
INDEXES = ".indexes"
"""Beside OUT: dense indexes, shared by all runs that lie there."""


def bench(
    suite: Suite,
    models: Sequence[ModelChoice],
    first_stages: Sequence[str],
    out: Path,
    depth: int = 100,
    probes: Sequence[str] = (),
    measures: Sequence[str] = (),
    encoder: str = "minilm",
    loading: Loading = AUTOMATIC,
    limit: int | None = None,
    overwrite: bool = False,
    console: Console | None = None,
    command: str = "",
    qrels: Mapping[str, Path] | None = None,
) -> Across:
    """The table over the sets of `suite`: each first stage by itself, and each model on it; kept in the folder `out`.

    `models` may be empty: then the first stages are measured. `measures` takes the place of the suite's; the first is
    primary. `limit` queries a set are chosen by their ids. `qrels` (set -> file) are judgements to use in place of the
    set's own. Where something fails the rest is measured and written, and `Unfinished` is raised at the end.
    """
    began = time.monotonic()
    _check(suite, models, out, depth, limit)
    _check_probes(probes, first_stages)
    _check_qrels(qrels or {}, suite)
    chosen = tuple(dict.fromkeys(str(parse_measure(m)) for m in (*(measures or suite.measures), JUDGED)))
    _check_primary(chosen[0])
    build = Retrievers(out.absolute().parent / INDEXES, loading)
    plan = Plan(
        systems=[system_of(choice, loading, build) for choice in models],
        first_stages=first_stage_choices(first_stages),
        measures=chosen,
        depth=depth,
        probes=tuple(dict.fromkeys(probes)),
        encoder=encoder,
        limit=limit,
        qrels=dict(qrels or {}),
        build=build,
        overwrite=overwrite,
        console=console,
        place=loading.place,
    )
    _check_there(plan)
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        held.enter_context(locked(out))
        for system in plan.systems:
            if isinstance(system, Endpoint):
                held.callback(system.client.close)
        found = {s.name: measure_set(s, plan, out / "sets" / s.name) for s in suite.sets}
        return _conclude(suite, models, plan, found, out, command, began)


def _check(suite: Suite, models: Sequence[ModelChoice], out: Path, depth: int, limit: int | None) -> None:
    check_names([choice.name for choice in models], "model")
    if not suite.sets:
        raise InputError(f"suite {suite.name!r} has no set to measure")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; a benchmark needs a folder")
    check_places(out, WRITTEN)
    if (out / RECIPE).exists():
        raise InputError(f"--out {out} holds a run of `rerank train`; give the benchmark a folder of its own")
    for what, number in (("--depth", depth), ("--limit", limit)):
        if number is not None and number < 1:
            raise InputError(f"{what} {number}: at least 1 is needed")


def _check_probes(probes: Sequence[str], first_stages: Sequence[str]) -> None:
    for probe in probes:
        if probe not in PROBES:
            raise InputError(f"--probe {probe!r} is not known{nearest(probe, PROBES)}")
    if ELSEWHERE in probes and len(first_stages) < 2:
        raise InputError(f"the probe {ELSEWHERE!r} gives a model the candidates of another first stage: name two")


def _check_qrels(qrels: Mapping[str, Path], suite: Suite) -> None:
    known = [bench_set.name for bench_set in suite.sets]
    for name, path in qrels.items():
        if name not in known:
            raise InputError(f"--qrels {name}=...: suite {suite.name!r} has no such set{nearest(name, known)}")
        if not path.is_file():
            raise NotFound(f"--qrels {name}={path}: there is no such file")
        read_qrels(path)  # what is wrong in it is told before anything is measured


def _check_primary(measure: str) -> None:
    if parse_measure(measure).name == "Judged":
        raise InputError(
            f"the first measure is the one that is tested, and {measure} speaks of the judgements, not of the ranking: "
            f"name another one first ({JUDGED} is always there)"
        )


def _check_there(plan: Plan) -> None:
    """Nothing; a model or an encoder that is not there is told before anything is measured."""
    for system in plan.systems:
        system.identity()
    if any("dense" in RETRIEVED.get(choice.name, ()) for choice in plan.first_stages if choice.path is None):
        model_digest(plan.encoder)


def _conclude(
    suite: Suite,
    models: Sequence[ModelChoice],
    plan: Plan,
    found: Mapping[str, Found],
    out: Path,
    command: str,
    began: float,
) -> Across:
    """The table over the sets, written; an error where something is missing from it."""
    measured = {name: one for name, one in found.items() if one.table is not None}
    failures = [failure for one in found.values() for failure in one.failures]
    summary = _summary(suite, models, plan, found, _notes(suite, plan, found, out), command, began)
    if not measured:  # the results that are there, if any, keep the summary that tells of them
        write_json(out / FAILED, summary | {"kind": "failed bench"})
        raise Unfinished(_unfinished(suite, failures, out), None)
    table = _across(suite, plan, found)
    if failures:
        _keep_earlier(out, table, plan)
    _write(out, table, summary)
    report = write_report(out)
    if plan.console is not None:
        plan.console.print(table.to_rich(plan.console.width))
    for sentence in table.verdict():
        plan.say(f"  {sentence}")
    plan.say(f"  {report}")
    if failures:
        raise Unfinished(_unfinished(suite, failures, out), table)
    return table


def _write(out: Path, table: Across, summary: Mapping[str, Any]) -> None:
    """Nothing; results and the summary that tells of them, all made before the first is written."""
    texts = {"results.md": table.to_markdown(), "results.tex": table.to_latex(), "results.csv": table.to_csv()}
    results = table.to_json()
    write_json(out / RESULTS, results)
    write_json(out / SUMMARY, summary)
    for name, text in texts.items():
        write_text(out / name, text)
    (out / FAILED).unlink(missing_ok=True)


def _keep_earlier(out: Path, table: Across, plan: Plan) -> None:
    """Nothing; earlier results that have what `table` lacks are kept beside it, the whole ones rather than later."""
    earlier, beside = out / RESULTS, out / "results.before.json"
    if not earlier.is_file():
        return
    try:
        before = Across.from_json(json.loads(earlier.read_text(encoding="utf8")))
        whole = not json.loads((out / SUMMARY).read_text(encoding="utf8"))["missing"]
    except DAMAGED:  # then nobody can say what they are
        return
    here = {(name, arm) for name, t in table.tables.items() for arm in t.arms}
    lost = [(name, arm) for name, t in before.tables.items() for arm in t.arms if (name, arm) not in here]
    if not lost or (beside.exists() and not whole):
        return
    for path in (earlier, out / SUMMARY):
        write_text(path.with_name(f"{path.stem}.before.json"), path.read_text(encoding="utf8"))
    plan.say(f"  the earlier results had more (such as {lost[0][0]}, {lost[0][1]}): they are kept as {beside}")


def _across(suite: Suite, plan: Plan, found: Mapping[str, Found]) -> Across:
    sets = {s.name: s for s in suite.sets}
    measured = {name: one for name, one in found.items() if one.table is not None}
    return across(
        suite.name,
        {name: one.table for name, one in measured.items() if one.table is not None},
        groups={name: sets[name].group for name in measured},
        ties={name: one.ties for name, one in measured.items()},
        speed={name: one.speed for name, one in measured.items()},
        published={name: published_of(sets[name], plan) for name in measured},
        probes={name: one.probes for name, one in measured.items()},
        absent={name: "; ".join(map(_told, one.failures)) for name, one in found.items() if name not in measured},
    )


def _told(failure: Failure) -> str:
    return f"{failure.arm}: {failure.problem}" if failure.arm else failure.problem


def _unfinished(suite: Suite, failures: Sequence[Failure], out: Path) -> str:
    told = [f"{f.set}{f', {f.arm}' if f.arm else ''}: {f.problem}" for f in failures]
    n, of = len({f.set for f in failures}), len(suite.sets)
    whole = f"{n} of {of} set{'' if of == 1 else 's'} of {suite.name} {'is' if n == 1 else 'are'} not complete"
    again = "the same command goes on with what is missing"
    if not all(f.passing for f in failures):
        again = "mend what is said here, then give the same command again: it goes on with what is missing"
    return "\n  ".join([f"{whole} (what was measured is in {out}; {again}):", *told])


def _summary(
    suite: Suite,
    models: Sequence[ModelChoice],
    plan: Plan,
    found: Mapping[str, Found],
    notes: list[str],
    command: str,
    began: float,
) -> dict[str, Any]:
    identities = {system.name: system.identity() for system in plan.systems}
    return {
        "kind": "bench",
        "title": suite.name,
        "command": command,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "versions": versions(),
        "hardware": hardware(),
        "commit": commit(),
        "data": {name: one.collection for name, one in found.items() if one.collection},
        "models": {c.name: {"where": c.where, "identity": identities[c.name]} for c in models},
        "first_stages": [c.name for c in plan.first_stages],
        "encoder": plan.encoder,
        "depth": plan.depth,
        "limit": plan.limit,
        "probes": list(plan.probes),
        "notes": notes,
        "missing": [failure._asdict() for one in found.values() for failure in one.failures],
        "seconds": {name: dict(one.table.seconds) for name, one in found.items() if one.table is not None},
        "seconds_total": round(time.monotonic() - began, 1),
    }


def _notes(suite: Suite, plan: Plan, found: Mapping[str, Found], out: Path) -> list[str]:
    """What is to be said of the results."""
    folders = sorted(p.name for p in (out / "sets").glob("*") if p.is_dir() and p.name not in found)
    return [
        *([suite.note] if suite.note else []),
        *_too_deep(plan),
        *(f"{name}: {note}" for name, one in found.items() for note in one.notes),
        *([f"not of these results, though in the folder sets: {', '.join(folders)}"] if folders else []),
    ]


def _too_deep(plan: Plan) -> list[str]:
    """What is to be said of measures that look at all candidates, or deeper than there are any."""
    chosen = [parse_measure(m) for m in plan.measures]
    deeper = [str(m) for m in chosen if (m.cutoff or 0) > plan.depth]
    said = [f"{', '.join(deeper)}: there are {plan.depth} candidates a query, so this is what they reach"]
    blind = [str(m) for m in chosen if m.name in UNORDERED and (m.cutoff or 0) >= plan.depth]
    same = [f"{', '.join(blind)}: of {plan.depth} candidates a query, no reordering can change it"]
    return [*(said if deeper else []), *(same if blind else [])]
