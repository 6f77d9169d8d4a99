"""Dense retrieval: unit vectors of documents and queries, inner products, FAISS (Johnson et al., 2021) as the index.

    score(q, d) = <e(q), e(d)>,  |e(.)| = 1

FAISS finds the documents; the score that counts is always the exact product of the kept vectors, summed in float64, so
`retrieve` and `score` give the same numbers whatever the kind of index. Kinds: "flat" is exact; "hnsw" (Malkov and
Yashunin, 2018) and "ivf" trade a little recall for speed beyond a few hundred thousand documents.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from rerank.errors import InputError, Mismatch, nearest
from rerank.retrieval.index import (
    best,
    check_depth,
    check_texts,
    documents_hash,
    empty_folder,
    read_manifest,
    rows_of,
    write_manifest,
)
from rerank.types import Encoder, Run

if TYPE_CHECKING:
    pass

logger = logging.getLogger("rerank.retrieval.dense")

KINDS = ("flat", "hnsw", "ivf")
_SPARE = 16  # documents beyond the depth, so that equal scores at the cut are settled by us and not by FAISS
_GPU_DEPTH = 2048  # the most results that FAISS finds for a query on a GPU


@final
class Dense:
    """Vectors of a corpus with a FAISS index over them; `Dense.build(documents, encoder)` makes one.

    Query vectors are kept for the life of the object: `retrieve`, `score` and `query_vectors` encode a text once.
    """

    def __init__(
        self,
        index: Any,
        vectors: np.ndarray,
        doc_ids: Sequence[str],
        encoder: Encoder,
        settings: Mapping[str, Any],
        documents: str,
        gpu: bool | str = "auto",
    ) -> None:
        self.name = str(settings["name"])
        self.kind = str(settings["kind"])
        self.encoder = encoder
        self._settings = dict(settings)
        self._index = index
        self._gpu_index = _on_gpu(index, self.kind, gpu)
        self._vectors = vectors
        self._doc_ids = tuple(doc_ids)
        self._row = {d: i for i, d in enumerate(self._doc_ids)}
        self._documents = documents
        self._queries: dict[str, np.ndarray] = {}

    @classmethod
    def build(
        cls,
        documents: Mapping[str, str],
        encoder: Encoder,
        kind: str = "flat",
        gpu: bool | str = "auto",
        name: str = "dense",
    ) -> Dense:
        """The index of `documents` (doc id -> text).

        `gpu` "auto" searches on the first GPU where there is one and FAISS was built for it ("hnsw" stays on the CPU).
        """
        check_texts(documents, "documents")
        if not documents:
            raise InputError("nothing to index: documents is empty")
        if kind not in KINDS:
            raise InputError(f"kind = {kind!r}{nearest(str(kind), KINDS)}")
        vectors = _checked(encoder.encode(list(documents.values())), list(documents), "document")
        settings = {"name": name, "kind": kind, "dim": vectors.shape[1], "encoder": encoder.fingerprint}
        return cls(
            _faiss_index(vectors, kind), vectors, tuple(documents), encoder, settings, documents_hash(documents), gpu
        )

    def retrieve(self, queries: Mapping[str, str], depth: int) -> Run:
        """The `depth` best documents of each query, all documents where the corpus is smaller."""
        check_texts(queries, "queries")
        check_depth(depth)
        if not queries:
            return Run({}, self.name)
        n = len(self._doc_ids)
        k = min(n, depth + _SPARE)
        vectors = self.query_vectors(list(queries.values()))
        rankings = {}
        for query_id, vector, found in zip(queries, vectors, self._search(vectors, k), strict=True):
            rows = found[found >= 0]  # an approximate index fills up with -1 where it finds fewer than k
            scores = self._products(vector, rows)
            if self.kind == "flat" and k < n and scores.min() > np.partition(scores, -depth)[-depth] - 1e-6:
                # Equal scores reach beyond what FAISS returned: only the whole corpus can settle the cut.
                rows = np.arange(n)
                scores = self._products(vector, rows)
            rankings[query_id] = best(scores, rows, self._doc_ids, depth)
        short = sum(len(ranking) < min(depth, n) for ranking in rankings.values())
        if short:
            logger.warning("%s: %d of %d queries found fewer than %d documents", self.name, short, len(rankings), depth)
        return Run(rankings, self.name)

    def score(self, query: str, doc_ids: Sequence[str]) -> list[float]:
        """The inner product of the query with each given document, the number that `retrieve` gives."""
        rows = rows_of(doc_ids, self._row, self.name)
        return [float(s) for s in self._products(self.query_vectors([query])[0], np.asarray(rows, dtype=np.int64))]

    def vectors(self, doc_ids: Sequence[str]) -> np.ndarray:
        """The document vectors [len(doc_ids), dim]."""
        return self._vectors[np.asarray(rows_of(doc_ids, self._row, self.name), dtype=np.int64)]

    def query_vectors(self, texts: Sequence[str]) -> np.ndarray:
        """The query vectors [len(texts), dim]; each text is encoded the first time it is seen."""
        unseen = [text for text in dict.fromkeys(texts) if text not in self._queries]
        if unseen:
            fresh = _checked(self.encoder.encode(unseen), unseen, "query")
            if fresh.shape[1] != self._vectors.shape[1]:
                raise Mismatch(
                    f"the encoder gives {fresh.shape[1]} dimensions, the index {self.name!r} has "
                    f"{self._vectors.shape[1]}: use the encoder that the index was built with, or build it again"
                )
            self._queries.update(zip(unseen, fresh, strict=True))
        found = [self._queries[text] for text in texts]
        return np.stack(found) if found else np.zeros((0, self._vectors.shape[1]), dtype=np.float32)

    def save(self, folder: Path | str) -> None:
        """Nothing; writes vectors, ids and index to `folder`, the manifest last."""
        import faiss

        folder = empty_folder(folder)
        np.save(folder / "vectors.npy", self._vectors)
        (folder / "doc_ids.json").write_text(json.dumps(self._doc_ids), encoding="utf-8")
        (folder / "index.faiss").unlink(missing_ok=True)
        if self.kind != "flat":  # a flat index is the vectors over again
            faiss.write_index(self._index, str(folder / "index.faiss"))
        write_manifest(folder, "dense", self._settings, self._documents)

    @classmethod
    def load(
        cls, folder: Path | str, documents: Mapping[str, str], encoder: Encoder, gpu: bool | str = "auto"
    ) -> Dense:
        """The index that `save` left in `folder`; `Mismatch` when documents or encoder are not its own."""
        import faiss

        folder = Path(folder)
        settings = read_manifest(folder, "dense", documents)
        if settings["encoder"] != encoder.fingerprint:
            raise Mismatch(
                f"the index in {folder} was built with another encoder (weights {settings['encoder'][:12]}..., "
                f"given {encoder.fingerprint[:12]}...): load that encoder, or build the index again with this one"
            )
        vectors = np.load(folder / "vectors.npy", allow_pickle=False)
        doc_ids = json.loads((folder / "doc_ids.json").read_text(encoding="utf-8"))
        flat = settings["kind"] == "flat"
        index = _faiss_index(vectors, "flat") if flat else faiss.read_index(str(folder / "index.faiss"))
        return cls(index, vectors, doc_ids, encoder, settings, documents_hash(documents), gpu)

    def _search(self, queries: np.ndarray, k: int) -> np.ndarray:
        """The rows [n queries, k] that FAISS finds, -1 where it finds no more."""
        if self.kind == "hnsw":
            self._index.hnsw.efSearch = max(128, 2 * k)
            return np.asarray(self._index.search(queries, k)[1])
        index = self._gpu_index if self._gpu_index is not None and k <= _GPU_DEPTH else self._index
        return np.asarray(index.search(queries, k)[1])

    def _products(self, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The inner products [len(rows)], the same for a row whatever the other rows are, hence no matrix product."""
        parts = [
            (self._vectors[rows[i : i + 4096]] * query.astype(np.float64)).sum(axis=1)
            for i in range(0, len(rows), 4096)
        ]
        return np.concatenate(parts).astype(np.float32) if parts else np.zeros(0, dtype=np.float32)


