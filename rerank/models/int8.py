"""A float ONNX file as int8: weights of linear layers by output channel, activations by tensor as they come.

Embeddings, attention and what is computed for one token a sequence stay float: they cost little. So do layers that
narrow, the second of each feed-forward: the activation before it gives few large values and many small ones, and one
scale for all of them doubles the error of the logits, for 1.4 times the speed (MiniLM, 54 queries of TREC DL 2020).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rerank.errors import Mismatch

logger = logging.getLogger("rerank.models")

LOW = 0.95
"""Correlation of int8 and float logits below which that is said."""
LARGEST = 1_900_000_000
"""Bytes of weights that one ONNX file holds; beyond, they go into a file beside it."""


def write_int8(float_file: Path, file: Path, known: Mapping[str, str], first: bool) -> None:
    """Write the int8 form, with the notes `known`; `first`: the last layer goes on with first tokens alone."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    content = onnx.load(float_file)
    size = sum(path.stat().st_size for path in float_file.parent.glob(f"{float_file.name}*"))
    del content.graph.value_info[:]  # shapes that the quantizer infers for itself, in its own way
    quantize_dynamic(
        content,
        file,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=_kept_float(content.graph, first),
        use_external_data_format=size > LARGEST,
        extra_options={"MatMulConstBOnly": True, "DefaultTensorType": onnx.TensorProto.FLOAT},
    )
    written = onnx.load(file, load_external_data=False)
    onnx.helper.set_model_props(written, dict(known))
    onnx.save(written, file)


def _kept_float(graph: Any, first: bool) -> list[str]:
    """Names of the linear layers that stay float: those that narrow, heads, and what works for first tokens alone."""
    attention = [i for i, node in enumerate(graph.node) if node.op_type == "MultiHeadAttention"]
    shapes = ((tensor.name, tuple(tensor.dims)) for tensor in graph.initializer)
    narrowing = {name for name, shape in shapes if len(shape) == 2 and shape[0] > shape[1]}
    names = []
    for i, node in enumerate(graph.node):
        if node.op_type == "Gemm":  # two axes: no tokens; the quantizer splits it and renames its product
            names.append(f"{node.name}_MatMul")
        elif node.op_type == "MatMul" and ((first and i > attention[-1]) or narrowing & set(node.input)):
            names.append(node.name)
    return names


def check_int8(found: np.ndarray, wanted: np.ndarray) -> None:
    """Nothing; says how far int8 logits are from the float ones, an error where they are no numbers."""
    if not np.isfinite(found).all():
        raise Mismatch("the int8 form of this network gives no finite logits; export it without int8")
    if np.ptp(wanted) == 0.0 or np.ptp(found) == 0.0:
        logger.warning(
            "this network gives every pair the same score, so it ranks nothing by itself: was it trained? (A model "
            "that kept its first-stage weights alone ranks with first-stage scores only.)"
        )
        return
    agreement = float(np.corrcoef(found, wanted)[0, 1])
    logger.log(
        logging.INFO if agreement >= LOW else logging.WARNING,
        "int8: logits of %d made-up pairs are within %.2g of the float ones, correlation %.3f; measure it on your "
        "own data",
        *(len(wanted), float(np.abs(found - wanted).max()), agreement),
    )
