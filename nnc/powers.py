"""Powers of a plane, and the scale codes of its rows and columns that are fitted to them.  Encoder only."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .entropy.explicit import ModelBank
from .entropy.parametric import CLASSES
from .entropy.scales import MOST, OFF, code_bits
from .kernels.planes import column_peaks, column_powers, row_peaks, row_powers
from .kernels.scales import choose_cheapest, fill_costs
from .quantize.steps import StepCodes
from .rdo import CENTRE, START_SHAPE, Scales, level_bits


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
    x = np.clip(index[live], 1, CLASSES)
    moved = np.zeros(len(x), np.int64) if moved is None else moved[live].astype(np.int64)
    if x.size == 0:
        return CENTRE if fixed is None else fixed, np.full(len(index), OFF, np.int16)
    first = 1 + int(moved.min())
    values = np.arange(first, CLASSES + int(moved.max()) + 1)  # index + moved
    cost = np.empty((len(x), len(values)))  # bits of each row under each of them
    fill_costs(x, moved, _mismatch(q)[:, 1:], float(weights), first, cost)
    base = int(np.clip(values[np.argmin(cost.sum(0))], 1, CLASSES)) if fixed is None else fixed
    codes = np.where(live, 0, OFF).astype(np.int16)
    chosen = np.clip(np.round(x), 1, CLASSES).astype(np.int64) + moved
    for _ in range(3):
        deviation = max(0.4, float(np.sqrt(np.mean((chosen - base) ** 2.0))))
        side = (values - base) ** 2 / (2 * deviation**2 * np.log(2)) + np.log2(deviation * np.sqrt(2 * np.pi))
        side[np.abs(values - base) >= MOST] = np.inf
        bits = choose_cheapest(cost, side, first, chosen)
    candidate = codes.copy()
    candidate[live] = chosen - base
    plain = cost[:, int(np.clip(base - first, 0, len(values) - 1))].sum() + code_bits(codes)
    return base, candidate if bits + code_bits(candidate) < plain else codes
