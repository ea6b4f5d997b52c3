"""Permutations of outputs or inputs: hidden units of a network can be exchanged without any change to what it computes.

`order[i]` is the place in the reference that comes to place i.  Stored are the steps `(order[i] - order[i - 1] - 1) mod m`, in as
many byte planes as m needs, deflated: whatever stayed together is zeros, a random order takes little more than log2(m!) bits.
"""

from __future__ import annotations

from zlib import compress, decompressobj, error

import numpy as np

from ..errors import Corruption

MAX_LENGTH = 1 << 20  # of all permutations of a file together: they deflate to next to nothing


def encode_permutation(order: np.ndarray) -> bytes:
    """The bytes of a permutation of 0..m-1."""
    size = len(order)
    steps = (np.diff(np.asarray(order, np.int64), prepend=-1) - 1) % size
    planes = np.ascontiguousarray(steps.astype("<u4").view(np.uint8).reshape(size, 4)[:, : _width(size)].T)
    return compress(planes.tobytes(), 9)


def decode_permutation(data: bytes, size: int) -> np.ndarray:
    """Inverse of `encode_permutation`: int64 (size,).  Raises Corruption for bytes that are no permutation."""
    inflater = decompressobj()
    try:
        raw = inflater.decompress(data, size * _width(size) + 1)
    except error as problem:
        raise Corruption(f"permutation of {size}: {problem}: the file is damaged") from None
    if len(raw) != size * _width(size) or not inflater.eof or inflater.unused_data:
        raise Corruption(f"permutation of {size}: the deflated bytes do not end where they should: the file is damaged")
    planes = np.frombuffer(raw, np.uint8).reshape(_width(size), size).astype(np.int64)
    steps = sum(planes[k] << (8 * k) for k in range(len(planes)))
    order = (np.cumsum(steps + 1) - 1) % size
    if steps.max() >= size or (np.bincount(order, minlength=size) != 1).any():
        raise Corruption(f"permutation of {size}: a place occurs twice: the file is damaged")
    return order


def spread(order: np.ndarray, length: int) -> np.ndarray:
    """The permutation of an axis of `length` entries, each place standing for `length / m` neighbours; int64 (length,)."""
    each = length // len(order)
    return (order[:, None] * each + np.arange(each)).reshape(-1)


def _width(size: int) -> int:
    """Bytes that numbers below `size` take."""
    return max(1, ((size - 1).bit_length() + 7) // 8)
