"""From the positions of outliers to their bytes."""

from __future__ import annotations

from zlib import compress

import numpy as np
import torch

from ..encoded import Outlying
from ..entropy.sparse import encode_positions
from ..outliers import Outliers, rebuild_values
from ..sensitivity import short_step

MOST_CODE = 32767


def take_outliers(tensor: torch.Tensor, positions: np.ndarray, values: str = "half", step: float = 0.0) -> Outlying | None:
    """Outliers at rising positions of a tensor, None if there are none.

    values: raw, half (raw where a value is beyond float16) or quantized, with the given step or a coarser one that reaches the largest."""
    if not positions.size:
        return None
    elements = tensor.detach().contiguous().view(-1)
    chosen = elements[torch.from_numpy(positions)]
    weights = chosen.to(torch.float32).numpy()
    peak = float(np.abs(weights).max())
    if values == "half" and (tensor.dtype == torch.float16 or peak > 65000):
        values = "raw"
    if values == "quantized":
        step = float(np.float32(short_step(max(step, 1.01 * peak / MOST_CODE))))
        stored = np.round(weights / np.float32(step)).astype("<i2")
    else:
        step = 0.0
        stored = weights.astype("<f2") if values == "half" else chosen.view(torch.uint8).numpy()
    planes = np.ascontiguousarray(stored.view(np.uint8).reshape(len(positions), -1).T)
    packed = min((planes.tobytes(), compress(planes.tobytes(), 9)), key=len)
    mode, parameters, where = encode_positions(positions, elements.numel())
    record = Outliers(len(positions), mode, parameters, values, len(packed) < planes.size, step, (len(where), len(packed)))
    return Outlying(record, where + packed, positions, weights, rebuild_values(values, planes, step, tensor.dtype))
