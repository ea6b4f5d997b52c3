"""Sections 3 and 13 of the page: folders, shards, and the reference that a checkpoint is a difference to."""
from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from .container import read_container, read_entries, read_header, read_json
from .directory import Directory, read_directory
from .notation import DTYPES, Tensor, WrongReference, must
from .records import ALIAS
from .units import decode_unit, unit_bytes

INDEX = "model.safetensors.index.json"
State = dict[str, Tensor]

# ---- 3. References ---------------------------------------------------------------------------------------------------

@dataclass
class Checkpoint:
    """A compressed file or folder.  given: its reference, None if that is to be found by its hint; before: the checkpoints that
    led here, each the reference of the one before."""
    path: Path
    given: State | Path | None
    before: tuple[Path, ...]

    def reference(self, directories: list[Directory]) -> State:
        """What the files of the checkpoint take from; empty if they take nothing."""
        if not any(unit.referenced for directory in directories for unit in directory.units):
            return {}
        if isinstance(self.given, dict):
            return self.given
        return self.look_up(next(directory.reference.hint for directory in directories if directory.reference))

    def look_up(self, hint: str) -> State:
        if self.given is None and not hint:
            raise WrongReference("a reference without a name must be given")
        path = Path(os.path.abspath(self.path)).parent / hint if self.given is None else self.given
        before = (*self.before, self.path.resolve())
        if not path.exists():
            raise WrongReference(f"the reference {path} is missing")
        must(path.resolve() not in before, "a checkpoint that is its own reference")
        must(len(before) <= 64, "more than 64 references in a row")
        if path.is_dir() or is_compressed(path):
            return decode_checkpoint(Checkpoint(path, None, before))
        return read_safetensors(path)


def is_compressed(path: Path) -> bool:
    metadata = read_header(path.read_bytes())[0].get("__metadata__")
    return type(metadata) is dict and "nnc" in metadata


def read_safetensors(path: Path) -> State:
    """A checkpoint that is not compressed; of all the forms there are only this one."""
    header, start = read_header(path.read_bytes())
    header.pop("__metadata__", None)
    names = {dtype.container: dtype.name for dtype in DTYPES}
    entries = read_entries(header, path.read_bytes()[start:])
    return {name: (names[dtype], tuple(shape), data) for name, (dtype, shape, data) in entries.items()}


# ---- 13. Folders and shards ------------------------------------------------------------------------------------------

def open_shard(path: Path) -> tuple[Directory, list[bytes]]:
    """The directory of a file and the bytes of its units."""
    container = read_container(path.read_bytes())
    directory = read_directory(container)
    return directory, unit_bytes(container, directory.units)


def decode_shard(directory: Directory, data: list[bytes], state: State) -> State:
    decoded: State = {}
    for unit, stored in zip(directory.units, data):
        decoded |= decode_unit(unit, stored, directory, state, decoded)
    stands_for = {r.name: directory.records[r.target].name if r.kind == ALIAS else r.name for r in directory.records}
    return {name: decoded[other] for name, other in stands_for.items()}


def decode_file(path: Path, checkpoint: Checkpoint) -> State:
    directory, data = open_shard(path)
    must(directory.shards == 1, "one shard of several")
    return decode_shard(directory, data, checkpoint.reference([directory]))


def decode_shards(index: Path, checkpoint: Checkpoint) -> State:
    weight_map = read_json(index.read_bytes()).get("weight_map")
    must(type(weight_map) is dict and all(type(name) is str for name in weight_map.values()), "an index without weight_map")
    names = sorted(set(weight_map.values()))
    opened = []
    for name in names:
        must(name not in ("", ".", "..") and "/" not in name and "\\" not in name, f"{name} is not a plain file name")
        must((index.parent / name).is_file(), f"{name} is missing")
        opened.append(open_shard(index.parent / name))
        tensors = {record.name for record in opened[-1][0].records}
        must(tensors == {tensor for tensor, file in weight_map.items() if file == name}, f"{name} does not match the index")
    directories = [directory for directory, _ in opened]
    must(len({d.identity for d in directories}) == 1, "shards of different checkpoints")
    must(all(d.shards == len(names) for d in directories) and len({d.shard for d in directories}) == len(names),
         "a shard is missing or there twice")
    found: State = {}
    state = checkpoint.reference(sorted(directories, key=lambda d: d.shard))
    for directory, data in opened:
        found |= decode_shard(directory, data, state)
    return {tensor: found[tensor] for tensor in weight_map}


def decode_checkpoint(checkpoint: Checkpoint) -> State:
    path = checkpoint.path
    if not path.is_dir():
        return decode_file(path, checkpoint)
    if (path / INDEX).exists():
        must(not (path / "model.safetensors").exists(), "a folder with two checkpoints")
        return decode_shards(path / INDEX, checkpoint)
    if not (path / "model.safetensors").exists():
        raise WrongReference(f"{path} holds no compressed checkpoint")
    return decode_file(path / "model.safetensors", checkpoint)


def decode(path: str | Path, reference: State | str | Path | None = None) -> State:
    """All tensors of a compressed file or folder, in the order of the checkpoint: dtype, shape, bytes.

    reference: what it is a difference to, if it is one; found by its hint if it is not given."""
    given = Path(reference) if isinstance(reference, str) else reference
    return decode_checkpoint(Checkpoint(Path(path), given, ()))
