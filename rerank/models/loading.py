"""Policies to and from folders.

A saved cross-encoder is a sentence-transformers folder (`CrossEncoder(folder)` gives the same logits) plus
`rerank.json` with what sentence-transformers has no place for: the first-stage weights, the calibration, our settings;
and, once exported (`models.exporting`), `onnx/`, which the backend "onnx" reads instead of the weights.
A saved light scorer is `head.safetensors`, `rerank.json` and its encoder in `encoder/`. A saved language model is as
`models.language.model` writes it. safetensors and JSON only, never pickle.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from rerank.engine.precision import automatic_device
from rerank.errors import DataError, InputError, Mismatch, NotFound, nearest
from rerank.models.backbones import SETTINGS, backbone_path, checked_device, load_cross_encoder, load_encoder
from rerank.models.calibration import Calibration, fault
from rerank.models.card import CARD, own_card, write_card
from rerank.models.cross_encoder import CrossEncoderScorer
from rerank.models.encoder import SentenceEncoder, named_failures
from rerank.models.language.generative import AnyPolicy, GenerativePolicy, GenerativeScorer
from rerank.models.language.loading import LANGUAGE, load_language_scorer, load_on_vllm, save_language_scorer
from rerank.models.language.model import is_language_model
from rerank.models.language.vllm import VllmScorer
from rerank.models.language.vllm_writing import VllmWriter
from rerank.models.light import LightScorer
from rerank.models.lora import merged
from rerank.models.onnx import OnnxScorer
from rerank.models.policy import FirstStageWeights, ScorePolicy

logger = logging.getLogger("rerank.models")

FORMAT = 1
BACKENDS = ("torch", "onnx", "vllm")
VECTORS_KEPT = 1 << 28
"""Bytes of texts and vectors that a light model which was loaded to rank remembers: some 100,000 passages."""


def save_policy(policy: AnyPolicy, folder: Path) -> None:
    """Write a policy so that `load_policy` (and, for a cross-encoder, sentence-transformers) reads it back.

    Beside it stands its card, README.md; one that somebody wrote by hand is kept.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = "it is a file" if folder.is_file() else error.strerror or str(error)
        raise InputError(f"{folder} cannot hold a model: {problem}; give a folder, new or old") from error
    scorer, own = policy.scorer, own_card(folder)
    settings: dict[str, Any] = {"format": FORMAT, "kind": scorer.kind}
    if policy.first_stage is not None:
        settings["first_stage"] = {"weights": policy.first_stage.as_dict(), "active": policy.first_stage.active}
    if policy.calibration is not None:
        settings["calibration"] = policy.calibration.as_dict()
    if isinstance(scorer, CrossEncoderScorer | OnnxScorer):
        settings |= {"max_length": scorer.max_length, "windows": scorer.pairs.windows}
        _save_network(scorer, folder)
    elif isinstance(scorer, VllmScorer):
        settings |= scorer.copy_to(folder)
    elif isinstance(scorer, VllmWriter):
        raise InputError("a model that writes on vLLM is saved by loading it with backend = 'torch'")
    elif scorer.kind in LANGUAGE:
        settings |= save_language_scorer(scorer, folder)  # type: ignore[arg-type]
    else:
        assert isinstance(scorer, LightScorer)  # the kinds that exist; load_policy has the same
        settings |= {"hidden": scorer.hidden, "encoder": "encoder"}
        save_file({k: v.contiguous() for k, v in scorer.state_dict().items()}, folder / "head.safetensors")
        scorer.store.save(folder / "encoder")
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf8")
    if own is not None:
        (folder / CARD).write_bytes(own)  # where a whole folder was copied, its card came along
    base, source = _loaded_from(scorer)
    write_card(folder, base=base, source=source)


def _loaded_from(scorer: Any) -> tuple[str | None, str | None]:
    """(the folder or hub id that a scorer's weights began as, the one they were loaded from), where it is known."""
    if isinstance(scorer, OnnxScorer | VllmScorer):
        return (str(scorer.folder), None) if scorer.folder is not None else (None, None)
    if isinstance(scorer, CrossEncoderScorer):
        return _name_of(scorer.network), None
    if isinstance(scorer, LightScorer):
        encoder = scorer.store.encoder
        name = _name_of(getattr(encoder.model[0], "model", None)) if isinstance(encoder, SentenceEncoder) else None
        inside = name is not None and (Path(name).parent / SETTINGS).is_file()
        return (str(Path(name).parent), None) if inside and name is not None else (name, None)
    return _name_of(scorer.model), getattr(scorer.prompts.tokenizer, "name_or_path", None) or None


