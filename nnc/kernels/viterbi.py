"""Rate-distortion Viterbi search on the trellis of dependent scalar quantization.

Minimises `sum (x - value)^2 + lambda * bits(level | class, quantizer)` over all paths of the state machine.  The predecessors of
state `t` are `2 * (t ^ h0' * z0 ^ h1' * z1) + z0` where `z0 = (t >= S/2)` is the quantizer of *both* predecessors and `z1`
the parity of the level, so one comparison per state and weight decides, and one bit per state and weight is stored.

One sequence is cut into LANES runs that are searched side by side, one lane of a vector register each.  A lane warms its path
metrics up on the weights before its run; trace-back then runs through the lanes from last to first and enters each lane in the
state in which the following one begins, so the path is a valid one.  The result does not depend on threads.
"""

from __future__ import annotations

import numpy as np
from numba import njit

LANES = 32
_FAR = np.float32(1e30)


@njit(cache=True, nogil=True, inline="always")
def _bracket(x, q, labelling):
    """Largest level whose value is not above `x` (plain), or whose magnitude is not above `|x|` (sign-symmetric); and the rest."""
    if labelling == 0:
        v = (x - np.float32(q)) * np.float32(0.5)
        f = np.floor(v)
        return np.int64(f), np.float32(2) * (v - f), np.float32(2)
    a = abs(x)
    if q == 0:
        v = a * np.float32(0.5)
        f = np.floor(v)
        return np.int64(f), np.float32(2) * (v - f), np.float32(2)
    v = (a + np.float32(1)) * np.float32(0.5)
    f = np.floor(v)
    if f < 1:  # between 0 and 1: the odd grid has zero too
        return np.int64(0), a, np.float32(1)
    return np.int64(f), np.float32(2) * (v - f), np.float32(2)


@njit(cache=True, nogil=True)
def _price_branches(x, classes, n, rate, low, shift, labelling, worth, floors, branch):
    """Costs of the two neighbours of every weight in either quantizer: branch float32 (4, n), 2 * quantizer + parity of the level; floors
    int32 (2, n), the lower of the levels as of `_bracket`; worth: float32, what a squared error of one is worth in rate."""
    last_column = rate.shape[1] - 1
    for q in range(2):
        floor, even, odd = floors[q], branch[2 * q], branch[2 * q + 1]
        for i in range(n):  # loops without conditions and loops without arithmetic: the former are vector operations
            k, d, gap = _bracket(x[i], q, labelling)
            e = gap - d
            floor[i] = k
            even[i] = d * d * worth
            odd[i] = e * e * worth
        for i in range(n):
            k = np.int64(floor[i])
            k1 = k + 1
            swapped = (k & 1) == 1
            if labelling == 1 and x[i] < 0:
                k = -k
                k1 = -k1
            of_table = rate[2 * np.int64(classes[i]) + (q if shift == 0 else 1)]
            a = even[i] + of_table[min(max((k >> shift) - low, 0), last_column)]
            b = odd[i] + of_table[min(max((k1 >> shift) - low, 0), last_column)]
            even[i] = b if swapped else a
            odd[i] = a if swapped else b


@njit(cache=True, nogil=True)
def search_trellis(x, classes, rate, low, shift, labelling, pred, warm, out):
    """Best levels for the sequence `x`.

    x: float32 (n,), weights in units of the step.  classes: uint8 (n,), scale index of each (none is 0).  rate: float32 (tables,
    width), lambda *
    bits of level `low + column`, table = 2 * class + quantizer, the outer columns standing for everything beyond.  shift: bypass
    bits, the table is then that of quantizer 1 and the level is shifted.  pred: int64 (S, 2).  out: int32 (n,), the levels.
    """
    n = x.shape[0]
    states = pred.shape[0]
    half = states // 2
    words = (states + 31) // 32
    floors, priced = np.empty((2, n), np.int32), np.empty((4, n), np.float32)
    _price_branches(x, classes, n, rate, low, shift, labelling, np.float32(1), floors, priced)
    run = (n + LANES - 1) // LANES
    cost = np.zeros((states, LANES), np.float32)
    new = np.zeros((states, LANES), np.float32)
    branch = np.zeros((4, LANES), np.float32)
    decisions = np.zeros((run, words, LANES), np.uint32)
    for i in range(-warm, run):
        for lane in range(LANES):
            p = lane * run + i
            if p <= 0:  # the sequence starts in state 0, whatever was searched before
                if i <= 0:
                    for t in range(states):
                        cost[t, lane] = _FAR
                    cost[0, lane] = 0
                p = 0
            elif p >= n:  # beyond the end every path is free, so the best end of the sequence stays the best
                for z in range(4):
                    branch[z, lane] = 0
                continue
            for z in range(4):
                branch[z, lane] = priced[z, p]
        if i >= 0:
            for t in range(states):
                pa = pred[t, 0]
                pb = pred[t, 1]
                z = 2 if t >= half else 0
                bit = np.uint32(1 << (t & 31))
                for lane in range(LANES):
                    a = cost[pa, lane] + branch[z, lane]
                    b = cost[pb, lane] + branch[z + 1, lane]
                    new[t, lane] = b if b < a else a
                    decisions[i, t >> 5, lane] |= bit if b < a else np.uint32(0)
        else:
            for t in range(states):
                pa = pred[t, 0]
                pb = pred[t, 1]
                z = 2 if t >= half else 0
                for lane in range(LANES):
                    a = cost[pa, lane] + branch[z, lane]
                    b = cost[pb, lane] + branch[z + 1, lane]
                    new[t, lane] = b if b < a else a
        cost, new = new, cost
        if (i & 15) == 15:  # keep the metrics small: float32 has 24 bits
            for lane in range(LANES):
                branch[0, lane] = cost[0, lane]
            for t in range(states):
                for lane in range(LANES):
                    cost[t, lane] -= branch[0, lane]
    last = (n - 1) // run
    s = np.int64(0)
    best = np.float32(np.inf)
    for t in range(states):
        if cost[t, last] < best:
            best = cost[t, last]
            s = t
    for lane in range(last, -1, -1):
        for i in range(run - 1, -1, -1):
            z1 = np.int64((decisions[i, s >> 5, lane] >> np.uint32(s & 31)) & np.uint32(1))
            p = lane * run + i
            if p < n:
                k = np.int64(floors[1 if s >= half else 0, p])
                k += (k & 1) ^ z1
                out[p] = -k if labelling == 1 and x[p] < 0 else k
            s = pred[s, z1]


@njit(cache=True, nogil=True)
def search_scalar(x, classes, rate, low, shift, worth, out):
    """Rate-distortion optimal levels of the uniform quantizer (one state): the two neighbours of `x` and zero. Arguments as
    above; worth: float32, what a squared error of one is worth in rate.
    """
    last_column = rate.shape[1] - 1
    for i in range(x.shape[0]):
        v = x[i]
        f = np.floor(v)
        k = np.int64(f)
        table = 2 * np.int64(classes[i]) + (1 if shift > 0 else 0)
        of_table = rate[table]
        d, e = v - np.float32(k), v - np.float32(k + 1)
        a = d * d * worth + of_table[min(max((k >> shift) - low, 0), last_column)]
        b = e * e * worth + of_table[min(max(((k + 1) >> shift) - low, 0), last_column)]
        z = v * v * worth + of_table[min(max(-low, 0), last_column)]
        k = k + 1 if b < a else k  # not jumps: nobody can foretell them
        a = b if b < a else a
        out[i] = 0 if z < a else k
