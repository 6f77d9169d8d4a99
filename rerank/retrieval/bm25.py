"""Sparse retrieval: BM25 over stemmed words, by the engine bm25s.

    score(q, d) = sum over the words t of q of  idf(t) * tf(t, d) / (tf(t, d) + k1 * (1 - b + b * |d| / mean |d|))

Robertson and Zaragoza (2009); Kamphuis et al. (2020) for the variants; the engine is Lù (2024), "BM25S". k1 = 0.9 and
b = 0.4 are the usual values for passages. The score of a document depends on the query alone, never on what else was
retrieved: `retrieve` and `score` read the same numbers.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, final

import numpy as np

from rerank.errors import InputError, nearest
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
from rerank.types import Run

logger = logging.getLogger("rerank.retrieval.bm25")

METHODS = ("lucene", "robertson", "atire")
"""The variants in which a document without any word of the query has score 0 (BM25L and BM25+ give it more)."""

_BIGRAM_LANGUAGES = ("chinese", "japanese", "korean")
_WORD = re.compile(r"\w\w+")
_IDENTIFIER = re.compile(r"\w+")
_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_A-Za-z]+")
_CJK_RUN = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\U00020000-\U0003134f]+")


# ---------------------------------------------------------------------------------------------------------------- words
def tokenize(text: str, language: str = "english") -> list[str]:
    """The index terms of a text: lower-case words of two letters or more, without stop words, stemmed.

    `language` is a Snowball language, or "none" (words as they are), or "code" (English, with identifiers cut into
    their parts), or "chinese", "japanese", "korean" (pairs of neighbouring characters, as these write no spaces).

    >>> tokenize("The reranker sorts the candidates")
    ['rerank', 'sort', 'candid']
    >>> tokenize("def read_csv(HTTPServer, maxRows2): ...", language="code")
    ['def', 'read', 'csv', 'http', 'server', 'max', 'row']
    >>> tokenize("\u4fe1\u606f\u68c0\u7d22 BM25", language="chinese")
    ['bm25', '\u4fe1\u606f', '\u606f\u68c0', '\u68c0\u7d22']
    """
    stop, stem = _analysis(language)
    words: Iterable[str]
    if language == "code":
        parts = (part for name in _IDENTIFIER.findall(text) for part in _PART.findall(name))
        words = (part.lower() for part in parts if len(part) > 1)
    elif language in _BIGRAM_LANGUAGES:
        words = _WORD.findall(_CJK_RUN.sub(" ", text).lower()) + _bigrams(text)
    else:
        words = _WORD.findall(text.lower())
    kept = [word for word in words if word not in stop]
    return kept if stem is None else stem.stemWords(kept)


def _bigrams(text: str) -> list[str]:
    """Neighbouring characters of each run of ideographs, kana or hangul; a run of one character is itself a term."""
    runs = _CJK_RUN.findall(text)
    return [run[i : i + 2] for run in runs for i in range(max(len(run) - 1, 1))]


@cache
def _analysis(language: str) -> tuple[frozenset[str], Any]:
    """The stop words and the stemmer (or None) of a language."""
    import Stemmer
    from bm25s import stopwords

    if language == "none" or language in _BIGRAM_LANGUAGES:
        return frozenset(), None
    spoken = "english" if language == "code" else language
    if spoken not in Stemmer.algorithms():
        known = [*Stemmer.algorithms(), *_BIGRAM_LANGUAGES, "code", "none"]
        raise InputError(f"no tokenizer for the language {language!r}{nearest(language, known)}")
    # Languages without a list of their own (Arabic, for one) keep all words: a low idf does most of the same work.
    stop = getattr(stopwords, "STOPWORDS_" + ("EN" if spoken == "english" else spoken.upper()), ())
    return frozenset(stop), Stemmer.Stemmer(spoken)


# ---------------------------------------------------------------------------------------------------------------- BM25
@final
@dataclass(frozen=True)
class BM25Settings:
    """What decides the scores of a BM25 index besides its documents."""

    k1: float = 0.9
    """Saturation of the term frequency: 0 counts a word once, however often it occurs."""
    b: float = 0.4
    """Length normalisation, from 0 (none) to 1 (full)."""
    method: str = "lucene"
    """The variant, one of `METHODS`."""
    language: str = "english"
    """What `tokenize` does with documents and queries."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"method = {self.method!r}{nearest(str(self.method), METHODS)}")
        if not 0 <= self.k1 < float("inf") or not 0 <= self.b <= 1:
            raise InputError(f"k1 = {self.k1!r}, b = {self.b!r}: expected k1 >= 0 and b between 0 and 1")
        _analysis(self.language)


