"""Parts of one job to its whole run: nothing missing, nothing twice, nothing changed by hand, then the union."""

from __future__ import annotations

import glob
import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, final

from rerank.data.formats import numbered_lines, write_lines
from rerank.digests import summed
from rerank.errors import InputError, Mismatch, NotFound
from rerank.experiment.journal import differences
from rerank.experiment.shards import (
    MANIFEST,
    PART,
    Part,
    check_absent,
    check_bytes,
    manifest_path,
    read_manifest,
    write_manifest,
)

logger = logging.getLogger("rerank.experiment")
OWN = ("shard", "places", "texts")
"""What differs from shard to shard of one job."""


@final
class Given(NamedTuple):
    """A part to be merged."""

    path: Path
    number: int
    of: int
    manifest: Mapping[str, Any]

    @property
    def job(self) -> dict[str, Any]:
        """What is equal in all parts."""
        return {key: value for key, value in self.manifest["job"].items() if key not in OWN}


def merge_parts(given: Sequence[Path], out: Path | None = None, overwrite: bool = False) -> Part:
    """The whole run, written to `out`: the bytes that the unsharded command writes, with its manifest.

    `given` are the parts, their manifests left out or not, or the one name that the run would have had (`RUN` for
    `RUN.shard-1-of-4` and so on), which is also the default of `out`.
    """
    paths, stem = _found(given)
    target = stem if out is None else out
    parts = sorted((_read(path) for path in paths), key=lambda part: part.number)
    _check_one_job(parts)
    _check_complete(parts)
    whole = {
        **parts[0].job,
        "shard": "1/1",
        "places": [0, *parts[0].manifest["job"]["places"][2:] * 2],
        "texts": summed(part.manifest["job"]["texts"] for part in parts),
    }
    _check_target(target, whole, overwrite)
    for part in parts:
        check_bytes(part.path, part.manifest)
    queries, rows = (sum(part.manifest[count] for part in parts) for count in ("queries", "rows"))
    if not rows:
        raise InputError(f"the {len(parts)} parts of {stem} rank no document; there is nothing to write")
    manifest_path(target).unlink(missing_ok=True)
    write_lines(_lines(parts), target)
    write_manifest(target, whole, queries, rows, _made(parts))
    return Part(target, queries, rows, fresh=True)


def _found(given: Sequence[Path]) -> tuple[list[Path], Path]:
    """The parts that are meant, each once, and the name of their run."""
    if len(given) == 1 and not PART.fullmatch(given[0].name.removesuffix(MANIFEST)):
        stem = given[0]
        beside = stem.parent.glob(f"{glob.escape(stem.name)}.shard-*-of-*")
        given = [path for path in beside if PART.fullmatch(path.name) and not path.name.endswith(MANIFEST)]
        if not given:
            raise NotFound(f"there are no parts {stem}.shard-I-of-N; give the parts, or the --out they were made with")
    paths = {path.resolve(): path for path in given if not path.name.endswith(MANIFEST)}
    named = [(path, PART.fullmatch(path.name)) for path in paths.values()]
    strange = [str(path) for path, match in named if match is None]
    if strange or not named:
        raise InputError(f"{(strange or ['a manifest'])[0]} is no part; a part is named RUN.shard-I-of-N")
    first = named[0]
    return [path for path, _ in named], first[0].with_name(first[1]["stem"] if first[1] else first[0].name)


def _read(path: Path) -> Given:
    if not path.is_file():
        raise NotFound(f"there is no part {path}")
    manifest = read_manifest(path)
    index, _, of = manifest["job"]["shard"].partition("/")
    return Given(path, int(index), int(of), manifest)


def _check_one_job(parts: Sequence[Given]) -> None:
    """Nothing, when all parts are of one job; what was made by other means is told, for it may move last digits."""
    first = parts[0]
    for part in parts[1:]:
        if part.of != first.of:
            raise Mismatch(
                f"{first.path} is one of {first.of} parts, {part.path} one of {part.of}: give the parts of one division"
            )
        different = differences(first.job, part.job)
        if different:
            raise Mismatch(
                f"{first.path} (there) and {part.path} (now) are of two jobs: {different}. Compute one of them anew, "
                "with the same inputs and options and --overwrite"
            )
    for key, value in _made(parts).items():
        if ", " in value:
            logger.warning("parts were made with different %s (%s): scores may differ in last digits", key, value)


def _check_complete(parts: Sequence[Given]) -> None:
    """Nothing, when each shard is there once and together they hold each query once."""
    of = parts[0].of
    for one, other in pairwise(parts):
        if one.number == other.number:
            raise Mismatch(f"shard {one.number}/{of} is there twice: {one.path} and {other.path}; leave one out")
    missing = sorted(set(range(1, of + 1)) - {part.number for part in parts})
    if missing:
        shown = ", ".join(f"{index}/{of}" for index in missing[:10])
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise NotFound(f"{len(missing)} of {of} parts are missing: {shown}{more}; compute them with --shard")
    at = 0
    for part in parts:
        start, stop, total = part.manifest["job"]["places"]
        last = part.number == of
        if start != at or stop < start or total < stop or (last and stop != total):
            raise Mismatch(f"{part.path} begins at query {start} and not at {at}, where the part before it ends")
        at = stop


def _check_target(target: Path, whole: Mapping[str, Any], overwrite: bool) -> None:
    if overwrite or not target.is_file():
        return
    if not manifest_path(target).is_file():
        check_absent(target)
    different = differences(read_manifest(target)["job"], whole)
    if different:
        raise Mismatch(
            f"{target} is there, but of another job: {different}. Choose another --out, or write over it with "
            "--overwrite"
        )


def _made(parts: Sequence[Given]) -> dict[str, str]:
    """By what the parts were made; several names where they differ."""
    keys = sorted({key for part in parts for key in part.manifest["made"]})
    return {key: ", ".join(sorted({str(part.manifest["made"].get(key)) for part in parts})) for key in keys}


def _lines(parts: Sequence[Given]) -> Iterator[str]:
    for part in parts:
        for _, line in numbered_lines(part.path):
            yield line
