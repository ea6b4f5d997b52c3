"""Which pixels a tile is predicted from, and which weights the file has for them.

A tile of `height` x `width` has the origin (0, 0); its context is the border of the tiles around it: `depth` rows above (from `depth`
columns left of it to `spill` columns beyond it, so of the tiles above-left, above and above-right) and `depth` columns at its left.
Pixels that are not in the plane count as zero.  The linear part of a predictor joins a pixel (i, j) to

    above  (cy < 0, cx >= 0)  those with |cx - j| <= reach
    left   (cx < 0, cy >= 0)  those with |cy - i| <= reach
    corner (cy < 0, cx < 0)   all

Its weights are laid out so that on a stationary field neighbours in the list are equal: what is above goes by row, offset cx - j
and then along the columns, what is at the left the other way round.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

CACHED = 256
MAX_SIDE = 16
MAX_DEPTH = 2


@dataclass(frozen=True)
class Layout:
    """height, width: of a full tile, 1..16; depth: rows or columns of context, 1..2; reach: largest offset along the border, 0..16."""

    height: int
    width: int
    depth: int
    reach: int

    @property
    def spill(self) -> int:
        return min(self.reach, self.width)

    @cached_property
    def offsets(self) -> np.ndarray:
        """(row, column) of every context pixel: int64 (context, 2)."""
        near = range(-1, -self.depth - 1, -1)
        above = [(y, x) for y in near for x in range(-self.depth, self.width + self.spill)]
        left = [(y, x) for x in near for y in range(self.height)]
        return np.array(above + left, np.int64)

    @cached_property
    def joins(self) -> np.ndarray:
        """(pixel, context) of every linear weight in the order of the file: int64 (weights, 2), pixels in raster order."""
        number = {tuple(offset): index for index, offset in enumerate(self.offsets.tolist())}
        near, steps = range(-1, -self.depth - 1, -1), range(-self.reach, self.reach + 1)
        high, wide = range(self.height), range(self.width)
        above = [
            (i, j, y, j + d) for y in near for i in high for d in steps for j in wide if 0 <= j + d < self.width + self.spill
        ]
        left = [(i, j, i + d, x) for x in near for j in wide for d in steps for i in high if 0 <= i + d < self.height]
        corner = [(i, j, y, x) for y in near for x in near for i in high for j in wide]
        return np.array([(i * self.width + j, number[y, x]) for i, j, y, x in above + left + corner], np.int64)

    @property
    def linear(self) -> int:
        """Number of linear weights, the length of `joins`."""

        def pairs(side: int, far: int) -> int:
            return sum(0 <= at + d < far for at in range(side) for d in range(-self.reach, self.reach + 1))

        high, wide, depth = self.height, self.width, self.depth
        return depth * (high * pairs(wide, wide + self.spill) + wide * pairs(high, high) + depth * high * wide)

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @property
    def context(self) -> int:
        return self.depth * (self.depth + self.width + self.spill + self.height)


@lru_cache(maxsize=CACHED)
def make_layout(height: int, width: int, depth: int, reach: int) -> Layout:
    """A layout whose lists are made once for all tensors."""
    return Layout(height, width, depth, reach)
