"""Entropy decoding of planes with trees: as `decode_tile`, with the code of its cell added to the scale index of every weight."""

from __future__ import annotations

import numpy as np
from numba import njit

from .streams import _LIMIT, _MASK24, _PRIME, _U, DEAD, _grid_value, _pop_bypass, _pop_rest, _start

_BITS = 3  # of the side of a cell


@njit(cache=True, nogil=True)
def decode_cells(
    words,
    begin,
    end,
    rows,
    columns,
    height,
    width,
    cells,
    row_codes,
    column_codes,
    classes,
    tables,
    next_state,
    shift,
    labelling,
    row_steps,
    column_steps,
    plane,
    state,
    left_over,
    digests,
):
    """CTUs of one shape side by side in one thread, any number of them: their dependency chains overlap.

    begin, end, rows, columns: int64 (CTUs,), words and corner of each, which starts at a cell.  cells: int16 (cells across, cells down),
    -1000 for those that are skipped.  state, left_over, digests: (CTUs,) results.  Others as of `decode_tile`.
    """
    cumulative, hint, low, escape = tables
    lanes = len(begin)
    spacing = 1 if next_state.shape[0] == 1 else 2
    raw = 1 if shift > 0 else 0
    x, p = np.empty(lanes, np.uint64), np.empty(lanes, np.int64)
    s, d = np.zeros(lanes, np.int64), np.zeros(lanes, np.uint64)
    codes, row_of_cells = np.empty(lanes, np.int64), np.empty(lanes, np.int64)
    for m in range(lanes):
        x[m], p[m] = _start(words, begin[m], end[m])
        row_of_cells[m] = rows[m] >> _BITS
    for j in range(width):
        for first in range(0, height, 1 << _BITS):
            last = min(first + (1 << _BITS), height)
            for m in range(lanes):
                column = columns[m] + j
                codes[m] = np.int64(column_codes[column]) + np.int64(cells[column >> _BITS, row_of_cells[m] + (first >> _BITS)])
            for i in range(first, last):
                for m in range(lanes):
                    row, column = rows[m] + i, columns[m] + j
                    c = np.int64(row_codes[row]) + codes[m]
                    if c <= DEAD:
                        plane[row, column] = np.float32(0)
                        continue
                    c = min(max(c, 1), classes)
                    q = s[m] & 1
                    t = 2 * c + (q | raw)
                    y = x[m]
                    v = y & _MASK24
                    a = np.int64(hint[t, np.int64(v >> _U(16))])
                    while _U(cumulative[t, a + 1]) <= v:
                        a += 1
                    start = _U(cumulative[t, a])
                    y = (_U(cumulative[t, a + 1]) - start) * (y >> _U(24)) + (v - start)
                    if y < _LIMIT and p[m] >= begin[m]:
                        y = (y << _U(32)) | _U(words[p[m]])
                        p[m] -= 1
                    k = np.int64(low[t]) + a
                    if a == escape[t]:
                        k, y, p[m] = _pop_rest(y, p[m], begin[m], words, np.int64(low[t]), k - 1, shift)
                    elif raw:
                        k, y = _pop_bypass(k, y, shift)
                        if y < _LIMIT and p[m] >= begin[m]:
                            y = (y << _U(32)) | _U(words[p[m]])
                            p[m] -= 1
                    d[m] = (d[m] ^ _U(k)) * _PRIME
                    plane[row, column] = _grid_value(k, q, spacing, labelling) * row_steps[row] * column_steps[column]
                    s[m] = next_state[s[m], k & 1]
                    x[m] = y
    for m in range(lanes):
        state[m], left_over[m], digests[m] = x[m], p[m] - begin[m] + 1, d[m]


@njit(cache=True, nogil=True)
def measure_cells(
    words,
    begin,
    end,
    top,
    bottom,
    left,
    right,
    cells,
    cut,
    row_codes,
    column_codes,
    classes,
    tables,
    next_state,
    shift,
    bits,
    indices,
    coded,
):
    """Bits of the levels of a CTU by cell, with or without a tree; returns (final coder state, words left).

    cells: int16 (cells down, cells across) or (1, 1), at [i >> cut, j >> cut] of row i and column j.  bits: float64, scale indices: float64
    sums and coded: int64 numbers of weights, all (cells down, cells across), to be added to.
    """
    cumulative, hint, low, escape = tables
    x, p = _start(words, begin, end)
    s = np.int64(0)
    raw = 1 if shift > 0 else 0
    for j in range(left, right):
        for i in range(top, bottom):
            c = np.int64(row_codes[i]) + np.int64(column_codes[j]) + np.int64(cells[i >> cut, j >> cut])
            if c <= DEAD:
                continue
            c = min(max(c, 1), classes)
            t = 2 * c + ((s & 1) | raw)
            v = x & _MASK24
            a = np.int64(hint[t, np.int64(v >> _U(16))])
            while _U(cumulative[t, a + 1]) <= v:
                a += 1
            start = _U(cumulative[t, a])
            frequency = _U(cumulative[t, a + 1]) - start
            x = frequency * (x >> _U(24)) + (v - start)
            if x < _LIMIT and p >= begin:
                x = (x << _U(32)) | _U(words[p])
                p -= 1
            k = np.int64(low[t]) + a
            spent = 24 - np.log2(np.float64(frequency)) + shift
            if a == escape[t]:
                lowest, highest = np.int64(low[t]), k - 1
                k, x, p = _pop_rest(x, p, begin, words, lowest, highest, shift)
                level = k >> shift
                excess = lowest - level if level < lowest else level - highest
                spent += 6 + np.floor(np.log2(np.float64(max(excess, 1))))
            elif raw:
                k, x = _pop_bypass(k, x, shift)
                if x < _LIMIT and p >= begin:
                    x = (x << _U(32)) | _U(words[p])
                    p -= 1
            row, column = i >> _BITS, j >> _BITS
            bits[row, column] += spent
            indices[row, column] += c
            coded[row, column] += 1
            s = next_state[s, k & 1]
    return x, p - begin + 1
