"""Section 18 of the page: tiled tensors."""
from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np

from .checks import chained
from .entropy import Coder
from .notation import Bytes, must
from .tables import Table, exponential, normalise

MOST = 1 << 30
TABLES = 101
Place = tuple[int, int]


@dataclass
class Codes:
    mode: int
    spread: int
    length: int


@dataclass
class Tiling:
    """What a tiled record says; depth = 0: no predictor; units = 0: a linear one."""
    rows: int
    columns: int
    transforms: tuple[int, int]                                        # of tiles without and with prediction
    step: np.float32
    steps: int
    offset: int
    mean: int
    height: int
    width: int
    scales: Codes
    tables: Codes
    depth: int = 0
    reach: int = 0
    shift: int = 0
    units: int = 0
    hidden_shift: int = 0
    bias: int = 0
    weights: Codes | None = None
    length: int = 0

    @property
    def stored(self) -> int:
        return sum(c.length for c in (self.scales, self.tables, self.weights) if c) + self.length


def read_tiling(lanes: dict[str, Bytes], shape: tuple[int, ...], read_codes) -> Tiling:
    def byte(lane: str, low: int, high: int) -> int:
        value = lanes[lane].byte()
        must(low <= value <= high, f"{value} in the lane {lane}")
        return value

    recipe, transforms = byte("recipes", 0, 47), byte("quantizers", 0, 15)
    predictor, split = recipe >> 4, recipe & 15
    must(split <= len(shape), "an illegal recipe")
    must(transforms & 3 <= 2 and transforms >> 2 <= 2, "an unknown transform")
    lower, upper = lanes["fine"].take(2), lanes["steps"].take(2)
    step = np.float32(struct.unpack("<f", lower + upper)[0])
    must(bool(np.isfinite(step)) and step > 0, "a step that is not positive and finite")
    steps, offset = byte("models", 0, 22), byte("bases", 0, 62) - 31
    lanes["noises"].byte()
    mean = lanes["values"].signed(MOST)
    height, width = byte("grids", 1, 16), byte("grids", 1, 16)
    rows, columns = math.prod(shape[:split]), math.prod(shape[split:])
    found = Tiling(rows, columns, (transforms & 3, transforms >> 2), step, steps, offset, mean, height, width, read_codes(lanes),
                   read_codes(lanes))
    if predictor:
        found.depth, found.reach, found.shift = byte("grids", 1, 2), byte("grids", 0, 16), byte("quantizers", 0, 12)
        if predictor == 2:
            found.units = byte("grids", 1, 16)
            found.hidden_shift, found.bias = byte("quantizers", 0, 12), byte("quantizers", 0, 20)
        found.weights = read_codes(lanes)
        must(sum(map(len, network(found))) <= math.prod(shape), "more weights than elements")
    found.length = lanes["lengths"].varint(1 << 43)
    return found


def context(t: Tiling) -> list[Place]:
    """Places of the context, from the corner of the tile."""
    spill = min(t.reach, t.width)
    return [(y, x) for y in range(-1, -t.depth - 1, -1) for x in range(-t.depth, t.width + spill)] + [
        (y, x) for x in range(-1, -t.depth - 1, -1) for y in range(t.height)]


def network(t: Tiling) -> tuple[list[tuple[Place, Place]], list, list, list]:
    """What the weights belong to, in the order of the file: (pixel, context pixel), (unit, context pixel), units,
    (unit, pixel)."""
    near, offsets, places = range(-1, -t.depth - 1, -1), range(-t.reach, t.reach + 1), context(t)
    high, wide, spill = range(t.height), range(t.width), min(t.reach, t.width)
    linear = [((i, j), (y, j + d)) for y in near for i in high for d in offsets for j in wide if 0 <= j + d < t.width + spill]
    linear += [((i, j), (i + d, x)) for x in near for j in wide for d in offsets for i in high if 0 <= i + d < t.height]
    linear += [((i, j), (y, x)) for y in near for x in near for i in high for j in wide]
    units = range(t.units)
    return (linear, [(n, place) for n in units for place in places], list(units),
            [(n, (i, j)) for n in units for i in high for j in wide])


