"""From units to tensors.  Never imports the encoder; everything up to the levels is integers, then two float32 products per
weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from zlib import decompressobj, error

import numpy as np
import torch

from .coder import chain_digests, checksum, unpack_words
from .directory import Unit
from .entropy.explicit import ModelBank
from .entropy.parametric import CLASSES
from .entropy.scales import decode_codes, kernel_codes
from .entropy.trees import decode_trees
from .errors import Corruption, InvalidArgument
from .fields import Permutations, Steps
from .kernels.cells import decode_cells
from .kernels.streams import decode_four, decode_tile
from .partition.grid import Grid
from .partition.planes import plane_shape
from .prediction.memory import MemoryCodes, read_memory
from .prediction.reference import CERTAIN, digest_tensor, digest_unit, predict
from .quantize.logarithm import rebuild_powers
from .quantize.steps import StepCodes, rebuild_steps
from .quantize.trellis import LABELLINGS, make_trellis
from .tiles.decode import decode_plane
from .tools import NO_TOOLS, Matrices
from .transform.matrices import apply_matrix
from .unit import CODED_DTYPES, DTYPES, Record

BLOCK = 1 << 16  # rows or columns at a time, so that the integers of 64 bits between codes and steps take no memory
LARGEST = float(np.finfo(np.float32).max)
MAX_GRID = 2.0**42  # no level of the format, doubled, is larger, whatever the stream


@dataclass(frozen=True, eq=False)
class ReferenceReader:
    """Where predicted tensors take their predictions from.  label: its name in messages; specs: dtype and shape by name; read: the
    tensor of a name."""

    label: str
    specs: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
    read: Callable[[str], torch.Tensor]

    def check(self, record: Record) -> None:
        """InvalidArgument if what the record takes from the reference is not there, or has another shape or dtype."""
        if record.name not in self.specs:
            raise InvalidArgument(f"{self.label}: no tensor {record.name!r}: not the reference of this file, name the right one")
        dtype, shape = self.specs[record.name]
        if shape != record.shape or (dtype not in CODED_DTYPES if record.coding else dtype != record.dtype):
            what = f"{str(dtype).removeprefix('torch.')} {shape}"
            raise InvalidArgument(
                f"{self.label}: tensor {record.name!r} is {what} there: not the reference of this file, name the right one"
            )


def decode_unit(
    unit: Unit,
    records: tuple[Record, ...],
    data: bytes,
    bank: ModelBank,
    pool: Executor | None = None,
    reference: ReferenceReader | None = None,
    permutations: Permutations = (),
    matrices: Matrices = (),
) -> Callable[[], list[torch.Tensor]]:
    """Start to decode a unit; the returned function waits for the tensors of its records (aliases left out) and checks the
    digest.  permutations, matrices: of the directory.

    Raises Corruption at once if the checksum of `data` differs, later if the streams do not decode to the levels that were coded;
    InvalidArgument if the reference is not the one that the unit was made with.
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
        if record.referenced:  # before anything of this size is allocated
            if reference is None:
                raise InvalidArgument(f"tensor {record.name!r} is a difference to a reference: name that")
            reference.check(record)
        if record.kind == "coded":
            jobs.append(_start_coded(record, part, bank, pool, permutations, matrices))
        elif record.kind == "tiled":
            jobs.append(_start_tiled(record, part, pool))
        elif record.kind == "same":
            jobs.append(lambda base: (base.clone(), []))
        else:
            jobs.append(_finished(record, part))

    def wait() -> list[torch.Tensor]:
        bases = _read_reference(unit, records, reference)
        results = [job(base) for job, base in zip(jobs, bases)]
        digest = chain_digests([d for _, digests in results for d in digests])
        if digest != unit.digest:
            raise Corruption(f"unit of {records[0].name!r}: digest of the levels differs: the file is damaged")
        return [tensor for tensor, _ in results]

    return wait


def _read_reference(unit: Unit, records: tuple[Record, ...], reference: ReferenceReader | None) -> list[torch.Tensor | None]:
    """What the records (aliases left out) take from the reference, all of it checked."""
    if not unit.reference:
        return [None for record in records if record.kind != "alias"]
    bases = [reference.read(record.name) if record.referenced else None for record in records if record.kind != "alias"]
    if digest_unit([digest_tensor(base, DTYPES.id(base.dtype)) for base in bases if base is not None]) != unit.reference:
        raise InvalidArgument(
            f"{reference.label}: tensor {records[0].name!r} is not what it was when this was compressed: name the right reference"
        )
    return bases


