"""Probabilities of the binary codes of a tile: one table of two frequencies per context.

    bit of a magnitude   state of its prefix (0: still zero, 1: it is 1, 2: 2 or 3, 3: more) and the depth
                         d = scale - 4 b of bit b, in quarter octaves, clipped to -10..13
    prediction           how many of the tiles left and above are predicted
    steps                as many as the tile before; one more in the unary number that follows if not
    sign                 equiprobable, no table

A table is a code v = -64..64, the logarithm of the odds in quarter octaves: 0 is 2^(v/4) times as likely as 1.
"""

from __future__ import annotations

import numpy as np

from ..coder import TOTAL
from ..entropy.parametric import exponential

LOWEST, HIGHEST = -10, 13  # depths with a table of their own
DEPTHS = HIGHEST - LOWEST + 1
STATES = 4
FLAG = STATES * DEPTHS
SAME = FLAG + 3
MORE = SAME + 1
TABLES = MORE + 1
SIGN = TABLES


def zero_frequencies(codes: np.ndarray) -> np.ndarray:
    """Frequency of 0, of 2^24, for every context and, last, the sign: uint64 (TABLES + 1,); codes: int (TABLES,)."""
    codes = codes.astype(np.int64)
    rare = exponential(np.abs(codes) * 64)
    of_rare = 1 + rare * (TOTAL - 2) // (rare + (1 << 32))  # `normalise` of the two: what is left over goes to the likelier one
    return np.append(np.where(codes >= 0, TOTAL - of_rare, of_rare), 1 << 23).astype(np.uint64)
