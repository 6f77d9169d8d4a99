"""What a causal language model says comes next, at the positions that are asked about and nowhere else.

    what is read -> states [P, *] at the wanted positions -> logits [P, tokens that are asked about], in float32

The head of a language model is its widest layer: a logit for each of 150,000 tokens at each of 3,000 positions would be
more work and memory than the rest of a small model. One position of a prompt is wanted, and one of each choice, and
there the tokens of a few names.

Logits lie around 20, where bfloat16 knows steps of 1/8 alone: two candidates of three would tie. So the wanted rows of
the head are multiplied in float32, whatever the rest of the model computes in. Some models do more with the head than
multiply by it. Gemma's soft cap is done here too; what else a model does (Cohere scales its logits) is left to the
model, whose logits then are as coarse as its number format: nothing can make them finer afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from rerank.errors import InputError
from rerank.models.texts import ID

FAILURES = (AttributeError, TypeError, ValueError, RuntimeError, IndexError, KeyError)
"""How models say that they cannot do what others can."""


@final
class NextTokens:
    """A causal language model that is asked for the logits of what follows given positions."""

    def __init__(self, model: Any, pad_id: int) -> None:
        self.model, self.pad_id = model, pad_id
        was_training = model.training
        model.eval()
        try:
            self._check_causal()
            self.direct = self._direct_agrees()
            """Whether states are what the head is given, and the head is used as it is read here."""
        finally:
            model.train(was_training)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def states(self, rows: Tensor, at: Tensor, read: dict[str, Any]) -> Tensor:
        """What `logits` takes [P, *], at positions `at` [P] of `rows` [P] in what is `read`."""
        if self.direct:
            return self.model.base_model(**read).last_hidden_state[rows, at]
        return self.model(**read).logits[rows, at]

    def logits(self, states: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Logits [P, T], in float32, of `tokens` [T] (None: of the whole vocabulary) as what follows."""
        if not self.direct:
            return (states if tokens is None else states.index_select(1, tokens.to(states.device))).float()
        head = self.model.get_output_embeddings()
        weight, bias = head.weight, head.bias
        if tokens is not None:
            tokens = tokens.to(weight.device)
            weight, bias = weight.index_select(0, tokens), None if bias is None else bias.index_select(0, tokens)
        with torch.autocast(states.device.type, enabled=False):
            found = nn.functional.linear(states.float(), weight.float(), None if bias is None else bias.float())
        return self._capped(found)

    def _capped(self, logits: Tensor) -> Tensor:
        cap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def made_up(self, n: int, length: int) -> Tensor:
        """Token ids [n, length] that any model knows."""
        known = self.model.config.get_text_config().vocab_size
        return (torch.arange(n * length, device=self.device).reshape(n, length) * 7) % known

    @torch.no_grad()
    def _check_causal(self) -> None:
        """Nothing, when what comes later does not change what is said before it; else an InputError."""
        ids = self.made_up(1, 12)
        changed = torch.cat([ids[:, :6], ids[:, 6:] + 1], 1) % self.model.config.get_text_config().vocab_size
        first, second = (
            self.model(input_ids=given, attention_mask=torch.ones_like(given), use_cache=False).logits[0, :6].float()
            for given in (ids, changed)
        )
        coarse = first.std() * (1e-3 if next(self.model.parameters()).dtype == torch.float32 else 0.1)
        if bool(((first - second).abs() > coarse + 1e-5).any()):
            raise InputError(
                f"{type(self.model).__name__} reads in both directions, so that it says nothing about what comes next: "
                "take a causal language model (its configuration may say is_decoder = false by mistake), or, as a "
                "cross-encoder, kind = 'cross_encoder'"
            )

    @torch.no_grad()
    def _direct_agrees(self) -> bool:
        """Whether the head gets what `states` would give, and nothing but the soft cap is done to what it gives."""
        try:
            head = self.model.get_output_embeddings()
            if type(head) is not nn.Linear:
                return False  # adapters beside the head, heads in several parts
            ids, seen = self.made_up(2, 12), []
            read = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
            hook = head.register_forward_hook(lambda module, given, out: seen.append((given[0], out)))
            try:
                whole = self.model(**read).logits
            finally:
                hook.remove()
            [(given, out)] = seen
            hidden = self.model.base_model(**read).last_hidden_state
            pairs = ((hidden, given), (self._capped(out), whole))
            return all(torch.allclose(one.float(), other.float(), 1e-3, 1e-4) for one, other in pairs)
        except FAILURES:
            return False


def padded_ids(
    rows: Sequence[bytes], pad_id: int, device: torch.device, on_the_left: bool = False
) -> tuple[Tensor, Tensor]:
    """(ids, mask), int64 [R, longest]."""
    tensors = [torch.frombuffer(bytearray(row), dtype=torch.int32).long() for row in rows]
    side = "left" if on_the_left else "right"
    ids = nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=pad_id, padding_side=side)
    lengths = torch.tensor([len(row) // ID.itemsize for row in rows])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    mask = mask.flip(1) if on_the_left else mask
    return ids.to(device, non_blocking=True), mask.to(device, non_blocking=True)
