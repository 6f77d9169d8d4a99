"""Haystack's rankers: `api_base_url`, `base_url` or `url` is all that changes."""

import asyncio

import cohere
from checks import Row, Way, check
from cohere.core.api_error import ApiError
from haystack import Document
from haystack.utils import Secret
from haystack_integrations.components.rankers.cohere import CohereRanker
from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker
from haystack_integrations.components.rankers.jina import JinaRanker

COHERE_RAISES = {
    401: cohere.UnauthorizedError,
    404: cohere.NotFoundError,
    413: ApiError,
    422: cohere.UnprocessableEntityError,
    429: cohere.TooManyRequestsError,
    503: cohere.ServiceUnavailableError,
    504: cohere.GatewayTimeoutError,
}
OTHERS_RAISE = dict.fromkeys((401, 404, 413, 422, 429, 503, 504), RuntimeError)


def cohere_ranker(server, top_k):
    key = Secret.from_token(server.key)
    return CohereRanker(model=server.model, api_key=key, api_base_url=server.url, top_k=top_k)


def jina_ranker(server, top_k):
    key = Secret.from_token(server.key)
    return JinaRanker(model=server.model, api_key=key, base_url=f"{server.url}/v1/rerank", top_k=top_k)


def tei_ranker(server, top_k):
    return HuggingFaceTEIRanker(url=server.url, token=Secret.from_token(server.key), top_k=top_k)


def way_of(ranker_of, run, raises, **known):
    """The way of one ranker, through its `run` or through its `run_async`."""

    def rank(server, query, documents, top_n=None):
        ranker = ranker_of(server, top_n or max(1, len(documents)))
        given = [Document(id=str(i), content=text) for i, text in enumerate(documents)]
        return [Row(int(doc.id), doc.score, doc.content) for doc in run(ranker, query, given)["documents"]]

    rank.__name__ = ranker_of.__name__ + (", async" if run is asynchronous else "")
    return Way(rank, raises, gives_texts=True, **known)


def sync(ranker, query, documents):
    return ranker.run(query=query, documents=documents)


def asynchronous(ranker, query, documents):
    return asyncio.run(ranker.run_async(query=query, documents=documents))


if __name__ == "__main__":
    tei_raises = {status: error for status, error in OTHERS_RAISE.items() if status != 404}
    check(
        *(way_of(cohere_ranker, run, COHERE_RAISES) for run in (sync, asynchronous)),
        *(way_of(jina_ranker, run, OTHERS_RAISE) for run in (sync, asynchronous)),
        *(way_of(tei_ranker, run, tei_raises, names_model=False) for run in (sync, asynchronous)),
    )
