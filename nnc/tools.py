"""Tools of a coded tensor that most tensors do without: what a record says of them.

One byte tells which of them a tensor uses, so that those that use none pay next to nothing; the fields of each follow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .codebooks import Codebook
from .entropy.parametric import SHAPES
from .entropy.scales import MOST
from .entropy.trees import SPREADS, TreeModel
from .errors import Corruption
from .fields import MAX_BYTES, Codes, Lanes
from .outliers import Outliers
from .partition.tree import FLAGS
from .registry import Table

Matrices = tuple[np.ndarray, ...]  # of the directory, int8 (n, n) each
MAX_STEPS = 3
MAX_LIMIT = 15
CENTRES, NEAR_CENTRES = 16, 17  # in place of a limit: columns are foretold by centres that are coded; labels are with the CTUs
MAX_CENTRES, MAX_FINER = 64, 7
LATENTS = Table("coding of latents", {0: "static", 1: "learned", 2: "joined"})


@dataclass(frozen=True)
class Transform:
    """Changes of the basis of the columns, in the order of the decoder: (number of a matrix of the directory, stride) each."""

    steps: tuple[tuple[int, int], ...]

    def write(self, out: Lanes) -> None:
        out.tools.byte(len(self.steps))
        for matrix, stride in self.steps:
            out.tools.varint(matrix)
            out.tools.varint(stride)

    @classmethod
    def read(cls, data: Lanes, columns: int, matrices: Matrices) -> Transform:
        """Of a plane with so many columns (not transposed); Corruption if a matrix does not fit it."""
        steps = []
        for _ in range(data.tools.byte("steps of a transform", MAX_STEPS)):
            matrix = data.tools.varint("number of a matrix", len(matrices) - 1)
            stride = data.tools.varint("stride of a transform", columns)
            if stride < 1 or columns % (stride * len(matrices[matrix])):
                raise Corruption(
                    f"a transform of {len(matrices[matrix])} at stride {stride} in {columns} columns: the file is damaged"
                )
            steps.append((matrix, stride))
        if not steps:
            raise Corruption("a transform without steps: the file is damaged")
        return cls(tuple(steps))


@dataclass(frozen=True)
class Centres:
    """Columns that are coded beside the plane, to foretell its own: their number; finer: octaves by which their steps are below those of the rows;
    code: scale code of all of them; length: bytes of their stream."""

    number: int
    finer: int
    code: int
    length: int

    def write(self, out: Lanes) -> None:
        out.tools.byte(self.number)
        out.tools.byte(self.finer)
        out.tools.byte(self.code + MOST)
        out.lengths.varint(self.length)

    @classmethod
    def read(cls, data: Lanes, columns: int) -> Centres:
        """Of a plane with so many columns: there are no more centres than these."""
        number = data.tools.byte("number of centres", min(MAX_CENTRES, columns))
        if number < 1:
            raise Corruption("a prediction from no centres: the file is damaged")
        finer, code = data.tools.byte("steps of centres", MAX_FINER), data.tools.byte("scale code of centres", 2 * MOST) - MOST
        return cls(number, finer, code, data.lengths.varint("length of centres", MAX_BYTES))


@dataclass(frozen=True)
class Memory:
    """Prediction of columns from those before, or from centres: limit: a memory follows its newest column by at least 2^-limit; labels: number of the
    memory or centre of each column, 0 for none, None if those of its columns stand in front of every CTU; confidence: of the prediction of each
    column, -16..0; centres: None for memories."""

    limit: int
    labels: Codes | None
    confidence: Codes
    centres: Centres | None = None

    @property
    def length(self) -> int:
        """Bytes besides the codes."""
        return self.centres.length if self.centres else 0

    def write(self, out: Lanes) -> None:
        out.tools.byte((CENTRES if self.labels else NEAR_CENTRES) if self.centres else self.limit)
        if self.centres:
            self.centres.write(out)
        if self.labels:
            self.labels.write(out)
        self.confidence.write(out)

    @classmethod
    def read(cls, data: Lanes, learned: bool, columns: int) -> Memory:
        """Of a plane with so many columns, as it is coded."""
        limit = data.tools.byte("limit of memories", NEAR_CENTRES)
        centres = Centres.read(data, columns) if limit >= CENTRES else None
        labels = None if limit == NEAR_CENTRES else Codes.read(data, learned)
        return cls(0 if centres else limit, labels, Codes.read(data, learned), centres)


@dataclass(frozen=True)
class Tree:
    """Coding units below the CTUs, each with a scale code: how the bytes in the unit are coded, and their number."""

    model: TreeModel
    length: int

    def write(self, out: Lanes) -> None:
        out.tools.byte(SHAPES * self.model.near + self.model.shape)
        out.tools.byte(self.model.spread)
        out.tools.raw(self.model.rates)
        out.lengths.varint(self.length)

    @classmethod
    def read(cls, data: Lanes) -> Tree:
        head = data.tools.byte("shape of the codes of a tree", 2 * SHAPES - 1)
        spread = data.tools.byte("spread of the codes of a tree", SPREADS - 1)
        model = TreeModel(head >= SHAPES, head % SHAPES, spread, data.tools.raw(FLAGS, "flags of a tree"))
        return cls(model, data.lengths.varint("length of a tree", MAX_BYTES))


@dataclass(frozen=True)
class Tools:
    """What a tensor uses, None for what it does without."""

    transform: Transform | None = None
    memory: Memory | None = None
    tree: Tree | None = None
    outliers: Outliers | None = None
    codebook: Codebook | None = None

    def write(self, out: Lanes, latents: str) -> None:
        """latents: how those of the tensor are coded."""
        used = self.used()
        out.tools.byte(LATENTS.id(latents) << 5 | sum(1 << number for number, tool in enumerate(used) if tool))
        for tool in used:
            if tool:
                tool.write(out)

    @staticmethod
    def read_flags(data: Lanes) -> tuple[str, int]:
        """How the latents are coded, and the bits of the tools."""
        head = data.tools.byte("tools", 127)
        return LATENTS.value(head >> 5), head & 31

    @classmethod
    def read(
        cls, data: Lanes, flags: int, learned: bool, shape: tuple[int, int], transposed: bool, taps: int, shift: int, matrices: Matrices
    ) -> Tools:
        """Tools of a plane of this shape (not transposed), coded `transposed`, `taps` columns to an input; flags: as of `read_flags`; learned: whether
        codes are with the other latents; shift: bypass bits."""
        if flags & 16 and flags & 6:
            raise Corruption(f"tools {flags} do not go together: the file is damaged")
        return cls(
            Transform.read(data, shape[1], matrices) if flags & 1 else None,
            Memory.read(data, learned, shape[not transposed]) if flags & 2 else None,
            Tree.read(data) if flags & 4 else None,
            Outliers.read(data, shape[0] * shape[1]) if flags & 8 else None,
            Codebook.read(data, shape, taps, shift) if flags & 16 else None,
        )

    def used(self) -> tuple[Transform | Memory | Tree | Outliers | Codebook | None, ...]:
        """In the order of their bits."""
        return self.transform, self.memory, self.tree, self.outliers, self.codebook

    @property
    def names(self) -> tuple[str, ...]:
        """Of those that are used."""
        return tuple(type(tool).__name__.lower() for tool in self.used() if tool)

    def codes(self) -> Iterator[Codes | Memory | Tree | Outliers | Codebook]:
        """Of the bytes in the unit, in their order."""
        if self.memory:
            if self.memory.labels:
                yield self.memory.labels
            yield self.memory.confidence
            yield self.memory
        if self.tree:
            yield self.tree
        if self.outliers:
            yield self.outliers
        if self.codebook:
            yield self.codebook


NO_TOOLS = Tools()
