import json
import math
from pathlib import Path

import pytest

from rerank.data import (
    candidate_lists,
    check_disjoint,
    collection_from,
    fingerprint,
    hold_out,
    load_collection,
    read_run,
)
from rerank.errors import InputError, Mismatch, NotFound
from rerank.types import Collection, Run

DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real collections are not beside this checkout")
DOCS, QUERIES, QRELS = {"d1": "one", "d2": "two"}, {"q1": "a", "q2": "b"}, {"q1": {"d1": 1}}


@pytest.fixture
def base(tmp_path):
    for name, texts in {"corpus": DOCS, "queries": QUERIES}.items():
        lines = (json.dumps({"_id": key, "text": text}) for key, text in texts.items())
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / f"{name}.jsonl").write_text("\n".join(lines))
    (tmp_path / "set" / "qrels").mkdir()
    (tmp_path / "set" / "qrels" / "test.tsv").write_text("q1\td1\t1\n")
    (tmp_path / "other.tsv").write_text("q2\tgone\t2\n")
    (tmp_path / "m.py").write_text(
        'def f():\n    """Do this one thing now."""\n    a = 1\n    b = 2\n    return a + b\n'
    )
    request = {"query": {"text": "a", "qid": "q1"}, "candidates": [{"docid": "d1", "doc": "one"}]}
    (tmp_path / "r.jsonl").write_text(json.dumps(request))
    return tmp_path


@pytest.mark.parametrize(
    ("source", "queries", "qrels"),
    [
        ("set", ["q1", "q2"], {}),
        ("set#test", ["q1"], QRELS),
        ("rankllm:r.jsonl", ["q1"], {}),
        ("code:.", ["q:m.f"], {"q:m.f": {"m.f": 1}}),
        ({"beir": "set", "split": "test"}, ["q1"], QRELS),
        ({"beir": "set", "qrels": "other.tsv"}, ["q2"], {"q2": {"gone": 2}}),
        ({"beir": "set", "qrels": "qrels/test.tsv"}, ["q1"], QRELS),
        ({"documents": "set/corpus.jsonl", "queries": "set/queries.jsonl"}, ["q1", "q2"], {}),
        (
            {"documents": "set/corpus.jsonl", "queries": "set/queries.jsonl", "qrels": "other.tsv"},
            ["q1", "q2"],
            {"q2": {"gone": 2}},
        ),
    ],
)
def test_every_form_of_a_source_is_found_relative_to_its_base(base, source, queries, qrels):
    collection = load_collection(source, base)
    assert list(collection.queries) == queries and collection.qrels == qrels


def test_a_folder_with_a_hash_in_its_name_is_that_folder(base):
    (base / "set").rename(base / "set#1")
    assert load_collection("set#1", base).documents == DOCS
    assert load_collection("set#1#test", base).qrels == QRELS


def test_code_of_the_standard_library_has_its_short_names(base):
    assert 0 < len(load_collection("code#test", base).queries) < len(load_collection("code", base).queries)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"bier": "set"}, "did you mean 'beir'"),
        ({"beir": "set", "documents": "x"}, "documents"),
        ({"documents": "x"}, "queries"),
        ({"documents": "x", "queries": "y", "split": "test"}, "split"),
        ({"beir": 3}, "'beir'"),
        ("", "text or a mapping"),
        (7, "text or a mapping"),
        ("code#dev", "no split 'dev'"),
    ],
)
def test_a_source_that_makes_no_sense_is_refused(base, source, message):
    with pytest.raises(InputError, match=message):
        load_collection(source, base)


@pytest.mark.parametrize("source", ["none", "bier:x", "set#dev", "code:none", "rankllm:none", "ir_datasets:no-such-id"])
def test_a_source_that_is_not_there_is_not_found(base, source):
    with pytest.raises(NotFound):
        load_collection(source, base)


def test_python_objects_are_copied_and_judged_documents_may_be_absent():
    docs = dict(DOCS)
    collection = collection_from(docs, QUERIES, {"q1": {"gone": 3}}, name="mine")
    docs["d3"] = "later"
    assert collection == Collection(DOCS, QUERIES, {"q1": {"gone": 3}}, "mine")


@pytest.mark.parametrize(
    ("documents", "queries", "qrels", "message"),
    [
        (["one"], QUERIES, None, "documents are list"),
        ({1: "x"}, QUERIES, None, "write '7', not 7"),
        ({"": "x"}, QUERIES, None, "id"),
        ({"d": None}, QUERIES, None, r"documents\['d'\]"),
        ({"d": b"x"}, QUERIES, None, "bytes"),
        (DOCS, {"q": "\ud83d"}, None, "surrogate"),
        (DOCS, {"\ud83d": "x"}, None, "id"),
        (DOCS, QUERIES, [("q1", "d1", 1)], "qrels are list"),
        (DOCS, QUERIES, {"q1": ["d1"]}, r"qrels\['q1'\]"),
        (DOCS, QUERIES, {"q1": {"d1": 1.0}}, "integer"),
        (DOCS, QUERIES, {"q1": {"d1": True}}, "integer"),
        (DOCS, QUERIES, {"q1": {3: 1}}, "id"),
        (DOCS, QUERIES, {"q9": {"d1": 1}}, "q9"),
    ],
)
def test_python_objects_of_the_wrong_kind_are_refused(documents, queries, qrels, message):
    with pytest.raises(InputError, match=message):
        collection_from(documents, queries, qrels)


