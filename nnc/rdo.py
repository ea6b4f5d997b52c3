"""Rate-distortion choices inside one plane: levels, entropy model.  Encoder only.

The distortion of a plane is the squared error of its weights in units of step^2, its rate the bits of the integer tables, and the
Viterbi search minimises `distortion + lagrangian * bits`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from .buffers import empty
from .entropy.explicit import TABLES, CodedTable, ExplicitSet, ModelBank
from .entropy.parametric import CLASSES
from .entropy.scales import OFF, kernel_codes
from .entropy.trees import Trees
from .kernels.groups import search_tiles as _search_tiles
from .kernels.planes import gather_codes, gather_tile
from .kernels.viterbi import search_scalar, search_trellis
from .kernels.words import count_levels, price_counts
from .partition.tree import CELL_BITS
from .quantize.steps import StepCodes, rebuild_steps
from .quantize.trellis import make_trellis

LOW, WIDTH = -160, 320  # levels of the rate and count arrays; the outer columns stand for everything beyond
CENTRE = 17  # scale index of a standard deviation of one level
START_SHAPE = 2


@dataclass(frozen=True, eq=False)
class Scales:
    """base: scale index added to all; rows, columns: int16 codes; shift: bypass bits; follow: whether the steps of the rows
    follow their codes; trees: codes of parts of the plane, None without.
    """

    base: int
    rows: np.ndarray
    columns: np.ndarray
    shift: int
    follow: bool
    of_rows: StepCodes
    of_columns: StepCodes
    trees: Trees | None = None

    @cached_property
    def kernel_rows(self) -> np.ndarray:
        return kernel_codes(self.rows, self.base - self.of_rows.index)

    @cached_property
    def kernel_columns(self) -> np.ndarray:
        return kernel_codes(self.columns, -self.of_columns.index)

    @cached_property
    def cells(self) -> tuple[np.ndarray, int]:
        """Codes of the cells as the kernels take them, int16, and by how many bits rows and columns are cut down to find theirs."""
        return (np.zeros((1, 1), np.int16), 62) if self.trees is None else (kernel_codes(self.trees.field), CELL_BITS)

    def offsets(self) -> list[int]:
        """What may be added to all scale indices without that one leaves 1..36."""
        rows, columns = self.kernel_rows[self.rows != OFF], self.kernel_columns[self.columns != OFF]
        if not rows.size or not columns.size:
            return [0]
        low, high = int(rows.min()) + int(columns.min()), int(rows.max()) + int(columns.max())
        if self.trees is not None and (live := self.trees.codes[self.trees.codes != OFF]).size:
            low, high = low + int(live.min()), high + int(live.max())
        return [0] + [o for o in (-1, 1, -2, 2) if low + o >= 1 and high + o <= CLASSES and 0 <= self.base + o <= CLASSES]

    @cached_property
    def _row_steps(self) -> dict[float, np.ndarray]:
        return {}

    def row_steps(self, step: float) -> np.ndarray:
        """float32 (rows,)."""
        if step not in self._row_steps:  # they are asked for with every CTU
            self._row_steps[step] = rebuild_steps(self.of_rows, step, self.rows if self.follow else None)
        return self._row_steps[step]

    def grid_steps(self, step: float) -> np.ndarray:
        """float32 (rows,): what the peaks of a relative plane are measured against."""
        return self.row_steps(step) if self.follow else np.full(len(self.rows), step, np.float32)

    def factors(self, step: float) -> tuple[np.ndarray, np.ndarray]:
        """One over the steps of rows and columns, float32."""
        return 1 / self.row_steps(step), 1 / self.column_steps()

    def column_steps(self) -> np.ndarray:
        """float32 (columns,), factors of the steps of the rows."""
        return self._column_steps

    @cached_property
    def _column_steps(self) -> np.ndarray:
        return rebuild_steps(self.of_columns, 1.0)


@dataclass(frozen=True)
class Search:
    """How to look for levels: states of the trellis, labelling, Lagrangian in step^2 per bit, passes with re-fitted tables."""

    states: int
    labelling: int
    lagrangian: float
    passes: int
    trees: bool = False


@lru_cache(maxsize=128)
def level_bits(bank: ModelBank, model: int) -> np.ndarray:
    """Bits of level `LOW + column` in every table of a model: float32 (TABLES, WIDTH); escapes included."""
    bits = np.full((TABLES, WIDTH), 40.0, np.float32)
    levels = np.arange(LOW, LOW + WIDTH)
    for number, table in bank.frequencies(model).items():
        cost = 24 - np.log2(table.counts)
        beyond = np.where(levels < table.low, table.low - levels, levels - table.high).clip(1)
        bits[number] = cost[-1] + 6 + np.floor(np.log2(beyond))
        inside = slice(table.low - LOW, table.high - LOW + 1)
        bits[number, inside] = cost[:-1]
    return bits


@dataclass(frozen=True, eq=False)
class Gathered:
    """The coded weights of one CTU in scan order. x: float32 in steps; codes: uint8 scale indices; position: index in the plane."""

    x: np.ndarray
    codes: np.ndarray
    position: np.ndarray


def gather(plane: np.ndarray, tile: tuple[int, int, int, int], scales: Scales, step: float) -> Gathered:
    """Weights of a CTU that are coded at all, with their scale indices."""
    top, bottom, left, right = tile
    area = (bottom - top) * (right - left)
    x, codes, position = (
        np.empty(area, np.float32),
        np.empty(area, np.uint8),
        np.empty(area, np.uint32 if plane.size < 1 << 32 else np.int64),
    )
    n = gather_tile(
        plane, *tile, scales.kernel_rows, scales.kernel_columns, *scales.cells, CLASSES, *scales.factors(step), x, codes, position
    )
    return Gathered(x[:n], codes[:n], position[:n])


def search_tiles(
    plane: np.ndarray, tiles: Sequence[tuple[int, int, int, int]], scales: Scales, step: float, bits: np.ndarray, search: Search
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Levels of some CTUs as of `find_levels`, one after the other; where those of each end; and how often each occurs as of `count`."""
    places = np.array(tiles, np.int64)
    areas = (places[:, 1] - places[:, 0]) * (places[:, 3] - places[:, 2])
    largest, trellis = int(areas.max()), make_trellis(search.states)
    scratch = empty(largest, np.float32), empty(largest, np.uint8), empty(largest, np.uint32 if plane.size < 1 << 32 else np.int64)
    levels, ends, counts = empty(int(areas.sum()), np.int32), np.empty(len(places), np.int64), np.zeros((TABLES, WIDTH), np.int64)
    rate, warm = bits * np.float32(search.lagrangian), _warm_up(search.states)
    _search_tiles(
        plane, places, scales.kernel_rows, scales.kernel_columns, *scales.cells, CLASSES, *scales.factors(step), rate, LOW, scales.shift,
        search.labelling, trellis.predecessors, trellis.next_state, warm, *scratch, levels, ends, counts,
    )  # fmt: skip
    return levels[: ends[-1]], ends, counts


