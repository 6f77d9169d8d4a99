"""Causal language models by name, to and from folders: what listwise and generative rerankers have in common.

A saved model is a transformers folder (config, safetensors, tokenizer) plus our `rerank.json`. Where adapters learned
(LoRA), the folder holds `adapter/`, in peft's own format, and the tokenizer; the base model is named in `rerank.json`.
"""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rerank.errors import InputError, Mismatch, NotFound, need
from rerank.models.completeness import check_tokenizer_files, check_vocabulary, check_weights
from rerank.models.encoder import named_failures

logger = logging.getLogger("rerank.models")

ADAPTER = "adapter"
SAMPLED = 256
"""Values of each tensor that a fingerprint looks at."""
PEFT = "base_model.model."
"""What peft's files put before the names of a model's modules."""


def load_language_model(path: str, dtype: torch.dtype | str, device: torch.device) -> tuple[Any, Any]:
    """(model, tokenizer) of a causal language model, its weights of type `dtype` ("auto": the type they are saved in).

    Weights that are missing are an error, pickles are refused.
    """
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(path)
    with named_failures(path):
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, use_safetensors=True)
    check_weights(Path(path), model)
    check_vocabulary(tokenizer, model)
    return model.to(device), tokenizer


def load_tokenizer(path: str) -> Any:
    """The tokenizer of a folder or hub id."""
    from transformers import AutoTokenizer

    check_tokenizer_files(Path(path))
    with named_failures(path):
        return AutoTokenizer.from_pretrained(path)


def is_language_model(path: str) -> bool:
    """Whether a folder or hub id holds a causal language model."""
    from transformers import AutoConfig

    folder = Path(path)
    if (folder / ADAPTER).is_dir() and not (folder / "config.json").exists():
        raise InputError(
            f"{path} holds adapters without the model that they stand beside: train on that model (`base` in its "
            "rerank.json), or rank with this folder as it is"
        )
    with named_failures(path):
        architectures = getattr(AutoConfig.from_pretrained(path), "architectures", None) or [""]
    return architectures[0].endswith(("ForCausalLM", "LMHeadModel"))


def context_of(config: Any) -> int | None:
    """Tokens that a model reads at most, where its configuration says so."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def adapt(model: Any, rank: int) -> None:
    """Nothing; only adapters of `rank` beside every linear layer of the transformer learn from here on."""
    peft = need("peft", "lora")
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise InputError(f"lora must be a rank of at least 1, not {rank!r}")
    head = model.get_output_embeddings()
    # By the last part of their names (q_proj, up_proj, ...): what servers of adapters understand.
    inner = {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    if not inner:
        raise InputError(f"lora: {type(model).__name__} has no linear layers to adapt; set lora = 0")
    settings = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=sorted(inner), task_type="CAUSAL_LM")
    peft.inject_adapter_in_model(settings, model)
    _ready(model)


def _ready(model: Any) -> None:
    """Nothing; adapters in float32 (a small step is lost in 16 bits), and out of the way of what is frozen."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    frozen = sum(not p.requires_grad for p in model.parameters())
    logger.info("lora: %d of %d tensors are frozen", frozen, sum(1 for _ in model.parameters()))


def fingerprint_of(model: Any) -> str:
    """What tells the base of an adapted model apart: a sha256 of names, shapes and some values of each tensor.

    Values are taken as bfloat16, so that it does not matter in which type the model was loaded.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            continue
        flat = parameter.detach().reshape(-1)
        some = flat[:: max(1, len(flat) // SAMPLED)].to(torch.bfloat16).contiguous().cpu()
        digest.update(f"{name} {tuple(parameter.shape)} ".encode() + some.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def is_adapted(model: Any) -> bool:
    """Whether adapters learn beside the model's own weights."""
    return hasattr(model, "peft_config")


def save_language_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Nothing; writes the model, or its adapters alone where it has some, with the tokenizer."""
    tokenizer.save_pretrained(str(folder))
    if not is_adapted(model):
        model.save_pretrained(str(folder))
        return
    peft = need("peft", "lora")
    (folder / ADAPTER).mkdir(exist_ok=True)
    tensors = {PEFT + k: v.detach().cpu().contiguous() for k, v in peft.get_peft_model_state_dict(model).items()}
    save_file(tensors, folder / ADAPTER / "adapter_model.safetensors")
    settings = copy.copy(next(iter(model.peft_config.values())))
    settings.inference_mode = True
    settings.save_pretrained(str(folder / ADAPTER))


def take_adapter(model: Any, folder: Path) -> None:
    """Nothing; puts the adapters that `save_language_model` wrote into their base model."""
    peft = need("peft", "lora")
    file = folder / ADAPTER / "adapter_model.safetensors"
    if not file.is_file():
        raise NotFound(f"{file} is missing: the adapters are not all there; save the model anew")
    settings = peft.LoraConfig.from_pretrained(str(folder / ADAPTER))
    settings.inference_mode = False
    peft.inject_adapter_in_model(settings, model)
    with named_failures(str(folder)):
        tensors = {name.removeprefix(PEFT): values for name, values in load_file(file).items()}
    found = peft.set_peft_model_state_dict(model, tensors)
    lost = [name for name in found.missing_keys if "lora_" in name]
    if lost or found.unexpected_keys:
        raise Mismatch(
            f"{file} does not fit its base model: {len(lost)} adapters are missing, {len(found.unexpected_keys)} are "
            "unknown; was it trained on another model?"
        )
    _ready(model)


class Lean(nn.Module):
    """A module whose copies share, and whose saved states leave out, the base of an adapted model, which never changes.

    Both would otherwise hold it again and again (the best weights so far, each arm of a run, the anchor's reference).
    """

    model: Any
    """The causal language model; the only thing here that has weights."""

    def __init__(self) -> None:
        super().__init__()
        self._base: frozenset[str] = frozenset()
        self.register_state_dict_post_hook(_without_base)
        self.register_load_state_dict_post_hook(_forgive_base)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def body(self) -> list[nn.Parameter]:
        """All parameters: what ranks is what was pretrained."""
        return list(self.model.parameters())

    def settle(self) -> None:
        """Nothing; what does not learn now is the base."""
        self._base = frozenset(name for name, p in self.named_parameters() if not p.requires_grad)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        for name, parameter in self.named_parameters():
            if name in self._base:
                memo[id(parameter)] = parameter
        made = self.__class__.__new__(self.__class__)
        memo[id(self)] = made
        made.__dict__ = copy.deepcopy(self.__dict__, memo)
        return made


def _without_base(module: Any, state: dict[str, Any], prefix: str, metadata: Mapping[str, Any]) -> None:
    for name in module._base:
        state.pop(prefix + name, None)


def _forgive_base(module: Any, incompatible: Any) -> None:
    # The names come with the prefix of whatever module is being loaded.
    missing = incompatible.missing_keys
    missing[:] = [key for key in missing if not any(key == n or key.endswith(f".{n}") for n in module._base)]
