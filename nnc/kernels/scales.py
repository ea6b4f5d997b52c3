"""Kernels that choose scale codes: bits of rows or columns under each scale index.  So short that to let other threads run would take longer."""

from __future__ import annotations

from numba import njit


@njit(cache=True)
def fill_costs(index, moved, table, weights, first, cost):
    """cost[i, v]: bits of `weights` weights of the real scale index index[i] under the scale index first + v - moved[i], clipped.

    index: float64 (n,), 1..classes; moved: int64 (n,); table: float64 (classes + 1, classes), bits of a weight of the index of the row under that
    of the column, 1..classes, between which lines are drawn; cost: float64 (n, values)."""
    classes = table.shape[1]
    for i in range(len(index)):
        below = min(int(index[i]), classes - 1)
        part = index[i] - below
        low, high, mine = table[below], table[below + 1], cost[i]
        for v in range(cost.shape[1]):
            at = min(max(first + v - moved[i], 1), classes) - 1
            mine[v] = weights * (low[at] + part * (high[at] - low[at]))


@njit(cache=True)
def choose_cheapest(cost, side, first, chosen):
    """chosen[i] = first + v with the least cost[i, v] + side[v], the first of equal ones; returns the sum of their costs without `side`."""
    total = 0.0
    for i in range(len(chosen)):
        mine, best = cost[i], 0
        least = mine[0] + side[0]
        for v in range(1, len(side)):
            bits = mine[v] + side[v]
            if bits < least:
                least, best = bits, v
        chosen[i] = first + best
        total += mine[best]
    return total
