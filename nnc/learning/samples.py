"""Levels of encoded tensors, and samples of them with all that a network may see."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..coded import CodedTensor
from ..coder import pack_words, unpack_words
from ..encoded import EncodedTensor
from ..entropy.explicit import NETWORKS, ModelBank
from ..entropy.inputs import CONTEXT
from ..entropy.network import Network
from ..entropy.parametric import CLASSES
from ..kernels.networks import read_levels
from ..kernels.words import end_words, push_levels
from ..levels import LearnedLevels, find_place, number_inputs
from ..quantize.trellis import LABELLINGS, make_trellis
from ..rdo import LOW, WIDTH
from ..side import read_side
from ..unit import join_parts

MOST = 1 << 16  # levels of a sample


def may_learn(encoded: EncodedTensor) -> bool:
    """Whether a network may choose the tables of a tensor."""
    coding = encoded.record.coding
    if encoded.record.kind != "coded" or coding.model >= NETWORKS:
        return False
    centres = coding.tools.memory and coding.tools.memory.centres
    return not (coding.tools.tree or coding.tools.codebook or centres or LABELLINGS.value(coding.labelling) == "logarithmic")


@dataclass(frozen=True, eq=False)
class Levels:
    """An encoded tensor, whose levels are read from its streams when they are asked for."""

    encoded: EncodedTensor
    coded: CodedTensor
    bank: ModelBank

    @classmethod
    def of(cls, encoded: EncodedTensor, bank: ModelBank, matrices: tuple) -> Levels:
        return cls(encoded, read_side(encoded.record, encoded.data[: encoded.record.coding.side], bank, matrices), bank)

    @cached_property
    def streams(self) -> list[bytes]:
        coding, at, found = self.encoded.record.coding, self.encoded.record.coding.side, []
        for length in coding.streams:
            found.append(self.encoded.data[at : at + length])
            at += length
        return found

    def read(self, number: int) -> np.ndarray:
        """Levels of one CTU: int32 (n,) in scan order."""
        coding, coded = self.encoded.record.coding, self.coded
        tile, words = coded.whole.tiles[number], unpack_words(self.streams[number])
        levels = np.empty((tile[1] - tile[0]) * (tile[3] - tile[2]), np.int32)
        tables, next_state = self.bank.table_set(coding.model).arrays, make_trellis(coding.states).next_state
        codes = coded.rows, coded.columns, CLASSES
        return levels[: read_levels(words, 0, len(words), *tile, *codes, tables, next_state, coding.shift, levels)]

    def learned(self, network: Network) -> LearnedLevels:
        coding = self.encoded.record.coding
        place = find_place(coding, self.encoded.record.shape, self.coded.rows, self.coded.columns)
        return LearnedLevels(network, place, coding.states, coding.shift)

    def price(self, networks: Sequence[Network]) -> list[int]:
        """Bytes of the streams with the tables that each network chooses."""
        found, learned = [0] * len(networks), [self.learned(network) for network in networks]
        for number, tile in enumerate(self.coded.whole.tiles):
            levels, values = self.read(number), None
            for n, one in enumerate(learned):
                if one.network.kind == "context":
                    values = one.trace(levels, tile) if values is None else values
                    which = number_inputs(one.network, values)
                else:
                    which = one.number(levels, tile)
                found[n] += len(self._pack(levels, which, one))
        return found

    def encode(self, network: Network, model: int) -> EncodedTensor:
        """The same tensor with streams of the same levels and the tables that the network chooses; model: its number in the file."""
        learned, streams, pushes = self.learned(network), [], []
        for number, tile in enumerate(self.coded.whole.tiles):
            levels = self.read(number)
            which = learned.number(levels, tile)
            streams.append(self._pack(levels, which, learned))
            pushes.append(_pusher(levels, which, learned))
        record, side = self.encoded.record, self.encoded.data[: self.encoded.record.coding.side]
        record = replace(record, coding=replace(record.coding, model=model, streams=tuple(map(len, streams))))
        joint = self.encoded.joint and replace(self.encoded.joint, tiles=tuple(pushes))
        return replace(self.encoded, record=record, data=join_parts(side, streams), joint=joint)

    def _pack(self, levels: np.ndarray, which: np.ndarray, learned: LearnedLevels) -> bytes:
        words = np.empty(3 * len(levels) + 4, np.uint32)
        x, number = push_levels(levels, which, learned.tables, learned.shift, words, np.uint64(0), 0)
        return pack_words(words[: end_words(np.uint64(x), words, number)])


def _pusher(levels: np.ndarray, which: np.ndarray, learned: LearnedLevels) -> Callable:
    """As of `encoded.Joint.tiles`."""
    tables, shift = learned.tables, learned.shift
    return lambda words, x, number: push_levels(levels, which, tables, shift, words, np.uint64(x), number)


@dataclass(frozen=True, eq=False)
class Samples:
    """values: uint8 (n, 19), all inputs; column: int64 (n,), level less its bypass bits, from LOW on; scale: int64 scale indices; quantizer:
    int64, of the table; weight: float32, levels that each stands for."""

    values: np.ndarray
    column: np.ndarray
    scale: np.ndarray
    quantizer: np.ndarray
    weight: np.ndarray

    @classmethod
    def make(cls, values: np.ndarray, levels: np.ndarray, weight: np.ndarray) -> Samples:
        column = np.clip(levels.astype(np.int64) - LOW, 0, WIDTH - 1)
        return cls(values, column, values[:, 0].astype(np.int64) // 7, values[:, 4].astype(np.int64) & 1, weight)

    @classmethod
    def join(cls, parts: Sequence[Samples]) -> Samples:
        fields = ("values", "column", "scale", "quantizer", "weight")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in fields))

    def part(self, chosen: np.ndarray) -> Samples:
        return Samples(*(getattr(self, name)[chosen] for name in ("values", "column", "scale", "quantizer", "weight")))


def take_samples(tensors: Sequence[Levels], most: int = MOST) -> Samples | None:
    """At most about `most` levels, as many of every tensor as its share; None if there are none."""
    total = sum(t.encoded.record.elements for t in tensors)
    found = [part for t in tensors for part in _sample(t, max(64, most * t.encoded.record.elements // max(1, total)))]
    return Samples.join(found) if found else None


def _sample(tensor: Levels, number: int) -> Iterator[Samples]:
    """About `number` levels of a tensor, from as few CTUs as hold eight times as many, spread over the plane."""
    tiles, shift = tensor.coded.whole.tiles, tensor.encoded.record.coding.shift
    area = max((t[1] - t[0]) * (t[3] - t[2]) for t in tiles)
    chosen = np.unique(np.linspace(0, len(tiles) - 1, min(len(tiles), 1 + 8 * number // area)).astype(int))
    learned = tensor.learned(Network("context", tuple(range(CONTEXT)), 8, ()))
    for n in chosen.tolist():
        levels = tensor.read(n)
        if not len(levels):
            continue
        values = learned.trace(levels, tiles[n])
        kept = np.unique(np.linspace(0, len(levels) - 1, min(len(levels), -(-number // len(chosen)))).astype(np.int64))
        weight = np.full(len(kept), len(levels) / len(kept) * len(tiles) / len(chosen), np.float32)
        yield Samples.make(values[kept], levels[kept] >> shift, weight)
