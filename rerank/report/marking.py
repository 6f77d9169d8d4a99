"""The words of a query in a text, marked; script.js.j2 marks the same ones."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markupsafe import Markup

_WORD = re.compile(r"[^\W_]+")

_SMALL = frozenset(
    "and are but can did does for from had has have how its not that the their them then there these they this was "
    "were what when where which who why will with you your".split()
)
"""Words of three letters or more that say nothing of what is asked."""


def marked(text: str, query: str) -> Markup:
    """The text, escaped, with the words that it shares with the query marked."""
    from markupsafe import Markup, escape

    words = (w for w in _WORD.findall(query.lower()) if (len(w) > 2 or not w.isascii()) and w not in _SMALL)
    wanted = {_stem(word) for word in words}
    parts, end = [], 0
    for found in _WORD.finditer(text):
        if _stem(found[0].lower()) in wanted:
            parts += [escape(text[end : found.start()]), Markup("<mark>"), escape(found[0]), Markup("</mark>")]
            end = found.end()
    return Markup("").join([*parts, escape(text[end:])])


def _stem(word: str) -> str:
    """The word without the `s` of a plural."""
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