def _name_of(network: Any) -> str | None:
    """The folder or hub id that transformers loaded a network from."""
    return getattr(getattr(network, "config", None), "_name_or_path", None) or None


def _save_network(scorer: CrossEncoderScorer | OnnxScorer, folder: Path) -> None:
    if isinstance(scorer, OnnxScorer):
        scorer.copy_to(folder)
        return
    model = merged(scorer.model)
    model.max_seq_length = scorer.max_length
    model.save_pretrained(str(folder), create_model_card=False)


def load_policy(
    path: str,
    device: str | None = None,
    precision: str = "auto",
    max_length: int | None = None,
    backend: str = "torch",
    reading: Mapping[str, Any] | None = None,
) -> AnyPolicy:
    """A policy from a folder written by `save_policy`, or from any cross-encoder or language model of the hub or disk.

    `backend`: torch; onnx for a folder that was exported (`precision` is then float32 or int8, which has a file of its
    own; auto is float32); vllm for a language model on a GPU. Only torch can be trained. `reading`: settings of
    `models.language.reading.Reading` that are to be others than a language model's own; one that is no reranker yet is
    asked in one pass, in its chat's words.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend {backend!r} is not known{nearest(str(backend), BACKENDS)}")
    place = backbone_path(path)
    settings = _settings(Path(place) / SETTINGS)
    scorer: nn.Module
    # What was exported is a cross-encoder; of all else the configuration is asked.
    kind = settings.get("kind") or (None if backend == "onnx" else _kind_without_settings(place))
    if reading and kind not in LANGUAGE:
        raise InputError(
            f"{sorted(reading)} were given, which say how a language model reads lists, and {path} is none: leave "
            "them out"
        )
    if kind == "light":
        _check_fixed(path, "a light model: its encoder's own length counts", backend, max_length)
        scorer = _load_light(Path(place), settings, precision, device)
    elif kind in LANGUAGE:
        _check_fixed(path, "a language model: its window and document_tokens count", backend, max_length, "vllm")
        load_language = load_on_vllm if backend == "vllm" else load_language_scorer
        scorer = load_language(place, settings, precision, device, reading)
    else:
        if backend == "vllm":
            raise InputError(f"{path} is a cross-encoder; backend = 'vllm' runs language models")
        length = settings.get("max_length") if max_length is None else max_length
        windows = settings.get("windows", 1)
        load = _load_exported if backend == "onnx" else _load_torch
        scorer = load(path, length, precision, device, windows)
    policy = _policy_of(scorer, settings.get("first_stage"))
    if settings.get("calibration") is not None:
        if reading:
            logger.warning(
                "%s was calibrated as it reads lists by itself; its probabilities may be off with %s",
                path,
                dict(reading),
            )
        policy.calibration = Calibration.from_dict(settings["calibration"])
    # The weights of the first stage have to lie where the scorer's do.
    return policy.to(scorer.device).eval()


def _policy_of(scorer: Any, first_stage: dict[str, Any] | None) -> AnyPolicy:
    if isinstance(scorer, GenerativeScorer | VllmWriter):
        return GenerativePolicy(scorer, getattr(scorer, "budget", None))
    weights = FirstStageWeights(first_stage["weights"], first_stage["active"]) if first_stage else None
    return ScorePolicy(scorer, weights)


def _kind_without_settings(place: str) -> str | None:
    """What kind of model has no `rerank.json`: a language model, or one that sentence-transformers knows (None)."""
    known = Path(place) / "config_sentence_transformers.json"
    return "listwise" if not known.exists() and is_language_model(place) else None


def _check_fixed(path: str, what: str, backend: str, max_length: int | None, other: str | None = None) -> None:
    """Nothing, where neither a length nor a backend is asked for that only cross-encoders have."""
    if backend not in ("torch", other):
        able = f"'torch' or {other!r}" if other else "'torch' alone"
        raise InputError(f"{path} is {what.partition(':')[0]}, which runs with backend = {able}")
    if max_length is not None:
        raise InputError(f"max_length = {max_length!r} was given, but {path} is {what}; leave max_length out")


def _load_torch(
    path: str, max_length: int | None, precision: str, device: str | None, windows: int
) -> CrossEncoderScorer:
    scorer, fresh = load_cross_encoder(path, max_length, precision=precision, device=device, windows=windows)
    if fresh:
        raise InputError(
            f"{path} is an encoder without a ranking head: train it first (rerank train RECIPE.toml with "
            f'backbone = "{path}"), or give a cross-encoder'
        )
    return scorer


def _load_exported(path: str, max_length: int | None, precision: str, device: str | None, windows: int) -> OnnxScorer:
    folder = Path(backbone_path(path))
    if not folder.is_dir():
        raise NotFound(
            f"backend = 'onnx' reads an exported folder, and {path} is none here: "
            f"rerank export {path} --to onnx --out FOLDER"
        )
    place = checked_device(device) or torch.device("cpu")
    with named_failures(path):
        return OnnxScorer(folder, max_length, precision, place, windows)


def _settings(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        settings = json.loads(file.read_text(encoding="utf8"))
    except ValueError as error:
        raise DataError.at(file, None, f"this is not JSON ({error}): save the model anew") from error
    if not isinstance(settings, dict):
        raise DataError.at(file, None, f"expected a table of settings, not {type(settings).__name__}")
    written = settings.get("format", FORMAT)
    if _is_count(written) and written > FORMAT:
        raise Mismatch(f"{file} has format {written}; this version of rerank reads up to {FORMAT}: upgrade it")
    _check_settings(settings, file)
    return settings


def _check_settings(settings: dict[str, Any], file: Path) -> None:
    """Nothing; an error that names the first field with a value that is not allowed."""
    light = settings.get("kind") == "light"
    for field in ("format", "max_length", "windows", "hidden"):
        if (field in settings or (light and field == "hidden")) and not _is_count(settings.get(field)):
            raise _broken(file, field, settings.get(field), "a whole number of at least 1")
    encoder = settings.get("encoder")
    if light and not (isinstance(encoder, str) and encoder and (file.parent / encoder).is_dir()):
        raise _broken(file, "encoder", encoder, "the name of a folder beside this file")
    if settings.get("first_stage") is not None:
        _check_first_stage(settings["first_stage"], file)
    wrong = fault(settings["calibration"]) if settings.get("calibration") is not None else None
    if wrong is not None:
        raise _broken(file, *wrong)


def _check_first_stage(first_stage: Any, file: Path) -> None:
    if not isinstance(first_stage, dict) or not isinstance(first_stage.get("active"), bool):
        raise _broken(file, "first_stage", first_stage, "a table of weights and active (true or false)")
    weights = first_stage.get("weights")
    if not isinstance(weights, dict) or not all(_is_finite(weight) for weight in weights.values()):
        raise _broken(file, "first_stage.weights", weights, "a table of retriever names and finite numbers")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_finite(value: Any) -> bool:
    # The bound also keeps out NaN, and integers that no float holds.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e30


def _broken(file: Path, field: str, value: Any, allowed: str) -> DataError:
    found = f"is {value!r:.60}" if value is not None else "is missing"
    return DataError.at(file, None, f"field {field!r} {found}; allowed is {allowed}: save the model anew")


def _load_light(folder: Path, settings: dict[str, Any], precision: str, device: str | None) -> LightScorer:
    place = checked_device(device) or automatic_device()
    store = load_encoder(str(folder / settings["encoder"]), precision, device, VECTORS_KEPT)
    scorer = LightScorer(store, settings["hidden"])
    head = folder / "head.safetensors"
    try:
        scorer.load_state_dict(load_file(head))
    except OSError as error:
        raise NotFound(f"the model {str(folder)!r} could not be loaded: {head} cannot be read") from error
    except SafetensorError as error:
        raise InputError(f"the model {str(folder)!r} could not be loaded, {head} is damaged: {error}") from error
    except RuntimeError as error:
        raise InputError(
            f"the model {str(folder)!r} could not be loaded: {head} does not fit field 'hidden' = {scorer.hidden} of "
            f"{folder / SETTINGS} and the {scorer.dim} dimensions of {settings['encoder']}/: {error}"
        ) from error
    return scorer.to(place)
