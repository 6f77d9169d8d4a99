"""Voyage's SDK: `base_url` ends in /voyage/v1."""

import asyncio

import voyageai
from checks import Row, Way, check
from voyageai import error

RAISES = {
    401: error.AuthenticationError,
    404: error.APIError,
    413: error.APIError,
    422: error.MalformedRequestError,
    429: error.RateLimitError,
    503: error.ServiceUnavailableError,
    504: error.ServiceUnavailableError,
}


def client(server, query, documents, top_n=None):
    voyage = voyageai.Client(api_key=server.key, base_url=f"{server.url}/voyage/v1")
    answer = voyage.rerank(query, documents, model=server.model, top_k=top_n)
    return [Row(row.index, row.relevance_score, row.document) for row in answer.results]


def async_client(server, query, documents, top_n=None):
    voyage = voyageai.AsyncClient(api_key=server.key, base_url=f"{server.url}/voyage/v1")
    answer = asyncio.run(voyage.rerank(query, documents, model=server.model, top_k=top_n))
    return [Row(row.index, row.relevance_score, row.document) for row in answer.results]


if __name__ == "__main__":
    check(Way(client, RAISES, gives_texts=True), Way(async_client, RAISES, gives_texts=True))
