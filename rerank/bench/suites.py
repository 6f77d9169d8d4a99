"""What is measured on: suites of sets, each with its measures, its traps and the figures that others published.

    beir  nano-beir  msmarco-dev  trec-dl-19 .. trec-dl-23  bright      the tables of suites.toml, through ir_datasets
    local:FOLDER[#SPLIT]                                                a BEIR folder, or a folder of BEIR folders

The published first-stage figures are a check that is read beside our own first stage, never a part of a comparison.
A folder of the user's may say more about its sets in FOLDER/bench.toml:

    measures = ["nDCG@10", "R@100"]
    [sets.xquad-r-de]
    language = "german"
    published = [{ arm = "bm25", measure = "nDCG@10", value = 0.7595, what = "rank_bm25", source = "README.md" }]
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import final

from rerank.errors import InputError, NotFound, RecipeError, nearest
from rerank.evaluation.measures import parse_measure
from rerank.retrieval.bm25 import tokenize
from rerank.toml import built, parsed
from rerank.types import Collection, Qrels

log = logging.getLogger("rerank.bench")

LOCAL = "local:"
SPLIT = "test"
DESCRIPTION = "bench.toml"
SHOWN = 8
"""How many folders that were left out are named."""
LAYOUT = (
    "a set is a folder with corpus.jsonl, queries.jsonl (or .jsonl.gz) and qrels/SPLIT.tsv; "
    "give such a folder, or one that holds such folders, as local:FOLDER or local:FOLDER#SPLIT"
)
MEASURES = ("nDCG@10", "RR@10", "R@100")
EXCLUDED = -100
"""The grade that says that a document is no candidate of a query; ir_datasets marks BRIGHT's excluded ids with it."""


@final
@dataclass(frozen=True)
class Published:
    """A figure in print, to hold beside the same arm as measured here."""

    arm: str
    """The first stage: `bm25`."""
    measure: str
    value: float
    what: str
    """Which system: `Anserini, flat index`."""
    source: str
    """Where it stands in print or on the web."""


@final
@dataclass(frozen=True)
class BenchSet:
    """One collection to measure on."""

    name: str
    """Names folders: letters, digits, `-`, `_` and `.` only."""
    collection: str
    """What `rerank.data.load_collection` reads: `ir_datasets:beir/scifact/test`, `PATH#test`."""
    base: Path = Path()
    """What a relative path starts from."""
    language: str = "english"
    """Of BM25's stemmer."""
    judged_pool: bool = False
    """The candidates of a query are its judged documents (as in BIRCO, SemEval)."""
    without_itself: bool = False
    """A document with the query's own id is no candidate (ArguAna, Quora)."""
    group: str = ""
    """Sets of one group (CQADupStack's forums) count as one in means over sets."""
    published: tuple[Published, ...] = ()
    note: str = ""
    """Terms and traps."""


@final
@dataclass(frozen=True)
class Suite:
    """Sets that are measured and averaged together."""

    name: str
    sets: tuple[BenchSet, ...]
    measures: tuple[str, ...]
    """The first is primary."""
    note: str = ""


def suite_named(name: str, only: Sequence[str] = (), judged_pools: Sequence[str] = (), base: Path = Path()) -> Suite:
    """The suite `name`, or those of its sets that `only` names (by set or by group).

    The candidates of the sets `judged_pools` are their judged documents. A relative local:FOLDER starts at `base`.
    """
    suite, left_out = _local(name.removeprefix(LOCAL), base) if name.startswith(LOCAL) else (_listed(name, base), {})
    pooled = _picked(suite, judged_pools, left_out)
    kept = _picked(suite, only, left_out) if only else suite.sets
    return replace(suite, sets=tuple(replace(s, judged_pool=True) if s in pooled else s for s in kept))


def excluded(bench_set: BenchSet, collection: Collection, own: Qrels | None = None) -> dict[str, frozenset[str]]:
    """query id -> documents that are no candidates of it: the one with its own id, those judged `EXCLUDED`.

    Queries without such documents are not in it; a document in it need not be in the collection. `own` are the set's
    own judgements, where the collection has those of somebody else, who may not know what is excluded.
    """
    found = {}
    for query_id in collection.queries:
        judged = [*collection.qrels.get(query_id, {}).items(), *(own or {}).get(query_id, {}).items()]
        barred = {d for d, grade in judged if grade == EXCLUDED}
        if bench_set.without_itself:
            barred.add(query_id)
        if barred:
            found[query_id] = frozenset(barred)
    return found


