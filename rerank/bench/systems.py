"""What is measured: models of ours, cross-encoders of sentence-transformers, and rerank endpoints, through one seam.

    --model NAME=WHERE  or  WHERE        a folder, a hub id, http(s)://..., tei+http://...#MODEL

Each list is ranked by itself and timed around its ranking alone: loading a model, its warm-up and the first-stage
scores that it reads come before the clock starts.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol, final

from rerank.bench.endpoint import KEY_VARIABLE, HttpReranker
from rerank.bench.naming import URL, check_names, check_spoken, named_place
from rerank.errors import InputError, nearest
from rerank.experiment.journal import Ranking
from rerank.experiment.reranking import (
    AUTOMATIC,
    Build,
    Loading,
    built_anew,
    model_digest,
    ranked_alone,
    retrieval_of,
    with_features,
)
from rerank.models.backbones import SETTINGS
from rerank.models.encoder import VectorStore
from rerank.models.language.generative import AnyPolicy
from rerank.models.light import LightScorer
from rerank.models.loading import BACKENDS
from rerank.models.onnx import FILES
from rerank.retrieval.dense import Dense
from rerank.types import CandidateList, Collection, Run

_WARM_UP = 8
"""Candidates of the list that is ranked once before the clock runs."""


@final
class ModelChoice(NamedTuple):
    """A model and what it is called in the table."""

    name: str
    where: str
    key: str | None = None
    """Of an endpoint: NAME of the environment variable that holds its key."""


def model_choices(texts: Sequence[str], keys: Mapping[str, str] | None = None) -> list[ModelChoice]:
    """The models of `--model NAME=WHERE` or `WHERE`; without a name, the last parts of the place that tell them apart.

    `keys`: model -> NAME of the environment variable that holds the key of its endpoint.

    >>> [choice.name for choice in model_choices(["runs/a/model", "runs/b/model", "mini=org/mini-l6"])]
    ['a-model', 'b-model', 'mini']
    """
    given = [named_place(text, "--model") for text in texts]
    parts = [_parts(where) for _, where in given]
    choices = []
    for i, (name, where) in enumerate(given):
        others = [other for j, other in enumerate(parts) if j != i and given[j][1] != where]
        called = name or _telling(parts[i], others)
        choices.append(ModelChoice(called, where, (keys or {}).get(called)))
    check_names([choice.name for choice in choices], "model")
    _check_keys(choices, keys or {})
    return choices


def _check_keys(choices: Sequence[ModelChoice], keys: Mapping[str, str]) -> None:
    """Nothing, where each key goes to the one server that it is of."""
    endpoints = {choice.name: choice for choice in choices if URL.match(choice.where)}
    for name in keys:
        if name not in endpoints:
            raise InputError(f"--key {name}=...: there is no endpoint of that name{nearest(name, endpoints)}")
    hosts = {_parts(choice.where)[0] for choice in endpoints.values() if choice.key is None}
    if len(hosts) > 1 and os.environ.get(KEY_VARIABLE):
        raise InputError(
            f"{KEY_VARIABLE} is set, and would go to {' and '.join(sorted(hosts))}: give each endpoint a key of its "
            "own with --key NAME=VARIABLE"
        )


def _parts(where: str) -> list[str]:
    """The parts of a place that can be in a name, the last one last."""
    if URL.match(where):
        address, _, model = where.partition("#")
        host = URL.sub("", address).strip("/").partition("/")[0].rpartition("@")[2]
        return [re.sub(r"[^A-Za-z0-9._-]+", "-", part) for part in (host, model) if part]
    folder = Path(where).expanduser()
    # `.` and `..` tell nothing; the folder that they stand for does.
    place = folder.resolve() if folder.is_dir() else folder
    return [cleaned for part in place.parts if (cleaned := re.sub(r"[^A-Za-z0-9._-]+", "-", part).strip("-."))]


def _telling(parts: Sequence[str], others: Sequence[Sequence[str]]) -> str:
    """The fewest last parts that no other place ends with."""
    for n in range(1, len(parts)):
        if not any([*other[-n:]] == [*parts[-n:]] for other in others):
            return "-".join(parts[-n:])
    return "-".join(parts)


def check_loading(loading: Loading) -> None:
    """Nothing, where backend, precision and device are names of something, whether or not a model will be loaded."""
    import torch

    if loading.backend not in BACKENDS:
        raise InputError(f"backend {loading.backend!r} is not known{nearest(str(loading.backend), BACKENDS)}")
    exported = ("auto", *FILES)
    if loading.backend != "onnx":
        Loading("cpu", loading.precision).number_format  # noqa: B018 - an error where there is no such thing
    elif loading.precision not in exported:
        raise InputError(f"precision {loading.precision!r} is not known{nearest(str(loading.precision), exported)}")
    try:
        torch.device("cpu" if loading.device is None else loading.device)
    except (RuntimeError, TypeError):
        raise InputError(f"device {loading.device!r} is not known; give 'cpu', 'cuda', 'cuda:1' or 'mps'") from None


class System(Protocol):
    """A reranker that is measured."""

    name: str

    def identity(self) -> str:
        """What tells it apart: a digest of a folder's files, the URL and model of an endpoint."""
        ...

    @property
    def reads(self) -> str:
        """What it is given beside the texts, in words; that is made before the clock starts."""
        ...

    def prepared(self, lists: Sequence[CandidateList], collection: Collection, first: Run) -> list[CandidateList]:
        """The lists with what it reads beside the texts: first-stage scores."""
        ...

    def ranked(self, lists: Sequence[CandidateList]) -> Iterator[tuple[str, Ranking, float]]:
        """(query id, ranking, seconds) of each prepared list."""
        ...


