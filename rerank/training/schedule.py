"""How long and how fast a stage learns, and what is added to its loss: the settings that all stages share."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from rerank.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast a stage learns; the fields that `[clone]` and `[refine]` of a recipe share."""

    epochs: float = 1.0
    """Times each list is visited (with a fresh sample of its candidates)."""
    steps: int | None = None
    """Number of steps; given, it decides instead of `epochs`."""
    lists_per_step: int = 8
    list_size: int = 32
    """Candidates of a list used in one step; the important ones first, the others sampled anew each time."""
    shuffle: bool = True
    """Whether models that read candidates in an order are shown them in a new one each time; others do not notice."""
    learning_rate: float = 5e-5
    """Of the transformer."""
    head_learning_rate: float = 1e-3
    """Of heads."""
    first_stage_learning_rate: float = 1e-2
    """Of the few weights of the first-stage scores."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises; then it falls linearly to 0."""
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    plain_weight: float = 0.5
    """Share of the loss on the scores without the first stage's (no effect where there is no such residual)."""
    evaluations: int = 5
    """How often the dev lists are measured, evenly spread."""
    select: Literal["best", "last"] = "best"
    """Which weights are handed over: the best on dev, or the last (where dev is too small to tell)."""
    graph_tokens: int | None = None
    """Tokens whose activations are kept at once; longer lists go through the gradient cache. None: 4096 on a CPU, what
    half of its free memory holds on a GPU."""
    patience: int | None = None
    """Ends the stage after this many evaluations in a row that did not beat the best on dev."""
    anchor: float | Literal["auto"] = 0.0
    """Weight of the KL to the policy as it was before the stage; "auto" chooses it from the number of lists."""
    reset_reference: int = 0
    """The anchor's reference is moved up to the policy every so many steps; 0: never."""
    entropy_floor: float = 0.0
    """Nats a rank below which a lack of entropy is paid for."""
    keep_entropy: bool = False
    """The temperature follows the policy at each evaluation, so that the entropy stays what it was at the start."""
    calibration: float = 0.0
    """Weight of the cross-entropy of sigmoid(score) with the labels: ranking losses leave the level of scores open."""
    minutes: float | None = None
    """Ends the stage at the first evaluation after this long; such a run is not repeatable to the bit."""

    def __post_init__(self) -> None:
        for name in ("lists_per_step", "list_size", "evaluations", "graph_tokens"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)!r}")
        if self.list_size < 2:
            raise InputError("list_size must be at least 2: a list of one has nothing to order")
        for name in ("learning_rate", "head_learning_rate", "first_stage_learning_rate", "epochs", "clip_norm"):
            if not 0 < getattr(self, name) < 1e6:
                raise InputError(f"{name} must be greater than 0 and a sensible number, not {getattr(self, name)!r}")
        for name in ("warmup", "plain_weight", "weight_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must be from 0 to 1, not {getattr(self, name)!r}")
        self._check_terms()
        if self.minutes is not None and not self.minutes > 0:
            raise InputError(f"minutes must be greater than 0, not {self.minutes!r}")
        if self.steps is not None and self.steps < 0:
            raise InputError(f"steps must be at least 0, not {self.steps!r}")

    def _check_terms(self) -> None:
        if self.anchor != "auto" and (isinstance(self.anchor, str) or not 0 <= self.anchor < 1e6):
            raise InputError(f"anchor must be 'auto' or at least 0, not {self.anchor!r}")
        for name in ("reset_reference", "entropy_floor", "calibration"):
            if not 0 <= getattr(self, name) < 1e6:
                raise InputError(f"{name} must be at least 0, not {getattr(self, name)!r}")
        if self.reset_reference and self.anchor == 0:
            raise InputError(
                f"reset_reference = {self.reset_reference} moves the reference of an anchor, and anchor is 0: give the "
                "anchor a weight, or leave reset_reference out"
            )
        if self.patience is not None and self.patience < 1:
            raise InputError(f"patience must be at least 1 evaluation, not {self.patience!r}")

    def shared(self) -> dict[str, Any]:
        """The settings of this stage that every stage has, for one that is to learn as long and as fast."""
        return {f.name: getattr(self, f.name) for f in fields(Schedule)}

    def total_steps(self, n_lists: int) -> int:
        """The number of steps for a training set of `n_lists`."""
        if self.steps is not None:
            return self.steps
        return max(1, round(self.epochs * n_lists / self.lists_per_step))
