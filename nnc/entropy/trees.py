"""Bytes of the trees of a plane: flags with coded probabilities and codes with a parametric table, all CTUs in one ANS stream."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..coder import pack_words, unpack_words
from ..errors import Corruption
from ..kernels.trees import push_decisions, walk_trees
from ..partition.grid import Grid
from ..partition.tree import FLAGS, LEAST, MOST, SKIP, cell_shape, cell_tiles
from .parametric import SHAPES, level_weights, normalise

SPREADS = 24
_LEAF = FLAGS
_NO_WORDS = np.empty(0, np.uint32)
_NO_TRACE = np.empty((0, 2), np.int32)


@dataclass(frozen=True)
class TreeModel:
    """near: whether codes are differences to those of the neighbours; shape, spread: of their table; rates: FLAGS bytes, probability of
    each flag in 1/256, 0 where it is never set."""

    near: bool
    shape: int
    spread: int
    rates: bytes


@dataclass(frozen=True, eq=False)
class Trees:
    """Trees of all CTUs.  splits: uint8 of the nodes and codes: int16 of the leaves, in the order of the walk; field: int16 codes of all
    cells."""

    splits: np.ndarray
    codes: np.ndarray
    field: np.ndarray


@lru_cache(maxsize=None)
def _cumulative(shape: int, spread: int) -> np.ndarray:
    """uint32 (258,): table of the numbers -128..128."""
    counts = normalise(level_weights(shape, spread + 8, 0, -128, 128))
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.uint32)


def decode_trees(data: bytes, model: TreeModel, grid: Grid) -> np.ndarray:
    """Codes of all cells of a plane, int16; Corruption if the stream does not hold them."""
    return _read(data, model, grid, np.empty(0, np.uint8), np.empty(0, np.int16))[0]


def read_trees(data: bytes, model: TreeModel, grid: Grid) -> Trees:
    """The same with the nodes and leaves, to be shown."""
    cells = int(np.prod(cell_shape(grid.rows, grid.columns)))
    splits, codes = np.empty(2 * cells, np.uint8), np.empty(cells, np.int16)
    field, nodes, leaves = _read(data, model, grid, splits, codes)
    return Trees(splits[:nodes], codes[:leaves], field)


def _read(data: bytes, model: TreeModel, grid: Grid, splits: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, int, int]:
    words = unpack_words(data)
    field = np.zeros(cell_shape(grid.rows, grid.columns), np.int16)
    state, left, good, _, nodes, leaves = walk_trees(
        True,
        words,
        np.frombuffer(model.rates, np.uint8),
        _cumulative(model.shape, model.spread),
        model.near,
        cell_tiles(grid),
        field,
        np.zeros(field.shape, np.uint8),
        splits,
        codes,
        _NO_TRACE,
    )
    if not good:
        raise Corruption(f"a code of a tree is outside {LEAST}..{MOST}: the file is damaged")
    if state or left:
        raise Corruption("the stream of a tree does not end where it should: the file is damaged")
    return field, nodes, leaves


def make_trees(splits: np.ndarray, codes: np.ndarray, grid: Grid) -> Trees:
    """Trees from their nodes and leaves."""
    return Trees(splits, codes, _walk(splits, codes, False, grid)[1])


def _walk(splits: np.ndarray, codes: np.ndarray, near: bool, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """What must be written, int32 (decisions, 2): context and symbol; and the codes of all cells."""
    field = np.zeros(cell_shape(grid.rows, grid.columns), np.int16)
    trace = np.empty((3 * len(splits) + 2 * len(codes), 2), np.int32)
    number = walk_trees(
        False,
        _NO_WORDS,
        np.zeros(FLAGS, np.uint8),
        _cumulative(0, 0),
        near,
        cell_tiles(grid),
        field,
        np.zeros(field.shape, np.uint8),
        splits,
        codes,
        trace,
    )[3]
    return trace[:number], field


def encode_trees(trees: Trees, grid: Grid) -> tuple[TreeModel, bytes]:
    """The shortest coding, inverse of `decode_trees`."""
    best = None
    for near in (False, True):
        trace, _ = _walk(trees.splits, trees.codes, near, grid)
        model = _fit_model(trace, near)
        words = np.empty(len(trace) + 2, np.uint32)
        rates = np.frombuffer(model.rates, np.uint8)
        data = pack_words(words[: push_decisions(trace, rates, _cumulative(model.shape, model.spread), words)])
        if best is None or len(data) < len(best[1]):
            best = model, data
    return best


def _fit_model(trace: np.ndarray, near: bool) -> TreeModel:
    ones, total = (np.bincount(trace[keep, 0], minlength=_LEAF + 1)[:_LEAF] for keep in (trace[:, 1] == 1, slice(None)))
    rates = np.where(ones > 0, np.clip(np.round(256 * ones / np.maximum(total, 1)), 1, 255), 0).astype(np.uint8)
    counts = np.bincount(trace[trace[:, 0] == _LEAF, 1], minlength=257)
    number = int(np.argmin(code_lengths() @ counts))
    return TreeModel(near, number // SPREADS, number % SPREADS, rates.tobytes())


@lru_cache(maxsize=1)
def code_lengths() -> np.ndarray:
    """Bits of the numbers -128..128 in every table: float64 (SHAPES * SPREADS, 257)."""
    tables = [_cumulative(shape, spread) for shape in range(SHAPES) for spread in range(SPREADS)]
    return 24 - np.log2(np.diff(np.stack(tables).astype(np.int64), axis=1))


def predict_codes(field: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """What the neighbours say of the code of a node whose first cell is (row, column), as the walk has it: int64."""
    padded = np.full((field.shape[0] + 1, field.shape[1] + 1), SKIP, np.int64)
    padded[1:, 1:] = field
    left, above = padded[rows + 1, columns], padded[rows, columns + 1]
    known = (left != SKIP).astype(np.int64) + (above != SKIP)
    total = np.where(left == SKIP, 0, left) + np.where(above == SKIP, 0, above)
    return np.where(known == 2, total >> 1, total)
