"""A finished run at work on one query at a time: its collection, its first stage, its clone, its refined model.

    query -> candidates by the run's own first stage -> scores by clone and refined -> columns with parts and moves

A query of the test set gets the very candidates that the run reranked, with their grades; any other text is retrieved
now, as the run would have retrieved it.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import final

from rerank.composition import FIRST_STAGE
from rerank.data import candidate_lists
from rerank.errors import InputError, nearest
from rerank.evaluation.measures import evaluate, parse_measure
from rerank.experiment.arms import CLONE, REFINED
from rerank.explore.answers import TYPED, Answer, Column, Row
from rerank.explore.opening import Opened, Policies, opened, policies_of
from rerank.explore.why import (
    STRETCHES,
    STRETCHES_OF_LISTS,
    found_by,
    reads_lists,
    reason,
    scored,
    stretches,
    weights_of,
)
from rerank.models.encoder import VectorStore
from rerank.models.language.generative import AnyPolicy
from rerank.models.light import LightScorer
from rerank.models.policy import with_rest
from rerank.retrieval.dense import Dense
from rerank.retrieval.first_stage import FirstStage, build_first_stage
from rerank.types import CandidateList, Collection, Run

QUERY_LENGTH, READ_LENGTH = 1000, 20_000
"""Characters of a query that are allowed, and of a document that sentences are left out of."""
SUGGESTED, EXAMPLES, REMEMBERED = 8, 6, 8
"""Test queries that are suggested, and shown at first; queries whose candidates are remembered."""


def open_session(folder: Path, base: Path | None = None, say: Callable[[str], None] = lambda text: None) -> Session:
    """The run in `folder`, ready to answer; `base` is where the paths of its recipe start, where that is not found.

    `say` is told what is being loaded, which takes a while where an index has to be built.
    """
    session = Session(opened(Path(folder), base, say))
    say("loading the models")
    session.policies(session.names[0])
    return session


@final
class Session:
    """A run that is open. Not for several threads at a time: its models and its memory of queries are shared."""

    def __init__(self, run: Opened) -> None:
        self.run, self.recipe, self.collection = run, run.recipe, run.collection
        self.models = {model.name: model for model in run.recipe.models}
        self.names = list(self.models)
        self.measure = str(parse_measure(run.recipe.evaluation.measures[0]))
        self.test_ids = self._test_ids()
        self._worded: dict[str, str] = {}
        for query_id in self.test_ids:  # of those that are worded alike, the first
            self._worded.setdefault(self.collection.queries[query_id].strip(), query_id)
        self._policies: dict[str, Policies] = {}
        self._lists: OrderedDict[tuple[str, str], CandidateList | None] = OrderedDict()
        self._queries = VectorStore(run.store.encoder) if run.store is not None else None
        for retriever in run.retrievers:
            if isinstance(retriever, Dense) and self._queries is not None:
                # The run's store holds the corpus in one matrix, which each new text would make it copy.
                retriever.encoder = self._queries

    def _test_ids(self) -> list[str]:
        """The test queries that can be asked: those that have candidates, or can be given some."""
        stored = self.run.stored
        if self.run.retrievers and stored is None:
            return list(self.collection.queries)
        known = stored.run.rankings if stored is not None else {}
        return [query_id for query_id in self.collection.queries if query_id in known]

    def policies(self, name: str) -> Policies:
        """Clone and refined policy of the model `name`, loaded when first asked for."""
        if name not in self.models:
            raise InputError(f"the run has no model {name!r}{nearest(name, self.names)}")
        if name not in self._policies:
            self._policies[name] = policies_of(self.run, self.models[name])
        return self._policies[name]

    def stages(self, name: str) -> dict[str, AnyPolicy]:
        """Column -> policy of the model `name`, in the order in which they were trained; those that are there."""
        found = self.policies(name)
        both = {CLONE: found.clone, REFINED: found.refined}
        return {stage: policy for stage, policy in both.items() if policy is not None}

    # ---------------------------------------------------------------------------------------------------- candidates
    def query_of(self, text: str, query_id: str | None = None) -> tuple[str, str]:
        """(query id, text) of what was typed; a text worded as a test query is that query.

        The text counts: an id says which of several test queries of that text is meant, or stands alone.
        """
        text = text.strip()
        if query_id is not None:
            if query_id not in self.collection.queries:
                raise InputError(f"there is no test query with the id {query_id!r:.80}; leave the id out")
            if text in ("", self.collection.queries[query_id].strip()):
                return query_id, self.collection.queries[query_id]
        if not text:
            raise InputError("the query is empty: type a few words")
        if len(text) > QUERY_LENGTH:
            raise InputError(f"the query has {len(text)} characters; at most {QUERY_LENGTH} are taken")
        own = self._worded.get(text)
        return (TYPED, text) if own is None else (own, self.collection.queries[own])

    def candidates(self, query_id: str, text: str) -> CandidateList | None:
        """The candidates of a query, in first-stage order; None where nothing is found."""
        key = (query_id, text)
        if key not in self._lists:
            self._lists[key] = self._found(query_id, text)
            while len(self._lists) > REMEMBERED:
                self._lists.popitem(last=False)
        self._lists.move_to_end(key)
        return self._lists[key]

    def _found(self, query_id: str, text: str) -> CandidateList | None:
        qrels = {query_id: self.collection.qrels[query_id]} if query_id in self.collection.qrels else {}
        own = Collection(self.collection.documents, {query_id: text}, qrels, self.collection.name)
        stored = self.run.stored
        if stored is not None and query_id in stored.run.rankings:
            first = FirstStage(_only(stored.run, query_id), {n: _only(r, query_id) for n, r in stored.features.items()})
        elif self.run.retrievers:
            settings, several = self.recipe.retrieval, len(self.run.retrievers) > 1
            weights = dict(settings.weights) or None
            first = build_first_stage(
                own, self.run.retrievers, settings.depth, settings.fusion if several else None, weights
            )
        else:
            raise InputError(
                "this run reranks a stored run and has no retriever of its own: only its test queries can be asked"
            )
        if not first.run.doc_ids(query_id):
            return None
        return candidate_lists(own, first.run, {FIRST_STAGE: first.run, **first.features})[0]

    # ------------------------------------------------------------------------------------------------------- columns
    def ranked(self, text: str, query_id: str | None = None, model: str | None = None) -> Answer:
        """The columns of one query: the first stage, then each stage of the model (the first one, if none is named)."""
        name = self.names[0] if model is None else model
        stages = self.stages(name)
        own_id, words = self.query_of(text, query_id)
        candidates = self.candidates(own_id, words)
        if candidates is None:
            return Answer(None, [])
        columns = [self._first(candidates)]
        columns += [self._column(stage, policy, candidates, name) for stage, policy in stages.items()]
        return Answer(candidates, columns)

    def _first(self, candidates: CandidateList) -> Column:
        features = {name: values for name, values in candidates.features.items() if name != FIRST_STAGE}
        scores = candidates.features[FIRST_STAGE]
        rows = [
            Row(doc_id, i + 1, _finite(scores[i]), 0, found_by(features, i))
            for i, doc_id in enumerate(candidates.doc_ids)
        ]
        return Column(FIRST_STAGE, rows, self._measured(rows, candidates))

    def _column(self, stage: str, policy: AnyPolicy, candidates: CandidateList, model: str) -> Column:
        depth = self.models[model].depth
        head = candidates if depth is None else candidates.subset(range(min(depth, len(candidates))))
        self._prepare(policy, head)
        found = scored(policy, head)
        before = {doc_id: i for i, doc_id in enumerate(candidates.doc_ids)}
        by_doc = dict(zip(head.doc_ids, found.totals, strict=True))
        order = Run({candidates.query_id: tuple((doc_id, -float(i)) for doc_id, i in before.items())})
        run = with_rest(Run.from_scores({candidates.query_id: by_doc}, stage, order), [candidates], stage)
        lifts = found.lifts()
        rows = []
        for rank, doc_id in enumerate(run.doc_ids(candidates.query_id), start=1):
            place = before[doc_id]
            moved = place + 1 - rank
            if doc_id not in by_doc:
                rows.append(Row(doc_id, rank, None, moved, f"below depth {depth}, not reranked"))
                continue
            own = {name: values[place] for name, values in lifts.items()}
            parts = {name: values[place] for name, values in found.parts.items()}
            rows.append(Row(doc_id, rank, by_doc[doc_id], moved, reason(moved, own), parts, own))
        return Column(stage, rows, self._measured(rows, candidates))

    def _measured(self, rows: list[Row], candidates: CandidateList) -> float | None:
        query_id = candidates.query_id
        if not self.collection.qrels.get(query_id):
            return None
        run = Run({query_id: tuple((row.doc_id, -float(row.rank)) for row in rows)})
        return evaluate(run, {query_id: self.collection.qrels[query_id]}, [self.measure]).mean[self.measure]

    def _prepare(self, policy: AnyPolicy, candidates: CandidateList) -> None:
        """Give a light model the vectors of this list alone: a store that grew with every text would be copied."""
        if not isinstance(policy.scorer, LightScorer) or self.run.store is None or self._queries is None:
            return
        small = VectorStore(self.run.store.encoder)
        small.add(candidates.texts, self.run.store.encode(candidates.texts))
        small.add([candidates.query], self._queries.encode([candidates.query]))
        policy.scorer.store = small

    # ----------------------------------------------------------------------------------------------------------- why
    def explained(
        self, doc_id: str, stage: str, text: str, query_id: str | None = None, model: str | None = None
    ) -> list[tuple[str, float]]:
        """The document in stretches, each with what the network's score loses without it."""
        name = self.names[0] if model is None else model
        stages = self.stages(name)
        if stage not in stages:
            raise InputError(f"no sentence carries the column {stage!r:.40}: ask for {' or '.join(stages)}")
        candidates = self.candidates(*self.query_of(text, query_id))
        if candidates is None or doc_id not in candidates.doc_ids:
            raise InputError(f"the document {doc_id!r:.80} is no candidate of this query")
        policy = stages[stage]
        place = candidates.doc_ids.index(doc_id)
        depth = self.models[name].depth
        if depth is not None and place >= depth:
            raise InputError(f"the document stands below depth {depth}, to which the model reranks: it has no score")
        head = candidates if depth is None else candidates.subset(range(min(depth, len(candidates))))
        most = STRETCHES_OF_LISTS if reads_lists(policy) else STRETCHES
        cut = stretches(candidates.texts[place][:READ_LENGTH], most)
        self._prepare(policy, head)
        return list(zip(cut, weights_of(policy, head, place, cut), strict=True)) if cut else []

    # ---------------------------------------------------------------------------------------------------- suggestions
    def suggested(self, text: str) -> list[tuple[str, str]]:
        """(query id, text) of test queries that hold all words typed so far; those that begin with them first."""
        words = text.casefold().split()
        start = " ".join(words)
        if not words:
            apart = max(1, len(self.test_ids) // EXAMPLES)  # spread over all: neighbours are often alike
            return [(q, self.collection.queries[q]) for q in self.test_ids[::apart][:EXAMPLES]]
        found = []
        for query_id in self.test_ids:
            folded = self.collection.queries[query_id].casefold()
            if all(word in folded for word in words):
                found.append((not folded.startswith(start), len(folded), query_id))
        return [(query_id, self.collection.queries[query_id]) for _, _, query_id in sorted(found)[:SUGGESTED]]


def _only(run: Run, query_id: str) -> Run:
    return Run({query_id: run.rankings[query_id]}, run.name)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
