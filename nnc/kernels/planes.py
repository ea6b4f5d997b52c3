"""Kernels over planes: row and column powers, and the gathering of a CTU into scan order."""

from __future__ import annotations

import numpy as np
from numba import njit

from .streams import DEAD


@njit(cache=True, nogil=True)
def row_powers(plane, column_scale, out):
    """out float64 (rows,): mean of (plane[i, j] * column_scale[j])^2 along each row."""
    rows, columns = plane.shape
    for i in range(rows):
        total = 0.0
        for j in range(columns):
            v = np.float64(plane[i, j]) * column_scale[j]
            total += v * v
        out[i] = total / columns


@njit(cache=True, nogil=True)
def row_peaks(plane, powers, peaks):
    """float64 (rows,) each: mean of the squares and largest magnitude of every row; NaN and Inf show in the former."""
    rows, columns = plane.shape
    for i in range(rows):
        total = 0.0
        peak = 0.0
        for j in range(columns):
            v = np.float64(plane[i, j])
            total += v * v
            peak = max(peak, abs(v))
        powers[i] = total / columns
        peaks[i] = peak


@njit(cache=True, nogil=True)
def column_powers(plane, row_scale, out):
    """out float64 (columns,): mean of (plane[i, j] * row_scale[i])^2 down each column."""
    rows, columns = plane.shape
    out[:] = 0.0
    for i in range(rows):
        scale = row_scale[i]
        for j in range(columns):
            v = np.float64(plane[i, j]) * scale
            out[j] += v * v
    for j in range(columns):
        out[j] /= rows


@njit(cache=True, nogil=True)
def gather_tile(
    plane, top, bottom, left, right, row_codes, column_codes, cells, cut, classes, by_row, by_column, x, codes, position
):
    """Coded weights of a CTU in scan order (down the columns): x float32 in steps, codes uint8, position int64 (index in the
    plane); returns their number.  cells: int16, added to the codes of row i and column j at [i >> cut, j >> cut]; by_row, by_column: float32, one
    over the steps.
    """
    columns = plane.shape[1]
    n = 0
    for j in range(left, right):
        for i in range(top, bottom):
            c = np.int64(row_codes[i]) + np.int64(column_codes[j]) + np.int64(cells[i >> cut, j >> cut])
            if c > DEAD:
                c = min(max(c, 1), classes)
                x[n] = plane[i, j] * by_row[i] * by_column[j]
                codes[n] = c
                position[n] = i * columns + j
                n += 1
    return n


@njit(cache=True, nogil=True)
def error_and_energy(plane, values):
    """Sums of (plane - values)^2 and of plane^2, float64; both float32 (rows, columns)."""
    error = energy = 0.0
    for i in range(plane.shape[0]):
        for j in range(plane.shape[1]):
            v = np.float64(plane[i, j])
            d = v - np.float64(values[i, j])
            error += d * d
            energy += v * v
    return error, energy
