"""A listwise language model in one forward pass: the logits of the candidates' names, where an answer would begin.

    query, [A] text, [B] text, ...   Best first: [        the next token is the name of the best candidate

A model that is asked for an order says with these logits what it would name first (FIRST; Gangi Reddy et al. 2024).
They are a score for each candidate, so the model is a Plackett-Luce policy like any other: cloned by every loss,
refined by every reward and estimator, calibrated, and never malformed; no token is generated. Candidates are read in
the order in which they come, so training shows them in a new order each time (`Schedule.shuffle`), and lists longer
than `window` are ranked by a strategy of `windows.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from rerank.engine.batching import flat_order, micro_batches
from rerank.engine.precision import autocast, compute_dtype, keep_few_kernels
from rerank.errors import InputError
from rerank.models.language.model import Lean, context_of
from rerank.models.language.next_tokens import NextTokens, padded_ids
from rerank.models.language.prompt_tokens import PromptItem
from rerank.models.language.reading import Reading, ReadsLists
from rerank.types import CandidateList

logger = logging.getLogger("rerank.models")

AT_ONCE = 512
"""Tokens that a CPU reads at once, within a micro-batch: prompts of some hundred tokens fill it one by one."""


@final
class ListwiseScorer(ReadsLists, Lean):
    """Scores the candidates of a list with a transformers causal language model."""

    kind = "listwise"

    def __init__(self, model: Any, tokenizer: Any, reading: Reading | None = None, precision: str = "auto") -> None:
        super().__init__()
        keep_few_kernels()
        self.reading = reading or Reading()
        if self.reading.naming != "letters":
            raise InputError("one forward pass tells names of one token apart: naming = 'letters' is needed")
        self.model, self.prompts, self.precision = model, self.reading.prompts(tokenizer), precision
        self.prompts.check_context(context_of(model.config))
        model.config.use_cache = False
        self.settle()
        names = torch.tensor([ids[0] for ids in self.prompts.name_ids])
        self.names: Tensor
        self.register_buffer("names", names.to(self.device), persistent=False)
        self.following = NextTokens(model, tokenizer.pad_token_id or 0)

    def encode(self, lists: Sequence[CandidateList]) -> list[PromptItem]:
        """One item for each list, which must fit into one prompt."""
        return self.prompts.encode(lists)

    def logits(self, items: Sequence[PromptItem]) -> Tensor:
        """Logits [sum of widths] of one micro-batch, in float32."""
        if self.training or self.device.type != "cpu":
            return self._together(items)
        # On a CPU padding is all that a larger batch adds. A loop that learns draws its dropout once a micro-batch.
        groups = micro_batches([len(item) for item in items], AT_ONCE)
        found = torch.cat([self._together([items[i] for i in group]) for group in groups])
        return torch.zeros_like(found).index_copy(0, flat_order(items, groups), found)

    def _together(self, items: Sequence[PromptItem]) -> Tensor:
        ids, mask = padded_ids([item.ids for item in items], self.following.pad_id, self.device)
        rows = torch.arange(len(items), device=self.device)
        with autocast(self.device, compute_dtype(self.precision, self.device)):
            read = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
            states = self.following.states(rows, mask.sum(1) - 1, read)
        scores = self.following.logits(states, self.names)
        widths = torch.tensor([item.width for item in items], device=scores.device)
        return scores[torch.arange(scores.shape[1], device=scores.device) < widths[:, None]]
