"""Whether a tensor is worth tiling, and with which tiles."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
import torch

from ..encoded import EncodedTensor
from ..encoder import make_plane
from ..sensitivity import short_step
from ..tiles.layout import MAX_SIDE
from .encode import LAGRANGIAN, Asked, encode_tiled

SIDES = ((8, 8), (4, 4), (16, 16))
KERNELS = (1, 4)  # rows of tiles that are as wide as the kernel of a convolution
LEFT = 0.6  # of the variance, once both neighbours are known: more, and the trellis of coded tensors gains as much
LINES, LENGTH = 96, 512  # rows, and weights of each, that correlations are measured on


def tiled_pays(plane: np.ndarray) -> bool:
    """Whether neighbours in the plane are alike enough; plane: float32 (rows, columns).  Looks at a few rows only."""
    rows, columns = plane.shape
    if rows < 2 or columns < 2:
        return False
    tops = np.unique(np.linspace(0, rows - 2, min(rows - 1, LINES)).astype(np.int64))
    left = (columns - min(columns, LENGTH)) // 2
    at = slice(left, left + LENGTH)
    upper, lower = plane[tops, at].astype(np.float64), plane[tops + 1, at].astype(np.float64)
    middle = upper.mean()
    upper, lower = upper - middle, lower - middle
    energy = np.square(upper).mean()
    if not energy > 0:
        return False
    along, down = (upper[:, 1:] * upper[:, :-1]).mean() / energy, (upper * lower).mean() / energy
    return (1 - min(along**2, 1)) * (1 - min(down**2, 1)) < LEFT


def candidate_sides(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """(height, width) of the tiles that are tried on a tensor of this shape."""
    kernel = prod(shape[2:])
    return [*SIDES, *((rows, kernel) for rows in KERNELS if 1 < kernel <= MAX_SIDE)]


def tiled_step(step: float, lagrangian: float) -> float:
    """Step of tiles where a squared step of coded tensors costs `lagrangian` per bit: both pay the same for a bit."""
    return short_step(step * (lagrangian / LAGRANGIAN) ** 0.5)


def encode_alternative(name: str, tensor: torch.Tensor, coded: EncodedTensor, step: float, lagrangian: float) -> EncodedTensor:
    """The coded tensor, or a tiled one where squared error over step^2 plus lagrangian times bits is less.

    coded: with this step and lagrangian."""

    def cost(encoded: EncodedTensor) -> float:
        return encoded.error / step**2 + lagrangian * 8 * len(encoded.data)

    if not lagrangian > 0 or not tiled_pays(make_plane(tensor)[1]):
        return coded
    linear = [Asked(*sides, predictor="linear") for sides in candidate_sides(tuple(tensor.shape))]
    found = [(encode_tiled(name, tensor, tiled_step(step, lagrangian), asked), asked) for asked in linear]
    found = [(encoded, asked) for encoded, asked in found if encoded]
    if not found:
        return coded
    best, asked = min(found, key=lambda one: cost(one[0]))
    if best.record.tiles.predictor:
        best = encode_tiled(name, tensor, tiled_step(step, lagrangian), replace(asked, predictor="hidden"))
    return min(coded, best, key=cost)