def test_the_fingerprint_ignores_order_and_name_and_nothing_else():
    first = fingerprint(Collection(DOCS, QUERIES, QRELS))
    assert len(first) == 16 and int(first, 16) >= 0
    assert fingerprint(Collection(dict(reversed(DOCS.items())), QUERIES, QRELS, "other")) == first
    others = [
        Collection({"d1": "one", "d2": "tw"}, QUERIES, QRELS),
        Collection({"d1o": "ne", "d2": "two"}, QUERIES, QRELS),
        Collection({"d1": "two", "d2": "one"}, QUERIES, QRELS),
        Collection(QUERIES, DOCS, QRELS),
        Collection(DOCS, QUERIES, {"q1": {"d1": 2}}),
        Collection(DOCS, QUERIES),
    ]
    assert len({first, *map(fingerprint, others)}) == 7


def test_held_out_queries_and_the_rest_are_the_whole_and_a_larger_share_holds_out_the_same_and_more():
    many = Collection(DOCS, {f"q{i}": "x" for i in range(1000)}, {f"q{i}": {"d1": 1} for i in range(1000)})
    rest, held = hold_out(many, 0.2)
    assert rest.queries | held.queries == many.queries and not rest.queries.keys() & held.queries.keys()
    assert held.qrels.keys() == held.queries.keys() and held.documents is many.documents
    assert 150 < len(held.queries) < 250
    assert held.queries.keys() < hold_out(many, 0.4)[1].queries.keys()
    assert held.queries.keys() != hold_out(many, 0.2, seed=1)[1].queries.keys()
    fewer = many.select(list(many.queries)[::2])
    assert hold_out(fewer, 0.2)[1].queries.keys() == held.queries.keys() & fewer.queries.keys()


@pytest.mark.parametrize("share", [1e-9, 1 - 1e-9])
def test_neither_side_of_a_hold_out_is_empty(share):
    rest, held = hold_out(Collection(DOCS, QUERIES, QRELS), share)
    assert len(rest.queries) == len(held.queries) == 1


@pytest.mark.parametrize("share", [0, 1, -0.1, 2, math.nan, "0.1", True])
def test_a_share_outside_zero_and_one_is_refused(share):
    with pytest.raises(InputError, match="share"):
        hold_out(Collection(DOCS, QUERIES), share)


def test_one_query_cannot_be_held_out():
    with pytest.raises(InputError, match="at least 2"):
        hold_out(Collection(DOCS, {"q": "x"}), 0.5)


def test_a_query_in_train_and_test_is_a_leak_and_an_equal_text_a_warning(caplog):
    with pytest.raises(InputError, match=r"1 queries.*q1"):
        check_disjoint(Collection(DOCS, QUERIES), Collection(DOCS, {"q1": "a"}))
    check_disjoint(Collection(DOCS, QUERIES), Collection(DOCS, {"t1": " A ", "t2": "new"}))
    assert "1 queries" in caplog.text


def test_a_list_joins_texts_labels_pool_and_features_in_the_order_of_the_run():
    collection = Collection(DOCS, QUERIES, {"q1": {"d2": 2, "gone": 3, "d9": -1}})
    run = Run({"q2": (("d1", 1.0),), "q1": (("d2", 9.0), ("d1", 3.0))})
    second, first = candidate_lists(collection, run, {"dense": Run({"q1": (("d1", 0.5),)})})
    assert (first.query_id, first.query, first.doc_ids, first.texts) == ("q1", "a", ("d2", "d1"), ("two", "one"))
    assert (first.labels, first.pool) == ((2, 0), (2, 3, -1))
    assert math.isnan(first.features["dense"][0]) and first.features["dense"][1] == 0.5
    assert (second.query_id, second.labels, second.pool) == ("q2", None, ())
    assert math.isnan(second.features["dense"][0])


def test_depth_cuts_the_candidates_and_what_is_beyond_need_not_be_in_the_corpus():
    run = Run({"q1": (("d1", 2.0), ("gone", 1.0))})
    (only,) = candidate_lists(Collection(DOCS, QUERIES), run, depth=1)
    assert only.doc_ids == ("d1",)
    with pytest.raises(Mismatch, match=r"'q1'.*'gone'.*1 documents"):
        candidate_lists(Collection(DOCS, QUERIES), run)


@pytest.mark.parametrize("depth", [0, -1, 2.0, True, "3"])
def test_a_depth_that_is_no_count_is_refused(depth):
    with pytest.raises(InputError, match="depth"):
        candidate_lists(Collection(DOCS, QUERIES), Run({"q1": (("d1", 2.0),)}), depth=depth)


def test_queries_without_candidates_are_left_out_and_counted_once(caplog):
    lists = candidate_lists(Collection(DOCS, QUERIES), Run({"q1": (("d1", 1.0),), "q2": (), "zz": (("d1", 1.0),)}))
    assert [one.query_id for one in lists] == ["q1"]
    assert len(caplog.records) == 1 and "1 of 2 queries" in caplog.text and "1 queries of the run" in caplog.text


def test_a_run_of_other_queries_is_a_mismatch():
    with pytest.raises(Mismatch, match="ranks no query"):
        candidate_lists(Collection(DOCS, QUERIES), Run({"zz": (("d1", 1.0),)}))


@needs_data
def test_real_lists_carry_the_texts_and_grades_of_their_files():
    collection = load_collection("scifact#test", DATA)
    lists = candidate_lists(collection, read_run(DATA / "scifact/runs/bm25s.test.trec"), depth=20)
    assert len(lists) == 300 and {len(one) for one in lists} == {20}
    assert all(one.texts[3] == collection.documents[one.doc_ids[3]] for one in lists)
    assert sum(sum(one.pool) for one in lists) == 339
    assert all(sum(one.labels) <= sum(one.pool) for one in lists)
