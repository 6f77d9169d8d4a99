"""How much fits: tokens at once on a device, and whether an error says that it was too much.

Two numbers bound the engine's memory. The *budget* is the tokens of one micro-batch: below it a device is not busy, far
above it nothing is gained. *Graph tokens* are the tokens whose activations are kept for a backward pass at once: what
does not fit goes through the gradient cache, which costs a forward pass more and no memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence, Sized
from typing import Any

import torch
from torch import Tensor, nn

from rerank.engine.batching import ItemScorer

CPU_BUDGET, GPU_BUDGET = 2048, 65_536
"""What stays in a CPU's cache, and what fills a GPU."""
CPU_GRAPH_TOKENS, GPU_GRAPH_TOKENS = 4096, 1_000_000
SHARE = 0.5
"""Of a GPU's free memory that activations may take; the rest is for weights, gradients and what is passing."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        text in str(error) for text in ("can't allocate memory", "out of memory", "not enough memory")
    )


def give_back() -> None:
    """Nothing; hands memory that was freed, and that the C library keeps for later, back to the system (glibc)."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # another C library, or another system
        return
    trim(0)


def scoring_budget(device: torch.device) -> int:
    """Tokens of one micro-batch on `device`."""
    return CPU_BUDGET if device.type == "cpu" else GPU_BUDGET


def graph_tokens_on(device: torch.device, scorer: ItemScorer, items: Sequence[Sized]) -> int:
    """Tokens whose activations `device` can keep at once, from what those of a few of `items` take."""
    if device.type != "cuda" or not items:
        return CPU_GRAPH_TOKENS
    free, _ = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    some = sorted(items, key=len)[-8:]
    fitting = SHARE * (free + reserved) / max(1.0, bytes_per_token(scorer, some))
    return int(min(max(fitting, CPU_GRAPH_TOKENS), GPU_GRAPH_TOKENS))


def bytes_per_token(scorer: ItemScorer, items: Sequence[Sized]) -> float:
    """What one forward pass over `items` keeps for its backward pass, beside the parameters, by token."""
    parameters = scorer.parameters() if isinstance(scorer, nn.Module) else ()
    known = {p.untyped_storage().data_ptr() for p in parameters}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def give(tensor: Any) -> Any:
        return tensor

    with torch.random.fork_rng(), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, give):
        logits = scorer.logits(items)
    del logits
    return sum(kept.values()) / sum(map(len, items))
