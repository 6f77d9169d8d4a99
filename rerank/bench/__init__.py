"""Benchmarks: suites of published sets, systems measured side by side on them, one table of all.

    suite_named -> Suite; model_choices -> [ModelChoice]; bench(suite, models, first stages, folder) -> Across

Importing this package loads nothing heavy; each name loads its module when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
