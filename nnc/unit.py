"""What was chosen for one tensor: its record in the directory, and the layout of its bytes in a unit.

A unit is the bytes of one tensor, or of several small ones in a row, with one checksum and one digest.  Small coded tensors are joined: the
latents and levels of all that are in one unit are one stream behind the other parts, since every stream of its own costs some three bytes
to end.  The record of a tensor says how to read its part:

    plain      its own entry of the container, own dtype
    exact      bytes, filtered and deflated
    constant   one element, repeated
    alias      another tensor of the same file
    coded      latents (row steps, column steps, row codes, column codes, confidences, those of a memory), parts of other
                 tools, then one ANS stream per CTU in raster order and, if there are several, a checksum of each of these parts
    same       the tensor of the same name in the reference
    tiled      scales, tables, weights of the predictor, then one ANS stream of all tiles

On disk a coded tensor that is a difference to a prediction has a kind of its own, "predicted".
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch

from .coder import checksum
from .entropy.explicit import NETWORKS
from .entropy.parametric import CLASSES
from .entropy.scales import LEARNED
from .errors import Corruption
from .fields import MAX_BYTES, Codes, Lanes, Permutations, Prediction, Steps
from .partition.grid import Grid, checked_grid
from .partition.planes import MAX_AXES, plane_shape
from .partition.tree import check_cells
from .quantize.logarithm import MAX_LOGARITHMIC
from .quantize.trellis import LABELLINGS, STATES
from .registry import Table
from .tiles.coding import TileCoding
from .tools import NO_TOOLS, Matrices, Tools

MAX_NAME = 4096
MAX_ELEMENTS = 1 << 40
MAX_SHIFT = 16
MAX_TENSORS = 1 << 24
MAX_JOINED = 1 << 12  # CTUs of a joined tensor

DTYPES = Table(
    "dtype",
    {
        0: torch.float32,
        1: torch.float16,
        2: torch.bfloat16,
        3: torch.float64,
        4: torch.int64,
        5: torch.int32,
        6: torch.int16,
        7: torch.int8,
        8: torch.uint8,
        9: torch.bool,
        10: torch.float8_e4m3fn,
        11: torch.float8_e5m2,
        12: torch.complex64,
        13: torch.complex128,
        14: torch.uint16,
        15: torch.uint32,
        16: torch.uint64,
        17: torch.float8_e4m3fnuz,
        18: torch.float8_e5m2fnuz,
    },
)
CODED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
KINDS = Table(
    "kind of record",
    {0: "plain", 1: "exact", 2: "constant", 3: "alias", 4: "coded", 5: "same", 6: "predicted", 7: "tiled"},
)
FILTERS = Table("filter", {0: "none", 1: "deflate", 2: "byte planes", 3: "differences", 4: "reference", 5: "earlier"})


@dataclass(frozen=True)
class Coding:
    """How a coded tensor was coded.

    transposed: whether the plane is the transposed one; follow: whether the steps of the rows follow their scale codes; step:
    distance of neighbouring reconstruction points, float32; base: scale index added to all codes; model: number in the model
    bank; streams: bytes per CTU, zeros if they are joined; noise: signal to noise ratio of the tensor in half decibels, 0..255 (information
    only); latents: "static", each array in a mode of its own; "learned", all in one stream of `latent_bytes`; "joined", in that of the unit.
    """

    split: int
    transposed: bool
    follow: bool
    height: int
    width: int
    states: int
    labelling: int
    shift: int
    step: float
    model: int
    base: int
    noise: int
    rows: Codes
    columns: Codes
    row_steps: Steps
    column_steps: Steps
    streams: tuple[int, ...]
    prediction: Prediction | None = None
    tools: Tools = NO_TOOLS
    latents: str = "static"
    latent_bytes: int = 0

    def write(self, out: Lanes) -> None:
        out.recipes.byte(self.transposed << 7 | self.follow << 6 | self.labelling << 4 | self.split)
        out.quantizers.byte(STATES.id(self.states) << 5 | self.shift)
        step = struct.pack("<f", self.step)
        out.fine.raw(step[:2])
        out.steps.raw(step[2:])
        out.models.byte(self.model)
        out.bases.byte(self.base)
        out.noises.byte(self.noise)
        if self.latents == "learned":
            out.lengths.varint(self.latent_bytes)
        self.rows.write(out)
        self.columns.write(out)
        self.row_steps.write(out)
        self.column_steps.write(out)
        if self.prediction:
            self.prediction.write(out)
        self.tools.write(out, self.latents)
        if len(self.streams) == 1:
            out.grids.varint(0)
        else:
            out.grids.varint(self.height)
            out.grids.varint(self.width)
        for length in () if self.latents == "joined" else self.streams:
            out.lengths.varint(length)

    @classmethod
    def read(cls, data: Lanes, shape: tuple[int, ...], models: int, predicted: bool, index: int, permutations: Permutations | None, matrices: Matrices,
             networks: int = 0) -> Coding:
        """predicted: whether it is coded as a difference; index: of the record; permutations: those of the reference, None if there is none; matrices: of
        the directory; models, networks: numbers of tables and networks that it may name."""
        latents, flags = Tools.read_flags(data)
        learned = latents != "static"
        head = data.recipes.byte("labelling and plane recipe")
        transposed, follow, labelling, split = bool(head >> 7), bool(head >> 6 & 1), head >> 4 & 3, head & 15
        LABELLINGS.value(labelling)
        head = data.quantizers.byte("states and bypass bits")
        states, shift = STATES.value(head >> 5), head & 31
        if shift > MAX_SHIFT or (states == 1 and labelling == 1) or (labelling == 2 and (states > 1 or follow)):
            raise Corruption(f"{states} states, labelling {labelling}, {shift} bypass bits: the file is damaged")
        if labelling == 2 and prod(shape) > MAX_LOGARITHMIC:
            raise Corruption(
                f"{prod(shape)} elements on the logarithmic grid, the limit is {MAX_LOGARITHMIC}: the file is damaged"
            )
        low = data.fine.raw(2, "step")
        step = struct.unpack("<f", low + data.steps.raw(2, "step"))[0]
        if not 0 < step < float("inf"):
            raise Corruption(f"step = {step} must be positive and finite: the file is damaged")
        model = data.models.byte("model", NETWORKS + networks - 1 if networks else models - 1)
        if models <= model < NETWORKS:
            raise Corruption(f"model = {model} is above its limit {models - 1}: the file is damaged")
        base = data.bases.byte("base scale index", CLASSES)
        noise = data.noises.byte("noise")
        latent_bytes = data.lengths.varint("length of latents", MAX_BYTES) if latents == "learned" else 0
        rows, columns, row_steps, column_steps = (kind.read(data, learned) for kind in (Codes, Codes, Steps, Steps))
        if labelling == 2 and (transposed or column_steps.codes.mode not in ("none", LEARNED)):
            raise Corruption("the logarithmic grid has neither column steps nor transposed planes: the file is damaged")
        prediction = Prediction.read(data, plane_shape(shape, split), index, permutations, learned) if predicted else None
        if labelling == 2 and prediction:
            raise Corruption("the logarithmic grid has no predictions: the file is damaged")
        tools = Tools.read(data, flags, learned, plane_shape(shape, split), transposed, prod(shape[split + 1 :]), shift, matrices)
        if labelling == 2 and tools != NO_TOOLS:
            raise Corruption("the logarithmic grid has no tools: the file is damaged")
        if tools.codebook and (states > 1 or transposed or follow or column_steps.codes.mode not in ("none", LEARNED)):
            raise Corruption("a codebook goes with one state, without column steps and transposed planes: the file is damaged")
        high, wide = tools.codebook.layout.grid if tools.codebook else plane_shape(shape, split, transposed)
        height = data.grids.varint("CTU height", MAX_ELEMENTS)
        width = data.grids.varint("CTU width", MAX_ELEMENTS) if height else wide
        grid = checked_grid(high, wide, height or high, width)
        if latents == "joined":
            if prediction and prediction.back:
                raise Corruption("a joined tensor is foretold by another of its file: the file is damaged")
            if grid.count > MAX_JOINED:
                raise Corruption(f"{grid.count} joined CTUs, the limit is {MAX_JOINED}: the file is damaged")
        elif grid.count > data.lengths.left:  # every stream length takes a byte at least
            raise Corruption(f"{grid.count} CTUs in {data.lengths.left} bytes of lengths: the file is damaged")
        if tools.tree:
            check_cells(grid)
        centres = tools.memory.centres if tools.memory else None
        if centres and not tools.memory.labels and (latents == "joined" or grid.height < high):
            raise Corruption("labels in front of CTUs that are joined, or not as high as the plane: the file is damaged")
        if model >= NETWORKS and (labelling == 2 or tools.tree or tools.codebook or centres):
            raise Corruption("a network goes with no tree, codebook or centres and not with the logarithmic grid: the file is damaged")
        if centres and follow:
            raise Corruption("centres of columns go with rows whose steps do not follow their scales: the file is damaged")
        lengths = (0 if latents == "joined" else data.lengths.varint("stream length", MAX_BYTES) for _ in range(grid.count))
        return cls(
            split,
            transposed,
            follow,
            grid.height,
            grid.width,
            states,
            labelling,
            shift,
            step,
            model,
            base,
            noise,
            rows,
            columns,
            row_steps,
            column_steps,
            tuple(lengths),
            prediction,
            tools,
            latents,
            latent_bytes,
        )

    def grid(self, shape: tuple[int, ...]) -> Grid:
        """CTUs of the plane, or of the grid of points that a codebook stands for."""
        codebook = self.tools.codebook
        sides = codebook.layout.grid if codebook else plane_shape(shape, self.split, self.transposed)
        return Grid(*sides, self.height, self.width)

    @property
    def joined(self) -> bool:
        return self.latents == "joined"

    @property
    def side(self) -> int:
        """Bytes before the streams, of latents and of parts of tools."""
        codes = [self.rows, self.columns, self.row_steps.codes, self.column_steps.codes]
        of_tools = sum(part.length for part in self.tools.codes())
        return self.latent_bytes + sum(part.length for part in codes) + (self.prediction.confidence.length if self.prediction else 0) + of_tools

    @property
    def checks(self) -> int:
        """Bytes of the checksums of its parts, behind the streams; of one CTU there are none, since all of it is needed anyway."""
        return 4 * (len(self.streams) + 1) if len(self.streams) > 1 and not self.joined else 0

    @property
    def length(self) -> int:
        return self.side + sum(self.streams) + self.checks


def join_parts(side: bytes, streams: Sequence[bytes]) -> bytes:
    """The bytes of a coded tensor: what stands before the streams, these, and checksums of both where there are several."""
    parts = (side, *streams)
    sums = [struct.pack("<I", checksum(part)) for part in parts] if len(streams) > 1 else []
    return b"".join((*parts, *sums))


@dataclass(frozen=True)
class Record:
    """One tensor of the directory.  kind: see the module; target: index of the tensor an alias stands for, or how many records before is the one that a
    difference without loss is taken to; tied: whether it
    shares its memory; filter and length: of exact bytes; value: bytes of the constant element; coding: of coded tensors; tiles:
    of tiled ones."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    kind: str
    target: int = 0
    tied: bool = False
    filter: str = "none"
    length: int = 0
    value: bytes = b""
    coding: Coding | None = None
    tiles: TileCoding | None = None
    base: str = ""  # the earlier tensor of the same file that foretells this one

    @property
    def referenced(self) -> bool:
        """Whether the tensor takes anything from the reference."""
        return self.kind == "same" or self.filter == "reference" or bool(self.coding and self.coding.prediction and not self.base)

    @property
    def joined(self) -> bool:
        """Whether its levels are in the stream of its unit."""
        return bool(self.coding and self.coding.joined)

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * self.dtype.itemsize

    @property
    def stored(self) -> int:
        """Bytes in the unit (for plain tensors: in their own entry); of joined ones those that are not in the common stream."""
        if self.kind == "coded":
            return self.coding.length
        if self.kind == "tiled":
            return self.tiles.stored
        return self.nbytes if self.kind == "plain" else self.length

    def write(self, out: Lanes) -> None:
        out.names.block(self.name.encode())
        kind = "predicted" if self.coding and self.coding.prediction else self.kind
        out.kinds.byte(KINDS.id(kind) << 5 | DTYPES.id(self.dtype))
        out.shapes.byte(len(self.shape))
        for size in self.shape:
            out.shapes.varint(size)
        if self.kind == "exact":
            out.values.byte(FILTERS.id(self.filter))
            if self.filter == "earlier":
                out.predictions.varint(self.target)
            out.lengths.varint(self.length)
        elif self.kind == "constant":
            out.values.raw(self.value)
        elif self.kind == "alias":
            out.values.varint(2 * self.target + self.tied)
        elif self.kind == "coded":
            self.coding.write(out)
        elif self.kind == "tiled":
            self.tiles.write(out)

    @classmethod
    def read(cls, data: Lanes, index: int, models: int, permutations: Permutations | None, matrices: Matrices = (),
             networks: int = 0) -> Record:
        """permutations: of the reference, None if there is none; matrices: of the directory; models, networks: numbers of both there."""
        try:
            name = data.names.block("tensor name", MAX_NAME).decode()
        except UnicodeDecodeError:
            raise Corruption(f"name of tensor {index} is not UTF-8: the file is damaged") from None
        head = data.kinds.byte("kind and dtype")
        kind, dtype = KINDS.value(head >> 5), DTYPES.value(head & 31)
        shape = tuple(data.shapes.varint("axis", MAX_ELEMENTS) for _ in range(data.shapes.byte("number of axes", MAX_AXES)))
        if prod(size for size in shape if size) > MAX_ELEMENTS:
            raise Corruption(f"tensor {name!r} has the shape {shape}, the limit is {MAX_ELEMENTS}: the file is damaged")
        record = cls(name, dtype, shape, "coded" if kind == "predicted" else kind)
        if permutations is None and kind == "same":
            raise Corruption(f"tensor {name!r} is taken from a reference, the file has none: the file is damaged")
        if kind == "exact":
            chosen = FILTERS.value(data.values.byte("filter"))
            if chosen == "differences" and dtype.itemsize > 8:
                raise Corruption(f"tensor {name!r} of {dtype} cannot be coded as differences: the file is damaged")
            if chosen == "reference" and (permutations is None or dtype.itemsize > 8):
                raise Corruption(f"tensor {name!r} of {dtype} cannot be a difference to a reference: the file is damaged")
            back = 0
            if chosen == "earlier":
                back = data.predictions.varint("distance to the tensor that foretells another", index)
                if not back or dtype.itemsize > 8:
                    raise Corruption(f"tensor {name!r} of {dtype} cannot be a difference to an earlier one: the file is damaged")
            return replace(record, filter=chosen, target=back, length=data.lengths.varint("length", MAX_BYTES))
        if kind == "constant":
            return replace(record, value=data.values.raw(dtype.itemsize, "constant"))
        if kind == "alias":
            number = data.values.varint("target of an alias", 2 * MAX_TENSORS)
            return replace(record, target=number >> 1, tied=bool(number & 1))
        if kind in ("coded", "predicted", "tiled"):
            if dtype not in CODED_DTYPES or record.elements == 0:
                raise Corruption(
                    f"tensor {name!r} of {dtype} with {record.elements} elements cannot be coded: the file is damaged"
                )
            if kind == "tiled":
                return replace(record, tiles=TileCoding.read(data, shape))
            coding = Coding.read(data, shape, models, kind == "predicted", index, permutations, matrices, networks)
            return cls(name, dtype, shape, "coded", coding=coding)
        return record
