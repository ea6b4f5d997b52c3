"""Kernels of an encoder that looks for columns which foretell each other; sums in whatever order is fast, in one thread."""

from __future__ import annotations

import numpy as np
from numba import njit

_NAT = 0.7213475204444817  # 1 / (2 ln 2)
_PART = 256  # columns that are looked at together


@njit(cache=True, nogil=True)
def _cost(variance):
    """Bits and distortion (at their exchange rate, in bits) of a Gaussian weight of this variance, in units of the distortion: reverse
    water-filling, so that below one it is not coded, and what foretells it lowers the distortion."""
    return _NAT + 0.5 * np.log2(variance) if variance > 1 else _NAT * variance


@njit(cache=True, nogil=True, fastmath=True)
def unit_rows(columns, out):
    """out = rows of `columns`, float32 (n, m) both, over their lengths; rows of zeros stay."""
    n, m = columns.shape
    for i in range(n):
        row, unit = columns[i], out[i]
        total = 0.0
        for p in range(m):
            v = np.float64(row[p])
            total += v * v
        length = max(np.sqrt(total), 1e-30)
        for p in range(m):
            unit[p] = np.float64(row[p]) / length


@njit(cache=True, nogil=True, fastmath=True)
def kinship(units, out):
    """out[i] = largest squared cosine between row i of `units`, float32 (n, m) of length one, and another row."""
    n, m = units.shape
    out[:] = 0
    for i in range(n):
        mine = units[i]
        for k in range(i):
            other = units[k]
            total = np.float32(0)
            for p in range(m):
                total += mine[p] * other[p]
            square = total * total
            out[i] = max(out[i], square)
            out[k] = max(out[k], square)


@njit(cache=True, nogil=True, fastmath=True)
def cluster_rows(units, centres, labels, rounds):
    """Lloyd's algorithm on rows of length one, float32 (n, m), from the `centres` given, float32 (k, m), which are normalised means; one
    thread, so that the result does not depend on their number.  labels: int16 (n,), of the nearest by cosine."""
    n, m = units.shape
    k = centres.shape[0]
    for _ in range(rounds):
        sums = np.zeros((k, m), np.float32)
        for i in range(n):
            best = np.float32(-2)
            unit = units[i]
            for c in range(k):
                centre = centres[c]
                total = np.float32(0)
                for p in range(m):
                    total += unit[p] * centre[p]
                if total > best:
                    best = total
                    labels[i] = c
            mine = sums[labels[i]]
            for p in range(m):
                mine[p] += unit[p]
        for c in range(k):
            length = np.float32(0)
            for p in range(m):
                length += sums[c, p] * sums[c, p]
            if length > 0:
                length = np.float32(1) / np.sqrt(length)
                for p in range(m):
                    centres[c, p] = sums[c, p] * length


@njit(cache=True, nogil=True, fastmath=True)
def farthest_rows(units, k, chosen):
    """k rows of `units` that are far from each other: each the least like those before; chosen: int64 (k,)."""
    n, m = units.shape
    nearest = np.full(n, np.float32(-2))
    pick = 0
    for c in range(k):
        chosen[c] = pick
        least = np.float32(3)
        picked = units[pick]
        for i in range(n):
            unit = units[i]
            total = np.float32(0)
            for p in range(m):
                total += unit[p] * picked[p]
            nearest[i] = max(nearest[i], total)
            if nearest[i] < least:
                least = nearest[i]
                pick = i


