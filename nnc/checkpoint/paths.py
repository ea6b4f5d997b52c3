"""File names: which suffix means which form, where an output may go, which relative names of a foreign file are safe."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath

from nnc.errors import Corruption, InvalidArgument

SAFETENSORS_SUFFIX = ".safetensors"
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".th", ".ckpt", ".tar")
# Weights in the forms of other frameworks: never read, never carried along.
FOREIGN_SUFFIXES = (".h5", ".msgpack", ".onnx", ".onnx_data", ".ot", ".gguf", ".ggml", ".tflite")
WEIGHT_SUFFIXES = (SAFETENSORS_SUFFIX, *TORCH_SUFFIXES, *FOREIGN_SUFFIXES)


@contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses into InvalidArgument: the file and the reason."""
    try:
        yield
    except OSError as error:
        raise InvalidArgument(f"{error.filename or path}: {error.strerror or error}") from error


def check_side_name(name: str) -> PurePosixPath:
    """The relative path of a file to write into an output folder, from a foreign file. Errors: Corruption when it could
    leave the folder."""
    path = PurePosixPath(name)
    # A backslash, a drive or a colon means something else on Windows than here.
    if (
        not name
        or path.is_absolute()
        or ".." in path.parts
        or not path.parts
        or PureWindowsPath(name).drive
        or "\\" in name
        or "\0" in name
    ):
        raise Corruption(f"file name {name!r} is not a plain relative path")
    return path


def check_parent(destination: str | os.PathLike[str]) -> None:
    """Refuse an output whose folder does not exist or must not be written to. Errors: InvalidArgument."""
    folder = Path(destination).absolute().parent
    with os_errors(folder):
        if not folder.is_dir():
            raise InvalidArgument(f"{destination}: folder {folder} does not exist; make it first")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InvalidArgument(f"{destination}: folder {folder} must not be written to; choose another")


def check_destination(source: str | os.PathLike[str] | None, destination: str | os.PathLike[str], overwrite: bool) -> None:
    """Refuse an output that exists (unless `overwrite`), overlaps its own source, or is where nothing can be written.

    `source` is a file, a folder, or None for a live module. Errors: InvalidArgument.
    """
    destination = Path(destination)
    with os_errors(destination):
        place = destination.absolute()
        if place.name in ("", ".."):
            raise InvalidArgument(f"{destination} has no name of its own; name the output file or folder")
        if os.path.lexists(destination) and not overwrite:
            raise InvalidArgument(f"{destination} exists; pass overwrite=True / --overwrite")
        check_parent(destination)
        if source is None:
            return
        target, origin = place.parent.resolve() / place.name, Path(source).resolve()
        if target == origin or (origin.exists() and destination.exists() and origin.samefile(destination)):
            raise InvalidArgument(f"{destination} is the source itself; choose another output")
        if target.is_relative_to(origin):
            raise InvalidArgument(f"{destination} lies inside the source {source}; choose an output outside it")
        if origin.is_relative_to(target):
            raise InvalidArgument(f"{destination} holds the source {source}; choose another output")


def check_replaceable(destination: Path, folder: bool) -> None:
    """Refuse to replace an existing path of another kind, or a folder that was not made by writing a checkpoint: replacing
    a folder deletes all that is in it. Errors: InvalidArgument."""
    with os_errors(destination):
        if not os.path.lexists(destination):
            return
        if not folder:
            if destination.is_dir():
                raise InvalidArgument(f"{destination} is a folder; a file cannot replace it")
            if destination.exists() and not destination.is_file():
                raise InvalidArgument(f"{destination} is not a regular file")
            return
        if not destination.is_dir():
            raise InvalidArgument(f"{destination} is not a folder; a folder cannot replace it")
        if Path.cwd().is_relative_to(destination.resolve()):
            raise InvalidArgument(f"{destination} holds the current folder; choose another output")
        names = [child.name for child in destination.iterdir()]
        if names and not any(name.lower().endswith(WEIGHT_SUFFIXES) for name in names):
            raise InvalidArgument(f"{destination} holds other files and no weights; remove it yourself or choose another output")
