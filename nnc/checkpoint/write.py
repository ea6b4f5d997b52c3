"""Write a checkpoint: one file, or a Hugging Face folder with shards, an index and the files that were carried along."""
from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from nnc.checkpoint.folder import INDEX_ENDING, SAFETENSORS_NAME
from nnc.checkpoint.output import atomic_output
from nnc.checkpoint.paths import FOREIGN_SUFFIXES, SAFETENSORS_SUFFIX, TORCH_SUFFIXES, check_side_name
from nnc.checkpoint.safetensors_file import check_storable, write_safetensors
from nnc.checkpoint.spec import Origin, TensorSpec
from nnc.checkpoint.torch_file import save_tree
from nnc.errors import Corruption, InsufficientData, InvalidArgument


def write_checkpoint(destination: str | os.PathLike[str], specs: Sequence[TensorSpec], read: Callable[[str], Tensor],
                     origin: Origin, side_files: Sequence[tuple[str, Path | bytes]] = (), max_shard_bytes: int = 5_000_000_000,
                     overwrite: bool = False) -> list[Path]:
    """Write the tensors that `read(name)` returns; give back the paths of all files written.

    A destination with the suffix .safetensors, or one of a torch file, is that one file; any other is a folder with
    `model.safetensors`, or shards of at most `max_shard_bytes` bytes of data (one tensor may be more) with an index.
    Tied tensors are asked for under their first name only. A torch file gets the key and the plain entries of the origin
    and ties its tensors again; .safetensors gets the metadata of the origin ({"format": "pt"} if it has none) and a copy
    under every name. Side files (a path, or the content) go into a folder only. .safetensors is streamed, one tensor in memory at a time.

    Errors: Corruption when `read` returns another dtype or shape than the spec says, or for an unsafe side file name;
    Unsupported for what the form cannot hold; InvalidArgument for specs that contradict each other, the destination and the
    disk; InsufficientData for no specs.
    """
    destination = Path(destination)
    suffix = destination.suffix.lower()
    _check_specs(specs)
    if max_shard_bytes < 1:
        raise InvalidArgument(f"max_shard_bytes is {max_shard_bytes}, must be at least 1")
    if suffix in FOREIGN_SUFFIXES:
        raise InvalidArgument(f"{destination}: cannot write {suffix}; expected a folder or "
                              f"{', '.join((SAFETENSORS_SUFFIX, *TORCH_SUFFIXES))}")

    def checked(spec: TensorSpec) -> Tensor:
        tensor = read(spec.tied_to or spec.name).detach()
        if tensor.dtype != spec.dtype or tuple(tensor.shape) != spec.shape:
            raise Corruption(f"tensor {spec.name!r} came as {tensor.dtype} {tuple(tensor.shape)}, expected {spec.dtype} "
                             f"{spec.shape}")
        return tensor.cpu().resolve_conj().resolve_neg().contiguous()

    metadata = dict(origin.metadata) or {"format": "pt"}
    if suffix in TORCH_SUFFIXES:
        with atomic_output(destination, folder=False, overwrite=overwrite) as temporary:
            save_tree(temporary, specs, checked, origin)
        return [destination]
    check_storable(specs)
    if suffix == SAFETENSORS_SUFFIX:
        with atomic_output(destination, folder=False, overwrite=overwrite) as temporary:
            write_safetensors(temporary, specs, checked, metadata)
        return [destination]
    shards = _shards(specs, max_shard_bytes)
    index = SAFETENSORS_NAME + INDEX_ENDING
    written = [*shards, *([index] if len(shards) > 1 else [])]
    carried = _check_side_files(side_files, written)
    with atomic_output(destination, folder=True, overwrite=overwrite) as temporary:
        for name, members in shards.items():
            write_safetensors(temporary / name, members, checked, metadata)
        if len(shards) > 1:
            (temporary / index).write_text(_index_text(shards))
        for name, path in carried.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(path, bytes):
                (temporary / name).write_bytes(path)
            else:
                shutil.copyfile(path, temporary / name)
    return [destination / name for name in (*written, *carried)]


def _check_specs(specs: Sequence[TensorSpec]) -> None:
    if not specs:
        raise InsufficientData("no tensors to write")
    earlier: dict[str, TensorSpec] = {}
    for spec in specs:
        if spec.name in earlier:
            raise InvalidArgument(f"tensor {spec.name!r} is given twice")
        if spec.tied_to is not None:
            first = earlier.get(spec.tied_to)
            if first is None or (first.dtype, first.shape, first.tied_to) != (spec.dtype, spec.shape, None):
                raise InvalidArgument(f"tensor {spec.name!r} is tied to {spec.tied_to!r}, which is not an earlier untied tensor "
                                      "of its dtype and shape")
        earlier[spec.name] = spec


def _shards(specs: Sequence[TensorSpec], max_shard_bytes: int) -> dict[str, list[TensorSpec]]:
    """File names of the folder and their tensors, filled in the order of the specs."""
    groups: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in specs:
        if groups[-1] and size + spec.nbytes > max_shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(spec)
        size += spec.nbytes
    if len(groups) == 1:
        return {SAFETENSORS_NAME: groups[0]}
    stem = SAFETENSORS_NAME.removesuffix(SAFETENSORS_SUFFIX)
    return {f"{stem}-{number:05d}-of-{len(groups):05d}{SAFETENSORS_SUFFIX}": group for number, group in enumerate(groups, 1)}


def _index_text(shards: dict[str, list[TensorSpec]]) -> str:
    total = sum(spec.nbytes for members in shards.values() for spec in members)
    weight_map = {spec.name: file for file, members in shards.items() for spec in members}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n"


def _check_side_files(side_files: Sequence[tuple[str, Path | bytes]], written: Sequence[str]) -> dict[str, Path | bytes]:
    carried: dict[str, Path | bytes] = {}
    for name, path in side_files:
        safe = check_side_name(name).as_posix()
        if safe in written or safe in carried:
            raise Corruption(f"side file {name!r} has the name of another file of the folder")
        carried[safe] = path if isinstance(path, bytes) else Path(path)
    return carried
