"""A tensor as numbers of centroids: training, order of the centroids, their bytes, streams."""

from __future__ import annotations

from dataclasses import dataclass
from zlib import compress

import numpy as np
import torch

from ..codebooks import MAX_CENTROIDS, MAX_SYMBOLS, Codebook, make_tables
from ..coder import checksum, pack_words
from ..encoded import EncodedTensor, Outlying, tensor_bytes
from ..encoder import LARGEST_STEP, SMALLEST_STEP, count_noise, make_plane
from ..entropy.explicit import MAX_LENGTH, ModelBank
from ..entropy.scales import encode_codes
from ..fields import Codes, Steps
from ..kernels.clusters import assign_points
from ..kernels.planes import error_and_energy
from ..kernels.words import encode_tile
from ..partition.grid import choose_grid
from ..points import Layout, lay_out
from ..quantize.steps import UNITS, StepCodes, rebuild_steps
from ..quantize.trellis import make_trellis
from ..rdo import LOW, WIDTH, level_bits
from ..sensitivity import Sensitivity, short_step
from ..tools import Tools
from ..unit import Coding, Record, join_parts
from .training import NONE, train

MIDDLE = 17  # scale index of all levels where the codebook has tables of its own
MOST_CODE = 64
ROW_UNIT = 16  # of the step codes of rows, in 1/128 octave


@dataclass(frozen=True)
class Clusters:
    """A codebook as it is asked for.  mode, size, across, along: of the points (points.py); centroids: at most, in each sub-space;
    halves: float16 components, else integers of -64..64 steps; rows: every row of the grid has a step of its own."""

    mode: str = "scalar"
    centroids: int = 256
    size: int = 1
    across: int = 1
    along: int = 1
    halves: bool = False
    rows: bool = False
    rounds: int = 12


def encode_codebook(
    name: str,
    tensor: torch.Tensor,
    clusters: Clusters,
    price: float,
    outliers: Outlying | None = None,
    sensitivity: Sensitivity | None = None,
    weighted: bool = False,
) -> EncodedTensor | None:
    """Quantize a tensor to centroids.

    price: squared error that a bit is worth (in the units of the sensitivity if `weighted`).  sensitivity: to tell the loss by; weighted:
    the distances count as it says.  None where steps would be beyond float32.  Corruption if the points do not fit the tensor.
    """
    split, plane = make_plane(tensor)
    shape = tuple(tensor.shape)
    layout = lay_out(clusters.mode, plane.shape, int(np.prod(shape[split + 1 :])), clusters.size, clusters.across, clusters.along)
    points = layout.gather(outliers.leave(plane) if outliers else plane)
    weights = _point_weights(layout, plane.shape, outliers, sensitivity if weighted else None)
    row_steps = _row_steps(points) if clusters.rows else StepCodes.even(layout.grid[0])
    factors = rebuild_steps(row_steps, 1.0)
    if clusters.rows:
        points = points / factors[:, None, None]
        square = np.broadcast_to(np.square(factors)[:, None, None], (*layout.grid, 1))
        weights = weights * square if weights is not None else square
    most = layout.rows * layout.columns // (layout.size * layout.across * layout.along)
    parts = list(zip(_book_points(layout, points), _book_points(layout, weights)))
    found = _Found.make(parts, min(clusters.centroids, most, MAX_CENTROIDS), price, clusters.rounds)
    rounded = _round_centroids(found.centroids, clusters.halves)
    step = rounded.step
    if not SMALLEST_STEP < step * factors.min() <= step * factors.max() < LARGEST_STEP:
        return None
    ranks, books = np.empty(layout.grid, np.int64), layout.books()
    for book, ids in enumerate(found.assign(parts, rounded.components * np.float32(step), price)):
        ranks[books == book] = ids
    return _write(name, tensor, layout, plane, split, ranks, rounded, row_steps, outliers, sensitivity)


def _point_weights(
    layout: Layout, shape: tuple[int, int], outliers: Outlying | None, sensitivity: Sensitivity | None
) -> np.ndarray | None:
    """float32 (grid, size): what the squared error of each component counts; None if all count the same."""
    if outliers is None and sensitivity is None:
        return None
    weights = np.ones(shape, np.float32)
    if sensitivity:
        turned = np.outer(sensitivity.rows**-2.0, sensitivity.columns**-2.0).astype(np.float32)
        weights = np.ascontiguousarray(turned.T if sensitivity.transposed else turned)
    if outliers:
        weights = outliers.leave(weights)
    return layout.gather(weights)


