"""The adapter for Haystack, in the real framework: the order of `rank`, pipelines in YAML, ids, thresholds."""

import asyncio
import copy
import os
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("haystack") is None:
    pytest.skip("needs Haystack: pip install 'rerank[haystack]'", allow_module_level=True)
os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # before it is imported: it would write to the home folder

import haystack as haystack_ai
from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.utils import ComponentDevice
from haystack_integrations.components.rankers.rerank import RerankRanker
from ranking_models import a_reranker

from rerank import Reranker
from rerank.errors import InputError
from rerank.integrations import haystack
from rerank.models.calibration import Calibration

QUERY = "how do i read a csv file"
TEXTS = ["read lines of a file", "a cup of tea", "", "csv " * 90, "Faust. A tragedy!", "a cup of tea", "😀 الف"]
HOW = {"device": "cpu", "precision": "float32"}
TYPE = "haystack_integrations.components.rankers.rerank.RerankRanker"


@pytest.fixture(scope="module")
def policy(tiny_bert):
    return a_reranker(tiny_bert).policy


@pytest.fixture(scope="module")
def folder(policy, tmp_path_factory):
    Reranker(policy).save_pretrained(made := tmp_path_factory.mktemp("haystack") / "model")
    return str(made)


@pytest.fixture(scope="module")
def calibrated(folder):
    made = Reranker.from_pretrained(folder, **HOW)
    made.policy.calibration = Calibration("affine", a=3.0, b=-0.5)
    return made


def documents():
    return [Document(id=str(i), content=text, meta={"n": i}, score=0.1 * i) for i, text in enumerate(TEXTS)]


def ids(found):
    return [int(document.id) for document in found["documents"]]


def scores(found):
    return [document.score for document in found["documents"]]


def test_order_and_scores_are_those_of_rank(folder):
    hits = Reranker.from_pretrained(folder, **HOW).rank(QUERY, TEXTS)
    ranker = RerankRanker(folder, **HOW)
    found = ranker.run(query=QUERY, documents=documents())
    assert ids(found) == [hit.index for hit in hits]
    assert scores(found) == [hit.relevance for hit in hits]
    logits = ranker.run(query=QUERY, documents=documents(), scale_score=False)
    assert ids(logits) == ids(found)
    assert scores(logits) == [hit.score for hit in hits]


def test_a_calibrated_model_gives_probabilities_and_they_are_what_the_threshold_is_held_against(calibrated):
    hits = calibrated.rank(QUERY, TEXTS, probabilities=True)
    found = RerankRanker(calibrated).run(query=QUERY, documents=documents())
    assert scores(found) == [hit.probability for hit in hits]
    at = RerankRanker(calibrated, score_threshold=hits[2].probability).run(query=QUERY, documents=documents())
    assert ids(at) == [hit.index for hit in hits if hit.probability >= hits[2].probability]
    assert 0 < len(ids(at)) < len(TEXTS)


def test_what_is_said_when_it_runs_goes_before_what_was_said_when_it_was_made(calibrated):
    hits = calibrated.rank(QUERY, TEXTS)
    ranker = RerankRanker(calibrated, top_k=2, scale_score=False, score_threshold=1e9)
    assert ids(ranker.run(query=QUERY, documents=documents())) == []
    found = ranker.run(query=QUERY, documents=documents(), top_k=3, scale_score=False, score_threshold=-1e9)
    assert scores(found) == [hit.score for hit in hits[:3]]
    zero = RerankRanker(calibrated, scale_score=False, score_threshold=1e9).run(
        query=QUERY, documents=documents(), score_threshold=0
    )
    assert ids(zero) == [hit.index for hit in hits if hit.score >= 0], "a threshold of 0 is one"


@pytest.mark.parametrize(("top_k", "n"), [(None, 7), (1, 1), (3, 3), (99, 7)])
def test_top_k_is_the_head_of_the_ranking(top_k, n, calibrated):
    best = [hit.index for hit in calibrated.rank(QUERY, TEXTS)][:n]
    assert ids(RerankRanker(calibrated, top_k=top_k).run(query=QUERY, documents=documents())) == best
    assert ids(RerankRanker(calibrated).run(query=QUERY, documents=documents(), top_k=top_k)) == best


