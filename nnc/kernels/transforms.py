"""Kernels over decoded planes: change of basis in groups of columns, and memories of columns."""

from __future__ import annotations

import numpy as np
from numba import njit

GROUPS = 64


@njit(cache=True, nogil=True)
def transform_groups(plane, matrix, stride, out):
    """out[.., a] = sum over i, rising, of plane[.., i] * matrix[i, a] in every group of columns `stride` apart, in the precision of the
    arguments; plane, out: (rows, columns), columns a multiple of stride * n; matrix: (n, n).

    Groups lie side by side while they are worked on, so that the loops over them are vector operations."""
    n = matrix.shape[0]
    rows, columns = plane.shape
    groups = columns // n
    places = np.empty(groups, np.int64)  # of the first column of each
    for g in range(groups):
        places[g] = g // stride * (n * stride) + g % stride
    before, total = np.empty((n, GROUPS), plane.dtype), np.empty(GROUPS, plane.dtype)
    for i in range(rows):
        source, target = plane[i], out[i]
        for first in range(0, groups, GROUPS):
            at = places[first : first + GROUPS]
            for b in range(n):
                values = before[b]
                for g in range(len(at)):
                    values[g] = source[at[g] + b * stride]
            for a in range(n):
                for b in range(n):
                    values, factor = before[b], matrix[b, a]
                    if b == 0:
                        for g in range(len(at)):
                            total[g] = values[g] * factor
                    else:
                        for g in range(len(at)):
                            total[g] += values[g] * factor
                for g in range(len(at)):
                    target[at[g] + a * stride] = total[g]


# Columns are rows of an array here: what belongs together stands together, and the loops become vector operations.


@njit(cache=True, nogil=True)
def remove_memories(columns, labels, confidence, floor, out):
    """out = columns - the predictions that `add_memories` would add if nothing were quantized; float32 (columns, rows) both."""
    number, rows = columns.shape
    last = 0
    for j in range(number):
        last = max(last, labels[j])
    memories = np.zeros((last + 1, rows), np.float32)
    seen = np.zeros(last + 1, np.int64)
    for j in range(number):
        label = labels[j]
        memory, column, rest, trust = memories[label], columns[j], out[j], confidence[j]
        seen[label] += 1
        part = max(np.float32(1) / np.float32(seen[label]), floor) if label > 0 else np.float32(0)
        for i in range(rows):
            rest[i] = column[i] - trust * memory[i]
            memory[i] += part * (column[i] - memory[i])


@njit(cache=True, nogil=True)
def remove_centres(columns, labels, confidence, centres, out):
    """out = columns - the predictions that `add_centres` would add; float32 (columns, rows) both."""
    for j in range(len(labels)):
        centre, column, rest, trust = centres[labels[j]], columns[j], out[j], confidence[j]
        for i in range(len(column)):
            rest[i] = column[i] - trust * centre[i]


@njit(cache=True, nogil=True)
def add_centres(columns, top, bottom, left, right, labels, confidence, centres):
    """Add to the residuals of a CTU, rows top..bottom and columns left..right of the plane whose columns are the rows of `columns`, float32,
    their predictions.  centres: float32 (numbers, rows), zeros for label 0."""
    for j in range(left, right):
        if labels[j] > 0:
            centre, column, trust = centres[labels[j], top:bottom], columns[j, top:bottom], confidence[j]
            for i in range(bottom - top):
                column[i] += trust * centre[i]


@njit(cache=True, nogil=True)
def add_memories(columns, top, bottom, left, right, labels, confidence, floor):
    """Add to the residuals of a CTU, rows top..bottom and columns left..right of the plane whose columns are the rows of `columns`, float32,
    their predictions, from left to right.

    labels: int16 (columns,), number of the memory of each, 0 for none; confidence: float32 (columns,); floor: float32, least part of a
    new column in its memory."""
    last = 0
    for j in range(left, right):
        last = max(last, labels[j])
    memories = np.zeros((last + 1, bottom - top), np.float32)
    seen = np.zeros(last + 1, np.int64)
    for j in range(left, right):
        label = labels[j]
        if label == 0:
            continue
        memory, column, trust = memories[label], columns[j, top:bottom], confidence[j]
        seen[label] += 1
        part = max(np.float32(1) / np.float32(seen[label]), floor)
        for i in range(bottom - top):
            value = column[i] + trust * memory[i]
            column[i] = value
            memory[i] += part * (value - memory[i])
