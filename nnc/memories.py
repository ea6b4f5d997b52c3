"""Which columns of a plane foretell which: memories for them, chosen for the bits that they save.  Encoder only.

Rows of embeddings that training hardly touched are nearly equal, neighbouring positions are alike: in a vocabulary of 512 that saves three
bits per weight, in most other tensors nothing.  A cheap test on a sample of columns finds out which (the best squared cosine between
columns, less what chance gives among so many), then candidates are run through a simulation of the closed loop: one memory
that is the column before, one per tap, means of 1, 4, 16 or 64 clusters, along either axis; and centres of 4 to 64 clusters that are coded beside
the plane.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log2

import numpy as np

from .buffers import contiguous, empty
from .centre_choice import QuantizedCentres, centre_bits, choose_finer, choose_grain, find_centres, place, quantize_centres, sweep
from .entropy.scales import code_bits
from .kernels.memories import (
    balance,
    cluster_rows,
    farthest_rows,
    follow_memories,
    kinship,
    mean_square,
    model_bits,
    unit_rows,
)
from .kernels.planes import column_powers, row_powers
from .prediction.memory import CERTAIN, MOST, NO_FLOOR, CentreCodes, MemoryCodes
from .rdo import Search

WORTH = 0.02  # bits per weight that memories must save
SURE, LARGE = 0.06, 1 << 16  # bits per weight, reckoned at the steps used, and weights, beyond which memories never failed to save some
PROMISE = 0.05  # and that the test on a sample must show, which takes the best of many
DISTORTION = 1 / 16  # of the mean square: what bits are reckoned at
PROBED, ENTRIES = 128, 768  # columns that the test looks at, and entries of each
FITTED = 1024  # columns that clusters are fitted to
TRIED, LEARNED = 4096, 12288  # columns that tell what centres are worth, and that they are found on
ROUNDS = 8
CENTRES = 4, 8, 15, 31, 63  # tried; many are one less than a power of two, so that labels, with none among them, take whole bits
PATIENT = 1 << 20  # weights up to which it is tried whether one confidence for all columns, which costs no bits, saves more


@dataclass(frozen=True, eq=False)
class ChosenMemory:
    """codes: for the columns of the plane, or if `transposed` of the transposed plane; saved: estimated bits."""

    codes: MemoryCodes | CentreCodes
    transposed: bool
    saved: float


def choose_memory(
    plane: np.ndarray, taps: int = 1, steps: tuple[np.ndarray, np.ndarray] | None = None, run: Callable = map, follow: bool = False,
    by_rows: bool = False,
) -> ChosenMemory | None:
    """For a float32 plane, whose rows hold groups of `taps`; steps: of its rows and columns, up to a factor, None if they are all equal; run:
    `map` or that of a pool, over candidates; follow: whether the steps of rows will follow their scales, which rules centres out; by_rows: only centres for
    columns of the transposed plane, with which rows of a table can be read alone.

    None if nothing pays."""
    best: ChosenMemory | None = None
    for transposed in (True,) if by_rows else (True, False):
        columns = plane if transposed else plane.T  # a row of this is a column to be coded
        if min(columns.shape) < 8 or not _promising(columns, 1 if transposed else taps):
            continue
        columns = contiguous(columns)
        lag = 1 if transposed else taps
        every, more = (len(columns) // most + 1 for most in (FITTED, TRIED))
        own = np.ones(len(columns)) if steps is None else steps[not transposed]
        sampled, larger = (contiguous(columns[::part]) for part in (every, more))
        kinds = find_kinds(len(sampled), lag, transposed or not follow)
        kinds = [kind for kind in kinds if kind.coded] if by_rows else kinds
        if not kinds:
            continue

        def part_saved(kind: Kind) -> float:
            if kind.coded:
                return _try_centres(larger, own[::more], kind, more) / columns.size
            return _simulate(sampled, own[::every], kind.labels(sampled), kind.limit)[1] / sampled.size

        promise, kind = max(zip(run(part_saved, kinds), kinds), key=lambda pair: pair[0])
        if kind.coded:
            codes = _place_centres(columns, own, kind)
            saved = promise * columns.size if len(codes.centres) > 1 else 0.0
        else:
            codes, saved = _simulate(columns, own, kind.labels(columns), kind.limit, run)
        if saved > max(WORTH * plane.size, best.saved if best else 0):
            best = ChosenMemory(codes, transposed, saved)
    return best


def surely_saves(saved: float, weights: int) -> bool:
    """Whether a memory that is reckoned to save so many bits need not be compared with none."""
    return weights >= LARGE and saved > SURE * weights


def _model_bits(columns: np.ndarray, distortion: np.ndarray) -> float:
    """Bits (and distortion, in bits) of columns whose variances are products of those of the columns and of those of their entries; distortion: of each column."""
    of_columns, of_entries = np.empty(len(columns)), np.empty(columns.shape[1])
    balance(columns, of_columns, of_entries)
    return model_bits(of_columns / distortion, of_entries)


def _units(columns: np.ndarray) -> np.ndarray:
    columns = contiguous(columns)
    out = empty(columns.shape, np.float32)
    unit_rows(columns, out)
    return out


def _promising(columns: np.ndarray, taps: int) -> bool:
    """Whether a sample of the columns is more alike than chance makes them."""
    columns = columns[:, :: -(-columns.shape[1] // ENTRIES)]
    n, m = columns.shape
    sampled = _units(columns[:: -(-n // PROBED)])
    cosines = np.empty(len(sampled), np.float32)
    kinship(sampled, cosines)
    saved = -0.5 * m * np.log2(np.maximum(1 - cosines.astype(np.float64), 1e-9)) - 1.2 * log2(len(sampled)) - 6
    alike = float(np.maximum(saved, 0).sum()) / sampled.size > PROMISE
    at = np.linspace(0, max(0, n - taps - 1), min(n - taps, PROBED)).astype(np.int64) if n > taps else np.empty(0, np.int64)
    for lag in {1, taps}:
        if alike or not at.size:
            break
        cosine = (_units(columns[at]) * _units(columns[at + lag])).sum(1, dtype=np.float64)
        alike = float(-np.log2(np.maximum(1 - np.mean(cosine) ** 2, 1e-9)) / 2) > PROMISE
    return alike


@dataclass(frozen=True)
class Kind:
    """A way to give columns to memories: the one before (number 0), `number` apart, or so many clusters, whose centres may be `coded`."""

    number: int
    limit: int
    coded: bool = False

    def labels(self, columns: np.ndarray) -> np.ndarray:
        """int16 (columns,), from 1."""
        n = len(columns)
        if self.limit == 0:
            return (np.arange(n) % max(1, self.number) + 1).astype(np.int16)
        units = _units(columns)
        fitted = contiguous(units[:: n // FITTED + 1])
        chosen = np.empty(self.number, np.int64)
        farthest_rows(fitted, self.number, chosen)
        centres, labels = np.ascontiguousarray(fitted[chosen]), np.empty(len(fitted), np.int16)
        cluster_rows(fitted, centres, labels, ROUNDS)
        labels = np.empty(n, np.int16)
        cluster_rows(units, centres, labels, 1)
        return labels + np.int16(1)


def find_kinds(columns: int, lag: int, coded: bool) -> list[Kind]:
    """What is tried; coded: also centres."""
    clusters = [Kind(number, NO_FLOOR) for number in (1, 4, 16, 64) if number <= max(1, columns // 4)]
    centres = [Kind(number, NO_FLOOR, True) for number in CENTRES if coded and number <= columns // 4]
    return [Kind(0, 0)] + ([Kind(lag, 0)] if 1 < lag <= MOST else []) + clusters + centres


def _try_centres(columns: np.ndarray, steps: np.ndarray, kind: Kind, every: int) -> float:
    """Bits that centres save of all columns, reckoned on one of so many."""
    columns, distortion, _ = _scaled(columns, steps)
    if every == 1:
        return _save(columns, distortion, find_centres(columns, kind.labels(columns), distortion), 1)
    first, second = (contiguous(columns[half::2]) for half in (0, 1))  # centres that are found on one half tell what they are worth on the other
    return 2 * every * _save(second, distortion[1::2].copy(), find_centres(first, kind.labels(first), distortion[::2].copy()), 2 * every)


def _save(columns: np.ndarray, distortion: np.ndarray, centres: np.ndarray, every: int) -> float:
    """Bits that centres save on columns, one of so many, less their share of what the centres take."""
    if len(centres) == 1:
        return 0.0
    found = place(columns, centres, distortion)
    found = place(columns, centres, distortion, choose_grain(found, centres))
    typical = float(np.exp(np.log(distortion).mean()))
    finer = choose_finer(len(columns) * every, len(centres) - 1, mean_square(found.rest), typical)
    side = code_bits(found.labels) + code_bits(found.confidence) + centre_bits(centres, finer, typical) / every
    return _model_bits(columns, distortion) - _model_bits(found.rest, distortion) - side


def _place_centres(columns: np.ndarray, steps: np.ndarray, kind: Kind) -> CentreCodes:
    """Centres of a sample of the columns, and what they foretell of all."""
    every = len(columns) // LEARNED + 1
    part, distortion, scale = _scaled(contiguous(columns[::every]), steps[::every])
    centres = find_centres(part, kind.labels(part), distortion, 5)
    found = sweep(columns, scale, centres, np.full(len(columns), float(np.median(distortion))))
    return CentreCodes(found.labels, found.confidence, centres / scale)


def _scaled(columns: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns whose entries are equally large, for one that is always large takes bits for its scale alone; distortions; what they were multiplied by."""
    n, m = columns.shape
    of_entries, of_columns = np.empty(m), np.empty(n)
    column_powers(columns, np.ones(n), of_entries)
    scale = 1 / np.sqrt(np.maximum(of_entries, 1e-60)).astype(np.float32)
    columns = np.multiply(columns, scale, out=empty(columns.shape, np.float32))
    row_powers(columns, np.ones(m), of_columns)
    return columns, DISTORTION * steps**2 * np.median(of_columns / steps**2) + 1e-60, scale


