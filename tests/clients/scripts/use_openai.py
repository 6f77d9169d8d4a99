"""OpenAI's SDK: it has no rerank, and posts to any path; `base_url` ends in /v1."""

import asyncio

import openai
from checks import Row, Way, check, require

RAISES = {
    401: openai.AuthenticationError,
    404: openai.NotFoundError,
    413: openai.APIStatusError,
    422: openai.UnprocessableEntityError,
    429: openai.RateLimitError,
    503: openai.InternalServerError,
    504: openai.InternalServerError,
}


def asked(server, query, documents, top_n):
    return {"model": server.model, "query": query, "documents": documents, "top_n": top_n, "return_documents": True}


def rows_of(answer):
    return [Row(row["index"], row["relevance_score"], row["document"]["text"]) for row in answer["results"]]


def client(server, query, documents, top_n=None):
    client = openai.OpenAI(api_key=server.key, base_url=f"{server.url}/v1")
    return rows_of(client.post("/rerank", body=asked(server, query, documents, top_n), cast_to=object))


def async_client(server, query, documents, top_n=None):
    async def ask():
        client = openai.AsyncOpenAI(api_key=server.key, base_url=f"{server.url}/v1")
        return await client.post("/rerank", body=asked(server, query, documents, top_n), cast_to=object)

    return rows_of(asyncio.run(ask()))


def listed(server):
    models = openai.OpenAI(api_key=server.key, base_url=f"{server.url}/v1").models.list()
    require([model.id for model in models] == ["tiny", "other"], f"{models}")


if __name__ == "__main__":
    check(Way(client, RAISES, gives_texts=True, more={"models": listed}), Way(async_client, RAISES, gives_texts=True))
