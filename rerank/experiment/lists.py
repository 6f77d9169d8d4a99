"""From a recipe's data to candidate lists: to clone, to refine on, for dev, for the test."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rerank.composition import FIRST_STAGE, retrievers_of
from rerank.data import candidate_lists, check_disjoint, fingerprint, hold_out, load_collection, read_run
from rerank.digests import sha256_of
from rerank.engine.processes import is_main
from rerank.errors import InputError, Mismatch
from rerank.experiment.workspace import DATA, Workspace, write_json
from rerank.models.encoder import VectorStore
from rerank.randomness import key_of
from rerank.recipe import Source
from rerank.retrieval.first_stage import FirstStage, build_first_stage, features_for
from rerank.types import CandidateList, Collection, Retriever, Run


class Part(NamedTuple):
    """The lists of one source."""

    source: Source
    lists: list[CandidateList]


class Lists(NamedTuple):
    """The candidate lists of a run."""

    train: list[Part]
    """Training lists by source, without those held out; lists without judgements are cloned only."""
    held_out: list[Part]
    """The dev lists by source."""
    test: Part
    collection: Collection
    """The test collection."""
    facts: dict[str, Any]
    """What the report says of the data."""

    @property
    def dev(self) -> list[CandidateList]:
        """The lists that weights and settings are selected on."""
        return [c for part in self.held_out for c in part.lists]

    def judged(self) -> list[CandidateList]:
        """The training lists that have judgements."""
        return [c for part in self.train for c in part.lists if c.labels is not None]


def prepare(work: Workspace, encoder: VectorStore | None) -> Lists:
    """All lists of a run."""
    data = work.recipe.data
    stages = _FirstStages(work, encoder)
    work.log.say("reading the collections")
    test = _collection(data.test, work.recipe.base)
    sources = [(source, _collection(source, work.recipe.base)) for source in data.train]
    work.log.say("first stage: " + (" and ".join(work.recipe.retrieval.retrievers) or "as recorded"))
    if encoder is not None:
        # A vector depends in its last bits on what was encoded with it: one call for all queries, in one order, gives a
        # resumed run the same vectors.
        encoder.rows(sorted({text for c in (test, *(c for _, c in sources)) for text in c.queries.values()}))
    if not test.qrels:
        raise InputError(f"data.test ({test.name}) has no judgements: there is nothing to report")
    facts = {"test": _facts(test)}
    for number, (_, collection) in enumerate(sources, start=1):
        facts[f"train {number}" if len(sources) > 1 else "train"] = _facts(collection)
    _same_data(work, facts)
    train, held = [], []
    for number, (source, collection) in enumerate(sources, start=1):
        check_disjoint(collection, test)
        held_out = None
        if collection.qrels:
            collection, held_out = hold_out(collection, data.dev, work.recipe.seed)
        train.append(Part(source, stages.lists(source, collection, f"train-{number}")))
        if held_out is not None:
            # As the test lists are made.
            held.append(Part(source, stages.lists(source, held_out, f"dev-{number}", as_it_is=True)))
    if not held:
        raise InputError("data.train has no judged set: at least one needs judgements, to select on and to refine")
    lists = Lists(train, held, Part(data.test, stages.lists(data.test, test, "test", as_it_is=True)), test, facts)
    if encoder is not None and any(model.kind == "light" for model in work.recipe.models):
        every = [c for part in (*train, *held, lists.test) for c in part.lists]
        encoder.rows(sorted({text for c in every for text in c.texts}))
    n, judged = sum(len(part.lists) for part in train), len(lists.judged())
    work.log.say(
        f"{n} lists to clone, {judged} of them judged; {len(lists.dev)} for dev, {len(lists.test.lists)} for the test"
    )
    return lists


def _same_data(work: Workspace, facts: dict[str, Any]) -> None:
    """Write down what the run is made of; a resumed run must be made of the same."""
    data = work.recipe.data
    paths = {path for source in (*data.train, data.test) for path in (source.run, *source.teachers) if path}
    files = {path: sha256_of(work.recipe.base / path)[:16] for path in sorted(paths)}
    found = {"collections": {name: fact["fingerprint"] for name, fact in facts.items()}, "files": files}
    written = work.out / DATA
    if work.resume and written.exists():
        before = json.loads(written.read_text(encoding="utf8"))
        for kind, entries in found.items():
            changed = [name for name, digest in entries.items() if before[kind].get(name) != digest]
            if changed:
                raise Mismatch(
                    f"the data changed since this run was begun: {', '.join(changed)}. What was computed from the old "
                    "data cannot be mixed with the new: restore it, or begin anew with another --out"
                )
    if is_main():
        write_json(written, found)


def _collection(source: Source, base: Path) -> Collection:
    return limited(load_collection(source.collection, base), source.limit)


def limited(collection: Collection, limit: int | None) -> Collection:
    """The collection with at most `limit` queries, chosen by their ids: more queries are a superset of fewer."""
    if limit is None or limit >= len(collection.queries):
        return collection
    keyed = sorted(collection.queries, key=lambda q: (key_of("limit", q), q))
    return collection.select(keyed[:limit])


def _facts(collection: Collection) -> dict[str, Any]:
    return {
        "name": collection.name,
        "documents": len(collection.documents),
        "queries": len(collection.queries),
        "judged": len(collection.qrels),
        "fingerprint": fingerprint(collection),
    }


class _FirstStages:
    """First stages of the run's collections; retrievers are built once for each set of documents."""

    def __init__(self, work: Workspace, encoder: VectorStore | None) -> None:
        self.work, self.encoder = work, encoder
        self.built: dict[int, list[Retriever]] = {}

    def lists(self, source: Source, collection: Collection, name: str, as_it_is: bool = False) -> list[CandidateList]:
        """Candidate lists with all features; `as_it_is` keeps a stored run's candidates to that run alone."""
        folder = self.work.out / "first_stage" / name
        retrievers = self._retrievers(collection)  # also for a stored first stage: the index holds the vectors
        # The main process has been here before the others (`main_first`): they read what it found.
        if (self.work.resume or not is_main()) and (folder / "first_stage.json").exists():
            found = FirstStage.load(folder)
        else:
            found = self._retrieve(source, collection, retrievers, as_it_is)
            found.save(folder)
        if source.candidates == "judged":
            self._tell_missing(collection, found.run)
            collection = collection.select(found.run.rankings, collection.name)
        return candidate_lists(collection, found.run, {FIRST_STAGE: found.run, **found.features})

    def _tell_missing(self, collection: Collection, judged: Run) -> None:
        """Note what has judgements, or should have, and takes no part."""
        queries = len(collection.queries) - len(judged.rankings)
        documents = sum(d not in collection.documents for grades in collection.qrels.values() for d in grades)
        if queries:
            self.work.note(f"{queries} queries of {collection.name} have no judged document and were left out")
        if documents:
            self.work.note(f"{documents} judged documents are not in {collection.name} and are no candidates")

    def _retrieve(
        self, source: Source, collection: Collection, retrievers: list[Retriever], as_it_is: bool
    ) -> FirstStage:
        settings = self.work.recipe.retrieval
        if source.candidates == "judged":
            run = judged_candidates(collection, retrievers[0])
            return FirstStage(run, features_for(collection, run, retrievers))
        if source.run is None:
            fusion = settings.fusion if len(retrievers) > 1 else None
            weights = dict(settings.weights) or None
            return build_first_stage(collection, retrievers, settings.depth, fusion, weights)
        run = _stored(source, collection, self.work).top(settings.depth)
        if not as_it_is:
            run = _with_recorded(run, self._recordings(source), collection)
        return FirstStage(run, features_for(collection, run, retrievers) if retrievers else {})

    def _retrievers(self, collection: Collection) -> list[Retriever]:
        key = id(collection.documents)
        if key not in self.built:
            cache = self.work.out.parent / ".indexes"
            with self.work.timed("index"):
                self.built[key] = retrievers_of(self.work.recipe.retrieval, collection, self.encoder, cache)
        return self.built[key]

    def _recordings(self, source: Source) -> Iterator[Run]:
        for path in source.teachers:
            yield read_run(self.work.recipe.base / path)


