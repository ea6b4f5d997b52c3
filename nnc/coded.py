"""A coded tensor: its side information, and its CTUs, all of them or those of a band of rows of the tensor.

A CTU decodes on its own, so a range of rows needs the codes of rows and columns, which lie in front, and the streams of the CTUs that it
touches.  Everything up to the levels is integers, then float32 in the order that FORMAT.md fixes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import numpy as np
import torch

from .buffers import contiguous, empty
from .centres import split_streams
from .coder import checksum, gather_words, lay_state
from .entropy.explicit import ModelBank
from .entropy.parametric import CLASSES
from .errors import Corruption
from .fields import Permutations
from .kernels.bands import decode_tiles
from .kernels.cells import decode_cells
from .kernels.context import decode_context
from .levels import LearnedLevels, find_place
from .partition.grid import Grid
from .partition.planes import plane_shape
from .partition.tree import CELL_BITS
from .pool import split_work
from .prediction.memory import CentreCodes, MemoryCodes
from .prediction.reference import predict
from .quantize.logarithm import rebuild_powers
from .quantize.trellis import LABELLINGS, make_trellis
from .tools import NO_TOOLS, Matrices
from .transform.matrices import apply_matrix
from .unit import Coding, Record

JOB = 1 << 19  # weights that a thread is given at once, at least
LARGEST = float(np.finfo(np.float32).max)
MAX_GRID = 2.0**42  # no level of the format, doubled, is larger, whatever the stream
NO_SUMS, NO_NUMBERS = np.empty(0, np.uint32), np.empty(0, np.int32)
Tile = tuple[int, int, int, int]


@dataclass(frozen=True)
class Band:
    """CTUs that hold a range of rows of a tensor.  numbers: of the CTUs, raster order; tiles: of them, relative to the corner; top,
    bottom, left, right: what they cover of the plane."""

    numbers: tuple[int, ...]
    tiles: tuple[Tile, ...]
    top: int
    bottom: int
    left: int
    right: int


@dataclass(frozen=True, eq=False)
class CodedTensor:
    """The side information of a coded tensor, read.  rows, columns: int16 kernel codes; row_steps, column_steps: float32, of the axes of
    the plane; cells: of a tree, or None; parts: bytes of outliers and codebook;
    sums: uint32, checksums of the streams, for who reads some of them, else empty."""

    record: Record
    bank: ModelBank
    matrices: Matrices
    grid: Grid
    rows: np.ndarray
    columns: np.ndarray
    row_steps: np.ndarray
    column_steps: np.ndarray
    confidence: np.ndarray | None
    memory: MemoryCodes | CentreCodes | None
    cells: np.ndarray | None
    parts: tuple[bytes, bytes]
    sums: np.ndarray

    @property
    def coding(self) -> Coding:
        return self.record.coding

    @property
    def whole(self) -> Band:
        """All CTUs."""
        grid = self.grid
        return Band(tuple(range(grid.count)), tuple(grid.tiles()), 0, grid.rows, 0, grid.columns)

    @property
    def divisible(self) -> bool:
        """Whether rows can be decoded without all others: not if points of a codebook, outliers or a prediction join them."""
        coding = self.coding
        logarithmic = LABELLINGS.value(coding.labelling) == "logarithmic"
        return not (coding.tools.codebook or coding.tools.outliers or coding.prediction or logarithmic)

    @cached_property
    def learned(self) -> LearnedLevels | None:
        """What finds the tables of the levels, if a network chooses them."""
        network, coding = self.bank.network(self.coding.model), self.coding
        place = network and find_place(coding, self.record.shape, self.rows, self.columns)
        return LearnedLevels(network, place, coding.states, coding.shift) if place else None

    def plane_rows(self, start: int, stop: int) -> tuple[int, int]:
        """Rows of the tensor (along its first axis) as rows of its plane, before that is transposed; with one row, as columns."""
        shape, split = self.record.shape, self.coding.split
        inner = prod(shape[1:split]) if split else prod(shape[1:])
        return start * inner, stop * inner

    @property
    def strips(self) -> tuple[np.ndarray, np.ndarray]:
        """int64 (rows of the tensor,): the first and the last strip of CTUs that each row lies in."""
        down = bool(self.coding.split) != self.coding.transposed
        side = self.grid.height if down else self.grid.width
        width = self.plane_rows(0, 1)[1]
        edges = np.arange(self.record.shape[0], dtype=np.int64) * width
        return edges // side, (edges + width - 1) // side

    def band(self, start: int, stop: int) -> Band:
        """The CTUs of rows start..stop of the tensor, at least one."""
        first, last = self.plane_rows(start, stop)
        down = bool(self.coding.split) != self.coding.transposed  # whether rows of the tensor are rows of the plane
        sides = (0, 1) if down else (2, 3)
        tiles = self.grid.tiles()
        numbers = tuple(n for n, tile in enumerate(tiles) if tile[sides[0]] < last and first < tile[sides[1]])
        own = [tiles[n] for n in numbers]
        top, bottom = min(tile[0] for tile in own), max(tile[1] for tile in own)
        left, right = min(tile[2] for tile in own), max(tile[3] for tile in own)
        moved = tuple((t - top, b - top, le - left, r - left) for t, b, le, r in own)
        return Band(numbers, moved, top, bottom, left, right)

    def check(self, band: Band, streams: Sequence[bytes]) -> None:
        """Corruption if a stream is not the one that was written."""
        for number, stream in zip(band.numbers, streams):
            if checksum(stream) != self.sums[number]:
                raise Corruption(f"tensor {self.record.name!r}: checksum of CTU {number} differs: the file is damaged")

    def start(self, band: Band, streams: Sequence[bytes | memoryview], pool: Executor | None = None) -> Callable[[], Decoded]:
        """Begin to decode the CTUs of a band from their streams; the returned function waits."""
        streams, labels = split_streams(self.coding, band.tiles, streams)
        words, bounds = gather_words(streams)
        run, finish = self._prepare(band, words, labels)

        def decode(groups: list[list[int]]) -> bool:
            chosen = np.array([number for group in groups for number in group])
            state, left_over = run(chosen, [len(group) for group in groups], bounds[chosen], bounds[chosen + 1])
            return not (state.any() or left_over.any())

        groups = _lockstep_groups(band.tiles)
        top, bottom, left, right = band.tiles[0]
        jobs = split_work(groups, JOB // (4 * (bottom - top) * (right - left)), pool)
        results = [pool.submit(decode, job).result for job in jobs] if pool else [lambda: decode(groups)]

        def wait() -> Decoded:
            if not all([result() for result in results]):
                raise Corruption(f"tensor {self.record.name!r}: a stream does not end where it should: the file is damaged")
            return finish()

        return wait

    def decode_joined(self, words: np.ndarray, state: np.ndarray) -> Decoded:
        """All CTUs, one after the other, from the stream that the tensor shares with others.

        words: uint32, of which the last ones that are read may be overwritten; state: uint64 (2,), state of the coder and number of the words that are
        left, which are changed."""
        run, finish = self._prepare(self.whole, words)
        none = np.zeros(1, np.int64)
        for number in range(self.grid.count):
            of_tile = run(np.array([number]), [1], none, np.array([lay_state(words, state)]))
            state[:] = of_tile[0][0], of_tile[1][0]
        return finish()

    def _prepare(self, band: Band, words: np.ndarray, labels: np.ndarray | None = None) -> tuple[Callable, Callable[[], Decoded]]:
        """Functions that decode some CTUs of a band from the words between begin and end of each, and that return what came of all.  labels: of the
        columns of the band, if they are not those of all columns."""
        coding, record = self.coding, self.record
        down, across = slice(band.top, band.bottom), slice(band.left, band.right)
        # a transposed plane is laid out as the tensor is, so that the columns that are decoded one after the other are contiguous
        sides = (band.bottom - band.top, band.right - band.left)
        plane = empty(sides[::-1] if coding.transposed else sides, np.float32)  # numpy asks for large pages, torch does not
        plane = plane.T if coding.transposed else plane
        learned, trellis = self.learned, make_trellis(coding.states)
        tables = learned.tables if learned else self.bank.table_set(coding.model).arrays
        logarithmic = LABELLINGS.value(coding.labelling) == "logarithmic"
        row_steps, column_steps = self.row_steps[down], self.column_steps[across]
        overflows = self._reach(band) > LARGEST
        codebook = coding.tools.codebook
        if codebook:  # the levels themselves, until all are there
            own = codebook.tables(self.parts[1], coding.shift)
            tables = own.arrays if own else tables
            row_steps, overflows = np.ones(len(row_steps), np.float32), False
        # slices of arrays of one axis and of the cells, which start at a cell wherever there are several CTUs
        cells = None
        if self.cells is not None:
            cells = np.ascontiguousarray(self.cells[band.left >> CELL_BITS :, band.top >> CELL_BITS :])
        labelling = 0 if logarithmic else coding.labelling
        common = tables, trellis.next_state, coding.shift, labelling, row_steps, column_steps, plane
        context = learned.context(down, across) if learned and learned.network.kind == "context" else ()
        codes = self.rows[down], self.columns[across], CLASSES
        sides = (*codes, NO_NUMBERS) if learned is None else (*codes, *context) if context else learned.classes(down, across)
        digests = np.zeros(len(band.numbers), np.uint64)

        def run(chosen: np.ndarray, lanes: list[int], begin: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            number = len(chosen)
            state, left_over, digest = np.zeros(number, np.uint64), np.zeros(number, np.int64), np.zeros(number, np.uint64)
            places = np.array([band.tiles[c] for c in chosen.tolist()]).T.copy()
            if cells is not None:
                for at, wide in zip(np.cumsum([0, *lanes]).tolist(), lanes):
                    top, bottom, left, right = places[:, at]
                    own = slice(at, at + wide)
                    corners, results = (places[0, own], places[2, own]), (state[own], left_over[own], digest[own])
                    decode_cells(words, begin[own], end[own], *corners, bottom - top, right - left, cells, *codes, *common, *results)
            elif context:
                for n in range(number):
                    state[n], left_over[n], digest[n] = decode_context(words, begin[n], end[n], *places[:, n].tolist(), *sides, *common)
            else:
                decode_tiles(words, begin, end, *places, np.array(lanes), *sides, *common, state, left_over, digest)
            digests[chosen] = digest
            return state, left_over

        def finish() -> Decoded:
            if overflows and not np.isfinite([plane.min(), plane.max()]).all():
                raise Corruption(f"tensor {record.name!r}: a value is beyond float32: the file is damaged")
            restored = rebuild_powers(plane, coding.step) if logarithmic else plane
            if codebook:
                restored = codebook.rebuild(plane, codebook.read_centroids(self.parts[1]), self.row_steps)
            if coding.tools != NO_TOOLS:
                restored = self._use_tools(restored, band, labels)
            elif coding.transposed:
                restored = contiguous(restored.T)
            return Decoded(restored, [int(d) for d in digests])

        return run, finish

    def _use_tools(self, plane: np.ndarray, band: Band, labels: np.ndarray | None) -> np.ndarray:
        """The plane (not transposed) with predictions of its columns and after its transform, float32."""
        coding = self.coding
        if self.memory:
            across = slice(band.left, band.right)
            labels = self.memory.labels[across] if labels is None else labels
            memory = replace(self.memory, labels=labels, confidence=self.memory.confidence[across])
            if isinstance(memory, CentreCodes):
                memory = replace(memory, centres=memory.centres[:, band.top : band.bottom])
            turned = memory.add(plane, band.tiles)
            plane = turned if coding.transposed else contiguous(turned.T)
        elif coding.transposed:
            plane = contiguous(plane.T)
        if coding.tools.transform:
            for matrix, stride in coding.tools.transform.steps:
                plane = apply_matrix(plane, self.matrices[matrix], stride)
        if not self._surely_finite(band) and not np.isfinite([plane.min(), plane.max()]).all():
            raise Corruption(f"tensor {self.record.name!r}: a value is beyond float32: the file is damaged")
        return plane

    def _reach(self, band: Band) -> float:
        """No value of levels and steps of a band is larger."""
        row_steps, column_steps = self.row_steps[band.top : band.bottom], self.column_steps[band.left : band.right]
        return float(row_steps.max()) * max(1.0, float(column_steps.max())) * MAX_GRID

    def _surely_finite(self, band: Band) -> bool:
        """Whether no value can be beyond float32 with the tools that there are, so that a look at all of them can be saved."""
        tools = self.coding.tools
        if tools.transform or tools.codebook or not isinstance(self.memory, CentreCodes):
            return False
        return self._reach(band) + float(np.abs(self.memory.centres).max()) < LARGEST / 2

    def finish(self, decoded: Decoded, base: torch.Tensor | None, permutations: Permutations) -> torch.Tensor:
        """The tensor of all CTUs.  base: its counterpart in the reference."""
        values = decoded.plane
        if base is not None:
            values = self._add_prediction(values, base, permutations)
        tensor = as_tensor(self.record, values)
        if self.coding.tools.outliers:
            self.coding.tools.outliers.place(tensor, self.parts[0])
        return tensor

    def _add_prediction(self, plane: np.ndarray, base: torch.Tensor, permutations: Permutations) -> np.ndarray:
        """The plane (not transposed) with its prediction from the reference, float32."""
        shape = plane_shape(self.record.shape, self.coding.split)
        orders = self.coding.prediction.orders
        rows, columns = (permutations[number - 1] if number else None for number in (orders.rows, orders.columns))
        with np.errstate(over="ignore", invalid="ignore"):
            values = plane.reshape(shape) + predict(base.to(torch.float32).numpy().reshape(shape), rows, columns, self.confidence)
        if not np.isfinite([values.min(), values.max()]).all():
            raise Corruption(f"tensor {self.record.name!r}: a value is beyond float32: the file is damaged")
        return values

    def rows_of(self, decoded: Decoded, band: Band, start: int, stop: int) -> torch.Tensor:
        """Rows start..stop of the tensor from its decoded band."""
        first, last = self.plane_rows(start, stop)
        if self.coding.split:
            corner = band.left if self.coding.transposed else band.top
            values = decoded.plane[first - corner : last - corner]
        else:
            corner = band.top if self.coding.transposed else band.left
            values = np.ascontiguousarray(decoded.plane[:, first - corner : last - corner])
        return as_tensor(self.record, values, (stop - start, *self.record.shape[1:]))


@dataclass(frozen=True, eq=False)
class Decoded:
    """plane: float32, rows and columns of a tensor that is not transposed; digests: of the CTUs, as they are numbered."""

    plane: np.ndarray
    digests: list[int]


def as_tensor(record: Record, values: np.ndarray, shape: tuple[int, ...] | None = None) -> torch.Tensor:
    """Values float32 in the shape (default: that of the record) and dtype of the record."""
    tensor = torch.from_numpy(values).reshape(record.shape if shape is None else shape)
    if record.dtype != torch.float32:  # a value next to the largest number must not become infinite
        largest = torch.finfo(record.dtype).max
        tensor = tensor.clamp_(-largest, largest).to(record.dtype)
    return tensor


def _lockstep_groups(tiles: Sequence[Tile]) -> list[list[int]]:
    """Places of CTUs in groups that decode together: four of one shape, or the rest."""
    by_shape: dict[tuple[int, int], list[int]] = {}
    for number, (top, bottom, left, right) in enumerate(tiles):
        by_shape.setdefault((bottom - top, right - left), []).append(number)
    return [numbers[i : i + 4] for numbers in by_shape.values() for i in range(0, len(numbers), 4)]
