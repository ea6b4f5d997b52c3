"""The plane of a tensor: rows = outputs, columns = inputs.

A plane recipe is one number, `split`: the first `split` axes become the rows, the others the columns (row-major, no copy).
`split = 1` gives the usual matrix of a layer (conv `O, I*kh*kw`), `split = 0` one row for vectors and scalars, `split = 2`
kernels.  A transposed plane has them the other way round: its scan runs along the inputs of one output.
"""

from __future__ import annotations

from math import prod

from ..errors import Corruption

MAX_AXES = 15


def choose_split(shape: tuple[int, ...]) -> int:
    """The first axis that is longer than one ends the rows, so that (1, 512, 384) becomes 512 rows; vectors become one row."""
    long_axes = [axis for axis, size in enumerate(shape) if size > 1]
    return long_axes[0] + 1 if len(long_axes) > 1 else 0


def plane_shape(shape: tuple[int, ...], split: int, transposed: bool = False) -> tuple[int, int]:
    """(rows, columns) of the plane; Corruption if the recipe does not fit the shape."""
    if not 0 <= split <= len(shape):
        raise Corruption(f"plane recipe {split} does not fit a tensor of {len(shape)} axes: the file is damaged")
    rows, columns = prod(shape[:split]), prod(shape[split:])
    return (columns, rows) if transposed else (rows, columns)
