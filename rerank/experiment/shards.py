"""A run in parts: each shard computes a block of neighbouring queries, and the merged parts are the whole run.

    RUN.shard-1-of-4                   a part: TREC lines, whole or not there
    RUN.shard-1-of-4.manifest.json     written last: the job, its inputs, the sha256 of the part
    .RUN.shard-1-of-4.journal          while it is computed: the queries that are finished

An unsharded run is shard 1 of 1 under its own name. A part whose manifest tells of the same job is done; one of another
job, or a file that has no manifest and so is not ours, is never written over unasked. Queries are ranked one by one or
in ways that do not depend on their neighbours, so that the union has the very bytes of the unsharded run.
"""

from __future__ import annotations

import json
import logging
import platform
import re
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rerank.data import write_run
from rerank.data.formats import is_unicode, write_lines
from rerank.digests import sha256_of
from rerank.errors import DataError, InputError, Mismatch, NotFound
from rerank.experiment.journal import Journal, Ranking, differences
from rerank.types import Run

logger = logging.getLogger("rerank.experiment")

MANIFEST = ".manifest.json"
FORMAT = 1
PART = re.compile(r"(?P<stem>.+)\.shard-(?P<index>\d+)-of-(?P<of>\d+)")
SECONDS_BETWEEN_LINES = 60.0

Ranks: TypeAlias = Callable[[Sequence[str]], Iterator[tuple[str, Ranking]]]
"""From query ids to (query id, ranking), in their order."""
Write: TypeAlias = Callable[[Run, Path], None]
"""Writes the rankings of a part."""


