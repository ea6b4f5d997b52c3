"""Fitting the probabilities of binary codes, the bits that levels cost with them, and the scales of the coefficients."""

from __future__ import annotations

from math import erf, sqrt

import numpy as np

from ..tiles.tables import DEPTHS, FLAG, HIGHEST, LOWEST, MORE, SAME, STATES, TABLES

KNOWN = 255  # largest magnitude whose bits are listed
LOWEST_SCALE, HIGHEST_SCALE = -160, 64
_PLANES = 10
_MOST = 64


def codes_of(zeros: np.ndarray, ones: np.ndarray) -> np.ndarray:
    """Table codes from the numbers of zeros and ones; a context that never occurs has the code of the one before it."""
    found = np.zeros(TABLES, np.int64)
    for context in range(TABLES):
        seen = zeros[context] + ones[context]
        if seen == 0:
            found[context] = found[context - 1] if context else 0
            continue
        odds = np.log2((zeros[context] + 0.4) / (ones[context] + 0.4))
        found[context] = int(np.clip(np.round(4 * odds), -_MOST, _MOST))
    return found


def first_codes() -> np.ndarray:
    """Table codes to start with: normal coefficients whose scale is right."""
    zeros, ones = np.zeros(TABLES), np.zeros(TABLES)
    for d in range(LOWEST, HIGHEST + 1):
        inside = [erf(edge / (sqrt(2) * 2 ** (d / 4))) for edge in range(18)]  # of |x| < edge, x in units of the bit
        for state in range(STATES):
            prefixes = ((0,), (1,), (2, 3), (4, 5, 6, 7))[state]
            at = state * DEPTHS + d - LOWEST
            for m in prefixes:
                zeros[at] += 1e6 * (inside[2 * m + 1] - inside[2 * m])
                ones[at] += 1e6 * (inside[2 * m + 2] - inside[2 * m + 1])
    zeros[FLAG : FLAG + 3], ones[FLAG : FLAG + 3] = (4, 2, 1), (1, 2, 4)
    zeros[SAME], ones[SAME], zeros[MORE], ones[MORE] = 1, 9, 1, 1
    return codes_of(zeros, ones)


def bits_of(codes: np.ndarray) -> np.ndarray:
    """float64 (TABLES, 2): bits of a 0 and of a 1."""
    odds = codes / 4
    return np.stack([np.log2(1 + 2.0**-odds), np.log2(1 + 2.0**odds)], 1)


def level_costs(codes: np.ndarray) -> np.ndarray:
    """float64 (scales from LOWEST_SCALE, magnitudes 0..KNOWN): bits of a magnitude and its sign."""
    of_bit = bits_of(codes)
    m = np.arange(KNOWN + 1)
    scale = np.arange(LOWEST_SCALE, HIGHEST_SCALE + 1)[:, None]
    total = np.repeat((m > 0).astype(np.float64)[None], len(scale), 0)
    for b in range(_PLANES):
        prefix = m >> (b + 1)
        state = np.where(prefix < 4, np.minimum(prefix, 2), 3)
        depth = np.clip(scale - 4 * b, LOWEST, HIGHEST) - LOWEST
        total += of_bit[state * DEPTHS + depth, np.broadcast_to((m >> b) & 1, (len(scale), len(m)))]
    return total


def fit_scales(squares: np.ndarray, area: int) -> np.ndarray:
    """Scale codes int (2 * area,) from sums and numbers of squared coefficients (2, area or more, 2), in steps.

    A code that is hardly better than the one before it gives way to that: differences of zero cost least.
    """
    total, number = squares[:, :area, 0].reshape(-1), squares[:, :area, 1].reshape(-1)
    found = np.zeros(2 * area, np.int64)
    before = 0
    for at in range(2 * area):
        if number[at]:
            exact = 2 * np.log2(max(total[at] / number[at], 1e-9))
            nearest = int(np.clip(np.round(exact), -_MOST + 1, _MOST))
            loss = number[at] * ((exact - before) ** 2 - (exact - nearest) ** 2) * (np.log(2) / 16)  # nearly quadratic
            before = nearest if loss > 2 + 2 * np.log2(1 + abs(nearest - before)) or abs(nearest - before) > 8 else before
        found[at] = before
    return found
