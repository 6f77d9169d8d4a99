"""A pointwise cross-encoder: one transformer reads query and document together and gives a logit.

The network and its files are sentence-transformers' (`CrossEncoder`), so what we save loads there with equal scores;
tokens, batches, precision and training are ours. Query and document are tokenized apart, once, and joined as ids:

    [CLS] query [SEP] document [SEP]        (whatever the tokenizer's own template is)

A document never cuts the query: only the document is truncated, unless the query leaves less than a quarter of the
window, which a document has for itself. Special
tokens inside user text are split into plain pieces, so a text cannot forge structure.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, final

import torch
from torch import Tensor, nn

from rerank.engine.precision import autocast, compute_dtype
from rerank.errors import InputError
from rerank.types import CandidateList

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

logger = logging.getLogger("rerank.models")

TEXTS_KEPT = 500_000
"""Tokenized texts that a scorer remembers before it starts anew."""


class PairItem(NamedTuple):
    """One encoded (query, document) pair."""

    query: tuple[int, ...]
    document: tuple[int, ...]
    n_special: int

    def __len__(self) -> int:
        return len(self.query) + len(self.document) + self.n_special


@final
class CrossEncoderScorer(nn.Module):
    """Scores pairs with a sentence-transformers `CrossEncoder` that has one output."""

    kind = "cross-encoder"

    def __init__(self, model: CrossEncoder, max_length: int = 256, precision: str = "auto") -> None:
        super().__init__()
        if model.num_labels != 1:
            raise InputError(f"a reranker has one output; this model has num_labels = {model.num_labels}")
        self.model = model
        tokenizer = model.tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is not None:  # some tokenizer files pad or cut to a fixed length by themselves
            backend.no_padding()
            backend.no_truncation()
        self.tokenizer = tokenizer
        self.template = _template(tokenizer)
        self.max_length = _checked_length(max_length, model.max_seq_length, len(self.template.flat))
        self.precision = precision
        self._ids: dict[str, tuple[int, ...]] = {}
        self._told_of_cuts = False

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def body(self) -> list[nn.Parameter]:
        """The parameters of the transformer."""
        return list(self.model[0].parameters())

    def set_dropout(self, share: float) -> None:
        """Set every dropout of the network; it is off outside training."""
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = share

    def encode(self, lists: Sequence[CandidateList]) -> list[PairItem]:
        """One item for each candidate of each list, in order."""
        return self.encode_pairs([(c.query, text) for c in lists for text in c.texts])

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[PairItem]:
        """One item for each (query, document) pair; each distinct text is tokenized once."""
        self._tokenize({text for pair in pairs for text in pair})
        n_special = len(self.template.flat)
        room = self.max_length - n_special
        items = []
        cut = 0
        for query, document in pairs:
            q, d = self._ids[query], self._ids[document]
            longest = room - min(len(d), room // 4)
            cut += len(q) > longest
            q = q[:longest]
            items.append(PairItem(q, d[: room - len(q)], n_special))
        if cut and not self._told_of_cuts:
            logger.warning("in %d pairs the query fills the window of %d tokens and is cut", cut, self.max_length)
            self._told_of_cuts = True
        return items

    def _tokenize(self, texts: set[str]) -> None:
        if len(self._ids) > TEXTS_KEPT:
            self._ids.clear()
        new = sorted(text for text in texts if text not in self._ids)
        if not new:
            return
        encoded = self.tokenizer(new, add_special_tokens=False, split_special_tokens=True, verbose=False)
        for text, ids in zip(new, encoded["input_ids"], strict=True):
            self._ids[text] = tuple(ids[: self.max_length])

    def logits(self, items: Sequence[PairItem]) -> Tensor:
        """Logits [n] of one micro-batch, in float32."""
        features = {name: values.to(self.device) for name, values in self._padded(items).items()}
        with autocast(self.device, compute_dtype(self.precision, self.device)):
            return self.model(features)["scores"].float().squeeze(-1)

    def _padded(self, items: Sequence[PairItem]) -> dict[str, Tensor]:
        before, between, after = self.template.parts
        width = max(len(item) for item in items)
        pad_id = self.tokenizer.pad_token_id or 0
        ids = torch.full((len(items), width), pad_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        types = torch.zeros_like(ids)
        for i, item in enumerate(items):
            row = (*before, *item.query, *between, *item.document, *after)
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
            first = len(row) - len(item.document) - len(after)
            types[i, first : len(row)] = self.template.second_type
        features = {"input_ids": ids, "attention_mask": mask}
        if "token_type_ids" in self.tokenizer.model_input_names:
            features["token_type_ids"] = types
        return features


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


def _checked_length(wanted: int, possible: int | None, n_special: int) -> int:
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < n_special + 2:
        raise InputError(f"max_length must be a whole number of at least {n_special + 2} tokens, not {wanted!r}")
    if possible is not None and wanted > possible:
        logger.warning("max_length %d is more than the model can read; %d is used", wanted, possible)
        return possible
    return wanted