def _finished(record: Record, data: memoryview) -> Callable[[torch.Tensor | None], tuple[torch.Tensor, list[int]]]:
    tensor = None if record.filter == "reference" else _restore(record, data)
    return lambda base: (_restore(record, data, base) if tensor is None else tensor, [])


def _restore(record: Record, data: memoryview, base: torch.Tensor | None = None) -> torch.Tensor:
    """A tensor that was not quantized: plain, exact or constant.  base: its counterpart in the reference."""
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
    if record.filter in ("byte planes", "differences", "reference"):
        planes = np.frombuffer(raw, np.uint8).reshape(record.dtype.itemsize, record.elements)
        values = np.ascontiguousarray(planes.T)
        if record.filter == "differences":
            kind = np.dtype(f"<u{record.dtype.itemsize}")
            values = np.cumsum(values.view(kind)[:, 0], dtype=kind)
        if record.filter == "reference":
            kind = np.dtype(f"<u{record.dtype.itemsize}")
            steps, before = values.view(kind)[:, 0], base.contiguous().flatten().view(torch.uint8).numpy().view(kind)
            values = before + ((steps >> kind.type(1)) ^ (kind.type(0) - (steps & kind.type(1))))
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
    record: Record, data: memoryview, bank: ModelBank, pool: Executor | None, permutations: Permutations, matrices: Matrices
) -> Callable[[torch.Tensor | None], tuple[torch.Tensor, list[int]]]:
    coding = record.coding
    grid = coding.grid(record.shape)
    # a transposed plane is laid out as the tensor is, so that the columns that are decoded one after the other are contiguous
    plane = np.empty((grid.rows, grid.columns), np.float32, order="F" if coding.transposed else "C")
    place, arrays, streams = 0, [], []
    fields = [coding.rows, coding.columns, coding.row_steps.codes, coding.column_steps.codes]
    numbers = [grid.rows, grid.columns, grid.rows, grid.columns]
    if coding.prediction:
        fields.append(coding.prediction.confidence)
        numbers.append(plane_shape(record.shape, coding.split)[0])
    if coding.tools.memory:
        fields += [coding.tools.memory.labels, coding.tools.memory.confidence]
        numbers += [grid.columns, grid.columns]
    for codes, number in zip(fields, numbers):
        arrays.append(decode_codes(codes.mode, codes.spread, bytes(data[place : place + codes.length]), number))
        place += codes.length
    if coding.prediction and not ((-CERTAIN <= arrays[4]) & (arrays[4] <= 0)).all():
        raise Corruption(f"tensor {record.name!r}: a confidence is outside 0..1: the file is damaged")
    memory = read_memory(coding.tools.memory.limit, *arrays[-2:]) if coding.tools.memory else None
    cells = None
    if coding.tools.tree:
        cells = kernel_codes(decode_trees(bytes(data[place : place + coding.tools.tree.length]), coding.tools.tree.model, grid).T)
        place += coding.tools.tree.length
    codebook, outliers = coding.tools.codebook, coding.tools.outliers
    parts = []
    for tool in (outliers, codebook):
        length = tool.length if tool else 0
        parts.append(bytes(data[place : place + length]))
        place += length
    of_outliers, of_codebook = parts
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

    if codebook:  # the levels themselves, until all are there
        centroids, of_points = codebook.read_centroids(of_codebook), row_steps
        own = codebook.tables(of_codebook, coding.shift)
        tables = own.arrays if own else tables
        row_steps, overflows = np.ones(grid.rows, np.float32), False
        rows = kernel_codes(arrays[0], coding.base)  # a row of larger steps has as many centroids as any other
    common = (rows, columns, CLASSES, tables, trellis.next_state, coding.shift, labelling, row_steps, column_steps, plane)

    def decode(group: list[int], tiles: list[tuple[int, int, int, int]]) -> bool:
        if cells is not None or len(group) == 4:
            number = len(group)
            state, left_over, digest = np.zeros(number, np.uint64), np.zeros(number, np.int64), np.zeros(number, np.uint64)
            top, bottom, left, right = tiles[0]
            corners = np.array([(t[0], t[2]) for t in tiles], np.int64)
            kernel, of_tree = (decode_four, ()) if cells is None else (decode_cells, (cells,))
            kernel(
                words,
                bounds[group],
                bounds[[g + 1 for g in group]],
                np.ascontiguousarray(corners[:, 0]),
                np.ascontiguousarray(corners[:, 1]),
                bottom - top,
                right - left,
                *of_tree,
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

    def wait(base: torch.Tensor | None) -> tuple[torch.Tensor, list[int]]:
        if not all([result() for result in results]):
            raise Corruption(f"tensor {record.name!r}: a stream does not end where it should: the file is damaged")
        if overflows and not np.isfinite([plane.min(), plane.max()]).all():
            raise Corruption(f"tensor {record.name!r}: a value is beyond float32: the file is damaged")
        restored = rebuild_powers(plane, coding.step) if logarithmic else plane
        if codebook:
            restored = codebook.rebuild(plane, centroids, of_points)
        if coding.tools != NO_TOOLS:
            restored = _use_tools(record, restored, tiles, memory, matrices)
        elif coding.transposed:
            restored = np.ascontiguousarray(restored.T)
        if base is not None:
            restored = _add_prediction(record, restored, base, arrays[4], permutations)
        values = _as_tensor(record, restored)
        if outliers:
            outliers.place(values, of_outliers)
        return values, [int(d) for d in digests]

    return wait


def _use_tools(
    record: Record, plane: np.ndarray, tiles: list[tuple[int, int, int, int]], memory: MemoryCodes | None, matrices: Matrices
) -> np.ndarray:
    """The plane (not transposed) with predictions of its columns and after its transform, float32."""
    coding = record.coding
    if memory:
        turned = memory.add(plane, tiles)
        plane = turned if coding.transposed else np.ascontiguousarray(turned.T)
    elif coding.transposed:
        plane = np.ascontiguousarray(plane.T)
    if coding.tools.transform:
        for matrix, stride in coding.tools.transform.steps:
            plane = apply_matrix(plane, matrices[matrix], stride)
    if not np.isfinite([plane.min(), plane.max()]).all():
        raise Corruption(f"tensor {record.name!r}: a value is beyond float32: the file is damaged")
    return plane


def _start_tiled(
    record: Record, data: memoryview, pool: Executor | None
) -> Callable[[torch.Tensor | None], tuple[torch.Tensor, list[int]]]:
    """One stream, whose tiles depend on each other: one job."""

    def decode() -> tuple[torch.Tensor, list[int]]:
        try:
            found = decode_plane(record.tiles, record.shape, data)
        except Corruption as problem:
            raise Corruption(f"tensor {record.name!r}: {problem}") from None
        return _as_tensor(record, found.values), [found.digest]

    result = pool.submit(decode).result if pool else decode
    return lambda base: result()


def _as_tensor(record: Record, values: np.ndarray) -> torch.Tensor:
    """Values float32 in the shape and dtype of the record."""
    tensor = torch.from_numpy(values).reshape(record.shape)
    if record.dtype != torch.float32:  # a value next to the largest number must not become infinite
        largest = torch.finfo(record.dtype).max
        tensor = tensor.clamp_(-largest, largest).to(record.dtype)
    return tensor


def _add_prediction(
    record: Record, plane: np.ndarray, base: torch.Tensor, confidence: np.ndarray, permutations: Permutations
) -> np.ndarray:
    """The plane (not transposed) with its prediction from the reference, float32."""
    shape = plane_shape(record.shape, record.coding.split)
    orders = record.coding.prediction.orders
    rows, columns = (permutations[number - 1] if number else None for number in (orders.rows, orders.columns))
    with np.errstate(over="ignore", invalid="ignore"):
        values = plane.reshape(shape) + predict(base.to(torch.float32).numpy().reshape(shape), rows, columns, confidence)
    if not np.isfinite([values.min(), values.max()]).all():
        raise Corruption(f"tensor {record.name!r}: a value is beyond float32: the file is damaged")
    return values


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
