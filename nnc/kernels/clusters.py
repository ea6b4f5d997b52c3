"""Kernels of k-means with a price per centroid; sums in a fixed order, so that results do not depend on the number of threads."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def assign_points(points, weights, centroids, price, ids):
    """The centroid of least weighted squared distance plus price of every point; returns the sum of these distances.

    points: float32 (P, n); weights: float32 (P, n) or (P, 1) for one per point, or (0, 0) for ones; centroids: float32 (n, K); price:
    float32 (K,); ids: int32 (P,)."""
    count, size = points.shape
    total = 0.0
    cost = np.empty(centroids.shape[1], np.float32)
    weighted = weights.shape[0] > 0
    last = weights.shape[1] - 1
    for p in range(count):
        cost[:] = price
        for d in range(size):
            x = points[p, d]
            w = weights[p, min(d, last)] if weighted else np.float32(1)
            for k in range(cost.shape[0]):
                e = x - centroids[d, k]
                cost[k] += w * e * e
        best = 0
        for k in range(1, cost.shape[0]):
            if cost[k] < cost[best]:
                best = k
        ids[p] = best
        total += cost[best] - price[best]
    return total


@njit(cache=True, nogil=True)
def sum_clusters(points, weights, ids, sums, masses, counts):
    """Add up the points of every centroid: sums, masses float64 (K, n), counts int64 (K,)."""
    weighted = weights.shape[0] > 0
    last = weights.shape[1] - 1
    for p in range(points.shape[0]):
        k = ids[p]
        counts[k] += 1
        for d in range(points.shape[1]):
            w = np.float64(weights[p, min(d, last)]) if weighted else 1.0
            sums[k, d] += w * points[p, d]
            masses[k, d] += w
