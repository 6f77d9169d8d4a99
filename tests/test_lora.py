"""Low-rank adapters: they alone learn with the head, and what is saved is an ordinary model with equal logits."""

import logging
import shutil

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder

pytest.importorskip("peft", reason="needs the extra lora")

from rerank import composition
from rerank.engine.gradient_cache import backward
from rerank.errors import InputError, MissingDependency, RecipeError
from rerank.models.backbones import load_cross_encoder
from rerank.models.loading import load_policy, save_policy
from rerank.models.lora import add_lora, merged
from rerank.models.policy import ScorePolicy
from rerank.recipe import Model, parse_recipe
from rerank.teachers import Judged
from rerank.training import Clone, Context
from rerank.types import CandidateList

QUERY = "how do i read a csv file"
TEXTS = ("read lines of a file", "a cup of tea", "csv " * 40, "Faust. A tragedy!", "numbers 1 2 3", "x")
LISTS = [
    CandidateList(f"q{i}", f"{QUERY} {i}", tuple("abcdef"), TEXTS, {}, labels=tuple(int(i % 6 == j) for j in range(6)))
    for i in range(8)
]


def modular(tiny_bert):
    scorer, _ = load_cross_encoder(str(tiny_bert), 64, "mean", "float32", "cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        torch.nn.init.normal_(scorer.model[-1].linear.weight, std=0.3)
    return scorer


def classifier(tiny_bert, folder):
    """A cross-encoder in the format of transformers alone: its head is part of the network."""
    from transformers import BertConfig, BertForSequenceClassification

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        BertForSequenceClassification(BertConfig.from_pretrained(tiny_bert, num_labels=1)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_bert / name, folder / name)
    return load_cross_encoder(str(folder), 64, precision="float32", device="cpu")[0]


def made(kind, tiny_bert, folder):
    return modular(tiny_bert) if kind == "modular" else classifier(tiny_bert, folder / "classifier")


def trained(scorer, steps=4):
    policy = ScorePolicy(scorer, None, budget=400)
    pace = {"steps": steps, "lists_per_step": 4, "list_size": 6, "learning_rate": 1e-2, "warmup": 0.0}
    settings = Clone(evaluations=1, select="last", **pace)
    settings.run(policy, LISTS, Judged()(LISTS), Context("clone"))
    return policy.eval()


def copies(scorer):
    return {name: p.detach().clone() for name, p in scorer.named_parameters()}


def logits(scorer):
    with torch.inference_mode():
        return scorer.eval().logits(scorer.encode_pairs([(QUERY, text) for text in TEXTS])).numpy()


# Oracle


@pytest.mark.parametrize("kind", ["modular", "classifier"])
def test_a_saved_model_has_the_adapters_in_its_weights_and_the_logits_it_had(kind, tiny_bert, tmp_path):
    policy = trained(add_lora(made(kind, tiny_bert, tmp_path), 4))
    wanted = logits(policy.scorer)
    save_policy(policy, tmp_path / "saved")
    again = load_policy(str(tmp_path / "saved"), device="cpu", precision="float32").scorer
    np.testing.assert_allclose(logits(again), wanted, atol=1e-5)
    theirs = CrossEncoder(str(tmp_path / "saved"), device="cpu", activation_fn=torch.nn.Identity())
    found = theirs.predict([(QUERY, text) for text in TEXTS], show_progress_bar=False)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert not [name for name, _ in again.named_parameters() if "lora" in name]


def test_adapters_give_the_gradients_of_the_low_rank_product(tiny_bert):
    """d loss / d B of y = Wx + 2 B A x, with B zero, is 2 (d loss / d W) A^T."""
    plain, adapted = modular(tiny_bert), add_lora(modular(tiny_bert), 4)
    for scorer in (plain, adapted):
        items = scorer.encode_pairs([(QUERY, text) for text in TEXTS])
        backward(scorer, items, lambda flat: (flat * torch.arange(6.0)).sum(), 400, 100_000, 0)
    name = "encoder.layer.0.intermediate.dense"
    layer = adapted.network.get_submodule(name)
    of_weight = plain.network.get_submodule(name).weight.grad
    expected = 2.0 * of_weight @ layer.lora_A["default"].weight.T
    torch.testing.assert_close(layer.lora_B["default"].weight.grad, expected.detach(), rtol=1e-4, atol=1e-5)


# What learns


@pytest.mark.parametrize("kind", ["modular", "classifier"])
def test_training_changes_adapters_and_head_and_nothing_else(kind, tiny_bert, tmp_path):
    scorer = add_lora(made(kind, tiny_bert, tmp_path), 4)
    before = copies(scorer)
    trained(scorer)
    changed = {name for name, p in scorer.named_parameters() if not torch.equal(p, before[name])}
    adapters = {name for name in before if "lora_" in name}
    assert len(adapters) == 2 * 2 * 6, "A and B of query, key, value, output and two of the feed-forward, in two layers"
    assert adapters <= changed
    head = {"model.2.linear.weight"} if kind == "modular" else {"classifier.weight", "pooler.dense.weight"}
    assert {part for part in head if any(name.endswith(part) for name in changed)} == head
    assert not [name for name in changed - adapters if ".layer." in name or "embeddings" in name]


def test_a_fresh_adapter_is_silent(tiny_bert):
    np.testing.assert_allclose(logits(add_lora(modular(tiny_bert), 8)), logits(modular(tiny_bert)), atol=1e-6)


def test_adapters_learn_at_the_rate_of_the_transformer_and_the_head_of_a_classifier_too(tiny_bert, tmp_path):
    for scorer in (modular(tiny_bert), classifier(tiny_bert, tmp_path)):
        body = {id(p) for p in add_lora(scorer, 2).body()}
        named = [(name, p) for name, p in scorer.named_parameters() if p.requires_grad]
        assert {id(p) for name, p in named if "lora_" in name} <= body
        assert {id(p) for name, p in named if "classifier" in name} <= body
        assert not {id(p) for name, p in named if "linear" in name} & body


def test_how_many_parameters_learn_is_said(tiny_bert, caplog):
    with caplog.at_level(logging.INFO, "rerank.models"):
        scorer = add_lora(modular(tiny_bert), 4)
    # Per layer: four products of 32 x 32, one of 32 x 64 and one of 64 x 32; then the head of 32 and its bias.
    learn = 2 * 4 * (4 * (32 + 32) + 2 * (32 + 64)) + 33
    assert f"lora of rank 4: {learn} of" in caplog.text
    assert learn == sum(p.numel() for p in scorer.parameters() if p.requires_grad)


# Saving leaves the scorer as it is


def test_training_goes_on_after_saving(tiny_bert, tmp_path):
    policy = trained(add_lora(modular(tiny_bert), 4))
    before, wanted = copies(policy.scorer), logits(policy.scorer)
    save_policy(policy, tmp_path)
    assert {name: p.requires_grad for name, p in policy.scorer.named_parameters()} == {
        name: "lora_" in name or "linear" in name for name in before
    }
    for name, p in policy.scorer.named_parameters():
        assert torch.equal(p, before[name]), name
    np.testing.assert_array_equal(logits(policy.scorer), wanted)
    trained(policy.scorer)
    assert np.abs(logits(policy.scorer) - wanted).max() > 1e-3


def test_weights_go_through_state_dict(tiny_bert):
    policy = trained(add_lora(modular(tiny_bert), 4))
    other = ScorePolicy(add_lora(modular(tiny_bert), 4), None, budget=400)
    other.load_state_dict(policy.state_dict())
    np.testing.assert_array_equal(logits(other.scorer), logits(policy.scorer))


def test_a_model_without_adapters_is_saved_as_it_is(tiny_bert):
    scorer = modular(tiny_bert)
    assert merged(scorer.model) is scorer.model


# The recipe

RECIPE = """
name = "x"
[data]
train = "a#train"
test = "a#test"
[[models]]
{}
"""


def test_a_recipe_sets_the_rank(tiny_bert, tmp_path):
    (model,) = parse_recipe(RECIPE.format("lora = 4"), tmp_path).models
    assert (model.lora, Model().lora) == (4, 0)
    plain, adapted = (
        composition.policy_of(Model(backbone=str(tiny_bert), max_length=64, lora=rank), None, (), 0) for rank in (0, 4)
    )
    assert not [name for name, _ in plain.named_parameters() if "lora_" in name]
    assert len([name for name, _ in adapted.named_parameters() if "lora_" in name]) == 24
    again = composition.policy_of(Model(backbone=str(tiny_bert), max_length=64, lora=4), None, (), 0)
    for (name, one), other in zip(adapted.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other), f"{name} depends on more than the seed"


@pytest.mark.parametrize("wrong", ["lora = -1", 'kind = "light"\nlora = 4'])
def test_a_rank_that_cannot_be_is_refused(wrong, tmp_path):
    with pytest.raises(RecipeError, match=r"must be a rank from 0 \(none\)|this model is of kind light"):
        parse_recipe(RECIPE.format(wrong), tmp_path)


@pytest.mark.parametrize("rank", [0, -3, 2.5, True, "16"])
def test_a_rank_below_one_is_refused(rank, tiny_bert):
    with pytest.raises(InputError, match="lora must be a rank of at least 1"):
        add_lora(modular(tiny_bert), rank)


def test_without_peft_the_line_to_type_is_given(tiny_bert, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingDependency, match=r"'peft': pip install 'rerank\[lora\]'"):
        add_lora(modular(tiny_bert), 4)
