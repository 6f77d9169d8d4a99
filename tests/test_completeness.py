"""What a model folder lacks is told, not made up at random; what is no number is not served."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rerank.errors import Mismatch, NotFound, TrainingError
from rerank.models.loading import load_policy
from rerank.models.policy import rerank_lists
from rerank.reranker import Reranker
from rerank.types import CandidateList


@pytest.fixture
def classifier(tiny_bert, tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path / "classifier"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        BertForSequenceClassification(BertConfig.from_pretrained(tiny_bert, num_labels=1)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_bert / name, folder / name)
    return folder


def changed(folder, change):
    """The folder with its tensors changed by `change(tensors)`."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


@pytest.mark.parametrize("lost", ["classifier.weight", "bert.encoder.layer.1.output.dense.bias"])
def test_a_folder_that_lacks_weights_is_refused_by_their_names(lost, classifier):
    path = changed(classifier, lambda tensors: tensors.pop(lost))
    with pytest.raises(Mismatch, match=rf"lacks weights of BertForSequenceClassification: {lost}"):
        load_policy(path, device="cpu", precision="float32", max_length=64)


def test_a_whole_folder_loads_also_with_weights_that_nothing_asks_for(classifier):
    path = changed(classifier, lambda tensors: tensors.update(extra=torch.zeros(2)))
    assert load_policy(path, device="cpu", precision="float32", max_length=64).scorer.kind == "cross-encoder"


def test_a_folder_without_a_tokenizer_is_refused(classifier):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (classifier / name).unlink()
    with pytest.raises(NotFound, match="holds no tokenizer"):
        load_policy(str(classifier), device="cpu")


def test_a_tokenizer_of_more_tokens_than_the_network_has_vectors_is_refused(classifier):
    file = json.loads((classifier / "tokenizer.json").read_text())
    vocabulary = file["model"]["vocab"]
    vocabulary.update({f"extra{i}": len(vocabulary) + i for i in range(500)})
    (classifier / "tokenizer.json").write_text(json.dumps(file))
    with pytest.raises(Mismatch, match=r"the tokenizer has \d+ tokens and the network vectors for \d+"):
        load_policy(str(classifier), device="cpu", max_length=64)


def test_logits_that_are_no_numbers_are_not_served(classifier):
    path = changed(classifier, lambda tensors: tensors["classifier.weight"].fill_(float("nan")))
    reranker = Reranker.from_pretrained(path, device="cpu", precision="float32", max_length=64)
    with pytest.raises(TrainingError, match="2 of 2 logits are not finite"):
        reranker.rank("open", ["a", "b c"])
    with pytest.raises(TrainingError, match="not finite"):
        reranker.predict([("open", "a")])
    with pytest.raises(TrainingError, match="not finite"):
        rerank_lists(reranker.policy, [CandidateList("q", "open", ("a", "b"), ("a", "b c"))], "run")


def test_predict_takes_an_array_of_pairs(classifier):
    reranker = Reranker.from_pretrained(str(classifier), device="cpu", precision="float32", max_length=64)
    pairs = [("open", "a"), ("open", "b c")]
    np.testing.assert_array_equal(reranker.predict(np.array(pairs, dtype=object)), reranker.predict(pairs))
    assert reranker.predict(np.zeros((0, 2), dtype=object)).shape == (0,)
