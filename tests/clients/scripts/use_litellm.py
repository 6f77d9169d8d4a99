"""litellm: the provider before the model's name decides how it asks; `api_base` says whom."""

import asyncio

import litellm
from checks import Row, Way, check

litellm.suppress_debug_info = True

RAISES = {
    401: litellm.AuthenticationError,
    404: litellm.NotFoundError,
    413: (litellm.BadRequestError, litellm.APIError),
    422: (litellm.BadRequestError, litellm.APIError),
    429: litellm.RateLimitError,
    503: litellm.ServiceUnavailableError,
    504: (litellm.Timeout, litellm.APIError),
}


def way_of(provider, prefix="", raises=RAISES, **known):
    """The ways, at once and async, of one provider."""

    def asked(server, query, documents, top_n):
        return {
            "model": f"{provider}/{server.model}",
            "api_base": server.url + prefix,
            "api_key": server.key,
            "query": query,
            "documents": documents,
            "top_n": top_n,
            "return_documents": True,  # the default of rerank, not of arerank
        }

    def rows_of(answer):
        rows = answer.results
        return [Row(row["index"], row["relevance_score"], row.get("document", {}).get("text")) for row in rows]

    def sync(server, query, documents, top_n=None):
        return rows_of(litellm.rerank(**asked(server, query, documents, top_n)))

    def asynchronous(server, query, documents, top_n=None):
        return rows_of(asyncio.run(litellm.arerank(**asked(server, query, documents, top_n))))

    sync.__name__, asynchronous.__name__ = provider, f"{provider}, async"
    return [Way(rank, raises, gives_texts=True, **known) for rank in (sync, asynchronous)]


if __name__ == "__main__":
    nameless = {status: error for status, error in RAISES.items() if status != 404}
    check(
        *way_of("cohere"),
        *way_of("jina_ai"),
        *way_of("hosted_vllm"),
        *way_of("infinity", "/infinity"),
        *way_of("voyage", "/voyage"),
        # It names TEI no model, and asks it not to cut a text that is too long: that is refused then.
        *way_of("huggingface", raises=nameless, names_model=False, long=litellm.APIError),
    )
