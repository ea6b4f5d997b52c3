"""Section 11 of the page: memory, centres and transform."""
from __future__ import annotations

import numpy as np

from .records import Coding


def add_memory(plane: np.ndarray, coding: Coding, labels: list[int], codes: list[int]) -> np.ndarray:
    plane, limit = plane.copy(), coding.tools.memory.limit
    with np.errstate(all="ignore"):
        for top in range(0, coding.rows, coding.height):
            rows = slice(top, top + coding.height)
            for left in range(0, coding.columns, coding.width):
                memory: dict[int, np.ndarray] = {}
                seen: dict[int, int] = {}
                for j in range(left, min(left + coding.width, coding.columns)):
                    label = labels[j]
                    if label == 0:
                        continue
                    old = memory.get(label, np.zeros(len(plane[rows]), np.float32))
                    plane[rows, j] = plane[rows, j] + np.float32(16 + codes[j]) / np.float32(16) * old
                    seen[label] = seen.get(label, 0) + 1
                    part = np.float32(1) / np.float32(seen[label])
                    part = part if limit == 15 else max(part, np.float32(2.0**-limit))
                    memory[label] = old + part * (plane[rows, j] - old)
    return plane


def add_centres(plane: np.ndarray, centres: np.ndarray, labels: list[int], codes: list[int]) -> np.ndarray:
    plane = plane.copy()
    with np.errstate(all="ignore"):
        for j, label in enumerate(labels):
            if label > 0:
                plane[:, j] = plane[:, j] + np.float32(16 + codes[j]) / np.float32(16) * centres[:, label - 1]
    return plane


def transformed(plane: np.ndarray, matrix: list[list[int]], stride: int) -> np.ndarray:
    size, out = len(matrix), np.empty_like(plane)
    rows = np.array(matrix, np.float32) / np.float32(128)
    with np.errstate(all="ignore"):
        for first in range(plane.shape[1]):
            if first % (size * stride) >= stride:
                continue                                               # not the first of a group
            group = [first + i * stride for i in range(size)]
            for a in range(size):
                total = plane[:, group[0]] * rows[0, a]
                for i in range(1, size):
                    total = total + plane[:, group[i]] * rows[i, a]
                out[:, group[a]] = total
    return out
