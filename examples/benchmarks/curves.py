"""Two curves of size against error, compared at equal error.

A curve is the Pareto front of its points.  Between its points log(bytes) is linear in log(error), so the difference of two curves
is piecewise linear and its mean over the overlap exact: ratio = exp(mean of log(ours / theirs) over log(error)), the Bjontegaard
rate (ITU-T VCEG-M33) with straight lines in place of a fitted cubic.
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from nnc.errors import InsufficientData


@dataclass(frozen=True)
class Point:
    """bytes: of the whole file; error: KL, 1 - cosine or mean squared error, 0 = the same."""

    bytes: int
    error: float


@dataclass(frozen=True)
class Comparison:
    """ratio: our bytes over theirs, log mean over the overlap; lowest, highest: of that ratio inside the overlap;
    finest, coarsest: error at its two ends."""

    ratio: float
    lowest: float
    highest: float
    finest: float
    coarsest: float


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """Points sorted by bytes whose error is strictly below that of every smaller file; points without an error are left out."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.bytes, p.error)):
        if point.error > 0 and (not front or point.error < front[-1].error):
            front.append(point)
    return front


def compare_curves(ours: Iterable[Point], theirs: Iterable[Point]) -> Comparison:
    """Bytes of `ours` over those of `theirs` at equal error.  Raises InsufficientData if no error is reached by both."""
    mine, peer = (_logarithms(pareto_front(points)) for points in (ours, theirs))
    low, high = max(mine[0][0], peer[0][0]), min(mine[0][-1], peer[0][-1])
    if not low < high:
        raise InsufficientData("errors {:.3g} to {:.3g} and {:.3g} to {:.3g}: the curves do not overlap: add rates".format(
            *np.exp([mine[0][0], mine[0][-1], peer[0][0], peer[0][-1]])))
    errors = np.unique(np.concatenate([x[(x > low) & (x < high)] for x, _ in (mine, peer)] + [[low, high]]))
    difference = np.interp(errors, *mine) - np.interp(errors, *peer)
    mean = float(((difference[1:] + difference[:-1]) / 2 * np.diff(errors)).sum() / (high - low))
    return Comparison(*(float(np.exp(value)) for value in (mean, difference.min(), difference.max(), low, high)))


def _logarithms(front: list[Point]) -> tuple[np.ndarray, np.ndarray]:
    """log(error), rising, and log(bytes)."""
    if len(front) < 2:
        raise InsufficientData(f"a curve of {len(front)} points that improve on smaller ones: give at least 2")
    return np.log([p.error for p in reversed(front)]), np.log([p.bytes for p in reversed(front)])
