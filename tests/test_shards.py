"""Runs in parts: the union has the bytes of the whole, nothing computed is lost, and nothing wrong is merged."""

import importlib
import inspect
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from rerank import cli
from rerank.data import read_run
from rerank.digests import sha256_of, summed
from rerank.errors import DataError, InputError, Mismatch, NotFound
from rerank.experiment import reranking, shards
from rerank.experiment.journal import Journal
from rerank.experiment.merging import merge_parts
from rerank.experiment.reranking import Loading, model_digest, rerank_requests, rerank_run
from rerank.experiment.retrieving import retrieve_run
from rerank.experiment.shards import WHOLE, Portion, Shard, write_part
from rerank.models.backbones import load_cross_encoder, load_encoder
from rerank.models.light import LightScorer
from rerank.models.loading import save_policy
from rerank.models.policy import FirstStageWeights, ScorePolicy
from rerank.recipe import Retrieval

CACM = Path(__file__).parents[2] / "shared" / "data" / "cacm"
FLOAT32 = Loading("cpu", "float32")
BM25, DENSE, BOTH = (Retrieval(retrievers=names) for names in (("bm25",), ("dense",), ("bm25", "dense")))


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A BEIR folder of docstrings of Python's library: 9 queries, the first words of some of the documents."""
    folder = tmp_path_factory.mktemp("library") / "library"
    (folder / "qrels").mkdir(parents=True)
    documents = {}
    for module in map(importlib.import_module, ("shutil", "textwrap", "random", "statistics")):
        for name, one in vars(module).items():
            if inspect.isfunction(one) and one.__module__ == module.__name__ and one.__doc__:
                documents[f"{module.__name__}.{name}"] = " ".join(one.__doc__.split())[:300]
    queries = {f"q{i}": " ".join(documents[d].split()[:6]) for i, d in enumerate([*documents][::3][:9])}
    for file, texts in (("corpus", documents), ("queries", queries)):
        lines = [json.dumps({"_id": key, "text": text}) + "\n" for key, text in texts.items()]
        (folder / f"{file}.jsonl").write_text("".join(lines), encoding="utf8")
    judged = [f"{q}\t{d}\t1\n" for q, d in zip(queries, documents, strict=False)]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judged), encoding="utf8")
    return f"{folder}#test"


@pytest.fixture(scope="module")
def first(library, tmp_path_factory):
    """The BM25 run of the library."""
    out = tmp_path_factory.mktemp("first") / "bm25.trec"
    assert retrieve_run(library, out, BM25, depth=12).queries == 9
    return out


def saved(scorer, folder, first_stage=None):
    save_policy(ScorePolicy(scorer, first_stage), folder)
    return str(folder)


