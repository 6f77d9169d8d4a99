"""A trained cross-encoder as ONNX, float and int8, for `backend = "onnx"`.

    inputs     input_ids, attention_mask, token_type_ids (where the model takes them), int64 [batch, length]
    output     logits, float32 [batch, 1], without activation
               last_hidden_state, float32 [batch, length, width], where modules follow the transformer

sentence-transformers runs an exported transformer and then its own modules: of a model with such modules (pooling, a
linear layer) it reads the second output, of any other one the first. So both backends run the same file. Where modules
look at the first token alone, the second output has no other.

The network is written as onnxruntime runs it best on a CPU: attention is that runtime's own kernel (an attention
function of ours, registered with transformers, stands for it), the rest plain operators that it fuses by itself. Where
the head reads the first token alone, the last layer is computed for that token alone. Both are kept only where the
numbers stay the same, and what is written is run beside torch before it is handed over.
"""

from __future__ import annotations

import copy
import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rerank.errors import InputError, Mismatch, need
from rerank.models.backbones import backbone_path
from rerank.models.cross_encoder import CrossEncoderScorer
from rerank.models.int8 import LARGEST, check_int8, write_int8
from rerank.models.loading import load_policy, save_policy
from rerank.models.onnx import (
    EXTRA,
    FILES,
    LOGITS,
    NUMBERS,
    POSSIBLE,
    WEIGHTS,
    fingerprint_of_weights,
    open_session,
    run_session,
)
from rerank.models.packing import last_layer
from rerank.models.pairs import PairItem, PairTokenizer

logger = logging.getLogger("rerank.models")

IN_COMPANY = 0.5
"""How far a logit may be from that of the same pair in a larger batch; int8 activations are scaled by batch."""
HIDDEN = "last_hidden_state"
"""What optimum calls a transformer's own output."""
ATTENTION = "rerank_onnx"
FIRST = "_rerank_first_token_alone"
"""Marks the attention of which only the first token's result is read."""
OPSET = 20
CLOSE = 1e-4
"""How far logits may be from torch's, beside logits of size one."""


def export_onnx(model: str, out: Path | None = None, int8: bool = False) -> Path:
    """The folder (`out`, or the model's own) that now holds `onnx/model.onnx` and, for `int8`, `onnx/model_int8.onnx`.

    `model` is a folder or a hub's cross-encoder; with `out` it is written there first. A file is only left there if
    its logits are those of torch.
    """
    for module in ("onnx", "onnxscript", "onnxruntime"):
        need(module, EXTRA)
    folder = _folder(model, out)
    scorer = load_policy(str(folder), device="cpu", precision="float32").scorer
    assert isinstance(scorer, CrossEncoderScorer)  # `_folder` refuses the other kind
    known = {WEIGHTS: fingerprint_of_weights(folder), POSSIBLE: str(scorer.model.max_seq_length or "unknown")}
    items = _probes(scorer.pairs)
    with torch.no_grad():
        wanted = scorer.logits(items).numpy()
    with TemporaryDirectory(dir=folder, prefix="onnx-draft-") as name:
        draft = Path(name)
        first = _write_float(scorer, items, wanted, draft / FILES["float32"].name, {**known, NUMBERS: "float32"})
        if int8:
            with _quiet():
                write_int8(draft / FILES["float32"].name, draft / FILES["int8"].name, {**known, NUMBERS: "int8"}, first)
            check_int8(_logits(draft / FILES["int8"].name, scorer.pairs, items), wanted)
        place = folder / FILES["float32"].parent
        place.mkdir(exist_ok=True)
        for file in sorted(draft.iterdir()):
            shutil.move(file, place / file.name)
    return folder


