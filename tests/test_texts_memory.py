"""What is remembered of texts is bounded in bytes and can be forgotten; and what the server asks of encoded pairs."""

import gc
import pickle
import sys
import tracemalloc
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
import tiny_language_models as tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank import Reranker
from rerank.errors import InputError, Mismatch
from rerank.models import texts as memory
from rerank.models.backbones import load_cross_encoder, load_encoder
from rerank.models.encoder import VectorStore
from rerank.models.language.listwise import ListwiseScorer
from rerank.models.language.reading import Reading
from rerank.models.light import LightScorer
from rerank.models.loading import save_policy
from rerank.models.pairs import ID, PairTokenizer
from rerank.models.policy import ScorePolicy
from rerank.models.texts import TextIds

QUERY = "open a file"
TEXTS = ["read lines from a file", "close the socket", "a b c d"]


@pytest.fixture(scope="module")
def tokenizer(tiny_bert):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_bert)


class Letters:
    """An encoder whose vectors count letters: equal texts have equal vectors, others hardly ever."""

    fingerprint = "letters"

    def encode(self, texts):
        counted = np.array([[text.count(letter) + 0.1 for letter in "abcdefgh"] for text in texts], dtype=np.float32)
        return counted / np.linalg.norm(counted, axis=1, keepdims=True)

    def save(self, folder):
        raise NotImplementedError


# Texts


def test_a_memory_of_texts_stays_within_its_bytes_and_gives_the_same_ids(tokenizer, monkeypatch):
    monkeypatch.setattr(memory, "BYTES_KEPT", 20_000)
    ids, alone = TextIds(tokenizer, 64), TextIds(tokenizer, 64)
    for i in range(300):
        asked = [f"text {i}", f"word {i} " * 20, "always the same"]
        assert (
            ids(asked) == {text: TextIds(tokenizer, 64)([text])[text] for text in asked} if i % 50 == 0 else ids(asked)
        )
        assert ids.held <= 20_000
    assert 10 < len(ids) < 300
    assert ids(TEXTS) == alone(TEXTS)


def test_the_bytes_that_a_memory_counts_are_those_that_it_takes(tokenizer):
    ids = TextIds(tokenizer, 256)
    ids(["warm"])
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for i in range(0, 3000, 100):
            ids([f"{i + k} some words of a passage " * 8 for k in range(100)])
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.7 < ids.held / taken < 1.3


def test_a_call_that_holds_more_than_the_memory_gets_all_its_ids(tokenizer, monkeypatch):
    monkeypatch.setattr(memory, "BYTES_KEPT", 500)
    asked = [f"text {i}" for i in range(100)]
    ids = TextIds(tokenizer, 64)
    assert ids(asked) == {text: TextIds(tokenizer, 64)([text])[text] for text in asked}
    assert ids.held <= 500


def test_forgetting_empties_a_memory_only_where_it_holds_more_than_allowed(tokenizer):
    ids = TextIds(tokenizer, 64)
    first = ids(TEXTS)
    held = ids.held
    ids.forget(beyond=held)
    assert (len(ids), ids.held) == (3, held)
    ids.forget()
    assert (len(ids), ids.held) == (0, 0)
    assert ids(TEXTS) == first
    assert ids.held == held
    assert pickle.loads(pickle.dumps(ids)).held == 0


# Every kind of scorer


def scorer_of(kind, tiny_bert):
    if kind == "cross-encoder":
        return load_cross_encoder(str(tiny_bert), 64, device="cpu", precision="float32")[0]
    if kind == "light":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            scorer = LightScorer(VectorStore(Letters()), hidden=8)
            torch.nn.init.normal_(scorer.outer.weight)
            return scorer
    return ListwiseScorer(tiny.model(), tiny.tokenizer(), Reading(window=4, document_tokens=8), "float32")


def held_by(scorer):
    if scorer.kind == "light":
        return scorer.store.held
    if scorer.kind == "cross-encoder":
        return scorer.pairs._ids.held
    return sum(ids.held for ids in (scorer.prompts._given, scorer.prompts._ours, scorer.prompts._first))


@pytest.mark.parametrize("kind", ["cross-encoder", "light", "listwise"])
def test_a_scorer_that_forgets_after_every_request_gives_the_same_ranking_and_does_not_grow(kind, tiny_bert):
    reranker, fresh = (Reranker(ScorePolicy(scorer_of(kind, tiny_bert))) for _ in range(2))
    wanted = [(hit.index, hit.score) for hit in fresh.rank(QUERY, TEXTS)]
    seen = []
    for i in range(5):
        reranker.rank(f"query {i}", [f"text {i} {k}" for k in range(4)])
        seen.append(held_by(reranker.policy.scorer))
        reranker.policy.scorer.forget()
    assert max(seen) <= 1.2 * seen[0]
    assert held_by(reranker.policy.scorer) == 0
    assert [(hit.index, hit.score) for hit in reranker.rank(QUERY, TEXTS)] == wanted


