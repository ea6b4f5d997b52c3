"""The parametric family of level distributions, computed in integers only (FORMAT.md, "tables").

With `u = |k + q/2|` (levels) and the standard deviation `sigma_c = 2^((c - 17) / 4)` of scale index c, a shape is either

    -log2 P(k) = a * (sqrt(d^2 + (u/sigma)^2) - d)            hyperbolic: Gaussian (d large) to Laplace (d small)
    -log2 P(k) = a * ((d^2 + (u/sigma)^2)^(1/4) - sqrt(d))    heavier tails

up to a constant; `a` makes the variance of the continuous density one.  The exponential is a table of 256 integers
`floor(2^(32 - i/256))`, so every machine has the same frequencies.
"""

from __future__ import annotations

from functools import lru_cache
from math import isqrt

import numpy as np

from ..coder import TOTAL, Frequencies

CLASSES = 36  # scale indices 1..36; 0 means "not coded"
_CENTRE = 17  # scale index of sigma = 1 level
# (order of the root, d * 2^16, a * log2(e) * 2^16), by growing kurtosis: 3.0 3.3 3.8 4.7 5.6 6.8 11.8 23.6
_SHAPES = (
    (2, 1048576, 1521536),
    (2, 196608, 325711),
    (2, 98304, 209554),
    (2, 45875, 160503),
    (2, 16384, 139663),
    (4, 65536, 497712),
    (4, 32768, 390751),
    (4, 3276, 318321),
)
SHAPES = len(_SHAPES)
_QUARTER = (65536, 77935, 92681, 110217)  # floor(2^(16 + j/4))


def _root256(value: int) -> int:
    for _ in range(8):
        value = isqrt(value)
    return value


@lru_cache(maxsize=1)
def _powers() -> np.ndarray:
    """floor(2^(32 - i/256)), i = 0..255, exactly: nested floors of square roots are the floor of the root."""
    return np.array([_root256(1 << (32 * 256 - i)) for i in range(256)], np.int64)


def exponential(t: np.ndarray) -> np.ndarray:
    """2^32 * 2^(-t/256), rounded down; t: int64 >= 0."""
    t = np.asarray(t, np.int64)
    return _powers()[t & 255] >> np.minimum(t >> 8, 62)


def _integer_root(n: np.ndarray) -> np.ndarray:
    r = np.sqrt(n.astype(np.float64)).astype(np.int64)
    r -= r * r > n  # the float is within one of the integer root
    r += (r + 1) * (r + 1) <= n
    return r


def normalise(weights: np.ndarray) -> np.ndarray:
    """Frequencies >= 1 that sum to 2^24, proportional to int64 weights in 0..2^33; the remainder goes to the first largest."""
    count = len(weights)
    frequencies = 1 + weights * (TOTAL - count) // weights.sum()
    frequencies[np.argmax(weights)] += TOTAL - frequencies.sum()
    return frequencies


def reach(c: int) -> int:
    """Levels -reach..reach have symbols of their own (one more below for quantizer 1)."""
    n = c - _CENTRE
    sigma256 = (_QUARTER[n % 4] << (n // 4 + 8)) >> 16
    return min(127, 2 + (6 * sigma256 >> 8))


def level_weights(shape: int, c: int, q: int, low: int, high: int) -> np.ndarray:
    """Unnormalised probabilities of the levels low..high: int64, 2^32 at the mode of the density."""
    n = _CENTRE - c
    return weigh_levels(shape, _QUARTER[n % 4] << (n // 4 + 8), q, low, high)


def weigh_levels(shape: int, inverse: int, q: int, low: int, high: int) -> np.ndarray:
    """The same for a standard deviation of `2^24 / inverse` levels."""
    order, d, a = _SHAPES[shape]
    k = np.arange(low, high + 1, dtype=np.int64)
    y = (np.abs(2 * k + q) * inverse) >> 9  # u / sigma in 1/65536
    root = _integer_root(d * d + y * y)
    distance = root - d if order == 2 else _integer_root(root << 16) - isqrt(d << 16)
    return exponential((a * distance) >> 24)


@lru_cache(maxsize=None)
def level_frequencies(shape: int, c: int, q: int) -> Frequencies:
    """Table of scale index `c` (1..36) and quantizer `q` for one of the SHAPES."""
    most = reach(c)
    weights = level_weights(shape, c, q, -most - q, most)
    escape = max(1, int(weights.sum()) >> 14)
    return Frequencies(-most - q, normalise(np.append(weights, escape)))
