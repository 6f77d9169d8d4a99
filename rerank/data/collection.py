"""Collections by name or from Python objects, their splits, and the join of a run with its texts.

A source is a text or a mapping:

    PATH  PATH#SPLIT                       a BEIR folder
    ir_datasets:ID                         the ir_datasets catalogue
    code  code#SPLIT  code:PATH#SPLIT      functions and their docstrings
    rankllm:PATH                           the texts of RankLLM requests
    {beir, split?, qrels?}                 a BEIR folder, perhaps with another judgement file
    {documents, queries, qrels?}           files of texts and judgements
"""

from __future__ import annotations

import hashlib
import math
import numbers
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rerank.data.beir import read_beir
from rerank.data.code_search import read_code
from rerank.data.formats import is_unicode, log, read_rankllm, read_texts
from rerank.data.ir_datasets import read_ir_dataset
from rerank.data.trec import read_qrels
from rerank.errors import InputError, Mismatch, NotFound, nearest
from rerank.types import CandidateList, Collection, Qrels, Run

_KEYS = ("beir", "split", "documents", "queries", "qrels")


def load_collection(source: str | Mapping[str, Any], base: Path | None = None) -> Collection:
    """The collection that `source` names; relative paths start at `base` (default: the working directory)."""
    base = Path.cwd() if base is None else Path(base)
    if isinstance(source, Mapping):
        return _from_mapping(source, base)
    if not isinstance(source, str) or not source.strip():
        raise InputError(
            f"a collection is named by a text or a mapping, not {source!r:.60}; see rerank.data.collection"
        )
    # A folder whose name has a `:` or a `#` in it is that folder.
    if (base / source).is_dir() and source != "code":
        return read_beir(base / source)
    kind, colon, rest = source.partition(":")
    if colon and kind == "ir_datasets":
        return read_ir_dataset(rest)
    if colon and kind == "rankllm":
        return read_rankllm(base / rest)[0]
    place, _, split = source.rpartition("#")
    place, split = (place, split) if place else (source, "")
    if place == "code":
        return read_code(split=split or None)
    if place.startswith("code:"):
        return read_code(base / place.removeprefix("code:"), split or None)
    if not (base / place).is_dir():
        allowed = "PATH[#SPLIT] of a BEIR folder, ir_datasets:ID, code[:PATH][#SPLIT], rankllm:PATH"
        raise NotFound(f"{source!r}: no folder {base / place}; a collection is named as {allowed}")
    return read_beir(base / place, split or None)


def _from_mapping(source: Mapping[str, Any], base: Path) -> Collection:
    for key, value in source.items():
        if key not in _KEYS:
            raise InputError(f"a collection has no key {key!r}{nearest(str(key), _KEYS)}")
        if value is not None and not isinstance(value, str | Path):
            raise InputError(f"key {key!r} of a collection is {value!r:.60}; a text is needed")
    given = {key: value for key, value in source.items() if value is not None}
    if "beir" in given:
        surplus = sorted({"documents", "queries"} & set(given))
        if surplus:
            raise InputError(f"a collection with the key 'beir' cannot also have {surplus}; the folder has those files")
        folder, qrels = base / given["beir"], given.get("qrels")
        if qrels is not None and not (folder / qrels).exists():
            qrels = (base / qrels).resolve()
        return read_beir(folder, given.get("split"), qrels)
    missing = [key for key in ("documents", "queries") if key not in given]
    if missing or "split" in given:
        wrong = f"lacks {missing}" if missing else "has a 'split', which belongs to 'beir' only"
        raise InputError(
            f"the collection {dict(source)!r} {wrong}; allowed: beir (split, qrels), or documents + queries"
        )
    texts, queries = read_texts(base / given["documents"]), read_texts(base / given["queries"])
    qrels = read_qrels(base / given["qrels"]) if "qrels" in given else None
    return collection_from(texts, queries, qrels, name=Path(given["documents"]).name.split(".")[0])


