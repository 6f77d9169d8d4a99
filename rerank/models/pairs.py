"""(query, document) texts to token ids: each text tokenized once, the two joined as ids.

    [CLS] query [SEP] document [SEP]        (whatever the tokenizer's own template is)

A document never cuts the query: only the document is truncated, unless the query leaves less than a quarter of the
window, which a document has for itself. Special tokens inside user text are split into plain pieces, so a text cannot
forge structure. A document longer than the window is cut and counted, or read in several overlapping windows.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from rerank.errors import InputError
from rerank.models.texts import ID, Cuts, TextIds, plain
from rerank.types import CandidateList

logger = logging.getLogger("rerank.models")

DEFAULT_LENGTH = 512
"""Tokens of a pair that are read where nobody says how many, and the model reads so many."""
OVERLAP = 4
"""Neighbouring windows share one part in so many of their tokens."""


class PairItem(NamedTuple):
    """One encoded (query, document) pair; its texts are token ids of type `ID`, as bytes: quick to hash and to join."""

    query: bytes
    windows: tuple[bytes, ...]
    """The document: whole, cut, or window by window."""
    n_special: int
    read: int = 0
    """Tokens of the document that several windows read together; where there is one, it says so itself."""

    def __len__(self) -> int:
        fixed = len(self.query) // ID.itemsize + self.n_special
        return sum(fixed + len(window) // ID.itemsize for window in self.windows)

    def cut(self, tokens: int) -> PairItem:
        """The pair whose document ends after `tokens` tokens; itself where the document is no longer than that."""
        if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 0:
            raise InputError(f"a document is cut to a whole number of tokens of at least 0, not to {tokens!r}")
        document = self._document()
        if len(document) <= tokens * ID.itemsize:
            return self
        room = len(self.windows[0]) // ID.itemsize
        windows, _ = _windows(document[: tokens * ID.itemsize], room, len(self.windows))
        return _item(self.query, windows, self.n_special, tokens)

    def _document(self) -> bytes:
        """The document's ids, as far as they are read."""
        if len(self.windows) == 1:
            return self.windows[0]
        size = len(self.windows[0])
        starts = [i * _step(size) for i in range(len(self.windows) - 1)]
        last = self.read * ID.itemsize - size
        ends = [*starts[1:], last]
        parts = [w[: end - start] for w, start, end in zip(self.windows[:-1], starts, ends, strict=True)]
        return b"".join((*parts, self.windows[-1]))


class Rows(NamedTuple):
    """Token ids of several sequences, laid end to end."""

    ids: Tensor
    """int64 [T]."""
    lengths: np.ndarray
    """Tokens of each sequence, [R]."""
    documents: np.ndarray
    """Tokens of each sequence from its document on, [R]; they are the second segment."""
    counts: list[int]
    """Sequences of each item, [n]."""


