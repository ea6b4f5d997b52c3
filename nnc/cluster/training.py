"""Centroids of a codebook: k-means, refined by what it costs to say which centroid a point has.

Lagrangian assignment: a point goes to the centroid of least `distance + price * bits`, bits = -log2 of how often it is used;
centroids move to the means of their points, those that nobody uses go (Chou, Lookabaugh and Gray, IEEE Trans. ASSP 37, 1989).
Every component of every point may have a weight of its own: what calibration says, or 0 for an outlier.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..kernels.clusters import assign_points, sum_clusters

SAMPLE = 20_000  # points that the first centroids are drawn from ...
MOST_POINTS = 1 << 17  # ... and that they are refined by
NONE = np.empty((0, 0), np.float32)


@dataclass(frozen=True, eq=False)
class Trained:
    """centroids: float32 (K, n); counts: int64 (K,), points of each, falling."""

    centroids: np.ndarray
    counts: np.ndarray


def train(points: np.ndarray, number: int, price: float, weights: np.ndarray = NONE, rounds: int = 12) -> Trained:
    """At most `number` centroids for float32 points (P, n); price: of a bit, in squared distance; weights: float32 (P, n), or none."""
    every = max(1, len(points) // MOST_POINTS)
    points, weights = points[::every], weights[::every]
    start = _first_centroids(points, weights, number)
    return refine(points, start, price, weights, rounds)


def refine(points: np.ndarray, start: np.ndarray, price: float, weights: np.ndarray, rounds: int) -> Trained:
    """Centroids from those given, float32 (K, n)."""
    centroids = start
    bits = np.zeros(len(centroids), np.float32)
    ids = np.empty(len(points), np.int32)
    for number in range(rounds + 1):
        assign_points(points, weights, np.ascontiguousarray(centroids.T), (price * bits).astype(np.float32), ids)
        sums, masses = np.zeros(centroids.shape), np.zeros(centroids.shape)
        counts = np.zeros(len(centroids), np.int64)
        sum_clusters(points, weights, ids, sums, masses, counts)
        if number < rounds:
            moved = np.where(masses > 0, sums / np.where(masses > 0, masses, 1), centroids).astype(np.float32)
            used = counts > 0
            centroids, bits = np.ascontiguousarray(moved[used]), (np.log2(len(points)) - np.log2(counts[used])).astype(np.float32)
    order = np.argsort(-counts, kind="stable")
    order = order[counts[order] > 0]
    return Trained(centroids[order], counts[order])


def _first_centroids(points: np.ndarray, weights: np.ndarray, number: int) -> np.ndarray:
    if points.shape[1] == 1:  # quantiles, spread towards the tails as the cube root of the density asks for
        ranked = np.sort(points[weights[:, 0] > 0, 0] if weights.size else points[:, 0])
        if not ranked.size:
            return np.zeros((1, 1), np.float32)
        values = np.unique(ranked)
        if len(values) <= number:
            return np.ascontiguousarray(values[:, None])
        even = np.linspace(ranked[0], ranked[-1], number)
        parts = ranked[((np.arange(number) + 0.5) / number * ranked.size).astype(np.int64)]
        return np.unique(((even + 2 * parts) / 3).astype(np.float32))[:, None]
    from sklearn.cluster import kmeans_plusplus

    chosen = points[:: max(1, len(points) // SAMPLE)]
    number = min(number, len(np.unique(chosen, axis=0)))
    return np.ascontiguousarray(kmeans_plusplus(chosen, number, random_state=0)[0], np.float32)
