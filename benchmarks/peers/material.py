"""What is learned from and measured on: the lists of three collections, the same for every side.

    semeval   forum questions with their ten judged comments, in BM25's order
    scifact   claims against abstracts, BM25 and MiniLM fused by reciprocal ranks, the best ten
    cosqa     web queries against Python functions, fused likewise

A fifth of the training queries is held out (dev). Trained on are the lists of ten that hold a relevant candidate and
one that is not; every side gets all of them and no other. The teacher is the sum of the z-scores of BM25 and MiniLM's
cosine within a list. Retrieval reads whole texts; the rerankers read texts cut to a few tokens (`plan`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, final

from rerank.composition import FIRST_STAGE, retrievers_of
from rerank.data import candidate_lists, check_disjoint, hold_out, load_collection
from rerank.errors import NotFound
from rerank.models.backbones import backbone_path, load_encoder
from rerank.randomness import key_of
from rerank.recipe import Retrieval
from rerank.retrieval.first_stage import FirstStage, build_first_stage, features_for
from rerank.teachers import Fused
from rerank.training.headroom import has_headroom
from rerank.types import CandidateList, Collection, Ordering, Qrels, Retriever, Run

from .plan import DEPTH, DOCUMENT_TOKENS, MAX_LENGTH, QUERY_TOKENS, Plan

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
CACHE = ROOT / "runs" / ".indexes"
DEV_SHARE = 0.2


@final
@dataclass(frozen=True)
class Source:
    """Where a collection lies, and how it is read."""

    folder: str
    judged: bool = False
    """The candidates of a query are its judged documents."""


SOURCES = {"semeval": Source("semeval2016-cqa-answers", judged=True), "scifact": Source("scifact")}
SOURCES["cosqa"] = Source("cosqa")


class Split(NamedTuple):
    """The lists of some queries, and what is known of them."""

    lists: list[CandidateList]
    qrels: Qrels
    first_stage: Run
    teacher: Run


class Task(NamedTuple):
    """One collection."""

    name: str
    train: list[CandidateList]
    orderings: list[Ordering]
    """The teacher's, of the training lists."""
    dev: Split
    test: Split
    facts: dict[str, int]
    """How many lists there are."""


def task(name: str, plan: Plan) -> Task:
    """The lists of one collection."""
    source = SOURCES[name]
    folder = DATA / source.folder
    if not folder.is_dir():
        raise NotFound(
            f"there is no {source.folder} in the folder shared/data beside the checkout: see benchmarks/README"
        )
    train, test = (_judged_only(load_collection(f"{folder}#{split}")) for split in ("train", "test"))
    check_disjoint(train, test)
    rest, held_out = hold_out(train, DEV_SHARE)
    retrievers = retrievers_of(Retrieval(), test, load_encoder("minilm"), CACHE)
    cut = _cutter()
    learned = _split(rest, retrievers, source, cut)
    dev, measured = (_split(_some(c, n), retrievers, source, cut) for c, n in ((held_out, plan.dev), (test, plan.test)))
    kept = [c for c in learned.lists if has_headroom(c) and len(c) == DEPTH]
    facts = {
        "training lists": len(kept),
        "training queries left out": len(learned.qrels) - len(kept),
        "dev queries": len(dev.qrels),
        "test queries": len(measured.qrels),
        "test lists that an order matters to": sum(map(has_headroom, measured.lists)),
        "official test queries": len(test.qrels),
        "candidates": DEPTH,
        "max_length": MAX_LENGTH,
    }
    return Task(name, kept, list(_teacher()(kept)), dev, measured, facts)


def _judged_only(collection: Collection) -> Collection:
    return collection.select(sorted(q for q in collection.queries if q in collection.qrels), collection.name)


def _some(collection: Collection, most: int) -> Collection:
    """At most so many of its queries, by the hash of their ids."""
    return collection.select(sorted(collection.queries, key=lambda q: key_of("peers", q))[:most], collection.name)


def _split(collection: Collection, retrievers: list[Retriever], source: Source, cut: Callable[..., Any]) -> Split:
    found = _pools(collection, retrievers) if source.judged else build_first_stage(collection, retrievers, DEPTH)
    lists = candidate_lists(collection, found.run, {FIRST_STAGE: found.run, **found.features})
    ordered = {o.query_id: dict(zip(o.doc_ids, o.scores or (), strict=True)) for o in _teacher()(lists)}
    return Split(cut(lists), collection.qrels, found.run, Run.from_scores(ordered, "teacher", found.run))


def _pools(collection: Collection, retrievers: list[Retriever]) -> FirstStage:
    """The judged documents of each query, in BM25's order."""
    scores = {}
    for query_id, grades in collection.qrels.items():
        found = retrievers[0].score(collection.queries[query_id], list(grades))
        scores[query_id] = dict(zip(grades, found, strict=True))
    run = Run.from_scores(scores, retrievers[0].name)
    return FirstStage(run, features_for(collection, run, retrievers))


def _teacher() -> Fused:
    return Fused({"bm25": 1.0, "dense": 1.0}, name="teacher")


def _cutter() -> Callable[[list[CandidateList]], list[CandidateList]]:
    """What cuts the texts of lists to the tokens that a reranker gets."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(backbone_path("minilm"))

    def cut(text: str, most: int) -> str:
        settings = {"truncation": True, "max_length": most, "add_special_tokens": False}
        ends = [end for _, end in tokenizer(text, return_offsets_mapping=True, **settings)["offset_mapping"]]
        return text[: max(ends, default=0)]

    def cut_lists(lists: list[CandidateList]) -> list[CandidateList]:
        return [
            replace(c, query=cut(c.query, QUERY_TOKENS), texts=tuple(cut(t, DOCUMENT_TOKENS) for t in c.texts))
            for c in lists
        ]

    return cut_lists
