"""Weights as points: how a plane is taken apart into vectors that a codebook stands for (weight rearrangement, US20220261616A1).

A mode turns a plane (rows = outputs, columns = inputs x taps of the kernel) into a grid of points of `size` components each, one
level per point; the inverse puts them back.  Whatever does not fit a shape evenly is not a legal mode for it.

    scalar              every weight                                       grid rows x columns
    sub-vector          `size` neighbouring columns of a row               grid rows x columns / size
    kernel              the taps of one output and one input               grid rows x inputs
    filter              a row, or its part in a sub-space                  grid rows x sub-spaces
    channel             all weights of an input, or those of a sub-space   grid inputs x sub-spaces
    column sub-vector   `size` neighbouring rows of a column               grid rows / size x columns

Sub-spaces (product quantization): the grid is divided into `across` x `along` blocks with a codebook each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import Corruption
from .registry import Table

MODES = Table("mode of points", {0: "scalar", 1: "sub-vector", 2: "kernel", 3: "filter", 4: "channel", 5: "column sub-vector"})
SIZED = ("sub-vector", "column sub-vector")


@dataclass(frozen=True)
class Layout:
    """Of the points of one plane.  rows, columns: of the plane; taps: neighbouring columns of one input; grid: points; size:
    components of each; across, along: sub-spaces over the rows and over the columns of the grid."""

    mode: str
    rows: int
    columns: int
    taps: int
    grid: tuple[int, int]
    size: int
    across: int = 1
    along: int = 1

    @property
    def inputs(self) -> int:
        return self.columns // self.taps

    def gather(self, plane: np.ndarray) -> np.ndarray:
        """Points (grid rows, grid columns, size) of a plane (rows, columns), any dtype."""
        high, wide = self.grid
        if self.mode == "channel":
            turned = plane.reshape(self.rows, self.inputs, self.taps).transpose(1, 0, 2)
            return np.ascontiguousarray(turned).reshape(high, wide, self.size)
        if self.mode == "column sub-vector":
            return np.ascontiguousarray(plane.reshape(high, self.size, wide).transpose(0, 2, 1))
        return plane.reshape(high, wide, self.size)

    def scatter(self, points: np.ndarray) -> np.ndarray:
        """Inverse of `gather`."""
        if self.mode == "channel":
            turned = points.reshape(self.inputs, self.rows, self.taps).transpose(1, 0, 2)
            return np.ascontiguousarray(turned).reshape(self.rows, self.columns)
        if self.mode == "column sub-vector":
            return np.ascontiguousarray(points.transpose(0, 2, 1)).reshape(self.rows, self.columns)
        return points.reshape(self.rows, self.columns)

    def books(self) -> np.ndarray:
        """Number of the codebook of every point: int64 grid."""
        high, wide = self.grid
        of_rows = np.arange(high, dtype=np.int64) * self.across // high
        of_columns = np.arange(wide, dtype=np.int64) * self.along // wide
        return of_rows[:, None] * self.along + of_columns


def lay_out(mode: str, plane: tuple[int, int], taps: int, size: int = 1, across: int = 1, along: int = 1) -> Layout:
    """The layout of a mode for a plane of (rows, columns), `taps` columns to an input; size: of sub-vectors.

    Corruption if it does not fit.
    """
    rows, columns = plane
    fits = columns % taps == 0 and size >= 1 and across >= 1 and along >= 1
    if mode == "scalar":
        grid, size = (rows, columns), 1
    elif mode == "sub-vector":
        fits = fits and size >= 2 and columns % size == 0
        grid = rows, columns // max(1, size)
    elif mode == "kernel":
        fits = fits and taps >= 2
        grid, size = (rows, columns // taps), taps
    elif mode == "filter":
        fits = fits and columns % max(1, along) == 0
        grid, size = (rows, along), columns // max(1, along)
    elif mode == "channel":
        fits = fits and rows % max(1, along) == 0
        grid, size = (columns // taps, along), rows // max(1, along) * taps
    else:
        fits = fits and size >= 2 and rows % size == 0
        grid = rows // max(1, size), columns
    if not fits or across > grid[0] or along > grid[1]:
        raise Corruption(
            f"points of mode {mode!r} and size {size} in {across} x {along} sub-spaces do not fit a plane of {rows} x {columns} "
            f"with {taps} taps: the file is damaged"
        )
    return Layout(mode, rows, columns, taps, grid, size, across, along)
