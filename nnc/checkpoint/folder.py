"""A Hugging Face folder: which files are the weights, which are carried along, which are left.

The weights are `model.safetensors`, else the shards of `model.safetensors.index.json`, else the same for
`pytorch_model.bin`: the order in which transformers looks. An index maps every tensor name to the shard that holds it.
"""
from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from nnc.checkpoint.paths import WEIGHT_SUFFIXES, check_side_name, os_errors
from nnc.errors import Corruption, InsufficientData, InvalidArgument

SAFETENSORS_NAME = "model.safetensors"
TORCH_NAME = "pytorch_model.bin"
INDEX_ENDING = ".index.json"
_MODULE_WEIGHTS = (SAFETENSORS_NAME, TORCH_NAME)
_EARLIER_STATE = re.compile(r"checkpoint-\d+")  # what a training run leaves beside its result


def weight_files(folder: Path) -> tuple[list[Path], Mapping[str, str] | None]:
    """The files that hold the weights, sorted, and the index (tensor name to file name) if they are shards.

    Errors: InvalidArgument when there are none, Corruption for a malformed index, InsufficientData for a missing shard.
    """
    for name in (SAFETENSORS_NAME, TORCH_NAME):
        if (folder / name).is_file():
            return [folder / name], None
        index_path = folder / (name + INDEX_ENDING)
        if index_path.is_file():
            index = _read_index(index_path)
            files = [folder / check_side_name(file) for file in sorted(set(index.values()))]
            for file in files:
                if not file.is_file():
                    raise InsufficientData(f"{index_path} names the shard {file.name}, which is missing; fetch it")
            return files, index
    found = sorted(child.name for child in folder.iterdir() if child.name.lower().endswith(WEIGHT_SUFFIXES))
    hint = f"it holds {found[0]}, pass that file itself if it is meant" if found else "it holds no weights"
    raise InvalidArgument(f"{folder} has no {SAFETENSORS_NAME} or {TORCH_NAME}, whole or with an index; {hint}")


def _read_index(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Corruption(f"{path} is not valid JSON") from error
    index = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(index, dict) or not all(isinstance(file, str) for file in index.values()):
        raise Corruption(f"{path} has no weight_map from tensor names to file names")
    if not index:
        raise InsufficientData(f"{path} names no tensors")
    return index


def check_index(folder: Path, index: Mapping[str, str], held: Iterable[tuple[str, str]]) -> None:
    """Compare an index with the pairs (tensor name, file name) that the shards hold. Errors: Corruption, InsufficientData."""
    missing = dict(index)
    for name, file in held:
        if index.get(name) != file:
            listed = f"lists it in {index[name]}" if name in index else "does not list it"
            raise Corruption(f"{folder}: {file} holds tensor {name!r}, but the index {listed}")
        del missing[name]
    for name, file in missing.items():
        raise InsufficientData(f"{folder}: the index lists tensor {name!r} in {file}, which does not hold it")


def side_files(folder: Path, used: Iterable[Path]) -> tuple[tuple[tuple[str, Path], ...], tuple[str, ...]]:
    """Files to carry along as (path relative to the folder, absolute path), and the weight files which are not carried.

    Not carried: hidden files and folders, indexes, earlier states of a training run, linked folders, and weights in any
    form, except the ones of a further module (a dense layer after the transformer, say) that `modules.json` names.
    """
    used = set(used)
    modules = _module_folders(folder)
    carried, left_out = [], []
    for parent, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not _EARLIER_STATE.fullmatch(name))
        for name in sorted(names):
            path = Path(parent, name)
            relative = path.relative_to(folder).as_posix()
            if name.startswith(".") or path in used or name.endswith(INDEX_ENDING):
                continue
            if path.is_symlink() and not path.exists():
                raise InvalidArgument(f"{path} is a link to a file that does not exist; fetch it or remove the link")
            if not path.is_file():
                continue
            is_weights = name.lower().endswith(WEIGHT_SUFFIXES) or ".onnx" in name.lower()
            if is_weights and not (name in _MODULE_WEIGHTS and os.path.dirname(relative) in modules):
                left_out.append(relative)
            else:
                carried.append((relative, path.absolute()))
    return tuple(sorted(carried)), tuple(sorted(left_out))


def _raise(error: OSError) -> None:
    raise error  # os.walk would pass over an unreadable folder in silence


def _module_folders(folder: Path) -> set[str]:
    """Subfolders with modules of their own, from the `modules.json` of a sentence encoder."""
    path = folder / "modules.json"
    if not path.is_file():
        return set()
    with os_errors(path):
        text = path.read_bytes()
    try:
        modules = json.loads(text)
    except (ValueError, RecursionError):
        return set()  # not the file it looks like: carried like any other
    entries = modules if isinstance(modules, list) else []
    paths = [entry.get("path") for entry in entries if isinstance(entry, dict)]
    return {path.strip("/") for path in paths if isinstance(path, str)} - {""}
