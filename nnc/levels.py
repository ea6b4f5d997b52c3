"""The levels of a coded tensor whose tables a network chooses: what the kernels need to decode them, and the tables of given levels for who encodes them.

hyper: all that the network sees is side information, so it runs once for every pair of a class of rows and a class of columns, and
decoding is look-ups.  context: it runs once per level.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod

import numpy as np

from .entropy.fine import FINE, fine_tables, table_number
from .entropy.inputs import CONTEXT, Place, magnitude_table
from .entropy.network import Network
from .entropy.parametric import CLASSES
from .kernels.context import trace_levels
from .kernels.networks import number_classes, run_network
from .quantize.trellis import make_trellis
from .unit import Coding

Tile = tuple[int, int, int, int]
CHUNK = 1 << 15  # inputs at a time


def find_place(coding: Coding, shape: tuple[int, ...], rows: np.ndarray, columns: np.ndarray) -> Place:
    """rows, columns: int16 kernel codes of the plane of a record."""
    machine = 85 * ((coding.states > 1) + (coding.labelling == 1) + coding.follow)
    return Place(rows, columns, coding.base, prod(shape[coding.split + 1 :]), coding.transposed, machine)


@dataclass(frozen=True, eq=False)
class LearnedLevels:
    """network: of the record; place: what its inputs are made from, of the whole plane; states, shift: of the record."""

    network: Network
    place: Place
    states: int
    shift: int

    @cached_property
    def _numbers(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What rows and columns add to the place of their table, int32, negative where nothing is coded; int32, twice the number of the pair of tables
        of every class of columns and class of rows; and these pairs, one table for each quantizer: int64 (pairs, 2), numbers in the bank."""
        place = self.place
        rows, columns, first_rows, first_columns = place.classes(3 in self.network.inputs)
        shape = len(first_columns), len(first_rows), 2
        numbers = np.zeros(prod(shape), np.int64)
        for at in range(0, len(numbers), CHUNK):
            column, row, q = np.unravel_index(np.arange(at, min(at + CHUNK, len(numbers))), shape)
            row, column = first_rows[row], first_columns[column]
            found = run(self.network, place.inputs(row, column, q))
            numbers[at : at + CHUNK] = table_number(FINE * place.scale(row, column) + found[:, 0], found[:, 1], q)
        dead = -len(numbers) - 1
        pairs, which = np.unique(numbers.reshape(-1, 2), axis=0, return_inverse=True)
        places = np.where(rows < 0, dead, rows), np.where(columns < 0, dead, len(first_rows) * columns)
        return *(place.astype(np.int32) for place in places), (2 * which.reshape(-1)).astype(np.int32), pairs

    @cached_property
    def tables(self) -> tuple[np.ndarray, ...]:
        """The tables that may be needed: for context the bank, else the pairs of the classes side by side, which caches hold."""
        if self.network.kind == "context":
            return fine_tables()
        used = self._numbers[3].reshape(-1)
        cumulative, entries, low, escape = fine_tables(used)
        width = int(escape[used].max(initial=0)) + 2
        return np.ascontiguousarray(cumulative[used, :width]), entries[used], low[used], escape[used]

    def classes(self, down: slice, across: slice) -> tuple[np.ndarray, np.ndarray, int, np.ndarray]:
        """What the kernels of streams take of a part of the plane: places of rows and columns, and the tables of their sums."""
        rows, columns, numbers, _ = self._numbers
        return rows[down], columns[across], CLASSES, numbers

    def context(self, down: slice, across: slice) -> tuple:
        """What the kernels of context take of a part of the plane, besides its codes."""
        return *self._sides(down, across), self.network.arrays

    def _sides(self, down: slice, across: slice) -> tuple:
        place = self.place
        values = place.row_values[down], place.column_values[across], place.tap_values[down if place.transposed else across]
        return values, place.constants, place.taps, place.transposed, magnitudes()

    def trace(self, levels: np.ndarray, tile: Tile) -> np.ndarray:
        """All inputs of the levels of a CTU, int32 (n,) in scan order: uint8 (n, 19)."""
        values = np.empty((len(levels), CONTEXT), np.uint8)
        whole, place = slice(None), self.place
        codes = place.rows, place.columns, CLASSES
        trace_levels(levels, *tile, *codes, *self._sides(whole, whole), make_trellis(self.states).next_state, self.shift, values)
        return values

    def number(self, levels: np.ndarray, tile: Tile) -> np.ndarray:
        """The table of each level of a CTU, in `tables`: int32 (n,)."""
        if self.network.kind == "hyper":
            which = np.empty(len(levels), np.int32)
            rows, columns, numbers, _ = self._numbers
            number_classes(levels, *tile, rows, columns, numbers, make_trellis(self.states).next_state, self.shift, which)
            return which
        values = self.trace(levels, tile)
        return number_inputs(self.network, values)


def number_inputs(network: Network, values: np.ndarray) -> np.ndarray:
    """Tables by all inputs, uint8 (n, ..): int32 (n,)."""
    found = run(network, values)
    return table_number(FINE * (values[:, 0].astype(np.int64) // 7) + found[:, 0], found[:, 1], values[:, 4] & 1).astype(np.int32)


def run(network: Network, values: np.ndarray) -> np.ndarray:
    """As `Network.run`, compiled: int32 (n, 2)."""
    outputs = np.empty((len(values), 2), np.int32)
    run_network(np.ascontiguousarray(values), network.arrays, outputs)
    return outputs


@lru_cache(maxsize=1)
def magnitudes() -> np.ndarray:
    """uint8 (CLASSES + 1, 512)."""
    return magnitude_table()