@pytest.mark.parametrize("top_k", [0, -1, "3", 2.5, True])
def test_a_top_k_that_is_none_is_refused_where_it_is_given(top_k, calibrated):
    with pytest.raises(ValueError, match="top_k must be a whole number of at least 1"):
        RerankRanker(calibrated, top_k=top_k)
    for given in (documents(), []):
        with pytest.raises(ValueError, match="top_k must be a whole number of at least 1"):
            RerankRanker(calibrated).run(query=QUERY, documents=given, top_k=top_k)


@pytest.mark.parametrize("threshold", ["0.5", float("nan"), True, [0.5]])
def test_a_threshold_that_is_no_number_is_refused(threshold, calibrated):
    with pytest.raises(InputError, match="score_threshold must be a number"):
        RerankRanker(calibrated, score_threshold=threshold)


@pytest.mark.parametrize("wrong", [{"meta_fields_to_embed": "title"}, {"scale_score": "no"}, {"scale_score": 1}])
def test_a_text_for_a_list_and_for_a_truth_value_are_refused_by_their_names(wrong, calibrated):
    with pytest.raises(InputError, match=next(iter(wrong))):
        RerankRanker(calibrated, **wrong)
    if "scale_score" in wrong:
        with pytest.raises(InputError, match="scale_score must be true or false"):
            RerankRanker(calibrated).run(query=QUERY, documents=documents(), **wrong)


def test_no_documents_give_none(calibrated):
    assert RerankRanker(calibrated).run(query=QUERY, documents=[]) == {"documents": []}


def test_of_documents_with_one_id_the_one_with_the_highest_score_is_ranked(calibrated):
    given = [
        Document(id="a", content="tea", score=0.2),
        Document(id="b", content="csv"),
        Document(id="c", content="of no number", score=float("nan")),
        Document(id="c", content="numbered", score=-1.0),
        Document(id="a", content="a csv file", score=0.9),
        Document(id="a", content="nothing"),
        Document(id="b", content="of no score either"),
        Document(id="a", content="as high, but later", score=0.9),
    ]
    found = RerankRanker(calibrated).run(query=QUERY, documents=given)["documents"]
    hits = calibrated.rank(QUERY, ["a csv file", "csv", "numbered"])
    assert [document.content for document in found] == [hit.text for hit in hits]


def test_documents_come_as_copies_and_those_given_stay_as_they_were(calibrated):
    given = documents()
    found = RerankRanker(calibrated).run(query=QUERY, documents=given)["documents"]
    assert given == documents()
    for document in found:
        assert document.meta == {"n": int(document.id)}


def test_metadata_is_read_before_the_text_where_that_is_wanted(calibrated):
    given = [
        Document(content="tea", meta={"title": "csv", "year": 1808, "none": None}),
        Document(content=None, meta={"title": "a file"}),
        Document(content="alone"),
    ]
    ranker = RerankRanker(calibrated, meta_fields_to_embed=["year", "title", "none"], embedding_separator=" | ")
    found = ranker.run(query=QUERY, documents=given)["documents"]
    hits = calibrated.rank(QUERY, ["1808 | csv | tea", "a file | ", "alone"], probabilities=True)
    assert [(d.content, d.score) for d in found] == [(given[hit.index].content, hit.relevance) for hit in hits]


def test_a_document_without_text_is_named(calibrated):
    with pytest.raises(InputError, match="'seven' has no text to rank"):
        RerankRanker(calibrated).run(query=QUERY, documents=[Document(id="seven", content=None)])


def a_pipeline(ranker):
    pipeline = Pipeline()
    store = InMemoryDocumentStore()
    store.write_documents(documents())
    pipeline.add_component("retriever", InMemoryBM25Retriever(store, top_k=5))
    pipeline.add_component("ranker", ranker)
    pipeline.connect("retriever.documents", "ranker.documents")
    return pipeline, store


def test_it_ranks_in_a_pipeline_after_a_retriever(folder):
    pipeline, store = a_pipeline(RerankRanker(folder, **HOW))
    found = pipeline.run({"retriever": {"query": QUERY}, "ranker": {"query": QUERY}})["ranker"]
    texts = [document.content for document in InMemoryBM25Retriever(store, top_k=5).run(query=QUERY)["documents"]]
    hits = Reranker.from_pretrained(folder, **HOW).rank(QUERY, texts)
    assert [document.content for document in found["documents"]] == [hit.text for hit in hits]
    assert scores(found) == pytest.approx([hit.relevance for hit in hits])


