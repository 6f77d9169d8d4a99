"""Checkpoints that survive a kill at any moment.

A checkpoint is a folder written under a temporary name, each file fsynced, `manifest.json` (sha256 of every file) last,
then renamed. The newest valid one is found by verifying manifests backwards: a torn one is passed over, aloud.
Tensors are safetensors, everything else JSON.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rerank.digests import sha256_of
from rerank.errors import Mismatch, TrainingError
from rerank.training.sharding import as_divided, whole

logger = logging.getLogger("rerank.training")

MANIFEST = "manifest.json"
FORMAT = 1


class Checkpoint(NamedTuple):
    """Named groups of tensors, and the state that is not tensors."""

    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]


def save_checkpoint(root: Path, step: int, checkpoint: Checkpoint) -> Path:
    """Write `root/step-000123`; older checkpoints are removed once the new one is in place."""
    root.mkdir(parents=True, exist_ok=True)
    target = root / f"step-{step:06d}"
    draft = root / f".tmp-{uuid.uuid4().hex}"
    try:
        draft.mkdir()
        for name, group in checkpoint.tensors.items():
            save_file({k: v.detach().contiguous().cpu() for k, v in group.items()}, draft / f"{name}.safetensors")
        (draft / "state.json").write_text(json.dumps(checkpoint.state), encoding="utf8")
        files = {path.name: sha256_of(path) for path in sorted(draft.iterdir())}
        for name in files:
            _fsync(draft / name)
        (draft / MANIFEST).write_text(json.dumps({"format": FORMAT, "step": step, "files": files}), encoding="utf8")
        _fsync(draft / MANIFEST)
        if target.exists():
            shutil.rmtree(target)
        os.replace(draft, target)
        _fsync(root)
    except (OSError, SafetensorError) as error:  # safetensors has its own error for a full disk
        shutil.rmtree(draft, ignore_errors=True)
        raise TrainingError(
            f"the checkpoint of step {step} could not be written to {root}: {error}; earlier ones are intact. "
            "Make room there and run again with --resume"
        ) from error
    for old in _candidates(root):
        if old != target:
            shutil.rmtree(old, ignore_errors=True)
    return target


def latest_checkpoint(root: Path) -> Checkpoint | None:
    """The newest checkpoint under `root` whose files are whole; None when there is none."""
    for folder in sorted(_candidates(root), reverse=True):
        problem = _problem(folder)
        if problem is None:
            tensors = {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
            return Checkpoint(tensors, json.loads((folder / "state.json").read_text(encoding="utf8")))
        logger.warning("checkpoint %s is passed over: %s", folder, problem)
    return None


def remove_checkpoints(root: Path) -> None:
    """Delete all checkpoints under `root`."""
    shutil.rmtree(root, ignore_errors=True)


def _candidates(root: Path) -> list[Path]:
    return [p for p in root.glob("step-*") if p.is_dir()] if root.is_dir() else []


def _problem(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder; None if nothing is."""
    manifest = folder / MANIFEST
    if not manifest.exists():
        return "it has no manifest"
    try:
        content = json.loads(manifest.read_text(encoding="utf8"))
        if content["format"] > FORMAT:
            raise Mismatch(f"{folder} was written by a newer rerank (format {content['format']}); upgrade to resume")
        files = content["files"]
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, Mismatch):
            raise
        return f"its manifest cannot be read ({error})"
    for name, digest in files.items():
        if not (folder / name).exists():
            return f"{name} is missing"
        if sha256_of(folder / name) != digest:
            return f"{name} is damaged"
    return None


def _fsync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as named tensors `index/name`; what is divided among processes is put together."""
    state = optimizer.state_dict()["state"]
    return {f"{i}/{name}": whole(torch.as_tensor(v)) for i, entries in state.items() for name, v in entries.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors made by `optimizer_tensors` back, divided as the parameters are."""
    owners = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split("/", 1)
        owner = owners[int(index)]
        state.setdefault(int(index), {})[name] = as_divided(value, owner) if value.shape == owner.shape else value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
