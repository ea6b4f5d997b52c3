"""Centres for the columns of a plane, and their stream.  Encoder only.

A centre is the mean of the columns that name it, found by Lloyd's algorithm; its error adds to what is left of every one of them, so its steps are as fine as their
number asks for: with n columns to a centre, residuals of variance v and an error d^2, n columns take n d^2 / (2 v ln 2) bits more and
the centre log2(1 / d) bits, least at d^2 = v / n.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log2, sqrt

import numpy as np

from .buffers import empty
from .centres import centre_codes, centre_steps
from .coder import pack_words
from .entropy.explicit import ModelBank
from .entropy.parametric import CLASSES
from .entropy.scales import MOST, code_bits
from .kernels.memories import follow_centres, mean_rows, mean_square, model_bits, sweep_centres
from .kernels.words import encode_tile, replay_levels
from .prediction.memory import CERTAIN, CentreCodes, trust_of
from .quantize.trellis import make_trellis
from .rdo import CENTRE, START_SHAPE, Gathered, Scales, Search, count, find_levels, level_bits
from .tools import MAX_FINER, Centres

LAGRANGIAN = 0.1  # of the search for their levels, whose errors are all that matters
BESIDE = 64.0  # bits of the fields and of the end of the stream
LARGEST = float(1 << 20)  # centre in its steps: levels of the format end at 2^22
MOST_GRAIN = 8  # beyond: the same for all
SAMPLED = 4096  # columns that tell what centres save
NO_SUMS = np.empty((0, 0), np.float32), np.empty(0, np.float32)


@dataclass(frozen=True, eq=False)
class Placed:
    """labels, confidence: int16 (columns,), codes; rest: float32 (columns, rows), what is left of them."""

    labels: np.ndarray
    confidence: np.ndarray
    rest: np.ndarray


@dataclass(frozen=True, eq=False)
class Swept(Placed):
    """The same of many columns, where `rest` is that of a sample of them; columns: float32, these; distortion: of these."""

    columns: np.ndarray
    distortion: np.ndarray


def place(columns: np.ndarray, centres: np.ndarray, distortion: np.ndarray, grain: int = 1, common: int = 1) -> Placed:
    """The best centre of every column, float32 (n, m), at the distortion of each, float64 (n,); centres: float32 (1 + number, m), zeros first; grain: steps
    between confidences; common: the code of them all, 1 to choose."""
    n = len(columns)
    found = Placed(np.empty(n, np.int16), np.empty(n, np.int16), empty(columns.shape, np.float32))
    follow_centres(columns, centres, distortion, CERTAIN, grain, common, found.labels, found.confidence, found.rest)
    return found


def sweep(
    columns: np.ndarray, by: np.ndarray, centres: np.ndarray, distortion: np.ndarray, grain: int = 1, common: int = 1, sums: tuple = NO_SUMS
) -> Swept:
    """`place` for columns, float32 (n, m), in either order, each entry of which is taken `by` times, float32 (m,); sums: float32 (numbers, m) and
    (numbers,), to which the columns are added as of `add_rows`."""
    n, m = columns.shape
    every = n // SAMPLED + 1
    sampled = distortion[::every]
    found = Swept(np.empty(n, np.int16), np.empty(n, np.int16), *(empty((len(sampled), m), np.float32) for _ in range(2)), sampled)
    sweep_centres(
        columns, by, centres, distortion, CERTAIN, grain, common, found.labels, found.confidence, *sums, every, found.columns, found.rest
    )  # fmt: skip
    return found


def find_centres(columns: np.ndarray, labels: np.ndarray, distortion: np.ndarray, rounds: int = 2) -> np.ndarray:
    """Centres, float32 (1 + number, m), for columns with these labels, int16 (n,), 1 or more; those that no column takes are left out."""
    centres = np.zeros((labels.max() + 1, columns.shape[1]), np.float32)
    trust = np.ones(len(columns), np.float32)
    for _ in range(rounds):
        mean_rows(columns, labels, trust, centres)
        found = place(columns, centres, distortion)
        used = np.unique(found.labels)
        labels = np.searchsorted(used, found.labels).astype(np.int16) + np.int16(used[0] > 0)
        trust = trust_of(found.confidence)
        centres = np.zeros((labels.max() + 1, columns.shape[1]), np.float32)
    mean_rows(columns, labels, trust, centres)
    return centres


def choose_finer(columns: int, centres: int, left: float, distortion: float) -> int:
    """Octaves by which steps of centres are below those of the columns; left: variance of the residuals."""
    wanted = 0.5 * log2(max(1e-9, columns / max(1, centres) * distortion / max(left, 1e-60)))
    return min(MAX_FINER, max(0, round(wanted)))


def choose_grain(found: Placed, centres: np.ndarray) -> int:
    """Steps between confidences that are worth their bits: confidences that are wrong by a variance g^2 / 12 add as much of the power of a centre to what is
    left of its column, so that m weights of variance v take `m p g^2 / (24 v ln 2)` bits more, least with `-log2(g)` at g^2 = 12 v / (m p)."""
    power = float(np.square(centres, dtype=np.float64).mean(1)[found.labels].mean())
    wanted = CERTAIN * sqrt(12 * mean_square(found.rest) / max(centres.shape[1] * power, 1e-60))
    return min(MOST_GRAIN, 1 << max(0, round(log2(max(wanted, 1.0)))))


def centre_bits(centres: np.ndarray, finer: int, distortion: float) -> float:
    """About what they take."""
    power = np.square(centres[1:], dtype=np.float64).mean(0) + 1e-60
    return model_bits(np.full(len(centres) - 1, 4.0**finer / distortion), power) + BESIDE


@dataclass(frozen=True, eq=False)
class QuantizedCentres:
    """codes: with the centres as a decoder has them; levels: int32, in scan order; finer: as in the record."""

    codes: CentreCodes
    levels: np.ndarray
    finer: int

    def write(self, scales: Scales, bits: np.ndarray, tables: tuple, states: int) -> tuple[Centres, bytes]:
        """What a record says of them, and their stream; scales, bits, tables: of the tensor."""
        number, rows = len(self.codes.centres) - 1, centre_codes(scales.rows, scales.base, scales.of_rows).astype(np.int64)
        used = range(max(-MOST, 1 - int(rows.max())), min(MOST, CLASSES - int(rows.min())) + 1)

        def classes(code: int) -> np.ndarray:
            return np.tile(np.clip(rows + code, 1, CLASSES).astype(np.uint8), number)

        def price(code: int) -> float:
            return float((count(self.levels, classes(code), states, scales.shift) * bits).sum())

        code = min(used, key=price) if len(used) else 0
        words = np.empty(3 * len(self.levels) + 4, np.uint32)
        length, _ = encode_tile(self.levels, classes(code), tables, make_trellis(states).next_state, scales.shift, words)
        stream = pack_words(words[:length])
        return Centres(number, self.finer, code, len(stream)), stream


def quantize_centres(
    codes: CentreCodes, plane: np.ndarray, row_steps: np.ndarray, column_steps: np.ndarray, search: Search, cost: Callable
) -> tuple[QuantizedCentres | None, float]:
    """Centres for the columns of a plane, float32 (rows, columns), whose steps are known, from labels that were found without; and the bits that they are reckoned to save.
    None if the steps are too fine for them.

    cost: of columns and distortions, bits without any."""
    trellis = make_trellis(search.states)
    distortion = trellis.spacing**2 / 12 * column_steps.astype(np.float64) ** 2
    by = 1 / row_steps
    centres, weight = np.zeros_like(codes.centres), np.zeros(len(codes.centres), np.float32)
    found = sweep(plane.T, by, codes.centres / row_steps, distortion, sums=(centres, weight))
    centres /= np.where(weight > 0, weight, 1)[:, None]
    number, rows, grain = len(centres) - 1, len(row_steps), choose_grain(found, centres)
    typical = float(np.exp(np.log(distortion).mean()))
    finer = choose_finer(len(distortion), number, mean_square(found.rest), typical)
    room = LARGEST / max(1.0, float(np.abs(centres).max()))
    if room < 1:
        return None, 0.0
    finer = min(finer, int(log2(room)))
    levels = _find_levels(centres[1:] * np.float32(2.0**finer), search)
    values = np.empty(len(levels), np.float32)
    replay_levels(levels, trellis.next_state, search.labelling, values)
    real = np.zeros_like(centres)
    real[1:] = values.reshape(number, rows) * centre_steps(row_steps, finer)
    near = real / row_steps
    common = int(np.median(found.confidence)) if grain == MOST_GRAIN else 1
    found = sweep(plane.T, by, near, distortion, grain, common)
    side = code_bits(found.labels) + code_bits(found.confidence) + centre_bits(near, finer, typical)
    saved = (cost(found.columns, found.distortion) - cost(found.rest, found.distortion)) * len(distortion) / len(found.rest) - side
    return QuantizedCentres(CentreCodes(found.labels, found.confidence, real), levels, finer), saved


def _find_levels(x: np.ndarray, search: Search) -> np.ndarray:
    """Levels of centres, float32 (number, rows) in their steps: int32, in scan order."""
    power = np.sqrt(np.square(x, dtype=np.float64).mean(0))
    index = CENTRE + 4 * np.log2(np.maximum(power, 1e-9) / make_trellis(search.states).spacing)
    shift = max(0, int(np.ceil((np.median(index) - 26) / 4)))
    classes = np.tile(np.clip(np.round(index - 4 * shift), 1, CLASSES).astype(np.uint8), len(x))
    fine = Search(search.states, search.labelling, LAGRANGIAN, 1)
    return find_levels(Gathered(x.reshape(-1), classes, np.empty(0, np.uint32)), level_bits(ModelBank(), START_SHAPE), shift, fine)
