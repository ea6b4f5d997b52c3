"""Encoding of tiles: the choice of prediction, steps and levels tile by tile in the closed loop, then the binary codes of all of them."""

from __future__ import annotations

import numpy as np
from numba import njit

from .tiles import FRACTION, depth_of, gather_context, hash_context, magnitude, predict_tile, rebuild_tile

_U = np.uint64
_TOTAL = np.uint64(1 << 24)
_MASK32 = np.uint64(0xFFFFFFFF)
UNIT = 1.0 / (1 << 14)  # of an integer basis


@njit(cache=True, nogil=True)
def _transform(residual, transform, bases, high, wide, found):
    """Coefficients of `residual` float64 (height, width)."""
    if transform == 0:
        for y in range(high):
            for x in range(wide):
                found[y, x] = residual[y, x]
        return
    down, along = bases[transform, high], bases[transform, wide]
    half = np.empty((high, wide))
    for y in range(high):
        for v in range(wide):
            total = 0.0
            for x in range(wide):
                total += residual[y, x] * along[v, x]
            half[y, v] = total * UNIT
    for u in range(high):
        for v in range(wide):
            total = 0.0
            for y in range(high):
                total += half[y, v] * down[u, y]
            found[u, v] = total * UNIT


@njit(cache=True, nogil=True)
def _choose_levels(found, scales, skipped, steps, offset, bits, lowest_scale, lagrangian, high, wide, levels):
    """Write the best magnitudes (signed) with `skipped` steps left out; returns distortion + lagrangian * bits, in steps squared."""
    height, width = levels.shape
    cost = 0.0
    most = (1 << (steps - skipped)) - 1
    known = bits.shape[1] - 1
    unit = 1.0 / (1 << FRACTION)
    for u in range(high):
        for v in range(wide):
            a = abs(found[u, v])
            scale = scales[u * height // high, v * width // wide] - 4 * skipped
            row = min(max(scale - lowest_scale, 0), bits.shape[0] - 1)
            middle = min(np.int64(a / (1 << skipped)), most)
            best_cost, best = a * a + lagrangian * bits[row, 0], np.int64(0)
            for m in range(max(middle - 1, 1), min(middle + 1, most) + 1):
                rate = bits[row, m] if m <= known else bits[row, known] + 2 * np.log2(m / known)
                difference = a - magnitude(m, skipped, offset) * unit
                trial = difference * difference + lagrangian * rate
                if trial < best_cost:
                    best_cost, best = trial, m
            cost += best_cost
            levels[u, v] = best if found[u, v] >= 0 else -best
    return cost


@njit(cache=True, nogil=True)
def search_tiles(
    target, height, width, steps, fewest, offset, transforms, bases, scales, predicted, offsets, network, bits, lowest_scale,
    flag_bits, skip_bits, lagrangian, levels, flags, skips, pixels, hashes, squares,
):  # fmt: skip
    """Choose everything for a plane.  target: float64 (rows, columns) in steps, without the mean; steps: most of a tile, of which
    `fewest` are left out everywhere; bits: of a magnitude by scale and value; flag_bits: (3, 2) by neighbours and flag; skip_bits: of
    as many steps as before, and of another number; lagrangian: in steps squared per bit.

    Fills levels int32 (tiles, height * width), signed magnitudes without the steps left out; flags, skips uint8 (tiles,); pixels int32;
    hashes as in `decode_tiles`; adds to squares float64 (2, height * width + 1, 2): sums and numbers of squared coefficients by
    prediction and place, and last of magnitude minus coefficient where that is not zero.  Returns (digest, squared error in the
    plane).
    """
    rows, columns = target.shape
    digest = _U(0)
    across = -(-columns // width)
    above = np.zeros(across, np.int64)
    context = np.zeros(offsets.shape[0], np.int64)
    prediction = np.zeros((height, width), np.int64)
    tile = np.zeros((height, width), np.int64)
    residual, found = np.zeros((height, width)), np.zeros((2, height, width))
    tried, best = np.zeros((height, width), np.int64), np.zeros((height, width), np.int64)
    coefficients, half = np.zeros((height, width), np.int64), np.zeros((height, width), np.int64)
    unit = 1.0 / (1 << FRACTION)
    error = 0.0
    last = 0
    number = 0
    for top in range(0, rows, height):
        high = min(height, rows - top)
        before = 0
        for left in range(0, columns, width):
            wide = min(width, columns - left)
            lowest_cost, flag, skipped = np.inf, 0, 0
            if predicted or hashes.shape[0] > 0:
                gather_context(pixels, top, left, offsets, context)
                if hashes.shape[0] > 0:
                    hashes[number] = hash_context(context)
            if predicted:
                predict_tile(context, network, high, wide, prediction)
            for way in range(2 if predicted else 1):
                for y in range(high):
                    for x in range(wide):
                        residual[y, x] = target[top + y, left + x] - (prediction[y, x] * unit if way else 0.0)
                _transform(residual, transforms[way], bases, high, wide, found[way])
                extra = lagrangian * flag_bits[before + above[left // width], way] if predicted else 0.0
                for k in range(fewest, steps + 1):
                    if k > fewest + 2 and k < steps:
                        continue
                    cost = extra + lagrangian * (skip_bits[0] if k == last else skip_bits[1])
                    cost += _choose_levels(
                        found[way], scales[way], k, steps, offset, bits, lowest_scale, lagrangian, high, wide, tried
                    )
                    if cost < lowest_cost:
                        lowest_cost, flag, skipped = cost, way, k
                        best[:] = tried
            last = skipped
            before = flag
            above[left // width] = flag
            flags[number], skips[number] = flag, skipped
            for u in range(high):
                for v in range(wide):
                    m = best[u, v]
                    levels[number, u * width + v] = m
                    value = magnitude(abs(m), skipped, offset)
                    coefficients[u, v] = value if m >= 0 else -value
                    place = (u * height // high) * width + v * width // wide
                    a = found[flag, u, v]
                    squares[flag, place, 0] += a * a
                    squares[flag, place, 1] += 1
                    if m != 0 and skipped == 0:
                        squares[flag, height * width, 0] += abs(m) - abs(a)
                        squares[flag, height * width, 1] += 1
            if flag:
                tile[:] = prediction
            else:
                tile[:] = 0
            digest = rebuild_tile(coefficients, transforms[flag], bases, top, left, high, wide, half, tile, pixels, digest)
            for y in range(high):
                for x in range(wide):
                    difference = target[top + y, left + x] - pixels[top + y, left + x] * unit
                    error += difference * difference
            number += 1
    return digest, error


@njit(cache=True, nogil=True)
def list_codes(rows, columns, height, width, steps, contexts, scales, predicted, levels, flags, skips, codes):
    """All binary codes in the order of the file: uint8 `2 * context + bit` into `codes`; returns their number."""
    lowest, highest, of_flag = contexts
    depths = highest - lowest + 1
    of_same, of_more, of_sign = of_flag + 3, of_flag + 4, of_flag + 5
    above = np.zeros(-(-columns // width), np.int64)
    n = 0
    number = 0
    last = 0
    for top in range(0, rows, height):
        high = min(height, rows - top)
        before = 0
        for left in range(0, columns, width):
            wide = min(width, columns - left)
            flag, skipped = np.int64(flags[number]), np.int64(skips[number])
            if predicted:
                codes[n] = 2 * (of_flag + before + above[left // width]) + flag
                n += 1
                before = flag
                above[left // width] = flag
            if steps > 0:
                codes[n] = 2 * of_same + (1 if skipped == last else 0)
                n += 1
                if skipped != last:
                    count = skipped - (1 if skipped > last else 0)
                    for _ in range(count):
                        codes[n] = 2 * of_more + 1
                        n += 1
                    if count < steps - 1:
                        codes[n] = 2 * of_more
                        n += 1
                last = skipped
            for b in range(steps - 1, skipped - 1, -1):
                for u in range(high):
                    for v in range(wide):
                        k = np.int64(levels[number, u * width + v])
                        prefix = abs(k) >> (b - skipped)
                        m = prefix >> 1
                        state = min(m, 2) if m < 4 else 3
                        scale = scales[flag, u * height // high, v * width // wide]
                        codes[n] = 2 * (state * depths + depth_of(scale, b, lowest, highest)) + (prefix & 1)
                        n += 1
                        if prefix == 1:
                            codes[n] = 2 * of_sign + (1 if k < 0 else 0)
                            n += 1
            number += 1
    return n


@njit(cache=True, nogil=True)
def push_codes(codes, zero, words):
    """Code a list of binary codes; words: uint32 scratch, one for every code and two more.  Returns the number of words."""
    x = _U(0)
    count = 0
    for n in range(codes.shape[0] - 1, -1, -1):
        code = codes[n]
        of_zero = zero[code >> 1]
        bit = code & 1
        frequency = _TOTAL - of_zero if bit else of_zero
        start = of_zero if bit else _U(0)
        if (x >> _U(40)) >= frequency:
            words[count] = np.uint32(x & _MASK32)
            count += 1
            x >>= _U(32)
        x = ((x // frequency) << _U(24)) + x % frequency + start
    while x > 0:
        words[count] = np.uint32(x & _MASK32)
        count += 1
        x >>= _U(32)
    return count
