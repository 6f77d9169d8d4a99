import pickle
import uuid

import ir_datasets
import pytest

from rerank.data import read_ir_dataset
from rerank.data.ir_datasets import StoredTexts
from rerank.errors import DataError, NotFound


@pytest.fixture
def register(tmp_path, monkeypatch):
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("IR_DATASETS_TMP", str(tmp_path / "tmp"))

    def registered(
        docs="d1\tone\nd2\ttwo\nd3\tthree\n", queries="q1\tfirst\nq2\tsecond\n", qrels="q1 0 d1 2\nq1 0 x -1\n"
    ):
        paths = {}
        for key, text in {"docs_tsv": docs, "queries_tsv": queries, "qrels_trec": qrels}.items():
            paths[key] = tmp_path / key
            paths[key].write_text(text)
        dataset_id = f"local-{uuid.uuid4().hex}"
        ir_datasets.registry.register(dataset_id, ir_datasets.create_dataset(**paths))
        return dataset_id

    return registered


def test_documents_queries_and_judgements_of_a_local_set_arrive(register):
    dataset_id = register()
    collection = read_ir_dataset(dataset_id)
    assert collection.documents == {"d1": "one", "d2": "two", "d3": "three"}
    assert collection.queries == {"q1": "first", "q2": "second"}
    assert collection.qrels == {"q1": {"d1": 2, "x": -1}} and collection.name == dataset_id


def test_a_large_corpus_stays_on_disk_and_reads_as_the_dictionary_would(register):
    dataset_id = register()
    whole, stored = read_ir_dataset(dataset_id).documents, read_ir_dataset(dataset_id, in_memory=2).documents
    assert isinstance(stored, StoredTexts)
    assert dict(stored.items()) == {doc_id: stored[doc_id] for doc_id in stored} == whole
    assert (len(stored), "d2" in stored, "none" in stored, stored.get("none")) == (3, True, False, None)
    assert pickle.loads(pickle.dumps(stored))["d3"] == "three"
    # The package knows the count now that its store is built: the corpus is not even opened a second time.
    assert isinstance(read_ir_dataset(dataset_id, in_memory=2).documents, StoredTexts)


def test_an_unknown_id_is_answered_with_the_nearest():
    with pytest.raises(NotFound, match=r"did you mean.*'beir/scifact/test'"):
        read_ir_dataset("beir/scifact/tset")


def test_a_set_that_cannot_be_fetched_is_one_sentence_not_a_stack_of_retries(register, tmp_path, monkeypatch):
    monkeypatch.setenv("IR_DATASETS_DL_TRIES", "1")
    # Port 9 of this machine discards or refuses: a closed network without leaving the machine.
    mirror = ir_datasets.util.RequestsDownload("http://127.0.0.1:9/docs.tsv")
    remote = ir_datasets.util.Download([mirror], tmp_path / "home" / "docs.tsv")
    dataset_id = f"remote-{uuid.uuid4().hex}"
    ir_datasets.registry.register(dataset_id, ir_datasets.Dataset(ir_datasets.formats.TsvDocs(remote)))
    with pytest.raises(NotFound, match=r"home.*could not be read or fetched.*IR_DATASETS_HOME") as error:
        read_ir_dataset(dataset_id)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
    (tmp_path / "home" / "docs.tsv").write_text("d1\tone\n")
    assert read_ir_dataset(dataset_id).documents == {"d1": "one"}


def test_judged_queries_without_text_are_left_out_and_counted(register, caplog):
    collection = read_ir_dataset(register(qrels="q1 0 d1 1\nq9 0 d1 1\n"))
    assert collection.qrels == {"q1": {"d1": 1}} and "1 judged queries without text" in caplog.text


def test_a_repeated_document_with_another_text_is_refused(register):
    with pytest.raises(DataError, match="'d1'"):
        read_ir_dataset(register(docs="d1\tone\nd1\ttwo\n"))
