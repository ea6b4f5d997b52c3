"""Bits across tensors without data: relative steps by a rule, their common factor from a survey of samples.

Rule: `step ~ rms^(1/2) * weights^(1/4)` per tensor.  Equal steps are best for the squared error of the weights; steps in
proportion to the rms are best where a normalisation follows; the square root stands between, and the fourth root lets large
tensors, whose errors average out over more inputs, be coarser.  Measured on eight networks against one step for all, before rows
followed their scales: 4 to 13 % fewer bytes at equal behaviour on seven of them, 0.5 % more on one.

The survey codes samples of every tensor at trial steps, so that a target is met before anything large is encoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .entropy.explicit import TABLES, ModelBank
from .entropy.parametric import CLASSES
from .kernels.words import replay_levels
from .partition.grid import choose_grid
from .quantize.trellis import make_trellis
from .powers import (
    Powers,
    choose_shift,
    fit_scales,
    measure_powers,
)
from .rdo import (
    START_SHAPE,
    WIDTH,
    Gathered,
    Search,
    choose_model,
    count,
    find_levels,
    fit_explicit_set,
    gather,
    level_bits,
)
from .sensitivity import MOST_SPACING as CALIBRATED_SPACING
from .sensitivity import Sensitivity

SAMPLE = 1 << 15  # weights sampled per tensor ...
SAMPLES = 1 << 22  # ... and over all tensors
MOST_SPACING = 2.4  # distance of the values of one quantizer, of the rms: half a bit is left; beyond, a tensor is soon all zeros
LEAST_RMS = 1e-30  # of a residual
VECTOR_STEP = 1 / 128  # of the rms, for biases and the like ...
FINEST_VECTOR_STEP = 1 / 512  # ... and at most this fine: eleven bits


def relative_step(rms: float, weights: int) -> float:
    """Step of a tensor up to the common factor."""
    return rms**0.5 * weights**0.25


@dataclass(frozen=True, eq=False)
class Sample:
    """Weights of one tensor to try steps on.  x: float32 in scan order, over `scale`, the step of their row when the step of the
    tensor is one; index: int64 scale index of each when a level is one rms wide; weights: of the whole
    tensor; side: estimated bits of its scale codes; relative: its step up to the common factor; calibrated: whether x is in units in
    which half its squared error is the predicted loss; most: step at which the tensor vanishes, None for that of x."""

    x: np.ndarray
    scale: np.ndarray
    index: np.ndarray
    rms: float
    weights: int
    side: float
    relative: float
    calibrated: bool = False
    most: float | None = None

    def step(self, factor: float, states: int, relief: float = 1.0) -> float:
        """The step for a common factor: by the rule, but never so coarse that the tensor vanishes; relief: times as coarse as that."""
        spacing = CALIBRATED_SPACING if self.calibrated else MOST_SPACING
        return min(factor * self.relative, relief * spacing * (self.most or self.rms) / make_trellis(states).spacing)


def take_sample(plane: np.ndarray, powers: Powers, factor: float, most: int, follow: bool, rms: float | None = None) -> Sample:
    """Sample at most about `most` weights in blocks spread over the plane; `factor` multiplies the step by rule; rms: of the weights that
    the plane is a residual of."""
    scales = fit_scales(powers, max(powers.rms, LEAST_RMS), follow)
    parts = [gather(plane, tile, scales, 1.0) for tile in _sample_tiles(plane.shape, most)]
    side = 3.0 * (np.count_nonzero(scales.rows) + np.count_nonzero(scales.columns))
    x = np.concatenate([part.x for part in parts])
    index = np.concatenate([part.codes for part in parts]).astype(np.int64) + 4 * scales.shift
    steps = scales.row_steps(1.0)
    scale = np.concatenate([steps[part.position // plane.shape[1]] for part in parts])
    relative = factor * relative_step(rms or powers.rms, plane.size)
    return Sample(x, scale, index, max(powers.rms, LEAST_RMS), plane.size, side, relative, most=rms)


def sample_relative(plane: np.ndarray, sensitivity: Sensitivity, most: int, weights: np.ndarray | None = None) -> Sample:
    """The same of a plane (already transposed) whose steps come from its sensitivity; weights: that it is a residual of."""
    relative = sensitivity.relative_plane(plane)
    powers = measure_powers(relative)
    scales = fit_scales(powers, max(powers.rms, LEAST_RMS))
    parts = [gather(relative, tile, scales, 1.0) for tile in _sample_tiles(plane.shape, most)]
    position = np.concatenate([part.position for part in parts])
    rows, columns = np.divmod(position, plane.shape[1])
    scale = (sensitivity.rows[rows] * sensitivity.columns[columns]).astype(np.float32)
    x = np.concatenate([part.x for part in parts])
    index = np.concatenate([part.codes for part in parts]).astype(np.int64) + 4 * scales.shift
    side = 3.0 * (np.count_nonzero(scales.rows) + np.count_nonzero(scales.columns) + sum(plane.shape))
    largest = None if weights is None else measure_powers(sensitivity.relative_plane(weights)).rms
    return Sample(x, scale, index, max(powers.rms, LEAST_RMS), plane.size, side, 1.0, True, largest)


def _sample_tiles(shape: tuple[int, int], most: int) -> list[tuple[int, int, int, int]]:
    """Blocks spread over a plane, at most about `most` weights of it."""
    rows, columns = shape
    if rows * columns <= most:
        return choose_grid(rows, columns).tiles()
    height, width = min(rows, 128), min(columns, 32)
    spread = _low_discrepancy(max(1, most // (height * width)))
    corners = [(round(a * (rows - height)), round(b * (columns - width))) for a, b in spread]
    return [(i, i + height, j, j + width) for i, j in corners]


def _low_discrepancy(count: int) -> list[tuple[float, float]]:
    """Points spread evenly over the unit square (R2 sequence)."""
    return [((0.5 + 0.7548776662466927 * i) % 1, (0.5 + 0.5698402909980532 * i) % 1) for i in range(count)]


@dataclass(frozen=True, eq=False)
class Trial:
    """What a sample costs at one step.  bits: of the whole tensor; error: its squared error; loss: predicted, zero without
    calibration; counts: int64 (TABLES, WIDTH) of the sample.
    """

    bits: float
    error: float
    loss: float
    counts: np.ndarray


def try_step(sample: Sample, step: float, search: Search, bank: ModelBank = ModelBank()) -> Trial:
    """Quantize a sample with one step."""
    trellis = make_trellis(search.states)
    moved = sample.index + round(4 * np.log2(sample.rms / (trellis.spacing * step)))
    shift = choose_shift(float(np.median(moved))) if moved.size else 0
    weights = Gathered(
        (sample.x / np.float32(step)), np.clip(moved - 4 * shift, 1, CLASSES).astype(np.uint8), np.empty(0, np.uint32)
    )
    model = bank.count - 1 if bank.sets else START_SHAPE
    levels = find_levels(weights, level_bits(bank, model), shift, search)
    counts = count(levels, weights.codes, search.states, shift)
    _, _, bits = choose_model(counts, bank)
    values = np.empty(len(levels), np.float32)
    replay_levels(levels, trellis.next_state, search.labelling, values)
    every = sample.weights / max(1, len(levels))
    wrong = values * np.float32(step) - sample.x
    error = float(np.square(wrong * sample.scale, dtype=np.float64).sum())
    loss = 0.5 * float(np.square(wrong, dtype=np.float64).sum()) if sample.calibrated else 0.0
    return Trial((bits + shift * len(levels)) * every + sample.side, error * every, loss * every, counts)


def choose_labelling(sample: Sample, step: float, search: Search) -> int:
    """Plain grids, or at low rates the sign-symmetric ones (both have zero), whichever has the smaller cost."""
    if search.states == 1 or sample.rms > 2 * step:
        return 0
    cost = []
    for labelling in (0, 1):
        trial = try_step(sample, step, Search(search.states, labelling, search.lagrangian, 1))
        cost.append(trial.error / step**2 + search.lagrangian * trial.bits)
    return int(cost[1] < cost[0])


def fit_bank(trials: Sequence[tuple[Trial, Sample]]) -> ModelBank:
    """Explicit tables for the whole file where they save more than they cost, judged on the samples."""
    if not trials:
        return ModelBank()
    counts = np.zeros((TABLES, WIDTH), np.float64)
    for trial, sample in trials:
        counts += trial.counts * (sample.weights / max(1, len(sample.x)))
    factor = sum(sample.weights for _, sample in trials) / max(1, sum(len(sample.x) for _, sample in trials))
    shape = choose_model(counts, ModelBank())[0]
    chosen = fit_explicit_set(np.round(counts / factor).astype(np.int64), shape, factor)
    return ModelBank((chosen,)) if chosen.tables else ModelBank()


def vector_step(rms: float, typical: float) -> float:
    """Step of a tensor with one long axis: fine enough not to matter, finer when the weights are; `typical`: step / rms of the
    weights.
    """
    return rms * max(min(VECTOR_STEP, typical / 4), FINEST_VECTOR_STEP)
