"""How a model reads the lists of many questions together: document by document where it can, else list by list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from rerank.models.cross_encoder import CrossEncoderScorer
from rerank.models.encoder import VectorStore
from rerank.models.language.prompt_tokens import PromptTokenizer
from rerank.models.language.reading import ReadsLists
from rerank.models.light import LightScorer
from rerank.models.onnx import OnnxScorer
from rerank.models.pairs import PairTokenizer
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
    """Where they stand among the question's distinct texts."""


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
        self.texts = _texts_of(scorer)
        """What knows how many tokens of a text the model reads; None where nothing does."""
        self.longest = _longest(self.texts)
        """Tokens that are read at most: of a query and a document, or of each where a model reads them singly."""
        self.apart = getattr(scorer, "windowing", None) is None
        """Whether a document's score does not depend on the others."""

    def cost(self, query: str, text: str) -> int:
        """About how long a document takes, in tokens."""
        characters = len(query) + len(text)
        tokens = 3 + characters // CHARACTERS
        return min(tokens, self.longest or tokens) + characters // READ

    def notes(self, question: Question) -> tuple[str, ...]:
        """What the question asks for and this model cannot do."""
        found = []
        if question.max_tokens is not None and not isinstance(self.texts, PairTokenizer):
            found.append("max_tokens_per_doc has no effect: this model is no cross-encoder")
        if not question.truncate and self.longest is None:
            found.append("truncate: false has no effect: this model does not tell how much of a text it reads")
        return tuple(found)

    def read(self, slices: Sequence[Slice]) -> list[Found]:
        """The logits of each slice, all read together."""
        for part in slices:
            if not part.question.truncate:
                self._check_whole(part)
        with torch.inference_mode():
            if isinstance(self.texts, PairTokenizer):
                flat, counts = self._pairs_of(slices)
            else:
                flat = self.reranker.policy.eval().served_of([part.candidates for part in slices])
                counts = [self._tokens_of(part) for part in slices]
        logits = flat.float().cpu().split([len(part.candidates) for part in slices])
        return [Found(own, tokens) for own, tokens in zip(logits, counts, strict=True)]

    def _pairs_of(self, slices: Sequence[Slice]) -> tuple[Tensor, list[int]]:
        policy: Any = self.reranker.policy.eval()
        items, counts = [], []
        for part in slices:
            own = policy.scorer.encode([part.candidates])
            if part.question.max_tokens is not None:
                own = [item.cut(part.question.max_tokens) for item in own]
            items.extend(own)
            counts.append(sum(map(len, own)))
        return policy.served_logits(items), counts

    def _tokens_of(self, part: Slice) -> int:
        """Tokens that are read of a slice; the query of a light model is read once, with the first."""
        query, texts = part.question.query, part.candidates.texts
        if isinstance(self.texts, PromptTokenizer):
            return self.texts.tokens_read(query, texts)
        if isinstance(self.texts, VectorStore):
            return self.texts.tokens_read(texts if part.at else (query, *texts))
        return 0

    def _check_whole(self, part: Slice) -> None:
        """Nothing, where the model reads every text of a slice to its end."""
        if self.texts is None or self.longest is None:
            return
        for text in part.candidates.texts:
            if not self.texts.reads_whole(part.question.query, text):
                number = part.question.texts.index(text)  # as it was asked: a slice is of the distinct texts
                raise Refusal(422, f"document {number} {_too_long(self.texts)}", kind="Tokenizer")


def _texts_of(scorer: Any) -> PairTokenizer | PromptTokenizer | VectorStore | None:
    if isinstance(scorer, CrossEncoderScorer | OnnxScorer):
        return scorer.pairs
    if isinstance(scorer, LightScorer):
        return scorer.store
    return scorer.prompts if isinstance(scorer, ReadsLists) else None


def _longest(texts: PairTokenizer | PromptTokenizer | VectorStore | None) -> int | None:
    if isinstance(texts, PairTokenizer):
        return texts.max_length * texts.windows
    if isinstance(texts, PromptTokenizer):
        return texts.query_tokens + texts.document_tokens
    return texts.max_length if texts is not None else None


def _too_long(texts: PairTokenizer | PromptTokenizer | VectorStore) -> str:
    """What is wrong with a document of which not everything is read."""
    if isinstance(texts, PairTokenizer):
        found = f"and the query are longer than the {_longest(texts)} tokens that this model reads"
    elif isinstance(texts, PromptTokenizer):
        found = (
            f"or the query is longer than this model reads, which is {texts.document_tokens} tokens of a document and "
            f"{texts.query_tokens} of a query"
        )
    else:
        found = f"or the query is longer than the {texts.max_length} tokens that this model reads of a text"
    return f"{found}, and truncation was turned off: shorten it, or allow truncation"
