"""Kernels of the search for trees: statistics of the cells of a plane, and trees from the choices at every node.  Encoder only."""

from __future__ import annotations

import numpy as np
from numba import njit

from .streams import DEAD, _grid_value
from .trees import STACK, _sides

_SKIP = -64


@njit(cache=True, nogil=True)
def cell_moments(plane, by_row, by_column, sums, squares, numbers):
    """Add |weight * by_row * by_column|, its square and the number of weights to the float64 arrays of the cells; factors 0 mean that a
    weight is not coded."""
    for i in range(plane.shape[0]):
        if by_row[i] == 0:
            continue
        for j in range(plane.shape[1]):
            if by_column[j] != 0:
                v = abs(np.float64(plane[i, j]) * by_row[i] * by_column[j])
                sums[i >> 3, j >> 3] += v
                squares[i >> 3, j >> 3] += v * v
                numbers[i >> 3, j >> 3] += 1


@njit(cache=True, nogil=True)
def place_levels(levels, position, next_state, out_levels, out_quantizers):
    """Spread the levels of a CTU, int32 in scan order, over int32 and uint8 planes: level and quantizer of every weight."""
    flat_levels, flat_quantizers = out_levels.reshape(-1), out_quantizers.reshape(-1)
    s = np.int64(0)
    for n in range(len(levels)):
        flat_levels[position[n]] = levels[n]
        flat_quantizers[position[n]] = s & 1
        s = next_state[s, levels[n] & 1]


@njit(cache=True, nogil=True)
def cell_costs(
    plane,
    levels,
    quantizers,
    row_codes,
    column_codes,
    by_row,
    by_column,
    spacing,
    labelling,
    shift,
    low,
    bits,
    first,
    least,
    costs,
    energy,
):
    """Bits of the levels of every cell under every code, and what is lost if they are skipped.

    levels int32, quantizers uint8: of all weights.  row_codes, column_codes: int16 without clipping; bits: float32 (2, levels from `low` on,
    scale indices from `least` on) by quantizer, the tables of the ends repeated beyond them.  costs: float32 (cells down, cells across,
    codes from `first` on), to be filled; energy: float32 (cells down, cells across), squares of the weights less those of their errors,
    in steps.
    """
    codes = costs.shape[2]
    columns = bits.shape[1]
    most = bits.shape[2] - codes
    costs[:] = 0
    energy[:] = 0
    for i in range(plane.shape[0]):
        for j in range(plane.shape[1]):
            c = np.int64(row_codes[i]) + np.int64(column_codes[j])
            if c <= DEAD:
                continue
            x = plane[i, j] * by_row[i] * by_column[j]
            k, q = np.int64(levels[i, j]), np.int64(quantizers[i, j])
            e = x - _grid_value(k, q, spacing, labelling)
            row, column = i >> 3, j >> 3
            energy[row, column] += x * x - e * e
            start = min(max(c + first - least, 0), most)
            of_level = bits[q, min(max((k >> shift) - low, 0), columns - 1)]
            cost = costs[row, column]
            for o in range(codes):
                cost[o] += of_level[start + o]


@njit(cache=True, nogil=True)
def count_cells(levels, quantizers, row_codes, column_codes, cells, classes, shift, low, counts):
    """Add the levels of a plane to int64 counts (tables, width), with the scale indices of a field of codes (cells, -1000 for those that are
    skipped)."""
    last = counts.shape[1] - 1
    raw = 1 if shift > 0 else 0
    for i in range(levels.shape[0]):
        for j in range(levels.shape[1]):
            c = np.int64(row_codes[i]) + np.int64(column_codes[j]) + np.int64(cells[i >> 3, j >> 3])
            if c > DEAD:
                c = min(max(c, 1), classes)
                k = np.int64(levels[i, j]) >> shift
                counts[2 * c + (np.int64(quantizers[i, j]) | raw), min(max(k - low, 0), last)] += 1


@njit(cache=True, nogil=True)
def list_nodes(high, wide, kinds, codes, starts, widths, splits, leaves):
    """The tree of a CTU of `high` x `wide` cells in the order of the walk: (nodes, leaves).

    kinds uint8, codes int16: choices at all nodes, flat; those of the nodes of 2^a x 2^b cells begin at starts[a, b], widths[a, b] in a
    row.  splits uint8, leaves int16: to be filled.
    """
    stack = np.empty((STACK, 4), np.int64)
    stack[0, 0], stack[0, 1], stack[0, 2], stack[0, 3] = 0, high, 0, wide
    depth = 1
    nodes = found = 0
    while depth > 0:
        depth -= 1
        top, bottom, left, right = stack[depth, 0], stack[depth, 1], stack[depth, 2], stack[depth, 3]
        a, b = _sides(bottom - top), _sides(right - left)
        place = starts[a, b] + (top >> a) * widths[a, b] + (left >> b)
        kind = kinds[place]
        splits[nodes] = kind
        nodes += 1
        if kind == 0:
            leaves[found] = codes[place]
            found += 1
            continue
        across = top + (1 << max(a - 1, 0)) if kind != 3 else bottom
        down = left + (1 << max(b - 1, 0)) if kind != 2 else right
        for part in range(3, -1, -1):
            first_row, last_row = (top, across) if part < 2 else (across, bottom)
            first, last = (left, down) if part % 2 == 0 else (down, right)
            if first_row < last_row and first < last:
                stack[depth, 0], stack[depth, 1], stack[depth, 2], stack[depth, 3] = first_row, last_row, first, last
                depth += 1
    return nodes, found
