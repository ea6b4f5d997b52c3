"""What an error in each weight of a plane costs, from calibration: relative steps, and the matrix that feeds errors back.

The loss of an error E of a plane is predicted as `1/2 tr(R E C E^T)` (calibration/statistics.py).  With `R^-1 = T^T T` and
`C^-1 = U^T U`, both upper triangular, it is `1/2 sum e_ij^2 / (T_ii U_jj)^2`, e the errors after feedback.  Every weight costs the same
at the same slope if

    step_ij = s * T_ii * U_jj

which is within a quarter bit of the information limit for any C with a scalar quantizer, and one s serves all tensors.

Caps: no step of a row or column may exceed MOST_SPACING times its own spread (per quantizer).  A dead input or an insensitive output
would otherwise get a step at which every weight becomes plus or minus a step; and where the calibration saw nothing, other data may.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import frexp, ldexp

import numpy as np
import torch

from .calibration.statistics import TensorStatistics
from .entropy.scales import MOST, code_bits
from .kernels.planes import row_powers
from .quantize.steps import UNITS, StepCodes
from .quantize.trellis import make_trellis

DAMPING = (0.1, 0.01)  # of the diagonals of R and C: with outlier inputs their mean would drown all others
FEW_ROWS = 48  # planes with fewer are transposed, so that a column of the trellis is long
LEAST = 1e-4  # sensitivities below this part of their mean are taken for as much
MOST_SHRUNK = 0.25  # of what an error costs: beyond, the caps of the steps bind
SHRUNK, SEARCHED = 0.25, 0.8  # parts of the price of bits that are counted in the target, and in the search for levels
MOST_SPACING = 4.0  # distance of the values of one quantizer, of the rms of a row or column


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """Of one plane (transposed: the plane is the transposed one).  rows: float64 (m,) and columns: float64 (n,), steps up to the common
    factor; down, upper: float32 (m, m) and (n, n), U of either side, (m, 0) and (n, 0) where errors are not fed back."""

    rows: np.ndarray
    columns: np.ndarray
    down: np.ndarray
    upper: np.ndarray
    transposed: bool
    statistics: TensorStatistics

    @property
    def mean_octave(self) -> float:
        """Mean of the logarithm (base 2) of the steps."""
        return float(np.log2(self.rows).mean() + np.log2(self.columns).mean())

    def loss(self, error: np.ndarray) -> float:
        """Predicted loss of the error of the (transposed) plane."""
        return self.statistics.loss(error.T if self.transposed else error)

    def relative_plane(self, plane: np.ndarray) -> np.ndarray:
        """The weights over their relative steps, float32 (rows, columns)."""
        return plane * (1 / self.rows).astype(np.float32)[:, None] * (1 / self.columns).astype(np.float32)


def measure_sensitivity(
    statistics: TensorStatistics, damping: tuple[float, float] = DAMPING, transposed: bool | None = None
) -> Sensitivity | None:
    """From the statistics of a tensor; None if they say nothing (inputs or gradients all zero).  transposed: whether the plane is, None
    for what is best."""
    if not np.any(statistics.rows) or not np.any(statistics.columns):
        return None
    m, n = statistics.shape
    if transposed is None:
        transposed = m < FEW_ROWS and n > m and statistics.columns.ndim == 2
    used = statistics.transposed if transposed else statistics
    rows, down = _factor(used.rows, damping[transposed], used.samples[0])
    columns, upper = _factor(used.columns, damping[1 - transposed], used.samples[1])
    return Sensitivity(rows, columns, down, upper, transposed, statistics)


def _factor(side: np.ndarray, damping: float, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Relative steps of one side, and its U."""
    full = np.asarray(side, np.float64)
    diagonal = full if full.ndim == 1 else np.diagonal(full)
    diagonal = np.maximum(diagonal, LEAST * diagonal.mean())
    if full.ndim == 1 or len(full) == 1:
        return 1 / np.sqrt(diagonal), np.empty((len(full), 0), np.float32)
    upper = _invert(full, diagonal, max(damping, _shrinkage(full, diagonal, samples)))
    return np.diagonal(upper).copy(), upper.astype(np.float32)


