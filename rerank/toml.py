"""TOML tables as the dataclasses that they fill: names, types and choices checked, each error with the key's path."""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from rerank.errors import InputError, RecipeError, nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")

SPOKEN = {int: "an int", float: "a number"}


def parsed(text: str, where: str = "") -> dict[str, Any]:
    """The tables of a TOML text; an error begins with `where`, if that is said."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{where and f'{where}: '}this is not TOML: {error}") from error


def parse_settings(texts: Sequence[str], where: str) -> dict[str, Any]:
    """The settings in texts such as `window=10`, the value as TOML writes it; a bare word is a text."""
    found: dict[str, Any] = {}
    for text in texts:
        name, is_given, value = text.partition("=")
        if not is_given or not name.strip():
            raise InputError(f"{where} {text!r} must be NAME=VALUE, such as window=10")
        try:
            found[name.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[name.strip()] = value
    return found


def built(cls: type[T], table: Any, where: str, hidden: tuple[str, ...] = ()) -> T:
    """The dataclass `cls` from a TOML table, which cannot set the fields `hidden`.

    Unknown keys and wrong types are errors that name the key.
    """
    if not isinstance(table, Mapping):
        raise RecipeError(f"[{where}] must be a table, not {table!r}")
    hints = get_type_hints(cls)
    known = {f.name: f for f in fields(cls) if f.name not in hidden}  # type: ignore[arg-type]
    for key in table:
        if key not in known:
            raise RecipeError(f"unknown key {_path(where, key)!r}{nearest(key, known)}")
    values = {key: _value(hints[key], value, _path(where, key)) for key, value in table.items()}
    for name, f in known.items():
        if name not in values and f.default is MISSING and f.default_factory is MISSING:
            raise RecipeError(f"{_path(where, name)!r} is missing: {cls.__name__} needs it")
    return cls(**values)


def _path(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _of_union(args, value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise RecipeError(f"{where} must be a list, not {value!r}")
        return tuple(_value(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Literal:
        if value not in args:
            raise RecipeError(f"{where} = {value!r} is not one of {', '.join(map(repr, args))}")
        return value
    if is_dataclass(hint):
        return built(hint, value, where)  # type: ignore[arg-type]
    return _plain(hint, origin, value, where)


def _of_union(args: tuple[Any, ...], value: Any, where: str) -> Any:
    problems = []
    for arg in args:
        if arg is type(None):
            continue
        try:
            return _value(arg, value, where)
        except RecipeError as error:
            problems.append(str(error))
    raise RecipeError("; or else: ".join(problems))


def _plain(hint: Any, origin: Any, value: Any, where: str) -> Any:
    if origin is not None or hint is Mapping:
        if not isinstance(value, Mapping):
            raise RecipeError(f"{where} must be a table, not {value!r}")
        return dict(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise RecipeError(f"{where} = {value!r} must be {SPOKEN.get(hint, f'a {hint.__name__}')}")
    return value
