"""Plain files in and out: numbered lines, JSON records, texts, RankLLM requests.

Everything that reads a file in `rerank.data` reads it through `numbered_lines`, so that compression, byte order marks,
line ends and encodings are treated in one place, and every complaint names its `path:line`.

RankLLM requests (Pradeep et al. 2023, https://github.com/castorini/rank_llm), as a JSON array or one a line:

    {"query": {"text", "qid"}, "candidates": [{"docid", "score", "doc": {"title", "contents", ...}}]}
"""

from __future__ import annotations

import errno
import gzip
import json
import logging
import math
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn, cast

from rerank.errors import DataError, InputError, Mismatch, NotFound, RerankError
from rerank.types import Collection, Run

log = logging.getLogger("rerank.data")

ID_FIELDS = ("_id", "id", "docid", "doc_id", "qid", "query_id")
TEXT_FIELDS = ("text", "contents", "body", "passage", "segment", "content", "query")
_TSV_HEADERS = {*ID_FIELDS, "doc-id", "query-id", "corpus-id", "pid"}


def numbered_lines(path: Path | str) -> Iterator[tuple[int, str]]:
    """(line number from 1, text without its line end) of each line that is not blank, from plain or gzipped UTF-8.

    Gzip is told by its first two bytes, not by the name; several gzip members in one file are read as one text.
    """
    number = 0
    try:
        with _opened(path) as stream:
            # Only \n ends a line: str.splitlines would also cut at U+2028 or \f inside a text.
            for number, line in enumerate(stream, start=1):
                content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                text = content.rstrip(b"\r\n").decode("utf-8")
                if text and not text.isspace():
                    yield number, text
    except UnicodeDecodeError as error:
        raise DataError.at(path, number, f"byte {error.start} is not UTF-8; convert the file to UTF-8") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        problem = f"the gzip data are cut short or damaged ({error}); fetch the file again"
        raise DataError.at(path, number + 1, problem) from None


def _opened(path: Path | str) -> BinaryIO:
    try:
        with open(path, "rb") as start:
            zipped = start.read(2) == b"\x1f\x8b"
        return cast(BinaryIO, gzip.open(path, "rb")) if zipped else open(path, "rb")
    except FileNotFoundError:
        raise NotFound(f"{path}: no such file; relative paths start at {Path.cwd()}") from None
    except IsADirectoryError:
        raise InputError(f"{path}: this is a folder; give a file") from None


def write_lines(lines: Iterable[str], path: Path | str) -> None:
    """Nothing; the file at `path` holds all `lines` or, if anything fails, what it held before. `.gz` is compressed."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(lines, path)
    except RerankError:
        raise  # of the lines, not of the file; NotFound is an OSError too
    except OSError as error:
        problem = "it is a folder" if path.is_dir() else error.strerror or str(error)
        raise InputError(f"{path} cannot be written: {problem}; {way_out(error, 'a file in a folder')}") from error


def way_out(error: OSError, what: str) -> str:
    """What to do where something could not be written: `what` ("a folder") is what to give instead."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "there is no room for it: make some, then run the same command again, or write to another disk"
    return f"give {what} that you may write to"


def _write_whole(lines: Iterable[str], path: Path) -> None:
    """Nothing; writes a draft and puts it in the place of `path`; a draft that fails is removed."""
    # In the same folder, because os.replace is atomic only within one file system.
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as raw:
            if path.suffix == ".gz":
                with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as packed:
                    packed.writelines(f"{line}\n".encode() for line in lines)
            else:
                raw.writelines(f"{line}\n".encode() for line in lines)
            raw.flush()
            os.fsync(raw.fileno())
        # mkstemp makes files that only their owner may read; a result is an ordinary file.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def parsed(text: str) -> Any:
    """The value of a JSON text; ValueError for what JSON forbids and Python lets through: NaN and repeated keys."""
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unrepeated)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError(f"a key is repeated among {[key for key, _ in pairs]}")
    return record


def json_lines(path: Path | str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, JSON object) of each line."""
    for number, line in numbered_lines(path):
        try:
            record = parsed(line)
        except ValueError as error:
            raise DataError.at(path, number, f"not one JSON object: {error}; a line may be cut short") from None
        if not isinstance(record, dict):
            raise DataError.at(path, number, f"a JSON object is needed, not {type(record).__name__}")
        yield number, record


def string(value: object, path: Path | str, line: int | None, field: str) -> str:
    """`value`, when it is a string that can be written as UTF-8; else an error that names the field."""
    if not isinstance(value, str):
        raise DataError.at(path, line, f"field {field!r} is {value!r:.60}; a string is needed")
    if not is_unicode(value):
        raise DataError.at(path, line, f"field {field!r} holds half of a surrogate pair; repair the text")
    return value


def is_unicode(text: str) -> bool:
    """Whether `text` is free of lone surrogates, which neither tokenizers nor UTF-8 files take."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def identifier(record: Mapping[str, Any], fields: tuple[str, ...], path: Path | str, line: int | None) -> str:
    """The id of a record: the first of `fields` that it has."""
    name = next((field for field in fields if field in record), None)
    if name is None:
        known = " | ".join(fields)
        raise DataError.at(path, line, f"no field {known!r} among {sorted(record)}; each record needs an id")
    value = record[name]
    if isinstance(value, int) and not isinstance(value, bool):
        problem = f"field {name!r} is the number {value}; ids are strings: write {json.dumps(str(value))}"
        raise DataError.at(path, line, problem)
    if not string(value, path, line, name).strip():
        raise DataError.at(path, line, f"field {name!r} is empty; each record needs an id")
    return str(value)


