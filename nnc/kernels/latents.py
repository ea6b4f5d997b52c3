"""The kernel of latents: small integers of rows and columns, in binary decisions that are foretold by contexts, mixed by weights that learn.

A code is told from the best of several predictions of it: whether it is that number; if not, on which side it lies; then step by step
whether it lies further off.  Every context sees how far the predictions lie from the number that is asked about, not the numbers themselves, so what
is learned of one array serves all others.  Logistic mixing as in kernels/mixing.py; integers only; FORMAT.md says every number.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .streams import _refill

_U = np.uint64
CONTEXTS = 14
SLOTS = 2048  # counters of a context
NODES = 8  # equal, side, then steps; the last serves all that follow
KINDS = 8  # the last one stands for all arrays of dependent quantizers
# what a code may be, the first seven of them predictions of their own
_MEAN, _BEFORE, _TAP, _SLOPE, _LIKE, _MIDDLE, _SHIFTED, _FURTHER, _MOVED, _KNOWN, _SAME = range(11)
EXPERTS, GUESSES = 7, 11
MOST = 64
NEAR = 7  # distances beyond are as good as this
MOST_SEEN = 30
WEIGHT = 9000
RATE = 32
FLAG_SEEN = 30
PARTNERS = 15  # earlier arrays of one length that are remembered
FLAGS = 28 * KINDS  # counters of what is said of whole arrays


@njit(cache=True, nogil=True)
def _near(distance):
    return min(max(distance, -NEAR), NEAR) + NEAR


@njit(cache=True, nogil=True)
def next_latent(s, code):
    """State after a code of dependent quantizers: the machine of 8 states of quantize/trellis.py, on `k = code >> 1`."""
    return (s >> 1) ^ (5 if s & 1 else 0) ^ (2 if code & 2 else 0)


@njit(cache=True, nogil=True)
def _octave(number):
    """Bits of a number, at most 7."""
    bits = 0
    while number > 0 and bits < 7:
        number >>= 1
        bits += 1
    return bits


@njit(cache=True, nogil=True)
def _decide(reading, bit, p, x, at, words, trace, count):
    """One decision with the probability p of a one in 1/4096: (bit, state, next word, decisions)."""
    if not reading:
        trace[count] = p << 1 | bit
        return bit, x, at, count + 1
    low = _U(4096 - p) << _U(12)
    v = x & _U(0xFFFFFF)
    if v >= low:
        bit = 1
        x = (_U(p) << _U(12)) * (x >> _U(24)) + (v - low)
    else:
        bit = 0
        x = low * (x >> _U(24)) + v
    x, at = _refill(x, at, 0, words)
    return bit, x, at, count


@njit(cache=True, nogil=True)
def walk_flags(reading, number, bits, first, state, words, flags, seen, steps, trace, count):
    """A number of so many bits, most significant first, by flags that learn: counters first .. first + 2^bits - 2 of `flags` uint16.

    Returns (number, decisions); state: uint64 (2,), coder state and next word + 1, changed in place."""
    x, at = state[0], np.int64(state[1]) - 1
    node, found = 1, 0
    for place in range(bits - 1, -1, -1):
        slot = first + node - 1
        t = np.int64(flags[slot])
        p = min(max(t >> 4, 16), 4080)
        bit, x, at, count = _decide(reading, number >> place & 1, p, x, at, words, trace, count)
        flags[slot] = t + ((65535 * bit - t) * steps[seen[slot]] >> 16)
        if seen[slot] < FLAG_SEEN:
            seen[slot] += 1
        node = 2 * node + bit
        found = 2 * found + bit
    state[0], state[1] = x, at + 1
    return found, count


@njit(cache=True, nogil=True)
def _foresee(values, j, taps, partner, known, latest, mean, guesses):
    """What code j may be: `guesses` int64 (GUESSES,), of which the first EXPERTS are predictions of their own."""
    before = values[j - 1] if j > 0 else 0
    second = values[j - 2] if j > 1 else before
    tap = values[j - taps] if j >= taps else before
    corner = values[j - taps - 1] if j > taps else tap
    guesses[_MEAN] = (mean + 8) >> 4
    guesses[_BEFORE] = before
    guesses[_TAP] = tap
    guesses[_SLOPE] = before + tap - corner if taps > 1 and j > taps else (before + second + 1) >> 1
    guesses[_LIKE] = partner[j]
    guesses[_MIDDLE] = (before + tap + 1) >> 1
    guesses[_SHIFTED] = known[j] - known[j - 1] + before if j > 0 else known[j]
    guesses[_FURTHER] = values[j - 2 * taps] if j >= 2 * taps else tap
    guesses[_MOVED] = partner[j] - partner[j - 1] + before if j > 0 else partner[j]
    guesses[_KNOWN] = known[j]
    guesses[_SAME] = latest[known[j] + MOST]


@njit(cache=True, nogil=True)
def _mix(node, side, value, kind, calm, runs, best, guesses, chance, weights, squash, stretch, slots, inputs):
    """Probability in 1/4096 of a one at a node of the decisions about `value`; fills `slots` and `inputs` int64 (CONTEXTS,)."""
    zero, by_mean, by_before = _near(-value * side), _near((guesses[_MEAN] - value) * side), _near((guesses[_BEFORE] - value) * side)
    by_tap, by_slope = _near((guesses[_TAP] - value) * side), _near((guesses[_SLOPE] - value) * side)
    by_like, by_known = _near((guesses[_LIKE] - value) * side), _near((guesses[_KNOWN] - value) * side)
    slots[0] = node * KINDS + kind
    slots[1] = (node * 16 + zero) * 16 + by_mean
    slots[2] = (node * 16 + by_before) * 16 + by_tap
    slots[3] = (node * 16 + by_slope) * 8 + calm
    slots[4] = (node * 16 + by_like) * 8 + runs
    slots[5] = (node * 16 + by_known) * 16 + zero
    slots[6] = (node * 8 + calm) * 8 + best
    slots[7] = (node * 16 + by_before) * 16 + zero
    slots[8] = (node * 16 + _near((guesses[_MOVED] - value) * side)) * 16 + by_like
    slots[9] = (node * 16 + by_tap) * 16 + _near((guesses[_FURTHER] - value) * side)
    slots[10] = (node * 16 + _near((guesses[_SHIFTED] - value) * side)) * 16 + by_before
    slots[11] = (node * 16 + by_mean) * 8 + calm
    slots[12] = (node * 16 + _near((guesses[_SAME] - value) * side)) * 8 + kind
    slots[13] = (node * 16 + by_slope) * 16 + by_known
    which = node * KINDS + kind
    total = 0
    for m in range(CONTEXTS):
        inputs[m] = stretch[chance[m, slots[m]] >> 4]
        total += np.int64(weights[which, m]) * inputs[m]
    return np.int64(squash[min(max(total >> 16, -2047), 2047) + 2047])


@njit(cache=True, nogil=True)
def _learn(bit, p, which, chance, seen, weights, steps, slots, inputs):
    """Move the weights and counters of a decision towards it."""
    error = ((bit << 12) - p) * RATE
    for m in range(CONTEXTS):
        weights[which, m] += (inputs[m] * error + 32768) >> 16
        t, number = np.int64(chance[m, slots[m]]), seen[m, slots[m]]
        chance[m, slots[m]] = t + ((65535 * bit - t) * steps[number] >> 16)
        if number < MOST_SEEN:
            seen[m, slots[m]] = number + 1


@njit(cache=True, nogil=True)
def _choose(
    start, spacing, costs, lengths, kind, calm, runs, best, guesses, chance, weights, squash, stretch, slots, inputs
):
    """The code that costs least with what its decisions cost.  costs: float64 (129,), of the codes from -MOST on, infinite where one may not be."""
    p = _mix(0, 1, start, kind, calm, runs, best, guesses, chance, weights, squash, stretch, slots, inputs)
    chosen, least, apart = start, costs[start + MOST] + lengths[4096 - p], lengths[p]
    p = _mix(1, 1, start, kind, calm, runs, best, guesses, chance, weights, squash, stretch, slots, inputs)
    both = abs(start) + spacing <= MOST
    for side in (1, -1):
        if start * side + spacing > MOST:
            continue
        so_far = apart
        if both:
            so_far += lengths[4096 - p] if side > 0 else lengths[p]
        value, node = start + side * spacing, 2
        while value * side <= MOST and so_far < least:
            stop = so_far
            if value * side + spacing <= MOST:
                q = _mix(
                    min(node, NODES - 1), side, value, kind, calm, runs, best, guesses, chance, weights, squash, stretch, slots, inputs
                )
                stop += lengths[4096 - q]
                so_far += lengths[q]
            if costs[value + MOST] + stop < least:
                chosen, least = value, costs[value + MOST] + stop
            value += side * spacing
            node += 1
    return chosen


@njit(cache=True, nogil=True)
def walk_codes(
    reading, values, dependent, taps, kind, partner, known, state, words, chance, seen, weights, squash, stretch, steps, trace, count, costs, lengths
):
    """All codes of one array.

    values: int64 (n,) in -64..64, read or written; dependent: whether they are those of two quantizers, `2 k + (s & 1)` with the states of
    a trellis (`next_latent`); taps: distance to the code of the same tap of the input before; partner, known: int64 (n,), an
    earlier array that resembles this one, and one of the same axis of the same tensor; chance: uint16 and seen: uint8 (CONTEXTS, SLOTS); weights: int32
    (NODES * KINDS, CONTEXTS); trace: int32, probabilities and decisions if not `reading`; costs: float64 (n, 129), bits that every code costs elsewhere, with
    which the codes are chosen first, and lengths: float64 (4097,), bits of a probability in 1/4096; (0, 0) if they are given.  Returns the number
    of decisions.
    """
    x, at = state[0], np.int64(state[1]) - 1
    guesses, errors = np.zeros(GUESSES, np.int64), np.full(EXPERTS, 64, np.int64)
    slots, inputs = np.zeros(CONTEXTS, np.int64), np.zeros(CONTEXTS, np.int64)
    latest = np.zeros(2 * MOST + 1, np.int64)  # code at the last place where the known array had this number
    errors[0] = 40
    activity, run, mean = 16, 0, 0
    spacing, s = (2 if dependent else 1), 0
    for j in range(len(values)):
        _foresee(values, j, taps, partner, known, latest, mean, guesses)
        best = 0
        for m in range(1, EXPERTS):
            if errors[m] < errors[best]:
                best = m
        start = min(max(guesses[best], -MOST), MOST)
        if dependent and (start ^ s) & 1:
            start += -1 if start > 0 else 1
        calm = _octave(activity)
        runs = min(run, 3) * 2 + (1 if errors[_LIKE] < 8 else 0)
        if len(costs):
            values[j] = _choose(
                start, spacing, costs[j], lengths, kind, calm, runs, best, guesses, chance, weights, squash, stretch, slots, inputs
            )
        target = values[j]
        value, side, node, going = start, 1, 0, True
        while going:
            bit = 1 if (target != start if node == 0 else (target < start if node == 1 else (target - value) * side > 0)) else 0
            at_node = min(node, NODES - 1)
            p = _mix(at_node, side, value, kind, calm, runs, best, guesses, chance, weights, squash, stretch, slots, inputs)
            bit, x, at, count = _decide(reading, bit, p, x, at, words, trace, count)
            _learn(bit, p, at_node * KINDS + kind, chance, seen, weights, steps, slots, inputs)
            if node == 0 and bit and abs(start) + spacing <= MOST:
                node = 1
                continue
            if node == 0:  # at an end there is one side only
                side = -1 if start > 0 else 1
            elif node == 1:
                side = -1 if bit else 1
            going = bit == 1 or node == 1
            if going:
                value += side * spacing
                node = max(node + 1, 2)
                going = value * side + spacing <= MOST
        values[j] = value
        if dependent:
            s = next_latent(s, value)
        latest[known[j] + MOST] = value
        for m in range(EXPERTS):
            errors[m] += (abs(value - guesses[m]) * 16 - errors[m]) >> 3
        activity += (abs(value - start) * 16 - activity) >> 3
        run = run + 1 if value == partner[j] else 0
        mean += (16 * value - mean) >> 4
    state[0], state[1] = x, at + 1
    return count


@njit(cache=True, nogil=True)
def follow_states(values):
    """Whether all codes have the parity that the states of dependent quantizers ask for."""
    s = 0
    for j in range(len(values)):
        if (values[j] ^ s) & 1:
            return False
        s = next_latent(s, values[j])
    return True


@njit(cache=True, nogil=True)
def search_latents(costs, values):
    """The codes of dependent quantizers that cost least: Viterbi over the 8 states.  costs: float64 (n, 129), of the codes from -MOST on; values: int64
    (n,), result; returns the least cost, infinite if there are none."""
    n = len(costs)
    metric = np.full(8, np.inf)
    metric[0] = 0.0
    before, chosen = np.zeros((n, 8), np.int8), np.zeros((n, 8), np.int16)
    for j in range(n):
        fresh = np.full(8, np.inf)
        for s in range(8):
            if metric[s] == np.inf:
                continue
            for parity in range(2):  # of k: the least of all codes with it
                least, best = np.inf, 0
                for code in range(-MOST + ((s & 1) + 2 * parity + MOST) % 4, MOST + 1, 4):
                    if costs[j, code + MOST] < least:
                        least, best = costs[j, code + MOST], code
                to = next_latent(s, best)
                if metric[s] + least < fresh[to]:
                    fresh[to] = metric[s] + least
                    before[j, to], chosen[j, to] = s, best
        metric = fresh
    s = np.argmin(metric)
    least = metric[s]
    for j in range(n - 1, -1, -1):
        values[j] = chosen[j, s]
        s = before[j, s]
    return least


@njit(cache=True, nogil=True)
def push_bits(trace, count, x, number, words):
    """Push decisions of a trace, last first, onto a coder with the state x and so many words: (state, number of words)."""
    for i in range(count - 1, -1, -1):
        p, bit = _U(trace[i] >> 1), trace[i] & 1
        low = (_U(4096) - p) << _U(12)
        frequency = (p << _U(12)) if bit else low
        if (x >> _U(40)) >= frequency:
            words[number] = np.uint32(x & _U(0xFFFFFFFF))
            number += 1
            x >>= _U(32)
        x = ((x // frequency) << _U(24)) + x % frequency + (low if bit else _U(0))
    return x, number
