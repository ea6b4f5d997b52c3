"""What is replaced in `transformers.modeling_utils`: opening, saving and offloading of files that nnc wrote, and nothing for others.

A version outside of SUPPORTED still gets a clear error for a compressed folder, never random weights.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import InvalidArgument, Unsupported

SUPPORTED = ((5, 0), (6, 0))  # from .. to below; pyproject.toml says the same
PREFIX = b'{"__metadata__":{"nnc":'  # of a header as nnc writes it


def register(module: ModuleType) -> None:
    """Replace what must be in `transformers.modeling_utils`, and add the quantizer.  Again: nothing."""
    if hasattr(module.safe_open, "passes_on"):
        return
    version = sys.modules["transformers"].__version__
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if not SUPPORTED[0] <= numbers < SUPPORTED[1]:
        module.safe_open = _replaced(module.safe_open, lambda original: _refuse(original, version))
        return
    import_module(".quantizer", __package__).register()
    for name, wrap in (
        ("safe_open", _open),
        ("safe_save_file", _save),
        ("_safe_load_bytes", _load_bytes),
        ("accelerate_disk_offload", _offload),
    ):
        if hasattr(module, name):  # 5.0 has no loading from bytes
            setattr(module, name, _replaced(getattr(module, name), wrap))


def is_ours(path: str | os.PathLike) -> bool:
    """Whether a file was written by nnc; False for what cannot be read, which is then the business of the one who asked."""
    try:
        with open(path, "rb") as file:
            head = file.read(8)
            length = int.from_bytes(head, "little")
            start = file.read(min(length, len(PREFIX)))
            if start == PREFIX:
                return True
            # a file that another program has written again may have its keys in another order
            odd = start.startswith(b"{") and length <= os.fstat(file.fileno()).st_size and b'"nnc"' in file.read(length)
    except OSError:
        return False
    return odd and import_module("..container", __package__).is_compressed(path)


def _replaced(original: Callable, wrap: Callable[[Callable], Callable]) -> Callable:
    function = wrap(original)
    function.passes_on = original
    return function


def _open(original: Callable) -> Callable:
    def safe_open(filename: str | os.PathLike, framework: str = "pt", device: Any = "cpu", **options: Any) -> Any:
        if not is_ours(filename):
            return original(filename, framework=framework, device=device, **options)
        return import_module(".reading", __package__).CompressedFile(filename, framework, device)

    return safe_open


def _refuse(original: Callable, version: str) -> Callable:
    def safe_open(filename: str | os.PathLike, *arguments: Any, **options: Any) -> Any:
        if not is_ours(filename):
            return original(filename, *arguments, **options)
        low, high = (".".join(map(str, numbers)) for numbers in SUPPORTED)
        raise Unsupported(
            f"{filename}: is compressed, and nnc reads such folders with transformers from {low} to below {high}, this is {version}: "
            "install such a version, or decompress the folder with nnc decompress"
        )

    return safe_open


def _save(original: Callable) -> Callable:
    def safe_save_file(
        tensors: dict, filename: str | os.PathLike, metadata: dict[str, str] | None = None, **options: Any
    ) -> None:
        if hasattr(metadata, "write_copies"):
            return metadata.write_copies(Path(filename))
        return original(tensors, filename, metadata=metadata, **options)

    return safe_save_file


def _load_bytes(original: Callable) -> Callable:
    def load_bytes(data: bytes) -> dict:
        if data[8 : 8 + len(PREFIX)] == PREFIX:
            raise InvalidArgument("a compressed checkpoint is decoded from its file, not from its bytes: leave out disable_mmap")
        return original(data)

    return load_bytes


def _offload(original: Callable) -> Callable:
    def accelerate_disk_offload(model: Any, folder: str | None, files: list[str] | None, *arguments: Any, **options: Any) -> Any:
        """transformers would have weights on the disk read from the file again and again, without decoding: without the names of the
        files it writes them, decoded, into the folder."""
        if any(is_ours(file) for file in files or ()):
            if folder is None:
                raise InvalidArgument("device_map leaves weights on the disk, where they must be decoded: give offload_folder")
            files = None
        return original(model, folder, files, *arguments, **options)

    return accelerate_disk_offload