@pytest.mark.parametrize("kind", ["cross-encoder", "light", "listwise"])
def test_items_that_were_encoded_before_are_good_after(kind, tiny_bert):
    scorer = scorer_of(kind, tiny_bert).eval()
    with torch.inference_mode():
        items = scorer.encode([Reranker(ScorePolicy(scorer)).candidates(QUERY, TEXTS)])
        before = scorer.logits(items)
        scorer.forget()
        assert torch.equal(scorer.logits(items), before)


# Vectors


def test_rows_that_were_given_out_are_good_after_their_texts_were_forgotten():
    store = VectorStore(Letters())
    old = store.rows(["a", "b"])
    store.forget()
    new = store.rows(["c", "d"])
    assert old.vectors is not new.vectors
    for rows, texts in ((old, ["a", "b"]), (new, ["c", "d"])):
        np.testing.assert_array_equal(rows.vectors.matrix[rows.numbers], Letters().encode(texts))
    assert store.held < 500
    forgotten = weakref.ref(old.vectors)
    del old, rows
    gc.collect()
    assert forgotten() is None, "nothing holds what was forgotten but the rows that were given out"


def test_a_store_that_grows_by_small_steps_keeps_every_vector():
    store = VectorStore(Letters())
    asked = [f"{'abcdefgh'[i % 8] * (i % 13)}{i}" for i in range(500)]
    given = [store.rows(asked[i : i + 7]) for i in range(0, 500, 7)]
    rows = [row for one in given for row in one.numbers]
    vectors = np.concatenate([one.vectors.matrix[one.numbers] for one in given])
    np.testing.assert_array_equal(vectors, np.concatenate([Letters().encode([text]) for text in asked]))
    assert 500 * 8 * 4 <= given[-1].vectors.matrix.nbytes <= 1.6 * 500 * 8 * 4
    assert store.dim == 8
    store.forget(beyond=store.held)
    assert store.rows(asked).numbers == rows
    store.forget()
    assert (store.held, store.dim) == (0, 8)


def test_a_store_with_a_bound_keeps_to_it_and_gives_the_same_vectors_and_one_without_keeps_all():
    bounded, unbounded, most = VectorStore(Letters(), kept=5_000), VectorStore(Letters()), 0
    asked = [[f"{'abcdefgh'[i % 8] * (i % 5)}{i} {k}" for k in range(20)] for i in range(50)]
    for texts in asked:
        np.testing.assert_array_equal(bounded.encode(texts), Letters().encode(texts))
        unbounded.rows(texts)
        most = max(most, bounded.held)
    assert 2_000 < most <= 5_000
    everything = [text for texts in asked for text in texts]
    held = unbounded.held
    assert sorted(unbounded.rows(everything).numbers) == list(range(1000))
    assert unbounded.held == held > 50_000
    np.testing.assert_array_equal(bounded.encode(everything), Letters().encode(everything))
    assert bounded.held <= 5_000


def test_a_light_model_that_was_loaded_to_rank_has_a_bound_and_one_that_is_trained_has_none(
    tiny_bert, tmp_path, monkeypatch
):
    policy = ScorePolicy(LightScorer(load_encoder(str(tiny_bert), "float32", "cpu"), 8))
    save_policy(policy, tmp_path)
    monkeypatch.setattr("rerank.models.loading.VECTORS_KEPT", 10_000)
    loaded = Reranker.from_pretrained(tmp_path, "cpu", "float32")
    held = []
    for i in range(12):
        loaded.rank(f"query {i}", [f"document {i} {k}" for k in range(10)])
        held.append(loaded.policy.scorer.store.held)
    assert max(held) <= 10_000
    assert sum(after > before for before, after in pairwise(held)) > 2, "within its bound it does remember"
    assert policy.scorer.store.kept is None


def test_vectors_of_another_length_are_refused():
    store = VectorStore(Letters())
    store.rows(["a"])
    with pytest.raises(Mismatch, match="5 numbers"):
        store.add(["b"], np.ones((1, 5), dtype=np.float32))


@contextmanager
def switching_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def in_threads(n, ask):
    """What `ask(k)` returned in each of `n` threads at once."""
    with switching_often(), ThreadPoolExecutor(n) as threads:
        return list(threads.map(ask, range(n)))


def test_threads_that_share_a_store_get_their_own_vectors():
    store = VectorStore(Letters())

    def ask(k):
        asked = [[f"{'abcdefgh'[(k + i) % 8] * (i % 5)} {k} {i} {n}" for n in range(3)] for i in range(60)]
        return [np.array_equal(store.encode(texts), Letters().encode(texts)) for texts in asked]

    assert in_threads(6, ask) == [[True] * 60] * 6