@final
class LocalModel:
    """A model that runs in this process; loaded when the first list is ranked, and once."""

    def __init__(self, name: str, where: str, loading: Loading = AUTOMATIC, build: Build = built_anew) -> None:
        self.name, self.where, self.loading = name, where, loading
        self._build = build
        """Where the retrievers come from whose scores it reads."""
        self._warm = False
        self._index: Dense | None = None

    def identity(self) -> str:
        """The digest of its files, or the commit of a hub model; and how it is loaded."""
        settings = ", ".join(f"{key} {value}" for key, value in self.loading.description().items())
        return f"{self._digest} ({settings})"

    @property
    def reads(self) -> str:
        """The first-stage scores that it was trained with, and whether vectors of documents may be ready-made."""
        file = Path(self.where).expanduser() / SETTINGS
        settings = json.loads(file.read_text(encoding="utf8")) if file.is_file() else {}
        weights = settings.get("first_stage") or {}
        told = [f"scores of {', '.join(weights['weights'])}"] if weights.get("active") else []
        told += ["vectors of documents from a dense index of its encoder"] if settings.get("kind") == "light" else []
        return "; ".join(told)

    def prepared(self, lists: Sequence[CandidateList], collection: Collection, first: Run) -> list[CandidateList]:
        """The lists with the first-stage scores that the model was trained with, if any.

        A document that a probe added has its retrievers' scores, but none of the first stage itself (NaN).
        """
        own = Run({c.query_id: _with_added(first.rankings[c.query_id], c.doc_ids) for c in lists}, first.name)
        self._index = self._index_of(collection)
        return with_features(self.policy, self.where, collection, own, lists, self._build)

    def ranked(self, lists: Sequence[CandidateList]) -> Iterator[tuple[str, Ranking, float]]:
        """As `rerank rank` ranks each list; but a light model has its documents' vectors from the index it reads."""

        def rank(candidates: CandidateList, store: VectorStore | None) -> Ranking:
            return ranked_alone(self.policy, candidates, self.name, store=store)

        if lists and not self._warm:
            first = lists[0].subset(range(min(_WARM_UP, len(lists[0]))))
            rank(first, self._vectors(first))
            self._warm = True
        return _timed(lists, rank, self._vectors)

    def _index_of(self, collection: Collection) -> Dense | None:
        """The dense index whose scores a light model reads, if it is of the model's own encoder."""
        scorer, weights = self.policy.scorer, self.policy.first_stage
        if not isinstance(scorer, LightScorer) or weights is None or not weights.active or "dense" not in weights.names:
            return None
        (index,) = self._build(retrieval_of(self.where, ("dense",)), collection)
        own = isinstance(index, Dense) and index.encoder.fingerprint == scorer.store.encoder.fingerprint
        return index if own else None  # type: ignore[return-value]

    def _vectors(self, candidates: CandidateList) -> VectorStore | None:
        """The vectors of the candidates, where the index has them: what a light model is made for."""
        scorer = self.policy.scorer
        if self._index is None or not isinstance(scorer, LightScorer):
            return None
        store = VectorStore(scorer.store.encoder)
        store.add(candidates.texts, self._index.vectors(candidates.doc_ids))
        return store

    @cached_property
    def policy(self) -> AnyPolicy:
        """The model, loaded."""
        return self.loading.policy(self.where)

    @cached_property
    def _digest(self) -> str:
        return model_digest(self.where, self.loading.backend)


