"""From encoded tensors to the bytes of the files: units, directories, shards.  Encoder only."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import log10

from .checkpoint import Origin
from .coder import chain_digests, checksum
from .container import FILE_NAME, OWN_ENTRY, build_file
from .directory import (
    MAX_EXPANSION,
    MIN_EXPANSION,
    Directory,
    ReferenceEntry,
    Shard,
    Unit,
)
from .encoded import EncodedTensor
from .entropy.explicit import ModelBank
from .errors import Unsupported
from .packing import join_tensors
from .prediction.reference import digest_unit
from .tools import Matrices
from .unit import Record

BUNDLE = 1 << 16  # small tensors are bundled into units of at most this many bytes ...
LARGE = 1 << 22  # ... and of this many decoded ones, which are decoded together


@dataclass(frozen=True, eq=False)
class FileParts:
    """One file: its directory and the bytes of its units."""

    directory: Directory
    units: tuple[bytes, ...]

    def chunks(self) -> Iterator[bytes]:
        return build_file(self.directory, self.units)

    @cached_property
    def size(self) -> int:
        return sum(map(len, self.chunks()))


@dataclass(frozen=True, eq=False)
class Assembly:
    """All files of a compressed checkpoint, and the tensors they were made from."""

    files: tuple[FileParts, ...]
    encoded: tuple[EncodedTensor, ...]

    @cached_property
    def size(self) -> int:
        """Bytes of all files, the index of shards included."""
        return sum(file.size for file in self.files) + len(self.index())

    def index(self) -> bytes:
        """Content of the index file, nothing if there is one file only.  It lists the tensors in their original order, which
        readers keep.
        """
        if len(self.files) == 1:
            return b""
        places = {record.name: name for name, file in zip(self.names(), self.files) for record in file.directory.records}
        weight_map = {e.record.name: places[e.record.name] for e in self.encoded}
        total = sum(file.size for file in self.files)
        return (json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1) + "\n").encode()

    def names(self) -> list[str]:
        """File names inside a folder."""
        stem, _, suffix = FILE_NAME.partition(".")
        count = len(self.files)
        return [FILE_NAME] if count == 1 else [f"{stem}-{n:05d}-of-{count:05d}.{suffix}" for n in range(1, count + 1)]

    def snr(self, names: set[str]) -> float:
        """Signal to noise ratio over the named tensors in dB."""
        chosen = [e for e in self.encoded if e.record.name in names]
        error, energy = sum(e.error for e in chosen), sum(e.energy for e in chosen)
        return 10 * log10(energy / error) if error > 0 else float("inf")

    @property
    def loss(self) -> float:
        """Predicted from calibration, of all tensors that it saw."""
        return sum(e.loss or 0.0 for e in self.encoded)


def take_smaller(static: Assembly, learned: Assembly) -> Assembly:
    """The smaller of two, the one without networks if they are equal."""
    return learned if learned.size < static.size else static


def assemble_files(
    encoded: Sequence[EncodedTensor],
    targets: dict[str, str],
    bank: ModelBank,
    origin: str,
    limit: int | None,
    reference: ReferenceEntry | None = None,
    matrices: Matrices = (),
) -> Assembly:
    """Lay out the tensors in files of at most `limit` bytes of units (one tensor may be more); `targets`: name of an alias ->
    name it stands for.

    An alias goes to the file of its target, and a tensor to that of the one that foretells it, so that every file is complete in itself.
    """
    shown = _shown(encoded) if limit and Origin.from_json(origin).kind == "hf" else None
    bases = {e.record.name: e.record.base for e in encoded if e.record.base}
    together: Counter = Counter()  # bytes of a tensor and of those that it foretells
    for e in encoded:
        together[bases.get(e.record.name, e.record.name)] += len(e.data)
    shard_of: dict[str, int] = {}
    sizes = [0]
    for e in encoded:
        name = e.record.name
        if name in targets or name in bases:
            continue
        if limit and sizes[-1] and sizes[-1] + together[name] > limit:
            sizes.append(0)
        sizes[-1] += together[name]
        shard_of[name] = len(sizes) - 1
    shards: list[list[EncodedTensor]] = [[] for _ in sizes]
    for e in encoded:
        target = targets.get(e.record.name, e.record.name)
        shards[shard_of[bases.get(target, target)]].append(e)
    identity = checksum(b"".join(e.content.to_bytes(4, "little") for e in encoded)) if len(shards) > 1 else 0
    files = tuple(
        _build_parts(members, targets, bank, origin, Shard(number, len(shards), identity), reference, matrices, shown)
        for number, members in enumerate(shards)
    )
    for file in files:
        expanded = sum(record.nbytes for record in file.directory.records if not (record.tied or record.referenced))
        if expanded > MIN_EXPANSION + MAX_EXPANSION * file.size:
            raise Unsupported(
                f"{expanded} bytes of tensors in a file of {file.size}: readers refuse so much from so little; leave out tensors that are equal or constant"
            )
    return Assembly(files, tuple(encoded))


def _build_parts(
    members: list[EncodedTensor],
    targets: dict[str, str],
    bank: ModelBank,
    origin: str,
    shard: Shard,
    reference: ReferenceEntry | None,
    matrices: Matrices,
    shown: str | None,
) -> FileParts:
    index = {e.record.name: number for number, e in enumerate(members)}
    groups: list[tuple[bool, list[EncodedTensor]]] = []
    size = large = 0
    for e in members:
        if e.record.kind == "plain" or len(e.data) >= OWN_ENTRY or e.record.name == shown:
            groups.append((True, [e]))
        elif groups and not groups[-1][0] and size + len(e.data) <= BUNDLE and large + e.record.nbytes <= LARGE:
            groups[-1][1].append(e)
            size += len(e.data)
            large += e.record.nbytes
        else:
            groups.append((False, [e]))
            size, large = len(e.data), e.record.nbytes
    data, units, final = [], [], []
    for own, group in groups:
        stream = b""
        if own:
            data.append(group[0].data)
            final.append(group[0].record)
        else:
            joined, parts, stream = join_tensors(group)
            data.append(b"".join((*parts, stream)))
            final += joined
        digest = chain_digests([d for e in group for d in e.digests])
        units.append(Unit(len(group), own, checksum(data[-1]), digest, _digest_reference(group), len(stream)))
    records = tuple(_with_number(record, index, targets) for record in final)
    used = reference if any(unit.reference for unit in units) else None
    turned = any(record.coding and record.coding.tools.transform for record in records)
    return FileParts(Directory(bank, origin, records, tuple(units), shard, used, matrices if turned else ()), tuple(data))


def _with_number(record: Record, index: dict[str, int], targets: dict[str, str]) -> Record:
    """A record with the number of the one that it stands for, or is foretold by."""
    if record.name in targets:
        return replace(record, target=index[targets[record.name]])
    if not record.base:
        return record
    back = index[record.name] - index[record.base]
    if not record.coding:
        return replace(record, target=back)
    return replace(record, coding=replace(record.coding, prediction=replace(record.coding.prediction, back=back)))


def _shown(encoded: Sequence[EncodedTensor]) -> str | None:
    """The tensor of a Hugging Face folder that gets an entry of its own however small it is: transformers without nnc would take a
    file that has only the entry "nnc" for one without weights, and draw them at random; bytes in the place of a matrix it refuses."""
    coded = [e for e in encoded if e.record.kind not in ("alias", "plain")]
    return max(coded, key=lambda e: (len(e.record.shape) > 1, len(e.data), e.record.elements)).record.name if coded else None


def _digest_reference(group: list[EncodedTensor]) -> bytes:
    digests = [e.reference for e in group if e.reference]
    return digest_unit(digests) if digests else b""
