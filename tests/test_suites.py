import json
import os
import re
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import pytest

from rerank.bench.suites import BenchSet, Published, excluded, suite_named
from rerank.data import load_collection
from rerank.errors import InputError, NotFound, RecipeError
from rerank.evaluation.measures import evaluate, parse_measure
from rerank.toml import parsed
from rerank.types import Collection, Run

DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real collections are not beside this checkout")
PUBLIC = ("beir", "nano-beir", "msmarco-dev", *(f"trec-dl-{year}" for year in range(19, 24)), "bright")
SETS = [(name, bench_set) for name in PUBLIC for bench_set in suite_named(name).sets]
every_set = pytest.mark.parametrize(("suite", "bench_set"), SETS, ids=[f"{n}-{s.name}" for n, s in SETS])


def beir_folder(folder, splits=("test",)):
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    (folder / "corpus.jsonl").write_text('{"_id": "d1", "text": "x"}\n')
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "x"}\n')
    for split in splits:
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    return folder


def names(suite):
    return [s.name for s in suite.sets]


def catalogue_id(bench_set):
    return bench_set.collection.removeprefix("ir_datasets:")


@lru_cache
def catalogue_counts():
    import ir_datasets

    return json.loads((Path(ir_datasets.__file__).parent / "etc" / "metadata.json").read_text())


# The public suites against the catalogue that they are read through


@every_set
def test_a_public_set_is_in_the_catalogue_with_documents_queries_and_judgements(suite, bench_set):
    import ir_datasets

    dataset = ir_datasets.load(catalogue_id(bench_set))
    assert dataset.has_docs() and dataset.has_queries() and dataset.has_qrels()
    assert dataset.queries_lang() in ("en", None) and bench_set.language == "english"


@every_set
def test_the_counts_in_a_note_are_those_of_the_catalogue(suite, bench_set):
    source, counts = catalogue_id(bench_set), catalogue_counts()
    said = re.match(r"([\d,]+) documents, ([\d,]+) (?:judged )?queries", bench_set.note)
    parents = [source.rsplit("/", i)[0] for i in range(source.count("/") + 1)]
    documents = next(n for p in parents if (n := counts.get(p, {}).get("docs", {}).get("count")))
    assert [int(n.replace(",", "")) for n in said.groups()] == [documents, counts[source]["queries"]["count"]]


def test_each_test_set_of_the_catalogue_is_in_its_suite():
    from ir_datasets import registry

    known = list(registry)
    beir = {n for n in known if n.startswith("beir/") and "/msmarco" not in n and not n.endswith(("/train", "/dev"))}
    beir -= {n for n in beir if f"{n}/test" in beir}
    assert {catalogue_id(s) for s in suite_named("beir").sets} == beir - {"beir/webis-touche2020"}
    nano = {n for n in known if n.startswith("nano-beir/")}
    assert {catalogue_id(s) for s in suite_named("nano-beir").sets} == nano and len(nano) == 13
    bright = {n for n in known if n.startswith("bright/") and not n.endswith("-long")}
    assert {catalogue_id(s) for s in suite_named("bright").sets} == bright and len(bright) == 12


def test_beir_without_its_four_closed_sets_is_14_sets_as_the_twelve_forums_count_as_one():
    suite = suite_named("beir")
    assert len({s.group or s.name for s in suite.sets}) == 14 == 18 - 4
    assert sum(s.group == "cqadupstack" for s in suite.sets) == 12
    assert all(closed in suite.note for closed in ("BioASQ", "Signal-1M", "TREC-NEWS", "Robust04"))


def test_only_in_arguana_and_quora_are_queries_documents_of_the_corpus():
    itself = {s.name for _, s in SETS if s.without_itself}
    assert itself == {"arguana", "quora", "nano-arguana", "nano-quora"}


# Measures and published figures


@pytest.mark.parametrize("suite", [suite_named(name) for name in PUBLIC], ids=PUBLIC)
def test_the_measures_of_a_suite_are_spelled_as_everywhere_and_the_customary_one_is_first(suite):
    assert [str(parse_measure(m)) for m in suite.measures] == list(suite.measures)
    assert suite.measures[0] == ("RR@10" if suite.name == "msmarco-dev" else "nDCG@10")
    binary = [parse_measure(m) for m in suite.measures if not m.startswith("nDCG")]
    assert {m.rel for m in binary} == ({2} if suite.name.startswith("trec-dl") else {1})
    assert len(set(names(suite))) == len(suite.sets)


