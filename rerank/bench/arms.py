"""One model on one first stage of one set: its ranking of every list, kept query by query, and what that cost.

SETS/SET/FIRST/MODEL.trec (+ manifest)        the run, made as `rerank rank` makes it
SETS/SET/FIRST/MODEL.timing.jsonl             seconds and ties of each query
SETS/SET/FIRST/MODEL.probe-PROBE.trec         the same model on perturbed lists
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Collection as Container
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, final

from rich.console import Console

from rerank.bench.first_stages import First
from rerank.bench.measuring import recorded, speed_of, tie_rate_of
from rerank.bench.naming import PROBE
from rerank.bench.systems import System
from rerank.data import candidate_lists, read_run
from rerank.digests import digest_of, sha256_of, summed
from rerank.evaluation.across import Speed
from rerank.evaluation.probes import Drop, drop_of, perturbed
from rerank.experiment.journal import Ranking
from rerank.experiment.shards import WHOLE, Portion, check_columns, write_part
from rerank.types import CandidateList, Collection, Run

ELSEWHERE = "first-stage"
"""The probe whose perturbed lists are those of another first stage: nothing is ranked for it."""


def arm_name(model: str, first: str) -> str:
    """What a model on a first stage is called in the tables."""
    return f"{model} on {first}"


@final
@dataclass(frozen=True)
class Lists:
    """The lists of one first stage, and how its models' rankings are kept."""

    collection: Collection
    first: First
    overwrite: bool = False
    console: Console | None = None
    place: str = "cpu"
    """The kind of device that models run on."""
    barred: Mapping[str, Container[str]] = field(default_factory=dict)
    """query id -> documents that are no candidates of it, for a probe not to bring them back."""

    @cached_property
    def lists(self) -> list[CandidateList]:
        """The candidates with their texts."""
        found = candidate_lists(self.collection, self.first.run)
        check_columns((doc_id for c in found for doc_id in c.doc_ids), "doc id")
        return found

    def path(self, model: str, probe: str = "") -> Path:
        """Where the run of a model is kept, or its run on perturbed lists."""
        return self.first.path.with_name(f"{model}{PROBE}{probe}.trec" if probe else f"{model}.trec")


@final
class Arm(NamedTuple):
    """What one model did on one first stage."""

    name: str
    model: str
    run: Run
    tie_rate: float
    speed: Speed | None


def rank_arm(work: Lists, system: System) -> Arm:
    """The arm of `system`: ranked where it is not there yet, and read from its files."""
    name = arm_name(system.name, work.first.name)
    timing = work.path(system.name).with_suffix(".timing.jsonl")
    by_id = {c.query_id: c for c in work.lists}

    def ranks(remaining: Sequence[str]) -> Iterator[tuple[str, Ranking]]:
        chosen = system.prepared([by_id[query_id] for query_id in remaining], work.collection, work.first.run)
        return recorded(timing, system.ranked(chosen))

    run = _kept(work, system, work.path(system.name), work.lists, ranks)
    query_ids = [c.query_id for c in work.lists]
    return Arm(name, system.name, Run(run.rankings, name), tie_rate_of(timing, query_ids), speed_of(timing, query_ids))


def probe_arm(work: Lists, system: System, arm: Arm, probes: Sequence[str], measure: str, seed: int = 0) -> list[Drop]:
    """What each of `probes` that can change a query costs the arm, on `measure`.

    The probe of other first stages is `compared_stages`.
    """
    drops = []
    for probe in probes:
        found = None if probe == ELSEWHERE else _probed(work, system, arm, probe, seed)
        if found is not None:
            drops.append(drop_of(probe, arm.run, found, work.collection.qrels, measure))
    return drops


def compared_stages(arm: Arm, other: Arm, collection: Collection, measure: str) -> Drop:
    """What it costs the arm to be given the candidates of another first stage, on queries that both have some for."""
    both = Run({q: ranking for q, ranking in other.run.rankings.items() if q in arm.run.rankings}, other.name)
    return drop_of(ELSEWHERE, arm.run, both, collection.qrels, measure)


def _probed(work: Lists, system: System, arm: Arm, probe: str, seed: int) -> Run | None:
    """The model's run on perturbed lists; None where the probe can change no query (which it says)."""
    changed = perturbed(probe, work.lists, arm.run, seed, qrels=work.collection.qrels, barred=work.barred)
    if not changed:
        return None
    by_id = {c.query_id: c for c in changed}
    # A model that reads retrievers' scores is given those of the query and the documents that it is shown.
    asked = replace(work.collection, queries={**work.collection.queries, **{c.query_id: c.query for c in changed}})

    def ranks(remaining: Sequence[str]) -> Iterator[tuple[str, Ranking]]:
        chosen = system.prepared([by_id[query_id] for query_id in remaining], asked, work.first.run)
        return ((query_id, ranking) for query_id, ranking, _ in system.ranked(chosen))

    told = {"probe": probe, "seed": seed, "scores": "of the perturbed list"}
    return _kept(work, system, work.path(system.name, probe), changed, ranks, told)


def _kept(
    work: Lists,
    system: System,
    path: Path,
    lists: Sequence[CandidateList],
    ranks: Callable[[Sequence[str]], Iterator[tuple[str, Ranking]]],
    more: dict[str, Any] | None = None,
) -> Run:
    """The run in `path`; what of it is not there is computed by `ranks`."""
    queries = {c.query_id: c.query for c in lists}
    job = {
        "command": "bench",
        "name": path.stem,
        "first_stage": sha256_of(work.first.path),
        "model": system.identity(),
        "queries": digest_of(text for query_id, query in queries.items() for text in (query_id, query)),
        **(more or {}),
    }
    texts = summed(digest_of((c.query_id, c.query, *c.doc_ids, *c.texts)) for c in lists)
    portion = Portion(WHOLE, job, tuple(queries), (0, len(queries), len(queries)), texts, work.place)
    write_part(portion, path, ranks, work.overwrite, work.console)
    return read_run(path, path.stem)
