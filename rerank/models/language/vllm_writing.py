"""Answers of a generative reranker written with a vLLM engine, name by name.

    prompt [        -> logits of the names that are left -> 3 is drawn here
    prompt [3] > [  -> logits of the names that are left -> 1 is drawn here -> ...

No logits processor runs inside the engine. Every choice is a request of one token, restricted to the tokens that may
follow (`permutations.Permutation`), after a prompt that the engine has in its cache up to the last block of tokens. All
answers to all prompts choose together, and answers that have written the same so far ask once: the first choice of
64 answers to a prompt is one request. Choices are drawn here, from the writers' own random numbers, so the
log-probabilities are those of the distribution that was drawn from, and the same numbers write the same rankings in
process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rerank.errors import InputError
from rerank.models.backbones import SETTINGS
from rerank.models.language.answering import Answering, Writing, saved_writing
from rerank.models.language.model import load_tokenizer
from rerank.models.language.permutations import Permutation, Writer
from rerank.models.language.prompt_tokens import PromptItem
from rerank.models.language.reading import Reading, saved_reading
from rerank.models.language.vllm import OnEngine, check_device, check_kind
from rerank.models.language.vllm_engine import EngineSettings, VllmEngine
from rerank.randomness import generator
from rerank.types import CandidateList


class Rollouts(NamedTuple):
    """Rankings of B lists, S of each."""

    rankings: list[list[tuple[int, ...]]]
    """All candidates of the list, best first."""
    log_probs: list[list[tuple[float, ...]]]
    """For each written place, the log-probability with which its candidate was drawn; 0 for what was forced."""
    writers: list[list[Writer]]
    """The answers themselves: `written()` is the engine's item for the same log-probabilities in one pass."""


@final
class VllmWriter(OnEngine):
    """Writes answers as `GenerativeScorer` does; `GenerativePolicy` takes it in that one's place. Nothing of it learns.

    Fresh weights between steps of training: `engine.take_weights_of(scorer, folder)`.
    """

    kind = "generative"

    def __init__(self, engine: VllmEngine, reading: Reading | None = None, writing: Writing | None = None) -> None:
        super().__init__()
        self.engine = engine
        self.reading, self.writing = reading or Reading(naming="numbers"), writing or Writing()
        _check_writing(self.writing)
        self.prompts = self.reading.prompts(engine.tokenizer)
        self.answering = Answering(self.prompts, self.writing)
        engine.check_options(options_of(self.reading))
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
    ) -> VllmWriter:
        """The writer of a saved generative model; `saved` is what its `rerank.json` says.

        `changes` are settings of `Reading` that are to be others than the model's own.
        """
        check_kind(path, saved, cls.kind)
        check_device(device)
        tokenizer = load_tokenizer(path)
        file = Path(path) / SETTINGS
        reading, writing = saved_reading(saved, tokenizer, changes, file), saved_writing(saved, file)
        _check_writing(writing)
        answering = Answering(reading.prompts(tokenizer), writing)
        room = answering.prompts.longest() + answering.most_tokens
        options = options_of(reading)
        engine = VllmEngine.started(path, saved, room, options, precision, settings or EngineSettings())
        return cls(engine, reading, writing)

    def encode(self, lists: Sequence[CandidateList]) -> list[PromptItem]:
        """One prompt for each list, which must fit into it."""
        return self.answering.encode(lists)

    def logits(self, items: Sequence[Any]) -> Tensor:
        """An error: given answers are weighed, and learnt from, in process."""
        raise InputError("a model on vLLM writes answers and weighs no given ones: load it with backend = 'torch'")

    def write(self, writers: Sequence[Writer], temperature: float = 1.0) -> None:
        """Nothing; every writer is done. Greedy ones, which have no random numbers, know no temperature."""
        if not 0 < temperature < float("inf"):
            raise InputError(f"temperature must be above 0, not {temperature!r}; writers without noise are greedy")
        writing = [writer for writer in writers if not writer.done]
        while writing:
            asked = [(writer.prompt + Writer.packed(writer.fed), _options(writer)) for writer in writing]
            distinct = list(dict.fromkeys(asked))
            logits = dict(zip(distinct, self.engine.weigh(distinct), strict=True))
            for writer, question in zip(writing, asked, strict=True):
                log_p = _log_softmax(logits[question], temperature if len(writer.noise) else 1.0)
                writer.take(question[1][_drawn(log_p, writer)], log_p.tolist())
            writing = [writer for writer in writing if not writer.done]

    def rollouts(self, lists: Sequence[CandidateList], n: int, temperature: float = 1.0, seed: int = 0) -> Rollouts:
        """`n` rankings of each list; a list's draws are a function of `seed` and of its place among `lists`."""
        items = self.encode(lists)
        shape = (n, self.answering.most_choices)
        noise = [
            torch.rand(shape, generator=generator("rollouts", seed, i), dtype=torch.float64) for i in range(len(items))
        ]
        drafts = [
            [self.answering.writer(item, row) for row in rows.tolist()] for item, rows in zip(items, noise, strict=True)
        ]
        self.write([writer for of_list in drafts for writer in of_list], temperature)
        return Rollouts(
            [[_permutation(writer).whole_order for writer in of_list] for of_list in drafts],
            [[place_log_probs(writer) for writer in of_list] for of_list in drafts],
            drafts,
        )


def place_log_probs(writer: Writer) -> tuple[float, ...]:
    """The log-probability of the candidate at each written place: the sum over the tokens of its name."""
    permutation = _permutation(writer)
    found = [0.0] * permutation.places
    for choice, weights in zip(writer.choices, writer.weighed, strict=True):
        found[choice.place] += weights[choice.taken]
    return tuple(found)


def options_of(reading: Reading) -> int:
    """The tokens that may follow at most: one for each name, and the one that closes a name."""
    return reading.window + 1


def _check_writing(writing: Writing) -> None:
    if writing.thinking or not writing.constrained:
        raise InputError(
            "backend = 'vllm' writes constrained answers without a thought before them: set thinking = 0 and "
            "constrained = true, or use backend = 'torch'"
        )


def _options(writer: Writer) -> tuple[int, ...]:
    options = writer.options()
    if options is None:
        raise InputError(
            "a vLLM engine is asked for names alone; this answer is written freely (thinking, constrained)"
        )
    return options


def _permutation(writer: Writer) -> Permutation:
    assert isinstance(writer.answer, Permutation)  # free answers are refused when a writer is made
    return writer.answer


def _log_softmax(logits: Sequence[float], temperature: float) -> NDArray[np.float64]:
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    scaled -= scaled.max()
    return scaled - np.log(np.exp(scaled).sum())


def _drawn(log_p: NDArray[np.float64], writer: Writer) -> int:
    """Which option is drawn with the writer's next random number, or the most likely one where it has none."""
    if not len(writer.noise):
        return int(log_p.argmax())
    reached = np.exp(log_p).cumsum()
    at = int(np.searchsorted(reached, writer.noise[len(writer.choices)] * reached[-1], side="right"))
    # A product that is rounded up to the sum itself belongs to the last option that has a chance.
    return min(at, int((reached < reached[-1]).sum()))
