"""docs/serving.md must be true: its examples run, its table of refusals is whole, its options exist."""

import json
import re
from pathlib import Path

import pytest
from ranking_models import a_reranker

pytest.importorskip("fastapi", reason="serving is the extra serve")

from rerank import Reranker
from rerank.serving.wire.dialects import ROUTES, asked
from rerank.serving.wire.openapi import OPEN, REFUSALS

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "serving.md").read_text(encoding="utf8")
QUERY = "who wrote Faust"
TEXTS = ["a cup of tea", "Faust, a play by Goethe", "the Rhine", "a fist"]
EXAMPLES = {text.partition("\n")[0].split(":")[0][2:]: text for text in re.findall(r"```python\n(.*?)```", GUIDE, re.S)}


@pytest.fixture
def reranker(tiny_bert, tmp_path, monkeypatch):
    """A tiny model, saved where the examples say that there is one."""
    monkeypatch.chdir(tmp_path)
    a_reranker(tiny_bert).save_pretrained("runs/quickstart/model/light")
    return Reranker.from_pretrained("runs/quickstart/model/light")


def run(framework, **given):
    """What the example of a framework finds."""
    exec(compile(EXAMPLES[framework], framework, "exec"), given)
    return given["found"]


def expected(reranker, top=None, query=QUERY):
    hits = reranker.rank(query, TEXTS, top)
    return [hit.text for hit in hits], [hit.relevance for hit in hits], [hit.score for hit in hits]


# ------------------------------------------------------------------------------------------------------------ examples
def test_every_framework_of_the_table_has_an_example():
    table = GUIDE.partition("| framework |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `?([A-Za-z ]+?)`? \| `\w[\w.]+`", table, re.MULTILINE)
    assert list(EXAMPLES) == rows and len(rows) > 7


def test_the_example_for_langchain_ranks_and_gives_what_the_table_says(reranker):
    documents = pytest.importorskip("langchain_core.documents")
    given = [documents.Document(page_content=text) for text in TEXTS]
    found = run("LangChain", documents=given)
    texts, relevance, _ = expected(reranker, 3)
    assert [one.page_content for one in found] == texts
    assert [one.metadata["relevance_score"] for one in found] == pytest.approx(relevance, abs=1e-5)


def test_the_example_for_llama_index_ranks_and_gives_what_the_table_says(reranker):
    schema = pytest.importorskip("llama_index.core.schema")
    given = [schema.NodeWithScore(node=schema.TextNode(text=text)) for text in TEXTS]
    found = run("LlamaIndex", nodes=given)
    texts, relevance, _ = expected(reranker, 3)
    assert [one.text for one in found] == texts and [one.score for one in found] == pytest.approx(relevance, abs=1e-5)


def test_the_example_for_haystack_ranks_and_gives_what_the_table_says(reranker):
    haystack = pytest.importorskip("haystack")
    found = run("Haystack", documents=[haystack.Document(content=text) for text in TEXTS])
    texts, relevance, _ = expected(reranker, 3)
    assert [one.content for one in found] == texts
    assert [one.score for one in found] == pytest.approx(relevance, abs=1e-5)


def test_the_example_for_pyterrier_ranks_and_gives_what_the_table_says(reranker):
    pt = pytest.importorskip("pyterrier")
    import pandas as pd

    rows = [{"qid": "1", "query": QUERY, "docno": f"d{i}", "text": text} for i, text in enumerate(TEXTS)]
    retrieved = pd.DataFrame(rows).assign(score=[4.0, 3.0, 2.0, 1.0], rank=range(4))
    retriever = pt.Transformer.from_df(retrieved)
    found = run("PyTerrier", retriever=retriever, topics=pd.DataFrame([{"qid": "1", "query": QUERY}]))
    texts, _, logits = expected(reranker)
    assert found["text"].tolist() == texts and found["score"].tolist() == pytest.approx(logits, abs=1e-5)


