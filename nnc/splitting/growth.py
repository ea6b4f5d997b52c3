"""The best tree of every CTU, from the cells upwards, many CTUs of one shape at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..entropy.trees import SPREADS, TreeModel, Trees, code_lengths, encode_trees, make_trees, predict_codes
from ..kernels.splitting import list_nodes
from ..partition.tree import FLAGS, SKIP, cell_tiles
from ..rdo import choose_model, first_model
from .task import FAR, HEAD, Task

TURNS = 3
HOPELESS = 1.01  # later turns save less than that
BATCH = 16  # CTUs at a time
NONE, BOTH, HORIZONTAL, VERTICAL = range(4)


@dataclass(frozen=True, eq=False)
class Prices:
    """What trees cost.  flags: float64 (FLAGS, 2) bits; near: whether codes are differences; codes: bits of the differences -128..128."""

    flags: np.ndarray
    near: bool
    codes: np.ndarray

    @classmethod
    def of(cls, model: TreeModel) -> Prices:
        p = np.maximum(np.frombuffer(model.rates, np.uint8), 1) / 256  # a flag that was not used yet may still be
        flags = -np.log2(np.stack([1 - p, p], 1))
        return cls(flags, model.near, code_lengths()[model.shape * SPREADS + model.spread])

    @classmethod
    def even(cls, codes: int) -> Prices:
        """Before anything is known."""
        flags = np.ones((FLAGS, 2))
        flags[15:] = 0.1, 4.0
        return cls(flags, False, np.full(257, np.log2(codes)))


def grow(task: Task, window: tuple[int, int], most: float = np.inf) -> tuple[Trees, int, float]:
    """The best trees found, the model that goes with them, and their bits: of the levels, of the bytes of the trees, and what skipping loses; most:
    bits that they must come close to soon."""
    prices, model, trees = Prices.even(window[1]), first_model(task.bank), None
    tiles = cell_tiles(task.grid)
    loss = np.float32(1 / max(task.search.lagrangian, 1e-9))
    for turn in range(TURNS):
        if turn < 2:  # the tables hardly change after that
            costs, energy = task.price(window, model)
            skip = np.minimum(energy, FAR / loss) * loss
        found: list = [None] * len(tiles)
        for numbers in _batches(tiles):
            parts = [(slice(top, bottom), slice(left, right)) for top, bottom, left, right in tiles[numbers]]
            cut = _Cut(np.stack([costs[p] for p in parts]), np.stack([skip[p] for p in parts]), window[0], prices, task.depth)
            cut.search(tiles[numbers][:, [0, 2]], trees.field if trees else None)
            for place, number in enumerate(numbers):
                found[number] = cut.list_nodes(place)
        trees = make_trees(np.concatenate([f[0] for f in found]), np.concatenate([f[1] for f in found]), task.grid)
        coded, data = encode_trees(trees, task.grid)
        prices = Prices.of(coded)
        counts = task.count(trees.field)
        model, _, bits = choose_model(counts, task.bank, (0,))
        lost = float(skip[trees.field == SKIP].sum(dtype=np.float64))
        bits += task.scales.shift * int(counts.sum()) + 8 * len(data) + HEAD + lost
        if bits > HOPELESS * most:
            break
    return trees, model, bits


def _batches(tiles: np.ndarray) -> list[list[int]]:
    """Numbers of CTUs of one shape, at most BATCH together."""
    by_shape: dict[tuple[int, int], list[int]] = {}
    for number, (top, bottom, left, right) in enumerate(tiles):
        by_shape.setdefault((bottom - top, right - left), []).append(number)
    return [numbers[i : i + BATCH] for numbers in by_shape.values() for i in range(0, len(numbers), BATCH)]


class _Cut:
    """Search of some CTUs of one shape.  Nodes of 2^a x 2^b cells are a grid (a, b) of their own; where the last ones have but half of
    that they are those of the next smaller grid."""

    def __init__(self, costs: np.ndarray, skip: np.ndarray, first: int, prices: Prices, depth: int | None = None):
        """costs: float32 (CTUs, cells down, cells across, codes from `first` on); skip: float32 (CTUs, cells down, cells across); depth: as of `Task`."""
        self.costs, self.skip, self.first, self.prices, self.depth = costs, skip, first, prices, depth
        self.high, self.wide = costs.shape[1:3]
        self.tall, self.broad = (self.high - 1).bit_length(), (self.wide - 1).bit_length()
        sides = (
            [-(-self.high // (1 << a)) for a in range(self.tall + 1)],
            [-(-self.wide // (1 << b)) for b in range(self.broad + 1)],
        )
        self.sides = sides
        areas = np.outer(*sides)
        self.starts = (np.cumsum(areas) - areas.reshape(-1)).reshape(areas.shape)
        self.widths = np.tile(sides[1], (len(sides[0]), 1))
        self.kinds = np.zeros((len(costs), int(areas.sum())), np.uint8)
        self.codes = np.zeros(self.kinds.shape, np.int16)

    def search(self, corners: np.ndarray, before: np.ndarray | None) -> None:
        """corners: int64 (CTUs, 2), first cells; before: codes of all cells of the plane as they were found before, to predict from."""
        best: dict[tuple[int, int], np.ndarray] = {}
        along, of_skip = self.costs, self.skip
        for a in range(self.tall + 1):
            if a:
                along, of_skip = _halve(along, 1), _halve(of_skip, 1)
            sums, skips = along, of_skip
            for b in range(self.broad + 1):
                if b:
                    sums, skips = _halve(sums, 2), _halve(skips, 2)
                guess = self._guess(a, b, corners, before)
                best[a, b] = self._choose(a, b, sums, skips, guess, best)

    def _guess(self, a: int, b: int, corners: np.ndarray, before: np.ndarray | None) -> np.ndarray | None:
        if before is None or not self.prices.near:
            return None
        rows = corners[:, 0, None] + (np.arange(self.sides[0][a]) << a)
        columns = corners[:, 1, None] + (np.arange(self.sides[1][b]) << b)
        shape = len(corners), rows.shape[1], columns.shape[1]
        return predict_codes(before, np.broadcast_to(rows[:, :, None], shape), np.broadcast_to(columns[:, None, :], shape))

    def _choose(
        self,
        a: int,
        b: int,
        sums: np.ndarray,
        skips: np.ndarray,
        guess: np.ndarray | None,
        best: dict[tuple[int, int], np.ndarray],
    ) -> np.ndarray:
        """Bits of the nodes of a grid at their best: float32 (CTUs, nodes down, nodes across)."""
        number = sums.shape[3]
        flags = self.prices.flags.astype(np.float32)
        of_codes = np.arange(self.first, self.first + number) + 128
        if guess is None:
            priced = sums + self.prices.codes[of_codes].astype(np.float32)
        else:
            table = self.prices.codes[np.clip(of_codes[None] - np.arange(self.first, self.first + number)[:, None], 0, 256)]
            priced = sums + table.astype(np.float32)[np.clip(guess - self.first, 0, number - 1)]
        chosen = priced.argmin(3)
        cost = np.take_along_axis(priced, chosen[..., None], 3)[..., 0] + flags[15:, 0].mean()
        skips = skips + flags[15:, 1].mean()
        skipped = skips < cost
        cost = np.minimum(cost, skips)
        codes = np.where(skipped, SKIP, chosen + self.first).astype(np.int16)
        kinds = np.zeros(cost.shape, np.uint8)
        if a or b:
            context = 3 * min(max(a, b) - 1, 3)
            split = flags[context : context + 3].mean(0)
            cuts = self._cuts(a, b, flags)
            if self.depth is not None:  # no choice
                cost, cuts = (np.full_like(cost, np.inf), cuts[:1]) if max(a, b) > self.depth else (cost, [])
            cost = cost + split[0]
            for kind, price in cuts:
                other = best[a - (kind != VERTICAL), b - (kind != HORIZONTAL)]
                other = _halve(other, 1) if kind != VERTICAL else other
                other = (_halve(other, 2) if kind != HORIZONTAL else other) + (price + split[1])
                kinds[other < cost] = kind
                cost = np.minimum(cost, other)
        for axis, side, level, smaller in ((1, self.high, a, (a - 1, b)), (2, self.wide, b, (a, b - 1))):
            last = cost.shape[axis] - 1
            if level and side - (last << level) <= 1 << (level - 1):  # has no second half: the node of the smaller grid
                cost[(slice(None),) * axis + (last,)] = best[smaller][(slice(None),) * axis + (2 * last,)]
        place = slice(self.starts[a, b], self.starts[a, b] + kinds[0].size)
        self.kinds[:, place], self.codes[:, place] = kinds.reshape(len(kinds), -1), codes.reshape(len(kinds), -1)
        return cost

    @staticmethod
    def _cuts(a: int, b: int, flags: np.ndarray) -> list[tuple[int, np.float32]]:
        """Ways to cut a node, the most even one first, and the bits of their flags but the one that says that it is cut."""
        if a == b:
            once = flags[12, 1]
            return [(BOTH, flags[12, 0]), (HORIZONTAL, once + flags[13, 0]), (VERTICAL, once + flags[13, 1])]
        if min(a, b) == 0:
            return [(HORIZONTAL if a else VERTICAL, np.float32(0))]
        longer, shorter = (HORIZONTAL, VERTICAL) if a > b else (VERTICAL, HORIZONTAL)
        return [(longer, flags[14, 0]), (shorter, flags[14, 1])]

    def list_nodes(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Splits and codes of one of the CTUs, as of `Trees`."""
        cells = self.high * self.wide
        splits, leaves = np.empty(2 * cells, np.uint8), np.empty(cells, np.int16)
        counted = list_nodes(
            self.high, self.wide, self.kinds[number], self.codes[number], self.starts, self.widths, splits, leaves
        )
        return splits[: counted[0]], leaves[: counted[1]]


def _halve(array: np.ndarray, axis: int) -> np.ndarray:
    """Sums of neighbours along an axis; an odd one at the end stays."""
    every = [slice(None)] * array.ndim
    every[axis] = slice(0, None, 2)
    out = array[tuple(every)].copy()
    every[axis] = slice(1, None, 2)
    second = array[tuple(every)]
    every[axis] = slice(0, second.shape[axis])
    out[tuple(every)] += second
    return out
