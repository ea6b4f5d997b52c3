"""Rules that tell outliers from inliers, on the weights of a plane over the scales of their rows and columns.

Magnitude: a fraction f of the largest; the fraction itself is searched for by what it costs (choice.py).  Deviation: |w - median| more
than t times the median deviation (MAD).  Distance: the weights farthest from their centroid.  Small clusters: a hierarchical
clustering of a sample is cut, and clusters of few weights are outliers, with all weights beyond the others (US20220261616A1).
"""

from __future__ import annotations

import numpy as np

from ..powers import Powers


def relative_weights(plane: np.ndarray, powers: Powers) -> np.ndarray:
    """float32 (rows, columns): weights over the rms of their row and column; dead ones are 0."""
    rows = np.sqrt(np.where(powers.rows > 0, powers.rows, np.inf))
    columns = np.sqrt(np.where(powers.columns > 0, powers.columns, np.inf))
    return plane / rows[:, None].astype(np.float32) / columns.astype(np.float32)


def largest_weights(relative: np.ndarray, fraction: float) -> np.ndarray:
    """Positions (int64, rising) of the given fraction of weights of largest magnitude."""
    flat = np.abs(relative).reshape(-1)
    number = int(round(fraction * flat.size))
    if not number:
        return np.empty(0, np.int64)
    return np.sort(np.argpartition(flat, flat.size - number)[flat.size - number :]).astype(np.int64)


def deviating_weights(relative: np.ndarray, times: float) -> np.ndarray:
    """Positions of weights more than `times` the median deviation off the median."""
    flat = relative.reshape(-1)
    off = np.abs(flat - np.median(flat))
    return np.flatnonzero(off > times * np.median(off))


def distant_weights(relative: np.ndarray, centroids: np.ndarray, fraction: float) -> np.ndarray:
    """Positions of the fraction of weights farthest from the nearest of scalar centroids."""
    flat, book = relative.reshape(-1), np.sort(centroids.reshape(-1))
    nearest = book[np.searchsorted((book[1:] + book[:-1]) / 2, flat)]
    return largest_weights(flat - nearest, fraction)


def straying_weights(relative: np.ndarray, clusters: int = 12, least: float = 0.002, sample: int = 2000) -> np.ndarray:
    """Positions of weights that fall to small clusters: a sample is clustered (average linkage) and cut into `clusters`; those with
    less than a part `least` of it are outliers, and so is every weight outside the span of the others."""
    from scipy.cluster.hierarchy import fcluster, linkage

    flat = relative.reshape(-1)
    ranked = np.sort(flat)
    spread = ranked[np.linspace(0, flat.size - 1, min(sample, flat.size)).astype(np.int64)]
    if spread.size < 2:
        return np.empty(0, np.int64)
    labels = fcluster(linkage(spread[:, None], "average"), clusters, "maxclust")
    sizes = np.bincount(labels)
    kept = spread[sizes[labels] >= max(2, least * spread.size)]
    if not kept.size:
        return np.empty(0, np.int64)
    return np.flatnonzero((flat < kept.min()) | (flat > kept.max()))