def cross_encoder(tiny_bert, seed=3):
    scorer, _ = load_cross_encoder(str(tiny_bert), max_length=128, precision="float32", device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.nn.init.normal_(scorer.model[-1].linear.weight, std=0.3)
    return scorer


@pytest.fixture(scope="module")
def models(tiny_bert, tmp_path_factory):
    """Kind -> folder of a tiny model."""
    root = tmp_path_factory.mktemp("models")
    light = LightScorer(load_encoder(str(tiny_bert), "float32", "cpu"), 8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        torch.nn.init.normal_(light.outer.weight, std=0.5)
    weights = FirstStageWeights({"first stage": 0.3, "bm25": 0.2, "dense": 0.1})
    found = {
        "cross-encoder": saved(cross_encoder(tiny_bert), root / "cross"),
        "other": saved(cross_encoder(tiny_bert, seed=4), root / "other"),
        "light": saved(light, root / "light"),
        "featured": saved(cross_encoder(tiny_bert), root / "featured", weights),
    }
    settings = {"language": "english", "index": "flat", "encoder": str(tiny_bert)}
    (root / "featured" / "retrieval.json").write_text(json.dumps(settings))
    return found


@pytest.fixture
def ranked(models, library, first, tmp_path):
    """Calls `rerank_run` with the cross-encoder at depth 8, unless told otherwise."""

    def call(out="out.trec", shard=None, model="cross-encoder", run=first, depth=8, overwrite=False, loading=FLOAT32):
        return rerank_run(models[model], library, run, tmp_path / out, depth, loading, Shard.parse(shard), overwrite)

    return call


@pytest.fixture
def parts(ranked):
    """The three parts of a job."""
    return [ranked(shard=f"{i}/3").path for i in (1, 2, 3)]


# The division


@given(st.lists(st.integers(1, 1000), max_size=60), st.integers(1, 70))
def test_shards_are_neighbours_that_hold_each_query_once_and_about_the_same_work(weights, of):
    shares = [Shard(i + 1, of).share(weights) for i in range(of)]
    assert [place for share in shares for place in share] == list(range(len(weights)))
    for share in shares:
        work = sum(weights[place] for place in share)
        assert work <= sum(weights) / of + max(weights, default=0)
    if len(set(weights)) == 1:
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    "text", ["0/4", "5/4", "a/b", "1/0", "1", "", "1/4/2", "-1/4", "1.0/4", "1 /4", "1/99999999999"]
)
def test_what_is_no_shard_is_refused_with_an_example(text):
    with pytest.raises(InputError, match="is not I/N with whole numbers 1 <= I <= N; the first of four is 1/4"):
        Shard.parse(text)


def test_the_names_of_parts_sort_in_their_order(tmp_path):
    names = [Shard(i, 12).path(tmp_path / "run.trec").name for i in range(1, 13)]
    assert names == sorted(names)
    assert names[0] == "run.trec.shard-01-of-12"
    assert Shard(1, 1).path(tmp_path / "run.trec") == tmp_path / "run.trec"


# The union is the whole, byte for byte


@pytest.mark.parametrize(("model", "of"), [("cross-encoder", 3), ("cross-encoder", 20), ("light", 3), ("featured", 3)])
def test_the_union_of_reranked_parts_has_the_bytes_of_the_unsharded_run(model, of, ranked, tmp_path):
    ranked("out.trec", model=model)
    whole = (tmp_path / "out.trec").rename(tmp_path / "whole.trec")
    (tmp_path / "out.trec.manifest.json").unlink()
    counts = [ranked(shard=f"{i}/{of}", model=model).queries for i in range(of, 0, -1)]
    assert sum(counts) == 9
    assert counts == [3, 3, 3] if of == 3 else counts.count(0) == 11
    merged = merge_parts([tmp_path / "out.trec"])
    assert merged.path.read_bytes() == whole.read_bytes()
    assert (merged.queries, merged.rows) == (9, len(whole.read_bytes().splitlines()))


@pytest.mark.parametrize("retrieval", [BM25, DENSE, BOTH], ids=["bm25", "dense", "both"])
def test_the_union_of_retrieved_parts_has_the_bytes_of_the_unsharded_run(retrieval, library, tiny_bert, tmp_path):
    def retrieve(out, shard=None):
        return retrieve_run(library, out, retrieval, "rrf", 7, str(tiny_bert), FLOAT32, Shard.parse(shard))

    retrieve(tmp_path / "whole.trec")
    given = [retrieve(tmp_path / "parts" / "out.trec", f"{i}/4").path for i in (1, 2, 3, 4)]
    merged = merge_parts(given, tmp_path / "union.trec")
    assert merged.path.read_bytes() == (tmp_path / "whole.trec").read_bytes()


def test_a_compressed_run_is_the_same_bytes_too(ranked, tmp_path):
    for i in (1, 2):
        ranked("out.trec.gz", shard=f"{i}/2")
    merged = merge_parts([tmp_path / "out.trec.gz"]).path.read_bytes()
    (tmp_path / "out.trec.gz").unlink()
    assert ranked("out.trec.gz").fresh
    assert (tmp_path / "out.trec.gz").read_bytes() == merged
    assert merged[:2] == b"\x1f\x8b"


def test_real_text_in_parts_on_the_command_line(models, tmp_path):
    if not CACM.is_dir():
        pytest.skip("cacm is not in the folder shared/data beside the checkout")

    def run(*arguments):
        result = CliRunner().invoke(cli.app, [str(a) for a in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    where = (f"{CACM}#test", "--out", tmp_path / "bm25.trec", "--depth", 20)
    run("retrieve", *where)
    whole = (tmp_path / "bm25.trec").read_bytes()
    for i in (1, 2):
        assert f"10 queries, up to 20 documents each: {tmp_path / 'bm25.trec'}.shard-{i}-of-2" in run(
            "retrieve", *where, "--shard", f"{i}/2"
        )
    again = run("retrieve", *where, "--shard", "1/2")
    assert "was there already; nothing to do" in again
    run("merge", *(tmp_path.glob("bm25.trec.shard-*")), "--out", tmp_path / "union.trec")
    assert (tmp_path / "union.trec").read_bytes() == whole
    options = ("--depth", 5, "--device", "cpu", "--precision", "float32", "--max-length", 64)
    job = (models["cross-encoder"], "-c", f"{CACM}#test", "--run", tmp_path / "bm25.trec", *options)
    run("rank", *job, "--out", tmp_path / "a" / "ranked.trec")
    for i in (1, 2, 3):
        run("rank", *job, "--out", tmp_path / "b" / "ranked.trec", "--shard", f"{i}/3")
    assert "20 queries" in run("merge", tmp_path / "b" / "ranked.trec")
    assert (tmp_path / "b" / "ranked.trec").read_bytes() == (tmp_path / "a" / "ranked.trec").read_bytes()
    assert read_run(tmp_path / "b" / "ranked.trec").rankings.keys() == read_run(tmp_path / "bm25.trec").rankings.keys()


# Asked again


@pytest.fixture
def unloaded(monkeypatch):
    """No model can be loaded."""
    monkeypatch.setattr(reranking, "load_policy", lambda *a, **k: pytest.fail("a model was loaded"))


@pytest.mark.parametrize("shard", [None, "2/3"])
def test_asked_again_nothing_is_computed(shard, ranked, request):
    before = ranked(shard=shard)
    assert before.fresh
    bytes_before, moved = before.path.read_bytes(), before.path.stat().st_mtime_ns
    request.getfixturevalue("unloaded")
    assert ranked(shard=shard) == before._replace(fresh=False)
    assert before.path.read_bytes() == bytes_before
    assert before.path.stat().st_mtime_ns == moved


def test_the_unsharded_command_knows_what_was_merged(parts, ranked, tmp_path, unloaded):
    merged = merge_parts([tmp_path / "out.trec"])
    assert ranked() == merged._replace(fresh=False)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"depth": 4}, "depth is 8 there and 4 now"),
        ({"model": "other"}, r"model is [0-9a-f]{12}\.\.\. there and [0-9a-f]{12}\.\.\. now"),
        ({"loading": Loading("cpu", "bfloat16")}, "precision is 'float32' there and 'bfloat16' now"),
        ({"loading": Loading("cpu", "float32", 32)}, "max_length is None there and 32 now"),
    ],
)
@pytest.mark.parametrize("shard", [None, "2/3"])
def test_a_part_of_another_job_is_kept_and_the_difference_named(shard, other, says, ranked, tmp_path):
    path = ranked(shard=shard).path
    before = path.read_bytes()
    with pytest.raises(Mismatch, match=says):
        ranked(shard=shard, **other)
    assert path.read_bytes() == before
    done = ranked(shard=shard, **other, overwrite=True)
    assert done.fresh
    assert json.loads((path.with_name(path.name + ".manifest.json")).read_bytes())["sha256"] == sha256_of(path)
    assert ranked(shard=shard, **other).fresh is False


