"""The partition of a tensor as a picture: scale of every cell, bits of every coding unit, edges of CTUs and CUs."""

from __future__ import annotations

import importlib
import os
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from .plot import load_matplotlib

if TYPE_CHECKING:
    from ..dissection import Partition

MOST_EDGES = 20000  # CUs whose edges are drawn; more would only be gray


def plot_partition(partition: Partition, path: str | os.PathLike) -> None:
    """Two maps of the plane as a PNG: the mean scale index of the cells, white where nothing is coded, and the bits per weight of the
    CUs.  InvalidArgument if matplotlib is not installed."""
    figure_class, canvas_class, _ = load_matplotlib()
    rectangle = importlib.import_module("matplotlib.patches").Rectangle
    collection = importlib.import_module("matplotlib.collections").PatchCollection
    grid = partition.grid
    figure = figure_class(figsize=(11.0, 5.0), dpi=150, layout="constrained")
    canvas_class(figure)
    tree = f"{partition.tree_bytes:,} bytes of tree" if partition.tree_bytes else "no tree"
    weights = grid.rows * grid.columns
    figure.suptitle(
        f"{partition.name}: {grid.count:,} CTUs, {len(partition.units):,} CUs, {tree}, {8 * partition.bytes / weights:.3f} bits/weight",
        fontsize=10,
        parse_math=False,
    )
    extent = (0, 8 * partition.bits.shape[1], 8 * partition.bits.shape[0], 0)
    edges = [rectangle((u.left, u.top), u.right - u.left, u.bottom - u.top) for u in partition.units[:MOST_EDGES]]
    outer = [rectangle((left, top), right - left, bottom - top) for top, bottom, left, right in grid.tiles()]
    maps = (("scale index (4 per octave)", partition.indices), ("bits per weight of the CU", _spread_bits(partition)))
    for axis, (label, values) in zip(figure.subplots(1, 2), maps):
        image = axis.imshow(np.ma.masked_invalid(values), extent=extent, interpolation="nearest", aspect="auto", cmap="viridis")
        _bar(figure, image, axis, label)
        if len(partition.units) <= MOST_EDGES:
            axis.add_collection(collection(edges, facecolor="none", edgecolor="black", linewidth=0.25))
        axis.add_collection(collection(outer, facecolor="none", edgecolor="red", linewidth=1.0))
        axis.set_xlim(0, grid.columns)
        axis.set_ylim(grid.rows, 0)
        axis.set_xlabel("column of the plane")
        axis.set_ylabel("row of the plane")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name in a script that the font lacks is drawn as boxes, which is no one's fault
        figure.savefig(path, format="png")


def _bar(figure: Any, image: Any, axis: Any, label: str) -> None:
    bar = figure.colorbar(image, ax=axis)
    bar.set_label(label)
    bar.outline.set_visible(False)


def _spread_bits(partition: Partition) -> np.ndarray:
    """Bits per weight of the CU that every cell lies in."""
    out = np.zeros(partition.bits.shape)
    for unit in partition.units:
        out[unit.top // 8 : -(-unit.bottom // 8), unit.left // 8 : -(-unit.right // 8)] = unit.bits / unit.weights
    return out
