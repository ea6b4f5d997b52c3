"""Levels of a plane whose errors are fed back into the columns still to come: the closed-form substitute of METHODS S8."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .entropy.parametric import CLASSES
from .kernels.feedback import search_band
from .kernels.streams import DEAD
from .partition.grid import Grid
from .prediction.memory import MemoryCodes
from .quantize.trellis import make_trellis
from .rdo import LOW, Scales, Search
from .sensitivity import Sensitivity


def find_levels_with_feedback(
    plane: np.ndarray,
    grid: Grid,
    scales: Scales,
    step: float,
    bits: np.ndarray,
    search: Search,
    sensitivity: Sensitivity | None,
    run: Callable,
    memory: MemoryCodes | None = None,
    keep: bool = True,
    worths: np.ndarray | None = None,
) -> tuple[list[np.ndarray], np.ndarray | None]:
    """Levels of every CTU in scan order (as `rdo.find_levels`, in raster order of the CTUs), and the plane of the weights that were
    quantized in place of the given ones.

    sensitivity: None if errors are not fed back.  memory: foretells columns; what is returned in place of the weights is then what is left
    of them; None without `keep`.  worths: float32 (columns,), what squared errors count, in steps^2; None for one.  run: `map` or that of a pool, over bands of rows where these do not depend on each other.
    """
    trellis = make_trellis(search.states)
    rate = bits * np.float32(search.lagrangian)
    row_steps, column_steps = scales.row_steps(step), scales.column_steps()
    rows, columns = scales.kernel_rows, scales.kernel_columns
    cells, cut = scales.cells
    replaced = np.empty_like(plane) if keep else None
    none = np.empty((grid.rows, 0), np.float32)
    matrix = _scaled_feedback(sensitivity.down, row_steps) if sensitivity else none
    upper = sensitivity.upper if sensitivity else np.empty((grid.columns, 0), np.float32)
    worths = np.ones(grid.columns, np.float32) if worths is None else worths
    memory = memory or MemoryCodes(0, np.empty(0, np.int16), np.empty(0, np.int16))
    apart = not (matrix.shape[1] or upper.shape[1])
    height, width = (grid.height if not matrix.shape[1] else grid.rows), (grid.width if apart else grid.columns)
    dead = min(rows.min(initial=0), columns.min(initial=0), cells.min(initial=0)) < DEAD

    def work(part: tuple[int, int]) -> list[np.ndarray]:
        top, left = part
        bottom, right = min(top + height, grid.rows), min(left + width, grid.columns)
        target = np.array(plane[top:bottom, left:right].T, order="C")
        levels = np.zeros(target.shape, np.int32)
        search_band(
            target,
            upper,
            matrix[top:bottom],
            grid.height,
            grid.width,
            rows[top:bottom],
            columns[left:right],
            cells[top >> cut :, left >> cut :],
            cut,
            CLASSES,
            row_steps[top:bottom],
            column_steps[left:right],
            rate,
            LOW,
            scales.shift,
            search.labelling,
            trellis.next_state,
            trellis.predecessors,
            memory.labels[left:right],
            memory.trust[left:right],
            memory.floor,
            worths[left:right],
            levels,
        )
        if keep:
            replaced[top:bottom, left:right] = target.T
        tiles = [
            (slice(first, first + grid.width), slice(high, high + grid.height))
            for high in range(0, bottom - top, grid.height)
            for first in range(0, right - left, grid.width)
        ]
        if not dead:
            return [levels[tile].reshape(-1) for tile in tiles]
        of_cells = cells[np.ix_(np.arange(top, bottom) >> cut, np.arange(left, right) >> cut)].T
        live = columns[left:right, None].astype(np.int32) + rows[top:bottom] + of_cells > DEAD
        return [levels[tile][live[tile]] for tile in tiles]

    bands = run(work, [(top, left) for top in range(0, grid.rows, height) for left in range(0, grid.columns, width)])
    return [levels for band in bands for levels in band], replaced


def _scaled_feedback(down: np.ndarray, row_steps: np.ndarray) -> np.ndarray:
    """What an error in a row, in steps, adds to each row below, in steps of that; float32 (rows, rows) or (rows, 0)."""
    if not down.shape[1]:
        return down
    return (down / np.diagonal(down)[:, None] * row_steps[:, None] / row_steps).astype(np.float32)
