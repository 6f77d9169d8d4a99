"""First-stage scores: every adapter whose framework has them hands them over, and those that cannot say so once."""

import asyncio
import math
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
from ranking_models import a_reranker

from rerank.errors import InputError
from rerank.integrations.beir import CrossEncoder, Rerank
from rerank.integrations.first_stage import FirstStage
from rerank.integrations.loading import LazyReranker
from rerank.integrations.ray_data import RankBatch
from rerank.integrations.rerankers import Reranker as Rerankers
from rerank.models.calibration import Calibration

QUERY = "how do i read a csv file"
TEXTS = ["read lines of a file", "a cup of tea", "csv " * 20, "Faust. A tragedy!"]
BM25, DENSE = [1.0, 9.0, 4.0, 2.0], [0.2, math.nan, 0.9, 0.1]
SCORES = {"bm25": BM25, "dense": DENSE}
BOTH = {"bm25": "score", "dense": "dense_score"}
LINE = "was trained with scores of bm25, dense, and ranks worse without them"


def dense_of(i):
    """What a framework keeps of a document's dense score: nothing where it was not found."""
    return {} if math.isnan(DENSE[i]) else {"dense_score": DENSE[i]}


@pytest.fixture(scope="module")
def reranker(tiny_bert):
    return a_reranker(tiny_bert, first_stage={"bm25": 2.0, "dense": 0.5})


@pytest.fixture(scope="module")
def calibrated(tiny_bert):
    """One whose scores with the first stage's have other probabilities than those without."""
    made = a_reranker(tiny_bert, first_stage={"bm25": 2.0, "dense": 0.5})
    made.policy.calibration = Calibration("affine", a=2.0, b=1.0, plain=Calibration("affine", a=1.0, b=-3.0))
    return made


@pytest.fixture(scope="module")
def plain(tiny_bert):
    return a_reranker(tiny_bert)


@pytest.fixture(scope="module")
def hits(reranker):
    found = reranker.rank(QUERY, TEXTS, first_stage=SCORES)
    assert [hit.index for hit in found] != [hit.index for hit in reranker.rank(QUERY, TEXTS)]
    return found


def agree(found, hits):
    """Whether (index, score) pairs are those of a ranking."""
    assert [index for index, _ in found] == [hit.index for hit in hits]
    np.testing.assert_allclose([score for _, score in found], [hit.score for hit in hits], atol=1e-5)


# Where each framework keeps them


def langchain():
    pytest.importorskip("langchain_core", reason="pip install 'rerank[langchain]'")
    from langchain_core.documents import Document

    from rerank.integrations.langchain import RerankCompressor

    known = [{"i": i, "score": score, **dense_of(i)} for i, score in enumerate(BM25)]
    given = [Document(page_content=text, metadata=about) for text, about in zip(TEXTS, known, strict=True)]
    return RerankCompressor, given


def test_langchain_hands_over_metadata_and_gives_the_probabilities_of_these_scores(calibrated, reranker, hits):
    adapter, documents = langchain()
    found = adapter(reranker, first_stage=BOTH, scores="logit").compress_documents(documents, QUERY)
    agree([(d.metadata["i"], d.metadata["relevance_score"]) for d in found], hits)
    sure = calibrated.rank(QUERY, TEXTS, first_stage=SCORES, probabilities=True)
    found = adapter(calibrated, first_stage=BOTH).compress_documents(documents, QUERY)
    assert [d.metadata["relevance_score"] for d in found] == [hit.probability for hit in sure]
    with pytest.raises(ValueError, match="first_stage"):
        adapter(reranker, first_stage="bm25")


def test_llama_index_hands_over_a_nodes_score_and_metadata(reranker, hits):
    pytest.importorskip("llama_index", reason="pip install 'rerank[llama-index]'")
    from llama_index.core.schema import NodeWithScore, TextNode

    from rerank.integrations.llama_index import RerankPostprocessor

    hidden = {"excluded_embed_metadata_keys": ["dense_score"]}
    nodes = [
        NodeWithScore(node=TextNode(text=text, id_=str(i), metadata=dense_of(i), **hidden), score=BM25[i])
        for i, text in enumerate(TEXTS)
    ]
    made = RerankPostprocessor(reranker, first_stage=BOTH, scores="logit")
    agree([(int(n.node.node_id), n.score) for n in made.postprocess_nodes(nodes, query_str=QUERY)], hits)


