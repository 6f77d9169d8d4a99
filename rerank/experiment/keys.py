"""Every key of a recipe, with its default and meaning, read off the dataclasses that recipes are checked against.

`rerank keys` prints it as Markdown; docs/recipe.md is that output, and a test keeps it so.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from rerank.models.language.answering import Writing
from rerank.prompting.prompts import Prompt
from rerank.recipe import (
    ONLY_OF,
    CalibrationChoice,
    Data,
    Evaluation,
    Model,
    Recipe,
    Retrieval,
    Source,
    TeacherChoice,
)
from rerank.teachers import ChatSettings
from rerank.training.clone import Clone
from rerank.training.refine import Refine
from rerank.training.schedule import Schedule

HIDDEN = ("base", "text")
TABLES: tuple[tuple[str, type, str], ...] = (
    ("top level", Recipe, "The whole file."),
    ("[data]", Data, "What is learned from and what is reported on."),
    (
        "a source in [data]",
        Source,
        "`train` is one source or a list of them, `test` is one; a bare text is `collection`.",
    ),
    ("[retrieval]", Retrieval, "The first stage."),
    ("[teacher]", TeacherChoice, "Whose orderings are cloned."),
    ("[teacher.chat]", ChatSettings, 'A listwise language model behind an OpenAI-compatible endpoint, kind = "chat".'),
    ("[[models]]", Model, "What is trained; several are trained one after another on the same lists."),
    ("prompt in [[models]]", Prompt, "Words of your own; {mark}, {n} and {form} are filled in."),
    ("writing in [[models]]", Writing, "What a generative model writes."),
    ("[clone] and [refine]", Schedule, "Shared by both stages, and by [control], which is a cloning stage on labels."),
    ("[clone]", Clone, "Learning a teacher's orderings."),
    ("[refine]", Refine, "Raising a reward."),
    ("[calibrate]", CalibrationChoice, "What turns the refined model's scores into probabilities."),
    ("[evaluation]", Evaluation, "What the table shows."),
)


class Key(NamedTuple):
    """One key of a table."""

    name: str
    default: str
    meaning: str


def recipe_keys() -> str:
    """All keys as Markdown."""
    parts = [
        "# The keys of a recipe",
        "Made by `rerank keys` from the dataclasses that recipes are checked against; an unknown key is an error that\n"
        "names the nearest known one.",
    ]
    for title, kind, meaning in TABLES:
        rows = [f"| `{key.name}` | {key.default} | {key.meaning} |" for key in keys_of(kind)]
        parts.append(
            "\n".join([f"## {title}\n", f"{meaning}\n", "| key | default | meaning |", "|---|---|---|", *rows])
        )
    return "\n\n".join(parts) + "\n"


def keys_of(kind: type) -> Iterator[Key]:
    """The keys that a dataclass adds to those of its parents; a default of its own is one more reason to be told."""
    meanings = {name: text for parent in reversed(kind.__mro__[:-1]) for name, text in _meanings(parent).items()}
    hints = get_type_hints(kind)
    inherited = {f.name: _default(f) for f in fields(Schedule)} if kind in (Clone, Refine) else {}
    for f in fields(kind):  # type: ignore[arg-type]
        default = _default(f)
        if f.name in HIDDEN or inherited.get(f.name) == default:
            continue
        meaning = " ".join((*_choices(hints[f.name]), meanings.get(f.name, ""))).strip()
        kinds = ONLY_OF.get(f.name, ()) if kind is Model else ()
        if kinds and kinds[-1] not in meaning:
            meaning = f"({', '.join(kinds)}) {meaning}"
        yield Key(f.name, default, _cell(meaning))


def _choices(hint: Any) -> Iterator[str]:
    """The words that are allowed, where only some are."""
    kinds = [hint, *get_args(hint)]
    words = [word for one in kinds if get_origin(one) is Literal for word in get_args(one)]
    if words and get_origin(hint) is Literal:
        yield f"One of {', '.join(map(_toml, words))}."


def _default(field: Any) -> str:
    if field.default is not MISSING:
        return _cell(f"`{_toml(field.default)}`") if field.default is not None else "none"
    if field.default_factory is not MISSING:
        made = field.default_factory()
        return "empty" if made == {} else "its own keys' defaults"
    return "**required**"


def _toml(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return (
            f"[{', '.join(map(_toml, value))}]" if not value or isinstance(value[0], str) else "one model of defaults"
        )
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _meanings(kind: type) -> dict[str, str]:
    """Field -> the text under it; a class of its own module alone is read, its parents' fields are their own."""
    if kind.__module__ not in sys.modules or not kind.__module__.startswith("rerank"):
        return {}
    tree = ast.parse(inspect.getsource(kind)).body[0]
    assert isinstance(tree, ast.ClassDef)  # the source of a class is one
    found: dict[str, str] = {}
    for node, following in zip(tree.body, tree.body[1:], strict=False):
        told = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and told:
            found[node.target.id] = str(following.value.value)  # type: ignore[attr-defined]
    return found


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().replace("|", "\\|")
