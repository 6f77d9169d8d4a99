"""A reranker in MTEB: both of its ways to rerank run end to end on a task of our own, and its numbers are ours."""

import logging

import numpy as np
import pytest
import torch
from conftest import write_tiny_bert
from ranking_models import a_reranker, constant_reranker, snippet_of

pytest.importorskip("mteb", reason="pip install 'rerank[mteb]' to test the MTEB adapter")

import datasets
import mteb
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.cache import ResultCache
from mteb.models import CrossEncoderProtocol, ModelMeta

from rerank import Reranker, evaluate
from rerank.errors import InputError, NotFound
from rerank.integrations.mteb import MtebReranker
from rerank.models.backbones import load_encoder
from rerank.models.light import LightScorer
from rerank.models.policy import ScorePolicy
from rerank.retrieval.bm25 import BM25
from rerank.types import Run

logging.getLogger("mteb").setLevel(logging.ERROR)

CORPUS = {
    "d1": ("csv", "csv.reader(csvfile): return a reader object that iterates over lines of the given file."),
    "d2": ("", "Read a whole file as one string with pathlib."),
    "d3": ("json", "Serialise an object to a stream in the JSON format."),
    "d4": ("", "Faust is a tragedy by Johann Wolfgang von Goethe."),
    "d5": ("tea", "Pour a cup of hot water over the leaves, wait, and pour again."),
    "d6": ("", "The Elbe is a river that ends in the North Sea."),
    "d7": ("", "A tragedy has five acts; the file of the play has five parts."),
    "d8": ("", "csv files have lines, lines have fields, fields have quotes."),
}
QUERIES = {"q1": "how do i read a csv file", "q2": "who wrote the tragedy of Faust", "q3": "how to make a cup of tea"}
QRELS = {"q1": {"d1": 2, "d8": 1}, "q2": {"d4": 1}, "q3": {"d5": 1, "d3": 0}}
TEXTS = {doc_id: f"{title} {text}".strip() for doc_id, (title, text) in CORPUS.items()}
MEASURES = {"nDCG@10": "ndcg_at_10", "nDCG@3": "ndcg_at_3", "AP@10": "map_at_10", "R@3": "recall_at_3"}


class OurTask(AbsTaskRetrieval):
    """Eight documents and three queries; nothing is downloaded."""

    candidates = None
    metadata = TaskMetadata(
        name="OurTask",
        description="A few texts, held in memory.",
        dataset={"path": "ours/texts", "revision": "1"},
        type="Retrieval",
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
    )

    def load_data(self, **told):
        split = {
            "corpus": datasets.Dataset.from_list(
                [{"id": doc_id, "title": title, "text": text} for doc_id, (title, text) in CORPUS.items()]
            ),
            "queries": datasets.Dataset.from_list([{"id": q, "text": text} for q, text in QUERIES.items()]),
            "relevant_docs": {q: dict(grades) for q, grades in QRELS.items()},
            "top_ranked": self.candidates,
        }
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


class FirstStage:
    """Our BM25 in the form of MTEB's search models: the run whose best documents are reranked."""

    mteb_model_meta = ModelMeta.create_empty(overwrites={"name": "ours/bm25", "revision": "1"})

    def index(self, corpus, **told):
        self.bm25 = BM25.build({row["id"]: f"{row['title']} {row['text']}".strip() for row in corpus})

    def search(self, queries, *, top_k, **told):
        return self.bm25.retrieve({row["id"]: row["text"] for row in queries}, min(top_k, len(CORPUS))).scores


@pytest.fixture(scope="module")
def reranker(tiny_bert):
    return a_reranker(tiny_bert)


@pytest.fixture(scope="module")
def model(reranker):
    return MtebReranker(reranker)


def scores_of(model, task, cache=None, **how):
    """What MTEB finds for the task."""
    result = mteb.evaluate(model, task, cache=cache, co2_tracker=False, show_progress_bar=False, **how)
    return result.task_results[0].scores["test"][0]


def two_stages(model, folder, depth):
    """(what MTEB finds for the model behind BM25, its first stage's run)."""
    scores_of(FirstStage(), OurTask(), prediction_folder=folder)
    first = BM25.build(TEXTS).retrieve(QUERIES, len(CORPUS))
    return scores_of(model, OurTask().convert_to_reranking(folder, top_k=depth)), first.top(depth)


