"""The logarithmic grid: `value = step * 2^(k / 128)` for tensors whose values are all positive.

Variances and gains of normalisation layers range over many octaves and must stay positive; a relative error of 0.16 % (rms) in
each costs fewer bits than an absolute
step fine enough for the smallest.  The power is exact: `floor(2^(23 + j/128)) * 2^(e - 23)` with `k = 128 e + j`, a float32, then
one product.
"""

from __future__ import annotations

from functools import lru_cache
from math import isqrt

import numpy as np

from ..errors import Corruption

RESOLUTION = 128
MAX_LOGARITHMIC = 1 << 20  # elements: it is for vectors


@lru_cache(maxsize=1)
def _mantissas() -> np.ndarray:
    values = []
    for j in range(RESOLUTION):
        value = 1 << (23 * RESOLUTION + j)
        for _ in range(7):  # nested floors of square roots are the floor of the 128th root
            value = isqrt(value)
        values.append(value)
    return np.array(values, np.int64)


def rebuild_powers(levels: np.ndarray, step: float) -> np.ndarray:
    """float32 values of levels, integers or floats that are cut towards zero; Corruption if one is beyond float32."""
    levels = np.asarray(levels)
    # before the cast, which has no meaning for a float beyond 64 bits
    if levels.size and not (levels.min() > -100 * RESOLUTION - 1 and levels.max() < 101 * RESOLUTION):
        raise Corruption("a logarithmic level is beyond float32: the file is damaged")
    k = levels.astype(np.int64)
    exponent = k >> 7
    powers = np.ldexp(_mantissas()[k & 127].astype(np.float32), (exponent - 23).astype(np.int32)).astype(np.float32)
    with np.errstate(over="ignore", under="ignore"):
        values = powers * np.float32(step)
    if not np.isfinite(values).all():
        raise Corruption("a step is beyond float32: the file is damaged")
    return values


def logarithms(values: np.ndarray) -> tuple[np.ndarray, float] | None:
    """Real levels (float32) of float32 values and the step (a power of two near their geometric mean); None if the grid does not
    serve them.
    """
    if values.size > MAX_LOGARITHMIC or not (values > 0).all():
        return None
    exponents = np.log2(values.astype(np.float64))
    if exponents.min() < -60 or exponents.max() > 60:
        return None
    step = 2.0 ** round(exponents.mean())
    return ((exponents - np.log2(step)) * RESOLUTION).astype(np.float32), step
