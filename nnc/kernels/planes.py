"""Kernels over planes: row and column powers, and the gathering of a CTU into scan order.

Planes are float32 (rows, columns) in either order of memory; what runs along the rows of one in C order runs down the columns of one in
F order, and sums are taken in the order of the index in both, so that their bits are the same.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .streams import DEAD

STRIP = 16  # columns that are copied side by side: a line of the cache
_LANES = 16  # sums that run side by side


@njit(cache=True, nogil=True)
def row_powers(plane, column_scale, out):
    """out float64 (rows,): mean of (plane[i, j] * column_scale[j])^2 along each row; for C order."""
    rows, columns = plane.shape
    whole = rows // 4 * 4
    for i in range(0, whole, 4):  # four sums at a time: each waits for its last addition
        a = b = c = d = 0.0
        for j in range(columns):
            scale = column_scale[j]
            p = np.float64(plane[i, j]) * scale
            q = np.float64(plane[i + 1, j]) * scale
            r = np.float64(plane[i + 2, j]) * scale
            s = np.float64(plane[i + 3, j]) * scale
            a += p * p
            b += q * q
            c += r * r
            d += s * s
        out[i], out[i + 1], out[i + 2], out[i + 3] = a / columns, b / columns, c / columns, d / columns
    for i in range(whole, rows):
        total = 0.0
        for j in range(columns):
            v = np.float64(plane[i, j]) * column_scale[j]
            total += v * v
        out[i] = total / columns


@njit(cache=True, nogil=True)
def column_powers(plane, row_scale, out):
    """out float64 (columns,): mean of (plane[i, j] * row_scale[i])^2 down each column; for C order."""
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
def row_peaks(plane, peaks):
    """float64 (rows,): largest magnitude of every row; for C order."""
    rows, columns = plane.shape
    for i in range(rows):
        lanes = np.zeros(_LANES, np.float32)
        row = plane[i]
        whole = columns // _LANES * _LANES
        for j in range(0, whole, _LANES):
            for lane in range(_LANES):
                v = abs(row[j + lane])
                lanes[lane] = v if v > lanes[lane] else lanes[lane]
        peak = np.float32(0)
        for lane in range(_LANES):
            peak = max(peak, lanes[lane])
        for j in range(whole, columns):
            peak = max(peak, abs(row[j]))
        peaks[i] = peak


@njit(cache=True, nogil=True)
def column_peaks(plane, peaks):
    """float64 (columns,): largest magnitude of every column; for C order."""
    rows, columns = plane.shape
    found = np.zeros(columns, np.float32)
    for i in range(rows):
        for j in range(columns):
            v = abs(plane[i, j])
            found[j] = v if v > found[j] else found[j]
    for j in range(columns):
        peaks[j] = found[j]


@njit(cache=True, nogil=True)
def gather_tile(
    plane, top, bottom, left, right, row_codes, column_codes, cells, cut, classes, by_row, by_column, x, codes, position
):
    """Coded weights of a CTU in scan order (down the columns): x float32 in steps, codes uint8, position (index in the
    plane); returns their number.  cells: int16, added to the codes of row i and column j at [i >> cut, j >> cut]; by_row, by_column: float32, one
    over the steps.
    """
    columns = plane.shape[1]
    height = bottom - top
    strip = np.empty((STRIP, height), np.float32)
    own, most = np.empty(height, np.int16), np.int16(classes)
    of_rows, factors = row_codes[top:bottom], by_row[top:bottom]
    n = 0
    for first in range(left, right, STRIP):
        part = plane[top:bottom, first : min(first + STRIP, right)]
        for i in range(part.shape[0]):
            for j in range(part.shape[1]):
                strip[j, i] = part[i, j]
        for j in range(part.shape[1]):
            column = first + j
            weights, by = strip[j], by_column[column]
            least = _add_codes(of_rows, column_codes[column], cells, cut, column, top, own)
            if least > DEAD:  # all are coded: loops without conditions are vector operations
                _limit(own, most, codes[n : n + height])
                values, places = x[n : n + height], position[n : n + height]
                start = top * columns + column
                for i in range(height):
                    values[i] = weights[i] * factors[i] * by
                    places[i] = start + i * columns
                n += height
                continue
            for i in range(height):
                if own[i] > DEAD:
                    x[n] = weights[i] * factors[i] * by
                    codes[n] = min(max(own[i], np.int16(1)), most)
                    position[n] = (top + i) * columns + column
                    n += 1
    return n


@njit(cache=True, nogil=True)
def gather_codes(top, bottom, left, right, row_codes, column_codes, cells, cut, classes, codes):
    """Only the codes of the same, and their number."""
    height = bottom - top
    own, most = np.empty(height, np.int16), np.int16(classes)
    of_rows = row_codes[top:bottom]
    n = 0
    for column in range(left, right):
        if _add_codes(of_rows, column_codes[column], cells, cut, column, top, own) > DEAD:
            _limit(own, most, codes[n : n + height])
            n += height
            continue
        for i in range(height):
            if own[i] > DEAD:
                codes[n] = min(max(own[i], np.int16(1)), most)
                n += 1
    return n


@njit(cache=True, nogil=True)
def _limit(codes, most, out):
    for i in range(len(codes)):
        out[i] = min(max(codes[i], np.int16(1)), most)


@njit(cache=True, nogil=True)
def _add_codes(row_codes, column_code, cells, cut, column, top, out):
    """Sum of the codes of the weights of a column, from row `top`: int16 (height,); returns the least."""
    least = np.int16(32767)
    if cells.size == 1:
        add = np.int16(column_code + cells[0, 0])
        for i in range(len(out)):
            out[i] = np.int16(row_codes[i] + add)
        for i in range(len(out)):
            least = min(least, out[i])
        return least
    across = column >> cut
    for i in range(len(out)):
        out[i] = row_codes[i] + column_code + cells[(top + i) >> cut, across]
        least = min(least, out[i])
    return least


@njit(cache=True, nogil=True)
def error_and_energy(plane, values):
    """Sums of (plane - values)^2 and of plane^2, float64; both float32 (rows, columns), best in C order."""
    rows, columns = plane.shape
    errors, energies = np.zeros(_LANES), np.zeros(_LANES)  # in an order of their own, so that all machines have the same sums
    error = energy = 0.0
    whole = columns // _LANES * _LANES
    for i in range(rows):
        weights, found = plane[i], values[i]
        for j in range(0, whole, _LANES):
            for lane in range(_LANES):
                v = np.float64(weights[j + lane])
                d = v - np.float64(found[j + lane])
                errors[lane] += d * d
                energies[lane] += v * v
        for j in range(whole, columns):
            v = np.float64(weights[j])
            d = v - np.float64(found[j])
            error += d * d
            energy += v * v
    for lane in range(_LANES):
        error += errors[lane]
        energy += energies[lane]
    return error, energy
