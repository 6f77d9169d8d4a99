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

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from rerank.bench.arms import ELSEWHERE
from rerank.bench.concluding import WRITTEN, conclude
from rerank.bench.first_stages import RETRIEVED, Retrievers, first_stage_choices
from rerank.bench.naming import check_names
from rerank.bench.plan import Plan, check_places
from rerank.bench.sets import measure_set
from rerank.bench.suites import Suite
from rerank.bench.systems import Endpoint, ModelChoice, system_of
from rerank.data import read_qrels
from rerank.errors import InputError, NotFound, nearest
from rerank.evaluation.across import Across
from rerank.evaluation.measures import parse_measure
from rerank.evaluation.probes import PROBES
from rerank.experiment.reranking import AUTOMATIC, Loading, model_digest
from rerank.experiment.workspace import RECIPE, locked

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
        return conclude(suite, models, plan, found, out, command, began)


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
