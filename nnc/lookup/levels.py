"""Levels: the few values that stand for many, of the weights of a layer (its codebook) and of what flows between two layers.

Both are k-means on a line.  The first division is the best one of up to 2048 ranked groups of values, found exactly (Wu, Optimal
quantization by matrix searching, 1991); Lloyd's iteration then refines it on the values themselves (cluster/training.py).  A set that has
no more values than were asked for keeps them as they are, to the bit.
"""

from __future__ import annotations

import numpy as np

from ..cluster.training import MOST_POINTS, NONE, refine
from ..kernels.lookup import nearest_levels, split_values

GROUPS = 2048  # of values, that the first division cuts between
ROUNDS = 10  # of Lloyd's iteration


def place_levels(values: np.ndarray, number: int) -> np.ndarray:
    """At most `number` levels, float32, rising, of least squared distance from finite values (of any shape)."""
    flat = np.ascontiguousarray(values, np.float32).reshape(-1) + np.float32(0)  # -0 is 0
    kept, counts = np.unique(flat, return_counts=True)
    if len(kept) <= number:
        return kept
    groups, masses = _group(kept, counts)
    start = _divide(groups, masses, number)
    if len(flat) > MOST_POINTS:  # drawn, as a stride would meet the same channels again and again
        flat = np.random.default_rng(0).choice(flat, MOST_POINTS, replace=False)
    return np.unique(refine(flat[:, None], start[:, None], 0.0, NONE, ROUNDS).centroids[:, 0] + np.float32(0))


def middles_of(levels: np.ndarray) -> np.ndarray:
    """float32 (n - 1,): a value above the i-th is nearer to level i + 1."""
    return ((levels[1:].astype(np.float64) + levels[:-1]) / 2).astype(np.float32)


def find_indices(values: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """The index of the nearest level, the lower one of two at the same distance; uint8, or uint16 for more than 256 levels."""
    return np.searchsorted(middles_of(levels), np.asarray(values, np.float32)).astype(
        np.uint8 if len(levels) <= 256 else np.uint16
    )


def quantize(values: np.ndarray, levels: np.ndarray) -> tuple[np.ndarray, int]:
    """uint8 indices of at most 256 levels as `find_indices`, and how many of the values are NaN."""
    flat = np.ascontiguousarray(values, np.float32)
    out = np.empty(flat.shape, np.uint8)
    missing = nearest_levels(flat.reshape(-1), middles_of(levels), out.reshape(-1))
    return out, int(missing)


def entropy_of(indices: np.ndarray) -> float:
    """Bits per index, of independent draws from how often each occurs."""
    counts = np.bincount(indices.reshape(-1).astype(np.int64))
    shares = counts[counts > 0] / max(1, indices.size)
    return float(max(0.0, -(shares * np.log2(shares)).sum()))


def _group(values: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and masses of neighbouring values, at most GROUPS: half of the cuts evenly in rank, half evenly in value."""
    if len(values) <= GROUPS:
        return values.astype(np.float64), counts.astype(np.float64)
    rank = np.cumsum(counts) - counts
    even = np.linspace(values[0], values[-1], GROUPS // 2, dtype=np.float64)
    starts = np.unique(
        np.concatenate(
            [np.searchsorted(rank, np.linspace(0, counts.sum(), GROUPS // 2, endpoint=False)), np.searchsorted(values, even), [0]]
        ).clip(0, len(values) - 1)
    )
    masses = np.add.reduceat(counts.astype(np.float64), starts)
    return np.add.reduceat(counts * values.astype(np.float64), starts) / masses, masses


def _divide(groups: np.ndarray, masses: np.ndarray, number: int) -> np.ndarray:
    """float32 (at most number,): the means of the best runs of groups."""
    number = min(number, len(groups))
    centred = groups - np.average(groups, weights=masses)
    n = len(groups)
    cuts = np.zeros((number + 1, n + 1), np.int32)
    split_values(centred, masses, number, np.empty((2, n + 1)), cuts)
    starts, end = [], n
    for run in range(number, 0, -1):
        end = int(cuts[run, end])
        starts.append(end)
    starts = np.array(starts[::-1])
    means = np.add.reduceat(masses * groups, starts) / np.add.reduceat(masses, starts)
    return np.unique(means.astype(np.float32))
