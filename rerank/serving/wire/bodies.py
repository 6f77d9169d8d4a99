"""From the bytes of a request to the JSON object they say, or the refusal that says what is wrong with them.

    content type -> encoding -> size -> UTF-8 -> structure -> JSON -> keys, numbers and texts

What costs more than it says is found before anything is built from it: a bomb is inflated to one byte above the limit
and no further; nesting and the number of values are counted on the brackets and commas that stand outside of texts,
with searches of whole byte strings, so that 16 MB of them take a fraction of a second. What is parsed then is flat and
of a bounded number of values.

RFC 8259 leaves duplicate keys, lone surrogates and huge numbers to the reader; all are refused here, because two
readers that choose differently (a gateway that checks, a server that ranks) would see two requests in one body.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, final

from rerank.serving.asking import Refusal
from rerank.serving.limits import Limits, too_large

LEVELS = 32
"""How deep a body may be nested."""
DIGITS = 309
"""Digits of the largest number that a float holds."""
VALUES = 100_000
"""Values that a body may hold, or as many for each document as `FOR_EACH` says where that is more."""
FOR_EACH = 16
FIRST = 10_000
"""Bytes in which the nesting of a body with too many values is looked for."""
SHOWN = 40
"""Characters of a body that a message repeats, at most."""

ADVICE = "send it with -H 'Content-Type: application/json'"
EXAMPLE = '{"query": "...", "documents": ["..."]}'
MEDIA = re.compile(r"application/(?:[a-z0-9!#$&^_.-]+\+)?json")
WINDOWS = {"gzip": (31,), "x-gzip": (31,), "deflate": (15, -15)}
"""zlib's word for each encoding. What calls itself deflate is zlib's format by the standard, and often the bare one."""

BRACKETS = bytes.maketrans(b"{}", b"[]")
NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
ONE_DIGIT = bytes.maketrans(b"123456789", b"000000000")


def body_of(raw: bytes, headers: Mapping[str, str], limits: Limits) -> dict[str, Any]:
    """The JSON object of a body; Refusal (400, 413, 415, 422) where it is none, or a key, number or text is amiss."""
    given = {name.lower(): value for name, value in headers.items()}
    _check_type(given.get("content-type", ""))
    if len(raw) > limits.body:
        raise too_large(f"the body has {len(raw):,} bytes", f"{limits.body:,}", "body")
    raw = _inflated(raw, given.get("content-encoding", ""), limits)
    text = _decoded(raw)
    if not text.strip():
        raise Refusal(400, f"the body is empty, and must be a JSON object such as {EXAMPLE}")
    _check_structure(raw, max(VALUES, FOR_EACH * limits.documents))
    body = _parsed(text)
    if not isinstance(body, dict):
        raise Refusal(400, f"the body is {named(body)}, and must be a JSON object such as {EXAMPLE}")
    for where, problem, status in _amiss(body, ()):
        raise Refusal(status, f"{dotted(where)}: {problem}" if where else f"the body {problem}")
    return body


def named(value: Any) -> str:
    """What a JSON value is, in words for a message."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        return f"the text {_cut(value)}" if value else "an empty text"
    if isinstance(value, (int, float)):
        return f"the number {_cut(str(value), quoted=False)}" if _short(value) else "a very large number"
    return "a list" if isinstance(value, list) else "an object"


def dotted(where: tuple[str | int, ...]) -> str:
    """A place in a body: documents.3, first_stage.bm25.0; names that are long or odd are cut and escaped."""
    return ".".join(str(part) if isinstance(part, int) else _plain(part) for part in where)


def _short(value: float) -> bool:
    return abs(value) < 10**SHOWN or isinstance(value, float)


def _plain(name: str) -> str:
    return name if re.fullmatch(r"[\w-]{1,40}", name, re.ASCII) else _cut(name)


def _cut(text: str, quoted: bool = True) -> str:
    """A text for a message: escaped to ASCII, and cut."""
    text = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
    return ascii(text) if quoted else text


def _check_type(given: str) -> None:
    media, *parameters = (part.strip().lower() for part in given.split(";"))
    if not MEDIA.fullmatch(media):
        what = f"the content type is {_cut(given)}" if given else "the request has no content type"
        raise Refusal(415, f"{what}, and must be application/json: {ADVICE}")
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "charset" and value.strip().strip('"') not in ("utf-8", "utf8"):
            raise Refusal(415, f"the charset is {_cut(value.strip())}, and must be utf-8, as JSON is: {ADVICE}")


