"""The directory of a file: its place among the shards, entropy models, origin, the records of all tensors, units and their checksums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .bits import Reader, Writer
from .entropy.explicit import MAX_SETS, ExplicitSet, ModelBank
from .entropy.inputs import INPUTS
from .entropy.network import MAX_NETWORKS, Network
from .errors import Corruption
from .fields import MAX_BYTES, Lanes, Permutations
from .prediction.permutation import (
    MAX_LENGTH,
    decode_permutation,
    encode_permutation,
)
from .prediction.reference import DIGEST
from .tools import Matrices
from .transform.matrices import MAX_MATRICES, read_matrix, write_matrix
from .unit import CODED_DTYPES, MAX_TENSORS, Record

MAX_ORIGIN = 1 << 24
MAX_DIRECTORY = 1 << 28
MAX_SHARDS = 1 << 16
MAX_HINT = 200
MIN_EXPANSION = 1 << 26  # the tensors of a file may always take this many bytes ...
MAX_EXPANSION = 1 << 12  # ... and this many per byte of the file


@dataclass(frozen=True)
class Unit:
    """A run of `count` records.  own: stored in its own entry, named as its first record; checksum: CRC-32 of the bytes; digest:
    of all levels, 0 if nothing in it is coded; reference: digest of what its records take from the reference, empty if nothing; stream: bytes of
    the stream of the joined records, behind all others."""

    count: int
    own: bool
    checksum: int
    digest: int
    reference: bytes = b""
    stream: int = 0

    def write(self, out: Writer, records: tuple[Record, ...]) -> None:
        """records: its own."""
        out.varint(2 * self.count + self.own)
        out.fixed32(self.checksum)
        out.fixed32(self.digest)
        out.raw(self.reference)
        if any(record.joined for record in records):
            out.varint(self.stream)

    @classmethod
    def read(cls, data: Reader, records: tuple[Record, ...], first: int) -> Unit:
        """The next unit; first: number of its first record."""
        head = data.varint("records of a unit", 2 * len(records) + 1)
        unit = cls(head >> 1, bool(head & 1), data.fixed32("checksum of a unit"), data.fixed32("digest of a unit"))
        own = records[first : first + unit.count]
        if any(record.referenced for record in own):
            unit = replace(unit, reference=data.raw(DIGEST, "digest of the reference"))
        if any(record.joined for record in own):
            if unit.own:
                raise Corruption(f"tensor {own[0].name!r} is joined with others, and has an entry of its own: the file is damaged")
            unit = replace(unit, stream=data.varint("length of a joined stream", MAX_BYTES))
        return unit


@dataclass(frozen=True, eq=False)
class ReferenceEntry:
    """The checkpoint that tensors are predicted from.  hint: name of its file or folder, to be looked for beside this one, or empty;
    permutations: that records may name."""

    hint: str = ""
    permutations: Permutations = ()

    def write(self, out: Writer) -> None:
        out.block(self.hint.encode())
        out.varint(len(self.permutations))
        for order in self.permutations:
            out.varint(len(order))
            out.block(encode_permutation(order))

    @classmethod
    def read(cls, data: Reader) -> ReferenceEntry:
        try:
            hint = data.block("name of the reference", MAX_HINT).decode()
        except UnicodeDecodeError:
            raise Corruption("the name of the reference is not UTF-8: the file is damaged") from None
        if hint in (".", "..") or not hint.isprintable() or any(mark in hint for mark in "/\\:"):
            raise Corruption(f"name of the reference {hint!r} must be a plain file name: the file is damaged")
        permutations = []
        left = MAX_LENGTH
        for _ in range(data.varint("permutations", MAX_LENGTH // 2)):
            size = data.varint("length of a permutation", left)
            if size < 2:
                raise Corruption(f"a permutation of {size}: the file is damaged")
            permutations.append(decode_permutation(data.block("permutation", MAX_DIRECTORY), size))
            left -= size
        return cls(hint, tuple(permutations))


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
    """What a file holds: its place among the shards, models of its planes, the origin of the checkpoint (JSON text), what it is
    predicted from, matrices of transforms, records in their original order, units.
    """

    bank: ModelBank
    origin: str
    records: tuple[Record, ...]
    units: tuple[Unit, ...]
    shard: Shard = Shard()
    reference: ReferenceEntry | None = None
    matrices: Matrices = ()

    def write(self) -> bytes:
        out = Writer()
        self.shard.write(out)
        out.varint(len(self.bank.sets))
        for chosen in self.bank.sets:
            chosen.write(out)
        out.varint(len(self.bank.networks))
        for network in self.bank.networks:
            network.write(out)
        out.block(self.origin.encode())
        out.varint(self.reference is not None)
        if self.reference:
            self.reference.write(out)
        out.varint(len(self.matrices))
        for matrix in self.matrices:
            write_matrix(matrix, out)
        out.varint(len(self.records))
        lanes = Lanes.make(Writer)
        for record in self.records:
            record.write(lanes)
        for lane in lanes:
            out.block(lane.data())
        out.varint(len(self.units))
        at = 0
        for unit in self.units:
            unit.write(out, self.records[at : at + unit.count])
            at += unit.count
        return out.data()

    @classmethod
    def read(cls, raw: bytes) -> Directory:
        data = Reader(raw)
        shard = Shard.read(data)
        sets = tuple(ExplicitSet.read(data) for _ in range(data.varint("explicit sets", MAX_SETS)))
        bank = ModelBank(sets, tuple(Network.read(data, INPUTS) for _ in range(data.varint("networks", MAX_NETWORKS))))
        try:
            origin = data.block("origin", MAX_ORIGIN).decode()
        except UnicodeDecodeError:
            raise Corruption("the origin is not UTF-8: the file is damaged") from None
        reference = ReferenceEntry.read(data) if data.varint("number of references", 1) else None
        permutations = reference.permutations if reference else None
        matrices = tuple(read_matrix(data) for _ in range(data.varint("number of matrices", MAX_MATRICES)))
        number = data.varint("number of tensors", MAX_TENSORS)
        lanes = Lanes.make(lambda: Reader(data.block("lane", MAX_DIRECTORY)))
        known = bank.count, permutations, matrices, len(bank.networks)
        read = [Record.read(lanes, index, *known) for index in range(number)]
        records = tuple(_with_base(record, index, read) for index, record in enumerate(read))
        for name, lane in zip(Lanes._fields, lanes):
            lane.finish(f"lane of {name}")
        units: list[Unit] = []
        held = 0
        for _ in range(data.varint("number of units", number)):
            units.append(Unit.read(data, records, held))
            held += units[-1].count
        data.finish("directory")
        if held != number:
            raise Corruption(f"units hold {held} tensors, the directory has {number}: the file is damaged")
        if len({record.name for record in records}) != number:
            raise Corruption("two tensors have the same name: the file is damaged")
        for record in records:
            if record.kind == "alias":
                _check_alias(record, records)
        return cls(bank, origin, records, tuple(units), shard, reference, matrices)


def _with_base(record: Record, index: int, records: Sequence[Record]) -> Record:
    """A record with the name of the earlier tensor that foretells it; Corruption if that cannot be."""
    without_loss = record.filter == "earlier"
    back = record.target if without_loss else record.coding.prediction.back if record.coding and record.coding.prediction else 0
    if not back:
        return record
    base = records[index - back]
    differs = base.shape != record.shape or (base.dtype != record.dtype if without_loss else base.dtype not in CODED_DTYPES)
    derived = base.kind in ("alias", "same") or base.filter in ("reference", "earlier") or (base.coding and base.coding.prediction)
    if differs or derived:
        raise Corruption(f"tensor {record.name!r} is foretold by {base.name!r}, which does not match: the file is damaged")
    return replace(record, base=base.name)


def _check_alias(record: Record, records: tuple[Record, ...]) -> None:
    if record.target >= len(records):
        raise Corruption(f"tensor {record.name!r} stands for tensor {record.target} of {len(records)}: the file is damaged")
    target = records[record.target]
    if target.kind == "alias" or target.dtype != record.dtype or target.shape != record.shape:
        raise Corruption(f"tensor {record.name!r} stands for {target.name!r}, which does not match: the file is damaged")
