"""Sequences laid end to end, so that no token is padding: for every encoder of transformers, without a line of its own.

    [CLS] q1 [SEP] d1 [SEP] [CLS] q2 [SEP] d2 [SEP] ...      one row [1, T]; positions restart, attention stays within

Everything in a transformer but attention works token by token, so only attention has to know where a sequence ends. An
attention function of ours, registered with transformers, does that: the variable-length flash kernel on GPUs, one call
for each length elsewhere. Where the head reads first tokens alone, the last layer's feed-forward runs for those
alone (an eighth of a six-layer network saved, and the numbers are the same).

Whether a network can be run so is not a matter of a list of names: the cross-encoder runs it on a few sequences both
ways and takes the first way that agrees with the padded one; where none does, the network is run padded.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from itertools import groupby
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rerank.models.dropout import dropped

logger = logging.getLogger("rerank.models")

ATTENTION = "rerank_packed"
Gathering = Literal["last layer", "first", "mean", "head"]
"""Where [1, T, H] becomes a row for each sequence: before the last feed-forward, after the last layer (its first token,
or the mean), or in the head itself (sentence-transformers' pooling modules, which know about packed sequences)."""


class Pack(NamedTuple):
    """Where the sequences of one packed row begin and end."""

    lengths: tuple[int, ...]
    starts: Tensor
    """int64 [R + 1], on the device of the network: where each sequence begins, and the end."""
    gathering: Gathering

    @classmethod
    def of(cls, lengths: np.ndarray, gathering: Gathering, device: torch.device) -> Pack:
        """The pack of sequences with these lengths."""
        starts = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)])).to(device, non_blocking=True)
        return cls(tuple(lengths.tolist()), starts, gathering)

    def positions(self, offset: int = 0) -> Tensor:
        """Position of each token within its sequence, int64 [T]."""
        lengths = self.starts.diff()
        at = torch.arange(sum(self.lengths), device=self.starts.device)
        return at - torch.repeat_interleave(self.starts[:-1], lengths, output_size=len(at)) + offset


_current: ContextVar[Pack | None] = ContextVar("pack", default=None)


@contextmanager
def packed(pack: Pack) -> Iterator[None]:
    """Within the block, networks prepared by `prepare` take their one row [1, T] for this pack."""
    token = _current.set(pack)
    try:
        yield
    finally:
        _current.reset(token)


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """Attention [1, T, heads, dim] within each sequence of the current pack; without a pack, plain sdpa."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    pack = _current.get()
    if pack is None:
        return sdpa_attention_forward(module, query, key, value, mask, **settings)
    if settings.get("position_bias") is not None or query.shape[1] != key.shape[1]:
        raise NotImplementedError("packed attention has neither position biases nor grouped heads")
    scale, dropout = settings.get("scaling"), settings.get("dropout") or 0.0
    window = settings.get("sliding_window")
    width = None if window is None else window - 1  # transformers counts the token itself
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [T, heads, dim]
    if q.device.type == "cpu":
        return _by_length(q, k, v, pack, scale, dropout, width)[None], None
    half = q.dtype in (torch.float16, torch.bfloat16)
    if half and dropout == 0.0 and q.device.type == "cuda" and _flash_kernel() is not None:
        return _flash(q, k, v, pack, scale, width)[None], None
    return _within_padding(q, k, v, pack, scale, dropout, width)[None], None


@lru_cache
def _flash_kernel() -> Any:
    """torch's attention for sequences of any lengths; None where torch is older than it."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn


def _flash(q: Tensor, k: Tensor, v: Tensor, pack: Pack, scale: float | None, width: int | None) -> Tensor:
    """The variable-length kernel of torch: nothing is padded, nothing is looped over."""
    ends, longest = pack.starts.int(), max(pack.lengths)
    window = (-1, -1) if width is None else (width, width)
    parts = (q.contiguous(), k.contiguous(), v.contiguous())
    found: Tensor = _flash_kernel()(*parts, ends, ends, longest, longest, scale=scale, window_size=window)
    return found


def _by_length(
    q: Tensor, k: Tensor, v: Tensor, pack: Pack, scale: float | None, dropout: float, width: int | None
) -> Tensor:
    """One call for each run of equal lengths, on views: micro-batches are sorted, so the runs are few."""
    # On CPUs torch's fused kernel has no dropout, and its backward pass in half precision takes five times the steps'.
    # With and without a graph the same way is taken, so that the numbers are the same.
    stepwise = dropout > 0.0 or q.dtype != torch.float32
    runs = [(length, len(list(run))) for length, run in groupby(pack.lengths)]
    # Split, not sliced: the gradient of a slice is a tensor of the whole's size, for each slice.
    split = [x.split([length * n for length, n in runs]) for x in (q, k, v)]
    parts = []
    for (length, n), *flat in zip(runs, *split, strict=True):
        qs, ks, vs = (x.unflatten(0, (n, length)).transpose(1, 2) for x in flat)  # [n, heads, length, dim]
        band = _band(length, width, q.device)
        if stepwise:
            found = _step_by_step(qs, ks, vs, band, dropout, scale)
        else:
            found = F.scaled_dot_product_attention(qs, ks, vs, band, scale=scale)
        parts.append(found.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts)


