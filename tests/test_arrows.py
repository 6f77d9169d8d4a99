"""Who may import whom: a walk over all import statements of rerank/, rewards/ and teachers/."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"rerank": ROOT / "rerank", "rerank.rewards": ROOT / "rewards", "rerank.teachers": ROOT / "teachers"}

FOUNDATION = {"types", "errors", "digests", "given", "lazily", "ties"}
PURE = FOUNDATION | {"lists", "plackett_luce", "randomness"}

# part of rerank -> the other parts that it may import. A part is a folder or a file of the package; the way up is
# types, errors < lists, plackett_luce < objective, engine < models < training < recipe < composition < experiment
# < bench, explore < cli; models < reranker < serving, integrations < cli
ARROWS = {
    "types": set(),
    "errors": set(),
    "digests": set(),
    "given": {"errors"},
    "lazily": set(),
    "ties": {"errors"},
    "randomness": set(),
    "plackett_luce": FOUNDATION,
    "lists": FOUNDATION,
    "objective": FOUNDATION | {"lists", "plackett_luce"},
    "engine": PURE,
    "prompting": PURE,
    "models": PURE | {"engine", "prompting"},
    "training": PURE | {"engine", "models", "objective"},
    "data": FOUNDATION,
    "retrieval": FOUNDATION | {"data"},
    "evaluation": FOUNDATION | {"data"},
    "report": FOUNDATION | {"data", "evaluation"},
    "rewards": set(),
    "teachers": FOUNDATION | {"data", "http", "prompting", "retrieval.fusion"},
    "reranker": PURE | {"engine", "models"},
    "toml": FOUNDATION,
    "recipe": FOUNDATION | {"evaluation.measures", "engine.precision", "toml", "training"},
    "composition": PURE
    | {"data", "evaluation", "models", "prompting", "recipe", "reranker", "retrieval", "rewards", "teachers"}
    | {"training"},
    "experiment": PURE
    | {"composition", "data", "engine", "evaluation", "models", "recipe", "report", "reranker", "retrieval"}
    | {"training"},
    "experiment.teaching": PURE | {"composition", "data", "engine", "experiment", "recipe", "teachers"},
    "experiment.keys": FOUNDATION | {"models", "prompting", "recipe", "teachers", "training"},
    "http": FOUNDATION,
    "listening": FOUNDATION,
    "bench": PURE
    | {"composition", "data", "evaluation", "experiment", "http", "models", "recipe", "report", "reranker"}
    | {"retrieval", "toml"},
    "explore": PURE
    | {"composition", "data", "evaluation", "experiment", "listening", "models", "recipe", "reranker", "retrieval"}
    | {"training"},
    "integrations": FOUNDATION | {"reranker"},
    "integrations.sentence_transformers": PURE | {"objective", "rewards", "models"},
    "serving": FOUNDATION | {"engine", "listening", "models", "reranker"},
    "cli": FOUNDATION
    | {"bench", "composition", "data", "evaluation", "experiment", "explore", "models", "recipe", "retrieval"}
    | {"report", "reranker", "serving", "toml"},
    "testing": FOUNDATION | {"lists", "objective", "plackett_luce"},
    "__init__": {"types", "data", "evaluation", "recipe", "reranker", "experiment"},
    "__main__": {"cli"},
}


def modules():
    """Module name -> path, for every file that is shipped."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *(p for p in parts if p != "__init__")))] = path
    return found


MODULES = modules()


def imported(name, path, at_run_time_only=False):
    """(imported module, whether at module level) for each import of a file, relative ones made absolute."""
    tree = ast.parse(path.read_text(encoding="utf8"))
    checking = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    outer = {id(node) for node in tree.body}
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if at_run_time_only and id(node) in checking:
            continue
        for target in targets(node, package):
            yield target, id(node) in outer


def targets(node, package):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
    base = ".".join([*above, *([node.module] if node.module else [])])
    # `from rerank import plackett_luce` imports a module, `from rerank.lists import pad` a name.
    return [f"{base}.{a.name}" if f"{base}.{a.name}" in MODULES else base for a in node.names]


def part_of(module):
    """The part of rerank that a module belongs to, by the longest name that has arrows of its own."""
    inner = module.removeprefix("rerank").lstrip(".") or "__init__"
    known = [part for part in ARROWS if inner == part or inner.startswith(part + ".")]
    assert known, f"{module} belongs to no part that tests/test_arrows.py knows: give it its arrows there"
    return max(known, key=len)


