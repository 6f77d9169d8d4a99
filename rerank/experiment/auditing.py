"""The audit of a ranking that is already there, of a trained model's or of the run itself: is refinement worth it?"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

from rerank.composition import FIRST_STAGE, reward_named
from rerank.data import candidate_lists, load_collection, read_run
from rerank.errors import InputError
from rerank.experiment.reranking import retriever_scores
from rerank.lists import batch_of, features_of
from rerank.models.loading import load_policy
from rerank.training.audit import Audit, audit, audit_scores
from rerank.types import CandidateList, Run

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

logger = logging.getLogger("rerank.experiment")


def audit_run(
    collection: str,
    run: Path,
    model: str | None = None,
    reward: str = "nDCG@10",
    depth: int = 100,
    seed: int = 0,
) -> Audit:
    """What `reward` can gain on the judged queries of `run`, as `model` ranks its candidates, or as it is itself."""
    pays = reward_named(reward)
    loaded, first = load_collection(collection), read_run(run)
    judged = loaded.select(query_id for query_id, grades in loaded.qrels.items() if grades)
    if not judged.qrels:
        raise InputError(
            f"collection {collection} has no judgements, so nothing says what a ranking of it is worth: name a split "
            "(PATH#SPLIT), or add qrels"
        )
    if len(judged.queries) < len(loaded.queries):
        unjudged = len(loaded.queries) - len(judged.queries)
        logger.warning("%d of %d queries have no judgements; left out of the audit", unjudged, len(loaded.queries))
    if model is None:
        lists = candidate_lists(judged, first, {FIRST_STAGE: first}, depth)
        return audit_scores(_own_scores(lists), batch_of(lists), pays, seed=seed)
    policy = load_policy(model)
    features = {FIRST_STAGE: first}
    if policy.first_stage is not None and policy.first_stage.active:
        # Only what is audited is scored; and a retriever refuses queries that the collection does not have.
        kept = Run({q: r for q, r in first.top(depth).rankings.items() if q in judged.queries}, first.name)
        features |= retriever_scores(model, judged, kept, policy.first_stage.names)
    return audit(policy, candidate_lists(judged, first, features, depth), pays, seed=seed)


def audit_table(found: Audit) -> Table:
    """The numbers of an audit, for the terminal."""
    from rich import box
    from rich.table import Table as RichTable

    table = RichTable(box=box.SIMPLE_HEAD, title=f"Audit of {found.lists} lists against {found.reward}")
    table.add_column("")
    table.add_column("share of lists", justify="right")
    for name in ("without_relevant", "saturated", "at_the_edge", "out_of_reach", "lone_success"):
        table.add_row(name.replace("_", " "), f"{100 * getattr(found, name):.1f} %")
    table.add_section()
    table.add_row("", "mean", style="bold")
    for name in ("greedy", "ideal", "expected", "headroom", "deviation", "recall_ceiling", "top_ceiling"):
        value = getattr(found, name)
        table.add_row(name.replace("_", " "), "–" if value is None else f"{value:.3f}")  # noqa: RUF001
    return table


def _own_scores(lists: list[CandidateList]) -> Tensor:
    """The run's own scores [B, N] as a policy, -inf where padded: standardised, for runs have any scale."""
    scores = features_of(lists, [FIRST_STAGE])[..., 0]
    return scores.masked_fill(~batch_of(lists).mask, -math.inf)
