"""Prompts to token ids: one item for a query and the candidates that are shown with it.

    pieces (prompts.py) -> ids, each document cut to its budget -> [BOS or chat template] + ids + "["

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
from rerank.models.texts import ID, TextIds, plain
from rerank.prompting.prompts import Piece, Prompt, pieces
from rerank.types import CandidateList

logger = logging.getLogger("rerank.models")

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
    """The tokens of a name as it stands between brackets, or, where these run into it, of the name alone."""

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    opened, closed, whole = ids("["), ids("]"), ids(f"[{name}]")
    inner = whole[len(opened) : len(whole) - len(closed)]
    if inner and whole == (*opened, *inner, *closed):
        return inner
    return ids(name)


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
        self._before, self._after = self._frame(thinking)
        self._room = {"document": document_tokens, "query": query_tokens}
        # One token more than there is room for tells that a text was cut.
        self._given, self._ours = TextIds(tokenizer, max(self._room.values()) + 1), TextIds(tokenizer, None)
        self._told: set[str] = set()

    def __deepcopy__(self, memo: dict[int, Any]) -> PromptTokenizer:
        """The tokenizer itself: copies of a policy share it, for nothing in it is trained."""
        return self

    def encode(self, lists: Sequence[CandidateList]) -> list[PromptItem]:
        """One item for each list, its candidates shown in the order in which they come."""
        built = [self._pieces(candidates) for candidates in lists]
        given = self._given(piece.text for parts in built for piece in parts if piece.given)
        ours = self._ours(piece.text for parts in built for piece in parts if piece.kind == "ours")
        found = [
            PromptItem(b"".join((self._before, *self._parts(parts, given, ours), self._after)), len(candidates))
            for candidates, parts in zip(lists, built, strict=True)
        ]
        self._tell(built, given)
        return found

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
        return pieces(candidates.query, candidates.texts, self.names, self.prompt, self.secret)

    def _parts(self, parts: Sequence[Piece], given: dict[str, bytes], ours: dict[str, bytes]) -> Iterator[bytes]:
        names = iter(self.name_ids)
        for piece in parts:
            if piece.kind == "name":
                yield _packed(next(names))
            elif piece.kind == "ours":
                yield ours[piece.text]
            else:
                yield given[piece.text][: self._room[piece.kind] * ID.itemsize]

    def _tell(self, built: Sequence[Sequence[Piece]], given: dict[str, bytes]) -> None:
        for kind, room in self._room.items():
            if kind in self._told:
                continue
            texts = [given[piece.text] for parts in built for piece in parts if piece.kind == kind]
            cut = sum(len(ids) > room * ID.itemsize for ids in texts)
            if cut:
                self._told.add(kind)
                logger.warning(
                    "%d of %d texts (%s) are longer than %s_tokens = %d and are cut (said once)",
                    *(cut, len(texts), kind, kind, room),
                )

    def _frame(self, thinking: bool) -> tuple[bytes, bytes]:
        """What stands before and after every message."""
        # A chat's turn begins on a line of its own; our own message ends within one.
        lead = self.tokenizer("[" if self.chat else "\n[", add_special_tokens=False)["input_ids"]
        if not self.chat:
            probe = self.tokenizer("x")["input_ids"]
            bare = self.tokenizer("x", add_special_tokens=False)["input_ids"]
            begin = probe[: len(probe) - len(bare)] if probe[-len(bare) :] == bare else probe[:1]
            return _packed(begin if begin != bare else ()), _packed(lead)
        before, after = _rendered(self.tokenizer, thinking)
        return tuple(  # type: ignore[return-value]
            _packed([*self.tokenizer(text, add_special_tokens=False)["input_ids"], *more])
            for text, more in ((before, ()), (after, lead))
        )


def _packed(ids: Sequence[int]) -> bytes:
    return np.array(ids, dtype=ID).tobytes()


def _rendered(tokenizer: Any, thinking: bool) -> tuple[str, str]:
    """A chat's text before and after what the user says; transformers renders the template in a sandbox."""
    from jinja2.exceptions import TemplateError

    if not getattr(tokenizer, "chat_template", None):
        raise InputError("chat = true, and the tokenizer has no chat template; leave chat out")
    message = [{"role": "user", "content": PLACE_HOLDER}]
    try:
        text = tokenizer.apply_chat_template(
            message, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
        )
    except (TemplateError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"the model's chat template cannot be rendered: {error}; leave chat out") from error
    before, found, after = text.partition(PLACE_HOLDER)
    if not found or PLACE_HOLDER in after:
        raise InputError("the model's chat template does not show the user's message once, as it is; leave chat out")
    return before, after
