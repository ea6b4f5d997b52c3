"""Sections 3 and 6 of the page: the directory and the heads of the units."""
from __future__ import annotations

from dataclasses import dataclass

from .container import Container
from .networks import Network, read_network
from .notation import Bytes, inflate, must
from .records import PLAIN, Record, check_alias, check_source, read_record
from .tables import ExplicitSet, read_set

# ---- 3. Directory ----------------------------------------------------------------------------------------------------

LANES = "names kinds shapes recipes quantizers steps fine models bases noises codes grids lengths values predictions tools".split()


@dataclass
class Reference:
    """What the file says of the checkpoint that it is a difference to."""
    hint: str
    permutations: list[list[int]]


@dataclass
class Directory:
    shards: int                                                        # files of the checkpoint
    shard: int                                                         # number of this one
    identity: int                                                      # the same in all of them
    sets: list[ExplicitSet]
    networks: list[Network]
    reference: Reference | None
    matrices: list[list[list[int]]]
    records: list[Record]
    units: list[UnitHead]


def read_directory(container: Container) -> Directory:
    source = Bytes(container.directory)
    shards, shard, identity = source.varint(1 << 16), 0, 0
    must(shards >= 1, "a checkpoint of no files")
    if shards > 1:
        shard, identity = source.varint(shards - 1), source.u32()
    sets = [read_set(source) for _ in range(source.varint(64))]
    networks = [read_network(source) for _ in range(source.varint(16))]
    source.block(1 << 24).decode("utf-8")                              # the origin: not needed for tensors
    reference = read_reference(source) if source.varint(1) else None
    matrices = [read_matrix(source) for _ in range(source.varint(256))]
    count = source.varint(1 << 24)
    lanes = {name: Bytes(source.block(1 << 28)) for name in LANES}
    records = []
    for _ in range(count):
        records.append(read_record(lanes, len(records), len(sets), reference.permutations if reference else None, [len(m) for m in matrices],
                                   len(networks)))
    for lane in lanes.values():
        lane.end()
    units = read_unit_heads(source, records)
    source.end()
    must(len({record.name for record in records}) == count, "two tensors with one name")
    for index, record in enumerate(records):
        check_alias(records, index, record)
        check_source(records, index, record)
    total = sum(record.elements * record.size for record in records if not (record.tied or record.referenced))
    must(total <= (1 << 26) + (container.size << 12), "tensors that are too large for their file")
    return Directory(shards, shard, identity, sets, networks, reference, matrices, records, units)


def read_reference(source: Bytes) -> Reference:
    hint = source.block(200).decode("utf-8")
    must(hint.isprintable() and hint not in (".", "..") and not set(hint) & set("/\\:"), "a hint that is not a file name")
    permutations = []
    left = 1 << 20
    for _ in range(source.varint(1 << 19)):
        length, data = source.varint(left), source.block(1 << 28)
        must(length >= 2, "a permutation of a length out of range")
        left -= length
        permutations.append(read_order(data, length))
    return Reference(hint, permutations)


def read_matrix(source: Bytes) -> list[list[int]]:
    size = source.byte()
    must(2 <= size <= 64, "a matrix of a size out of range")
    return [[int.from_bytes(source.take(1), "little", signed=True) for _ in range(size)] for _ in range(size)]


def read_order(data: bytes, m: int) -> list[int]:
    width = 1 if m <= 1 << 8 else 2 if m <= 1 << 16 else 3
    planes = inflate(data, width * m)
    order, before = [], -1
    for i in range(m):
        step = sum(planes[b * m + i] << 8 * b for b in range(width))
        must(step < m, "a step beyond the length of a permutation")
        before = (before + 1 + step) % m
        order.append(before)
    must(len(set(order)) == m, "an order that is no permutation")
    return order


# ---- 6. Units --------------------------------------------------------------------------------------------------------

@dataclass
class UnitHead:
    records: list[Record]
    own: bool
    checksum: int
    digest: int
    reference: bytes                                                   # digest of what it takes from there, or empty
    stream: int = 0                                                    # bytes of the joined stream

    @property
    def length(self) -> int:
        return sum(record.stored for record in self.records) + self.stream

    @property
    def joined(self) -> bool:
        return any(record.joined for record in self.records)

    @property
    def referenced(self) -> list[Record]:
        return [record for record in self.records if record.referenced]


def read_unit_heads(source: Bytes, records: list[Record]) -> list[UnitHead]:
    units, first = [], 0
    for _ in range(source.varint(len(records))):
        count, own = divmod(source.varint(2 * len(records) + 1), 2)
        must(1 <= count <= len(records) - first, "units and records do not add up")
        unit = UnitHead(records[first:first + count], own == 1, source.u32(), source.u32(), b"")
        unit.reference = source.take(8) if unit.referenced else b""
        must(not (own and unit.joined), "a joined record in an own entry")
        unit.stream = source.varint(1 << 43) if unit.joined else 0
        must(count == 1 or not own, "several records in an own entry")
        must(own or all(record.kind != PLAIN for record in unit.records), "a plain tensor in a small unit")
        units.append(unit)
        first += count
    must(first == len(records), "units and records do not add up")
    return units