def _row_steps(points: np.ndarray) -> StepCodes:
    power = np.square(points, dtype=np.float64).mean((1, 2))
    octaves = np.log2(np.where(power > 0, power, 1)) / 2
    middle = np.median(octaves[power > 0]) if (power > 0).any() else 0.0
    codes = np.where(power > 0, np.clip(np.round((octaves - middle) * (128 / ROW_UNIT)), -MOST_CODE, MOST_CODE), 0)
    return StepCodes(codes.astype(np.int16), ROW_UNIT)


def _book_points(layout: Layout, array: np.ndarray | None) -> list[np.ndarray]:
    """Per sub-space the points (P, n) of an array (grid, n)."""
    books, count = layout.books(), layout.across * layout.along
    if array is None:
        return [NONE] * count
    return [np.ascontiguousarray(array[books == book], np.float32) for book in range(count)]


@dataclass(frozen=True, eq=False)
class _Found:
    """centroids: float32 (sub-spaces, K, n), those that are used most first; counts: int64 (K,) over all sub-spaces."""

    centroids: np.ndarray
    counts: np.ndarray

    @classmethod
    def make(cls, parts: list[tuple[np.ndarray, np.ndarray]], most: int, price: float, rounds: int) -> _Found:
        """parts: points and weights of every sub-space."""
        trained = [train(part, most, price, weight, rounds) for part, weight in parts]
        size = max(len(t.centroids) for t in trained)
        centroids, counts = np.zeros((len(trained), size, parts[0][0].shape[1]), np.float32), np.zeros(size, np.int64)
        for book, found in enumerate(trained):
            centroids[book, : len(found.centroids)] = found.centroids
            counts[: len(found.counts)] += found.counts
        return cls(centroids, counts)

    def assign(self, parts: list[tuple[np.ndarray, np.ndarray]], centroids: np.ndarray, price: float) -> list[np.ndarray]:
        """Ranks of the points of every sub-space, for the centroids as a decoder has them: int32 each."""
        bits = np.log2(self.counts.sum()) - np.log2(self.counts)
        found = [np.empty(len(part), np.int32) for part, _ in parts]
        for (part, weight), book, ids in zip(parts, centroids, found):
            assign_points(part, weight, np.ascontiguousarray(book.T), (price * bits).astype(np.float32), ids)
        return found


@dataclass(frozen=True, eq=False)
class _Rounded:
    """components: float32, of centroids as they are stored, to be multiplied by the step; halves: whether as float16."""

    components: np.ndarray
    step: float
    halves: bool


def _round_centroids(centroids: np.ndarray, halves: bool) -> _Rounded:
    peak = float(np.abs(centroids).max()) or 1.0
    if halves:
        step = float(2.0 ** np.ceil(np.log2(peak)))
        return _Rounded((centroids / np.float32(step)).astype(np.float16).astype(np.float32), step, True)
    step = float(np.float32(short_step(peak / MOST_CODE)))
    return _Rounded(np.clip(np.round(centroids / np.float32(step)), -MOST_CODE, MOST_CODE) + np.float32(0), step, False)  # no -0


@dataclass(frozen=True, eq=False)
class _Order:
    """How centroids are numbered and levels coded.  level: int64 (K,), that of each, by falling use; zero, shift, base, model: of the
    record; table: code lengths, empty without."""

    level: np.ndarray
    zero: int
    shift: int
    base: int
    model: int
    table: bytes


