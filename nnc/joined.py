"""Small coded tensors of one unit, whose latents and levels share one stream: they are decoded one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .coded import CodedTensor, Decoded
from .entropy.explicit import ModelBank
from .entropy.latents import LatentCoder, LatentModel
from .errors import Corruption
from .latents import Latents, read_latents, start_coder
from .side import with_latents
from .tools import Matrices
from .unit import Record


@dataclass(frozen=True, eq=False)
class Joined:
    """One of them.  bits: that it takes of the stream, latents and levels."""

    coded: CodedTensor
    decoded: Decoded
    bits: tuple[float, float]


def decode_joined(
    records: Sequence[Record], parts: Sequence[bytes | memoryview], stream: bytes | memoryview, bank: ModelBank, matrices: Matrices = ()
) -> list[Joined]:
    """Decode the joined records of a unit, in their order.  parts: their bytes outside of the stream."""
    found = []
    for record, latents, part, coder, bits in walk_joined(records, parts, stream):
        coded = with_latents(record, latents, part, bank, matrices)
        before = _bits_left(coder.state)
        decoded = coded.decode_joined(coder.words, coder.state)
        found.append(Joined(coded, decoded, (bits, before - _bits_left(coder.state))))
    return found


def walk_joined(
    records: Sequence[Record], parts: Sequence[bytes | memoryview], stream: bytes | memoryview
) -> Iterator[tuple[Record, Latents, bytes, LatentCoder, float]]:
    """Every record with its latents, its bytes outside of the stream, the coder in front of its levels and the bits of the latents; who takes it
    must decode the levels before the next one.  Corruption if the stream does not end after the last."""
    coder = LatentCoder(LatentModel.shipped(), *start_coder(bytes(stream)))
    for record, part in zip(records, parts):
        before = _bits_left(coder.state)
        try:
            latents = read_latents(record.coding, record.shape, coder)
        except Corruption as problem:
            raise Corruption(f"tensor {record.name!r}: {problem}") from None
        yield record, latents, bytes(part), coder, before - _bits_left(coder.state)
    if coder.state.any():
        raise Corruption(f"unit of {records[0].name!r}: the joined stream does not end where it should: the file is damaged")


def _bits_left(state: np.ndarray) -> float:
    """What the coder still holds, and the words that it has not taken."""
    return float(np.log2(max(1.0, float(state[0]))) + 32 * float(state[1]))
