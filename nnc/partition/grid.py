"""The grid of CTUs of a plane: equal tiles in raster order, the last row and column may be smaller."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import Corruption

EVEN = 8
MIN_AREA = 1 << 12  # weights of a CTU where there are several: a file cannot ask for millions of tiny ones


@dataclass(frozen=True)
class Grid:
    """Tiles of `height` x `width` over a plane of `rows` x `columns` weights."""

    rows: int
    columns: int
    height: int
    width: int

    @property
    def count(self) -> int:
        return -(-self.rows // self.height) * -(-self.columns // self.width)

    def tiles(self) -> list[tuple[int, int, int, int]]:
        """(top, bottom, left, right) of every CTU, raster order."""
        return [
            (top, min(top + self.height, self.rows), left, min(left + self.width, self.columns))
            for top in range(0, self.rows, self.height)
            for left in range(0, self.columns, self.width)
        ]


def choose_grid(rows: int, columns: int, area: int = 1 << 16, tall: int = 256) -> Grid:
    """Near-equal tiles of at most `tall` rows and about `area` weights: enough of them to decode side by side, few enough to cost
    nothing.  Sides of several tiles are multiples of EVEN, so that tiles start where cells of a tree do.
    """
    if rows * columns <= area:
        return Grid(rows, columns, rows, columns)
    height = _even(rows, max(tall, area // columns))
    return Grid(rows, columns, height, _even(columns, max(1, area // height)))


def choose_strips(rows: int, columns: int, across: bool, area: int) -> Grid:
    """CTUs as wide as the plane (as high, if `across`) of about `area` weights: a row (a column) of the plane lies in one of them."""
    if across:
        return Grid(rows, columns, rows, _even(columns, max(EVEN, area // rows)))
    return Grid(rows, columns, _even(rows, max(EVEN, area // columns)), columns)


def checked_grid(rows: int, columns: int, height: int, width: int) -> Grid:
    """A grid read from a file."""
    grid = Grid(rows, columns, height, width)
    if not (1 <= height <= rows and 1 <= width <= columns and (grid.count == 1 or height * width >= MIN_AREA)):
        raise Corruption(f"CTU of {height} x {width} in a plane of {rows} x {columns}: the file is damaged")
    return grid


def _even(length: int, most: int) -> int:
    parts = -(-length // most)
    return min(length, -(-length // (parts * EVEN)) * EVEN)
