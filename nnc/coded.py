"""A coded tensor: its side information, and its CTUs, all of them or those of a band of rows of the tensor.

A CTU decodes on its own, so a range of rows needs the codes of rows and columns, which lie in front, and the streams of the CTUs that it
touches.  Everything up to the levels is integers, then float32 in the order that FORMAT.md fixes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import torch

from .coder import checksum, gather_words
from .entropy.explicit import ModelBank
from .entropy.parametric import CLASSES
from .entropy.scales import decode_codes, kernel_codes
from .entropy.trees import decode_trees
from .errors import Corruption
from .fields import Permutations, Steps
from .kernels.cells import decode_cells
from .kernels.streams import decode_four, decode_tile
from .levels import LearnedLevels, find_place
from .partition.grid import Grid
from .partition.planes import plane_shape
from .partition.tree import CELL_BITS
from .prediction.memory import MemoryCodes, read_memory
from .prediction.reference import CERTAIN, predict
from .quantize.logarithm import rebuild_powers
from .quantize.steps import StepCodes, rebuild_steps
from .quantize.trellis import LABELLINGS, make_trellis
from .tools import NO_TOOLS, Matrices
from .transform.matrices import apply_matrix
from .unit import Coding, Record

BLOCK = 1 << 16  # rows or columns at a time, so that the integers of 64 bits between codes and steps take no memory
LARGEST = float(np.finfo(np.float32).max)
MAX_GRID = 2.0**42  # no level of the format, doubled, is larger, whatever the stream
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
    memory: MemoryCodes | None
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
        coding, record = self.coding, self.record
        down, across = slice(band.top, band.bottom), slice(band.left, band.right)
        # a transposed plane is laid out as the tensor is, so that the columns that are decoded one after the other are contiguous
        sides = (band.bottom - band.top, band.right - band.left)
        plane = torch.empty(sides[::-1] if coding.transposed else sides).numpy()
        plane = plane.T if coding.transposed else plane
        words, bounds = gather_words(streams)
        learned = self.learned
        tables, trellis = learned.tables if learned else self.bank.table_set(coding.model).arrays, make_trellis(coding.states)
        logarithmic = LABELLINGS.value(coding.labelling) == "logarithmic"
        row_steps, column_steps = self.row_steps[down], self.column_steps[across]
        overflows = float(row_steps.max()) * max(1.0, float(column_steps.max())) * MAX_GRID > LARGEST
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
        common = (self.rows[down], self.columns[across], CLASSES, tables, trellis.next_state, coding.shift, labelling)
        common += (row_steps, column_steps, plane)
        digests = np.zeros(len(band.numbers), np.uint64)

        def decode(group: list[int]) -> bool:
            tiles = [band.tiles[g] for g in group]
            if learned:
                ends = np.stack([bounds[group], bounds[[g + 1 for g in group]]], 1)
                corner, steps = (band.top, band.left), (row_steps, column_steps)
                good, digests[group] = learned.decode(words, ends, tiles, corner, labelling, steps, plane)
                return good
            if cells is not None or len(group) == 4:
                number = len(group)
                state, left_over, digest = np.zeros(number, np.uint64), np.zeros(number, np.int64), np.zeros(number, np.uint64)
                top, bottom, left, right = tiles[0]
                corners = np.array([(t[0], t[2]) for t in tiles], np.int64)
                kernel, of_tree = (decode_four, ()) if cells is None else (decode_cells, (cells,))
                begin, end = bounds[group], bounds[[g + 1 for g in group]]
                first, second = np.ascontiguousarray(corners[:, 0]), np.ascontiguousarray(corners[:, 1])
                kernel(words, begin, end, first, second, bottom - top, right - left, *of_tree, *common, state, left_over, digest)
                digests[group] = digest
                return not state.any() and not left_over.any()
            good = True
            for g, tile in zip(group, tiles):
                state, left_over, digests[g] = decode_tile(words, bounds[g], bounds[g + 1], *tile, *common)
                good &= state == 0 and left_over == 0
            return good

        alone = learned and learned.network.kind == "context"  # its chain of dependencies is too long to gain from company
        groups = [[n] for n in range(len(band.tiles))] if alone else _lockstep_groups(band.tiles)
        results = (
            [pool.submit(decode, group).result for group in groups]
            if pool
            else [lambda group=group: decode(group) for group in groups]
        )

        def wait() -> Decoded:
            if not all([result() for result in results]):
                raise Corruption(f"tensor {record.name!r}: a stream does not end where it should: the file is damaged")
            if overflows and not np.isfinite([plane.min(), plane.max()]).all():
                raise Corruption(f"tensor {record.name!r}: a value is beyond float32: the file is damaged")
            restored = rebuild_powers(plane, coding.step) if logarithmic else plane
            if codebook:
                restored = codebook.rebuild(plane, codebook.read_centroids(self.parts[1]), self.row_steps)
            if coding.tools != NO_TOOLS:
                restored = self._use_tools(restored, band)
            elif coding.transposed:
                restored = np.ascontiguousarray(restored.T)
            return Decoded(restored, [int(d) for d in digests])

        return wait

    def _use_tools(self, plane: np.ndarray, band: Band) -> np.ndarray:
        """The plane (not transposed) with predictions of its columns and after its transform, float32."""
        coding = self.coding
        if self.memory:
            across = slice(band.left, band.right)
            memory = MemoryCodes(self.memory.limit, self.memory.labels[across], self.memory.confidence[across])
            turned = memory.add(plane, band.tiles)
            plane = turned if coding.transposed else np.ascontiguousarray(turned.T)
        elif coding.transposed:
            plane = np.ascontiguousarray(plane.T)
        if coding.tools.transform:
            for matrix, stride in coding.tools.transform.steps:
                plane = apply_matrix(plane, self.matrices[matrix], stride)
        if not np.isfinite([plane.min(), plane.max()]).all():
            raise Corruption(f"tensor {self.record.name!r}: a value is beyond float32: the file is damaged")
        return plane

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


def read_side(record: Record, side: bytes, bank: ModelBank, matrices: Matrices, sums: bytes = b"") -> CodedTensor:
    """From the bytes of a coded tensor in front of its streams; Corruption if they are damaged.  sums: the checksums behind the streams,
    where the checksum of the unit is not known to hold."""
    coding = record.coding
    checks = np.frombuffer(sums, "<u4")
    if sums and checksum(side) != checks[0]:
        raise Corruption(f"tensor {record.name!r}: checksum of its side information differs: the file is damaged")
    grid = coding.grid(record.shape)
    fields = [coding.rows, coding.columns, coding.row_steps.codes, coding.column_steps.codes]
    numbers = [grid.rows, grid.columns, grid.rows, grid.columns]
    if coding.prediction:
        fields.append(coding.prediction.confidence)
        numbers.append(plane_shape(record.shape, coding.split)[0])
    if coding.tools.memory:
        fields += [coding.tools.memory.labels, coding.tools.memory.confidence]
        numbers += [grid.columns, grid.columns]
    place, arrays = 0, []
    for codes, number in zip(fields, numbers):
        arrays.append(decode_codes(codes.mode, codes.spread, side[place : place + codes.length], number))
        place += codes.length
    if coding.prediction and not ((-CERTAIN <= arrays[4]) & (arrays[4] <= 0)).all():
        raise Corruption(f"tensor {record.name!r}: a confidence is outside 0..1: the file is damaged")
    memory = read_memory(coding.tools.memory.limit, *arrays[-2:]) if coding.tools.memory else None
    cells = None
    if coding.tools.tree:
        cells = kernel_codes(decode_trees(side[place : place + coding.tools.tree.length], coding.tools.tree.model, grid).T)
        place += coding.tools.tree.length
    parts = []
    for tool in (coding.tools.outliers, coding.tools.codebook):
        length = tool.length if tool else 0
        parts.append(side[place : place + length])
        place += length
    step = 1.0 if LABELLINGS.value(coding.labelling) == "logarithmic" else coding.step
    rows, row_steps = _scales_and_steps(arrays[0], arrays[2], coding.row_steps, coding.base, step, coding.follow)
    columns, column_steps = _scales_and_steps(arrays[1], arrays[3], coding.column_steps, 0, 1.0, False)
    if coding.tools.codebook:
        rows = kernel_codes(arrays[0], coding.base)  # a row of larger steps has as many centroids as any other
    confidence = arrays[4] if coding.prediction else None
    return CodedTensor(
        record, bank, matrices, grid, rows, columns, row_steps, column_steps, confidence, memory, cells, tuple(parts), checks[1:]
    )


def as_tensor(record: Record, values: np.ndarray, shape: tuple[int, ...] | None = None) -> torch.Tensor:
    """Values float32 in the shape (default: that of the record) and dtype of the record."""
    tensor = torch.from_numpy(values).reshape(record.shape if shape is None else shape)
    if record.dtype != torch.float32:  # a value next to the largest number must not become infinite
        largest = torch.finfo(record.dtype).max
        tensor = tensor.clamp_(-largest, largest).to(record.dtype)
    return tensor


def _scales_and_steps(
    scales: np.ndarray, codes: np.ndarray, steps: Steps, base: int, step: float, follow: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Kernel codes (int16) and steps (float32) of an axis from its scale codes and step codes; Corruption if a step is beyond
    float32.
    """
    number = len(scales)
    indices, values = np.empty(number, np.int16), np.empty(number, np.float32)
    for at in range(0, number, BLOCK):
        block = slice(at, at + BLOCK)
        of_block = StepCodes(codes[block], steps.unit)
        values[block] = rebuild_steps(of_block, step, scales[block] if follow else None)
        indices[block] = kernel_codes(scales[block], base - of_block.index)
    return indices, values


def _lockstep_groups(tiles: Sequence[Tile]) -> list[list[int]]:
    """Places of CTUs in groups that decode together: four of one shape, or the rest."""
    by_shape: dict[tuple[int, int], list[int]] = {}
    for number, (top, bottom, left, right) in enumerate(tiles):
        by_shape.setdefault((bottom - top, right - left), []).append(number)
    return [numbers[i : i + 4] for numbers in by_shape.values() for i in range(0, len(numbers), 4)]
