"""What `import rerank` offers, and what it costs."""

import subprocess
import sys
from pathlib import Path

import pytest

import rerank

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "sentence_transformers", "faiss", "bm25s", "ir_datasets", "matplotlib", "pytrec_eval")


def test_public_names_are_sorted_and_each_can_be_imported():
    assert rerank.__all__ == sorted(rerank.__all__)
    assert len(set(rerank.__all__)) == len(rerank.__all__)
    for name in rerank.__all__:
        assert getattr(rerank, name) is not None, name


def test_a_public_name_is_the_thing_itself():
    from rerank.reranker import Reranker
    from rerank.types import CandidateList

    assert rerank.Reranker is Reranker and rerank.CandidateList is CandidateList


def test_dir_lists_the_public_names_and_nothing_else():
    assert dir(rerank) == rerank.__all__


def test_an_unknown_name_is_an_attribute_error_that_lists_the_known():
    with pytest.raises(AttributeError, match=r"module 'rerank' has no attribute 'Rerankers'; it has .*, Reranker, "):
        rerank.Rerankers
    assert not hasattr(rerank, "nothing")


@pytest.mark.parametrize("module", ["rerank", "rerank.cli", "rerank.types", "rerank.errors", "rerank.teachers"])
def test_importing_it_loads_nothing_heavy(module):
    program = f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_the_names_for_type_checkers_are_the_names_at_run_time():
    source = (ROOT / "rerank" / "__init__.py").read_text(encoding="utf8")
    promised = {line.rsplit(" as ", 1)[1] for line in source.splitlines() if line.startswith("    from rerank.")}
    assert promised == set(rerank.__all__) - {"__version__"}


def test_the_version_is_the_projects():
    declared = [line for line in (ROOT / "pyproject.toml").read_text(encoding="utf8").splitlines() if "version" in line]
    assert declared[0] == f'version = "{rerank.__version__}"'
