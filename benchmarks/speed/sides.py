"""The two sides under one interface: sentence-transformers' `CrossEncoder`, and ours.

Both read the same folder; scores are logits on both sides (sentence-transformers would add a sigmoid of its own).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

Pairs = Sequence[tuple[str, str]]


class Side(NamedTuple):
    """One way of scoring."""

    predict: Callable[[Pairs], np.ndarray]
    rank: Callable[[str, list[str]], object]
    network: nn.Module | None
    """None where torch does not run it."""
    scorer: Any = None
    """Ours, as the engine sees it."""


def peer_model(path: Path, max_length: int, device: str, dtype: str = "float32") -> Any:
    """sentence-transformers' model."""
    from sentence_transformers import CrossEncoder

    settings = {"dtype": getattr(torch, dtype)}
    return CrossEncoder(
        str(path), max_length=max_length, device=device, activation_fn=nn.Identity(), model_kwargs=settings
    )


def peer(path: Path, max_length: int, device: str, dtype: str = "float32", batch_size: int = 32) -> Side:
    """sentence-transformers' side, weights in `dtype`, that is without autocast."""
    model = peer_model(path, max_length, device, dtype)
    return Side(
        lambda pairs: model.predict(list(pairs), batch_size=batch_size, show_progress_bar=False),
        lambda query, texts: model.rank(query, texts, batch_size=batch_size, show_progress_bar=False),
        model,
    )


def ours(path: Path, max_length: int, device: str, precision: str = "auto", backend: str = "torch") -> Side:
    """Our side; each call loads it anew, so that it has not seen any text."""
    from rerank import Reranker

    settings = {} if backend == "torch" else {"backend": backend}
    given = None if backend == "onnx" else device
    model = Reranker.from_pretrained(path, device=given, precision=precision, max_length=max_length, **settings)
    scorer = model.policy.scorer
    return Side(model.predict, model.rank, scorer if backend == "torch" else None, scorer)


def synchronize(device: str) -> None:
    """Nothing; waits until the device has done what it was told."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


class Tokens:
    """Tokens that went through a network, padding included."""

    def __init__(self) -> None:
        self.with_graph = 0
        self.without_graph = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.with_graph + self.without_graph


@contextmanager
def counted(network: nn.Module | None) -> Iterator[Tokens]:
    """Counts what the largest embedding of `network`, that of words, is asked for within the block."""
    found = Tokens()
    tables = [m for m in network.modules() if isinstance(m, nn.Embedding)] if network is not None else []
    if not tables:
        yield found
        return

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled():
            found.with_graph += args[0].numel()
        else:
            found.without_graph += args[0].numel()

    handle = max(tables, key=lambda table: table.num_embeddings).register_forward_pre_hook(note)
    try:
        yield found
    finally:
        handle.remove()


def true_lengths(path: Path, pairs: Pairs, max_length: int) -> list[int]:
    """Tokens of each pair as the checkpoint's own tokenizer counts them, special tokens included."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(path))
    encoded = tokenizer([q for q, _ in pairs], [d for _, d in pairs], truncation=True, max_length=max_length)
    return [len(ids) for ids in encoded["input_ids"]]
