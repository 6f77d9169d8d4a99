"""LangChain's community package: InfinityRerank takes a client; JinaRerank's address is a constant of its module."""

from checks import Row, Way, check
from infinity_client import Client
from infinity_client.errors import UnexpectedStatus
from langchain_community.document_compressors import jina_rerank as jina
from langchain_community.document_compressors.infinity_rerank import InfinityRerank
from langchain_core.documents import Document

STATUSES = (401, 404, 413, 422, 429, 503, 504)


def compressed(compressor, query, documents):
    given = [Document(page_content=text, metadata={"index": i}) for i, text in enumerate(documents)]
    found = compressor.compress_documents(given, query)
    return [Row(doc.metadata["index"], doc.metadata["relevance_score"], doc.page_content) for doc in found]


def infinity_rerank(server, query, documents, top_n=None):
    headers = {"Authorization": f"Bearer {server.key}"}
    client = Client(f"{server.url}/infinity", headers=headers, raise_on_unexpected_status=True)
    return compressed(InfinityRerank(client=client, model=server.model, top_n=top_n), query, documents)


def jina_rerank(server, query, documents, top_n=None):
    jina.JINA_API_URL = f"{server.url}/v1/rerank"
    return compressed(jina.JinaRerank(model=server.model, jina_api_key=server.key, top_n=top_n), query, documents)


if __name__ == "__main__":
    check(
        # It takes the answer to a 422 for a list of rows: the reason is lost, all others are told.
        Way(infinity_rerank, {**dict.fromkeys(STATUSES, UnexpectedStatus), 422: KeyError}, tells={401, 404, 413}),
        Way(jina_rerank, dict.fromkeys(STATUSES, RuntimeError), gives_texts=True),
    )