@njit(cache=True, nogil=True, fastmath=True)
def follow_memories(columns, labels, floor, free, distortion, steps, common, confidence, saved, rest):
    """What memories save when columns are coded in order; a column is a row of `columns`, float32 (n, m).

    What is left of a column is taken to be decoded as multiples of sqrt(12 distortion).  labels: int16 (n,), changed to the best memory if `free`.  floor: float32.
    distortion: float64 (n,).  steps: of a confidence, -steps stands for none; common:
    code of all columns, 1 to choose.  confidence: int16 (n,), codes.  saved: float64 (n,),
    of bits and distortion, in bits.  rest: float32 (n, m), what is left to code with these confidences.
    """
    n, m = columns.shape
    last = 0
    for j in range(n):
        last = max(last, labels[j])
    memories = np.zeros((last + 1, m), np.float32)
    power = np.zeros(last + 1)
    seen = np.zeros(last + 1, np.int64)
    for j in range(n):
        x = columns[j]
        own = 0.0
        for p in range(m):
            own += x[p] * x[p]
        least = own
        confidence[j] = -steps if common == 1 else common
        label = labels[j]
        for c in range(1 if free else label, (last if free else label) + 1):
            if c == 0 or seen[c] == 0:
                continue
            dot = np.float32(0)
            memory = memories[c]
            for p in range(m):
                dot += x[p] * memory[p]
            trust = min(steps, max(0, int(np.round(steps * dot / power[c])))) if power[c] > 0 else 0
            trust = trust if common == 1 else steps + common
            left = own - 2 * (trust / steps) * dot + (trust / steps) ** 2 * power[c]
            if left < least or (common < 1 and (c == label or not free)):
                least = left
                confidence[j] = trust - steps
                label = c
        saved[j] = m * (_cost(own / m / distortion[j]) - _cost(max(least, 0.0) / m / distortion[j]))
        labels[j] = label
        if saved[j] < 4 and common == 1:
            confidence[j] = -steps
        trusted = np.float32((steps + confidence[j]) / steps)
        for p in range(m):
            rest[j, p] = x[p] - trusted * memories[label, p]
        if label > 0:
            seen[label] += 1
            part = max(np.float32(1) / np.float32(seen[label]), floor)
            memory = memories[label]
            width = np.float32(np.sqrt(12 * distortion[j]))
            total = 0.0
            for p in range(m):
                left = rest[j, p]
                value = x[p] - left + np.round(left / width) * width
                memory[p] += part * (value - memory[p])
                total += memory[p] * memory[p]
            power[label] = total


@njit(cache=True, nogil=True, fastmath=True)
def add_rows(columns, labels, trust, sums, weight):
    """Add the rows of `columns`, float32 (n, m), `trust` times each, float32 (n,), to the sums of their labels, float32 (numbers, m), and the squares of
    `trust` to the weights of these, float32 (numbers,)."""
    n, m = columns.shape
    for j in range(n):
        label, t = labels[j], trust[j]
        if label > 0:
            weight[label] += t * t
            row, total = columns[j], sums[label]
            for p in range(m):
                total[p] += t * row[p]


@njit(cache=True, nogil=True, fastmath=True)
def mean_rows(columns, labels, trust, centres):
    """centres[l] = what foretells the rows of `columns`, float32 (n, m), with the label l best, each taken `trust` times, float32 (n,); zeros for label 0."""
    weight = np.zeros(len(centres), np.float32)
    centres[:] = 0
    add_rows(columns, labels, trust, centres, weight)
    for c in range(len(centres)):
        if weight[c] > 0:
            by = np.float32(1) / weight[c]
            for p in range(centres.shape[1]):
                centres[c, p] *= by


@njit(cache=True, nogil=True, fastmath=True)
def follow_centres(columns, centres, distortion, steps, grain, common, labels, confidence, rest):
    """The best centre of every column, a row of `columns`, float32 (n, m); the arguments are as of `follow_memories`, centres: float32 (numbers, m), zeros
    first; grain: steps between confidences."""
    n, m = columns.shape
    number = len(centres)
    power = np.zeros(number)
    for c in range(number):
        for p in range(m):
            power[c] += centres[c, p] * centres[c, p]
    for j in range(n):
        x = columns[j]
        own = 0.0
        for p in range(m):
            own += x[p] * x[p]
        least = own
        best, code = 0, -steps
        for c in range(1, number):
            if power[c] <= 0:
                continue
            dot = np.float32(0)
            centre = centres[c]
            for p in range(m):
                dot += x[p] * centre[p]
            trust = min(steps, max(0, grain * int(np.round(steps * dot / (grain * power[c]))))) if common == 1 else steps + common
            left = own - 2 * (trust / steps) * dot + (trust / steps) ** 2 * power[c]
            if left < least:
                least, best, code = left, c, trust - steps
        gain = m * (_cost(own / m / distortion[j]) - _cost(max(least, 0.0) / m / distortion[j]))
        if gain < 4:
            best, code = 0, -steps if common == 1 else common
        labels[j], confidence[j] = best, code
        trusted = np.float32((steps + code) / steps)
        centre = centres[best]
        for p in range(m):
            rest[j, p] = x[p] - trusted * centre[p]


