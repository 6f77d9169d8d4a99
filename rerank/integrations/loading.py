"""What all adapters take as their `model`: a folder, an id on the hub, or a `Reranker` that is already there.

    reranker = reranker_of("runs/quickstart/model/light", device="cpu")
    assert reranker_of(reranker) is reranker

An adapter is made long before it is used, copied, sent to other processes and called from several threads at once, so
what it holds is a `LazyReranker`: loaded when it first ranks, then kept.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar, final

from rerank.errors import InputError, nearest
from rerank.integrations.first_stage import Column, FirstStage
from rerank.reranker import Ranked, Reranker

T = TypeVar("T")


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


def check_settings(given: Any, known: Iterable[str]) -> Any:
    """The settings of an adapter as they were given; InputError where one has a name that there is not."""
    names = list(known)
    unknown = [str(name) for name in given if name not in names] if isinstance(given, Mapping) else []
    if unknown:
        raise InputError(f"there is no setting {unknown[0]!r}{nearest(unknown[0], names)}")
    return given


def written(model: str | Reranker) -> str:
    """The model as JSON and YAML hold it; InputError for one that is loaded."""
    if isinstance(model, Reranker):
        raise InputError(
            "what is made of a loaded Reranker cannot be written down: save it with save_pretrained(FOLDER) and give "
            "model=FOLDER"
        )
    return model


@final
class LazyReranker:
    """A reranker that is loaded when it is first asked, by one thread; copies share it, a pickle holds no weights.

    (Unless it was made of a `Reranker`, which is pickled as it is.) Two are equal that load the same and ask the same.
    """

    def __init__(self, model: str | Path | Reranker, first_stage: FirstStage | None = None, **how: Any) -> None:
        self.model = model
        self._how = checked(model, how)
        self._first_stage = first_stage or FirstStage(None, "give first_stage to an adapter that has it")
        self._loaded: Reranker | None = None
        self._turn = threading.RLock()
        self._thread: tuple[int, ThreadPoolExecutor] | None = None

    @property
    def name(self) -> str:
        """The folder or id, or what the reranker says of itself."""
        return str(self.model)

    def reranker(self) -> Reranker:
        """The loaded reranker; InputError where its first-stage scores are others than those that are handed over."""
        with self._turn:
            if self._loaded is None:
                loaded = reranker_of(self.model, **self._how)
                self._first_stage.check(loaded.wants)
                self._loaded = loaded
            return self._loaded

    def rank(
        self,
        query: str,
        texts: Sequence[str],
        top_k: int | None = None,
        min_probability: float | None = None,
        column: Column = lambda place: (),
    ) -> list[Ranked]:
        """`Reranker.rank` with the first-stage scores of `column`, and probabilities where the model is calibrated."""
        # Rankings take turns: two at once would share the same cores or the same GPU, and need twice the memory.
        with self._turn:
            reranker = self.reranker()
            scores = self._first_stage.scores(reranker.wants, column)
            known = reranker.calibrated(with_features=scores is not None)
            return reranker.rank(query, texts, top_k, scores, probabilities=known, min_probability=min_probability)

    def predict(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """The logit of each (query, document) pair, without first-stage scores."""
        with self._turn:
            reranker = self.reranker()
            self._first_stage.scores(reranker.wants, lambda place: ())
            return [float(score) for score in reranker.predict(pairs)]

    async def in_turn(self, work: Callable[[], T]) -> T:
        """What `work` gives, done by this model's own thread.

        Rankings that wait for their turn so wait on the event loop, and hold none of the threads of its pool, by which
        every other library resolves names and reads files.
        """
        # A fork copies the executor and not its thread.
        if self._thread is None or self._thread[0] != os.getpid():
            self._thread = os.getpid(), ThreadPoolExecutor(1, thread_name_prefix="rerank")
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self._thread[1], context.run, work)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LazyReranker) and self._made_of() == other._made_of()

    __hash__ = None  # type: ignore[assignment]

    def _made_of(self) -> tuple[Any, ...]:
        """All that it was made of."""
        return self.model, self._how, self._first_stage.places

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.model, self._first_stage, self._how)

    def __copy__(self) -> LazyReranker:
        """This one: frameworks copy pipelines freely, and ranking changes nothing in a model."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> LazyReranker:
        return self


def _unpickled(model: str | Path | Reranker, first_stage: FirstStage, how: dict[str, Any]) -> LazyReranker:
    return LazyReranker(model, first_stage, **how)
