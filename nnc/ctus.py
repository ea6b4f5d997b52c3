"""CTUs of a plane whose levels are known: to streams, or onto a coder that tensors share, and back to values as a decoder has them.  Encoder only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from .buffers import empty
from .coder import pack_words
from .entropy.parametric import CLASSES
from .kernels.groups import encode_tiles
from .kernels.words import push_tile
from .pool import split_work
from .prediction.memory import CentreCodes, MemoryCodes
from .rdo import Scales, codes_of

GROUP = 1 << 18  # weights of CTUs that a thread is given at once, at least
Tile = tuple[int, int, int, int]


def group_tiles(tiles: list[Tile], pool: Executor | None) -> list[list[Tile]]:
    """CTUs that one thread sees to at once: all, or with several threads some at a time."""
    top, bottom, left, right = tiles[0]
    return split_work(tiles, GROUP // ((bottom - top) * (right - left)), pool) if pool else [tiles]


@dataclass(frozen=True, eq=False)
class CtuCoder:
    """What the CTUs of a plane have in common.  tables: of the model; machine: int64 (states, 2), next states; row_steps, column_steps: float32; memory: what
    foretells columns."""

    scales: Scales
    tables: tuple[np.ndarray, ...]
    machine: np.ndarray
    labelling: int
    row_steps: np.ndarray
    column_steps: np.ndarray
    memory: MemoryCodes | CentreCodes | None

    def encode(
        self, groups: Sequence[list[Tile]], levels: Sequence[np.ndarray], together: Sequence[np.ndarray | None], values: np.ndarray, run: Callable
    ) -> tuple[list[bytes], tuple[int, ...]]:
        """Streams and digests of all CTUs; their values are written to `values`, float32 (rows, columns).

        levels: int32, of every CTU; together: those of each group where they lie one after the other, else None; run: as `map`, over groups."""
        first = np.cumsum([0, *map(len, groups)]).tolist()
        own = [levels[begin:end] for begin, end in zip(first, first[1:])]
        found = list(run(lambda group, parts, flat: self._encode(group, parts, flat, values), groups, own, together))
        return [stream for streams, _ in found for stream in streams], tuple(digest for _, digests in found for digest in digests)

    def _encode(self, group: list[Tile], levels: Sequence[np.ndarray], together: np.ndarray | None, values: np.ndarray) -> tuple[list[bytes], list[int]]:
        scales, places = self.scales, np.array(group, np.int64)
        flat, ends = np.concatenate(levels) if together is None else together, np.cumsum([len(found) for found in levels])
        largest = int(((places[:, 1] - places[:, 0]) * (places[:, 3] - places[:, 2])).max())
        bounds, digests = np.empty(len(group), np.int64), np.empty(len(group), np.uint64)
        codes = scales.kernel_rows, scales.kernel_columns, *scales.cells, CLASSES
        how = self.tables, self.machine, scales.shift, self.labelling, self.row_steps, self.column_steps
        scratch = empty(largest, np.uint8), empty(3 * largest + 4, np.uint32)
        for room in (len(flat) // 2, 3 * len(flat)):  # half a word per weight is more than most need
            words = empty(room + 4 * len(group), np.uint32)
            if encode_tiles(flat, ends, places, *codes, *how, *scratch, words, bounds, digests, values):
                break
        if self.memory:
            self.memory.add(values, group)  # in place, as the order of memory is that of the columns
        return [pack_words(part) for part in np.split(words[: bounds[-1]], bounds[:-1])], [int(digest) for digest in digests]

    def pushes(self, levels: Sequence[np.ndarray], tiles: Sequence[Tile]) -> tuple[Callable, ...]:
        """For every CTU a function that pushes its levels onto a coder, as of `encoded.Joint`."""

        def push(found: np.ndarray, tile: Tile) -> Callable:
            how = self.tables, self.machine, self.scales.shift
            return lambda words, x, number: push_tile(found, codes_of(tile, self.scales), *how, words, np.uint64(x), number)[:2]

        return tuple(push(found, tile) for found, tile in zip(levels, tiles))