def collection_from(
    documents: Mapping[str, str], queries: Mapping[str, str], qrels: Qrels | None = None, name: str = "collection"
) -> Collection:
    """The collection of Python mappings, checked: ids and texts are strings, grades integers, judged queries known.

    A judged document need not be among `documents`: it counts in the ideal ranking.
    """
    texts, questions = _checked_texts(documents, "documents"), _checked_texts(queries, "queries")
    if qrels is not None and not isinstance(qrels, Mapping):
        raise InputError(f"qrels are {type(qrels).__name__}; a mapping query id -> doc id -> grade is needed")
    grades = {query_id: _checked_grades(query_id, by_doc) for query_id, by_doc in (qrels or {}).items()}
    unknown = [query_id for query_id in grades if query_id not in questions]
    if unknown:
        raise InputError(f"qrels judge {len(unknown)} queries that are not in queries, such as {unknown[:3]}; add them")
    return Collection(texts, questions, grades, name)


def _checked_texts(texts: Mapping[str, str], what: str) -> dict[str, str]:
    if not isinstance(texts, Mapping):
        raise InputError(f"{what} are {type(texts).__name__}; a mapping id -> text is needed")
    for key, text in texts.items():
        _check_id(key, what)
        if not isinstance(text, str) or not is_unicode(text):
            fault = "half of a surrogate pair" if isinstance(text, str) else type(text).__name__
            raise InputError(f"{what}[{key!r}] is {text!r:.60} ({fault}); Unicode text is needed, '' for an empty one")
    return dict(texts)


def _checked_grades(query_id: object, by_doc: Mapping[str, int]) -> dict[str, int]:
    _check_id(query_id, "qrels")
    if not isinstance(by_doc, Mapping):
        raise InputError(f"qrels[{query_id!r}] is {by_doc!r:.60}; a mapping doc id -> grade is needed")
    for doc_id, grade in by_doc.items():
        _check_id(doc_id, f"qrels[{query_id!r}]")
        if not isinstance(grade, numbers.Integral) or isinstance(grade, bool):
            raise InputError(f"qrels[{query_id!r}][{doc_id!r}] is {grade!r:.60}; a grade is an integer")
    return {doc_id: int(grade) for doc_id, grade in by_doc.items()}


def _check_id(key: object, what: str) -> None:
    if not isinstance(key, str) or not key.strip() or not is_unicode(key):
        raise InputError(f"{what} has the id {key!r:.60}; an id is a string that is not empty (write '7', not 7)")


def fingerprint(collection: Collection) -> str:
    """16 hex digits that tell collections apart by their ids, texts and grades, whatever their order and names."""
    judged = ((f"{q}\0{d}", str(grade)) for q, by_doc in collection.qrels.items() for d, grade in by_doc.items())
    whole = hashlib.sha256()
    for part in (collection.documents.items(), collection.queries.items(), judged):
        # A sum of digests does not depend on the order: sorting millions of ids of a corpus on disk would need them
        # all in memory and then each text by random access.
        total = sum(int.from_bytes(_digest(key, text), "big") for key, text in part)
        whole.update((total % 2**256).to_bytes(32, "big"))
    return whole.hexdigest()[:16]


def _digest(key: str, text: str) -> bytes:
    name = key.encode("utf-8", "surrogatepass")
    return hashlib.sha256(len(name).to_bytes(8, "big") + name + text.encode("utf-8", "surrogatepass")).digest()


def hold_out(collection: Collection, share: float, seed: int = 0) -> tuple[Collection, Collection]:
    """(the rest, about `share` of the queries), by the sha256 of seed and query id; neither is empty.

    A query stays on its side when other queries come or go, and a larger share holds out the same queries and more.
    """
    if isinstance(share, bool) or not isinstance(share, numbers.Real) or not 0 < share < 1:
        raise InputError(f"share is {share!r}; allowed is a number between 0 and 1, such as 0.1")
    places = {query_id: _place(seed, query_id) for query_id in collection.queries}
    if len(places) < 2:
        raise InputError(f"collection {collection.name!r} has {len(places)} queries; holding out needs at least 2")
    ordered = sorted(places, key=lambda query_id: (places[query_id], query_id))
    n_held = min(max(sum(place < share for place in places.values()), 1), len(places) - 1)
    rest = collection.select(ordered[n_held:], f"{collection.name} (rest)")
    return rest, collection.select(ordered[:n_held], f"{collection.name} (held out)")


