"""Rate-distortion choices inside one plane: scale codes, levels, entropy model.  Encoder only.

The distortion of a plane is the squared error of its weights in units of step^2, its rate the bits of the integer tables, and the
Viterbi search minimises `distortion + lagrangian * bits`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from .entropy.explicit import TABLES, CodedTable, ExplicitSet, ModelBank
from .entropy.parametric import CLASSES
from .entropy.scales import MOST, OFF, encode_codes, kernel_codes
from .entropy.trees import Trees
from .kernels.planes import column_peaks, column_powers, gather_codes, gather_tile, row_peaks, row_powers
from .kernels.viterbi import search_scalar, search_trellis
from .kernels.words import count_levels
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


@lru_cache(maxsize=8)
def _mismatch(quantizer: int) -> np.ndarray:
    """Bits per weight when weights of scale index a are coded with the table of b: float64 (CLASSES + 1, CLASSES + 1)."""
    bits = level_bits(ModelBank(), START_SHAPE)[quantizer::2].astype(np.float64)
    p = 2.0**-bits
    p[0] = 0
    return p @ bits.T


@dataclass(frozen=True, eq=False)
class Powers:
    """What the scales of a plane are chosen from.  rows, columns: float64 mean squares, of the columns after the rows were scaled to
    one and the rows after the columns were; peaks: largest magnitude of every row; rms: of the plane, not finite if a weight is not."""

    rows: np.ndarray
    columns: np.ndarray
    peaks: np.ndarray
    rms: float


def measure_powers(plane: np.ndarray) -> Powers:
    """Powers of a float32 plane, in five passes over it."""
    rows, columns = plane.shape
    of_rows, peaks, of_columns = np.empty(rows), np.empty(rows), np.ones(columns)
    along, down, highest, kept = row_powers, column_powers, row_peaks, plane
    if plane.flags.f_contiguous and not plane.flags.c_contiguous:
        along, down, highest, kept = column_powers, row_powers, column_peaks, plane.T
    along(kept, np.ones(columns), of_rows)
    highest(kept, peaks)
    rms = float(np.sqrt(of_rows.mean()))
    if rows > 1 and np.isfinite(rms):
        down(kept, _inverse_root(of_rows), of_columns)
        if columns > 1:
            along(kept, _inverse_root(of_columns), of_rows)
            down(kept, _inverse_root(of_rows), of_columns)
    return Powers(of_rows, of_columns, peaks, rms)


def fit_scales(
    powers: Powers,
    spacing: float,
    follow: bool = False,
    steps: tuple[StepCodes, StepCodes] | None = None,
    shift: int | None = None,
) -> Scales:
    """Scale codes for a plane whose quantizers have neighbouring values `spacing` apart: rows, columns, both or none, whatever
    costs least.

    follow: the steps of the rows follow their scales, `step * 2^(code / 8)`, so that rows of large weights are quantized more
    coarsely.  steps: of the rows and columns, if they have some of their own; the powers are then those of the plane over these.
    shift: bypass bits, if they are given.
    """
    rows, columns = len(powers.rows), len(powers.columns)
    of_rows, of_columns = steps or (StepCodes.even(rows), StepCodes.even(columns))
    power_of_rows, power_of_columns = powers.rows, powers.columns
    row_scale, column_scale = _inverse_root(power_of_rows), _inverse_root(power_of_columns)
    row_index = CENTRE - 4 * np.log2(np.where(power_of_rows > 0, row_scale, 1) * spacing)
    column_index = -4 * np.log2(np.where(power_of_columns > 0, column_scale, 1)) if rows > 1 else np.zeros(columns)
    live_rows, live_columns = power_of_rows > 0, (power_of_columns > 0 if rows > 1 else np.ones(columns, bool))
    middle = float(np.median(column_index[live_columns])) if live_columns.any() else 0.0
    row_index, column_index = row_index + middle, column_index - middle
    top = float(np.median(row_index[live_rows])) if live_rows.any() else CENTRE
    shift = choose_shift(top) if shift is None else shift
    row_index = row_index - 4 * shift
    q = 1 if shift else 0
    if follow:
        base, row_codes = _follow_codes(row_index, live_rows, columns)
    else:
        base, row_codes = _choose_codes(row_index, live_rows, columns, q, moved=of_rows.index)
    if rows == 1:
        return Scales(base, row_codes, np.zeros(columns, np.int16), shift, follow, of_rows, of_columns)
    typical = base - int(np.median(of_rows.index))
    _, column_codes = _choose_codes(column_index + typical, live_columns, rows, q, typical, of_columns.index)
    return Scales(base, row_codes, column_codes, shift, follow, of_rows, of_columns)


def choose_shift(index: float) -> int:
    """Bypass bits for a plane whose typical scale index is `index`: tables serve standard deviations of up to five levels."""
    return min(16, max(0, int(np.ceil((index - 26) / 4))))


def _inverse_root(power: np.ndarray) -> np.ndarray:
    return 1 / np.sqrt(np.where(power > 0, power, np.inf)) + (power <= 0)


def _follow_codes(index: np.ndarray, live: np.ndarray, weights: int) -> tuple[int, np.ndarray]:
    """Codes of rows whose steps follow them.  A code moves the step by 1/8 octave and the scale index by 1/4: together 3/8 octave
    of the row's scale.

    The scale of a row of few weights is uncertain (variance 1 / 2n of its logarithm): shrunk towards the middle accordingly.
    """
    x = index[live]
    codes = np.where(live, 0, OFF).astype(np.int16)
    if x.size == 0:
        return CENTRE, codes
    middle = float(np.mean(x))
    noise = (4 / np.log(2)) ** 2 / (2 * weights)
    spread = float(np.var(x))
    trust = max(0.0, spread - noise) / spread if spread > 0 else 0.0
    codes[live] = np.clip(np.round((x - middle) * trust * (2 / 3)), 1 - MOST, MOST)
    return int(np.clip(round(middle), 1, CLASSES)), codes


def _choose_codes(
    index: np.ndarray, live: np.ndarray, weights: int, q: int, fixed: int | None = None, moved: np.ndarray | None = None
) -> tuple[int, np.ndarray]:
    """Code of every row (or column) with `weights` weights and the real scale index `index`: data bits + code bits least.

    moved: what the step of each lowers its scale index by, so that a code stands for that much more.  Returns the common base (the
    best single one, or `fixed`) and the codes, all zero if codes do not pay.
    """
    table = _mismatch(q)
    x = np.clip(index[live], 1, CLASSES)
    moved = np.zeros(len(index), np.int64) if moved is None else moved
    if x.size == 0:
        return CENTRE if fixed is None else fixed, np.full(len(index), OFF, np.int16)
    below = np.minimum(x.astype(np.int64), CLASSES - 1)
    part = (x - below)[:, None]
    low, slope = table[:, 1:], np.diff(table[:, 1:], axis=0)
    cost = weights * (low[below] + part * slope[below])  # bits of each row under each scale index 1..36
    first = 1 + int(moved[live].min())
    values = np.arange(first, CLASSES + int(moved[live].max()) + 1)  # index + moved
    if moved.any():
        cost = np.take_along_axis(cost, np.clip(values - moved[live][:, None], 1, CLASSES) - 1, 1)
    base = int(np.clip(values[np.argmin(cost.sum(0))], 1, CLASSES)) if fixed is None else fixed
    codes = np.where(live, 0, OFF).astype(np.int16)
    chosen = np.clip(np.round(x), 1, CLASSES).astype(np.int64) + moved[live]
    for _ in range(3):
        deviation = max(0.4, float(np.sqrt(np.mean((chosen - base) ** 2.0))))
        side = (values - base) ** 2 / (2 * deviation**2 * np.log(2)) + np.log2(deviation * np.sqrt(2 * np.pi))
        side[np.abs(values - base) >= MOST] = np.inf
        chosen = values[np.argmin(cost + side, 1)]
    candidate = codes.copy()
    candidate[live] = chosen - base
    plain = cost[:, int(np.clip(base - first, 0, len(values) - 1))].sum() + 8 * len(encode_codes(codes)[2])
    coded = np.take_along_axis(cost, chosen[:, None] - first, 1).sum() + 8 * len(encode_codes(candidate)[2])
    return base, candidate if coded < plain else codes


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
        search_scalar(weights.x, weights.codes, rate, LOW, shift, levels)
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
    weights = counts[used]

    def bits(model: int, offset: int) -> float:
        numbers = used + 2 * offset
        if numbers.size and (numbers.min() < 2 or numbers.max() >= TABLES):
            return np.inf
        return float((weights * level_bits(bank, model)[numbers]).sum())

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
