"""How much of what the machine can multiply is used: the measured peak, and what the work needs.

    forward of a true token     2 * weights of the layers' linear maps  +  4 * length * hidden   a layer
    training                    3 * forward (and one forward more where the gradient cache runs the network twice)

"useful" counts what a plain dense network needs for the true tokens, however it was come by; "computed" what was really
multiplied: padding and the second forward are in it, and the last layer's projection and feed-forward (9 of its 12
hidden^2) only for first tokens where our engine leaves out the others. Embeddings, head, softmax and norms count 0.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from rerank.engine.precision import compute_dtype

from .material import Material, say
from .sides import ours, synchronize

FORMULA = (
    "forward FLOPs of a sequence of length L = layers * (2 * (4 H^2 + 2 H I) * L + 4 H L^2); training = 3 x forward, "
    "+ 1 x forward of every token that ran without a graph"
)
TOKENS = 4096


def peak(
    given: Material, measured: dict[str, Any], device: str, rounds: int
) -> tuple[dict[str, Any], dict[str, float]]:
    """(figures, ratios): the peak, and the shares of what `measured` holds of predict and train."""
    sizes = json.loads((Path(given.checkpoint) / "config.json").read_text(encoding="utf8"))
    names = ("hidden_size", "intermediate_size", "num_hidden_layers")
    if any(name not in sizes for name in names):
        return {"skipped": f"config.json of the checkpoint lacks one of {names}"}, {}
    hidden, inner, layers = (sizes[name] for name in names)
    say("peak: multiplying matrices")
    found = {name: products(hidden, inner, getattr(torch, name), device, rounds) for name in ("float32", "bfloat16")}
    top = {name: max(by_shape.values()) for name, by_shape in found.items()}
    auto = compute_dtype("auto", torch.device(device))
    of_side = {
        "ours float32": "float32",
        "ours auto": "bfloat16" if auto == torch.bfloat16 else "float32",
        "sentence-transformers float32": "float32",
        "sentence-transformers bfloat16": "bfloat16",
    }
    linear = 2 * layers * (4 * hidden * hidden + 2 * hidden * inner)
    pruned = 2 * (hidden * hidden + 2 * hidden * inner) if _prunes(given, device) else 0
    weights = sum(p.numel() for p in ours(given.checkpoint, 128, device).network.parameters())  # type: ignore[union-attr]
    shares: dict[str, Any] = {}
    for part, name, work in _works(measured):
        for side, figures in work["sides"].items():
            kind = next((k for s, k in of_side.items() if side.startswith(s)), None)
            if kind is None:
                continue
            skipped = pruned if side.startswith("ours") else 0
            cost = (linear, skipped, 4 * layers * hidden)
            shares[f"{part} {name}: {side}"] = _share(work, figures, part, cost, top[kind])
    ratios = {
        f"{name}, share of the {of_side[name.split(': ')[-1]]} peak, useful": share["useful share"]
        for name, share in shares.items()
        if name.split(": ")[-1] in ("ours float32", "ours auto")
    }
    figures = {
        "formula": FORMULA,
        "FLOPs a second": found,
        "peak": top,
        "weights": weights,
        "floor": {"bytes of weights, gradients and AdamW in float32": 16 * weights, "bytes of weights": 4 * weights},
        "shares": shares,
    }
    return figures, ratios


def products(hidden: int, inner: int, dtype: torch.dtype, device: str, rounds: int) -> dict[str, float]:
    """shape -> FLOPs a second of its product, the best of several rounds."""
    shapes = [(TOKENS, hidden, hidden), (TOKENS, hidden, inner), (TOKENS, inner, hidden), (2048, 2048, 2048)]
    if device != "cpu":
        shapes.append((8192, 8192, 8192))
    found = {}
    for n, k, m in shapes:
        a, b = torch.rand(n, k, device=device).to(dtype), torch.rand(k, m, device=device).to(dtype)
        times = []
        for _ in range(rounds + 1):
            start = time.perf_counter()
            for _ in range(4):
                torch.matmul(a, b)
            synchronize(device)
            times.append((time.perf_counter() - start) / 4)
        found[f"{n} x {k} x {m}"] = 2 * n * k * m / min(times[1:])
    return found


def _prunes(given: Material, device: str) -> bool:
    """Whether our engine runs the last layer's feed-forward for first tokens alone."""
    return getattr(ours(given.checkpoint, 128, device).scorer, "gathering", None) == "last layer"


def _works(measured: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """(part, name, figures) of everything that was timed."""
    return [
        (part, name, work)
        for part in ("predict", "train")
        for name, work in measured.get(part, {}).items()
        if isinstance(work, dict) and "sides" in work
    ]


def _share(
    work: dict[str, Any], figures: dict[str, Any], part: str, cost: tuple[int, int, int], top: float
) -> dict[str, float]:
    """What is useful and what is computed, as shares of the peak, and the seconds that the peak would need."""
    linear, skipped, attention = cost
    pairs, tokens = work["pairs"], work["true tokens"]
    seconds = sum(figures["seconds of each round"])
    quadratic = attention * work["mean squared length"] * pairs
    times = 3 if part == "train" else 1
    useful = times * (linear * tokens + quadratic)
    if part == "train":
        passes = (3 * figures["tokens with graph"] + figures["tokens without graph"]) / tokens
    else:
        passes = figures["computed tokens a true token"] or 1.0
    # First tokens go through the skipped part; attention of padded tokens is taken as that of true ones.
    computed = passes * (linear * tokens - skipped * (tokens - pairs) + quadratic)
    return {
        "useful share": useful / seconds / top,
        "computed share": computed / seconds / top,
        "useful FLOPs": useful,
        "floor seconds": useful / top,
        "seconds": seconds,
    }
