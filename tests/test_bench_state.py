"""The folder of `rerank bench` after failures and damage: what stands in it is true, and nothing is lost."""

import csv
import io
import json
import logging

import pytest
from rerank_stub import RerankStub
from rich.console import Console
from test_bench import contents, json_of, of_folder, write_set

from rerank.bench import bench, model_choices
from rerank.bench.plan import can_pass
from rerank.errors import DataError, EndpointError, InputError, NotFound, Unfinished

FILES = ("table.json", "facts.json", "changes.json")


@pytest.fixture
def data(tmp_path):
    """The folder of two small sets."""
    write_set(tmp_path / "data" / "one")
    write_set(tmp_path / "data" / "two", n_queries=5, seed=1)
    return tmp_path / "data"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def stub():
    with RerankStub() as server:
        yield server


@pytest.fixture
def measured(data, out):
    """Calls `bench` on BM25 with the endpoints of NAME=URL."""

    def call(*models, suite=None, first_stages=("bm25",), depth=12, **settings):
        chosen = suite or of_folder(data, "one", "two")
        return bench(chosen, model_choices(list(models)), first_stages, out, depth=depth, **settings)

    return call


@pytest.fixture
def gone():
    """The url of a server that is there no more."""
    with RerankStub() as server:
        url = server.url
    return url


def break_set(data, name):
    """Makes the judgements of a set unreadable; what makes them whole again comes back."""
    path = data / name / "qrels" / "test.tsv"
    well = path.read_text(encoding="utf8")
    path.write_text(well + "q1\td3\tgood\n", encoding="utf8")
    return lambda: path.write_text(well, encoding="utf8")