def _step_by_step(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, dropout: float, scale: float | None) -> Tensor:
    scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-1, -2)
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    shares = torch.softmax(scores, -1)
    return (dropped(shares, dropout) if dropout > 0.0 else shares) @ v


def _within_padding(
    q: Tensor, k: Tensor, v: Tensor, pack: Pack, scale: float | None, dropout: float, width: int | None
) -> Tensor:
    """Padded for attention alone, for devices and number formats without a variable-length kernel."""
    longest = max(pack.lengths)
    steps = torch.arange(longest, device=q.device)
    real = steps < pack.starts.diff()[:, None]  # [R, longest]
    index = (pack.starts[:-1, None] + steps).clamp(max=len(q) - 1)
    qs, ks, vs = (x[index].transpose(1, 2) for x in (q, k, v))  # [R, heads, longest, dim]
    mask = real[:, None, None, :]
    if (band := _band(longest, width, q.device)) is not None:
        mask = mask & band
    # A padded query may see nothing at all within its window; it sees itself, and is thrown away.
    mask = mask | torch.eye(longest, dtype=torch.bool, device=q.device)
    found = F.scaled_dot_product_attention(qs, ks, vs, mask, dropout, scale=scale)
    return found.transpose(1, 2)[real]


def _band(length: int, width: int | None, device: torch.device) -> Tensor | None:
    if width is None or length <= width:
        return None
    at = torch.arange(length, device=device)
    return (at[:, None] - at).abs() <= width


def _mask(*args: Any, **settings: Any) -> Any:
    """No mask within a pack (the attention knows its bounds), that of sdpa otherwise."""
    from transformers.masking_utils import sdpa_mask

    return None if _current.get() is not None else sdpa_mask(*args, **settings)


def prepare(network: Any) -> bool:
    """Whether `network` (of transformers) lets our attention in; it is changed so that it heeds `packed`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, _mask)
    base = getattr(network, "base_model", None)
    if base is None or not getattr(network, "_supports_attention_backend", False) or network.config.is_encoder_decoder:
        return False
    network.set_attn_implementation(ATTENTION)
    if (last := last_layer(base)) is not None:
        last.attention.output.register_forward_pre_hook(_gather_in_last_layer)
    base.register_forward_hook(_gather_at_end)
    return True


def release(network: Any) -> None:
    """Nothing; a network for which no way of packing was found attends as it did before."""
    network.set_attn_implementation("sdpa")


def last_layer(base: nn.Module) -> Any:
    """The last layer of the kind that BERT has: attention.output (projection and residual), then a feed-forward."""
    layers = [m for m in base.modules() if hasattr(m, "intermediate") and hasattr(m, "attention")]
    return layers[-1] if layers and hasattr(layers[-1].attention, "output") else None


def _gather_in_last_layer(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """First tokens [R, 1, H] alone go on to the last projection and feed-forward."""
    pack = _current.get()
    if pack is None or pack.gathering != "last layer":
        return None
    return tuple(_first(hidden, pack) for hidden in args)


def _gather_at_end(module: nn.Module, args: Any, output: Any) -> Any:
    """The last hidden states as [R, 1, H], as heads expect them that read the first token or the mean."""
    pack = _current.get()
    if pack is not None and pack.gathering in ("first", "mean"):
        gather = _first if pack.gathering == "first" else _mean
        output.last_hidden_state = gather(output.last_hidden_state, pack)
    return output


def _first(hidden: Tensor, pack: Pack) -> Tensor:
    return hidden[0].index_select(0, pack.starts[:-1])[:, None]


def _mean(hidden: Tensor, pack: Pack) -> Tensor:
    lengths = pack.starts.diff()
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    sums = hidden.new_zeros(len(lengths), hidden.shape[-1]).index_add(0, owner, hidden[0])
    return (sums / lengths[:, None].to(hidden.dtype))[:, None]


def position_offset(network: Any) -> int:
    """What the position of a first token is: 0, or for RoBERTa and its kin the one after that of padding."""
    embeddings: Any = getattr(network.base_model, "embeddings", None)
    counts_from_padding = hasattr(embeddings, "create_position_ids_from_input_ids")
    return int(embeddings.padding_idx) + 1 if counts_from_padding else 0
