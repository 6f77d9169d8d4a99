"""The records that flow through rerank, and the protocols of its parts. Imports nothing of ours.

    Collection -> Run -> CandidateList -> Ordering -> Policy -> Run -> Table -> Report

Letters of all tensor shapes: B lists, N candidates, S sampled rankings, K cutoff, M judged documents.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, final

if TYPE_CHECKING:
    from torch import Generator, Tensor

Qrels: TypeAlias = Mapping[str, Mapping[str, int]]
"""query id -> doc id -> grade (an integer; 0 or less is not relevant)."""

Scores: TypeAlias = Mapping[str, Mapping[str, float]]
"""query id -> doc id -> score."""


@final
@dataclass(frozen=True)
class Collection:
    """Documents, queries and judgements; `data.load_collection` makes one from files, ids or Python objects."""

    documents: Mapping[str, str]
    """doc id -> text (the title, if any, is its beginning)."""
    queries: Mapping[str, str]
    """query id -> text."""
    qrels: Qrels = field(default_factory=dict)
    """Judgements; may name documents that are not here (they count in the ideal ranking)."""
    name: str = "collection"

    def select(self, query_ids: Iterable[str], name: str | None = None) -> Collection:
        """The same documents with only the given queries and their judgements."""
        wanted = set(query_ids)
        return Collection(
            documents=self.documents,
            queries={q: text for q, text in self.queries.items() if q in wanted},
            qrels={q: grades for q, grades in self.qrels.items() if q in wanted},
            name=name or self.name,
        )


@final
@dataclass(frozen=True)
class Run:
    """Ranked documents with scores for each query, best first, in the canonical order.

    Canonical order: float64 score descending, then the rank in an earlier run (the first stage), then doc id.
    """

    rankings: Mapping[str, tuple[tuple[str, float], ...]]
    """query id -> ((doc id, score), ...), best first, each doc id once."""
    name: str = "run"

    @classmethod
    def from_scores(cls, scores: Scores, name: str = "run", before: Run | None = None) -> Run:
        """The run that sorts `scores` canonically; ties fall back to the order of the run `before`, then to doc ids."""
        rankings = {}
        for query_id, by_doc in scores.items():
            unordered = next((d for d, s in by_doc.items() if s != s), None)
            if unordered is not None:
                raise ValueError(f"run {name!r}, query {query_id!r}: the score of document {unordered!r} is NaN")
            earlier = {d: i for i, (d, _) in enumerate(before.rankings.get(query_id, ()))} if before else {}
            last = len(earlier)
            ranked = sorted(by_doc.items(), key=lambda item: (-item[1], earlier.get(item[0], last), item[0]))
            rankings[query_id] = tuple((d, float(s)) for d, s in ranked)
        return cls(rankings, name)

    @property
    def scores(self) -> dict[str, dict[str, float]]:
        """query id -> doc id -> score."""
        return {q: dict(ranking) for q, ranking in self.rankings.items()}

    def doc_ids(self, query_id: str) -> tuple[str, ...]:
        """The ranked doc ids of one query; empty for a query that is not in the run."""
        return tuple(d for d, _ in self.rankings.get(query_id, ()))

    def top(self, depth: int) -> Run:
        """The run cut to its first `depth` documents a query."""
        return Run({q: ranking[:depth] for q, ranking in self.rankings.items()}, self.name)

    def tie_rate(self) -> float:
        """Share of neighbouring documents with equal scores, in [0, 1]; 0 for a run without neighbours."""
        pairs = [(a[1], b[1]) for ranking in self.rankings.values() for a, b in pairwise(ranking)]
        return sum(a == b for a, b in pairs) / len(pairs) if pairs else 0.0


@final
@dataclass(frozen=True)
class CandidateList:
    """One query with its candidates in first-stage order."""

    query_id: str
    query: str
    doc_ids: tuple[str, ...]
    texts: tuple[str, ...]
    features: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """retriever name -> its score of each candidate (NaN where it did not find the candidate)."""
    labels: tuple[int, ...] | None = None
    """Grade of each candidate, 0 where unjudged; None when the query has no judgements at all."""
    pool: tuple[int, ...] = ()
    """Grades of all judged documents of the query, candidates or not: what the reported ideal ranking is made of."""

    def __post_init__(self) -> None:
        n = len(self.doc_ids)
        for what, values in (("texts", self.texts), ("labels", self.labels)):
            if values is not None and len(values) != n:
                raise ValueError(f"list of query {self.query_id!r}: {len(values)} {what} for {n} doc_ids")
        _check_distinct(self.doc_ids, f"list of query {self.query_id!r}")

    def __len__(self) -> int:
        return len(self.doc_ids)

    def subset(self, indices: Sequence[int]) -> CandidateList:
        """The list with only the candidates at `indices`, in that order."""
        return CandidateList(
            query_id=self.query_id,
            query=self.query,
            doc_ids=tuple(self.doc_ids[i] for i in indices),
            texts=tuple(self.texts[i] for i in indices),
            features={name: tuple(values[i] for i in indices) for name, values in self.features.items()},
            labels=None if self.labels is None else tuple(self.labels[i] for i in indices),
            pool=self.pool,
        )


@final
@dataclass(frozen=True)
class Ordering:
    """A teacher's ranking of one list, best first; it may hold only a part of the candidates."""

    query_id: str
    doc_ids: tuple[str, ...]
    teacher: str
    scores: tuple[float, ...] | None = None
    """The teacher's score of each of `doc_ids`, when it has scores that mean something beyond their order."""

    def __post_init__(self) -> None:
        _check_distinct(self.doc_ids, f"ordering of query {self.query_id!r} by {self.teacher!r}")
        if self.scores is not None and not all(math.isfinite(s) for s in self.scores):
            raise ValueError(f"ordering of query {self.query_id!r} by {self.teacher!r}: a score is not finite")


