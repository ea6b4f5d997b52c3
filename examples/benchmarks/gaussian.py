"""How close to the limits of coding theory: Gaussian weights, whole files, errors of what is loaded back.

    python examples/benchmarks/gaussian.py --out results --check

`gaussian`: N(0, 1) at R bits per weight of the file and mean squared error D, against D = 2^(-2R), which no code can pass
(C. E. Shannon, 1959); 6.02 dB are one bit.
`scales`: rows and columns of log-normal spread.  The oracle knows the scale of every weight and spends the entropy of a uniform
quantizer, -log2(Phi((k + 1/2) step / sigma) - Phi((k - 1/2) step / sigma)) bits for level k; a coder without row and column
codes spends at least the entropy of the levels.  "rounded" has the oracle's levels and errors; a rate-distortion search trades
error for bits, so its rate may be below the oracle's.
"""
from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from math import log10
from pathlib import Path

import torch
from tables import Bound, Column, Table, finish, make_parser, note

import nnc
from nnc.config import EFFORTS

BOUNDS = {"fast": 1.65, "default": 0.52, "high": 0.35, "max": 0.28}  # dB
RATES = (2.0, 3.0)
ORACLE_BOUND = 1.02
STEP = 0.5
LOG_SIGMA = 0.7
TINY_LAGRANGIAN = 1e-6  # so that levels are rounded


@dataclass(frozen=True)
class Distance:
    """bits: of the file per weight; error: mean squared; distance: dB above the error that the limit allows at these bits."""

    bits: float
    error: float

    @property
    def distance(self) -> float:
        return 10 * log10(self.error) + 20 * log10(2) * self.bits


def compress_measured(weights: torch.Tensor, threads: int | None, **options) -> Distance:
    """Compress one tensor to one file, load it back."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        nnc.compress({"weight": weights}, path, threads=threads, **options)
        back = nnc.load(path, threads=threads)["weight"]
        return Distance(8 * path.stat().st_size / weights.numel(), float((back.double() - weights.double()).square().mean()))


def make_gaussian(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """N(0, 1), float32."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def make_scaled(rows: int, columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Gaussian weights, float32, and the scale of each, float64: product of a log-normal row and a log-normal column scale."""
    generator = torch.Generator().manual_seed(seed)
    logarithms = torch.randn(rows, 1, generator=generator).double() + torch.randn(1, columns, generator=generator).double()
    scales = (logarithms * LOG_SIGMA).exp()
    return (torch.randn(rows, columns, generator=generator) * scales).float(), scales


def oracle_bits(weights: torch.Tensor, scales: torch.Tensor, step: float) -> float:
    """Bits per weight of the rounded levels under the true probabilities of their bins."""
    levels = (weights.double() / step).round().abs()  # the bins are symmetric: take the side where Phi is small and exact
    upper, lower = torch.special.ndtr((0.5 - levels) * step / scales), torch.special.ndtr((-0.5 - levels) * step / scales)
    return float(-(upper - lower).log2().mean())


def factorized_bits(weights: torch.Tensor, step: float) -> float:
    """Entropy of the rounded levels of all weights together."""
    counts = torch.unique((weights.double() / step).round(), return_counts=True)[1].double()
    share = counts / counts.sum()
    return float(-(share * share.log2()).sum())


def measure_gaussian(size: int, efforts: tuple[str, ...], threads: int | None) -> tuple[Table, list[Bound]]:
    weights = make_gaussian(size, size)
    rows, bounds = [], []
    for rate in RATES:
        for effort in efforts:
            note(f"gaussian {rate:g} bits, effort {effort}")
            got = compress_measured(weights, threads, bits=rate, effort=effort)
            rows.append((rate, effort, EFFORTS[effort].states, got.bits, got.error, got.distance, BOUNDS[effort]))
            bounds.append(Bound(f"distance of effort {effort} at {rate:g} bits in dB", got.distance, BOUNDS[effort]))
    columns = (Column("asked bits", "g"), Column("effort"), Column("states", "d"), Column("bits", ".4f"), Column("D", ".5f"),
               Column("distance dB", ".3f"), Column("bound dB", ".2f"))
    return Table("gaussian", columns, tuple(rows)), bounds


def measure_scales(size: int, threads: int | None) -> tuple[Table, list[Bound]]:
    weights, scales = make_scaled(size, size)
    oracle, factorized = oracle_bits(weights, scales, STEP), factorized_bits(weights, STEP)
    note(f"scales {size} x {size}")
    rounded = compress_measured(weights, threads, step=STEP, effort="fast", lagrangian=TINY_LAGRANGIAN)
    searched = compress_measured(weights, threads, step=STEP, effort="fast")
    ideal = float((weights.double() - (weights.double() / STEP).round() * STEP).square().mean())
    rates = (("factorized", factorized, ideal), ("oracle", oracle, ideal), ("nnc, rounded", rounded.bits, rounded.error),
             ("nnc, effort fast", searched.bits, searched.error))
    rows = tuple((name, bits, bits / oracle, error) for name, bits, error in rates)
    bounds = [Bound(f"file of {name} over the oracle", bits / oracle, ORACLE_BOUND) for name, bits, _ in rates[2:]]
    columns = (Column("coder"), Column("bits", ".4f"), Column("to the oracle", ".4f"), Column("D", ".5f"))
    return Table("scales", columns, rows), bounds


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser("distance to the rate-distortion limit of Gaussian weights")
    parser.add_argument("--size", type=int, default=1000, help="rows and columns of the N(0, 1) matrix; the bounds are for 1000")
    parser.add_argument("--effort", action="append", choices=list(BOUNDS), help="only this effort; may be given several times")
    parser.add_argument("--threads", type=int, help="default: all cores")
    asked = parser.parse_args(arguments)
    gaussian, bounds = measure_gaussian(asked.size, tuple(asked.effort or BOUNDS), asked.threads)
    scaled, more = measure_scales(512, asked.threads)
    return finish([gaussian, scaled], bounds + more, asked.out, asked.check)


if __name__ == "__main__":
    sys.exit(main())
