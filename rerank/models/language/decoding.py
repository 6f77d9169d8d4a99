"""Writing many answers at once with a causal language model, which reads every prompt once.

    prompts -> keys and values -> a row for each answer -> choose -> read what was chosen, with what follows -> ...

Rows choose together and read together, each at its own length: a row that has less to read is padded, and the padding
masked for good, with positions counted without it. What follows from a choice (a separator, the rest of a name) is read
with it, in one pass. Rows that are done are dropped. Which answers share a batch changes no draw: each row has its own
random numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from rerank.errors import TrainingError
from rerank.models.language.next_tokens import NextTokens, padded_ids
from rerank.models.language.permutations import Choice, Writer


def option_log_probs(logits: Tensor, choices: Sequence[Choice]) -> Tensor:
    """The log-probabilities [sum of options] of all options of each choice, from the logits [P, vocabulary] there."""
    widest = max(len(choice.options) for choice in choices)
    columns = torch.tensor([[*c.options, *[c.options[0]] * (widest - len(c.options))] for c in choices])
    real = torch.arange(widest) < torch.tensor([len(c.options) for c in choices])[:, None]
    real = real.to(logits.device)
    found = logits.gather(1, columns.to(logits.device))
    total = found.masked_fill(~real, -torch.inf).logsumexp(1)
    whole = torch.tensor([i for i, c in enumerate(choices) if c.whole], device=logits.device, dtype=torch.long)
    if len(whole):
        total = total.index_copy(0, whole, logits[whole].logsumexp(1))
    return (found - total[:, None])[real]


@torch.no_grad()
def write(following: NextTokens, writers: Sequence[Writer]) -> None:
    """Nothing; every writer is done."""
    open_writers = [writer for writer in writers if not writer.done]
    if not open_writers:
        return
    reading = _Reading(following, open_writers)
    while open_writers:
        choose(reading.logits, open_writers)
        kept = [i for i, writer in enumerate(open_writers) if not writer.done]
        open_writers = [open_writers[i] for i in kept]
        if open_writers:
            reading.keep(kept)
            reading.read([writer.read() for writer in open_writers])


@final
class _Reading:
    """What has been read of each row: keys and values, which of them are real, and what follows."""

    def __init__(self, following: NextTokens, writers: Sequence[Writer]) -> None:
        from transformers import DynamicCache

        self.following, self.device = following, next(following.model.parameters()).device
        self.cache = DynamicCache(config=following.model.config)
        prompts = {prompt: i for i, prompt in enumerate(dict.fromkeys(writer.prompt for writer in writers))}
        ids, mask = padded_ids(list(prompts), following.pad_id, self.device)
        self.mask = mask[:, :0]
        self.logits = self._pass(ids, mask)
        # From here on every answer has a row of its own, those to one prompt beginning with the same.
        self.keep([prompts[writer.prompt] for writer in writers])
        first = [writer.read() for writer in writers]
        if any(first):
            self.read(first)

    def keep(self, rows: Sequence[int]) -> None:
        """Nothing; the rows are from here on those that stood at `rows`, in that order."""
        if list(rows) == list(range(len(self.mask))):
            return
        index = torch.tensor(rows, device=self.device)
        self.cache.batch_select_indices(index)
        self.mask, self.logits = self.mask[index], self.logits[index]

    def read(self, tokens: Sequence[Sequence[int]]) -> None:
        """Nothing; reads the next tokens of each row, at least one of some row."""
        longest = max(map(len, tokens))
        ids = torch.tensor([[*row, *[self.following.pad_id] * (longest - len(row))] for row in tokens])
        real = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in tokens])
        found = self._pass(ids.to(self.device), real.to(self.device))
        busy = torch.tensor([bool(row) for row in tokens], device=self.device)
        self.logits = torch.where(busy[:, None], found, self.logits)

    def _pass(self, ids: Tensor, real: Tensor) -> Tensor:
        """The logits [R, vocabulary] after each row's last real token."""
        positions = self.mask.sum(1, keepdim=True) + real.cumsum(1) - 1
        self.mask = torch.cat([self.mask, real], 1)
        read = {"input_ids": ids, "attention_mask": self.mask, "position_ids": positions.clamp(min=0)}
        rows, last = torch.arange(len(ids), device=self.device), (real.sum(1) - 1).clamp(min=0)
        return self.following(rows, last, {**read, "past_key_values": self.cache, "use_cache": True})


def choose(logits: Tensor, writers: Sequence[Writer]) -> None:
    """Nothing; each writer takes a token by the logits [R, vocabulary] of what may follow."""
    allowed = [writer.options() for writer in writers]
    masked = [i for i, options in enumerate(allowed) if options is not None]
    free = [i for i, options in enumerate(allowed) if options is None]
    if masked:
        _among(logits, [(i, writers[i], allowed[i] or ()) for i in masked])
    if free:
        log_p = logits[free].log_softmax(-1)
        log_p = log_p.cpu() if log_p.device.type == "mps" else log_p  # which has no float64 to draw with
        picked = _picked(log_p, [writers[i] for i in free])
        chances = log_p.gather(1, picked[:, None])
        _check_finite(chances)
        for i, token, chance in zip(free, picked.tolist(), chances.tolist(), strict=True):
            writers[i].take(token, chance)


def _among(logits: Tensor, rows: Sequence[tuple[int, Writer, tuple[int, ...]]]) -> None:
    """Writers take one of their options."""
    widest = max(len(options) for _, _, options in rows)
    columns = torch.tensor([[*options, *[options[0]] * (widest - len(options))] for _, _, options in rows])
    real = torch.arange(widest) < torch.tensor([len(options) for _, _, options in rows])[:, None]
    index = torch.tensor([i for i, _, _ in rows], device=logits.device)
    found = logits[index].gather(1, columns.to(logits.device)).cpu()
    _check_finite(found)
    log_p = found.masked_fill(~real, -torch.inf).log_softmax(-1)
    picked = _picked(log_p, [writer for _, writer, _ in rows]).tolist()
    for (_, writer, options), at, weights in zip(rows, picked, log_p.tolist(), strict=True):
        writer.take(options[at], weights[: len(options)])


def _picked(log_p: Tensor, writers: Sequence[Writer]) -> Tensor:
    """[R] what each row draws with its own next random number, or the most likely where it has none."""
    best = log_p.argmax(-1)
    drawing = [i for i, writer in enumerate(writers) if len(writer.noise)]
    if not drawing:
        return best
    u = torch.tensor([writers[i].noise[len(writers[i].choices)] for i in drawing], dtype=torch.float64)
    reached = log_p[drawing].double().exp().cumsum(-1)
    wanted = u.to(log_p.device)[:, None] * reached[:, -1:]
    # A product that is rounded up to the sum itself belongs to the last option that has a chance.
    last = (reached < reached[:, -1:]).sum(-1)
    best[drawing] = torch.minimum(torch.searchsorted(reached, wanted, right=True)[:, 0], last)
    return best


def _check_finite(log_p: Tensor) -> None:
    if not bool(log_p.isfinite().all()):
        raise TrainingError(
            "logits are not finite: the weights are broken, or too large for this number format; try precision = "
            "'float32', or an earlier model"
        )
