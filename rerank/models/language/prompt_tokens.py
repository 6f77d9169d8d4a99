"""Prompts to token ids: one item for a query and the candidates that are shown with it.

    pieces (prompts.py) -> ids, each document cut to its budget -> [BOS or chat template] + ids + "["

Our own words, names and brackets are tokenized together, up to the next query or document; these stand apart from them,
so that no text of theirs becomes a part of ours. Tokenizers that put a blank before a text (SentencePiece) put none
where it stands within another: what they make of a part is what it adds to the text before it (`Within`).

Candidates are called by names that the tokenizer knows as single tokens (A, B, ...): what follows the last bracket is
then one token, and the logits of the names there are the candidates' scores. Numbers (1, 2, ...), which may be several
tokens, are for models that write their answer. Special tokens in queries and documents are split; those of a chat
template, which transformers renders in a sandbox around a place holder, are kept.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import product
from string import ascii_lowercase, ascii_uppercase
from typing import Any, Literal, NamedTuple, final

import numpy as np

from rerank.errors import InputError
from rerank.models.texts import ID, Cuts, TextIds, plain
from rerank.prompting.prompts import Piece, Prompt, pieces
from rerank.types import CandidateList

logger = logging.getLogger("rerank.models")

LEADS = ("\n", "x", "1", ")")
"""What may stand before a text that stands within another: of these, one that it does not merge with."""

Naming = Literal["letters", "numbers"]
PLACE_HOLDER = "rerank-message-9f1c"


class PromptItem(NamedTuple):
    """One encoded prompt: token ids of type `ID`, as bytes, and the number of candidates that it shows."""

    ids: bytes
    width: int

    def __len__(self) -> int:
        return len(self.ids) // ID.itemsize


def names_of(tokenizer: Any, n: int, naming: Naming) -> list[str]:
    """`n` names for candidates: letters that are single tokens of their own, or the numbers from 1."""
    if naming == "numbers":
        return [str(i + 1) for i in range(n)]
    found: list[str] = []
    taken: set[int] = set()
    for name in _letters():
        ids = name_ids(tokenizer, name)
        if len(ids) == 1 and ids[0] not in taken and ids[0] != tokenizer.unk_token_id:
            taken.add(ids[0])
            found.append(name)
        if len(found) == n:
            return found
    raise InputError(
        f"the tokenizer {type(tokenizer).__name__} has {len(found)} names that are single tokens ("
        f"{' '.join(found[:8])}{' ...' if len(found) > 8 else ''}), and a window of {n} candidates needs {n}: lower "
        "window, or take a model with a larger vocabulary"
    )


def name_ids(tokenizer: Any, name: str) -> tuple[int, ...]:
    """The tokens of a name as it stands between brackets, or, where these run into it, within any text."""
    inner = added(tokenizer, "x\n[", name)
    closed = added(tokenizer, "x\n[", f"{name}]")
    if inner and closed and len(closed) > len(inner) and closed[: len(inner)] == inner:
        return inner
    return within(tokenizer, name)


def added(tokenizer: Any, before: str, text: str) -> tuple[int, ...] | None:
    """The tokens that `text` adds to those of `before`; None where it changes these."""
    start, whole = (tuple(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in (before, before + text))
    return whole[len(start) :] if whole[: len(start)] == start else None


def within(tokenizer: Any, text: str) -> tuple[int, ...]:
    """The tokens of a text that others stand before."""
    found = (added(tokenizer, lead, text) for lead in LEADS)
    alone = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    return next((ids for ids in found if ids is not None), alone)


@final
class Within:
    """A tokenizer of texts that stand within others."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.added_tokens_decoder = getattr(tokenizer, "added_tokens_decoder", {})
        probes = ("x", "A b", "7", "[", "\n[")
        alone = tokenizer(list(probes), add_special_tokens=False)["input_ids"]
        self.differs = any(within(tokenizer, text) != tuple(ids) for text, ids in zip(probes, alone, strict=True))
        """Whether the tokenizer begins a text otherwise than it goes on with one; most do not."""

    def __call__(self, texts: Sequence[str], **how: Any) -> dict[str, list[list[int]]]:
        """`input_ids` of texts, as tokenizers give them."""
        found = dict(enumerate(self.tokenizer(list(texts), **how)["input_ids"]))
        left = list(range(len(texts))) if self.differs else []
        for lead in LEADS if left else ():
            start = self.tokenizer(lead, **how)["input_ids"]
            wholes = self.tokenizer([lead + texts[i] for i in left], **how)["input_ids"]
            fits = {
                i: whole[len(start) :] for i, whole in zip(left, wholes, strict=True) if whole[: len(start)] == start
            }
            found |= fits
            left = [i for i in left if i not in fits]
            if not left:
                break
        return {"input_ids": [found[i] for i in range(len(texts))]}


