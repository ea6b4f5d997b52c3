"""The mixing coder: bits of bytes, foretold by counters of several contexts, mixed by weights that learn; integers only.

Logistic mixing of M. Mahoney's PAQ family ("Adaptive weighing of context models for lossless data compression", 2005), small: seven
contexts, a match, one binary arithmetic coder of 32 bits.  FORMAT.md says every number.
"""

from __future__ import annotations

import numpy as np
from numba import njit

CONTEXTS = 7
SLOTS = 16  # bits of the number of a counter
_SHIFT = np.uint64(64 - SLOTS)
_BY_CONTEXT, _BY_NODE = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
_BY_KEY = 0x9E3779B1
MOST_SEEN = 30
WEIGHT, RATE = 19660, 10
_HIGH = 0xFF000000
_ALL = 0xFFFFFFFF


@njit(cache=True, nogil=True)
def mix_bytes(history, known, stop, squash, stretch, steps, coded, decode):
    """Code bytes known..stop of `history` (uint8, holds the bytes from 0 that both sides know, and, to encode, all).

    squash, stretch: int32 (4095,) and (4096,); steps: int32 (MOST_SEEN + 1,); coded: uint8, read if `decode`, else written.  Returns the
    number of coded bytes: those written, or those that a writer would have written for what was read.
    """
    chance = np.full((CONTEXTS, 1 << SLOTS), 32768, np.int32)
    seen = np.zeros((CONTEXTS, 1 << SLOTS), np.uint8)
    weights = np.full((3, CONTEXTS + 1), WEIGHT, np.int64)  # they have no bound, and 2^21 bits cannot bring them near that of 64
    last = np.full(1 << 16, -1, np.int64)
    values, slots, inputs = np.zeros(CONTEXTS, np.uint64), np.zeros(CONTEXTS, np.int64), np.zeros(CONTEXTS + 1, np.int64)
    match = length = word = 0
    low, high, read, count = 0, _ALL, 0, 0
    if decode:
        for i in range(4):
            read = read << 8 | (np.int64(coded[i]) if i < len(coded) else 0)
    for i in range(stop):
        a = np.int64(history[i - 1]) if i > 0 else 0
        b = np.int64(history[i - 2]) if i > 1 else 0
        c = np.int64(history[i - 3]) if i > 2 else 0
        d = np.int64(history[i - 4]) if i > 3 else 0
        values[1] = a
        values[2] = b << 8 | a
        values[3] = c << 16 | b << 8 | a
        values[4] = d << 24 | c << 16 | b << 8 | a
        values[5] = c << 8 | b
        values[6] = word
        foretold = np.int64(history[match]) if length > 0 else -1
        trust = 128 * min(length, 15)
        node = 1
        for bit in range(7, -1, -1):
            if foretold >= 0 and (foretold | 256) >> (bit + 1) != node:
                foretold = -1
            which = 0 if foretold < 0 else (1 if length < 8 else 2)
            inputs[CONTEXTS] = 0 if foretold < 0 else (trust if foretold >> bit & 1 else -trust)
            total = weights[which, CONTEXTS] * inputs[CONTEXTS]
            for m in range(CONTEXTS):
                slots[m] = np.int64((values[m] * _BY_CONTEXT + np.uint64(node) * _BY_NODE) >> _SHIFT)
                inputs[m] = stretch[chance[m, slots[m]] >> 4]
                total += weights[which, m] * inputs[m]
            p = np.int64(squash[min(max(total >> 16, -2047), 2047) + 2047])
            if i < known:
                y = np.int64(history[i]) >> bit & 1
            else:
                span = high - low
                middle = low + (span >> 12) * p + ((span & 4095) * p >> 12)
                y = (1 if read <= middle else 0) if decode else np.int64(history[i]) >> bit & 1
                if y:
                    high = middle
                else:
                    low = middle + 1
                while (low ^ high) & _HIGH == 0:
                    if not decode:
                        coded[count] = high >> 24
                    count += 1
                    low = low << 8 & _ALL
                    high = (high << 8 & _ALL) | 255
                    if decode:
                        read = (read << 8 & _ALL) | (np.int64(coded[count + 3]) if count + 3 < len(coded) else 0)
            error = ((y << 12) - p) * RATE
            for m in range(CONTEXTS + 1):
                weights[which, m] += (inputs[m] * error + 32768) >> 16
            for m in range(CONTEXTS):
                t, n = np.int64(chance[m, slots[m]]), seen[m, slots[m]]
                chance[m, slots[m]] = t + ((65535 * y - t) * steps[n] >> 16)
                if n < MOST_SEEN:
                    seen[m, slots[m]] = n + 1
            node = 2 * node + y
        byte = node & 255
        history[i] = byte
        if length > 0 and history[match] == byte:
            length += 1
            match += 1
        else:
            length = 0
        letter = (65 <= byte <= 90) or byte == 95 or (97 <= byte <= 122)
        word = (word * 271 + byte + 1) & _ALL if letter else 0
        if i >= 2:
            key = ((np.int64(history[i - 2]) << 16 | np.int64(history[i - 1]) << 8 | byte) * _BY_KEY & _ALL) >> 16
            place = last[key]
            if length == 0 and place >= 0:
                while length < 32 and length <= place and history[place - length] == history[i - length]:
                    length += 1
                match = place + 1
                if length < 3:
                    length = 0
            last[key] = i
    if not decode:
        coded[count] = high >> 24
    return count + 1
