"""Random numbers by name: every draw comes from a generator keyed by what it is for, never from a global stream.

    generator(seed, "clone", epoch, query_id)

So a run that is interrupted and resumed draws exactly what it would have drawn, in whatever order things happen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def key_of(*parts: str | int) -> int:
    """A 63-bit number that depends on all parts, their types and their order."""
    digest = hashlib.sha256("\x1f".join(f"{type(part).__name__}:{part}" for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*parts: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for the draw named by `parts`."""
    return torch.Generator(device=device).manual_seed(key_of(*parts))


@contextmanager
def dropout_key(key: int, device: torch.device) -> Iterator[None]:
    """Within the block, dropout on `device` is a function of `key`; the global stream outside is left as it was."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(key)
        yield


@contextmanager
def seeded(*parts: str | int) -> Iterator[None]:
    """Within the block, the global stream is a function of `parts` (for libraries that draw from it: fresh weights)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key_of(*parts))
        yield