def _folder(model: str, out: Path | None) -> Path:
    """The folder to write to; a copy of the model that will load with either backend."""
    place = Path(backbone_path(model))
    same = out is None or out.resolve() == place.resolve()
    if same and not place.is_dir():
        raise InputError(f"{model} is no folder here: give a folder to export it to (--out FOLDER, out=...)")
    policy = load_policy(model, device="cpu", precision="float32")
    if not isinstance(policy.scorer, CrossEncoderScorer):
        what = {"light": "light model, whose head works on the vectors of an encoder"}
        kind = what.get(str(policy.scorer.kind), f"{policy.scorer.kind} language model")
        raise InputError(f"{model} is a {kind}: there is no cross-encoder to export; give one")
    if same:
        return place
    assert out is not None
    save_policy(policy, out)
    return out


def _probes(pairs: PairTokenizer) -> list[PairItem]:
    """Pairs of any length up to the longest that is read."""
    plain = pairs.plain_ids()
    room = pairs.max_length - pairs.n_special
    rows = []
    for k, share in enumerate((0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)):
        n = max(2, int(share * room))
        row = np.resize(np.roll(plain, -997 * k), n)
        rows.append(PairItem(row[: n // 4 + 1].tobytes(), (row[n // 4 + 1 :].tobytes(),), pairs.n_special))
    return rows


class _Graph(nn.Module):
    """The network as a function from the inputs, by place, to the outputs, of which the logits are the first."""

    def __init__(self, model: Any, inputs: Sequence[str]) -> None:
        super().__init__()
        self.model, self.inputs = model, tuple(inputs)
        self.outputs = (LOGITS,) if len(model) == 1 else (LOGITS, HIDDEN)

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        found = self.model(dict(zip(self.inputs, values, strict=True)))
        return tuple(found[name].float() for name in ("scores", "token_embeddings")[: len(self.outputs)])


class _FirstToken(nn.Module):
    """A linear layer of whose output only the first token's is read."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, hidden: Tensor) -> Tensor:
        return self.linear(hidden[:, :1]).expand(-1, hidden.shape[1], -1)


def _write_float(
    scorer: CrossEncoderScorer, items: Sequence[PairItem], wanted: np.ndarray, file: Path, known: dict[str, str]
) -> bool:
    """Write the fastest form whose logits are `wanted`; whether its last layer is for first tokens alone."""
    features = scorer.pairs.padded(items)
    problem = "it gives other logits than torch"
    for attention, first in ((True, True), (True, False), (False, False)):
        try:
            graph = _prepared(scorer, tuple(features), attention, first)
            with _quiet(), torch.no_grad():
                if not _close(graph(*features.values())[0].numpy(), wanted):
                    continue
                _export(graph, features, file, known)
            found = _logits(file, scorer.pairs, items)
        except Exception as error:  # any part of two exporters and a runtime may refuse a network, each in its own way
            problem = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
            logger.info("attention=%s, first=%s cannot be exported: %s", attention, first, problem)
            continue
        if _close(found, wanted):
            return first
        problem = f"logits differ from torch's by up to {np.abs(found - wanted).max():.2g}"
    raise Mismatch(f"{type(scorer.network).__name__} cannot be exported to ONNX ({problem}); use backend = 'torch'")


def _prepared(scorer: CrossEncoderScorer, inputs: Sequence[str], attention: bool, first: bool) -> _Graph:
    """A copy of the network, with our `attention`, and with the last layer for the `first` token alone."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    model = copy.deepcopy(scorer.model)
    graph, network = _Graph(model, inputs).eval(), model[0].model
    if not attention:
        network.set_attn_implementation("eager")
        return graph
    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, _mask)
    network.set_attn_implementation(ATTENTION)
    if first:
        layer = last_layer(network)
        if layer is None or not hasattr(layer.attention, "self"):
            raise NotImplementedError("layers unlike BERT's")
        own = layer.attention.self
        setattr(own, FIRST, True)
        own.query = _FirstToken(own.query)
        layer.attention.output.register_forward_pre_hook(lambda _, args: tuple(hidden[:, :1] for hidden in args))
    return graph


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **settings: Any
) -> tuple[Tensor, None]:
    """Attention [batch, length, heads, dim]; `mask` [batch, length] or as the scores, 0 or False where unseen."""
    length = query.shape[2]
    if getattr(module, FIRST, False):
        query = query[:, :, :1]
    if settings.get("position_bias") is not None or query.shape[1] != key.shape[1]:
        raise NotImplementedError("position biases, grouped heads")
    scale = settings.get("scaling") or query.shape[-1] ** -0.5
    if torch.compiler.is_exporting():
        found = _kernel(query, key, value, mask, scale)
    else:
        seen = mask[:, None, None, :] if mask.ndim == 2 else mask
        found = F.scaled_dot_product_attention(query, key, value, seen.bool(), scale=scale).transpose(1, 2)
    return found.expand(-1, length, -1, -1) if found.shape[1] == 1 else found, None


def _kernel(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """The node `MultiHeadAttention` of onnxruntime, [batch, length, heads, dim]."""
    import torch.onnx.ops  # since torch 2.8; with an older one the plain form is written

    heads, dim = query.shape[1], query.shape[3]
    rows = [x.transpose(1, 2).flatten(2) for x in (query, key, value)]
    seen = bias = None
    if mask.ndim == 2:
        seen = mask.to(torch.int32)
    else:
        bias = torch.zeros(mask.shape).masked_fill(~mask.bool(), torch.finfo(torch.float32).min)
    found = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        (*rows, None, seen, bias),
        attrs={"num_heads": heads, "scale": float(scale)},
        dtype=query.dtype,
        shape=rows[0].shape,
        version=1,
    )
    return found.unflatten(2, (heads, dim))


def _mask(*args: Any, **settings: Any) -> Any:
    """The mask of padding as it is where nothing else is hidden; else the whole one, [batch, 1, length, length]."""
    from transformers.masking_utils import bidirectional_mask_function, sdpa_mask

    padding = settings.get("attention_mask")
    if settings.get("mask_function") is bidirectional_mask_function and padding is not None and padding.ndim == 2:
        return padding
    whole = {"allow_is_bidirectional_skip": False, "allow_is_causal_skip": False}
    return sdpa_mask(*args, **{**settings, **whole})


def _export(graph: _Graph, features: dict[str, Tensor], file: Path, known: dict[str, str]) -> None:
    """Write the graph with both axes open, without what the exporter notes about this machine."""
    some = tuple(values[-3:, : max(8, values.shape[1] // 2)] for values in features.values())
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    program = torch.onnx.export(
        graph,
        some,
        dynamo=True,
        input_names=list(features),
        output_names=list(graph.outputs),
        dynamic_shapes=(tuple(dict(axes) for _ in features),),
        opset_version=OPSET,
        verbose=False,
    )
    assert program is not None  # it is None for the older exporter alone
    program.model.metadata_props.update(known)
    for node in program.model.graph.all_nodes():
        node.doc_string = None
        node.metadata_props.clear()  # the lines of source, with their paths
    size = sum(p.numel() * p.element_size() for p in graph.parameters())
    program.save(file, external_data=size > LARGEST)


def _logits(file: Path, pairs: PairTokenizer, items: Sequence[PairItem]) -> np.ndarray:
    """Logits [n] of an exported file: all at once, then the short ones by themselves, one alone; else NaN."""
    session = open_session(file)
    found = run_session(session, pairs.padded(items))
    for some in (slice(0, 3), slice(1, 2)):
        if not _close(run_session(session, pairs.padded(items[some])), found[some], IN_COMPANY):
            return np.full_like(found, np.nan)
    return found


def _close(found: np.ndarray, wanted: np.ndarray, tolerance: float | None = None) -> bool:
    found, tolerance = found.reshape(-1), CLOSE if tolerance is None else tolerance
    return found.shape == wanted.shape and bool(np.all(np.abs(found - wanted) <= tolerance * (1 + np.abs(wanted))))


@contextmanager
def _quiet() -> Iterator[None]:
    """Within the block, exporters and quantizers keep what they say about their own workings to themselves."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "")]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
