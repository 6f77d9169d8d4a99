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
from torch import Tensor, nn

from rerank.engine.precision import autocast, compute_dtype, keep_few_kernels
from rerank.errors import InputError
from rerank.models.language_model import Lean, context_of
from rerank.models.prompt_tokens import PromptItem
from rerank.models.reading import Reading
from rerank.models.windows import Windowing
from rerank.types import CandidateList

logger = logging.getLogger("rerank.models")


@final
class ListwiseScorer(Lean):
    """Scores the candidates of a list with a transformers causal language model."""

    kind = "listwise"
    in_order = True
    """Whether scores depend on the order in which candidates come."""

    def __init__(self, model: Any, tokenizer: Any, reading: Reading | None = None, precision: str = "auto") -> None:
        super().__init__()
        keep_few_kernels()
        self.reading = reading or Reading()
        if self.reading.naming != "letters":
            raise InputError("one forward pass tells names of one token apart: naming = 'letters' is needed")
        self.model, self.prompts, self.precision = model, self.reading.prompts(tokenizer), precision
        self.prompts.check_context(context_of(model))
        model.config.use_cache = False
        self.settle()
        names = torch.tensor([ids[0] for ids in self.prompts.name_ids])
        self.register_buffer("names", names.to(self.device), persistent=False)
        self.direct = self._direct_agrees()
        """Whether the head is asked about last positions alone; some models do more than multiply by it."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def window(self) -> int:
        """Candidates that a prompt shows at most."""
        return self.reading.window

    @property
    def windowing(self) -> Windowing:
        """How longer lists are ranked."""
        return self.reading.windowing

    def body(self) -> list[nn.Parameter]:
        """All parameters: what ranks is what was pretrained."""
        return list(self.model.parameters())

    def encode(self, lists: Sequence[CandidateList]) -> list[PromptItem]:
        """One item for each list, which must fit into one prompt."""
        return self.prompts.encode(lists)

    def logits(self, items: Sequence[PromptItem]) -> Tensor:
        """Logits [sum of widths] of one micro-batch, in float32."""
        ids, mask = padded_prompts(items, self.device, self.prompts.tokenizer.pad_token_id or 0)
        with autocast(self.device, compute_dtype(self.precision, self.device)):
            found = self._next_tokens(ids, mask, self.direct)
        scores = found.float()[:, self.names]
        widths = torch.tensor([item.width for item in items], device=scores.device)
        return scores[torch.arange(scores.shape[1], device=scores.device) < widths[:, None]]

    def _next_tokens(self, ids: Tensor, mask: Tensor, direct: bool) -> Tensor:
        """Logits [R, vocabulary] of what follows each prompt."""
        last = mask.sum(1) - 1
        rows = torch.arange(len(ids), device=ids.device)
        if direct:
            hidden = self.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            return self.model.get_output_embeddings()(hidden[rows, last])
        return self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[rows, last]

    @torch.no_grad()
    def _direct_agrees(self) -> bool:
        """Whether the head alone gives what the whole model gives, on two short made-up prompts."""
        was_training = self.model.training
        self.model.eval()
        ids = (torch.arange(24, device=self.device).reshape(2, 12) * 7) % self.model.config.get_text_config().vocab_size
        mask = torch.ones_like(ids)
        mask[1, 9:] = 0
        try:
            wanted, found = (self._next_tokens(ids, mask, direct).float() for direct in (False, True))
            return torch.allclose(found, wanted, 1e-3, 1e-4)
        except (AttributeError, TypeError, RuntimeError, IndexError):
            return False
        finally:
            self.model.train(was_training)


def padded_prompts(items: Sequence[Any], device: torch.device, pad_id: int) -> tuple[Tensor, Tensor]:
    """(ids, mask), int64 [R, longest], padded on the right."""
    rows = [torch.frombuffer(bytearray(item.ids), dtype=torch.int32).long() for item in items]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_id)
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    return ids.to(device, non_blocking=True), mask.to(device, non_blocking=True)