def run_of(reranker, first):
    """Our own reranking of a run."""
    scores = {}
    for query_id, text in QUERIES.items():
        doc_ids = first.doc_ids(query_id)
        hits = reranker.rank(text, [TEXTS[d] for d in doc_ids])
        scores[query_id] = {doc_ids[hit.index]: hit.score for hit in hits}
    return Run.from_scores(scores)


# Oracle


@pytest.mark.parametrize("depth", [3, 8])
def test_two_stages_of_mteb_give_the_numbers_of_our_evaluation(depth, model, reranker, tmp_path):
    found, first = two_stages(model, tmp_path, depth)
    ours = evaluate(run_of(reranker, first), QRELS, MEASURES).mean
    assert 0 < ours["nDCG@10"] < 1
    assert {ours_name: found[name] for ours_name, name in MEASURES.items()} == pytest.approx(dict(ours), abs=1e-5)


def test_a_task_with_candidates_of_its_own_gives_the_numbers_of_our_evaluation(model, reranker):
    class Reranking(OurTask):
        candidates = {q: [d for d in CORPUS if d != "d2"] for q in QUERIES}  # noqa: RUF012
        metadata = OurTask.metadata.model_copy(update={"name": "OurReranking", "type": "Reranking"})

    everything = Run({q: tuple((d, 0.0) for d in CORPUS if d != "d2") for q in QUERIES})
    ours = evaluate(run_of(reranker, everything), QRELS, MEASURES).mean
    found = scores_of(model, Reranking())
    assert {ours_name: found[name] for ours_name, name in MEASURES.items()} == pytest.approx(dict(ours), abs=1e-5)


def test_a_constant_scorer_gains_nothing_from_candidates_with_the_relevant_ones_in_front(tiny_bert):
    class Reranking(OurTask):
        candidates = {q: sorted(CORPUS, key=lambda d, q=q: -QRELS[q].get(d, 0)) for q in QUERIES}  # noqa: RUF012

    found = scores_of(MtebReranker(constant_reranker(tiny_bert)), Reranking())
    by_descending_id = Run({q: tuple((d, 0.0) for d in sorted(CORPUS, reverse=True)) for q in QUERIES})
    assert found["ndcg_at_10"] == pytest.approx(
        evaluate(by_descending_id, QRELS, ["nDCG@10"]).mean["nDCG@10"], abs=1e-5
    )


def test_predict_gives_the_logits_of_the_pairs_in_their_order(model, reranker):
    pairs = [("a", "x"), ("b", "y"), ("a", "z")]
    queries = [{"text": ["a", "b"]}, {"text": ["a"]}]
    documents = [{"text": ["x"]}, {"text": ["y", "z"]}]
    found = model.predict(queries, documents, task_metadata=None, hf_split="test", hf_subset="default", batch_size=2)
    np.testing.assert_allclose(found, reranker.predict(pairs), atol=1e-6)
    assert model.predict([], []).shape == (0,)


# What results are filed under


def test_the_model_keeps_mtebs_protocol_and_says_what_it_is(model):
    assert isinstance(model, CrossEncoderProtocol)
    meta = model.mteb_model_meta
    assert meta.is_cross_encoder
    assert (meta.name, meta.max_tokens, meta.experiment_kwargs) == ("local/reranker", 64, None)
    assert meta.n_parameters == sum(p.numel() for p in model.reranker.policy.scorer.parameters())
    assert ModelMeta.model_validate(meta.model_dump()) == meta


def test_a_model_trained_anew_is_evaluated_anew_and_the_same_one_is_not(tiny_bert, tmp_path, monkeypatch):
    asked = []
    inner = MtebReranker.predict
    monkeypatch.setattr(MtebReranker, "predict", lambda self, *a, **k: asked.append(self) or inner(self, *a, **k))

    class Reranking(OurTask):
        candidates = {q: list(CORPUS) for q in QUERIES}  # noqa: RUF012

    cache = ResultCache(tmp_path)
    same, again, other = (MtebReranker(a_reranker(tiny_bert, std)) for std in (0.3, 0.3, 0.4))
    assert same.revision == again.revision != other.revision
    for made in (same, again, other):
        scores_of(made, Reranking(), cache=cache)
    assert asked == [same, other]


