"""A bi-encoder: texts to unit vectors, for dense retrieval and the light scorer."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from rerank.errors import InputError, Mismatch, NotFound, RerankError
from rerank.models.texts import size_of_key
from rerank.types import Encoder

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger("rerank.models")


@contextmanager
def named_failures(name: str) -> Iterator[None]:
    """Nothing; what the libraries raise while they load the model `name` becomes an error of ours that names it."""
    from safetensors import SafetensorError

    try:
        yield
    except RerankError:
        raise
    except SafetensorError as error:
        raise InputError(f"the model {name!r} could not be loaded, its weights are damaged: {error}") from error
    except (OSError, ValueError) as error:
        problem = next(iter(str(error).splitlines()), type(error).__name__)
        if isinstance(error, ValueError):
            raise InputError(f"the model {name!r} could not be loaded: {problem}") from error
        if Path(name).exists():
            raise NotFound(f"the model {name!r} could not be loaded: {problem}") from error
        raise NotFound(
            f"the model {name!r} could not be loaded: there is no such folder here (paths start at {Path.cwd()}), "
            f"and the hub does not have it or cannot be reached: {problem}"
        ) from error


@final
class SentenceEncoder:
    """A sentence-transformers model as an `Encoder`; loaded when it is first used."""

    def __init__(
        self,
        path_or_model: str | Path | SentenceTransformer,
        batch_size: int = 64,
        device: str | None = None,
        precision: torch.dtype | None = None,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size = {batch_size!r}: expected a positive integer")
        self.batch_size = batch_size
        self.device = device
        self.precision = precision
        self._source = path_or_model

    @cached_property
    def model(self) -> SentenceTransformer:
        """The model itself."""
        from sentence_transformers import SentenceTransformer

        model = self._source
        if isinstance(model, str | Path):
            if isinstance(model, Path) and not model.is_dir():
                raise NotFound(f"{model} is no folder: give the folder of a sentence-transformers model, or a hub name")
            with named_failures(str(model)):
                model = SentenceTransformer(str(model), device=self.device, model_kwargs={"use_safetensors": True})
        tokenizer = getattr(model.tokenizer, "backend_tokenizer", None)
        if tokenizer is not None:
            # Some tokenizer.json files pad every text to a fixed length, which costs time and changes nothing else.
            tokenizer.no_padding()
        return model

    @cached_property
    def _fast(self) -> SentenceTransformer:
        """The model with its weights in `precision`: casting them once is faster than autocast on every batch."""
        return self.model if self.precision is None else copy.deepcopy(self.model).to(self.precision)

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of the weights and of what the modules after the transformer do (pooling, normalisation).

        Taken from the loaded tensors, not from files: a hub name, a folder and a model in memory compare equal.
        """
        digests = sorted(_tensor_hash(tensor) for tensor in self.model.state_dict().values())
        modules = [f"{type(m).__name__} {_config(m)}" for m in list(self.model.children())[1:]]
        return hashlib.sha256("\n".join([*digests, *modules, str(self.model.max_seq_length)]).encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Nothing; writes the model as a sentence-transformers folder."""
        self.model.save_pretrained(str(folder), create_model_card=False)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Rows [len(texts), dim] of float32 and unit length; equal texts are encoded once and get equal rows."""
        _check_texts(texts)
        model = self.model
        if not texts:
            return np.zeros((0, model.get_embedding_dimension() or 0), dtype=np.float32)
        distinct = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        # The library sorts by length and encodes in inference mode.
        encoded = self._fast.encode(
            _encodable(list(distinct)), batch_size=self.batch_size, convert_to_numpy=True, show_progress_bar=False
        )
        vectors: np.ndarray = np.asarray(encoded, dtype=np.float32)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / np.where(lengths == 0, 1, lengths)  # bfloat16 rows are only nearly of unit length
        return np.ascontiguousarray(vectors[[distinct[text] for text in texts]], dtype=np.float32)


@final
class VectorStore:
    """An encoder that remembers: each distinct text is encoded once, and vectors of an index can be put in.

    Rows are numbers that count on: those of vectors that were forgotten are never given to others.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._row: dict[str, int] = {}
        self._matrix = np.zeros((0, 0), dtype=np.float32)  # the rows that are there come first, then room for more
        self._first = 0
        self._texts = 0
        self._lock = threading.RLock()  # several threads may rank with one model

    def __deepcopy__(self, memo: dict[int, Any]) -> VectorStore:
        """The store itself: copies of a policy share it, for nothing in it is trained."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    @property
    def fingerprint(self) -> str:
        """The encoder's."""
        return self.encoder.fingerprint

    @property
    def held(self) -> int:
        """Bytes that are remembered now."""
        return self._texts + int(self._matrix.nbytes)

    def save(self, folder: Path) -> None:
        """Write the encoder, without what it remembers."""
        self.encoder.save(folder)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        if not self._matrix.shape[1]:
            self.rows(["size"])
        return int(self._matrix.shape[1])

    def add(self, texts: Sequence[str], vectors: np.ndarray) -> None:
        """Remember vectors [n, dim] that the same encoder gave elsewhere."""
        with self._lock:
            fresh = {text: i for i, text in reversed(list(enumerate(texts))) if text not in self._row}
            rows = np.ascontiguousarray(vectors[list(fresh.values())], dtype=np.float32)
            start = len(self._row)
            self._matrix = _with_rows(self._matrix, start, rows)
            self._row.update((text, self._first + start + n) for n, text in enumerate(fresh))
            self._texts += sum(map(size_of_key, fresh))

    def forget(self, beyond: int = 0) -> None:
        """Nothing; where more than `beyond` bytes are held, all vectors are forgotten, and their rows mean nothing."""
        with self._lock:
            if self.held > beyond:
                self._first += len(self._row)
                self._matrix, self._row, self._texts = self._matrix[:0].copy(), {}, 0

    def rows(self, texts: Sequence[str]) -> list[int]:
        """The row of each text in the store; unseen texts are encoded in one go."""
        with self._lock:
            new = sorted({text for text in texts if text not in self._row})
            if new:
                self.add(new, np.asarray(self.encoder.encode(new)))
            return [self._row[text] for text in texts]

    def vectors(self, rows: Sequence[int]) -> np.ndarray:
        """Vectors [n, dim] of rows; Mismatch where the store has forgotten one of them."""
        with self._lock:
            wanted, matrix = np.asarray(rows, dtype=np.int64) - self._first, self._matrix[: len(self._row)]
        if wanted.size and wanted.min() < 0:
            raise Mismatch("these vectors were forgotten since their texts were encoded: encode the texts again")
        return matrix[wanted]

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors [len(texts), dim] of unit length."""
        with self._lock:
            return self.vectors(self.rows(texts))


def _with_rows(matrix: np.ndarray, start: int, rows: np.ndarray) -> np.ndarray:
    """The matrix with `rows` from row `start` on; one with room for more where there is too little."""
    if start == 0:
        return rows
    if rows.shape[1] != matrix.shape[1]:
        raise Mismatch(f"vectors have {rows.shape[1]} numbers, and those of the store {matrix.shape[1]}: another model")
    end = start + len(rows)
    if end > len(matrix):
        # By halves, so that a store that is added to for weeks copies each vector a few times, not at every request.
        larger = np.empty((max(end, start + start // 2), matrix.shape[1]), dtype=np.float32)
        larger[:start] = matrix[:start]
        matrix = larger
    matrix[start:end] = rows
    return matrix


def _check_texts(texts: Sequence[str]) -> None:
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"text {i} to encode is {text!r:.80}; texts must be strings")


def _encodable(texts: list[str]) -> list[str]:
    """The texts with lone surrogates, which no tokenizer takes, replaced by question marks, and counted."""
    clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
    changed = sum(a != b for a, b in zip(texts, clean, strict=True))
    if changed:
        logger.warning(
            "%d of %d texts hold lone surrogates (broken Unicode); '?' stands in for them", changed, len(texts)
        )
    return clean


def _tensor_hash(tensor: torch.Tensor) -> str:
    import torch

    data = tensor.detach().cpu().contiguous()
    head = f"{data.dtype} {tuple(data.shape)} ".encode()
    return hashlib.sha256(head + data.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def _config(module: Any) -> str:
    config = module.get_config_dict() if hasattr(module, "get_config_dict") else {}
    return json.dumps(config, sort_keys=True, default=str)
