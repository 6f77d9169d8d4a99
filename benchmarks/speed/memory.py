"""Peak memory of training one list a step, by the length of the list: each measurement in a process of its own.

The whole process counts: interpreter, libraries, weights, optimizer, activations. Read from VmHWM where Linux has it,
because getrusage's peak survives an exec: a child would begin with the size of the parent that started it.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from .material import Material, say, training_lists
from .plan import Plan

GIB = 2**30
LARGE = 14 * GIB
"""What sentence-transformers needs for 512 documents, and some room."""


def memory(
    given: Material, plan: Plan, device: str, script: list[str], full: bool
) -> tuple[dict[str, Any], dict[str, float]]:
    """(figures, ratios); `script` is the command that measures one case given as JSON."""
    cases = [("ours", "auto", n) for n in plan.memory]
    cases += [("ours", "float32", n) for n in plan.memory_float32]
    sizes = [*plan.peer_memory, *([512] if full and 512 not in plan.peer_memory else [])]
    cases += [("sentence-transformers", "float32", n) for n in sizes]
    figures: dict[str, Any] = {}
    for side, precision, n in cases:
        if side != "ours" and n >= 512 and device == "cpu" and _free() < LARGE:
            say(f"memory: sentence-transformers with {n} documents is left out: {_free() / GIB:.0f} GiB are free")
            continue
        case = json.dumps({"side": side, "precision": precision, "documents": n, "device": device})
        done = subprocess.run([*script, "--child", case], capture_output=True, text=True)
        name = f"{side} {precision}"
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            figures.setdefault(name, {})[str(n)] = {"failed": reason}
            say(f"memory: {name}, {n} documents failed: {reason}")
            continue
        figures.setdefault(name, {})[str(n)] = json.loads(done.stdout.splitlines()[-1])
        say(f"memory: {name}, {n} documents: {figures[name][str(n)]}")
    return figures, _ratios(figures)


def _ratios(figures: dict[str, Any]) -> dict[str, float]:
    """side -> peak of the longest list over that of 32 documents (or of the shortest list)."""
    ratios = {}
    for name, by_length in figures.items():
        peaks = {int(n): _peak(found) for n, found in by_length.items() if "failed" not in found}
        least = 32 if 32 in peaks else min(peaks, default=0)
        if peaks and max(peaks) > least:
            ratios[f"{name}: {max(peaks)} / {least} documents"] = peaks[max(peaks)] / peaks[least]
    return ratios


def _peak(found: dict[str, float]) -> float:
    return found.get("GPU bytes", found["bytes"])


def child(case: dict[str, Any], given: Material) -> dict[str, float]:
    """The peak of this process after two steps of one list."""
    import torch

    from .training import own_run, peer_run

    device = case["device"]
    lists = training_lists(given, 2, case["documents"], first=30_000)
    if case["side"] == "ours":
        own_run(given, lists, "lambda", 1, case["precision"], device)
    else:
        peer_run(given, lists, "lambda", 1, None, False, device)
    found = {"bytes": float(peak_of_process())}
    if device.startswith("cuda"):
        found["GPU bytes"] = float(torch.cuda.max_memory_allocated())
    return found


def peak_of_process() -> int:
    """Bytes that this process has held at most."""
    status = Path("/proc/self/status")
    match = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    if match:
        return int(match[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _free() -> int:
    meminfo = Path("/proc/meminfo")
    match = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text()) if meminfo.exists() else None
    return int(match[1]) * 1024 if match else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
