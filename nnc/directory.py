"""The directory of a file: its place among the shards, entropy models, origin, the records of all tensors, units and their checksums."""

from __future__ import annotations

from dataclasses import dataclass

from .bits import Reader, Writer
from .entropy.explicit import MAX_SETS, ExplicitSet, ModelBank
from .errors import Corruption
from .unit import MAX_TENSORS, Lanes, Record

MAX_ORIGIN = 1 << 24
MAX_DIRECTORY = 1 << 28
MAX_SHARDS = 1 << 16
MIN_EXPANSION = 1 << 26  # the tensors of a file may always take this many bytes ...
MAX_EXPANSION = 1 << 12  # ... and this many per byte of the file


@dataclass(frozen=True)
class Unit:
    """A run of `count` records.  own: stored in its own entry, named as its first record; checksum: CRC-32 of the bytes; digest:
    of all levels, 0 if
    nothing in it is coded."""

    count: int
    own: bool
    checksum: int
    digest: int

    def write(self, out: Writer) -> None:
        out.varint(2 * self.count + self.own)
        out.fixed32(self.checksum)
        out.fixed32(self.digest)

    @classmethod
    def read(cls, data: Reader, most: int) -> Unit:
        head = data.varint("records of a unit", 2 * most + 1)
        return cls(head >> 1, bool(head & 1), data.fixed32("checksum of a unit"), data.fixed32("digest of a unit"))


@dataclass(frozen=True)
class Shard:
    """Place of a file in a checkpoint of `count` files; identity: the same number in all of them, 0 if there is one file only."""

    index: int = 0
    count: int = 1
    identity: int = 0

    def write(self, out: Writer) -> None:
        out.varint(self.count)
        if self.count > 1:
            out.varint(self.index)
            out.fixed32(self.identity)

    @classmethod
    def read(cls, data: Reader) -> Shard:
        count = data.varint("number of shards", MAX_SHARDS)
        if count == 1:
            return cls()
        index = data.varint("number of the shard", MAX_SHARDS)
        if index >= count:
            raise Corruption(f"shard {index} of {count}: the file is damaged")
        return cls(index, count, data.fixed32("identity of the checkpoint"))


@dataclass(frozen=True)
class Directory:
    """What a file holds: its place among the shards, models of its planes, the origin of the checkpoint (JSON text), records in
    their original order, units.
    """

    bank: ModelBank
    origin: str
    records: tuple[Record, ...]
    units: tuple[Unit, ...]
    shard: Shard = Shard()

    def write(self) -> bytes:
        out = Writer()
        self.shard.write(out)
        out.varint(len(self.bank.sets))
        for chosen in self.bank.sets:
            chosen.write(out)
        out.block(self.origin.encode())
        out.varint(len(self.records))
        lanes = Lanes.make(Writer)
        for record in self.records:
            record.write(lanes)
        for lane in lanes:
            out.block(lane.data())
        out.varint(len(self.units))
        for unit in self.units:
            unit.write(out)
        return out.data()

    @classmethod
    def read(cls, raw: bytes) -> Directory:
        data = Reader(raw)
        shard = Shard.read(data)
        bank = ModelBank(tuple(ExplicitSet.read(data) for _ in range(data.varint("explicit sets", MAX_SETS))))
        try:
            origin = data.block("origin", MAX_ORIGIN).decode()
        except UnicodeDecodeError:
            raise Corruption("the origin is not UTF-8: the file is damaged") from None
        number = data.varint("number of tensors", MAX_TENSORS)
        lanes = Lanes.make(lambda: Reader(data.block("lane", MAX_DIRECTORY)))
        records = tuple(Record.read(lanes, index, bank.count) for index in range(number))
        for name, lane in zip(Lanes._fields, lanes):
            lane.finish(f"lane of {name}")
        units = tuple(Unit.read(data, number) for _ in range(data.varint("number of units", number)))
        data.finish("directory")
        if sum(unit.count for unit in units) != number:
            raise Corruption(
                f"units hold {sum(unit.count for unit in units)} tensors, the directory has {number}: the file is damaged"
            )
        if len({record.name for record in records}) != number:
            raise Corruption("two tensors have the same name: the file is damaged")
        for record in records:
            if record.kind == "alias":
                _check_alias(record, records)
        return cls(bank, origin, records, units, shard)


def _check_alias(record: Record, records: tuple[Record, ...]) -> None:
    if record.target >= len(records):
        raise Corruption(f"tensor {record.name!r} stands for tensor {record.target} of {len(records)}: the file is damaged")
    target = records[record.target]
    if target.kind == "alias" or target.dtype != record.dtype or target.shape != record.shape:
        raise Corruption(f"tensor {record.name!r} stands for {target.name!r}, which does not match: the file is damaged")