def _letters() -> Iterator[str]:
    yield from ascii_uppercase
    yield from ascii_lowercase
    for n in (2, 3):
        yield from ("".join(letters) for letters in product(ascii_uppercase, repeat=n))


@final
class PromptTokenizer:
    """Encodes queries with up to `window` candidates; remembers the ids of the texts it has seen."""

    def __init__(
        self,
        tokenizer: Any,
        window: int,
        document_tokens: int,
        query_tokens: int = 128,
        naming: Naming = "letters",
        prompt: Prompt | None = None,
        chat: bool = False,
        secret: str = "",
        thinking: bool = False,
    ) -> None:
        counts = (("window", window, 2), ("document_tokens", document_tokens, 1), ("query_tokens", query_tokens, 1))
        for field, value, least in counts:
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"{field} must be a whole number of at least {least}, not {value!r}")
        self.tokenizer = plain(tokenizer)
        self.window, self.document_tokens, self.query_tokens = window, document_tokens, query_tokens
        self.prompt, self.chat, self.naming, self.secret = prompt or Prompt(), chat, naming, secret
        self.names = names_of(tokenizer, window, naming)
        self.name_ids = [name_ids(tokenizer, name) for name in self.names]
        # What opens the answer is a part of our last words; a chat's turn begins with it. Who thinks comes to it later.
        self._opening = "" if chat or thinking else "\n["
        self._before, self._blanks, self._after = self._frame(thinking)
        self._room = {"document": document_tokens, "query": query_tokens}
        # One token more than there is room for tells that a text was cut.
        inner = Within(self.tokenizer)
        self._given, self._ours = TextIds(inner, max(self._room.values()) + 1), TextIds(inner, None)
        self._first = self._ours if chat else TextIds(self.tokenizer, None)
        self._cuts = Cuts()

    def __deepcopy__(self, memo: dict[int, Any]) -> PromptTokenizer:
        """The tokenizer itself: copies of a policy share it, for nothing in it is trained."""
        return self

    def encode(self, lists: Sequence[CandidateList]) -> list[PromptItem]:
        """One item for each list, its candidates shown in the order in which they come."""
        built = [self._pieces(candidates) for candidates in lists]
        given = self._given(piece.text for parts in built for piece in parts if piece.given)
        first = self._first(parts[0].text for parts in built)
        ours = self._ours(piece.text for parts in built for piece in parts[1:] if not piece.given)
        found = [
            PromptItem(
                b"".join((self._before, first[parts[0].text], *self._parts(parts[1:], given, ours), self._after)),
                len(candidates),
            )
            for candidates, parts in zip(lists, built, strict=True)
        ]
        self._tell(built, given)
        return found

    def forget(self, beyond: int = 0) -> None:
        """Nothing; forgets the texts where they hold more than `beyond` bytes. Prompts that are there stay good."""
        for memory in (self._given, self._ours, self._first):
            memory.forget(beyond)

    def reads_whole(self, query: str, text: str) -> bool:
        """Whether nothing is cut of a query and a document that are shown in a prompt."""
        given = self._given((query, text))
        return all(
            len(given[of_kind]) <= self._room[kind] * ID.itemsize
            for kind, of_kind in (("query", query), ("document", text))
        )

    def tokens_read(self, query: str, texts: Sequence[str]) -> int:
        """Tokens of a query and documents as far as they are shown, once; our own words around them are not counted."""
        given = self._given((query, *texts))
        documents = sum(min(len(given[text]) // ID.itemsize, self.document_tokens) for text in texts)
        return documents + min(len(given[query]) // ID.itemsize, self.query_tokens)

    def longest(self) -> int:
        """Tokens that a prompt with a full window can have at most."""
        # A byte-level tokenizer needs no more tokens than characters for the mark, which is plain letters and digits.
        empty = CandidateList("", "", tuple(map(str, range(self.window))), ("",) * self.window)
        texts = len(self.encode([empty])[0])
        marks = (self.window + 1) * 8 if self.prompt.fenced else 0
        return texts + marks + self.window * self.document_tokens + 2 * self.query_tokens

    def check_context(self, context: int | None) -> None:
        """Nothing, when a full prompt fits into the tokens that the model reads; else an InputError."""
        longest = self.longest()
        if context is not None and longest > context:
            raise InputError(
                f"a window of {self.window} candidates of {self.document_tokens} tokens makes prompts of up to "
                f"{longest} tokens, and the model reads {context}: lower window or document_tokens"
            )

    def _pieces(self, candidates: CandidateList) -> list[Piece]:
        if not 1 <= len(candidates) <= self.window:
            raise InputError(
                f"query {candidates.query_id!r} comes with {len(candidates)} candidates at once; a prompt shows 1 to "
                f"{self.window} (window): in training lower list_size, else let a windowing strategy split the list"
            )
        parts = pieces(candidates.query, candidates.texts, self.names, self.prompt, self.secret)
        merged = [Piece(self._blanks, "ours")]
        for piece in (*parts, Piece(self._opening, "ours")):
            if piece.given or merged[-1].given:
                merged.append(piece)
            else:
                merged[-1] = Piece(merged[-1].text + piece.text, "ours")
        return merged

    def _parts(self, parts: Sequence[Piece], given: dict[str, bytes], ours: dict[str, bytes]) -> Iterator[bytes]:
        for piece in parts:
            yield given[piece.text][: self._room[piece.kind] * ID.itemsize] if piece.given else ours[piece.text]

    def _tell(self, built: Sequence[Sequence[Piece]], given: dict[str, bytes]) -> None:
        for kind, room in self._room.items():
            texts = [given[piece.text] for parts in built for piece in parts if piece.kind == kind]
            cut = self._cuts.since(kind, sum(len(ids) > room * ID.itemsize for ids in texts), len(texts))
            if cut:
                logger.warning(
                    "%d of %d texts (%s) are longer than %s_tokens = %d and are cut (said at most once an hour)",
                    *(*cut, kind, kind, room),
                )

    def _frame(self, thinking: bool) -> tuple[bytes, str, bytes]:
        """What stands before every message, the blanks that it begins with, and what stands after it."""
        if not self.chat:
            probe = self.tokenizer("x")["input_ids"]
            bare = self.tokenizer("x", add_special_tokens=False)["input_ids"]
            begin = probe[: len(probe) - len(bare)] if probe[-len(bare) :] == bare else probe[:1]
            return _packed(begin if begin != bare else ()), "", b""
        before, after = _rendered(self.tokenizer, thinking)
        words = before.rstrip(" ")
        lead = () if thinking else within(self.tokenizer, "[")
        started = _packed(self.tokenizer(words, add_special_tokens=False)["input_ids"])
        return started, before[len(words) :], _packed([*within(self.tokenizer, after), *lead])


def _packed(ids: Sequence[int]) -> bytes:
    return np.array(ids, dtype=ID).tobytes()


def _rendered(tokenizer: Any, thinking: bool) -> tuple[str, str]:
    """A chat's text before and after what the user says; transformers renders the template in a sandbox."""
    if not getattr(tokenizer, "chat_template", None):
        raise InputError("chat = true, and the tokenizer has no chat template; leave chat out")
    message = [{"role": "user", "content": PLACE_HOLDER}]
    try:
        text = tokenizer.apply_chat_template(
            message, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
        )
    except Exception as error:  # a program that came with the model: it fails in any way that it likes
        kind = type(error).__name__
        raise InputError(f"the model's chat template cannot be rendered ({kind}: {error}); leave chat out") from error
    before, found, after = text.partition(PLACE_HOLDER)
    if not found or PLACE_HOLDER in after:
        raise InputError("the model's chat template does not show the user's message once, as it is; leave chat out")
    return before, after
