"""Kernels of look-up networks: what runs is integers that are gathered, added, shifted and compared; products occur in addresses only.

Values lie in `(samples, channels, height, width)`; a layer of a chain of vectors has height and width 1.  A *line* is a row of an output
of a sample: lines do not depend on each other, so that threads that take ranges of them give the same bits in any number.
`split_values` belongs to the making of levels, where floats are at home.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def _gather(x, table, weights, bias, geometry, sample, group, row, column, sums):
    """The sums of one place of the output, of all outputs of a group: int (outputs,)."""
    strides, pads, steps, kernel = geometry
    depth, outputs = weights.shape[2], weights.shape[3]
    first = group * depth
    for o in range(outputs):
        sums[o] = bias[group * outputs + o]
    for i in range(kernel[0]):
        y = row * strides[0] - pads[0] + i * steps[0]
        if y < 0 or y >= x.shape[2]:
            continue  # a zero: its products are zeros
        for j in range(kernel[1]):
            z = column * strides[1] - pads[1] + j * steps[1]
            if z < 0 or z >= x.shape[3]:
                continue
            tap = i * kernel[1] + j
            c = 0
            while c + 4 <= depth:  # four products to a sum: it is read and written a quarter as often
                a, b = table[x[sample, first + c, y, z]], table[x[sample, first + c + 1, y, z]]
                d, e = table[x[sample, first + c + 2, y, z]], table[x[sample, first + c + 3, y, z]]
                p, q = weights[group, tap, c], weights[group, tap, c + 1]
                r, s = weights[group, tap, c + 2], weights[group, tap, c + 3]
                for o in range(outputs):
                    sums[o] += a[p[o]] + b[q[o]] + d[r[o]] + e[s[o]]
                c += 4
            while c < depth:
                a, p = table[x[sample, first + c, y, z]], weights[group, tap, c]
                for o in range(outputs):
                    sums[o] += a[p[o]]
                c += 1


@njit(cache=True, nogil=True)
def sum_lines(x, table, weights, bias, geometry, start, stop, out):
    """Sums of the lines start..stop: out[n, o, row, column] = bias[o] + sum table[x index, weight index].

    x: uint8 (N, C, H, W) indices of levels; table: int16 or int32 (levels, weights); weights: uint8 or uint16 (groups, taps, C / groups,
    outputs / groups) indices; bias: int32 or int64 (outputs,); geometry: (strides, pads before, dilations, kernel), pairs of int64;
    out: as bias (N, outputs, rows, columns)."""
    groups, outputs = weights.shape[0], weights.shape[3]
    rows, columns = out.shape[2], out.shape[3]
    sums = np.empty(outputs, out.dtype)
    for line in range(start, stop):
        sample, row = line // rows, line % rows
        for column in range(columns):
            for group in range(groups):
                _gather(x, table, weights, bias, geometry, sample, group, row, column, sums)
                for o in range(outputs):
                    out[sample, group * outputs + o, row, column] = sums[o]


@njit(cache=True, nogil=True)
def index_lines(x, table, weights, bias, geometry, shifts, activation, start, stop, out):
    """As `sum_lines`, then the entry `sum >> shift`, clipped, of the activation table.  shifts: int64 (outputs,); activation: uint8 (1 or
    outputs, steps); out: uint8."""
    groups, outputs = weights.shape[0], weights.shape[3]
    rows, columns = out.shape[2], out.shape[3]
    last = activation.shape[1] - 1
    own = activation.shape[0] > 1
    sums = np.empty(outputs, bias.dtype)
    for line in range(start, stop):
        sample, row = line // rows, line % rows
        for column in range(columns):
            for group in range(groups):
                _gather(x, table, weights, bias, geometry, sample, group, row, column, sums)
                for o in range(outputs):
                    channel = group * outputs + o
                    step = min(max(sums[o] >> shifts[channel], 0), last)
                    out[sample, channel, row, column] = activation[channel if own else 0, step]


@njit(cache=True, nogil=True)
def largest_lines(x, geometry, start, stop, out):
    """Lines of the largest index in a window; levels rise with their index.  x, out: uint8 (N, C, H, W)."""
    strides, pads, steps, kernel = geometry
    rows = out.shape[2]
    for line in range(start, stop):
        sample, row = line // rows, line % rows
        for channel in range(out.shape[1]):
            for column in range(out.shape[3]):
                largest = x.dtype.type(0)
                for i in range(kernel[0]):
                    y = row * strides[0] - pads[0] + i * steps[0]
                    if y < 0 or y >= x.shape[2]:
                        continue
                    for j in range(kernel[1]):
                        z = column * strides[1] - pads[1] + j * steps[1]
                        if 0 <= z < x.shape[3]:
                            largest = max(largest, x[sample, channel, y, z])
                out[sample, channel, row, column] = largest


@njit(cache=True, nogil=True)
def split_values(values, masses, number, costs, cuts):
    """The best division of ranked values into `number` runs, by the squared distance from the mean of each run, exactly (dynamic
    programming over runs, divided and conquered, as the best cut moves with the end: Wu, 1991).

    values, masses: float64 (n,); costs: float64 (2, n + 1) and cuts: int32 (number + 1, n + 1), for its use; the starts of the runs that
    end before `e` are followed from cuts[number, e]."""
    n = len(values)
    mass, moment, square = np.zeros(n + 1), np.zeros(n + 1), np.zeros(n + 1)
    for i in range(n):
        mass[i + 1] = mass[i] + masses[i]
        moment[i + 1] = moment[i] + masses[i] * values[i]
        square[i + 1] = square[i] + masses[i] * values[i] * values[i]
    costs[:] = np.inf
    costs[0, 0] = 0.0
    stack = np.empty((4 * 64, 4), np.int64)
    for run in range(1, number + 1):
        before, now = (run - 1) & 1, run & 1
        costs[now, :] = np.inf
        stack[0] = (run, n, run - 1, n - 1)
        depth = 1
        while depth:
            depth -= 1
            low, high, least, most = stack[depth, 0], stack[depth, 1], stack[depth, 2], stack[depth, 3]
            if low > high:
                continue
            end = (low + high) // 2
            best, place = np.inf, least
            for cut in range(least, min(most, end - 1) + 1):
                m, s = mass[end] - mass[cut], moment[end] - moment[cut]
                spread = square[end] - square[cut] - (s * s / m if m > 0 else 0.0)
                cost = costs[before, cut] + max(spread, 0.0)
                if cost < best:
                    best, place = cost, cut
            costs[now, end], cuts[run, end] = best, place
            stack[depth] = (low, end - 1, least, place)
            stack[depth + 1] = (end + 1, high, place, most)
            depth += 2


@njit(cache=True, nogil=True)
def nearest_levels(values, middles, out):
    """The number of middles below each value, and how many values are NaN.  values: float32 (n,); middles: float32, rising; out: uint8."""
    missing = 0
    for i in range(len(values)):
        value = values[i]
        if np.isnan(value):
            missing += 1
        low, high = 0, len(middles)
        while low < high:
            middle = (low + high) // 2
            if middles[middle] < value:
                low = middle + 1
            else:
                high = middle
        out[i] = low
    return missing
