"""rerank: clone a teacher's orderings, refine against the metric you report, prove the gain.

    from rerank import Reranker
    reranker = Reranker.from_pretrained("runs/quickstart/model/light")
    reranker.rank("how do I read a csv file", documents)

`import rerank` loads no torch: each public name is imported when it is first used.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rerank.data import load_collection as load_collection
    from rerank.evaluation.measures import evaluate as evaluate
    from rerank.experiment import train as train
    from rerank.recipe import load_recipe as load_recipe
    from rerank.reranker import Reranker as Reranker
    from rerank.types import CandidateList as CandidateList
    from rerank.types import Collection as Collection
    from rerank.types import Ordering as Ordering
    from rerank.types import Run as Run

__version__ = "0.1.0"

_HOME = {
    "CandidateList": "rerank.types",
    "Collection": "rerank.types",
    "Ordering": "rerank.types",
    "Reranker": "rerank.reranker",
    "Run": "rerank.types",
    "evaluate": "rerank.evaluation.measures",
    "load_collection": "rerank.data",
    "load_recipe": "rerank.recipe",
    "train": "rerank.experiment",
}

__all__ = sorted([*_HOME, "__version__"])

# In a checkout rewards/ and teachers/ lie beside this folder (pyproject.toml maps them into the package when it is
# built); this line lets a fresh checkout work before any install. In an installed package the condition is false.
if not (Path(__file__).parent / "rewards").is_dir():
    __path__.append(str(Path(__file__).parents[1]))


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rerank' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