def allowed(module, target):
    part, inner = part_of(module), target.removeprefix("rerank").lstrip(".") or "__init__"
    own = part.split(".")[0]
    may = ARROWS[part] | {part, own}
    return any(inner == p or inner.startswith(p + ".") for p in may)


def of_ours(module):
    return module == "rerank" or module.startswith("rerank.")


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_lies_below_it(module):
    ours = {target for target, _ in imported(module, MODULES[module]) if of_ours(target)}
    assert not {target for target in ours if not allowed(module, target)}


def test_every_import_of_ours_names_a_module_that_is_there():
    for module, path in MODULES.items():
        for target, _ in imported(module, path):
            assert not of_ours(target) or target in MODULES, f"{module} imports {target}"


def test_rewards_need_torch_and_the_standard_library_alone():
    for module in (m for m in MODULES if part_of(m) == "rewards"):
        others = {t.split(".")[0] for t, _ in imported(module, MODULES[module]) if not t.startswith("rerank.rewards")}
        assert others <= {"torch", *sys.stdlib_module_names}, module


def test_rewards_and_teachers_are_imported_by_the_composition_root_and_the_few_that_are_named_here():
    importers = {
        (part, module)
        for module, path in MODULES.items()
        for target, _ in imported(module, path)
        for part in ("rewards", "teachers")
        if part_of(target if of_ours(target) else "rerank") == part != part_of(module)
    }
    assert importers == {
        ("rewards", "rerank.composition"),
        ("rewards", "rerank.integrations.sentence_transformers"),  # names become objects there for others' trainers
        ("teachers", "rerank.composition"),
        ("teachers", "rerank.experiment.keys"),
        ("teachers", "rerank.experiment.teaching"),
    }


@pytest.mark.parametrize("folder", ["rewards", "teachers"])
def test_siblings_are_imported_relatively_so_that_the_folder_can_be_lifted_out(folder):
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            assert not [n for n in names if n.startswith((f"rerank.{folder}", folder))], path.name


def test_the_package_never_takes_the_bare_names_that_a_user_may_own():
    for module, path in MODULES.items():
        taken = {t.split(".")[0] for t, _ in imported(module, path)} & {"rewards", "teachers", "benchmarks", "tests"}
        assert not taken, module


def test_nothing_imports_the_contract_tests():
    importers = [m for m, path in MODULES.items() for t, _ in imported(m, path) if t == "rerank.testing"]
    assert importers == []


def test_imports_at_module_level_have_no_cycle():
    below = {
        module: {t for t, outer in imported(module, path, at_run_time_only=True) if outer and t in MODULES} - {module}
        for module, path in MODULES.items()
    }
    done, under_way = set(), []

    def visit(module):
        assert module not in under_way, " -> ".join([*under_way[under_way.index(module) :], module])
        if module not in done:
            under_way.append(module)
            for target in sorted(below[module]):
                visit(target)
            done.add(under_way.pop())

    for module in MODULES:
        visit(module)
    assert done == set(MODULES)


def test_the_walk_sees_absolute_relative_inner_and_checking_imports(tmp_path):
    path = tmp_path / "recorded.py"
    path.write_text(
        "from typing import TYPE_CHECKING\nfrom .scored import by_score\nfrom . import judged\nimport rerank.types\n"
        "if TYPE_CHECKING:\n    from rerank import lists\ndef f():\n    from rerank.data.trec import read_run\n",
        encoding="utf8",
    )
    found = dict(imported("rerank.teachers.recorded", path))
    assert found == {
        "typing": True,
        "rerank.teachers.scored": True,
        "rerank.teachers.judged": True,
        "rerank.types": True,
        "rerank.lists": False,
        "rerank.data.trec": False,
    }
    assert "rerank.lists" not in dict(imported("rerank.teachers.recorded", path, at_run_time_only=True))
    assert allowed("rerank.teachers.recorded", "rerank.data.trec")
    assert not allowed("rerank.teachers.recorded", "rerank.lists")
    assert not allowed("rerank.teachers.recorded", "rerank.retrieval.bm25")
    assert not allowed("rerank.experiment.run", "rerank.teachers")
    assert allowed("rerank.experiment.teaching", "rerank.teachers")