def _picked(suite: Suite, names: Sequence[str], left_out: Mapping[str, str]) -> tuple[BenchSet, ...]:
    """The sets of the suite that `names` names, in the suite's order."""
    known = {s.name for s in suite.sets} | {s.group for s in suite.sets if s.group}
    for name in names:
        if name in left_out:
            raise InputError(f"suite {suite.name!r}: {name!r} was left out, as it has {left_out[name]}")
        if name not in known:
            raise InputError(f"suite {suite.name!r} has no set {name!r}{nearest(name, known)}")
    return tuple(s for s in suite.sets if s.name in names or (s.group and s.group in names))


@final
@dataclass(frozen=True)
class _Described:
    """What a table of ours or of a user says about one set."""

    language: str = "english"
    judged_pool: bool = False
    without_itself: bool = False
    group: str = ""
    published: tuple[Published, ...] = ()
    note: str = ""


@final
@dataclass(frozen=True)
class _Figures:
    """One system's figures on many sets."""

    arm: str
    measures: tuple[str, ...]
    what: str
    source: str
    values: Mapping[str, Sequence[float]]
    """set -> one figure for each of `measures`."""

    def of(self, name: str) -> tuple[Published, ...]:
        """The figures on one set."""
        row = zip(self.measures, self.values.get(name, ()), strict=name in self.values)
        return tuple(Published(self.arm, measure, value, self.what, self.source) for measure, value in row)


@final
@dataclass(frozen=True)
class _Page:
    """What bench.toml, or one suite of suites.toml, says."""

    measures: tuple[str, ...] = MEASURES
    note: str = ""
    sets: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    figures: tuple[_Figures, ...] = ()


@lru_cache(maxsize=1)
def _catalogue() -> dict[str, Suite]:
    """The suites of suites.toml, by name."""
    text = resources.files("rerank.bench").joinpath("suites.toml").read_text(encoding="utf-8")
    return {name: _suite_of(name, built(_Page, table, name)) for name, table in parsed(text, "suites.toml").items()}


def _suite_of(name: str, page: _Page) -> Suite:
    sets = []
    for set_name, table in page.sets.items():
        found = built(BenchSet, {"name": set_name, **table}, f"{name}.sets.{set_name}", hidden=("base",))
        sets.append(replace(found, published=tuple(figure for f in page.figures for figure in f.of(set_name))))
    return Suite(name, tuple(sets), page.measures, page.note)


def _listed(name: str, base: Path) -> Suite:
    suites = _catalogue()
    if name in suites:
        return suites[name]
    if name and (base / name).is_dir():
        raise InputError(f"no suite is called {name!r}, but it is a folder: write {LOCAL}{name} to measure on it")
    raise InputError(f"no suite is called {name!r}{nearest(name, [*suites, LOCAL + 'FOLDER'])}")


def _local(place: str, base: Path) -> tuple[Suite, dict[str, str]]:
    """The suite of a folder, and what each folder that was left out lacks."""
    root, split = _folder_and_split(place, base)
    # Hidden folders (.git, .cache) are nobody's data set.
    within = (f for f in root.iterdir() if f.is_dir() and not f.name.startswith("."))
    folders = [root] if _has(root, "corpus.jsonl") else sorted(within)
    lacks = {folder: _lacking(folder, split) for folder in folders}
    left_out = {_name_of(folder): lack for folder, lack in lacks.items() if lack}
    complete = _by_set_name(folder for folder in folders if not lacks[folder])
    if left_out or not complete:
        listed = [f"{name} ({lack})" for name, lack in left_out.items()]
        more = [f"and {len(listed) - SHOWN} more"] if len(listed) > SHOWN else []
        counted = f"{len(listed)} of {len(folders)} folders are left out: {', '.join([*listed[:SHOWN], *more]) or '-'}"
        if not complete:
            raise NotFound(f"{root}: no set to measure on; {counted}; {LAYOUT}")
        log.warning("%s: %s", root, counted)
    page, described = _said_of(root / DESCRIPTION, sorted({*complete, *left_out}))
    sets = []
    for set_name, folder in sorted(complete.items()):
        # `./` keeps a folder called `code` or `a:b` a folder.
        source = f"./{folder.name}#{split}" if folder != root else f".#{split}"
        sets.append(BenchSet(set_name, source, root, **vars(described.get(set_name, _Described()))))
    name = f"{LOCAL}{_name_of(root)}" + (f"#{split}" if split != SPLIT else "")
    return Suite(name, tuple(sets), page.measures, page.note), left_out