@final
class PairTokenizer:
    """Encodes pairs with a transformers tokenizer; remembers the ids of the texts it has seen."""

    def __init__(self, tokenizer: Any, max_length: int | None, possible: int | None = None, windows: int = 1) -> None:
        self.tokenizer = plain(tokenizer)
        self.template = _template(tokenizer)
        self.n_special = len(self.template.flat)
        self.max_length = _checked_length(max_length, possible, self.n_special)
        self.windows = _checked_windows(windows)
        self.takes_types = "token_type_ids" in tokenizer.model_input_names
        self._special = tuple(np.array(part, dtype=ID).tobytes() for part in self.template.parts)
        # No item holds more of a text than this; one token more tells that it was cut.
        self._ids = TextIds(tokenizer, self.max_length * self.windows + 1)
        self._cuts = Cuts()

    def __deepcopy__(self, memo: dict[int, Any]) -> PairTokenizer:
        """The tokenizer itself: copies of a policy share it, for nothing in it is trained."""
        return self

    def encode(self, lists: Sequence[CandidateList]) -> list[PairItem]:
        """One item for each candidate of each list, in order."""
        return self.encode_pairs([(c.query, text) for c in lists for text in c.texts])

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[PairItem]:
        """One item for each (query, document) pair; each distinct text is tokenized once."""
        ids = self._ids(text for pair in pairs for text in pair)
        found = [(ids[query], ids[document]) for query, document in pairs]
        room = self.max_length - self.n_special
        items = []
        cut_queries = cut_documents = 0
        for query, document in found:
            n_query, n_document = len(query) // ID.itemsize, len(document) // ID.itemsize
            longest = room - min(n_document, room // 4)
            cut_queries += n_query > longest
            n_query = min(n_query, longest)
            windows, cut = self._windows(document, room - n_query)
            cut_documents += cut
            items.append(_item(query[: n_query * ID.itemsize], windows, self.n_special, n_document))
        self._tell(cut_queries, cut_documents, len(pairs))
        return items

    def _windows(self, document: bytes, room: int) -> tuple[tuple[bytes, ...], bool]:
        """The document in windows of at most `room` tokens, and whether some of it is in none."""
        return _windows(document, room, self.windows)

    def reads_whole(self, query: str, text: str) -> bool:
        """Whether nothing is cut of a query and a document that are read together."""
        ids = self._ids((query, text))
        n_query, n_document = len(ids[query]) // ID.itemsize, len(ids[text]) // ID.itemsize
        room = self.max_length - self.n_special
        if n_query > room - min(n_document, room // 4):
            return False
        return not self._windows(ids[text], room - n_query)[1]

    def forget(self, beyond: int = 0) -> None:
        """Nothing; forgets the texts where they hold more than `beyond` bytes. Items that are there stay good."""
        self._ids.forget(beyond)

    def _tell(self, cut_queries: int, cut_documents: int, n: int) -> None:
        queries, documents = self._cuts.since("query", cut_queries, n), self._cuts.since("document", cut_documents, n)
        if queries:
            logger.warning(
                "in %d of %d pairs the query fills the window of %d tokens and is cut (said at most once an hour)",
                *(*queries, self.max_length),
            )
        if documents:
            logger.warning(
                "%d of %d documents are longer than %d window%s of %d tokens and are cut (said at most once an hour): "
                "a larger max_length or windows = %d reads more of them",
                *(*documents, self.windows, "s" * (self.windows > 1), self.max_length, 4 * self.windows),
            )

    def plain_ids(self) -> np.ndarray:
        """Ids of some thousand tokens that are no special ones, of type `ID`: what made-up pairs are made of."""
        special = set(self.tokenizer.all_special_ids)
        return np.array([i for i in range(min(len(self.tokenizer), 5000)) if i not in special], dtype=ID)

    def rows(self, items: Sequence[PairItem]) -> Rows:
        """The sequences of items end to end: one for each window of each item."""
        before, between, after = self._special
        chunks = [
            part for item in items for window in item.windows for part in (before, item.query, between, window, after)
        ]
        flat = np.frombuffer(b"".join(chunks), dtype=ID).astype(np.int64)
        tail = len(after) // ID.itemsize
        documents = np.array([len(w) // ID.itemsize + tail for item in items for w in item.windows])
        firsts = np.array([len(i.query) // ID.itemsize for i in items for _ in i.windows]) + self.n_special - tail
        return Rows(torch.from_numpy(flat), firsts + documents, documents, [len(item.windows) for item in items])

    def types(self, rows: Rows) -> Tensor:
        """Segment of each token, int64 [T]: documents have the second."""
        steps = np.stack([rows.lengths - rows.documents, rows.documents], axis=1).reshape(-1)
        kinds = np.tile([0, self.template.second_type], len(rows.lengths))
        return torch.from_numpy(np.repeat(kinds, steps))

    def padded(self, items: Sequence[PairItem]) -> dict[str, Tensor]:
        """input_ids, attention_mask and, where the model takes them, token_type_ids; int64 [R, longest]."""
        rows = self.rows(items)
        mask = torch.from_numpy(rows.lengths)[:, None] > torch.arange(int(rows.lengths.max()))
        pad_id = self.tokenizer.pad_token_id or 0
        found = {
            "input_ids": torch.full(mask.shape, pad_id).masked_scatter(mask, rows.ids),
            "attention_mask": mask.long(),
        }
        if self.takes_types:
            found["token_type_ids"] = torch.zeros_like(found["input_ids"]).masked_scatter(mask, self.types(rows))
        return found


def _item(query: bytes, windows: tuple[bytes, ...], n_special: int, n_document: int) -> PairItem:
    """The pair of a query and the windows of a document of `n_document` tokens."""
    if len(windows) == 1:
        return PairItem(query, windows, n_special)
    size = len(windows[0])
    end = (_step(size) * (len(windows) - 1) + size) // ID.itemsize
    return PairItem(query, windows, n_special, min(n_document, end))


def _windows(document: bytes, room: int, most: int) -> tuple[tuple[bytes, ...], bool]:
    """The document in at most `most` windows of at most `room` tokens, and whether some of it is in none."""
    size = room * ID.itemsize
    if len(document) <= size:
        return (document,), False
    found = [document[:size]]
    start = 0
    while len(found) < most and start + size < len(document):
        start = min(start + _step(size), len(document) - size)  # the last window is a full one
        found.append(document[start : start + size])
    return tuple(found), start + size < len(document)


def _step(size: int) -> int:
    """Bytes from the start of a window of `size` bytes to that of the next."""
    room = size // ID.itemsize
    return max(1, room - room // OVERLAP) * ID.itemsize


def best_window(logits: Tensor, counts: Sequence[int]) -> Tensor:
    """Logits [n] of items from those [R] of their rows: the best window speaks (MaxP; Dai and Callan 2019)."""
    if len(counts) == len(logits):
        return logits
    owner = torch.repeat_interleave(torch.tensor(counts)).to(logits.device)
    return logits.new_full((len(counts),), -torch.inf).scatter_reduce(0, owner, logits, "amax")


class Template(NamedTuple):
    """Where a tokenizer puts its special tokens around a pair."""

    parts: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    second_type: int

    @property
    def flat(self) -> tuple[int, ...]:
        """All special tokens of a pair."""
        return tuple(token for part in self.parts for token in part)


def _template(tokenizer: Any) -> Template:
    """The special tokens before, between and after a pair, read off the tokenizer's own output."""
    q, d = (tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in ("query", "document"))
    pair = tokenizer("query", "document")
    ids = tuple(pair["input_ids"])
    for start in range(len(ids) - len(q) + 1):
        if ids[start : start + len(q)] != q:
            continue
        middle = start + len(q)
        for end in range(middle, len(ids) - len(d) + 1):
            if ids[end : end + len(d)] == d:
                types = pair.get("token_type_ids") or [0] * len(ids)
                return Template((ids[:start], ids[middle:end], ids[end + len(d) :]), types[end])
    raise InputError(f"the tokenizer {type(tokenizer).__name__} does not encode a pair as query, then document")


def _checked_length(wanted: int | None, possible: int | None, n_special: int) -> int:
    if wanted is None:
        wanted = DEFAULT_LENGTH if possible is None else min(possible, DEFAULT_LENGTH)
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < n_special + 2:
        raise InputError(f"max_length must be a whole number of at least {n_special + 2} tokens, not {wanted!r}")
    if possible is not None and wanted > possible:
        logger.warning("max_length %d is more than the model can read; %d is used", wanted, possible)
        return possible
    return wanted


def _checked_windows(wanted: int) -> int:
    if isinstance(wanted, bool) or not isinstance(wanted, int) or not 1 <= wanted <= 1000:
        raise InputError(f"windows must be a whole number from 1 (cut long documents) to 1000, not {wanted!r}")
    return wanted
