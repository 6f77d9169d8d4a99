"""Perturbation probes: change what a ranking should not hang on, and see what it costs.

    lists -> perturbed(probe) -> lists -> the same model -> Run -> drop_of(plain, perturbed) -> Drop

    shuffle      candidates in another order: only ties and models that read whole lists can move
    distract     documents of other queries' lists are added at the end, none of them relevant to the query
    n-1          the model's first relevant document is taken away, judgement and all: does the rest keep its order?
    first-stage  the same queries with the candidates of another first stage (lists that the caller brings)
    typos        two keyboard slips in each query; its candidates stay (their scores by retrievers are the caller's)

Everything is keyed by seed and query id: the same lists give the same probe, in any order and any part of them. A
query that a probe cannot change is left out of both sides, and counted.
"""

from __future__ import annotations

import hashlib
import logging
import math
import random
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Collection as Container
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from rerank.errors import InputError, Mismatch, nearest
from rerank.evaluation.measures import Measure, evaluate, parse_measure
from rerank.evaluation.significance import bootstrap_interval, holm, paired_t
from rerank.evaluation.typos import mistyped
from rerank.types import CandidateList, Qrels, Run

logger = logging.getLogger("rerank.evaluation")

PROBES = ("shuffle", "distract", "n-1", "first-stage", "typos")

DISTRACTORS = 20
"""Documents that `distract` adds to a list."""


class Drop(NamedTuple):
    """What a probe costs on one measure, over the queries that it could change."""

    probe: str
    measure: str
    plain: float
    perturbed: float
    drop: float
    """plain - perturbed: above 0 the probe hurts."""
    low: float
    high: float
    """Its 95 % bootstrap interval over queries."""
    p: float
    """Of a paired t-test, not corrected."""
    queries: int
    moved: float
    """Share of the queries whose documents on both sides changed their order; NaN without a query."""
    left_out: int = 0
    """Judged queries of the plain run that the probe could not change."""


def perturbed(
    probe: str,
    lists: Sequence[CandidateList],
    plain: Run | None = None,
    seed: int = 0,
    *,
    qrels: Qrels | None = None,
    barred: Mapping[str, Container[str]] | None = None,
    other: Sequence[CandidateList] | None = None,
    distractors: int = DISTRACTORS,
) -> list[CandidateList]:
    """The lists under a probe, without those that it cannot change (said in the log, with their number).

    `n-1` needs `plain`, the model's run on the lists themselves; `first-stage` needs `other`, the lists of another
    first stage. With `qrels`, `distract` also spares relevant documents that are no candidates of their query, and
    knows the grades of what it adds; without, only candidates' labels are known. `barred` holds the documents that are
    no candidates of a query, whatever finds them (query id -> doc ids): `distract` adds none of them either.
    """
    if probe not in PROBES:
        raise InputError(f"unknown probe {probe!r}{nearest(str(probe), PROBES)}")
    if probe == "n-1":
        if plain is None:
            raise InputError("probe 'n-1' takes out what the model ranked first; give the plain run of the model")
        changed = [_without_first_relevant(c, plain) for c in lists]
    elif probe == "distract":
        if distractors < 1:
            raise InputError(f"{distractors} distractors were asked for; 1 or more can be added")
        changed = _distracted(lists, distractors, seed, qrels or {}, barred or {})
    elif probe == "first-stage":
        if other is None:
            raise InputError("probe 'first-stage' needs `other`: the lists of another first stage")
        found = {c.query_id: c for c in other}
        changed = [_swapped(c, found.get(c.query_id)) for c in lists]
    else:
        change: Callable[[CandidateList, int], CandidateList | None] = _shuffled if probe == "shuffle" else _mistyped
        changed = [change(c, seed) for c in lists]
    kept = [c for c in changed if c is not None]
    if len(kept) < len(lists):
        logger.warning("probe %s: %d of %d queries cannot be changed", probe, len(lists) - len(kept), len(lists))
    return kept


