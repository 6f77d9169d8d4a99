"""What all adapters share: how a model is given, loaded once, copied and sent; and what a missing framework says."""

import copy
import pickle
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from rerank import Reranker
from rerank.errors import InputError, NotFound
from rerank.integrations import loading
from rerank.integrations.loading import LazyReranker, reranker_of
from rerank.models.backbones import load_cross_encoder
from rerank.models.calibration import Calibration
from rerank.models.policy import ScorePolicy

QUERY = "how do i read a csv file"
TEXTS = ["read lines of a file", "a cup of tea", "", "csv " * 90, "Faust. A tragedy!", "numbers 1 2 3"]
HOW = {"device": "cpu", "precision": "float32"}


@pytest.fixture(scope="module")
def folder(tiny_bert, tmp_path_factory):
    """A tiny calibrated cross-encoder."""
    scorer, _ = load_cross_encoder(str(tiny_bert), max_length=64, **HOW)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        torch.nn.init.normal_(scorer.model[-1].linear.weight, std=0.3)
    policy = ScorePolicy(scorer)
    policy.calibration = Calibration("affine", a=3.0, b=-0.5)
    Reranker(policy).save_pretrained(made := tmp_path_factory.mktemp("adapters") / "model")
    return made


def test_a_reranker_is_itself_and_a_folder_is_loaded_as_wished(folder):
    made = reranker_of(folder, **HOW, max_length=32)
    assert reranker_of(made) is made
    assert reranker_of(made, device=None) is made, "None is no wish"
    straight = Reranker.from_pretrained(folder, "cpu", "float32", max_length=32)
    assert reranker_of(str(folder), **HOW, max_length=32).rank(QUERY, TEXTS) == straight.rank(QUERY, TEXTS)
    assert made.rank(QUERY, TEXTS) != reranker_of(folder, **HOW).rank(QUERY, TEXTS)


@pytest.mark.parametrize("model", [None, 3, b"folder", ["folder"], "", "  "])
def test_a_model_that_is_none_is_refused_before_anything_is_loaded(model):
    for take in (reranker_of, LazyReranker):
        with pytest.raises(InputError, match="model must be a folder, an id on the hub or a rerank"):
            take(model)


def test_a_way_of_loading_that_there_is_not_is_named_with_the_nearest(folder):
    with pytest.raises(InputError, match="cannot be loaded with 'devise'; did you mean 'device'"):
        reranker_of(folder, devise="cpu")
    with pytest.raises(InputError, match=r"loaded already: give \['device'\] where it is loaded"):
        LazyReranker(reranker_of(folder, **HOW), device="cpu")


def test_a_folder_that_is_not_there_is_refused_when_it_is_first_needed(tmp_path):
    lazy = LazyReranker(tmp_path / "nowhere")
    with pytest.raises(NotFound, match="nowhere"):
        lazy.rank(QUERY, TEXTS)


def test_threads_that_come_at_once_load_one_model_and_all_have_its_ranking(folder, monkeypatch):
    loads = []
    monkeypatch.setattr(loading, "reranker_of", lambda *a, **k: loads.append(1) or reranker_of(*a, **k))
    lazy = LazyReranker(folder, **HOW)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: lazy.rank(QUERY, TEXTS[: 1 + n % 6]), range(24)))
    assert len(loads) == 1
    alone = reranker_of(folder, **HOW)
    for n, hits in enumerate(found):
        assert hits == alone.rank(QUERY, TEXTS[: 1 + n % 6], probabilities=True)


def test_copies_share_the_model_and_a_pickle_holds_no_weights(folder):
    lazy = LazyReranker(folder, **HOW)
    lazy.reranker()
    assert copy.copy(lazy) is lazy
    assert copy.deepcopy([lazy])[0].reranker() is lazy.reranker()
    sent = pickle.dumps(lazy)
    assert len(sent) < 1000
    assert pickle.loads(sent).rank(QUERY, TEXTS) == lazy.rank(QUERY, TEXTS)
    given = LazyReranker(lazy.reranker())
    assert pickle.loads(pickle.dumps(given)).rank(QUERY, TEXTS) == lazy.rank(QUERY, TEXTS)


@pytest.mark.parametrize(
    ("adapter", "package", "line"),
    [
        ("langchain", "langchain_core", "pip install 'rerank[langchain]'"),
        ("llama_index", "llama_index", "pip install 'rerank[llama-index]'"),
        ("haystack", "haystack", "pip install 'rerank[haystack]'"),
    ],
)
def test_an_adapter_without_its_framework_says_what_to_install(adapter, package, line):
    program = f"""
        import sys
        sys.modules[{package!r}] = None
        from rerank.errors import MissingDependency
        try:
            import rerank.integrations.{adapter}
        except MissingDependency as error:
            print(error)
        """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert line in done.stdout
    assert package in done.stdout