def _place(seed: int, query_id: str) -> float:
    digest = hashlib.sha256(f"{seed}:{query_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def check_disjoint(train: Collection, test: Collection) -> None:
    """Nothing, when no query id is in both collections; the same text under two ids is counted in a warning."""
    shared = sorted(train.queries.keys() & test.queries.keys())
    if shared:
        raise InputError(
            f"{len(shared)} queries are in both {train.name!r} and {test.name!r}, such as {shared[:3]}; "
            "take them out of one, or give the ids of one a prefix when they only look alike"
        )
    seen = {" ".join(text.casefold().split()) for text in train.queries.values()}
    same = sum(" ".join(text.casefold().split()) in seen for text in test.queries.values())
    if same:
        log.warning("%d queries of %r have the text of a query of %r under another id", same, test.name, train.name)


def candidate_lists(
    collection: Collection, run: Run, features: Mapping[str, Run] | None = None, depth: int | None = None
) -> list[CandidateList]:
    """One list for each query that run and collection share, in the run's order, with its first `depth` documents.

    `features` names other runs whose scores of the candidates come along. `labels` is None where the query has no
    judgements. Queries without candidates, and those that the collection does not have, are left out and counted.
    """
    if depth is not None and (isinstance(depth, bool) or not isinstance(depth, int) or depth < 1):
        raise InputError(f"depth is {depth!r}; allowed is a whole number from 1, or None for all candidates")
    wanted = shared_queries(collection, run)
    texts = _candidate_texts(collection, run, wanted, depth)
    scores = {name: other.rankings for name, other in (features or {}).items()}
    lists = []
    for query_id in wanted:
        doc_ids = run.doc_ids(query_id)[:depth]
        found = {name: dict(rankings.get(query_id, ())) for name, rankings in scores.items()}
        grades = collection.qrels.get(query_id)
        lists.append(
            CandidateList(
                query_id=query_id,
                query=collection.queries[query_id],
                doc_ids=doc_ids,
                texts=tuple(texts[doc_id] for doc_id in doc_ids),
                features={name: tuple(by_doc.get(d, math.nan) for d in doc_ids) for name, by_doc in found.items()},
                labels=tuple(grades.get(d, 0) for d in doc_ids) if grades else None,
                pool=tuple(grades.values()) if grades else (),
            )
        )
    return lists


def shared_queries(collection: Collection, run: Run) -> list[str]:
    """The ids of queries with candidates that both have, in the run's order; those of one alone are counted aloud."""
    shared = [query_id for query_id, ranking in run.rankings.items() if ranking and query_id in collection.queries]
    if collection.queries and not shared:
        ours, theirs = list(collection.queries)[:3], list(run.rankings)[:3]
        problem = f"run {run.name!r} ranks no query of collection {collection.name!r}"
        raise Mismatch(f"{problem} (query ids {theirs} and {ours}); give the run of these queries")
    without, unknown = len(collection.queries) - len(shared), sum(q not in collection.queries for q in run.rankings)
    told = []
    if without:
        told.append(f"{without} of {len(collection.queries)} queries of {collection.name!r} have no candidates in it")
    if unknown:
        told.append(f"{unknown} queries of the run are not in {collection.name!r}")
    if told:
        log.warning("run %r: %s; left out", run.name, ", and ".join(told))
    return shared


def _candidate_texts(collection: Collection, run: Run, wanted: list[str], depth: int | None) -> dict[str, str]:
    """doc id -> text of all candidates, each fetched once; an error that counts those that the corpus lacks."""
    texts: dict[str, str] = {}
    absent: dict[str, str] = {}
    for query_id in wanted:
        for doc_id in run.doc_ids(query_id)[:depth]:
            if doc_id in texts or doc_id in absent:
                continue
            try:
                texts[doc_id] = collection.documents[doc_id]
            except KeyError:
                absent[doc_id] = query_id
    if absent:
        doc_id, query_id = next(iter(absent.items()))
        raise Mismatch(
            f"run {run.name!r}, query {query_id!r}: document {doc_id!r} is not in collection {collection.name!r} "
            f"({len(absent)} documents in all); give the collection that the run was made on"
        )
    return texts
