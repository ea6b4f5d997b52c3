"""An open compressed checkpoint: its files, and the reference that it is a difference to, if it is one.

A reference is any checkpoint, compressed or not.  It is the one that is named, or lies beside the compressed checkpoint under the name
that this remembers; a compressed one may have a reference of its own, and so on.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from threading import Lock

import torch
from torch import nn

from .checkpoint import Origin, open_checkpoint
from .coder import checksum
from .container import (
    INDEX_NAME,
    Container,
    is_compressed,
    open_file,
    read_index,
    shard_paths,
)
from .decoder import ReferenceReader, decode_unit
from .entropy.explicit import ModelBank
from .errors import Corruption, InvalidArgument
from .unit import Record

MAX_CHAIN = 64  # compressed checkpoints, each the reference of the one before
AHEAD = 1 << 26  # bytes of tensors decoded ahead of the one that is handed out


ReferenceSource = str | os.PathLike | nn.Module | Mapping[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Archive:
    """An open compressed checkpoint: its files and the threads that decode.  path: as it was named; given: its reference, None to
    look beside it; not opened if it is not needed; chain: the compressed checkpoints that this one is a reference for."""

    files: tuple[Container, ...]
    pool: Executor | None
    records: tuple[Record, ...]
    path: Path
    given: ReferenceSource | ReferenceReader | None = None
    chain: tuple[Path, ...] = ()
    _kept: dict[str, list] = field(default_factory=dict)  # readings to come, tensor
    _lock: Lock = field(default_factory=Lock)

    @property
    def origin(self) -> Origin:
        return Origin.from_json(self.files[0].directory.origin)

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

    def read(self, name: str) -> torch.Tensor:
        """One tensor.  The others of its unit are kept until they are read, so that reading all, in any order, decodes each unit once:
        else a chain would take twice the time with every member."""
        source = self.sources[name]
        with self._lock:
            if source not in self._kept:
                for other, tensor in self._unit_of(source):
                    self._kept[other] = [self._readers[other], tensor]
            self._kept[source][0] -= 1
            tensor = self._kept[source][1]
            if not self._kept[source][0]:
                del self._kept[source]
            return tensor

    @cached_property
    def _readers(self) -> Counter:
        """How many names a stored tensor has."""
        return Counter(self.sources.values())

    @cached_property
    def _places(self) -> dict[str, tuple[Container, int, tuple[Record, ...]]]:
        """File, number and records of the unit of every tensor that is not an alias."""
        return {
            record.name: (file, index, records)
            for file in self.files
            for index, records in enumerate(file.unit_records())
            for record in records
            if record.kind != "alias"
        }

    def _unit_of(self, name: str) -> Iterator[tuple[str, torch.Tensor]]:
        file, index, records = self._places[name]
        return _finish([record for record in records if record.kind != "alias"], self._start(file, index, records))

    def read_stored(self, name: str) -> tuple[Record, bytes, ModelBank]:
        """A tensor as it is stored, an alias as what it stands for: its record, its bytes in the unit, the models of its file."""
        file, index, records = self._places[self.sources[name]]
        data, at = file.read_unit(index), 0
        if checksum(data) != file.directory.units[index].checksum:
            raise Corruption(f"unit of {records[0].name!r}: checksum differs: the file is damaged")
        for record in records:
            if record.name == self.sources[name]:
                return record, data[at : at + record.stored], file.directory.bank
            at += record.stored
        raise InvalidArgument(f"no tensor {name!r}")

    def _start(self, file: Container, index: int, records: tuple[Record, ...]):
        directory = file.directory
        reference = self.reference if directory.units[index].reference else None
        permutations = directory.reference.permutations if directory.reference else ()
        return decode_unit(
            directory.units[index], records, file.read_unit(index), directory.bank, self.pool, reference, permutations, directory.matrices
        )

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

        names: only units with one of these; ahead: bytes of tensors that may wait decoded, beside the unit that is handed out.
        """
        waiting: deque = deque()
        pending = 0
        for file in self.files:
            for index, records in enumerate(file.unit_records()):
                own = [record for record in records if record.kind != "alias"]
                if not own or (names is not None and not any(record.name in names for record in own)):
                    continue
                size = sum(record.nbytes for record in own)
                while waiting and pending + size > ahead:
                    pending -= sum(record.nbytes for record in waiting[0][0])
                    yield from _finish(*waiting.popleft())
                pending += size
                waiting.append((own, self._start(file, index, records)))
        while waiting:
            yield from _finish(*waiting.popleft())


def _finish(records: list[Record], wait) -> Iterator[tuple[str, torch.Tensor]]:
    for record, tensor in zip(records, wait()):
        yield record.name, tensor


@contextmanager
def open_compressed(
    path: str | os.PathLike, pool: Executor | None = None, reference: ReferenceSource | ReferenceReader | None = None
) -> Iterator[Archive]:
    """Open a file or folder written by `compress`; reference: what it is a difference to, default: as its hint says."""
    yield open_archive(path, pool, reference)


def open_archive(
    path: str | os.PathLike,
    pool: Executor | None = None,
    reference: ReferenceSource | ReferenceReader | None = None,
    chain: tuple[Path, ...] = (),
) -> Archive:
    """The same as a value, which holds nothing that must be closed."""
    files = tuple(sorted((open_file(shard) for shard in shard_paths(path)), key=lambda file: file.directory.shard.index))
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