def titled(record: Mapping[str, Any], fields: tuple[str, ...], path: Path | str, line: int | None) -> str:
    """`title + " " + text`, stripped, where text is the first of `fields` that the record has; no title is no title."""
    name = next((field for field in fields if field in record), None)
    if name is None:
        raise DataError.at(path, line, f"no field {' | '.join(fields)!r} among {sorted(record)}")
    title = "" if record.get("title") is None else string(record["title"], path, line, "title")
    return f"{title} {string(record[name], path, line, name)}".strip()


def read_texts(path: Path | str) -> dict[str, str]:
    """id -> text of a JSONL file (an id field, a text field, perhaps a title) or of a TSV file of two columns."""
    first = next(numbered_lines(path), None)
    if first is None:
        raise DataError.at(path, None, "the file is empty; one record a line is needed")
    if first[1].lstrip().startswith("{"):
        rows = (
            (line, identifier(record, ID_FIELDS, path, line), titled(record, TEXT_FIELDS, path, line))
            for line, record in json_lines(path)
        )
        return unique_texts(rows, path)
    return unique_texts(_tsv_texts(path, first[0]), path)


def _tsv_texts(path: Path | str, first: int) -> Iterator[tuple[int, str, str]]:
    for number, line in numbered_lines(path):
        columns = line.split("\t")
        if len(columns) != 2:
            problem = f"{len(columns)} columns; allowed are two, `id TAB text`, or one JSON object a line"
            raise DataError.at(path, number, problem)
        key, text = columns[0].strip(), columns[1].strip()
        if number == first and key.lower() in _TSV_HEADERS and text.lower() in TEXT_FIELDS:
            continue
        if not key:
            raise DataError.at(path, number, "column 1 (id) is empty; each record needs an id")
        yield number, key, text


def unique_texts(rows: Iterable[tuple[int | None, str, str]], path: Path | str) -> dict[str, str]:
    """id -> text of (line, id, text) rows; the same id with another text is an error, a plain repeat is counted."""
    texts: dict[str, str] = {}
    repeats = 0
    for line, key, text in rows:
        if key not in texts:
            texts[key] = text
        elif texts[key] == text:
            repeats += 1
        else:
            raise DataError.at(path, line, f"id {key!r} was given before with another text; ids must be unique")
    if not texts:
        raise DataError.at(path, None, "the file holds no record")
    empty = sum(not text for text in texts.values())
    if repeats or empty:
        log.warning("%s: %d repeated records (kept once), %d empty texts (kept)", path, repeats, empty)
    return texts


class Request(NamedTuple):
    """One RankLLM request."""

    record: dict[str, Any]
    """As it stands in the file."""
    line: int | None
    """Where, in JSONL."""
    query_id: str
    query: str
    texts: dict[str, str]
    """Doc id -> text, in the order of `record["candidates"]`."""
    ranking: tuple[tuple[str, float], ...]
    """In canonical order: by score, ties as in the file."""


def read_requests(path: Path | str) -> list[Request]:
    """The RankLLM requests of a file (JSON array, one object, or JSONL).

    Integer ids become strings, because RankLLM itself writes them so. A request without scores keeps the order of the
    file, with scores 0, -1, -2 ...
    """
    found: dict[str, Request] = {}
    moved = 0
    for line, where, record in _requests(path):
        query_id, text = _query(record, path, line, where)
        if query_id in found:
            raise DataError.at(path, line, f"{where}query {query_id!r} was given before; one request a query")
        candidates = list(_candidates(record, path, line, where))
        scored = _scored([(doc_id, score) for doc_id, _, score in candidates], path, line, f"{where}query {query_id!r}")
        ranking = tuple(sorted(scored, key=lambda pair: -pair[1]))
        moved += ranking != tuple(scored)
        texts = {doc_id: doc for doc_id, doc, _ in candidates}
        found[query_id] = Request(record, line, query_id, text, texts, ranking)
    if not found:
        raise DataError.at(path, None, "the file holds no request")
    if moved:
        log.warning("%s: the candidates of %d queries were not in the order of their scores; sorted", path, moved)
    return [*found.values()]


def read_rankllm(path: Path | str) -> tuple[Collection, Run]:
    """The texts and the ranking of RankLLM requests, as `read_requests` reads them; one id has one text in all."""
    requests = read_requests(path)
    documents = [(one.line, doc_id, text) for one in requests for doc_id, text in one.texts.items()]
    queries = {one.query_id: one.query for one in requests}
    rankings = {one.query_id: one.ranking for one in requests}
    name = Path(path).name.split(".")[0]
    return Collection(unique_texts(documents, path) if documents else {}, queries, name=name), Run(rankings, name)