def test_another_run_or_another_text_is_another_job(models, library, first, ranked, tmp_path):
    ranked(shard="1/2")
    shorter = tmp_path / "shorter.trec"
    shorter.write_text("".join(line for line in first.read_text().splitlines(True) if " 12 " not in line))
    with pytest.raises(Mismatch, match=r"run is [0-9a-f]{12}\.\.\. there"):
        ranked(shard="1/2", run=shorter)
    folder = Path(library.removesuffix("#test"))
    changed = tmp_path / "changed"
    (changed / "qrels").mkdir(parents=True)
    for name in ("queries.jsonl", "qrels/test.tsv"):
        (changed / name).write_bytes((folder / name).read_bytes())
    (changed / "corpus.jsonl").write_text((folder / "corpus.jsonl").read_text().replace("the", "a"))
    with pytest.raises(Mismatch, match=r"another job: texts is [0-9a-f]{12}\.\.\. there"):
        rerank_run(models["cross-encoder"], f"{changed}#test", first, tmp_path / "out.trec", 8, FLOAT32, Shard(1, 2))


def test_a_part_that_was_deleted_is_computed_anew(ranked):
    part = ranked(shard="1/2")
    before = part.path.read_bytes()
    part.path.unlink()
    assert ranked(shard="1/2").fresh
    assert part.path.read_bytes() == before


def test_a_model_is_told_apart_by_its_weights_and_settings_and_nothing_else(models, tmp_path):
    import shutil

    copy = Path(shutil.copytree(models["cross-encoder"], tmp_path / "copy"))
    (copy / "README.md").write_text("a card")
    (copy / "onnx").mkdir()
    (copy / "onnx" / "model.onnx").write_bytes(b"exported later")
    assert model_digest(str(copy), "onnx") != model_digest(models["cross-encoder"])
    assert model_digest(str(copy)) == model_digest(models["cross-encoder"]) != model_digest(models["other"])
    settings = json.loads((copy / "rerank.json").read_text())
    (copy / "rerank.json").write_text(json.dumps({**settings, "budget": 7}))
    assert model_digest(str(copy)) != model_digest(models["cross-encoder"])


