"""Small bytes that are no weights, the directory above all, in a coder that learns from every bit and begins with a prior.

In small files names, shapes and lengths are several per cent, which deflate hardly shortens.  The prior is the directories of a few
networks of random weights, one after the other (`examples/benchmarks/make_prior.py`): the coder reads it before the first bit, so that
it knows what directories look like.  The prior is part of the format: a file names it by number, the page by its hash.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import numpy as np

from ..errors import Corruption
from ..kernels.mixing import MOST_SEEN, mix_bytes

PRIOR = Path(__file__).with_name("prior.bin")
PRIOR_HASH = "06e5186dcb384e475d4d969e08a3e4c080e09611834e8d2a131abb404e225aa6"
_ANCHORS = (1, 2, 3, 6, 10, 16, 27, 45, 73, 120, 194, 310, 488, 747, 1101, 1546, 2048,
            2550, 2995, 3349, 3608, 3786, 3902, 3976, 4023, 4051, 4069, 4080, 4086, 4090, 4093, 4094, 4095)  # fmt: skip


def encode_mixed(data: bytes) -> bytes:
    """Coded bytes; a microsecond per bit."""
    prior = read_prior()
    history = np.frombuffer(prior + data, np.uint8).copy()
    coded = np.zeros(len(data) * 2 + 16, np.uint8)
    count = mix_bytes(history, len(prior), len(history), *mixing_tables(), coded, False)
    return coded[:count].tobytes()


def decode_mixed(coded: bytes, length: int) -> bytes:
    """Inverse of `encode_mixed`; Corruption if the coded bytes are not those of `length` bytes."""
    prior = read_prior()
    history = np.zeros(len(prior) + length, np.uint8)
    history[: len(prior)] = np.frombuffer(prior, np.uint8)
    count = mix_bytes(history, len(prior), len(history), *mixing_tables(), np.frombuffer(coded, np.uint8).copy(), True)
    if count != len(coded):
        raise Corruption(f"{len(coded)} coded bytes, {count} were read: the file is damaged")
    return history[len(prior) :].tobytes()


@lru_cache(maxsize=1)
def read_prior() -> bytes:
    """The prior; Corruption if the installation has another one."""
    prior = PRIOR.read_bytes()
    if sha256(prior).hexdigest() != PRIOR_HASH:
        raise Corruption(f"{PRIOR}: is not the prior of this release: install nnc again")
    return prior


@lru_cache(maxsize=1)
def mixing_tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """squash: int32 (4095,), probability of a one in 1/4096 for -2047..2047; stretch: int32 (4096,), its inverse; steps: int32."""
    anchors = np.array(_ANCHORS, np.int64)
    x = np.arange(-2047, 2048)
    at, part = (x >> 7) + 16, x & 127
    squash = (anchors[at] * (128 - part) + anchors[np.minimum(at + 1, 32)] * part + 64) >> 7
    stretch = np.minimum(np.searchsorted(squash, np.arange(4096)), 4094) - 2047
    steps = 131072 // (2 * np.arange(MOST_SEEN + 1) + 3)
    return squash.astype(np.int32), stretch.astype(np.int32), steps.astype(np.int32)
