"""RankLLM requests on their way to results: the requests' own records, with their candidates in a new order.

    requests = Requests(path)
    requests.write(reranked, out)      # `reranked` orders the candidates of `requests.run`

All that a request holds comes back as it was (titles, urls, numbers as ids, fields that nobody here knows) but for the
order of its candidates and their scores. Files made by hand often number the candidates of each request anew; an id
that stands for another text than in an earlier request has another id in `collection` and `run`, not in the results.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import final

from rerank.data.formats import Request, is_unicode, log, read_requests, write_records
from rerank.errors import DataError
from rerank.types import Collection, Run


@final
class Requests:
    """The requests of a file: `collection` and `run` for whoever ranks them, and `write` for the results."""

    def __init__(self, path: Path | str) -> None:
        self._requests = read_requests(path)
        _check_written(self._requests, path)
        documents: dict[str, str] = {}
        self._ids = [_own_ids(one, number, documents) for number, one in enumerate(self._requests, start=1)]
        empty = [f"request {i} (query {r.query_id!r})" for i, r in enumerate(self._requests, start=1) if not r.ranking]
        if len(empty) == len(self._requests):
            raise DataError.at(path, None, f"{empty[0]} has no candidates, nor has any other: there is nothing to rank")
        if empty:
            log.warning("%s: %d requests have no candidates, first %s; they come back so", path, len(empty), empty[0])
        name = Path(path).name.split(".")[0]
        ranked = [(one, ids) for one, ids in zip(self._requests, self._ids, strict=True) if one.ranking]
        self.collection = Collection(documents, {one.query_id: one.query for one, _ in ranked}, name=name)
        self.run = Run({one.query_id: tuple((ids[d], s) for d, s in one.ranking) for one, ids in ranked}, name)

    def write(self, run: Run, path: Path) -> None:
        """Write the requests in their order, the candidates of each as `run` orders and scores them."""
        write_records([_result(one, ids, run) for one, ids in zip(self._requests, self._ids, strict=True)], path)


def _check_written(requests: list[Request], path: Path | str) -> None:
    """Nothing, when all records can be written again; told before hours of ranking."""
    for number, one in enumerate(requests, start=1):
        try:
            json.dumps(one.record, allow_nan=False)
        except ValueError:
            problem = f"request {number} (query {one.query_id!r}) holds a number that no float can be, such as 1e999"
            raise DataError.at(path, one.line, problem) from None


def _own_ids(request: Request, number: int, documents: dict[str, str]) -> dict[str, str]:
    """Doc id -> id in `documents`, to which the texts are added: the same, unless it is there with another text."""
    ids: dict[str, str] = {}
    taken: set[str] = set()
    for doc_id, text in request.texts.items():
        own = doc_id
        while own in taken or documents.setdefault(own, text) != text:
            own = f"{own} of request {number}"
        ids[doc_id] = own
        taken.add(own)
    return ids


def _result(request: Request, ids: dict[str, str], run: Run) -> str:
    """The JSON of a request whose candidates are those of `run`, in its order, with its scores."""
    given = {ids[doc_id]: one for doc_id, one in zip(request.texts, request.record["candidates"], strict=True)}
    ranking = run.rankings.get(request.query_id, ())
    record = {**request.record, "candidates": [{**given[own], "score": score} for own, score in ranking]}
    text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    return text if is_unicode(text) else json.dumps(record, allow_nan=False)
