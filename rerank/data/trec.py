"""TREC runs and judgements, and the layouts that travel under the same name.

    run      qid Q0 docid rank score tag          trec_eval
             qid docid rank                       MS MARCO; the score becomes -rank
             {"query": ..., "candidates": ...}    RankLLM (`formats.read_rankllm`)
    qrels    qid 0 docid grade                    trec_eval
             query-id corpus-id score             BEIR, with or without this header

Columns are separated by tabs or spaces; `#` begins a comment line. trec_eval ignores the rank column; here it decides
ties, because it says what the author of the run meant.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from rerank.data.formats import is_unicode, log, numbered_lines, read_rankllm, write_lines
from rerank.errors import DataError, InputError
from rerank.ties import apart
from rerank.types import Qrels, Run

_HEADER_ENDS = {"score", "rel", "relevance", "grade", "label"}
_HEADER_STARTS = {"query-id", "query_id", "qid", "topic"}
_INTEGER = re.compile(r"[+-]?[0-9]+")
_LOWEST, _HIGHEST = -(2**31), 2**31 - 1
"""trec_eval and tensors of grades hold 32 bits."""


def read_run(path: Path | str, name: str | None = None) -> Run:
    """The run in canonical order: score descending, ties by the rank column, then by doc id.

    `name` defaults to the file's name without its endings. A file of JSON is read as RankLLM requests.
    """
    first = next(numbered_lines(path), None)
    if first is not None and first[1].lstrip().startswith(("{", "[")):
        found_run = read_rankllm(path)[1]
        return Run(found_run.rankings, name or found_run.name)
    found: dict[str, dict[str, tuple[float, int]]] = {}
    for number, row in _rows(path, (6, 3), "qid Q0 docid rank score tag` or `qid docid rank"):
        query_id, doc_id, rank_text = (row[0], row[2], row[3]) if len(row) == 6 else row
        rank = _integer(rank_text, path, number, "rank")
        score = _finite(row[4], path, number) if len(row) == 6 else -float(rank)
        by_doc = found.setdefault(query_id, {})
        if doc_id in by_doc:
            problem = f"field 'docid': {doc_id!r} is there twice for query {query_id!r}; rank each document once"
            raise DataError.at(path, number, problem)
        by_doc[doc_id] = (score, rank)
    if not found:
        raise DataError.at(path, None, "the file holds no ranked document")
    rankings = {
        query_id: tuple(
            (doc_id, score)
            for doc_id, (score, _) in sorted(by_doc.items(), key=lambda item: (-item[1][0], item[1][1], item[0]))
        )
        for query_id, by_doc in found.items()
    }
    run = Run(rankings, name or Path(path).name.removesuffix(".gz").rpartition(".")[0] or Path(path).name)
    ties = run.tie_rate()
    if ties:
        log.warning("%s: %.2f %% of neighbouring scores are equal; ordered by rank, then doc id", path, 100 * ties)
    return run


def _rows(path: Path | str, widths: tuple[int, ...], layout: str) -> Iterator[tuple[int, list[str]]]:
    """(line number, columns) of each record; all records of a file have the width of the first."""
    allowed: tuple[int, ...] = widths
    separator: str | None = None
    for number, line in numbered_lines(path):
        if line.startswith("#"):
            continue
        row = _columns(line, allowed, separator)
        if row is None:
            was = f", the lines before had {allowed[0]}" if allowed != widths else ""
            problem = f"{len(line.split())} columns{was}; allowed is `{layout}` (is the line cut short?)"
            raise DataError.at(path, number, problem)
        if isinstance(row, str):
            raise DataError.at(path, number, row)
        if allowed == widths and _is_header(row) and "\t" in line:
            separator = "\t"
        allowed = (len(row),)
        empty = next((i for i, column in enumerate(row, start=1) if not column), None)
        if empty:
            raise DataError.at(path, number, f"column {empty} is empty; allowed is `{layout}`")
        yield number, row


def _columns(line: str, widths: tuple[int, ...], separator: str | None) -> list[str] | str | None:
    """The columns; None when there are too many or too few, a sentence when the line can be read in two ways."""
    by_space = re.split(r"[ \t]+", line.strip(" \t"))
    by_tab = [column.strip() for column in line.split("\t")]
    if by_space == by_tab:
        return by_tab if len(by_tab) in widths else None
    if len(by_tab) not in widths:
        return by_space if len(by_space) in widths and separator is None else None
    if separator is None and len(by_space) in widths:
        return (
            f"{len(by_tab)} columns when cut at tabs, {len(by_space)} when cut at spaces too; "
            "use one separator in the whole file, or begin it with the header `query-id TAB corpus-id TAB score`"
        )
    return by_tab


def _is_header(row: Sequence[str]) -> bool:
    return row[0].lower() in _HEADER_STARTS and row[-1].lower() in _HEADER_ENDS


def _integer(text: str, path: Path | str, line: int, field: str) -> int:
    # int() would also take 1_000 and other scripts' digits, which no other tool reads.
    if not _INTEGER.fullmatch(text):
        raise DataError.at(path, line, f"field {field!r} is {text!r:.60}; an integer is needed")
    value = int(text) if len(text) < 100 else None  # Python refuses to read thousands of digits
    if value is None or not _LOWEST <= value <= _HIGHEST:
        raise DataError.at(path, line, f"field {field!r} is {text!r:.60}; allowed is {_LOWEST} to {_HIGHEST}")
    return value


def _finite(text: str, path: Path | str, line: int) -> float:
    try:
        score = math.nan if "_" in text else float(text)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise DataError.at(path, line, f"field 'score' is {text!r}; a finite number is needed")
    return score


def read_qrels(path: Path | str) -> dict[str, dict[str, int]]:
    """query id -> doc id -> grade, in the order of the file; negative grades are kept."""
    qrels: dict[str, dict[str, int]] = {}
    repeats = 0
    rows = _rows(path, (4, 3), "qid 0 docid grade` or `query-id corpus-id score")
    for i, (number, row) in enumerate(rows):
        if i == 0 and _is_header(row):
            continue
        query_id, doc_id = row[0], row[-2]
        grade = _integer(row[-1], path, number, "relevance")
        before = qrels.setdefault(query_id, {}).get(doc_id)
        if before is not None and before != grade:
            problem = f"field 'relevance': query {query_id!r}, document {doc_id!r} is {grade} here and {before} before"
            raise DataError.at(path, number, f"{problem}; keep one of the two")
        repeats += before is not None
        qrels[query_id][doc_id] = grade
    if not qrels:
        raise DataError.at(path, None, "the file holds no judgement")
    if repeats:
        log.warning("%s: %d judgements are there more than once, with the same grade; kept once", path, repeats)
    return qrels


def write_run(run: Run, path: Path | str) -> None:
    """Nothing; writes the run so that every tool sees its ranking: scores strictly decreasing in float32.

    A score that is already below its predecessor in float32 is written as it is; the others become the next float32
    below their predecessor, and are counted in the log.
    """
    lines: list[str] = []
    nudged = 0
    tag = re.sub(r"\s+", "_", run.name) or "run"
    _writable(tag, "run name")
    for query_id, ranking in run.rankings.items():
        _writable(query_id, "query id")
        if len({doc_id for doc_id, _ in ranking}) != len(ranking):
            raise InputError(f"query {query_id!r} of run {run.name!r} ranks a document twice; rank each once")
        scores = apart([score for _, score in ranking], f"query {query_id!r} of run {run.name!r}")
        nudged += sum(new != old for new, (_, old) in zip(scores, ranking, strict=True))
        for rank, ((doc_id, _), score) in enumerate(zip(ranking, scores, strict=True), start=1):
            lines.append(f"{query_id} Q0 {_writable(doc_id, 'doc id')} {rank} {score!r} {tag}")
    if not lines:
        raise InputError(f"run {run.name!r} ranks no document; there is nothing to write")
    empty = sum(not ranking for ranking in run.rankings.values())
    if nudged:
        log.info("%s: %d tied scores written a little lower", path, nudged)
    if empty:
        log.warning("%s: %d queries without documents are not in the file", path, empty)
    write_lines(lines, path)


def _writable(key: str, what: str) -> str:
    """`key`, when it is one column in the eyes of every tool: no white space, not empty, no comment."""
    if len(key.split()) != 1 or key.split()[0] != key or key.startswith("#") or not is_unicode(key):
        problem = f"{what} {key!r} cannot be a column of a TREC file"
        raise InputError(f"{problem}; allowed: one word of Unicode text that does not begin with '#'")
    return key


def write_qrels(qrels: Qrels, path: Path | str) -> None:
    """Nothing; writes TREC columns, or BEIR's three with their header where the name ends in `.tsv` or `.tsv.gz`."""
    beir = Path(path).name.removesuffix(".gz").endswith(".tsv")
    lines = ["query-id\tcorpus-id\tscore"] if beir else []
    for query_id, grades in qrels.items():
        _writable(query_id, "query id")
        for doc_id, grade in grades.items():
            _writable(doc_id, "doc id")
            lines.append(f"{query_id}\t{doc_id}\t{int(grade)}" if beir else f"{query_id} 0 {doc_id} {int(grade)}")
    if not any(qrels.values()):
        raise InputError("there is no judgement to write")
    empty = sum(not grades for grades in qrels.values())
    if empty:
        log.warning("%s: %d queries without a judgement are not in the file", path, empty)
    write_lines(lines, path)
