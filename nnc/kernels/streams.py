"""Entropy coding kernels: asymmetric numeral systems (64-bit state, 32-bit words, 24-bit tables) with context, trellis and
dequantization fused.  The words are those of constriction's `AnsCoder` with `Categorical` models (J. Duda, arXiv:1311.2540).

Tables come as `cumulative` uint32 (tables, symbols + 1), `hint` uint16 (tables, 256) with the first symbol that may hold a
quantile
whose upper 8 bits are the column, `low` int32 (tables,) the level of symbol 0 and `escape` int32 (tables,) the escape symbol.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_U = np.uint64
_MASK24 = np.uint64(0xFFFFFF)
_LIMIT = np.uint64(1 << 32)
_PRIME = np.uint64(0x9E3779B97F4A7C15)
LEVEL_BITS = 22  # levels lie in (-2^22, 2^22): exact in float32 after doubling
DEAD = -500  # sums of codes below mean that the weight is not coded: dead rows and columns have -1000
RAW_CHUNK = 16  # raw bits go through the coder at most 16 at a time


@njit(cache=True, nogil=True)
def _refill(x, p, begin, words):
    if x < _LIMIT and p >= begin:
        x = (x << _U(32)) | _U(words[p])
        p -= 1
    return x, p


@njit(cache=True, nogil=True)
def _pop_raw(x, p, begin, words, bits):
    """`bits` equiprobable bits, most significant chunk first."""
    value = np.int64(0)
    while bits > 0:
        n = min(bits, RAW_CHUNK)
        v = x & _MASK24
        value = (value << n) | np.int64(v >> _U(24 - n))
        x = ((x >> _U(24)) << _U(24 - n)) + (v & ((_U(1) << _U(24 - n)) - _U(1)))
        x, p = _refill(x, p, begin, words)
        bits -= n
    return value, x, p


@njit(cache=True, nogil=True)
def _pop_escape(x, p, begin, words, lowest, highest):
    """A level outside [lowest, highest]: side, bit length and magnitude of the excess."""
    side, x, p = _pop_raw(x, p, begin, words, 1)
    length, x, p = _pop_raw(x, p, begin, words, 5)
    rest, x, p = _pop_raw(x, p, begin, words, min(length, LEVEL_BITS))
    excess = ((np.int64(1) << min(length, LEVEL_BITS)) | rest) - 1
    return (lowest - 1 - excess if side else highest + 1 + excess), x, p


@njit(cache=True, nogil=True)
def _pop_rest(x, p, begin, words, lowest, highest, shift):
    """What follows the escape: the level, then its bypass bits."""
    k, x, p = _pop_escape(x, p, begin, words, lowest, highest)
    if shift > 0:
        raw, x, p = _pop_raw(x, p, begin, words, shift)
        k = (k << shift) | raw
    return k, x, p


@njit(cache=True, nogil=True)
def _pop_bypass(k, x, shift):
    """The bypass bits of a level with a symbol, at most RAW_CHUNK, in one step; without the refill, which needs the words."""
    rest = _U(24 - shift)
    v = x & _MASK24
    return (k << shift) | np.int64(v >> rest), ((x >> _U(24)) << rest) + (v & ((_U(1) << rest) - _U(1)))


@njit(cache=True, nogil=True)
def _start(words, begin, end):
    """Coder state and next word of a stream."""
    x = _U(0)
    p = end - 1
    if p >= begin:
        x = _U(words[p])
        p -= 1
    return _refill(x, p, begin, words)


@njit(cache=True, nogil=True)
def start_stream(words, end):
    """Coder state after the start of the stream words[:end], and the number of words that are left."""
    x, p = _start(words, 0, end)
    return x, p + 1


@njit(cache=True, nogil=True)
def _grid_value(k, q, spacing, labelling):
    """Reconstruction value in units of the step: plain `spacing * k + q`, sign-symmetric `2 k - q sign(k)`."""
    if labelling == 0:
        return np.float32(spacing * k + q)
    return np.float32(2 * k - (q if k > 0 else (-q if k < 0 else 0)))


# Arrays are not passed to functions per symbol: numba would count their references, which costs more than the decoding.  Hence
# four copies of the loop body.


@njit(cache=True, nogil=True)
def decode_tile(
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
    tables,
    next_state,
    shift,
    labelling,
    row_steps,
    column_steps,
    plane,
):
    """Decode one CTU into `plane[top:bottom, left:right]`; returns (final coder state, words left, digest of the levels).

    words: uint32, of which begin..end are this stream; row_codes, column_codes: int16, the base is in the row codes, -1000 for
    dead ones; row_steps, column_steps: float32 (rows,) and (columns,), the latter factors of the former.
    """
    cumulative, hint, low, escape = tables
    x, p = _start(words, begin, end)
    digest = _U(0)
    s = np.int64(0)
    spacing = 1 if next_state.shape[0] == 1 else 2
    raw = 1 if shift > 0 else 0
    for j in range(left, right):
        column_code = np.int64(column_codes[j])
        column_step = column_steps[j]
        for i in range(top, bottom):
            c = np.int64(row_codes[i]) + column_code
            if c > DEAD:
                c = min(max(c, 1), classes)
                q = s & 1
                t = 2 * c + (q | raw)
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
            else:
                plane[i, j] = np.float32(0)
    return x, p - begin + 1, digest


@njit(cache=True, nogil=True)
def decode_four(
    words,
    begin,
    end,
    rows,
    columns,
    height,
    width,
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
    """Four CTUs of one shape side by side in one thread: their dependency chains overlap.

    begin, end, rows, columns: int64 (4,), words and corner of each.  state, left_over, digests: (4,) results as of `decode_tile`.
    """
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
        c0, c1 = np.int64(column_codes[n0 + j]), np.int64(column_codes[n1 + j])
        c2, c3 = np.int64(column_codes[n2 + j]), np.int64(column_codes[n3 + j])
        f0, f1, f2, f3 = column_steps[n0 + j], column_steps[n1 + j], column_steps[n2 + j], column_steps[n3 + j]
        for i in range(height):
            c = np.int64(row_codes[r0 + i]) + c0
            if c > DEAD:
                c = min(max(c, 1), classes)
                q = s0 & 1
                t = 2 * c + (q | raw)
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
            c = np.int64(row_codes[r1 + i]) + c1
            if c > DEAD:
                c = min(max(c, 1), classes)
                q = s1 & 1
                t = 2 * c + (q | raw)
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
            c = np.int64(row_codes[r2 + i]) + c2
            if c > DEAD:
                c = min(max(c, 1), classes)
                q = s2 & 1
                t = 2 * c + (q | raw)
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
            c = np.int64(row_codes[r3 + i]) + c3
            if c > DEAD:
                c = min(max(c, 1), classes)
                q = s3 & 1
                t = 2 * c + (q | raw)
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
