"""A bi-encoder: texts to unit vectors, for dense retrieval and the light scorer."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from rerank.errors import InputError, NotFound, RerankError
from rerank.models.bars import without_bars
from rerank.models.texts import size_of_key
from rerank.models.vectors import Rows, Vectors
from rerank.types import Encoder

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger("rerank.models")

UNLIMITED = 10**9
"""The length that a tokenizer without a limit gives is far beyond this."""


@contextmanager
def named_failures(name: str) -> Iterator[None]:
    """Nothing; what the libraries raise while they load the model `name` becomes an error of ours that names it.

    Their bars are not shown: on files that are there loading is soon over. Downloads keep theirs.
    """
    from safetensors import SafetensorError

    try:
        with without_bars():
            yield
    except RerankError:
        raise
    except SafetensorError as error:
        raise InputError(f"the model {name!r} could not be loaded, its weights are damaged: {error}") from error
    except (OSError, ValueError) as error:
        problem = next(iter(str(error).splitlines()), type(error).__name__)
        if isinstance(error, ValueError):
            raise InputError(f"the model {name!r} could not be loaded: {problem}") from error
        # The libraries' own tracebacks, four on top of each other where the hub is not reached, say nothing more.
        if Path(name).exists():
            raise NotFound(f"the model {name!r} could not be loaded: {problem}") from None
        raise NotFound(
            f"the model {name!r} could not be loaded: there is no such folder here (paths start at {Path.cwd()}), "
            f"and the hub does not have it or cannot be reached: {problem}"
        ) from None


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
    def counts(self) -> bool:
        """Whether the tokens of a text can be told: those of a transformer can."""
        from transformers import PreTrainedTokenizerBase

        return isinstance(self.model.tokenizer, PreTrainedTokenizerBase)

    @property
    def max_length(self) -> int | None:
        """Tokens of a text that are read; None where there is no such limit, or tokens cannot be told."""
        length = self.model.max_seq_length
        return int(length) if self.counts and length is not None and length < UNLIMITED else None

    def tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text with special ones around it, also where fewer are read; 0 where they cannot be told."""
        if not texts or not self.counts:
            return [0] * len(texts)
        before = self.model.prompts.get(self.model.default_prompt_name or "", "")
        whole = [before + text for text in _encodable(list(texts))]
        return [
            len(ids) for ids in self.model.tokenizer(whole, return_attention_mask=False, verbose=False)["input_ids"]
        ]

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

    Forgetting begins new `Vectors`; the old ones live on in the rows that were given out, and go with them.
    """

    def __init__(self, encoder: Encoder, kept: int | None = None) -> None:
        self.encoder = encoder
        self.kept = kept
        """Bytes of texts and vectors that are held at most, between calls; None: all, as training needs them again."""
        self._row: dict[str, int] = {}
        self._vectors = Vectors()
        self._tokens: dict[str, int] = {}
        self._texts = 0
        self._lock = threading.RLock()  # several threads may rank with one model

    def __deepcopy__(self, memo: dict[int, Any]) -> VectorStore:
        """The store itself: copies of a policy share it, for nothing in it is trained."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        # No text of anybody's goes where a model is sent to.
        empty = {"_row": {}, "_vectors": Vectors(self._vectors.dim), "_tokens": {}, "_texts": 0}
        return {**self.__dict__, **empty, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    @property
    def fingerprint(self) -> str:
        """The encoder's."""
        return self.encoder.fingerprint

    @property
    def held(self) -> int:
        """Bytes that are remembered now."""
        return self._texts + int(self._vectors.matrix.nbytes)

    @property
    def max_length(self) -> int | None:
        """Tokens of a text that the encoder reads; None where there is no such limit, or none that is known."""
        return self.encoder.max_length if isinstance(self.encoder, SentenceEncoder) else None

    def save(self, folder: Path) -> None:
        """Write the encoder, without what it remembers."""
        self.encoder.save(folder)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        if not self._vectors.dim:
            self.rows(["size"])
        return self._vectors.dim

    def add(self, texts: Sequence[str], vectors: np.ndarray) -> None:
        """Remember vectors [n, dim] that the same encoder gave elsewhere."""
        with self._lock:
            fresh = {text: i for i, text in reversed(list(enumerate(texts))) if text not in self._row}
            start = self._vectors.add(vectors[list(fresh.values())])
            self._row.update((text, start + n) for n, text in enumerate(fresh))
            self._texts += sum(map(size_of_key, fresh))

    def forget(self, beyond: int = 0) -> None:
        """Nothing; where more than `beyond` bytes are held, all is forgotten. Rows that were given out stay good."""
        with self._lock:
            if self.held > beyond:
                self._row, self._vectors = {}, Vectors(self._vectors.dim)
                self._tokens, self._texts = {}, 0

    def rows(self, texts: Sequence[str]) -> Rows:
        """Where the vector of each text is; unseen texts are encoded in one go."""
        with self._lock:
            new = sorted({text for text in texts if text not in self._row})
            if new:
                self.add(new, np.asarray(self.encoder.encode(new)))
            found = Rows(self._vectors, [self._row[text] for text in texts])
            self._stay_small()
            return found

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors [len(texts), dim] of unit length."""
        vectors, numbers = self.rows(texts)
        return vectors.matrix[numbers]

    def tokens_read(self, texts: Sequence[str]) -> int:
        """Tokens that the encoder reads of texts; 0 where they cannot be told."""
        most = math.inf if self.max_length is None else self.max_length
        return int(sum(min(tokens, most) for tokens in self._tokens_of(texts)))

    def reads_whole(self, query: str, text: str) -> bool:
        """Whether nothing is cut of a query and a document, each of which is read by itself."""
        return self.max_length is None or max(self._tokens_of((query, text))) <= self.max_length

    def _tokens_of(self, texts: Sequence[str]) -> list[int]:
        if not isinstance(self.encoder, SentenceEncoder):
            return [0] * len(texts)
        with self._lock:
            new = [text for text in dict.fromkeys(texts) if text not in self._tokens]
            fresh = dict(zip(new, self.encoder.tokens(new), strict=True))
            self._tokens |= fresh
            self._texts += sum(map(size_of_key, fresh))
            found = [self._tokens[text] for text in texts]
            self._stay_small()
            return found

    def _stay_small(self) -> None:
        if self.kept is not None:
            self.forget(self.kept)


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
