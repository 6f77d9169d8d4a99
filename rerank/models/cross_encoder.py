"""A pointwise cross-encoder: one transformer reads query and document together and gives a logit.

The network and its files are sentence-transformers' (`CrossEncoder`), so what we save loads there with equal scores;
tokens (`pairs.py`), batches without padding (`packing.py`), precision and training are ours.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from torch import Tensor, nn

from rerank.engine.precision import autocast, compute_dtype, keep_few_kernels
from rerank.errors import InputError
from rerank.models import packing
from rerank.models.completeness import check_vocabulary
from rerank.models.dropout import quicken
from rerank.models.packing import Gathering, Pack
from rerank.models.pairs import PairItem, PairTokenizer, Rows, best_window
from rerank.types import CandidateList

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

logger = logging.getLogger("rerank.models")


@final
class CrossEncoderScorer(nn.Module):
    """Scores pairs with a sentence-transformers `CrossEncoder` that has one output."""

    kind = "cross-encoder"

    def __init__(
        self,
        model: CrossEncoder,
        max_length: int | None = 256,
        precision: str = "auto",
        windows: int = 1,
        packed: bool = True,
    ) -> None:
        super().__init__()
        if model.num_labels != 1:
            raise InputError(f"a reranker has one output; this model has num_labels = {model.num_labels}")
        keep_few_kernels()
        self.model = model
        check_vocabulary(model.tokenizer, self.network)
        quicken(model)
        self.pairs = PairTokenizer(model.tokenizer, max_length, model.max_seq_length, windows)
        self.precision = precision
        self.gathering: Gathering | None = None
        """How sequences are run without padding; None: they are padded."""
        if packed:
            self.gathering = self._find_gathering()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def network(self) -> Any:
        """The transformer, as transformers knows it."""
        return getattr(self.model[0], "model", None)

    @property
    def max_length(self) -> int:
        """Tokens of a pair that the network reads at once."""
        return self.pairs.max_length

    def body(self) -> list[nn.Parameter]:
        """The parameters of the transformer."""
        return list(self.model[0].parameters())

    def set_dropout(self, share: float) -> None:
        """Set every dropout of the network; it is off outside training."""
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = share
            elif hasattr(module, "attention_dropout"):  # kept as a number
                module.attention_dropout = share

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
        with autocast(self.device, compute_dtype(self.precision, self.device)):
            if self.gathering is None:
                features = {name: values.to(self.device) for name, values in self.pairs.padded(items).items()}
                found, counts = self.model(features)["scores"], [len(item.windows) for item in items]
            else:
                rows = self.pairs.rows(items)
                found, counts = self._packed(rows, self.gathering), rows.counts
        return best_window(found.float().squeeze(-1), counts)

    def _packed(self, rows: Rows, gathering: Gathering) -> Tensor:
        """Scores [R, 1] of sequences laid end to end."""
        pack = Pack.of(rows.lengths, gathering, self.device)
        features = {
            "input_ids": rows.ids.to(self.device, non_blocking=True)[None],
            "position_ids": pack.positions(packing.position_offset(self.network))[None],
        }
        if self.pairs.takes_types:
            features["token_type_ids"] = self.pairs.types(rows).to(self.device, non_blocking=True)[None]
        if len(self.model) > 1 and gathering == "head":
            features["cu_seq_lens_q"] = pack.starts
        elif len(self.model) > 1:  # the pooling that follows sees one token a sequence
            features["attention_mask"] = torch.ones(len(pack.lengths), 1, dtype=torch.long, device=self.device)
        with packing.packed(pack):
            return self.model(features)["scores"]

    def _find_gathering(self) -> Gathering | None:
        """The first way of running without padding whose numbers are those of padded sequences."""
        if self.network is None or not packing.prepare(self.network):
            return None
        modular = len(self.model) > 1
        ways: tuple[Gathering, ...] = ("last layer", "head") if modular else ("last layer", "first", "mean")
        items = _probes(self.pairs)
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), _input_of_head(self.model) as seen:
                self.model({name: values.to(self.device) for name, values in self.pairs.padded(items).items()})
                wanted = seen.pop().reshape(len(items), -1)
                for way in ways:
                    if self._agrees(items, way, wanted, seen):
                        return way
        finally:
            self.model.train(was_training)
        packing.release(self.network)
        logger.info("%s is run padded: packed sequences gave other numbers", type(self.network).__name__)
        return None

    def _agrees(self, items: Sequence[PairItem], way: Gathering, wanted: Tensor, seen: list[Tensor]) -> bool:
        """Whether `way` brings to the head what padded sequences bring, `wanted`."""
        try:
            self._packed(self.pairs.rows(items), way)
        except (RuntimeError, NotImplementedError, TypeError, ValueError, IndexError, AttributeError):
            return False
        found = seen.pop()
        return found.numel() == wanted.numel() and torch.allclose(found.reshape(wanted.shape), wanted, 1e-3, 1e-4)


def _probes(pairs: PairTokenizer) -> list[PairItem]:
    """Pairs of very different lengths; the longest is beyond the sliding windows that networks have."""
    plain = pairs.plain_ids()
    room = min(pairs.max_length - pairs.n_special, 300)
    sizes = [(1, 1), (room // 4, room - room // 4), (room // 5, room // 3), (1, room // 3)]
    return [
        PairItem(_some(plain, k, max(1, query)), (_some(plain, 3 * k + 1, max(1, document)),), pairs.n_special)
        for k, (query, document) in enumerate(sizes)
    ]


def _some(ids: np.ndarray, start: int, n: int) -> bytes:
    return np.resize(np.roll(ids, -start), n).tobytes()


@contextmanager
def _input_of_head(model: nn.Module) -> Iterator[list[Tensor]]:
    """What the last linear layer of a run was given; its output says nothing while the head is fresh, that is zero."""
    seen: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen[:] = [args[0].float()]

    hooks = [module.register_forward_pre_hook(note) for module in model.modules() if isinstance(module, nn.Linear)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
