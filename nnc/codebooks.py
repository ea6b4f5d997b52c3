"""Codebooks: levels that are numbers of centroids (vector quantization of inliers, US20220261616A1).

    value = float32(component of the centroid) * step of the row of the grid

Every point of the grid (points.py) has one level, coded as any other with one state; `level + zero` is the number of its centroid in the
codebook of its sub-space.  Components are float16, or small integers coded like scale codes.  Where the tables of the model
bank fit badly a codebook brings its own: a code length for every 2^shift centroids, which an encoder then sorts by how often they are used.
"""

from __future__ import annotations

from dataclasses import dataclass
from zlib import decompressobj, error

import numpy as np

from .coder import Frequencies, TableSet, make_table_set
from .entropy.explicit import MAX_LENGTH, TABLES
from .entropy.parametric import exponential, normalise
from .entropy.scales import decode_codes
from .errors import Corruption
from .fields import MAX_BYTES, Codes, Lanes
from .points import MODES, SIZED, Layout, lay_out

MAX_CENTROIDS = 1 << 16
MAX_SYMBOLS = 257  # of a table, the escape comes on top


@dataclass(frozen=True)
class Codebook:
    """What a record says.  centroids: of each sub-space; zero: number of the centroid of level 0; codes: of the components, None if
    they are float16; halves: bytes of these; table: bytes of the code lengths, 0 without; deflated: which of the two are (halves,
    table)."""

    layout: Layout
    centroids: int
    zero: int
    codes: Codes | None
    halves: int
    table: int
    deflated: tuple[bool, bool] = (False, False)

    @property
    def components(self) -> int:
        return self.layout.across * self.layout.along * self.centroids * self.layout.size

    @property
    def length(self) -> int:
        return (self.codes.length if self.codes else self.halves) + self.table

    def write(self, out: Lanes) -> None:
        layout = self.layout
        out.tools.byte(MODES.id(layout.mode))
        if layout.mode in SIZED:
            out.tools.varint(layout.size)
        out.tools.varint(layout.across)
        out.tools.varint(layout.along)
        out.tools.varint(self.centroids)
        out.tools.varint(self.zero)
        out.tools.byte(self.deflated[1] << 3 | self.deflated[0] << 2 | bool(self.table) << 1 | bool(self.codes))
        if self.codes:
            self.codes.write(out)
        else:
            out.lengths.varint(self.halves)
        if self.table:
            out.lengths.varint(self.table)

    @classmethod
    def read(cls, data: Lanes, plane: tuple[int, int], taps: int, shift: int) -> Codebook:
        """Of a plane of (rows, columns), `taps` columns to an input."""
        elements = plane[0] * plane[1]
        mode = MODES.value(data.tools.byte("mode of points"))
        size = data.tools.varint("size of points", elements) if mode in SIZED else 1
        across, along = (data.tools.varint("sub-spaces", elements) for _ in range(2))
        layout = lay_out(mode, plane, taps, size, across, along)
        centroids = data.tools.varint("number of centroids", MAX_CENTROIDS)
        if not 1 <= centroids * across * along * layout.size <= elements:
            raise Corruption(f"{centroids} centroids of {layout.size} for {elements} elements: the file is damaged")
        zero = data.tools.varint("centroid of level 0", centroids - 1)
        head = data.tools.byte("form of a codebook", 15)
        codes = Codes.read(data) if head & 1 else None
        halves = 0 if codes else data.lengths.varint("bytes of centroids", MAX_BYTES)
        table = data.lengths.varint("bytes of code lengths", MAX_BYTES) if head & 2 else 0
        symbols = -(-centroids // (1 << shift))
        if head & 2 and (zero or symbols > MAX_SYMBOLS or not table):
            raise Corruption(f"a table of {symbols} symbols, {zero} below zero: the file is damaged")
        return cls(layout, centroids, zero, codes, halves, table, (bool(head & 4), bool(head & 8)))

    def tables(self, data: bytes, shift: int) -> TableSet | None:
        """The tables of its own, None if the levels use those of the model; data: the bytes of the codebook in the unit."""
        if not self.table:
            return None
        symbols = -(-self.centroids // (1 << shift))
        lengths = _unpack(data[self.length - self.table :], self.deflated[1], symbols)
        if max(lengths) > MAX_LENGTH:
            raise Corruption(f"code length {max(lengths)} is outside 0..{MAX_LENGTH}: the file is damaged")
        return make_tables(lengths)

    def read_centroids(self, data: bytes) -> np.ndarray:
        """float32 (sub-spaces, centroids, size) from the bytes of the codebook in the unit."""
        shape = self.layout.across * self.layout.along, self.centroids, self.layout.size
        if self.codes:
            found = decode_codes(self.codes.mode, self.codes.spread, data[: self.codes.length], self.components)
        else:
            raw = _unpack(data[: self.halves], self.deflated[0], 2 * self.components)
            found = np.ascontiguousarray(np.frombuffer(raw, np.uint8).reshape(2, self.components).T).view("<f2")
        return found.astype(np.float32).reshape(shape)

    def rebuild(self, levels: np.ndarray, centroids: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """The plane, float32 (rows, columns).  levels: float32 (grid), whole numbers; centroids: as of `read_centroids`; steps:
        float32 (grid rows,)."""
        if not ((-self.zero <= levels) & (levels < self.centroids - self.zero)).all():
            raise Corruption(f"the number of a centroid is outside 0..{self.centroids - 1}: the file is damaged")
        number = levels.astype(np.int64)
        number += self.zero
        number += self.layout.books() * self.centroids
        with np.errstate(over="ignore", invalid="ignore"):
            points = centroids.reshape(-1, self.layout.size)[number] * steps[:, None, None]
        return self.layout.scatter(points)


def make_tables(lengths: bytes | list[int]) -> TableSet:
    """One table, for all scale indices, of the code lengths (1/8 bit) of the levels 0, 1, ...; the escape has the longest."""
    counts = normalise(exponential(32 * np.array([*lengths, MAX_LENGTH], np.int64)))
    return make_table_set(dict.fromkeys(range(2, TABLES), Frequencies(0, counts)), TABLES)


def _unpack(data: bytes, deflated: bool, length: int) -> bytes:
    raw = bytes(data)
    if deflated:
        inflater = decompressobj()
        try:
            raw = inflater.decompress(data, length + 1)
        except error as problem:
            raise Corruption(f"codebook: {problem}: the file is damaged") from None
        if not inflater.eof or inflater.unused_data:
            raise Corruption("codebook: the deflated bytes do not end where they should: the file is damaged")
    if len(raw) != length:
        raise Corruption(f"codebook: {len(raw)} bytes instead of {length}: the file is damaged")
    return raw
