"""LlamaIndex: CohereRerank's `base_url`, and TextEmbeddingInference, whose `auth_token` is the whole header."""

import cohere
from checks import Row, Way, check
from cohere.core.api_error import ApiError
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.postprocessor.cohere_rerank import CohereRerank
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

RAISES = {
    401: cohere.UnauthorizedError,
    404: cohere.NotFoundError,
    413: ApiError,
    422: cohere.UnprocessableEntityError,
    429: cohere.TooManyRequestsError,
    503: cohere.ServiceUnavailableError,
    504: cohere.GatewayTimeoutError,
}


def processed(postprocessor, query, documents):
    nodes = [NodeWithScore(node=TextNode(id_=str(i), text=text)) for i, text in enumerate(documents)]
    found = postprocessor.postprocess_nodes(nodes, query_str=query)
    return [Row(int(node.node_id), node.score, node.text) for node in found]


def cohere_rerank(server, query, documents, top_n=None):
    # By default it asks ten times, four to ten seconds apart, where a server says 503 or 504.
    wanted = {"model": server.model, "top_n": top_n or len(documents), "max_retries": 1}
    return processed(CohereRerank(api_key=server.key, base_url=server.url, **wanted), query, documents)


def text_embedding_inference(server, query, documents, top_n=None):
    wanted = {"base_url": server.url, "auth_token": f"Bearer {server.key}", "top_n": top_n or len(documents)}
    return processed(TextEmbeddingInference(**wanted), query, documents)


if __name__ == "__main__":
    check(
        Way(cohere_rerank, RAISES, gives_texts=True),
        # It looks at no status, only at whether the answer has as many rows as there are nodes.
        Way(
            text_embedding_inference,
            dict.fromkeys((401, 413, 422, 429, 503, 504), (AssertionError, TypeError)),
            tells=(),
            names_model=False,
            gives_texts=True,
        ),
    )
