"""`rerank bench`: what it measures is what `rerank rank` and `rerank evaluate` give, and nothing is computed twice."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rerank_stub import RerankStub

import rerank
from rerank.bench import BenchSet, Published, Suite, bench, model_choices, suite_named
from rerank.bench import sets as sets_module
from rerank.bench.first_stages import Retrievers, first_stage_choices
from rerank.bench.measuring import recorded, speed_of, tie_rate_of
from rerank.bench.systems import ModelChoice, system_of
from rerank.data import load_collection, read_qrels, read_run
from rerank.errors import InputError, NotFound, Unfinished
from rerank.evaluation.across import Across
from rerank.evaluation.measures import evaluate
from rerank.experiment import reranking
from rerank.experiment.lists import limited
from rerank.experiment.reranking import Loading, rerank_run
from rerank.experiment.retrieving import retrieve_run
from rerank.experiment.workspace import locked
from rerank.models.backbones import load_cross_encoder, load_encoder
from rerank.models.light import LightScorer
from rerank.models.loading import save_policy
from rerank.models.policy import FirstStageWeights, ScorePolicy
from rerank.recipe import Retrieval
from rerank.types import CandidateList

DATA = Path(__file__).parents[1].parent / "shared" / "data"
FLOAT32 = Loading(device="cpu", precision="float32")
MEASURES = ("nDCG@10", "RR@10")
WORDS = "bread river stone lamp winter garden letter engine market forest window bridge copper violin harbour".split()


def write_set(folder, n_queries=6, n_documents=24, seed=0):
    """A BEIR folder: documents of drawn words, each with a number; a query asks for the words of one of them."""
    draw = np.random.default_rng(seed)
    documents = {f"d{i}": " ".join(draw.choice(WORDS, 7)) + f" {(7 * i) % n_documents}" for i in range(n_documents)}
    queries = {f"q{i}": " ".join(documents[f"d{i}"].split()[:3]) for i in range(n_queries)}
    (folder / "qrels").mkdir(parents=True)
    for name, texts in (("corpus", documents), ("queries", queries)):
        lines = [json.dumps({"_id": key, "text": text}) + "\n" for key, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf8")
    judged = [
        f"q{i}\td{(i + step) % n_documents}\t{grade}\n"
        for i in range(n_queries)
        for step, grade in ((0, 2), (5, 1), (9, 0))
    ]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judged), encoding="utf8")


@pytest.fixture
def suite(tmp_path):
    """Two small sets."""
    write_set(tmp_path / "data" / "one")
    write_set(tmp_path / "data" / "two", n_queries=5, seed=1)
    return of_folder(tmp_path / "data", "one", "two")


def of_folder(folder, *names, **settings):
    return Suite("small", tuple(BenchSet(name, f"{name}#test", folder, **settings) for name in names), MEASURES)


@pytest.fixture(scope="module")
def models(tiny_bert, tmp_path_factory):
    """Kind -> folder of a tiny model."""
    root = tmp_path_factory.mktemp("models")

    def cross_encoder(seed):
        scorer, _ = load_cross_encoder(str(tiny_bert), max_length=64, precision="float32", device="cpu")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            torch.nn.init.normal_(scorer.model[-1].linear.weight, std=0.3)
        return scorer

    def weights():
        return FirstStageWeights({"first stage": 0.3, "bm25": 0.2, "dense": 0.1})

    light = LightScorer(load_encoder(str(tiny_bert), "float32", "cpu"), 8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        torch.nn.init.normal_(light.outer.weight, std=0.5)
    made = {"plain": (cross_encoder(3), None), "other": (cross_encoder(4), None)}
    made |= {"featured": (cross_encoder(3), weights()), "light": (light, weights())}
    settings = {"language": "english", "index": "flat", "encoder": str(tiny_bert)}
    for name, (scorer, first_stage) in made.items():
        save_policy(ScorePolicy(scorer, first_stage), root / name)
        (root / name / "retrieval.json").write_text(json.dumps(settings))
    return {name: str(root / name) for name in made}


@pytest.fixture
def measured(suite, models, tiny_bert, tmp_path):
    """Calls `bench` with the plain model on BM25, unless told otherwise."""

    def call(*names, suite=suite, first_stages=("bm25",), out="out", **settings):
        chosen = [ModelChoice(name, models[name]) for name in names]
        settings = {"depth": 12, "encoder": str(tiny_bert), "loading": FLOAT32} | settings
        return bench(suite, chosen + settings.pop("more", []), first_stages, tmp_path / out, **settings)

    return call


@pytest.fixture
def ranked(monkeypatch):
    """The query ids that models rank, in the order in which they do; warm-ups (of 8 candidates) are not among them."""
    seen, score = [], reranking.rerank_lists

    def told(policy, lists, name):
        seen.extend(c.query_id for c in lists if len(c) > 8)
        return score(policy, lists, name)

    monkeypatch.setattr(reranking, "rerank_lists", told)
    return seen


def contents(out, *endings):
    """name -> bytes of the files that do not hold times."""
    kept = [p for p in out.rglob("*") if p.is_file() and p.name.endswith(endings)]
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in kept}


def json_of(path):
    return json.loads(path.read_text(encoding="utf8"))


# What is measured


@pytest.mark.parametrize("model", ["plain", "featured", "light"])
def test_the_figures_are_those_of_retrieve_then_rank_then_evaluate(
    model, measured, suite, models, tiny_bert, tmp_path, monkeypatch
):
    # `rank` makes a model's first-stage scores in the machine's own number format, `bench` in the one asked for.
    monkeypatch.setattr(reranking, "load_encoder", lambda name: load_encoder(name, "float32", "cpu"))
    found = measured(model, first_stages=["dense"])
    for bench_set in suite.sets:
        source, arm = f"{bench_set.base / bench_set.name}#test", f"{model} on dense"
        first, out = tmp_path / f"{bench_set.name}.first.trec", tmp_path / f"{bench_set.name}.{model}.trec"
        retrieve_run(source, first, Retrieval(retrievers=("dense",)), depth=12, encoder=str(tiny_bert), loading=FLOAT32)
        rerank_run(models[model], source, first, out, loading=FLOAT32)
        kept = tmp_path / "out" / "sets" / bench_set.name / "dense"
        assert read_run(kept / "first_stage.trec").rankings == read_run(first).rankings
        ours, theirs = read_run(kept / f"{model}.trec"), read_run(out)
        assert {q: ours.doc_ids(q) for q in ours.rankings} == {q: theirs.doc_ids(q) for q in theirs.rankings}
        if model == "plain":  # the others read vectors, whose last bits depend on what they are encoded with
            assert ours.rankings == theirs.rankings
        expected = evaluate(theirs, load_collection(source).qrels, [*MEASURES, "Judged@10"])
        assert found.tables[bench_set.name].per_query[arm] == expected.per_query
    assert set(found.means[arm]) == {*MEASURES, "Judged@10"}


def test_hybrid_is_the_fusion_that_retrieve_makes(measured, suite, tiny_bert, tmp_path):
    measured(first_stages=["hybrid"])
    both = Retrieval(retrievers=("bm25", "dense"))
    source = f"{suite.sets[0].base / 'one'}#test"
    retrieve_run(source, tmp_path / "rrf.trec", both, depth=12, encoder=str(tiny_bert), loading=FLOAT32)
    kept = read_run(tmp_path / "out" / "sets" / "one" / "hybrid" / "first_stage.trec")
    assert kept.rankings == read_run(tmp_path / "rrf.trec").rankings


@pytest.mark.parametrize(
    ("split", "of", "figures"),
    [("train", "dl19", {"bm25": 0.5058, "vicuna": 0.6682}), ("test", "dl20", {"bm25": 0.4796, "vicuna": 0.6549})],
)
def test_stored_runs_on_the_full_judgements_give_the_known_figures(split, of, figures, tmp_path):
    folder = DATA / "trec-dl-19-20"
    if not (folder / "qrels_full").is_dir():
        pytest.skip("trec-dl-19-20 is not in the folder shared/data beside the checkout")
    for name, kept in (("bm25", "firststage.bm25"), ("vicuna", "teacher.rankvicuna-over-bm25")):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{of}.trec").write_bytes((folder / "runs" / f"{of}.{kept}.trec").read_bytes())
    suite = Suite("dl", (BenchSet(of, f"trec-dl-19-20#{split}", DATA),), ("nDCG@10",))
    stages = [str(tmp_path / name) for name in figures]
    found = bench(suite, [], stages, tmp_path / "out", qrels={of: folder / "qrels_full" / f"{split}.tsv"})
    assert {arm: round(cells["nDCG@10"].mean, 4) for arm, cells in found.means.items()} == figures


def test_models_are_tested_against_their_first_stage_and_further_ones_against_the_first(measured):
    found = measured("plain", "other", first_stages=["bm25", "hybrid"])
    pairs = [(c.arm, c.against) for c in found.comparisons if c.measure == "nDCG@10"]
    assert pairs == [
        (arm, against)
        for stage in ("bm25", "hybrid")
        for arm, against in (
            (f"plain on {stage}", stage),
            (f"other on {stage}", stage),
            (f"other on {stage}", f"plain on {stage}"),
        )
    ]


def test_candidates_of_a_judged_pool_are_the_judged_documents_whatever_the_first_stage(measured, suite, tmp_path):
    whole = measured(first_stages=["bm25"], out="whole")
    run = tmp_path / "whole" / "sets" / "one" / "bm25" / "first_stage.trec"
    partial = tmp_path / "partial.trec"
    lines = run.read_text(encoding="utf8").splitlines(keepends=True)
    partial.write_text("".join(line for line in lines if " d0 " not in line), encoding="utf8")
    pooled = replace(suite, sets=(replace(suite.sets[0], judged_pool=True),))
    stages = ["bm25", "hybrid", str(partial)]
    found = measured("plain", suite=pooled, first_stages=stages, depth=1)
    qrels = load_collection(f"{suite.sets[0].base / 'one'}#test").qrels
    for stage in ("bm25", "hybrid", "partial"):
        for name in ("first_stage", "plain"):
            kept = read_run(tmp_path / "out" / "sets" / "one" / stage / f"{name}.trec")
            assert {q: set(kept.doc_ids(q)) for q in kept.rankings} == {q: set(grades) for q, grades in qrels.items()}
    judged, before = (table.tables["one"].arms["bm25"]["Judged@10"].mean for table in (found, whole))
    assert judged == 1.0 > before
    ordered = read_run(tmp_path / "out" / "sets" / "one" / "partial" / "first_stage.trec")
    for query_id, grades in qrels.items():  # the run's own order first, what it lacks below
        there = [d for d in read_run(partial).doc_ids(query_id) if d in grades]
        assert ordered.doc_ids(query_id) == (*there, *sorted(set(grades) - set(there)))


def test_a_document_that_is_the_query_itself_is_no_candidate_and_the_depth_is_filled(measured, tmp_path):
    folder = tmp_path / "selves" / "one"
    write_set(folder)
    for name in ("queries.jsonl", "qrels/test.tsv"):
        (folder / name).write_text((folder / name).read_text().replace('"q', '"d').replace("\nq", "\nd"))
    suite = of_folder(tmp_path / "selves", "one", without_itself=True)
    measured(suite=suite, first_stages=["bm25", "hybrid"], depth=7)
    for stage in ("bm25", "hybrid"):
        run = read_run(tmp_path / "out" / "sets" / "one" / stage / "first_stage.trec")
        assert {q: len(r) for q, r in run.rankings.items()} == {f"d{i}": 7 for i in range(6)}
        assert not [q for q in run.rankings if q in run.doc_ids(q)]


def test_a_limit_takes_the_queries_that_a_recipe_takes(measured, suite, tmp_path):
    found = measured(limit=3)
    whole = load_collection(f"{suite.sets[0].base / 'one'}#test")
    assert {*found.tables["one"].per_query["bm25"]["nDCG@10"]} == {*limited(whole, 3).queries}
    assert "3 of 6 judged queries" in " ".join(json_of(tmp_path / "out" / "summary.json")["notes"])


def test_a_first_stage_far_from_its_published_figure_is_told(measured, suite):
    near = measured(suite=suite).tables["one"].arms["bm25"]["nDCG@10"].mean

    def notes_of(value, out):
        row = Published("bm25", "ndcg@10", value, "a flat index", "in print")
        found = measured(suite=replace(suite, sets=(replace(suite.sets[0], published=(row,)),)), out=out)
        assert [(r["measured"], r["value"]) for r in found.published["one"]] == [(pytest.approx(near), value)]
        return json_of(suite.sets[0].base.parent / out / "summary.json")["notes"]

    (told,) = notes_of(near + 0.3, "far")
    assert "in print (a flat index; in print): more than 0.02 apart" in told
    assert notes_of(near + 0.01, "near") == []


# Speed and ties


def test_every_query_has_a_time_and_the_table_has_their_quantiles(measured, tmp_path):
    found = measured("plain")
    timing = tmp_path / "out" / "sets" / "one" / "bm25" / "plain.timing.jsonl"
    records = [json.loads(line) for line in timing.read_text().splitlines()]
    assert [record["query"] for record in records] == [f"q{i}" for i in range(6)]
    speed = found.speed["one"]["plain on bm25"]
    seconds = [record["seconds"] for record in records]
    assert (speed.queries, speed.pairs) == (6, sum(record["documents"] for record in records))
    assert (speed.p50, speed.p95) == tuple(np.quantile(seconds, [0.5, 0.95]))
    assert speed.pairs_per_second == pytest.approx(speed.pairs / sum(seconds))
    assert set(found.speed["one"]) == {"plain on bm25"}


def test_of_a_query_ranked_twice_the_last_time_counts_and_a_torn_line_is_dropped(tmp_path):
    path = tmp_path / "m.timing.jsonl"
    list(recorded(path, iter([("a", (("x", 1.0), ("y", 1.0)), 1.0), ("b", (("x", 2.0), ("y", 1.0)), 4.0)])))
    with path.open("a") as file:
        file.write('{"query": "c", "docum')
    list(recorded(path, iter([("b", (("x", 2.0), ("y", 1.0)), 3.0)])))
    assert len(path.read_text().splitlines()) == 3
    assert speed_of(path, ["a", "b", "c"])[:3] == (2, 4, 4.0)
    assert tie_rate_of(path, ["a", "b"]) == 1 / 2
    assert speed_of(tmp_path / "none", ["a"]) is None


def test_a_constant_scorer_is_tied_throughout_and_no_better_than_its_first_stage(measured, tmp_path):
    with RerankStub(scorer=lambda query, texts: [0.5] * len(texts)) as stub:
        found = measured(more=model_choices([f"flat={stub.url}"]))
    assert found.ties["one"]["flat on bm25"] == 1.0 > found.ties["one"]["bm25"]
    assert found.means["flat on bm25"] == found.means["bm25"]
    (comparison,) = [c for c in found.comparisons if c.measure == "nDCG@10"]
    assert comparison.difference == 0.0 and not comparison.measurable


# Endpoints


def test_an_endpoint_is_measured_as_a_client_sees_it(measured, suite, tmp_path):
    with RerankStub("tei", delay=0.02) as stub:
        found = measured(more=model_choices([f"numbers=tei+{stub.base}"]))
    documents = load_collection(f"{suite.sets[0].base / 'one'}#test").documents
    run = read_run(tmp_path / "out" / "sets" / "one" / "bm25" / "numbers.trec")
    for query_id in run.rankings:
        numbers = [int(documents[d].split()[-1]) for d in run.doc_ids(query_id)]
        assert numbers == sorted(numbers, reverse=True)
    assert found.speed["one"]["numbers on bm25"].p50 > 0.02


def test_an_endpoint_that_is_down_leaves_the_other_arms_whole_and_is_asked_again(measured, models, tmp_path, ranked):
    with RerankStub() as stub:
        url = stub.url
    more = model_choices([f"hosted={url}"])
    with pytest.raises(Unfinished, match=r"2 of 2 sets of small are not complete") as told:
        measured("plain", more=more)
    assert "one, hosted on bm25: " in str(told.value) and url in str(told.value)
    assert {*told.value.found.arms} == {"bm25", "plain on bm25"}
    assert {m["arm"] for m in json_of(tmp_path / "out" / "summary.json")["missing"]} == {"hosted on bm25"}
    assert len(ranked) == 11
    with RerankStub() as stub:
        found = measured("plain", more=[ModelChoice("hosted", stub.url)])
    assert {*found.arms} == {"bm25", "plain on bm25", "hosted on bm25"} and len(ranked) == 11


# Nothing is computed twice


def test_a_finished_set_is_read_back_without_its_collection(measured, monkeypatch, tmp_path, ranked):
    before = measured("plain", probes=["shuffle", "n-1"])
    files, results = contents(tmp_path / "out", ".json", ".trec", ".jsonl"), json_of(tmp_path / "out" / "results.json")
    ranked.clear()

    def not_loaded(*_):
        raise AssertionError("a finished set was loaded")

    monkeypatch.setattr(sets_module, "load_collection", not_loaded)
    after = measured("plain", probes=["shuffle", "n-1"])
    assert after.to_json() == before.to_json() == results == json_of(tmp_path / "out" / "results.json")
    changed = {
        name for name, data in contents(tmp_path / "out", ".json", ".trec", ".jsonl").items() if files[name] != data
    }
    assert changed <= {"summary.json"} and ranked == []
    assert Across.from_json(results).to_json() == results


def test_adding_a_model_or_a_first_stage_keeps_what_is_there(measured, tmp_path, ranked):
    measured("plain")
    kept = contents(tmp_path / "out", ".trec", ".jsonl")
    assert len(ranked) == 6 + 5
    found = measured("plain", "other", first_stages=["bm25", "dense"])
    assert len(ranked) == 11 + 11 + 22
    assert {name: data for name, data in contents(tmp_path / "out", ".trec", ".jsonl").items() if name in kept} == kept
    assert len(found.arms) == 2 + 4
    measured("other", first_stages=["dense"])
    assert len(ranked) == 11 + 11 + 22


def test_after_a_failed_attempt_at_more_the_finished_set_is_not_taken_from_its_files(measured, tmp_path):
    before = measured("plain")
    with RerankStub() as stub:
        gone = stub.url
    with pytest.raises(Unfinished):
        measured("plain", "other", more=[ModelChoice("hosted", gone)])
    assert not list((tmp_path / "out").rglob("done.json"))
    assert measured("plain").to_json() == before.to_json()


def test_damaged_files_of_a_finished_set_are_made_anew_from_its_runs(measured, tmp_path, ranked, caplog):
    before = measured("plain")
    ranked.clear()
    (tmp_path / "out" / "sets" / "one" / "facts.json").write_text('{"ties": ')
    assert measured("plain").to_json() == before.to_json()
    assert ranked == [] and "made anew from the runs" in caplog.text


def test_a_collection_that_changed_is_not_taken_for_the_old_one(measured, suite, ranked, tmp_path):
    measured("plain")
    corpus = suite.sets[0].base / "one" / "corpus.jsonl"
    corpus.write_text(corpus.read_text().replace("bread", "butter"), encoding="utf8")
    with pytest.raises(Unfinished, match=r"one, bm25: .*another job.*documents.*--overwrite"):
        measured("plain")
    ranked.clear()
    measured("plain", overwrite=True)
    assert len(ranked) == 11


def test_models_are_loaded_once_for_all_sets(measured, monkeypatch):
    loaded, load = [], Loading.policy
    monkeypatch.setattr(Loading, "policy", lambda self, model: loaded.append(model) or load(self, model))
    measured("plain", "featured", first_stages=["bm25", "dense"], probes=["shuffle"])
    assert len(loaded) == 2


SLOW = """
import sys, time
from pathlib import Path
from rerank.bench import BenchSet, ModelChoice, Suite, bench
from rerank.experiment import reranking
from rerank.experiment.reranking import Loading
score = reranking.rerank_lists
def slow(*arguments):
    time.sleep(0.3)
    return score(*arguments)