def _shrinkage(full: np.ndarray, diagonal: np.ndarray, samples: int) -> float:
    """Share of the diagonal to add to second moments of few samples: their error over what sets them apart from a diagonal (Ledoit
    and Wolf, Journal of Multivariate Analysis 88, 2004, for Gaussian samples and a diagonal of ones)."""
    scale = 1 / np.sqrt(diagonal)
    square = float(np.square(full * scale[:, None] * scale).sum())
    size = len(full)
    part = (size**2 - square) / (max(1, samples) * max(square - size, 1e-9 * size)) if samples > 1 else 1.0
    return min(max(part, 0.0) / max(1 - part, 0.1), 10.0)


def _invert(full: np.ndarray, diagonal: np.ndarray, damping: float) -> np.ndarray:
    """Upper triangular U, float64, with `U^T U = ((C + damping diag C) / (1 + damping))^-1`; more damping where that is not positive
    definite."""
    matrix = torch.from_numpy(np.ascontiguousarray(full[::-1, ::-1]))
    flipped = torch.from_numpy(np.ascontiguousarray(diagonal[::-1]))
    while True:
        damped = matrix / (1 + damping)
        damped.diagonal().copy_(flipped)  # a share of the diagonal, not more of it: the steps must not shrink with the damping
        upper, failed = _inverse_factor(damped)
        if not failed:
            break
        damping = max(10 * damping, 1e-3)
    return np.ascontiguousarray(upper.numpy())


