"""Rows of a tensor from the bytes that hold them, without the rest of its unit."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import torch

from .coded import CodedTensor, read_side
from .container import Container
from .selection import Selection
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


def check_parts(place: Place) -> None:
    """Corruption if the checksums of the parts of a tensor do not hold."""
    coding = place.record.coding
    if coding and coding.checks:
        data = place.read(0, coding.length)
        coded = _read_coded(place, data[: coding.side])
        bounds = accumulate(coding.streams, initial=coding.side)
        coded.check(coded.whole, [data[begin:end] for begin, end in pairwise(bounds)])


def _read_coded(place: Place, side: bytes) -> CodedTensor:
    directory, coding = place.file.directory, place.record.coding
    sums = place.read(coding.length - coding.checks, coding.checks)
    return read_side(place.record, side, directory.bank, directory.matrices, sums)
