"""Retrieval measures as trec_eval computes them, in the canonical order of a `Run`.

trec_eval (through pytrec_eval) sorts by score, breaks ties by document id and reads scores as float32, so that a
scorer with many equal scores may be judged on an order that nobody saw. We hand it strictly decreasing integers
instead: what is measured is the run's own ranking, whatever its scores look like.

Measures are spelled as ir_measures spells them: `nDCG@10`, `RR@10`, `AP`, `AP(rel=2)`, `R(rel=2)@100`, `Judged@10`.
NDCG has linear gain, log2(rank + 1) discount and its ideal over all judged documents, also those not in the run.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import final

from rerank.errors import InputError, Mismatch, nearest
from rerank.types import Qrels, Run

logger = logging.getLogger("rerank.evaluation")

_ALIASES = {
    "ndcg": "nDCG",
    "ndcg_cut": "nDCG",
    "rr": "RR",
    "mrr": "RR",
    "recip_rank": "RR",
    "ap": "AP",
    "map": "AP",
    "map_cut": "AP",
    "r": "R",
    "recall": "R",
    "p": "P",
    "precision": "P",
    "success": "Success",
    "judged": "Judged",
}
_NEEDS_CUTOFF = {"R", "P", "Success", "Judged"}
_GRADED = {"nDCG", "Judged"}
"""Measures that do not ask from which grade on a document is relevant."""
_SPELLING = re.compile(r"([a-z]+(?:_[a-z]+)*)(?:\(rel=(\d+)\))?(?:[@_](\d+))?")


@final
@dataclass(frozen=True)
class Measure:
    """A retrieval measure; `str()` gives its one spelling."""

    name: str
    """nDCG, RR, AP, R, P, Success or Judged."""
    cutoff: int | None = None
    """Only the first `cutoff` documents count; None for all."""
    rel: int = 1
    """The lowest grade that is relevant."""

    def __str__(self) -> str:
        rel = f"(rel={self.rel})" if self.rel != 1 else ""
        return f"{self.name}{rel}" + (f"@{self.cutoff}" if self.cutoff is not None else "")

    @property
    def trec_name(self) -> str:
        """What pytrec_eval calls it, where the run is cut beforehand for RR."""
        cut = {"nDCG": "ndcg", "AP": "map", "RR": "recip_rank", "R": "recall", "P": "P", "Success": "success"}[
            self.name
        ]
        if self.cutoff is None or self.name == "RR":
            return cut
        return f"{cut}_cut.{self.cutoff}" if self.name in ("nDCG", "AP") else f"{cut}.{self.cutoff}"


@final
@dataclass(frozen=True)
class Evaluation:
    """Values of one run, averaged over all judged queries."""

    per_query: Mapping[str, Mapping[str, float]]
    """measure -> query id -> value, for each judged query; 0 where the run has nothing for it."""
    mean: Mapping[str, float]
    missing: int
    """Judged queries for which the run has no document."""
    without_relevant: int
    """Judged queries none of whose documents is relevant (grade 1 or more); no system can score above 0 on them."""
    n: int
    """Judged queries."""


def parse_measure(text: str | Measure) -> Measure:
    """The measure that `text` names, in any case.

    >>> str(parse_measure("ndcg_cut_10")), str(parse_measure("map(REL=2)@100"))
    ('nDCG@10', 'AP(rel=2)@100')
    """
    if isinstance(text, Measure):
        return text
    match = _SPELLING.fullmatch(re.sub(r"\s", "", str(text)).casefold())
    name = _ALIASES.get(match[1]) if match else None
    if match is None or name is None:
        known = [str(Measure(n, None if n == "AP" else 10)) for n in dict.fromkeys(_ALIASES.values())]
        raise InputError(f"unknown measure {text!r}{nearest(str(text), known)}")
    rel, cutoff = int(match[2] or 1), int(match[3]) if match[3] else None
    if name in _NEEDS_CUTOFF and cutoff is None:
        raise InputError(f"measure {text!r} needs a cutoff: write {name}@10")
    if cutoff == 0 or rel == 0:
        raise InputError(f"measure {text!r}: the cutoff and rel must be 1 or more")
    if match[2] and name in _GRADED:
        raise InputError(f"measure {text!r}: {name} does not depend on a lowest relevant grade; leave (rel=...) out")
    return Measure(name, cutoff, rel)


def evaluate(run: Run, qrels: Qrels, measures: Iterable[str | Measure], aloud: bool = True) -> Evaluation:
    """The values of `run` on every judged query, and their means.

    A judged query is one with at least one judgement. One that the run does not answer, and one without a relevant
    document, count 0 (as with trec_eval's -c) and are counted in the result. The former are also said, if `aloud`; who
    evaluates one run several times says it once.
    """
    wanted = list(dict.fromkeys(map(parse_measure, [measures] if isinstance(measures, str) else measures)))
    if not wanted:
        raise InputError("no measure was given; give at least one, such as nDCG@10")
    judged = _judgements(qrels)
    rankings = _rankings(run, judged)
    found = {m: _judged_share(rankings, judged, m) for m in wanted if m.name == "Judged"}
    for group in _groups(m for m in wanted if m.name != "Judged"):
        found.update(_trec_eval(rankings, judged, group))
    per_query = {str(m): {q: found[m].get(q, 0.0) for q in judged} for m in wanted}
    missing = len(judged) - len(rankings)
    if missing and aloud:
        logger.warning(
            "run %r has no document for %d of %d judged queries; each counts 0", run.name, missing, len(judged)
        )
    return Evaluation(
        per_query=per_query,
        mean={name: math.fsum(values.values()) / len(judged) for name, values in per_query.items()},
        missing=missing,
        without_relevant=sum(max(grades.values()) < 1 for grades in judged.values()),
        n=len(judged),
    )


def _judgements(qrels: Qrels) -> dict[str, dict[str, int]]:
    """The judged queries with their grades as plain integers."""
    judged: dict[str, dict[str, int]] = {}
    for query_id, grades in qrels.items():
        for doc_id, grade in grades.items():
            if int(grade) != grade:
                raise InputError(
                    f"qrels: query {query_id!r}, document {doc_id!r}: the grade {grade!r} is not an integer; round it"
                )
            judged.setdefault(query_id, {})[doc_id] = int(grade)
    if not judged:
        raise InputError("there are no judgements to evaluate against: qrels has no query with a judged document")
    return judged


def _rankings(run: Run, judged: Mapping[str, object]) -> dict[str, tuple[str, ...]]:
    """query id -> doc ids, best first, for the judged queries that the run answers."""
    rankings = {}
    for query_id in judged:
        ranking = run.rankings.get(query_id, ())
        doc_ids = tuple(d for d, _ in ranking)
        if len(set(doc_ids)) < len(doc_ids):
            twice = next(d for i, d in enumerate(doc_ids) if d in doc_ids[:i])
            raise InputError(
                f"run {run.name!r}: query {query_id!r} ranks {twice!r} twice; each document may appear once"
            )
        unordered = next((d for d, score in ranking if math.isnan(score)), None)
        if unordered is not None:
            raise InputError(
                f"run {run.name!r}: query {query_id!r}: the score of {unordered!r} is NaN, so that the ranking means "
                "nothing; find out where the scorer fails"
            )
        if doc_ids:
            rankings[query_id] = doc_ids
    if not rankings:
        raise Mismatch(
            f"run {run.name!r} and the judgements have no query in common (the run has {sorted(run.rankings)[:3]}, "
            f"the judgements have {sorted(judged)[:3]}); check that both speak of the same queries and write ids alike"
        )
    return rankings


def _groups(measures: Iterable[Measure]) -> list[list[Measure]]:
    """Measures that one pass can compute: the same lowest relevant grade, and the same cut of the run for RR."""
    groups: dict[tuple[int, int | None], list[Measure]] = {}
    for measure in measures:
        groups.setdefault((measure.rel, measure.cutoff if measure.name == "RR" else None), []).append(measure)
    return list(groups.values())


def _trec_eval(
    rankings: Mapping[str, tuple[str, ...]], judged: Mapping[str, dict[str, int]], measures: list[Measure]
) -> dict[Measure, dict[str, float]]:
    """measure -> query id -> value, of measures that belong to one group."""
    import pytrec_eval

    depth = measures[0].cutoff if measures[0].name == "RR" else None
    run = {q: {d: float(len(docs) - i) for i, d in enumerate(docs[:depth])} for q, docs in rankings.items()}
    # trec_eval gives a negative grade no gain, as it does 0; but a query with negative grades alone makes it write
    # outside its memory (seen in pytrec_eval-terrier 0.5.11).
    grades = {q: {d: max(g, 0) for d, g in judged[q].items()} for q in rankings}
    evaluator = pytrec_eval.RelevanceEvaluator(grades, {m.trec_name for m in measures}, relevance_level=measures[0].rel)
    results = evaluator.evaluate(run)
    return {m: {q: values[m.trec_name.replace(".", "_")] for q, values in results.items()} for m in measures}


def _judged_share(
    rankings: Mapping[str, tuple[str, ...]], judged: Mapping[str, dict[str, int]], measure: Measure
) -> dict[str, float]:
    """query id -> share of the first documents that somebody judged; of those that are there when the list is short."""
    tops = {q: docs[: measure.cutoff] for q, docs in rankings.items()}
    return {q: sum(d in judged[q] for d in top) / len(top) for q, top in tops.items()}
