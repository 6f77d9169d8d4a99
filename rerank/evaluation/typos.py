"""Slips of the keyboard in a query, as people make them: the probe `typos`."""

from __future__ import annotations

import random
import re
import unicodedata
from types import MappingProxyType

_NEIGHBOURS = MappingProxyType(
    {
        letter: "".join(row[i + step] for step in (-1, 1) if 0 <= i + step < len(row))
        for row in ("qwertyuiop", "asdfghjkl", "zxcvbnm")
        for i, letter in enumerate(row)
    }
)
"""Letter -> the letters beside it on a QWERTY keyboard."""

_WORD = re.compile(r"[^\W\d_]{4,}")


def mistyped(query: str, key: random.Random) -> str | None:
    """The query with two slips of the keyboard; None where it has no word that can be mistyped.

    Words are runs of four or more letters of a script with capitals. What looks like a name of something stays as it
    is: digits, underscores, dots or slashes inside, capitals beyond the first letter.
    """
    spans = _words(query)
    if not spans:
        return None
    # Two slips in one word may undo each other (a swap and the same swap); then others are drawn.
    for _ in range(100):
        slips = dict.fromkeys(key.sample(spans, 2), 1) if len(spans) > 1 else {spans[0]: 2}
        changed = query
        # From the right, so that the left word still stands where it stood.
        for (start, end), times in sorted(slips.items(), reverse=True):
            word = changed[start:end]
            for _ in range(times):
                word = _slip(word, key)
            changed = changed[:start] + word + changed[end:]
        if changed != query:
            return changed
    return None


def _words(query: str) -> list[tuple[int, int]]:
    """Where the words stand that can be mistyped."""
    found = []
    for token in re.finditer(r"\S+", query):
        core = token[0].strip("\"'`.,;:!?()[]{}<>«»“”‘’¿¡…–—-")  # noqa: RUF001 - quotation marks and dashes are meant
        if re.search(r"[\d_./\\@:=#~^|]", core) or any(map(unicodedata.combining, core)):
            continue
        for word in _WORD.finditer(token[0]):
            if _ordinary(word[0], query):
                found.append((token.start() + word.start(), token.start() + word.end()))
    return found


def _ordinary(word: str, query: str) -> bool:
    """Whether a run of letters is a word: capitals at its beginning alone, or throughout in a query of capitals."""
    cased = all(c.lower() != c.upper() for c in word)
    return cased and (word[1:] == word[1:].lower() or (word.isupper() and query.isupper()))


def _slip(word: str, key: random.Random) -> str:
    """The word with one slip: two letters swapped, one left out, one doubled, or the key beside it hit."""
    at = key.randrange(len(word))
    slips = [word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:]]
    if at + 1 < len(word) and word[at] != word[at + 1]:
        slips.append(word[:at] + word[at + 1] + word[at] + word[at + 2 :])
    beside = _NEIGHBOURS.get(word[at].lower())
    if beside:
        hit = key.choice(beside)
        slips.append(word[:at] + (hit.upper() if word[at].isupper() else hit) + word[at + 1 :])
    return key.choice(slips)
