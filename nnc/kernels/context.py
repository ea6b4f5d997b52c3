"""Kernels of levels whose tables a network chooses from the levels before: one pass of the network per level, all in integers.

Every coded level leaves its magnitude, 0..255 (entropy.inputs.magnitude_table); where there is none, or nothing is coded, it is 64.
The inputs 8..18 of the level in row i and column j of its CTU are

    8, 9        those of rows i - 1 and i - 2 of the column           15, 16   mean of its row and of its column so far
    10, 11      of columns j - 1 and j - 2 of the row                 17, 18   how many levels these means have seen, 8 times that
    12, 13      of (i - 1, j - 1) and (i + 1, j - 1)                           of at most 31
    14          of the same tap of the kernel before: (i, j - taps), or (i - taps, j) in a transposed plane

A mean e, in 1/256, moves by `(256 magnitude - e) div min(seen, 32)`.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .networks import forward
from .streams import _U, DEAD, _start, decode_weight, open_source

_ABSENT = 64
_MOST_TWICE = 511
_SLOWEST = 32
_FIRST = 8  # input of context
_POSITIONS, _SHAPES = 144, 8


@njit(cache=True, nogil=True)
def _look(full, marks, i, j, taps, transposed, along, seen_along, down, seen_down):
    """Inputs 8..18 of the level in row i and column j of its CTU."""
    full[_FIRST] = marks[j + 2, i + 1]
    full[_FIRST + 1] = marks[j + 2, i]
    full[_FIRST + 2] = marks[j + 1, i + 2]
    full[_FIRST + 3] = marks[j, i + 2]
    full[_FIRST + 4] = marks[j + 1, i + 1]
    full[_FIRST + 5] = marks[j + 1, i + 3]
    before = _ABSENT
    if transposed:
        if i >= taps:
            before = marks[j + 2, i + 2 - taps]
    elif j >= taps:
        before = marks[j + 2 - taps, i + 2]
    full[_FIRST + 6] = before
    full[_FIRST + 7] = along >> 8
    full[_FIRST + 8] = down >> 8
    full[_FIRST + 9] = 8 * min(seen_along, 31)
    full[_FIRST + 10] = 8 * min(seen_down, 31)


@njit(cache=True, nogil=True)
def _mean(mean, magnitude, seen):
    """A mean after one more magnitude; seen: with that."""
    return mean + (256 * np.int64(magnitude) - mean) // min(seen, _SLOWEST)


@njit(cache=True, nogil=True)
def trace_levels(
    levels, top, bottom, left, right, row_codes, column_codes, classes, sides, constants, taps, transposed, magnitudes, next_state, shift, values
):
    """All inputs of the levels of a CTU: values uint8 (n, 19).

    levels: int32 (n,) in scan order; row_codes, column_codes: int16; sides: uint8 inputs of rows, of columns, of taps; constants: uint8 (3,);
    magnitudes: uint8 (classes + 1, 512)."""
    of_rows, of_columns, of_taps = sides
    height = bottom - top
    marks = np.full((right - left + 2, height + 3), _ABSENT, np.uint8)
    along, seen_along = np.full(height, 256 * _ABSENT, np.int64), np.zeros(height, np.int64)
    full = np.empty(values.shape[1], np.int32)
    raw = 1 if shift > 0 else 0
    s, n = np.int64(0), 0
    for j in range(right - left):
        column = left + j
        down, seen_down = np.int64(256 * _ABSENT), np.int64(0)
        for i in range(height):
            row = top + i
            c = np.int64(row_codes[row]) + np.int64(column_codes[column])
            if c <= DEAD:
                continue
            c = min(max(c, 1), classes)
            q = (s & 1) | raw
            _look(full, marks, i, j, taps, transposed, along[i], seen_along[i], down, seen_down)
            full[0], full[1], full[2] = 7 * c, of_rows[row], of_columns[column]
            full[3] = of_taps[row if transposed else column]
            full[4] = 255 * q
            full[5], full[6], full[7] = constants[0], constants[1], constants[2]
            for m in range(values.shape[1]):
                values[n, m] = full[m]
            k = np.int64(levels[n])
            n += 1
            mark = magnitudes[c, min(abs(2 * (k >> shift) + q), _MOST_TWICE)]
            marks[j + 2, i + 2] = mark
            seen_along[i] += 1
            seen_down += 1
            along[i] = _mean(along[i], mark, seen_along[i])
            down = _mean(down, mark, seen_down)
            s = next_state[s, k & 1]


@njit(cache=True, nogil=True)
def decode_context(
    words,
    begin,
    end,
    top,
    bottom,
    left,
    right,
    row_codes,
    column_codes,
    classes,
    sides,
    constants,
    taps,
    transposed,
    magnitudes,
    network,
    tables,
    next_state,
    shift,
    labelling,
    row_steps,
    column_steps,
    plane,
):
    """Decode one CTU into `plane[top:bottom, left:right]`; returns (final coder state, words left, digest of the levels).

    network: `Network.arrays`; tables: the whole bank of entropy.fine.  Others as of `trace_levels` and `kernels.streams.decode_tile`."""
    source = open_source(words, tables, next_state, shift, labelling)
    of_rows, of_columns, of_taps = sides
    inputs, sizes, kernels, biases, divisors, reciprocals, activations = network
    height = bottom - top
    marks = np.full((right - left + 2, height + 3), _ABSENT, np.uint8)
    along, seen_along = np.full(height, 256 * _ABSENT, np.int64), np.zeros(height, np.int64)
    full, u, sums = np.empty(32, np.int32), np.empty(64, np.int32), np.empty(64, np.int32)
    full[5], full[6], full[7] = constants[0], constants[1], constants[2]
    x, p = _start(words, begin, end)
    digest = _U(0)
    raw = 1 if shift > 0 else 0
    s = np.int64(0)
    for j in range(right - left):
        column = left + j
        column_code, column_step = np.int64(column_codes[column]), column_steps[column]
        down, seen_down = np.int64(256 * _ABSENT), np.int64(0)
        for i in range(height):
            row = top + i
            c = np.int64(row_codes[row]) + column_code
            if c <= DEAD:
                plane[row, column] = np.float32(0)
                continue
            c = min(max(c, 1), classes)
            q = s & 1
            wide = q | raw
            _look(full, marks, i, j, taps, transposed, along[i], seen_along[i], down, seen_down)
            full[0], full[1], full[2] = 7 * c, of_rows[row], of_columns[column]
            full[3] = of_taps[row if transposed else column]
            full[4] = 255 * wide
            forward(full, u, sums, inputs, sizes, kernels, biases, divisors, reciprocals, activations)
            position = min(max(4 * (c - 1) + u[0], 0), _POSITIONS - 1)
            t = 16 * position + 2 * min(max(np.int64(u[1]), 0), _SHAPES - 1) + raw  # of the quantizer 0
            x, p, s, digest, k, value = decode_weight(x, p, begin, s, digest, t, source)
            plane[row, column] = value * row_steps[row] * column_step
            mark = magnitudes[c, min(abs(2 * (k >> shift) + wide), _MOST_TWICE)]
            marks[j + 2, i + 2] = mark
            seen_along[i] += 1
            seen_down += 1
            along[i] = _mean(along[i], mark, seen_along[i])
            down = _mean(down, mark, seen_down)
    return x, p - begin + 1, digest
