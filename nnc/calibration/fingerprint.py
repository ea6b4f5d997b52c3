"""Checksums that tell one model and one set of data from another: CRC-32 of names, shapes and bytes."""

from __future__ import annotations

from typing import Any, Iterable
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn


def digest_model(model: nn.Module) -> str:
    """Eight hexadecimal digits for the names, shapes, dtypes and values of a state dict."""
    crc = 0
    for name, value in model.state_dict().items():
        crc = crc32(name.encode(), crc)
        crc = _digest(value, crc)
    return f"{crc:08x}"


def digest_batches(batches: Iterable[Any]) -> str:
    """Eight hexadecimal digits for the tensors and numbers in all batches."""
    crc = 0
    for batch in batches:
        crc = _digest(batch, crc)
    return f"{crc:08x}"


def _digest(value: Any, crc: int) -> int:
    if isinstance(value, Tensor):
        crc = crc32(f"{tuple(value.shape)} {value.dtype}".encode(), crc)
        plain = value.detach().cpu().contiguous()
        return crc32(plain.reshape(-1).view(torch.uint8).numpy(), crc) if plain.numel() else crc
    if isinstance(value, np.ndarray):
        return _digest(torch.from_numpy(np.ascontiguousarray(value)), crc)
    if isinstance(value, dict):
        return _digest([item for pair in value.items() for item in pair], crc)
    if isinstance(value, (list, tuple)):
        for item in value:
            crc = _digest(item, crc)
        return crc32(str(len(value)).encode(), crc)
    if isinstance(value, (str, int, float, bool, type(None))):
        return crc32(repr(value).encode(), crc)
    return crc32(type(value).__name__.encode(), crc)
