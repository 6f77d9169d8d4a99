"""BEIR folders (Thakur et al. 2021): `corpus.jsonl`, `queries.jsonl`, `qrels/{split}.tsv`, each also gzipped.

Unlike the loader of the `beir` package, a judgement file without a header keeps its first row, and a missing id, a
repeated id with another text, or a judged query without a text is an error.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from rerank.data.formats import identifier, json_lines, log, titled, unique_texts
from rerank.data.trec import read_qrels
from rerank.errors import DataError, InputError, NotFound, nearest
from rerank.types import Collection


def read_beir(folder: Path | str, split: str | None = None, qrels: Path | str | None = None) -> Collection:
    """The collection in `folder`: with a split only its judged queries, without one all queries and no judgements.

    `qrels` names another judgement file (a path inside the folder, or an absolute one), whose documents need not be in
    the corpus. With a split as well, the split says which queries and the file says which grades.
    Collections read from one folder share their documents: the corpus is read again only when the file changes.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise NotFound(f"{folder}: no such folder; a BEIR folder with corpus.jsonl and queries.jsonl is needed")
    documents = _texts(_file(folder, "corpus.jsonl"))
    queries = _texts(_file(folder, "queries.jsonl"))
    name = folder.resolve().name if split is None else f"{folder.resolve().name}#{split}"
    if split is None and qrels is None:
        return Collection(documents, queries, name=name)
    judged_in = folder / qrels if qrels is not None else _split_file(folder, str(split))
    grades = read_qrels(judged_in)
    if split is not None and qrels is not None:
        wanted = read_qrels(_split_file(folder, split))
        lacking = sum(query_id not in grades for query_id in wanted)
        if lacking:
            log.warning("%s: no judgement for %d of %d queries of split %r", judged_in, lacking, len(wanted), split)
        grades = {query_id: by_doc for query_id, by_doc in grades.items() if query_id in wanted}
    missing = [query_id for query_id in grades if query_id not in queries]
    if missing:
        problem = f"{len(missing)} judged queries have no text in queries.jsonl, such as {missing[:3]}"
        raise DataError.at(judged_in, None, f"{problem}; add the texts or remove the judgements")
    if qrels is None:
        _count_absent(grades, documents, judged_in)
    return Collection(documents, {q: text for q, text in queries.items() if q in grades}, grades, name)


def _file(folder: Path, name: str) -> Path:
    found = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
    if not found:
        here = sorted(path.name for path in folder.iterdir())[:10]
        raise NotFound(f"{folder}: neither {name} nor {name}.gz is here (here are: {', '.join(here) or 'no files'})")
    if len(found) == 2:
        raise InputError(f"{folder}: both {name} and {name}.gz are here; remove one of them")
    return found[0]


def _split_file(folder: Path, split: str) -> Path:
    files = {
        path.name.removesuffix(".gz").removesuffix(".tsv"): path
        for pattern in ("*.tsv.gz", "*.tsv")
        for path in (folder / "qrels").glob(pattern)
    }
    if not files:
        raise NotFound(
            f"{folder}: split {split!r} was asked for, and there is no qrels/*.tsv; name a file with `qrels`"
        )
    if split not in files:
        raise NotFound(f"{folder}: no split {split!r} in qrels/{nearest(split, files)}")
    return files[split]


def _texts(path: Path) -> dict[str, str]:
    stat = path.stat()
    return _texts_of(path.resolve(), stat.st_mtime_ns, stat.st_size)


# Time and size only tell the versions of a file apart. Four files: the corpora and queries of two folders.
@lru_cache(maxsize=4)
def _texts_of(path: Path, mtime_ns: int, size: int) -> dict[str, str]:
    rows = (
        (line, identifier(record, ("_id",), path, line), titled(record, ("text",), path, line))
        for line, record in json_lines(path)
    )
    return unique_texts(rows, path)


def _count_absent(grades: dict[str, dict[str, int]], documents: dict[str, str], path: Path) -> None:
    absent = sum(doc_id not in documents for by_doc in grades.values() for doc_id in by_doc)
    if absent:
        log.warning("%s: %d judged documents are not in the corpus; they count in the ideal ranking", path, absent)
