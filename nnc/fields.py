"""Fields of a record that belong together, and the lanes that they are written to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .entropy.scales import LEARNED, MODES, SPREADS
from .errors import Corruption
from .quantize.steps import UNITS

MAX_BYTES = 1 << 43
Permutations = tuple[np.ndarray, ...]  # of the directory, int64 each


class Lanes(NamedTuple):
    """Fields of one kind of all records stand together, which deflates better: one Writer or Reader per lane, in the order of the
    file.
    """

    names: Any
    kinds: Any
    shapes: Any
    recipes: Any
    quantizers: Any
    steps: Any
    fine: Any
    models: Any
    bases: Any
    noises: Any
    codes: Any
    grids: Any
    lengths: Any
    values: Any
    predictions: Any
    tools: Any

    @classmethod
    def make(cls, lane: Callable[[], Any]) -> Lanes:
        return cls(*(lane() for _ in cls._fields))


@dataclass(frozen=True)
class Codes:
    """Row or column codes in the unit: mode and spread as in `entropy.scales`, length in bytes; those that are coded with the other latents
    have no bytes of their own, and say nothing here."""

    mode: str
    spread: int
    length: int

    def write(self, out: Lanes) -> None:
        if self.mode == LEARNED:
            return
        out.codes.byte(MODES.id(self.mode) * SPREADS + self.spread)
        if self.mode != "none":
            out.lengths.varint(self.length)

    @classmethod
    def read(cls, data: Lanes, learned: bool = False) -> Codes:
        if learned:
            return LEARNED_CODES
        number = data.codes.byte("scale code mode", 4 * SPREADS - 1)
        mode = MODES.value(number // SPREADS)
        return cls(mode, number % SPREADS, 0 if mode == "none" else data.lengths.varint("length of scale codes", MAX_BYTES))


NO_CODES = Codes("none", 0, 0)
LEARNED_CODES = Codes(LEARNED, 0, 0)


@dataclass(frozen=True)
class Steps:
    """Codes of the steps of the rows or columns in the unit; unit: of a code, in 128ths of an octave; that of learned codes is with them."""

    codes: Codes
    unit: int

    def write(self, out: Lanes) -> None:
        self.codes.write(out)
        if self.codes.mode not in ("none", LEARNED):
            out.codes.byte(UNITS.id(self.unit))

    @classmethod
    def read(cls, data: Lanes, learned: bool = False) -> Steps:
        codes = Codes.read(data, learned)
        unit = 0 if codes.mode in ("none", LEARNED) else data.codes.byte("unit of step codes")
        return cls(codes, UNITS.value(unit))


@dataclass(frozen=True)
class Orders:
    """In which order the reference is read: 0 as it is, k by the permutation k - 1 of the directory."""

    rows: int = 0
    columns: int = 0

    def write(self, out: Lanes) -> None:
        out.predictions.varint(self.rows)
        out.predictions.varint(self.columns)

    @classmethod
    def read(cls, data: Lanes, shape: tuple[int, int], permutations: Permutations) -> Orders:
        """Orders for a plane of this shape; Corruption if a permutation does not fit it."""
        numbers = [data.predictions.varint("number of a permutation", len(permutations)) for _ in shape]
        for number, size in zip(numbers, shape):
            if number and size % len(permutations[number - 1]):
                raise Corruption(
                    f"a permutation of {len(permutations[number - 1])} for {size} rows or columns: the file is damaged"
                )
        return cls(*numbers)


@dataclass(frozen=True)
class Prediction:
    """What is added to a coded tensor: its counterpart in the reference, or the tensor of the record `back` before its own, rearranged; back: 0 for
    the reference; confidence: codes of the rows, -8..0."""

    orders: Orders
    confidence: Codes
    back: int = 0

    def write(self, out: Lanes) -> None:
        out.predictions.varint(self.back)
        self.orders.write(out)
        self.confidence.write(out)

    @classmethod
    def read(cls, data: Lanes, shape: tuple[int, int], index: int, permutations: Permutations | None, learned: bool) -> Prediction:
        """Of the record of this number, whose plane has this shape; permutations: of the reference, None if there is none."""
        back = data.predictions.varint("distance to the tensor that foretells another", index)
        if permutations is None and not back:
            raise Corruption("a tensor is taken from a reference, the file has none: the file is damaged")
        return cls(Orders.read(data, shape, permutations or ()), Codes.read(data, learned), back)
