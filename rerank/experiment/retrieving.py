"""Candidates of a collection's queries on file: BM25, FAISS or both, the whole run or one shard of it.

Every shard indexes the whole corpus, so shards pay where the queries are many.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from rerank.composition import retrievers_of
from rerank.data import fingerprint, load_collection
from rerank.digests import digest_of, summed
from rerank.errors import InputError
from rerank.experiment.journal import Ranking
from rerank.experiment.reranking import AUTOMATIC, Loading, model_digest
from rerank.experiment.shards import WHOLE, Part, Portion, Shard, write_part
from rerank.models.backbones import load_encoder
from rerank.recipe import Retrieval
from rerank.retrieval.dense import Dense
from rerank.retrieval.first_stage import FUSIONS, build_first_stage
from rerank.types import Collection, Retriever

AT_ONCE = 64
"""Queries that are retrieved, and kept, together."""


def retrieve_run(
    collection: str,
    out: Path,
    retrieval: Retrieval,
    fusion: str = "rrf",
    depth: int = 100,
    encoder: str = "minilm",
    loading: Loading = AUTOMATIC,
    shard: Shard = WHOLE,
    overwrite: bool = False,
    console: Console | None = None,
) -> Part:
    """A part of `out` (TREC): the `depth` best documents of each query of the collection."""
    if len(retrieval.retrievers) > 1 and fusion not in FUSIONS:
        raise InputError(f"--fusion {fusion!r} is not one of {', '.join(FUSIONS)}")
    loaded = load_collection(collection)
    dense = "dense" in retrieval.retrievers
    ordered = tuple(loaded.queries)
    places = shard.share([1] * len(ordered))
    texts = {query_id: digest_of((query_id, text)) for query_id, text in loaded.queries.items()}
    job = {
        "command": "retrieve",
        "name": "+".join(retrieval.retrievers),
        "documents": fingerprint(Collection(loaded.documents, {})),
        "queries": digest_of(texts.values()),
        "depth": depth,
        "fusion": fusion if len(retrieval.retrievers) > 1 else None,
        "language": retrieval.language if "bm25" in retrieval.retrievers else None,
        "index": retrieval.index if dense else None,
        "encoder": model_digest(encoder) if dense else None,
        "precision": loading.number_format if dense else None,
    }
    query_ids = ordered[places.start : places.stop]
    own = summed(texts[query_id] for query_id in query_ids)
    portion = Portion(shard, job, query_ids, (places.start, places.stop, len(ordered)), own, loading.place)

    def ranks(remaining: Sequence[str]) -> Iterator[tuple[str, Ranking]]:
        store = load_encoder(encoder, loading.precision, loading.device) if dense else None
        built = retrievers_of(retrieval, loaded, store)
        for retriever in built:
            if isinstance(retriever, Dense):
                # All queries of the job, in every shard: a vector's last bits depend on the batch it was encoded in.
                retriever.query_vectors(list(loaded.queries.values()))
        return _retrieved(loaded, built, remaining, depth, fusion if len(built) > 1 else None)

    return write_part(portion, out, ranks, overwrite, console)


def _retrieved(
    collection: Collection, retrievers: Sequence[Retriever], query_ids: Sequence[str], depth: int, fusion: str | None
) -> Iterator[tuple[str, Ranking]]:
    """(query id, its ranking) of each query."""
    for start in range(0, len(query_ids), AT_ONCE):
        chunk = {query_id: collection.queries[query_id] for query_id in query_ids[start : start + AT_ONCE]}
        some = Collection(collection.documents, chunk, name=collection.name)
        found = build_first_stage(some, retrievers, depth, fusion).run
        for query_id in chunk:
            yield query_id, found.rankings.get(query_id, ())
