"""The interface of the package `rerankers`, over our models.

    from rerank.integrations.rerankers import Reranker

    ranker = Reranker("runs/quickstart/model/light")
    results = ranker.rank("who wrote Faust", docs, doc_ids=["a", "b", "c"], metadata=[{"page": 1}, {"page": 2}, {}])
    for result in results.top_k(2):
        print(result.rank, result.doc_id, result.score, result.text, result.metadata)

Names and attributes are those of rerankers 0.10; scores are logits, as there, ranks begin with 1. What differs: no
documents give an empty result (there an IndexError), one document has a rank (there None), `score` scores the pair
(there, with a cross-encoder, each of the two texts for itself), documents that are handed in are not changed, results
and documents cannot be changed (there `result.score = 1.0` can be set), metadata may be given together with
`Document`s, and nothing is printed.

A model that was trained with first-stage scores gets them from the metadata: `first_stage={"bm25": "bm25_score"}` maps
each retriever to the key under which its score is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, final, overload

from rerank import reranker as engine
from rerank.errors import InputError
from rerank.given import checked_count, is_list
from rerank.integrations.first_stage import FirstStage
from rerank.integrations.loading import LazyReranker

if TYPE_CHECKING:
    from rerank.integrations.langchain import RerankCompressor

DocId: TypeAlias = str | int


@final
@dataclass(frozen=True)
class Document:
    """A text with its id and whatever else is known about it."""

    text: str
    doc_id: DocId | None = None
    metadata: dict[str, Any] = field(default_factory=dict, hash=False)
    document_type: str = "text"
    image_path: str | None = None
    """Always None here: these models read texts."""
    base64: str | None = None
    """Always None here, too."""

    @property
    def attributes(self) -> list[str]:
        """The names of what is known about a document."""
        return ["text", "base64", "image_path", "doc_id", "metadata", "document_type"]


@final
@dataclass(frozen=True)
class Result:
    """A document with its score and its place in the ranking.

    The attributes of the document, and the keys of its metadata, can be read from the result itself.
    """

    document: Document
    score: float
    rank: int
    """1 for the best."""

    def __getattr__(self, name: str) -> Any:
        # Unpickling asks for attributes before there is a document.
        document = self.__dict__.get("document")
        if document is not None and not name.startswith("__"):
            if hasattr(document, name):
                return getattr(document, name)
            if name in document.metadata:
                return document.metadata[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


@final
@dataclass(frozen=True)
class RankedResults:
    """Results, best first."""

    results: list[Result]
    query: str
    has_scores: bool = True

    def __iter__(self) -> Iterator[Result]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    @overload
    def __getitem__(self, index: int) -> Result: ...
    @overload
    def __getitem__(self, index: slice) -> list[Result]: ...
    def __getitem__(self, index: int | slice) -> Result | list[Result]:
        return self.results[index]

    def results_count(self) -> int:
        """How many results there are."""
        return len(self.results)

    def top_k(self, k: int | None) -> list[Result]:
        """The `k` best results, best first; all where there are fewer, and for None."""
        return self.results[: k if k is None or k == 0 else checked_count(k, "k", ", or 0, or None for all")]

    def get_score_by_docid(self, doc_id: DocId) -> float | None:
        """The score of the best result with this id; None where there is none."""
        result = self.get_result_by_docid(doc_id)
        return None if result is None else result.score

    def get_result_by_docid(self, doc_id: DocId) -> Result | None:
        """The best result with this id; None where there is none."""
        return next((result for result in self.results if result.document.doc_id == doc_id), None)


@final
class Reranker:
    """Ranks as `rerankers.Reranker(...)` does.

    `model` is a folder, an id on the hub or a `rerank.Reranker`; `how` is what `rerank.Reranker.from_pretrained` takes
    (device, precision, max_length, ...); `dtype` is the package's name of the precision. `lang`, `model_type`,
    `verbose` and `batch_size` are taken and change nothing: the folder says what kind of model it holds, and batches
    are made by tokens. `first_stage` is that of the module.
    """

    def __init__(
        self,
        model_name: str | Path | engine.Reranker,
        lang: str = "en",
        model_type: str | None = None,
        verbose: int = 1,
        first_stage: Mapping[str, str] | None = None,
        dtype: Any = None,
        batch_size: int | None = None,
        **how: Any,
    ) -> None:
        if dtype is not None:
            how = {"precision": _precision(dtype), **how}
        self.first_stage = FirstStage(first_stage, "give first_stage={'NAME': 'METADATA KEY', ...}")
        self._ranker = LazyReranker(model_name, self.first_stage, **how)
        self.reranker = self._ranker.reranker()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.reranker!r})"

    def rank(
        self,
        query: str,
        docs: Any,
        doc_ids: Sequence[DocId] | None = None,
        metadata: Sequence[Mapping[str, Any]] | None = None,
        batch_size: int | None = None,
    ) -> RankedResults:
        """All documents, best first, in the order of `rerank.Reranker.rank`.

        `docs` is a text, a `Document` (ours or that of the package), or a list of either. Ids are the places in the
        list unless they are given. The engine makes batches of so many tokens, whatever `batch_size` says.
        """
        documents = _documents(docs, doc_ids, metadata)

        def column(key: str) -> list[Any]:
            return [document.metadata.get(key) for document in documents]

        hits = self._ranker.rank(query, [document.text for document in documents], column=column)
        results = [Result(documents[hit.index], hit.score, rank) for rank, hit in enumerate(hits, start=1)]
        return RankedResults(results, query)

    async def rank_async(
        self,
        query: str,
        docs: Any,
        doc_ids: Sequence[DocId] | None = None,
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> RankedResults:
        """`rank`, in the model's own thread."""
        return await self._ranker.in_turn(partial(self.rank, query, docs, doc_ids, metadata))

    def score(self, query: str, doc: str) -> float:
        """The logit of one document."""
        return self._ranker.predict([(query, doc)])[0]

    def as_langchain_compressor(self, k: int = 10) -> RerankCompressor:
        """A LangChain document compressor that keeps the `k` best documents, with their logits as relevance_score."""
        from rerank.integrations.langchain import RerankCompressor

        places = self.first_stage.places or None
        return RerankCompressor(model=self.reranker, top_n=k, scores="logit", first_stage=places)