@final
class Shard(NamedTuple):
    """Part `number` (from 1) of `of`."""

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str | None) -> Shard:
        """The shard that `I/N` names; the whole for None."""
        if text is None:
            return cls()
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        shard = cls(int(found[1]), int(found[2])) if found else cls(0, 0)
        if not 1 <= shard.number <= shard.of:
            raise InputError(f"--shard {text!r} is not I/N with whole numbers 1 <= I <= N; the first of four is 1/4")
        return shard

    def path(self, out: Path) -> Path:
        """Where this part of `out` is written; the names of all parts sort in their order."""
        if self.of == 1:
            return out
        return out.with_name(f"{out.name}.shard-{self.number:0{len(str(self.of))}d}-of-{self.of}")

    def share(self, weights: Sequence[int]) -> range:
        """The places of this shard: neighbours, of about the same total weight in each shard."""
        ends = list(accumulate(weights))
        # A place belongs to the shard in which its middle lies. Twice everything, to stay with whole numbers.
        middles = [2 * end - weight for end, weight in zip(ends, weights, strict=True)]
        total = 2 * ends[-1] if ends else 0
        edges = (-(-total * k // self.of) for k in (self.number - 1, self.number))
        return range(*(bisect_left(middles, edge) for edge in edges))


WHOLE = Shard()


@final
@dataclass(frozen=True)
class Portion:
    """What one shard has to do."""

    shard: Shard
    job: Mapping[str, Any]
    """Command, inputs and options: all that decides the result, equal for all shards. `name` is the run's."""
    query_ids: tuple[str, ...]
    places: tuple[int, int, int]
    """Of the queries: the first, the one after the last, and how many the whole job has."""
    texts: str
    """`summed` digests of the texts that this shard reads, and the other shards perhaps do not."""
    device: str = "cpu"

    def description(self) -> dict[str, Any]:
        """All that must be the same for a part to be this portion's."""
        shard = f"{self.shard.number}/{self.shard.of}"
        return {**self.job, "shard": shard, "places": [*self.places], "texts": self.texts}


@final
class Part(NamedTuple):
    """A part that is on disk."""

    path: Path
    queries: int
    rows: int
    fresh: bool
    """False where it was there already."""


def write_part(
    portion: Portion,
    out: Path,
    ranks: Ranks,
    overwrite: bool = False,
    console: Console | None = None,
    write: Write = write_run,
) -> Part:
    """The portion's part of `out`, computed by `ranks` where it is not there; what a killed process had is kept.

    `ranks` is called for the queries that are not yet in the journal, and not at all where there are none.
    """
    path = portion.shard.path(out)
    _make_room(path)
    manifest = None if overwrite else _manifest_of(path, portion)
    if manifest is not None:
        return Part(path, manifest["queries"], manifest["rows"], fresh=False)
    if write is write_run:
        check_columns((re.sub(r"\s", "_", portion.job["name"]),), "name")
        check_columns(portion.query_ids, "query id")
    record = path.with_name(f".{path.name}.journal")
    with Journal(record, portion.description(), portion.query_ids, overwrite) as journal:
        before, whole = len(journal.done), len(portion.query_ids)
        if not (overwrite or 0 < whole == before):  # with all rankings kept, a file without a manifest is theirs
            check_absent(path)
        manifest_path(path).unlink(missing_ok=True)
        if overwrite:  # so that, interrupted now, it goes on without --overwrite, and no file is in the way
            path.unlink(missing_ok=True)
        if before:
            logger.warning("%s: %d of %d queries are there already; going on after them", path, before, whole)
        if before < whole:
            for query_id, ranking in _told(ranks(portion.query_ids[before:]), before, whole, console):
                journal.append(query_id, ranking)
        part = _publish(portion, path, Run(journal.done, portion.job["name"]), write)
        journal.remove()
    return part


def _make_room(path: Path) -> None:
    """Nothing; the folder of `path` is there."""
    if path.is_dir():
        raise InputError(f"{path} cannot be written: it is a folder; give the file to write as --out")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {path.parent} is no folder; choose another --out") from error


def check_absent(path: Path) -> None:
    """Nothing, when no file is in the way; one that has no manifest may be of the user's own making."""
    if path.exists():
        raise InputError(
            f"{path} is there, and no manifest {manifest_path(path).name} says that it was made by this command: "
            "choose another --out, or write over it with --overwrite"
        )


def check_columns(ids: Iterable[str], what: str) -> None:
    """Nothing, where all `ids` can be columns of a TREC run; told before hours of ranking, not by who writes it."""
    for one in ids:
        if not re.fullmatch(r"[^\s#]\S*", one) or not is_unicode(one):
            raise InputError(
                f"{what} {one!r} cannot be a column of a TREC run: it must be one word of Unicode text that does not "
                "begin with '#'. Rename it, or rank RankLLM requests (--requests), whose results are JSON"
            )


def _publish(portion: Portion, path: Path, run: Run, write: Write) -> Part:
    """Writes the part, then its manifest."""
    if portion.shard.of > 1 and not any(run.rankings.values()):
        write_lines([], path)  # more shards than queries: this one is empty, and complete
    else:
        write(run, path)
    rows = sum(map(len, run.rankings.values()))
    write_manifest(path, portion.description(), len(run.rankings), rows, _made(portion.device))
    return Part(path, len(run.rankings), rows, fresh=True)


def write_manifest(
    path: Path, description: Mapping[str, Any], queries: int, rows: int, made: Mapping[str, str]
) -> None:
    """Nothing; writes the manifest of the part at `path`, whose bytes it takes the sha256 of."""
    manifest = {
        "format": FORMAT,
        "job": description,
        "queries": queries,
        "rows": rows,
        "sha256": sha256_of(path),
        "made": made,
    }
    write_lines([json.dumps(manifest, indent=1, allow_nan=False)], manifest_path(path))


def _made(device: str) -> dict[str, str]:
    """By what a part was made: no part of the job, though it may move a score's last digits."""
    found = {"device": device, "machine": platform.machine()}
    for package in ("rerank", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def manifest_path(path: Path) -> Path:
    """Where the manifest of the part at `path` is."""
    return path.with_name(path.name + MANIFEST)


def _manifest_of(path: Path, portion: Portion) -> dict[str, Any] | None:
    """The manifest of a part that is there and is this portion's; None where there is no part."""
    if not path.is_file() or not manifest_path(path).is_file():
        return None
    manifest = read_manifest(path)
    different = differences(manifest["job"], portion.description())
    if different:
        raise Mismatch(
            f"{path} is there, but of another job: {different}. Choose another --out, or do it anew with --overwrite"
        )
    check_bytes(path, manifest)
    return manifest


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a part, checked field by field."""
    file = manifest_path(path)
    if not file.is_file():
        raise NotFound(f"{path} has no manifest {file.name}: it was not finished, or moved without it; compute it anew")
    try:
        manifest = json.loads(file.read_bytes())
    except ValueError as error:
        raise DataError.at(file, None, f"not JSON ({error}): compute the part anew with --overwrite") from None
    kinds: dict[str, type] = {"format": int, "job": dict, "queries": int, "rows": int, "sha256": str, "made": dict}
    content = manifest if isinstance(manifest, dict) else {}
    if isinstance(content.get("format"), int) and content["format"] > FORMAT:
        raise Mismatch(f"{file} has format {content['format']}; this version of rerank reads up to {FORMAT}: upgrade")
    wrong = next((key for key, kind in kinds.items() if not isinstance(content.get(key), kind)), None)
    job = content.get("job", {})
    if wrong is None and not _is_placed(job):
        wrong = "job"
    if wrong is not None:
        raise DataError.at(file, None, f"field {wrong!r} is missing or wrong: compute the part anew with --overwrite")
    return content


def _is_placed(job: Mapping[str, Any]) -> bool:
    places, texts, shard = job.get("places"), job.get("texts"), job.get("shard")
    return (
        isinstance(places, list)
        and [type(place) for place in places] == [int, int, int]
        and re.fullmatch("[0-9a-f]{64}", str(texts)) is not None
        and re.fullmatch("[0-9]{1,9}/[0-9]{1,9}", str(shard)) is not None
    )


def check_bytes(path: Path, manifest: Mapping[str, Any]) -> None:
    """Nothing, when the part at `path` is what its manifest says."""
    if sha256_of(path) != manifest["sha256"]:
        raise Mismatch(f"{path} is not what its manifest says: it was changed. Compute it anew with --overwrite")


def _told(
    found: Iterator[tuple[str, Ranking]], before: int, whole: int, console: Console | None
) -> Iterator[tuple[str, Ranking]]:
    """What is found, with a bar on a terminal, and a line a minute in the log of a machine without one."""
    if console is None:
        yield from found
        return
    if console.is_terminal:
        columns = (TextColumn("queries"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("queries", total=whole, completed=before)
            for one in found:
                yield one
                progress.advance(task)
        return
    began = last = time.monotonic()
    for count, one in enumerate(found, start=1):
        yield one
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            left = (whole - before - count) * (now - began) / count / 60
            console.print(f"{before + count} of {whole} queries, about {left:.0f} minutes left", highlight=False)
