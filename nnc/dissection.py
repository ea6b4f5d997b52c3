"""How a coded tensor is cut into CTUs and CUs, and what each part costs: real bits, by decoding its levels."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from .archive import open_compressed
from .coder import lay_state, unpack_words
from .entropy.parametric import CLASSES
from .entropy.scales import kernel_codes
from .entropy.trees import Trees, read_trees
from .errors import Corruption, InvalidArgument
from .kernels.cells import measure_cells
from .partition.grid import Grid
from .partition.tree import CELL, CELL_BITS, SKIP, cell_shape, cell_tiles, leaf_places
from .quantize.trellis import LABELLINGS, make_trellis
from .reading import Stored


@dataclass(frozen=True, eq=False)
class CodingUnit:
    """A leaf, or a CTU without a tree.  top, bottom, left, right: of its weights in the plane; code: added to their scale indices, None if
    they are skipped; bits: of their levels."""

    top: int
    bottom: int
    left: int
    right: int
    code: int | None
    bits: float

    @property
    def weights(self) -> int:
        return (self.bottom - self.top) * (self.right - self.left)

    @property
    def size(self) -> tuple[int, int]:
        return self.bottom - self.top, self.right - self.left


@dataclass(frozen=True, eq=False)
class Partition:
    """One coded tensor.  grid: of its CTUs; tree_bytes: 0 without a tree; indices: mean scale index of the coded weights of every cell of
    8 x 8, NaN where none is coded; bits: float64, of the levels of every cell."""

    name: str
    shape: tuple[int, ...]
    transposed: bool
    grid: Grid
    step: float
    states: int
    labelling: str
    model: int
    base: int
    tree_bytes: int
    bytes: int
    units: tuple[CodingUnit, ...]
    indices: np.ndarray
    bits: np.ndarray

    def mean_indices(self, by: int) -> list[list[float | None]]:
        """Means of the scale indices in squares of by x by cells, None where nothing is coded."""
        live = np.isfinite(self.indices)
        down, across = (np.arange(0, size, by) for size in self.indices.shape)
        sums, numbers = (
            np.add.reduceat(np.add.reduceat(array, down, 0), across, 1)
            for array in (np.where(live, self.indices, 0), live.astype(float))
        )
        return [[s / n if n else None for s, n in zip(*rows)] for rows in zip(sums.tolist(), numbers.tolist())]


def dissect(path: str | os.PathLike, name: str) -> Partition:
    """The partition of one tensor of a compressed file or folder; needs no reference.  InvalidArgument if there is no such tensor or it is
    not coded, Corruption if its bytes are damaged."""
    with open_compressed(path) as archive:
        if name not in archive.sources:
            raise InvalidArgument(f"{path}: no tensor {name!r} in this file")
        stored = archive.read_stored(name)
    record = stored.record
    if record.kind == "tiled" or (record.coding and record.coding.tools.codebook):
        raise InvalidArgument(f"{path}: tensor {name!r} has tiles or a codebook in place of a partition: name another")
    if record.kind != "coded":
        raise InvalidArgument(
            f"{path}: tensor {name!r} is kept as {record.kind}, without loss: only coded tensors have a partition"
        )
    if stored.bank.network(record.coding.model):
        raise InvalidArgument(
            f"{path}: the levels of tensor {name!r} have no table for each scale, a network chooses them: name another"
        )
    return _dissect(stored, name)


def _dissect(stored: Stored, name: str) -> Partition:
    record, coding, latents = stored.record, stored.record.coding, stored.latents
    grid = coding.grid(record.shape)
    rows = kernel_codes(latents.rows, coding.base - latents.row_steps.index)
    columns = kernel_codes(latents.columns, -latents.column_steps.index)
    tree = coding.tools.tree
    before = coding.tools.memory.length if coding.tools.memory else 0
    trees = read_trees(stored.parts[before : before + tree.length], tree.model, grid) if tree else None
    cells, cut = (np.zeros((1, 1), np.int16), 62) if trees is None else (kernel_codes(trees.field), CELL_BITS)
    shape = cell_shape(grid.rows, grid.columns)
    bits, indices, coded = np.zeros(shape), np.zeros(shape), np.zeros(shape, np.int64)
    tables, trellis = stored.bank.table_set(coding.model).arrays, make_trellis(coding.states)
    common = (cells, cut, rows, columns, CLASSES, tables, trellis.next_state, coding.shift)
    for number, tile in enumerate(grid.tiles()):
        if stored.coder:
            words, state = stored.coder
            end = lay_state(words, state)
            state[:] = measure_cells(words, 0, end, *tile, *common, bits, indices, coded)
            continue
        words = unpack_words(stored.streams[number])
        if any(measure_cells(words, 0, len(words), *tile, *common, bits, indices, coded)):
            raise Corruption(f"tensor {record.name!r}: a stream does not end where it should: the file is damaged")
    with np.errstate(invalid="ignore"):
        indices = np.where(coded > 0, indices / np.maximum(coded, 1), np.nan)
    labelling, size = LABELLINGS.value(coding.labelling), coding.tools.tree.length if coding.tools.tree else 0
    return Partition(
        name,
        record.shape,
        coding.transposed,
        grid,
        coding.step,
        coding.states,
        labelling,
        coding.model,
        coding.base,
        size,
        round(bits.sum() / 8) if coding.joined else coding.length,
        _units(grid, trees, bits),
        indices,
        bits,
    )


def _units(grid: Grid, trees: Trees | None, bits: np.ndarray) -> tuple[CodingUnit, ...]:
    if trees is None:
        places, codes = cell_tiles(grid), [0] * grid.count
        if any(tile[0] % CELL or tile[2] % CELL for tile in grid.tiles()):  # bits are known by cell only
            return (CodingUnit(0, grid.rows, 0, grid.columns, 0, float(bits.sum())),)
    else:
        places, codes = leaf_places(trees.splits, grid), trees.codes.tolist()
    ends = np.minimum(CELL * places[:, [1, 3]], (grid.rows, grid.columns))
    return tuple(
        CodingUnit(
            CELL * top,
            int(end[0]),
            CELL * left,
            int(end[1]),
            None if code == SKIP else code,
            float(bits[top:bottom, left:right].sum()),
        )
        for (top, bottom, left, right), end, code in zip(places.tolist(), ends, codes)
    )
