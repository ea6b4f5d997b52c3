"""Outliers: elements of a coded tensor that are kept apart from the others (inliers and outliers, US20220261616A1).

A few large weights widen the scale of all, or take an escape each.  Positions and values of such weights stand before the streams,
and are put in their places after everything else was done to the tensor.  Values are

    raw          elements of the dtype of the tensor, as they are
    half         float16, to be rounded to that dtype
    quantized    integers of 16 bits times a step of their own
"""

from __future__ import annotations

from dataclasses import dataclass
from zlib import decompressobj, error

import numpy as np
import torch

from .entropy.sparse import MAX_RICE, MODES, PARAMETERS, decode_positions
from .errors import Corruption
from .fields import MAX_BYTES, Lanes
from .registry import Table

VALUES = Table("kind of outliers", {0: "raw", 1: "half", 2: "quantized"})


@dataclass(frozen=True)
class Outliers:
    """What a record says of them.  number: of outliers; mode, parameters: of the positions (entropy/sparse.py); values: their kind;
    deflated: whether they are; step: of quantized ones, else 0; lengths: bytes of positions and of values."""

    number: int
    mode: str
    parameters: tuple[int, ...]
    values: str
    deflated: bool
    step: float
    lengths: tuple[int, int]

    @property
    def length(self) -> int:
        return sum(self.lengths)

    def write(self, out: Lanes) -> None:
        out.tools.varint(self.number)
        out.tools.byte(self.deflated << 7 | MODES.id(self.mode) << 4 | VALUES.id(self.values))
        for parameter in self.parameters:
            out.tools.varint(parameter)
        if self.values == "quantized":
            out.tools.float32(self.step)
        for length in self.lengths:
            out.lengths.varint(length)

    @classmethod
    def read(cls, data: Lanes, elements: int) -> Outliers:
        """Of a tensor with so many elements."""
        number = data.tools.varint("number of outliers", elements)
        head = data.tools.byte("mode of outliers")
        mode, values = MODES.value(head >> 4 & 7), VALUES.value(head & 15)
        parameters = tuple(
            data.tools.varint("parameter of outliers", number if mode == "runs" and not place else MAX_RICE)
            for place in range(PARAMETERS[mode])
        )
        step = data.tools.float32("step of outliers") if values == "quantized" else 0.0
        if not number or (mode == "runs" and not parameters[0]):
            raise Corruption("outliers of which there are none: the file is damaged")
        if values == "quantized" and not 0 < step < float("inf"):
            raise Corruption(f"step of outliers = {step} must be positive and finite: the file is damaged")
        lengths = data.lengths.varint("bytes of positions", MAX_BYTES), data.lengths.varint("bytes of outliers", MAX_BYTES)
        return cls(number, mode, parameters, values, bool(head >> 7), step, lengths)

    def place(self, tensor: torch.Tensor, data: bytes) -> None:
        """Put the outliers in `data` into a tensor of a coded dtype.  Corruption if the bytes are not what they should be."""
        positions = decode_positions(self.mode, self.parameters, data[: self.lengths[0]], self.number, tensor.numel())
        width = tensor.dtype.itemsize if self.values == "raw" else 2
        raw = data[self.lengths[0] :]
        raw = _inflate(raw, self.number * width) if self.deflated else raw
        if len(raw) != self.number * width:
            raise Corruption(f"{len(raw)} bytes of {self.number} outliers: the file is damaged")
        values = rebuild_values(self.values, np.frombuffer(raw, np.uint8).reshape(width, -1), self.step, tensor.dtype)
        if not torch.isfinite(values).all():
            raise Corruption("an outlier is not finite: the file is damaged")
        tensor.view(-1)[torch.from_numpy(positions)] = values


def rebuild_values(kind: str, planes: np.ndarray, step: float, dtype: torch.dtype) -> torch.Tensor:
    """Values of a dtype from their bytes: uint8 (bytes of a value, number)."""
    rows = np.ascontiguousarray(planes.T)
    if kind == "raw":
        return torch.from_numpy(rows.reshape(-1)).view(dtype)
    if kind == "half":
        values = rows.view("<f2").reshape(-1).astype(np.float32)
    else:
        with np.errstate(over="ignore"):
            values = rows.view("<i2").reshape(-1).astype(np.float32) * np.float32(step)
    if not np.isfinite(values).all():
        raise Corruption("an outlier is not finite: the file is damaged")
    largest = torch.finfo(dtype).max
    return torch.from_numpy(values if dtype == torch.float32 else np.clip(values, -largest, largest)).to(dtype)


def _inflate(data: bytes, length: int) -> bytes:
    inflater = decompressobj()
    try:
        raw = inflater.decompress(data, length + 1)
    except error as problem:
        raise Corruption(f"outliers: {problem}: the file is damaged") from None
    if not inflater.eof or inflater.unused_data:
        raise Corruption("outliers: the deflated bytes do not end where they should: the file is damaged")
    return raw
