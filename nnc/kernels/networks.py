"""Kernels of levels whose tables a network chooses: the network itself, encoding with given tables, and what an encoder asks.  A table number
counts in the bank of entropy.fine."""

from __future__ import annotations

import numpy as np
from numba import njit

from .streams import _LIMIT, _MASK24, _U, DEAD, _pop_bypass, _pop_rest, _start
from .words import _MASK32, _push_raw

_RANGE = 512
_POINT = 52  # of the reciprocals


@njit(cache=True, nogil=True)
def forward(full, u, sums, inputs, sizes, kernels, biases, divisors, reciprocals, tables):
    """One pass.  full: int32, all inputs; u, sums: int32 (64,) scratch.  The outputs are u[0] and u[1]."""
    for i in range(sizes[0]):
        u[i] = full[inputs[i]]
    for layer in range(sizes.shape[0] - 1):
        wide, high = sizes[layer], sizes[layer + 1]
        for o in range(high):
            a = np.int32(0)
            for i in range(wide):
                a = np.int32(a + u[i] * kernels[layer, o, i])
            sums[o] = a + biases[layer, o]
        for o in range(high):
            c = divisors[layer, o]
            cut = min(max(np.int64(sums[o]), -_RANGE * c), (_RANGE - 1) * c)
            v = ((2 * cut + c + 2 * _RANGE * c) * reciprocals[layer, o]) >> _POINT  # the quotient and 512, exactly
            u[o] = tables[layer, v]


@njit(cache=True, nogil=True)
def run_network(values, network, outputs):
    """values: uint8 (n, inputs of the kind); outputs: int32 (n, 2)."""
    inputs, sizes, kernels, biases, divisors, reciprocals, tables = network
    full = np.empty(values.shape[1], np.int32)
    u, sums = np.empty(64, np.int32), np.empty(64, np.int32)
    for n in range(values.shape[0]):
        for i in range(values.shape[1]):
            full[i] = values[n, i]
        forward(full, u, sums, inputs, sizes, kernels, biases, divisors, reciprocals, tables)
        outputs[n, 0], outputs[n, 1] = u[0], u[1]


@njit(cache=True, nogil=True)
def encode_numbered(levels, which, tables, shift, words):
    """Encode one CTU.  levels: int32 (n,) in scan order; which: int32 (n,), the table of each; words: uint32 scratch of 3 n + 4.  Returns the
    number of words."""
    cumulative, hint, low, escape = tables
    x = _U(0)
    count = 0
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
        if (x >> _U(40)) >= frequency:
            words[count] = np.uint32(x & _MASK32)
            count += 1
            x >>= _U(32)
        x = ((x // frequency) << _U(24)) + x % frequency + start
    while x > 0:
        words[count] = np.uint32(x & _MASK32)
        count += 1
        x >>= _U(32)
    return count


@njit(cache=True, nogil=True)
def price_levels(levels, which, tables, shift, bits):
    """Bits of every level under its table, escapes and bypass bits included: float32 (n,)."""
    cumulative, hint, low, escape = tables
    for i in range(levels.shape[0]):
        table = which[i]
        k = np.int64(levels[i]) >> shift
        last = np.int64(escape[table])
        a = k - low[table]
        spent = np.float64(shift)
        if a < 0 or a >= last:
            excess = (-1 - a if a < 0 else a - last) + 1
            spent += 6 + np.floor(np.log2(np.float64(excess)))
            a = last
        bits[i] = spent + 24 - np.log2(np.float64(cumulative[table, a + 1]) - np.float64(cumulative[table, a]))


@njit(cache=True, nogil=True)
def number_classes(levels, top, bottom, left, right, row_places, column_places, numbers, next_state, shift, which):
    """The table of every level of a CTU: int32 (n,); places and numbers as of `kernels.classes.decode_classes`."""
    raw = 1 if shift > 0 else 0
    s, n = np.int64(0), 0
    for j in range(left, right):
        for i in range(top, bottom):
            c = np.int64(row_places[i]) + np.int64(column_places[j])
            if c < 0:
                continue
            which[n] = numbers[c + ((s & 1) | raw)]
            s = next_state[s, np.int64(levels[n]) & 1]
            n += 1


@njit(cache=True, nogil=True)
def read_levels(words, begin, end, top, bottom, left, right, row_codes, column_codes, classes, tables, next_state, shift, levels):
    """Levels of a CTU that is coded with the table of (scale index, quantizer): int32 (n,) in scan order, scratch of the whole CTU.  Returns
    their number."""
    cumulative, hint, low, escape = tables
    x, p = _start(words, begin, end)
    raw = 1 if shift > 0 else 0
    s, n = np.int64(0), 0
    for j in range(left, right):
        for i in range(top, bottom):
            c = np.int64(row_codes[i]) + np.int64(column_codes[j])
            if c <= DEAD:
                continue
            t = 2 * min(max(c, 1), classes) + ((s & 1) | raw)
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
            levels[n] = k
            n += 1
            s = next_state[s, k & 1]
    return n
