"""A plane to be cut, the statistics of its cells, and the test that tells whether there is anything to find."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..entropy.explicit import TABLES, ModelBank
from ..entropy.parametric import CLASSES
from ..entropy.scales import OFF, code_bits, kernel_codes
from ..kernels.splitting import cell_costs, cell_moments, count_cells, place_levels
from ..kernels.streams import DEAD
from ..partition.grid import Grid
from ..partition.tree import CELL, FLAGS, LEAST, MOST, cell_shape
from ..quantize.trellis import make_trellis
from ..rdo import CENTRE, LOW, WIDTH, Scales, Search, gather, level_bits

HEAD = 8 * (FLAGS + 4)  # bits of the fields of a tree
LEAST_GAIN = 0.003  # of the bits: below, a tree is not worth the slower decoder
FEW_BITS = 0.5  # per weight, of a plane that is coded coarsely
LEAF = 6  # bits of a leaf, roughly
FAR = np.float32(1e9)  # a choice that there is not
LARGEST = 33  # scale index that still has room in its table for what is larger
WIDEST = 48  # codes that are tried, and zero


@dataclass(frozen=True, eq=False)
class Task:
    """A plane to be cut.  scales: of its rows and columns; step: of the grid of levels; levels int32, quantizers uint8 (rows, columns): that
    were found without trees, or with those that `frozen` is of; frozen: cells that are skipped and no others, None for a free choice;
    depth: log2 of the side of all CUs, in cells, None for a free choice."""

    plane: np.ndarray
    grid: Grid
    scales: Scales
    step: float
    bank: ModelBank
    search: Search
    levels: np.ndarray
    quantizers: np.ndarray
    frozen: np.ndarray | None = None
    depth: int | None = None

    def count(self, field: np.ndarray) -> np.ndarray:
        """Levels per table with the codes `field` of the cells: int64 (TABLES, WIDTH)."""
        counts = np.zeros((TABLES, WIDTH), np.int64)
        codes = self.scales.kernel_rows, self.scales.kernel_columns, kernel_codes(field)
        count_cells(self.levels, self.quantizers, *codes, CLASSES, self.scales.shift, LOW, counts)
        return counts

    def side(self) -> int:
        """Bits of the codes of rows and columns."""
        return sum(code_bits(codes) for codes in (self.scales.rows, self.scales.columns))

    def price(self, window: tuple[int, int], model: int) -> tuple[np.ndarray, np.ndarray]:
        """Bits of all cells under the codes of the window: float32 (cells down, cells across, codes); what their weights lose by being
        skipped, in squared steps: float32 (cells)."""
        first, codes = window
        shape = cell_shape(*self.plane.shape)
        costs, energy = np.empty((*shape, codes), np.float32), np.empty(shape, np.float32)
        least = 1 - codes  # whatever a weight's own index is, all codes of the window lead to a column of this
        columns = np.clip(np.arange(least, CLASSES + codes + 1), 1, CLASSES)
        of_tables = level_bits(self.bank, model)
        quantizers = (1, 1) if self.scales.shift else (0, 1)
        bits = np.stack([of_tables[2 * columns + quantizer].T for quantizer in quantizers]) + np.float32(self.scales.shift)
        factors = step_factors(self.scales, self.step)
        spacing = make_trellis(self.search.states).spacing
        cell_costs(
            self.plane,
            self.levels,
            self.quantizers,
            self.scales.kernel_rows,
            self.scales.kernel_columns,
            *factors,
            spacing,
            self.search.labelling,
            self.scales.shift,
            LOW,
            bits,
            first,
            least,
            costs,
            energy,
        )
        if self.frozen is not None:
            costs[self.frozen] = FAR
            energy[self.frozen], energy[~self.frozen] = 0, FAR
        return costs, energy


def place(
    levels: list[np.ndarray], plane: np.ndarray, grid: Grid, scales: Scales, step: float, states: int
) -> tuple[np.ndarray, np.ndarray]:
    """Levels and quantizers of a plane, as of `Task`, from the levels of its CTUs in scan order; scales: that they were found with."""
    planes = np.zeros(plane.shape, np.int32), np.zeros(plane.shape, np.uint8)
    following = make_trellis(states).next_state
    for found, tile in zip(levels, grid.tiles()):
        place_levels(found, gather(plane, tile, scales, step).position, following, *planes)
    return planes


def step_factors(scales: Scales, step: float) -> tuple[np.ndarray, np.ndarray]:
    """float32, one over the steps of rows and columns."""
    return 1 / scales.row_steps(step), 1 / scales.column_steps()


def _moments(plane: np.ndarray, scales: Scales, step: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums of magnitudes and squares of the weights over what their codes make them expect, and their numbers: float64 (cells)."""
    moments = tuple(np.zeros(cell_shape(*plane.shape)) for _ in range(3))
    factors = []
    axes = (scales.rows, scales.kernel_rows), (scales.columns, scales.kernel_columns)
    for (codes, kernel), inverse in zip(axes, step_factors(scales, step)):
        factors.append(np.where(codes == OFF, 0, inverse * 2.0 ** (-kernel.astype(np.float64) / 4)))
    cell_moments(plane, *factors, *moments)
    return moments