def _with_added(ranking: Ranking, doc_ids: Sequence[str]) -> Ranking:
    """The ranking, and below it those of the documents that it does not have."""
    there = {doc_id for doc_id, _ in ranking}
    return (*ranking, *((doc_id, math.nan) for doc_id in doc_ids if doc_id not in there))


@final
class Endpoint:
    """A rerank endpoint, timed as a client sees it: with the network, and the waits of a busy server."""

    def __init__(self, name: str, where: str, key: str | None = None) -> None:
        self.name, self.client = name, HttpReranker(where, key=key)  # connects when it is first asked
        self._warm = False

    def identity(self) -> str:
        """Its URL and the model named there; what runs behind them cannot be known."""
        return self.client.identity()

    reads = ""

    def prepared(self, lists: Sequence[CandidateList], collection: Collection, first: Run) -> list[CandidateList]:
        """The lists as they are: an endpoint reads texts alone."""
        return list(lists)

    def ranked(self, lists: Sequence[CandidateList]) -> Iterator[tuple[str, Ranking, float]]:
        """One request (or as many as the server's limits ask for) a list; equal scores keep the first stage's order."""

        def rank(candidates: CandidateList, _: object) -> Ranking:
            scores = self.client.scores(candidates.query, candidates.texts)
            by_doc = dict(zip(candidates.doc_ids, scores, strict=True))
            before = Run({candidates.query_id: tuple((d, 0.0) for d in candidates.doc_ids)})
            return Run.from_scores({candidates.query_id: by_doc}, self.name, before).rankings[candidates.query_id]

        if lists and not self._warm:
            rank(lists[0].subset([0]), None)  # opens the connection; one text, for requests cost money
            self._warm = True
        return _timed(lists, rank)


def _timed(
    lists: Sequence[CandidateList],
    rank: Callable[[CandidateList, VectorStore | None], Ranking],
    vectors: Callable[[CandidateList], VectorStore | None] = lambda _: None,
) -> Iterator[tuple[str, Ranking, float]]:
    for candidates in lists:
        store = vectors(candidates)
        began = time.perf_counter()
        ranking = rank(candidates, store)
        yield candidates.query_id, ranking, time.perf_counter() - began


def system_of(choice: ModelChoice, loading: Loading = AUTOMATIC, build: Build = built_anew) -> System:
    """The system that a choice names; nothing is loaded yet."""
    check_spoken(choice.where, "model")
    if URL.match(choice.where):
        return Endpoint(choice.name, choice.where, choice.key)
    return LocalModel(choice.name, choice.where, loading, build)
