"""LangChain's CohereRerank: `base_url` is all that changes."""

import cohere
from checks import Row, Way, check
from cohere.core.api_error import ApiError
from langchain_cohere import CohereRerank
from langchain_core.documents import Document

RAISES = {
    401: cohere.UnauthorizedError,
    404: cohere.NotFoundError,
    413: ApiError,
    422: cohere.UnprocessableEntityError,
    429: cohere.TooManyRequestsError,
    503: cohere.ServiceUnavailableError,
    504: cohere.GatewayTimeoutError,
}


def cohere_rerank(server, query, documents, top_n=None):
    compressor = CohereRerank(model=server.model, cohere_api_key=server.key, base_url=server.url, top_n=top_n)
    given = [Document(page_content=text, metadata={"index": i}) for i, text in enumerate(documents)]
    found = compressor.compress_documents(given, query)
    return [Row(doc.metadata["index"], doc.metadata["relevance_score"], doc.page_content) for doc in found]


if __name__ == "__main__":
    check(Way(cohere_rerank, RAISES, gives_texts=True))
