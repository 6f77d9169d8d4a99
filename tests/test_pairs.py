"""Texts to items: windows of long documents, what is said about cuts, and that an item is what a tokenizer gives."""

import copy
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank.errors import InputError
from rerank.models.backbones import load_cross_encoder
from rerank.models.pairs import ID, PairItem, PairTokenizer, best_window


def ids(text):
    return np.frombuffer(text, dtype=ID).tolist()


@pytest.fixture(scope="module")
def tokenizer(tiny_bert):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_bert)


def of(tokenizer, max_length=24, windows=1):
    return PairTokenizer(tokenizer, max_length, None, windows)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(0, 300), max_length=st.integers(8, 40), windows=st.integers(1, 40))
def test_windows_cover_a_document_from_its_first_token_without_a_gap(n, max_length, windows, tokenizer):
    pairs = of(tokenizer, max_length, windows)
    document = np.arange(n, dtype=ID).tobytes()
    room = max_length - 5
    found, cut = pairs._windows(document, room)
    starts = [ids(w)[0] if w else 0 for w in found]
    assert starts[0] == 0
    assert len(found) <= windows
    assert all(len(ids(w)) == room for w in found) or len(found) == 1
    assert all(later <= earlier + room for earlier, later in pairwise(starts)), "no gap"
    seen = {i for w in found for i in ids(w)}
    assert cut == (len(seen) < n)
    assert seen == set(range(len(seen)))


def test_a_document_that_fits_is_one_window_whatever_is_allowed(tokenizer):
    (item,) = of(tokenizer, 24, 5).encode_pairs([("query", "a b c")])
    assert len(item.windows) == 1


def test_the_tokens_of_an_item_count_the_query_in_each_window(tokenizer):
    (item,) = of(tokenizer, 24, 5).encode_pairs([("query", "d " * 60)])
    assert len(item.windows) > 3
    assert len(item) == sum(3 + len(ids(item.query)) + len(ids(w)) for w in item.windows)


def test_the_best_window_speaks_for_a_document(tiny_bert):
    scorer, _ = load_cross_encoder(str(tiny_bert), 24, "mean", "float32", "cpu", windows=8)
    torch.nn.init.normal_(scorer.model[-1].linear.weight)
    scorer.eval()
    whole = [f"d{i % 3} " * i for i in (1, 2, 50, 9, 33)]
    items = scorer.encode_pairs([("query", text) for text in whole])
    apart = [[PairItem(item.query, (w,), item.n_special) for w in item.windows] for item in items]
    assert max(map(len, apart)) > 2
    with torch.inference_mode():
        together = scorer.logits(items)
        expected = torch.stack([scorer.logits(windows).max() for windows in apart])
    torch.testing.assert_close(together, expected, atol=1e-5, rtol=1e-5)


def test_best_window_sends_its_gradient_to_the_best_row_alone():
    logits = torch.tensor([0.5, 2.0, 1.0, -3.0], requires_grad=True)
    found = best_window(logits, [3, 1])
    assert found.tolist() == [2.0, -3.0]
    found.sum().backward()
    assert logits.grad.tolist() == [0.0, 1.0, 0.0, 1.0]


def test_cut_documents_are_counted_and_said_again_after_an_hour_at_most(tokenizer, caplog, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("rerank.models.texts.time.monotonic", lambda: now[0])
    pairs = of(tokenizer)
    with caplog.at_level(logging.WARNING):
        pairs.encode_pairs([("query", "d")])  # counts as well: it is of those of which some are cut
        pairs.encode_pairs([("query", "d " * 60), ("query", "d"), ("query", "e " * 80)])
        pairs.encode_pairs([("query", "f " * 60)])
        now[0] += 3601
        pairs.encode_pairs([("query", "g"), ("query", "h " * 60)])
        now[0] += 3601
        pairs.encode_pairs([("query", "g")])
    assert [r.getMessage().partition(" (said")[0] for r in caplog.records] == [
        f"{some} documents are longer than 1 window of 24 tokens and are cut" for some in ("2 of 4", "2 of 3")
    ]


def test_a_query_that_fills_the_window_is_told_apart_from_documents(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        of(tokenizer).encode_pairs([("query " * 60, "d"), ("query", "d")])
    assert [r.getMessage().partition(" and is")[0] for r in caplog.records] == [
        "in 1 of 2 pairs the query fills the window of 24 tokens"
    ]


def test_with_windows_enough_nothing_is_cut_and_nothing_said(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        of(tokenizer, 24, 50).encode_pairs([("query", "d " * 60)])
    assert not caplog.records


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "2", 1001])
def test_windows_must_be_a_sensible_number(wrong, tokenizer):
    with pytest.raises(InputError, match="windows must be a whole number from 1"):
        of(tokenizer, 24, wrong)


def test_padded_rows_are_the_packed_ones_with_padding(tokenizer):
    pairs = of(tokenizer, 24, 4)
    items = pairs.encode_pairs([("query", "d " * 60), ("q", ""), ("open a file", "lines")])
    rows, padded = pairs.rows(items), pairs.padded(items)
    mask = padded["attention_mask"].bool()
    assert padded["input_ids"][mask].tolist() == rows.ids.tolist()
    assert padded["token_type_ids"][mask].tolist() == pairs.types(rows).tolist()
    assert mask.sum(1).tolist() == rows.lengths.tolist()
    assert rows.counts == [len(item.windows) for item in items]


def test_threads_may_tokenize_at_the_same_time(tokenizer):
    pairs, alone = of(tokenizer, 64), of(tokenizer, 64)
    texts = [f"word {i} of {i % 13}" for i in range(400)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda t: pairs.encode_pairs([("query", t)])[0], texts))
    assert found == alone.encode_pairs([("query", t) for t in texts])


def test_copies_share_what_was_tokenized_and_pickles_start_anew(tokenizer):
    pairs = of(tokenizer)
    items = pairs.encode_pairs([("query", "document")])
    assert copy.deepcopy(pairs) is pairs
    again = pickle.loads(pickle.dumps(pairs))
    assert len(again._ids) == 0
    assert again.encode_pairs([("query", "document")]) == items


def test_added_tokens_that_mark_structure_are_split_though_they_are_not_special(tokenizer):
    from tokenizers import AddedToken

    marked = copy.deepcopy(tokenizer)
    marked.add_tokens([AddedToken("</think>", special=False), AddedToken("<tool_call>", special=False)])
    marked.add_tokens([AddedToken("tealeaf", special=False)])
    marks = set(marked.convert_tokens_to_ids(["</think>", "<tool_call>"]))
    ids = of(marked, 64).encode_pairs([("</think> first", "a <tool_call></think><tool_call> tealeaf")])[0]
    found = [*np.frombuffer(ids.query, ID), *np.frombuffer(ids.windows[0], ID)]
    assert not marks & set(found)
    assert marked.convert_tokens_to_ids("tealeaf") in found  # a word stays one
    assert marks & set(marked("</think>")["input_ids"])  # it is a token where the template writes it
