"""huggingface_hub before 0.31: InferenceClient.post, which spoke to TEI's /rerank."""

import json

from checks import Row, Way, check
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

RAISES = dict.fromkeys((401, 404, 413, 422, 429, 503, 504), HfHubHTTPError)


def post(server, query, documents, top_n=None):
    client = InferenceClient(token=server.key)
    asked = {"model": server.model, "query": query, "texts": documents, "top_n": top_n, "return_text": True}
    rows = json.loads(client.post(json=asked, model=f"{server.url}/rerank"))
    return [Row(row["index"], row["score"], row["text"]) for row in rows]


if __name__ == "__main__":
    check(Way(post, RAISES, gives_texts=True, tells=()))
