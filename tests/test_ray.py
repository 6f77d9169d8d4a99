"""The adapter for Ray Data: the scores of `predict`, with Ray and without it."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from rerank import Reranker
from rerank.errors import InputError, NotFound
from rerank.integrations.ray_data import RankBatch
from rerank.models.backbones import load_cross_encoder
from rerank.models.loading import save_policy
from rerank.models.policy import ScorePolicy

TEXTS = ["read lines of a file", "a cup of tea", "", "Faust, a tragedy", "numbers 1 2 3", "a cup of tea"]


@pytest.fixture(scope="module")
def model(tiny_bert, tmp_path_factory):
    """A folder of a tiny cross-encoder."""
    scorer, _ = load_cross_encoder(str(tiny_bert), max_length=128, precision="float32", device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        torch.nn.init.normal_(scorer.model[-1].linear.weight, std=0.3)
    folder = tmp_path_factory.mktemp("ray") / "model"
    save_policy(ScorePolicy(scorer), folder)
    return str(folder)


def columns(n=6):
    queries = [("csv file", "hot drink")[i % 2] for i in range(n)]
    texts = [TEXTS[i % len(TEXTS)] for i in range(n)]
    return {"id": np.arange(n), "query": np.array(queries, dtype=object), "text": np.array(texts, dtype=object)}


def test_scores_are_those_of_predict_and_other_columns_are_kept(model):
    batch = columns()
    found = RankBatch(model, "cpu", "float32")(batch)
    reranker = Reranker.from_pretrained(model, "cpu", "float32")
    assert found["score"].dtype == np.float32
    np.testing.assert_array_equal(
        found["score"], reranker.predict(list(zip(batch["query"], batch["text"], strict=True)))
    )
    assert list(found) == ["id", "query", "text", "score"]
    assert list(batch) == ["id", "query", "text"], "the batch that was given is left as it was"


def test_a_row_has_the_same_score_whatever_is_in_its_batch(model):
    rank, batch = RankBatch(model, "cpu", "float32"), columns()
    alone = [float(rank({k: v[i : i + 1] for k, v in batch.items()})["score"][0]) for i in range(len(TEXTS))]
    np.testing.assert_allclose(rank(batch)["score"], alone, atol=1e-6)


def test_an_empty_batch_and_texts_of_numpy_are_taken(model):
    rank = RankBatch(model, "cpu", "float32")
    assert rank({"query": np.array([], dtype=object), "text": np.array([], dtype=object)})["score"].shape == (0,)
    fixed = {"query": np.array(["csv file"]), "text": np.array(["a cup of tea"])}
    assert rank(fixed)["score"].shape == (1,)


def test_it_pickles_without_its_model_before_and_after_use(model):
    rank = RankBatch(model, "cpu", "float32", max_length=64)
    scores = rank(columns())["score"]
    sent = pickle.dumps(rank)
    assert len(sent) < 1000
    copy = pickle.loads(sent)
    assert copy == rank
    assert hash(copy) == hash(rank)
    read = RankBatch(model, reading={"window": 2})
    assert pickle.loads(pickle.dumps(read)) == read != RankBatch(model)
    with pytest.raises(InputError, match="say how a language model reads lists"):
        read(columns())
    assert "_reranker" not in vars(copy)
    np.testing.assert_array_equal(copy(columns())["score"], scores)


def test_a_wrong_batch_or_model_is_one_message(model):
    with pytest.raises(InputError, match=r"columns \['query', 'passage'\]|columns \['passage', 'query'\] and lacks"):
        RankBatch(model)({"query": np.array(["x"]), "passage": np.array(["y"])})
    with pytest.raises(InputError, match="the document of pair 1 must be a text, not NoneType"):
        RankBatch(model, "cpu")({"query": np.array(["x", "x"]), "text": np.array(["y", None], dtype=object)})
    with pytest.raises(NotFound):
        RankBatch("./nowhere/model")(columns())


RAY = """
import json, sys
import numpy as np
import ray
from rerank.integrations.ray_data import RankBatch
model, batch = sys.argv[1], json.loads(sys.stdin.read())
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
rows = [dict(zip(batch, row)) for row in zip(*batch.values())]
scored = ray.data.from_items(rows).map_batches(
    RankBatch, fn_constructor_args=(model, "cpu", "float32"), concurrency=2, batch_size=7
)
print("RESULT" + json.dumps([(row["id"], float(row["score"])) for row in scored.take_all()]))
"""


@pytest.mark.slow
def test_local_ray_gives_the_same_scores_from_two_actors(model):
    pytest.importorskip("ray", reason="Ray Data is the extra ray: pip install 'rerank[ray]'")
    import json

    batch = columns(40)
    # In a process of its own: Ray starts servers and changes warnings and signals of the one that it runs in.
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RAY, model],
        input=json.dumps({name: values.tolist() for name, values in batch.items()}),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    scores = dict(json.loads(line.removeprefix("RESULT")))
    expected = RankBatch(model, "cpu", "float32")(batch)["score"]
    assert sorted(scores) == list(range(40))
    np.testing.assert_allclose([scores[i] for i in range(40)], expected, atol=1e-6)