def _requests(path: Path | str) -> Iterator[tuple[int | None, str, dict[str, Any]]]:
    """(line, place for messages, request): the line is known in JSONL only."""
    lines = list(numbered_lines(path))
    if not lines:
        raise DataError.at(path, None, "the file is empty; a RankLLM request is needed")
    is_array, first = lines[0][1].lstrip().startswith("["), lines[0][1].strip()
    if not is_array and first != "{" and (len(lines) == 1 or first.endswith("}")):
        yield from ((number, "", record) for number, record in json_lines(path))
        return
    try:
        whole = parsed("\n".join(text for _, text in lines))
    except ValueError as error:
        # Numbers of the decoder count the lines that are not blank.
        line = lines[min(getattr(error, "lineno", len(lines)), len(lines)) - 1][0]
        raise DataError.at(path, line, f"not JSON: {error}; the file may be cut short") from None
    for number, record in enumerate(whole if is_array else [whole], start=1):
        if not isinstance(record, dict):
            raise DataError.at(path, None, f"request {number}: a JSON object is needed, not {type(record).__name__}")
        yield None, f"request {number}: ", record


def _query(record: Mapping[str, Any], path: Path | str, line: int | None, where: str) -> tuple[str, str]:
    query = record.get("query")
    if not isinstance(query, dict):
        raise DataError.at(path, line, f'{where}field \'query\' must be {{"text", "qid"}}, not {query!r:.60}')
    return _name(query, "qid", path, line, where), string(query.get("text"), path, line, f"{where}query.text")


def _candidates(
    record: Mapping[str, Any], path: Path | str, line: int | None, where: str
) -> Iterator[tuple[str, str, object]]:
    candidates = record.get("candidates")
    if not isinstance(candidates, list) or not all(isinstance(candidate, dict) for candidate in candidates):
        raise DataError.at(path, line, f"{where}field 'candidates' must be a list of objects")
    for candidate in candidates:
        doc = candidate.get("doc")
        doc = {"text": doc} if isinstance(doc, str) else doc
        if not isinstance(doc, dict):
            raise DataError.at(path, line, f"{where}field 'candidates.doc' must be an object with a text")
        yield _name(candidate, "docid", path, line, where), titled(doc, TEXT_FIELDS, path, line), candidate.get("score")


def _name(record: Mapping[str, Any], field: str, path: Path | str, line: int | None, where: str) -> str:
    value = record.get(field)
    name = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not string(name, path, line, f"{where}{field}").strip():
        raise DataError.at(path, line, f"{where}field {field!r} is empty; each record needs an id")
    return str(name)


def _scored(pairs: list[tuple[str, object]], path: Path | str, line: int | None, where: str) -> list[tuple[str, float]]:
    ids = [doc_id for doc_id, _ in pairs]
    if len(set(ids)) != len(ids):
        twice = next(doc_id for i, doc_id in enumerate(ids) if doc_id in ids[:i])
        raise DataError.at(path, line, f"{where}: field 'docid': {twice!r} is there twice; rank each document once")
    if all(score is None for _, score in pairs):
        return [(doc_id, -float(i)) for i, doc_id in enumerate(ids)]
    for doc_id, score in pairs:
        if not _is_finite(score):
            problem = (
                f"{where}: field 'score' of {doc_id!r} is {score!r:.60}; a finite number is needed, or none at all"
            )
            raise DataError.at(path, line, problem)
    return [(doc_id, float(cast(float, score))) for doc_id, score in pairs]


def _is_finite(score: object) -> bool:
    try:
        return isinstance(score, (int, float)) and not isinstance(score, bool) and math.isfinite(score)
    except OverflowError:  # an integer that no float holds
        return False


def write_rankllm(run: Run, collection: Collection, path: Path | str) -> None:
    """Nothing; writes one request a line, or one JSON array where the name ends in `.json` or `.json.gz`."""
    requests = []
    for query_id, ranking in run.rankings.items():
        missing = [doc_id for doc_id, _ in ranking if doc_id not in collection.documents]
        if query_id not in collection.queries or missing:
            what = f"documents {missing[:3]} ({len(missing)} in all)" if missing else "the query"
            raise Mismatch(
                f"query {query_id!r} of run {run.name!r}: collection {collection.name!r} has no text of {what}; "
                "give the collection that the run was made on"
            )
        candidates = [
            {"docid": doc_id, "score": score, "doc": {"contents": collection.documents[doc_id]}}
            for doc_id, score in ranking
        ]
        request = {"query": {"text": collection.queries[query_id], "qid": query_id}, "candidates": candidates}
        requests.append(json.dumps(request, ensure_ascii=False, allow_nan=False))
    if not requests:
        raise InputError(f"run {run.name!r} has no queries; there is nothing to write")
    write_records(requests, path)


def write_records(records: Sequence[str], path: Path | str) -> None:
    """Nothing; writes JSON texts, one a line, or as one array where the name ends in `.json` or `.json.gz`."""
    as_array = Path(path).name.removesuffix(".gz").endswith(".json")
    write_lines([f"[{','.join(records)}]"] if as_array else records, path)
