"""Entropy coding kernels: asymmetric numeral systems (64-bit state, 32-bit words, 24-bit tables) with context, trellis and
dequantization fused.  The words are those of constriction's `AnsCoder` with `Categorical` models (J. Duda, arXiv:1311.2540).

Tables come as of `coder.TableSet`: `cumulative` uint32 (tables, symbols + 1), `entries` uint64 (tables, 256) with the level, frequency and
start of the first symbol that may hold a quantile whose upper 8 bits are the column, `low` int32 (tables,) the level of symbol 0 and
`escape` int32 (tables,) the escape symbol.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

_U = np.uint64
_MASK24 = np.uint64(0xFFFFFF)
_LIMIT = np.uint64(1 << 32)
_PRIME = np.uint64(0x9E3779B97F4A7C15)
LEVEL_BITS = 22  # levels lie in (-2^22, 2^22): exact in float32 after doubling
DEAD = -500  # sums of codes below mean that the weight is not coded: dead rows and columns have -1000
RAW_CHUNK = 16  # raw bits go through the coder at most 16 at a time
ESCAPE = -(1 << 15)  # in place of the level in an entry
STRIP = 8  # columns that are decoded before they are copied to the plane, whose rows lie far apart


def _reader(kind):
    """Function of (address, index): an element of an array whose elements are of that kind.

    Numba counts references to arrays that are passed to functions, which would cost more than the decoding of a symbol; addresses
    are numbers.
    """

    @intrinsic
    def read(typing, address, index):
        def lower(context, builder, signature, arguments):
            begin = builder.inttoptr(arguments[0], context.get_value_type(kind).as_pointer())
            return builder.load(builder.gep(begin, [arguments[1]]))

        return kind(types.uint64, types.int64), lower

    return read


_read_uint32, _read_uint64 = _reader(types.uint32), _reader(types.uint64)
_read_int32, _read_int64 = _reader(types.int32), _reader(types.int64)


class Source(NamedTuple):
    """What symbols are decoded with: addresses, the symbols of a row of `cumulative`, and what is the same for all weights of a plane."""

    words: int
    cumulative: int
    symbols: int
    entries: int
    low: int
    escape: int
    next_state: int
    shift: int
    spacing: int
    labelling: int


@njit(cache=True, nogil=True)
def open_source(words, tables, next_state, shift, labelling):
    """The caller keeps the arrays, all in C order."""
    cumulative, entries, low, escape = tables
    return Source(
        _U(words.ctypes.data) if len(words) > 0 else _U(entries.ctypes.data),  # something that can be read
        _U(cumulative.ctypes.data),
        cumulative.shape[1],
        _U(entries.ctypes.data),
        _U(low.ctypes.data),
        _U(escape.ctypes.data),
        _U(next_state.ctypes.data),
        np.int64(shift),
        1 if next_state.shape[0] == 1 else 2,
        np.int64(labelling),
    )


@njit(cache=True, nogil=True)
def _refill(x, p, begin, words):
    if x < _LIMIT and p >= begin:
        x = (x << _U(32)) | _U(words[p])
        p -= 1
    return x, p


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
def _pop_raw(x, p, begin, words, bits):
    """`bits` equiprobable bits, most significant chunk first; words: their address."""
    value = np.int64(0)
    while bits > 0:
        n = min(bits, RAW_CHUNK)
        v = x & _MASK24
        value = (value << n) | np.int64(v >> _U(24 - n))
        x = ((x >> _U(24)) << _U(24 - n)) + (v & ((_U(1) << _U(24 - n)) - _U(1)))
        if x < _LIMIT and p >= begin:
            x = (x << _U(32)) | _U(_read_uint32(words, p))
            p -= 1
        bits -= n
    return value, x, p


@njit(cache=True, nogil=True)
def _pop_rest(x, p, begin, words, lowest, highest, shift):
    """What follows the escape: side, bit length and magnitude of the excess over [lowest, highest], then the bypass bits."""
    side, x, p = _pop_raw(x, p, begin, words, 1)
    length, x, p = _pop_raw(x, p, begin, words, 5)
    rest, x, p = _pop_raw(x, p, begin, words, min(length, LEVEL_BITS))
    excess = ((np.int64(1) << min(length, LEVEL_BITS)) | rest) - 1
    raw, x, p = _pop_raw(x, p, begin, words, shift)
    return ((lowest - 1 - excess if side else highest + 1 + excess) << shift) | raw, x, p


@njit(cache=True, nogil=True)
def _search(v, cumulative, first):
    """Index of the symbol that holds a quantile, from the first on that may."""
    while _U(_read_uint32(cumulative, first + 1)) <= v:
        first += 1
    return first


@njit(cache=True, nogil=True)
def _grid_value(k, q, spacing, labelling):
    """Reconstruction value in units of the step: plain `spacing * k + q`, sign-symmetric `2 k - q sign(k)`."""
    if labelling == 0:
        return np.float32(spacing * k + q)
    return np.float32(2 * k - (q if k > 0 else (-q if k < 0 else 0)))


@njit(cache=True, nogil=True, inline="always")
def table_of(code, classes, shift):
    """Table of a weight in the quantizer 0, or in both with bypass bits, from the sum of its codes; -1 if it is not coded."""
    return (2 * min(max(code, 1), classes) | (1 if shift > 0 else 0)) if code > DEAD else -1


@njit(cache=True, nogil=True, inline="always")
def decode_weight(x, p, begin, s, digest, table, source):
    """One weight of a stream: (coder state, next word, trellis state, digest, level, value in steps).

    All that follows waits for the coder state, so the path to that is short: what is to be known of most quantiles stands in one entry,
    and the next word is read before it is known to be needed.
    """
    q = s & 1
    t = table | q
    v = x & _MASK24
    entry = _read_uint64(source.entries, (t << 8) + np.int64(v >> _U(16)))
    word = _U(_read_uint32(source.words, max(p, 0)))
    k = np.int64(entry) >> 48
    frequency = (entry >> _U(24)) & _MASK24
    rest = v - (entry & _MASK24)
    if rest >= frequency:  # of a later symbol
        lowest, row = np.int64(_read_int32(source.low, t)), t * source.symbols
        a = _search(v, source.cumulative, row + k - lowest)
        start = _U(_read_uint32(source.cumulative, a))
        frequency = _U(_read_uint32(source.cumulative, a + 1)) - start
        rest = v - start
        a -= row
        k = ESCAPE if a == _read_int32(source.escape, t) else lowest + a
    x = frequency * (x >> _U(24)) + rest
    short = _U(1) if x < _LIMIT and p >= begin else _U(0)  # not a jump: nobody can foretell it
    x = (x << (short << _U(5))) | (word & (_U(0) - short))
    p -= np.int64(short)
    if k == ESCAPE:
        lowest = np.int64(_read_int32(source.low, t))
        highest = lowest + _read_int32(source.escape, t) - 1
        k, x, p = _pop_rest(x, p, begin, source.words, lowest, highest, source.shift)
    elif source.shift > 0:  # at most RAW_CHUNK bits: `_pop_raw` in one step
        bits = _U(24 - source.shift)
        v = x & _MASK24
        k = (k << source.shift) | np.int64(v >> bits)
        x = ((x >> _U(24)) << bits) + (v & ((_U(1) << bits) - _U(1)))
        if x < _LIMIT and p >= begin:
            x = (x << _U(32)) | _U(_read_uint32(source.words, p))
            p -= 1
    digest = (digest ^ _U(k)) * _PRIME
    s = _read_int64(source.next_state, 2 * s + (k & 1))
    return x, p, s, digest, k, _grid_value(k, q, source.spacing, source.labelling)


@njit(cache=True, nogil=True)
def _choose_tables(row_codes, code, classes, numbers, shift, out):
    """Tables of the weights of a column."""
    if len(numbers) == 0:
        for i in range(len(out)):
            out[i] = table_of(np.int32(row_codes[i]) + np.int32(code), np.int32(classes), shift)
        return
    raw = 1 if shift > 0 else 0
    for i in range(len(out)):
        at = np.int64(row_codes[i]) + np.int64(code)
        out[i] = numbers[at] | raw if at >= 0 else -1


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
    numbers,
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
    dead ones; numbers: empty, or int32, the table of every sum of codes (int32 then, negative for dead ones), for the quantizer 0; row_steps, column_steps: float32 (rows,) and (columns,), the latter factors of the former.
    """
    source = open_source(words, tables, next_state, shift, labelling)
    x, p = _start(words, begin, end)
    s, digest = np.int64(0), _U(0)
    chosen = np.empty(bottom - top, np.int32)
    for j in range(left, right):
        by = column_steps[j]
        _choose_tables(row_codes[top:bottom], column_codes[j], classes, numbers, shift, chosen)
        for i in range(top, bottom):
            table, value = np.int64(chosen[i - top]), np.float32(0)
            if table >= 0:
                x, p, s, digest, _, value = decode_weight(x, p, begin, s, digest, table, source)
            plane[i, j] = value * row_steps[i] * by
    return x, p - begin + 1, digest