def test_haystack_hands_over_a_documents_score_and_meta_also_when_read_from_its_settings(reranker, hits, tmp_path):
    if find_spec("haystack") is None:
        pytest.skip("pip install 'rerank[haystack]'")
    from haystack import Document

    from rerank.integrations.haystack import RerankRanker

    documents = [Document(id=str(i), content=t, score=BM25[i], meta=dense_of(i)) for i, t in enumerate(TEXTS)]
    reranker.save_pretrained(tmp_path)
    made = RerankRanker(tmp_path, first_stage=BOTH, scale_score=False, device="cpu", precision="float32")
    for ranker in (made, RerankRanker.from_dict(made.to_dict())):
        found = ranker.run(query=QUERY, documents=documents)["documents"]
        agree([(int(d.id), d.score) for d in found], hits)


def test_pyterrier_hands_over_columns_of_each_query(reranker, hits):
    pytest.importorskip("pyterrier", reason="pip install 'rerank[pyterrier]'")
    from rerank.integrations.pyterrier import RerankTransformer

    rows = [
        {"qid": qid, "query": QUERY, "docno": f"{i}", "text": text, "score": BM25[i], "rank": i} | dense_of(i)
        for qid in ("q1", "q2")
        for i, text in enumerate(TEXTS)
    ]
    step = RerankTransformer(reranker, first_stage=BOTH)
    for _, own in step(pd.DataFrame(rows)).groupby("qid"):
        agree([(int(docno), score) for docno, score in zip(own["docno"], own["score"], strict=True)], hits)
    with pytest.raises(KeyError, match="dense_score"):
        step(pd.DataFrame(rows).drop(columns="dense_score"))


def test_beir_hands_over_the_results_that_are_reranked_and_other_results(reranker, hits):
    corpus = {str(i): {"text": text} for i, text in enumerate(TEXTS)}
    results = {"q": {str(i): score for i, score in enumerate(BM25)}}
    dense = {"q": {str(i): score for i, score in enumerate(DENSE) if not math.isnan(score)}}
    made = Rerank(reranker, first_stage={"bm25": "score", "dense": dense})
    by_first = sorted(range(4), key=lambda i: -BM25[i])  # documents come to the model in first-stage order
    moved = {name: [values[i] for i in by_first] for name, values in SCORES.items()}
    wanted = reranker.rank(QUERY, [TEXTS[i].strip() for i in by_first], first_stage=moved)
    found = made.rerank(corpus, {"q": QUERY}, results, top_k=4)["q"]
    assert list(found) == [str(by_first[hit.index]) for hit in wanted] == [str(hit.index) for hit in hits]
    assert list(found.values()) == pytest.approx([hit.score for hit in wanted], abs=1e-5)
    assert made.rerank(corpus, {"q": QUERY}, {"q": {}}, top_k=4) == {"q": {}}
    with pytest.raises(InputError, match="'elsewhere' holds no scores; give 'score'"):
        Rerank(reranker, first_stage={"bm25": "score", "dense": "elsewhere"})


def test_the_rerankers_interface_hands_over_metadata_also_to_its_langchain_compressor(reranker, hits):
    made = Rerankers(reranker, first_stage=BOTH)
    metadata = [{"score": score, **dense_of(i)} for i, score in enumerate(BM25)]
    agree([(r.doc_id, r.score) for r in made.rank(QUERY, TEXTS, metadata=metadata)], hits)
    agree([(r.doc_id, r.score) for r in asyncio.run(made.rank_async(QUERY, TEXTS, metadata=metadata))], hits)
    _, documents = langchain()
    found = made.as_langchain_compressor().compress_documents(documents, QUERY)
    agree([(d.metadata["i"], d.metadata["relevance_score"]) for d in found], hits)


