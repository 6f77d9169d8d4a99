"""How a model reads the lists of many questions together: document by document where it can, else list by list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from rerank.models.cross_encoder import CrossEncoderScorer
from rerank.models.onnx import OnnxScorer
from rerank.reranker import Reranker
from rerank.serving.asking import Question, Refusal
from rerank.types import CandidateList

CHARACTERS = 4
"""Of a token, about: what a text costs is needed before it is tokenized."""
READ = 100
"""Characters that are tokenized in the time that one token is scored in, about."""


class Slice(NamedTuple):
    """Documents of a question that are read in one turn."""

    question: Question
    candidates: CandidateList
    at: int
    """Where they stand among the question's texts."""


class Found(NamedTuple):
    """What was read of a slice."""

    logits: Tensor
    """[n], one for each of its documents."""
    tokens: int


@final
class Reader:
    """A reranker, as the turns of a desk use it; one thread at a time."""

    def __init__(self, reranker: Reranker) -> None:
        self.reranker = reranker
        scorer = reranker.policy.scorer
        self.pairs = scorer.pairs if isinstance(scorer, CrossEncoderScorer | OnnxScorer) else None
        """The tokenizer of a cross-encoder, which alone can say what it cuts."""
        self.apart = getattr(scorer, "windowing", None) is None
        """Whether a document's score does not depend on the others."""
        self.longest = self.pairs.max_length * self.pairs.windows if self.pairs else None

    def cost(self, query: str, text: str) -> int:
        """About how long a document takes, in tokens."""
        characters = len(query) + len(text)
        tokens = 3 + characters // CHARACTERS
        return min(tokens, self.longest or tokens) + characters // READ

    def notes(self, question: Question) -> tuple[str, ...]:
        """What the question asks for and this model cannot do."""
        if self.pairs is not None:
            return ()
        asked = {"max_tokens_per_doc": question.max_tokens is not None, "truncate: false": not question.truncate}
        return tuple(f"{name} has no effect: this model is no cross-encoder" for name, given in asked.items() if given)

    def read(self, slices: Sequence[Slice]) -> list[Found]:
        """The logits of each slice, all read together."""
        with torch.inference_mode():
            if self.pairs is None:
                flat = self.reranker.policy.eval().served_of([part.candidates for part in slices])
                counts = [0] * len(slices)
            else:
                flat, counts = self._pairs_of(slices)
        logits = flat.float().cpu().split([len(part.candidates) for part in slices])
        return [Found(own, tokens) for own, tokens in zip(logits, counts, strict=True)]

    def _pairs_of(self, slices: Sequence[Slice]) -> tuple[Tensor, list[int]]:
        policy: Any = self.reranker.policy.eval()
        items, counts = [], []
        for part in slices:
            if not part.question.truncate:
                self._check_whole(part)
            own = policy.scorer.encode([part.candidates])
            if part.question.max_tokens is not None:
                own = [item.cut(part.question.max_tokens) for item in own]
            items.extend(own)
            counts.append(sum(map(len, own)))
        return policy.served_logits(items), counts

    def _check_whole(self, part: Slice) -> None:
        """Nothing, where the model reads every text of a slice to its end."""
        assert self.pairs is not None  # the caller asked
        for i, text in enumerate(part.candidates.texts):
            if not self.pairs.reads_whole(part.question.query, text):
                raise Refusal(
                    422,
                    f"document {part.at + i} and the query are longer than the {self.longest} tokens that this model "
                    "reads, and truncation was turned off: shorten it, or allow truncation",
                    kind="Tokenizer",
                )
