r"""What is maximised of a list's expected reward E: the utility u(E), which decides how lists are weighed.

    linear    E                    weight 1            the policy gradient (REINFORCE in the limit of many samples)
    log       log E                1 / E               maximum likelihood; with Success@1 it is softmax cross-entropy
    power:a   (E^a - 1) / a        E^(a - 1)           between the two for 0 < a < 1
    pass@k    1 - (1 - E)^k        k (1 - E)^(k - 1)   at least one of k draws succeeds

Linear utility has almost no gradient on lists where the reward is rare; the others give these lists their due. A
sampled estimate of E gives no unbiased gradient of anything but the linear one (log: Tajwar et al. 2026 reach it as
samples go to infinity); of the exact E every utility is as cheap as any other.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from torch import Tensor

from rerank.errors import InputError

Utility = Callable[[Tensor], Tensor]

SMALLEST = 1e-6
"""An expectation below this counts as this: a list without any hope has no gradient instead of an infinite one."""

SPELLINGS = "'log', 'linear', 'power:A' (0 < A < 1) or 'pass@K'"


def _linear(expected: Tensor) -> Tensor:
    return expected


def _log(expected: Tensor) -> Tensor:
    return expected.clamp(min=SMALLEST).log()


def _power(expected: Tensor, exponent: float) -> Tensor:
    return (expected.clamp(min=SMALLEST).pow(exponent) - 1.0) / exponent


def _pass(expected: Tensor, k: int) -> Tensor:
    return 1.0 - (1.0 - expected).clamp(min=0.0).pow(k)


def utility_named(name: str) -> Utility:
    """The utility spelled `name` (module docstring): expected rewards of any shape -> utilities of that shape."""
    if name in ("linear", "log"):
        return _linear if name == "linear" else _log
    if (power := re.fullmatch(r"power:(0?\.\d+)", name)) and 0.0 < float(power[1]) < 1.0:
        return partial(_power, exponent=float(power[1]))
    if (passed := re.fullmatch(r"pass@([1-9]\d{0,3})", name)) is not None:
        return partial(_pass, k=int(passed[1]))
    raise InputError(f"utility {name!r} is not known: give {SPELLINGS}")