@pytest.mark.parametrize(
    ("loading", "says"),
    [
        (Loading("nowhere"), "device 'nowhere'"),
        (Loading("cpu", "int7"), "precision 'int7' is not known"),
        (Loading("cpu", backend="tensorflow"), "backend 'tensorflow' is not known"),
        (Loading("cpu", max_length=1), "max_length must be a whole number of at least"),
        (Loading("cpu", backend="onnx"), "export"),
    ],
)
def test_a_way_of_loading_that_is_none_is_refused_and_leaves_nothing(loading, says, ranked, tmp_path):
    with pytest.raises((InputError, NotFound), match=says):
        ranked(loading=loading)
    assert list(tmp_path.iterdir()) == []


def test_an_exported_model_ranks_in_parts_as_in_one(tiny_bert, models, library, first, tmp_path):
    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module, reason="exports are the extra onnx")
    said = CliRunner().invoke(
        cli.app, ["export", models["cross-encoder"], "--int8", "--out", str(tmp_path / "exported")]
    )
    assert said.exit_code == 0, said.output
    loading = Loading("cpu", "int8", backend="onnx")

    def rank(out, shard=None):
        return rerank_run(str(tmp_path / "exported"), library, first, out, 8, loading, Shard.parse(shard))

    whole = rank(tmp_path / "whole" / "out.trec").path.read_bytes()
    for i in (1, 2, 3):
        rank(tmp_path / "out.trec", f"{i}/3")
    assert merge_parts([tmp_path / "out.trec"]).path.read_bytes() == whole


# Faults


class Fault(Exception):
    """Something that goes wrong in the middle."""


def failing_after(n, monkeypatch):
    """Lets `n` lists be scored, then fails; gives the count of lists that are scored."""
    scored, score = [], reranking.rerank_lists

    def limited(policy, lists, name):
        if len(scored) == n:
            raise Fault
        scored.append(lists[0].query_id)
        return score(policy, lists, name)

    monkeypatch.setattr(reranking, "rerank_lists", limited)
    return scored


@pytest.mark.parametrize("model", ["cross-encoder", "light", "featured"])
def test_after_a_fault_only_what_is_missing_is_computed(model, ranked, tmp_path, monkeypatch):
    whole = ranked("whole/out.trec", model=model).path.read_bytes()
    with monkeypatch.context() as patched, pytest.raises(Fault):
        failing_after(5, patched)
        ranked(model=model)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [".out.trec.journal"]
    scored = failing_after(-1, monkeypatch)
    assert ranked(model=model).path.read_bytes() == whole
    assert len(scored) == 4
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize(
    "tail", [b'["q5", [["shutil.', b"\x00\x00\x00\n", b'["q0", []]\n', b"[]\n", b'["q5", 5]\n', b'["q5", [["d"]]]\n']
)
def test_a_record_that_was_cut_short_is_computed_again(tail, ranked, tmp_path, monkeypatch, caplog):
    whole = ranked("whole/out.trec").path.read_bytes()
    with monkeypatch.context() as patched, pytest.raises(Fault):
        failing_after(5, patched)
        ranked()
    with (tmp_path / ".out.trec.journal").open("ab") as file:
        file.write(tail)
    scored = failing_after(-1, monkeypatch)
    assert ranked().path.read_bytes() == whole
    assert len(scored) == 4
    assert f"the last {len(tail)} bytes are no whole record and are computed again" in caplog.text


