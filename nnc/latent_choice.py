"""Scale codes that cost least: the bits of the levels under the tables that they pick, and their own in the coder that learns.  Encoder only.

Scales are fitted to weights before the levels are known, each on its own.  Afterwards the bits of every row under other scale indices are
counted, and the codes are chosen one after the other with the coder's own probabilities: a row of few weights takes what its neighbours foretell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from .entropy.latents import ARRAYS, LatentModel, are_dependent, walk_array
from .entropy.scales import MOST, OFF
from .kernels.latents import search_latents
from .kernels.words import price_codes
from .partition.grid import Grid
from .quantize.trellis import make_trellis
from .rdo import LOW, Scales, codes_of

REACH = 6  # quarter octaves on either side of the code that was fitted ...
ROUNDS = 4  # ... or chosen before: a single large weight widens the scale of its row by octaves
WEIGHTS, SMALL = 150, 1 << 16  # of a code, at most, and of a tensor in which codes are chosen anyway: else scales are known well enough
PULLS = (0.5, 1.0, 2.0)  # bits by which a code is held back per mean step between neighbours


def choose_codes(scales: Scales, levels: Sequence[np.ndarray], grid: Grid, bits: np.ndarray, states: int, taps: tuple[int, int], run: Callable) -> Scales:
    """Scales with other codes of rows and columns, for levels that stay.

    levels: int32, of every CTU; bits: float32 (TABLES, WIDTH), of the model that they are coded with; taps: of rows and columns; run: map."""
    if scales.trees is not None or scales.shift:
        return scales
    total = sum(map(len, levels))
    for name, number in (("columns", grid.columns), ("rows", grid.rows)):
        codes = getattr(scales, name)
        live = codes != OFF
        if (name == "rows" and scales.follow) or number < 2 or total > max(SMALL, WEIGHTS * number) or not live.any():
            continue
        steps = scales.of_rows if name == "rows" else scales.of_columns
        for _ in range(ROUNDS):
            codes, costs = getattr(scales, name), _price(scales, levels, grid, bits, states, name, run)
            found = _choose(codes, costs, taps[name == "columns"], ARRAYS.id(name), steps.codes)
            scales = replace(scales, **{name: found})
            if not (np.abs(found - codes)[live] == REACH).any():
                break  # none would go further
    return scales


def _price(scales: Scales, levels: Sequence[np.ndarray], grid: Grid, bits: np.ndarray, states: int, name: str, run: Callable) -> np.ndarray:
    """Bits of the levels of every row (or column) under scale indices up to REACH from their own: float64 (number, 2 REACH + 1)."""
    number = grid.rows if name == "rows" else grid.columns

    def price(found: np.ndarray, tile: tuple[int, int, int, int]) -> np.ndarray:
        top, bottom, left, right = tile
        down = np.flatnonzero(scales.rows[top:bottom] != OFF) + top
        across = np.flatnonzero(scales.columns[left:right] != OFF) + left
        places = np.tile(down, len(across)) if name == "rows" else np.repeat(across, len(down))
        costs = np.zeros((number, 2 * REACH + 1))
        machine = make_trellis(states).next_state
        price_codes(found, codes_of(tile, scales), places.astype(np.int32), machine, scales.shift, LOW, bits, REACH, costs)
        return costs

    return sum(run(price, levels, grid.tiles()))


@lru_cache(maxsize=1)
def _lengths() -> np.ndarray:
    """Bits of a probability in 1/4096."""
    return 12 - np.log2(np.maximum(np.arange(4097), 0.5))


def _choose(codes: np.ndarray, costs: np.ndarray, taps: int, kind: int, known: np.ndarray) -> np.ndarray:
    """The codes that cost least, those of dead rows as they are."""
    wide = np.full((len(codes), 2 * MOST + 1), np.inf)
    near = codes[:, None].astype(np.int64) + np.arange(-REACH, REACH + 1)
    inside = (near > OFF) & (near <= MOST) & (codes != OFF)[:, None]
    rows = np.broadcast_to(np.arange(len(codes))[:, None], near.shape)
    wide[rows[inside], near[inside] + MOST] = costs[inside]
    wide[codes == OFF] = np.inf
    wide[codes == OFF, 0] = 0
    known = known.astype(np.int64) if known.any() else np.zeros(len(codes), np.int64)
    model = LatentModel.shipped()
    first = walk_array(model, codes, taps, kind, known)[1]
    best, least = codes, first + _sum(wide, codes)
    for _ in range(2):
        chosen, spent = walk_array(model, codes, taps, kind, known, (wide, _lengths()))
        fresh = walk_array(LatentModel.shipped(), chosen, taps, kind, known)[1] + _sum(wide, chosen)
        if fresh < least:
            best, least = chosen, fresh
    pair = _choose_dependent(wide, best, taps, kind, known) if (codes != OFF).all() else None
    if pair is not None and pair[1] < least:
        best, least = pair
    if _sum(wide, np.zeros_like(codes)) < least:
        best = np.zeros_like(codes)
    return best


def _choose_dependent(costs: np.ndarray, codes: np.ndarray, taps: int, kind: int, known: np.ndarray) -> tuple[np.ndarray, float] | None:
    """The same for two dependent quantizers, by the Viterbi search; bits of codes are guessed from their distance to those that were chosen one by
    one, so the search only sees a field of costs.  None if the codes that it finds cannot be told from others."""
    apart = np.abs(np.arange(-MOST, MOST + 1)[None] - codes[:, None]) / max(1.0, float(np.abs(np.diff(codes)).mean()))
    best = None
    for bits in PULLS:
        found = np.empty(len(codes), np.int64)
        if not np.isfinite(search_latents(costs + bits * apart, found)) or not are_dependent(found):
            continue
        chosen = found.astype(np.int16)
        total = walk_array(LatentModel.shipped(), chosen, taps, kind, known)[1] + _sum(costs, chosen)
        best = (chosen, total) if best is None or total < best[1] else best
    return best


def _sum(costs: np.ndarray, codes: np.ndarray) -> float:
    return float(costs[np.arange(len(codes)), codes.astype(np.int64) + MOST].sum())
