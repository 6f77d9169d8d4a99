import gzip
import json
from pathlib import Path

import pytest

from rerank.data import read_beir
from rerank.errors import DataError, InputError, NotFound

DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real collections are not beside this checkout")


def folder(tmp_path, corpus=None, queries=None, qrels="query-id\tcorpus-id\tscore\nq1\td1\t1\n"):
    lines = {
        "corpus.jsonl": corpus
        or [{"_id": "d1", "title": "T", "text": "x "}, {"_id": "d2", "title": None, "text": "y"}],
        "queries.jsonl": queries or [{"_id": "q1", "text": "one"}, {"_id": "q2", "text": "two"}],
    }
    for name, records in lines.items():
        text = "\n".join(r if isinstance(r, str) else json.dumps(r) for r in records)
        (tmp_path / name).write_text(text)
    (tmp_path / "qrels").mkdir(exist_ok=True)
    (tmp_path / "qrels" / "test.tsv").write_text(qrels)
    return tmp_path


@needs_data
def test_scifact_has_the_published_counts_and_both_splits_share_the_documents():
    train, test = read_beir(DATA / "scifact", "train"), read_beir(DATA / "scifact", "test")
    assert (len(train.documents), len(train.queries), len(test.queries)) == (5183, 809, 300)
    assert sum(map(len, train.qrels.values())) == 919 and sum(map(len, test.qrels.values())) == 339
    assert train.documents is test.documents


@needs_data
def test_the_official_judgements_may_name_documents_that_are_not_here():
    full = read_beir(DATA / "trec-dl-19-20", "test", qrels="qrels_full/test.tsv")
    assert sum(map(len, full.qrels.values())) == 11386
    assert sum(d in full.documents for by_doc in full.qrels.values() for d in by_doc) == 5014
    assert full.queries.keys() == full.qrels.keys()


def test_text_is_title_and_text_stripped_and_a_null_title_is_none(tmp_path):
    assert read_beir(folder(tmp_path)).documents == {"d1": "T x", "d2": "y"}


def test_a_split_keeps_only_judged_queries_and_no_split_keeps_all_without_judgements(tmp_path):
    here = folder(tmp_path)
    assert (read_beir(here, "test").queries, read_beir(here, "test").qrels) == ({"q1": "one"}, {"q1": {"d1": 1}})
    assert (list(read_beir(here).queries), read_beir(here).qrels) == (["q1", "q2"], {})


def test_gzipped_files_read_as_plain_ones_and_a_changed_corpus_is_read_again(tmp_path):
    before = read_beir(folder(tmp_path)).documents
    packed = gzip.compress((tmp_path / "corpus.jsonl").read_bytes())
    (tmp_path / "corpus.jsonl").unlink()
    (tmp_path / "corpus.jsonl.gz").write_bytes(packed)
    assert read_beir(tmp_path).documents == before
    (tmp_path / "corpus.jsonl.gz").write_bytes(gzip.compress(b'{"_id": "n", "text": "new"}'))
    assert read_beir(tmp_path).documents == {"n": "new"}
    (tmp_path / "corpus.jsonl").write_text('{"_id": "n", "text": "other"}')
    with pytest.raises(InputError, match="both"):
        read_beir(tmp_path)


@pytest.mark.parametrize(
    ("record", "field"),
    [
        ({"title": "t", "text": "no id"}, "'_id"),
        ({"_id": 7, "text": "x"}, 'write "7"'),
        ({"_id": None, "text": "x"}, "'_id'"),
        ({"_id": " ", "text": "x"}, "'_id'"),
        ({"_id": "d1", "text": "another"}, "'d1'"),
        ({"_id": "d3"}, "'text'"),
        ({"_id": "d3", "text": None}, "'text'"),
        ({"_id": "d3", "title": ["t"], "text": "x"}, "'title'"),
        ({"_id": "d3", "text": "\ud800"}, "surrogate"),
        ('{"_id": "d3", "text": "cut', "cut short"),
        ('{"_id": "d3", "_id": "d4", "text": "x"}', "repeated"),
        ('{"_id": "d3", "text": NaN}', "NaN"),
        ("[1]", "list"),
    ],
)
def test_a_faulty_record_is_refused_with_its_line_and_field(tmp_path, record, field):
    here = folder(tmp_path, corpus=[{"_id": "d1", "text": "x"}, record])
    with pytest.raises(DataError) as error:
        read_beir(here)
    assert str(error.value).startswith(f"{(here / 'corpus.jsonl').resolve()}:2:") and field in str(error.value)


def test_judged_queries_without_text_are_named_and_counted(tmp_path):
    here = folder(tmp_path, qrels="".join(f"x{i}\td1\t1\n" for i in range(5)))
    with pytest.raises(DataError, match=r"5 judged queries .*x0.*x1.*x2"):
        read_beir(here, "test")


def test_absent_judged_documents_repeats_and_empty_texts_are_counted(tmp_path, caplog):
    twice = {"_id": "d1", "text": ""}
    read_beir(folder(tmp_path, corpus=[twice, twice], qrels="q1\tgone\t1\n"), "test")
    assert "1 judged documents" in caplog.text and "1 repeated records" in caplog.text and "1 empty" in caplog.text


def test_an_unknown_split_is_answered_with_those_that_are_there(tmp_path):
    with pytest.raises(NotFound, match=r"did you mean 'test'\? \(known: test\)"):
        read_beir(folder(tmp_path), "tset")
    with pytest.raises(NotFound, match="no split"):
        read_beir(tmp_path, "../qrels/test")


def test_missing_folders_and_files_say_what_is_there(tmp_path):
    with pytest.raises(NotFound, match="no such folder"):
        read_beir(tmp_path / "none")
    with pytest.raises(NotFound, match=r"corpus\.jsonl"):
        read_beir(tmp_path)
