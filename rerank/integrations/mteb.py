"""A reranker in MTEB, as its CrossEncoderProtocol asks for one.

    import mteb
    from rerank.integrations.mteb import MtebReranker

    result = mteb.evaluate(MtebReranker("runs/quickstart/model/light"), task)

`task` is one of MTEB's Reranking tasks, or a Retrieval task whose candidates come from an earlier run:
`mteb.evaluate(retriever, task, prediction_folder=folder)`, then `task.convert_to_reranking(folder, top_k=100)`. Extra:
`mteb`.

MTEB keeps results by the model's name and revision, and takes what it finds there for done. The revision is therefore
a digest of all that decides the scores (the weights, those of a light model's encoder too, and how texts are read): a
model that was trained anew under the same name, or is asked to read more of a text, is evaluated anew.

MTEB hands over texts alone: a model that was trained with first-stage scores is measured without them, and a listwise
one reads queries with equal texts as one. Scores are the logits as they are, as in all adapters for evaluation. Equal
ones are left to MTEB's own rule (descending document ids): the candidates of many of its tasks come with the relevant
ones in front, so that keeping their order would reward a constant scorer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from rerank.errors import InputError, need
from rerank.integrations.first_stage import FirstStage
from rerank.integrations.loading import reranker_of

if TYPE_CHECKING:
    import numpy as np
    import torch
    from mteb.models import ModelMeta

    from rerank.reranker import Reranker

Batches = Iterable[Mapping[str, Any]]
"""What MTEB's data loaders give: batches of columns, of which `text` is read."""


@final
class MtebReranker:
    """A model that `mteb.evaluate` takes.

    `model_name` is a folder, an id on the hub or a `rerank.Reranker`. Results are filed under `name`, which has the
    form owner/model (by default that of the hub, or local/<folder>), and under `revision`. `how` is what
    `Reranker.from_pretrained` takes.
    """

    def __init__(
        self,
        model_name: str | Path | Reranker,
        revision: str | None = None,
        device: str | None = None,
        name: str | None = None,
        **how: Any,
    ) -> None:
        # A reranker that is loaded has its device; None says nothing about it.
        self.reranker = reranker_of(model_name, **how, **({} if device is None else {"device": device}))
        self.name = _name_of(model_name) if name is None else name
        if self.name.count("/") != 1 or not all(self.name.split("/")):
            raise InputError(f"name must have the form owner/model, as MTEB files results by it, not {self.name!r}")
        self.how = how
        self.revision = _digest(self.reranker) if revision is None else revision
        self._first_stage = FirstStage(None, "MTEB hands over none")

    def predict(self, inputs1: Batches, inputs2: Batches, **told: Any) -> np.ndarray:
        """Logits, float32 [n], of the i-th query of `inputs1` with the i-th document of `inputs2`.

        MTEB also tells the task, the split and how to make batches: nothing here depends on them.
        """
        queries, documents = _texts(inputs1, "queries"), _texts(inputs2, "documents")
        if len(queries) != len(documents):
            raise InputError(f"there are {len(queries)} queries and {len(documents)} documents; pairs need as many")
        self._first_stage.scores(self.reranker.wants, lambda place: ())
        return self.reranker.predict(list(zip(queries, documents, strict=True)))

    @cached_property
    def mteb_model_meta(self) -> ModelMeta:
        """What MTEB writes beside the results."""
        models = need("mteb.models", "mteb")
        parameters = sum(p.numel() for part in _networks(self.reranker) for p in part.parameters())
        return models.ModelMeta.create_empty(
            overwrites={
                "name": self.name,
                "revision": self.revision,
                "loader": MtebReranker,
                "model_type": ["cross-encoder"],
                "framework": ["PyTorch"],
                "n_parameters": parameters or None,
                "max_tokens": getattr(self.reranker.policy.scorer, "max_length", None),
                "experiment_kwargs": {key: str(value) for key, value in self.how.items()} or None,
            }
        )


def _name_of(model: str | Path | Reranker) -> str:
    """local/<folder> for a folder, the id for one on the hub, local/reranker for a model in memory."""
    if not isinstance(model, str | Path):
        return "local/reranker"
    if Path(model).is_dir():
        return f"local/{Path(model).resolve().name}"
    return str(model) if "/" in str(model) else f"local/{model}"


def _networks(reranker: Reranker) -> list[torch.nn.Module]:
    """All networks that a text goes through: of a light scorer, its encoder too, which is no part of its state."""
    store = getattr(reranker.policy.scorer, "store", None)
    encoder = getattr(getattr(store, "encoder", None), "model", None)
    return [reranker.policy.scorer, *([] if encoder is None else [encoder])]


def _digest(reranker: Reranker) -> str:
    """A sha256, shortened as git does, of all that decides the scores."""
    scorer = reranker.policy.scorer
    state = scorer.state_dict()
    if not state:
        raise InputError(
            "this model has no weights of its own to tell its results from another's (an exported one has none): "
            "give a revision, such as revision='2026-01'"
        )
    import torch

    store, pairs = getattr(scorer, "store", None), getattr(scorer, "pairs", None)
    encoder = getattr(store, "encoder", None)
    read = {
        "kind": scorer.kind,
        "encoder": getattr(store, "fingerprint", None),
        "precision": str(getattr(encoder or scorer, "precision", None)),
        "max_length": getattr(pairs, "max_length", None),
        "windows": getattr(pairs, "windows", None),
        "reading": [repr(getattr(scorer, name, None)) for name in ("reading", "writing")],
    }
    digest = hashlib.sha256(json.dumps(read).encode())
    for name, tensor in state.items():
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode() + raw.numpy().tobytes())
    return digest.hexdigest()[:40]


def _texts(batches: Batches, what: str) -> list[str]:
    texts: list[str] = []
    for batch in batches:
        if "text" not in batch:
            raise InputError(f"the {what} have the columns {sorted(batch)} and no text; this model reads texts only")
        texts += batch["text"]
    return texts
