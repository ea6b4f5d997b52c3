"""Rows that are asked for of a tensor: along its first axis, as an index, a slice, a range or numbers in any order."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .errors import InvalidArgument

Rows = int | slice | range | Sequence[int] | np.ndarray | torch.Tensor


@dataclass(frozen=True, eq=False)
class Selection:
    """numbers: int64 (n,), each in 0..length - 1; single: whether one index was asked for, which has no axis in the result."""

    numbers: np.ndarray
    single: bool

    def groups(self, first: np.ndarray, last: np.ndarray) -> Iterator[tuple[int, int]]:
        """Ranges (start, stop) of rows that hold all that were asked for, apart by at least one strip that holds none; first, last: number
        of the first and last strip of every row, both rising."""
        rows = np.unique(self.numbers)
        cuts = np.flatnonzero(first[rows[1:]] > last[rows[:-1]]) + 1
        for part in np.split(rows, cuts):
            yield int(part[0]), int(part[-1]) + 1

    def place(self, values: torch.Tensor, start: int, out: torch.Tensor) -> None:
        """Copy the rows from `start` that `values` holds to where they were asked for in `out`."""
        inside = (self.numbers >= start) & (self.numbers < start + len(values))
        out[torch.from_numpy(np.flatnonzero(inside))] = values[torch.from_numpy(self.numbers[inside] - start)]


@dataclass(frozen=True, eq=False)
class TensorSlice:
    """A tensor that is read when it is indexed; the interface is that of safetensors.  dtype: as that writes it, "F32" for float32; read:
    rows of it, all for None."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[Rows | None], torch.Tensor]

    def get_shape(self) -> list[int]:
        return list(self.shape)

    def get_dtype(self) -> str:
        return self.dtype

    def __getitem__(self, index) -> torch.Tensor:
        first, rest = (index[0], index[1:]) if isinstance(index, tuple) and index else (index, ())
        if not self.shape or first is Ellipsis or isinstance(first, (tuple, bool)) or first is None or np.ndim(first) > 1:
            return self.read(None)[index]
        if isinstance(first, torch.Tensor) and first.dtype == torch.bool:
            return self.read(None)[index]
        rows = self.read(first)
        if not rest:
            return rows
        return rows[rest] if np.ndim(first) == 0 and not isinstance(first, slice) else rows[(slice(None), *rest)]


def select_rows(name: str, rows: Rows, shape: tuple[int, ...]) -> Selection:
    """InvalidArgument if the tensor has no axis, or a number is none of a row; negative numbers count from the end."""
    if not shape:
        raise InvalidArgument(f"tensor {name!r} has no axes: read it without rows")
    length = shape[0]
    if isinstance(rows, slice):
        try:
            return Selection(np.arange(*rows.indices(length), dtype=np.int64), False)
        except (TypeError, ValueError) as problem:
            raise InvalidArgument(f"tensor {name!r}: rows {rows}: {problem}") from None
    single = False
    if isinstance(rows, torch.Tensor):
        rows = rows.detach().cpu().numpy()
    try:
        rows = np.asarray([operator.index(rows)])
        single = True
    except TypeError:
        rows = np.asarray(rows)
    if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
        raise InvalidArgument(f"tensor {name!r}: rows must be a number, a slice, a range or a list of numbers")
    numbers = rows.astype(np.int64)
    if numbers.size and not -length <= numbers.min() <= numbers.max() < length:
        wrong = numbers[(numbers < -length) | (numbers >= length)][0]
        raise InvalidArgument(f"tensor {name!r}: row {wrong}, it has {length} rows")
    return Selection(np.where(numbers < 0, numbers + length, numbers), single)
