"""A trained model at work on files: rank texts for one query, rerank a whole run or one shard of it.

Each list is scored by itself. Float sums differ in their last bits with what else is in a batch, so this is what makes
a shard's scores, and those of a run that was interrupted, the very numbers of an unsharded run.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, final

from rich.console import Console

from rerank.composition import FIRST_STAGE, retrievers_of
from rerank.data import candidate_lists, load_collection, read_run, write_run
from rerank.data.collection import shared_queries
from rerank.data.formats import json_lines, numbered_lines
from rerank.data.rankllm import Requests
from rerank.digests import digest_of, sha256_of, summed
from rerank.engine.precision import automatic_device, compute_dtype
from rerank.errors import DataError, InputError, NotFound
from rerank.experiment.identity import RETRIEVAL as RETRIEVAL
from rerank.experiment.identity import model_digest as model_digest
from rerank.experiment.journal import Ranking
from rerank.experiment.shards import WHOLE, Part, Portion, Shard, Write, check_columns, write_part
from rerank.models.backbones import backbone_path, load_encoder
from rerank.models.encoder import VectorStore
from rerank.models.language.generative import AnyPolicy
from rerank.models.light import LightScorer
from rerank.models.loading import load_policy
from rerank.models.policy import rerank_lists, with_rest
from rerank.recipe import Retrieval
from rerank.reranker import Ranked, Reranker
from rerank.retrieval.first_stage import features_for
from rerank.types import CandidateList, Collection, Retriever, Run

logger = logging.getLogger("rerank.experiment")

Build: TypeAlias = Callable[[Retrieval, Collection], list[Retriever]]
"""From settings to the retrievers over a collection."""


@final
@dataclass(frozen=True)
class Loading:
    """How a model is loaded; None is the model's or the machine's own."""

    device: str | None = None
    precision: str = "auto"
    max_length: int | None = None
    backend: str = "torch"
    window: int | None = None
    """Of language models: candidates in one prompt; and how longer lists are ranked."""
    windowing: str | None = None
    document_tokens: int | None = None

    @property
    def reading(self) -> dict[str, Any]:
        """How a language model is to read lists, where that is not its own way."""
        names = ("window", "windowing", "document_tokens")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def description(self) -> dict[str, Any]:
        """What of it decides the scores, for a manifest."""
        sizes = {"max_length": self.max_length, "precision": self.number_format, "backend": self.backend}
        return {**sizes, **self.reading}

    def policy(self, model: str) -> AnyPolicy:
        """The model, loaded."""
        return load_policy(model, self.device, self.precision, self.max_length, self.backend, self.reading)

    @property
    def place(self) -> str:
        """The kind of device that is computed on: cpu, cuda or mps."""
        return (self.device or str(automatic_device())).partition(":")[0]

    @property
    def number_format(self) -> str:
        """What `precision` means on this machine: float32, bfloat16 or float16; int8 for an exported model."""
        import torch

        if self.backend == "vllm":
            return self.precision  # its "auto" is vLLM's own choice
        if self.backend == "onnx":
            return self.precision.replace("auto", "float32")

        try:
            dtype = compute_dtype(self.precision, torch.device(self.place))
        except RuntimeError as error:
            raise InputError(f"device {self.device!r} is not known; give 'cpu', 'cuda', 'cuda:1' or 'mps'") from error
        return str(dtype or "float32").removeprefix("torch.")


AUTOMATIC = Loading()


def rank_texts(
    model: str,
    query: str,
    documents: Path,
    top_k: int,
    probabilities: bool = False,
    min_probability: float | None = None,
    loading: Loading = AUTOMATIC,
) -> list[Ranked]:
    """The best documents of a file (one text a line, or JSONL with ids and texts) for `query`."""
    if not documents.is_file():
        raise NotFound(f"there is no file {documents}")
    if documents.name.removesuffix(".gz").endswith(".jsonl"):
        texts = [_text(record, documents, line) for line, record in json_lines(documents)]
    else:
        texts = [text for _, text in numbered_lines(documents) if text.strip()]
    if not texts:
        raise DataError.at(documents, None, "it holds no text; give one document a line")
    reranker = Reranker(loading.policy(model))
    return reranker.rank(query, texts, top_k, probabilities=probabilities, min_probability=min_probability)


def _text(record: dict[str, Any], path: Path, line: int) -> str:
    text = record.get("text", record.get("contents"))
    if not isinstance(text, str):
        raise DataError.at(path, line, f"there is no 'text'; the record has {sorted(record)}")
    return f"{record['title']} {text}" if isinstance(record.get("title"), str) else text


@final
@dataclass(frozen=True)
class Job:
    """What is to be reranked, and how."""

    model: str
    collection: Collection
    first: Run
    source: str
    """The sha256 of the file that `first` is of."""
    depth: int | None
    loading: Loading

    def part(
        self, out: Path, shard: Shard, overwrite: bool, console: Console | None, write: Write | None = None
    ) -> Part:
        """The part of `out`; `write` writes results of RankLLM requests, and without it a TREC run is written."""
        loaded, first, depth = self.collection, self.first, self.depth
        shared = shared_queries(loaded, first)
        places = shard.share(
            [min(len(first.rankings[query_id]), depth or len(loaded.documents)) for query_id in shared]
        )
        query_ids = tuple(shared[places.start : places.stop])
        own = Run({query_id: first.rankings[query_id] for query_id in query_ids}, first.name)
        lists = {c.query_id: c for c in candidate_lists(_with_queries(loaded, query_ids), own)}
        if write is None:
            check_columns((doc_id for c in lists.values() for doc_id in c.doc_ids), "doc id")
        texts = summed(digest_of((c.query_id, c.query, *c.doc_ids, *c.texts)) for c in lists.values())
        span = (places.start, places.stop, len(shared))
        description = self.description(out.stem, shared) | ({} if write is None else {"form": "rankllm"})
        portion = Portion(shard, description, query_ids, span, texts, self.loading.place)

        def ranks(remaining: Sequence[str]) -> Iterator[tuple[str, Ranking]]:
            policy = self.loading.policy(self.model)
            rest = Run({query_id: own.rankings[query_id] for query_id in remaining}, own.name)
            chosen = [lists[query_id] for query_id in remaining]
            for candidates in with_features(policy, self.model, loaded, rest, chosen):
                yield candidates.query_id, ranked_alone(policy, candidates, out.stem, depth)

        return write_part(portion, out, ranks, overwrite, console, write or write_run)

    def description(self, name: str, query_ids: Sequence[str]) -> dict[str, Any]:
        """All that decides the result, for a manifest."""
        queries = self.collection.queries
        return {
            "command": "rank",
            "name": name,
            "run": self.source,
            "model": model_digest(self.model, self.loading.backend),
            "queries": digest_of(text for query_id in query_ids for text in (query_id, queries[query_id])),
            "documents": len(self.collection.documents),
            "depth": self.depth,
            **self.loading.description(),
        }


def rerank_run(
    model: str,
    collection: str,
    run: Path,
    out: Path,
    depth: int | None = None,
    loading: Loading = AUTOMATIC,
    shard: Shard = WHOLE,
    overwrite: bool = False,
    console: Console | None = None,
) -> Part:
    """A part of `out`: the first `depth` documents of each query of `run` reranked, the others below them.

    Kept query by query: after a fault the same call goes on where it was (`experiment.shards`).
    """
    if out.resolve() == run.resolve():
        raise InputError(f"--out {out} is the run itself; the reranked run needs a file of its own")
    job = Job(model, load_collection(collection), read_run(run), sha256_of(run), depth, loading)
    return job.part(out, shard, overwrite, console)


def rerank_requests(
    model: str,
    requests: Path,
    out: Path,
    depth: int | None = None,
    loading: Loading = AUTOMATIC,
    overwrite: bool = False,
    console: Console | None = None,
) -> Part:
    """RankLLM requests reranked: in `out` (.json or .jsonl) the same records, their candidates in the new order."""
    if out.name.removesuffix(".gz").rpartition(".")[2] not in ("json", "jsonl"):
        raise InputError(f"--out {out}: results of RankLLM requests are JSON; give a name that ends in .json or .jsonl")
    if out.resolve() == requests.resolve():
        raise InputError(f"--out {out} holds the requests; the results need a file of their own")
    asked = Requests(requests)
    job = Job(model, asked.collection, asked.run, sha256_of(requests), depth, loading)
    return job.part(out, WHOLE, overwrite, console, asked.write)


def _with_queries(collection: Collection, query_ids: Sequence[str]) -> Collection:
    """The collection with the given queries alone."""
    queries = {query_id: collection.queries[query_id] for query_id in query_ids}
    return Collection(collection.documents, queries, name=collection.name)


def built_anew(settings: Retrieval, collection: Collection) -> list[Retriever]:
    """The retrievers of `settings` over the collection, with an encoder of their own."""
    encoder = load_encoder(settings.encoder) if "dense" in settings.retrievers else None
    return retrievers_of(settings, collection, encoder)


def with_features(
    policy: AnyPolicy,
    model: str,
    collection: Collection,
    run: Run,
    lists: Sequence[CandidateList],
    build: Build = built_anew,
) -> list[CandidateList]:
    """The lists with the first-stage scores that the policy reads; `build` gives the retrievers that it needs."""
    if policy.first_stage is None or not policy.first_stage.active:
        return list(lists)
    runs = {FIRST_STAGE: run} | retriever_scores(model, collection, run, policy.first_stage.names, build)
    scores = {name: other.scores for name, other in runs.items()}
    return [
        replace(
            c,
            features={
                name: tuple(by_query.get(c.query_id, {}).get(doc_id, math.nan) for doc_id in c.doc_ids)
                for name, by_query in scores.items()
            },
        )
        for c in lists
    ]


def ranked_alone(
    policy: AnyPolicy, candidates: CandidateList, name: str, depth: int | None = None, store: VectorStore | None = None
) -> Ranking:
    """The ranking of one list, scored by itself; what lies below its first `depth` documents stays there.

    `store` may hold the vectors of its documents, for a light model.
    """
    if isinstance(policy.scorer, LightScorer):
        # A text that an earlier query brought was encoded in another batch: its vector may differ in last bits.
        policy.scorer.store = VectorStore(policy.scorer.store.encoder) if store is None else store
    head = candidates if depth is None else candidates.subset(range(min(depth, len(candidates))))
    served = rerank_lists(policy, [head], name)["served"]
    return with_rest(served, [candidates], name).rankings[candidates.query_id]


def retriever_scores(
    model: str, collection: Collection, run: Run, names: tuple[str, ...], build: Build = built_anew
) -> dict[str, Run]:
    """The scores of the retrievers that the model was trained with, for the candidates of `run`."""
    wanted = tuple(name for name in names if name != FIRST_STAGE)
    return features_for(collection, run, build(retrieval_of(model, wanted), collection)) if wanted else {}


def retrieval_of(model: str, retrievers: tuple[str, ...]) -> Retrieval:
    """The settings of `retrievers` with which the model was trained."""
    file = Path(backbone_path(model)) / RETRIEVAL
    if not file.is_file():
        raise NotFound(
            f"{model} was trained with first-stage scores ({', '.join(retrievers)}), but {file.name}, which says how "
            "they are made, is not in its folder: copy it from the run, or rank without a collection"
        )
    settings = json.loads(file.read_text(encoding="utf8"))
    return Retrieval(
        retrievers=retrievers, language=settings["language"], index=settings["index"], encoder=settings["encoder"]
    )
