"""From tensors to units.  Never imports the decoder."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from zlib import compress

import numpy as np
import torch

from .coder import checksum, pack_words
from .directory import MAX_EXPANSION
from .entropy.explicit import ModelBank
from .entropy.scales import encode_codes
from .kernels.planes import error_and_energy
from .kernels.streams import encode_tile, rebuild_levels
from .partition.grid import choose_grid
from .partition.planes import choose_split, plane_shape
from .quantize.logarithm import logarithms, rebuild_powers
from .quantize.trellis import LABELLINGS, make_trellis
from .rdo import (
    START_SHAPE,
    Powers,
    Search,
    choose_model,
    count,
    find_levels,
    fit_scales,
    gather,
    level_bits,
    measure_powers,
    move,
)
from .unit import Codes, Coding, Record

SMALLEST_STEP, LARGEST_STEP = 1e-35, 1e30  # float32 products stay normal and finite between
MAX_EMPTY = 1 << 22  # bytes of a tensor that may shrink to nothing; readers bound the tensors of a file by its size
MAX_CONSTANT = 1 << 14  # bytes; larger ones deflate to next to nothing anyway
FINEST = 1 << 20  # largest weight in steps: levels of the format end at 2^22, and float32 has 24 bits
LOGARITHMIC = LABELLINGS.id("logarithmic")


@dataclass(frozen=True, eq=False)
class EncodedTensor:
    """record: for the directory; data: its bytes in the unit; digests: of its streams; content: CRC-32 of the bytes of the tensor
    it decodes to.

    error, energy: sums of squared errors and of squared weights; side: bytes of `data` that are scale codes."""

    record: Record
    data: bytes
    digests: tuple[int, ...]
    content: int
    error: float = 0.0
    energy: float = 0.0
    side: int = 0


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor, little endian, without a copy where it is contiguous."""
    return memoryview(tensor.detach().contiguous().flatten().view(torch.uint8).numpy()) if tensor.numel() else memoryview(b"")


def encode_plain(name: str, tensor: torch.Tensor) -> EncodedTensor:
    """The tensor as it is, for an entry of its own."""
    data = bytes(tensor_bytes(tensor))
    return EncodedTensor(Record(name, tensor.dtype, tuple(tensor.shape), "plain"), data, (), checksum(data))


def encode_exact(name: str, tensor: torch.Tensor) -> EncodedTensor:
    """The tensor without loss: one element if all are the same, else the shortest of a few filters before deflate."""
    raw = bytes(tensor_bytes(tensor))
    content = checksum(raw)
    shape, size = tuple(tensor.shape), tensor.dtype.itemsize
    values = np.frombuffer(raw, np.uint8).reshape(-1, size)
    if 0 < len(raw) <= MAX_CONSTANT and (values == values[0]).all():
        return EncodedTensor(Record(name, tensor.dtype, shape, "constant", value=raw[:size]), b"", (), content)
    candidates = {"none": raw, "deflate": compress(raw, 9)}
    if size > 1 and len(values) > 1:
        candidates["byte planes"] = compress(np.ascontiguousarray(values.T).tobytes(), 9)
        if size in (2, 4, 8):
            steps = np.diff(values.copy().view(f"<u{size}")[:, 0], prepend=np.zeros(1, f"<u{size}"))
            candidates["differences"] = compress(np.ascontiguousarray(steps.view(np.uint8).reshape(-1, size).T).tobytes(), 9)
    chosen = min(candidates, key=lambda key: len(candidates[key]))
    data = candidates[chosen]
    return EncodedTensor(Record(name, tensor.dtype, shape, "exact", filter=chosen, length=len(data)), data, (), content)


def make_plane(tensor: torch.Tensor) -> tuple[int, np.ndarray]:
    """Plane recipe and plane float32 (rows, columns) of a float tensor; a view where the dtype allows."""
    shape = tuple(tensor.shape)
    split = choose_split(shape)
    return split, tensor.detach().to(torch.float32).contiguous().numpy().reshape(plane_shape(shape, split))


def encode_coded(
    name: str,
    tensor: torch.Tensor,
    powers: Powers,
    step: float,
    search: Search,
    bank: ModelBank,
    pool: Executor | None = None,
    follow: bool = False,
) -> EncodedTensor:
    """Quantize and code a tensor with the given step.

    powers: those of its plane; pool: threads for its CTUs; follow: the steps of the rows follow their scales.

    Where the step is finer than float32 can tell, or where so few bytes would remain that readers refuse them, the tensor is kept
    without loss.
    """
    split, plane = make_plane(tensor)
    step = float(np.float32(step))
    encoded = _encode_plane(name, tensor, split, plane, powers, step, step, search, bank, pool, follow)
    enough = encoded and encoded.record.nbytes <= MAX_EMPTY + MAX_EXPANSION * len(encoded.data)
    return encoded if enough else encode_exact(name, tensor)