def _check_distinct(doc_ids: Sequence[str], where: str) -> None:
    if len(set(doc_ids)) < len(doc_ids):
        twice = next(d for i, d in enumerate(doc_ids) if d in doc_ids[:i])
        raise ValueError(f"{where}: document {twice!r} is there twice")


class Rollout(NamedTuple):
    """Sampled rankings of B lists."""

    rankings: Tensor
    """[B, S, N] candidate indices, best first; padded candidates come last."""
    log_probs: Tensor
    """[B, S] log-probability of each ranking's first K places."""
    valid: Tensor
    """[B, S] False where a generated ranking was malformed (always True for score policies)."""


class Encoder(Protocol):
    """Texts to vectors, for dense retrieval and the light scorer."""

    @property
    def fingerprint(self) -> str:
        """Identifies the weights; an index made with another encoder is refused."""
        ...

    def encode(self, texts: Sequence[str]) -> Any:
        """A float32 array [len(texts), dim] with rows of unit length."""
        ...

    def save(self, folder: Path) -> None:
        """Write the encoder so that it can be loaded from `folder`."""
        ...


class Retriever(Protocol):
    """Finds candidates for queries."""

    name: str

    def retrieve(self, queries: Mapping[str, str], depth: int) -> Run:
        """The `depth` best documents of each query (query id -> text)."""
        ...

    def score(self, query: str, doc_ids: Sequence[str]) -> list[float]:
        """This retriever's score of given documents for one query text."""
        ...


class Teacher(Protocol):
    """Orders candidate lists."""

    name: str

    def __call__(self, lists: Iterable[CandidateList]) -> Iterator[Ordering]:
        """One ordering a list that the teacher can order; lists that it cannot order are left out."""
        ...


class Scorer(Protocol):
    """Gives each candidate of each list a score."""

    def __call__(self, lists: Sequence[CandidateList]) -> Tensor:
        """Scores [B, N], -inf where padded; logits, differentiable when gradients are on."""
        ...


class Policy(Protocol):
    """A distribution over the rankings of each list."""

    def scores(self, lists: Sequence[CandidateList]) -> Tensor:
        """Scores [B, N], -inf where padded; sorting by them gives the policy's most likely ranking."""
        ...

    def sample(self, lists: Sequence[CandidateList], n: int, generator: Generator) -> Rollout:
        """`n` rankings of each list."""
        ...

    def log_probs(self, lists: Sequence[CandidateList], rankings: Tensor) -> Tensor:
        """Log-probabilities [B, S] of rankings [B, S, K], differentiable."""
        ...


class Reward(Protocol):
    """What a ranking of a list is worth."""

    def __call__(self, rankings: Tensor, lists: Any) -> Tensor:
        """Rewards [B, S] of rankings [B, S, K] (candidate indices, best first) of a `ListBatch`."""
        ...


class SummedReward(Reward, Protocol):
    """A reward that is a sum of terms, each of a form whose expectation under Plackett-Luce is a known integral."""

    def terms(self, lists: Any) -> Sequence[Any]:
        """Terms with gain [B, N], weight [K] or [B, K], survival and counted [B, N] or None (`rewards.Factors`)."""
        ...


class ClosedFormReward(Reward, Protocol):
    """A reward whose expectation under Plackett-Luce is a formula of the scores."""

    def expected(self, scores: Tensor, lists: Any) -> Tensor:
        """Expected rewards [B] of the policy of scores [B, N], differentiable."""
        ...


class CombinedReward(Reward, Protocol):
    """A reward made of exact rewards: what it is worth, and expected to be, follows from theirs."""

    parts: tuple[Reward, ...]

    def combine(self, values: Tensor, lists: Any) -> Tensor:
        """Values [B, S, M] of the parts -> [B, S], differentiable."""
        ...
