"""Scores that other people's evaluation reads in the order that was meant.

trec_eval, and with it pytrec_eval, ir_measures, PyTerrier and BEIR, looks at scores alone: it reads them as float32 and
puts equal ones in descending order of their document ids. Documents that our ranking holds apart by their place in the
first stage would so be measured in an order that nobody saw. `apart` makes the order part of the scores.
"""

from __future__ import annotations

from collections.abc import Sequence

from rerank.errors import InputError


def apart(scores: Sequence[float], where: str = "a ranking") -> list[float]:
    """Descending scores, each that is not below its predecessor in float32 replaced by the next float32 below it.

    InputError, which begins with `where`, for one that is no finite float32.

    >>> apart([2.0, 1.0, 1.0, 0.0])
    [2.0, 1.0, 0.9999999403953552, 0.0]
    """
    import numpy as np

    lowest = np.float32(-np.inf)
    before = np.float32(np.inf)
    found: list[float] = []
    for score in scores:
        with np.errstate(over="ignore"):
            rounded = np.float32(score)
        keep = bool(rounded < before)
        before = rounded if keep else np.nextafter(before, lowest)
        if not np.isfinite(rounded) or not np.isfinite(before):
            raise InputError(f"{where}: score {score!r} is not a finite float32; give finite scores below 3.4e38")
        found.append(float(score) if keep else float(before))
    return found
