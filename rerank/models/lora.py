"""Low-rank adapters (LoRA; Hu et al. 2022): the transformer stays as it is, and small matrices beside it learn.

    y = W x + (alpha / rank) B A x          W frozen, A [rank, in] random, B [out, rank] zero at first; alpha = 2 rank

Every linear layer of attention and feed-forward gets one. The head learns whole, with the pooler that leads to it. The
modules keep their places (peft's injection, no wrapper), so all that runs the network runs it as before.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from typing import Any

from torch import nn

from rerank.errors import InputError, need
from rerank.models.cross_encoder import CrossEncoderScorer

logger = logging.getLogger("rerank.models")

EXTRA = "lora"


def add_lora(scorer: CrossEncoderScorer, rank: int) -> CrossEncoderScorer:
    """The scorer, changed: only adapters of `rank` in its transformer, and its head, still learn."""
    peft = need("peft", EXTRA)
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise InputError(f"lora must be a rank of at least 1, not {rank!r}")
    network = scorer.network
    inner = [name for name, module in network.named_modules() if isinstance(module, nn.Linear) and _in_layer(name)]
    if not inner:
        raise InputError(
            f"lora: {type(network).__name__} has no linear layers in its transformer to adapt; set lora = 0"
        )
    outer = [p for name, p in network.named_parameters() if _is_head(network, name)]
    settings = peft.LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=inner, bias="none")
    peft.inject_adapter_in_model(settings, network)
    for parameter in outer:
        parameter.requires_grad_(True)
    learns = [p.numel() for p in scorer.parameters() if p.requires_grad]
    everything = sum(p.numel() for p in scorer.parameters())
    logger.info("lora of rank %d: %d of %d parameters learn", rank, sum(learns), everything)
    return scorer


def merged(model: Any) -> Any:
    """The model itself where it has no adapters; else a copy with them added into the weights they stand beside."""
    if next(_adapters(model), None) is None:
        return model
    model = copy.deepcopy(model)
    for name, adapter in list(_adapters(model)):
        adapter.merge()
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, adapter.get_base_layer())
    for module in model.modules():
        if hasattr(module, "peft_config"):
            del module.peft_config
    return model


def _adapters(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """(name, module) of each linear layer that has an adapter."""
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "get_base_layer"):
            yield name, module


def _in_layer(name: str) -> bool:
    """Whether a module lies within one of the transformer's layers, which are numbered."""
    return any(part.isdecimal() for part in name.split("."))


def _is_head(network: nn.Module, name: str) -> bool:
    """Whether a parameter of a classifier lies outside the encoder, or in the pooler that hands over to the head."""
    base = getattr(network, "base_model_prefix", "")
    encoder = getattr(network, base, None)
    if encoder is None or encoder is network:  # an encoder alone: the head is another module of ours
        return False
    return not name.startswith(f"{base}.") or name.startswith(f"{base}.pooler.")
