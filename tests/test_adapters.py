"""What all adapters share: how a model is given, loaded once, copied and sent; and what a missing framework says."""

import asyncio
import contextvars
import copy
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ranking_models import a_reranker

from rerank import Reranker
from rerank.errors import InputError, NotFound
from rerank.integrations import loading
from rerank.integrations.first_stage import FirstStage
from rerank.integrations.loading import LazyReranker, reranker_of
from rerank.models.calibration import Calibration

QUERY = "how do i read a csv file"
TEXTS = ["read lines of a file", "a cup of tea", "", "csv " * 90, "Faust. A tragedy!", "numbers 1 2 3"]
HOW = {"device": "cpu", "precision": "float32"}


@pytest.fixture(scope="module")
def folder(tiny_bert, tmp_path_factory):
    """A tiny calibrated cross-encoder."""
    policy = a_reranker(tiny_bert).policy
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


def test_two_are_equal_that_load_the_same_and_ask_the_same(folder):
    made = LazyReranker(str(folder), **HOW)
    made.reranker()
    assert made == LazyReranker(str(folder), **HOW, max_length=None)
    others = [LazyReranker(str(folder)), LazyReranker(str(folder), FirstStage("bm25", ""), **HOW), made.reranker()]
    assert all(made != other for other in others)


def test_rankings_that_wait_hold_no_thread_of_the_event_loop(folder):
    lazy, told = LazyReranker(folder, **HOW), contextvars.ContextVar("told")
    given, threads = threading.Event(), set()

    def work():
        threads.add(threading.current_thread())
        assert given.wait(60)
        return told.get()

    async def main():
        told.set("of the caller")
        pool = ThreadPoolExecutor(1)
        asyncio.get_running_loop().set_default_executor(pool)
        waiting = [asyncio.create_task(lazy.in_turn(work)) for _ in range(12)]
        await asyncio.sleep(0.05)
        # Were even one of them in the pool, this would never come back.
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "free"), 30) == "free"
        given.set()
        return await asyncio.gather(*waiting)

    assert asyncio.run(main()) == ["of the caller"] * 12
    assert len(threads) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_process_that_was_forked_ranks_on_a_thread_of_its_own(folder):
    lazy = LazyReranker(folder, **HOW)
    assert asyncio.run(lazy.in_turn(lambda: 1)) == 1
    child = os.fork()
    if child == 0:
        os._exit(asyncio.run(asyncio.wait_for(lazy.in_turn(lambda: 7), 20)))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


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
