"""What is asked of every set of a suite, what is found of one, and the file that says of what it was made.

SETS/SET/done.json      models, first stages, files, settings, and the sha256 of what was found and of the runs

A set of the same job whose files are still those is read back and not even loaded; of what was changed or damaged that
is said, and the set is made anew from the runs, whose manifests know their bytes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, final

from rich.console import Console

from rerank.bench.first_stages import FirstStageChoice, Retrievers
from rerank.bench.naming import FIRST, PROBE
from rerank.bench.suites import BenchSet, Published
from rerank.bench.systems import System
from rerank.digests import digest_of, sha256_of
from rerank.errors import EndpointError, InputError, RerankError
from rerank.evaluation.across import Speed
from rerank.evaluation.comparison import finite, number
from rerank.evaluation.measures import parse_measure
from rerank.evaluation.probes import Drop
from rerank.evaluation.tables import Table
from rerank.experiment.journal import Ranking
from rerank.experiment.workspace import write_json
from rerank.recipe import Retrieval
from rerank.types import CandidateList, Collection, Run

logger = logging.getLogger("rerank.bench")

FORMAT = 2
DONE = "done.json"
FOUND = ("table.json", "facts.json", "changes.json")
"""What is written of a set."""
DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What reading a file of ours ends in that somebody changed."""
_BUSY = (408, 425, 429)
"""Statuses below 500 of a server that may answer later."""


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
    spent: dict[str, str] = field(default_factory=dict)
    """Model -> where its endpoint gave no answer however often it was asked: this command asks it no more."""

    def settings(self, bench_set: BenchSet) -> Retrieval:
        """How a set is retrieved from; by what is the first stage's own."""
        return Retrieval(retrievers=(), encoder=self.encoder, depth=self.depth, language=bench_set.language)

    def say(self, text: str) -> None:
        """One line of progress."""
        if self.console is None:
            logger.info("%s", text)
        else:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def asked(self, system: System, where: str) -> Iterator[System]:
        """The system; in place of an endpoint that is asked no more, what it answered before."""
        try:
            yield Silent(system, self.spent[system.name]) if system.name in self.spent else system
        except EndpointError as error:
            if can_pass(error) and system.name not in self.spent:
                self.spent[system.name] = where
                self.say(f"{system.name} is not asked again in this command")
            raise


class NotAsked(EndpointError):
    """An endpoint that gave no answer before was not asked again; that was said then."""


@final
class Silent:
    """An endpoint that is asked no more: runs of it that are whole can be read."""

    def __init__(self, system: System, where: str) -> None:
        self.name, self.reads, self._system, self._where = system.name, system.reads, system, where

    def identity(self) -> str:
        """The endpoint's."""
        return self._system.identity()

    def prepared(self, lists: Sequence[CandidateList], collection: Collection, first: Run) -> list[CandidateList]:
        """The lists as they are."""
        return list(lists)

    def ranked(self, lists: Sequence[CandidateList]) -> Iterator[tuple[str, Ranking, float]]:
        """Nothing, ever: an error."""
        raise NotAsked(f"not asked, as its attempts were spent on {self._where}")


def can_pass(error: Exception) -> bool:
    """Whether the same command may do better later, with nothing mended: a server or a system that did not answer."""
    if isinstance(error, EndpointError):
        return error.status is None or error.status in _BUSY or error.status >= 500
    return isinstance(error, OSError) and not isinstance(error, RerankError)


@final
class Failure(NamedTuple):
    """What could not be measured, and why."""

    set: str
    arm: str
    """Empty for the whole set."""
    problem: str
    passing: bool = False
    """Whether the same command may do better later."""


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
            "ties": {arm: finite(rate) for arm, rate in self.ties.items()},
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
            ties={str(arm): number(rate) for arm, rate in facts["ties"].items()},
            speed={arm: Speed(**speed) for arm, speed in facts["speed"].items()},
            probes={arm: [Drop(**_with_nan(drop)) for drop in drops] for arm, drops in facts["probes"].items()},
            collection=facts["collection"],
            notes=[str(note) for note in _listed(facts["notes"])],
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


def finished(folder: Path, job: Mapping[str, Any], unseen: bool = False) -> Found | None:
    """What the files of a set say that is finished, and of this job; None where it is not, or they are not sound.

    With `unseen`, a job whose collection cannot be looked at now is that of any collection.
    """
    done = folder / DONE
    if not done.is_file() or (job["files"] is None and not unseen):
        return None
    try:
        content = json.loads(done.read_text(encoding="utf8"))
        known = content["format"] == FORMAT
        there = dict(content["job"]) if known else {}
        asked = {**job, "files": there.get("files")} if unseen and job["files"] is None else job
        if there != asked:
            return None
        wrong = [name for name, digest in content["sha256"].items() if _sha256(folder / name) != digest]
        if wrong or not {*FOUND} <= {*content["sha256"]}:
            logger.warning("%s: %s changed since; it is made anew from the runs", folder, ", ".join(wrong) or DONE)
            return None
        return Found.read(folder)
    except DAMAGED as error:
        logger.warning("%s: what it holds cannot be read (%r); it is made anew from the runs", folder, error)
        return None


def mark_done(folder: Path, job: Mapping[str, Any]) -> None:
    """Nothing; says in `folder` of what the set was made, and the bytes of all that it rests on."""
    files = [*FOUND, *(run.relative_to(folder).as_posix() for run in _runs(folder, job))]
    write_json(folder / DONE, {"format": FORMAT, "job": job, "sha256": {f: sha256_of(folder / f) for f in files}})


def mark_undone(folder: Path) -> None:
    """Nothing; from now on the folder does not say that its set is finished."""
    (folder / DONE).unlink(missing_ok=True)


def check_places(folder: Path, names: Sequence[str] = (*FOUND, DONE)) -> None:
    """Nothing, where no folder is in the place of a file that will be written."""
    for name in names:
        if (folder / name).is_dir():
            raise InputError(f"{folder / name} is a folder, and a file belongs there: move it away")


def _runs(folder: Path, job: Mapping[str, Any]) -> list[Path]:
    """The runs in `folder` that a table of this job rests on."""
    there = [path for first in job["first_stages"] for path in sorted((folder / first).glob("*.trec"))]
    named = [(path, *path.name.removesuffix(".trec").partition(PROBE)[::2]) for path in there]
    probes = {"", *job["probes"]}
    return [path for path, model, probe in named if model == FIRST or (model in job["models"] and probe in probes)]


def _sha256(path: Path) -> str:
    return sha256_of(path) if path.is_file() else ""


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"a list is needed, this is a {type(value).__name__}")
    return value


def published_of(bench_set: BenchSet, plan: Plan) -> tuple[Published, ...]:
    """The published figures that can stand beside ours: all queries, the whole corpus as candidates, as deep."""
    if plan.limit is not None or bench_set.judged_pool or bench_set.name in plan.qrels:
        return ()
    return tuple(p for p in bench_set.published if (parse_measure(p.measure).cutoff or plan.depth) <= plan.depth)


def _without_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and value != value else value for key, value in values.items()}


def _with_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: float("nan") if value is None else value for key, value in values.items()}