def test_what_was_computed_for_another_job_is_not_dropped_unasked(ranked, tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(Fault):
        failing_after(5, patched)
        ranked()
    journal = tmp_path / ".out.trec.journal"
    before = journal.read_bytes()
    with pytest.raises(Mismatch, match=r"depth is 8 there and 4 now.*--overwrite"):
        ranked(depth=4)
    assert journal.read_bytes() == before
    assert ranked(depth=4, overwrite=True).fresh


def test_a_fault_before_the_first_query_leaves_nothing(ranked, tmp_path, monkeypatch):
    failing_after(0, monkeypatch)
    with pytest.raises(Fault):
        ranked()
    assert list(tmp_path.iterdir()) == []


SLOW = """
import sys, time
from rerank import cli
from rerank.experiment import reranking, shards
score = reranking.rerank_lists
def slow(*arguments):
    time.sleep(0.2)
    return score(*arguments)
reranking.rerank_lists = slow
sys.argv = ["rerank", *sys.argv[1:]]
cli.main()
"""


def test_a_killed_process_leaves_no_part_and_the_next_one_goes_on(
    models, library, first, ranked, tmp_path, monkeypatch
):
    whole = ranked("whole/out.trec", shard="1/1").path.read_bytes()
    command = ["rank", models["cross-encoder"], "-c", library, "--run", first, "--out", tmp_path / "out.trec"]
    options = ["--depth", "8", "--device", "cpu", "--precision", "float32"]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SLOW, *map(str, command), *options],
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    journal = tmp_path / ".out.trec.journal"
    deadline = time.monotonic() + 120
    while not journal.exists() or journal.read_bytes().count(b"\n") < 4:
        assert process.poll() is None and time.monotonic() < deadline, "it ended too early, or never began"
        time.sleep(0.05)
    with pytest.raises(InputError, match="another process is computing this"):
        ranked()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out.trec").exists()
    assert not (tmp_path / "out.trec.manifest.json").exists()
    done = journal.read_bytes().count(b"\n") - 1
    scored = failing_after(-1, monkeypatch)
    assert ranked().path.read_bytes() == whole
    assert 0 < len(scored) <= 9 - done < 9


def killed(*_):
    raise Fault


def test_a_killed_rename_is_no_finished_part(ranked, tmp_path, monkeypatch):
    # Killed after the part was in place and before its manifest: the journal holds all, nothing is computed again.
    with monkeypatch.context() as patched, pytest.raises(Fault):
        patched.setattr(shards, "write_manifest", killed)
        ranked(shard="1/2")
    part = tmp_path / "out.trec.shard-1-of-2"
    before = part.read_bytes()
    with pytest.raises(NotFound, match="has no manifest"):
        merge_parts([part])
    scored = failing_after(-1, monkeypatch)
    assert ranked(shard="1/2").fresh
    assert (part.read_bytes(), scored) == (before, [])


# What is not ours


@pytest.mark.parametrize("shard", [None, "2/3"])
def test_a_file_that_was_not_made_here_is_never_written_over_unasked(shard, ranked, tmp_path, monkeypatch):
    path = Shard.parse(shard).path(tmp_path / "out.trec")
    path.write_text("q0 Q0 precious 1 1.0 mine\n")
    with monkeypatch.context() as patched:
        patched.setattr(reranking, "load_policy", lambda *a, **k: pytest.fail("a model was loaded"))
        with pytest.raises(InputError, match=r"is there, and no manifest out.*manifest\.json says.*--overwrite"):
            ranked(shard=shard)
    assert path.read_text() == "q0 Q0 precious 1 1.0 mine\n"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert ranked(shard=shard, overwrite=True).fresh
    assert "precious" not in path.read_text()


