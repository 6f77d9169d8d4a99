"""The models of a server by name: loaded, warmed, each with a desk of its own."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

from rerank.errors import InputError, nearest
from rerank.reranker import Reranker
from rerank.serving.asking import Refusal
from rerank.serving.desk import Desk
from rerank.serving.limits import Limits
from rerank.serving.metrics import Metrics

logger = logging.getLogger("rerank.serving")

ANY = "*"
"""The alias of every name that no model has."""
WARM = ("what is warm", ("the first batch pays", "for what others find", "ready"))


class Named(NamedTuple):
    """A model as the command line gives it."""

    name: str
    path: str


def named(text: str) -> Named:
    """NAME=MODEL, or a model alone, whose name is a hub id as it is and the last part of a folder's path.

    >>> named("small=runs/quickstart/model/light"), named("runs/quickstart/model/light").name
    (Named(name='small', path='runs/quickstart/model/light'), 'light')
    """
    if not text.strip():
        raise InputError("a model has no name: give a folder or a hub id, or NAME=MODEL")
    name, equals, path = text.partition("=")
    if equals and not _is_there(text):
        if not name.strip() or not path.strip() or not name.isprintable():
            raise InputError(f"{text!r}: give NAME=MODEL, or a model alone")
        return Named(name, path)
    return Named(Path(text).resolve().name if _is_there(text) else text, text)


def _is_there(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # too long for a name, or no name at all
        return False


def aliases_of(given: Sequence[str], models: Sequence[Named]) -> dict[str, str]:
    """Another name -> the model's, from `OTHER=NAME` each; `*` stands for every name that no model has."""
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        raise InputError(f"models have the same name ({', '.join(names)}): give them others with NAME=MODEL")
    found: dict[str, str] = {}
    for text in given:
        other, equals, name = text.partition("=")
        if not equals or not other:
            raise InputError(f"--alias {text!r}: give OTHER=NAME, and as NAME one of {', '.join(names)}")
        if name not in names:
            raise InputError(f"--alias {text!r}: there is no model {name!r}{nearest(name, names)}")
        if other in names or other in found:
            raise InputError(f"--alias {text!r}: {other!r} is the name of a model, or an alias, already")
        found[other] = name
    return found


@final
class Shelf:
    """The desks of all models; empty until `fill` has loaded them."""

    def __init__(
        self,
        models: Sequence[Named],
        aliases: Mapping[str, str],
        limits: Limits,
        loading: Mapping[str, Any] | None = None,
        turn_tokens: int | None = None,
        at_most: int | None = None,
    ) -> None:
        self.models, self.aliases, self.limits = tuple(models), dict(aliases), limits
        self.metrics = Metrics()
        self.desks: dict[str, Desk] = {}
        self.since = int(time.time())
        self.draining = False
        self._loading, self._turns = dict(loading or {}), (turn_tokens, at_most)

    def fill(self, rerankers: Mapping[str, Reranker] | None = None, told: Callable[[str], None] = logger.info) -> None:
        """Load every model, rank a list with each so that the first question finds it warm, and open the desks.

        `rerankers` holds those that are loaded already, by name; `told` is told what is going on.
        """
        devices: dict[str, threading.Lock] = {}
        desks = []
        for name, path in self.models:
            began = time.monotonic()
            told(f"loading {name} from {path}")
            reranker = (rerankers or {}).get(name) or Reranker.from_pretrained(path, **self._loading)
            reranker.rank(*WARM)
            device = str(getattr(reranker.policy.scorer, "device", "cpu"))
            # Two models on one device take turns too: side by side each would be slowed by more than half.
            lock = devices.setdefault(device, threading.Lock())
            desk = Desk(name, reranker, self.limits, self.metrics, *self._turns, device=lock)
            told(f"{name} is ready after {time.monotonic() - began:.1f} s: {_described(desk)}")
            desks.append(desk)
        # What was loaded stays: a collection need not look at it, and so costs little and comes often enough.
        gc.collect()
        gc.freeze()
        for desk in desks:
            self.metrics.watch(desk.name, lambda desk=desk: desk.waiting)  # type: ignore[misc]
            desk.start()
        self.desks = {desk.name: desk for desk in desks}

    def desk_of(self, model: str | None) -> Desk:
        """The desk of a model by its name, path or alias, the first for None; Refusal where there is none."""
        self.check_open()
        if model is None or model == "":
            return next(iter(self.desks.values()))
        paths = {path.rstrip("/"): name for name, path in self.models}
        other = self.aliases.get(model, self.aliases.get(ANY))
        name = model if model in self.desks else paths.get(model.rstrip("/"), other)
        if name is None:
            raise Refusal(
                404,
                f"there is no model {model[:200]!r}{nearest(model[:200], [*self.desks, *self.aliases])}; leave it out, "
                "or start the server with --alias",
                kind="Validation",
            )
        return self.desks[name]

    def check_open(self) -> None:
        """Nothing, or the refusal of every question while models are being loaded, or the server is ending."""
        if self.draining:
            raise Refusal(503, "the server is ending: ask another one", kind="Unhealthy", retry_after=5.0)
        if not self.desks:
            raise Refusal(503, "the models are being loaded", kind="Unhealthy", retry_after=5.0)
        dead = [name for name, desk in self.desks.items() if not desk.alive]
        if dead:
            raise Refusal(503, f"the thread of {', '.join(dead)} has ended", kind="Unhealthy", retry_after=5.0)

    @property
    def idle(self) -> bool:
        """Whether nothing waits to be read."""
        return not any(desk.waiting for desk in self.desks.values())

    def refuse_all(self) -> None:
        """Refuse all that waits: the server ends."""
        self.draining = True
        for desk in self.desks.values():
            desk.turns.refuse_all()

    def close(self, seconds: float = 10.0) -> bool:
        """End the desks when what waits is read, or refuse the rest when the time is over; whether all ended."""
        self.draining = True
        until = time.monotonic() + seconds
        return all([desk.stop(until - time.monotonic()) for desk in self.desks.values()])


def _described(desk: Desk) -> str:
    """A model in a few words."""
    scorer: Any = desk.reranker.policy.scorer
    words = [scorer.kind, str(getattr(scorer, "device", "cpu")), str(getattr(scorer, "precision", "float32"))]
    if desk.calibrated:
        words.append("calibrated")
    if desk.reranker.wants:
        wanted = ", ".join(desk.reranker.wants)
        words.append(f'trained with first-stage scores ({wanted}) and better with them: send "first_stage"')
    return ", ".join(words)
