"""Kernels of levels whose tables a network chooses: the network itself, and what an encoder asks."""

from __future__ import annotations

import numpy as np
from numba import njit

from .streams import _U, _start, decode_weight, open_source, table_of

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
def price_levels(levels, which, tables, shift, bits):
    """Bits of every level under its table, escapes and bypass bits included: float32 (n,)."""
    cumulative, _, low, escape = tables
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
    """The table of every level of a CTU: int32 (n,); places and numbers as of `kernels.streams.decode_tile`."""
    raw = 1 if shift > 0 else 0
    s, n = np.int64(0), 0
    for j in range(left, right):
        for i in range(top, bottom):
            c = np.int64(row_places[i]) + np.int64(column_places[j])
            if c < 0:
                continue
            which[n] = numbers[c] | (s & 1) | raw
            s = next_state[s, np.int64(levels[n]) & 1]
            n += 1


@njit(cache=True, nogil=True)
def read_levels(words, begin, end, top, bottom, left, right, row_codes, column_codes, classes, tables, next_state, shift, levels):
    """Levels of a CTU that is coded with the table of (scale index, quantizer): int32 (n,) in scan order, scratch of the whole CTU.  Returns
    their number."""
    source = open_source(words, tables, next_state, shift, 0)
    x, p = _start(words, begin, end)
    s, digest, n = np.int64(0), _U(0), 0
    for j in range(left, right):
        for i in range(top, bottom):
            table = table_of(np.int64(row_codes[i]) + np.int64(column_codes[j]), classes, shift)
            if table >= 0:
                x, p, s, digest, k, _ = decode_weight(x, p, begin, s, digest, table, source)
                levels[n] = k
                n += 1
    return n
