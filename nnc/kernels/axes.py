"""Codes and steps of the rows or columns of a plane.  These kernels keep the interpreter, as waiting for it would take longer than they do."""

from __future__ import annotations

from numba import njit


@njit(cache=True)
def span_exponents(codes, unit, scales, by):
    """Least and largest `codes[i] * unit + by * scales[i]`."""
    least = largest = codes[0] * unit + by * scales[0]
    for i in range(1, len(codes)):
        exponent = codes[i] * unit + by * scales[i]
        least = min(least, exponent)
        largest = max(largest, exponent)
    return least, largest


@njit(cache=True)
def read_axis(codes, unit, scales, by, powers, first, base, off, dead, steps, indices):
    """steps[i] = the power of the exponent of i as of `span_exponents`, where powers[0] is that of `first`; indices[i] = `base` and its scale code less the nearest
    number of quarter octaves (32) that its step code makes, `dead` where the scale code is `off`.

    codes, scales: int16 (n,); powers, steps: float32; indices: int16 (n,)."""
    for i in range(len(codes)):
        moved = codes[i] * unit
        steps[i] = powers[moved + by * scales[i] - first]
        indices[i] = dead if scales[i] == off else base + scales[i] - ((moved + 16) >> 5)
