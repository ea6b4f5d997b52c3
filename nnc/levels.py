"""The levels of a coded tensor whose tables a network chooses: decoding of its CTUs, and the tables of given levels for who encodes them.

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
from .kernels.classes import decode_classes, decode_classes_of_four
from .kernels.context import decode_context, trace_levels
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
        """What rows and columns add to the place of their tables, int64, negative where nothing is coded, and int32, the tables: for every class
        of columns, for every class of rows, of both quantizers; these count in the last array, numbers in the bank."""
        place = self.place
        rows, columns, first_rows, first_columns = place.classes(3 in self.network.inputs)
        shape = len(first_columns), len(first_rows), 2
        numbers = np.zeros(prod(shape), np.int32)
        for at in range(0, len(numbers), CHUNK):
            column, row, q = np.unravel_index(np.arange(at, min(at + CHUNK, len(numbers))), shape)
            row, column = first_rows[row], first_columns[column]
            found = run(self.network, place.inputs(row, column, q))
            numbers[at : at + CHUNK] = table_number(FINE * place.scale(row, column) + found[:, 0], found[:, 1], q)
        dead = -2 * len(numbers) - 2
        used, numbers = np.unique(numbers, return_inverse=True)
        places = np.where(rows < 0, dead, 2 * rows), np.where(columns < 0, dead, 2 * len(first_rows) * columns)
        return *places, numbers.reshape(-1).astype(np.int32), used

    @cached_property
    def tables(self) -> tuple[np.ndarray, ...]:
        """The tables that may be needed: for context the bank, else those of the classes side by side, which caches hold."""
        if self.network.kind == "context":
            return fine_tables()
        used = self._numbers[3]
        cumulative, hint, low, escape = fine_tables(used)
        width = int(escape[used].max(initial=0)) + 2
        return np.ascontiguousarray(cumulative[used, :width]), hint[used], low[used], escape[used]

    def decode(self, words: np.ndarray, bounds: np.ndarray, tiles: list[Tile], corner: tuple[int, int], labelling: int,
               steps: tuple[np.ndarray, np.ndarray], plane: np.ndarray) -> tuple[bool, np.ndarray]:
        """Decode CTUs of one shape; bounds: int64 (CTUs, 2) in the words; tiles: in the plane, whose first row and column are those of `corner`
        in the whole one.  Returns whether all streams ended where they should, and uint64 digests."""
        next_state, tables = make_trellis(self.states).next_state, self.tables
        digests = np.zeros(len(tiles), np.uint64)
        down, across = (slice(at, at + size) for at, size in zip(corner, plane.shape))
        if self.network.kind == "hyper":
            rows, columns, numbers, _ = self._numbers
            kernel, sides = decode_classes, (rows[down], columns[across], numbers)
            if len(tiles) == 4:
                state, left_over = np.zeros(4, np.uint64), np.zeros(4, np.int64)
                top, bottom, left, right = tiles[0]
                firsts = np.array([(tile[0], tile[2]) for tile in tiles], np.int64).T.copy()
                common = (tables, next_state, self.shift, labelling, *steps, plane, state, left_over, digests)
                decode_classes_of_four(words, *bounds.T.copy(), *firsts, bottom - top, right - left, *sides, *common)
                return not state.any() and not left_over.any(), digests
        else:
            kernel, sides = decode_context, (*self._context(down, across), self.network.arrays)
        good = True
        for n, tile in enumerate(tiles):
            common = (tables, next_state, self.shift, labelling, *steps, plane)
            state, left_over, digests[n] = kernel(words, *bounds[n], *tile, *sides, *common)
            good &= state == 0 and left_over == 0
        return good, digests

    def _context(self, down: slice, across: slice) -> tuple:
        """What the kernels of context take of a part of the plane."""
        place = self.place
        values = place.row_values[down], place.column_values[across], place.tap_values[down if place.transposed else across]
        return place.rows[down], place.columns[across], CLASSES, values, place.constants, place.taps, place.transposed, magnitudes()

    def trace(self, levels: np.ndarray, tile: Tile) -> np.ndarray:
        """All inputs of the levels of a CTU, int32 (n,) in scan order: uint8 (n, 19)."""
        values = np.empty((len(levels), CONTEXT), np.uint8)
        whole = slice(None)
        trace_levels(levels, *tile, *self._context(whole, whole), make_trellis(self.states).next_state, self.shift, values)
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
