"""Read compressed checkpoints: state dicts, modules, checkpoints on disk, and what a file says about itself."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import torch
from torch import nn

from .archive import AHEAD, Archive, ReferenceSource, open_archive, open_compressed
from .buffers import reused
from .checkpoint import TensorSpec, check_destination, write_checkpoint
from .container import INDEX_NAME, shard_paths
from .decoding import decode_units
from .errors import InvalidArgument
from .pretrained_config import NAME as CONFIG_NAME
from .pretrained_config import clear_config
from .workers import Workers, check_threads, open_workers


@contextmanager
def _opened(path: str | os.PathLike, threads: int | None, reference: ReferenceSource | None) -> Iterator[tuple[Archive, Workers]]:
    with open_workers(check_threads(threads)) as workers, open_compressed(path, workers.pool, reference) as archive:
        yield archive, workers


def open(path: str | os.PathLike | BinaryIO, *, threads: int | None = None, reference: ReferenceSource | None = None) -> Archive:
    """Open a compressed checkpoint to read single tensors, or rows of them, without the rest: see `Archive`.

    path: file or folder, memory-mapped; or any binary object with `read` and `seek`, of which only the header, the directory and what is
    asked for is read, so that a remote file need not be fetched.  threads, reference: as for `load`.
    """
    number = check_threads(threads)
    pool = ThreadPoolExecutor(number) if number > 1 else None
    return replace(open_archive(path, pool, reference), owned=True)


def load(
    path: str | os.PathLike,
    *,
    names: list[str] | None = None,
    threads: int | None = None,
    reference: ReferenceSource | None = None,
) -> dict[str, torch.Tensor]:
    """State dict of a compressed checkpoint: original names, shapes, dtypes; tied tensors share their memory.

    names: only these tensors; reference: the checkpoint that this one is a difference to, default: the one of the remembered name
    beside it.  InvalidArgument if it is not there or not the right one.  Memory: the tensors that are asked for, and a few compressed units.
    """
    with _opened(path, threads, reference) as (archive, workers):
        records = {record.name: record for record in archive.records}
        wanted = set(records) if names is None else set(names)
        if unknown := sorted(wanted - records.keys()):
            raise InvalidArgument(f"{path}: no tensor {unknown[0]!r} in this file")
        sources = {name: source for name, source in archive.sources.items() if name in wanted}
        check_memory(path, sum(records[source].nbytes for source in set(sources.values())))
        tensors = decode_units(archive, workers, lambda name, tensor: tensor, set(sources.values()))
        tied = {name for name in wanted if records[name].tied or records[name].kind != "alias"}
        return {
            name: tensors[sources[name]] if name in tied else tensors[sources[name]].clone() for name in records if name in wanted
        }


def check_memory(path: str | os.PathLike, needed: int) -> None:
    """Refuse what the machine cannot hold before anything is allocated."""
    if not hasattr(os, "sysconf"):
        return
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise InvalidArgument(
            f"{path}: its tensors take {needed} bytes, this machine has {there}: load some of them with names=[...]"
        )


def load_into(
    model: nn.Module,
    path: str | os.PathLike,
    *,
    strict: bool = True,
    threads: int | None = None,
    reference: ReferenceSource | None = None,
) -> nn.Module:
    """Load a compressed checkpoint into a module (its parameters keep their dtype and device) and return the module.

    strict: every tensor of either side must be on the other one, but for the batch counters of old checkpoints, which torch does
    without too.  InvalidArgument names the first that is not.  reference: as for `load`.
    """
    with _opened(path, threads, reference) as (archive, _):
        names = match_state(model, {record.name: record.shape for record in archive.records}, str(path), strict)
    state = load(path, names=sorted(set(names.values())), threads=threads, reference=reference)
    model.load_state_dict({name: state[stored] for name, stored in names.items()}, strict=False)
    return model


def match_state(model: nn.Module, shapes: dict[str, tuple[int, ...]], label: str, strict: bool = True) -> dict[str, str]:
    """For every tensor of a module the one of a checkpoint that belongs there: of its own name, or of the name of another that it is tied
    to.  shapes: of the checkpoint; label: its name in messages.

    strict: every tensor of either side must be on the other one, but for the batch counters of old checkpoints, which torch does
    without too.  InvalidArgument names the first that is not, or whose shape differs.
    """
    own = model.state_dict(keep_vars=True)
    names = {name: name for name in own if name in shapes}
    places = {id(own[name]): name for name in reversed(list(names))}
    for name, tensor in own.items():
        if name not in names and id(tensor) in places:  # files may hold tied tensors once
            names[name] = places[id(tensor)]
    expected = {name for name in own if name in names or not name.endswith("num_batches_tracked")}
    if strict and (difference := sorted((shapes.keys() | names.keys()) ^ expected)):
        side = "the model" if difference[0] in shapes else label
        raise InvalidArgument(
            f"{len(difference)} tensors differ, the first is {difference[0]!r}, not in {side}: pass strict=False to load the others"
        )
    for name, stored in names.items():
        if shapes[stored] != tuple(own[name].shape):
            raise InvalidArgument(
                f"tensor {stored!r} has the shape {shapes[stored]} in {label}, {tuple(own[name].shape)} in the model"
            )
    return names


def decompress(
    path: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    threads: int | None = None,
    overwrite: bool = False,
    progress=None,
    reference: ReferenceSource | None = None,
) -> list[Path]:
    """Write the checkpoint back: .safetensors or a torch file by the suffix of `destination`, else a folder with the side files.
    Returns the files.  reference: as for `load`.
    """
    check_destination(path, destination, overwrite)
    with reused(), _opened(path, threads, reference) as (archive, _):
        records = archive.records
        sources = archive.sources
        first: dict[str, str] = {}
        for record in records:  # a tie refers to the earlier of two tensors
            if record.kind != "alias" or record.tied:
                first.setdefault(sources[record.name], record.name)
        specs = [
            TensorSpec(
                r.name,
                r.dtype,
                r.shape,
                first[sources[r.name]] if (r.kind != "alias" or r.tied) and first[sources[r.name]] != r.name else None,
            )
            for r in records
        ]
        total, done = sum(record.nbytes for record in records), 0
        cache: dict[str, torch.Tensor] = {}
        stream = archive.tensors()
        uses = Counter(sources.values())

        def read(name: str) -> torch.Tensor:
            nonlocal done
            source = sources[name]
            if source in cache:
                tensor = cache[source]
            else:
                tensor = next((t for n, t in stream if n == source), None)
                tensor = tensor if tensor is not None else dict(archive.tensors({source}))[source]
            if uses[source] > 1:
                cache[source] = tensor
            done += tensor.nbytes
            if progress:
                progress(done, total, f"decompress {name}")
            return tensor

        side = side_files(Path(path)) if Path(path).is_dir() else ()
        return write_checkpoint(destination, specs, read, archive.origin, side, overwrite=overwrite)


def side_files(folder: Path) -> tuple[tuple[str, Path | bytes], ...]:
    """Files of a compressed folder that are not its weights, and config.json as it was."""
    weights = {INDEX_NAME, *(shard.name for shard in shard_paths(folder))}
    return tuple(
        (name, clear_config(file.read_bytes()) if name == CONFIG_NAME else file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and (name := str(file.relative_to(folder))) not in weights
    )


def verify(
    path: str | os.PathLike, *, threads: int | None = None, progress=None, reference: ReferenceSource | None = None
) -> int:
    """Decode everything and check all lengths, checksums and digests; returns the number of tensors.  Raises Corruption; reference:
    as for `load`."""
    with reused(), _opened(path, threads, reference) as (archive, workers):
        decode_units(archive, workers, lambda name, tensor: archive.check_parts(name), None, AHEAD, progress)
        return len(archive.records)
