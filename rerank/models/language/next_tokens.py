"""What a causal language model says comes next, at the positions that are asked about and nowhere else.

The head of a language model is its widest layer: a logit for each of 150,000 tokens at each of 3,000 positions would be
more work and memory than the rest of a small model. One position of a prompt is wanted, and one of each choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from rerank.models.texts import ID


@final
class NextTokens:
    """A causal language model that is asked for the logits of what follows given positions."""

    def __init__(self, model: Any, pad_id: int) -> None:
        self.model, self.pad_id = model, pad_id
        self.direct = self._direct_agrees()
        """Whether the head is asked about wanted positions alone; some models do more than multiply by it."""

    def __call__(self, rows: Tensor, at: Tensor, read: dict[str, Any]) -> Tensor:
        """Logits [P, vocabulary], in float32, of what follows position `at` [P] of `rows` [P] in what is `read`."""
        return self._found(rows, at, read, self.direct).float()

    def _found(self, rows: Tensor, at: Tensor, read: dict[str, Any], direct: bool) -> Tensor:
        if not direct:
            return self.model(**read).logits[rows, at]
        hidden = self.model.base_model(**read).last_hidden_state
        return self.model.get_output_embeddings()(hidden[rows, at])

    @torch.no_grad()
    def _direct_agrees(self) -> bool:
        """Whether the head alone gives what the whole model gives, on two short made-up texts."""
        was_training, device = self.model.training, next(self.model.parameters()).device
        self.model.eval()
        ids = (torch.arange(24, device=device).reshape(2, 12) * 7) % self.model.config.get_text_config().vocab_size
        read = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        rows, at = torch.tensor([0, 1], device=device), torch.tensor([11, 5], device=device)
        try:
            wanted, found = (self._found(rows, at, read, direct).float() for direct in (False, True))
            return torch.allclose(found, wanted, 1e-3, 1e-4)
        except (AttributeError, TypeError, RuntimeError, IndexError):
            return False
        finally:
            self.model.train(was_training)


def padded_ids(rows: Sequence[bytes], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(ids, mask), int64 [R, longest], padded on the right."""
    tensors = [torch.frombuffer(bytearray(row), dtype=torch.int32).long() for row in rows]
    ids = nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=pad_id)
    lengths = torch.tensor([len(row) // ID.itemsize for row in rows])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    return ids.to(device, non_blocking=True), mask.to(device, non_blocking=True)
