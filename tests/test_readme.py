"""What README.md shows must be true: its Python compiles and imports, its recipe parses, its commands exist."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"))
def test_every_name_that_the_readme_imports_exists(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert getattr(module, alias.name)


def test_the_recipe_of_the_readme_is_a_recipe(tmp_path):
    from rerank.recipe import parse_recipe

    text, *fragments = blocks("toml")
    recipe = parse_recipe(text, tmp_path)
    assert recipe.name == "my-search"
    assert len([line for line in text.splitlines() if line.strip()]) < 30
    for fragment in fragments:  # keys go in front of the tables, another model behind them
        named = fragment.replace("[[models]]", '[[models]]\nname = "other"')
        whole = text + named if fragment.startswith("[") else fragment + text
        assert parse_recipe(whole, tmp_path) != recipe


def test_the_recipes_of_the_listwise_page_are_parts_of_a_recipe(tmp_path):
    from rerank.composition import chat_settings
    from rerank.recipe import parse_recipe

    page = (Path(__file__).parents[1] / "docs" / "listwise.md").read_text(encoding="utf8")
    whole = 'name = "x"\n[data]\ntrain = "a"\ntest = "b"\n'
    models, teacher = (
        parse_recipe(whole + text, tmp_path) for text in re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    )
    assert models.models[0].reads_lists
    assert models.clone_of(models.models[0]).list_size == 20
    assert chat_settings(teacher.teacher).concurrency == 8


def test_the_recipe_of_the_rewards_page_is_a_refinement(tmp_path):
    from rerank.composition import reward_of
    from rerank.recipe import parse_recipe

    page = (Path(__file__).parents[1] / "docs" / "rewards.md").read_text(encoding="utf8")
    (text,) = re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL)
    whole = 'name = "x"\n[data]\ntrain = "a"\ntest = "b"\n' + text
    refine = parse_recipe(whole, tmp_path)
    assert reward_of(refine.refine_of(refine.models[0])).name == "AP"
    mixed = whole.replace('reward = "AP(rel=2)"', "").replace('# reward = { "nDCG@10"', 'reward = { "nDCG@10"')
    mixture = parse_recipe(mixed, tmp_path)
    assert reward_of(mixture.refine_of(mixture.models[0])).name == "0.7 nDCG@10 + 0.3 RR@10"


def test_the_teacher_of_the_readme_keeps_the_contract():
    from rerank.testing import check_teacher

    code = next(code for code in blocks("python") if "class Shortest" in code)
    names: dict = {}
    exec(code, names)
    check_teacher(names["Shortest"]())


def test_the_reward_of_the_readme_keeps_the_contract():
    from rerank.rewards import FunctionReward
    from rerank.testing import check_reward

    code = next(code for code in blocks("python") if "def short_first" in code)
    names: dict = {}
    exec(code, names)
    check_reward(FunctionReward(names["short_first"]), bounds=(0.0, 1.0), follows_grades=False)


def test_every_command_of_the_readme_exists_and_every_command_is_in_the_readme():
    from rerank.cli import app

    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    named = set(re.findall(r"^\| `rerank (\w+)", README, flags=re.MULTILINE))
    assert named == known


def test_every_folder_of_the_map_exists():
    root = Path(__file__).parents[1]
    tree = re.search(r"## What is where\n(.*?)\n## ", README, flags=re.DOTALL).group(1)
    names = re.findall(r"(?<![\w./])([\w/]*\w(?:/|\.py))(?=[\s]|$)", tree)
    assert len(names) > 20
    for name in names:
        assert (root / name).exists() or (root / "rerank" / name).exists(), name


def test_the_page_of_recipe_keys_is_what_the_command_prints():
    from rerank.experiment.keys import recipe_keys

    page = (Path(__file__).parents[1] / "docs" / "recipe.md").read_text(encoding="utf8")
    assert page == recipe_keys(), "run: rerank keys > docs/recipe.md"


def test_the_tables_of_the_readme_are_made_of_the_results_that_lie_in_benchmarks():
    from benchmarks import readme

    assert {found["name"] for found in readme.BLOCK.finditer(README)} == set(readme.TABLES)
    assert readme.written(README) == README, "run `python benchmarks/readme.py`"
