"""Kernels of the encoder over the levels of a CTU: to words, to counts, and back to values as the decoder rebuilds them."""

from __future__ import annotations

import numpy as np
from numba import njit

from .planes import STRIP, _add_codes
from .streams import _PRIME, _U, DEAD, RAW_CHUNK, _grid_value

_MASK32 = np.uint64(0xFFFFFFFF)


@njit(cache=True, nogil=True)
def _push(x, n, words, start, frequency):
    if (x >> _U(40)) >= frequency:
        words[n] = np.uint32(x & _MASK32)
        n += 1
        x >>= _U(32)
    return ((x // frequency) << _U(24)) + x % frequency + start, n


@njit(cache=True, nogil=True)
def _push_raw(x, n, words, value, bits):
    """Inverse of `_pop_raw`: the coder is a stack, so the least significant chunk goes first."""
    tail = bits % RAW_CHUNK
    while bits > 0:
        chunk = tail if tail > 0 else RAW_CHUNK
        tail = 0
        frequency = _U(1) << _U(24 - chunk)
        x, n = _push(x, n, words, _U(value & ((1 << chunk) - 1)) * frequency, frequency)
        value >>= chunk
        bits -= chunk
    return x, n


@njit(cache=True, nogil=True)
def _sums(next_state):
    """What an odd state and an odd level add to half the state before, modulo two: the machine of quantize/trellis.py, without waiting for
    its table."""
    return next_state[1 if next_state.shape[0] > 1 else 0, 0], next_state[0, 1]


@njit(cache=True, nogil=True)
def encode_tile(levels, codes, tables, next_state, shift, words):
    """Encode one CTU.  levels: int32 (n,) in scan order; codes: uint8 (n,) scale index of each, never 0; words: uint32 scratch of
    3 n + 4.

    Returns (number of words, digest)."""
    x, count, digest = push_tile(levels, codes, tables, next_state, shift, words, _U(0), 0)
    return end_words(x, words, count), digest


@njit(cache=True, nogil=True)
def end_words(x, words, count):
    """Add the state of a coder to its words; returns their number."""
    while x > 0:
        words[count] = np.uint32(x & _MASK32)
        count += 1
        x >>= _U(32)
    return count


@njit(cache=True, nogil=True)
def push_tile(levels, codes, tables, next_state, shift, words, x, count):
    """Push one CTU onto a coder with the state x and so many words; the rest as of `encode_tile`.

    Returns (state, number of words, digest)."""
    n = levels.shape[0]
    which = np.empty(n, np.int32)
    s = np.int64(0)
    by_state, by_level = _sums(next_state)
    digest = _U(0)
    for i in range(n):
        k = np.int64(levels[i])
        which[i] = 2 * np.int64(codes[i]) + ((s & 1) if shift == 0 else 1)
        digest = (digest ^ _U(k)) * _PRIME
        s = (s >> 1) ^ (-(s & 1) & by_state) ^ (-(k & 1) & by_level)
    x, count = push_levels(levels, which, tables, shift, words, x, count)
    return x, count, digest


@njit(cache=True, nogil=True)
def push_levels(levels, which, tables, shift, words, x, count):
    """Push the levels of one CTU onto a coder.  levels, which: int32 (n,) in scan order, the latter tables.  Returns (state, number of words)."""
    cumulative, _, low, escape = tables
    for i in range(levels.shape[0] - 1, -1, -1):
        k = np.int64(levels[i])
        table = which[i]
        if shift > 0:
            x, count = _push_raw(x, count, words, k & ((1 << shift) - 1), shift)
            k >>= shift
        a = k - low[table]
        last = np.int64(escape[table])
        if a < 0 or a >= last:
            side = 1 if a < 0 else 0
            excess = (-1 - a if side else a - last) + 1
            length = 0
            while (excess >> (length + 1)) > 0:
                length += 1
            x, count = _push_raw(x, count, words, excess & ((1 << length) - 1), length)
            x, count = _push_raw(x, count, words, length, 5)
            x, count = _push_raw(x, count, words, side, 1)
            a = last
        start = _U(cumulative[table, a])
        frequency = _U(cumulative[table, a + 1]) - start
        if (x >> _U(40)) >= frequency:  # `_push`, without a function that takes an array
            words[count] = np.uint32(x & _MASK32)
            count += 1
            x >>= _U(32)
        x = ((x // frequency) << _U(24)) + x % frequency + start
    return x, count


@njit(cache=True, nogil=True)
def count_levels(levels, codes, next_state, shift, low, counts):
    """Add the levels of one CTU to `counts` int64 (tables, width); column = level - low, clipped at both ends."""
    s = np.int64(0)
    by_state, by_level = _sums(next_state)
    last = counts.shape[1] - 1
    for i in range(levels.shape[0]):
        k = np.int64(levels[i])
        table = 2 * np.int64(codes[i]) + ((s & 1) if shift == 0 else 1)
        counts[table, min(max((k >> shift) - low, 0), last)] += 1
        s = (s >> 1) ^ (-(s & 1) & by_state) ^ (-(k & 1) & by_level)


@njit(cache=True)  # so short that to let other threads run would take longer
def price_counts(counts, used, bits, further):
    """Bits of `counts`, int64 (tables, width), in the tables `used` of them, int64 (n,), with those that are `further` of `bits`, float32 (tables, width)."""
    total = 0.0
    for table in used:
        row, lengths = counts[table], bits[table + further]
        for column in range(len(row)):
            if row[column]:
                total += row[column] * np.float64(lengths[column])
    return total


@njit(cache=True, nogil=True)
def rebuild_levels(levels, position, next_state, labelling, row_steps, column_steps, values):
    """Write the values of a scan-ordered sequence of levels to `values` float32 (rows, columns), as the decoder rebuilds them.

    position: index in the plane of each; row_steps, column_steps: float32 (rows,) and (columns,)."""
    flat = values.reshape(-1)
    columns = values.shape[1]
    s = 0
    spacing = 1 if next_state.shape[0] == 1 else 2
    for i in range(levels.shape[0]):
        k = np.int64(levels[i])
        p = np.int64(position[i])
        i_row = p // columns
        flat[p] = _grid_value(k, s & 1, spacing, labelling) * row_steps[i_row] * column_steps[p - i_row * columns]
        s = next_state[s, k & 1]


@njit(cache=True, nogil=True)
def rebuild_tile(
    levels, top, bottom, left, right, row_codes, column_codes, cells, cut, next_state, labelling, row_steps, column_steps, values
):
    """The same for the levels of one CTU, without their positions; codes and cells as of `gather_tile`."""
    height = bottom - top
    strip = np.zeros((STRIP, height), np.float32)
    own, quantizers = np.empty(height, np.int16), np.zeros(height, np.uint8)
    of_rows, factors = row_codes[top:bottom], row_steps[top:bottom]
    s, n = np.int64(0), 0
    spacing = 1 if next_state.shape[0] == 1 else 2
    by_state, by_level = _sums(next_state)
    for first in range(left, right, STRIP):
        part = values[top:bottom, first : min(first + STRIP, right)]
        for j in range(part.shape[1]):
            column = first + j
            restored, by = strip[j], column_steps[column]
            if _add_codes(of_rows, column_codes[column], cells, cut, column, top, own) > DEAD:
                found = levels[n : n + height]
                if spacing > 1:
                    for i in range(height):
                        quantizers[i] = s & 1
                        s = (s >> 1) ^ (-(s & 1) & by_state) ^ (-(np.int64(found[i]) & 1) & by_level)
                for i in range(height):
                    restored[i] = _grid_value(np.int64(found[i]), np.int64(quantizers[i]), spacing, labelling)
                n += height
            else:
                for i in range(height):
                    restored[i] = 0
                    if own[i] > DEAD:
                        k = np.int64(levels[n])
                        restored[i] = _grid_value(k, s & 1, spacing, labelling)
                        s = next_state[s, k & 1]
                        n += 1
            for i in range(height):
                restored[i] = restored[i] * factors[i] * by
        for i in range(part.shape[0]):
            for j in range(part.shape[1]):
                part[i, j] = strip[j, i]


@njit(cache=True, nogil=True)
def replay_levels(levels, next_state, labelling, out):
    """Values in steps of a scan-ordered sequence of levels: float32 (n,), exact integers."""
    s = 0
    spacing = 1 if next_state.shape[0] == 1 else 2
    for i in range(levels.shape[0]):
        k = np.int64(levels[i])
        out[i] = _grid_value(k, s & 1, spacing, labelling)
        s = next_state[s, k & 1]


@njit(cache=True, nogil=True)
def price_codes(levels, codes, of_axis, next_state, shift, low, bits, reach, costs):
    """Add to `costs` float64 (number, 2 reach + 1) the bits of the levels of one CTU under the tables -reach..reach steps from their own.

    codes: uint8 (n,) scale indices; of_axis: int32 (n,), the row (or column) of each level; bits: float32 (tables, width), column = level - low."""
    s = np.int64(0)
    by_state, by_level = _sums(next_state)
    last, classes = bits.shape[1] - 1, bits.shape[0] // 2 - 1
    for i in range(levels.shape[0]):
        k = np.int64(levels[i])
        q = (s & 1) if shift == 0 else 1
        column = min(max((k >> shift) - low, 0), last)
        middle = np.int64(codes[i])
        at = of_axis[i]
        for d in range(-reach, reach + 1):
            costs[at, d + reach] += bits[2 * min(max(middle + d, 1), classes) + q, column]
        s = (s >> 1) ^ (-(s & 1) & by_state) ^ (-(k & 1) & by_level)
