"""Encode tensors without loss: as they are, deflated, as the difference to a reference, or as being the same there."""

from __future__ import annotations

from zlib import compress

import numpy as np
import torch

from .coder import checksum
from .encoded import EncodedTensor, tensor_bytes
from .unit import Record

MAX_CONSTANT = 1 << 14  # bytes; larger ones deflate to next to nothing anyway


def encode_plain(name: str, tensor: torch.Tensor) -> EncodedTensor:
    """The tensor as it is, for an entry of its own."""
    data = bytes(tensor_bytes(tensor))
    return EncodedTensor(Record(name, tensor.dtype, tuple(tensor.shape), "plain"), data, (), checksum(data))


def encode_same(name: str, tensor: torch.Tensor, digest: bytes) -> EncodedTensor:
    """The tensor of the reference; digest: of it there."""
    record = Record(name, tensor.dtype, tuple(tensor.shape), "same")
    return EncodedTensor(record, b"", (), checksum(tensor_bytes(tensor)), reference=digest)


def encode_exact(
    name: str, tensor: torch.Tensor, base: torch.Tensor | None = None, digest: bytes = b"", earlier: str = ""
) -> EncodedTensor:
    """The tensor without loss: one element if all are the same, else the shortest of a few filters before deflate.

    base: its counterpart in the reference, of the same dtype and shape, with its digest, or the earlier tensor of this name: then the difference to it is
    one of them.
    """
    raw = bytes(tensor_bytes(tensor))
    content = checksum(raw)
    shape, size = tuple(tensor.shape), tensor.dtype.itemsize
    values = np.frombuffer(raw, np.uint8).reshape(-1, size)
    if 0 < len(raw) <= MAX_CONSTANT and (values == values[0]).all():
        return EncodedTensor(Record(name, tensor.dtype, shape, "constant", value=raw[:size]), b"", (), content)
    candidates = {"none": raw, "deflate": compress(raw, 9)}
    if size > 1 and len(values) > 1:
        candidates["byte planes"] = compress(np.ascontiguousarray(values.T).tobytes(), 9)
        if size in (2, 4, 8):
            steps = np.diff(values.copy().view(f"<u{size}")[:, 0], prepend=np.zeros(1, f"<u{size}"))
            candidates["differences"] = compress(np.ascontiguousarray(steps.view(np.uint8).reshape(-1, size).T).tobytes(), 9)
    if base is not None and size in (1, 2, 4, 8) and len(values):
        kind = np.dtype(f"<u{size}")
        steps = values.copy().view(kind)[:, 0] - np.frombuffer(tensor_bytes(base), kind)
        zigzag = (steps << kind.type(1)) ^ (kind.type(0) - (steps >> kind.type(8 * size - 1)))  # small numbers of either sign
        candidates["earlier" if earlier else "reference"] = compress(np.ascontiguousarray(zigzag.view(np.uint8).reshape(-1, size).T).tobytes(), 9)
    chosen = min(candidates, key=lambda key: len(candidates[key]))
    data = candidates[chosen]
    record = Record(name, tensor.dtype, shape, "exact", filter=chosen, length=len(data), base=earlier if chosen == "earlier" else "")
    return EncodedTensor(record, data, (), content, reference=digest if chosen == "reference" else b"")
