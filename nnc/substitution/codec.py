"""The codec of one plane with nothing left to choose but levels: what substitutes are coded with, and what that costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..errors import InvalidArgument
from ..kernels.words import rebuild_levels
from ..partition.grid import Grid
from ..quantize.trellis import make_trellis
from ..rdo import Gathered, Scales, Search, count, find_levels, gather


@dataclass(frozen=True, eq=False)
class FrozenCodec:
    """Grid of CTUs, scales, common step, bits of every level (`rdo.level_bits`) and search.  run: `map` or that of a pool, over CTUs.

    Raises InvalidArgument for the logarithmic grid, whose values are no sums of steps.
    """

    grid: Grid
    scales: Scales
    step: float
    bits: np.ndarray
    search: Search
    run: Callable = map

    def __post_init__(self) -> None:
        if self.search.labelling > 1:
            raise InvalidArgument("the logarithmic grid has no substitutes: use the plain or the sign-symmetric labelling")

    @property
    def shape(self) -> tuple[int, int]:
        return self.grid.rows, self.grid.columns

    @cached_property
    def steps(self) -> np.ndarray:
        """float64 (rows, columns): step of every weight."""
        return np.outer(self.scales.row_steps(self.step).astype(np.float64), self.scales.column_steps())

    @cached_property
    def places(self) -> list[Gathered]:
        """Scale index and position of the coded weights of every CTU; those of dead rows and columns are not among them."""
        return self.gather(np.zeros(self.shape, np.float32))

    def gather(self, plane: np.ndarray) -> list[Gathered]:
        return [gather(plane, tile, self.scales, self.step) for tile in self.grid.tiles()]

    def find_levels(self, plane: np.ndarray) -> list[np.ndarray]:
        """Levels of every CTU, int32 in scan order, by the plain search; plane: float32 (rows, columns)."""
        plane = np.ascontiguousarray(plane, np.float32)
        return list(self.run(lambda part: find_levels(part, self.bits, self.scales.shift, self.search), self.gather(plane)))

    def rebuild(self, levels: Sequence[np.ndarray]) -> np.ndarray:
        """What the decoder makes of them: float32 (rows, columns)."""
        values = np.zeros(self.shape, np.float32)
        following = make_trellis(self.search.states).next_state
        row_steps, column_steps = self.scales.row_steps(self.step), self.scales.column_steps()
        for found, part in zip(levels, self.places):
            rebuild_levels(found, part.position, following, self.search.labelling, row_steps, column_steps, values)
        return values

    def count_bits(self, levels: Sequence[np.ndarray]) -> float:
        """Bits of the levels under the integer tables, escapes included."""
        shift, total = self.scales.shift, 0.0
        for found, part in zip(levels, self.places):
            total += float((count(found, part.codes, self.search.states, shift) * self.bits).sum()) + shift * len(found)
        return total
