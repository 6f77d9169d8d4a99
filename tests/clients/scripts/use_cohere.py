"""Cohere's SDK: `base_url` is all that changes."""

import asyncio

import cohere
from checks import Row, Way, check
from cohere.core.api_error import ApiError

RAISES = {
    401: cohere.UnauthorizedError,
    404: cohere.NotFoundError,
    413: ApiError,
    422: cohere.UnprocessableEntityError,
    429: cohere.TooManyRequestsError,
    503: cohere.ServiceUnavailableError,
    504: cohere.GatewayTimeoutError,
}


def client_v2(server, query, documents, top_n=None):
    client = cohere.ClientV2(api_key=server.key, base_url=server.url)
    answer = client.rerank(model=server.model, query=query, documents=documents, top_n=top_n)
    return [Row(row.index, row.relevance_score) for row in answer.results]


def async_client_v2(server, query, documents, top_n=None):
    async def ask():
        client = cohere.AsyncClientV2(api_key=server.key, base_url=server.url)
        return await client.rerank(model=server.model, query=query, documents=documents, top_n=top_n)

    return [Row(row.index, row.relevance_score) for row in asyncio.run(ask()).results]


def client_v1(server, query, documents, top_n=None):
    client = cohere.Client(api_key=server.key, base_url=server.url)
    answer = client.rerank(model=server.model, query=query, documents=documents, top_n=top_n, return_documents=True)
    return [Row(row.index, row.relevance_score, row.document.text) for row in answer.results]


def client_v1_with_objects(server, query, documents, top_n=None):
    client = cohere.Client(api_key=server.key, base_url=server.url)
    objects = [{"text": text, "title": "not read"} for text in documents]
    answer = client.rerank(model=server.model, query=query, documents=objects, top_n=top_n)
    return [Row(row.index, row.relevance_score) for row in answer.results]


if __name__ == "__main__":
    check(
        Way(client_v2, RAISES),
        Way(async_client_v2, RAISES),
        Way(client_v1, RAISES, gives_texts=True),
        Way(client_v1_with_objects, RAISES),
    )