def test_a_pipeline_is_written_to_yaml_and_read_again_with_nothing_to_allow(folder):
    pipeline, _ = a_pipeline(RerankRanker(folder, top_k=3, scale_score=False, max_length=32, **HOW))
    written = pipeline.dumps()
    assert f"type: {TYPE}" in written
    read = Pipeline.loads(written)
    assert read.to_dict() == pipeline.to_dict()
    ranker, again = pipeline.get_component("ranker"), read.get_component("ranker")
    assert again.run(query=QUERY, documents=documents()) == ranker.run(query=QUERY, documents=documents())


def test_yaml_written_by_hand_loads_in_a_process_that_has_imported_nothing_of_ours(folder, tmp_path):
    (tmp_path / "pipeline.yaml").write_text(
        f"components:\n  ranker:\n    type: {TYPE}\n    init_parameters:\n      model: {folder}\n      top_k: 2\n"
        "connections: []\n",
        encoding="utf8",
    )
    program = """
        import sys
        from haystack import Document, Pipeline
        with open(sys.argv[1], encoding="utf8") as file:
            pipeline = Pipeline.load(file)
        texts = ["read lines of a file", "a cup of tea", "Faust"]
        ranked = pipeline.run({"ranker": {"query": "tea", "documents": [Document(content=text) for text in texts]}})
        print([document.content for document in ranked["ranker"]["documents"]])
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "pipeline.yaml")],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    hits = Reranker.from_pretrained(folder).rank("tea", ["read lines of a file", "a cup of tea", "Faust"], top_k=2)
    assert done.stdout.strip() == str([hit.text for hit in hits])


def test_a_setting_that_there_is_not_is_refused_when_yaml_is_read(folder):
    written = Pipeline.loads("components: {}\nconnections: []\n").to_dict()
    written["components"]["ranker"] = {"type": TYPE, "init_parameters": {"model": folder, "topk": 3}}
    with pytest.raises(Exception, match="topk"):
        Pipeline.from_dict(written)


def test_a_ranker_made_of_a_loaded_reranker_says_how_it_can_be_written(calibrated):
    with pytest.raises(InputError, match="save_pretrained"):
        RerankRanker(calibrated).to_dict()


def test_a_device_of_haystack_and_a_path_are_taken(folder):
    ranker = RerankRanker(Path(folder), device=ComponentDevice.from_str("cpu"))
    assert ranker.to_dict()["init_parameters"]["device"] == "cpu"
    assert ranker.to_dict()["init_parameters"]["model"] == folder
    assert len(ids(ranker.run(query=QUERY, documents=documents()))) == len(TEXTS)


def test_the_model_is_loaded_by_warm_up_or_by_the_first_run_and_kept_in_copies(folder):
    ranker = RerankRanker(folder, **HOW)
    ranker.warm_up()
    loaded = ranker._ranker.reranker()
    ranker.warm_up()
    ranker.run(query=QUERY, documents=documents())
    assert ranker._ranker.reranker() is loaded
    assert copy.deepcopy(ranker)._ranker.reranker() is loaded


def test_it_runs_asynchronously_alone_and_in_a_pipeline(folder):
    ranker = RerankRanker(folder, **HOW)
    straight = ranker.run(query=QUERY, documents=documents(), top_k=4)

    async def all_at_once():
        return await asyncio.gather(*(ranker.run_async(query=QUERY, documents=documents(), top_k=4) for _ in range(8)))

    assert asyncio.run(all_at_once()) == [straight] * 8
    pipeline = getattr(haystack_ai, "AsyncPipeline", Pipeline)()  # Haystack 3 has but the one
    pipeline.add_component("ranker", ranker)
    asked = {"ranker": {"query": QUERY, "documents": documents(), "top_k": 4}}
    assert asyncio.run(pipeline.run_async(asked)) == {"ranker": straight}


def test_the_example_of_the_module_runs(folder, capsys):
    lines = [line for line in haystack.__doc__.splitlines() if line.startswith("    ")]
    example = textwrap.dedent("\n".join(lines)).replace("runs/quickstart/model/light", folder)
    exec(example, {"documents": documents()})
    lines = capsys.readouterr().out.splitlines()
    hits = Reranker.from_pretrained(folder).rank("who wrote Faust", TEXTS, top_k=3)
    assert lines == [f"{hit.relevance} {hit.text}" for hit in hits]
