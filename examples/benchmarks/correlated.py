"""Weights whose errors are correlated: how close feedback of errors comes to the limit, and what it gains.

    python examples/benchmarks/correlated.py --out results --check

`correlated`: Gaussian weights W of variance one, loss tr(E S E^T) with `S_ij = 0.9^|i - j| s_i s_j`, log s ~ N(0, 0.7^2), n = 384
inputs.  At R bits per weight no code has an error per weight below `|S|^(1/n) 2^(-2R)`; R counts the streams, without codes of
scales and steps, which a larger matrix spreads over more rows.  "no feedback" is the usual scalar quantizer; all others feed
errors back, with the same step for all columns or with their own; planes of few rows are transposed, and every survivor of the trellis feeds its own errors back.
`substitution`: 256 x 256 Gaussian W, a second moment with the eigenvalues 0.97^i or 0.93^i in a random basis (METHODS S8 (c)).
Gain at the same rate of feedback, with the same equal steps and with those of the columns, over equal steps without it; the
squared error of the weights themselves rises.
"""
from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass
from math import log, log10
from unittest import mock

import numpy as np
import torch
from tables import Bound, Column, Table, finish, make_parser, note

from nnc import sensitivity
from nnc.calibration.statistics import TensorStatistics
from nnc.encoder import encode_calibrated
from nnc.entropy.explicit import ModelBank
from nnc.quantize.steps import StepCodes
from nnc.rdo import Search
from nnc.sensitivity import Sensitivity, measure_sensitivity

INPUTS = 384
CORRELATION, LOG_SIGMA = 0.9, 0.7
RATES = (2.6, 3.0)  # the bounds are for the first
DAMPING = (1e-3, 1e-3)
SAMPLES = (10**9, 10**9)  # the second moments are exact
LAGRANGIANS = {1: 0.11, 8: 0.38, 64: 0.36}
CODERS = (  # name, rows, states, bound in dB
    ("no feedback", 256, 1, None),
    ("equal steps", 256, 1, 6.2),
    ("column steps", 256, 1, 1.9),
    ("column steps", 256, 8, 0.85),
    ("column steps", 256, 64, 0.6),
    ("transposed", 32, 8, 1.15),
    ("transposed", 32, 64, 1.15),
)
DECAYS = {0.97: 4.0, 0.93: 7.0}  # gain in dB
STEPS = (0.6, 0.35, 0.18)


@dataclass(frozen=True)
class Point:
    """bits: of the streams per weight; loss: tr(E S E^T) per weight; error: squared error per weight."""

    bits: float
    loss: float
    error: float

    def above(self, limit: float) -> float:
        """dB over what the limit at rate zero, in dB, allows at these bits."""
        return 10 * log10(self.loss) - limit + 20 * log10(2) * self.bits


def make_moment(size: int, seed: int = 0) -> np.ndarray:
    """Second moment of correlated inputs of uneven power, float64."""
    s = np.exp(LOG_SIGMA * np.random.default_rng(seed).normal(size=size))
    return CORRELATION ** np.abs(np.arange(size)[:, None] - np.arange(size)) * s[:, None] * s


def make_decaying(size: int, decay: float, seed: int = 0) -> np.ndarray:
    """Second moment with a geometric spectrum in a random basis, of trace `size`."""
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]
    moment = (basis * (decay ** np.arange(size) + 1e-3)) @ basis.T
    return moment * (size / np.trace(moment))


def make_weights(rows: int, columns: int, seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32))


def know(rows: int, moment: np.ndarray) -> Sensitivity:
    """What the encoder makes of a second moment of the inputs; all outputs count the same."""
    statistics = TensorStatistics(np.ones(rows, np.float32), moment.astype(np.float32), SAMPLES)
    return measure_sensitivity(statistics, DAMPING)


def without_feedback(known: Sensitivity) -> Sensitivity:
    """All steps the same, as nothing is known."""
    n = len(known.columns)
    return Sensitivity(np.ones(len(known.rows)), np.ones(n), known.down, np.empty((n, 0), np.float32), known.transposed, known.statistics)


def choose_even(octaves: np.ndarray, weights: int) -> tuple[StepCodes, float]:
    """All steps the same, in place of those that `octaves` ask for."""
    return StepCodes.even(len(octaves)), float(np.mean(octaves))


