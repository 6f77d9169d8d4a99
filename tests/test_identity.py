"""What tells models apart: every file, base and encoder that decides a score, and nothing else."""

import json
import shutil
from pathlib import Path

import pytest

from rerank.errors import DataError, NotFound
from rerank.experiment.identity import model_digest
from rerank.models.backbones import load_cross_encoder
from rerank.models.loading import save_policy
from rerank.models.policy import FirstStageWeights, ScorePolicy


@pytest.fixture
def model(tiny_bert, tmp_path):
    """A saved model that reads dense scores, of an encoder beside it that a test may change."""
    shutil.copytree(tiny_bert, tmp_path / "encoder")
    scorer, _ = load_cross_encoder(str(tiny_bert), 64, precision="float32", device="cpu")
    save_policy(ScorePolicy(scorer, FirstStageWeights({"first stage": 0.3, "dense": 0.1})), tmp_path / "model")
    settings = {"language": "english", "index": "flat", "encoder": str(tmp_path / "encoder")}
    (tmp_path / "model" / "retrieval.json").write_text(json.dumps(settings))
    return tmp_path / "model"


def rewrite(file, **changed):
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


@pytest.mark.parametrize(
    "name",
    [
        *("chat_template.jinja", "additional_chat_templates/rag.jinja", "source.spm", "qwen.tiktoken"),
        *("tokenizer.vocab", "bpe.codes", "merges.txt", "vocab.txt", "spiece.model", "generation_config.json"),
    ],
)
def test_a_file_that_decides_what_a_model_computes_is_in_its_digest(model, name):
    before = model_digest(str(model))
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_text("one")
    one = model_digest(str(model))
    (model / name).write_text("two")
    assert len({before, one, model_digest(str(model))}) == 3


@pytest.mark.parametrize("name", ["README.md", "modeling.py", "training_args.bin", ".DS_Store", "onnx/model.onnx"])
def test_a_file_that_decides_nothing_is_not(model, name):
    before = model_digest(str(model))
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_text("one")
    assert model_digest(str(model)) == before


def test_the_encoder_whose_scores_a_model_reads_is_in_its_digest(model):
    before, encoder = model_digest(str(model)), model.parent / "encoder"
    weights = (encoder / "model.safetensors").read_bytes()
    (encoder / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert model_digest(str(model)) != before
    (encoder / "model.safetensors").write_bytes(weights)
    (encoder / "notes.md").write_text("mine")
    assert model_digest(str(model)) == before
    rewrite(model / "retrieval.json", encoder=str(model.parent / "gone"))
    with pytest.raises(NotFound, match="there is no model folder"):
        model_digest(str(model))


@pytest.mark.parametrize(
    "first_stage",
    [
        None,
        {"weights": {"first stage": 0.3, "dense": 0.1}, "active": False},
        {"weights": {"bm25": 0.3}, "active": True},
    ],
)
def test_an_encoder_that_a_model_does_not_read_is_not(model, first_stage):
    rewrite(model / "rerank.json", first_stage=first_stage)
    before = model_digest(str(model))
    (model.parent / "encoder" / "model.safetensors").write_bytes(b"changed")
    assert model_digest(str(model)) == before


def test_an_encoder_inside_the_folder_is_there_once_and_may_move_with_it(model, tmp_path):
    (model.parent / "encoder").rename(model / "encoder")
    rewrite(model / "retrieval.json", encoder=str(model / "encoder"))
    before = model_digest(str(model))
    moved = Path(shutil.copytree(model, tmp_path / "elsewhere"))
    assert model_digest(str(model)) == before
    (moved / "encoder" / "model.safetensors").write_bytes(b"changed")
    assert model_digest(str(moved)) != before


def test_settings_that_are_no_json_are_told_by_their_file(model):
    (model / "retrieval.json").write_text("{")
    with pytest.raises(DataError, match=r"retrieval\.json: this is not JSON"):
        model_digest(str(model))
