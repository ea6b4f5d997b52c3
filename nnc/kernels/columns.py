"""Viterbi search down one column of a plane, from a given state on: for closed loops, in which the next column depends on this one.

The trellis and its costs are those of kernels/viterbi.py.  What branches cost is found for all weights first, in loops that are vector
operations; then the states follow one weight after the other, those of the usual trellis of eight states in registers.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .viterbi import _price_branches, search_scalar

_FAR = np.float32(1e30)


@njit(cache=True, nogil=True)
def _search_path(x, classes, n, rate, low, shift, labelling, worth, pred, start, scratch, out, quantizers):
    """`search_column` with a trellis, for the first `n` weights."""
    cost, new, before, floors, branch, decisions = scratch
    _price_branches(x, classes, n, rate, low, shift, labelling, worth, floors, branch)
    states = pred.shape[0]
    half = states // 2
    if states == 8:
        end = _run_eight(branch, n, start, decisions)
    else:
        end = _run_trellis(branch, n, start, cost, new, before[0], before[1], decisions)
    s = np.int64(end)
    for i in range(n - 1, -1, -1):
        z1 = np.int64(decisions[i, s])
        q = 1 if s >= half else 0
        k = np.int64(floors[q, i])
        k += (k & 1) ^ z1
        out[i] = -k if labelling == 1 and x[i] < 0 else k
        quantizers[i] = q
        s = np.int64(before[z1, s])
    return end


@njit(cache=True, nogil=True)
def _run_trellis(branch, n, start, cost, new, even, odd, decisions):
    """Forward pass of the search; even, odd: uint32 (S,), predecessors; decisions: uint8 (n, S), parity of the best level into every
    state.  Returns the best last state."""
    states = len(cost)
    half = states // 2
    cost[:] = _FAR
    cost[start] = 0
    for i in range(n):
        better = decisions[i]
        b0, b1, b2, b3 = branch[0, i], branch[1, i], branch[2, i], branch[3, i]
        for t in range(half):
            a = cost[even[t]] + b0
            b = cost[odd[t]] + b1
            better[t] = b < a
            new[t] = b if b < a else a
        for t in range(half, states):
            a = cost[even[t]] + b2
            b = cost[odd[t]] + b3
            better[t] = b < a
            new[t] = b if b < a else a
        cost, new = new, cost
        if (i & 15) == 15:  # keep the metrics small: float32 has 24 bits
            least = cost[0]
            for t in range(states):
                cost[t] -= least
    return np.int64(np.argmin(cost)) if n > 0 else np.int64(start)


@njit(cache=True, nogil=True)
def _run_eight(branch, n, start, decisions):
    """The same for eight states, whose metrics stay in registers."""
    far, zero = _FAR, np.float32(0)
    c0 = zero if start == 0 else far
    c1 = zero if start == 1 else far
    c2 = zero if start == 2 else far
    c3 = zero if start == 3 else far
    c4 = zero if start == 4 else far
    c5 = zero if start == 5 else far
    c6 = zero if start == 6 else far
    c7 = zero if start == 7 else far
    for i in range(n):
        b0, b1, b2, b3 = branch[0, i], branch[1, i], branch[2, i], branch[3, i]
        better = decisions[i]
        a0, o0 = c0 + b0, c4 + b1
        a1, o1 = c2 + b0, c6 + b1
        a2, o2 = c4 + b0, c0 + b1
        a3, o3 = c6 + b0, c2 + b1
        a4, o4 = c3 + b2, c7 + b3
        a5, o5 = c1 + b2, c5 + b3
        a6, o6 = c7 + b2, c3 + b3
        a7, o7 = c5 + b2, c1 + b3
        better[0] = o0 < a0
        better[1] = o1 < a1
        better[2] = o2 < a2
        better[3] = o3 < a3
        better[4] = o4 < a4
        better[5] = o5 < a5
        better[6] = o6 < a6
        better[7] = o7 < a7
        c0 = o0 if o0 < a0 else a0
        c1 = o1 if o1 < a1 else a1
        c2 = o2 if o2 < a2 else a2
        c3 = o3 if o3 < a3 else a3
        c4 = o4 if o4 < a4 else a4
        c5 = o5 if o5 < a5 else a5
        c6 = o6 if o6 < a6 else a6
        c7 = o7 if o7 < a7 else a7
        if (i & 15) == 15:
            least = c0
            c0 -= least
            c1 -= least
            c2 -= least
            c3 -= least
            c4 -= least
            c5 -= least
            c6 -= least
            c7 -= least
    end, best = np.int64(start), np.float32(np.inf)
    if n > 0:
        for t, cost in enumerate((c0, c1, c2, c3, c4, c5, c6, c7)):
            if cost < best:
                end, best = t, cost
    return end


@njit(cache=True, nogil=True)
def make_scratch(pred, rows):
    """What `search_column` works in, for columns of so many rows."""
    states = pred.shape[0]
    return (
        np.empty(states, np.float32),
        np.empty(states, np.float32),
        np.ascontiguousarray(pred.T).astype(np.uint32),
        np.empty((2, rows), np.int32),
        np.empty((4, rows), np.float32),
        np.empty((rows, states), np.uint8),
    )


@njit(cache=True, nogil=True)
def search_column(x, classes, rate, low, shift, labelling, worth, pred, start, scratch, out, quantizers):
    """Best levels for all weights of `x` from state `start` on; returns the last state.

    worth: float32, what a squared error of one is worth in rate; scratch: of `make_scratch`; out: int32 (n,), the levels; quantizers: uint8 (n,), those of the levels, not touched if there is one state.  Other
    arguments as of `search_trellis`."""
    if pred.shape[0] > 1:
        return _search_path(x, classes, len(x), rate, low, shift, labelling, worth, pred, start, scratch, out, quantizers)
    search_scalar(x, classes, rate, low, shift, worth, out)
    return start
