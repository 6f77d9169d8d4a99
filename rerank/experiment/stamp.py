"""With what and on what a result was made: versions, hardware, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("rerank", "torch", "transformers", "sentence-transformers", "faiss-cpu", "bm25s", "pytrec-eval-terrier")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on, the system, the number of cores."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    found["cores"] = str(os.cpu_count())
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, str]:
    """Processor, memory and accelerators, as far as the system tells."""
    import torch

    found = {"machine": platform.machine(), "cores": str(os.cpu_count())}
    for file, key, name in (
        ("cpuinfo", "model name", "processor"),
        ("cpuinfo", "flags", "bfloat16"),
        ("meminfo", "MemTotal", "memory"),
    ):
        path = Path("/proc") / file
        lines = path.read_text(encoding="utf8").splitlines() if path.exists() else []
        value = next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
        if name == "bfloat16" and value:
            value = "native" if {"avx512_bf16", "amx_bf16"} & set(value.split()) else "none"
        found |= {name: value} if value else {}
    if torch.cuda.is_available():
        found["accelerators"] = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return found


def commit() -> str | None:
    """The commit of the checkout that this package runs from, with `+` where files differ; None outside of one."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        head, changed = (
            subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True, check=True).stdout.strip()
            for args in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")