def _folder_and_split(place: str, base: Path) -> tuple[Path, str]:
    folder, mark, split = place.rpartition("#")
    # A folder whose name has a `#` in it is that folder.
    if not mark or (base / Path(place).expanduser()).is_dir():
        folder, split = place, SPLIT
    root = base / Path(folder).expanduser()
    if not folder.strip() or not split or not root.is_dir():
        raise NotFound(f"suite {LOCAL + place!r}: there is no folder {folder and str(root)!r}; {LAYOUT}")
    return root, split


def _has(folder: Path, name: str) -> bool:
    return (folder / name).is_file() or (folder / f"{name}.gz").is_file()


def _lacking(folder: Path, split: str) -> str:
    """What a folder has not got to be a set: `no queries.jsonl, no qrels/test.tsv (qrels: train)`; empty if nothing."""
    lacks = [f"no {name}" for name in ("corpus.jsonl", "queries.jsonl", f"qrels/{split}.tsv") if not _has(folder, name)]
    splits = sorted({f.name.removesuffix(".gz").removesuffix(".tsv") for f in (folder / "qrels").glob("*.tsv*")})
    if splits and split not in splits:
        lacks[-1] += f" (qrels: {', '.join(splits)})"
    return ", ".join(lacks)


def _name_of(folder: Path) -> str:
    return folder.name if folder.name not in ("", "..") else folder.resolve().name


def _by_set_name(folders: Iterable[Path]) -> dict[str, Path]:
    """Folders by their names as sets: with `-` for what such a name cannot have."""
    named: dict[str, Path] = {}
    for folder in folders:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", _name_of(folder)).strip("-.")
        if not name:
            raise InputError(f"{folder}: the name of a set needs a letter (A to Z) or a digit; rename the folder")
        # Case is folded, as two names that differ in it alone are one folder on Windows and macOS.
        twin = next((f for n, f in named.items() if n.casefold() == name.casefold()), None)
        if twin is not None:
            raise InputError(f"{folder}: its name as a set, {name!r}, is that of {twin}; rename one")
        named[name] = folder
    return named


def _said_of(path: Path, known: Sequence[str]) -> tuple[_Page, dict[str, _Described]]:
    """What a user's bench.toml says of the suite and of each set; nothing where there is no such file."""
    if not path.is_file():
        return _Page(), {}
    try:
        page = built(_Page, parsed(path.read_text(encoding="utf-8")), "", hidden=("figures",))
        page = replace(page, measures=tuple(str(parse_measure(m)) for m in page.measures) or MEASURES)
        for name in page.sets:
            if name not in known:
                raise RecipeError(f"sets.{name}: there is no such folder here{nearest(name, known)}")
        return page, {name: _checked(built(_Described, t, f"sets.{name}"), name) for name, t in page.sets.items()}
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: byte {error.start} is not UTF-8; convert the file to UTF-8") from None
    except InputError as error:
        raise RecipeError(f"{path}: {error}") from None


def _checked(said: _Described, name: str) -> _Described:
    try:
        tokenize("", said.language)
        published = tuple(replace(figure, measure=str(parse_measure(figure.measure))) for figure in said.published)
    except InputError as error:
        raise RecipeError(f"sets.{name}: {error}") from None
    for i, figure in enumerate(published):
        if not 0 <= figure.value <= 1:
            where = f"sets.{name}.published[{i}].value"
            raise RecipeError(f"{where} = {figure.value} must be between 0 and 1; write 0.676 for 67.6 %")
    return replace(said, published=published)
