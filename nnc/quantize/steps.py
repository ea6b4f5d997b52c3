"""Steps of rows and columns: `step * 2^(exponent / 128)`.

An error in one weight costs what its input's power and its output's sensitivity make it cost, so a plane whose inputs are known has
its own step for every row and every column (METHODS S8; the step of column j follows the conditional power of input j).  Steps travel
as codes in units of a fraction of an octave.  The standard deviation of a weight in steps moves the other way, hence the scale index of
the weight falls by the nearest number of quarter octaves.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..registry import Table
from .logarithm import RESOLUTION, rebuild_powers

UNITS = Table("unit of step codes", {0: 64, 1: 32, 2: 16, 3: 8, 4: 4})  # in 128ths of an octave
QUARTER = RESOLUTION // 4  # 2^5
FOLLOW = 16  # a row whose step follows its scale: 1/8 octave per scale code


@dataclass(frozen=True, eq=False)
class StepCodes:
    """codes: int16 (rows,) or (columns,) in -64..64; unit: 128ths of an octave per code."""

    codes: np.ndarray
    unit: int

    @classmethod
    def even(cls, number: int) -> StepCodes:
        """All steps the same."""
        return cls(np.zeros(number, np.int16), UNITS.value(0))

    @property
    def exponents(self) -> np.ndarray:
        """int64, in 128ths of an octave."""
        return self.codes.astype(np.int64) * self.unit

    @property
    def index(self) -> np.ndarray:
        """What a scale index falls by: int64, the exponents in quarter octaves, halves up."""
        return (self.exponents + QUARTER // 2) >> 5


def rebuild_steps(codes: StepCodes, step: float, scales: np.ndarray | None = None) -> np.ndarray:
    """float32 steps of an axis.  scales: scale codes that the steps follow besides, by 1/8 octave each.

    Corruption if one is beyond float32.
    """
    exponents = codes.exponents if scales is None else codes.exponents + FOLLOW * np.asarray(scales, np.int64)
    low, high = int(exponents.min()), int(exponents.max())
    if low == high:
        return np.full(len(exponents), _power(low, step), np.float32)
    if high - low < len(exponents):  # each of them but once
        return rebuild_powers(np.arange(low, high + 1), step)[exponents - low]
    return rebuild_powers(exponents, step)


@lru_cache(maxsize=1024)
def _power(exponent: int, step: float) -> np.float32:
    return rebuild_powers(np.array([exponent]), step)[0]
