"""What a measured thing is called, and where it is: NAME=WHERE or WHERE, as the command line gives it.

A name is that of files (NAME.trec) and of folders beside our own, on any system. A folder whose path has a `=` in it,
and a URL with one behind its `?`, are places as they stand.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rerank.errors import InputError

FIRST = "first_stage"
"""The file stem of a first stage's own run, which no model may take."""
PROBE = ".probe-"
"""Between a model's name and a probe's, in the name of a run."""
OURS = (".json", ".jsonl", ".trec")
"""Endings of files that we write, which no name may have: a first stage `done.json` would be a folder in our way."""
RULE = "a name is made of letters (A to Z), digits, '-', '_' and '.', and begins with a letter or a digit"
URL = re.compile(r"([A-Za-z0-9_.-]+\+)?https?:", re.IGNORECASE)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SCHEME = re.compile(r"(?:[A-Za-z0-9_.-]+\+)?([A-Za-z][A-Za-z0-9.-]*)://")


def named_place(text: str, option: str) -> tuple[str, str]:
    """The name and the place of NAME=WHERE, or no name and the whole text."""
    name, mark, where = text.partition("=")
    if not mark or _is_url(text) or Path(text).expanduser().exists():
        name, where = "", text
    elif not _NAME.fullmatch(name):
        if _is_url(where) or (where and Path(where).expanduser().exists()):  # then NAME=WHERE was meant
            raise InputError(f"{option}: {name!r} before the = cannot be a name: {RULE}")
        name, where = "", text
    if not where.strip():
        raise InputError(f"{option} {text!r} names no place; write NAME=WHERE, or WHERE alone")
    check_spoken(where, option)
    return name, where


def check_spoken(where: str, option: str) -> None:
    """Nothing, where `where` is no URL, or one of a kind that is spoken."""
    scheme = _SCHEME.match(where)
    if scheme and not URL.match(where):  # the rest may hold a password
        raise InputError(
            f"{option} {scheme[1]}://...: only http and https are spoken; give http(s)://host[:port]/path, or a folder "
            "by its path"
        )


def check_names(names: Sequence[str], what: str) -> None:
    """Nothing, where all `names` can be names of files side by side, on any system."""
    instead = f"NAME={'RUN' if what == 'first stage' else 'WHERE'}"
    seen: set[str] = set()
    for name in names:
        if not _NAME.fullmatch(name):
            raise InputError(f"{what} {name!r}: {RULE}; give another one as {instead}")
        if name.casefold() == FIRST or name.casefold().endswith(OURS) or PROBE in name:
            raise InputError(
                f"{what} {name!r}: this is how files of ours are called ({FIRST}, *{PROBE}*, *{', *'.join(OURS)}); "
                f"give another name as {instead}"
            )
        if name.casefold() in seen:
            raise InputError(f"two {what}s are called {name!r}: tell them apart with {instead}, or leave one out")
        seen.add(name.casefold())


def _is_url(text: str) -> bool:
    return bool(URL.match(text) or _SCHEME.match(text))