@njit(cache=True, nogil=True)
def _place_strip(strip, row_steps, column_steps, out):
    """Values in steps, a row to each column of the plane, to their part of the plane, float32."""
    height, width = out.shape
    for j in range(width):
        values, by = strip[j], column_steps[j]
        for i in range(height):
            values[i] = values[i] * row_steps[i] * by
    for i in range(height):
        for j in range(width):
            out[i, j] = strip[j, i]


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
    """Four CTUs of one shape side by side in one thread: their dependency chains overlap.

    begin, end, rows, columns: int64 (4,), words and corner of each.  state, left_over, digests: (4,) results as of `decode_tile`.
    """
    source = open_source(words, tables, next_state, shift, labelling)
    b0, b1, b2, b3 = begin[0], begin[1], begin[2], begin[3]
    x0, p0 = _start(words, b0, end[0])
    x1, p1 = _start(words, b1, end[1])
    x2, p2 = _start(words, b2, end[2])
    x3, p3 = _start(words, b3, end[3])
    d0 = d1 = d2 = d3 = _U(0)
    s0 = s1 = s2 = s3 = np.int64(0)
    chosen, strips = np.empty((4, height), np.int32), np.empty((4, min(width, STRIP), height), np.float32)
    for first in range(0, width, STRIP):
        wide = min(width - first, STRIP)
        for j in range(wide):
            for m in range(4):
                code = column_codes[columns[m] + first + j]
                _choose_tables(row_codes[rows[m] : rows[m] + height], code, classes, numbers, shift, chosen[m])
            for i in range(height):
                v0 = v1 = v2 = v3 = np.float32(0)
                table = np.int64(chosen[0, i])
                if table >= 0:
                    x0, p0, s0, d0, _, v0 = decode_weight(x0, p0, b0, s0, d0, table, source)
                strips[0, j, i] = v0
                table = np.int64(chosen[1, i])
                if table >= 0:
                    x1, p1, s1, d1, _, v1 = decode_weight(x1, p1, b1, s1, d1, table, source)
                strips[1, j, i] = v1
                table = np.int64(chosen[2, i])
                if table >= 0:
                    x2, p2, s2, d2, _, v2 = decode_weight(x2, p2, b2, s2, d2, table, source)
                strips[2, j, i] = v2
                table = np.int64(chosen[3, i])
                if table >= 0:
                    x3, p3, s3, d3, _, v3 = decode_weight(x3, p3, b3, s3, d3, table, source)
                strips[3, j, i] = v3
        for m in range(4):
            down, across = slice(rows[m], rows[m] + height), slice(columns[m] + first, columns[m] + first + wide)
            _place_strip(strips[m], row_steps[down], column_steps[across], plane[down, across])
    state[0], state[1], state[2], state[3] = x0, x1, x2, x3
    left_over[0], left_over[1], left_over[2], left_over[3] = p0 - b0 + 1, p1 - b1 + 1, p2 - b2 + 1, p3 - b3 + 1
    digests[0], digests[1], digests[2], digests[3] = d0, d1, d2, d3
