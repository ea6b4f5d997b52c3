"""Trees of a plane, chosen by what they cost: bits of the integer tables, of the tree itself, and the distortion of what is skipped.

The levels are known, from a search without trees; one with them follows, which can only find better ones.  Every cell of 8 x 8 weights
is priced under all codes at once: the bits of its levels, or without any what its weights lose by being zero, `energy / lagrangian`.  Prices of nodes are sums of those of their parts, so the best tree grows from the cells upwards:

    cost(node) = min(leaf: min over codes of (bits + code), skip;  cuts: flags + cost of the parts)

What flags and codes cost follows from the tree before, from which also neighbours are taken; three turns settle it.  Block-structured
planes are poorly described by rows times columns, so a tree over rows and columns without codes is tried as well.

Most planes have no such structure.  A test of the cells' mean magnitudes against what chance explains (analysis of variance, at several
sizes) keeps them from the search: a deviation d of the logarithm of a scale that is not known costs d^2 / ln 2 bits per weight.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..entropy.scales import OFF
from ..entropy.trees import Trees
from ..partition.tree import SKIP, cell_shape
from ..rdo import Scales, choose_model
from .growth import grow
from .task import LEAST_GAIN, Task, deviates, find_window, lower_shift, place

__all__ = ["Task", "choose_trees", "deviates", "place", "skipped_cells"]


def choose_trees(task: Task) -> tuple[Scales, int | None]:
    """The scales of the task with trees if these pay, and the model that goes with them; else the scales as they are, and None."""
    must = task.frozen is not None and bool(task.frozen.any())
    counts = task.count(np.zeros(cell_shape(*task.plane.shape), np.int16))
    weights = int(counts.sum())
    plain = choose_model(counts, task.bank, task.scales.offsets())[2] + task.scales.shift * weights + task.side()
    best = (np.inf if must else (1 - LEAST_GAIN) * plain), task.scales, None
    for scales in _alternatives(lower_shift(task)):
        candidate = replace(task, scales=scales)
        side = candidate.side()
        trees, model, bits = grow(candidate, find_window(candidate), best[0] - side)
        bits += side
        if bits < best[0]:
            best = bits, replace(scales, trees=trees), model
    return best[1:]


def skipped_cells(trees: Trees | None, shape: tuple[int, int]) -> np.ndarray:
    """Cells of a plane of this shape that its trees skip: bool."""
    return np.zeros(cell_shape(*shape), bool) if trees is None else trees.field == SKIP


def _alternatives(scales: Scales) -> list[Scales]:
    """The same scales, and others without codes of rows and columns (of columns, if steps follow those of rows)."""
    rows = scales.rows if scales.follow else np.where(scales.rows == OFF, OFF, 0).astype(np.int16)
    columns = np.where(scales.columns == OFF, OFF, 0).astype(np.int16)
    same = np.array_equal(rows, scales.rows) and np.array_equal(columns, scales.columns)
    return [scales] if same else [scales, replace(scales, rows=rows, columns=columns)]
