"""Listwise and generative rerankers to and from their folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch

from rerank.engine.precision import automatic_device, compute_dtype
from rerank.errors import DataError, Mismatch, NotFound
from rerank.models.backbones import SETTINGS, checked_device
from rerank.models.language.answering import saved_writing
from rerank.models.language.generative import GenerativeScorer
from rerank.models.language.listwise import ListwiseScorer
from rerank.models.language.model import (
    ADAPTER,
    fingerprint_of,
    is_adapted,
    load_language_model,
    load_tokenizer,
    save_language_model,
    take_adapter,
)
from rerank.models.language.reading import saved_reading
from rerank.models.language.vllm import VllmScorer
from rerank.models.language.vllm_writing import VllmWriter

LANGUAGE = ("listwise", "generative")
"""Kinds of rerankers that are causal language models."""
LanguageScorer: TypeAlias = ListwiseScorer | GenerativeScorer


def save_language_scorer(scorer: LanguageScorer, folder: Path) -> dict[str, Any]:
    """Its settings for `rerank.json`; writes the weights, or the adapters alone where it has some."""
    save_language_model(scorer.model, scorer.prompts.tokenizer, folder)
    settings: dict[str, Any] = {"reading": scorer.reading.as_dict()}
    if isinstance(scorer, GenerativeScorer):
        settings["writing"] = scorer.writing.as_dict()
    if is_adapted(scorer.model):
        base = Path(scorer.model.name_or_path)
        settings["base"] = str(base.resolve()) if base.is_dir() else scorer.model.name_or_path
        settings["base_fingerprint"] = fingerprint_of(scorer.model)
    return settings


def load_language_scorer(
    path: str, settings: Mapping[str, Any], precision: str, device: str | None, changes: Mapping[str, Any] | None = None
) -> LanguageScorer:
    """The scorer that `save_language_scorer` wrote; without settings, any language model as it is, in one pass.

    Its weights keep the type that they were saved in, but for float32, which is all in that. `changes` are settings of
    `Reading` that are to be others than the model's own.
    """
    place = checked_device(device) or automatic_device()
    dtype = compute_dtype(precision, place) or torch.float32
    if settings.get("base") is None and not (Path(path) / ADAPTER).is_dir():
        model, tokenizer = load_language_model(path, "auto" if dtype != torch.float32 else dtype, place)
    else:  # as it was when its adapters learned
        model, tokenizer = _with_base(path, settings, dtype, place)
    reading = saved_reading(settings, tokenizer, changes, Path(path) / SETTINGS)
    if settings.get("kind") == "generative":
        return GenerativeScorer(model, tokenizer, reading, precision, saved_writing(settings, Path(path) / SETTINGS))
    return ListwiseScorer(model, tokenizer, reading, precision)


def _with_base(path: str, settings: Mapping[str, Any], dtype: torch.dtype, place: torch.device) -> tuple[Any, Any]:
    """(model, tokenizer) of a folder of adapters: its base, when that is the one they learned beside, with them."""
    base, file = settings.get("base"), Path(path) / SETTINGS
    if not isinstance(base, str) or not base.strip():
        raise DataError.at(file, None, f"field 'base' is {base!r:.60}; allowed is the base model's folder or hub id")
    try:
        model, _ = load_language_model(base, dtype, place)
    except NotFound as error:
        raise NotFound(
            f"{path} holds adapters of the model {base!r}, which is not there: put it back, or write into field 'base' "
            f"of {file} where it is now ({error})"
        ) from error
    take_adapter(model, Path(path))
    known = settings.get("base_fingerprint")
    if known is not None and known != fingerprint_of(model):
        raise Mismatch(
            f"{path} holds adapters of {base}, and the model that is there now is another one: put the model back that "
            "they were trained on, or train anew"
        )
    return model, load_tokenizer(path)


def load_on_vllm(
    path: str, settings: Mapping[str, Any], precision: str, device: str | None, changes: Mapping[str, Any] | None = None
) -> VllmScorer | VllmWriter:
    """As `load_language_scorer`, run by vLLM, which takes whole GPUs for itself (extra `vllm`)."""
    kind = VllmWriter if settings.get("kind") == "generative" else VllmScorer
    return kind.from_folder(path, settings, precision, device, changes)
