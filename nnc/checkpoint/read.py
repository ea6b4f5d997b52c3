"""Open a checkpoint: a Hugging Face folder, a `.safetensors` file, a torch file, a live module or a mapping of tensors."""
from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from nnc.checkpoint.folder import check_index, side_files, weight_files
from nnc.checkpoint.paths import SAFETENSORS_SUFFIX, TORCH_SUFFIXES, os_errors
from nnc.checkpoint.safetensors_file import SafetensorsFile
from nnc.checkpoint.spec import Origin, TensorSpec
from nnc.checkpoint.state_dict import LoadedTensors, Weights, find_weights
from nnc.checkpoint.torch_file import load_tree
from nnc.errors import InsufficientData, InvalidArgument


class TensorFile(Protocol):
    """One file (or one state dict) of a checkpoint."""
    specs: tuple[TensorSpec, ...]

    def read(self, name: str) -> Tensor: ...


class Checkpoint:
    """The tensors of a trained network, read one at a time; a context manager.

    specs       every tensor, in the order of the input: the order of the state dict, for .safetensors the order of
                `safe_open(...).keys()`, for shards file by file in the order of their names
    source      the file or folder, None for a live module or a mapping
    origin      what is needed to write the checkpoint back in the same form
    side_files  (path relative to the folder, absolute path) of files to carry along; folders only
    left_out    names of entries of a torch file, or of weight files in a folder, that are not part of this checkpoint
    """

    def __init__(self, parts: Sequence[TensorFile], source: Path | None, origin: Origin,
                 side_files: tuple[tuple[str, Path], ...] = (), left_out: tuple[str, ...] = ()) -> None:
        self.specs = tuple(spec for part in parts for spec in part.specs)
        self.source = source
        self.origin = origin
        self.side_files = side_files
        self.left_out = left_out
        self._holders: dict[str, TensorFile] | None = {spec.name: part for part in parts for spec in part.specs}
        if not self.specs:
            raise InsufficientData(f"{source or 'the module'} holds no tensors")

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, tied ones counted once."""
        return sum(spec.nbytes for spec in self.specs if spec.tied_to is None)

    def read(self, name: str) -> Tensor:
        """One tensor in its original dtype: CPU, contiguous, a copy that the caller may change.

        Errors: InvalidArgument for an unknown name, a closed checkpoint or too little memory, Corruption if the file shrank
        meanwhile.
        """
        if self._holders is None:
            raise InvalidArgument(f"tensor {name!r}: the checkpoint is closed")
        if name not in self._holders:
            raise InvalidArgument(f"the checkpoint has no tensor {name!r}")
        try:
            return self._holders[name].read(name)
        except RuntimeError as error:
            if "allocate memory" not in str(error):
                raise
            nbytes = next(spec.nbytes for spec in self.specs if spec.name == name)
            raise InvalidArgument(f"tensor {name!r} of {nbytes} bytes does not fit into memory") from error

    def close(self) -> None:
        """Let go of files and tensors; `specs` and the other attributes stay."""
        self._holders = None

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def open_checkpoint(source: str | os.PathLike[str] | nn.Module | Mapping[str, Tensor],
                    weights_key: str | None = None) -> Checkpoint:
    """Open a checkpoint; headers and shapes are read now, tensors when asked for.

    `weights_key` says where the state dict stands in a torch file or mapping, as a dotted key ("" is the top level); it is
    only needed when tensors stand in several places. Errors: InvalidArgument (missing file, unknown form, ambiguous place),
    Unsupported (needs code, sparse or quantized tensors), Corruption (damaged), InsufficientData (no tensors, no shard).
    """
    if isinstance(source, nn.Module):
        _check_no_key(weights_key, "a module")
        state = source.state_dict(keep_vars=True)
        if not any(isinstance(value, Tensor) for value in state.values()):
            raise InsufficientData("the module holds no tensors")
        # The top level is meant, whatever an extra state of a submodule may hold.
        return _from_memory(find_weights(state, "", "the module"), "the module")
    if isinstance(source, Mapping):
        weights = find_weights(source, weights_key, "the mapping")
        if weights.left_out and weights_key is None:
            raise InvalidArgument(f"the mapping: entry {weights.left_out[0]!r} is neither a tensor nor a plain value and would "
                                  "be left out; convert or remove it")
        return _from_memory(weights, "the mapping")
    if not isinstance(source, (str, os.PathLike)):
        raise InvalidArgument(f"cannot open a {type(source).__name__}; pass a path, a module or a mapping of tensors")
    path = Path(source)
    with os_errors(path):
        if path.is_dir():
            return _open_folder(path, weights_key)
        if not path.exists():
            raise InvalidArgument(f"{path} does not exist")
        suffix = path.suffix.lower()
        if suffix == SAFETENSORS_SUFFIX:
            _check_no_key(weights_key, str(path))
            file = SafetensorsFile(path)
            return Checkpoint([file], path, Origin("safetensors", file.metadata))
        if suffix in TORCH_SUFFIXES:
            part, weights = _open_torch(path, weights_key)
            return Checkpoint([part], path, Origin("torch", (), weights.wrapper, weights.extras), (), weights.left_out)
    raise InvalidArgument(f"{path}: unknown suffix {suffix!r}; expected a folder or "
                          f"{', '.join((SAFETENSORS_SUFFIX, *TORCH_SUFFIXES))}")


def _check_no_key(weights_key: str | None, what: str) -> None:
    if weights_key is not None:
        raise InvalidArgument(f"weights_key {weights_key!r} is for torch files and mappings; {what} has only one place")


def _from_memory(weights: Weights, label: str) -> Checkpoint:
    origin = Origin("module", (), weights.wrapper, weights.extras)
    return Checkpoint([LoadedTensors(weights.tensors, label)], None, origin, (), weights.left_out)


def _open_torch(path: Path, weights_key: str | None) -> tuple[LoadedTensors, Weights]:
    weights = find_weights(load_tree(path), weights_key, str(path))
    return LoadedTensors(weights.tensors, str(path)), weights


def _open_folder(folder: Path, weights_key: str | None) -> Checkpoint:
    files, index = weight_files(folder)
    parts: list[TensorFile] = []
    left_out: list[str] = []
    metadata: dict[str, str] = {}
    for file in files:
        if file.suffix.lower() == SAFETENSORS_SUFFIX:
            _check_no_key(weights_key, str(folder))
            part = SafetensorsFile(file)
            metadata = {**dict(part.metadata), **metadata}
        else:
            part, weights = _open_torch(file, weights_key)
            # A folder has no place for what stands beside the weights.
            left_out += [*weights.left_out, *(json.loads(weights.extras) if weights.extras else ())]
        parts.append(part)
    if index is not None:
        held = [(spec.name, file.relative_to(folder).as_posix()) for file, part in zip(files, parts) for spec in part.specs]
        check_index(folder, index, held)
    carried, other_weights = side_files(folder, files)
    return Checkpoint(parts, folder, Origin("hf", tuple(sorted(metadata.items()))), carried, (*left_out, *other_weights))