def encode(weights: torch.Tensor, known: Sensitivity, factor: float, states: int) -> Point:
    search = Search(states, 0, LAGRANGIANS[states], 1)
    found = encode_calibrated("weight", weights, known, factor, search, ModelBank())
    number = weights.numel()
    return Point(8 * sum(found.record.coding.streams) / number, 2 * found.loss / number, found.error / number)


def encode_at(weights: torch.Tensor, known: Sensitivity, rate: float, states: int) -> Point:
    """Near `rate` bits per weight, by a few trials of the common factor."""
    factor = 2.0 ** (2 - rate) / (2 if states > 1 else 1) / 2.0**known.mean_octave
    for _ in range(4):
        point = encode(weights, known, factor, states)
        if abs(point.bits - rate) < 0.01:
            break
        factor *= 2.0 ** (point.bits - rate)
    return point


def measure_correlated(inputs: int) -> tuple[Table, list[Bound]]:
    moment = make_moment(inputs)
    limit = 10 / log(10) * float(np.linalg.slogdet(moment)[1]) / inputs
    rows, bounds = [], []
    for rate in RATES:
        for name, height, states, bound in CODERS:
            note(f"correlated {rate:g} bits, {name}, {height} rows, {states} states")
            known = know(height, moment)
            even = mock.patch.object(sensitivity, "choose_codes", choose_even) if name == "equal steps" else nullcontext()
            known = without_feedback(known) if name == "no feedback" else known
            with even:
                got = encode_at(make_weights(height, inputs), known, rate, states)
            distance = got.above(limit)
            rows.append((name, height, states, got.bits, got.loss, distance, bound if rate == RATES[0] else None))
            if rate == RATES[0] and bound:
                bounds.append(Bound(f"distance of {name}, {height} rows, {states} states in dB", distance, bound))
    columns = (Column("coder"), Column("rows", "d"), Column("states", "d"), Column("bits", ".3f"), Column("D", ".5f"),
               Column("distance dB", ".3f"), Column("bound dB", ".2f"))
    return Table("correlated", columns, tuple(rows)), bounds


def measure_substitution(size: int) -> tuple[Table, list[Bound]]:
    weights, rows, bounds = make_weights(size, size, 0), [], []
    for decay, wanted in DECAYS.items():
        known = know(size, make_decaying(size, decay))
        for step in STEPS:
            note(f"substitution {decay:g}, step {step:g}")
            plain = encode(weights, without_feedback(known), step, 8)
            with mock.patch.object(sensitivity, "choose_codes", choose_even):
                fed = encode(weights, known, step / 2.0**known.mean_octave, 8)
            full = encode(weights, known, step / 2.0**known.mean_octave, 8)
            gains = [plain.above(0) - other.above(0) for other in (fed, full)]
            rows.append((decay, step, plain.bits, fed.bits, gains[0], fed.error / plain.error, full.bits, gains[1],
                         full.error / plain.error))
            bounds.append(Bound(f"gain of feedback at {decay:g} and step {step:g} in dB", gains[0], wanted, True))
            bounds.append(Bound(f"error of the weights at {decay:g} and step {step:g} over that without", rows[-1][5], 1.0, True))
    columns = (Column("decay", "g"), Column("step", "g"), Column("bits", ".3f"), Column("fed, bits", ".3f"),
               Column("gain dB", ".2f"), Column("error", ".2f"), Column("and column steps, bits", ".3f"), Column("gain, dB", ".2f"),
               Column("error of both", ".2f"))
    return Table("substitution", columns, tuple(rows)), bounds


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser("distance to the limit of weights whose errors are correlated")
    parser.add_argument("--inputs", type=int, default=INPUTS, help="columns of the correlated source; the bounds are for 384")
    parser.add_argument("--size", type=int, default=256, help="rows and columns of the substitution; the bounds are for 256")
    asked = parser.parse_args(arguments)
    correlated, bounds = measure_correlated(asked.inputs)
    substitution, more = measure_substitution(asked.size)
    return finish([correlated, substitution], bounds + more, asked.out, asked.check)


if __name__ == "__main__":
    sys.exit(main())
