"""The package rerankers: APIRanker with `url`. It looks at no status: every refusal is a KeyError or a TypeError."""

from checks import Row, Way, check
from rerankers.models.api_rankers import APIRanker

STATUSES = (401, 404, 413, 422, 429, 503, 504)


def way_of(provider, path, raised):
    def rank(server, query, documents, top_n=None):
        ranker = APIRanker(server.model, server.key, provider, url=server.url + path)
        found = ranker.rank(query, documents, doc_ids=list(range(len(documents))))
        results = found.results if top_n is None else found.top_k(top_n)
        return [Row(result.doc_id, result.score, result.text) for result in results]

    rank.__name__ = provider
    return Way(rank, dict.fromkeys(STATUSES, raised), tells=(), empty=IndexError, gives_texts=True)


if __name__ == "__main__":
    check(
        way_of("cohere", "/v1/rerank", KeyError),
        way_of("jina", "/v1/rerank", KeyError),
        way_of("voyage", "/voyage/v1/rerank", KeyError),
        way_of("text-embeddings-inference", "/rerank", TypeError),
    )
