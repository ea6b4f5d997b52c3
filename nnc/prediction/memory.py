"""Prediction of the columns of a plane from those before: every column may name a memory, which follows the columns that name it.

    value_j = residual_j + confidence_j * m,   then   m += max(1 / number of columns so far, floor) * (value_j - m)

With floor 0 a memory is the mean of a cluster of columns (clustering with predictive coding, US20220261616A1); with floor 1 it is the last
of them: one memory for all columns is then differential coding along the rows, one for every tap of a kernel predicts a channel from
the one before, and two columns with a memory of their own are a copy by a vector (prediction units, US20220360778A1).  A memory
starts as zero in every CTU.

Or from centres, which are coded before the plane: then no column needs another, and rows of a table can be read alone.

    value_j = residual_j + confidence_j * centre
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np

from ..buffers import contiguous, empty
from ..errors import Corruption
from ..kernels.transforms import add_centres, add_memories, remove_centres, remove_memories

MOST = 64  # memories of a plane
NO_FLOOR = 15
CERTAIN = 16  # steps of a confidence: code -k stands for 1 - k / 16


def trust_of(confidence: np.ndarray) -> np.ndarray:
    """Confidences of codes, float32."""
    return (CERTAIN + confidence).astype(np.float32) / np.float32(CERTAIN)


@dataclass(frozen=True, eq=False)
class MemoryCodes:
    """labels: int16 (columns,), 0..MOST; confidence: int16 (columns,), codes -16..0; limit: the floor is 2^-limit, 0 for NO_FLOOR."""

    limit: int
    labels: np.ndarray
    confidence: np.ndarray

    @property
    def floor(self) -> np.float32:
        return np.float32(0 if self.limit == NO_FLOOR else 2.0**-self.limit)

    @property
    def trust(self) -> np.ndarray:
        """float32 (columns,)."""
        return trust_of(self.confidence)

    def residual(self, plane: np.ndarray) -> np.ndarray:
        """What would be coded of a float32 plane if nothing were quantized, in one CTU; in F order."""
        columns = contiguous(plane.T)
        out = empty(columns.shape, columns.dtype)
        remove_memories(columns, self.labels, self.trust, self.floor, out)
        return out.T

    def add(self, plane: np.ndarray, tiles: list[tuple[int, int, int, int]]) -> np.ndarray:
        """Values, transposed: float32 (columns, rows), from the residuals of all CTUs, float32 (rows, columns)."""
        columns = contiguous(plane.T)
        for tile in tiles:
            add_memories(columns, *tile, self.labels, self.trust, self.floor)
        return columns


@dataclass(frozen=True, eq=False)
class CentreCodes:
    """labels: int16 (columns,), 0..MOST, None where they are read with the CTUs; confidence: int16 (columns,), codes -16..0; centres: float32 (1 +
    their number, rows), zeros first."""

    labels: np.ndarray | None
    confidence: np.ndarray
    centres: np.ndarray

    @property
    def trust(self) -> np.ndarray:
        """float32 (columns,)."""
        return trust_of(self.confidence)

    def residual(self, plane: np.ndarray) -> np.ndarray:
        """What is coded of a float32 plane, in F order."""
        columns = contiguous(plane.T)
        out = empty(columns.shape, columns.dtype)
        remove_centres(columns, self.labels, self.trust, self.centres, out)
        return out.T

    def add(self, plane: np.ndarray, tiles: list[tuple[int, int, int, int]]) -> np.ndarray:
        """Values, transposed: float32 (columns, rows), from the residuals of all CTUs, float32 (rows, columns)."""
        columns, trust = np.ascontiguousarray(plane.T), self.trust
        for (top, bottom), own in groupby(tiles, lambda tile: tile[:2]):  # that tiles lie side by side makes no difference to them
            sides = [tile[2:] for tile in own]
            add_centres(columns, top, bottom, sides[0][0], sides[-1][1], self.labels, trust, self.centres)
        return columns


def check_codes(labels: np.ndarray, confidence: np.ndarray, most: int = MOST) -> None:
    """Corruption if codes read from a file are out of range; most: labels."""
    if not ((0 <= labels) & (labels <= most)).all():
        raise Corruption(f"the number of a memory is outside 0..{most}: the file is damaged")
    if not ((-CERTAIN <= confidence) & (confidence <= 0)).all():
        raise Corruption("the confidence of a column is outside 0..1: the file is damaged")


def read_memory(limit: int, labels: np.ndarray, confidence: np.ndarray) -> MemoryCodes:
    """Codes read from a file; Corruption if they are out of range."""
    check_codes(labels, confidence)
    return MemoryCodes(limit, labels, confidence)