def drop_of(probe: str, plain: Run, perturbed: Run, qrels: Qrels, measure: str | Measure) -> Drop:
    """What `probe` costs: the plain run against the run on the perturbed lists, over the judged queries of the latter.

    Under `n-1` the document that was taken away leaves the plain ranking and the judgements, too.
    """
    if probe not in PROBES:
        raise InputError(f"unknown probe {probe!r}{nearest(str(probe), PROBES)}")
    measure = parse_measure(measure)
    unknown = [q for q in perturbed.rankings if q not in plain.rankings]
    if unknown and probe != "first-stage":
        raise Mismatch(f"probe {probe}: the plain run {plain.name!r} lacks query {unknown[0]!r}, which was perturbed")
    if unknown:
        logger.warning("probe first-stage: the first stage has nothing for %d queries of the other", len(unknown))
        perturbed = Run({q: r for q, r in perturbed.rankings.items() if q in plain.rankings}, perturbed.name)
    if probe == "n-1":
        taken = {q: _taken(q, plain, perturbed) for q in perturbed.rankings}
        qrels = {q: {d: g for d, g in grades.items() if d != taken.get(q)} for q, grades in qrels.items()}
        rankings = {q: tuple(e for e in ranking if e[0] != taken.get(q)) for q, ranking in plain.rankings.items()}
        plain = Run(rankings, plain.name)
    asked = {q: qrels[q] for q in perturbed.rankings if qrels.get(q)}
    left_out = sum(q not in perturbed.rankings for q in plain.rankings if qrels.get(q))
    if not asked:
        nothing = math.nan
        return Drop(probe, str(measure), *(nothing,) * 6, 0, nothing, left_out)
    found = (evaluate(run, asked, [measure], aloud=False).per_query[str(measure)] for run in (plain, perturbed))
    before, after = (np.array(list(values.values())) for values in found)
    low, high = bootstrap_interval(before - after)
    return Drop(
        *(probe, str(measure)),
        plain=float(before.mean()),
        perturbed=float(after.mean()),
        drop=float((before - after).mean()),
        low=low,
        high=high,
        p=paired_t(before, after),
        queries=len(asked),
        moved=sum(_moved(plain.doc_ids(q), perturbed.doc_ids(q)) for q in asked) / len(asked),
        left_out=left_out,
    )