@every_set
def test_each_set_has_a_published_bm25_figure_of_the_primary_measure_with_its_source(suite, bench_set):
    measures = suite_named(suite).measures
    assert re.fullmatch(r"[A-Za-z0-9._-]+", bench_set.name)
    assert any((f.arm, f.measure) == ("bm25", measures[0]) for f in bench_set.published)
    for figure in bench_set.published:
        assert figure.measure in measures and 0 < figure.value <= 1
        assert re.search(r"Anserini|bm25s|BM25 ", figure.what)
        assert re.match(r"castorini/|embeddings-benchmark/|sentence-transformers |Su et al\. 2024 ", figure.source)
    assert len({(f.measure, f.what) for f in bench_set.published}) == len(bench_set.published)


def test_some_published_figures_are_those_of_their_documents():
    def of(suite, name, measure):
        (bench_set,) = suite_named(suite, only=[name]).sets
        return [f.value for f in bench_set.published if f.measure == measure]

    assert of("trec-dl-19", "trec-dl-19", "nDCG@10") == [0.5058]
    assert of("trec-dl-20", "trec-dl-20", "nDCG@10") == [0.4796]
    assert of("trec-dl-23", "trec-dl-23", "AP(rel=2)@100") == [0.0793]
    assert of("beir", "scifact", "nDCG@10") == [0.6789, 0.6647]
    assert of("beir", "cqadupstack-wordpress", "R@100") == [0.5152, 0.5526]
    assert of("msmarco-dev", "msmarco-dev", "RR@10") == [0.1840, 0.1875]
    assert of("bright", "pony", "nDCG@10") == [0.0434, 0.0789, 0.079]


def test_each_row_of_figures_is_of_a_set_of_its_suite_and_has_a_figure_for_each_measure():
    for name, table in parsed(files("rerank.bench").joinpath("suites.toml").read_text("utf-8"), "suites").items():
        for system in table.get("figures", ()):
            assert system["values"].keys() <= table["sets"].keys(), name
            assert {len(row) for row in system["values"].values()} == {len(system["measures"])}, name


@needs_data
def test_our_own_bm25_is_near_the_published_figure_of_scifact():
    from rerank.retrieval.bm25 import BM25

    collection = load_collection("scifact#test", DATA)
    run = BM25.build(collection.documents).retrieve(collection.queries, 100)
    ours = evaluate(run, collection.qrels, ["nDCG@10", "R@100"]).mean
    (bench_set,) = suite_named("beir", only=["scifact"]).sets
    for figure in bench_set.published:
        assert ours[figure.measure] == pytest.approx(figure.value, abs=0.02)


# Documents that are no candidates


def test_a_document_with_the_query_s_own_id_is_no_candidate_where_the_set_says_so():
    collection = Collection({"a": "x", "b": "y"}, {"a": "x", "c": "z"}, {"a": {"b": 1}})
    assert excluded(BenchSet("s", "x", without_itself=True), collection) == {"a": {"a"}, "c": {"c"}}
    assert excluded(BenchSet("s", "x"), collection) == {}


