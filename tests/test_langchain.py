"""The adapter for LangChain, in the real framework: the order of `rank`, scores that stay, copies, pickles, chains."""

import asyncio
import pickle
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("langchain_core") is None:
    pytest.skip("needs LangChain: pip install 'rerank[langchain]'", allow_module_level=True)

from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ValidationError
from ranking_models import a_reranker

from rerank import Reranker
from rerank.errors import InputError
from rerank.integrations import langchain
from rerank.integrations.langchain import RerankCompressor, RerankCrossEncoder
from rerank.models.calibration import Calibration

QUERY = "how do i read a csv file"
TEXTS = ["read lines of a file", "a cup of tea", "", "csv " * 90, "Faust. A tragedy!", "a cup of tea", "😀 الف"]
HOW = {"device": "cpu", "precision": "float32"}


@pytest.fixture(scope="module")
def policy(tiny_bert):
    return a_reranker(tiny_bert).policy


@pytest.fixture(scope="module")
def folder(policy, tmp_path_factory):
    Reranker(policy).save_pretrained(made := tmp_path_factory.mktemp("langchain") / "model")
    return str(made)


@pytest.fixture(scope="module")
def calibrated(folder):
    made = Reranker.from_pretrained(folder, **HOW)
    made.policy.calibration = Calibration("affine", a=3.0, b=-0.5)
    return made


def documents():
    return [Document(page_content=t, id=f"d{i}", metadata={"n": i, "of": ["x"]}) for i, t in enumerate(TEXTS)]


def numbers(found):
    return [document.metadata["n"] for document in found]


def scores(found):
    return [document.metadata["relevance_score"] for document in found]


def test_order_and_scores_are_those_of_rank(folder):
    hits = Reranker.from_pretrained(folder, **HOW).rank(QUERY, TEXTS)
    found = RerankCompressor(model=folder, **HOW).compress_documents(documents(), QUERY)
    assert numbers(found) == [hit.index for hit in hits]
    assert scores(found) == [hit.relevance for hit in hits]
    logits = RerankCompressor(model=folder, scores="logit", **HOW).compress_documents(documents(), QUERY)
    assert numbers(logits) == numbers(found)
    assert scores(logits) == [hit.score for hit in hits]


def test_a_calibrated_model_gives_probabilities_and_a_threshold(calibrated):
    hits = calibrated.rank(QUERY, TEXTS, probabilities=True)
    compressor = RerankCompressor(model=calibrated)
    assert scores(compressor.compress_documents(documents(), QUERY)) == [hit.probability for hit in hits]
    compressor.min_probability = hits[2].probability
    kept = compressor.compress_documents(documents(), QUERY)
    assert numbers(kept) == [hit.index for hit in hits if hit.probability >= hits[2].probability]
    assert 0 < len(kept) < len(TEXTS)


def test_a_threshold_for_a_model_that_is_not_calibrated_says_how_to_calibrate_it(folder):
    with pytest.raises(InputError, match="not calibrated"):
        RerankCompressor(model=folder, min_probability=0.5, **HOW).compress_documents(documents(), QUERY)


def test_documents_come_as_copies_with_their_ids_and_those_given_stay_as_they_were(calibrated):
    given = documents()
    found = RerankCompressor(model=calibrated).compress_documents(given, QUERY)
    assert given == documents()
    for document in found:
        assert document.id == f"d{document.metadata['n']}"
        assert document.page_content == TEXTS[document.metadata["n"]]
        document.metadata["of"].append("y")
    assert given == documents(), "nested metadata is copied too"


def test_a_subclass_of_document_stays_one_and_an_old_score_is_replaced(calibrated):
    class Page(Document):
        page: int = 0

    [found] = RerankCompressor(model=calibrated).compress_documents(
        [Page(page_content="tea", page=7, metadata={"relevance_score": "old"})], QUERY
    )
    assert isinstance(found, Page)
    assert found.page == 7
    assert scores([found]) == [calibrated.rank(QUERY, ["tea"], probabilities=True)[0].relevance]


@pytest.mark.parametrize(("top_n", "n"), [(None, 7), (1, 1), (3, 3), (99, 7)])
def test_top_n_is_the_head_of_the_ranking(top_n, n, calibrated):
    found = RerankCompressor(model=calibrated, top_n=top_n).compress_documents(documents(), QUERY)
    assert numbers(found) == [hit.index for hit in calibrated.rank(QUERY, TEXTS)][:n]


def test_no_documents_give_none(calibrated):
    assert RerankCompressor(model=calibrated).compress_documents([], QUERY) == []


@pytest.mark.parametrize(
    "wrong",
    [
        *({"top_n": n} for n in (0, -1, "3", 2.5, True)),
        *({"min_probability": p} for p in (-0.1, 1.1, "high", float("nan"))),
        {"scores": "both"},
        {"topn": 3},
        {"model": ""},
        {"model": None},
        {"model": 3},
        {"device": "cpu"},
    ],
)
def test_a_setting_that_is_none_is_refused_by_its_name(wrong, calibrated):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RerankCompressor(**{"model": calibrated, **wrong})


def test_settings_are_checked_when_they_are_changed_and_the_model_is_not_changed(calibrated):
    compressor = RerankCompressor(model=calibrated)
    compressor.top_n = 2
    assert len(compressor.compress_documents(documents(), QUERY)) == 2
    with pytest.raises(ValidationError, match="top_n"):
        compressor.top_n = 0
    with pytest.raises(ValidationError, match="frozen"):
        compressor.model = "another"


