"""What all adapters take as their `model`: a folder, an id on the hub, or a `Reranker` that is already there.

    reranker = reranker_of("runs/quickstart/model", device="cpu")
    assert reranker_of(reranker) is reranker

An adapter is made long before it is used, copied, sent to other processes and called from several threads at once, so
what it holds is a `LazyReranker`: loaded when it first ranks, then kept.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from rerank.errors import InputError, nearest
from rerank.reranker import Ranked, Reranker


def reranker_of(model: str | Path | Reranker, **how: Any) -> Reranker:
    """The reranker itself, or the one in a folder or on the hub, loaded `how` (device, precision, max_length, ...).

    `how` takes what `Reranker.from_pretrained` takes; None leaves it to decide. Nothing is kept here: a second call
    loads a second time.
    """
    wishes = checked(model, how)
    return model if isinstance(model, Reranker) else Reranker.from_pretrained(model, **wishes)


def checked(model: Any, how: Mapping[str, Any]) -> dict[str, Any]:
    """What of `how` is not None, or InputError where `reranker_of(model, **how)` cannot work; reads no file."""
    if not isinstance(model, (str, Path, Reranker)) or (isinstance(model, str) and not model.strip()):
        given = repr(model) if isinstance(model, str) else type(model).__name__
        raise InputError(f"model must be a folder, an id on the hub or a rerank.Reranker, not {given}")
    known = list(inspect.signature(Reranker.from_pretrained).parameters)[1:]
    for name in how:
        if name not in known:
            raise InputError(f"a model cannot be loaded with {name!r}{nearest(name, known)}")
    wishes = {name: value for name, value in how.items() if value is not None}
    if wishes and isinstance(model, Reranker):
        raise InputError(f"this model is loaded already: give {sorted(wishes)} where it is loaded, or give its folder")
    return wishes


@final
class LazyReranker:
    """A reranker that is loaded when it is first asked, by one thread; copies share it, a pickle holds no weights.

    (Unless it was made of a `Reranker`, which is pickled as it is.)
    """

    def __init__(self, model: str | Path | Reranker, **how: Any) -> None:
        self.model = model
        self._how = checked(model, how)
        self._loaded: Reranker | None = model if isinstance(model, Reranker) else None
        self._turn = threading.RLock()

    @property
    def name(self) -> str:
        """The folder or id, or what the reranker says of itself."""
        return str(self.model)

    def reranker(self) -> Reranker:
        """The loaded reranker."""
        with self._turn:
            if self._loaded is None:
                self._loaded = reranker_of(self.model, **self._how)
            return self._loaded

    def rank(
        self, query: str, texts: Sequence[str], top_k: int | None = None, min_probability: float | None = None
    ) -> list[Ranked]:
        """`Reranker.rank` with probabilities where the model is calibrated, so that `relevance` is one."""
        # Rankings take turns: two at once would share the same cores or the same GPU, and need twice the memory.
        with self._turn:
            reranker = self.reranker()
            return reranker.rank(
                query, texts, top_k, probabilities=reranker.calibrated(), min_probability=min_probability
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.model, self._how)

    def __copy__(self) -> LazyReranker:
        """This one: frameworks copy pipelines freely, and ranking changes nothing in a model."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> LazyReranker:
        return self


def _unpickled(model: str | Path | Reranker, how: dict[str, Any]) -> LazyReranker:
    return LazyReranker(model, **how)