def test_a_file_that_comes_while_a_job_is_half_done_is_kept_too(ranked, tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(Fault):
        failing_after(5, patched)
        ranked()
    (tmp_path / "out.trec").write_text("precious")
    with pytest.raises(InputError, match="is there, and no manifest"):
        ranked()
    assert (tmp_path / "out.trec").read_text() == "precious"
    (tmp_path / "out.trec").unlink()
    scored = failing_after(-1, monkeypatch)
    assert ranked().fresh
    assert len(scored) == 4


def test_a_retrieved_run_takes_the_place_of_nothing_that_was_not_retrieved_here(library, tmp_path):
    out = tmp_path / "bm25.trec"
    out.write_text("precious")
    with pytest.raises(InputError, match="is there, and no manifest"):
        retrieve_run(library, out, BM25)
    assert out.read_text() == "precious"
    assert retrieve_run(library, out, BM25, overwrite=True).queries == 9


# What a TREC run cannot hold


def renamed(library, first, folder, old, new):
    """(collection, run) in which the id `old` is `new`, as RankLLM requests."""
    from rerank.data import load_collection, write_rankllm
    from rerank.types import Collection, Run

    loaded, run = load_collection(library), read_run(first)

    def other(one):
        return new if one == old else one

    documents = {other(d): text for d, text in loaded.documents.items()}
    queries = {other(q): text for q, text in loaded.queries.items()}
    rankings = {other(q): tuple((other(d), score) for d, score in ranking) for q, ranking in run.rankings.items()}
    folder.mkdir()
    write_rankllm(Run(rankings, "run"), Collection(documents, queries), folder / "requests.jsonl")
    return f"rankllm:{folder / 'requests.jsonl'}", folder / "requests.jsonl"


@pytest.mark.parametrize("new", ["last one", "#1", "\u3000x"])
@pytest.mark.parametrize("what", ["query id", "doc id"])
def test_an_id_that_a_trec_run_cannot_hold_is_told_before_anything_is_ranked(
    what, new, models, library, first, tmp_path, unloaded
):
    old = "q8" if what == "query id" else read_run(first).doc_ids("q8")[-1]
    collection, run = renamed(library, first, tmp_path / "data", old, new)
    with pytest.raises(InputError, match=f"{what} {re.escape(repr(new))} cannot be a column of a TREC run"):
        rerank_run(models["cross-encoder"], collection, run, tmp_path / "out.trec", 8, FLOAT32)
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_a_name_that_a_trec_run_cannot_hold_is_told_before_anything_is_ranked(ranked, tmp_path, unloaded):
    with pytest.raises(InputError, match="name '#out' cannot be a column of a TREC run"):
        ranked("#out.trec")
    assert list(tmp_path.iterdir()) == []


def test_results_of_requests_may_have_any_ids(models, library, first, ranked, tmp_path):
    _, run = renamed(library, first, tmp_path / "data", "q8", "last one")
    out = tmp_path / "results.jsonl"
    assert rerank_requests(models["cross-encoder"], run, out, 8, FLOAT32).queries == 9
    found, wanted = read_run(out), read_run(ranked().path)
    assert found.doc_ids("last one") == wanted.doc_ids("q8")
    assert found.doc_ids("q1") == wanted.doc_ids("q1")


def test_results_of_requests_are_kept_like_any_part(models, library, first, tmp_path, monkeypatch):
    _, requests = renamed(library, first, tmp_path / "data", "", "")

    def results(name="mine.json", overwrite=False):
        return rerank_requests(models["cross-encoder"], requests, tmp_path / name, 8, FLOAT32, overwrite)

    (tmp_path / "mine.trec").write_text("my own BM25")
    (tmp_path / "theirs.json").write_text("precious")
    with monkeypatch.context() as patched, pytest.raises(Fault):
        failing_after(5, patched)
        results()
    with monkeypatch.context() as patched:
        scored = failing_after(-1, patched)
        assert results().fresh
        assert len(scored) == 4
    assert not results().fresh
    assert len(json.loads((tmp_path / "mine.json").read_bytes())) == 9
    assert (tmp_path / "mine.trec").read_text() == "my own BM25"
    with pytest.raises(InputError, match=r"theirs\.json is there, and no manifest"):
        results("theirs.json")
    assert (tmp_path / "theirs.json").read_text() == "precious"
    assert results("theirs.json", overwrite=True).fresh
    with pytest.raises(Mismatch, match="form is 'rankllm' there and None now"):
        rerank_run(models["cross-encoder"], f"rankllm:{requests}", requests, tmp_path / "mine.json", 8, FLOAT32)


# What cannot be merged


def damage(path, change):
    file = path.with_name(path.name + ".manifest.json")
    manifest = json.loads(file.read_bytes())
    change(manifest)
    file.write_text(json.dumps(manifest))


def test_missing_parts_are_named(parts, tmp_path):
    for path in parts[1:]:
        path.unlink()
    with pytest.raises(NotFound, match="2 of 3 parts are missing: 2/3, 3/3; compute them with --shard"):
        merge_parts([tmp_path / "out.trec"])
    assert not (tmp_path / "out.trec").exists()


def test_a_part_that_was_edited_is_refused_by_merge_and_by_its_own_command(parts, ranked, tmp_path):
    parts[1].write_text(parts[1].read_text().replace(" 1 ", " 2 ", 1))
    with pytest.raises(Mismatch, match=r"shard-2-of-3 is not what its manifest says: it was changed"):
        merge_parts([tmp_path / "out.trec"])
    with pytest.raises(Mismatch, match=r"it was changed\. Compute it anew with --overwrite"):
        ranked(shard="2/3")
    assert ranked(shard="2/3", overwrite=True).fresh
    assert merge_parts([tmp_path / "out.trec"]).queries == 9


def test_parts_of_two_jobs_are_refused_with_the_difference(parts, ranked):
    other = ranked("other.trec", shard="2/3", depth=4).path
    with pytest.raises(Mismatch, match="are of two jobs: name is 'out' there and 'other' now; depth is 8 there"):
        merge_parts([parts[0], other, parts[2]])


def test_parts_of_two_divisions_are_refused(parts, ranked, tmp_path):
    ranked(shard="1/2")
    with pytest.raises(Mismatch, match=r"one of 3 parts|one of 2 parts"):
        merge_parts([tmp_path / "out.trec"])


def test_a_part_that_is_there_twice_is_refused_and_one_that_is_named_twice_is_not(parts, tmp_path):
    copy = tmp_path / "copy" / parts[0].name
    copy.parent.mkdir()
    for end in ("", ".manifest.json"):
        copy.with_name(copy.name + end).write_bytes(parts[0].with_name(parts[0].name + end).read_bytes())
    with pytest.raises(Mismatch, match="shard 1/3 is there twice"):
        merge_parts([*parts, copy])
    assert merge_parts([*parts, parts[0]]).queries == 9


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.pop("sha256"),
        lambda manifest: manifest.update(queries="9"),
        lambda manifest: manifest["job"].pop("places"),
        lambda manifest: manifest["job"].update(shard="one"),
        lambda manifest: manifest["job"].update(texts="none"),
    ],
)
def test_a_manifest_with_a_wrong_field_is_refused(change, parts, tmp_path):
    damage(parts[0], change)
    with pytest.raises(
        DataError, match=r"shard-1-of-3.manifest.json: field '(sha256|queries|job)' is missing or wrong"
    ):
        merge_parts([tmp_path / "out.trec"])


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null"])
def test_a_manifest_that_cannot_be_read_is_refused_by_both_commands(content, parts, ranked, tmp_path):
    (tmp_path / "out.trec.shard-2-of-3.manifest.json").write_bytes(content)
    with pytest.raises(DataError, match=r"manifest.json: .*compute the part anew with --overwrite"):
        merge_parts([tmp_path / "out.trec"])
    with pytest.raises(DataError, match="compute the part anew with --overwrite"):
        ranked(shard="2/3")
    assert ranked(shard="2/3", overwrite=True).fresh


