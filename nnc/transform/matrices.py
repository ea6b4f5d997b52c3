"""Transforms of groups of columns by small matrices, which the file holds as integers.

A step (matrix M of size n, stride s) takes the columns of a plane in groups `j, j + s, .., j + (n - 1) s`; a decoder makes from the
coefficients c of a group the weights `w[a] = sum_i c[i] * M[i][a] / 128`.  The rows of M are basis vectors: of a cosine transform over an
axis of a kernel, a Karhunen-Loeve transform over all its taps, a Hadamard matrix over channels (TU partitions, US20220360778A1).  Any
matrix will do, an encoder uses its inverse, so 8 bits per entry lose nothing.
"""

from __future__ import annotations

import numpy as np

from ..bits import Reader, Writer
from ..errors import Corruption
from ..kernels.transforms import transform_groups

MAX_SIZE = 64
MAX_MATRICES = 256
UNIT = 128  # entries are multiples of 1 / UNIT


def write_matrix(matrix: np.ndarray, out: Writer) -> None:
    """An int8 (n, n) matrix, 2 <= n <= MAX_SIZE."""
    out.byte(len(matrix))
    out.raw(matrix.astype(np.int8).tobytes())


def read_matrix(data: Reader) -> np.ndarray:
    """int8 (n, n); Corruption for an impossible size."""
    size = data.byte("size of a matrix", MAX_SIZE)
    if size < 2:
        raise Corruption(f"a matrix of size {size}: the file is damaged")
    return np.frombuffer(data.raw(size * size, "matrix"), np.int8).reshape(size, size)


def apply_matrix(plane: np.ndarray, matrix: np.ndarray, stride: int) -> np.ndarray:
    """One step, float32 (rows, columns) to the same; float32 products and sums in the order of the format."""
    out = np.empty_like(plane)
    transform_groups(plane, matrix.astype(np.float32) / np.float32(UNIT), stride, out)
    return out