def a_light_reranker(folder):
    """A fresh light scorer, always with the same head, over the encoder in a folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return Reranker(ScorePolicy(LightScorer(load_encoder(str(folder), "float32", "cpu"))))


def test_all_that_decides_the_scores_decides_the_revision(reranker, tiny_bert, tmp_path):
    first, same, other = (a_light_reranker(f) for f in (tiny_bert, tiny_bert, write_tiny_bert(tmp_path / "x", seed=1)))
    assert MtebReranker(first).revision == MtebReranker(same).revision != MtebReranker(other).revision
    reranker.save_pretrained(tmp_path / "y")
    loaded = [Reranker.from_pretrained(tmp_path / "y", "cpu", "float32", length) for length in (64, 64, 30)]
    revisions = [MtebReranker(made).revision for made in loaded]
    assert revisions[0] == revisions[1] != revisions[2]
    parameters = MtebReranker(first).mteb_model_meta.n_parameters
    encoder = sum(p.numel() for p in first.policy.scorer.store.encoder.model.parameters())
    assert parameters == encoder + sum(p.numel() for p in first.policy.scorer.parameters())


def test_a_model_that_wants_first_stage_scores_is_said_to_be_measured_without_them(tiny_bert, caplog):
    made = MtebReranker(a_reranker(tiny_bert, first_stage={"bm25": 1.0}))
    for _ in range(2):
        made.predict([{"text": ["cup"]}], [{"text": ["tea"]}])
    assert caplog.text.count("trained with scores of bm25, and ranks worse without them: MTEB hands over none") == 1


def test_a_folder_gives_its_name_and_what_it_was_loaded_with(reranker, tmp_path):
    reranker.save_pretrained(tmp_path / "best")
    model = MtebReranker(str(tmp_path / "best"), device="cpu", precision="float32", max_length=30)
    assert model.mteb_model_meta.name == "local/best"
    assert model.mteb_model_meta.experiment_kwargs == {"precision": "float32", "max_length": "30"}
    assert model.mteb_model_meta.max_tokens == 30
    assert MtebReranker(reranker, revision="7", name="us/best").mteb_model_meta.revision == "7"


# Bad input


def test_what_cannot_be_is_refused(reranker, model, tmp_path):
    with pytest.raises(NotFound):
        MtebReranker(str(tmp_path / "nowhere"))
    for name in ("best", "/best", "a/b/c", ""):
        with pytest.raises(InputError, match="owner/model"):
            MtebReranker(reranker, name=name)
    with pytest.raises(InputError, match=r"the documents have the columns \['image'\] and no text"):
        model.predict([{"text": ["a"]}], [{"image": [0]}])
    with pytest.raises(InputError, match="2 queries and 1 documents"):
        model.predict([{"text": ["a", "b"]}], [{"text": ["a"]}])


def test_an_exported_model_has_no_weights_to_tell_it_apart_by_and_needs_a_revision(reranker, tmp_path):
    pytest.importorskip("onnxscript", reason="pip install 'rerank[onnx]' to test exported models")
    from rerank.models.exporting import export_onnx

    reranker.save_pretrained(tmp_path)
    export_onnx(str(tmp_path))
    with pytest.raises(InputError, match="give a revision, such as revision='2026-01'"):
        MtebReranker(str(tmp_path), backend="onnx")
    model = MtebReranker(str(tmp_path), revision="2026-01", backend="onnx")
    assert model.mteb_model_meta.n_parameters is None
    found = model.predict([{"text": ["cup"]}], [{"text": ["tea"]}])
    np.testing.assert_allclose(found, reranker.predict([("cup", "tea")]), atol=1e-4)


def test_the_example_of_the_module_runs(reranker, tmp_path, monkeypatch):
    class Reranking(OurTask):
        candidates = {q: list(CORPUS) for q in QUERIES}  # noqa: RUF012

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path / "cache"))
    reranker.save_pretrained("runs/quickstart/model/light")
    names = {"task": Reranking()}
    exec(snippet_of("rerank.integrations.mteb"), names)
    assert 0 < names["result"].task_results[0].scores["test"][0]["ndcg_at_10"] <= 1
