"""Learning the linear part of a predictor: least squares on tiles of the plane itself, context as decoded.

    w = argmin |y - X w|^2 + ridge |w|^2,   X: contexts, y: pixels of the tiles, both without the mean, in steps

Weights cost bits, so besides one weight per pair of pixels there is a *tied* solution, stationary along the border: above, one
weight per (context row, pixel row, offset along the row) whatever the column; at the left the other way round.  The layout of the
file makes tied weights runs of equal numbers.  Candidates of several reaches are compared by pixels / 2 * log2(error) + bits of their codes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numba import njit

from ..entropy.scales import MOST, encode_codes
from ..kernels.tiles import gather_context
from ..tiles.coding import MAX_SHIFT
from ..tiles.layout import Layout, make_layout

SAMPLE = 1 << 13  # tiles that predictors are learned from
RIDGE = 1e-4
GAIN_ERROR = 1 / 12  # of a step squared: errors below that of quantization gain nothing


@dataclass(frozen=True, eq=False)
class Tiles:
    """contexts: float64 (tiles, context); pixels: float64 (tiles, height * width); all: tiles of the plane."""

    contexts: np.ndarray
    pixels: np.ndarray
    all: int

    def cost(self, error: float) -> float:
        """Bits of all pixels, but for a constant, where this mean squared error remains of a pixel, in steps."""
        return self.all * self.pixels.shape[1] / 2 * np.log2(error + GAIN_ERROR)


@dataclass(frozen=True, eq=False)
class Learned:
    """A predictor: layout; shift; codes: int64, all weights in the order of the file; units, hidden_shift, bias: of a hidden layer;
    error: mean squared error per pixel on the tiles it was learned from, in steps; bits: of its codes."""

    layout: Layout
    shift: int
    codes: np.ndarray
    error: float
    units: int = 0
    hidden_shift: int = 0
    bias: int = 0

    @property
    def bits(self) -> int:
        return 8 * (len(encode_codes(self.codes)[2]) + 6)

    def cost(self, tiles: Tiles) -> float:
        """Bits that the plane takes, up to what all predictors have in common."""
        return tiles.cost(self.error) + self.bits


@njit(cache=True, nogil=True)
def _collect(target, pixels, places, height, width, offsets, contexts, found):
    context = np.zeros(offsets.shape[0], np.int64)
    for n in range(places.shape[0]):
        top, left = places[n, 0], places[n, 1]
        gather_context(pixels, top, left, offsets, context)
        for k in range(offsets.shape[0]):
            contexts[n, k] = context[k] / 64.0
        for i in range(height):
            for j in range(width):
                found[n, i * width + j] = target[top + i, left + j]


def collect_tiles(target: np.ndarray, pixels: np.ndarray, layout: Layout) -> Tiles | None:
    """Tiles with a whole context, at most SAMPLE of them spread over the plane; None if there are too few to learn from."""
    rows, columns = target.shape
    high, wide = rows // layout.height, columns // layout.width
    number = max(0, high - 1) * max(0, wide - 1)
    if number < 4:
        return None
    chosen = np.unique(np.linspace(0, number - 1, min(number, SAMPLE)).astype(np.int64))
    places = np.stack([(1 + chosen // (wide - 1)) * layout.height, (1 + chosen % (wide - 1)) * layout.width], 1)
    contexts, found = np.empty((len(places), layout.context)), np.empty((len(places), layout.pixels))
    _collect(target, pixels, places, layout.height, layout.width, layout.offsets, contexts, found)
    return Tiles(contexts, found, -(-rows // layout.height) * -(-columns // layout.width))


def _parameters(layout: Layout, tied: bool) -> np.ndarray:
    """Number of the parameter of every linear weight."""
    if not tied:
        return np.arange(len(layout.joins))
    pixel, context = layout.joins.T
    i, j = pixel // layout.width, pixel % layout.width
    y, x = layout.offsets[context].T
    above, left = (y < 0) & (x >= 0), (x < 0) & (y >= 0)
    key = np.stack([above + 2 * left, np.where(above, y, np.where(left, x, y * 2 + x)), np.where(left, j, i),
                    np.where(above, x - j, np.where(left, y - i, j))], 1)  # fmt: skip
    return np.unique(key, axis=0, return_inverse=True)[1].reshape(-1)


def quantize_weights(weights: np.ndarray) -> tuple[int, np.ndarray]:
    """(shift, codes): integers of at most 64 that are the weights times 2^shift."""
    largest = float(np.abs(weights).max(initial=0.0))
    shift = int(np.clip(np.floor(np.log2((MOST + 0.49) / max(largest, 1e-9))), 0, 7))
    return shift, np.clip(np.round(weights * (1 << shift)), -MOST, MOST).astype(np.int64)


def solve_linear(tiles: Tiles, layout: Layout, tied: bool) -> np.ndarray:
    """Weights float64, one per join of the layout."""
    joins, parameter = layout.joins, _parameters(layout, tied)
    moment, cross = tiles.contexts.T @ tiles.contexts, tiles.contexts.T @ tiles.pixels
    ridge = RIDGE * np.trace(moment) / max(1, layout.context) + 1e-9
    size = int(parameter.max()) + 1
    by_pixel = [np.flatnonzero(joins[:, 0] == n) for n in range(layout.pixels)]
    if not tied:
        weights = np.empty(size)
        for n, own in enumerate(by_pixel):
            k = joins[own, 1]
            weights[own] = np.linalg.solve(moment[np.ix_(k, k)] + ridge * np.eye(len(k)), cross[k, n])
        return weights
    left, right = np.zeros((size, size)), np.zeros(size)
    for n, own in enumerate(by_pixel):
        k, at = joins[own, 1], parameter[own]
        np.add.at(left, (at[:, None], at[None]), moment[np.ix_(k, k)])
        np.add.at(right, at, cross[k, n])
    return np.linalg.solve(left + ridge * np.eye(size), right)[parameter]


def apply_linear(contexts: np.ndarray, layout: Layout, weights: np.ndarray) -> np.ndarray:
    """Predictions float64 (tiles, height * width)."""
    matrix = np.zeros((layout.context, layout.pixels))
    matrix[layout.joins[:, 1], layout.joins[:, 0]] = weights
    return contexts @ matrix


def learn_linear(tiles: Tiles, layout: Layout, tied: bool) -> Learned:
    """The quantized least squares solution."""
    shift, codes = quantize_weights(solve_linear(tiles, layout, tied))
    rest = tiles.pixels - apply_linear(tiles.contexts, layout, codes / (1 << shift))
    return Learned(layout, min(shift, MAX_SHIFT), codes, float(np.square(rest).mean()))


def candidate_layouts(height: int, width: int) -> Iterable[tuple[Layout, bool]]:
    """(layout, tied) that are tried."""
    for depth, reach, tied in (
        (1, 0, True),
        (1, 1, True),
        (1, 3, True),
        (2, 1, True),
        (2, 2, True),
        (1, 0, False),
        (1, 16, False),
    ):
        if depth <= min(height, width):
            yield make_layout(height, width, depth, reach), tied


def choose_linear(target: np.ndarray, pixels: np.ndarray, height: int, width: int) -> tuple[Learned, Tiles] | None:
    """The candidate that costs least on this plane, with its tiles; None if there is nothing to learn from.

    target: float64, in steps; pixels: int32, as decoded, of 1/64 step."""
    found = []
    for layout, tied in candidate_layouts(height, width):
        if layout.linear > target.size:  # readers refuse it
            continue
        tiles = collect_tiles(target, pixels, layout)
        if tiles is None:
            continue
        learned = learn_linear(tiles, layout, tied)
        found.append((learned.cost(tiles), len(found), learned, tiles))
    return min(found)[2:] if found else None