def _simulate(
    columns: np.ndarray, steps: np.ndarray, labels: np.ndarray, limit: int, run: Callable = map
) -> tuple[MemoryCodes, float]:
    """Codes with these labels, or better ones where a memory of another column fits better, and the bits that they save."""
    columns, distortion, _ = _scaled(columns, steps)
    return _follow(columns, distortion, labels, limit, run, 1 if columns.size > PATIENT else 2)


def refit_memory(
    codes: MemoryCodes, plane: np.ndarray, row_steps: np.ndarray, column_steps: np.ndarray, part: float, run: Callable = map
) -> tuple[MemoryCodes, float]:
    """The same memories with confidences for steps that are now known, and the bits that they are reckoned to save.

    plane: float32 (rows, columns) as it is coded; column_steps: factors of row_steps; part: squared error of a weight, of its step squared.
    """
    columns = np.ascontiguousarray((plane / row_steps[:, None]).T)
    return _follow(columns, part * column_steps.astype(np.float64) ** 2, codes.labels, codes.limit, run)


def refit_centres(
    codes: CentreCodes, plane: np.ndarray, row_steps: np.ndarray, column_steps: np.ndarray, search: Search
) -> tuple[QuantizedCentres | None, float]:
    """The same for centres, which are quantized; None if the steps are too fine for them."""
    return quantize_centres(codes, plane, row_steps, column_steps, search, _model_bits)