@final
class BM25:
    """A BM25 index of a corpus; `BM25.build(documents)` makes one."""

    def __init__(
        self, engine: Any, doc_ids: Sequence[str], settings: BM25Settings, documents: str, name: str = "bm25"
    ) -> None:
        self.name = name
        self.settings = settings
        self._engine = engine
        self._doc_ids = tuple(doc_ids)
        self._row = {d: i for i, d in enumerate(self._doc_ids)}
        self._documents = documents

    @classmethod
    def build(
        cls,
        documents: Mapping[str, str],
        k1: float = 0.9,
        b: float = 0.4,
        method: str = "lucene",
        language: str = "english",
        name: str = "bm25",
    ) -> BM25:
        """The index of `documents` (doc id -> text)."""
        import bm25s

        check_texts(documents, "documents")
        settings = BM25Settings(k1, b, method, language)
        vocabulary: dict[str, int] = {"": 0}  # the engine cannot do without; numbers in order of sight repeat exactly
        rows = [[vocabulary.setdefault(t, len(vocabulary)) for t in tokenize(d, language)] for d in documents.values()]
        if len(vocabulary) == 1:
            raise InputError(
                f"nothing to index: {len(documents)} documents without any word that language={language!r} keeps"
            )
        wordless = sum(not row for row in rows)
        if wordless:
            logger.warning("bm25: %d of %d documents have no word to index, no query finds them", wordless, len(rows))
        engine = bm25s.BM25(k1=k1, b=b, method=method)
        engine.index((rows, vocabulary), show_progress=False)
        return cls(engine, tuple(documents), settings, documents_hash(documents), name)

    def retrieve(self, queries: Mapping[str, str], depth: int) -> Run:
        """The `depth` best documents of each query; fewer where fewer documents hold a word of the query."""
        check_texts(queries, "queries")
        check_depth(depth)
        rankings = {}
        for query_id, query in queries.items():
            scores = self._scores(query)
            rows = np.flatnonzero(scores)
            rankings[query_id] = best(scores[rows], rows, self._doc_ids, depth)
        nothing = sum(not ranking for ranking in rankings.values())
        if nothing:
            logger.warning("%s: %d of %d queries found no document", self.name, nothing, len(rankings))
        return Run(rankings, self.name)

    def score(self, query: str, doc_ids: Sequence[str]) -> list[float]:
        """The score of each given document for the query, the number that `retrieve` gives; 0 without common words."""
        rows = rows_of(doc_ids, self._row, self.name)
        return [float(s) for s in self._scores(query)[rows]]

    def save(self, folder: Path | str) -> None:
        """Nothing; writes the index to `folder`, the manifest last."""
        folder = empty_folder(folder)
        self._engine.save(folder, show_progress=False)
        (folder / "doc_ids.json").write_text(json.dumps(self._doc_ids), encoding="utf-8")
        write_manifest(folder, "bm25", {**asdict(self.settings), "name": self.name}, self._documents)

    @classmethod
    def load(cls, folder: Path | str, documents: Mapping[str, str]) -> BM25:
        """The index that `save` left in `folder`; `Mismatch` when `documents` are not what it was built from."""
        import bm25s

        folder = Path(folder)
        settings = read_manifest(folder, "bm25", documents)
        name = settings.pop("name")
        engine = bm25s.BM25.load(folder, show_progress=False)
        doc_ids = json.loads((folder / "doc_ids.json").read_text(encoding="utf-8"))
        return cls(engine, doc_ids, BM25Settings(**settings), documents_hash(documents), name)

    def _scores(self, query: str) -> np.ndarray:
        """The score [n documents] of every document."""
        known = self._engine.vocab_dict
        tokens = [known[t] for t in tokenize(query, self.settings.language) if t in known]
        return np.asarray(self._engine.get_scores_from_ids(tokens))
