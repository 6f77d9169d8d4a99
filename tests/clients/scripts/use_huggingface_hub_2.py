"""huggingface_hub 2: its InferenceClient has health checks and no task that reranks; its session does that."""

from checks import Row, Way, check, require
from huggingface_hub import InferenceClient, get_session
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

RAISES = dict.fromkeys((401, 404, 413, 422, 429, 503, 504), HfHubHTTPError)


def session(server, query, documents, top_n=None):
    asked = {"model": server.model, "query": query, "texts": documents, "top_n": top_n, "return_text": True}
    response = get_session().post(f"{server.url}/tei/rerank", json=asked, headers=build_hf_headers(token=server.key))
    hf_raise_for_status(response)
    return [Row(row["index"], row["score"], row["text"]) for row in response.json()]


def healthy(server):
    client = InferenceClient(provider="hf-inference", token=server.key)
    for url in (server.url, f"{server.url}/tei"):
        require(client.health_check(model=url), f"{url} is not healthy")


def informed(server):
    client = InferenceClient(provider="hf-inference", token=server.key)
    for url in (server.url, f"{server.url}/tei"):
        told = client.get_endpoint_info(model=url)
        require(told["model_id"] == server.model and told["max_input_length"] > 0, f"{told}")


if __name__ == "__main__":
    check(Way(session, RAISES, gives_texts=True, more={"health": healthy, "info": informed}))
