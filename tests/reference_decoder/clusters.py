"""Section 8 of the page: outliers and codebooks of coded tensors."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .entropy import Coder
from .notation import Bytes, inflate, must
from .tables import Table, exponential, normalise

SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}

# ---- Outliers --------------------------------------------------------------------------------------------------------

@dataclass
class Outliers:
    number: int
    mode: int
    parameters: list[int]
    kind: int
    deflated: int
    step: np.float32
    lengths: tuple[int, int]

    @property
    def length(self) -> int:
        return sum(self.lengths)


def read_outliers(lanes: dict[str, Bytes], elements: int) -> Outliers:
    tools = lanes["tools"]
    number = tools.varint(elements)
    must(number >= 1, "no outliers")
    form = tools.byte()
    deflated, mode, kind = form >> 7, form >> 4 & 7, form & 15
    must(mode <= 3 and kind <= 2, "an unknown form of outliers")
    parameters = []
    if mode == 1:
        parameters = [tools.varint(40)]
    if mode == 2:
        parameters = [tools.varint(number), tools.varint(40), tools.varint(40)]
        must(parameters[0] >= 1, "no runs")
    step = np.float32(0)
    if kind == 2:
        step = np.frombuffer(tools.take(4), "<f4")[0]
        must(bool(np.isfinite(step)) and step > 0, "a step of outliers that is not positive and finite")
    return Outliers(number, mode, parameters, kind, deflated, step, (lanes["lengths"].varint(1 << 43), lanes["lengths"].varint(1 << 43)))


def place_outliers(outliers: Outliers, stored: bytes, dtype: str, data: bytes, rounded: Callable[[np.ndarray, str], bytes]) -> bytes:
    """data: the tensor without them."""
    source, size = Bytes(stored), SIZES[dtype]
    where = positions(outliers, source.take(outliers.lengths[0]), len(data) // size)
    width = size if outliers.kind == 0 else 2
    raw = source.take(outliers.lengths[1])
    raw = inflate(raw, outliers.number * width) if outliers.deflated else raw
    must(len(raw) == outliers.number * width, "outliers of another length")
    elements = [raw[i::outliers.number] for i in range(outliers.number)]
    if outliers.kind:
        values = np.frombuffer(b"".join(elements), "<f2" if outliers.kind == 1 else "<i2").astype(np.float32)
        with np.errstate(all="ignore"):
            values = values if outliers.kind == 1 else values * outliers.step
        must(bool(np.isfinite(values).all()), "an outlier that is not finite")
        flat = rounded(values, dtype)
        elements = [flat[i * size:(i + 1) * size] for i in range(outliers.number)]
    must(all(is_finite(element, dtype) for element in elements), "an outlier that is not finite")
    out = bytearray(data)
    for place, element in zip(where, elements):
        out[place * size:(place + 1) * size] = element
    return bytes(out)


def is_finite(element: bytes, dtype: str) -> bool:
    bits = int.from_bytes(element, "little")
    mask = {"float32": 0x7F800000, "float16": 0x7C00, "bfloat16": 0x7F80}[dtype]
    return bits & mask != mask


def positions(outliers: Outliers, data: bytes, elements: int) -> list[int]:
    number = outliers.number
    if outliers.mode == 0:
        p = min(max((number << 24) // elements, 1), (1 << 24) - 1)
        coder, table = Coder(data), Table(0, [(1 << 24) - p, p])
        out = [i for i in range(elements) if coder.symbol(table)]
        coder.end()
        must(len(out) == number, "another number of outliers")
        return out
    if outliers.mode == 3:
        width = max(1, -(-(elements - 1).bit_length() // 8))
        raw = inflate(data, number * width)
        gaps = [int.from_bytes(raw[i::number], "little") for i in range(number)]
    else:
        bits = Bits(data)
        if outliers.mode == 1:
            gaps = bits.numbers(number, outliers.parameters[0])
        else:
            runs, b0, b1 = outliers.parameters
            zeros, gaps = bits.numbers(runs, b0), []
            ones = [length + 1 for length in bits.numbers(runs, b1)]
            must(sum(ones) == number, "runs that do not add up")
            for zero, one in zip(zeros, ones):
                gaps += [zero] + [0] * (one - 1)
        bits.end()
    out, place = [], -1
    for gap in gaps:
        place += gap + 1
        out.append(place)
    must(place < elements, "an outlier beyond the tensor")
    return out


class Bits:
    def __init__(self, data: bytes) -> None:
        self.bits, self.at = "".join(f"{byte:08b}" for byte in data), 0

    def take(self, count: int) -> str:
        must(count <= len(self.bits) - self.at, "too few bits")
        self.at += count
        return self.bits[self.at - count:self.at]

    def numbers(self, count: int, b: int) -> list[int]:
        quotients = []
        for _ in range(count):
            end = self.bits.find("1", self.at)
            must(end >= 0, "too few bits")
            quotients.append(end - self.at)
            self.at = end + 1
        return [(quotient << b) + int("0" + self.take(b), 2) for quotient in quotients]

    def end(self) -> None:
        must(len(self.bits) - self.at < 8 and "1" not in self.bits[self.at:], "bits are left over")


# ---- Codebooks -------------------------------------------------------------------------------------------------------

@dataclass
class Codebook:
    mode: int
    size: int                                                          # n
    across: int
    along: int
    rows: int                                                          # of the grid
    columns: int
    taps: int
    centroids: int
    zero: int
    form: int
    codes: object                                                      # of the components, None if they are binary16
    halves: int
    table: int

    @property
    def components(self) -> int:
        return self.across * self.along * self.centroids * self.size

    @property
    def length(self) -> int:
        return (self.codes.length if self.codes else self.halves) + self.table


def read_codebook(lanes: dict[str, Bytes], rows: int, columns: int, taps: int, shift: int, read_codes: Callable) -> Codebook:
    """rows, columns: of the plane."""
    tools, elements = lanes["tools"], rows * columns
    mode = tools.byte()
    must(mode <= 5, "an unknown mode of points")
    size = tools.varint(elements) if mode in (1, 5) else 0
    must(mode not in (1, 5) or size >= 2, "a sub-vector of one")
    across, along = tools.varint(elements), tools.varint(elements)
    must(across >= 1 and along >= 1, "no sub-spaces")

    def divided(number: int, by: int) -> int:
        must(number % by == 0, "points that do not fit the plane")
        return number // by

    must(mode != 2 or taps >= 2, "kernels of one tap")
    high, wide, n = [lambda: (rows, columns, 1), lambda: (rows, divided(columns, size), size), lambda: (rows, divided(columns, taps), taps),
                     lambda: (rows, along, divided(columns, along)), lambda: (divided(columns, taps), along, divided(rows, along) * taps),
                     lambda: (divided(rows, size), columns, size)][mode]()
    must(across <= high and along <= wide, "more sub-spaces than points")
    centroids = tools.varint(1 << 16)
    must(1 <= centroids and centroids * across * along * n <= elements, "a number of centroids that is out of range")
    zero, form = tools.varint(centroids - 1), tools.byte()
    must(form <= 15, "an unknown form of a codebook")
    codes = read_codes(lanes) if form & 1 else None
    halves = 0 if codes else lanes["lengths"].varint(1 << 43)
    table = lanes["lengths"].varint(1 << 43) if form & 2 else 0
    must(not form & 2 or (table >= 1 and zero == 0 and -(-centroids // (1 << shift)) <= 257), "a table that is out of range")
    return Codebook(mode, n, across, along, high, wide, taps, centroids, zero, form, codes, halves, table)


def read_centroids(codebook: Codebook, stored: bytes, shift: int, all_codes: Callable) -> tuple[np.ndarray, Table | None]:
    """float32 (sub-spaces * centroids, n), and the table of the levels if there is one."""
    source, count = Bytes(stored), codebook.components
    if codebook.codes:
        numbers = np.array(all_codes(source.take(codebook.codes.length), codebook.codes, count), np.float32)
    else:
        raw = source.take(codebook.halves)
        raw = inflate(raw, 2 * count) if codebook.form & 4 else raw
        must(len(raw) == 2 * count, "centroids of another length")
        numbers = np.frombuffer(b"".join(raw[i::count] for i in range(count)), "<f2").astype(np.float32)
    table = None
    if codebook.table:
        symbols, raw = -(-codebook.centroids // (1 << shift)), source.take(codebook.table)
        lengths = inflate(raw, symbols) if codebook.form & 8 else raw
        must(len(lengths) == symbols and max(lengths) <= 192, "code lengths out of range")
        table = Table(0, normalise([exponential(32 * length) for length in [*lengths, 192]]))
    return numbers.reshape(-1, codebook.size), table


def codebook_plane(codebook: Codebook, levels: np.ndarray, centroids: np.ndarray, row_step: np.ndarray, rows: int,
                   columns: int) -> np.ndarray:
    """rows, columns: of the plane; levels: int64 of the grid."""
    plane = np.zeros((rows, columns), np.float32)
    n, taps = codebook.size, codebook.taps
    for i in range(codebook.rows):
        for j in range(codebook.columns):
            number = int(levels[i, j]) + codebook.zero
            must(0 <= number < codebook.centroids, "a centroid that does not exist")
            space = i * codebook.across // codebook.rows * codebook.along + j * codebook.along // codebook.columns
            with np.errstate(all="ignore"):
                point = centroids[space * codebook.centroids + number] * row_step[i]
            for c in range(n):
                if codebook.mode == 4:
                    part = rows // codebook.along
                    row, column = j * part + c // taps, i * taps + c % taps
                elif codebook.mode == 5:
                    row, column = i * n + c, j
                else:
                    row, column = i, j * n + c
                plane[row, column] = point[c]
    must(bool(np.isfinite(plane).all()), "an infinite value")
    return plane
