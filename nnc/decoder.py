"""From units to tensors.  Never imports the encoder; everything up to the levels is integers, then two float32 products per
weight.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from zlib import decompressobj, error

import numpy as np
import torch

from .coder import chain_digests, checksum, unpack_words
from .directory import Unit
from .entropy.explicit import ModelBank
from .entropy.parametric import CLASSES
from .entropy.scales import decode_codes, kernel_codes
from .errors import Corruption
from .kernels.streams import decode_four, decode_tile
from .partition.grid import Grid
from .quantize.logarithm import rebuild_powers
from .quantize.steps import StepCodes, rebuild_steps
from .quantize.trellis import LABELLINGS, make_trellis
from .unit import Record, Steps

BLOCK = 1 << 16  # rows or columns at a time, so that the integers of 64 bits between codes and steps take no memory
LARGEST = float(np.finfo(np.float32).max)
MAX_GRID = 2.0**42  # no level of the format, doubled, is larger, whatever the stream


def decode_unit(
    unit: Unit, records: tuple[Record, ...], data: bytes, bank: ModelBank, pool: Executor | None = None
) -> Callable[[], list[torch.Tensor]]:
    """Start to decode a unit; the returned function waits for the tensors of its records (aliases left out) and checks the
    digest.

    Raises Corruption at once if the checksum of `data` differs, later if the streams do not decode to the levels that were coded.
    """
    stored = sum(record.stored for record in records)
    if len(data) != stored:
        raise Corruption(f"unit of {records[0].name!r}: {len(data)} bytes, its records say {stored}: the file is damaged")
    if checksum(data) != unit.checksum:
        raise Corruption(f"unit of {records[0].name!r}: checksum differs: the file is damaged")
    jobs = []
    at = 0
    view = memoryview(data)
    for record in records:
        if record.kind == "alias":
            continue
        part = view[at : at + record.stored]
        at += record.stored
        jobs.append(_start_coded(record, part, bank, pool) if record.kind == "coded" else _finished(_restore(record, part)))

    def wait() -> list[torch.Tensor]:
        results = [job() for job in jobs]
        digest = chain_digests([d for _, digests in results for d in digests])
        if digest != unit.digest:
            raise Corruption(f"unit of {records[0].name!r}: digest of the levels differs: the file is damaged")
        return [tensor for tensor, _ in results]

    return wait


def _finished(tensor: torch.Tensor) -> Callable[[], tuple[torch.Tensor, list[int]]]:
    return lambda: (tensor, [])


def _restore(record: Record, data: memoryview) -> torch.Tensor:
    """A tensor that was not quantized: plain, exact or constant."""
    if record.kind == "constant":
        if record.dtype == torch.bool and record.value[0] > 1:
            raise Corruption(f"tensor {record.name!r}: a bool byte is neither 0 nor 1: the file is damaged")
        element = torch.frombuffer(bytearray(record.value), dtype=torch.uint8).view(record.dtype)
        return element.expand(record.elements).clone().reshape(record.shape)
    raw = bytes(data) if record.kind == "plain" or record.filter == "none" else _inflate(record, data)
    if len(raw) != record.nbytes:
        raise Corruption(f"tensor {record.name!r}: {len(raw)} bytes instead of {record.nbytes}: the file is damaged")
    if record.elements == 0:
        return torch.empty(record.shape, dtype=record.dtype)
    if record.filter in ("byte planes", "differences"):
        planes = np.frombuffer(raw, np.uint8).reshape(record.dtype.itemsize, record.elements)
        values = np.ascontiguousarray(planes.T)
        if record.filter == "differences":
            kind = np.dtype(f"<u{record.dtype.itemsize}")
            values = np.cumsum(values.view(kind)[:, 0], dtype=kind)
        raw = values.tobytes()
    if record.dtype == torch.bool and max(raw) > 1:
        raise Corruption(f"tensor {record.name!r}: a bool byte is neither 0 nor 1: the file is damaged")
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(record.dtype).reshape(record.shape)


def _inflate(record: Record, data: memoryview) -> bytes:
    inflater = decompressobj()
    try:
        raw = inflater.decompress(data, record.nbytes + 1)
    except error as problem:
        raise Corruption(f"tensor {record.name!r}: {problem}: the file is damaged") from None
    if not inflater.eof or inflater.unused_data:
        raise Corruption(f"tensor {record.name!r}: the deflated bytes do not end where they should: the file is damaged")
    return raw


def _start_coded(
    record: Record, data: memoryview, bank: ModelBank, pool: Executor | None
) -> Callable[[], tuple[torch.Tensor, list[int]]]:
    coding = record.coding
    grid = coding.grid(record.shape)
    plane = np.empty((grid.rows, grid.columns), np.float32)
    place, arrays, streams = 0, [], []
    for codes, number in zip(
        (coding.rows, coding.columns, coding.row_steps.codes, coding.column_steps.codes), 2 * (grid.rows, grid.columns)
    ):
        arrays.append(decode_codes(codes.mode, codes.spread, bytes(data[place : place + codes.length]), number))
        place += codes.length
    for length in coding.streams:
        streams.append(unpack_words(data[place : place + length]))
        place += length
    bounds = np.cumsum([0] + [len(words) for words in streams])
    words = np.concatenate(streams)
    digests = np.zeros(grid.count, np.uint64)
    tables, trellis = bank.table_set(coding.model).arrays, make_trellis(coding.states)
    logarithmic = LABELLINGS.value(coding.labelling) == "logarithmic"
    labelling, step = (0, 1.0) if logarithmic else (coding.labelling, coding.step)
    rows, row_steps = _scales_and_steps(arrays[0], arrays[2], coding.row_steps, coding.base, step, coding.follow)
    columns, column_steps = _scales_and_steps(arrays[1], arrays[3], coding.column_steps, 0, 1.0, False)
    overflows = float(row_steps.max()) * max(1.0, float(column_steps.max())) * MAX_GRID > LARGEST

    common = (rows, columns, CLASSES, tables, trellis.next_state, coding.shift, labelling, row_steps, column_steps, plane)

    def decode(group: list[int], tiles: list[tuple[int, int, int, int]]) -> bool:
        if len(group) == 4:
            state, left_over, digest = np.zeros(4, np.uint64), np.zeros(4, np.int64), np.zeros(4, np.uint64)
            top, bottom, left, right = tiles[0]
            corners = np.array([(t[0], t[2]) for t in tiles], np.int64)
            decode_four(
                words,
                bounds[group],
                bounds[[g + 1 for g in group]],
                np.ascontiguousarray(corners[:, 0]),
                np.ascontiguousarray(corners[:, 1]),
                bottom - top,
                right - left,
                *common,
                state,
                left_over,
                digest,
            )
            digests[group] = digest
            return not state.any() and not left_over.any()
        good = True
        for g, tile in zip(group, tiles):
            state, left_over, digests[g] = decode_tile(
                words,
                bounds[g],
                bounds[g + 1],
                *tile,
                *common,
            )
            good &= state == 0 and left_over == 0
        return good

    tiles = grid.tiles()
    groups = [(group, [tiles[g] for g in group]) for group in _lockstep_groups(grid)]
    results = (
        [pool.submit(decode, *group).result for group in groups]
        if pool
        else [lambda group=group: decode(*group) for group in groups]
    )

    def wait() -> tuple[torch.Tensor, list[int]]:
        if not all([result() for result in results]):
            raise Corruption(f"tensor {record.name!r}: a stream does not end where it should: the file is damaged")
        if overflows and not np.isfinite([plane.min(), plane.max()]).all():
            raise Corruption(f"tensor {record.name!r}: a value is beyond float32: the file is damaged")
        restored = rebuild_powers(plane, coding.step) if logarithmic else plane
        restored = np.ascontiguousarray(restored.T) if coding.transposed else restored
        values = torch.from_numpy(restored).reshape(record.shape)
        if record.dtype != torch.float32:  # a value next to the largest number must not become infinite
            largest = torch.finfo(record.dtype).max
            values = values.clamp_(-largest, largest).to(record.dtype)
        return values, [int(d) for d in digests]

    return wait


def _scales_and_steps(
    scales: np.ndarray, codes: np.ndarray, steps: Steps, base: int, step: float, follow: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Kernel codes (int16) and steps (float32) of an axis from its scale codes and step codes; Corruption if a step is beyond
    float32.
    """
    number = len(scales)
    indices, values = np.empty(number, np.int16), np.empty(number, np.float32)
    for at in range(0, number, BLOCK):
        block = slice(at, at + BLOCK)
        of_block = StepCodes(codes[block], steps.unit)
        values[block] = rebuild_steps(of_block, step, scales[block] if follow else None)
        indices[block] = kernel_codes(scales[block], base - of_block.index)
    return indices, values


def _lockstep_groups(grid: Grid) -> list[list[int]]:
    """CTU numbers in groups that decode together: four of one shape, or the rest."""
    by_shape: dict[tuple[int, int], list[int]] = {}
    for number, (top, bottom, left, right) in enumerate(grid.tiles()):
        by_shape.setdefault((bottom - top, right - left), []).append(number)
    return [numbers[i : i + 4] for numbers in by_shape.values() for i in range(0, len(numbers), 4)]
