"""Packed sequences: the same numbers and gradients as padded ones, for every architecture that can be packed."""

import copy
import shutil

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder

from rerank.models import packing
from rerank.models.backbones import load_cross_encoder
from rerank.models.cross_encoder import CrossEncoderScorer
from rerank.models.packing import Pack

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "num_labels": 1,
    "max_position_embeddings": 260,
    "initializer_range": 0.2,
}
IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
# architecture -> (settings of its own, how it is expected to be gathered; None: it cannot be packed)
ARCHITECTURES = {
    "bert": ({}, "last layer"),
    "electra": ({"embedding_size": 32}, "last layer"),
    "roberta": ({"pad_token_id": 1}, "last layer"),
    "xlm-roberta": ({"pad_token_id": 1}, "last layer"),
    "modernbert": ({"classifier_pooling": "cls", "local_attention": 16, **IDS}, "first"),
    "modernbert mean": ({"classifier_pooling": "mean", "local_attention": 16, **IDS}, "mean"),
    "distilbert": ({"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}, "first"),
    "deberta-v2": ({"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, None),
}
QUERY = "read the lines of a file"
TEXTS = ["", "x", "open a file " * 3, "return a list of lines " * 7, "word " * 200, "open a file " * 3, "é ?!"]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def classifier(request, tiny_bert, tmp_path_factory):
    """(architecture, folder of a tiny random classifier of it)"""
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    own, _ = ARCHITECTURES[request.param]
    vocabulary = len(AutoTokenizer.from_pretrained(tiny_bert))
    name = request.param.split()[0]
    config = AutoConfig.for_model(name, **(SIZES | {"vocab_size": vocabulary} | own))
    folder = tmp_path_factory.mktemp(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_bert / file, folder / file)
    return request.param, folder


def of(folder, packed=True, max_length=200, precision="float32", **settings):
    model = CrossEncoder(str(folder), device="cpu", activation_fn=torch.nn.Identity(), max_length=max_length)
    return CrossEncoderScorer(model, max_length, precision, packed=packed, **settings).eval()


def pairs():
    return [(QUERY, text) for text in TEXTS]


def test_each_architecture_is_packed_in_the_way_that_its_head_allows(classifier):
    name, folder = classifier
    assert of(folder).gathering == ARCHITECTURES[name][1]


def test_packed_logits_are_those_of_sentence_transformers(classifier):
    _, folder = classifier
    scorer = of(folder)
    theirs = CrossEncoder(str(folder), device="cpu", activation_fn=torch.nn.Identity(), max_length=200)
    with torch.inference_mode():
        ours = scorer.logits(scorer.encode_pairs(pairs())).numpy()
    wanted = theirs.predict(pairs(), show_progress_bar=False)
    assert np.ptp(wanted) > 1e-3, "a constant scorer would prove nothing"
    np.testing.assert_allclose(ours, wanted, atol=1e-5)


def test_packed_gradients_are_those_of_padded_sequences(classifier):
    _, folder = classifier
    found = []
    for packed in (True, False):
        scorer = of(folder, packed)
        logits = scorer.logits(scorer.encode_pairs(pairs()))
        (logits * torch.linspace(-1, 2, len(logits))).sum().backward()
        found.append({name: p.grad for name, p in scorer.named_parameters() if p.grad is not None})
    largest = max(float(gradient.abs().max()) for gradient in found[1].values())
    # A projection of which nothing is used has no gradient at all, or one that is zero but for rounding.
    for name, wanted in found[1].items():
        scale = float(wanted.abs().max()) + 1e-2 * largest
        ours = found[0].get(name, torch.zeros_like(wanted))
        torch.testing.assert_close(ours / scale, wanted / scale, atol=2e-5, rtol=0, msg=name)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_an_encoder_with_a_head_of_ours_is_packed_too(pooling, tiny_bert):
    scorer, _ = load_cross_encoder(str(tiny_bert), 100, pooling, "float32", "cpu")
    assert scorer.gathering == {"mean": "head", "cls": "last layer"}[pooling]
    torch.nn.init.normal_(scorer.model[-1].linear.weight)
    with torch.inference_mode():
        ours = scorer.eval().logits(scorer.encode_pairs(pairs())).numpy()
    scorer.model.max_seq_length = 100
    theirs = scorer.model.predict(pairs(), show_progress_bar=False)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_packed_model_still_answers_sentence_transformers_own_calls(classifier):
    _, folder = classifier
    fresh = CrossEncoder(str(folder), device="cpu", activation_fn=torch.nn.Identity(), max_length=200)
    ours = of(folder).model
    for model in (ours, copy.deepcopy(ours)):
        np.testing.assert_allclose(
            model.predict(pairs(), show_progress_bar=False), fresh.predict(pairs(), show_progress_bar=False), atol=1e-6
        )


def test_a_copy_is_packed_like_the_original(classifier):
    _, folder = classifier
    scorer = of(folder)
    again = copy.deepcopy(scorer)
    with torch.inference_mode():
        items = scorer.encode_pairs(pairs())
        torch.testing.assert_close(again.logits(items), scorer.logits(items), atol=1e-6, rtol=0)


def test_neighbours_in_a_pack_do_not_change_a_score(classifier):
    _, folder = classifier
    scorer = of(folder)
    items = scorer.encode_pairs(pairs())
    with torch.inference_mode():
        together = scorer.logits(items)
        alone = torch.cat([scorer.logits([item]) for item in items])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("width", [None, 3, 500])
def test_all_kernels_of_packed_attention_agree(width):
    generator = torch.Generator().manual_seed(1)
    pack = Pack.of(np.array([7, 7, 5, 1, 12]), "first", torch.device("cpu"))
    q, k, v = torch.randn(3, 32, 2, 8, generator=generator)
    by_length = packing._by_length(q, k, v, pack, None, 0.0, width)
    padded = packing._within_padding(q, k, v, pack, None, 0.0, width)
    torch.testing.assert_close(by_length, padded, atol=1e-6, rtol=0)
    alone = [
        packing._by_length(
            *(x[a:b] for x in (q, k, v)), Pack.of(np.array([b - a]), "first", q.device), None, 0.0, width
        )
        for a, b in zip(pack.starts[:-1].tolist(), pack.starts[1:].tolist(), strict=True)
    ]
    torch.testing.assert_close(by_length, torch.cat(alone), atol=1e-6, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("width", [None, 3])
def test_the_flash_kernel_agrees_with_the_others(width):
    generator = torch.Generator().manual_seed(1)
    pack = Pack.of(np.array([7, 7, 5, 1, 12]), "first", torch.device("cuda"))
    q, k, v = torch.randn(3, 32, 2, 64, generator=generator).cuda().bfloat16()
    flash = packing._flash(q, k, v, pack, None, width)
    padded = packing._within_padding(q, k, v, pack, None, 0.0, width)
    torch.testing.assert_close(flash, padded, atol=2e-2, rtol=2e-2)


def test_positions_restart_with_each_sequence():
    pack = Pack.of(np.array([3, 1, 2]), "first", torch.device("cpu"))
    assert pack.positions().tolist() == [0, 1, 2, 0, 0, 1]
    assert pack.positions(2).tolist() == [2, 3, 4, 2, 2, 3]


def test_a_network_whose_numbers_would_differ_is_run_padded(tiny_bert, monkeypatch):
    monkeypatch.setattr(packing, "position_offset", lambda network: 1)
    scorer, _ = load_cross_encoder(str(tiny_bert), 64, "mean", "float32", "cpu")
    assert scorer.gathering is None
    assert scorer.network.config._attn_implementation == "sdpa"
