"""A suite, carried out: every set measured, one table over them, files to quote and a report to look at.

    OUT/sets/SET/FIRST/first_stage.trec  MODEL.trec  MODEL.timing.jsonl  MODEL.probe-PROBE.trec
    OUT/sets/SET/table.json  changes.json  facts.json  done.json
    OUT/results.json  results.md  results.tex  results.csv     the table over the sets (`evaluation.across`)
    OUT/summary.json  report.html                              of what, with what, how long; to look at

The folder is the state: the same command goes on after an interruption where it was, and adding a model, a first stage
or a probe later keeps what is there. Models are loaded once for all sets.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console

from rerank.bench.arms import ELSEWHERE
from rerank.bench.first_stages import Retrievers, first_stage_choices
from rerank.bench.plan import Failure, Found, Plan, published_of
from rerank.bench.sets import measure_set
from rerank.bench.suites import Suite
from rerank.bench.systems import Endpoint, ModelChoice, check_names, system_of
from rerank.errors import InputError, NotFound, Unfinished, nearest
from rerank.evaluation.across import Across, across
from rerank.evaluation.measures import parse_measure
from rerank.evaluation.probes import PROBES
from rerank.experiment.reranking import AUTOMATIC, Loading
from rerank.experiment.stamp import commit, hardware, versions
from rerank.experiment.workspace import RECIPE, locked, write_json, write_text
from rerank.report.writing import write_report

JUDGED = "Judged@10"
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
    build = Retrievers(out.absolute().parent / INDEXES, loading)
    plan = Plan(
        systems=[system_of(choice, loading, build) for choice in models],
        first_stages=first_stage_choices(first_stages),
        measures=tuple(dict.fromkeys(str(parse_measure(m)) for m in (*(measures or suite.measures), JUDGED))),
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
    for system in plan.systems:
        system.identity()  # a model that is not there is told before anything is measured
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
    table = _across(suite, plan, measured) if measured else None
    write_json(out / "summary.json", _summary(suite, models, plan, found, failures, command, began))
    if table is not None:
        write_json(out / "results.json", table.to_json())
        for name, text in (("md", table.to_markdown()), ("tex", table.to_latex()), ("csv", table.to_csv())):
            write_text(out / f"results.{name}", text)
        report = write_report(out)
        if plan.console is not None:
            plan.console.print(table.to_rich(plan.console.width))
        for sentence in table.verdict():
            plan.say(f"  {sentence}")
        plan.say(f"  {report}")
    if table is None or failures:
        raise Unfinished(_unfinished(suite, failures, out), table)
    return table


def _across(suite: Suite, plan: Plan, measured: Mapping[str, Found]) -> Across:
    sets = {s.name: s for s in suite.sets}
    return across(
        suite.name,
        {name: one.table for name, one in measured.items() if one.table is not None},
        groups={name: sets[name].group for name in measured},
        ties={name: one.ties for name, one in measured.items()},
        speed={name: one.speed for name, one in measured.items()},
        published={name: published_of(sets[name], plan) for name in measured},
        probes={name: one.probes for name, one in measured.items()},
    )


def _unfinished(suite: Suite, failures: Sequence[Failure], out: Path) -> str:
    told = [f"{f.set}{f', {f.arm}' if f.arm else ''}: {f.problem}" for f in failures]
    sets = len({f.set for f in failures})
    whole = f"{sets} of {len(suite.sets)} sets of {suite.name} {'is' if sets == 1 else 'are'} not complete"
    kept = f"what was measured is in {out}; the same command goes on with what is missing"
    return "\n  ".join([f"{whole} ({kept}):", *told])


def _summary(
    suite: Suite,
    models: Sequence[ModelChoice],
    plan: Plan,
    found: Mapping[str, Found],
    failures: Sequence[Failure],
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
        "notes": [
            *([suite.note] if suite.note else []),
            *_too_deep(plan),
            *(f"{name}: {note}" for name, one in found.items() for note in one.notes),
        ],
        "missing": [failure._asdict() for failure in failures],
        "seconds": {name: dict(one.table.seconds) for name, one in found.items() if one.table is not None},
        "seconds_total": round(time.monotonic() - began, 1),
    }


def _too_deep(plan: Plan) -> list[str]:
    """What is to be said of measures that look deeper than there are candidates."""
    deeper = [m for m in plan.measures if (parse_measure(m).cutoff or 0) > plan.depth]
    return (
        [f"{', '.join(deeper)}: there are {plan.depth} candidates a query, so this is what they reach"]
        if deeper
        else []
    )
