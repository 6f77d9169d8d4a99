"""Infinity's client: the base url ends in /infinity. A 422 is an answer for it, everything else an exception."""

import asyncio

from checks import Row, Way, check, require
from infinity_client import AuthenticatedClient
from infinity_client.api.default import health, rerank
from infinity_client.errors import UnexpectedStatus
from infinity_client.models import HTTPValidationError, RerankInput

RAISES = {**dict.fromkeys((401, 404, 413, 429, 503, 504), UnexpectedStatus), 422: ValueError}


def client_of(server):
    return AuthenticatedClient(f"{server.url}/infinity", token=server.key, raise_on_unexpected_status=True)


def rows_of(answer):
    if isinstance(answer, HTTPValidationError):
        raise ValueError("; ".join(problem.msg for problem in answer.detail))
    return [Row(row.index, row.relevance_score, row.document) for row in answer.results]


def sync(server, query, documents, top_n=None):
    asked = RerankInput(query, documents, return_documents=True, model=server.model, top_n=top_n)
    return rows_of(rerank.sync(client=client_of(server), body=asked))


def asynchronous(server, query, documents, top_n=None):
    asked = RerankInput(query, documents, return_documents=True, model=server.model, top_n=top_n)
    return rows_of(asyncio.run(rerank.asyncio(client=client_of(server), body=asked)))


def without_a_model(server, query, documents, top_n=None):
    asked = RerankInput(query, documents, return_documents=True, top_n=top_n)
    return rows_of(rerank.sync(client=client_of(server), body=asked))


def healthy(server):
    require(health.sync_detailed(client=client_of(server)).status_code == 200, "not healthy")


if __name__ == "__main__":
    check(
        Way(sync, RAISES, gives_texts=True, more={"health": healthy}),
        Way(asynchronous, RAISES, gives_texts=True),
        Way(
            without_a_model,
            {status: error for status, error in RAISES.items() if status != 404},
            names_model=False,
            gives_texts=True,
        ),
    )