def _choose_order(counts: np.ndarray) -> _Order:
    """A table of its own, or the parametric one that fits best, whichever takes fewer bits; counts: int64 (K,), of each centroid."""
    number = len(counts)
    shift = max(0, (-(-number // MAX_SYMBOLS) - 1).bit_length())
    groups = np.add.reduceat(counts, np.arange(0, number, 1 << shift))
    shares = np.maximum(groups, 0.25) / max(1, groups.sum())
    lengths = bytes(np.clip(np.round(-8 * np.log2(shares / shares.sum())), 0, MAX_LENGTH).astype(np.uint8))
    edges = make_tables(lengths).cumulative[2 * MIDDLE].astype(np.int64)
    own = (groups * (24 - np.log2(np.diff(edges)[: len(groups)]))).sum() + 8 * min(len(lengths), len(compress(lengths, 9)))
    rank = np.arange(number)
    level = np.where(rank % 2, -1, 1) * ((rank + 1) // 2)
    seen = np.bincount(np.clip((level >> shift) - LOW, 0, WIDTH - 1), weights=counts, minlength=WIDTH)
    best = (own, _Order(rank, 0, shift, MIDDLE, 0, lengths))
    for model in range(ModelBank().count):
        bits = level_bits(ModelBank(), model)[2 + (shift > 0) :: 2] @ seen
        base = int(np.argmin(bits))
        if bits[base] < best[0]:
            best = (bits[base], _Order(level, number // 2, shift, base + 1, model, b""))
    return best[1]


def _write(
    name: str,
    tensor: torch.Tensor,
    layout: Layout,
    plane: np.ndarray,
    split: int,
    ranks: np.ndarray,
    rounded: _Rounded,
    row_steps: StepCodes,
    outliers: Outlying | None,
    sensitivity: Sensitivity | None,
) -> EncodedTensor | None:
    order = _choose_order(np.bincount(ranks.reshape(-1), minlength=rounded.components.shape[1]))
    levels = order.level[ranks]
    components = np.empty_like(rounded.components)
    components[:, order.level + order.zero] = rounded.components
    record, data = _codebook_bytes(layout, components, rounded.halves, order)
    grid = choose_grid(*layout.grid)
    tables = make_tables(order.table) if order.table else ModelBank().table_set(order.model)
    machine = make_trellis(1).next_state
    streams, digests = [], []
    for top, bottom, left, right in grid.tiles():
        part = np.ascontiguousarray(levels[top:bottom, left:right].T.reshape(-1), np.int32)
        words = np.empty(3 * len(part) + 4, np.uint32)
        scale = np.full(len(part), order.base, np.uint8)
        number, digest = encode_tile(part, scale, tables.arrays, machine, order.shift, words)
        streams.append(pack_words(words[:number]))
        digests.append(int(digest))
    values = record.rebuild(levels.astype(np.float32), components, rebuild_steps(row_steps, rounded.step))
    mode, spread, side = encode_codes(row_steps.codes)
    if outliers:
        plane, values = outliers.account(plane, values.copy(), False)
    error, energy = error_and_energy(plane, values)
    none = Codes("none", 0, 0)
    coding = Coding(
        split,
        False,
        False,
        grid.height,
        grid.width,
        1,
        0,
        order.shift,
        rounded.step,
        order.model,
        order.base,
        count_noise(error, energy),
        none,
        none,
        Steps(Codes(mode, spread, len(side)), row_steps.unit),
        Steps(none, UNITS.value(0)),
        tuple(map(len, streams)),
        tools=Tools(outliers=outliers.record if outliers else None, codebook=record),
    )
    if not np.isfinite(values).all():
        return None
    loss = None
    if sensitivity:
        loss = sensitivity.loss((values - plane).T if sensitivity.transposed else values - plane)
    largest = torch.finfo(tensor.dtype).max
    final = torch.from_numpy(
        np.ascontiguousarray(values if tensor.dtype == torch.float32 else np.clip(values, -largest, largest))
    )
    final = final.to(tensor.dtype)
    if outliers:
        outliers.place(final)
    whole = join_parts(b"".join((side, outliers.data if outliers else b"", data)), streams)
    entry = Record(name, tensor.dtype, tuple(tensor.shape), "coded", coding=coding)
    return EncodedTensor(entry, whole, tuple(digests), checksum(tensor_bytes(final)), error, energy, loss)


def _codebook_bytes(layout: Layout, components: np.ndarray, halves: bool, order: _Order) -> tuple[Codebook, bytes]:
    if halves:
        raw = np.ascontiguousarray(components.astype("<f2").view(np.uint8).reshape(-1, 2).T).tobytes()
        body = min((raw, compress(raw, 9)), key=len)
        codes, deflated = None, len(body) < len(raw)
    else:
        mode, spread, body = encode_codes(components.reshape(-1).astype(np.int64))
        codes, deflated = Codes(mode, spread, len(body)), False
    table = min((order.table, compress(order.table, 9)), key=len) if order.table else b""
    flags = deflated, len(table) < len(order.table)
    length = 0 if codes else len(body)
    return Codebook(layout, components.shape[1], order.zero, codes, length, len(table), flags), body + table
