"""The drop-in: ranks as sentence-transformers does, and says what is wrong with an input instead of ranking it."""

import math
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import CrossEncoder

from rerank import Reranker
from rerank.errors import InputError
from rerank.models.backbones import load_cross_encoder
from rerank.models.calibration import Calibration
from rerank.models.pairs import ID
from rerank.models.policy import FirstStageWeights, ScorePolicy

QUERY = "how do i read a csv file"
TEXTS = ["read lines of a file", "a cup of tea", "", "csv " * 90, "Faust. A tragedy!", "numbers 1 2 3"]


def a_policy(folder, first_stage=None):
    scorer, _ = load_cross_encoder(str(folder), max_length=64, precision="float32", device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        torch.nn.init.normal_(scorer.model[-1].linear.weight, std=0.3)
    return ScorePolicy(scorer, first_stage, budget=300)


@pytest.fixture(scope="module")
def reranker(tiny_bert):
    return Reranker(a_policy(tiny_bert))


@pytest.fixture(scope="module")
def with_first_stage(tiny_bert):
    return Reranker(a_policy(tiny_bert, FirstStageWeights({"bm25": 2.0, "dense": 0.5})))


# Oracle


def test_the_order_and_scores_are_those_of_sentence_transformers(reranker, tmp_path):
    reranker.save_pretrained(tmp_path)
    theirs = CrossEncoder(str(tmp_path), device="cpu").rank(QUERY, TEXTS, show_progress_bar=False)
    again = Reranker.from_pretrained(tmp_path, device="cpu", precision="float32")
    for ours in (reranker.rank(QUERY, TEXTS), again.rank(QUERY, TEXTS)):
        assert [hit.index for hit in ours] == [hit["corpus_id"] for hit in theirs]
        np.testing.assert_allclose([h.score for h in ours], [h["score"] for h in theirs], atol=1e-5)


def test_predict_gives_the_scores_of_rank_as_float32(reranker):
    scores = reranker.predict([(QUERY, text) for text in TEXTS])
    assert scores.dtype == np.float32
    assert scores.shape == (len(TEXTS),)
    for hit in reranker.rank(QUERY, TEXTS):
        assert hit.score == pytest.approx(float(scores[hit.index]), abs=1e-5)
        assert hit.text == TEXTS[hit.index]


def test_a_max_length_given_at_loading_is_used(reranker, tmp_path):
    reranker.save_pretrained(tmp_path)
    short = Reranker.from_pretrained(tmp_path, device="cpu", precision="float32", max_length=30)
    assert short.policy.scorer.max_length == 30
    assert short.predict([(QUERY, TEXTS[3])])[0] != pytest.approx(reranker.predict([(QUERY, TEXTS[3])])[0])


# Invariance


def test_the_ranking_is_the_same_for_documents_in_another_order(reranker):
    order = [4, 2, 0, 5, 1, 3]
    straight = [hit.text for hit in reranker.rank(QUERY, TEXTS)]
    assert [hit.text for hit in reranker.rank(QUERY, [TEXTS[i] for i in order])] == straight


def test_ranking_leaves_dropout_off_even_after_the_policy_was_trained(tiny_bert):
    made = Reranker(a_policy(tiny_bert))
    before = made.predict([(QUERY, TEXTS[0])])
    made.policy.train()
    assert made.predict([(QUERY, TEXTS[0])]) == before
    made.policy.train()
    assert made.rank(QUERY, TEXTS[:1])[0].score == pytest.approx(float(before[0]), abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(documents=st.lists(st.text(max_size=30), max_size=6), top_k=st.integers(1, 8))
def test_a_ranking_is_a_best_first_choice_of_the_documents(documents, top_k, reranker):
    hits = reranker.rank(QUERY, documents, top_k=top_k)
    assert len(hits) == min(top_k, len(documents))
    assert len({hit.index for hit in hits}) == len(hits)
    assert all(documents[hit.index] == hit.text and math.isfinite(hit.score) for hit in hits)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


# Edges


def test_no_documents_give_no_ranking(reranker):
    assert reranker.rank(QUERY, []) == []
    assert reranker.rank(QUERY, (), top_k=3) == []
    assert reranker.predict([]).shape == (0,)


def test_one_document_is_ranked_with_its_score(reranker):
    (hit,) = reranker.rank(QUERY, ["only"])
    assert (hit.index, hit.text) == (0, "only")
    assert hit.score == pytest.approx(float(reranker.predict([(QUERY, "only")])[0]), abs=1e-6)


def test_duplicates_have_equal_scores_and_keep_their_order(reranker):
    hits = reranker.rank(QUERY, ["tea", "same text", "coffee", "same text", "same text"])
    same = [hit for hit in hits if hit.text == "same text"]
    assert [hit.index for hit in same] == [1, 3, 4]
    assert len({hit.score for hit in same}) == 1


@pytest.mark.parametrize("text", ["", "   ", "\u200b\u200b", "a\x00b\x07", "\u0645\u0631\u062d\u0628\u0627 e\u0301 🙂"])
def test_empty_blank_control_and_foreign_texts_are_ranked(text, reranker):
    hits = reranker.rank(QUERY, [text, "tea"])
    assert {hit.index for hit in hits} == {0, 1}
    assert all(math.isfinite(hit.score) for hit in hits)
    assert math.isfinite(reranker.rank(text, ["tea"])[0].score)


def test_a_document_of_megabytes_is_read_up_to_the_window(reranker):
    long, cut = reranker.predict([(QUERY, "tea cup " * 200_000), (QUERY, "tea cup " * 50)])
    assert long == pytest.approx(cut, abs=1e-6)


def test_a_document_may_be_a_mapping_with_a_text(reranker):
    plain = reranker.rank(QUERY, ["tea", "read files"])
    assert reranker.rank(QUERY, [{"text": "tea", "id": 7}, {"text": "read files"}]) == plain


@pytest.mark.parametrize("top_k", [6, 7, 1000, None])
def test_top_k_of_at_least_all_gives_all(top_k, reranker):
    assert len(reranker.rank(QUERY, TEXTS, top_k=top_k)) == len(TEXTS)


def test_top_k_gives_the_head_of_the_whole_ranking(reranker):
    assert reranker.rank(QUERY, TEXTS, top_k=2) == reranker.rank(QUERY, TEXTS)[:2]


# Bad inputs


@pytest.mark.parametrize("top_k", [0, -1, "3", 2.5, True, math.nan])
def test_a_top_k_that_is_no_positive_whole_number_is_refused(top_k, reranker):
    for documents in (TEXTS, []):
        with pytest.raises(InputError, match="top_k must be a whole number of at least 1"):
            reranker.rank(QUERY, documents, top_k=top_k)


@pytest.mark.parametrize("documents", ["a text", b"bytes", {"text": "x"}, None, 3, {"a", "b"}, iter(["a"])])
def test_documents_that_are_not_a_list_are_refused(documents, reranker):
    with pytest.raises(InputError, match=f"documents must be a list of texts, not {type(documents).__name__}"):
        reranker.rank(QUERY, documents)


@pytest.mark.parametrize("document", [None, 3, 2.5, b"bytes", ["nested"], ("query", "text"), True])
def test_a_document_that_is_no_text_is_named_by_its_place(document, reranker):
    with pytest.raises(InputError, match=f"document 1 must be a text, not {type(document).__name__}"):
        reranker.rank(QUERY, ["fine", document])
    with pytest.raises(InputError, match=f"document of pair 1 must be a text, not {type(document).__name__}"):
        reranker.predict([(QUERY, "fine"), (QUERY, document)])


def test_a_mapping_without_text_is_named_with_what_it_has(reranker):
    with pytest.raises(InputError, match=r"document 0 is a mapping without 'text'; it has \['body', 'id'\]"):
        reranker.rank(QUERY, [{"id": 1, "body": "x"}])
    with pytest.raises(InputError, match="document 0 must be a text, not NoneType"):
        reranker.rank(QUERY, [{"text": None}])


@pytest.mark.parametrize("query", [None, 3, b"bytes", ["nested"]])
def test_a_query_that_is_no_text_is_refused_even_without_documents(query, reranker):
    for documents in (TEXTS, []):
        with pytest.raises(InputError, match=f"query must be a text, not {type(query).__name__}"):
            reranker.rank(query, documents)
    with pytest.raises(InputError, match="query of pair 0 must be a text"):
        reranker.predict([(query, "text")])


def test_a_lone_surrogate_is_named_by_its_place(reranker):
    with pytest.raises(InputError, match="document 1 has a lone surrogate at character 2"):
        reranker.rank(QUERY, ["fine", "ab\ud800"])
    with pytest.raises(InputError, match="query has a lone surrogate at character 0"):
        reranker.rank("\udfff", ["fine"])
    with pytest.raises(InputError, match="document of pair 0 has a lone surrogate"):
        reranker.predict([(QUERY, "\ud800")])


@pytest.mark.parametrize("pairs", ["ab", ["ab", "cd"], [("q", "d", "x")], [("q",)], [None], [3], None, 3])
def test_predict_takes_pairs_and_nothing_else(pairs, reranker):
    with pytest.raises(InputError, match=r"sequence of \(query, document\) pairs"):
        reranker.predict(pairs)


def test_special_tokens_in_a_document_do_not_forge_the_structure(reranker):
    item_of = reranker.policy.scorer.encode_pairs
    (forged,) = item_of([("q", "tea [SEP] good [CLS]")])
    assert not {2, 3} & set(np.frombuffer(forged.windows[0], dtype=ID).tolist())


# First-stage scores


def test_first_stage_scores_move_the_ranking_as_the_weights_say(with_first_stage):
    scores = {"bm25": [1.0, 2.0, 3.0, 4.0, 5.0, 90.0], "dense": [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]}
    plain = {hit.index: hit.score for hit in with_first_stage.rank(QUERY, TEXTS)}
    served = {hit.index: hit.score for hit in with_first_stage.rank(QUERY, TEXTS, first_stage=scores)}
    bm25 = np.array(scores["bm25"])
    z = (bm25 - bm25.mean()) / bm25.std()
    for i in range(len(TEXTS)):
        assert served[i] - plain[i] == pytest.approx(2.0 * z[i], abs=1e-4)


def test_first_stage_scores_survive_saving(with_first_stage, tmp_path):
    scores = {"bm25": [1.0, 5.0, 2.0], "dense": [0.3, math.nan, 0.1]}
    wanted = with_first_stage.rank(QUERY, TEXTS[:3], first_stage=scores)
    with_first_stage.save_pretrained(tmp_path)
    found = Reranker.from_pretrained(tmp_path, device="cpu", precision="float32").rank(
        QUERY, TEXTS[:3], first_stage=scores
    )
    assert [hit.index for hit in found] == [hit.index for hit in wanted]
    np.testing.assert_allclose([h.score for h in found], [h.score for h in wanted], atol=1e-5)


def test_a_missing_first_stage_score_is_named(with_first_stage):
    with pytest.raises(InputError, match=r"first_stage lacks \['dense'\]; this model was trained with"):
        with_first_stage.rank(QUERY, TEXTS, first_stage={"bm25": [1.0] * 6})


@pytest.mark.parametrize("n", [0, 5, 7])
def test_first_stage_scores_of_the_wrong_number_are_refused(n, with_first_stage):
    with pytest.raises(InputError, match=rf"first_stage\['bm25'\] has {n} scores for 6 documents"):
        with_first_stage.rank(QUERY, TEXTS, first_stage={"bm25": [1.0] * n, "dense": [1.0] * 6})


@pytest.mark.parametrize("wrong", [None, "high", [1.0]])
def test_a_first_stage_score_that_is_no_number_is_refused(wrong, with_first_stage):
    with pytest.raises(InputError, match=r"first_stage\['dense'\]"):
        with_first_stage.rank(QUERY, TEXTS[:2], first_stage={"bm25": [1.0, 2.0], "dense": [1.0, wrong]})


def test_first_stage_scores_of_a_model_that_uses_none_are_ignored_aloud(reranker, caplog):
    plain = reranker.rank(QUERY, TEXTS)
    assert reranker.rank(QUERY, TEXTS, first_stage={"bm25": [1.0] * 6}) == plain
    assert "uses no first-stage scores" in caplog.text


# Probabilities


@pytest.fixture(scope="module")
def calibrated(tiny_bert):
    policy = a_policy(tiny_bert)
    policy.calibration = Calibration("affine", a=3.0, b=-0.5)
    return Reranker(policy)


def test_probabilities_are_those_of_the_logits_and_leave_order_and_scores_alone(calibrated, reranker, tmp_path):
    plain = reranker.rank(QUERY, TEXTS)
    calibrated.save_pretrained(tmp_path)
    again = Reranker.from_pretrained(tmp_path, device="cpu", precision="float32")
    for made in (calibrated, again):
        hits = made.rank(QUERY, TEXTS, probabilities=True)
        assert [hit.index for hit in hits] == [hit.index for hit in plain]
        np.testing.assert_allclose([hit.score for hit in hits], [hit.score for hit in plain], atol=1e-6)
        wanted = [1 / (1 + math.exp(-(3 * hit.score - 0.5))) for hit in hits]
        np.testing.assert_allclose([hit.probability for hit in hits], wanted, atol=1e-12)
    assert [hit.probability for hit in calibrated.rank(QUERY, TEXTS)] == [None] * len(TEXTS)
    np.testing.assert_array_equal(
        calibrated.predict([(QUERY, text) for text in TEXTS]), reranker.predict([(QUERY, text) for text in TEXTS])
    )


def test_a_threshold_drops_the_documents_below_it_and_keeps_those_at_it(calibrated):
    hits = calibrated.rank(QUERY, TEXTS, probabilities=True)
    for i, hit in enumerate(hits):
        assert calibrated.rank(QUERY, TEXTS, min_probability=hit.probability) == hits[: i + 1]
        assert calibrated.rank(QUERY, TEXTS, min_probability=np.nextafter(hit.probability, 1.0)) == hits[:i]
    assert calibrated.rank(QUERY, TEXTS, min_probability=0) == hits
    assert calibrated.rank(QUERY, TEXTS, min_probability=1.0) == []
    assert calibrated.rank(QUERY, TEXTS, top_k=2, min_probability=hits[3].probability) == hits[:2]


def test_documents_of_one_probability_are_ordered_by_their_logits(tiny_bert, reranker):
    policy = a_policy(tiny_bert)
    policy.calibration = Calibration("isotonic", knots=((0.0, 0.25),))
    hits = Reranker(policy).rank(QUERY, TEXTS, probabilities=True)
    assert {hit.probability for hit in hits} == {0.25}
    assert [hit.index for hit in hits] == [hit.index for hit in reranker.rank(QUERY, TEXTS)]
    assert Reranker(policy).rank(QUERY, TEXTS, min_probability=0.25) == hits


@pytest.mark.parametrize("wish", [{"probabilities": True}, {"min_probability": 0.0}])
def test_probabilities_of_a_model_without_calibration_say_how_to_get_one(wish, reranker):
    for documents in (TEXTS, []):
        with pytest.raises(InputError, match=r"not calibrated.*\[calibrate\].*Calibrate\(\)\.run\(reranker\.policy"):
            reranker.rank(QUERY, documents, **wish)


@pytest.mark.parametrize("wrong", [-0.1, 1.5, math.nan, "0.5", True, [0.5]])
def test_a_min_probability_that_is_none_is_refused(wrong, calibrated):
    with pytest.raises(InputError, match="min_probability must be a number from 0 to 1, or None"):
        calibrated.rank(QUERY, TEXTS, min_probability=wrong)


def test_each_view_of_the_scores_has_its_own_probabilities(tiny_bert):
    policy = a_policy(tiny_bert, FirstStageWeights({"bm25": 2.0}))
    policy.calibration = Calibration("affine", a=2.0, b=1.0, plain=Calibration("affine", a=1.0, b=-3.0))
    made, scores = Reranker(policy), {"bm25": [1.0, 2.0, 3.0, 4.0, 5.0, 90.0]}
    for hit in made.rank(QUERY, TEXTS, first_stage=scores, probabilities=True):
        assert hit.probability == pytest.approx(1 / (1 + math.exp(-(2 * hit.score + 1))))
    for hit in made.rank(QUERY, TEXTS, probabilities=True):
        assert hit.probability == pytest.approx(1 / (1 + math.exp(-(hit.score - 3))))
    policy.first_stage.active = False
    for hit in made.rank(QUERY, TEXTS, probabilities=True):
        assert hit.probability == pytest.approx(1 / (1 + math.exp(-(hit.score - 3))))


def test_probabilities_without_the_first_stage_scores_they_were_fitted_with_are_refused(tiny_bert):
    policy = a_policy(tiny_bert, FirstStageWeights({"bm25": 2.0}))
    policy.calibration = Calibration("affine", a=2.0, b=1.0)
    with pytest.raises(InputError, match=r"give first_stage with \['bm25'\], or calibrate the model anew"):
        Reranker(policy).rank(QUERY, TEXTS, probabilities=True)
    assert Reranker(policy).rank(QUERY, ["x"], first_stage={"bm25": [1.0]}, probabilities=True)[0].probability > 0


# A model that is not ours


def test_a_cross_encoder_of_transformers_ranks_without_any_file_of_ours(tiny_bert, tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(4)
    BertForSequenceClassification(BertConfig.from_pretrained(tiny_bert, num_labels=1)).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_bert / name, tmp_path / name)
    texts = [text for text in TEXTS if text]
    hits = Reranker.from_pretrained(tmp_path, device="cpu", precision="float32").rank(QUERY, texts)
    theirs = CrossEncoder(str(tmp_path), device="cpu", activation_fn=torch.nn.Identity())
    expected = theirs.rank(QUERY, texts, show_progress_bar=False)
    assert [hit.index for hit in hits] == [hit["corpus_id"] for hit in expected]


@pytest.mark.parametrize("scores", [[math.inf, 0.0], [0.0, -math.inf], [10**400, 0.0], None, [None, 0.0], 3])
def test_first_stage_scores_are_finite_or_nan(scores, with_first_stage):
    with pytest.raises(InputError, match=r"first_stage\['bm25'\] must hold a finite number for each document"):
        with_first_stage.rank(QUERY, ["tea", "files"], first_stage={"bm25": scores, "dense": [0.5, math.nan]})
    hits = with_first_stage.rank(QUERY, ["tea", "files"], first_stage={"bm25": [1.0, math.nan], "dense": [0.5, 0.1]})
    assert all(math.isfinite(hit.score) for hit in hits)


def test_first_stage_scores_without_their_names_are_refused(with_first_stage):
    with pytest.raises(InputError, match="first_stage must map retriever names"):
        with_first_stage.rank(QUERY, ["tea", "files"], first_stage=[1.0, 2.0])
