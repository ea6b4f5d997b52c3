"""One `.safetensors` file: 8 bytes little-endian header length, a JSON header, then the data of the tensors without gaps.

The safetensors package checks a header (sizes, overlaps, limits) and gives the order of names; the bytes of a tensor are
then read straight into memory of its own, so reading holds one tensor and leaves no mapping of the file behind. Writing
knows every size from the specs, so the header goes out first and the data are streamed tensor by tensor.
Source: the format description in the README of huggingface/safetensors.
"""
from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from nnc.buffers import empty
from nnc.checkpoint.paths import os_errors
from nnc.checkpoint.spec import TensorSpec
from nnc.errors import Corruption, InvalidArgument, Unsupported

_NAMED = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu",
}
# Older torch versions lack some of the 8-bit types; a file that holds one is then refused by name.
DTYPES: dict[str, torch.dtype] = {code: getattr(torch, name) for code, name in _NAMED.items() if hasattr(torch, name)}
CODES: dict[torch.dtype, str] = {dtype: code for code, dtype in DTYPES.items()}


class SafetensorsFile:
    """The tensors of one file, in the order of `safe_open(...).keys()` (sorted by name in current versions)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with os_errors(path):
            if not path.is_file():
                raise InvalidArgument(f"{path} is not a file")
            try:
                with safe_open(str(path), framework="pt") as file:
                    names = list(file.keys())
                    self.metadata = tuple(sorted((file.metadata() or {}).items()))
            except SafetensorError as error:
                raise Corruption(f"{path}: damaged or not a .safetensors file ({error})") from error
            if "nnc" in dict(self.metadata):  # its entries are no tensors
                raise InvalidArgument(f"{path} is compressed already: give the original, or what nnc decompress makes of it")
            with path.open("rb") as file:
                length = struct.unpack("<Q", file.read(8))[0]
                header = json.loads(file.read(length))
        self.specs = tuple(_spec(path, name, header[name]) for name in names)
        self._begins = {name: 8 + length + header[name]["data_offsets"][0] for name in names}
        self._by_name = {spec.name: spec for spec in self.specs}

    def read(self, name: str) -> torch.Tensor:
        """One tensor in new memory. Errors: Corruption when the file has become shorter since it was opened."""
        spec = self._by_name[name]
        if not spec.nbytes:
            return torch.empty(spec.shape, dtype=spec.dtype)
        data = empty(spec.nbytes, "uint8")  # numpy asks for large pages, torch does not
        with os_errors(self.path), open(self.path, "rb", buffering=0) as file:
            file.seek(self._begins[name])
            left = memoryview(data)
            while len(left):  # the system reads 2 GB at a time at most
                count = file.readinto(left)
                if not count:
                    raise Corruption(f"{self.path}: ends inside tensor {name!r}")
                left = left[count:]
        return torch.from_numpy(data).view(spec.dtype).reshape(spec.shape)


def _spec(path: Path, name: str, entry: dict) -> TensorSpec:
    if entry["dtype"] not in DTYPES:
        raise Unsupported(f"{path}: tensor {name!r} has dtype {entry['dtype']}, which is not supported; convert it to one of "
                          f"{', '.join(DTYPES)}")
    return TensorSpec(name, DTYPES[entry["dtype"]], tuple(entry["shape"]))


def check_storable(specs: Iterable[TensorSpec]) -> None:
    """Refuse what the format cannot hold, before any work. Errors: Unsupported."""
    for spec in specs:
        if spec.dtype not in CODES:
            raise Unsupported(f"tensor {spec.name!r} is {spec.dtype}, which .safetensors cannot hold; write a .pt file")
        if spec.name == "__metadata__" or any("\ud800" <= letter <= "\udfff" for letter in spec.name):
            raise Unsupported(f"tensor name {spec.name!r} is not allowed in .safetensors; rename it or write a .pt file")


def write_safetensors(path: Path, specs: Sequence[TensorSpec], read: Callable[[TensorSpec], torch.Tensor],
                      metadata: dict[str, str]) -> None:
    """Write the tensors `read` returns (CPU, contiguous, as their specs say), holding one at a time.

    Larger elements come first, in the order of the specs otherwise: then every tensor starts at a multiple of its element
    size and loaders may map the file.
    """
    check_storable(specs)
    ordered = sorted(specs, key=lambda spec: -spec.dtype.itemsize)
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for spec in ordered:
        begin, end = end, end + spec.nbytes
        header[spec.name] = {"dtype": CODES[spec.dtype], "shape": list(spec.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for spec in ordered:
            if spec.nbytes:
                file.write(memoryview(read(spec).reshape(-1).view(torch.uint8).numpy()))
