"""An exported cross-encoder: the scorer that runs `onnx/model.onnx`, or its int8 form, with onnxruntime.

`models.exporting` writes these files into the folder of a model, which still holds its tokenizer and its settings; the
weights beside them may be left out where only this backend is wanted. Where they are there, they have to be those that
were exported: a model that was trained on has to be exported anew. Nothing here learns.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from rerank.engine.batching import micro_batches
from rerank.errors import InputError, Mismatch, NotFound, nearest, need
from rerank.models.completeness import check_tokenizer_files
from rerank.models.pairs import PairItem, PairTokenizer, best_window
from rerank.types import CandidateList

logger = logging.getLogger("rerank.models")

EXTRA = "onnx"
FILES = {"float32": Path("onnx/model.onnx"), "int8": Path("onnx/model_int8.onnx")}
"""Precision -> file within a model's folder, laid out as sentence-transformers and optimum do."""
LOGITS = "logits"
"""The output that is read here; models with modules after the transformer have another one, for others."""
POSSIBLE, WEIGHTS, NUMBERS = "rerank.max_seq_length", "rerank.weights", "rerank.precision"
"""What an exported file knows about its model: the tokens that it can read, the fingerprint of its weights."""
AT_ONCE = 512
"""Tokens of one run on a CPU, within a micro-batch: what stays in its cache is a quarter faster than 4096 at once."""
SLOW = ["SkipLayerNormFusion"]
"""Fusions that onnxruntime would do and that cost time: on a CPU its one kernel takes five times as long as the two."""


def fingerprint_of_weights(folder: Path) -> str:
    """The sha256 of a model's weight files; empty where the folder holds none."""
    digest = hashlib.sha256()
    files = sorted(path for path in folder.rglob("*.safetensors") if path.is_file())
    for path in files:
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest() if files else ""


def exported_file(folder: Path, precision: str) -> Path:
    """The exported file of a model folder for `precision` ("auto" and "float32": the float one, or "int8")."""
    wanted = {"auto": "float32"}.get(precision, precision)
    if wanted not in FILES:
        known = nearest(precision, ["auto", *FILES])
        raise InputError(f"precision {precision!r} is not one that backend = 'onnx' has{known}")
    file = folder / FILES[wanted]
    if not file.is_file():
        flag = " --int8" if wanted == "int8" else ""
        raise NotFound(f"there is no {file}; write it with: rerank export {folder} --to onnx{flag}")
    return file


@final
class OnnxScorer(nn.Module):
    """Scores pairs with an exported model; it has no parameters, so nothing of it can be trained."""

    kind = "cross-encoder"

    def __init__(
        self,
        folder: Path,
        max_length: int | None = None,
        precision: str = "auto",
        device: torch.device | str = "cpu",
        windows: int = 1,
    ) -> None:
        super().__init__()
        self.folder, self.precision, self.device = folder, precision, torch.device(device)
        file = exported_file(folder, precision)
        self.session = open_session(file, self.device)
        known = self.session.get_modelmeta().custom_metadata_map
        _check_weights(folder, file, known.get(WEIGHTS, ""))
        if known.get(NUMBERS, file_precision(file)) != file_precision(file):
            raise Mismatch(
                f"{file} holds {known[NUMBERS]} and not {file_precision(file)}: write it anew with "
                f"rerank export {folder} --to onnx --int8"
            )
        check_tokenizer_files(folder)
        self.pairs = PairTokenizer(_tokenizer(folder), max_length, _possible(known), windows)

    @property
    def max_length(self) -> int:
        """Tokens of a pair that the network reads at once."""
        return self.pairs.max_length

    def body(self) -> list[nn.Parameter]:
        """Nothing: an exported network is fixed."""
        return []

    def train(self, mode: bool = True) -> OnnxScorer:
        """The scorer as it is; an error where it is to learn."""
        if mode:
            raise InputError(
                f"{self.folder} was loaded with backend = 'onnx', which has no weights to train: load it with "
                "backend = 'torch', train that, and export it anew"
            )
        return super().train(False)

    def encode(self, lists: Sequence[CandidateList]) -> list[PairItem]:
        """One item for each candidate of each list, in order."""
        return self.pairs.encode(lists)

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[PairItem]:
        """One item for each (query, document) pair."""
        return self.pairs.encode_pairs(pairs)

    def forget(self, beyond: int = 0) -> None:
        """Nothing; forgets the texts where they hold more than `beyond` bytes. Items that are there stay good."""
        self.pairs.forget(beyond)

    def logits(self, items: Sequence[PairItem]) -> Tensor:
        """Logits [n] of one micro-batch, in float32."""
        at_once = AT_ONCE if self.device.type == "cpu" else sum(map(len, items)) * len(items)
        found = torch.zeros(len(items))
        for group in micro_batches([len(item) for item in items], at_once):
            some = [items[i] for i in group]
            rows = torch.from_numpy(run_session(self.session, self.pairs.padded(some)))
            found[group] = best_window(rows, [len(item.windows) for item in some])
        return found.to(self.device)

    def copy_to(self, folder: Path) -> None:
        """Write tokenizer, weights and exported files to another folder."""
        if folder.resolve() != self.folder.resolve():
            shutil.copytree(self.folder, folder, dirs_exist_ok=True)


def open_session(file: Path, device: torch.device | str = "cpu") -> Any:
    """An onnxruntime session with as many threads as torch has."""
    runtime = need("onnxruntime", EXTRA)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.enable_mem_pattern = False  # it is for one shape of input; ours differ from batch to batch
    options.log_severity_level = 3
    try:
        return runtime.InferenceSession(
            str(file), options, providers=_providers(runtime, torch.device(device)), disabled_optimizers=SLOW
        )
    except Exception as error:  # onnxruntime's own errors have no common type of their own
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{file} is no model that onnxruntime can run: {first}; export it anew") from error


def run_session(session: Any, features: Mapping[str, Tensor]) -> np.ndarray:
    """Logits, float32 [R], of padded rows; the session takes those features that it knows."""
    given = {node.name: features[node.name].numpy() for node in session.get_inputs()}
    (logits,) = session.run([LOGITS], given)
    return logits.astype(np.float32, copy=False).reshape(-1)


def _providers(runtime: Any, device: torch.device) -> list[Any]:
    if device.type == "cpu":
        return ["CPUExecutionProvider"]
    if device.type == "cuda" and "CUDAExecutionProvider" in runtime.get_available_providers():
        return [("CUDAExecutionProvider", {"device_id": device.index or 0}), "CPUExecutionProvider"]
    available = ", ".join(runtime.get_available_providers())
    raise InputError(
        f"device {str(device)!r} cannot be used with backend = 'onnx': onnxruntime here has {available}; give device = "
        "'cpu', or pip install onnxruntime-gpu for CUDA"
    )


def file_precision(file: Path) -> str:
    """The precision that an exported file has by its name."""
    return next((precision for precision, path in FILES.items() if path.name == file.name), "float32")


def _check_weights(folder: Path, file: Path, exported: str) -> None:
    found = fingerprint_of_weights(folder) if exported else ""
    if found and found != exported:
        raise Mismatch(
            f"{file} was exported from other weights than those of {folder}: write it anew with "
            f"rerank export {folder} --to onnx"
        )


def _possible(known: dict[str, str]) -> int | None:
    """Tokens that the model can read, where the file tells it."""
    written = known.get(POSSIBLE, "")
    return int(written) if written.isdecimal() else None


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"the tokenizer of {folder} cannot be read: {first}") from error