@njit(cache=True, nogil=True, fastmath=True)
def sweep_centres(columns, by, centres, distortion, steps, grain, common, labels, confidence, sums, weight, every, kept, left):
    """`follow_centres` for columns of which each entry is taken `by` times, float32 (m,), some at a time, so that no more memory is touched.

    columns: float32 (n, m), in either order; sums, weight: as of `add_rows`, of no labels to leave that out; kept, left: float32, every so many column and what is left of it."""
    n, m = columns.shape
    here, after = np.empty((_PART, m), np.float32), np.empty((_PART, m), np.float32)
    trust = np.empty(_PART, np.float32)
    for begin in range(0, n, _PART):
        number = min(_PART, n - begin)
        own, end = here[:number], begin + number
        for p in range(m):
            for j in range(number):
                own[j, p] = columns[begin + j, p] * by[p]
        follow_centres(
            own, centres, distortion[begin:end], steps, grain, common, labels[begin:end], confidence[begin:end], after[:number]
        )  # fmt: skip
        if len(weight) > 0:
            for j in range(number):
                trust[j] = np.float32(steps + confidence[begin + j]) / np.float32(steps)
            add_rows(own, labels[begin:end], trust[:number], sums, weight)
        for j in range(number):
            if (begin + j) % every == 0:
                kept[(begin + j) // every] = own[j]
                left[(begin + j) // every] = after[j]


@njit(cache=True, nogil=True, fastmath={"reassoc", "nsz", "contract"})
def mean_square(columns):
    """Of float32 (n, m)."""
    n, m = columns.shape
    total = 0.0
    for i in range(n):
        for p in range(m):
            v = np.float64(columns[i, p])
            total += v * v
    return total / max(1, n * m)


@njit(cache=True, nogil=True, fastmath={"reassoc", "nsz", "contract"})
def balance(columns, of_rows, of_entries):
    """Mean squares of rows and entries of `columns`, float32 (n, m), of each after the others were scaled to one (as `powers.measure_powers`);
    float64 (n,) and (m,)."""
    n, m = columns.shape
    scale = np.ones(m)
    for _ in range(2):
        of_entries[:] = 0
        for i in range(n):
            row, total = columns[i], 0.0
            for j in range(m):
                v = np.float64(row[j]) * scale[j]
                total += v * v
            of_rows[i] = total / m
            by = m / total if total > 0 else 1.0
            for j in range(m):
                v = np.float64(row[j])
                of_entries[j] += v * v * by
        for j in range(m):
            of_entries[j] /= n
            scale[j] = 1 / np.sqrt(of_entries[j]) if of_entries[j] > 0 else 1.0


@njit(cache=True, nogil=True, fastmath={"reassoc", "nsz", "contract"})
def model_bits(rows, columns):
    """Sum of the costs (`_cost`) of the variances rows[i] * columns[j]."""
    total = 0.0
    whole, largest = len(columns) // 8 * 8, columns.max()
    for i in range(len(rows)):
        row, product = rows[i], 1.0
        small = row * largest < 1e18  # eight of these, times 1e150, are no overflow
        for j in range(0, whole if small else 0, 8):
            part = 1.0
            for k in range(8):
                variance = row * columns[j + k]
                total += _NAT * min(variance, 1.0)
                part *= max(variance, 1.0)
            product *= part
            if product > 1e150:
                total += np.log2(product) / 2
                product = 1.0
        total += np.log2(product) / 2
        for j in range(whole if small else 0, len(columns)):
            variance = row * columns[j]
            total += _NAT * min(variance, 1.0) + np.log2(max(variance, 1.0)) / 2
    return total
