"""What `rerank bench` is given (names, places, options, files) is taken as meant, or refused with the way out."""

import errno
import json
import logging
import math
import sys
import threading
import time

import pytest
from rerank_stub import RerankStub
from typer.testing import CliRunner

from rerank import cli
from rerank.bench import BenchSet, Suite, bench, model_choices, suite_named
from rerank.bench.endpoint import HttpReranker
from rerank.bench.first_stages import Ground, Retrievers, first_stage, first_stage_choices
from rerank.bench.measuring import recorded, speed_of, tie_rate_of
from rerank.bench.systems import ModelChoice, check_names, system_of
from rerank.cli import terminal
from rerank.data import formats as formats_module
from rerank.data import write_run
from rerank.errors import InputError, NotFound
from rerank.evaluation.measures import evaluate
from rerank.experiment.reranking import Loading
from rerank.recipe import Retrieval
from rerank.types import Collection, Run

TIED = (("x", 1.0), ("y", 1.0))
SOUND = {"query": "q", "documents": 3, "ties": 1, "seconds": 0.5}


@pytest.fixture
def fails(monkeypatch, capsys):
    """Runs the whole program with arguments that are wrong; gives what it says on the error stream."""

    def call(*arguments, code=2):
        monkeypatch.setattr(sys, "argv", ["rerank", *map(str, arguments)])
        monkeypatch.setattr(cli, "_quiet", lambda: None)  # it would change the logging of this whole process
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        said = capsys.readouterr().err
        assert stopped.value.code == code
        assert "Traceback" not in said
        return " ".join(said.replace("│", " ").split())

    return call


@pytest.fixture
def data(tmp_path):
    """A folder that holds one small BEIR folder."""
    folder = tmp_path / "data" / "one"
    (folder / "qrels").mkdir(parents=True)
    for name in ("corpus", "queries"):
        lines = [json.dumps({"_id": f"{name[0]}{i}", "text": f"stone river {i}"}) + "\n" for i in range(4)]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf8")
    judged = "".join(f"q{i}\tc{i}\t1\n" for i in range(4))
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}", encoding="utf8")
    return folder.parent


# Timing files


def test_without_its_timing_file_a_run_has_no_tie_rate_and_that_is_said(tmp_path, caplog):
    assert math.isnan(tie_rate_of(tmp_path / "flat.timing.jsonl", ["a", "b"]))
    assert "flat.timing.jsonl is gone" in caplog.text and "2 of 2 queries" in caplog.text
    assert "delete flat.trec" in caplog.text


def test_queries_that_a_timing_file_does_not_tell_of_are_counted_aloud(tmp_path, caplog):
    path = tmp_path / "m.timing.jsonl"
    list(recorded(path, iter([("a", TIED, 1.0)])))
    assert tie_rate_of(path, ["a", "b", "c"]) == 1.0
    assert "tells nothing of 2 of 3 queries" in caplog.text
    caplog.clear()
    assert tie_rate_of(path, ["a"]) == 1.0 and not caplog.records