def deviates(plane: np.ndarray, scales: Scales, step: float) -> bool:
    """Whether cells differ by more than chance, at some size, and by enough to pay for leaves of that size."""
    sums, squares, numbers = _moments(plane, scales, step)
    total = numbers.sum()
    if total < 64 or sums.sum() == 0:
        return False
    mean = sums.sum() / total
    while sums.size > 1:
        live = numbers >= 8
        n, of_block = numbers[live], sums[live] / numbers[live]
        chance = np.maximum(squares[live] / n - of_block**2, 0) / n
        gain = float((n * ((of_block - mean) ** 2 - chance)).sum()) / mean**2 / np.log(2)
        if gain > LEAF * len(n) + HEAD + LEAST_GAIN * FEW_BITS * total:
            return True
        sums, squares, numbers = (_halve(_halve(array, 0), 1) for array in (sums, squares, numbers))
    return False


def _halve(array: np.ndarray, axis: int) -> np.ndarray:
    """Sums of neighbours along an axis; an odd one at the end stays."""
    edges = np.arange(0, array.shape[axis], 2)
    return np.add.reduceat(array, edges, axis=axis)


def _missing(task: Task, magnitudes: np.ndarray) -> np.ndarray:
    """What the codes of cells must add to the scale indices, from the mean magnitudes of `_moments`."""
    return (
        4 * np.log2(magnitudes / (make_trellis(task.search.states).spacing * 2**task.scales.shift) * np.sqrt(np.pi / 2)) + CENTRE
    )


def lower_shift(task: Task) -> Scales:
    """The scales with as few bypass bits as a tree needs: what is typical of rows is that of their largest parts."""
    scales = task.scales
    if scales.shift == 0 or task.frozen is not None:
        return scales
    rows, columns = (np.where(codes > DEAD, codes, 0).astype(np.float64) for codes in (scales.kernel_rows, scales.kernel_columns))
    sums, _, numbers = _moments(task.plane, task.scales, task.step)
    live = (numbers > 0) & (sums > 0)
    index = _mean_of_cells(rows)[:, None] + _mean_of_cells(columns)
    top = np.quantile(index[live] + _missing(task, sums[live] / numbers[live]), 0.95) - LARGEST
    less = min(scales.shift, max(0, int(-top // 4)))
    return replace(scales, shift=scales.shift - less, base=min(scales.base + 4 * less, CLASSES))


def _mean_of_cells(codes: np.ndarray) -> np.ndarray:
    starts = np.arange(0, len(codes), CELL)
    return np.add.reduceat(codes, starts) / np.diff(np.append(starts, len(codes)))


def find_window(task: Task) -> tuple[int, int]:
    """Codes to try, the first and their number: all that cells ask for, and zero."""
    sums, _, numbers = _moments(task.plane, task.scales, task.step)
    live = (numbers > 0) & (sums > 0)
    if not live.any():
        return 0, 1
    wanted = _missing(task, sums[live] / numbers[live])
    low, high = np.quantile(wanted, (0.002, 0.998))  # few cells are no reason to try all
    low, high = int(np.floor(low)) - 3, int(np.ceil(high)) + 3
    rows, columns = (codes[codes > DEAD] for codes in (task.scales.kernel_rows, task.scales.kernel_columns))
    least, most = int(rows.min()) + int(columns.min()), int(rows.max()) + int(columns.max())
    low, high = max(low, 1 - most, LEAST), min(high, CLASSES - least, MOST)
    low, high = min(low, 0), max(high, 0)
    if high - low >= WIDEST:
        low, high = max(low, min(0, (low + high - WIDEST) // 2)), min(high, max(0, (low + high + WIDEST) // 2))
    return low, high - low + 1
