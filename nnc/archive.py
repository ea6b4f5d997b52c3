"""An open compressed checkpoint: its files, and the reference that it is a difference to, if it is one.

A reference is any checkpoint, compressed or not.  It is the one that is named, or lies beside the compressed checkpoint under the name
that this remembers; a compressed one may have a reference of its own, and so on.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import torch
from torch import nn

from .checkpoint import Origin, open_checkpoint
from .coded import CodedTensor
from .container import (
    INDEX_NAME,
    Container,
    entry_dtype,
    is_compressed,
    open_file,
    read_index,
    shard_paths,
)
from .decoder import ReferenceReader, decode_unit, start_record
from .errors import Corruption, InvalidArgument
from .kept import Kept, count_bases
from .reading import Place, Stored, StoredUnit, check_parts, read_joined, read_rows, read_stored, read_unit
from .selection import Rows, TensorSlice, select_rows
from .unit import Record

MAX_CHAIN = 64  # compressed checkpoints, each the reference of the one before
AHEAD = 1 << 26  # bytes of tensors decoded ahead of the one that is handed out


ReferenceSource = str | os.PathLike | nn.Module | Mapping[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Archive:
    """An open compressed checkpoint, of which single tensors and rows are read: nothing else is decoded, nor fetched.

        with nnc.open("small/") as archive:
            archive.keys()
            weight = archive.tensor("lm_head.weight")
            rows = archive.tensor("embed.weight", rows=[17, 5, 17])     # or a number, a slice, a range
            part = archive.get_slice("embed.weight")[100:200]           # the same as with safetensors

    Any number of threads may read at once.  path: as it was named; pool: threads that decode, owned: which end with it; given: its reference, None to look beside
    it, not opened if it is not needed; chain: the compressed checkpoints that this one is a reference for.
    """

    files: tuple[Container, ...]
    pool: Executor | None
    records: tuple[Record, ...]
    path: Path
    given: ReferenceSource | ReferenceReader | None = None
    chain: tuple[Path, ...] = ()
    owned: bool = False
    _kept: dict[str, list] = field(default_factory=dict)  # readings to come, tensor
    _sides: dict[str, CodedTensor] = field(
        default_factory=dict
    )  # of tensors of which rows were read: some bytes per row and column
    _recent: dict[tuple[int, int], dict[str, torch.Tensor]] = field(default_factory=dict)  # joined tensors of one unit

    @property
    def origin(self) -> Origin:
        return Origin.from_json(self.files[0].directory.origin)

    @property
    def identity(self) -> tuple[int, ...]:
        """Differs between checkpoints."""
        return tuple(file.identity for file in self.files)

    @property
    def hint(self) -> str | None:
        """Name of the reference, "" if it had none; None for a checkpoint that needs no reference."""
        return next((file.directory.reference.hint for file in self.files if file.directory.reference), None)

    @cached_property
    def reference(self) -> ReferenceReader | None:
        """The reference, opened when it is first needed; InvalidArgument if there is none where it should be."""
        if self.hint is None:
            return None
        if isinstance(self.given, ReferenceReader):
            return self.given
        if self.given is not None:
            return open_reference(self.given, self.chain + (self.path.resolve(),))
        beside = self.path.absolute().parent / self.hint
        if not self.hint or not beside.exists():
            name = repr(self.hint) if self.hint else "without a name"
            raise InvalidArgument(
                f"{self.path}: needs its reference {name}, which is not beside it: put it there or name it (reference)"
            )
        return open_reference(beside, self.chain + (self.path.resolve(),))

    def keys(self) -> list[str]:
        """Names of all tensors, in the order of the checkpoint."""
        return [record.name for record in self.records]

    def __contains__(self, name: object) -> bool:
        return name in self.sources

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files; a file object that was passed in stays open."""
        for file in self.files:
            file.storage.close()
        if self.owned and self.pool:
            self.pool.shutdown()

    def record(self, name: str) -> Record:
        """How a tensor is stored, an alias as what it stands for; InvalidArgument if there is none of that name."""
        if name not in self.sources:
            raise InvalidArgument(f"{self.path}: no tensor {name!r} in this file")
        return self._places[self.sources[name]].record

    def tensor(self, name: str, rows: Rows | None = None) -> torch.Tensor:
        """One tensor in its own shape and dtype, or rows of it along the first axis (a single number: without that axis).

        Rows of a coded tensor are decoded with the CTUs that they lie in, those of a tensor that was stored as it is are read alone, of any
        other the tensor is decoded whole.  InvalidArgument for a name or row that does not exist, Corruption if the bytes are damaged.
        """
        record = self.record(name)
        if rows is None:
            return self.read(name) if record.referenced else self._decode_alone(record)
        chosen = select_rows(name, rows, record.shape)
        found = None
        if len(chosen.numbers) and record.elements:
            found = read_rows(self._places[record.name], chosen, self._sides, self.pool)
        if found is None:
            whole = self.tensor(name) if len(chosen.numbers) else torch.empty((0, *record.shape[1:]), dtype=record.dtype)
            found = whole[torch.from_numpy(chosen.numbers)]
        return found[0] if chosen.single else found

    def get_slice(self, name: str) -> TensorSlice:
        """A tensor that is read when it is indexed, with the interface of safetensors."""
        record = self.record(name)
        dtype = entry_dtype(record.dtype) or str(record.dtype).removeprefix("torch.")
        return TensorSlice(record.shape, dtype, lambda rows: self.tensor(name, rows))

    def _decode_alone(self, record: Record) -> torch.Tensor:
        """A tensor without the others of its unit, whose bytes are checked all the same."""
        place = self._places[record.name]
        directory = place.file.directory
        if record.joined:
            return self._read_joined(place)[record.name].clone()
        part = memoryview(read_unit(place.file, place.index))[place.at : place.at + record.stored]
        permutations = directory.reference.permutations if directory.reference else ()
        base = self.decode_named(record.base) if record.base else None
        return start_record(record, part, directory.bank, self.pool, permutations, directory.matrices)(base)[0]

    def decode_named(self, name: str) -> torch.Tensor:
        """A tensor that is stored under its own name and foretells others."""
        return self._decode_alone(self._places[name].record)

    def _read_joined(self, place: Place) -> dict[str, torch.Tensor]:
        """The joined tensors of a unit that need no reference; those of the last unit that was asked for are kept, since small tensors are asked for
        one after the other and none of them can be decoded without those before."""
        key = id(place.file), place.index
        with self._locks[key]:
            found = self._recent.get(key)
            if found is None:
                found = read_joined(place)
                self._recent.clear()
                self._recent[key] = found
            return found

    def check_parts(self, name: str) -> None:
        """Corruption if the checksums of the parts of a tensor do not hold, which only readers of rows use."""
        check_parts(self._places[self.record(name).name])

    def read(self, name: str) -> torch.Tensor:
        """One tensor, once.  The others of its unit are kept until they are read, so that reading all, in any order, decodes each unit once:
        else a chain would take twice the time with every member."""
        source = self.sources[name]
        place = self._places[source]
        with self._locks[id(place.file), place.index]:
            if source not in self._kept:
                for other, tensor in self._unit_of(source):
                    self._kept[other] = [self._readers[other], tensor]
            self._kept[source][0] -= 1
            tensor = self._kept[source][1]
            if not self._kept[source][0]:
                del self._kept[source]
            return tensor

    @cached_property
    def _locks(self) -> dict[tuple[int, int], Lock]:
        """One for every unit."""
        return {(id(file), index): Lock() for file in self.files for index in range(len(file.directory.units))}

    @cached_property
    def _readers(self) -> Counter:
        """How many names a stored tensor has."""
        return Counter(self.sources.values())

    @cached_property
    def _places(self) -> dict[str, Place]:
        """Of every tensor that is not an alias."""
        places = {}
        for file in self.files:
            for index, records in enumerate(file.unit_records()):
                at = 0
                for record in records:
                    if record.kind != "alias":
                        places[record.name] = Place(file, index, records, record, at)
                        at += record.stored
        return places

    def _unit_of(self, name: str) -> Iterator[tuple[str, torch.Tensor]]:
        place = self._places[name]
        return self.decode(StoredUnit(place.file, place.index, place.records), self.pool, self.decode_named)

    def read_stored(self, name: str) -> Stored:
        """A tensor as it is stored, an alias as what it stands for."""
        return read_stored(self._places[self.sources[name]])

    def decode(self, unit: StoredUnit, pool: Executor | None, earlier: Callable[[str], torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, tensor) of the tensors of a unit; pool: threads for their CTUs; earlier: gives tensors of earlier units."""
        return _finish(unit, self._start(unit, pool, earlier))

    def _start(self, unit: StoredUnit, pool: Executor | None, earlier: Callable[[str], torch.Tensor]) -> Callable[[], list[torch.Tensor]]:
        directory = unit.file.directory
        entry = directory.units[unit.index]
        reference = self.reference if entry.reference else None
        permutations = directory.reference.permutations if directory.reference else ()
        data = unit.file.read_unit(unit.index)
        return decode_unit(entry, unit.records, data, directory.bank, pool, reference, permutations, directory.matrices, earlier)

    def units(self, names: set[str] | None = None) -> list[StoredUnit]:
        """Those with tensors that are not aliases, in the order of the files; names: with one of these."""
        found = (StoredUnit(file, index, records) for file in self.files for index, records in enumerate(file.unit_records()))
        return [unit for unit in found if any(names is None or record.name in names for record in unit.own)]

    @cached_property
    def sources(self) -> dict[str, str]:
        """For every tensor the name of the one that is stored for it: its own, or that of the target of an alias."""
        stored = {
            record.name: file.directory.records[record.target].name if record.kind == "alias" else record.name
            for file in self.files
            for record in file.directory.records
        }
        return {record.name: stored[record.name] for record in self.records}

    def tensors(self, names: set[str] | None = None, ahead: float = AHEAD) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, tensor) of every tensor that is not an alias, in the order of the files.

        names: only units with one of these; ahead: bytes of tensors that may wait decoded, beside the unit that is handed out, and of those that are kept as
        they foretell others to come; whoever takes them must not write to them before the last one came.
        """
        units = self.units(names)
        kept = Kept(count_bases(unit.records for unit in units), ahead, self.decode_named)
        waiting: deque = deque()
        pending = 0
        for unit in units:
            while waiting and pending - waiting[0][0].nbytes + unit.nbytes > ahead:  # the first is handed out
                pending -= waiting[0][0].nbytes
                yield from kept.watch(_finish(*waiting.popleft()))
            pending += unit.nbytes
            waiting.append((unit, self._start(unit, self.pool, kept.take)))
        while waiting:
            yield from kept.watch(_finish(*waiting.popleft()))


def _finish(unit: StoredUnit, wait: Callable[[], list[torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    for record, tensor in zip(unit.own, wait()):
        yield record.name, tensor


@contextmanager
def open_compressed(
    path: str | os.PathLike, pool: Executor | None = None, reference: ReferenceSource | ReferenceReader | None = None
) -> Iterator[Archive]:
    """Open a file or folder written by `compress`; reference: what it is a difference to, default: as its hint says."""
    with open_archive(path, pool, reference) as archive:
        yield archive


def open_archive(
    path: str | os.PathLike | BinaryIO,
    pool: Executor | None = None,
    reference: ReferenceSource | ReferenceReader | None = None,
    chain: tuple[Path, ...] = (),
) -> Archive:
    """The same as a value, a context manager; path: also a seekable binary object, which holds one file."""
    if not isinstance(path, (str, os.PathLike)):
        file = open_file(path)
        if file.directory.shard.count > 1:
            raise InvalidArgument(f"{file.path}: one of {file.directory.shard.count} shards: open the folder that holds all")
        return Archive((file,), pool, file.directory.records, file.path, reference, chain)
    opened: list[Container] = []
    try:
        for shard in shard_paths(path):
            opened.append(open_file(shard))
        return _join_files(path, opened, pool, reference, chain)
    except BaseException:
        for file in opened:
            file.storage.close()
        raise


def _join_files(
    path: str | os.PathLike,
    opened: list[Container],
    pool: Executor | None,
    reference: ReferenceSource | ReferenceReader | None,
    chain: tuple[Path, ...],
) -> Archive:
    """The files of one checkpoint; Corruption if they are of several."""
    files = tuple(sorted(opened, key=lambda file: file.directory.shard.index))
    first = files[0].directory.shard
    if [file.directory.shard for file in files] != [replace(first, index=number) for number in range(first.count)]:
        raise Corruption(
            f"{path}: {len(files)} files of a checkpoint of {first.count}, or of different ones: the shards do not belong together"
        )
    records = {record.name: record for file in files for record in file.directory.records}
    if len(records) != sum(len(file.directory.records) for file in files):
        raise Corruption(f"{path}: two shards hold the same tensor: the shards do not belong together")
    if (Path(path) / INDEX_NAME).is_file():
        order = read_index(Path(path))
        places = {record.name: file.path.name for file in files for record in file.directory.records}
        if wrong := {name for name, _ in order.items() ^ places.items()}:
            raise Corruption(f"{path}: the index and the shards differ in tensor {min(wrong)!r}: they do not belong together")
        records = {name: records[name] for name in order}
    return Archive(files, pool, tuple(records.values()), Path(path), reference, chain)


def open_reference(source: ReferenceSource, chain: tuple[Path, ...] = ()) -> ReferenceReader:
    """A checkpoint to predict from: compressed or not, a path, a module or a mapping.  chain: the compressed checkpoints on the way
    here, resolved."""
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if not path.exists():
            raise InvalidArgument(f"{path}: there is no such reference")
        if path.resolve() in chain:
            raise Corruption(f"{path}: is its own reference, through {len(chain)} files: the chain is damaged")
        if len(chain) > MAX_CHAIN:
            raise Corruption(f"{path}: more than {MAX_CHAIN} references in a row: the chain is damaged")
        if (path.is_file() or path.is_dir()) and is_compressed(path):
            archive = open_archive(path, chain=chain)
            return ReferenceReader(
                str(path), {record.name: (record.dtype, record.shape) for record in archive.records}, archive.read
            )
    checkpoint = open_checkpoint(source)
    label = str(source) if isinstance(source, (str, os.PathLike)) else "the reference"
    return ReferenceReader(label, {spec.name: (spec.dtype, tuple(spec.shape)) for spec in checkpoint.specs}, checkpoint.read)
