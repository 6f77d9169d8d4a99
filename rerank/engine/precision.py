"""The fastest number format that the machine handles natively.

bfloat16 on GPUs that have it and on CPUs with avx512_bf16 or amx; float32 elsewhere (on other CPUs half precision is
emulated and several times slower). Weights stay float32; heads and losses are computed in float32.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from pathlib import Path

import torch

from rerank.errors import InputError, nearest

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def automatic_device() -> torch.device:
    """The first GPU, Apple's GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


@lru_cache
def _cpu_has_bfloat16() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return False
    flags = set(cpuinfo.read_text(encoding="utf8", errors="replace").split())
    return bool(flags & {"avx512_bf16", "amx_bf16"})


def compute_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The autocast type for `precision` ("auto", "float32", "bfloat16", "float16"); None means plain float32."""
    if precision == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return torch.bfloat16 if device.type == "cpu" and _cpu_has_bfloat16() else None
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r} is not known{nearest(str(precision), ['auto', *PRECISIONS])}")
    return PRECISIONS[precision]


def keep_few_kernels() -> None:
    """Nothing; bounds the kernels that oneDNN keeps, one for each shape: half a gigabyte of shapes that do not return.

    oneDNN reads this when it makes its first kernel, so it has to be said before; whoever has set it has the say.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Autocast to `dtype` on `device`; nothing for None."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
