"""Public names of a package that load their module when they are first asked for, so that importing it is cheap.

__getattr__, __dir__ = lazily(__name__, __all__, {"Table": "tables", "compare": "tables"})
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazily(
    package: str, names: Sequence[str], home: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` (PEP 562) of `package`; `home` says in which of its modules each name is."""

    def named(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{home[name]}"), name)

    def listed() -> list[str]:
        return sorted({*vars(importlib.import_module(package)), *names})

    return named, listed
