"""Settings of stages that mean nothing to a model that writes its ranking, told from the settings alone.

Stages check themselves; a recipe is checked with the same functions before a teacher is asked, who may cost money.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rerank.engine import processes
from rerank.errors import InputError
from rerank.training.written.credit import written_estimator
from rerank.types import Reward

OF_SCORES = ("entropy", "entropy_floor", "keep_entropy", "calibration")
"""What any stage can only do to scores."""
LOSSES = ("rank_net", "list_mle")
"""The losses that a recipe may name: the first is what nobody asked for expressly, the second is the one there is."""


def check_cloning(settings: Any) -> None:
    """Nothing; InputError where a `Clone` asks for what only models with scores can do."""
    _check_meaning(settings, ("anchor", *OF_SCORES))
    if settings.loss not in LOSSES:
        raise InputError(
            f"loss {settings.loss!r} is for models that give scores; one that writes its ranking is cloned by the "
            "cross-entropy of what the teacher would write: leave loss out"
        )


def check_refinement(settings: Any, reward: Reward) -> str:
    """The estimator of a `Refine`, "auto" resolved; InputError where it asks for what only scores allow."""
    _check_meaning(settings, ("temperature", "list_clip", *OF_SCORES))
    if settings.utility not in ("auto", "linear"):
        raise InputError(f"utility {settings.utility!r} needs exact expectations; what is sampled maximises 'linear'")
    return written_estimator(settings.estimator, reward)


def check_price(malformed_price: float) -> None:
    """Nothing; InputError where `malformed_price` is no price."""
    if not 0 <= malformed_price < math.inf:
        raise InputError(f"malformed_price must be at least 0, not {malformed_price!r}")


def _check_meaning(settings: Any, names: Sequence[str]) -> None:
    """InputError where one of the settings `names` was changed, or weights are divided among processes."""
    for name in names:
        value = getattr(settings, name)
        if value != type(settings).__dataclass_fields__[name].default:
            raise InputError(
                f"{name} = {value!r} is a setting of models that give scores; a model that writes its ranking has none "
                "to be divided, bounded or calibrated: leave it out"
            )
    if processes.sharded():
        raise InputError(
            "weights are divided among processes, which cannot write answers of different lengths together: take data "
            "parallelism (RERANK_SHARD=none), with LoRA where the model is large"
        )