# What is wrong, and what is said


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"bm25": "score", "densse": "d"}, "there are no scores of 'densse'.*did you mean 'dense'"),
        ("bm25", r"first_stage lacks \['dense'\]; this model was trained with scores of bm25, dense"),
    ],
)
def test_names_are_checked_when_the_model_is_loaded(given, problem, reranker, tmp_path):
    lazy = LazyReranker(reranker, FirstStage(given, ""))
    with pytest.raises(InputError, match=problem):
        lazy.reranker()
    with pytest.raises(InputError, match=problem):
        Rerank(reranker, first_stage={given: "score"} if isinstance(given, str) else dict.fromkeys(given, "score"))


@pytest.mark.parametrize("given", [3, ["bm25"], {"bm25": None}, {"": "score"}, {3: "score"}, {"bm25": ""}])
def test_a_first_stage_that_is_none_is_refused_when_it_is_given(given):
    with pytest.raises(InputError, match="first_stage must be the name of a retriever, or map names"):
        FirstStage(given, "")


@pytest.mark.parametrize("value", ["3.5", True, [1.0]])
def test_a_score_that_is_no_number_is_named_by_its_document_and_place(value, reranker):
    lazy = LazyReranker(reranker, FirstStage(BOTH, ""))
    with pytest.raises(InputError, match="document 1: 'score' must be a number"):
        lazy.rank(QUERY, ["a", "b"], column=lambda place: [1.0, value])


def test_scores_that_no_document_has_count_as_not_found_and_that_is_said_once(reranker, caplog):
    lazy = LazyReranker(reranker, FirstStage(BOTH, ""))
    expected = reranker.rank(QUERY, TEXTS, first_stage={"bm25": BM25, "dense": [math.nan] * 4})
    for _ in range(2):
        assert lazy.rank(QUERY, TEXTS, column=lambda place: BM25 if place == "score" else [None] * 4) == expected
    assert caplog.text.count("no document has a score of dense under 'dense_score'") == 1


def test_a_model_that_wants_scores_and_is_given_none_says_so_once_with_what_to_give(reranker, caplog):
    given = [Rerankers(reranker), CrossEncoder(reranker), Rerank(reranker), LazyReranker(reranker)]
    asks = [
        lambda made: made.rank(QUERY, TEXTS),
        lambda made: made.predict([(QUERY, TEXTS[0])]),
        lambda made: made.rerank({"d": {"text": "x"}}, {"q": QUERY}, {"q": {"d": 1.0}}, top_k=1),
        lambda made: made.predict([(QUERY, TEXTS[0])]),
    ]
    remedies = [
        "give first_stage={'NAME': 'METADATA KEY', ...}",
        "beir.Rerank takes them",
        "{'NAME': RESULTS, ...}",
        "",
    ]
    for made, ask, remedy in zip(given, asks, remedies, strict=True):
        assert LINE not in caplog.text, "nothing is said before it is used"
        ask(made)
        ask(made)
        assert caplog.text.count(LINE) == 1
        assert remedy in caplog.text
        caplog.clear()


def test_a_ray_actor_says_that_it_has_no_first_stage_scores_to_give(reranker, tmp_path, caplog):
    reranker.save_pretrained(tmp_path)
    rank = RankBatch(str(tmp_path), "cpu", "float32")
    rank({"query": np.array([QUERY]), "text": np.array(["tea"])})
    rank({"query": np.array([QUERY]), "text": np.array(["tea"])})
    assert caplog.text.count(LINE) == 1


def test_scores_for_a_model_that_reads_none_have_no_effect_and_that_is_said_once(plain, caplog):
    lazy = LazyReranker(plain, FirstStage("bm25", ""))
    for _ in range(2):
        assert lazy.rank(QUERY, TEXTS, column=lambda place: BM25) == plain.rank(QUERY, TEXTS)
    assert caplog.text.count("was trained without first-stage scores: first_stage has no effect") == 1
