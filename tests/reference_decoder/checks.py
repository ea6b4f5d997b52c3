"""Section 12 of the page: digests."""
from __future__ import annotations

from hashlib import blake2b

from .notation import DTYPES, Tensor

MASK = (1 << 64) - 1


def chained(digest: int, number: int) -> int:
    return ((digest ^ (number & MASK)) * 0x9E3779B97F4A7C15) & MASK


def unit_digest(digests: list[int]) -> int:
    t = 0
    for digest in digests:
        t = chained(t, digest)
    return (t ^ t >> 32) & 0xFFFFFFFF


def tensor_digest(tensor: Tensor) -> bytes:
    """Of a tensor of the reference."""
    dtype, _, data = tensor
    return blake2b(bytes([[d.name for d in DTYPES].index(dtype)]) + data, digest_size=8).digest()


def reference_digest(taken: list[Tensor]) -> bytes:
    """Of what a unit takes from the reference."""
    return blake2b(b"".join(map(tensor_digest, taken)), digest_size=8).digest()