def halved(t: int, s: int) -> int:
    """`round` of the page."""
    return (t + (1 << s) // 2) >> s


def clip(n: int) -> int:
    return min(max(n, -MOST), MOST)


def basis(transform: int, n: int, u: int, x: int) -> int:
    if transform == 1:
        scale = math.sqrt(1 / n) if u == 0 else math.sqrt(2 / n)
        return round(16384 * scale * math.cos(math.pi * (2 * x + 1) * u / (2 * n)))
    return round(16384 * (2 / math.sqrt(2 * n + 1)) * math.sin(math.pi * (2 * u + 1) * (x + 1) / (2 * n + 1)))


def bit_table(code: int) -> Table:
    rare = exponential(64 * abs(code))
    return Table(0, normalise([1 << 32, rare] if code >= 0 else [rare, 1 << 32]))


class Plane:
    """A plane while its tiles are decoded."""

    def __init__(self, t: Tiling, scales: list[int], tables: list[int], weights: list[int], stream: bytes) -> None:
        self.t, self.scales, self.coder = t, scales, Coder(stream)
        self.tables = [*map(bit_table, tables), Table(0, [1 << 23, 1 << 23])]
        self.pixels: dict[Place, int] = {}
        self.flags: dict[Place, int] = {}
        self.skipped = self.digest = 0
        self.places = context(t) if t.depth else []
        values = iter(weights)
        lists = network(t) if t.depth else ([], [], [], [])
        self.linear, self.inner, self.bias, self.outer = ([(key, next(values)) for key in keys] for keys in lists)

    def bit(self, table: int) -> int:
        return self.coder.symbol(self.tables[table])

    def predict(self, top: int, left: int) -> dict[Place, int]:
        t = self.t
        around = {(y, x): self.pixels.get((top + y, left + x), 0) for y, x in self.places}
        sums = [b << t.bias for _, b in self.bias]
        for (n, place), weight in self.inner:
            sums[n] += weight * around[place]
        active = [clip(max(0, halved(total, t.hidden_shift))) for total in sums]
        out = {(i, j): 0 for i in range(t.height) for j in range(t.width)}
        for (pixel, place), weight in self.linear:
            out[pixel] += weight * around[place]
        for (n, pixel), weight in self.outer:
            out[pixel] += weight * active[n]
        return {pixel: clip(halved(total, t.shift)) for pixel, total in out.items()}

    def decode_tile(self, top: int, left: int) -> None:
        t = self.t
        h, w = min(t.height, t.rows - top), min(t.width, t.columns - left)
        flag = 0
        if t.depth:
            flag = self.bit(96 + self.flags.get((top, left - t.width), 0) + self.flags.get((top - t.height, left), 0))
            self.flags[top, left] = flag
        prediction = self.predict(top, left) if flag else {}
        if t.steps and not self.bit(99):
            ones = 0
            while ones < t.steps - 1 and self.bit(100):
                ones += 1
            self.skipped = ones if ones < self.skipped else ones + 1
        z = self.skipped
        levels = {(u, v): 0 for u in range(h) for v in range(w)}
        sign = dict.fromkeys(levels, 1)
        for b in range(t.steps - 1, z - 1, -1):
            for u, v in levels:
                k = levels[u, v]
                s = self.scales[(flag * t.height + u * t.height // h) * t.width + v * t.width // w]
                m = min(k, 2) if k < 4 else 3
                levels[u, v] = 2 * k + self.bit(24 * m + min(max(s - 4 * b, -10), 13) + 10)
                if levels[u, v] == 1 and self.bit(101):
                    sign[u, v] = -1
        lower = ((1 << z) - 1) * 32 + (t.offset << z)
        found = {place: sign[place] * ((k << (z + 6)) + lower) if k else 0 for place, k in levels.items()}
        self.place(top, left, h, w, prediction, found, t.transforms[flag])

    def place(self, top: int, left: int, h: int, w: int, prediction: dict[Place, int], found: dict[Place, int],
              transform: int) -> None:
        if transform:
            down = [[basis(transform, h, u, y) for y in range(h)] for u in range(h)]
            along = [[basis(transform, w, v, x) for x in range(w)] for v in range(w)]
            half = {(u, x): sum(found[u, v] * along[v][x] for v in range(w)) for u in range(h) for x in range(w)}
            found = {(y, x): ((1 << 27) + sum(half[u, x] * down[u][y] for u in range(h))) >> 28
                     for y in range(h) for x in range(w)}
        for y in range(h):
            for x in range(w):
                n = clip(prediction.get((y, x), 0) + found[y, x])
                self.pixels[top + y, left + x] = n
                self.digest = chained(self.digest, n)


def tiled_bytes(t: Tiling, dtype: str, stored: bytes, digests: list[int], all_codes, rounded) -> bytes:
    """all_codes, rounded: of sections 8 and 11."""
    source = Bytes(stored)
    area = t.height * t.width
    scales = all_codes(source.take(t.scales.length), t.scales, 2 * area if t.depth else area)
    tables = all_codes(source.take(t.tables.length), t.tables, TABLES)
    weights = all_codes(source.take(t.weights.length), t.weights, sum(map(len, network(t)))) if t.weights else []
    plane = Plane(t, scales, tables, weights, source.take(t.length))
    for top in range(0, t.rows, t.height):
        for left in range(0, t.columns, t.width):
            plane.decode_tile(top, left)
    plane.coder.end()
    digests.append(plane.digest)
    numbers = np.array([[plane.pixels[y, x] + t.mean for x in range(t.columns)] for y in range(t.rows)], np.int64)
    with np.errstate(all="ignore"):
        values = (numbers.astype(np.float32) * np.float32(1 / 64)) * t.step
    must(bool(np.isfinite(values).all()), "an infinite value")
    return rounded(values, dtype)
