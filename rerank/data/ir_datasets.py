"""Collections of the ir_datasets catalogue (MacAvaney et al. 2021), by their id, such as `beir/scifact/test`.

Files lie in the folder that the environment variable IR_DATASETS_HOME names (default `~/.ir_datasets`); the package
downloads what is not there yet.
"""

from __future__ import annotations

import difflib
from collections.abc import ItemsView, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

from rerank.data.formats import log
from rerank.errors import DataError, InputError, MissingDependency, NotFound
from rerank.types import Collection

IN_MEMORY = 200_000
"""Corpora with more documents than this stay on disk."""


def read_ir_dataset(dataset_id: str, in_memory: int = IN_MEMORY) -> Collection:
    """Documents, queries and judgements of one id of the catalogue.

    More than `in_memory` documents are not loaded: `documents` then fetches each text from the store on disk.
    """
    dataset = _dataset(dataset_id)
    if not dataset.has_docs():
        raise InputError(f"ir_datasets id {dataset_id!r} has no documents; name an id that has")
    with _reachable(dataset_id):
        queries = {q.query_id: q.default_text() for q in dataset.queries_iter()} if dataset.has_queries() else {}
        grades = _grades(dataset, dataset_id) if dataset.has_qrels() else {}
        documents = _documents(dataset, dataset_id, in_memory)
    textless = [query_id for query_id in grades if query_id not in queries]
    if textless:
        # The user cannot mend a published set, so this is no error here.
        log.warning("%s: %d judged queries without text are left out: %s", dataset_id, len(textless), textless[:3])
    kept = {query_id: by_doc for query_id, by_doc in grades.items() if query_id in queries}
    return Collection(documents, queries, kept, dataset_id)


def _dataset(dataset_id: str) -> Any:
    import ir_datasets as catalogue

    try:
        return catalogue.load(dataset_id)
    except KeyError:
        close = difflib.get_close_matches(dataset_id, list(catalogue.registry), n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise NotFound(f"ir_datasets knows no {dataset_id!r}{hint} (all ids: https://ir-datasets.com)") from None


@contextmanager
def _reachable(dataset_id: str) -> Iterator[None]:
    """A failed download as one sentence instead of a stack of retries."""
    import ir_datasets as catalogue
    import requests

    try:
        yield
    except NotFound:
        raise
    except ImportError as error:  # some sets are Parquet files; the package tells what it needs
        raise MissingDependency(f"ir_datasets id {dataset_id!r}: {error}; pip install 'rerank[bench]'") from None
    except (requests.exceptions.RequestException, OSError, RuntimeError) as error:
        home = catalogue.util.home_path()
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise NotFound(
            f"ir_datasets id {dataset_id!r} is not complete in {home} and could not be read or fetched ({reason}); "
            "go online once, or set IR_DATASETS_HOME to a folder that has it"
        ) from error


def _grades(dataset: Any, dataset_id: str) -> dict[str, dict[str, int]]:
    grades: dict[str, dict[str, int]] = {}
    changed = 0
    for qrel in dataset.qrels_iter():
        by_doc = grades.setdefault(qrel.query_id, {})
        changed += by_doc.get(qrel.doc_id, qrel.relevance) != qrel.relevance
        by_doc[qrel.doc_id] = int(qrel.relevance)
    if changed:
        log.warning("%s: %d judgements contradict an earlier one; the last one counts", dataset_id, changed)
    return grades


def _documents(dataset: Any, dataset_id: str, in_memory: int) -> Mapping[str, str]:
    # The count is unknown (None) until the package has built its store.
    if (dataset.docs_count() or 0) > in_memory:
        return StoredTexts(dataset_id)
    texts: dict[str, str] = {}
    for doc in dataset.docs_iter():
        text = texts.setdefault(doc.doc_id, doc.default_text())
        if text != doc.default_text():
            raise DataError(f"ir_datasets {dataset_id!r}: document {doc.doc_id!r} is there twice with different texts")
        if len(texts) > in_memory:
            return StoredTexts(dataset_id)
    return texts


@final
class StoredTexts(Mapping[str, str]):
    """doc id -> text of a corpus too large for memory, fetched from the store that ir_datasets keeps on disk."""

    def __init__(self, dataset_id: str) -> None:
        self._dataset_id = dataset_id
        self._dataset = _dataset(dataset_id)
        with _reachable(dataset_id):
            self._store = self._dataset.docs_store()

    def __getitem__(self, doc_id: str) -> str:
        with _reachable(self._dataset_id):
            return str(self._store.get(doc_id).default_text())

    def __iter__(self) -> Iterator[str]:
        return (doc.doc_id for doc in self._dataset.docs_iter())

    def __len__(self) -> int:
        return int(self._dataset.docs_count() or self._store.count())

    def items(self) -> ItemsView[str, str]:
        """(doc id, text) pairs in the order of the corpus, read in one sweep."""
        return _Swept(self)

    def __reduce__(self) -> tuple[type[StoredTexts], tuple[str]]:
        # The open store cannot be sent to another process; its id can.
        return StoredTexts, (self._dataset_id,)


@final
class _Swept(ItemsView[str, str]):
    def __iter__(self) -> Iterator[tuple[str, str]]:
        return ((doc.doc_id, doc.default_text()) for doc in self._mapping._dataset.docs_iter())  # type: ignore[attr-defined]
