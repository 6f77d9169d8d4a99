"""What tells one model from another: a digest of all that decides what it computes.

That is its own files, the base that adapters stand beside, and the encoder whose scores it reads. Two folders of one
digest rank alike; a file that decides nothing (a card, an export that is not asked for) leaves the digest as it is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rerank.digests import digest_of, sha256_of
from rerank.errors import DataError
from rerank.models.backbones import SETTINGS, backbone_path
from rerank.models.encoder import named_failures

RETRIEVAL = "retrieval.json"
"""In a model folder: the first stage that the model was trained with."""
WEIGHTS = (".json", ".safetensors", ".onnx", ".data")
"""Endings of files that hold settings, tokenizers and weights. Pickles are never read, code (.py) is never run."""
VOCABULARIES = (".txt", ".model", ".spm", ".tiktoken", ".vocab", ".codes")
TEMPLATES = (".jinja",)
"""Endings of what lays out a prompt."""
MODEL_FILES = (*WEIGHTS, *VOCABULARIES, *TEMPLATES)
EXPORTED = "onnx"
"""The folder of exported weights, inside a model's own."""


def model_digest(model: str, backend: str = "torch") -> str:
    """What tells a model apart: the sha256 of its files in a folder, the commit of a model of the hub."""
    folder = Path(backbone_path(model))
    if folder.is_dir():
        files = sorted(path for path in folder.rglob("*") if path.suffix in MODEL_FILES and path.is_file())
        if backend != "onnx":  # an export that comes later leaves the model what it is
            files = [path for path in files if EXPORTED not in path.relative_to(folder).parts]
        own = [text for path in files for text in (path.relative_to(folder).as_posix(), sha256_of(path))]
        others = [place for place in (_base_of(folder), _encoder_of(folder)) if place]
        return digest_of([*own, *(model_digest(place) for place in others)])
    from huggingface_hub import hf_hub_download

    with named_failures(model):
        return Path(hf_hub_download(model, "config.json")).parent.name


def _base_of(folder: Path) -> str | None:
    """The model beside which the adapters of `folder` stand, if it holds adapters."""
    base = _table(folder / SETTINGS).get("base")
    return base if isinstance(base, str) and base.strip() else None


def _encoder_of(folder: Path) -> str | None:
    """The encoder elsewhere whose scores the model of `folder` reads, if it reads such."""
    first_stage = _table(folder / SETTINGS).get("first_stage")
    if not isinstance(first_stage, dict) or not first_stage.get("active"):
        return None
    if "dense" not in (first_stage.get("weights") or ()):
        return None
    encoder = _table(folder / RETRIEVAL).get("encoder")  # where the file is not there, ranking says so
    if not isinstance(encoder, str) or not encoder.strip():
        return None
    place = Path(backbone_path(encoder))
    inside = place.is_dir() and place.resolve().is_relative_to(folder.resolve())
    return None if inside else encoder  # one inside is among the model's own files


def _table(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf8")) if file.is_file() else {}
    except ValueError as error:
        raise DataError.at(file, None, f"this is not JSON ({error}): save the model anew") from error
    return content if isinstance(content, dict) else {}
