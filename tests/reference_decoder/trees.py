"""Section 8 of the page, trees: the scale codes of parts of a plane."""
from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from .entropy import Coder
from .notation import Bytes, must
from .tables import Table, level_weights, normalise


@dataclass
class Tree:
    near: bool
    shape: int
    spread: int
    rates: bytes                                                       # of the 18 flags, in 1/256
    length: int


def read_tree(lanes: dict[str, Bytes]) -> Tree:
    head, spread = lanes["tools"].byte(), lanes["tools"].byte()
    must(head < 16 and spread < 24, "the table of a tree out of range")
    return Tree(head >= 8, head % 8, spread, lanes["tools"].take(18), lanes["lengths"].varint(1 << 43))


@cache
def code_table(shape: int, spread: int) -> Table:
    return Table(-128, normalise(level_weights(shape, spread + 8, 0, -128, 128)))


def rounded_log(size: int) -> int:
    return (size - 1).bit_length()


class Walk:
    """codes: of the cells of the plane, None for those that are skipped; sizes: of the node of each, as the sum of the logarithms."""

    def __init__(self, tree: Tree, data: bytes, rows: int, columns: int) -> None:
        self.tree, self.coder = tree, Coder(data)
        self.codes = [[None] * -(-columns // 8) for _ in range(-(-rows // 8))]
        self.sizes = [[0] * -(-columns // 8) for _ in range(-(-rows // 8))]

    def flag(self, context: int) -> bool:
        rate = self.tree.rates[context]
        return rate > 0 and self.coder.symbol(Table(0, [(256 - rate) << 16, rate << 16])) == 1

    def node(self, top: int, bottom: int, left: int, right: int) -> None:
        a, b = rounded_log(bottom - top), rounded_log(right - left)
        beside = [(top, left - 1)] * (left > 0) + [(top - 1, left)] * (top > 0)
        kind = self.cut(a, b, sum(self.sizes[i][j] < a + b for i, j in beside))
        if kind == "leaf":
            self.leaf(range(top, bottom), range(left, right), a + b, [self.codes[i][j] for i, j in beside])
            return
        edges = [top, top + (1 << a >> 1), bottom] if kind != "vertical" else [top, bottom]
        others = [left, left + (1 << b >> 1), right] if kind != "horizontal" else [left, right]
        for rows in zip(edges, edges[1:]):
            for columns in zip(others, others[1:]):
                self.node(*rows, *columns)

    def cut(self, a: int, b: int, smaller: int) -> str:
        if a == b == 0 or not self.flag(3 * min(max(a, b) - 1, 3) + smaller):
            return "leaf"
        if a == b:
            if not self.flag(12):
                return "both"
            return "vertical" if self.flag(13) else "horizontal"
        shorter = min(a, b) > 0 and self.flag(14)
        return "horizontal" if (a > b) != shorter else "vertical"

    def leaf(self, rows: range, columns: range, size: int, beside: list[int | None]) -> None:
        known, code = [c for c in beside if c is not None], None
        if not self.flag(15 + len(beside) - len(known)):
            code = self.coder.symbol(code_table(self.tree.shape, self.tree.spread)) - 128
            if self.tree.near and known:
                code += sum(known) // len(known)
            must(-63 <= code <= 64, "a code of a tree out of range")
        for i in rows:
            for j in columns:
                self.codes[i][j], self.sizes[i][j] = code, size


def tree_codes(data: bytes, tree: Tree, rows: int, columns: int, height: int, width: int) -> list[list[int | None]]:
    """Codes of the cells; height, width: of a CTU."""
    must((height == rows or height % 8 == 0) and (width == columns or width % 8 == 0), "a CTU that starts inside a cell")
    walk = Walk(tree, data, rows, columns)
    for top in range(0, rows, height):
        for left in range(0, columns, width):
            walk.node(top // 8, -(-min(top + height, rows) // 8), left // 8, -(-min(left + width, columns) // 8))
    walk.coder.end()
    return walk.codes