def _inflated(raw: bytes, encoding: str, limits: Limits) -> bytes:
    """The bytes without their content encoding."""
    names = [name.strip().lower() for name in encoding.split(",")]
    names = [name for name in names if name not in ("", "identity")]
    if not names:
        return raw
    if len(names) > 1 or names[0] not in WINDOWS:
        raise Refusal(415, f"the content encoding {_cut(encoding)} is not taken; identity, gzip or deflate are, once")
    problem = "is not in that format"
    for window in WINDOWS[names[0]]:
        stream = zlib.decompressobj(window)
        try:
            found = stream.decompress(raw, limits.body + 1)
        except zlib.error:
            continue
        if len(found) > limits.body:
            raise too_large(f"the body, decompressed, has more than {limits.body:,} bytes", f"{limits.body:,}", "body")
        if stream.eof and not stream.unused_data:
            return found
        problem = "goes on behind its end" if stream.eof else "ends before its end: it was cut on the way"
        break
    raise Refusal(400, f"the body says that it is {names[0]}, and {problem}")


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = f"0x{error.object[error.start]:02x}"
        # utf-8-sig counts from behind the byte order mark.
        offset = error.start + len(raw) - len(error.object)
        raise Refusal(400, f"the body is not UTF-8: byte {byte} at offset {offset} cannot stand there") from None


def _check_structure(raw: bytes, most: int) -> None:
    """Nothing, or the refusal of a body that is nested too deep, or holds more values or digits than are taken.

    Exact for JSON; for what is none, exact up to the place where the parser will stop.
    """
    bare = raw.replace(rb"\\", b"").replace(rb"\"", b"")
    # A value or a key is one text at most, and a text has two quotes.
    if bare.count(b'"') > 4 * most:
        raise _too_many(f"more than {2 * most:,} texts", most)
    outside = b"".join(bare.split(b'"')[::2])
    values = outside.count(b",") + outside.count(b"[") + outside.count(b"{")
    # Of too many values the first ones tell whether they are nested: all of them would take a second.
    if _deep(outside if values <= most else outside[:FIRST]):
        raise Refusal(400, f"the body is nested deeper than {LEVELS} levels; a request needs three")
    if values > most:
        raise _too_many(f"about {values:,} values", most)
    if b"0" * (DIGITS + 1) in outside.translate(ONE_DIGIT):
        raise Refusal(400, f"a number of the body has more than {DIGITS} digits")


def _too_many(given: str, most: int) -> Refusal:
    return Refusal(413, f"the body holds {given}; at most {most:,} are taken (rerank serve --max-documents raises it)")


def _deep(outside: bytes) -> bool:
    """Whether brackets nest deeper than `LEVELS`: each round takes the innermost pairs away, and with them a level."""
    left = outside.translate(BRACKETS, NOT_BRACKETS)
    for _ in range(LEVELS):
        if b"[]" not in left:
            break
        left = left.replace(b"[]", b"")
    # Brackets that are never closed are broken JSON; the parser says where, if it does not have to go too deep for it.
    return b"[]" in left or left.count(b"[") > LEVELS


@final
class _Repeated(dict[str, Any]):
    """An object that had a key twice."""

    key = ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    repeated, seen = _Repeated(found), set[str]()
    for key, _ in pairs:
        if key in seen:
            repeated.key = key
            break
        seen.add(key)
    return repeated


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        stands = text[error.pos : error.pos + SHOWN + 1]
        here = f"where {_cut(stands)} stands" if stands else "where it ends"
        said = error.msg[:1].lower() + error.msg[1:].removesuffix(" at")
        place = f"line {error.lineno}, column {error.colno}"
        raise Refusal(400, f"the body is not JSON: {said} at {place}, {here}") from None


def _amiss(value: Any, where: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str, int]]:
    """What is wrong in a value and in what it holds: (place, problem, status)."""
    if isinstance(value, str) and (surrogate := _surrogate(value)) is not None:
        yield where, f"has a lone surrogate at character {surrogate}: it is not valid Unicode", 422
    elif isinstance(value, float) and not math.isfinite(value):
        yield where, "numbers must be finite: NaN, Infinity and what is beyond 1.8e308 are not taken", 400
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _amiss(item, (*where, i))
    elif isinstance(value, dict):
        yield from _amiss_of(value, where)


def _amiss_of(value: dict[str, Any], where: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str, int]]:
    if isinstance(value, _Repeated):
        yield where, f"has the key {_cut(value.key)} twice", 400
    for key, item in value.items():
        if _surrogate(key) is not None:
            yield where, f"has the key {_cut(key)}, which holds a lone surrogate: it is not valid Unicode", 422
        yield from _amiss(item, (*where, key))


def _surrogate(text: str) -> int | None:
    """The place of the first lone surrogate, if there is one."""
    if text.isascii():
        return None
    try:
        text.encode("utf8")
    except UnicodeEncodeError as error:
        return error.start
    return None
