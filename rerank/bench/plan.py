"""What is asked of every set of a suite, what is found of one, and the file that says of what it was made.

SETS/SET/done.json      models, first stages, files, settings; a set of the same is read back and not even loaded
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, final

from rich.console import Console

from rerank.bench.first_stages import FirstStageChoice, Retrievers
from rerank.bench.suites import BenchSet, Published
from rerank.bench.systems import System
from rerank.evaluation.across import Speed
from rerank.evaluation.measures import parse_measure
from rerank.evaluation.probes import Drop
from rerank.evaluation.tables import Table
from rerank.experiment.shards import digest_of, sha256_of
from rerank.experiment.workspace import write_json
from rerank.recipe import Retrieval

logger = logging.getLogger("rerank.bench")

FORMAT = 1


@final
@dataclass(frozen=True)
class Plan:
    """What is asked of every set."""

    systems: Sequence[System]
    first_stages: Sequence[FirstStageChoice]
    measures: tuple[str, ...]
    """The first is primary."""
    depth: int
    probes: tuple[str, ...]
    encoder: str
    limit: int | None
    qrels: Mapping[str, Path]
    """set -> judgements to use in place of its own."""
    build: Retrievers
    overwrite: bool = False
    console: Console | None = None
    place: str = "cpu"

    def settings(self, bench_set: BenchSet) -> Retrieval:
        """How a set is retrieved from; by what is the first stage's own."""
        return Retrieval(retrievers=(), encoder=self.encoder, depth=self.depth, language=bench_set.language)

    def say(self, text: str) -> None:
        """One line of progress."""
        if self.console is None:
            logger.info("%s", text)
        else:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)


@final
class Failure(NamedTuple):
    """What could not be measured, and why."""

    set: str
    arm: str
    """Empty for the whole set."""
    problem: str


@final
@dataclass
class Found:
    """What is known of one set."""

    table: Table | None = None
    ties: dict[str, float] = field(default_factory=dict)
    speed: dict[str, Speed] = field(default_factory=dict)
    probes: dict[str, list[Drop]] = field(default_factory=dict)
    collection: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """What `facts.json` holds: all but the table."""
        return {
            "collection": self.collection,
            "ties": self.ties,
            "speed": {arm: speed._asdict() for arm, speed in self.speed.items()},
            "probes": {arm: [_without_nan(drop._asdict()) for drop in drops] for arm, drops in self.probes.items()},
            "notes": self.notes,
        }

    @classmethod
    def read(cls, folder: Path) -> Found:
        """What the files of a finished set say."""
        facts = json.loads((folder / "facts.json").read_text(encoding="utf8"))
        return cls(
            table=Table.from_json(json.loads((folder / "table.json").read_text(encoding="utf8"))),
            ties=facts["ties"],
            speed={arm: Speed(**speed) for arm, speed in facts["speed"].items()},
            probes={arm: [Drop(**_with_nan(drop)) for drop in drops] for arm, drops in facts["probes"].items()},
            collection=facts["collection"],
            notes=facts["notes"],
        )


def job_of(bench_set: BenchSet, plan: Plan) -> dict[str, Any]:
    """All that decides what is found of a set, without loading it."""
    described = {key: value for key, value in asdict(bench_set).items() if key != "base"}
    own = plan.qrels.get(bench_set.name)
    return {
        "set": json.loads(json.dumps(described)),
        "files": _files(bench_set),
        "qrels": sha256_of(own) if own else None,
        "models": {system.name: system.identity() for system in plan.systems},
        "first_stages": {
            c.name: c.identity(bench_set.name, plan.settings(bench_set), plan.build)
            for c in _there(plan, bench_set.name)
        },
        "absent": [c.name for c in plan.first_stages if c not in _there(plan, bench_set.name)],
        "measures": list(plan.measures),
        "depth": plan.depth,
        "probes": list(plan.probes),
        "limit": plan.limit,
    }


def _there(plan: Plan, set_name: str) -> list[FirstStageChoice]:
    """The first stages without those whose folder has no run of the set; they fail one by one, later."""
    return [c for c in plan.first_stages if c.has(set_name)]


def _files(bench_set: BenchSet) -> str | None:
    """A digest of the files of a collection, or its id in a catalogue; None where only loading it can tell."""
    kind, _, name = bench_set.collection.partition(":")
    if kind == "ir_datasets":
        return f"{name} (ir_datasets {version('ir_datasets')})"
    whole = bench_set.base / bench_set.collection
    folder = whole if whole.is_dir() else bench_set.base / bench_set.collection.rpartition("#")[0]
    if not (folder / "qrels").is_dir():
        return None
    files = sorted(p for pattern in ("corpus*", "queries*", "qrels/*") for p in folder.glob(pattern) if p.is_file())
    return digest_of(text for p in files for text in (p.relative_to(folder).as_posix(), sha256_of(p)))


def finished(folder: Path, job: Mapping[str, Any]) -> Found | None:
    """What the files of a set say that is finished, and of this job; None where it is not."""
    done = folder / "done.json"
    if job["files"] is None or not done.is_file():
        return None
    try:
        if json.loads(done.read_text(encoding="utf8")) != {"format": FORMAT, "job": job}:
            return None
        return Found.read(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s: what it holds cannot be read (%r); it is made anew from the runs", folder, error)
        return None


def mark_done(folder: Path, job: Mapping[str, Any]) -> None:
    """Nothing; says in `folder` of what the set was made."""
    write_json(folder / "done.json", {"format": FORMAT, "job": job})


def mark_undone(folder: Path) -> None:
    """Nothing; from now on the folder does not say that its set is finished."""
    (folder / "done.json").unlink(missing_ok=True)


def published_of(bench_set: BenchSet, plan: Plan) -> tuple[Published, ...]:
    """The published figures that can stand beside ours: all queries, the whole corpus as candidates, as deep."""
    if plan.limit is not None or bench_set.judged_pool or bench_set.name in plan.qrels:
        return ()
    return tuple(p for p in bench_set.published if (parse_measure(p.measure).cutoff or plan.depth) <= plan.depth)


def _without_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and value != value else value for key, value in values.items()}


def _with_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: float("nan") if value is None else value for key, value in values.items()}