def _faiss_index(vectors: np.ndarray, kind: str) -> Any:
    """The filled FAISS index of the rows of `vectors`."""
    import faiss

    index: Any
    n, dim = vectors.shape
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(dim, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 200
    elif kind == "ivf":
        # k-means wants 39 points a list; 4 sqrt(n) lists is FAISS's own advice, and a sixteenth of them is searched.
        n_lists = max(1, min(int(4 * n**0.5), n // 39))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, n_lists, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = max(min(n_lists, 16), n_lists // 16)
        index.train(vectors)
    else:
        index = faiss.IndexFlatIP(dim)
    index.add(vectors)
    return index


def _on_gpu(index: Any, kind: str, gpu: bool | str) -> Any:
    """The index's copy on the first GPU, or None to search on the CPU."""
    import faiss

    if gpu not in (True, False, "auto"):
        raise InputError(f"gpu = {gpu!r}: expected True, False or 'auto'")
    if gpu is False:
        return None
    able = kind != "hnsw" and hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0
    if gpu is True and not able:
        raise InputError(
            f"gpu = True with kind = {kind!r}: this needs a GPU, a FAISS built for it (pip install 'rerank[gpu]') "
            "and the kind 'flat' or 'ivf'; gpu = 'auto' falls back to the CPU"
        )
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index) if able else None


def _checked(vectors: Any, names: Sequence[str], what: str) -> np.ndarray:
    """The encoder's rows, float32 and contiguous, once there is one a text, finite and of unit length."""
    rows = np.ascontiguousarray(vectors, dtype=np.float32)
    if rows.ndim != 2 or len(rows) != len(names):
        raise InputError(
            f"the encoder gave an array of shape {rows.shape} for {len(names)} texts: expected one row a text"
        )
    broken = ~np.isfinite(rows).all(axis=1)
    if broken.any():
        first = names[int(broken.argmax())]
        raise InputError(f"{int(broken.sum())} vectors hold NaN or infinity, the first is that of {what} {first!r:.80}")
    lengths = np.linalg.norm(rows, axis=1)
    odd = np.abs(lengths - 1) > 1e-3
    if odd.any():
        at = int(odd.argmax())
        raise InputError(
            f"the vector of {what} {names[at]!r:.80} has length {lengths[at]:.4g}: rows must be of unit length"
        )
    return rows
