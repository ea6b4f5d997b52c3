"""The bank of tables that a network chooses from: scales in 1/16 octave, the eight parametric shapes, both quantizers.

With the position p = 4..147 the standard deviation is `2^((p - 68) / 16)` levels, so `p = 4 c` is that of the scale index c, and its
tables are the parametric ones.  A table has the number `16 (p - 4) + 2 shape + q`; it is made when it is first needed.
"""

from __future__ import annotations

import numpy as np

from ..coder import TOTAL, entries_of
from .parametric import CLASSES, SHAPES, exponential, normalise, weigh_levels

FINE = 4  # positions to a scale index
POSITIONS = FINE * CLASSES
LOWEST = FINE
FINE_TABLES = POSITIONS * SHAPES * 2
_ORIGIN = 68  # position of a standard deviation of one level
_WIDTH = 259  # most symbols and one
_CONSTANTS = tuple(int(exponential(np.array(4096 - 16 * j))) for j in range(16))  # floor(2^(16 + j/16))
_cumulative = np.zeros((FINE_TABLES, _WIDTH), np.uint32)
_entries = np.zeros((FINE_TABLES, 256), np.uint64)
_low, _escape = np.zeros(FINE_TABLES, np.int32), np.zeros(FINE_TABLES, np.int32)
_made = np.zeros(FINE_TABLES, bool)


def scaled(n: int) -> int:
    """2^(n / 16 + 24), cut to 17 significant bits: floor(2^(16 + n mod 16 / 16)) * 2^(n div 16 + 8)."""
    return _CONSTANTS[n % 16] << (n // 16 + 8)


def table_number(positions: np.ndarray, shapes: np.ndarray, quantizers: np.ndarray) -> np.ndarray:
    """Number in the bank; position and shape are cut to what there is."""
    return 16 * (np.clip(positions, LOWEST, LOWEST + POSITIONS - 1) - LOWEST) + 2 * np.clip(shapes, 0, SHAPES - 1) + quantizers


def fine_table(number: int) -> tuple[int, np.ndarray]:
    """Lowest level and frequencies (int64, the last of the escape) of a table."""
    position, shape, q = number // 16 + LOWEST, number % 16 >> 1, number & 1
    most = min(127, 2 + (6 * (scaled(position - _ORIGIN) >> 16) >> 8))
    weights = weigh_levels(shape, scaled(_ORIGIN - position), q, -most - q, most)
    return -most - q, normalise(np.append(weights, max(1, int(weights.sum()) >> 14)))


def fine_tables(numbers: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The bank in the form of `coder.TableSet`, with these tables made (default: all); shared by all callers, who must not write."""
    missing = np.unique(numbers[~_made[numbers]]) if numbers is not None else np.flatnonzero(~_made)
    for number in missing.tolist():
        low, counts = fine_table(number)
        edges = np.cumsum(counts)
        row = np.full(_WIDTH, TOTAL, np.uint32)
        row[0], row[1 : len(edges) + 1] = 0, edges
        _cumulative[number], _entries[number] = row, entries_of(low, counts)
        _low[number], _escape[number] = low, len(counts) - 1
        _made[number] = True  # last, so that other threads use none that is half made
    return _cumulative, _entries, _low, _escape