def test_the_example_for_beir_ranks_and_gives_what_the_table_says(reranker):
    corpus = {f"d{i}": {"title": "", "text": text} for i, text in enumerate(TEXTS)}
    results = {"1": {doc_id: 1.0 for doc_id in corpus}}
    found = run("BEIR", corpus=corpus, queries={"1": QUERY}, results=results)["1"]
    texts, _, logits = expected(reranker)
    ranked = sorted(found, key=lambda doc_id: -found[doc_id])
    assert [corpus[doc_id]["text"] for doc_id in ranked] == texts
    assert [found[doc_id] for doc_id in ranked] == pytest.approx(logits, abs=1e-5)


def test_the_example_for_rerankers_ranks_and_gives_what_the_table_says(reranker):
    found = run("rerankers", texts=TEXTS)
    texts, _, logits = expected(reranker, 3)
    assert [one.text for one in found] == texts and [one.score for one in found] == pytest.approx(logits, abs=1e-5)


def test_the_example_for_ray_data_hands_the_class_what_it_takes(reranker):
    import numpy as np

    class Dataset:
        """One batch; tests/test_ray.py has the real thing."""

        def map_batches(self, kind, fn_constructor_args, concurrency):
            assert concurrency == 1
            columns = {"query": [QUERY] * len(TEXTS), "text": TEXTS}
            batch = {name: np.array(values, dtype=object) for name, values in columns.items()}
            return kind(*fn_constructor_args)(batch)

    found = run("Ray Data", dataset=Dataset())
    assert found["score"].tolist() == pytest.approx(reranker.predict([(QUERY, text) for text in TEXTS]), abs=1e-5)


def test_the_example_for_mteb_is_a_model_that_mteb_takes(reranker):
    mteb = pytest.importorskip("mteb")
    example = EXAMPLES["MTEB"].replace("mteb.evaluate(", "(").replace(", task)", ")")
    given = {}
    exec(example, given)
    assert isinstance(given["found"], mteb.models.CrossEncoderProtocol)


# ------------------------------------------------------------------------------------------------------------- request
def test_the_request_with_first_stage_scores_is_read_as_the_page_says():
    (text,) = re.findall(r"```json\n(.*?)```", GUIDE, re.DOTALL)
    (question,) = asked("/v2/rerank", json.loads(text)).questions
    assert question.warnings == () and len(question.texts) == 2
    assert set(question.first_stage) == {"first stage", "bm25", "dense"}


def test_every_refusal_is_in_the_table():
    statuses = re.findall(r"^\| ((?:\d{3}(?:, )?)+) \|", GUIDE, re.MULTILINE)
    told = {int(status) for group in statuses for status in group.split(", ")}
    assert told == {*REFUSALS, 405, 500}


def test_every_option_and_every_path_of_the_page_exists():
    from typer.main import get_command

    from rerank.cli import app

    known = {option for one in get_command(app).commands["serve"].params for option in one.opts}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", GUIDE.replace("rerank quickstart --small", "")))
    assert len(named) > 10 and named <= known
    rows = GUIDE.partition("| client |")[2].partition("\n\n")[0].splitlines()[2:]
    paths = {path for row in rows for path in re.findall(r"`(/[\w/]+)`", row.rsplit("|", 2)[1])}
    assert len(paths) > 5 and paths <= {*ROUTES, *OPEN}


def test_the_clients_and_their_versions_are_those_that_are_run():
    pins = {}
    for file in (ROOT / "tests" / "clients" / "requirements").glob("*.txt"):
        pins |= {
            f"{file.stem} {pin}": pin.partition("==")[2]
            for pin in re.findall(r"^[\w.-]+==[\w.]+", file.read_text(), re.M)
        }
    rows = GUIDE.partition("| client |")[2].partition("\n\n")[0].splitlines()[2:]
    versions = {version for row in rows for version in re.findall(r"\d+\.\d+\.\d+", row.split("|")[2])}
    assert len(versions) > 10 and versions <= set(pins.values())
