"""The adapter for LlamaIndex, in the real framework: the order of `rank`, events, a query engine, written settings."""

import asyncio
import pickle
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("llama_index") is None:
    pytest.skip("needs LlamaIndex: pip install 'rerank[llama-index]'", allow_module_level=True)

from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.llms.mock import MockLLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers.no_text import NoText
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import ImageNode, MetadataMode, NodeWithScore, QueryBundle, TextNode
from pydantic import ValidationError
from ranking_models import a_reranker

from rerank import Reranker
from rerank.errors import InputError
from rerank.integrations import llama_index
from rerank.integrations.llama_index import RerankPostprocessor
from rerank.models.calibration import Calibration

QUERY = "how do i read a csv file"
TEXTS = ["read lines of a file", "a cup of tea", "", "csv " * 90, "Faust. A tragedy!", "a cup of tea", "😀 الف"]
HOW = {"device": "cpu", "precision": "float32"}


@pytest.fixture(scope="module")
def policy(tiny_bert):
    return a_reranker(tiny_bert).policy


@pytest.fixture(scope="module")
def folder(policy, tmp_path_factory):
    Reranker(policy).save_pretrained(made := tmp_path_factory.mktemp("llama") / "model")
    return str(made)


@pytest.fixture(scope="module")
def calibrated(folder):
    made = Reranker.from_pretrained(folder, **HOW)
    made.policy.calibration = Calibration("affine", a=3.0, b=-0.5)
    return made


def nodes():
    return [NodeWithScore(node=TextNode(text=text, id_=str(i)), score=0.5 - i) for i, text in enumerate(TEXTS)]


def ids(found):
    return [int(node.node.node_id) for node in found]


def scores(found):
    return [node.score for node in found]


def test_order_and_scores_are_those_of_rank(folder):
    hits = Reranker.from_pretrained(folder, **HOW).rank(QUERY, TEXTS)
    found = RerankPostprocessor(model=folder, **HOW).postprocess_nodes(nodes(), query_str=QUERY)
    assert ids(found) == [hit.index for hit in hits]
    assert scores(found) == [hit.relevance for hit in hits]
    logits = RerankPostprocessor(model=folder, scores="logit", **HOW).postprocess_nodes(nodes(), QueryBundle(QUERY))
    assert ids(logits) == ids(found)
    assert scores(logits) == [hit.score for hit in hits]


def test_a_calibrated_model_gives_probabilities_and_a_threshold(calibrated):
    hits = calibrated.rank(QUERY, TEXTS, probabilities=True)
    postprocessor = RerankPostprocessor(model=calibrated)
    assert scores(postprocessor.postprocess_nodes(nodes(), query_str=QUERY)) == [hit.probability for hit in hits]
    postprocessor.min_probability = hits[2].probability
    kept = postprocessor.postprocess_nodes(nodes(), query_str=QUERY)
    assert ids(kept) == [hit.index for hit in hits if hit.probability >= hits[2].probability]
    assert 0 < len(kept) < len(TEXTS)


def test_the_metadata_that_embeddings_see_is_read_and_what_they_do_not_see_is_not(calibrated):
    node = TextNode(text="tea", metadata={"title": "csv", "secret": "file"}, excluded_embed_metadata_keys=["secret"])
    [found] = RerankPostprocessor(model=calibrated).postprocess_nodes([NodeWithScore(node=node)], query_str=QUERY)
    text = node.get_content(metadata_mode=MetadataMode.EMBED)
    assert "csv" in text
    assert "file" not in text
    assert found.score == calibrated.rank(QUERY, [text], probabilities=True)[0].relevance


def test_the_nodes_that_were_given_stay_as_they_were(calibrated):
    given = nodes()
    RerankPostprocessor(model=calibrated).postprocess_nodes(given, query_str=QUERY)
    RerankPostprocessor(model=calibrated, keep_retrieval_score=True).postprocess_nodes(given, query_str=QUERY)
    assert given == nodes()


def test_the_retrievers_score_is_kept_where_that_is_wanted(calibrated):
    found = RerankPostprocessor(model=calibrated, keep_retrieval_score=True).postprocess_nodes(nodes(), query_str=QUERY)
    assert [node.node.metadata["retrieval_score"] for node in found] == [0.5 - i for i in ids(found)]


def test_a_node_that_is_an_image_with_a_text_stays_one(calibrated):
    given = NodeWithScore(node=ImageNode(text="tea", image="aGk="))
    [found] = RerankPostprocessor(model=calibrated, keep_retrieval_score=True).postprocess_nodes(
        [given], query_str=QUERY
    )
    assert isinstance(found.node, ImageNode)
    assert found.node.image == "aGk="


@pytest.mark.parametrize(("top_n", "n"), [(None, 7), (1, 1), (3, 3), (99, 7)])
def test_top_n_is_the_head_of_the_ranking(top_n, n, calibrated):
    found = RerankPostprocessor(model=calibrated, top_n=top_n).postprocess_nodes(nodes(), query_str=QUERY)
    assert ids(found) == [hit.index for hit in calibrated.rank(QUERY, TEXTS)][:n]


def test_no_nodes_give_none_and_no_query_is_refused(calibrated):
    postprocessor = RerankPostprocessor(model=calibrated)
    assert postprocessor.postprocess_nodes([], query_str=QUERY) == []
    with pytest.raises(InputError, match="needs the query"):
        postprocessor.postprocess_nodes(nodes())