def test_many_asynchronous_calls_at_once_give_what_one_gives(folder):
    compressor = RerankCompressor(model=folder, **HOW)

    async def all_at_once():
        return await asyncio.gather(*(compressor.acompress_documents(documents(), QUERY) for _ in range(8)))

    found = asyncio.run(all_at_once())
    assert found == [compressor.compress_documents(documents(), QUERY)] * 8


def test_it_is_pickled_copied_and_dumped_by_its_settings(folder):
    compressor = RerankCompressor(model=folder, top_n=3, **HOW)
    straight = compressor.compress_documents(documents(), QUERY)
    sent = pickle.dumps(compressor)
    assert len(sent) < 2000, "the weights are not in it"
    again = RerankCompressor.model_validate_json(compressor.model_dump_json())
    for made in (pickle.loads(sent), compressor.model_copy(deep=True), again):
        assert made == compressor or made.model_dump() == compressor.model_dump()
        assert made.compress_documents(documents(), QUERY) == straight


def test_a_path_is_taken_too_and_the_model_needs_no_name(folder):
    assert RerankCompressor(Path(folder)).model == str(Path(folder))
    assert RerankCompressor(folder, top_n=3) == RerankCompressor(model=folder, top_n=3)


def test_a_copy_with_another_model_ranks_with_that_and_one_with_the_same_shares_it(folder, calibrated):
    compressor = RerankCompressor(folder, **HOW)
    straight = scores(compressor.compress_documents(documents(), QUERY))
    for update in ({"model": calibrated, "device": None, "precision": None}, {"max_length": 10}):
        made = compressor.model_copy(update=update)
        fresh = RerankCompressor(**{"model": folder, **HOW, **update})
        assert scores(made.compress_documents(documents(), QUERY)) != straight
        assert made.compress_documents(documents(), QUERY) == fresh.compress_documents(documents(), QUERY)
    made = compressor.model_copy(update={"top_n": 2})
    assert made._ranker is compressor._ranker
    assert scores(made.compress_documents(documents(), QUERY)) == straight[:2]


def test_a_compressor_made_of_a_loaded_reranker_says_how_it_can_be_written(folder, calibrated):
    with pytest.raises(ValueError, match="save_pretrained"):
        RerankCompressor(calibrated).model_dump_json()
    assert RerankCompressor(calibrated).model_dump()["model"] is calibrated
    compressor = RerankCompressor(folder, first_stage={"bm25": "score"}, **HOW)
    assert RerankCompressor.model_validate_json(compressor.model_dump_json()) == compressor


def test_a_setting_that_there_is_not_is_named_with_the_nearest(folder):
    with pytest.raises(ValueError, match="no setting 'top_k'; did you mean 'top_n'"):
        RerankCompressor(folder, top_k=3)


class Everything(BaseRetriever):
    """A retriever that finds all documents."""

    def _get_relevant_documents(self, query, *, run_manager):
        return documents()


def test_it_works_in_the_contextual_compression_retriever(calibrated):
    pytest.importorskip("langchain_classic", reason="the retriever lives in langchain-classic")
    from langchain_classic.retrievers import ContextualCompressionRetriever
    from langchain_classic.retrievers.document_compressors import DocumentCompressorPipeline

    compressor = RerankCompressor(model=calibrated, top_n=4)
    straight = compressor.compress_documents(documents(), QUERY)
    chained = DocumentCompressorPipeline(transformers=[compressor])
    for base in (compressor, chained):
        retriever = ContextualCompressionRetriever(base_compressor=base, base_retriever=Everything())
        assert retriever.invoke(QUERY) == straight
        assert asyncio.run(retriever.ainvoke(QUERY)) == straight


def test_it_is_a_compressor_and_stands_in_a_chain_of_runnables(calibrated):
    from langchain_core.runnables import RunnableLambda

    compressor = RerankCompressor(model=calibrated, top_n=2)
    assert isinstance(compressor, BaseDocumentCompressor)
    chain = RunnableLambda(lambda query: compressor.compress_documents(Everything().invoke(query), query))
    assert chain.batch([QUERY, QUERY]) == [compressor.compress_documents(documents(), QUERY)] * 2


def test_the_cross_encoder_gives_logits_and_ranks_in_langchains_own_reranker(calibrated):
    encoder = RerankCrossEncoder(calibrated)
    hits = calibrated.rank(QUERY, TEXTS)
    found = encoder.score([(QUERY, text) for text in TEXTS])
    assert all(type(score) is float for score in found)
    assert [found[hit.index] for hit in hits] == pytest.approx([hit.score for hit in hits], abs=1e-6)
    assert encoder.score([]) == []
    pytest.importorskip("langchain_classic", reason="CrossEncoderReranker lives in langchain-classic")
    from langchain_classic.retrievers.document_compressors import CrossEncoderReranker

    theirs = CrossEncoderReranker(model=encoder, top_n=7).compress_documents(documents(), QUERY)
    assert numbers(theirs) == [hit.index for hit in hits]


def test_the_example_of_the_module_runs(folder, capsys):
    lines = [line for line in langchain.__doc__.splitlines() if line.startswith("    ")]
    example = textwrap.dedent("\n".join(lines)).replace("runs/quickstart/model/light", folder)
    exec(example, {"documents": documents()})
    lines = capsys.readouterr().out.splitlines()
    hits = Reranker.from_pretrained(folder).rank("who wrote Faust", TEXTS, top_k=3)
    assert lines == [f"{hit.relevance} {hit.text}" for hit in hits]