@pytest.mark.parametrize("kind", ["cross-encoder", "light", "listwise"])
def test_a_ranking_is_right_while_other_threads_let_the_model_forget(kind, tiny_bert):
    shared, alone = (Reranker(ScorePolicy(scorer_of(kind, tiny_bert))) for _ in range(2))
    asked = [(f"ab {i}", [f"{'abcdefgh'[(i + n) % 8] * n} {i}" for n in range(5)]) for i in range(8)]
    wanted = [alone.rank(*one) for one in asked]

    def ask(k):
        found = []
        for one in asked[k:] + asked[:k]:
            found.append(shared.rank(*one))
            shared.forget()
        return found[len(asked) - k :] + found[: len(asked) - k]

    for found in in_threads(4, ask):
        for own, theirs in zip(found, wanted, strict=True):
            assert [hit.index for hit in own] == [hit.index for hit in theirs]
            assert [hit.score for hit in own] == pytest.approx([hit.score for hit in theirs], abs=1e-6)


def test_a_micro_batch_may_hold_items_from_before_and_after_forgetting(tiny_bert):
    scorer = scorer_of("light", tiny_bert).eval()
    reranker = Reranker(ScorePolicy(scorer))
    lists = [reranker.candidates(f"{letter} query", TEXTS) for letter in "abcd"]
    with torch.inference_mode():
        wanted = torch.cat([scorer.logits(scorer.encode([candidates])) for candidates in lists])
        items = []
        for candidates in lists:
            items += scorer.encode([candidates])
            scorer.forget()
        order = [5, 0, 11, 3, 8, 1, 10, 2, 9, 4, 7, 6]
        assert torch.equal(scorer.logits([items[i] for i in order]), wanted[order])


@pytest.mark.parametrize("kind", ["cross-encoder", "light", "listwise"])
def test_the_pickle_of_a_reranker_holds_no_text_that_it_has_ranked(kind, tiny_bert):
    scorer = scorer_of(kind, tiny_bert)
    reranker = Reranker(ScorePolicy(scorer))
    fresh = len(pickle.dumps(reranker))
    wanted = reranker.rank("whose whisper", [f"this document is a whisper {i}" for i in range(50)])
    sent = pickle.dumps(reranker)
    assert b"whisper" not in sent
    assert len(sent) <= fresh + 100
    assert pickle.loads(sent).rank("whose whisper", [f"this document is a whisper {i}" for i in range(50)]) == wanted


# Pairs, as the server asks for them


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(0, 120), n_query=st.integers(0, 60), max_length=st.integers(8, 40), windows=st.integers(1, 9),
    tokens=st.integers(0, 120),
)  # fmt: skip
def test_a_pair_that_is_cut_is_the_pair_of_the_shorter_document(n, n_query, max_length, windows, tokens, tokenizer):
    pairs = PairTokenizer(tokenizer, max_length, None, windows)
    # Many equal tokens: windows cannot be told apart by what is in them.
    query, words = "q " * n_query, ["a" if i % 3 else "b" for i in range(n)]
    (whole,) = pairs.encode_pairs([(query, " ".join(words))])
    cut = whole.cut(tokens)
    room = max_length - pairs.n_special - len(whole.query) // ID.itemsize
    shorter = np.frombuffer(pairs._ids([" ".join(words)])[" ".join(words)], dtype=ID)[:tokens].tobytes()
    assert (cut.query, cut.n_special) == (whole.query, whole.n_special)
    assert cut.windows == pairs._windows(shorter, room)[0]
    assert cut.cut(tokens) == cut
    assert (cut is whole) == (cut == whole)


@pytest.mark.parametrize("tokens", [-1, 2.5, True, "3", None])
def test_a_pair_is_cut_to_a_number_of_tokens_alone(tokens, tokenizer):
    (item,) = PairTokenizer(tokenizer, 32).encode_pairs([("q", "d")])
    with pytest.raises(InputError, match="at least 0"):
        item.cut(tokens)


@settings(max_examples=150, deadline=None)
@given(n=st.integers(0, 90), n_query=st.integers(0, 40), max_length=st.integers(8, 40), windows=st.integers(1, 5))
def test_a_pair_is_read_whole_where_all_its_tokens_are_in_some_window(n, n_query, max_length, windows, tokenizer):
    pairs = PairTokenizer(tokenizer, max_length, None, windows)
    query, document = "q " * n_query, " ".join("abcdefgh"[i % 8] for i in range(n))
    ids = TextIds(tokenizer, None)([query, document])
    (item,) = pairs.encode_pairs([(query, document)])
    whole = item.query == ids[query] and item._document() == ids[document]
    assert pairs.reads_whole(query, document) == whole
