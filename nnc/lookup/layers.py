"""What a look-up network consists of when it runs.  Each layer takes named values and makes one; indices are uint8 everywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..errors import InvalidArgument
from ..kernels.lookup import index_lines, largest_lines, sum_lines
from .levels import entropy_of
from .tables import SUMS, make_table
from .window import Window

Spread = Callable[[Callable[[int, int], None], int, int], None]  # (work on lines start..stop, lines, gathers in all)


@dataclass(frozen=True, eq=False)
class Quantizer:
    """Floats to the indices of the nearest levels."""

    name: str
    source: str
    levels: np.ndarray


@dataclass(frozen=True, eq=False)
class Sums:
    """A weighted layer.

    label, title: of the module; fused: labels of what the activation table takes over; indices: uint8 or uint16 (outputs, inputs /
    groups, height, width); codebook: float32, rising; given: the levels of the input; bias: int64 (outputs,); shift, step, dtype: of
    the table; activation: uint8 (1 or outputs, steps), None for a layer whose sums leave; levels: what the activation points at;
    low: float64 (1 or outputs,), input of the activation at sum 0; fine: int64 (1 or outputs,), what an output is shifted by less than k; saturation: share of calibration sums beyond the steps; learned: not
    so an average.
    """

    name: str
    source: str
    label: str
    title: str
    fused: tuple[str, ...]
    window: Window
    groups: int
    indices: np.ndarray
    codebook: np.ndarray
    given: np.ndarray
    bias: np.ndarray
    shift: int
    step: np.float32
    dtype: np.dtype
    low: np.ndarray
    fine: np.ndarray
    activation: np.ndarray | None = None
    levels: np.ndarray | None = None
    saturation: float | None = None
    learned: bool = True

    @cached_property
    def table(self) -> np.ndarray:
        """(levels, weights) integers, made from codebook and levels."""
        return make_table(self.given, self.codebook, self.shift, self.step, self.dtype)

    @property
    def scale(self) -> float:
        """What a sum is multiplied by to be the float output of the layer, less `low`."""
        return float(np.float64(self.step) / 2.0**self.shift)

    @property
    def inputs(self) -> int:
        """Channels of the input."""
        return self.indices.shape[1] * self.groups

    @cached_property
    def entropy(self) -> float:
        """Of the weights' indices, in bits per weight."""
        return entropy_of(self.indices)

    @cached_property
    def bound(self) -> int:
        """The largest magnitude that a sum can have on its way, whatever the inputs."""
        most = np.abs(self.table.astype(np.int64)).max(0)
        return int((most[self.indices.reshape(len(self.indices), -1)].sum(1) + np.abs(self.bias)).max())

    @property
    def table_bytes(self) -> int:
        return self.given.size * self.codebook.size * self.dtype.itemsize

    @property
    def activation_bytes(self) -> int:
        return 0 if self.activation is None else self.activation.nbytes

    @cached_property
    def _packed(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As the kernels take them: indices (groups, taps, inputs, outputs), the bias in the dtype of the sums, shifts of the outputs."""
        outputs, depth = self.indices.shape[:2]
        split = self.indices.reshape(self.groups, outputs // self.groups, depth, self.window.taps)
        shifts = np.broadcast_to(self.shift - self.fine, self.bias.shape)
        return np.ascontiguousarray(split.transpose(0, 3, 2, 1)), self.bias.astype(SUMS[self.dtype]), np.ascontiguousarray(shifts)

    def run(self, x: np.ndarray, spread: Spread) -> np.ndarray:
        """uint8 indices of the next levels; int32 or int64 sums where there is no activation table."""
        flat = self.window.spread(x, self.label)
        if flat.shape[1] != self.inputs:
            raise InvalidArgument(f"{self.label}: the input has {flat.shape[1]} channels, must have {self.inputs}")
        weights, bias, shifts = self._packed
        size = out_size(self.window, flat, self.label)
        out = np.empty((len(flat), len(bias), *size), bias.dtype if self.activation is None else np.uint8)
        fixed = (flat, self.table, weights, bias, self.window.geometry)

        def work(start: int, stop: int) -> None:
            if self.activation is None:
                sum_lines(*fixed, start, stop, out)
            else:
                index_lines(*fixed, shifts, self.activation, start, stop, out)

        spread(work, len(flat) * size[0], len(flat) * size[0] * size[1] * self.indices.size)
        return self.window.restore(out, x.shape)


@dataclass(frozen=True, eq=False)
class Largest:
    """Max pooling on indices, whose levels rise with them."""

    name: str
    source: str
    label: str
    title: str
    window: Window

    def run(self, x: np.ndarray, spread: Spread) -> np.ndarray:
        flat = self.window.spread(x, self.label)
        size = out_size(self.window, flat, self.label)
        out = np.empty((*flat.shape[:2], *size), np.uint8)

        def work(start: int, stop: int) -> None:
            largest_lines(flat, self.window.geometry, start, stop, out)

        spread(work, len(flat) * size[0], out.size * self.window.taps)
        return self.window.restore(out, x.shape)


@dataclass(frozen=True, eq=False)
class Remap:
    """A function of single values behind a pool: a table from index to index, uint8 (1 or channels, levels)."""

    name: str
    source: str
    label: str
    title: str
    table: np.ndarray
    levels: np.ndarray

    def run(self, x: np.ndarray, spread: Spread) -> np.ndarray:
        if len(self.table) == 1:
            return self.table[0][x]
        if x.ndim < 2 or x.shape[1] != len(self.table):
            raise InvalidArgument(f"{self.label}: the input has the shape {x.shape}, must have {len(self.table)} channels")
        return self.table[np.arange(len(self.table)).reshape(-1, *[1] * (x.ndim - 2)), x]


@dataclass(frozen=True, eq=False)
class Flatten:
    """(n, ...) to (n, features)."""

    name: str
    source: str
    label: str
    title: str

    def run(self, x: np.ndarray, spread: Spread) -> np.ndarray:
        return x.reshape(len(x), -1)


@dataclass(frozen=True, eq=False)
class Float:
    """A layer that torch runs on the values of the levels; call: of the values by name, of which it takes `sources`."""

    name: str
    sources: tuple[str, ...]
    label: str
    title: str
    reason: str
    call: Callable


Layer = Quantizer | Sums | Largest | Remap | Flatten | Float


def out_size(window: Window, x: np.ndarray, label: str) -> tuple[int, int]:
    size = window.size(*x.shape[2:])
    if min(size) < 1:
        raise InvalidArgument(f"{label}: an input of {x.shape[2]} x {x.shape[3]} is smaller than its kernel")
    return size
