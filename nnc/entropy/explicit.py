"""Explicit tables and the model bank of a file.

A model is a number: 0..7 is a shape of the parametric family, 8 + b the b-th explicit set of the file, 72 + n its n-th network
(entropy/network.py), which chooses the table of every level from a finer bank.  A set replaces the tables
of some (scale index, quantizer) pairs by coded ones and leaves the rest to a parametric shape.  A coded table is a list of code
lengths in
1/8 bit, `frequency ~ 2^(-length / 8)`: the rounding costs 0.02 % of the bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from ..bits import Reader, Writer
from ..coder import Frequencies, TableSet, make_table_set
from ..errors import Corruption
from .network import Network
from .parametric import CLASSES, SHAPES, exponential, level_frequencies, normalise

TABLES = 2 * (CLASSES + 1)  # table number = 2 * scale index + quantizer
MAX_SETS = 64
NETWORKS = SHAPES + MAX_SETS  # model of the first network
MAX_LENGTH = 192  # 24 bits
_MOST_SYMBOLS = 258


@dataclass(frozen=True)
class CodedTable:
    """low: level of the first symbol; lengths: code lengths in 1/8 bit of the levels from `low` on and, last, of the escape."""

    low: int
    lengths: tuple[int, ...]

    def frequencies(self) -> Frequencies:
        return Frequencies(self.low, normalise(exponential(np.array(self.lengths, np.int64) * 32)))


@dataclass(frozen=True)
class ExplicitSet:
    """shape: parametric shape of the tables that are not coded; tables: (number, table) in rising order."""

    shape: int
    tables: tuple[tuple[int, CodedTable], ...]

    def write(self, out: Writer) -> None:
        out.byte(self.shape)
        out.varint(len(self.tables))
        for number, table in self.tables:
            out.byte(number)
            out.signed(table.low)
            out.varint(len(table.lengths))
            previous = 64
            for length in table.lengths:
                out.signed(length - previous)
                previous = length

    @classmethod
    def read(cls, data: Reader) -> ExplicitSet:
        shape = data.byte("shape of an explicit set", SHAPES - 1)
        count = data.varint("number of explicit tables", TABLES - 2)
        tables = []
        last = 1
        for _ in range(count):
            number = data.byte("number of an explicit table", TABLES - 1)
            if number <= last:
                raise Corruption(f"explicit table {number} after {last}: the file is damaged")
            last = number
            low = data.signed("lowest level of an explicit table", _MOST_SYMBOLS)
            symbols = data.varint("symbols of an explicit table", _MOST_SYMBOLS)
            if symbols < 2:
                raise Corruption(f"explicit table {number} has {symbols} symbols, needs two: the file is damaged")
            lengths = []
            previous = 64
            for _ in range(symbols):
                previous += data.signed("code length", MAX_LENGTH)
                if not 0 <= previous <= MAX_LENGTH:
                    raise Corruption(f"code length {previous} is outside 0..{MAX_LENGTH}: the file is damaged")
                lengths.append(previous)
            tables.append((number, CodedTable(low, tuple(lengths))))
        return cls(shape, tuple(tables))


@dataclass(frozen=True)
class ModelBank:
    """The entropy models that the planes of a file may name."""

    sets: tuple[ExplicitSet, ...] = ()
    networks: tuple[Network, ...] = ()

    @property
    def count(self) -> int:
        """Models that are a table for each scale index and quantizer: 0.. this."""
        return SHAPES + len(self.sets)

    def network(self, model: int) -> Network | None:
        """What the model names if it is a network."""
        return self.networks[model - NETWORKS] if model >= NETWORKS else None

    def frequencies(self, model: int) -> dict[int, Frequencies]:
        """The tables of a model by number, for scale indices 1..36 and both quantizers."""
        if model < SHAPES:
            shape, coded = model, {}
        else:
            chosen = self.sets[model - SHAPES]
            shape, coded = chosen.shape, dict(chosen.tables)
        return {n: coded[n].frequencies() if n in coded else level_frequencies(shape, n >> 1, n & 1) for n in range(2, TABLES)}

    def table_set(self, model: int) -> TableSet:
        return _table_set(self, model)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """Of all tables, which are many: it is asked for with every tensor."""
        return hash((self.sets, self.networks))


@lru_cache(maxsize=64)
def _table_set(bank: ModelBank, model: int) -> TableSet:
    return make_table_set(bank.frequencies(model), TABLES)
