"""What a network is told of a level: integers 0..255, from side information (hyper) and from the levels before (context).

| number | input | |
|---|---|---|
| 0 scale | 7 c, the scale index by the sum rule | |
| 1 row, 2 column | 128 + 8 times what the row and the column add to it, the base aside, cut to 0..255 | |
| 3 tap | place in the kernel of a convolution: 255 tap div (taps - 1), 0 without | |
| 4 quantizer | 255 q | |
| 5 down, 6 across | 12 times the bits of the number of rows and of columns of the plane | |
| 7 machine | 85 each: several states, sign-symmetric labelling, steps that follow | |
| 8.. | magnitudes of the levels before in the scan, and how many there are, kernels/context.py | context only |

(latent variables and preceding components of US11869221B2; the hyper-decoder and the context network of US11257254B2.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .fine import FINE, scaled
from .parametric import CLASSES, exponential

HYPER = 8
CONTEXT = HYPER + 11
INPUTS = {"hyper": HYPER, "context": CONTEXT}
ABSENT = 64  # magnitude in place of a level that is not there
MOST_TWICE = 511  # magnitudes of |2 k + q| beyond are those of this
_LIVE = -500  # kernel codes below mean that nothing is coded


def magnitude_table() -> np.ndarray:
    """32 log2(1 + 4 u / sigma), rounded down and cut to 255, of u = |k + q/2| and the sigma of scale index c: uint8 (CLASSES + 1, 512), by
    c and min(|2 k + q|, 511)."""
    edges = exponential(4096 - 8 * np.arange(1, 256))  # floor(2^(16 + n/32))
    twice = np.arange(MOST_TWICE + 1, dtype=np.int64)
    table = np.zeros((CLASSES + 1, MOST_TWICE + 1), np.uint8)
    for c in range(1, CLASSES + 1):
        table[c] = np.searchsorted(edges, 65536 + 4 * (twice * scaled(68 - FINE * c) >> 9), side="right")
    return table


@dataclass(frozen=True, eq=False)
class Place:
    """What the inputs 0..7 of a plane are made from.  rows, columns: int16 kernel codes (what they add to the scale index, the base among the
    rows); base: of them; taps: of a kernel, which lie along the rows of a transposed plane; machine: input 7."""

    rows: np.ndarray
    columns: np.ndarray
    base: int
    taps: int
    transposed: bool
    machine: int

    @property
    def row_values(self) -> np.ndarray:
        """uint8 (rows,): input 1."""
        return _relative(self.rows.astype(np.int64) - self.base)

    @property
    def column_values(self) -> np.ndarray:
        """uint8 (columns,): input 2."""
        return _relative(self.columns.astype(np.int64))

    @property
    def tap_values(self) -> np.ndarray:
        """uint8: input 3, of the rows of a transposed plane and of the columns of another."""
        number = len(self.rows if self.transposed else self.columns)
        return (255 * (np.arange(number) % self.taps) // max(1, self.taps - 1)).astype(np.uint8)

    @property
    def constants(self) -> np.ndarray:
        """uint8 (3,): inputs 5, 6, 7."""
        bits = [min(255, 12 * len(axis).bit_length()) for axis in (self.rows, self.columns)]
        return np.array([*bits, self.machine], np.uint8)

    def classes(self, by_tap: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Rows and columns of equal inputs: the class of each, int64 (rows,) and (columns,), -1 where nothing is coded, and the first row and
        column of every class; by_tap: whether input 3 counts."""
        taps = self.tap_values.astype(np.int64) if by_tap else 0
        found = []
        for codes, own in ((self.rows, self.transposed), (self.columns, not self.transposed)):
            keys = codes.astype(np.int64) * 256 + (taps if own else 0)
            live = codes > _LIVE
            _, first, inverse = np.unique(keys[live], return_index=True, return_inverse=True)
            number = np.full(len(codes), -1, np.int64)
            number[live] = inverse.reshape(-1)
            found.append((number, np.flatnonzero(live)[first]))
        (rows, first_rows), (columns, first_columns) = found
        return rows, columns, first_rows, first_columns

    def scale(self, row: np.ndarray, column: np.ndarray) -> np.ndarray:
        """Scale indices 1..36 of places, int64."""
        return np.clip(self.rows[row].astype(np.int64) + self.columns[column], 1, CLASSES)

    def inputs(self, row: np.ndarray, column: np.ndarray, quantizer: np.ndarray) -> np.ndarray:
        """Inputs 0..7 of places: uint8 (n, 8)."""
        values = np.empty((len(row), HYPER), np.uint8)
        values[:, 0] = 7 * self.scale(row, column)
        values[:, 1], values[:, 2] = self.row_values[row], self.column_values[column]
        values[:, 3] = self.tap_values[row if self.transposed else column]
        values[:, 4] = 255 * quantizer
        values[:, 5:] = self.constants
        return values


def _relative(codes: np.ndarray) -> np.ndarray:
    return np.clip(128 + 8 * codes, 0, 255).astype(np.uint8)
