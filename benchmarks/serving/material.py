"""What is served and asked: three models and real lists, those of benchmarks/speed.py.

    cross-encoder   MiniLM with one output after a short clone (speed/material.py), 128 tokens a pair
    light           cosine of MiniLM's vectors, the head still zero
    listwise        a two-layer language model with random weights, which reads all documents of a list together

The lists are BM25's top 100 of TREC DL 2020, cut into slices of 20 documents: each round has its own. Long documents
are SciFact's. Without MiniLM or the data, or in a tiny run, weights are random and texts made up; `source` says so.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from speed.material import material as of_speed
from speed.plan import QUICK, TINY

from rerank.errors import MissingDependency
from rerank.models.backbones import backbone_path, load_encoder
from rerank.models.language.listwise import ListwiseScorer
from rerank.models.language.reading import Reading
from rerank.models.light import LightScorer
from rerank.models.loading import load_policy, save_policy
from rerank.models.policy import ScorePolicy
from rerank.types import CandidateList

from .plan import Plan

TESTS = Path(__file__).resolve().parents[2] / "tests"


class Question(NamedTuple):
    """One list to rank."""

    query: str
    texts: tuple[str, ...]


class Material(NamedTuple):
    """All that is measured on."""

    models: dict[str, Path]
    """cross-encoder, listwise, and light where MiniLM is installed."""
    rounds: list[list[Question]]
    warm: list[Question]
    """Lists that warm a side up, and are in no round."""
    long: list[Question]
    """Lists of long documents."""
    source: dict[str, str]

    def small(self, number: int, words: int, place: int) -> list[Question]:
        """Questions of 1 to 4 documents, each cut to so many words; another `place` is other documents."""
        everything = [question for questions in self.rounds for question in questions]
        found = []
        for i in range(number):
            query, texts = everything[(place * number + i) % len(everything)]
            n, turn = 1 + i % 4, (place * number + i) // len(everything)
            chosen = [texts[(turn * 4 + k) % len(texts)] for k in range(n)]
            found.append(Question(query, tuple(" ".join(text.split()[:words]) for text in chosen)))
        return found


def material(plan: Plan, folder: Path) -> Material:
    """The models, written to a folder, and the lists."""
    amounts = TINY if plan.tiny else QUICK
    queries = plan.queries + max(2, plan.queries // 8)
    depth = plan.documents * plan.rounds
    given = of_speed(replace(amounts, queries=queries, depth=depth, long_queries=6, long_depth=10), None, "cpu")
    lists = given.tasks["trec_dl"].lists
    models = {"cross-encoder": folder / "cross-encoder", "listwise": folder / "listwise"}
    save_policy(load_policy(str(given.checkpoint), "cpu", "float32", plan.length), models["cross-encoder"])
    _write_listwise(models["listwise"], plan)
    if not plan.tiny and _write_light(folder / "light"):
        models["light"] = folder / "light"
    rounds = [[_slice(c, r, plan.documents) for c in lists[: plan.queries]] for r in range(plan.rounds)]
    warm = [_slice(c, 0, plan.documents) for c in lists[plan.queries :]]
    return Material(models, rounds, warm, [_slice(c, 0, 10) for c in given.tasks["scifact"].lists], given.source)


def _slice(given: CandidateList, number: int, documents: int) -> Question:
    return Question(given.query, given.texts[number * documents : (number + 1) * documents])


def _write_light(folder: Path) -> bool:
    try:
        encoder = load_encoder(backbone_path("minilm"), "float32", "cpu")
    except MissingDependency:
        return False
    save_policy(ScorePolicy(LightScorer(encoder, 64)), folder)
    return True


def _write_listwise(folder: Path, plan: Plan) -> None:
    """Nothing; the tests' tiny language model is in the folder."""
    sys.path.append(str(TESTS))
    import tiny_language_models as tiny

    reading = Reading(window=20, document_tokens=plan.length // 2, query_tokens=32)
    network = tiny.model("llama", hidden=32 if plan.tiny else 64, heads=4, context=8192)
    save_policy(ScorePolicy(ListwiseScorer(network, tiny.tokenizer(), reading, "float32")), folder)
