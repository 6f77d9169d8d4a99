"""Speed and memory beside sentence-transformers: `python benchmarks/speed.py [--quick] [--only PARTS]`.

One process measures both sides in turn, on the same checkpoint, texts, lists and lengths; ratios come first.

    predict   pairs per second and nDCG@10 on TREC DL 2020 (BM25's top 100) and SciFact (long documents); latency
    train     pairs per second of CrossEncoderTrainer (LambdaLoss, ListNetLoss) and of Clone (lambda_rank, list_net)
    memory    peak of a process that trains on one list a step, by the length of the list
    peak      share of the measured matrix-multiply peak; formula and floors are in the result

How each side is set. sentence-transformers: defaults (float32, batch_size 32, mini_batch_size unset), beside them its
fastest batch size of a short trial, and bfloat16 (weights for predict, bf16=True for training) where the machine
computes it natively. Ours: defaults, precision float32 and auto, on a CPU also ONNX in float32 and int8. Both: all
threads that --threads gives, OMP_WAIT_POLICY=PASSIVE, logits, no text seen before it is timed. sentence-transformers
cuts the longer of query and document, ours the document: with queries of a line that is the same.

Writes benchmarks/results/speed-cpu.json or speed-<gpu>.json (a --quick run only with --out) and prints the ratios as
one JSON object on the last line. The comparison of training needs `pip install 'sentence-transformers[train]'`.
A full run takes some twenty-five minutes on two cores, a quick one two; the first of each also makes its checkpoint
(five minutes, or one; kept in runs/, and the quick run takes the full one's where it is there). The nDCG of a quick
run's own checkpoint means little. Quick ratios flatter us a little: sentence-transformers sorts all pairs of a call by
length, and with few pairs it pads more. Nothing else should run meanwhile.
"""

from __future__ import annotations

import os

# Before torch is imported: threads that wait must not spin, on either side, and nobody asks the hub.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import json
import logging
import re
import sys
import time
import warnings
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from record import RESULTS, stamp
from speed.material import Material, material, say
from speed.memory import child, memory
from speed.peak import peak
from speed.plan import FULL, QUICK, TINY, Plan, on_gpu
from speed.predicting import export, predicting
from speed.training import training

from rerank.engine.precision import automatic_device, compute_dtype

PARTS = ("predict", "train", "memory", "peak")
PACKAGES = ("torch", "transformers", "sentence-transformers", "accelerate", "datasets", "onnxruntime", "tokenizers")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two minutes: is it in order?")
    parser.add_argument("--tiny", action="store_true", help="random tiny weights, a few texts: does the script work?")
    parser.add_argument("--full", action="store_true", help="also sentence-transformers with 512 documents (12 GiB)")
    parser.add_argument("--only", metavar="PARTS", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--losses", metavar="LOSS:ROUNDS,...", help="of training (default: lambda:2,listnet:1)")
    parser.add_argument("--checkpoint", type=Path, help="another cross-encoder with one output")
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU where there is one)")
    parser.add_argument("--threads", type=int, help="of the processor (default: all)")
    parser.add_argument("--out", type=Path, help="where the result is written")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    unknown = sorted(set(given.only.split(",")) - set(PARTS))
    if unknown:
        parser.error(f"--only knows {','.join(PARTS)}, not {','.join(unknown)}")
    if given.threads is not None and given.threads < 1:
        parser.error(f"--threads is at least 1, not {given.threads}")
    if given.checkpoint is not None and not given.checkpoint.is_dir():
        parser.error(f"--checkpoint {given.checkpoint} is no folder")
    if given.losses and not re.fullmatch(r"(lambda|listnet)(:[1-9]\d*)?(,(lambda|listnet)(:[1-9]\d*)?)*", given.losses):
        parser.error(f"--losses {given.losses!r} is not like lambda:2,listnet:1")
    return given


def measure(given: argparse.Namespace, plan: Plan, device: str, before: dict[str, Any]) -> dict[str, Any]:
    """The content of the result: what was there `before`, with the parts that are measured now."""
    found = material(plan, given.checkpoint, device)
    say(f"texts: {found.source['texts']}; checkpoint: {found.source['checkpoint']}")
    say(f"{device}, {torch.get_num_threads()} threads")
    content = {**before, **facts(device), "source": found.source, "quick": given.quick, "ratios": {}}
    kept = before.get("ratios", {})
    for part in PARTS:
        if part not in given.only.split(","):
            if part in kept:
                content["ratios"][part] = kept[part]
            continue
        start = time.perf_counter()
        figures, content["ratios"][part] = _part(part, given, plan, device, found, content)
        when = {key: value for key, value in stamp().items() if key != "hardware"}
        content[part] = {**when, "seconds": time.perf_counter() - start, **figures}
        say(f"{part}: {time.perf_counter() - start:.0f} s")
    return content


def _part(
    part: str, given: argparse.Namespace, plan: Plan, device: str, found: Material, content: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, float]]:
    if part == "predict":
        problem = export(found) if device == "cpu" else "exported files are measured on a CPU"
        figures, ratios = predicting(found, plan, device)
        return {"export": problem or "done", **figures}, ratios
    if part == "train":
        return training(found, plan, device)
    if part == "memory":
        return memory(found, plan, device, _again(given), given.full)
    return peak(found, content, device, rounds=3 if plan.tiny else 12)


def facts(device: str) -> dict[str, Any]:
    """When, on what and with what is measured."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    known = {
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "threads": torch.get_num_threads(),
        "auto precision": str(compute_dtype("auto", torch.device(device)) or torch.float32).removeprefix("torch."),
        "versions": versions,
    }
    return {**stamp(), **known}


def _again(given: argparse.Namespace) -> list[str]:
    """This command with the same material, for a child."""
    command = [sys.executable, str(Path(__file__)), "--threads", str(torch.get_num_threads())]
    command += [f"--{name}" for name in ("quick", "tiny") if getattr(given, name)]
    return command + (["--checkpoint", str(given.checkpoint)] if given.checkpoint else [])


def _place(given: argparse.Namespace, device: str) -> Path | None:
    """Where the result is written."""
    if given.out is not None or given.quick or given.tiny:
        return given.out
    name = torch.cuda.get_device_name() if device.startswith("cuda") else device
    return RESULTS / f"speed-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"


def _quiet() -> None:
    """Nothing; what both sides tell about missing heads and cut documents is known here."""
    from transformers.utils import logging as of_transformers

    of_transformers.set_verbosity_error()
    of_transformers.disable_progress_bar()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


def main() -> None:
    """Measure, write, print."""
    given = arguments()
    if given.threads:
        torch.set_num_threads(given.threads)
    _quiet()
    device = given.device or str(automatic_device())
    plan = TINY if given.tiny else QUICK if given.quick else FULL
    plan = plan if device == "cpu" else on_gpu(plan)
    if given.losses:
        named = (part.partition(":") for part in given.losses.split(","))
        plan = replace(plan, losses=tuple((loss, int(rounds or 1)) for loss, _, rounds in named))
    if given.child:
        case = json.loads(given.child)
        print(json.dumps(child(case, material(plan, given.checkpoint, case["device"]))))
        return
    place = _place(given, device)
    before = json.loads(place.read_text(encoding="utf8")) if place is not None and place.exists() else {}
    content = measure(given, plan, device, before)
    if place is not None:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(content, indent=1) + "\n", encoding="utf8")
        say(f"written: {place}")
    rounded = {part: {name: round(r, 4) for name, r in found.items()} for part, found in content["ratios"].items()}
    print(json.dumps(rounded))


if __name__ == "__main__":
    main()