def quoted(out):
    """name -> bytes of the files that one would quote."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file() and path.name != "report.html"}


def asked(stub):
    """How many lists a server ranked; a warm-up is of one document."""
    return sum(len(body["documents"]) > 1 for body in stub.answered)


def said(console):
    return console.file.getvalue()


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=200)


# A set that fails


def test_a_set_that_fails_as_a_whole_is_said_to_be_missing_in_every_file_of_results(measured, data, out):
    break_set(data, "one")
    with pytest.raises(Unfinished) as told:
        measured(first_stages=["bm25"])
    found = told.value.found
    assert list(found.absent) == ["one"] and "test.tsv:20" in found.absent["one"]
    assert json_of(out / "results.json")["absent"] == found.absent
    assert any(sentence.startswith("one is missing: ") for sentence in found.verdict())
    text = io.StringIO()
    Console(file=text, width=300).print(found.to_rich(300))
    pages = [(out / name).read_text(encoding="utf8") for name in ("results.md", "results.tex", "report.html")]
    assert all("one is missing: " in page for page in pages)
    assert "Missing: one." in " ".join(text.getvalue().split())
    rows = list(csv.DictReader((out / "results.csv").read_text(encoding="utf8").splitlines()))
    (row,) = [row for row in rows if row["set"] == "one"]
    assert not any(value for name, value in row.items() if name not in ("suite", "set"))
    assert "1 of 2 sets" in pages[2] and "one was asked for and is missing: " in pages[2]


def test_a_command_that_measures_nothing_leaves_results_and_their_summary_as_they_are(measured, data, out):
    measured(command="the first")
    before, sets = quoted(out), contents(out / "sets", ".json", ".trec")
    mend = [break_set(data, name) for name in ("one", "two")]
    with pytest.raises(Unfinished):
        measured(depth=5, command="the second")
    assert {name: data for name, data in quoted(out).items() if name != "failed.json"} == before
    assert contents(out / "sets", ".json", ".trec") == sets
    failed = json_of(out / "failed.json")
    assert (failed["command"], failed["depth"], len(failed["missing"])) == ("the second", 5, 2)
    for whole in mend:
        whole()
    measured(command="the third")
    assert json_of(out / "summary.json")["command"] == "the third" and not (out / "failed.json").exists()


def test_a_set_whose_first_stage_is_of_another_job_stays_finished_for_the_job_that_it_is_of(measured, out, console):
    measured()
    with pytest.raises(Unfinished):
        measured(depth=5)
    measured(console=console)
    assert said(console).count("done before") == 2


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_set_whose_collection_is_away_keeps_the_numbers_of_the_same_job(overwrite, measured, data, out, stub):
    before = measured(f"m={stub.url}")
    (data / "one").rename(data / "away")
    with pytest.raises(Unfinished, match="1 of 2 sets of small is not complete"):
        measured(f"m={stub.url}", overwrite=overwrite)
    found = json_of(out / "results.json")
    assert found["sets"]["one"] == before.to_json()["sets"]["one"] and found["absent"] == {}
    assert [note for note in json_of(out / "summary.json")["notes"] if note.startswith("one: it could not be measured")]
    assert not (out / "results.before.json").exists()
    with pytest.raises(Unfinished) as told:  # of another job they say nothing
        measured(f"m={stub.url}", measures=["RR@10"])
    assert [*told.value.found.absent] == ["one"] and [*told.value.found.tables] == ["two"]
    assert (out / "results.before.json").exists()


def test_results_that_had_more_are_kept_beside_and_the_whole_ones_stay(measured, data, out, console):
    measured(command="the first")
    before = {name: (out / name).read_bytes() for name in ("results.json", "summary.json")}
    mend = break_set(data, "one")
    with pytest.raises(Unfinished):
        measured(console=console)
    kept = {name: (out / name.replace(".json", ".before.json")).read_bytes() for name in before}
    assert kept == before and "results.before.json" in said(console)
    mend()
    break_set(data, "two")
    with pytest.raises(Unfinished):  # what it lacks, the partial results had
        measured()
    assert (out / "results.before.json").read_bytes() == before["results.json"]


def test_the_advice_after_a_failure_is_to_mend_what_will_not_pass_and_else_to_go_on(measured, data, gone):
    with pytest.raises(Unfinished, match="; the same command goes on with what is missing"):
        measured(f"m={gone}")
    break_set(data, "one")
    with pytest.raises(Unfinished, match="; mend what is said here, then give the same command again"):
        measured(f"m={gone}")


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (EndpointError("no answer"), True),
        (EndpointError("busy", 429), True),
        (EndpointError("down", 503), True),
        (EndpointError("no key", 401), False),
        (EndpointError("other shape", 200), False),
        (OSError("no room"), True),
        (NotFound("nowhere"), False),
        (InputError("wrong"), False),
        (RuntimeError("a fault"), False),
    ],
)
def test_what_may_pass_by_itself_is_told_from_what_must_be_mended(error, passes):
    assert can_pass(error) is passes


# Files that were changed


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [None, "", '{"ties": ', "[]", "{}", '{"notes": "abc"}', "1e999"])
def test_what_was_found_is_made_anew_from_the_runs_where_its_files_are_damaged(name, content, measured, out, stub):
    before = measured(f"m={stub.url}").to_json()
    files, requests = contents(out / "sets", *FILES, "done.json"), len(stub.bodies)
    path = out / "sets" / "one" / name
    path.unlink() if content is None else path.write_text(content, encoding="utf8")
    assert measured(f"m={stub.url}").to_json() == before
    assert contents(out / "sets", *FILES, "done.json") == files and len(stub.bodies) == requests


def test_a_table_that_was_changed_by_hand_is_not_believed(measured, out, caplog):
    before = measured().to_json()
    path = out / "sets" / "one" / "table.json"
    table = json_of(path)
    table["arms"]["bm25"]["nDCG@10"]["mean"] = 0.99
    path.write_text(json.dumps(table), encoding="utf8")
    with caplog.at_level(logging.WARNING, "rerank.bench"):
        assert measured().to_json() == before
    assert "table.json changed since; it is made anew from the runs" in caplog.text


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 2}', '{"format": 2, "job": 3, "sha256": []}'])
def test_a_damaged_word_that_a_set_is_done_is_no_word(content, measured, out):
    before = measured().to_json()
    (out / "sets" / "one" / "done.json").write_text(content, encoding="utf8")
    assert measured().to_json() == before
    assert json_of(out / "sets" / "one" / "done.json")["sha256"]


@pytest.mark.parametrize("run", ["first_stage", "m", "m.probe-shuffle"])
def test_a_run_that_was_changed_is_told_with_the_one_file_to_delete(run, measured, out, stub):
    before = measured(f"m={stub.url}", probes=["shuffle"]).to_json()
    path = out / "sets" / "one" / "bm25" / f"{run}.trec"
    lines = path.read_text(encoding="utf8").splitlines(keepends=True)
    path.write_text("".join([lines[1], lines[0], *lines[2:]]), encoding="utf8")
    requests = asked(stub)
    with pytest.raises(Unfinished) as told:
        measured(f"m={stub.url}", probes=["shuffle"])
    assert f"delete {path}, then give this command again; `--set one --overwrite` makes all of one" in str(told.value)
    assert asked(stub) == requests
    path.unlink()
    after = measured(f"m={stub.url}", probes=["shuffle"]).to_json()
    assert asked(stub) == requests + (0 if run == "first_stage" else 6)
    assert {name: table["per_query"] for name, table in after["sets"].items()} == {
        name: table["per_query"] for name, table in before["sets"].items()
    }


def test_one_arm_of_another_model_is_made_anew_by_deleting_its_run(measured, out, stub):
    measured(f"m={stub.url}")
    with RerankStub() as other:
        with pytest.raises(Unfinished, match=r"one, m on bm25: .*m.trec is there, but of another job: model is"):
            measured(f"m={other.url}")
        for name in ("one", "two"):
            (out / "sets" / name / "bm25" / "m.trec").unlink()
        measured(f"m={other.url}")
        assert asked(other) == 6 + 5


def test_one_set_is_made_anew_without_the_others(measured, data, out, stub):
    measured(f"m={stub.url}")
    requests, two = asked(stub), contents(out / "sets" / "two", "")
    measured(f"m={stub.url}", suite=of_folder(data, "one"), overwrite=True)
    assert asked(stub) == requests + 6 and contents(out / "sets" / "two", "") == two
    assert {*measured(f"m={stub.url}").tables} == {"one", "two"} and asked(stub) == requests + 6


def test_the_journal_of_another_job_is_named_with_the_run(measured, out, data):
    with RerankStub(behaviour=["well", "well", "well", "401"]) as first:
        with pytest.raises(Unfinished):
            measured(f"m={first.url}", suite=of_folder(data, "one"))
    journal = out / "sets" / "one" / "bm25" / ".m.trec.journal"
    assert journal.is_file()
    with RerankStub() as second:
        with pytest.raises(Unfinished, match="To make this one anew, and nothing else, delete ") as told:
            measured(f"m={second.url}", suite=of_folder(data, "one"))
        assert f"delete {journal}, then" in str(told.value)
        journal.unlink()
        measured(f"m={second.url}", suite=of_folder(data, "one"))


def test_a_folder_in_the_place_of_a_file_is_told(measured, out):
    (out / "sets" / "one" / "done.json").mkdir(parents=True)
    with pytest.raises(Unfinished, match=r"one: .*done.json is a folder, and a file belongs there: move it away"):
        measured()
    (out / "results.md").unlink()
    (out / "results.md").mkdir()
    with pytest.raises(InputError, match=r"results.md is a folder"):
        measured()


# Endpoints


def test_an_endpoint_that_gives_no_answer_is_asked_no_more_in_this_command(measured, data, gone, console):
    run = data / "same.trec"
    measured()
    run.write_bytes((data.parent / "out" / "sets" / "one" / "bm25" / "first_stage.trec").read_bytes())
    with pytest.raises(Unfinished) as told:
        measured(f"m={gone}", first_stages=["bm25", str(run)], console=console)
    first, second, others = [line for line in str(told.value).splitlines() if ", m on " in line]
    assert "no server can be reached" in first
    assert "not asked, as its attempts were spent on one, m on bm25" in second
    assert "the same of" in others and others.count(", m on ") == 2  # what fails alike is told once
    assert said(console).count("FAILED") == 1
    assert said(console).count("m is not asked again in this command") == 1


def test_what_an_endpoint_answered_before_is_read_when_it_is_asked_no_more(measured, data, out):
    with RerankStub() as server:
        url = server.url
        measured(f"m={url}")
        run = data / "same.trec"
        run.write_bytes((out / "sets" / "one" / "bm25" / "first_stage.trec").read_bytes())
    with pytest.raises(Unfinished) as told:
        measured(f"m={url}", first_stages=[str(run), "bm25"])
    assert {name: [*table.arms] for name, table in told.value.found.tables.items()} == {
        name: ["same", "bm25", "m on bm25"] for name in ("one", "two")
    }


def test_an_endpoint_that_refuses_one_request_is_asked_on_the_next_set(measured):
    with RerankStub(behaviour=["well", "400"]) as server:
        with pytest.raises(Unfinished, match="1 of 2 sets of small is not complete") as told:
            measured(f"m={server.url}")
    assert [*told.value.found.tables["two"].arms] == ["bm25", "m on bm25"]


# What is looked at before, and what is noted


def test_a_file_of_judgements_is_read_before_anything_is_measured(measured, tmp_path, out):
    path = tmp_path / "q.tsv"
    path.write_text("query-id\tcorpus-id\tscore\nq0\td0\tgood\n", encoding="utf8")
    with pytest.raises(DataError, match=r"q.tsv:2"):
        measured(qrels={"two": path})
    assert not (out / "sets").exists()


def test_judgements_of_others_do_not_bring_back_what_a_set_excludes(measured, data, tmp_path, out):
    path = data / "one" / "qrels" / "test.tsv"
    path.write_text(path.read_text(encoding="utf8") + "q0\td1\t-100\n", encoding="utf8")
    own = tmp_path / "own.tsv"
    own.write_text("query-id\tcorpus-id\tscore\nq0\td0\t1\nq9\td0\t1\n", encoding="utf8")
    measured(qrels={"one": own}, suite=of_folder(data, "one"), depth=24)
    run = (out / "sets" / "one" / "bm25" / "first_stage.trec").read_text(encoding="utf8")
    assert " d2 " in run and " d1 " not in run
    assert "one: 1 query that own.tsv judges has no text and is left out" in json_of(out / "summary.json")["notes"]


def test_folders_of_other_sets_are_named_in_the_summary(measured, out, data):
    measured()
    measured(suite=of_folder(data, "two"))
    assert "not of these results, though in the folder sets: one" in json_of(out / "summary.json")["notes"]


def test_a_measure_that_no_reordering_can_change_is_noted(measured, out):
    measured(measures=["nDCG@10", "R@12", "R@5"])
    assert "R@12: of 12 candidates a query, no reordering can change it" in json_of(out / "summary.json")["notes"]


def test_a_tie_rate_that_nobody_knows_is_written_and_read_back(measured, monkeypatch, out):
    from rerank.bench import first_stages

    monkeypatch.setattr(first_stages, "tie_rate_of", lambda *_: float("nan"))
    first, second = measured(), measured()
    assert json_of(out / "sets" / "one" / "facts.json")["ties"] == {"bm25": None}
    assert first.to_json() == second.to_json() and first.ties["one"]["bm25"] != first.ties["one"]["bm25"]
