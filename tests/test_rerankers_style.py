"""The rerankers-style interface: names, attributes and numbers are those of the package, its faults are not."""

import asyncio
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from ranking_models import a_reranker, snippet_of

from rerank import Reranker as Ours
from rerank.errors import InputError, NotFound
from rerank.integrations.rerankers import Document, RankedResults, Reranker, Result

QUERY = "who wrote faust"
DOCS = ["a cup of tea", "Faust. A tragedy!", "read lines of a csv file", "numbers 1 2 3", ""]


@pytest.fixture(scope="module")
def engine(tiny_bert):
    return a_reranker(tiny_bert)


@pytest.fixture(scope="module")
def ranker(engine):
    return Reranker(engine)


# Oracle


def test_the_order_and_the_scores_are_those_of_rank(ranker, engine):
    hits = engine.rank(QUERY, DOCS)
    results = ranker.rank(QUERY, DOCS)
    assert [(r.doc_id, r.score, r.text, r.rank) for r in results] == [
        (hit.index, hit.score, hit.text, rank) for rank, hit in enumerate(hits, start=1)
    ]
    assert ranker.score(QUERY, DOCS[1]) == pytest.approx(results.get_score_by_docid(1), abs=1e-5)


@pytest.fixture(scope="module")
def classifier(tiny_bert, tmp_path_factory):
    """A folder that their package and ours can both load: a sequence classifier with one label."""
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("classifier")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = BertForSequenceClassification(BertConfig.from_pretrained(str(tiny_bert), num_labels=1))
    torch.nn.init.constant_(model.classifier.bias, 0.25)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(str(tiny_bert)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def side_by_side(classifier):
    """(theirs, ours), over one folder."""
    package = pytest.importorskip("rerankers", reason="pip install rerankers==0.10.0 to compare with the package")
    theirs = package.Reranker(classifier, model_type="cross-encoder", device="cpu", dtype="float32", verbose=0)
    return theirs, Reranker(classifier, model_type="cross-encoder", verbose=0, device="cpu", precision="float32")


@pytest.mark.parametrize("ids", [None, ["a", "b", "c", "d", "e"], [9, 8, 7, 6, 5]])
def test_the_package_gives_the_same_results(ids, side_by_side):
    metadata = [{"page": i} for i in range(5)]
    theirs, ours = (made.rank(QUERY, DOCS, doc_ids=ids, metadata=metadata) for made in side_by_side)
    assert [(r.rank, r.doc_id, r.text, r.page, r.document.metadata) for r in ours] == [
        (r.rank, r.doc_id, r.text, r.page, r.document.metadata) for r in theirs
    ]
    assert [r.score for r in ours] == pytest.approx([r.score for r in theirs], abs=1e-5)
    assert ours.results_count() == theirs.results_count() == 5
    assert (ours.query, ours.has_scores) == (theirs.query, theirs.has_scores)
    assert [r.doc_id for r in ours.top_k(2)] == [r.doc_id for r in theirs.top_k(2)]
    assert ours[0].doc_id == theirs[0].doc_id
    best = ours[0].doc_id
    assert ours.get_score_by_docid(best) == pytest.approx(theirs.get_score_by_docid(best), abs=1e-5)
    assert ours.get_result_by_docid("none") is theirs.get_result_by_docid("none") is None
    assert ours.get_score_by_docid("none") is theirs.get_score_by_docid("none") is None


def test_score_gives_what_the_ranking_of_the_package_says_of_that_document(side_by_side):
    theirs, ours = side_by_side
    # Their own `score` gives two numbers for a cross-encoder: it reads query and document as two texts.
    assert ours.score(QUERY, DOCS[1]) == pytest.approx(theirs.rank(QUERY, DOCS).get_score_by_docid(1), abs=1e-5)


def test_everything_public_that_the_package_has_is_here(side_by_side):
    theirs, ours = side_by_side
    for of_theirs, of_ours in [
        (theirs.rank(QUERY, DOCS), ours.rank(QUERY, DOCS)),
        (theirs.rank(QUERY, DOCS)[0], ours.rank(QUERY, DOCS)[0]),
        (theirs.rank(QUERY, DOCS)[0].document, ours.rank(QUERY, DOCS)[0].document),
    ]:
        public = {name for name in dir(of_theirs) if not name.startswith("_")}
        assert public <= set(dir(of_ours))
    assert set(ours.rank(QUERY, DOCS)[0].document.attributes) == set(theirs.rank(QUERY, DOCS)[0].document.attributes)


def test_documents_of_the_package_are_taken_and_left_as_they_were(side_by_side):
    from rerankers import Document as Theirs

    given = [Theirs(text=text, doc_id=f"x{i}", metadata={"page": i}) for i, text in enumerate(DOCS)]
    results = side_by_side[1].rank(QUERY, given, doc_ids=list("abcde"), metadata=[{"page": -1}] * 5)
    assert sorted(r.doc_id for r in results) == list("abcde")
    assert {r.page for r in results} == {-1}
    assert [(d.doc_id, d.metadata) for d in given] == [(f"x{i}", {"page": i}) for i in range(5)]
    with pytest.raises(InputError, match=r"document 0 .* type 'image'"):
        side_by_side[1].rank(QUERY, [Theirs(document_type="image", base64="")])


# Edges


def test_no_documents_give_an_empty_result(ranker):
    results = ranker.rank(QUERY, [])
    assert (list(results), len(results), results.results_count(), results.top_k(3)) == ([], 0, 0, [])
    assert results.get_result_by_docid(0) is None
    assert ranker.rank(QUERY, [], doc_ids=[], metadata=[]).query == QUERY


def test_one_document_has_rank_1_and_may_be_a_bare_text(ranker):
    for docs in ("tea", ["tea"], Document("tea"), [Document("tea")]):
        (result,) = ranker.rank(QUERY, docs)
        assert (result.rank, result.doc_id, result.text) == (1, 0, "tea")


def test_top_k_of_more_than_all_gives_all_and_of_none_gives_none(ranker):
    results = ranker.rank(QUERY, DOCS)
    assert results.top_k(99) == results.top_k(None) == results.results
    assert results.top_k(0) == []


def test_equal_ids_lead_to_the_best_of_their_documents(ranker):
    results = ranker.rank(QUERY, DOCS, doc_ids=["page"] * 5)
    assert results.get_result_by_docid("page") is results[0]


def test_equal_documents_keep_the_order_in_which_they_came(ranker):
    results = ranker.rank(QUERY, ["tea", "tea", "Faust", "tea"])
    assert [r.doc_id for r in results if r.text == "tea"] == [0, 1, 3]


def test_a_result_reads_as_its_document_and_what_it_lacks_is_an_attribute_error(ranker):
    result = ranker.rank(QUERY, ["tea"], metadata=[{"page": 3, "score": "of the metadata"}])[0]
    assert (result.document_type, result.page, result.image_path, result.base64) == ("text", 3, None, None)
    assert isinstance(result.score, float)
    with pytest.raises(AttributeError, match="'Result' object has no attribute 'chapter'"):
        _ = result.chapter
    assert pickle.loads(pickle.dumps(result)) == result


def test_rank_async_gives_what_rank_gives(ranker):
    found = asyncio.run(ranker.rank_async(QUERY, DOCS, doc_ids=list("abcde"), metadata=[{"i": i} for i in range(5)]))
    assert found == ranker.rank(QUERY, DOCS, doc_ids=list("abcde"), metadata=[{"i": i} for i in range(5)])
    assert isinstance(found, RankedResults)
    assert isinstance(found[0], Result)


def test_a_langchain_compressor_keeps_the_k_best_with_their_logits(ranker):
    documents = pytest.importorskip("langchain_core.documents", reason="pip install 'rerank[langchain]'")
    given = [documents.Document(page_content=text, metadata={"i": i}) for i, text in enumerate(DOCS)]
    kept = ranker.as_langchain_compressor(k=2).compress_documents(given, QUERY)
    best = ranker.rank(QUERY, DOCS).top_k(2)
    assert [document.metadata["i"] for document in kept] == [r.doc_id for r in best]
    assert [document.metadata["relevance_score"] for document in kept] == pytest.approx([r.score for r in best])


def test_what_the_package_takes_is_taken(engine, tmp_path):
    engine.save_pretrained(tmp_path)
    made = Reranker(str(tmp_path), dtype="fp32", batch_size=8, device="cpu")
    assert made.reranker.policy.scorer.precision == "float32"
    assert Reranker(str(tmp_path), dtype=torch.bfloat16, device="cpu").reranker.policy.scorer.precision == "bfloat16"
    for docs in (np.array(DOCS), pd.Series(DOCS), tuple(DOCS)):
        results = made.rank(QUERY, docs, doc_ids=np.arange(5), metadata=pd.Series([{"i": i} for i in range(5)]))
        assert [r.doc_id for r in results] == [r.doc_id for r in made.rank(QUERY, DOCS)]
        assert {type(r.doc_id) for r in results} == {int}
    assert len(set(results)) == 5


# Bad input


@pytest.mark.parametrize(
    ("docs", "told", "problem"),
    [
        (None, {}, "docs must be .* not NoneType"),
        ({"text": "tea"}, {}, "docs must be .* not dict"),
        (["tea", None], {}, "document 1 must be a text or a Document with a text, not NoneType"),
        (["tea", ["nested"]], {}, "document 1 .* not list"),
        (["a", "b"], {"doc_ids": ["x"]}, "doc_ids has 1 entries for 2 documents"),
        (["a", "b"], {"doc_ids": "xy"}, "doc_ids must be a list .* not str"),
        (["a"], {"metadata": {"page": 1}}, "metadata must be a list .* not dict"),
        (["a"], {"metadata": ["page"]}, "metadata 0 must be a mapping, not str"),
        ([Document("a", "x"), Document("b")], {}, "document 1 has no doc_id"),
        (["a\ud800"], {}, "document 0 has a lone surrogate"),
    ],
)
def test_what_cannot_be_ranked_is_named(docs, told, problem, ranker):
    with pytest.raises(InputError, match=problem):
        ranker.rank(QUERY, docs, **told)


@pytest.mark.parametrize("k", [-1, True, "3", 2.5])
def test_a_k_that_is_no_count_is_refused(k, ranker):
    with pytest.raises(InputError, match="k must be a whole number of at least 1, or 0, or None"):
        ranker.rank(QUERY, DOCS).top_k(k)


def test_a_model_that_is_not_there_or_cannot_be_loaded_so_is_refused(tmp_path, engine):
    with pytest.raises(NotFound):
        Reranker(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"'devise'.*did you mean 'device'"):
        Reranker(str(tmp_path), devise="cpu")
    with pytest.raises(InputError, match="loaded already"):
        Reranker(engine, device="cpu")


def test_the_example_of_the_module_runs(engine, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    engine.save_pretrained("runs/quickstart/model/light")
    exec(snippet_of("rerank.integrations.rerankers"), {"docs": DOCS[:3]})
    best = Ours.from_pretrained("runs/quickstart/model/light").rank("who wrote Faust", DOCS[:3])[0]
    assert capsys.readouterr().out.startswith(f"1 {'abc'[best.index]} {best.score} {best.text}")