@pytest.mark.parametrize(
    "line",
    [
        b'{"query": "q\xff", "documents": 1, "ties": 0, "seconds": 1.0}',
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b"null",
        *(json.dumps({**SOUND, **wrong}).encode() for wrong in ({"query": 1}, {"query": None}, {"documents": "3"})),
        *(json.dumps({**SOUND, **wrong}).encode() for wrong in ({"documents": 3.0}, {"documents": True}, {"ties": -1})),
        *(json.dumps({**SOUND, **wrong}).encode() for wrong in ({"ties": 3}, {"ties": None}, {"ties": [0]})),
        *(json.dumps({**SOUND, **wrong}).encode() for wrong in ({"seconds": False}, {"seconds": "0.1"})),
        *(json.dumps({**SOUND, **wrong}).encode() for wrong in ({"seconds": math.nan}, {"seconds": math.inf})),
        *(json.dumps({**SOUND, **wrong}).encode() for wrong in ({"seconds": -1}, {"seconds": 10**400})),
        json.dumps({key: value for key, value in SOUND.items() if key != "seconds"}).encode(),
    ],
    ids=lambda line: line[:70].decode("latin-1"),
)
def test_a_line_that_is_no_record_is_left_out_aloud_and_the_arm_goes_on(line, tmp_path, caplog):
    path = tmp_path / "m.timing.jsonl"
    path.write_bytes(line + b"\n" + json.dumps({**SOUND, "query": "a"}).encode() + b"\n" + line[: len(line) // 2])
    assert tie_rate_of(path, ["a"]) == 1 / 2
    assert speed_of(path, ["a"])[:3] == (1, 3, 0.5)
    assert "2 of 3 lines cannot be read" in caplog.text
    list(recorded(path, iter([("b", TIED, 0.5)])))
    assert [json.loads(kept)["query"] for kept in path.read_text(encoding="utf8").splitlines()] == ["a", "b"]


def test_a_constant_scorer_whose_timing_file_is_lost_is_of_unknown_ties_in_what_bench_writes(data, tmp_path):
    with RerankStub(scorer=lambda query, texts: [0.5] * len(texts)) as stub:

        def measured():
            suite = Suite("s", (BenchSet("one", "one#test", data),), ("nDCG@10",))
            return bench(suite, model_choices([f"flat={stub.url}"]), ["bm25"], tmp_path / "out")

        assert measured().ties["one"]["flat on bm25"] == 1.0
        (tmp_path / "out" / "sets" / "one" / "bm25" / "flat.timing.jsonl").unlink()
        (tmp_path / "out" / "sets" / "one" / "done.json").unlink()
        again = measured()
    assert math.isnan(again.ties["one"]["flat on bm25"])
    assert "flat on bm25" not in again.speed["one"]
    kept = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf8"))
    assert kept["ties"]["one"]["flat on bm25"] is None


# Judged pools


def test_a_run_that_lacks_judged_documents_of_a_pool_is_told_of_with_their_number(tmp_path, caplog):
    texts = {d: "stone" for d in "abcd"}
    qrels = {"q": dict.fromkeys("abcd", 1), "r": {"a": 1, "elsewhere": 1}}
    collection = Collection(texts, {"q": "stone", "r": "stone"}, qrels)
    write_run(Run({"q": (("b", 2.0), ("z", 1.0)), "r": (("a", 1.0),)}, "mine"), tmp_path / "mine.trec")
    (choice,) = first_stage_choices([str(tmp_path / "mine.trec")])

    def made(name, barred):
        ground = Ground("pool", collection, "0" * 64, barred, True, Retrieval(retrievers=(), depth=10))
        return first_stage(choice, ground, tmp_path / name, Retrievers(tmp_path / "cache"))

    assert made("all", {}).run.doc_ids("q") == ("b", "a", "c", "d")
    assert "lacks 3 of the 5 judged documents, the candidates of pool" in caplog.text
    caplog.clear()
    # What is excluded is no candidate: it is not lacking.
    assert made("fewer", {"q": {"a", "c"}}).run.doc_ids("q") == ("b", "d")
    assert "lacks 1 of the 3 judged documents" in caplog.text
    caplog.clear()
    made("none", {"q": {"a", "c", "d"}})
    assert "judged documents" not in caplog.text


# Names and places


@pytest.mark.parametrize(
    "name",
    ["table.json", "done.json", "DONE.JSON", "x.jsonl", "a.trec", "first_stage", "First_Stage", "m.probe-typos"],
)
@pytest.mark.parametrize("what", ["model", "first stage"])
def test_names_of_files_of_ours_are_refused_with_the_way_out(name, what):
    with pytest.raises(InputError, match=f"how files of ours are called.*NAME={'RUN' if what != 'model' else 'WHERE'}"):
        check_names([name], what)


def test_a_folder_of_runs_with_such_a_name_can_be_given_another(tmp_path):
    (tmp_path / "facts.json").mkdir()
    with pytest.raises(InputError, match=r"'facts\.json'.*NAME=RUN"):
        first_stage_choices([str(tmp_path / "facts.json")])
    assert first_stage_choices([f"mine={tmp_path / 'facts.json'}"])[0].name == "mine"


@pytest.mark.parametrize("name", ["ü", "my model", "", "-x", "a/b"])
def test_a_name_that_cannot_be_one_is_told_the_rule_where_a_place_follows_it(name, tmp_path):
    (tmp_path / "run.trec").write_text("q Q0 d 1 1.0 x\n", encoding="utf8")
    for where in (tmp_path, "http://h/rerank", "tei+http://h"):
        with pytest.raises(InputError, match=r"before the = cannot be a name: a name is made of letters"):
            model_choices([f"{name}={where}"])
    with pytest.raises(InputError, match="cannot be a name"):
        first_stage_choices([f"{name}={tmp_path / 'run.trec'}"])


def test_a_folder_or_a_url_with_a_sign_of_equality_in_it_is_that_place(tmp_path):
    (tmp_path / "a=b").mkdir()
    assert model_choices([str(tmp_path / "a=b")])[0].where == str(tmp_path / "a=b")
    url = "https://h/rerank?next=http://g"
    assert model_choices([url])[0].where == url
    assert model_choices(["no such=thing"])[0].where == "no such=thing"  # loading it will say that it is not there


@pytest.mark.parametrize("where", ["ftp://me:SECRET@h/x", "tei+ftp://SECRET", "file:///SECRET", "hf://SECRET/x"])
def test_urls_of_another_kind_are_told_what_is_spoken_and_not_repeated(where):
    for ask in (
        lambda: model_choices([where]),
        lambda: model_choices([f"m={where}"]),
        lambda: system_of(ModelChoice("m", where)),
    ):
        with pytest.raises(InputError, match="only http and https are spoken") as raised:
            ask()
        assert "SECRET" not in str(raised.value)


def test_runs_of_one_name_can_be_told_apart_and_one_given_twice_is_told_so(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "run.trec").write_text("q Q0 d 1 1.0 x\n", encoding="utf8")
    one, other = (str(tmp_path / folder / "run.trec") for folder in ("a", "b"))
    with pytest.raises(InputError, match=r"two first stages are called 'run': tell them apart with NAME=RUN"):
        first_stage_choices([one, other])
    assert [c.name for c in first_stage_choices([one, f"other={other}", f"dir={tmp_path}"])] == ["run", "other", "dir"]
    for twice in (["bm25", "bm25"], [one, str(tmp_path / "b" / ".." / "a" / "run.trec")], [f"x={one}"] * 2):
        with pytest.raises(InputError, match="one is given twice: leave one out"):
            first_stage_choices(twice)
    with pytest.raises(InputError, match=r"'mine=bm25': bm25 has its own name.*write bm25"):
        first_stage_choices(["mine=bm25"])
    with pytest.raises(InputError, match="names no place"):
        first_stage_choices([""])


# Options


@pytest.mark.parametrize(
    ("loading", "problem"),
    [
        (Loading(device="nonsense"), "device 'nonsense' is not known; give 'cpu'"),
        (Loading(device="cuda:x"), "device 'cuda:x'"),
        (Loading(device=""), "device ''"),
        (Loading(precision="float8"), "precision 'float8' is not known"),
        (Loading(precision="int8"), "precision 'int8' is not known"),
        (Loading(precision="bfloat16", backend="onnx"), "precision 'bfloat16' is not known"),
        (Loading(backend="tensorrt"), "backend 'tensorrt' is not known"),
    ],
)
@pytest.mark.parametrize("models", [[], ["m=http://127.0.0.1:9/rerank"]])
def test_nonsense_about_loading_is_refused_where_nothing_is_loaded(loading, problem, models, data, tmp_path):
    suite = Suite("s", (BenchSet("one", "one#test", data),), ("nDCG@10",))
    with pytest.raises(InputError, match=problem):
        bench(suite, model_choices(models), ["bm25"], tmp_path / "out", loading=loading)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "loading", [Loading("cpu"), Loading(precision="int8", backend="onnx"), Loading(precision="float16", backend="vllm")]
)
def test_what_has_a_meaning_is_let_through(loading, tmp_path):
    Retrievers(tmp_path, loading)


@pytest.mark.parametrize(
    "command",
    [
        ["bench", "local:x"],
        ["train", "recipe.toml"],
        ["quickstart"],
        ["retrieve", "x"],
        ["merge", "x"],
        ["export", "x"],
    ],
)
@pytest.mark.parametrize("out", ["", " "])
def test_an_empty_out_is_refused(command, out, fails):
    assert "Invalid value for '--out': it is empty" in fails(*command, "--out", out)


def test_a_folder_that_cannot_be_made_is_one_message_with_advice(data, fails, tmp_path):
    (tmp_path / "plain").write_text("a file", encoding="utf8")
    out = tmp_path / "plain" / "deep" / "out"
    said = fails("bench", f"local:{data}", "--out", out)
    assert f"error: --out {out} cannot be written: Not a directory" in said
    assert "give a folder that you may write to" in said


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "no", "/elsewhere/x"), OSError(errno.EIO, "no")])
def test_an_error_from_elsewhere_is_not_taken_for_one_of_the_output(error, tmp_path):
    with pytest.raises(OSError) as raised, terminal.writing_to(tmp_path / "out"):
        raise error
    assert raised.value is error