def test_the_ids_that_bright_excludes_are_no_candidates_as_the_catalogue_hands_them_out(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    from ir_datasets.datasets.bright import BrightQrels

    rows = [
        {"id": "q1", "gold_ids": ["g1"], "excluded_ids": ["e1", "e2"]},
        {"id": "q2", "gold_ids": ["g2", "g3"], "excluded_ids": ["N/A"]},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "queries.parquet")
    grades = {}
    for judged in BrightQrels(SimpleNamespace(path=lambda: tmp_path / "queries.parquet")).qrels_iter():
        grades.setdefault(judged.query_id, {})[judged.doc_id] = judged.relevance
    collection = Collection({}, {"q1": "x", "q2": "y"}, grades)
    (bench_set,) = suite_named("bright", only=["leetcode"]).sets
    assert excluded(bench_set, collection) == {"q1": {"e1", "e2"}}


def test_the_grade_of_an_excluded_document_changes_no_measure_of_a_run_without_it():
    run = Run.from_scores({"q": {"a": 3.0, "b": 2.0, "c": 1.0}})
    measures = list(suite_named("bright").measures)
    with_it, without = ({"b": 1, "z": 1, "x": -100}, {"b": 1, "z": 1})
    assert evaluate(run, {"q": with_it}, measures).mean == evaluate(run, {"q": without}, measures).mean


# Choosing


def test_a_group_or_a_set_can_be_picked_and_the_suite_s_order_stays():
    picked = suite_named("beir", only=["scifact", "cqadupstack", "arguana"])
    assert names(picked)[0] == "arguana" and names(picked)[-1] == "scifact" and len(picked.sets) == 14


def test_a_judged_pool_is_set_for_the_named_sets_alone():
    suite = suite_named("nano-beir", only=["nano-nq", "nano-fiqa"], judged_pools=["nano-fiqa"])
    assert {s.name: s.judged_pool for s in suite.sets} == {"nano-fiqa": True, "nano-nq": False}
    assert not any(s.judged_pool for s in suite_named("nano-beir").sets)


@pytest.mark.parametrize("how", ["only", "judged_pools"])
def test_an_unknown_set_is_an_error_that_names_the_nearest(how):
    with pytest.raises(InputError, match=r"suite 'beir' has no set 'scifac'; did you mean 'scifact'\?"):
        suite_named("beir", **{how: ["scifac"]})


def test_an_unknown_suite_is_an_error_that_names_the_nearest_and_knows_a_folder_when_it_sees_one(tmp_path):
    with pytest.raises(InputError, match=r"no suite is called 'bier'; did you mean 'beir'\?.*local:FOLDER"):
        suite_named("bier")
    beir_folder(tmp_path / "mine")
    with pytest.raises(InputError, match="write local:mine to measure on it"):
        suite_named("mine", base=tmp_path)


# A user's own folder


def test_a_folder_of_beir_folders_gives_its_sets_by_name_and_each_can_be_read(tmp_path):
    with_colon = "x:y" if os.name != "nt" else "x y"
    for name in ("b", "a", "code", with_colon):
        beir_folder(tmp_path / "all" / name)
    suite = suite_named("local:all", base=tmp_path)
    assert (suite.name, names(suite)) == ("local:all", ["a", "b", "code", "x-y"])
    for bench_set in suite.sets:
        assert load_collection(bench_set.collection, bench_set.base).qrels == {"q1": {"d1": 1}}


@pytest.mark.parametrize("place", ["one", "one/.", "one/../one", "link", "with#mark", "one#test"])
def test_a_beir_folder_itself_is_a_suite_of_one_set(tmp_path, place):
    for name in ("one", "with#mark"):
        beir_folder(tmp_path / name)
    (tmp_path / "link").symlink_to("one", target_is_directory=True)
    (bench_set,) = suite_named(f"local:{place}", base=tmp_path).sets
    assert load_collection(bench_set.collection, bench_set.base).queries == {"q1": "x"}
    assert bench_set.name == {"link": "link", "with#mark": "with-mark"}.get(place, "one")


def test_the_folder_that_one_stands_in_is_named_by_its_own_name(tmp_path, monkeypatch):
    monkeypatch.chdir(beir_folder(tmp_path / "mine"))
    assert names(suite_named("local:.")) == ["mine"]
    (tmp_path / "mine" / "below").mkdir()
    monkeypatch.chdir(tmp_path / "mine" / "below")
    assert suite_named("local:..").name == "local:mine"


def test_another_split_is_measured_and_a_set_without_it_is_left_out_aloud(tmp_path, caplog):
    beir_folder(tmp_path / "a", splits=("train", "test"))
    beir_folder(tmp_path / "b")
    (tmp_path / ".git").mkdir()
    (tmp_path / "notes").mkdir()
    suite = suite_named(f"local:{tmp_path}#train")
    assert names(suite) == ["a"] and suite.sets[0].collection == "./a#train" and suite.name.endswith("#train")
    left_out = "2 of 3 folders are left out: b (no qrels/train.tsv (qrels: test)), notes (no corpus.jsonl, "
    assert left_out in caplog.text
    with pytest.raises(InputError, match=r"'b' was left out, as it has no qrels/train\.tsv \(qrels: test\)"):
        suite_named(f"local:{tmp_path}#train", only=["b"])


def test_gzipped_files_are_files_too(tmp_path, caplog):
    folder = beir_folder(tmp_path / "a")
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        (folder / name).rename(folder / f"{name}.gz")  # told by its first bytes when read, not by the name
    assert names(suite_named(f"local:{tmp_path}")) == ["a"] and not caplog.text


@pytest.mark.parametrize("place", ["nowhere", "", "empty#", "empty"])
def test_where_there_is_no_set_the_layout_is_told(tmp_path, place):
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFound, match=r"a set is a folder with corpus\.jsonl.*qrels/SPLIT\.tsv; give"):
        suite_named(f"local:{place}", base=tmp_path)


def test_of_many_folders_that_are_no_sets_the_first_are_named_and_all_are_counted(tmp_path):
    for i in range(12):
        (tmp_path / f"f{i:02}").mkdir()
    with pytest.raises(NotFound, match=r"12 of 12 folders are left out: f00 \(.*f07 \([^)]*\), and 4 more; a set is"):
        suite_named(f"local:{tmp_path}")


@pytest.mark.parametrize(("first", "second"), [("a b", "a+b"), ("Set", "set")])
def test_two_folders_whose_names_come_to_the_same_are_an_error(tmp_path, first, second):
    for name in (first, second):
        (tmp_path / name).mkdir(exist_ok=True)
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this file system does not tell the two names apart")
    for name in (first, second):
        beir_folder(tmp_path / name)
    with pytest.raises(InputError, match=r"its name as a set, .* is that of .*; rename one"):
        suite_named(f"local:{tmp_path}")


