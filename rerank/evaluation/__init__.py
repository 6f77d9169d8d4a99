"""Measures, paired tests, comparison tables: from runs and judgements to a claim one may print.

    Run, Qrels -> evaluate -> Evaluation
    {arm: Run}, Qrels -> compare -> Table -> verdict(), to_markdown(), to_json()
    {set: Table} -> across.across -> Across -> the same, over several sets
    lists -> perturbed -> lists -> (a model) -> Run -> drop_of -> Drop

Importing this package loads nothing heavy; each name loads its module when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rerank.lazily import lazily

if TYPE_CHECKING:
    from rerank.evaluation.across import Across, OverSets, Speed
    from rerank.evaluation.measures import Evaluation, Measure, evaluate, parse_measure
    from rerank.evaluation.probes import PROBES, Drop, drop_of, perturbed
    from rerank.evaluation.significance import (
        bootstrap_interval,
        bootstrap_intervals,
        effect_size,
        holm,
        paired_t,
        signed_rank,
        stratified_intervals,
        stratified_t,
    )
    from rerank.evaluation.tables import Cell, Comparison, Table, compare

__all__ = [
    "PROBES",
    "Across",
    "Cell",
    "Comparison",
    "Drop",
    "Evaluation",
    "Measure",
    "OverSets",
    "Speed",
    "Table",
    "bootstrap_interval",
    "bootstrap_intervals",
    "compare",
    "drop_of",
    "effect_size",
    "evaluate",
    "holm",
    "paired_t",
    "parse_measure",
    "perturbed",
    "signed_rank",
    "stratified_intervals",
    "stratified_t",
]

_MODULES = {
    "across": ("Across", "OverSets", "Speed"),
    "measures": ("Evaluation", "Measure", "evaluate", "parse_measure"),
    "probes": ("PROBES", "Drop", "drop_of", "perturbed"),
    "significance": (
        "bootstrap_interval",
        "bootstrap_intervals",
        "effect_size",
        "holm",
        "paired_t",
        "signed_rank",
        "stratified_intervals",
        "stratified_t",
    ),
    "tables": ("Cell", "Comparison", "Table", "compare"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__getattr__, __dir__ = lazily(__name__, __all__, _HOME)
