"""Code search without a download: find a Python function by the first sentence of its docstring.

The documents are the functions and methods of the standard library on the user's own machine, or of any folder of
Python files; the query of each is the first sentence of its docstring, which the document no longer holds. The one
relevant document of a query is the function that it was taken from (as in CodeSearchNet, Husain et al. 2019).

Left out: functions without a docstring, first sentences of fewer than four words, bodies of fewer than three lines,
test and vendored folders, and functions whose first sentence or whose text another function has already.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
import textwrap
import tokenize
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeAlias

from rerank.data.formats import is_unicode, log
from rerank.errors import InputError, NotFound, nearest
from rerank.types import Collection

MIN_WORDS = 4
MIN_LINES = 3
MAX_CHARACTERS = 2_000
TEST_SHARE = 0.2

_TESTS_AND_VENDORED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "node_modules"}
# Programs that come with some installations of Python and not with others.
_PROGRAMS = {"idlelib", "lib2to3", "turtledemo"}

_Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


class Pair(NamedTuple):
    """One function: its dotted name, the first sentence of its docstring, and its source without the docstring."""

    name: str
    sentence: str
    source: str


def read_code(path: Path | str | None = None, split: str | None = None) -> Collection:
    """The functions under `path` (default: the standard library) with their docstrings' first sentences as queries.

    `split` is `train` (80 %) or `test` (20 %), by the sha256 of the query id, so that a function stays on its side
    when others come or go; both have all documents. None takes all queries.
    """
    if split not in (None, "train", "test"):
        raise InputError(f"code has no split {split!r}{nearest(str(split), ['train', 'test'])}")
    root = Path(sysconfig.get_path("stdlib") if path is None else path)
    if not root.is_dir():
        raise NotFound(f"{root}: no such folder; a folder with Python files is needed")
    left_out = _TESTS_AND_VENDORED | (_PROGRAMS if path is None else set())
    files = tuple((file, file.stat().st_mtime_ns) for file in _files(root, left_out))
    pairs = _pairs(root, files)
    if not pairs:
        raise InputError(
            f"{root}: none of {len(files)} Python files has a function with a docstring of {MIN_WORDS} words or more "
            f"and {MIN_LINES} lines of body; give another folder"
        )
    queries = {f"q:{pair.name}": pair.sentence for pair in pairs}
    wanted = [query_id for query_id in queries if split is None or _is_test(query_id) == (split == "test")]
    name = ("python-stdlib" if path is None else root.resolve().name) + (f"#{split}" if split else "")
    return Collection(
        documents=_documents(root, files),
        queries={query_id: queries[query_id] for query_id in wanted},
        qrels={query_id: {query_id.removeprefix("q:"): 1} for query_id in wanted},
        name=name,
    )


def _is_test(query_id: str) -> bool:
    return int.from_bytes(hashlib.sha256(query_id.encode()).digest()[:8], "big") < TEST_SHARE * 2**64


def _files(root: Path, left_out: set[str]) -> list[Path]:
    return sorted(
        file
        for file in root.rglob("*.py")
        if not any(part in left_out or part.startswith(".") for part in file.relative_to(root).parts)
    )


@lru_cache(maxsize=2)
def _documents(root: Path, files: tuple[tuple[Path, int], ...]) -> dict[str, str]:
    return {pair.name: pair.source for pair in _pairs(root, files)}


# The times are only there to tell versions of the files apart.
@lru_cache(maxsize=2)
def _pairs(root: Path, files: tuple[tuple[Path, int], ...]) -> tuple[Pair, ...]:
    names: set[str] = set()
    sentences: set[str] = set()
    sources: set[str] = set()
    pairs: list[Pair] = []
    unread: list[Path] = []
    for file, _ in files:
        found = _pairs_of(file, ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"))
        if found is None:
            unread.append(file)
        for pair in found or ():
            if pair.name not in names and pair.sentence not in sentences and pair.source not in sources:
                pairs.append(pair)
                names.add(pair.name)
                sentences.add(pair.sentence)
                sources.add(pair.source)
    if unread:
        log.warning("%s: %d files are not Python that this version reads, such as %s", root, len(unread), unread[0])
    return tuple(pairs)


def _pairs_of(file: Path, module: str) -> list[Pair] | None:
    """The pairs of one file; None when it does not parse."""
    try:
        with tokenize.open(file) as stream:
            text = stream.read()
        with warnings.catch_warnings():
            # A file's invalid escapes are its author's business.
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return None
    # The lines as ast counts them: str.splitlines would also cut at the form feeds that separate sections.
    lines = text.split("\n")
    pairs = (_pair(node, f"{module}.{name}", lines) for name, node in _functions(tree, ""))
    return [pair for pair in pairs if pair is not None and is_unicode(pair.sentence + pair.source)]


def _functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, _Function]]:
    """(qualified name, node) of functions and methods; functions inside functions are part of the outer one."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + child.name, child
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.stmt | ast.ExceptHandler):
            yield from _functions(child, prefix)


def _pair(node: _Function, name: str, lines: list[str]) -> Pair | None:
    sentence = first_sentence(ast.get_docstring(node) or "")
    if len(sentence.split()) < MIN_WORDS or len(node.body) < 2:
        return None
    start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    docstring = node.body[0]
    # Comments between docstring and body stay; a body behind a semicolon on the docstring's line does not.
    head, body = lines[start - 1 : docstring.lineno - 1], lines[docstring.end_lineno or 0 : node.end_lineno]
    if not head or sum(not line.isspace() and line != "" for line in body) < MIN_LINES:
        return None
    source = textwrap.dedent("\n".join(head + body)).strip()
    if len(source) > MAX_CHARACTERS:
        source = source[: MAX_CHARACTERS + 1].rpartition("\n")[0] or source[:MAX_CHARACTERS]
    return Pair(name, sentence, source)


def first_sentence(docstring: str) -> str:
    """The first sentence of a docstring's first paragraph, on one line, without reStructuredText quotes.

    >>> first_sentence("Return the ``n`` best.  Ties\\nare kept.")
    'Return the n best.'
    """
    paragraph = " ".join(re.split(r"\n\s*\n", docstring.strip())[0].split())
    return re.split(r"(?<=[.!?]) ", paragraph)[0].replace("``", "")
