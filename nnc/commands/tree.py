"""The partition of a tensor as text: a map of its cells, and a table of its coding units by size."""

from __future__ import annotations

import shutil
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidArgument
from .output import Result, lines_of, printable, table_of

if TYPE_CHECKING:
    from ..dissection import CodingUnit, Partition

SHADES = ".:-=+*#%@"  # by rising scale
MOST_LINES = 40
LISTED_SIZES = 12
HEAD = ("CU", "mode", "number", "weights", "mean code", "bits/weight", "share of bits")


def show_tree(path: str, name: str, picture: str | None) -> Result:
    """The text and the data of a tensor's partition; picture: file to draw it to."""
    from ..dissection import dissect

    if picture is not None and Path(picture).suffix != ".png":
        raise InvalidArgument(f"{picture}: a partition is drawn as PNG: name a file that ends in .png")
    partition = dissect(path, name)
    if picture is not None:
        from ..evaluation.partition_plot import plot_partition

        plot_partition(partition, picture)
    text = "\n\n".join(part for part in (_describe(partition), *_map(partition), table_of(HEAD, _rows(partition.units))))
    return Result(text + (f"\n\nwrote {printable(picture)}" if picture else ""), _data(partition))


def _describe(partition: Partition) -> str:
    grid, units = partition.grid, partition.units
    weights = grid.rows * grid.columns
    level_bits = float(partition.bits.sum())
    plane = f"{grid.rows:,} x {grid.columns:,}" + (", transposed" if partition.transposed else "")
    skipped = sum(unit.weights for unit in units if unit.code is None)
    tree = (
        "none: every CTU is one CU"
        if not partition.tree_bytes
        else (
            f"{partition.tree_bytes:,} bytes, {8 * partition.tree_bytes / weights:.4f} bits/weight, {100 * skipped / weights:.1f} % of the weights skipped"
        )
    )
    steps = "relative" if partition.labelling == "logarithmic" else f"{partition.step:.4g}"
    return lines_of([
        ("tensor", f"{printable(partition.name)}, {'x'.join(map(str, partition.shape)) or 'scalar'}"),
        ("plane", plane),
        ("CTUs", f"{grid.count:,} of {grid.height:,} x {grid.width:,}"),
        ("CUs", f"{len(units):,}"),
        ("tree", tree),
        ("step", f"{steps}, {partition.states} states, model {partition.model}, base {partition.base}"),
        ("bits/weight", f"{8 * partition.bytes / weights:.4f}, levels alone {level_bits / weights:.4f}"),
    ])  # fmt: skip


def _map(partition: Partition) -> list[str]:
    """One character per cell, or per square of cells where a terminal is too small for that."""
    wide = min(shutil.get_terminal_size().columns, 120) - 1
    down, across = partition.indices.shape
    by = max(1, -(-across // wide), -(-down // MOST_LINES))
    shown = partition.mean_indices(by)
    live = [index for row in shown for index in row if index is not None]
    if not live:
        return ["nothing of it is coded"]
    low, high = min(live), max(live)
    scale = (len(SHADES) - 1) / max(high - low, 1e-9)
    lines = ["".join(" " if index is None else SHADES[round((index - low) * scale)] for index in row).rstrip() for row in shown]
    legend = (
        f"each character: {8 * by} x {8 * by} weights; mean scale index {low:.1f} '{SHADES[0]}' to {high:.1f} '{SHADES[-1]}' "
        f"(4 per octave, 17: one level), blank: not coded"
    )
    return ["\n".join(lines), legend]


def _rows(units: tuple[CodingUnit, ...]) -> list[list[str]]:
    groups: dict[tuple[tuple[int, int], bool], list[CodingUnit]] = defaultdict(list)
    for unit in units:
        groups[unit.size, unit.code is None].append(unit)
    total = sum(unit.bits for unit in units)
    by_weights = sorted(groups.items(), key=lambda item: -sum(unit.weights for unit in item[1]))
    kept, rest = by_weights[:LISTED_SIZES], by_weights[LISTED_SIZES:]
    kept.sort(key=lambda item: (-item[0][0][0] * item[0][0][1], item[0]))
    rows = [
        _row(f"{size[0]:,} x {size[1]:,}", "skip" if skipped else "scale", members, total) for (size, skipped), members in kept
    ]
    others = [unit for _, members in rest for unit in members]
    return rows + ([_row(f"other sizes ({len(rest)})", "any", others, total)] if others else [])


def _row(size: str, mode: str, units: list[CodingUnit], total: float) -> list[str]:
    weights, bits = sum(unit.weights for unit in units), sum(unit.bits for unit in units)
    coded = [unit for unit in units if unit.code is not None]
    mean = sum(unit.weights * unit.code for unit in coded) / max(1, sum(unit.weights for unit in coded))
    return [size, mode, f"{len(units):,}", f"{weights:,}", f"{mean:+.1f}" if coded else "-", f"{bits / weights:.3f}",
            f"{100 * bits / max(total, 1e-9):.1f}%"]  # fmt: skip


def _data(partition: Partition) -> dict[str, Any]:
    grid = partition.grid
    units = [{"top": unit.top, "bottom": unit.bottom, "left": unit.left, "right": unit.right, "mode": "skip" if unit.code is None else "scale",
              "code": unit.code, "bits": unit.bits} for unit in partition.units]  # fmt: skip
    return {
        "tensor": partition.name,
        "shape": list(partition.shape),
        "transposed": partition.transposed,
        "rows": grid.rows,
        "columns": grid.columns,
        "ctu_height": grid.height,
        "ctu_width": grid.width,
        "step": partition.step,
        "states": partition.states,
        "labelling": partition.labelling,
        "model": partition.model,
        "base": partition.base,
        "tree_bytes": partition.tree_bytes,
        "bytes": partition.bytes,
        "coding_units": units,
        "cell_scale_indices": partition.mean_indices(1),
    }
