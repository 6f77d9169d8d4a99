"""The candidates of a set: retrieved here, or taken from a run that was made elsewhere; kept, and read from then on.

    bm25  dense  hybrid (both, by reciprocal ranks)  RUN.trec  FOLDER (of SET.trec)  NAME=RUN.trec  NAME=FOLDER

A document that is excluded for a query (itself, in ArguAna) is no candidate: every ranking is `depth` long without it.
In a set with a judged pool the candidates are the judged documents, in the order of the first stage.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection as Container
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, final

from rerank.bench.measuring import Timed, recorded, tie_rate_of
from rerank.bench.naming import FIRST, check_names, named_place
from rerank.bench.systems import check_loading
from rerank.composition import retrievers_of
from rerank.data import read_run
from rerank.digests import digest_of, sha256_of
from rerank.errors import InputError, Mismatch, NotFound, nearest
from rerank.experiment.lists import judged_candidates
from rerank.experiment.reranking import AUTOMATIC, Loading, model_digest
from rerank.experiment.shards import WHOLE, Portion, write_part
from rerank.models.backbones import load_encoder
from rerank.models.encoder import VectorStore
from rerank.recipe import Retrieval
from rerank.retrieval.dense import Dense
from rerank.retrieval.fusion import reciprocal_rank_fusion
from rerank.types import Collection, Encoder, Retriever, Run

logger = logging.getLogger("rerank.bench")

RETRIEVED = {"bm25": ("bm25",), "dense": ("dense",), "hybrid": ("bm25", "dense")}
"""First stages by name, and the retrievers that they ask."""
ENDINGS = (".trec", ".trec.gz", ".run", ".run.gz", ".txt", ".tsv", ".json", ".jsonl")
AT_ONCE = 64
"""Queries that are retrieved together."""


@final
class FirstStageChoice(NamedTuple):
    """A first stage and what it is called in the table."""

    name: str
    path: Path | None = None
    """A run, or a folder of runs; None where it is retrieved here."""

    def run_of(self, set_name: str) -> Path | None:
        """The file with the run of one set."""
        if self.path is None or self.path.is_file():
            return self.path
        found = self._found(set_name)
        if found is None:
            raise NotFound(f"--first-stage {self.path}: there is no run {set_name}.trec in this folder")
        return found

    def has(self, set_name: str) -> bool:
        """Whether there is something to take the first stage of a set from."""
        return self.path is None or self.path.is_file() or self._found(set_name) is not None

    def _found(self, set_name: str) -> Path | None:
        assert self.path is not None  # the callers have looked
        return next((path for ending in ENDINGS if (path := self.path / f"{set_name}{ending}").is_file()), None)

    def identity(self, set_name: str, settings: Retrieval, build: Retrievers) -> Any:
        """What decides its rankings, beside the collection."""
        run = self.run_of(set_name)
        return sha256_of(run) if run is not None else retrieved_by(self, settings, build)


def first_stage_choices(texts: Sequence[str]) -> list[FirstStageChoice]:
    """The first stages of `--first-stage`: bm25, dense, hybrid, or [NAME=] a run or a folder of runs named SET.trec."""
    choices = [_choice(text) for text in texts]
    if not choices:
        raise InputError("no first stage was given: name one of bm25, dense, hybrid, or a run (TREC)")
    places = [(choice.name, choice.path and choice.path.resolve()) for choice in choices]
    for i, (name, place) in enumerate(places):
        if (name, place) in places[:i]:
            raise InputError(f"two first stages are called {name!r}, for one is given twice: leave one out")
    check_names([choice.name for choice in choices], "first stage")
    return choices


def _choice(text: str) -> FirstStageChoice:
    if text in RETRIEVED:
        return FirstStageChoice(text)
    name, place = named_place(text, "--first-stage")
    path = Path(place).expanduser()
    if path.is_dir():
        return FirstStageChoice(name or path.resolve().name, path)
    if path.is_file():
        stem = next((path.name.removesuffix(e) for e in ENDINGS if path.name.endswith(e)), path.name)
        return FirstStageChoice(name or stem, path)
    if place in RETRIEVED:
        raise InputError(f"--first-stage {text!r}: {place} has its own name, and no other: write {place}")
    raise InputError(f"--first-stage {text!r} is no run or folder of runs{nearest(place, RETRIEVED)}")


@final
class Retrievers:
    """The retrievers over one collection at a time: each is built when it is first asked for, then shared."""

    def __init__(self, cache: Path, loading: Loading = AUTOMATIC) -> None:
        check_loading(loading)
        # How language models and exports compute is no format of an encoder.
        precision = loading.precision if loading.backend == "torch" else "auto"
        self._cache, self._loading = cache, Loading(loading.device, precision)
        self._encoders: dict[str, Encoder] = {}
        self._documents: Mapping[str, str] | None = None
        self._built: dict[tuple[str, ...], Retriever] = {}

    def __call__(self, settings: Retrieval, collection: Collection) -> list[Retriever]:
        """One retriever for each of `settings.retrievers`."""
        if collection.documents is not self._documents:
            self._documents, self._built = collection.documents, {}
        return [self._one(replace(settings, retrievers=(name,)), collection) for name in settings.retrievers]

    @property
    def number_format(self) -> str:
        """In which numbers texts are encoded."""
        return self._loading.number_format

    def _one(self, settings: Retrieval, collection: Collection) -> Retriever:
        dense = settings.retrievers == ("dense",)
        key = ("dense", settings.index, settings.encoder) if dense else ("bm25", settings.language)
        if key not in self._built:
            store = VectorStore(self._encoder(settings.encoder)) if dense else None
            (built,) = retrievers_of(settings, collection, store, self._cache)
            if isinstance(built, Dense):
                # All queries at once, always: a vector's last bits depend on the batch that it was encoded in.
                built.query_vectors(list(collection.queries.values()))
            self._built[key] = built
        return self._built[key]

    def _encoder(self, name: str) -> Encoder:
        if name not in self._encoders:
            self._encoders[name] = load_encoder(name, self._loading.precision, self._loading.device).encoder
        return self._encoders[name]


@final
@dataclass(frozen=True)
class Ground:
    """What all first stages of one set stand on."""

    name: str
    collection: Collection
    documents: str
    """The fingerprint of its documents."""
    barred: Mapping[str, Container[str]]
    """query id -> documents that are no candidates."""
    judged_pool: bool
    settings: Retrieval
    """Depth, language, encoder; which retrievers is the first stage's own."""

    def kept(self, query_id: str, ranking: Sequence[tuple[str, float]]) -> tuple[tuple[str, float], ...]:
        """The ranking without what is excluded, cut to the depth where it is not the judged documents."""
        out = self.barred.get(query_id, ())
        left = tuple((d, s) for d, s in ranking if d not in out)
        return left if self.judged_pool else left[: self.settings.depth]


