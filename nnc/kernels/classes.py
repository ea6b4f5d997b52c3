"""Entropy decoding of levels whose tables a network chose from side information: a table for every class of rows and class of columns.

Copies of the loops of kernels/streams.py, for the same reason; only the way to the table differs.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .streams import _LIMIT, _MASK24, _PRIME, _U, _grid_value, _pop_bypass, _pop_rest, _start


@njit(cache=True, nogil=True)
def decode_classes(
    words,
    begin,
    end,
    top,
    bottom,
    left,
    right,
    row_places,
    column_places,
    numbers,
    tables,
    next_state,
    shift,
    labelling,
    row_steps,
    column_steps,
    plane,
):
    """Decode one CTU as `kernels.streams.decode_tile` does.  numbers: int32, the tables of all pairs of classes and of both quantizers;
    row_places, column_places: int32, their sum is where those of the first one stand, negative where nothing is coded."""
    cumulative, hint, low, escape = tables
    x, p = _start(words, begin, end)
    digest = _U(0)
    s = np.int64(0)
    spacing = 1 if next_state.shape[0] == 1 else 2
    raw = 1 if shift > 0 else 0
    for j in range(left, right):
        of_column = np.int64(column_places[j])
        column_step = column_steps[j]
        for i in range(top, bottom):
            c = np.int64(row_places[i]) + of_column
            if c < 0:
                plane[i, j] = np.float32(0)
                continue
            q = s & 1
            t = numbers[c + (q | raw)]
            v = x & _MASK24
            a = np.int64(hint[t, np.int64(v >> _U(16))])
            while _U(cumulative[t, a + 1]) <= v:
                a += 1
            start = _U(cumulative[t, a])
            x = (_U(cumulative[t, a + 1]) - start) * (x >> _U(24)) + (v - start)
            if x < _LIMIT and p >= begin:
                x = (x << _U(32)) | _U(words[p])
                p -= 1
            k = np.int64(low[t]) + a
            if a == escape[t]:
                k, x, p = _pop_rest(x, p, begin, words, np.int64(low[t]), k - 1, shift)
            elif raw:
                k, x = _pop_bypass(k, x, shift)
                if x < _LIMIT and p >= begin:
                    x = (x << _U(32)) | _U(words[p])
                    p -= 1
            digest = (digest ^ _U(k)) * _PRIME
            plane[i, j] = _grid_value(k, q, spacing, labelling) * row_steps[i] * column_step
            s = next_state[s, k & 1]
    return x, p - begin + 1, digest


@njit(cache=True, nogil=True)
def decode_classes_of_four(
    words,
    begin,
    end,
    rows,
    columns,
    height,
    width,
    row_places,
    column_places,
    numbers,
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
    """Four CTUs of one shape side by side in one thread, as `kernels.streams.decode_four`; row_places, column_places, numbers as of
    `decode_classes`."""
    cumulative, hint, low, escape = tables
    spacing = 1 if next_state.shape[0] == 1 else 2
    raw = 1 if shift > 0 else 0
    b0, b1, b2, b3 = begin[0], begin[1], begin[2], begin[3]
    r0, r1, r2, r3 = rows[0], rows[1], rows[2], rows[3]
    n0, n1, n2, n3 = columns[0], columns[1], columns[2], columns[3]
    x0, p0 = _start(words, b0, end[0])
    x1, p1 = _start(words, b1, end[1])
    x2, p2 = _start(words, b2, end[2])
    x3, p3 = _start(words, b3, end[3])
    d0 = d1 = d2 = d3 = _U(0)
    s0 = s1 = s2 = s3 = np.int64(0)
    for j in range(width):
        c0, c1 = np.int64(column_places[n0 + j]), np.int64(column_places[n1 + j])
        c2, c3 = np.int64(column_places[n2 + j]), np.int64(column_places[n3 + j])
        f0, f1, f2, f3 = column_steps[n0 + j], column_steps[n1 + j], column_steps[n2 + j], column_steps[n3 + j]
        for i in range(height):
            c = np.int64(row_places[r0 + i]) + c0
            if c >= 0:
                q = s0 & 1
                t = numbers[c] ^ ((numbers[c] ^ numbers[c + 1]) & -(q | raw))
                v = x0 & _MASK24
                a = np.int64(hint[t, np.int64(v >> _U(16))])
                while _U(cumulative[t, a + 1]) <= v:
                    a += 1
                start = _U(cumulative[t, a])
                x0 = (_U(cumulative[t, a + 1]) - start) * (x0 >> _U(24)) + (v - start)
                if x0 < _LIMIT and p0 >= b0:
                    x0 = (x0 << _U(32)) | _U(words[p0])
                    p0 -= 1
                k = np.int64(low[t]) + a
                if a == escape[t]:
                    k, x0, p0 = _pop_rest(x0, p0, b0, words, np.int64(low[t]), k - 1, shift)
                elif raw:
                    k, x0 = _pop_bypass(k, x0, shift)
                    if x0 < _LIMIT and p0 >= b0:
                        x0 = (x0 << _U(32)) | _U(words[p0])
                        p0 -= 1
                d0 = (d0 ^ _U(k)) * _PRIME
                plane[r0 + i, n0 + j] = _grid_value(k, q, spacing, labelling) * row_steps[r0 + i] * f0
                s0 = next_state[s0, k & 1]
            else:
                plane[r0 + i, n0 + j] = np.float32(0)
            c = np.int64(row_places[r1 + i]) + c1
            if c >= 0:
                q = s1 & 1
                t = numbers[c] ^ ((numbers[c] ^ numbers[c + 1]) & -(q | raw))
                v = x1 & _MASK24
                a = np.int64(hint[t, np.int64(v >> _U(16))])
                while _U(cumulative[t, a + 1]) <= v:
                    a += 1
                start = _U(cumulative[t, a])
                x1 = (_U(cumulative[t, a + 1]) - start) * (x1 >> _U(24)) + (v - start)
                if x1 < _LIMIT and p1 >= b1:
                    x1 = (x1 << _U(32)) | _U(words[p1])
                    p1 -= 1
                k = np.int64(low[t]) + a
                if a == escape[t]:
                    k, x1, p1 = _pop_rest(x1, p1, b1, words, np.int64(low[t]), k - 1, shift)
                elif raw:
                    k, x1 = _pop_bypass(k, x1, shift)
                    if x1 < _LIMIT and p1 >= b1:
                        x1 = (x1 << _U(32)) | _U(words[p1])
                        p1 -= 1
                d1 = (d1 ^ _U(k)) * _PRIME
                plane[r1 + i, n1 + j] = _grid_value(k, q, spacing, labelling) * row_steps[r1 + i] * f1
                s1 = next_state[s1, k & 1]
            else:
                plane[r1 + i, n1 + j] = np.float32(0)
            c = np.int64(row_places[r2 + i]) + c2
            if c >= 0:
                q = s2 & 1
                t = numbers[c] ^ ((numbers[c] ^ numbers[c + 1]) & -(q | raw))
                v = x2 & _MASK24
                a = np.int64(hint[t, np.int64(v >> _U(16))])
                while _U(cumulative[t, a + 1]) <= v:
                    a += 1
                start = _U(cumulative[t, a])
                x2 = (_U(cumulative[t, a + 1]) - start) * (x2 >> _U(24)) + (v - start)
                if x2 < _LIMIT and p2 >= b2:
                    x2 = (x2 << _U(32)) | _U(words[p2])
                    p2 -= 1
                k = np.int64(low[t]) + a
                if a == escape[t]:
                    k, x2, p2 = _pop_rest(x2, p2, b2, words, np.int64(low[t]), k - 1, shift)
                elif raw:
                    k, x2 = _pop_bypass(k, x2, shift)
                    if x2 < _LIMIT and p2 >= b2:
                        x2 = (x2 << _U(32)) | _U(words[p2])
                        p2 -= 1
                d2 = (d2 ^ _U(k)) * _PRIME
                plane[r2 + i, n2 + j] = _grid_value(k, q, spacing, labelling) * row_steps[r2 + i] * f2
                s2 = next_state[s2, k & 1]
            else:
                plane[r2 + i, n2 + j] = np.float32(0)
            c = np.int64(row_places[r3 + i]) + c3
            if c >= 0:
                q = s3 & 1
                t = numbers[c] ^ ((numbers[c] ^ numbers[c + 1]) & -(q | raw))
                v = x3 & _MASK24
                a = np.int64(hint[t, np.int64(v >> _U(16))])
                while _U(cumulative[t, a + 1]) <= v:
                    a += 1
                start = _U(cumulative[t, a])
                x3 = (_U(cumulative[t, a + 1]) - start) * (x3 >> _U(24)) + (v - start)
                if x3 < _LIMIT and p3 >= b3:
                    x3 = (x3 << _U(32)) | _U(words[p3])
                    p3 -= 1
                k = np.int64(low[t]) + a
                if a == escape[t]:
                    k, x3, p3 = _pop_rest(x3, p3, b3, words, np.int64(low[t]), k - 1, shift)
                elif raw:
                    k, x3 = _pop_bypass(k, x3, shift)
                    if x3 < _LIMIT and p3 >= b3:
                        x3 = (x3 << _U(32)) | _U(words[p3])
                        p3 -= 1
                d3 = (d3 ^ _U(k)) * _PRIME
                plane[r3 + i, n3 + j] = _grid_value(k, q, spacing, labelling) * row_steps[r3 + i] * f3
                s3 = next_state[s3, k & 1]
            else:
                plane[r3 + i, n3 + j] = np.float32(0)
    state[0], state[1], state[2], state[3] = x0, x1, x2, x3
    left_over[0], left_over[1], left_over[2], left_over[3] = p0 - b0 + 1, p1 - b1 + 1, p2 - b2 + 1, p3 - b3 + 1
    digests[0], digests[1], digests[2], digests[3] = d0, d1, d2, d3
