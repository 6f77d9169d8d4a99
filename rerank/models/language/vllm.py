"""A saved listwise reranker on vLLM: the prompts and the logits of `models.listwise`, from an engine made for speed."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from rerank.errors import InputError
from rerank.models.backbones import SETTINGS
from rerank.models.language.model import load_tokenizer
from rerank.models.language.prompt_tokens import PromptItem
from rerank.models.language.reading import Reading, ReadsLists, saved_reading
from rerank.models.language.vllm_engine import EngineSettings, VllmEngine
from rerank.types import CandidateList


class OnEngine(ReadsLists, nn.Module):
    """What both kinds of models on an engine have in common: nothing of them is in this process, or can learn."""

    budget = sys.maxsize
    """The engine makes up its own batches, of all prompts that there are."""
    device = torch.device("cpu")
    """Where results come back to."""

    def body(self) -> list[nn.Parameter]:
        """Nothing: the engine's weights are not ours to train."""
        return []

    def __deepcopy__(self, memo: dict[int, Any]) -> OnEngine:
        """Itself: an engine is there once."""
        return self


@final
class VllmScorer(OnEngine):
    """Scores lists as `ListwiseScorer` does, with a vLLM engine; it has no parameters, so nothing of it can learn."""

    kind = "listwise"

    def __init__(self, engine: VllmEngine, reading: Reading | None = None) -> None:
        super().__init__()
        self.reading = reading or Reading()
        if self.reading.naming != "letters":
            raise InputError("one forward pass tells names of one token apart: naming = 'letters' is needed")
        self.engine, self.prompts = engine, self.reading.prompts(engine.tokenizer)
        engine.check_options(self.window)
        self.names = tuple(ids[0] for ids in self.prompts.name_ids)
        self.folder: Path | None = None
        self.base: str | None = None
        self.eval()

    @classmethod
    def from_folder(
        cls,
        path: str,
        saved: Mapping[str, Any],
        precision: str = "auto",
        device: str | None = None,
        changes: Mapping[str, Any] | None = None,
        settings: EngineSettings | None = None,
    ) -> VllmScorer:
        """The scorer of a listwise model; `saved` is what its `rerank.json` says, nothing for any language model.

        `changes` are settings of `Reading` that are to be others than the model's own.
        """
        check_kind(path, saved, cls.kind)
        check_device(device)
        tokenizer = load_tokenizer(path)
        reading = saved_reading(saved, tokenizer, changes, Path(path) / SETTINGS)
        prompts = reading.prompts(tokenizer)
        # vLLM counts the one token that is asked for.
        room = prompts.longest() + 1
        engine = VllmEngine.started(path, saved, room, reading.window, precision, settings or EngineSettings())
        scorer = cls(engine, reading)
        scorer.folder = Path(path) if Path(path).is_dir() else None
        scorer.base = saved.get("base")
        return scorer

    def train(self, mode: bool = True) -> VllmScorer:
        """The scorer as it is; an error where it is to learn."""
        if mode:
            raise InputError("a model on vLLM has no weights to train: load it with backend = 'torch', and train that")
        return super().train(False)

    def encode(self, lists: Sequence[CandidateList]) -> list[PromptItem]:
        """One item for each list, which must fit into one prompt."""
        return self.prompts.encode(lists)

    def logits(self, items: Sequence[PromptItem]) -> Tensor:
        """Logits [sum of widths] of prompts, in float32; no gradient goes through them."""
        found = self.engine.weigh([(item.ids, self.names[: item.width]) for item in items])
        return torch.tensor([logit for row in found for logit in row], dtype=torch.float32)

    def copy_to(self, folder: Path) -> dict[str, Any]:
        """Its settings for `rerank.json`; copies the files that it was loaded from."""
        if self.folder is None:
            raise InputError("this model was not loaded from a folder, so there are no files to save")
        if folder.resolve() != self.folder.resolve():
            shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return {"reading": self.reading.as_dict(), **({"base": self.base} if self.base else {})}


def check_kind(path: str, saved: Mapping[str, Any], kind: str) -> None:
    """Nothing, when the settings of a model say that it is of `kind`; a model without any is read in one pass."""
    found = saved.get("kind", "listwise")
    if found != kind:
        other = {"listwise": "VllmScorer", "generative": "VllmWriter"}.get(str(found))
        what = f"is a {found} model, which is for {other}" if other else f"is no {kind} model"
        hint = "" if other else ": backend = 'vllm' runs listwise and generative language models; use backend = 'torch'"
        raise InputError(f"{path} {what}{hint}")


def check_device(device: str | None) -> None:
    """Nothing, when `device` leaves the choice to vLLM; else an InputError."""
    if device not in (None, "cuda"):
        raise InputError(
            f"device {device!r} cannot be given with backend = 'vllm', which takes the first GPUs that it sees: leave "
            "device out, and set CUDA_VISIBLE_DEVICES"
        )
