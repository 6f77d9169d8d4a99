"""What is remembered of texts is bounded in bytes and can be forgotten; and what the server asks of encoded pairs."""

import gc
import pickle
import sys
import threading
import tracemalloc

import numpy as np
import pytest
import tiny_language_models as tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank import Reranker
from rerank.errors import InputError, Mismatch
from rerank.models import texts as memory
from rerank.models.backbones import load_cross_encoder
from rerank.models.encoder import VectorStore
from rerank.models.language.listwise import ListwiseScorer
from rerank.models.language.reading import Reading
from rerank.models.light import LightScorer
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


@pytest.mark.parametrize("kind", ["cross-encoder", "listwise"])
def test_items_that_were_encoded_before_are_good_after(kind, tiny_bert):
    scorer = scorer_of(kind, tiny_bert).eval()
    with torch.inference_mode():
        items = scorer.encode([Reranker(ScorePolicy(scorer)).candidates(QUERY, TEXTS)])
        before = scorer.logits(items)
        scorer.forget()
        assert torch.equal(scorer.logits(items), before)


# Vectors


def test_rows_of_forgotten_vectors_are_an_error_and_never_another_text():
    store = VectorStore(Letters())
    old = store.rows(["a", "b"])
    store.forget()
    new = store.rows(["c", "d"])
    assert not set(old) & set(new)
    np.testing.assert_array_equal(store.vectors(new), Letters().encode(["c", "d"]))
    with pytest.raises(Mismatch, match="forgotten"):
        store.vectors([new[0], old[1]])


def test_a_store_that_grows_by_small_steps_keeps_every_vector():
    store = VectorStore(Letters())
    asked = [f"{'abcdefgh'[i % 8] * (i % 13)}{i}" for i in range(500)]
    rows = [row for i in range(0, 500, 7) for row in store.rows(asked[i : i + 7])]
    np.testing.assert_array_equal(store.vectors(rows), np.concatenate([Letters().encode([text]) for text in asked]))
    assert 500 * 8 * 4 <= store._matrix.nbytes <= 1.6 * 500 * 8 * 4
    assert store.dim == 8
    store.forget(beyond=store.held)
    assert store.rows(asked) == rows
    store.forget()
    assert (store.held, store.dim) == (0, 8)


def test_vectors_of_another_length_are_refused():
    store = VectorStore(Letters())
    store.rows(["a"])
    with pytest.raises(Mismatch, match="5 numbers"):
        store.add(["b"], np.ones((1, 5), dtype=np.float32))


def test_threads_that_share_a_store_get_their_own_vectors():
    store, wrong = VectorStore(Letters()), []

    def ask(k):
        for i in range(60):
            texts = [f"{'abcdefgh'[(k + i) % 8] * (i % 5)} {k} {i} {n}" for n in range(3)]
            wrong.append(not np.array_equal(store.encode(texts), Letters().encode(texts)))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=ask, args=(k,)) for k in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert len(wrong) == 360
    assert not any(wrong)
    assert pickle.loads(pickle.dumps(store)).rows(["zz"]) == [len(store._row)]


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