def codes_of(tile: tuple[int, int, int, int], scales: Scales) -> np.ndarray:
    """Only the scale indices of the same: uint8 (n,)."""
    top, bottom, left, right = tile
    codes = np.empty((bottom - top) * (right - left), np.uint8)
    n = gather_codes(*tile, scales.kernel_rows, scales.kernel_columns, *scales.cells, CLASSES, codes)
    return codes[:n]


def find_levels(weights: Gathered, bits: np.ndarray, shift: int, search: Search) -> np.ndarray:
    """Levels of a CTU by Viterbi (one state: scalar) search under the code lengths `bits`: int32 (n,)."""
    levels = np.empty(len(weights.x), np.int32)
    if levels.size == 0:
        return levels
    rate = bits * np.float32(search.lagrangian)
    if search.states == 1:
        search_scalar(weights.x, weights.codes, rate, LOW, shift, np.float32(1), levels)
    else:
        search_trellis(
            weights.x,
            weights.codes,
            rate,
            LOW,
            shift,
            search.labelling,
            make_trellis(search.states).predecessors,
            _warm_up(search.states),
            levels,
        )
    return levels


def _warm_up(states: int) -> int:
    """Weights after which the survivors of a trellis have merged, but for 0.1 % of the cost of 100 weights (measured)."""
    return 128 if states <= 16 else 192


def count(levels: np.ndarray, codes: np.ndarray, states: int, shift: int) -> np.ndarray:
    """How often each level occurs in each table: int64 (TABLES, WIDTH)."""
    counts = np.zeros((TABLES, WIDTH), np.int64)
    count_levels(levels, codes, make_trellis(states).next_state, shift, LOW, counts)
    return counts


def choose_model(counts: np.ndarray, bank: ModelBank, offsets: Sequence[int] = (0, -1, 1, -2, 2)) -> tuple[int, int, float]:
    """The model that codes `counts` in the fewest bits, and the offset of all scale indices that is best with it: (model, offset,
    bits)."""
    used = np.flatnonzero(counts.any(1))

    def bits(model: int, offset: int) -> float:
        numbers = used + 2 * offset
        if numbers.size and (numbers[0] < 2 or numbers[-1] >= TABLES):
            return np.inf
        return price_counts(counts, used, level_bits(bank, model), 2 * offset)

    best = min((bits(model, 0), model, 0) for model in range(bank.count))
    best = min([best] + [(bits(best[1], offset), best[1], offset) for offset in offsets if offset])
    return best[1], best[2], best[0]


def first_model(bank: ModelBank) -> int:
    """Model to search with before anything is counted: the last explicit set, else the middle shape."""
    return bank.count - 1 if bank.sets else START_SHAPE


def move(scales: Scales, offset: int) -> Scales:
    return replace(scales, base=scales.base + offset)


def fit_explicit_set(counts: np.ndarray, shape: int, gain_factor: float = 1.0) -> ExplicitSet:
    """Coded tables where they save more bits than they cost; `counts` int64 (TABLES, WIDTH), `gain_factor` = real weights per
    counted one.

    A table fitted to a sample codes the sample better than the rest, by half a parameter's worth of log2(e) on either side: that
    is taken off the gain.
    """
    parametric = level_bits(ModelBank(), shape)
    tables = []
    for number in np.flatnonzero(counts.sum(1) >= 64):
        row = counts[number].astype(np.float64)
        prior = 2.0 ** -parametric[number].astype(np.float64)
        smooth = row + 24 * prior / prior.sum()
        present = np.flatnonzero(row)
        first, last = max(int(present[0]), -128 - LOW), min(int(present[-1]), 127 - LOW)  # beyond: the escape
        if last < first:
            continue
        inside = smooth[first : last + 1]
        rest = smooth.sum() - inside.sum() + 0.05
        p = np.append(inside, rest)
        lengths = np.clip(np.round(-8 * np.log2(p / p.sum())), 0, 160).astype(int)
        table = CodedTable(first + LOW, tuple(int(v) for v in lengths))
        final = table.frequencies().counts
        new = (row[first : last + 1] * (24 - np.log2(final[:-1]))).sum() + (row.sum() - row[first : last + 1].sum()) * (
            32 - np.log2(final[-1])
        )
        old = (row * parametric[number]).sum()
        if (old - new - 1.44 * len(lengths)) * gain_factor > 16 + 5 * len(lengths):
            tables.append((int(number), table))
    return ExplicitSet(shape, tuple(tables))
