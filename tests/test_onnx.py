"""Exported models: the logits of torch for every kind of network, int8 near them, and errors that say what to type."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")

from rerank import Reranker
from rerank.errors import InputError, Mismatch, NotFound
from rerank.lists import mask_of
from rerank.models import exporting
from rerank.models.backbones import load_cross_encoder
from rerank.models.calibration import Calibration
from rerank.models.exporting import export_onnx
from rerank.models.int8 import check_int8
from rerank.models.loading import load_policy, save_policy
from rerank.models.onnx import OnnxScorer
from rerank.models.policy import FirstStageWeights, ScorePolicy
from rerank.serving.asking import Question, Refusal
from rerank.serving.reading import Reader, Slice
from rerank.types import CandidateList

QUERY = "how do i read a csv file"
TEXTS = ["read lines of a file", "a cup of tea", "", "csv " * 90, "Faust. A tragedy!", "numbers 1 2 3", "x"]
PAIRS = [(QUERY, text) for text in TEXTS] + [("tea", text) for text in TEXTS]
KINDS = ("XLMRoberta",)
OTHERS = ("Bert", "Roberta", "Electra", "ModernBert", "DistilBert")


def write_classifier(kind, tiny_bert, folder):
    """A tiny random sequence classifier of transformers with one output, and the tokenizer of the tiny BERT."""
    import transformers

    sizes = {
        "vocab_size": 200,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "num_labels": 1,
        "pad_token_id": 0,
    }
    own = {
        "Electra": {"embedding_size": 16},
        "ModernBert": {"local_attention": 16, "global_attn_every_n_layers": 2, "initializer_cutoff_factor": 2.0},
        "DistilBert": {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64},
    }
    config = getattr(transformers, f"{kind}Config")(**sizes | own.get(kind, {}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        getattr(transformers, f"{kind}ForSequenceClassification")(config).save_pretrained(folder)
    shutil.copy(tiny_bert / "tokenizer.json", folder)
    settings = json.loads((tiny_bert / "tokenizer_config.json").read_text(encoding="utf8"))
    if kind in ("ModernBert", "DistilBert"):
        settings["model_input_names"] = ["input_ids", "attention_mask"]
    if kind in ("Roberta", "XLMRoberta"):  # one segment, and positions that begin after that of padding
        settings |= {"model_input_names": ["input_ids", "attention_mask"], "model_max_length": 127}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf8")
    return folder


def write_modular(tiny_bert, folder, pooling="cls", first_stage=None, calibration=None):
    """A policy of ours with a random head, saved."""
    scorer, _ = load_cross_encoder(str(tiny_bert), 64, pooling, "float32", "cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        torch.nn.init.normal_(scorer.model[-1].linear.weight, std=0.3)
    policy = ScorePolicy(scorer, first_stage, budget=200)
    policy.calibration = calibration
    save_policy(policy, folder)
    return folder


@pytest.fixture(scope="module")
def exported(tiny_bert, tmp_path_factory):
    """A modular model with a first-token head, first-stage weights and calibration, exported with int8."""
    folder = write_modular(
        *(tiny_bert, tmp_path_factory.mktemp("onnx") / "model", "cls"),
        FirstStageWeights({"bm25": 2.0}),
        Calibration("affine", a=2.0, b=1.0, plain=Calibration("affine", a=1.0, b=-3.0)),
    )
    assert export_onnx(str(folder), int8=True) == folder
    return folder


@pytest.fixture(scope="module")
def exported_mean(tiny_bert, tmp_path_factory):
    """A modular model with mean pooling, exported to another folder than its own, without int8."""
    folder = tmp_path_factory.mktemp("onnx")
    write_modular(tiny_bert, folder / "model", "mean")
    assert export_onnx(str(folder / "model"), folder / "out") == folder / "out"
    return folder / "out"


def torch_of(folder, **settings):
    return Reranker.from_pretrained(folder, device="cpu", precision="float32", **settings)


def onnx_of(folder, **settings):
    return Reranker.from_pretrained(folder, device="cpu", backend="onnx", **settings)


def operators(file):
    import onnx

    return [node.op_type for node in onnx.load(file).graph.node]


# Oracle: torch


@pytest.mark.parametrize("kind", [*KINDS, *(pytest.param(kind, marks=pytest.mark.slow) for kind in OTHERS)])
def test_an_exported_classifier_gives_the_logits_of_torch(kind, tiny_bert, tmp_path):
    folder = write_classifier(kind, tiny_bert, tmp_path)
    export_onnx(str(folder))
    wanted = torch_of(folder, max_length=100).predict(PAIRS)
    assert np.ptp(wanted) > 0.05, "logits that are all alike would prove nothing"
    np.testing.assert_allclose(onnx_of(folder, max_length=100).predict(PAIRS), wanted, rtol=1e-4, atol=1e-4)


def test_an_exported_model_of_ours_gives_the_logits_of_torch(exported, exported_mean):
    for folder in (exported, exported_mean):
        wanted = torch_of(folder).predict(PAIRS)
        np.testing.assert_allclose(onnx_of(folder).predict(PAIRS), wanted, rtol=1e-4, atol=1e-4)


def test_attention_is_one_node_a_layer_and_the_last_layer_reads_the_first_token_alone(exported, exported_mean):
    first, mean = (operators(folder / "onnx/model.onnx") for folder in (exported, exported_mean))
    assert first.count("MultiHeadAttention") == mean.count("MultiHeadAttention") == 2
    assert first.count("Slice") > mean.count("Slice"), "mean pooling reads all tokens"


def test_int8_logits_are_near_the_float_ones_and_the_linear_layers_are_integers(exported):
    float_logits, int8_logits = (onnx_of(exported, precision=p).predict(PAIRS) for p in ("auto", "int8"))
    assert 0 < np.abs(int8_logits - float_logits).max() < 0.25 * np.ptp(float_logits)
    assert np.corrcoef(float_logits, int8_logits)[0, 1] > 0.98
    found = operators(exported / "onnx/model_int8.onnx")
    # The first layer but for its narrowing one, and of the last one query, key and value; and not the head.
    assert (found.count("MatMulInteger"), found.count("MatMul")) == (8, 5)


# Invariance


def test_a_pair_has_the_same_logit_in_any_company(exported):
    scorer = onnx_of(exported).policy.scorer
    together = scorer.logits(scorer.encode_pairs(PAIRS)).numpy()
    alone = [float(scorer.logits(scorer.encode_pairs([pair]))) for pair in PAIRS]
    np.testing.assert_allclose(alone, together, rtol=1e-4, atol=1e-5)


def test_windows_of_a_long_document_are_read_as_with_torch(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "model")
    settings = json.loads((folder / "rerank.json").read_text(encoding="utf8"))
    (folder / "rerank.json").write_text(json.dumps(settings | {"windows": 3}), encoding="utf8")
    text = " ".join(f"{word} {i}" for i, word in enumerate(["tea", "file", "csv"] * 20))
    wanted, found = (made(folder).predict([(QUERY, text), (QUERY, "tea")]) for made in (torch_of, onnx_of))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    assert onnx_of(folder).policy.scorer.pairs.windows == 3


def test_a_length_beyond_the_model_is_told_as_with_torch_and_one_that_nobody_gave_is_not(exported, tmp_path, caplog):
    shutil.copytree(exported, tmp_path / "model")
    settings = json.loads((tmp_path / "model/rerank.json").read_text(encoding="utf8"))
    del settings["max_length"]
    (tmp_path / "model/rerank.json").write_text(json.dumps(settings), encoding="utf8")
    for load in (onnx_of, torch_of):
        with caplog.at_level(logging.WARNING):
            assert load(tmp_path / "model").policy.scorer.max_length == 64
            assert not caplog.records
            assert load(tmp_path / "model", max_length=5000).policy.scorer.max_length == 64
        assert "max_length 5000 is more than the model can read; 64 is used" in caplog.text
        caplog.clear()


def test_the_server_cuts_counts_and_refuses_as_with_torch(exported):
    candidates = CandidateList("q", QUERY, tuple("abc"), ("one two three four", "word " * 100, "two"))
    readers = [Reader(load(exported)) for load in (onnx_of, torch_of)]
    for question in (Question(QUERY, candidates.texts), Question(QUERY, candidates.texts, max_tokens=2)):
        (ours,), (theirs,) = (reader.read([Slice(question, candidates, 0)]) for reader in readers)
        assert ours.tokens == theirs.tokens
        torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-4, rtol=1e-4)
    refused = []
    for reader in readers:
        with pytest.raises(Refusal) as caught:
            reader.read([Slice(Question(QUERY, candidates.texts, truncate=False), candidates, 0)])
        refused.append(caught.value.message)
    assert refused[0] == refused[1]
    assert refused[0].startswith("document 1 and the query")


@pytest.mark.parametrize("precision", ["auto", "int8"])
def test_first_stage_weights_and_probabilities_work_as_with_torch(precision, exported):
    scores = {"bm25": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 90.0]}
    ours, theirs = onnx_of(exported, precision=precision), torch_of(exported)
    atol = 1e-4 if precision == "auto" else 0.5
    for given in (None, scores):
        wanted = {hit.index: hit for hit in theirs.rank(QUERY, TEXTS, first_stage=given, probabilities=True)}
        for hit in ours.rank(QUERY, TEXTS, first_stage=given, probabilities=True):
            assert hit.score == pytest.approx(wanted[hit.index].score, abs=atol)
            assert hit.probability == pytest.approx(wanted[hit.index].probability, abs=atol)


def test_the_policy_of_an_exported_model_scores_and_samples_lists(exported):
    policy = load_policy(str(exported), device="cpu", backend="onnx")
    lists = [CandidateList("q", QUERY, tuple("abcdefg"), tuple(TEXTS), {"bm25": (1.0,) * 7})]
    lists += [lists[0].subset([0, 3])]
    scores = policy.scores(lists)
    assert (scores.isfinite() == mask_of(lists)).all()
    assert policy.sample(lists, 3, torch.Generator()).rankings.shape == (2, 3, 7)


# Saving


def test_an_exported_policy_saves_to_a_folder_that_both_backends_read(exported, tmp_path):
    made = onnx_of(exported, max_length=48)
    made.policy.calibration = Calibration("affine", a=5.0, b=0.0)
    made.save_pretrained(tmp_path / "copy")
    made.save_pretrained(tmp_path / "copy")
    again = onnx_of(tmp_path / "copy")
    assert again.policy.calibration == Calibration("affine", a=5.0, b=0.0)
    assert again.policy.scorer.max_length == torch_of(tmp_path / "copy").policy.scorer.max_length == 48
    np.testing.assert_array_equal(again.predict(PAIRS), made.predict(PAIRS))


def test_an_export_to_another_folder_leaves_the_model_as_it_was(exported_mean):
    assert not (exported_mean.parent / "model" / "onnx").exists()
    assert {path.name for path in exported_mean.iterdir() if path.name.startswith("onnx")} == {"onnx"}
    assert {path.name for path in (exported_mean / "onnx").iterdir()} == {"model.onnx"}


def test_the_weights_may_be_left_out_where_only_the_export_is_wanted(exported, tmp_path):
    folder = tmp_path / "slim"
    shutil.copytree(exported, folder, ignore=shutil.ignore_patterns("*.safetensors", "2_Dense"))
    np.testing.assert_array_equal(onnx_of(folder).predict(PAIRS), onnx_of(exported).predict(PAIRS))


# Bad inputs


def test_a_model_that_was_trained_on_after_its_export_is_refused(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "model")
    made = torch_of(folder)
    with torch.no_grad():
        made.policy.scorer.model[-1].linear.weight.mul_(2)
    made.save_pretrained(folder)
    with pytest.raises(Mismatch, match=r"exported from other weights.*rerank export .* --to onnx"):
        onnx_of(folder)


def test_a_model_that_was_not_exported_says_what_to_type(tiny_bert, tmp_path, monkeypatch):
    folder = write_modular(tiny_bert, tmp_path)
    with pytest.raises(NotFound, match=r"no .*model\.onnx; write it with: rerank export .* --to onnx$"):
        onnx_of(folder)
    with pytest.raises(NotFound, match=r"no .*model_int8\.onnx; write it with: rerank export .* --to onnx --int8$"):
        onnx_of(folder, precision="int8")
    monkeypatch.setattr("rerank.models.backbones._fetched", lambda name: name)  # a model of the hub that is not ours
    with pytest.raises(NotFound, match=r"rerank export some/name --to onnx --out FOLDER"):
        onnx_of("some/name")


@pytest.mark.parametrize("backend", ["onxx", "tensorrt", "", None])
def test_an_unknown_backend_is_refused_with_those_there_are(backend, exported):
    with pytest.raises(InputError, match=r"backend .* is not known.*known: onnx, torch"):
        Reranker.from_pretrained(exported, backend=backend)


def test_the_nearest_backend_is_named(exported):
    with pytest.raises(InputError, match="did you mean 'onnx'"):
        Reranker.from_pretrained(exported, backend="ONNX")


@pytest.mark.parametrize("precision", ["bfloat16", "int4"])
def test_a_precision_that_is_not_exported_is_refused(precision, exported):
    with pytest.raises(InputError, match=r"backend = 'onnx' has.*auto, float32, int8"):
        onnx_of(exported, precision=precision)


def test_int8_without_the_backend_is_refused(exported):
    with pytest.raises(InputError, match="precision 'int8'"):
        Reranker.from_pretrained(exported, device="cpu", precision="int8").predict(PAIRS)


def test_a_device_that_onnxruntime_has_no_provider_for_is_refused(exported):
    with pytest.raises(InputError, match="device 'meta' cannot be used with backend = 'onnx'"):
        Reranker.from_pretrained(exported, device="meta", backend="onnx")


def test_an_exported_policy_cannot_be_trained(exported):
    policy = load_policy(str(exported), device="cpu", backend="onnx")
    assert isinstance(policy.scorer, OnnxScorer)
    assert policy.scorer.body() == []
    with pytest.raises(InputError, match=r"backend = 'onnx', which has no weights to train.*backend = 'torch'"):
        policy.train()


def test_an_encoder_without_a_head_is_not_exported(tiny_bert):
    with pytest.raises(InputError, match="an encoder without a ranking head"):
        export_onnx(str(tiny_bert))


def test_a_light_model_has_no_transformer_to_export(tiny_bert, tmp_path):
    from rerank.models.encoder import SentenceEncoder, VectorStore
    from rerank.models.light import LightScorer

    save_policy(ScorePolicy(LightScorer(VectorStore(SentenceEncoder(str(tiny_bert), device="cpu")))), tmp_path)
    with pytest.raises(InputError, match=r"is a light model.*no cross-encoder to export"):
        export_onnx(str(tmp_path))
    with pytest.raises(InputError, match=r"is a light model.*backend = 'torch' alone"):
        onnx_of(tmp_path)


def test_a_damaged_file_is_named(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "broken")
    (tmp_path / "broken" / "onnx" / "model.onnx").write_bytes(b"no model")
    with pytest.raises(InputError, match=r"model\.onnx is no model that onnxruntime can run.*export it anew"):
        onnx_of(tmp_path / "broken")


def test_an_export_whose_logits_differ_is_refused_and_leaves_no_file(tiny_bert, tmp_path, monkeypatch):
    folder = write_modular(tiny_bert, tmp_path)
    monkeypatch.setattr(exporting, "CLOSE", -1.0)
    with pytest.raises(Mismatch, match=r"BertModel cannot be exported to ONNX.*use backend = 'torch'"):
        export_onnx(str(folder))
    assert not list(folder.glob("onnx*"))


def test_int8_that_lost_the_scores_is_said_or_refused(caplog):
    wanted = np.array([0.0, 1.0, 2.0, 3.0], dtype=np.float32)
    with caplog.at_level(logging.INFO, "rerank.models"):
        check_int8(wanted + 0.01, wanted)
        assert [record.levelname for record in caplog.records] == ["INFO"]
        check_int8(wanted[[1, 3, 0, 2]], wanted)
        assert caplog.records[-1].levelname == "WARNING"
    with pytest.raises(Mismatch, match="no finite logits"):
        check_int8(wanted * np.nan, wanted)


def test_a_language_model_is_not_taken_for_a_light_one(tmp_path):
    from tiny_language_models import folder_of

    with pytest.raises(InputError, match="is a listwise language model: there is no cross-encoder to export"):
        export_onnx(str(folder_of(tmp_path / "lm", context=8192)), tmp_path / "out")