reranking.rerank_lists = slow
data, model, encoder, out = sys.argv[1:]
suite = Suite("small", tuple(BenchSet(n, f"{n}#test", Path(data)) for n in ("one", "two")), ("nDCG@10", "RR@10"))
loading = Loading(device="cpu", precision="float32")
bench(suite, [ModelChoice("plain", model)], ["bm25"], Path(out), depth=12, encoder=encoder, loading=loading)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL on this system")
def test_after_a_kill_no_finished_query_is_ranked_again(measured, suite, models, tiny_bert, tmp_path, ranked):
    whole = measured("plain", out="whole")
    ranked.clear()
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SLOW, suite.sets[0].base, models["plain"], tiny_bert, out],
        env={**os.environ, "PYTHONPATH": str(Path(rerank.__file__).parents[1])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    journal = out / "sets" / "two" / "bm25" / ".plain.trec.journal"
    deadline = time.monotonic() + 120
    while not journal.exists() or journal.read_bytes().count(b"\n") < 3:
        assert process.poll() is None and time.monotonic() < deadline, "it ended too early, or never began"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = journal.read_bytes().count(b"\n") - 1
    assert done >= 2
    first_time = (out / "sets" / "one" / "bm25" / "plain.timing.jsonl").read_bytes()
    found = measured("plain")
    assert ranked == [f"q{i}" for i in range(done, 5)]
    assert contents(out, ".trec") == contents(tmp_path / "whole", ".trec")
    assert {s: t.per_query for s, t in found.tables.items()} == {s: t.per_query for s, t in whole.tables.items()}
    assert (out / "sets" / "one" / "bm25" / "plain.timing.jsonl").read_bytes() == first_time
    assert found.speed["two"]["plain on bm25"].queries == 5


def test_two_processes_do_not_work_in_one_folder(measured, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out"):
        (tmp_path / "out" / ".lock").write_text(str(os.getppid()))
        with pytest.raises(InputError, match="is working in"):
            measured("plain")


# What fails


def test_a_set_that_fails_is_told_and_the_others_go_on(measured, suite, tmp_path):
    qrels = suite.sets[0].base / "one" / "qrels" / "test.tsv"
    well = qrels.read_text()
    qrels.write_text(well + "q1\td3\tgood\n", encoding="utf8")
    with pytest.raises(Unfinished, match=r"1 of 2 sets of small is not complete(.|\n)*one: .*test.tsv:20"):
        measured("plain")
    assert [m["set"] for m in json_of(tmp_path / "out" / "summary.json")["missing"]] == ["one"]
    assert {*json_of(tmp_path / "out" / "results.json")["sets"]} == {"two"}
    qrels.write_text(well, encoding="utf8")
    assert {*measured("plain").tables} == {"one", "two"}
    assert json_of(tmp_path / "out" / "summary.json")["missing"] == []


def test_a_set_without_a_run_in_the_folder_of_runs_is_told(measured, suite, tmp_path):
    measured(out="before")
    (tmp_path / "runs").mkdir()
    made = tmp_path / "before" / "sets" / "two" / "bm25" / "first_stage.trec"
    (tmp_path / "runs" / "two.trec").write_bytes(made.read_bytes())
    with pytest.raises(Unfinished, match=r"one, runs: --first-stage .* there is no run one.trec"):
        measured("plain", first_stages=[str(tmp_path / "runs")])
    found = json_of(tmp_path / "out" / "results.json")
    assert {*found["sets"]} == {"two"} and {*found["sets"]["two"]["arms"]} == {"runs", "plain on runs"}


def test_when_nothing_can_be_measured_the_error_says_why_and_has_no_table(measured, tmp_path):
    suite = of_folder(tmp_path, "nowhere")
    with pytest.raises(Unfinished, match=r"nowhere: .*no folder") as told:
        measured("plain", suite=suite)
    assert told.value.found is None and not (tmp_path / "out" / "results.json").exists()


def test_a_fault_of_a_library_does_not_stop_the_other_sets_and_keeps_its_traceback(measured, monkeypatch, caplog):
    load = sets_module.load_collection

    def faulty(source, base):
        if "one" in source:
            raise RuntimeError("broken pipe")
        return load(source, base)

    monkeypatch.setattr(sets_module, "load_collection", faulty)
    with caplog.at_level(logging.ERROR), pytest.raises(Unfinished, match="one: RuntimeError: broken pipe"):
        measured("plain")
    assert any(record.exc_info for record in caplog.records)


def test_an_interruption_is_no_failure_of_a_set(measured, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sets_module, "load_collection", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measured("plain")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"depth": 0}, InputError, "--depth 0"),
        ({"probes": ["typo"]}, InputError, "did you mean 'typos'"),
        ({"probes": ["first-stage"]}, InputError, "name two"),
        ({"measures": ["nDCG@ten"]}, InputError, "unknown measure"),
        ({"first_stages": ["bm26"]}, InputError, "did you mean 'bm25'"),
        ({"first_stages": []}, InputError, "no first stage"),
        ({"first_stages": ["bm25", "bm25"]}, InputError, "two first stages are called 'bm25'"),
        ({"qrels": {"three": Path("x")}}, InputError, "no such set"),
        ({"qrels": {"one": Path("x")}}, NotFound, "no such file"),
        ({"more": [ModelChoice("plain", "nowhere/at/all")]}, InputError, "two models are called 'plain'"),
        ({"more": [ModelChoice("gone", "./nowhere")]}, NotFound, "no model folder"),
        ({"more": [ModelChoice("first_stage", "x")]}, InputError, "files of ours"),
        ({"measures": ["Judged@5", "nDCG@10"]}, InputError, "speaks of the judgements, not of the ranking"),
        ({"first_stages": ["dense"], "encoder": "./nowhere"}, NotFound, "nowhere"),
        ({"first_stages": ["bm25", "hybrid"], "encoder": "./nowhere"}, NotFound, "nowhere"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_measured(settings, error, message, measured, tmp_path):
    with pytest.raises(error, match=message):
        measured("plain", **settings)
    assert not (tmp_path / "out" / "sets").exists()


# Probes


def test_probes_are_kept_as_runs_and_their_drops_are_in_the_table(measured, tmp_path):
    names = ["shuffle", "distract", "n-1", "first-stage", "typos"]
    found = measured("plain", first_stages=["bm25", "dense"], probes=names)
    drops = {row["probe"]: row for row in found.probes["one"]["plain on bm25"]}
    assert {*drops} == {*names}
    assert drops["shuffle"]["drop"] == 0.0 == drops["shuffle"]["moved"]  # it reads one candidate at a time
    assert drops["n-1"]["moved"] == 0.0
    first, second = (found.tables["one"].arms[f"plain on {stage}"]["nDCG@10"].mean for stage in ("bm25", "dense"))
    assert drops["first-stage"]["drop"] == pytest.approx(first - second)
    assert "first-stage" not in {row["probe"] for row in found.probes["one"]["plain on dense"]}
    kept = {path.name for path in (tmp_path / "out" / "sets" / "one" / "bm25").glob("*.probe-*.trec")}
    assert kept == {f"plain.probe-{name}.trec" for name in names if name != "first-stage"}


def test_a_model_that_reads_scores_is_given_those_of_the_query_and_the_documents_that_a_probe_shows(
    models, suite, tiny_bert, tmp_path
):
    one = suite.sets[0]
    collection = load_collection(f"{one.base / one.name}#test")
    (bm25,) = Retrievers(tmp_path)(Retrieval(retrievers=("bm25",)), collection)
    run = bm25.retrieve(collection.queries, 6)
    query_id, ranking = next((q, r) for q, r in run.rankings.items() if len(r) > 3)
    added = next(d for d in collection.documents if d not in dict(ranking))
    shown = CandidateList(
        query_id, "bread", (ranking[0][0], added), (collection.documents[ranking[0][0]], collection.documents[added])
    )
    asked = replace(collection, queries={**collection.queries, query_id: "bread"})
    model = system_of(ModelChoice("m", models["featured"]), FLOAT32, Retrievers(tmp_path, FLOAT32))
    (prepared,) = model.prepared([shown], asked, run)
    assert prepared.features["bm25"] == pytest.approx(bm25.score("bread", shown.doc_ids))
    assert np.isfinite(prepared.features["dense"]).all()
    # What the first stage did not find has no score of the first stage.
    assert prepared.features["first stage"][0] == ranking[0][1] and np.isnan(prepared.features["first stage"][1])


def test_a_probe_that_can_change_no_query_has_no_drop(measured, suite):
    queries = suite.sets[0].base / "one" / "queries.jsonl"
    numbers = [json.dumps({"_id": f"q{i}", "text": f"{i} {i + 1}"}) + "\n" for i in range(6)]
    queries.write_text("".join(numbers), encoding="utf8")
    one = replace(suite, sets=suite.sets[:1])
    found = measured("plain", probes=["typos", "shuffle"], suite=one, first_stages=["dense"])
    assert [row["probe"] for row in found.probes["one"]["plain on dense"]] == ["shuffle"]


def test_queries_without_candidates_count_zero_and_are_told(measured, suite, tmp_path):
    measured(out="before")
    whole = (tmp_path / "before" / "sets" / "one" / "bm25" / "first_stage.trec").read_text(encoding="utf8")
    run = tmp_path / "partly.trec"
    run.write_text("".join(line for line in whole.splitlines(keepends=True) if not line.startswith("q2 ")))
    chosen = replace(suite, sets=suite.sets[:1])
    stages = [str(run), "bm25"]
    found = measured("plain", suite=chosen, first_stages=stages, measures=["R@5"], depth=5, probes=["first-stage"])
    assert found.tables["one"].per_query["plain on partly"]["R@5"]["q2"] == 0.0
    (drop,) = found.probes["one"]["plain on partly"]
    assert drop["queries"] == 5
    notes = json_of(tmp_path / "out" / "summary.json")["notes"]
    assert "one: 1 of 6 queries has no candidate of partly; it counts 0" in notes


# Files


def test_the_folder_holds_all_that_one_would_quote(measured, tmp_path):
    measured("plain", command="rerank bench small")
    out = tmp_path / "out"
    assert {"results.json", "results.md", "results.tex", "results.csv", "summary.json", "report.html"} <= {
        path.name for path in out.iterdir()
    }
    summary = json_of(out / "summary.json")
    assert summary["command"] == "rerank bench small" and summary["hardware"]["cores"]
    assert summary["data"]["one"]["documents"] == 24 and len(summary["data"]["one"]["fingerprint"]) == 16
    assert {path.name for path in (out / "sets" / "one").iterdir() if path.is_file()} == {
        "changes.json",
        "done.json",
        "facts.json",
        "qrels.txt",
        "table.json",
    }
    written = evaluate(
        read_run(out / "sets" / "one" / "bm25" / "plain.trec"),
        read_qrels(out / "sets" / "one" / "qrels.txt"),
        ["nDCG@10"],
    )
    here = json_of(out / "results.json")["sets"]["one"]["arms"]["plain on bm25"]["nDCG@10"]["mean"]
    assert written.mean["nDCG@10"] == pytest.approx(here, abs=1e-12)
    assert "rerank bench small" in (out / "results.md").read_text(encoding="utf8")
    assert "plain on bm25" in (out / "results.md").read_text(encoding="utf8")


def test_a_run_of_train_is_not_written_into(measured, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "recipe.toml").write_text("")
    with pytest.raises(InputError, match="holds a run of `rerank train`"):
        measured("plain")


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["runs/a/model", "runs/b/model"], ["a-model", "b-model"]),
        (["runs/a/model"], ["model"]),
        (["org/mini", "mine=org/mini"], ["mini", "mine"]),
        (["https://api.example.org/v2/rerank#rerank-v3.5"], ["rerank-v3.5"]),
        (["tei+http://localhost:8080/rerank?a=b"], ["localhost-8080"]),
        (["http://h/rerank#m", "tei+http://h"], ["m", "h"]),
        (["x=tei+http://h/rerank?a=b"], ["x"]),
    ],
)
def test_models_are_called_by_the_last_parts_that_tell_them_apart(given, names):
    assert [choice.name for choice in model_choices(given)] == names