def corrected_drops(
    probes: Mapping[str, Mapping[str, Sequence[Any]]],
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Set -> arm -> drops as mappings, with p corrected by Holm over all sets and arms of one probe."""
    rows = {
        name: {arm: [dict(d._asdict() if hasattr(d, "_asdict") else d) for d in drops] for arm, drops in arms.items()}
        for name, arms in probes.items()
    }
    families: dict[str, list[dict[str, Any]]] = {}
    for arms in rows.values():
        for drop in (drop for drops in arms.values() for drop in drops):
            families.setdefault(drop["probe"], []).append(drop)
    for family in families.values():
        p_values = [math.nan if drop["p"] is None else drop["p"] for drop in family]
        for drop, p in zip(family, holm(p_values), strict=True):
            drop["p_holm"] = p
    return rows


def _shuffled(candidates: CandidateList, seed: int) -> CandidateList | None:
    n = len(candidates)
    if n < 2:
        return None
    order = _key(seed, "shuffle", candidates.query_id).sample(range(n), n)
    # By luck nothing moved, as happens to one in two lists of two: turn it by one place.
    return candidates.subset(order if order != list(range(n)) else [*order[1:], order[0]])


def _distracted(
    lists: Sequence[CandidateList], distractors: int, seed: int, qrels: Qrels, barred: Mapping[str, Container[str]]
) -> list[CandidateList | None]:
    texts = {d: text for c in lists for d, text in zip(c.doc_ids, c.texts, strict=True)}
    documents = sorted(texts)
    unknown = sum(_relevant(c.pool) > _relevant(c.labels or ()) for c in lists if c.query_id not in qrels)
    if unknown:
        problem = "without qrels a distractor may be relevant"
        logger.warning(
            "probe distract: %s: %d queries have relevant documents that are no candidates", problem, unknown
        )
    changed, short = [], 0
    for c in lists:
        spared = {d for d, grade in qrels.get(c.query_id, {}).items() if grade >= 1} | {*barred.get(c.query_id, ())}
        added = _distractors(c, documents, texts, spared, distractors, seed)
        short += len(added) < distractors
        changed.append(_with_documents(c, added, texts, qrels.get(c.query_id, {})) if added else None)
    if short:
        few = f"fewer than {distractors} documents of others to add"
        logger.warning("probe distract: %d of %d queries have %s", short, len(lists), few)
    return changed


def _distractors(
    candidates: CandidateList,
    documents: Sequence[str],
    texts: Mapping[str, str],
    spared: Container[str],
    wanted: int,
    seed: int,
) -> list[str]:
    """Up to `wanted` of the documents: neither candidates nor `spared`, nor of the same text as a candidate."""
    own, own_texts = {*candidates.doc_ids, *spared}, set(candidates.texts)
    # A draw this long has enough documents, but for equal texts; only then are all of them looked through.
    likely = min(len(documents), wanted + len(own))
    for length in (likely, len(documents)):
        drawn = _key(seed, "distract", candidates.query_id).sample(range(len(documents)), length)
        fit = [d for d in (documents[i] for i in drawn) if d not in own and texts[d] not in own_texts]
        if len(fit) >= wanted:
            break
    return fit[:wanted]


def _with_documents(
    c: CandidateList, added: Sequence[str], texts: Mapping[str, str], grades: Mapping[str, int]
) -> CandidateList:
    """The list with documents at its end that its first stage knows nothing of."""
    nothing = (math.nan,) * len(added)
    return CandidateList(
        query_id=c.query_id,
        query=c.query,
        doc_ids=(*c.doc_ids, *added),
        texts=(*c.texts, *(texts[d] for d in added)),
        features={name: (*values, *nothing) for name, values in c.features.items()},
        labels=None if c.labels is None else (*c.labels, *(grades.get(d, 0) for d in added)),
        pool=c.pool,
    )


def _without_first_relevant(candidates: CandidateList, plain: Run) -> CandidateList | None:
    """The list without the relevant candidate that `plain` ranks highest; None unless another one remains."""
    grades = dict(zip(candidates.doc_ids, candidates.labels or (), strict=False))
    first = next((d for d in plain.doc_ids(candidates.query_id) if grades.get(d, 0) >= 1), None)
    if first is None or _relevant(tuple(grades.values())) < 2:
        return None
    rest = candidates.subset([i for i, d in enumerate(candidates.doc_ids) if d != first])
    pool = list(candidates.pool)
    if grades[first] in pool:
        pool.remove(grades[first])
    return replace(rest, pool=tuple(pool))


def _swapped(candidates: CandidateList, other: CandidateList | None) -> CandidateList | None:
    """The other first stage's list; None where it has none, or the same documents in the same order."""
    return None if other is None or other.doc_ids == candidates.doc_ids else other


def _mistyped(candidates: CandidateList, seed: int) -> CandidateList | None:
    query = mistyped(candidates.query, _key(seed, "typos", candidates.query_id))
    return None if query is None else replace(candidates, query=query)


def _taken(query_id: str, plain: Run, perturbed: Run) -> str:
    """The one document that the perturbed ranking lacks."""
    there = set(perturbed.doc_ids(query_id))
    taken = [d for d in plain.doc_ids(query_id) if d not in there]
    if len(taken) != 1 or len(there) != len(plain.doc_ids(query_id)) - 1:
        raise Mismatch(
            f"probe n-1, query {query_id!r}: the perturbed ranking of {len(there)} documents lacks {len(taken)} of the "
            f"plain ranking's {len(plain.doc_ids(query_id))}; one is taken away: rank both lists to their full length"
        )
    return taken[0]


def _moved(plain: Sequence[str], perturbed: Sequence[str]) -> bool:
    common = set(plain) & set(perturbed)
    return [d for d in plain if d in common] != [d for d in perturbed if d in common]


def _relevant(grades: Sequence[int]) -> int:
    return sum(grade >= 1 for grade in grades)


def _key(seed: int, *parts: str) -> random.Random:
    """A generator for the draw named by `parts`, the same on every machine."""
    digest = hashlib.sha256("\x1f".join([str(seed), *parts]).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))
