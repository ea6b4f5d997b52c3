"""Trees below the CTU: a CTU is cut into coding units (CU), each with a scale code of its own (CTU > CU partitions, US20220360778A1;
quadtree with nested binary trees as of the video codecs).

A plane has cells of CELL x CELL weights; a node is a rectangle of cells, the root all cells of a CTU.  An axis of n > 1 cells is cut after
the largest power of two below n, so every part of a cut has cells and those beyond a ragged edge cost nothing:

    both         square nodes only: two cuts, four parts
    horizontal   one cut between rows
    vertical     one cut between columns

A node is square if the two sides, rounded up to powers of two, are equal.  The code of a leaf is added to the scale index of its weights;
SKIP says that they are not coded.  All nodes are visited in depth, upper before lower and left before right, CTU by CTU, so the cells to
the left of a node and above it are known when it is read: they predict its flags and its code.
"""

from __future__ import annotations

import numpy as np

from ..errors import Corruption
from .grid import Grid

CELL_BITS = 3
CELL = 1 << CELL_BITS
SKIP = -64
LEAST, MOST = -63, 64  # codes of leaves that are coded
FLAGS = 18  # contexts: 12 split, 1 binary, 2 direction, 3 skip; see kernels/trees.py


def cell_shape(rows: int, columns: int) -> tuple[int, int]:
    """Cells of a plane, down and across."""
    return -(-rows // CELL), -(-columns // CELL)


def check_cells(grid: Grid) -> None:
    """Corruption if a CTU of a plane with trees starts inside a cell."""
    if (grid.height < grid.rows and grid.height % CELL) or (grid.width < grid.columns and grid.width % CELL):
        raise Corruption(f"CTU of {grid.height} x {grid.width} with a tree: not a multiple of {CELL}: the file is damaged")


def cell_tiles(grid: Grid) -> np.ndarray:
    """int64 (CTUs, 4): top, bottom, left, right of every CTU in cells."""
    tiles = np.array(grid.tiles(), np.int64)
    tiles[:, [1, 3]] += CELL - 1
    return tiles >> CELL_BITS


def leaf_places(splits: np.ndarray, grid: Grid) -> np.ndarray:
    """int64 (leaves, 4): top, bottom, left, right in cells of the leaves of the trees with the cuts `splits` (0 none, 1 both, 2 horizontal,
    3 vertical), in their order."""
    cuts, found = iter(splits.tolist()), []
    stack = [tuple(tile) for tile in cell_tiles(grid)[::-1].tolist()]
    while stack:
        top, bottom, left, right = stack.pop()
        kind = next(cuts)
        if kind == 0:
            found.append((top, bottom, left, right))
            continue
        across, down = top + _half(bottom - top), left + _half(right - left)
        rows = [(top, bottom)] if kind == 3 else [(across, bottom), (top, across)]
        columns = [(left, right)] if kind == 2 else [(down, right), (left, down)]
        stack += [(*row, *column) for row in rows for column in columns]
    return np.array(found, np.int64)


def _half(size: int) -> int:
    """Cells before the cut of an axis."""
    return 1 << (size - 1).bit_length() >> 1
