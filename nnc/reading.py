"""Single tensors, or rows of them, from the bytes that hold them."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np
import torch

from .coded import CodedTensor
from .centres import split_streams
from .coder import checksum
from .container import Container
from .decoder import split_unit
from .entropy.explicit import ModelBank
from .errors import Corruption
from .joined import decode_joined, walk_joined
from .latents import Latents, decode_latents
from .selection import Selection
from .side import parts_length, read_side, with_latents
from .unit import Record


@dataclass(frozen=True, eq=False)
class Place:
    """Where a tensor lies: its file, the number and the records of its unit, its own record and first byte in that."""

    file: Container
    index: int
    records: tuple[Record, ...]
    record: Record
    at: int

    def read(self, begin: int, length: int) -> bytes:
        """Bytes of the tensor."""
        return self.file.read_part(self.index, self.at + begin, length)


def read_rows(place: Place, chosen: Selection, sides: dict[str, CodedTensor], pool: Executor | None) -> torch.Tensor | None:
    """The rows that were asked for, at least one; None if no fewer bytes than all hold them, or not these alone.

    sides: side information that was read before, by name; what is read now is added.  Of a tensor that is stored as it is only the rows
    are read, which have no checksum; of a coded one its side information, checksums and the CTUs of the rows.
    """
    record = place.record
    out = torch.empty((len(chosen.numbers), *record.shape[1:]), dtype=record.dtype)
    if record.kind == "plain":
        width = record.nbytes // record.shape[0]
        edge = np.arange(record.shape[0])
        for start, stop in chosen.groups(edge, edge + 1):
            raw = bytearray(place.read(start * width, (stop - start) * width))
            values = torch.frombuffer(raw, dtype=torch.uint8).view(record.dtype)
            chosen.place(values.reshape(-1, *record.shape[1:]), start, out)
        return out
    coding = record.coding
    if record.kind != "coded" or not coding.checks:
        return None
    if record.name not in sides:
        sides[record.name] = _read_coded(place, place.read(0, coding.side))
    coded = sides[record.name]
    if not coded.divisible:
        return None
    begins = list(accumulate(coding.streams, initial=coding.side))
    for start, stop in chosen.groups(*coded.strips):
        band = coded.band(start, stop)
        streams = [place.read(begins[n], coding.streams[n]) for n in band.numbers]
        coded.check(band, streams)
        chosen.place(coded.rows_of(coded.start(band, streams, pool)(), band, start, stop), start, out)
    return out


@dataclass(frozen=True, eq=False)
class StoredUnit:
    """A unit of a file; records: all of them."""

    file: Container
    index: int
    records: tuple[Record, ...]

    @cached_property
    def own(self) -> list[Record]:
        """Those that are not aliases."""
        return [record for record in self.records if record.kind != "alias"]

    @cached_property
    def nbytes(self) -> int:
        """Of its tensors."""
        return sum(record.nbytes for record in self.own)

    @cached_property
    def elements(self) -> int:
        return sum(record.elements for record in self.own)

    @property
    def depends(self) -> bool:
        """Whether tensors of other units foretell some of it."""
        own = {record.name for record in self.own}
        return any(record.base and record.base not in own for record in self.own)


def check_parts(place: Place) -> None:
    """Corruption if the checksums of the parts of a tensor do not hold."""
    coding = place.record.coding
    if coding and coding.checks:
        data = place.read(0, coding.length)
        coded = _read_coded(place, data[: coding.side])
        bounds = accumulate(coding.streams, initial=coding.side)
        coded.check(coded.whole, [data[begin:end] for begin, end in pairwise(bounds)])


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor as it is stored; of coded ones: latents, bytes of its tools, streams of its CTUs, or, of joined ones, words and state of the coder in
    front of its levels."""

    record: Record
    bank: ModelBank
    latents: Latents | None = None
    parts: bytes = b""
    streams: list[bytes] = field(default_factory=list)
    coder: tuple[np.ndarray, np.ndarray] | None = None


def read_stored(place: Place) -> Stored:
    """What is stored for a tensor; streams without the labels of columns."""
    record, bank = place.record, place.file.directory.bank
    coding = record.coding
    if record.kind != "coded":
        return Stored(record, bank)
    if not coding.joined:
        part = read_unit(place.file, place.index)[place.at : place.at + record.stored]
        streams = [part[begin:end] for begin, end in pairwise(accumulate(coding.streams, initial=coding.side))]
        streams, _ = split_streams(coding, coding.grid(record.shape).tiles(), streams)
        return Stored(record, bank, decode_latents(record, part), part[coding.side - parts_length(record) : coding.side], streams)
    matrices = place.file.directory.matrices
    for other, latents, part, coder, _ in walk_joined(*_joined_parts(place.file, place.index, place.records)):
        if other is record:
            break
        with_latents(other, latents, part, bank, matrices).decode_joined(coder.words, coder.state)
    return Stored(record, bank, latents, part, [], (coder.words, coder.state))


def read_joined(place: Place) -> dict[str, torch.Tensor]:
    """The joined tensors of the unit of a tensor, those that need no reference."""
    directory = place.file.directory
    records, parts, stream = _joined_parts(place.file, place.index, place.records)
    found = decode_joined(records, parts, stream, directory.bank, directory.matrices)
    return {r.name: f.coded.finish(f.decoded, None, ()) for r, f in zip(records, found) if not r.referenced}


def joined_bits(file: Container, index: int) -> list[tuple[float, float]]:
    """Bits of latents and of levels of every joined record of a unit."""
    records = file.unit_records()[index]
    parts = _joined_parts(file, index, records)
    return [found.bits for found in decode_joined(*parts, file.directory.bank, file.directory.matrices)]


def read_unit(file: Container, index: int) -> bytes:
    """The bytes of a unit; Corruption if they are not those that were written."""
    data = file.read_unit(index)
    if checksum(data) != file.directory.units[index].checksum:
        raise Corruption(f"unit of {file.unit_records()[index][0].name!r}: checksum differs: the file is damaged")
    return data


def _joined_parts(file: Container, index: int, records: tuple[Record, ...]) -> tuple[list[Record], list[memoryview], memoryview]:
    """The joined records of a unit, their bytes outside of the stream, and the stream."""
    unit, data = file.directory.units[index], read_unit(file, index)
    joined = [(record, part) for record, part in split_unit(records, data) if record.joined]
    return [record for record, _ in joined], [part for _, part in joined], memoryview(data)[len(data) - unit.stream :]


def _read_coded(place: Place, side: bytes) -> CodedTensor:
    directory, coding = place.file.directory, place.record.coding
    sums = place.read(coding.length - coding.checks, coding.checks)
    return read_side(place.record, side, directory.bank, directory.matrices, sums)
