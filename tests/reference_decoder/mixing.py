"""Section 19 of the page: mixed bytes."""
from __future__ import annotations

import copy
import hashlib
from functools import lru_cache
from pathlib import Path

from .notation import must

PRIOR = Path(__file__).parents[2] / "nnc" / "entropy" / "prior.bin"  # data that the page names by its hash
PAGE = Path(__file__).parents[2] / "nnc" / "FORMAT.md"
A = [1, 2, 3, 6, 10, 16, 27, 45, 73, 120, 194, 310, 488, 747, 1101, 1546, 2048, 2550, 2995, 3349, 3608, 3786, 3902, 3976, 4023,
     4051, 4069, 4080, 4086, 4090, 4093, 4094, 4095]
LETTERS = {*range(65, 91), 95, *range(97, 123)}


def squash(x: int) -> int:
    i, w = (x >> 7) + 16, x & 127
    return (A[i] * (128 - w) + A[min(i + 1, 32)] * w + 64) >> 7


SQUASH = [squash(x) for x in range(-2047, 2048)]
STRETCH = [next(x for x in range(-2047, 2048) if SQUASH[x + 2047] >= p) for p in range(4096)]


class Model:
    """Everything that learns."""

    def __init__(self) -> None:
        self.h: list[int] = []
        self.counters: list[dict[int, tuple[int, int]]] = [{} for _ in range(7)]
        self.weights = [[19660] * 8 for _ in range(3)]
        self.last: dict[int, int] = {}
        self.word = self.length = self.place = 0

    def copy(self) -> Model:
        other = copy.copy(self)
        other.h, other.last = self.h[:], self.last.copy()
        other.counters, other.weights = [c.copy() for c in self.counters], [w[:] for w in self.weights]
        return other

    def byte(self, bit) -> int:
        """The next byte; bit: of a probability, the next bit."""
        a, b, c, d = (self.h[-k] if len(self.h) >= k else 0 for k in (1, 2, 3, 4))
        v = [0, a, 256 * b + a, 65536 * c + 256 * b + a, 2**24 * d + 65536 * c + 256 * b + a, 256 * c + b, self.word]
        foretold = [self.h[self.place] >> n & 1 for n in range(7, -1, -1)] if self.length > 0 else None
        node = 1
        for number in range(8):
            if foretold and number and (node & 1) != foretold[number - 1]:
                foretold = None
            last = 128 * min(self.length, 15) * (1 if foretold[number] else -1) if foretold else 0
            weights = self.weights[0 if not foretold else 1 if self.length < 8 else 2]
            slots = [((value * 0x9E3779B97F4A7C15 + node * 0xC2B2AE3D27D4EB4F) % 2**64) >> 48 for value in v]
            found = [self.counters[m].get(slot, (32768, 0)) for m, slot in enumerate(slots)]
            inputs = [STRETCH[t >> 4] for t, _ in found] + [last]
            p = SQUASH[max(-2047, min(2047, sum(w * x for w, x in zip(weights, inputs)) >> 16)) + 2047]
            y = bit(p)
            for m, x in enumerate(inputs):
                weights[m] += (x * (((y << 12) - p) * 10) + 32768) >> 16
            for m, (t, seen) in enumerate(found):
                self.counters[m][slots[m]] = t + ((65535 * y - t) * (131072 // (2 * seen + 3)) >> 16), min(seen + 1, 30)
            node = 2 * node + y
        x = node - 256
        self.h.append(x)
        if self.length > 0 and self.h[self.place] == x:
            self.length, self.place = self.length + 1, self.place + 1
        else:
            self.length = 0
        self.word = (271 * self.word + x + 1) % 2**32 if x in LETTERS else 0
        i = len(self.h) - 1
        if i >= 2:
            key = ((65536 * self.h[i - 2] + 256 * self.h[i - 1] + x) * 0x9E3779B1 % 2**32) >> 16
            j = self.last.get(key)
            if self.length == 0 and j is not None:
                length = 0
                while length < min(32, j + 1) and self.h[j - length] == self.h[i - length]:
                    length += 1
                self.length, self.place = (length if length >= 3 else 0), j + 1
            self.last[key] = i
        return x


@lru_cache(maxsize=1)
def primed() -> Model:
    prior = PRIOR.read_bytes()
    assert hashlib.sha256(prior).hexdigest() in PAGE.read_text(), "the prior is not that of the page"
    model = Model()
    for byte in prior:
        bits = iter([byte >> n & 1 for n in range(7, -1, -1)])
        model.byte(lambda p: next(bits))
    return model


def unmix(coded: bytes, length: int) -> bytes:
    model = primed().copy()
    low, high, count = 0, 2**32 - 1, 0
    padded = coded + bytes(4)

    def bit(p: int) -> int:
        nonlocal low, high, count
        middle = low + ((high - low) >> 12) * p + ((((high - low) & 4095) * p) >> 12)
        number = int.from_bytes(padded[count:count + 4].ljust(4, b"\0"), "big")
        y = int(number <= middle)
        low, high = (low, middle) if y else (middle + 1, high)
        while low >> 24 == high >> 24:
            low, high, count = 256 * low % 2**32, 256 * high % 2**32 + 255, count + 1
        return y

    out = bytes(model.byte(bit) for _ in range(length))
    must(count + 1 == len(coded), "mixed bytes of another length")
    return out