def test_a_manifest_of_a_later_format_asks_for_an_upgrade(parts, tmp_path):
    damage(parts[0], lambda manifest: manifest.update(format=2))
    with pytest.raises(Mismatch, match="reads up to 1: upgrade"):
        merge_parts([tmp_path / "out.trec"])


def test_parts_that_overlap_are_refused(parts, tmp_path):
    damage(parts[1], lambda manifest: manifest["job"].update(places=[2, 6, 9]))
    with pytest.raises(Mismatch, match="begins at query 2 and not at 3"):
        merge_parts([tmp_path / "out.trec"])


def test_parts_made_on_different_devices_are_merged_and_told(parts, tmp_path, caplog):
    damage(parts[1], lambda manifest: manifest["made"].update(device="cuda"))
    assert merge_parts([tmp_path / "out.trec"]).queries == 9
    assert "different device (cpu, cuda): scores may differ in last digits" in caplog.text


def test_another_job_of_the_same_name_is_not_written_over(parts, ranked, tmp_path):
    ranked("out.trec", depth=4)
    with pytest.raises(Mismatch, match="of another job: depth is 4 there and 8 now"):
        merge_parts([tmp_path / "out.trec"])
    assert merge_parts([tmp_path / "out.trec"], overwrite=True).queries == 9


def test_what_is_no_part_is_refused(first, tmp_path):
    with pytest.raises(NotFound, match="there are no parts"):
        merge_parts([tmp_path / "nothing.trec"])
    with pytest.raises(InputError, match=r"is no part; a part is named RUN\.shard-I-of-N"):
        merge_parts([first, first.with_name("other.trec")])
    with pytest.raises(NotFound, match="there is no part"):
        merge_parts([tmp_path / "out.trec.shard-1-of-2"])


# What cannot be written, and what a terminal is told


def test_a_reranked_run_needs_a_file_of_its_own_in_a_place_that_can_hold_it(models, library, first, ranked, tmp_path):
    with pytest.raises(InputError, match="is the run itself"):
        rerank_run(models["cross-encoder"], library, first, first)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is no folder; choose another --out"):
        ranked("file/out.trec")
    with pytest.raises(InputError, match="it is a folder; give the file to write"):
        ranked(".")
    assert ranked("new/folder/out.trec", shard="1/9").queries == 1


