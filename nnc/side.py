"""The side information of coded tensors: what lies in front of the streams of their CTUs, or in the stream that they share."""

from __future__ import annotations

import numpy as np

from .centres import read_memories
from .coded import NO_SUMS, CodedTensor
from .coder import checksum
from .entropy.explicit import ModelBank
from .entropy.scales import DEAD_CODE, OFF, kernel_codes
from .entropy.trees import decode_trees
from .errors import Corruption
from .kernels.axes import read_axis, span_exponents
from .latents import Latents, decode_latents
from .prediction.reference import CERTAIN
from .quantize.logarithm import rebuild_powers
from .quantize.steps import FOLLOW, StepCodes
from .quantize.trellis import LABELLINGS
from .tools import Matrices
from .unit import Record

MOST_SPAN = 1 << 15  # between exponents of steps, in 128ths of an octave; float32 has less


def read_side(record: Record, side: bytes, bank: ModelBank, matrices: Matrices, sums: bytes = b"") -> CodedTensor:
    """From the bytes of a coded tensor in front of its streams; Corruption if they are damaged.  sums: the checksums behind the streams,
    where the checksum of the unit is not known to hold."""
    checks = np.frombuffer(sums, "<u4")
    if sums and checksum(side) != checks[0]:
        raise Corruption(f"tensor {record.name!r}: checksum of its side information differs: the file is damaged")
    latents = decode_latents(record, side)
    return with_latents(record, latents, side[record.coding.side - parts_length(record) :], bank, matrices, checks[1:])


def parts_length(record: Record) -> int:
    """Bytes of a tensor that belong to tools: trees, outliers, codebooks."""
    tools = record.coding.tools
    return sum(tool.length for tool in (tools.memory, tools.tree, tools.outliers, tools.codebook) if tool)


def with_latents(
    record: Record, latents: Latents, parts: bytes, bank: ModelBank, matrices: Matrices, sums: np.ndarray = NO_SUMS
) -> CodedTensor:
    """A coded tensor from its latents and the bytes of its tools; Corruption if they are damaged."""
    coding = record.coding
    grid = coding.grid(record.shape)
    if coding.prediction and not ((-CERTAIN <= latents.confidence) & (latents.confidence <= 0)).all():
        raise Corruption(f"tensor {record.name!r}: a confidence is outside 0..1: the file is damaged")
    place = coding.tools.memory.length if coding.tools.memory else 0
    of_centres, cells = parts[:place], None
    if coding.tools.tree:
        of_tree = parts[place : place + coding.tools.tree.length]
        place += len(of_tree)
        cells = kernel_codes(decode_trees(of_tree, coding.tools.tree.model, grid).T)
    of_tools = []
    for tool in (coding.tools.outliers, coding.tools.codebook):
        length = tool.length if tool else 0
        of_tools.append(parts[place : place + length])
        place += length
    step = 1.0 if LABELLINGS.value(coding.labelling) == "logarithmic" else coding.step
    rows, row_steps = _scales_and_steps(latents.rows, latents.row_steps, coding.base, step, coding.follow)
    columns, column_steps = _scales_and_steps(latents.columns, latents.column_steps, 0, 1.0, False)
    if coding.tools.codebook:
        rows = kernel_codes(latents.rows, coding.base)  # a row of larger steps has as many centroids as any other
    sides = rows, columns, row_steps, column_steps
    memory = read_memories(record, latents, bank, row_steps, of_centres) if coding.tools.memory else None
    return CodedTensor(record, bank, matrices, grid, *sides, latents.confidence, memory, cells, tuple(of_tools), sums)


def _scales_and_steps(
    scales: np.ndarray, codes: StepCodes, base: int, step: float, follow: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Kernel codes (int16) and steps (float32) of an axis from its scale codes and step codes; Corruption if a step is beyond
    float32.
    """
    by, base = FOLLOW if follow else 0, int(base)
    first, last = span_exponents(codes.codes, codes.unit, scales, by)
    if last - first > MOST_SPAN:  # before memory is taken for them
        raise Corruption("steps of an axis are further apart than float32 can tell: the file is damaged")
    powers = rebuild_powers(np.arange(first, last + 1), step)
    indices, values = np.empty(len(scales), np.int16), np.empty(len(scales), np.float32)
    read_axis(codes.codes, codes.unit, scales, by, powers, first, base, OFF, DEAD_CODE, values, indices)
    return indices, values