@pytest.mark.parametrize("given", [["a=x", "A=y"], ["x/y", "x/y"], ["a="], ["a.probe-b=x"], [""]])
def test_models_that_could_not_lie_side_by_side_are_refused(given):
    with pytest.raises(InputError):
        model_choices(given)


def test_a_run_is_called_by_its_stem_and_a_folder_of_runs_by_its_name(tmp_path):
    (tmp_path / "dl19.bm25.trec.gz").touch()
    (tmp_path / "runs").mkdir()
    choices = first_stage_choices(["dense", str(tmp_path / "dl19.bm25.trec.gz"), str(tmp_path / "runs")])
    assert [choice.name for choice in choices] == ["dense", "dl19.bm25", "runs"]


def test_a_run_of_other_queries_is_a_mismatch(measured, tmp_path):
    (tmp_path / "other.trec").write_text("x Q0 d1 1 1.0 t\n")
    with pytest.raises(Unfinished, match=r"one, other: .*ranks no judged query of one"):
        measured(first_stages=[str(tmp_path / "other.trec")])


def test_real_collections_run_from_end_to_end(tmp_path, models, tiny_bert):
    if not (DATA / "cacm").is_dir():
        pytest.skip("cacm is not in the folder shared/data beside the checkout")
    answers = "semeval2016-cqa-answers"
    suite = suite_named(f"local:{DATA}", only=["cacm", answers], judged_pools=[answers])
    chosen = [ModelChoice("plain", models["plain"])]
    found = bench(suite, chosen, ["bm25"], tmp_path / "out", depth=10, loading=FLOAT32, limit=8)
    assert {name: table.queries for name, table in found.tables.items()} == {"cacm": 8, answers: 8}
    assert found.tables["cacm"].arms["bm25"]["nDCG@10"].mean > 0.2
