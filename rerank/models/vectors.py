"""Vectors of texts, of which more may come: rows that point to them stay good for as long as they are held."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, final

import numpy as np

from rerank.errors import Mismatch


@final
class Vectors:
    """Vectors [R, dim] that are added to; a row's number means the same one for good."""

    def __init__(self, dim: int = 0) -> None:
        self.matrix = np.zeros((0, dim), dtype=np.float32)
        """The rows that are there come first, then room for more."""
        self._count = 0

    @property
    def dim(self) -> int:
        """Numbers of a vector; 0 where that is not known yet."""
        return int(self.matrix.shape[1])

    def add(self, rows: np.ndarray) -> int:
        """The number that the first of the rows [n, dim] has from now on."""
        start, end = self._count, self._count + len(rows)
        if not len(rows):
            return start
        if self.dim and rows.shape[1] != self.dim:
            raise Mismatch(f"vectors have {rows.shape[1]} numbers, and those of the store {self.dim}: another model")
        if start == 0:
            self.matrix = np.ascontiguousarray(rows, dtype=np.float32)
        elif end > len(self.matrix):
            # By halves, so that what is added to for weeks copies each vector a few times, not at every request.
            larger = np.empty((max(end, start + start // 2), self.dim), dtype=np.float32)
            larger[:start] = self.matrix[:start]
            larger[start:end] = rows
            self.matrix = larger
        else:
            self.matrix[start:end] = rows
        self._count = end
        return start


class Rows(NamedTuple):
    """Where the vectors of some texts are: good for as long as this is held, whatever is forgotten meanwhile."""

    vectors: Vectors
    numbers: list[int]
    """Of the rows, one for each text."""


def gathered(vectors: Sequence[Vectors], numbers: np.ndarray) -> np.ndarray:
    """Vectors [n, k, dim] of rows [n, k], each row of numbers in its own of the `vectors` [n]."""
    owners: dict[Vectors, list[int]] = {}
    for i, one in enumerate(vectors):
        owners.setdefault(one, []).append(i)
    if len(owners) == 1:  # nothing was forgotten between one and another
        return vectors[0].matrix[numbers]
    found = np.empty((*numbers.shape, max((one.dim for one in owners), default=0)), dtype=np.float32)
    for one, own in owners.items():
        found[own] = one.matrix[numbers[own]]
    return found
