"""The tables of a layer: products of levels and weights as integers, and the activation table behind them.

    table[a, w] = round(level a * weight w * 2^k / step)            half to even, in float64 (US20200234126A1, claim 5)
    sum         = bias + the entries of all inputs of an output;    bias = round((b - low) * 2^k / step)
    next index  = activation[clip(sum >> k, 0, steps - 1)]          (US20230186082A1, claims 7 to 9)
    where outputs have tables of their own, next index = activation[output, clip(sum >> k - fine[output], 0, steps - 1)]

The product of two float32 is exact in float64, so that every machine makes the same table from the same codebook and levels.  `step` is
the width of an entry of the activation table, whose steps span those inputs of the activation for which the next index changes, so that
clipping at both ends is without error.  Entries are int16 and sums int32, with the largest k for which neither overflows whatever the
inputs; where the rounding of entries would then move a sum by more than a quarter of a step (rms), they are int32 and int64.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import InvalidArgument
from .levels import find_indices

MOST_SHIFT = 30
FINEST = 4  # an output whose sums spread less has entries narrower by up to 2^4
GRID = 8192  # inputs of an activation that are looked at to find where its index changes
LARGEST = {np.int16: (2**15 - 1, 2**31 - 1), np.int32: (2**31 - 1, 2**62)}  # of an entry, of a sum
SUMS = {np.dtype(np.int16): np.dtype(np.int32), np.dtype(np.int32): np.dtype(np.int64)}


@dataclass(frozen=True, eq=False)
class Activation:
    """entries: uint8 (1 or outputs, steps), indices of the next levels; low: float64 (1 or outputs,), input at the start of entry 0;
    step: float32; fine: int64 (1 or outputs,), an entry is step / 2^fine wide."""

    entries: np.ndarray
    low: np.ndarray
    step: np.float32
    fine: np.ndarray


@dataclass(frozen=True)
class Scale:
    """shift: k; dtype: of the table."""

    shift: int
    dtype: np.dtype


def make_table(levels: np.ndarray, codebook: np.ndarray, shift: int, step: np.float32, dtype: np.dtype) -> np.ndarray:
    """(levels, weights) integers; InvalidArgument if one is beyond the dtype."""
    with np.errstate(over="ignore", invalid="ignore"):
        exact = np.rint(levels.astype(np.float64)[:, None] * codebook.astype(np.float64) * 2.0**shift / np.float64(step))
    if not (np.abs(exact) <= np.iinfo(dtype).max).all():
        raise InvalidArgument(f"a product is beyond {np.dtype(dtype).name} at step {step:g} and shift {shift}")
    return exact.astype(dtype)


def make_bias(bias: np.ndarray, low: np.ndarray, shift: int, step: np.float32) -> np.ndarray:
    """int64 (outputs,).  bias: float64 (outputs,); low: float64 (1 or outputs,)."""
    return np.rint((bias - low) * 2.0**shift / np.float64(step)).astype(np.int64)


def choose_scale(
    levels: np.ndarray,
    codebook: np.ndarray,
    indices: np.ndarray,
    bias: np.ndarray,
    low: np.ndarray,
    step: np.float32,
    fine: int,
    name: str,
) -> Scale:
    """The finest scale at which neither an entry nor a sum can overflow.  indices: (outputs, inputs per output);
    fine: the largest of the activation table."""
    fan_in = indices.shape[1]
    largest = np.abs(levels).max() * np.abs(codebook.astype(np.float64)) / np.float64(step)  # of each weight, in steps
    reach = float(largest[indices].sum(1).max() + fan_in + (np.abs(bias - low) / np.float64(step)).max() + 1)
    for dtype, (entry, total) in LARGEST.items():
        shift = MOST_SHIFT
        while shift >= 0 and (largest.max() * 2.0**shift + 1 > entry or reach * 2.0**shift + fan_in + 1 > total):
            shift -= 1
        if shift >= fine and (dtype is np.int32 or np.sqrt(fan_in / 12) <= 2.0 ** (shift - fine) / 4):
            return Scale(shift, np.dtype(dtype))
    raise InvalidArgument(f"{name}: its products are up to {largest.max():.3g} steps of {step:g}: too many for a table")


def make_activation(
    function: Callable[[Tensor], Tensor], inputs: Tensor, levels: np.ndarray, steps: int, channels: int
) -> Activation:
    """The activation table for inputs like these: float32 (samples, outputs, ...), the next levels float32 (n,).

    function: of tensors with channels on axis 1; channels: how many tables, 0 for one."""
    wide = inputs.double()
    if channels:
        wide = wide.transpose(0, 1).reshape(channels, -1)
        least, most = wide.amin(1), wide.amax(1)
    else:
        least, most = wide.min()[None], wide.max()[None]
    margin = (most - least) / 4 + 1e-6 * (most.abs() + least.abs()) + 1e-30
    least, most = least - margin, most + margin
    grid = least + (most - least) * torch.linspace(0, 1, GRID, dtype=torch.float64)[:, None]
    changes = np.diff(_indices(function, grid, levels).astype(np.int16), axis=0) != 0
    grid = grid.numpy()
    found = changes.any(0)
    columns = np.arange(grid.shape[1])
    first = grid[np.where(found, changes.argmax(0), GRID // 2), columns]
    last = grid[np.where(found, GRID - 1 - changes[::-1].argmax(0), GRID // 2 + 1), columns]
    width = last - first
    step = np.float32(width.max() / (steps - 2))
    fine = np.minimum(np.floor(np.log2(width.max() / width)), FINEST).astype(np.int64)
    own = np.float64(step) / 2.0**fine
    low = first - own
    centres = low + own * (np.arange(steps)[:, None] + 0.5)
    return Activation(np.ascontiguousarray(_indices(function, torch.from_numpy(centres), levels).T), low, step, fine)


def _indices(function: Callable[[Tensor], Tensor], grid: Tensor, levels: np.ndarray) -> np.ndarray:
    return find_indices(function(grid.float()).numpy(), levels)


def hash_tables(tables: Iterable[np.ndarray]) -> str:
    """SHA-256 over dtypes, shapes and little-endian contents, in hexadecimal."""
    digest = hashlib.sha256()
    for table in tables:
        digest.update(f"{table.dtype.name}{table.shape}".encode())
        digest.update(np.ascontiguousarray(table, table.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()
