"""The record of a tiled tensor: fields beyond name, dtype and shape.  Its bytes in the unit: scales, tables, predictor, stream."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod

from ..errors import Corruption
from ..fields import MAX_BYTES, Codes, Lanes
from ..partition.planes import plane_shape
from ..registry import Table
from .layout import MAX_DEPTH, MAX_SIDE, Layout, make_layout
from .transforms import TRANSFORMS

PREDICTORS = Table("predictor", {0: "none", 1: "linear", 2: "hidden"})
MAX_STEPS = 22  # levels lie in -2^22..2^22
MAX_MEAN = 1 << 30
MAX_OFFSET = 31
MAX_UNITS = 16
MAX_SHIFT = 12
MAX_BIAS = 20


@dataclass(frozen=True)
class Predictor:
    """A network from the context of a tile to its pixels.  shift: of its weights; units: of the hidden layer, 0 if it is linear;
    hidden_shift: of their weights; bias: bits that their biases are moved up; codes: all weights."""

    depth: int
    reach: int
    shift: int
    units: int
    hidden_shift: int
    bias: int
    codes: Codes

    @property
    def kind(self) -> str:
        return "hidden" if self.units else "linear"

    def write(self, out: Lanes) -> None:
        out.grids.byte(self.depth)
        out.grids.byte(self.reach)
        out.quantizers.byte(self.shift)
        if self.units:
            out.grids.byte(self.units)
            out.quantizers.byte(self.hidden_shift)
            out.quantizers.byte(self.bias)
        self.codes.write(out)

    @classmethod
    def read(cls, data: Lanes, hidden: bool) -> Predictor:
        depth = data.grids.byte("depth of the context", MAX_DEPTH)
        reach = data.grids.byte("reach of the context", MAX_SIDE)
        shift = data.quantizers.byte("shift of the predictor", MAX_SHIFT)
        units = hidden_shift = bias = 0
        if hidden:
            units = data.grids.byte("hidden units", MAX_UNITS)
            hidden_shift = data.quantizers.byte("shift of the hidden units", MAX_SHIFT)
            bias = data.quantizers.byte("shift of the biases", MAX_BIAS)
        if depth == 0 or (hidden and units == 0):
            raise Corruption(f"a predictor of depth {depth} with {units} units: the file is damaged")
        return cls(depth, reach, shift, units, hidden_shift, bias, Codes.read(data))


@dataclass(frozen=True)
class TileCoding:
    """How a tiled tensor was coded.

    height, width: of a tile; step: distance of neighbouring coefficients, float32; steps: most of a tile; mean: of the plane, in
    1/64 step; offset: of all magnitudes, in 1/64 of the last step; plain, predicted: transforms of tiles without and with
    prediction; length: bytes of the stream; noise: as of coded tensors.
    """

    split: int
    height: int
    width: int
    step: float
    steps: int
    mean: int
    offset: int
    plain: str
    predicted: str
    noise: int
    scales: Codes
    tables: Codes
    predictor: Predictor | None
    length: int

    def write(self, out: Lanes) -> None:
        kind = PREDICTORS.id(self.predictor.kind if self.predictor else "none")
        out.recipes.byte(kind << 4 | self.split)
        out.quantizers.byte(TRANSFORMS.id(self.predicted) << 2 | TRANSFORMS.id(self.plain))
        step = struct.pack("<f", self.step)
        out.fine.raw(step[:2])
        out.steps.raw(step[2:])
        out.models.byte(self.steps)
        out.bases.byte(self.offset + MAX_OFFSET)
        out.noises.byte(self.noise)
        out.values.signed(self.mean)
        out.grids.byte(self.height)
        out.grids.byte(self.width)
        self.scales.write(out)
        self.tables.write(out)
        if self.predictor:
            self.predictor.write(out)
        out.lengths.varint(self.length)

    @classmethod
    def read(cls, data: Lanes, shape: tuple[int, ...]) -> TileCoding:
        head = data.recipes.byte("predictor and plane recipe", 47)
        kind, split = PREDICTORS.value(head >> 4), head & 15
        plane_shape(shape, split)
        head = data.quantizers.byte("transforms", 15)
        plain, predicted = TRANSFORMS.value(head & 3), TRANSFORMS.value(head >> 2)
        low = data.fine.raw(2, "step")
        step = struct.unpack("<f", low + data.steps.raw(2, "step"))[0]
        if not 0 < step < float("inf"):
            raise Corruption(f"step = {step} must be positive and finite: the file is damaged")
        steps = data.models.byte("steps of a tile", MAX_STEPS)
        offset = data.bases.byte("offset of magnitudes", 2 * MAX_OFFSET) - MAX_OFFSET
        noise = data.noises.byte("noise")
        mean = data.values.signed("mean of a plane", MAX_MEAN)
        height, width = data.grids.byte("height of a tile", MAX_SIDE), data.grids.byte("width of a tile", MAX_SIDE)
        if height == 0 or width == 0:
            raise Corruption(f"tiles of {height} x {width}: the file is damaged")
        scales, tables = Codes.read(data), Codes.read(data)
        predictor = Predictor.read(data, kind == "hidden") if kind != "none" else None
        length = data.lengths.varint("stream length", MAX_BYTES)
        found = cls(split, height, width, step, steps, mean, offset, plain, predicted, noise, scales, tables, predictor, length)
        if predictor and sum(found.weights) > prod(shape):
            raise Corruption(f"{sum(found.weights)} weights of a predictor for {prod(shape)} elements: the file is damaged")
        return found

    @property
    def layout(self) -> Layout | None:
        return self.predictor and make_layout(self.height, self.width, self.predictor.depth, self.predictor.reach)

    @property
    def weights(self) -> tuple[int, int, int, int]:
        """Numbers of linear weights, of weights into the hidden units, of their biases, of weights out of them."""
        layout, units = self.layout, self.predictor.units
        return layout.linear, units * layout.context, units, units * layout.pixels

    @property
    def side(self) -> int:
        """Bytes before the stream."""
        return self.scales.length + self.tables.length + (self.predictor.codes.length if self.predictor else 0)

    @property
    def stored(self) -> int:
        return self.side + self.length
