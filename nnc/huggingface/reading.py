"""A compressed file in the form of `safetensors.safe_open`: names, shapes and dtypes at once, a tensor when it is asked for.

What is decoded is handed out and not kept; compressed bytes are held while their unit is decoded.
"""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from types import EllipsisType
from typing import Any
from weakref import WeakValueDictionary

import torch

from ..archive import open_archive
from ..container import FILE_NAME, INDEX_NAME, Container, entry_dtype, open_file
from ..errors import Corruption, InvalidArgument, Unsupported
from ..workers import check_threads
from .watch import watched

_opened: WeakValueDictionary[tuple, Decoder] = WeakValueDictionary()  # shards of one folder share theirs while they are open
_loaded = Event()  # the kernels of the decoder are


class Decoder:
    """The tensors of a compressed checkpoint, whole, by name; for several threads.  path: a file, or a folder of shards."""

    def __init__(self, path: Path) -> None:
        number = check_threads(None)
        self._path = path
        self._archive = open_archive(path, ThreadPoolExecutor(number) if number > 1 else None)
        self._uses = Counter(self._archive.sources.values())
        self.records = {record.name: record for record in self._archive.records}
        self.metadata = dict(self._archive.origin.metadata)

    def read(self, name: str) -> torch.Tensor:
        """One tensor in memory of its own."""
        try:
            with _first_kernels():
                tensor = self._archive.read(name)
        except Corruption as problem:  # transformers says nowhere which file it was reading
            raise Corruption(f"{self._path}: {problem}") from None
        return tensor.clone() if self._uses[self._archive.sources[name]] > 1 else tensor


@contextmanager
def _first_kernels() -> Iterator[None]:
    """No garbage collection while the first tensor of the process is decoded: numba then makes some 10^5 objects that stay, and beside
    the objects of transformers the collector would take as long as numba itself."""
    if _loaded.is_set() or not gc.isenabled():
        yield
        return
    _loaded.set()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def open_decoder(file: Path) -> tuple[Decoder, list[str]]:
    """The checkpoint that a file is (a shard of), and the names of its tensors that are in this file."""
    container = open_file(file)
    names = [record.name for record in container.directory.records]
    sharded = container.directory.shard.count > 1 and (file.parent / INDEX_NAME).is_file()
    if not sharded:
        return Decoder(_named_path(file, container)), names
    key = os.path.abspath(file.parent), container.directory.shard.identity
    decoder = _opened.get(key)
    if decoder is None:
        decoder = _opened[key] = Decoder(file.parent)
    return decoder, names


def _named_path(file: Path, container: Container) -> Path:
    """The file, or its folder if a reference lies beside that: the folder is what was compressed, transformers names the file in it."""
    reference = container.directory.reference
    hint = reference.hint if reference else ""
    if file.name != FILE_NAME or not hint or (file.parent / hint).exists():
        return file
    return file.parent


class TensorSlice:
    """A tensor that is not decoded yet: `slice[...]` decodes it, any other index decodes it and takes that part."""

    def __init__(self, file: CompressedFile, name: str) -> None:
        self._file, self._name = file, name
        self._record = file.records[name]

    def get_shape(self) -> list[int]:
        return list(self._record.shape)

    def get_dtype(self) -> str:
        """As safetensors calls it."""
        code = entry_dtype(self._record.dtype)
        if code is None:
            raise Unsupported(f"tensor {self._name!r} is {self._record.dtype}, which .safetensors cannot hold: use nnc.load")
        return code

    def __getitem__(self, index: Any) -> torch.Tensor:
        tensor = self._file.get_tensor(self._name)
        return tensor if isinstance(index, EllipsisType) else tensor[index].clone()


class CompressedFile:
    """One compressed file, or shard of a compressed folder.  Raises what nnc.load raises."""

    def __init__(self, filename: str | os.PathLike, framework: str = "pt", device: Any = "cpu") -> None:
        if framework not in ("pt", "torch", "pytorch"):
            raise Unsupported(
                f"{filename}: is compressed, and decodes to torch tensors only: framework must be 'pt', is {framework!r}"
            )
        self._decoder, self._names = open_decoder(Path(filename))
        self._path, self._device, self._served = filename, device, watched()
        self.records = {name: self._decoder.records[name] for name in self._names}

    def keys(self) -> list[str]:
        return list(self._names)

    offset_keys = keys

    def metadata(self) -> dict[str, str]:
        """Of the file that was compressed."""
        return {"format": "pt", **(self._decoder.metadata if self._decoder else {})}

    def get_slice(self, name: str) -> TensorSlice:
        if name not in self.records:
            raise InvalidArgument(f"{self._path}: no tensor {name!r} in this file")
        return TensorSlice(self, name)

    def get_tensor(self, name: str) -> torch.Tensor:
        if self._decoder is None:
            raise InvalidArgument(f"{self._path}: is closed: open it again to read tensor {name!r}")
        if name not in self.records:
            raise InvalidArgument(f"{self._path}: no tensor {name!r} in this file")
        tensor = self._decoder.read(name)
        if self._served is not None:
            self._served.add(name)
        return tensor.to(self._device)

    def __enter__(self) -> CompressedFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self._decoder = None
