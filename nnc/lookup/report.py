"""What a look-up network consists of, layer by layer: a table to read and data for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .layers import Flatten, Float, Largest, Layer, Quantizer, Remap
from .tables import SUMS

HEAD = ("layer", "runs as", "levels in", "weights", "bits/weight", "table bytes", "k", "sums", "saturated", "note")


@dataclass(frozen=True)
class Row:
    """layer: path of the module or name of the function, title: its class; runs: "look-up" or "float"; note: why float, or what the
    activation table does as well; levels: of the input; weights: distinct ones, entropy: of their indices in bits per weight, count: of all
    weights; table_bytes, activation_bytes: of the product and of the activation table; shift: k; step: width of an entry of the activation
    table; entries, sums: dtypes; bound: the largest magnitude that a sum can have; saturation: share of the calibration sums beyond the
    activation table, whose end entries are right for them."""

    layer: str
    title: str
    runs: str
    note: str = ""
    levels: int | None = None
    weights: int | None = None
    entropy: float | None = None
    count: int = 0
    table_bytes: int = 0
    activation_bytes: int = 0
    shift: int | None = None
    step: float | None = None
    entries: str | None = None
    sums: str | None = None
    bound: int | None = None
    saturation: float | None = None


@dataclass(frozen=True)
class Report:
    """rows: in order of running.  `str` makes a table, `data` something for JSON."""

    rows: tuple[Row, ...]

    @property
    def table_bytes(self) -> int:
        """Of all tables, those of activations as well."""
        return sum(row.table_bytes + row.activation_bytes for row in self.rows)

    @property
    def weights(self) -> int:
        """Weights that run on tables."""
        return sum(row.count for row in self.rows)

    @property
    def entropy(self) -> float:
        """Bits per weight of all indices; 0 if there are none."""
        return sum(row.count * (row.entropy or 0.0) for row in self.rows) / max(1, self.weights)

    def data(self) -> dict[str, Any]:
        totals = {"table_bytes": self.table_bytes, "weights": self.weights, "entropy": self.entropy}
        return {**totals, "layers": [asdict(row) for row in self.rows]}

    def __str__(self) -> str:
        lines = [HEAD, *(_cells(row) for row in self.rows)]
        widths = [max(len(line[at]) for line in lines) for at in range(len(HEAD))]
        text = "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)
        return f"{text}\n{self.table_bytes:,} bytes of tables, {self.weights:,} weights of {self.entropy:.2f} bits each"


def make_report(layers: Sequence[Layer]) -> Report:
    return Report(tuple(row for layer in layers for row in _rows(layer)))


def _rows(layer: Layer) -> list[Row]:
    if isinstance(layer, Float):
        return [Row(layer.label, layer.title, "float", layer.reason)]
    if isinstance(layer, Largest):
        return [Row(layer.label, layer.title, "look-up", "largest index")]
    if isinstance(layer, Flatten):
        return [Row(layer.label, layer.title, "look-up", "moves indices")]
    if isinstance(layer, Remap):
        return [
            Row(layer.label, layer.title, "look-up", "index to index", layer.table.shape[1], activation_bytes=layer.table.nbytes)
        ]
    if isinstance(layer, Quantizer):
        return []
    if layer.activation is None:
        note = "integer sums leave"
    else:
        note = f"then {layer.activation.shape[1]} steps to {len(layer.levels)} levels" + "".join(
            f", {label}" for label in layer.fused
        )
    return [
        Row(
            layer.label,
            layer.title,
            "look-up",
            note,
            len(layer.given),
            len(layer.codebook),
            layer.entropy,
            layer.indices.size if layer.learned else 0,
            layer.table_bytes,
            layer.activation_bytes,
            layer.shift,
            float(layer.step),
            layer.dtype.name,
            SUMS[layer.dtype].name,
            layer.bound,
            layer.saturation,
        )
    ]


def _cells(row: Row) -> tuple[str, ...]:
    def text(value: object, form: str = "") -> str:
        return "-" if value is None else format(value, form)

    size = f"{row.table_bytes + row.activation_bytes:,}" if row.levels is not None else "-"
    return (
        f"{row.layer} ({row.title})",
        row.runs,
        text(row.levels),
        text(row.weights),
        text(row.entropy, ".2f"),
        size,
        text(row.shift),
        text(row.sums),
        text(row.saturation, ".1%"),
        row.note,
    )