def test_local_without_a_folder_says_what_to_give():
    for name in ("local:", "local:#dev", "local: "):
        with pytest.raises(NotFound, match=rf"suite '{name}': there is no folder.*give such a folder.*local:FOLDER"):
            suite_named(name)


def test_a_broken_bench_toml_is_named_once(data):
    (data / "bench.toml").write_text("[sets", encoding="utf8")
    with pytest.raises(InputError) as raised:
        suite_named(f"local:{data}")
    assert str(raised.value).count("bench.toml") == 1
    assert str(raised.value).startswith(f"{data / 'bench.toml'}: this is not TOML")


# Interruptions


@pytest.mark.parametrize(
    ("more", "hint"),
    [([], "the same command again\n"), (["--overwrite"], "the same command again without --overwrite")],
)
def test_ctrl_c_says_how_to_go_on(more, hint, data, tmp_path, monkeypatch, capsys):
    commands = {
        "rerank.bench.running.bench": ["bench", f"local:{data}", "--out", tmp_path / "out"],
        "rerank.experiment.retrieving.retrieve_run": ["retrieve", data / "one", "--out", tmp_path / "o.trec"],
        "rerank.experiment.reranking.rerank_run": ["rank", "m", "-c", "x", "--run", "r", "--out", tmp_path / "o.trec"],
        "rerank.experiment.reranking.rerank_requests": ["rank", "m", "--requests", "r", "--out", tmp_path / "o.json"],
    }

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_quiet", lambda: None)
    monkeypatch.setattr(terminal.errors, "width", 500)
    for place, arguments in commands.items():
        monkeypatch.setattr(place, interrupted)
        monkeypatch.setattr(sys, "argv", ["rerank", *map(str, arguments), *more])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == 130
        assert hint in capsys.readouterr().err


