"""Folders of language models that are not what they were, or not what is asked for."""

import json
import shutil

import pytest
import torch
from tiny_language_models import folder_of, numbers, settings_of

pytest.importorskip("peft", reason="needs the extra lora")

from rerank.errors import DataError, InputError, Mismatch, NotFound
from rerank.models.backbones import load_listwise
from rerank.models.calibration import Calibration
from rerank.models.language.reading import Reading
from rerank.models.loading import load_policy, save_policy
from rerank.models.policy import ScorePolicy
from rerank.prompting.prompts import Prompt
from rerank.prompting.windows import Sliding
from rerank.reranker import Reranker

SHORT = Prompt(instruction="", request="", fenced=False)


@pytest.fixture
def base(tmp_path):
    return folder_of(tmp_path / "base")


@pytest.fixture
def adapted(base, tmp_path):
    """A folder of adapters that do something."""
    scorer = load_listwise(str(base), Reading(window=5, prompt=SHORT), "float32", "cpu", lora=4)
    with torch.no_grad():
        for name, parameter in scorer.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    save_policy(ScorePolicy(scorer), tmp_path / "adapted")
    return tmp_path / "adapted"


def scores(folder, precision="float32"):
    policy = load_policy(str(folder), "cpu", precision)
    with torch.no_grad():
        return policy.scores(numbers(1, n=5))


def test_adapters_load_beside_their_base_in_any_number_format(adapted):
    torch.testing.assert_close(scores(adapted, "bfloat16"), scores(adapted), atol=0.1, rtol=0.1)


def test_another_model_of_the_same_shape_in_the_place_of_the_base_is_noticed(adapted, base):
    shutil.rmtree(base)
    folder_of(base, seed=1)
    with pytest.raises(Mismatch, match=r"holds adapters of .*base, and the model that is there now is another one"):
        load_policy(str(adapted), "cpu", "float32")


@pytest.mark.parametrize("wrong", [5, "", " ", ["a"], None])
def test_a_base_that_is_no_name_is_named(wrong, adapted):
    settings = settings_of(adapted)
    (adapted / "rerank.json").write_text(json.dumps(settings | {"base": wrong}))
    with pytest.raises((DataError, InputError), match=r"field 'base' is|holds adapters without the model"):
        load_policy(str(adapted), "cpu")


def test_adapters_are_no_backbone(adapted):
    with pytest.raises(InputError, match="holds adapters without the model that they stand beside"):
        load_listwise(str(adapted), device="cpu")


def test_probabilities_of_a_model_that_is_made_to_read_otherwise_are_doubted(adapted, caplog):
    policy = load_policy(str(adapted), "cpu", "float32")
    policy.calibration = Calibration.from_dict({"kind": "affine", "a": 1.0, "b": 0.0})
    save_policy(policy, adapted.parent / "calibrated")
    Reranker.from_pretrained(adapted.parent / "calibrated", "cpu", reading={"window": 3})
    assert "its probabilities may be off with {'window': 3}" in caplog.text


@pytest.mark.parametrize(
    ("reading", "message"),
    [
        (["window"], "must be a table of settings"),
        ("window", "must be a table of settings"),
        ({5: 3}, "5 is no setting of how lists are read"),
        ({"chat": "x"}, "chat must be true or false"),
        ({"naming": "roman"}, "naming must be one of letters, numbers"),
    ],
)
def test_wrong_ways_to_read_are_refused(reading, message, adapted):
    with pytest.raises(InputError, match=message):
        Reranker.from_pretrained(adapted, "cpu", reading=reading)


@pytest.mark.parametrize("wrong", [[1], "x", {"chat": "no"}, {"naming": "roman"}])
def test_a_damaged_reading_is_named_with_its_file(wrong, adapted):
    settings = settings_of(adapted)
    (adapted / "rerank.json").write_text(json.dumps(settings | {"reading": wrong}))
    with pytest.raises(DataError, match=r"rerank\.json: field 'reading'"):
        load_policy(str(adapted), "cpu")


def test_a_base_that_has_moved_is_named_with_the_field_to_change(adapted, base):
    base.rename(base.with_name("elsewhere"))
    with pytest.raises(
        NotFound, match=r"holds adapters of the model .*base', which is not there.*field 'base' of .*rerank"
    ):
        load_policy(str(adapted), "cpu", "float32")


def test_a_smaller_window_alone_takes_a_stride_that_fits(tmp_path, base):
    scorer = load_listwise(str(base), Reading(window=6, prompt=SHORT, windowing=Sliding(4)), "float32", "cpu")
    save_policy(ScorePolicy(scorer), tmp_path / "m")
    ranked = Reranker.from_pretrained(tmp_path / "m", "cpu", reading={"window": 3}).rank("tea", list("abcdefg"))
    assert len(ranked) == 7
    kept = load_policy(str(tmp_path / "m"), "cpu", reading={"window": 5})
    assert kept.scorer.windowing == Sliding(4)
    assert repr(Reranker(kept)) == "Reranker(listwise, cpu)"