def test_the_run_of_other_queries_is_refused(models, library, first, tmp_path):
    strange = tmp_path / "strange.trec"
    strange.write_text(first.read_text().replace("q", "x"))
    with pytest.raises(Mismatch, match="ranks no query of collection 'library"):
        rerank_run(models["cross-encoder"], library, strange, tmp_path / "out.trec")


def test_a_journal_that_another_holds_is_refused(tmp_path):
    pytest.importorskip("fcntl", reason="this system has no such locks")
    with Journal(tmp_path / "journal", {"a": 1}, ["q"]):
        with pytest.raises(InputError, match="another process is computing this"):
            Journal(tmp_path / "journal", {"a": 1}, ["q"])


def test_digests_of_parts_sum_to_that_of_the_whole():
    digests = [f"{7 * i + 2**255:064x}" for i in range(5)]
    assert summed([summed(digests[:2]), summed(digests[2:]), summed([])]) == summed(reversed(digests))


def test_a_long_job_shows_a_bar_on_a_terminal_and_lines_in_a_log(models, library, first, tmp_path, monkeypatch):
    def shown(out, **how):
        console = Console(file=io.StringIO(), width=80, **how)
        rerank_run(models["cross-encoder"], library, first, tmp_path / out, 4, FLOAT32, Shard(), False, console)
        return console.file.getvalue()

    assert shown("a.trec", force_terminal=False) == "", "nothing is said of what takes less than a minute"
    monkeypatch.setattr(shards, "SECONDS_BETWEEN_LINES", 0.0)
    assert "8 of 9 queries, about 0 minutes left" in shown("b.trec", force_terminal=False)
    assert "/9" in shown("c.trec", force_terminal=True)


def test_a_model_of_the_hub_is_told_apart_by_its_commit(tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    place = tmp_path / "models--owner--reranker"
    for file, content in (("refs/main", commit), (f"snapshots/{commit}/config.json", "{}")):
        (place / file).parent.mkdir(parents=True)
        (place / file).write_text(content)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert model_digest("owner/reranker") == commit
    with pytest.raises(NotFound, match="'owner/unknown' could not be loaded"):
        model_digest("owner/unknown")


def test_texts_and_messages_cannot_steer_the_terminal(models, tmp_path, monkeypatch, capsys):
    texts = tmp_path / "texts.jsonl"
    wild = "red \x1b[31m alert\x07\n    9.999  forged \u202etxt.exe \x9b2J and\ttab é 語"
    texts.write_text(json.dumps({"text": wild}) + "\n", encoding="utf8")
    result = CliRunner().invoke(cli.app, ["rank", models["cross-encoder"], "-q", "alert", "-d", str(texts)])
    assert result.exit_code == 0
    assert r"red \x1b[31m alert\x07\n    9.999  forged \u202etxt.exe \x9b2J and" in result.stdout
    assert result.stdout.endswith("é 語\n")
    assert len(result.stdout.splitlines()) == 1
    monkeypatch.setattr(cli, "_quiet", lambda: None)
    monkeypatch.setattr(sys, "argv", ["rerank", "train", "no\x1b[2Jrecipe.toml"])
    with pytest.raises(SystemExit):
        cli.main()
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert r"no\x1b[2Jrecipe.toml" in said


def test_a_merge_never_replaces_a_file_that_is_not_ours(tmp_path):
    from rerank.experiment.merging import _check_target

    theirs = tmp_path / "bm25.trec"
    theirs.write_text("q1 Q0 d1 1 3.0 bm25\n")
    with pytest.raises(InputError, match=r"no manifest .* says that it was made by this command.*--overwrite"):
        _check_target(theirs, {}, overwrite=False)
    _check_target(theirs, {}, overwrite=True)


@pytest.mark.parametrize("done", [0, 1, 2])
def test_an_interrupted_overwrite_goes_on_without_overwrite(tmp_path, done):
    out, seen, ids = tmp_path / "o.trec", [], ("a", "b", "c")
    portion = Portion(WHOLE, {"name": "o", "command": "test"}, ids, (0, 3, 3), "0" * 64)

    def ranks(stop, score):
        def found(remaining):
            for query_id in remaining:
                if len(seen) == stop:
                    raise KeyboardInterrupt
                seen.append(query_id)
                yield query_id, (("d", score),)

        return found

    write_part(portion, out, ranks(None, 1.0))
    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        write_part(portion, out, ranks(done, 2.0), overwrite=True)
    write_part(portion, out, ranks(None, 2.0))
    assert seen == list(ids)
    assert {ranking[0][1] for ranking in read_run(out).rankings.values()} == {2.0}