def _follow(
    columns: np.ndarray, distortion: np.ndarray, labels: np.ndarray, limit: int, run: Callable = map, passes: int = 2
) -> tuple[MemoryCodes, float]:
    """Codes for columns, float32 (n, m), that are coded at the distortion of each; and bits saved.  run: of a pool, to reckon the bits without
    them meanwhile; passes: the first with a confidence for every column, the second with the same for all."""
    start = MemoryCodes(limit, labels, np.zeros(len(labels), np.int16))
    rest, without = empty(columns.shape, np.float32), run(_model_bits, [columns], [distortion])
    best: tuple[MemoryCodes, float] | None = None
    common, before = 1, 0.0
    for _ in range(passes):
        mine, confidence, saved = labels.copy(), np.empty(len(labels), np.int16), np.empty(len(labels))
        floor, free = start.floor, limit == NO_FLOOR
        follow_memories(columns, mine, floor, free, distortion, CERTAIN, common, confidence, saved, rest)
        side = code_bits(mine) + code_bits(confidence) + 32
        rate = _model_bits(rest, distortion)
        before = before if best else next(iter(without))
        bits = before - rate - side
        if best is None or bits > best[1]:
            best = MemoryCodes(limit, mine, confidence), bits
        common = int(np.median(confidence))
    return best