def judged_candidates(collection: Collection, retriever: Retriever) -> Run:
    """The judged documents of each query, in the order of one retriever."""
    scores = {}
    for query_id, grades in collection.qrels.items():
        doc_ids = [doc_id for doc_id in grades if doc_id in collection.documents]
        if doc_ids:
            scores[query_id] = dict(zip(doc_ids, retriever.score(collection.queries[query_id], doc_ids), strict=True))
    if not scores:
        raise Mismatch(f"candidates = 'judged': no judged document of {collection.name} is in it")
    return Run.from_scores(scores, "judged")


def _stored(source: Source, collection: Collection, work: Workspace) -> Run:
    """The stored run of a source, cut to the queries of the collection."""
    assert source.run is not None  # the caller has looked
    run = read_run(work.recipe.base / source.run)
    missing = [q for q in collection.queries if q not in run.rankings]
    if len(missing) == len(collection.queries):
        raise Mismatch(f"{source.run} has none of the {len(missing)} queries of {collection.name}, e.g. {missing[0]!r}")
    if missing:
        work.note(f"{len(missing)} queries of {collection.name} are not in {Path(source.run).name}")
    return Run({q: ranking for q, ranking in run.rankings.items() if q in collection.queries}, run.name)


def _with_recorded(run: Run, recordings: Iterator[Run], collection: Collection) -> Run:
    """The run with the documents that recorded teachers ranked and it did not find, below its last place."""
    scores = run.scores
    floor = {q: min(by_doc.values(), default=0.0) - 1.0 for q, by_doc in scores.items()}
    for recorded in recordings:
        for query_id, found in scores.items():
            for doc_id in recorded.doc_ids(query_id):
                if doc_id in collection.documents:
                    found.setdefault(doc_id, floor[query_id])
    return Run.from_scores(scores, run.name, run)
