"""Which basis the taps of a kernel are coded in: as they are, by cosines, or by principal components.  Encoder only.

Taps of trained kernels are correlated (.3 bit per weight in a ResNet-20, .1 in a DnCNN), and an orthogonal change of the basis of the
inputs changes nothing else: the loss `tr(R E C E^T)` of an error becomes that of its coefficients with `C' = M C M^T`.  All bases are judged by
what they save,

    sum over columns of 1/2 log2(1 + variance before / D) - 1/2 log2(1 + variance after / D)

at a distortion D of two bits, less the bytes of a matrix that the file does not hold yet.  Groups of neighbouring channels, or inputs of a
linear layer, are tried with a Hadamard matrix.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import prod

import numpy as np

from .calibration.statistics import TensorStatistics
from .kernels.transforms import transform_groups
from .transform.matrices import MAX_MATRICES, MAX_SIZE, UNIT, apply_matrix

WORTH = 0.01  # bits per weight that a change of basis must save
DISTORTION = 1 / 16  # of the mean variance: what the gain is reckoned at
MATRIX_OVERHEAD = 16  # bits
CHANNELS = 8  # of a Hadamard matrix ...
SAMPLED_ROWS = 128  # ... which is judged by so many rows


_Choice = tuple[float, list[tuple[np.ndarray, int]]]  # bits saved, steps: matrix and stride


@dataclass(frozen=True, eq=False)
class Basis:
    """steps: (number of the matrix, int8 matrix, stride) in the order of the decoder; saved: estimated bits."""

    steps: tuple[tuple[int, np.ndarray, int], ...]
    saved: float

    def coefficients(self, plane: np.ndarray) -> np.ndarray:
        """What a decoder makes the plane from; float32 (rows, columns)."""
        out = plane.astype(np.float64)
        for _, matrix, stride in reversed(self.steps):
            out = _apply(out, np.linalg.inv(matrix / UNIT), stride)
        return out.astype(np.float32)

    def plane(self, coefficients: np.ndarray) -> np.ndarray:
        """As the decoder rebuilds it."""
        for _, matrix, stride in self.steps:
            coefficients = apply_matrix(coefficients, matrix, stride)
        return coefficients

    def statistics(self, found: TensorStatistics) -> TensorStatistics:
        """Of errors of coefficients; of a diagonal only the diagonal."""
        columns = found.columns.astype(np.float64)
        for _, matrix, stride in reversed(self.steps):
            turned = np.ascontiguousarray(matrix.T / UNIT)
            if columns.ndim == 1:
                columns = _apply(columns[None], turned**2, stride)[0]
            else:
                columns = _apply(np.ascontiguousarray(_apply(columns, turned, stride).T), turned, stride)
        return TensorStatistics(found.rows, columns.astype(np.float32), found.samples)


@dataclass(eq=False)
class Bases:
    """Those chosen, by the name of their tensor; matrices: int8 (n, n) each, for the directory."""

    chosen: dict[str, Basis] = field(default_factory=dict)
    matrices: list[np.ndarray] = field(default_factory=list)

    def number(self, matrix: np.ndarray) -> int:
        """Of a matrix, which is kept if it is a new one."""
        for number, known in enumerate(self.matrices):
            if np.array_equal(known, matrix):
                return number
        self.matrices.append(matrix)
        return len(self.matrices) - 1

    def price(self, steps: list[tuple[np.ndarray, int]]) -> float:
        """Bits of what the file does not hold yet."""
        new = [matrix for matrix, _ in steps if not any(np.array_equal(matrix, known) for known in self.matrices)]
        return sum(8 * matrix.size + MATRIX_OVERHEAD for matrix in new) + 12 * len(steps)


@dataclass(frozen=True, eq=False)
class Survey:
    """What a basis is chosen by: covariance of the taps of a kernel, if it has some; mixed: what a Hadamard matrix saves."""

    name: str
    taps: tuple[int, ...]
    weights: int
    covariance: np.ndarray | None
    mixed: _Choice


def survey_plane(name: str, shape: tuple[int, ...], plane: np.ndarray) -> Survey:
    """Of one tensor that is to be coded; plane: float32 (shape[0], rest)."""
    taps = shape[2:]
    size = prod(taps)
    covariance, mixed = None, (0.0, [])
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite shows in the covariance
        if plane.shape[1] % (CHANNELS * size) == 0 and plane.size >= 64 * CHANNELS * size:
            mixed = _mixing(plane, size)
        if 1 < size <= MAX_SIZE and plane.size >= 8 * size:
            covariance = _covariance(plane, size)
    if covariance is not None and not np.isfinite(covariance).all():  # it will be stored without loss
        covariance, mixed = None, (0.0, [])
    return Survey(name, taps, plane.size, covariance, mixed)


def choose_bases(surveys: Iterable[Survey]) -> Bases:
    """For all tensors of a checkpoint."""
    found = Bases()
    kernels: dict[tuple[int, ...], list[tuple[str, np.ndarray, int]]] = {}
    mixed: dict[str, _Choice] = {}
    for survey in surveys:
        if survey.mixed[1]:
            mixed[survey.name] = survey.mixed
        if survey.covariance is not None:
            kernels.setdefault(survey.taps, []).append((survey.name, survey.covariance, survey.weights))
    choices = {name: chosen for taps, members in kernels.items() for name, chosen in _choose(found, taps, members)}
    for name in dict.fromkeys((*choices, *mixed)):
        (saved, chosen), (more, others) = choices.get(name, (0.0, [])), mixed.get(name, (0.0, []))
        chosen = chosen + others
        if chosen and len(found.matrices) + len(chosen) <= MAX_MATRICES:
            steps = tuple((found.number(matrix), matrix, stride) for matrix, stride in chosen)
            found.chosen[name] = Basis(steps, saved + more)
    return found


def _choose(
    found: Bases, taps: tuple[int, ...], members: list[tuple[str, np.ndarray, int]]
) -> Iterator[tuple[str, _Choice]]:
    """Bases of the kernels with these taps; members: (name, covariance, number of weights) each."""
    size = prod(taps)
    common = [_cosines(taps), _principal(sum(covariance * weights for _, covariance, weights in members))]
    for name, covariance, weights in members:
        own = _principal(covariance)
        best: _Choice = (WORTH * weights, [])
        for steps in (*common, own):
            saved = weights * _gain(covariance, steps) - found.price(steps)
            if steps is own:  # a basis of the data itself looks better than it is, by half a parameter's log2(e)
                saved -= 0.72 * size * (size - 1) / 2
            if steps and saved > best[0]:
                best = saved, steps
        if best[1]:
            for matrix, _ in best[1]:
                found.number(matrix)  # so that it is free for the next
            yield name, best


def _covariance(plane: np.ndarray, size: int) -> np.ndarray:
    """(size, size), of the taps of kernels, every row of the plane scaled to one."""
    scale = 1 / np.sqrt(np.maximum(np.square(plane, dtype=np.float64).mean(1), 1e-60))
    kernels = (plane * scale[:, None].astype(np.float32)).reshape(-1, size).astype(np.float64)
    return np.einsum("ij,ik->jk", kernels, kernels) / len(kernels)


def _mixing(plane: np.ndarray, taps: int) -> _Choice:
    """A Hadamard matrix over groups of channels if that pays, judged by some of the rows."""
    sampled = plane[:: -(-len(plane) // SAMPLED_ROWS)]
    matrix = np.ones((1, 1))
    while len(matrix) < CHANNELS:
        matrix = np.kron(matrix, [[1, 1], [1, -1]])
    steps = [(_rounded(matrix / np.sqrt(CHANNELS)), 1)]
    groups = np.swapaxes(sampled.reshape(-1, CHANNELS, taps), 1, 2).reshape(len(sampled), -1)
    chance = 0.72 * CHANNELS * (CHANNELS - 1) / 2 / groups.size  # what a covariance of so few weights shows of nothing
    gain = _gain(_covariance(groups, CHANNELS), steps)
    return (gain * plane.size, [(steps[0][0], taps)]) if gain > WORTH + chance else (0.0, [])


def _gain(covariance: np.ndarray, steps: list[tuple[np.ndarray, int]]) -> float:
    """Bits per weight that the basis saves."""
    turned = covariance
    for matrix, stride in reversed(steps):
        inverse = np.linalg.inv(matrix / UNIT)
        turned = _apply(np.ascontiguousarray(_apply(turned, inverse, stride).T), inverse, stride)
    distortion = DISTORTION * np.trace(covariance) / len(covariance)
    if not distortion > 0:  # all weights are 0
        return 0.0
    before, after = (np.log2(1 + np.maximum(np.diagonal(c), 0) / distortion).mean() for c in (covariance, turned))
    return float(before - after) / 2


def _cosines(taps: tuple[int, ...]) -> list[tuple[np.ndarray, int]]:
    """A cosine transform (type II) along every axis of the kernel."""
    steps = []
    for axis, size in enumerate(taps):
        if size > 1:
            frequency, place = np.arange(size)[:, None], np.arange(size)[None]
            waves = np.cos(np.pi * (2 * place + 1) * frequency / (2 * size)) * np.sqrt(2 / size)
            waves[0] = 1 / np.sqrt(size)
            steps.append((_rounded(waves), prod(taps[axis + 1 :])))
    return steps


def _principal(covariance: np.ndarray) -> list[tuple[np.ndarray, int]]:
    """The principal components, largest first, as one step; none if rounding them leaves no basis."""
    _, vectors = np.linalg.eigh(covariance)
    vectors = vectors.T[::-1]
    signs = np.sign(vectors[np.arange(len(vectors)), np.abs(vectors).argmax(1)])
    matrix = _rounded(vectors * signs[:, None])
    return [(matrix, 1)] if np.linalg.cond(matrix.astype(np.float64)) < 2 else []


def _rounded(basis: np.ndarray) -> np.ndarray:
    return np.clip(np.round(basis * UNIT), -UNIT, UNIT - 1).astype(np.int8)


def _apply(plane: np.ndarray, matrix: np.ndarray, stride: int) -> np.ndarray:
    out = np.empty_like(plane)
    transform_groups(plane, np.ascontiguousarray(matrix), stride, out)
    return out
