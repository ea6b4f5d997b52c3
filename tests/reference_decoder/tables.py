"""Sections 4 and 9 of the page: explicit sets and the tables that the levels are coded with."""
from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate

from .notation import Bytes, must

# ---- 4. Explicit sets ------------------------------------------------------------------------------------------------

@dataclass
class Table:
    low: int
    frequencies: list[int]
    starts: list[int] = field(init=False)                              # F of section 10

    def __post_init__(self) -> None:
        assert min(self.frequencies) >= 1 and sum(self.frequencies) == 1 << 24
        self.starts = [0, *accumulate(self.frequencies)][:-1]


@dataclass
class ExplicitSet:
    shape: int
    coded: dict[int, Table]                                            # 2 * scale index + quantizer: table


def read_set(source: Bytes) -> ExplicitSet:
    shape = source.byte()
    must(shape <= 7, "an explicit set on an unknown shape")
    coded, number = {}, 1
    for _ in range(source.varint(74)):
        before, number = number, source.byte()
        must(before < number <= 73, "numbers of tables that do not rise")
        low, symbols = source.signed(258), source.varint(258)
        must(symbols >= 2, "a table of one symbol")
        lengths = list(accumulate((source.signed(192) for _ in range(symbols)), initial=64))[1:]
        must(all(0 <= length <= 192 for length in lengths), "a code length out of range")
        coded[number] = Table(low, normalise([exponential(32 * length) for length in lengths]))
    return ExplicitSet(shape, coded)


# ---- 9. Tables -------------------------------------------------------------------------------------------------------

def root(n: int, times: int) -> int:
    for _ in range(times):
        n = math.isqrt(n)
    return n


POWERS = [root(1 << (8192 - i), 8) for i in range(256)]
R = (65536, 77935, 92681, 110217)
SHAPES = ((2, 1048576, 1521536), (2, 196608, 325711), (2, 98304, 209554), (2, 45875, 160503), (2, 16384, 139663),
          (4, 65536, 497712), (4, 32768, 390751),
          (4, 3276, 318321))                                           # order, d, a


def exponential(t: int) -> int:
    return POWERS[t & 255] >> min(t >> 8, 62)


def normalise(weights: list[int]) -> list[int]:
    total, n = sum(weights), len(weights)
    frequencies = [1 + w * ((1 << 24) - n) // total for w in weights]
    frequencies[weights.index(max(weights))] += (1 << 24) - sum(frequencies)
    return frequencies


def level_weights(shape: int, c: int, q: int, low: int, high: int) -> list[int]:
    n = 17 - c
    return shape_weights(shape, R[n % 4] << (n // 4 + 8), q, low, high)


def shape_weights(shape: int, m: int, q: int, low: int, high: int) -> list[int]:
    order, d, a = SHAPES[shape]
    out = []
    for k in range(low, high + 1):
        y = (abs(2 * k + q) * m) >> 9
        r = math.isqrt(d * d + y * y)
        g = r - d if order == 2 else math.isqrt(r << 16) - math.isqrt(d << 16)
        out.append(exponential((a * g) >> 24))
    return out


@cache
def parametric_table(shape: int, c: int, q: int) -> Table:
    n = c - 17
    v = (R[n % 4] << (n // 4 + 8)) >> 16
    reach = min(127, 2 + ((6 * v) >> 8))
    w = level_weights(shape, c, q, -reach - q, reach)
    return Table(-reach - q, normalise([*w, max(1, sum(w) >> 14)]))


@cache
def scale_table(spread: int) -> Table:
    return Table(-128, normalise(level_weights(2, spread + 8, 0, -128, 128)))


def table_of(model: int, sets: list[ExplicitSet], number: int) -> Table:
    shape = model
    if model >= 8:
        explicit = sets[model - 8]
        if number in explicit.coded:
            return explicit.coded[number]
        shape = explicit.shape
    return parametric_table(shape, number >> 1, number & 1)
