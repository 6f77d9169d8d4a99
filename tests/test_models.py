"""Scorers, the policy and their folders: equal to sentence-transformers, safe against what texts and folders hold."""

import json
import logging
import math
import shutil
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from rerank import plackett_luce
from rerank.errors import InputError, MissingDependency, NotFound, RerankError
from rerank.lists import mask_of
from rerank.models import loading
from rerank.models.cross_encoder import CrossEncoderScorer
from rerank.models.encoder import SentenceEncoder, VectorStore
from rerank.models.light import LightScorer
from rerank.models.loading import is_ranker, load_cross_encoder, load_policy, save_policy
from rerank.models.policy import FirstStageWeights, ScorePolicy, rerank_lists, with_rest
from rerank.randomness import generator
from rerank.types import CandidateList, Run

QUERY = "how do i read a csv file"
TEXTS = (
    "open the file and read it line by line",
    "Faust, a tragedy in two parts.",
    "",
    "csv " * 80,
    "numbers 1 2 3 and (signs) & more!",
    "x",
)
SPECIALS = ("[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]", "<s>", "</s>", "<pad>")


def a_list(texts=TEXTS, query=QUERY, query_id="q", **features):
    return CandidateList(query_id, query, tuple(f"d{i}" for i in range(len(texts))), tuple(texts), features)


def seeded_head(scorer, seed=7, std=0.3):
    """The scorer with a random head instead of the silent one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.nn.init.normal_(scorer.model[-1].linear.weight, std=std)
    return scorer


def cross_encoder_policy(folder, first_stage=None, max_length=64):
    scorer, _ = load_cross_encoder(str(folder), max_length=max_length, precision="float32", device="cpu")
    return ScorePolicy(seeded_head(scorer), first_stage, budget=200).eval()


def logits(scorer, pairs):
    with torch.inference_mode():
        return scorer.eval().logits(scorer.encode_pairs(pairs)).numpy()


def write_classifier(tiny_bert, folder, labels=1):
    """A BERT cross-encoder in the format of transformers alone, with its tokenizer."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig.from_pretrained(tiny_bert, num_labels=labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        BertForSequenceClassification(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_bert / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def tiny_roberta(tmp_path_factory):
    """Folder of a tiny random RoBERTa with a trained byte-level BPE tokenizer."""
    from tokenizers import ByteLevelBPETokenizer, processors
    from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaModel

    folder = tmp_path_factory.mktemp("tiny") / "roberta"
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    pieces = ByteLevelBPETokenizer()
    pieces.train_from_iterator([QUERY, *TEXTS], vocab_size=400, special_tokens=special, show_progress=False)
    pieces._tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = dict(zip(("bos", "pad", "eos", "unk", "mask"), special, strict=True))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=pieces._tokenizer,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=96,
        cls_token="<s>",
        sep_token="</s>",
        **{f"{name}_token": token for name, token in names.items()},
    )
    config = RobertaConfig(
        vocab_size=pieces.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=98,
        type_vocab_size=1,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        RobertaModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_bi_encoder(tiny_bert, tmp_path_factory):
    """Folder of a tiny bi-encoder: the tiny BERT with mean pooling."""
    folder = tmp_path_factory.mktemp("tiny") / "bi-encoder"
    transformer = Transformer(str(tiny_bert))
    SentenceTransformer(modules=[transformer, Pooling(32, "mean")], device="cpu").save_pretrained(
        str(folder), create_model_card=False
    )
    return folder


# A fresh model


def test_an_encoder_gets_a_head_that_scores_zero_so_the_ranking_is_the_first_stage(tiny_bert):
    scorer, fresh = load_cross_encoder(str(tiny_bert), max_length=64, precision="float32", device="cpu")
    assert fresh
    assert logits(scorer, [(QUERY, text) for text in TEXTS]).tolist() == [0.0] * len(TEXTS)
    bm25 = (3.0, 9.0, 1.0, 7.0, 5.0, 2.0)
    lists = [a_list(bm25=bm25), a_list(TEXTS[:3], query_id="other", bm25=bm25[:3])]
    runs = rerank_lists(ScorePolicy(scorer, FirstStageWeights({"bm25": 1.0})), lists, "fresh")
    assert runs["served"].doc_ids("q") == ("d1", "d3", "d4", "d0", "d5", "d2")
    assert runs["served"].doc_ids("other") == ("d1", "d0", "d2")
    assert runs["plain"].doc_ids("q") == lists[0].doc_ids, "equal scores keep the order in which candidates came"


def test_a_fresh_head_learns_in_one_step(tiny_bert):
    scorer, _ = load_cross_encoder(str(tiny_bert), max_length=64, precision="float32", device="cpu")
    scorer.logits(scorer.encode_pairs([(QUERY, text) for text in TEXTS])).square().sum().backward()
    scorer.zero_grad()
    (scorer.logits(scorer.encode_pairs([(QUERY, "a"), (QUERY, "b")])) * torch.tensor([1.0, -1.0])).sum().backward()
    head = scorer.model[-1].linear.weight
    assert float(head.grad.abs().max()) > 1e-4


# Oracle: sentence-transformers


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("max_length", [16, 64])
def test_a_saved_cross_encoder_scores_in_sentence_transformers_as_it_does_here(
    kind, max_length, tiny_bert, tiny_roberta, tmp_path
):
    policy = cross_encoder_policy(tiny_bert if kind == "bert" else tiny_roberta, max_length=max_length)
    pairs = [(QUERY, text) for text in TEXTS if max_length == 64 or len(text) < 20] + [("short", TEXTS[1])]
    ours = logits(policy.scorer, pairs)
    assert ours.std() > 1e-3
    save_policy(policy, tmp_path / "model")
    theirs = CrossEncoder(str(tmp_path / "model"), device="cpu")
    assert theirs.max_seq_length == max_length
    if max_length == 64:  # on pairs that fit, every truncation rule agrees
        pairs_that_fit = [i for i, item in enumerate(policy.scorer.encode_pairs(pairs)) if len(item) < max_length]
    else:
        pairs_that_fit = [i for i, item in enumerate(policy.scorer.encode_pairs(pairs)) if len(item) < max_length]
    assert pairs_that_fit or max_length == 16
    if pairs_that_fit:
        expected = theirs.predict([pairs[i] for i in pairs_that_fit], show_progress_bar=False)
        np.testing.assert_allclose(ours[pairs_that_fit], expected, atol=1e-5)
    again = load_policy(str(tmp_path / "model"), device="cpu", precision="float32")
    assert again.scorer.max_length == max_length
    np.testing.assert_allclose(logits(again.scorer, pairs), ours, atol=1e-6)