def _precision(dtype: Any) -> str:
    """The name of a number format that the package knows by others."""
    name = str(dtype).removeprefix("torch.")
    return {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}.get(name, name)


def _documents(docs: Any, doc_ids: Any, metadata: Any) -> list[Document]:
    """The documents as ours, each with an id."""
    one = isinstance(docs, str) or hasattr(docs, "text")
    if not one and not is_list(docs):
        raise InputError(f"docs must be a text, a Document or a list of either, not {type(docs).__name__}")
    documents = [_document(doc, i) for i, doc in enumerate([docs] if one else docs)]
    ids = _as_many(doc_ids, "doc_ids", documents)
    if ids is None:
        ids = _own_ids(documents)
    known = _as_many(metadata, "metadata", documents)
    if known is None:
        known = [document.metadata for document in documents]
    stranger = next((i for i, about in enumerate(known) if not isinstance(about, Mapping)), None)
    if stranger is not None:
        raise InputError(f"metadata {stranger} must be a mapping, not {type(known[stranger]).__name__}")
    return [
        Document(document.text, doc_id, dict(about))
        for document, doc_id, about in zip(documents, ids, known, strict=True)
    ]


def _document(doc: Any, i: int) -> Document:
    """A text or anything that has a `text`, as our Document."""
    if isinstance(doc, str):
        return Document(str(doc))
    kind = getattr(doc, "document_type", "text")
    text = getattr(doc, "text", None)
    if kind != "text" or not isinstance(text, str):
        what = f"a Document of type {kind!r}" if kind != "text" else type(doc if text is None else text).__name__
        raise InputError(f"document {i} must be a text or a Document with a text, not {what}")
    return Document(text, getattr(doc, "doc_id", None), getattr(doc, "metadata", None) or {})


def _own_ids(documents: Sequence[Document]) -> list[DocId]:
    """The documents' own ids, or their places where none has an id."""
    ids = [document.doc_id for document in documents]
    found = [doc_id for doc_id in ids if doc_id is not None]
    if found and len(found) < len(ids):
        raise InputError(
            f"document {ids.index(None)} has no doc_id and others have one: give each its own, or none, or doc_ids"
        )
    return found or list(range(len(ids)))


def _as_many(values: Any, what: str, documents: Sequence[Document]) -> list[Any] | None:
    """The values as a list, one for each document; None where none were given."""
    if values is None:
        return None
    if not is_list(values):
        raise InputError(f"{what} must be a list with one entry for each document, not {type(values).__name__}")
    if len(values) != len(documents):
        raise InputError(f"{what} has {len(values)} entries for {len(documents)} documents; give one for each")
    return values.tolist() if hasattr(values, "tolist") else list(values)  # NumPy's numbers as plain ones