def _inverse_factor(flipped: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """Upper triangular U with `U^T U = C^-1` of C with both axes flipped, and whether that is not positive definite."""
    lower, failed = torch.linalg.cholesky_ex(flipped)
    # C = V V^T with V upper triangular is the factor of the flipped matrix, flipped; U is the inverse of V
    inverse = torch.linalg.solve_triangular(lower, torch.eye(len(lower), dtype=torch.float64), upper=False)
    return inverse.flip(0, 1), bool(failed)


def shrink(
    sensitivity: Sensitivity, plane: np.ndarray, factor: float, lagrangian: float
) -> tuple[Sensitivity, np.ndarray, float]:
    """What to quantize so that the loss and the bits together become least: sensitivity, target float32 in place of the plane (already
    transposed), and Lagrangian of the search.  As they are where nothing is known of the inputs but their power.

    Feedback alone cancels all of every error, also what is fed into weights that are not worth it: of columns with less than a bit nothing
    should be left.  A value v of variance p takes `v^2 / (2 p ln 2)` bits more than zero, so at `lagrangian` step^2 per bit

        loss + price * bits = 1/2 tr(R (W - V) C (W - V)^T) + 1/2 tr(R V M V^T),   M = diag(factor^2 lagrangian / (2 ln 2 p_j))

    which is least at `V = W C (C + M)^-1`, and around it costs what C + M says: feedback as in an MMSE equalizer in place of zero forcing
    (Cioffi et al., IEEE Trans. Comm. 43, 1995), and water-filling where M is large.  The search sees the bits of each value on its own: a
    part of them is counted here, the rest there.
    """
    distortion = SHRUNK * factor**2 * lagrangian / (2 * np.log(2))
    transposed = sensitivity.transposed
    steps, inverse = (sensitivity.rows, sensitivity.down) if transposed else (sensitivity.columns, sensitivity.upper)
    rows = sensitivity.statistics.rows
    if not inverse.shape[1] or rows.ndim == 1 and np.ptp(rows) > 0:  # of a table C is not that of its inputs, but of gradients
        return sensitivity, plane, lagrangian
    turned = plane.T if transposed else plane
    power = np.square(turned / (sensitivity.columns if transposed else sensitivity.rows)[:, None]).mean(0)
    steps, inverse, target = _shrink_side(steps, inverse, power, turned, distortion)
    if transposed:
        return replace(sensitivity, rows=steps, down=inverse), np.ascontiguousarray(target.T), SEARCHED * lagrangian
    return replace(sensitivity, columns=steps, upper=inverse), target, SEARCHED * lagrangian


def _shrink_side(
    steps: np.ndarray, inverse: np.ndarray, power: np.ndarray, plane: np.ndarray, distortion: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps and U of the inputs, which are columns of the plane, and its target.  power: of the columns."""
    upper = torch.from_numpy(inverse).double()
    diagonal = upper.diagonal().numpy()
    relative = steps / diagonal
    penalty = distortion * relative**2 / np.maximum(power, LEAST * power.mean()) if power.any() else np.zeros(len(power))
    penalty = np.minimum(penalty, MOST_SHRUNK * diagonal**-2.0)
    matrix = torch.cholesky_inverse(upper, upper=True)
    matrix.diagonal().add_(torch.from_numpy(penalty))
    upper = _inverse_factor(matrix.flip(0, 1))[0].contiguous()
    whole = torch.from_numpy(np.ascontiguousarray(plane)).double()
    target = whole - (whole * torch.from_numpy(penalty)) @ upper.T @ upper
    return relative * upper.diagonal().numpy(), upper.float().numpy(), target.float().numpy()


def short_step(step: float) -> float:
    """The nearest number with a mantissa of 8 bits: a step that is not asked for exactly takes two bytes less."""
    fraction, exponent = frexp(step)
    return ldexp(round(fraction * 256) / 256, exponent)


@dataclass(frozen=True, eq=False)
class Steps:
    """Steps chosen for a plane: the common one, and codes of rows and columns; worths: float32 (columns,), what the squared errors of a column
    count, in its steps, since that is not the one asked for."""

    step: float
    rows: StepCodes
    columns: StepCodes
    worths: np.ndarray


def choose_steps(sensitivity: Sensitivity, plane: np.ndarray, factor: float, states: int, relief: float = 1.0) -> Steps:
    """Steps of a plane (already transposed) for the common factor s, with caps (times `relief`), in units that pay."""
    most = relief * MOST_SPACING / make_trellis(states).spacing
    rows, columns = factor * sensitivity.rows, sensitivity.columns
    square = np.square(plane, dtype=np.float64)
    for _ in range(2):
        spread = np.sqrt((square * columns**-2.0).mean(1))  # no BLAS: its sums may depend on the number of threads
        rows = np.where(spread > 0, np.minimum(rows, most * spread), rows)
        spread = np.sqrt((square * (rows**-2.0)[:, None]).mean(0))
        columns = np.where(spread > 0, np.minimum(columns, most * spread), columns)
    row_codes, middle = choose_codes(np.log2(rows), plane.shape[1])
    column_codes, rest = choose_codes(np.log2(columns), plane.shape[0])
    worths = 4.0 ** (column_codes.exponents / 128 - (np.log2(columns) - rest))
    return Steps(short_step(2.0 ** (middle + rest)), row_codes, column_codes, worths.astype(np.float32))


def following_steps(plane: np.ndarray) -> tuple[StepCodes, StepCodes]:
    """Steps without calibration of a plane whose columns are the rows of a tensor: columns of large weights get larger steps, by a third of
    their octaves, as steps of rows that follow their scales do (`powers._follow_codes`)."""
    power = np.empty(plane.shape[1])
    row_powers(np.ascontiguousarray(plane.T), np.ones(len(plane)), power)
    rms = np.sqrt(power)
    octaves = np.log2(np.where(rms > 0, rms, np.median(rms[rms > 0]) if (rms > 0).any() else 1.0))
    spread = float(np.var(octaves))
    trust = max(0.0, spread - (1 / np.log(2)) ** 2 / (2 * len(plane))) / spread if spread > 0 else 0.0
    codes = np.clip(np.round((octaves - octaves.mean()) * trust * (128 / 16 / 3)), 1 - MOST, MOST)
    return StepCodes.even(len(plane)), StepCodes(codes.astype(np.int16), 16)


def choose_codes(octaves: np.ndarray, weights: int) -> tuple[StepCodes, float]:
    """Codes for the wanted logarithms of the steps of an axis, and the logarithm that code zero stands for.

    weights: behind each code.  A step that is wrong by `d` (natural logarithm) costs `(exp(2 d) - 1 - 2 d) / (2 ln 2)` bits per weight;
    the unit is the one for which that and the codes take the fewest bits together.
    """
    middle = float(np.median(octaves))
    best: tuple[float, StepCodes] | None = None
    for unit in (None, *UNITS.values()):
        codes = StepCodes.even(len(octaves))
        if unit is not None:
            codes = StepCodes(np.clip(np.round((octaves - middle) * (128 / unit)), -MOST, MOST).astype(np.int16), unit)
        wrong = np.log(2) * (codes.exponents / 128 - (octaves - middle))
        wrong -= wrong.mean()  # the common factor makes up for it
        bits = weights * float((np.exp(2 * np.minimum(wrong, 20)) - 1 - 2 * wrong).sum()) / (2 * np.log(2))
        bits += code_bits(codes.codes)
        if best is None or bits < best[0]:
            best = (bits, codes)
    return best[1], middle