@pytest.mark.parametrize(
    "wrong",
    [
        *({"top_n": n} for n in (0, -1, "3", 2.5, True)),
        *({"min_probability": p} for p in (-0.1, 1.1, "high", float("nan"))),
        {"scores": "both"},
        {"topn": 3},
        {"model": ""},
        {"model": None},
        {"device": "cpu"},
    ],
)
def test_a_setting_that_is_none_is_refused_by_its_name(wrong, calibrated):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RerankPostprocessor(**{"model": calibrated, **wrong})


def test_the_model_of_a_postprocessor_is_not_changed(calibrated):
    with pytest.raises(ValidationError, match="frozen"):
        RerankPostprocessor(model=calibrated).model = "another"


class Heard(BaseEventHandler):
    """A handler that remembers the events."""

    events: list = []  # noqa: RUF012 - a pydantic field

    def handle(self, event, **kwargs):
        self.events.append(event)


def test_both_kinds_of_events_tell_the_query_the_model_and_the_nodes(folder):
    heard, traced = Heard(), LlamaDebugHandler(print_trace_on_end=False)
    root = get_dispatcher()
    root.add_event_handler(heard)
    try:
        postprocessor = RerankPostprocessor(model=folder, top_n=2, callback_manager=CallbackManager([traced]), **HOW)
        found = postprocessor.postprocess_nodes(nodes(), query_str=QUERY)
    finally:
        root.event_handlers.remove(heard)
    start, end = (event for event in heard.events if isinstance(event, (ReRankStartEvent, ReRankEndEvent)))
    assert (start.query.query_str, start.top_n, start.model_name) == (QUERY, 2, folder)
    assert (start.nodes, end.nodes) == (nodes(), found)
    [(asked, answered)] = traced.get_event_pairs(CBEventType.RERANKING)
    assert asked.payload[EventPayload.TOP_K] == 2
    assert asked.payload[EventPayload.MODEL_NAME] == folder
    assert answered.payload[EventPayload.NODES] == found


def test_many_asynchronous_calls_at_once_give_what_one_gives(folder):
    postprocessor = RerankPostprocessor(model=folder, **HOW)

    async def all_at_once():
        return await asyncio.gather(*(postprocessor.apostprocess_nodes(nodes(), query_str=QUERY) for _ in range(8)))

    assert asyncio.run(all_at_once()) == [postprocessor.postprocess_nodes(nodes(), query_str=QUERY)] * 8


def test_it_is_written_read_and_pickled_by_its_settings(folder):
    postprocessor = RerankPostprocessor(model=Path(folder), top_n=3, **HOW)
    straight = postprocessor.postprocess_nodes(nodes(), query_str=QUERY)
    sent = pickle.dumps(postprocessor)
    assert len(sent) < 3000, "the weights are not in it"
    written = postprocessor.to_dict()
    assert written["class_name"] == "RerankPostprocessor"
    for made in (
        RerankPostprocessor.from_dict(written),
        RerankPostprocessor.from_json(postprocessor.to_json()),
        pickle.loads(sent),
        postprocessor.model_copy(deep=True),
    ):
        assert made.to_dict() == written
        assert made.postprocess_nodes(nodes(), query_str=QUERY) == straight


def test_a_copy_with_another_model_ranks_with_that(folder, calibrated):
    postprocessor = RerankPostprocessor(folder, **HOW)
    straight = scores(postprocessor.postprocess_nodes(nodes(), query_str=QUERY))
    made = postprocessor.model_copy(update={"model": calibrated, "device": None, "precision": None})
    found = scores(made.postprocess_nodes(nodes(), query_str=QUERY))
    assert found != straight
    assert found == scores(RerankPostprocessor(calibrated).postprocess_nodes(nodes(), query_str=QUERY))
    assert postprocessor.model_copy(update={"top_n": 2})._ranker is postprocessor._ranker


def test_one_made_of_a_loaded_reranker_says_how_it_can_be_written_and_a_wrong_setting_is_named(folder, calibrated):
    for write in (RerankPostprocessor(calibrated).to_dict, RerankPostprocessor(calibrated).to_json):
        with pytest.raises(InputError, match="save_pretrained"):
            write()
    with pytest.raises(ValueError, match="no setting 'top_k'; did you mean 'top_n'"):
        RerankPostprocessor(folder, top_k=3)


class Everything(BaseRetriever):
    """A retriever that finds all nodes."""

    def _retrieve(self, query_bundle):
        return nodes()


def test_it_ranks_the_sources_of_a_query_engine(calibrated):
    postprocessor = RerankPostprocessor(model=calibrated, top_n=4)
    assert isinstance(postprocessor, BaseNodePostprocessor)
    engine = RetrieverQueryEngine(Everything(), NoText(llm=MockLLM()), node_postprocessors=[postprocessor])
    straight = postprocessor.postprocess_nodes(nodes(), query_str=QUERY)
    assert engine.query(QUERY).source_nodes == straight
    assert asyncio.run(engine.aquery(QUERY)).source_nodes == straight


def test_the_example_of_the_module_runs(folder, capsys):
    lines = [line for line in llama_index.__doc__.splitlines() if line.startswith("    ")]
    example = textwrap.dedent("\n".join(lines)).replace("runs/quickstart/model/light", folder)
    exec(example, {"nodes": nodes()})
    lines = capsys.readouterr().out.splitlines()
    hits = Reranker.from_pretrained(folder).rank("who wrote Faust", TEXTS, top_k=3)
    assert lines == [f"{hit.relevance} {hit.text}" for hit in hits]