def encode_logarithmic(name: str, tensor: torch.Tensor, bank: ModelBank) -> EncodedTensor | None:
    """Code a tensor of positive values on the logarithmic grid, None if it has others."""
    split, plane = make_plane(tensor)
    levels = logarithms(plane)
    if levels is None:
        return None
    return _encode_plane(
        name, tensor, split, levels[0], measure_powers(levels[0]), 1.0, levels[1], Search(1, LOGARITHMIC, 0.0, 1), bank, None
    )


def _encode_plane(
    name: str,
    tensor: torch.Tensor,
    split: int,
    plane: np.ndarray,
    powers: Powers,
    grid_step: float,
    step: float,
    search: Search,
    bank: ModelBank,
    pool: Executor | None,
    follow: bool = False,
) -> EncodedTensor | None:
    """Code `plane` with levels `grid_step` apart; `step` is what the record says.  None if the step is too fine for its largest
    weight.
    """
    trellis = make_trellis(search.states)
    scales = fit_scales(powers, trellis.spacing * grid_step, follow)
    row_steps = scales.row_steps(grid_step)
    if (
        not (SMALLEST_STEP < row_steps).all()
        or not (row_steps < LARGEST_STEP).all()
        or not (powers.peaks / FINEST < row_steps).all()
    ):
        return None
    grid = choose_grid(*plane.shape)
    tiles = grid.tiles()
    run: Callable = pool.map if pool and grid.count > 1 else map
    model, offset = first_model(bank), 0
    for _ in range(search.passes):
        bits = np.roll(level_bits(bank, model), -2 * offset, axis=0)

        def quantize(tile: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
            weights = gather(plane, tile, scales, grid_step)
            levels = find_levels(weights, bits, scales.shift, search)
            return levels, count(levels, weights.codes, search.states, scales.shift)

        levels, counts = zip(*run(quantize, tiles))
        model, offset, _ = choose_model(sum(counts), bank, scales.offsets())
    scales = move(scales, offset)
    tables = bank.table_set(model).arrays
    values = np.zeros(plane.shape, np.float32)
    labelling = 0 if search.labelling == LOGARITHMIC else search.labelling

    def encode(found: np.ndarray, tile: tuple[int, int, int, int]) -> tuple[bytes, int]:
        weights = gather(plane, tile, scales, grid_step)
        words = np.empty(3 * len(found) + 4, np.uint32)
        number, digest = encode_tile(found, weights.codes, tables, trellis.next_state, scales.shift, words)
        rebuild_levels(found, weights.position, trellis.next_state, labelling, row_steps, values)
        return pack_words(words[:number]), int(digest)

    streams, digests = zip(*run(encode, levels, tiles))
    (row_mode, row_spread, rows), (column_mode, column_spread, columns) = encode_codes(scales.rows), encode_codes(scales.columns)
    if search.labelling == LOGARITHMIC:
        values = rebuild_powers(values, step)
        plane = make_plane(tensor)[1]
    error, energy = error_and_energy(plane, values)
    noise = int(np.clip(round(20 * np.log10(energy / max(error, 1e-300))), 0, 255)) if energy > 0 else 0
    coding = Coding(
        split,
        follow,
        grid.height,
        grid.width,
        search.states,
        search.labelling,
        scales.shift,
        step,
        model,
        scales.base,
        noise,
        Codes(row_mode, row_spread, len(rows)),
        Codes(column_mode, column_spread, len(columns)),
        tuple(map(len, streams)),
    )
    record = Record(name, tensor.dtype, tuple(tensor.shape), "coded", coding=coding)
    if not np.isfinite(values).all():
        return None
    largest = torch.finfo(tensor.dtype).max
    final = torch.from_numpy(values if tensor.dtype == torch.float32 else np.clip(values, -largest, largest)).to(tensor.dtype)
    content = checksum(tensor_bytes(final))
    return EncodedTensor(record, b"".join((rows, columns, *streams)), digests, content, error, energy, len(rows) + len(columns))


def first_model(bank: ModelBank) -> int:
    """Model to search with before anything is counted: the last explicit set, else the middle shape."""
    return bank.count - 1 if bank.sets else START_SHAPE
