"""Benchmarks: suites of published sets, systems measured side by side on them, one table of all.

    suite_named -> Suite; model_choices -> [ModelChoice]; bench(suite, models, first stages, folder) -> Across

Importing this package loads nothing heavy; each name loads its module when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rerank.lazily import lazily

if TYPE_CHECKING:
    from rerank.bench.running import bench
    from rerank.bench.suites import BenchSet, Published, Suite, suite_named
    from rerank.bench.systems import ModelChoice, model_choices

__all__ = ["BenchSet", "ModelChoice", "Published", "Suite", "bench", "model_choices", "suite_named"]

_MODULES = {
    "running": ("bench",),
    "suites": ("BenchSet", "Published", "Suite", "suite_named"),
    "systems": ("ModelChoice", "model_choices"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__getattr__, __dir__ = lazily(__name__, __all__, _HOME)
