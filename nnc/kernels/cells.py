"""Entropy decoding of planes with trees: as `decode_tile`, with the code of its cell added to the scale index of every weight."""

from __future__ import annotations

import numpy as np
from numba import njit

from .streams import _start, decode_weight, open_source, table_of

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
    source = open_source(words, tables, next_state, shift, labelling)
    lanes = len(begin)
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
                    table, value = table_of(np.int64(row_codes[row]) + codes[m], classes, shift), np.float32(0)
                    if table >= 0:
                        x[m], p[m], s[m], d[m], _, value = decode_weight(x[m], p[m], begin[m], s[m], d[m], table, source)
                    plane[row, column] = value * row_steps[row] * column_steps[column]
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
    cumulative, _, low, escape = tables
    source = open_source(words, tables, next_state, shift, 0)
    x, p = _start(words, begin, end)
    s, digest = np.int64(0), np.uint64(0)
    for j in range(left, right):
        for i in range(top, bottom):
            code = np.int64(row_codes[i]) + np.int64(column_codes[j]) + np.int64(cells[i >> cut, j >> cut])
            table = table_of(code, classes, shift)
            if table < 0:
                continue
            own = table | (s & 1)
            x, p, s, digest, k, _ = decode_weight(x, p, begin, s, digest, table, source)
            lowest, last = np.int64(low[own]), np.int64(escape[own])
            a = (k >> shift) - lowest
            spent = np.float64(24 + shift)
            if a < 0 or a >= last:
                excess = -a if a < 0 else a - last + 1
                spent += 6 + np.floor(np.log2(np.float64(excess)))
                a = last
            spent -= np.log2(np.float64(cumulative[own, a + 1] - cumulative[own, a]))
            row, column = i >> _BITS, j >> _BITS
            bits[row, column] += spent
            indices[row, column] += own >> 1
            coded[row, column] += 1
    return x, p - begin + 1