# What is said, and how often


def test_a_run_without_documents_for_a_query_is_told_of_unless_somebody_else_does(caplog):
    run, qrels = Run({"q": (("d", 1.0),)}), {"q": {"d": 1}, "r": {"d": 1}}
    quiet = evaluate(run, qrels, ["nDCG@10"], aloud=False)
    assert not caplog.records and quiet.missing == 1
    assert evaluate(run, qrels, ["nDCG@10"]) == quiet
    assert "no document for 1 of 2 judged queries" in caplog.text


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "there is no room for it"),
        (errno.EDQUOT, "there is no room for it"),
        (errno.EFBIG, "there is no room for it"),
        (errno.EACCES, "give a file in a folder that you may write to"),
    ],
)
def test_a_full_disk_is_told_apart_from_a_folder_that_may_not_be_written(number, advice, tmp_path, monkeypatch):
    def full(file):
        raise OSError(number, "the system's words")

    monkeypatch.setattr(formats_module.os, "fsync", full)
    with pytest.raises(InputError, match=rf"cannot be written: the system's words; {advice}"):
        formats_module.write_lines(["a"], tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


# Endpoints


@pytest.mark.parametrize("score", [3.5e38, -3.5e38, 1e39, 1e299, 10**40])
def test_a_score_that_no_run_can_hold_is_refused_when_it_comes(score):
    with RerankStub(scorer=lambda query, texts: [score] * len(texts)) as stub, HttpReranker(stub.url) as reranker:
        with pytest.raises(Exception, match="no finite number that float32 holds"):
            reranker.scores("q", ["1"])


def test_the_largest_score_that_a_run_can_hold_is_kept(tmp_path):
    largest = 3.4028234663852886e38
    with RerankStub(scorer=lambda query, texts: [largest, -largest]) as stub, HttpReranker(stub.url) as reranker:
        assert reranker.scores("q", ["1", "2"]) == [largest, -largest]
    write_run(Run({"q": (("a", largest), ("b", -largest))}), tmp_path / "r.trec")


def test_each_attempt_of_a_hanging_server_is_told_with_the_time_that_is_left_once_a_minute(caplog, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("rerank.bench.endpoint.time.monotonic", lambda: now[0])
    reranker = HttpReranker("http://127.0.0.1:9/rerank")
    for attempt, seconds in ((1, 0.0), (2, 30.0), (3, 29.0), (4, 1.0), (5, 60.0)):
        now[0] += seconds
        reranker._tell(attempt, 2.0)
    said = [record.getMessage() for record in caplog.records]
    assert [text.partition(" at attempt ")[2][:6] for text in said] == ["1 of 6", "4 of 6", "5 of 6"]
    # Five more attempts of 120 s after the first one, two after the fourth.
    assert "asking again in 2.0 s, for about 10 min at most" in said[0]
    assert "for about 4 min at most" in said[1]
    assert reranker.repeated == 5


def test_a_server_that_hangs_is_told_of_while_it_does(caplog):
    with RerankStub("cohere", ["slow"]) as stub, HttpReranker(stub.url, timeout=0.2, first_wait=0.001) as reranker:
        began = time.monotonic()
        asking = threading.Thread(target=reranker.scores, args=("q", ["1"]))
        asking.start()
        asking.join()
        assert time.monotonic() - began < 5
    (told,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert "no usable answer at attempt 1 of 6; asking again in 0.0 s, for about 1 s at most" in told.getMessage()


def test_all_probes_are_those_that_the_first_stages_allow(tmp_path, monkeypatch):
    asked = []
    (tmp_path / "one" / "qrels").mkdir(parents=True)
    (tmp_path / "one" / "corpus.jsonl").write_text('{"_id": "d", "text": "bread"}\n')
    (tmp_path / "one" / "queries.jsonl").write_text('{"_id": "q", "text": "bread"}\n')
    (tmp_path / "one" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    monkeypatch.setattr("rerank.bench.running.bench", lambda *given, **settings: asked.append(settings["probes"]))
    for stages in ([], ["-f", "bm25", "-f", "dense"]):
        arguments = ["bench", f"local:{tmp_path}", "--probe", "all", *stages, "--out", str(tmp_path / "out")]
        assert CliRunner().invoke(cli.app, arguments, catch_exceptions=False).exit_code == 0
    assert "first-stage" not in asked[0] and len(asked[0]) == 4 and len(asked[1]) == 5
