"""Torch files (`torch.save`): zip archives, mapped into memory, and the older plain pickles. No code of a file is ever run.

`torch.load(weights_only=True)` interprets a pickle with a short list of allowed names; all it refuses is refused here too.
"""
from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from nnc.checkpoint.paths import os_errors
from nnc.checkpoint.spec import Origin, TensorSpec
from nnc.errors import Corruption, InvalidArgument, Unsupported

# What the interpreter of damaged pickles and archives has been seen to raise when bytes are cut or changed.
_DAMAGE = (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError,
           ArithmeticError, struct.error, zipfile.BadZipFile)
_NEEDS_CODE = re.compile(r"GLOBAL ([\w.]+)|TorchScript|legacy \.tar|Trying to call reduce|Can only (?:create|build)"
                         r"|Trying to instantiate")


def load_tree(path: Path) -> object:
    """The content of a torch file: plain Python containers and CPU tensors, mapped from the file where its form allows.

    Errors: InvalidArgument for a missing file, Unsupported when the file needs code, Corruption when it is damaged.
    """
    with os_errors(path):
        if not path.is_file():
            raise InvalidArgument(f"{path} is not a file")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return torch.load(str(path), map_location="cpu", weights_only=True, mmap=_is_mappable(path))
        except _DAMAGE as error:
            needed = _NEEDS_CODE.search(str(error))
            if needed is None:
                first = (str(error).splitlines() or [""])[0] if type(error) is RuntimeError else type(error).__name__
                raise Corruption(f"{path}: damaged or not a torch file ({first[:120]})") from error
            what = needed.group(1) or "code"
        raise Unsupported(f"{path}: needs {what} to load, which is refused; save model.state_dict() instead")


def _is_mappable(path: Path) -> bool:
    """True for a zip archive with stored records: a compressed record that is mapped would be taken for the values."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return False
    with zipfile.ZipFile(path) as archive:
        return all(record.compress_type == zipfile.ZIP_STORED for record in archive.infolist())


def save_tree(path: Path, specs: Sequence[TensorSpec], read: Callable[[TensorSpec], Tensor], origin: Origin) -> None:
    """Write a torch file in the form of the origin: its key, its plain entries, tied tensors as one. Holds all tensors."""
    root, place = origin.frame()
    for spec in specs:
        place[spec.name] = place[spec.tied_to] if spec.tied_to is not None else _alone(read(spec))
    # Through a file object, the archive does not contain its own name: same input, same bytes.
    with path.open("wb") as file:
        try:
            torch.save(root, file)
        except RuntimeError as error:
            # A failed write surfaces as a broken archive; what the system said is the error before it.
            if isinstance(error.__context__, OSError):
                raise error.__context__
            raise


def _alone(tensor: Tensor) -> Tensor:
    # torch.save writes the whole storage of a view.
    return tensor.clone() if tensor.untyped_storage().nbytes() != tensor.nbytes else tensor
