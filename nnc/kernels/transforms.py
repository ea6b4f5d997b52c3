"""Kernels over decoded planes: change of basis in groups of columns, and memories of columns."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def transform_groups(plane, matrix, stride, out):
    """out[.., a] = sum over i, rising, of plane[.., i] * matrix[i, a] in every group of columns `stride` apart, in the precision of the
    arguments; plane, out: (rows, columns), columns a multiple of stride * n; matrix: (n, n)."""
    n = matrix.shape[0]
    rows, columns = plane.shape
    for i in range(rows):
        for start in range(0, columns, n * stride):
            for first in range(start, start + stride):
                for a in range(n):
                    total = plane[i, first] * matrix[0, a]
                    for b in range(1, n):
                        total += plane[i, first + b * stride] * matrix[b, a]
                    out[i, first + a * stride] = total


@njit(cache=True, nogil=True)
def remove_memories(plane, labels, confidence, floor, out):
    """out = plane - the predictions that `add_memories` would add if nothing were quantized, over the whole plane."""
    rows, columns = plane.shape
    last = 0
    for j in range(columns):
        last = max(last, labels[j])
    memories = np.zeros((last + 1, rows), np.float32)
    seen = np.zeros(last + 1, np.int64)
    for j in range(columns):
        label = labels[j]
        memory = memories[label]
        seen[label] += 1
        part = max(np.float32(1) / np.float32(seen[label]), floor) if label > 0 else np.float32(0)
        for i in range(rows):
            out[i, j] = plane[i, j] - confidence[j] * memory[i]
            memory[i] += part * (plane[i, j] - memory[i])


@njit(cache=True, nogil=True)
def add_memories(plane, top, bottom, left, right, labels, confidence, floor):
    """Add to the residuals in plane[top:bottom, left:right], float32, the predictions of their columns, from left to right.

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
        memory = memories[label]
        seen[label] += 1
        part = max(np.float32(1) / np.float32(seen[label]), floor)
        trust = confidence[j]
        for i in range(top, bottom):
            value = plane[i, j] + trust * memory[i - top]
            plane[i, j] = value
            memory[i - top] += part * (value - memory[i - top])