def test_a_folder_whose_name_has_no_latin_letter_is_an_error_only_where_it_is_a_set(tmp_path, caplog):
    beir_folder(tmp_path / "a")
    (tmp_path / "\u6570\u636e").mkdir()
    assert names(suite_named(f"local:{tmp_path}")) == ["a"] and "\u6570\u636e (no corpus.jsonl" in caplog.text
    beir_folder(tmp_path / "\u6570\u636e")
    with pytest.raises(InputError, match="needs a letter"):
        suite_named(f"local:{tmp_path}")


# bench.toml


def described(tmp_path, text):
    for name in ("german", "pool"):
        if not (tmp_path / name).exists():
            beir_folder(tmp_path / name)
    (tmp_path / "bench.toml").write_text(text, encoding="utf-8")
    return suite_named(f"local:{tmp_path}")


def test_bench_toml_says_language_pool_group_notes_figures_and_measures(tmp_path):
    suite = described(
        tmp_path,
        """
        measures = ["ndcg_cut_5", "R@20"]
        note = "ours"
        [sets.german]
        language = "german"
        without_itself = true
        note = "CC BY"
        published = [{ arm = "bm25", measure = "ndcg@10", value = 0.75, what = "rank_bm25", source = "README.md" }]
        [sets.pool]
        judged_pool = true
        group = "g"
        """,
    )
    assert (suite.measures, suite.note) == (("nDCG@5", "R@20"), "ours")
    german, pool = suite.sets
    assert (german.language, german.without_itself, german.note) == ("german", True, "CC BY")
    assert german.published == (Published("bm25", "nDCG@10", 0.75, "rank_bm25", "README.md"),)
    assert (pool.judged_pool, pool.group, pool.language) == (True, "g", "english")
    assert described(tmp_path, "measures = []").measures == ("nDCG@10", "RR@10", "R@100")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[sets.german]\nlanguag = 'german'", r"unknown key 'sets\.german\.languag'; did you mean 'language'\?"),
        ("[sets.germn]", r"sets\.germn: there is no such folder here; did you mean 'german'\?"),
        ("[sets.german]\nlanguage = 'germn'", r"sets\.german: no tokenizer for the language 'germn'; did you mean"),
        ("[sets.german]\njudged_pool = 1", r"sets\.german\.judged_pool = 1 must be"),
        ("[sets.german]\ncollection = 'x'", r"unknown key 'sets\.german\.collection'"),
        ("measures = ['nDGC@10']", "unknown measure 'nDGC@10'"),
        ("[figures]", "unknown key 'figures'"),
        ("[sets", "this is not TOML"),
        ("sets = 1", "sets must be a table"),
        (
            "[[sets.german.published]]\narm = 'bm25'\nmeasure = 'nDCG@10'\nvalue = 67.6\nwhat = ''\nsource = ''",
            r"sets\.german\.published\[0\]\.value = 67\.6 must be between 0 and 1",
        ),
        ("[[sets.german.published]]\narm = 'bm25'", r"'sets\.german\.published\[0\]\.measure' is missing"),
    ],
)
def test_a_wrong_bench_toml_is_an_error_that_names_the_file_and_the_field(tmp_path, text, message):
    with pytest.raises(RecipeError, match=rf"bench\.toml: .*{message}"):
        described(tmp_path, text)


def test_the_bench_toml_of_the_documentation_is_one(tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "bench.md").read_text(encoding="utf8")
    [text] = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    beir_folder(tmp_path / "forum")
    (tmp_path / "bench.toml").write_text(text, encoding="utf8")
    suite = suite_named(f"local:{tmp_path}")
    [forum] = suite.sets
    assert suite.measures == ("nDCG@10", "R@100") and forum.language == "german" and forum.judged_pool
    assert forum.published[0].value == 0.512


def test_a_bench_toml_that_is_not_utf_8_is_an_error(tmp_path):
    beir_folder(tmp_path / "a")
    (tmp_path / "bench.toml").write_bytes(b'note = "\xff"')
    with pytest.raises(RecipeError, match=r"bench\.toml: byte 8 is not UTF-8"):
        suite_named(f"local:{tmp_path}")


# Real data


@needs_data
def test_the_real_collections_are_a_suite_without_the_one_that_has_no_judgements(caplog):
    suite = suite_named(f"local:{DATA}", judged_pools=["birco-relic"])
    assert len(suite.sets) == 15 and names(suite) == sorted(names(suite))
    assert "1 of 16 folders are left out: trec-dl-22-teachers (no qrels/test.tsv)" in caplog.text
    assert [s.name for s in suite.sets if s.judged_pool] == ["birco-relic"]
    sizes = {"xquad-r-de": 245, "vaswani": 37, "cacm": 20}
    for bench_set in suite_named(f"local:{DATA}", only=list(sizes)).sets:
        assert len(load_collection(bench_set.collection, bench_set.base).qrels) == sizes[bench_set.name]