@final
@dataclass(frozen=True)
class First:
    """One first stage of one set, on file."""

    name: str
    path: Path
    run: Run
    tie_rate: float


def first_stage(
    choice: FirstStageChoice,
    ground: Ground,
    folder: Path,
    build: Retrievers,
    overwrite: bool = False,
    place: str = "cpu",
) -> First:
    """The first stage `choice` of a set, in `folder`/first_stage.trec; made where it is not there."""
    path, timing = folder / f"{FIRST}.trec", folder / f"{FIRST}.timing.jsonl"
    source = choice.run_of(ground.name)
    collection, settings = ground.collection, ground.settings
    query_ids = tuple(collection.queries)
    texts = summed_queries(collection)
    job: dict[str, Any] = {
        "command": "bench",
        "name": choice.name,
        "documents": ground.documents,
        "depth": None if ground.judged_pool else settings.depth,
        "excluded": digest_of(t for q in sorted(ground.barred) for t in (q, *sorted(ground.barred[q]))),
        "judged": pool_digest(collection) if ground.judged_pool else None,
    }
    job |= {"run": sha256_of(source)} if source else retrieved_by(choice, settings, build)

    def ranks(remaining: Sequence[str]) -> Iterator[tuple[str, tuple[tuple[str, float], ...]]]:
        if source is not None:
            found = _from_file(source, ground, remaining)
        else:
            retrievers = build(replace(settings, retrievers=RETRIEVED[choice.name]), collection)
            found = (_pooled if ground.judged_pool else _retrieved)(retrievers, ground, remaining)
        return recorded(timing, found)

    portion = Portion(WHOLE, job, query_ids, (0, len(query_ids), len(query_ids)), texts, place)
    write_part(portion, path, ranks, overwrite)
    return First(choice.name, path, read_run(path, choice.name), tie_rate_of(timing, query_ids))


def summed_queries(collection: Collection) -> str:
    """A digest of ids and texts of all queries."""
    return digest_of(text for query_id, query in sorted(collection.queries.items()) for text in (query_id, query))


