"""Orthogonal transforms of a tile, separable, as integers with 14 bits after the point.

A residual without prediction is smooth: cosine transform (DCT-II).  One with prediction is small next to the context and grows away
from it: sine transform that starts at zero (DST-VII, as in intra prediction of video).  For n points, u the frequency, x the place:

    cosine  2^14 sqrt((2 - [u = 0]) / n) cos(pi (2 x + 1) u / (2 n))
    sine    2^14 2 / sqrt(2 n + 1) sin(pi (2 u + 1) (x + 1) / (2 n + 1))

each rounded to the nearest integer; none lies within 10^-4 of a tie (tested), so any double precision gives the same.
"""

from __future__ import annotations

from functools import lru_cache
from math import cos, pi, sin, sqrt

import numpy as np

from ..registry import Table
from .layout import MAX_SIDE

TRANSFORMS = Table("transform", {0: "none", 1: "cosine", 2: "sine"})
BITS = 14


def basis_value(transform: str, n: int, u: int, x: int) -> float:
    """Entry of the basis for n points, times 2^14, before rounding."""
    if transform == "cosine":
        return (1 << BITS) * sqrt((1 if u == 0 else 2) / n) * cos(pi * (2 * x + 1) * u / (2 * n))
    return (1 << BITS) * 2 / sqrt(2 * n + 1) * sin(pi * (2 * u + 1) * (x + 1) / (2 * n + 1))


@lru_cache(maxsize=1)
def all_bases() -> np.ndarray:
    """int64 (transforms, sizes 0..16, frequency, place); that of "none" is not used."""
    found = np.zeros((3, MAX_SIDE + 1, MAX_SIDE, MAX_SIDE), np.int64)
    for number in (1, 2):
        for n in range(1, MAX_SIDE + 1):
            for u in range(n):
                for x in range(n):
                    found[number, n, u, x] = round(basis_value(TRANSFORMS.value(number), n, u, x))
    return found
