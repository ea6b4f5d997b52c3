"""Kernels of the encoder over several CTUs of a plane: one call for what would be seven for each, since every return to Python waits for the other threads."""

from __future__ import annotations

import numpy as np
from numba import njit

from .planes import gather_codes, gather_tile
from .viterbi import search_scalar, search_trellis
from .words import count_levels, encode_tile, rebuild_tile


@njit(cache=True, nogil=True)
def search_tiles(
    plane, tiles, row_codes, column_codes, cells, cut, classes, by_row, by_column, rate, low, shift, labelling, predecessors, next_state, warm,
    x, codes, position, levels, ends, counts,
):  # fmt: skip
    """Levels of all CTUs, one after the other: int32 (weights,); ends: int64 (CTUs,), where those of each end; counts: of `count_levels`, added to.

    tiles: int64 (CTUs, 4); x, codes, position: as of `gather_tile`, for the largest CTU; the rest as of that and of `search_trellis`."""
    at = 0
    for number in range(len(tiles)):
        top, bottom, left, right = tiles[number]
        n = gather_tile(plane, top, bottom, left, right, row_codes, column_codes, cells, cut, classes, by_row, by_column, x, codes, position)
        own, found = codes[:n], levels[at : at + n]
        if n > 0:
            if next_state.shape[0] == 1:
                search_scalar(x[:n], own, rate, low, shift, np.float32(1), found)
            else:
                search_trellis(x[:n], own, rate, low, shift, labelling, predecessors, warm, found)
            count_levels(found, own, next_state, shift, low, counts)
        at += n
        ends[number] = at


@njit(cache=True, nogil=True)
def encode_tiles(
    levels, ends, tiles, row_codes, column_codes, cells, cut, classes, tables, next_state, shift, labelling, row_steps, column_steps,
    codes, scratch, words, bounds, digests, values,
):  # fmt: skip
    """Words of all CTUs, one after the other, uint32, and their values as of `rebuild_tile`; whether there is room for all words.

    bounds: int64 (CTUs,), where the words of each end; digests: uint64 (CTUs,); codes: uint8, scratch: uint32, room for n and 3 n + 4 of the largest CTU;
    levels, ends: as of `search_tiles`."""
    at = first = 0
    for number in range(len(tiles)):
        top, bottom, left, right = tiles[number]
        n = gather_codes(top, bottom, left, right, row_codes, column_codes, cells, cut, classes, codes)
        found = levels[first : first + n]
        length, digests[number] = encode_tile(found, codes[:n], tables, next_state, shift, scratch)
        if at + length > len(words):
            return False
        words[at : at + length] = scratch[:length]
        rebuild_tile(
            found, top, bottom, left, right, row_codes, column_codes, cells, cut, next_state, labelling, row_steps, column_steps, values
        )  # fmt: skip
        at += length
        first = ends[number]
        bounds[number] = at
    return True