def pool_digest(collection: Collection) -> str:
    """A digest of which documents are judged for which query."""
    return digest_of(text for q, grades in sorted(collection.qrels.items()) for text in (q, *sorted(grades)))


def retrieved_by(choice: FirstStageChoice, settings: Retrieval, build: Retrievers) -> dict[str, Any]:
    """What of the settings decides what a first stage retrieves."""
    asked, dense = RETRIEVED[choice.name], {}
    if "dense" in asked:
        dense = {"encoder": model_digest(settings.encoder), "index": settings.index, "precision": build.number_format}
    return dense | ({"language": settings.language} if "bm25" in asked else {})


def _retrieved(retrievers: Sequence[Retriever], ground: Ground, query_ids: Sequence[str]) -> Iterator[Timed]:
    for start in range(0, len(query_ids), AT_ONCE):
        chunk = {q: ground.collection.queries[q] for q in query_ids[start : start + AT_ONCE]}
        began = time.perf_counter()
        # So much deeper that `depth` candidates are left when the excluded ones are gone.
        deeper = ground.settings.depth + max(len(list(ground.barred.get(q, ()))) for q in chunk)
        runs = [_kept(ground, retriever.retrieve(chunk, deeper)) for retriever in retrievers]
        run = runs[0] if len(runs) == 1 else reciprocal_rank_fusion(runs, depth=ground.settings.depth)
        seconds = (time.perf_counter() - began) / len(chunk)
        yield from ((q, run.rankings.get(q, ()), seconds) for q in chunk)


def _kept(ground: Ground, run: Run) -> Run:
    return Run({q: ground.kept(q, ranking) for q, ranking in run.rankings.items()}, run.name)


def _pooled(retrievers: Sequence[Retriever], ground: Ground, query_ids: Sequence[str]) -> Iterator[Timed]:
    for query_id in query_ids:
        one = ground.collection.select([query_id])
        began = time.perf_counter()
        runs = [_kept(ground, judged_candidates(one, r)) for r in retrievers] if has_pool(one) else [Run({})]
        run = runs[0] if len(runs) == 1 else reciprocal_rank_fusion(runs)
        yield query_id, run.rankings.get(query_id, ()), time.perf_counter() - began


def has_pool(collection: Collection) -> bool:
    """Whether a judged document is in the collection."""
    return any(d in collection.documents for grades in collection.qrels.values() for d in grades)


def _from_file(source: Path, ground: Ground, query_ids: Sequence[str]) -> Iterator[Timed]:
    run = read_run(source)
    if not any(query_id in run.rankings for query_id in query_ids):
        theirs, ours = list(run.rankings)[:3], list(query_ids)[:3]
        raise Mismatch(f"{source} ranks no judged query of {ground.name}: its queries are {theirs}, the set's {ours}")
    if ground.judged_pool:
        _say_lacking(source, run, ground, query_ids)
    for query_id in query_ids:
        ranking = _pool_order(run, ground, query_id) if ground.judged_pool else run.rankings.get(query_id, ())
        yield query_id, ground.kept(query_id, ranking), 0.0


def _say_lacking(source: Path, run: Run, ground: Ground, query_ids: Sequence[str]) -> None:
    """Say how many candidates of a judged pool stand where no run has put them."""
    pools = {q: {d for d, _ in ground.kept(q, [(d, 0.0) for d in _pool(ground, q)])} for q in query_ids}
    judged = sum(map(len, pools.values()))
    lacking = judged - sum(d in pools[q] for q in query_ids for d, _ in run.rankings.get(q, ()))
    if lacking:
        logger.warning(
            "%s lacks %d of the %d judged documents, the candidates of %s: they are put below the others, by their ids",
            source,
            lacking,
            judged,
            ground.name,
        )


def _pool(ground: Ground, query_id: str) -> set[str]:
    return {d for d in ground.collection.qrels.get(query_id, {}) if d in ground.collection.documents}


def _pool_order(run: Run, ground: Ground, query_id: str) -> Sequence[tuple[str, float]]:
    """The judged documents of a query in the order of the run; those that it lacks come below, by their ids."""
    judged = _pool(ground, query_id)
    there = [(d, s) for d, s in run.rankings.get(query_id, ()) if d in judged]
    floor = there[-1][1] if there else 0.0
    rest = sorted(judged - {d for d, _ in there})
    return [*there, *((d, floor - 1.0 - i) for i, d in enumerate(rest))]
