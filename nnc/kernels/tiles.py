"""Decoding of tiles: context > prediction, binary codes > coefficients > residual, their sum > pixels; all of it integers.

Pixels, predictions and coefficients are in 1/64 of the step.  One stream holds all tiles in raster order: prediction flag, number of
steps, then step by step one binary code per coefficient, and its sign when it stops to be zero.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_U = np.uint64
_MASK24 = np.uint64(0xFFFFFF)
_LIMIT = np.uint64(1 << 32)
_TOTAL = np.uint64(1 << 24)
_PRIME = np.uint64(0x9E3779B97F4A7C15)
FRACTION = 6  # bits of a pixel below the step
MOST = 1 << 30  # pixels, predictions and hidden units are clipped to -2^30..2^30
ROUNDING = 1 << 27  # half of 2^28, two transforms of 14 bits


@njit(cache=True, nogil=True, inline="always")
def _pop_bit(x, p, words, zero):
    """(bit, coder state, next word); zero: frequency of 0."""
    v = x & _MASK24
    if v < zero:
        bit = 0
        x = zero * (x >> _U(24)) + v
    else:
        bit = 1
        x = (_TOTAL - zero) * (x >> _U(24)) + v - zero
    if x < _LIMIT and p >= 0:
        x = (x << _U(32)) | _U(words[p])
        p -= 1
    return bit, x, p


@njit(cache=True, nogil=True, inline="always")
def depth_of(scale, b, lowest, highest):
    """Place of the table of bit b of a coefficient."""
    return min(max(scale - 4 * b, lowest), highest) - lowest


@njit(cache=True, nogil=True)
def gather_context(pixels, top, left, offsets, context):
    """Fill `context` int64 (context,) with the pixels at `offsets` from (top, left); zero where there are none."""
    rows, columns = pixels.shape
    for k in range(offsets.shape[0]):
        y, x = top + offsets[k, 0], left + offsets[k, 1]
        context[k] = pixels[y, x] if 0 <= y < rows and 0 <= x < columns else 0


@njit(cache=True, nogil=True)
def hash_context(context):
    h = _U(0)
    for k in range(context.shape[0]):
        h = (h ^ _U(context[k])) * _PRIME
    return h


@njit(cache=True, nogil=True)
def predict_tile(context, network, high, wide, tile):
    """Write the prediction of a tile of high x wide to `tile` int64 (height, width).

    network: (start, index, weight, shift, inner, bias, outer, hidden shift); pixel n takes the weights start[n]..start[n + 1]."""
    start, index, weight, shift, inner, bias, outer, hidden_shift = network
    units = inner.shape[0]
    active = np.empty(units, np.int64)
    for u in range(units):
        total = bias[u]
        for k in range(context.shape[0]):
            total += inner[u, k] * context[k]
        active[u] = min(max((total + ((1 << hidden_shift) >> 1)) >> hidden_shift, 0), MOST)
    width = tile.shape[1]
    for i in range(high):
        for j in range(wide):
            n = i * width + j
            total = np.int64(0)
            for at in range(start[n], start[n + 1]):
                total += weight[at] * context[index[at]]
            for u in range(units):
                total += outer[u, n] * active[u]
            tile[i, j] = min(max((total + ((1 << shift) >> 1)) >> shift, -MOST), MOST)


@njit(cache=True, nogil=True)
def rebuild_tile(coefficients, transform, bases, top, left, high, wide, half, tile, pixels, digest):
    """Add the residual of `coefficients` int64 (height, width) to the prediction in `tile`, write the pixels; returns the digest.

    half: scratch as large as `tile`."""
    largest = np.int64(0)
    for u in range(high):
        for v in range(wide):
            largest = max(largest, abs(coefficients[u, v]))
    if transform > 0 and largest > 0:
        down, along = bases[transform, high], bases[transform, wide]
        for u in range(high):
            for x in range(wide):
                total = np.int64(0)
                for v in range(wide):
                    total += coefficients[u, v] * along[v, x]
                half[u, x] = total
        for y in range(high):
            for x in range(wide):
                total = np.int64(ROUNDING)
                for u in range(high):
                    total += half[u, x] * down[u, y]
                tile[y, x] += total >> 28
    elif largest > 0:
        for y in range(high):
            for x in range(wide):
                tile[y, x] += coefficients[y, x]
    for y in range(high):
        for x in range(wide):
            n = min(max(tile[y, x], -MOST), MOST)
            pixels[top + y, left + x] = n
            digest = (digest ^ _U(n)) * _PRIME
    return digest


@njit(cache=True, nogil=True)
def magnitude(m, skipped, offset):
    """The coefficient of a magnitude that `skipped` steps were not coded of: the middle of its interval, moved by the offset."""
    if m == 0:
        return np.int64(0)
    return (m << (skipped + FRACTION)) + (((1 << skipped) - 1) << (FRACTION - 1)) + (offset << skipped)


@njit(cache=True, nogil=True)
def decode_tiles(
    words, zero, contexts, height, width, steps, offset, transforms, bases, scales, predicted, offsets, network, pixels, hashes
):
    """Decode a plane into `pixels` int32 (rows, columns); returns (final coder state, words left, digest of the pixels).

    words: uint32; zero: uint64, frequency of 0 by context; contexts: (lowest depth, highest depth, number of the flag's context);
    transforms: of tiles without and with prediction; scales: int64 (2, height, width); predicted: whether there is a predictor;
    hashes: uint64, one per tile to be filled with a hash of its context, or empty.
    """
    rows, columns = pixels.shape
    lowest, highest, of_flag = contexts
    depths = highest - lowest + 1
    of_same, of_more, of_sign = of_flag + 3, of_flag + 4, of_flag + 5
    x = _U(0)
    p = words.shape[0] - 1
    for _ in range(2):
        if p >= 0:
            x = (x << _U(32)) | _U(words[p])
            p -= 1
    least = zero.min()  # a smaller state is that of a 0 in every table, and stays what it is
    digest = _U(0)
    across = -(-columns // width)
    above = np.zeros(across, np.int64)  # flags of the tiles of the row above
    context = np.zeros(offsets.shape[0], np.int64)
    tile = np.zeros((height, width), np.int64)
    half = np.zeros((height, width), np.int64)
    levels = np.zeros((height, width), np.int64)
    negative = np.zeros((height, width), np.int64)
    skipped = 0
    number = 0
    for top in range(0, rows, height):
        high = min(height, rows - top)
        before = 0
        for left in range(0, columns, width):
            wide = min(width, columns - left)
            flag = 0
            if predicted:
                flag, x, p = _pop_bit(x, p, words, zero[of_flag + before + above[left // width]])
                before = flag
                above[left // width] = flag
            if hashes.shape[0] > 0:
                gather_context(pixels, top, left, offsets, context)
                hashes[number] = hash_context(context)
                number += 1
            if flag:
                gather_context(pixels, top, left, offsets, context)
                predict_tile(context, network, high, wide, tile)
            else:
                tile[:] = 0
            if steps > 0:
                same, x, p = _pop_bit(x, p, words, zero[of_same])
                if same == 0:
                    count = 0
                    while count < steps - 1:
                        more, x, p = _pop_bit(x, p, words, zero[of_more])
                        if more == 0:
                            break
                        count += 1
                    skipped = count + (1 if count >= skipped else 0)
            for u in range(high):
                for v in range(wide):
                    levels[u, v] = 0
            for b in range(steps - 1, skipped - 1, -1):
                if p < 0 and x < least:  # nothing but zeros can follow, so a short stream takes no long time
                    for u in range(high):
                        for v in range(wide):
                            levels[u, v] <<= b - skipped + 1
                    break
                for u in range(high):
                    for v in range(wide):
                        m = levels[u, v]
                        scale = scales[flag, u * height // high, v * width // wide]
                        state = min(m, 2) if m < 4 else 3
                        table = state * depths + depth_of(scale, b, lowest, highest)
                        bit, x, p = _pop_bit(x, p, words, zero[table])
                        levels[u, v] = 2 * m + bit
                        if bit == 1 and m == 0:
                            sign, x, p = _pop_bit(x, p, words, zero[of_sign])
                            negative[u, v] = sign
            for u in range(high):
                for v in range(wide):
                    value = magnitude(levels[u, v], skipped, offset)
                    levels[u, v] = -value if negative[u, v] else value
            digest = rebuild_tile(levels, transforms[flag], bases, top, left, high, wide, half, tile, pixels, digest)
    return x, p + 1, digest


@njit(cache=True, nogil=True)
def scale_pixels(pixels, mean, step, values):
    """float32 values of int32 pixels: `(f32(pixel + mean) / 64) * step`."""
    small = np.float32(1 / 64)
    for i in range(pixels.shape[0]):
        for j in range(pixels.shape[1]):
            values[i, j] = (np.float32(np.int64(pixels[i, j]) + mean) * small) * step
