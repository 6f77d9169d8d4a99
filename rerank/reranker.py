"""The drop-in: load a trained reranker, rank documents for a query.

    reranker = Reranker.from_pretrained("runs/quickstart/model/light")
    for hit in reranker.rank("who wrote Faust", documents, top_k=3):
        print(hit.index, hit.score, hit.text)

Scores are logits. Equal scores keep the order in which the documents came. A calibrated model also says how probable it
is that a document is relevant (`rank(..., probabilities=True)`); the order is always that of the logits.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from rerank.errors import InputError, nearest
from rerank.given import checked_floor, checked_scores, checked_text, checked_texts, checked_top_k
from rerank.models.calibration import Calibration
from rerank.models.language.generative import AnyPolicy
from rerank.models.loading import load_policy, save_policy
from rerank.models.policy import ScorePolicy
from rerank.types import CandidateList

logger = logging.getLogger("rerank")


@final
@dataclass(frozen=True)
class Ranked:
    """One document of a ranking."""

    index: int
    """Its place in the documents that were given."""
    score: float
    """Its logit."""
    text: str
    probability: float | None = None
    """How probable it is that the document is relevant, where that was asked for."""

    @property
    def relevance(self) -> float:
        """A number from 0 to 1 that rises with the logit: the probability, or the logistic of the logit where none is.

        Logits beyond about 37 all have 1.0: who sorts by this has to sort stably.
        """
        if self.probability is not None:
            return self.probability
        return 1.0 / (1.0 + math.exp(-self.score)) if self.score > -700.0 else 0.0


@final
class Reranker:
    """A policy behind the interface that search stacks expect."""

    def __init__(self, policy: AnyPolicy) -> None:
        self.policy = policy.eval()
        self._told: set[str] = set()

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str | None = None,
        precision: str = "auto",
        max_length: int | None = None,
        backend: str = "torch",
        reading: Mapping[str, Any] | None = None,
    ) -> Reranker:
        """A reranker from a folder that rerank wrote, or any cross-encoder or language model on disk or on the hub.

        `precision`: auto (bfloat16 where the machine computes it natively), float32, bfloat16, float16. `backend`:
        torch, or onnx for a folder that `rerank export` wrote to; its precisions are float32 (auto) and int8.
        `reading`, for language models: `{"window": 10, "windowing": "disjoint"}` and the like (`Reading`).
        """
        return cls(load_policy(str(path), device, precision, max_length, backend, reading))

    def __repr__(self) -> str:
        return f"Reranker({self.policy.scorer.kind}, {getattr(self.policy.scorer, 'device', 'cpu')})"

    def save_pretrained(self, path: str | Path) -> None:
        """Write the model and its card to a folder; a cross-encoder loads in sentence-transformers too.

        A README.md that somebody wrote by hand is kept. `rerank push FOLDER OWNER/NAME` sends the folder to the hub.
        """
        save_policy(self.policy, Path(path))

    def rank(
        self,
        query: str,
        documents: Sequence[str | Mapping[str, Any]],
        top_k: int | None = None,
        first_stage: Mapping[str, Sequence[float]] | None = None,
        probabilities: bool = False,
        min_probability: float | None = None,
    ) -> list[Ranked]:
        """The `top_k` best documents (all by default), best first.

        A document is a text or a mapping with a `text`. `first_stage` may hold the scores that the model was trained
        with (retriever name -> a score for each document); without them the plain scorer decides. `probabilities`
        adds each document's probability of relevance, `min_probability` also drops the documents below it; both need a
        calibrated model.
        """
        candidates = self.candidates(query, documents, first_stage)
        checked_top_k(top_k)
        checked_floor(min_probability)
        probabilities = probabilities or min_probability is not None
        if probabilities:
            self._calibration(with_features=first_stage is not None)
        return self.ranking(candidates, self._logits([candidates]), top_k, probabilities, min_probability)

    def rank_many(
        self,
        questions: Iterable[tuple[str, Sequence[str | Mapping[str, Any]]]],
        top_k: int | None = None,
        first_stages: Sequence[Mapping[str, Sequence[float]] | None] | None = None,
    ) -> list[list[Ranked]]:
        """`rank` of each (query, documents), all of them scored together: less waiting, less padding.

        `first_stages` holds, for each question, what `rank` takes as its `first_stage`, or None.
        """
        checked_top_k(top_k)
        lists = self._lists(questions, first_stages)
        logits = self._logits(lists).split([len(candidates) for candidates in lists])
        return [self.ranking(candidates, own, top_k) for candidates, own in zip(lists, logits, strict=True)]

    def candidates(
        self,
        query: str,
        documents: Sequence[str | Mapping[str, Any]],
        first_stage: Mapping[str, Sequence[float]] | None = None,
    ) -> CandidateList:
        """The list that `rank` scores; InputError where a text or a score is none."""
        texts, query = checked_texts(documents), checked_text(query, "query")
        numbers = tuple(map(str, range(len(texts))))
        return CandidateList("query", query, numbers, tuple(texts), self._features(first_stage, len(texts)))

    def ranking(
        self,
        candidates: CandidateList,
        logits: Tensor,
        top_k: int | None = None,
        probabilities: bool = False,
        min_probability: float | None = None,
    ) -> list[Ranked]:
        """The documents of a list that the scorer gave `logits` [n], best first, its first-stage scores added.

        `min_probability` counts where `probabilities` are wanted. For callers that batch for themselves: logits are
        those of `policy.served_of`.
        """
        if tuple(logits.shape) != (len(candidates),):
            raise InputError(f"one logit for each of {len(candidates)} documents is needed, not {tuple(logits.shape)}")
        top_k, floor = checked_top_k(top_k), checked_floor(min_probability)
        if not len(candidates):
            return []
        # Only a policy of scores has first-stage scores to add.
        if isinstance(self.policy, ScorePolicy) and candidates.features:
            with torch.inference_mode():
                logits = self.policy.views(logits, [candidates])[0, 0]
        logits = logits.detach().cpu().double()
        scores = logits.numpy()
        order = np.argsort(-scores, kind="stable")[:top_k]
        if not probabilities:
            return [Ranked(int(i), float(scores[i]), candidates.texts[i]) for i in order]
        calibration = self._calibration(with_features=bool(candidates.features))
        # In float64, as thresholds are found: an isotonic map gives whole groups exactly the value of a threshold.
        found = calibration.probability(logits).numpy()
        return [
            Ranked(int(i), float(scores[i]), candidates.texts[i], float(found[i])) for i in order if found[i] >= floor
        ]

    def predict(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """Logits, float32 [n], of (query, document) pairs, without first-stage scores.

        A listwise model reads all documents that come with one query together.
        """
        if not _is_sequence(pairs) or not all(_is_sequence(pair) and len(pair) == 2 for pair in pairs):
            raise InputError("predict takes a sequence of (query, document) pairs")
        for i, (query, text) in enumerate(pairs):
            checked_text(query, f"the query of pair {i}")
            checked_text(text, f"the document of pair {i}")
        if len(pairs) == 0:
            return np.zeros(0, dtype=np.float32)
        lists, places = _as_lists(pairs, together=self.policy.in_order)
        with torch.inference_mode():
            flat = self.policy.eval().served_of(lists).float().cpu().numpy()
        scores = np.empty_like(flat)
        scores[places] = flat
        return scores

    def calibrated(self, with_features: bool = False) -> bool:
        """Whether probabilities can be had, of scores with the first stage's or of those without."""
        try:
            self._calibration(with_features)
        except InputError:
            return False
        return True

    @property
    def wants(self) -> tuple[str, ...]:
        """The retrievers whose scores the model was trained with and ranks better with; none for most models."""
        weights = self.policy.first_stage
        return weights.names if weights is not None and weights.active else ()

    def forget(self, beyond: int = 0) -> None:
        """Nothing; the model forgets its texts where they hold more than `beyond` bytes; safe at any time."""
        forget = getattr(self.policy.scorer, "forget", None)
        if forget is not None:
            forget(beyond)

    def _logits(self, lists: Sequence[CandidateList]) -> Tensor:
        """The scorer's own logits [n] of each candidate of each list, in order."""
        lists = [candidates for candidates in lists if len(candidates)]
        if not lists:
            return torch.zeros(0)
        with torch.inference_mode():
            return self.policy.eval().served_of(lists)

    def _calibration(self, with_features: bool) -> Calibration:
        """The calibration of the scores that will be given: with the first stage's, or without."""
        calibration, weights = self.policy.calibration, self.policy.first_stage
        if calibration is None:
            raise InputError(
                "this model is not calibrated, so it has scores and no probabilities: train it with kind = 'affine' "
                "under [calibrate] of the recipe, or call rerank.training.calibrate.Calibrate().run(reranker.policy, "
                "lists) with judged lists and save it"
            )
        active = weights is not None and weights.active
        if active and with_features:
            return calibration
        if active and calibration.plain is None:
            raise InputError(
                f"this model's probabilities are those of scores with the first stage's: give first_stage with "
                f"{list(weights.names) if weights else []}, or calibrate the model anew"
            )
        return calibration.plain or calibration

    def _lists(self, questions: Any, first_stages: Any) -> list[CandidateList]:
        """The list of each question, as `candidates` makes it; InputError, which names the question."""
        listed = isinstance(questions, Iterable) and not isinstance(questions, Mapping)
        asked: list[Any] = list(questions) if listed else [None]
        if not all(_is_sequence(question) and len(question) == 2 for question in asked):
            raise InputError("rank_many takes a sequence of (query, documents) pairs")
        stages = [None] * len(asked) if first_stages is None else list(first_stages)
        if len(stages) != len(asked):
            raise InputError(f"first_stages has {len(stages)} entries for {len(asked)} questions; give one for each")
        lists = []
        for i, ((query, documents), first_stage) in enumerate(zip(asked, stages, strict=True)):
            try:
                lists.append(self.candidates(query, documents, first_stage))
            except InputError as error:
                raise InputError(f"question {i}: {error}") from None
        return lists

    def _features(self, first_stage: Mapping[str, Sequence[float]] | None, n: int) -> dict[str, tuple[float, ...]]:
        """The scores that the model reads, checked; what it does not read is said once."""
        names = self.wants
        if first_stage is None:
            return {}
        if not names:
            self._say("this model uses no first-stage scores; those given are ignored")
            return {}
        if not isinstance(first_stage, Mapping):
            raise InputError(f"first_stage must map retriever names to scores, not be a {type(first_stage).__name__}")
        missing = [name for name in names if name not in first_stage]
        unread = [str(name) for name in first_stage if name not in names]
        if missing:
            hint = f"; {unread[0]!r} is unknown{nearest(unread[0], names)}" if unread else ""
            raise InputError(f"first_stage lacks {missing}; this model was trained with {list(names)}{hint}")
        if unread:
            self._say(f"first_stage holds scores of {unread}, and this model reads those of {list(names)} alone")
        return {name: checked_scores(first_stage[name], f"first_stage[{name!r}]", n) for name in names}

    def _say(self, warning: str) -> None:
        if warning not in self._told:
            self._told.add(warning)
            logger.warning("%s (said once)", warning)


def _as_lists(pairs: Sequence[tuple[str, str]], together: bool) -> tuple[list[CandidateList], list[int]]:
    """(lists, place in `pairs` of each of their candidates): one list a pair, or one for all pairs of a query."""
    groups: dict[str | int, list[int]] = {}
    for i, (query, _) in enumerate(pairs):
        groups.setdefault(query if together else i, []).append(i)
    lists = [
        CandidateList("query", pairs[places[0]][0], tuple(map(str, places)), tuple(pairs[i][1] for i in places))
        for places in groups.values()
    ]
    return lists, [i for places in groups.values() for i in places]


def _is_sequence(value: Any) -> bool:
    return isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, (str, bytes))
