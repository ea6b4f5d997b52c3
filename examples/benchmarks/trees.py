"""Trees below the CTU: what they save on weights whose scale changes from block to block, and what they cost otherwise.

    python examples/benchmarks/trees.py --out results --check

`blocks`: 512 x 512 Gaussian weights in blocks of 16, 32 and 64 with log-uniform scales 0.01 to 1 (METHODS S14 (c) 2), levels rounded at the
step 0.06.  The oracle knows the scale of every weight and spends the ideal bits of the same levels.  Bytes are those of the unit and of
the fields of the tree; "fixed" is the same code with all CUs of one size, "global" one scale for all, with the best tables (parametric, or
made for it).  The tree is to be 1 % below every size but 16, the smallest of the blocks: that one is within 1 % of the oracle itself.
`plain`: Gaussian weights of one scale, of one scale per row and column, and of heavy tails: no tree.
`speed`: decoding with one thread, with a tree and without, and the reading of a tree of 8 x 8 CUs alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import torch
from tables import Bound, Column, Table, finish, make_parser, note

from nnc.coder import chain_digests, checksum
from nnc.decoder import decode_unit
from nnc.directory import Unit
from nnc.encoded import EncodedTensor
from nnc.encoder import encode_coded
from nnc.entropy.explicit import TABLES, ModelBank
from nnc.entropy.scales import OFF
from nnc.entropy.trees import decode_trees
from nnc.partition.grid import Grid
from nnc.powers import measure_powers
from nnc.rdo import START_SHAPE, WIDTH, Scales, Search, fit_explicit_set
from nnc.splitting import Task, choose_trees
from nnc.splitting.growth import grow
from nnc.splitting.task import HEAD, find_window, lower_shift

STEP = 0.06
Choice = Callable[[Task], tuple[Scales, int | None]]
ROUNDED = Search(1, 0, 1e-9, 1, trees=True)
SEARCHED = Search(8, 0, 0.38, 1, trees=True)
SIZES = {8: 0, 16: 1, 32: 2, 64: 3}  # of all CUs, and log2 of that in cells


def make_blocks(size: int = 512, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Weights, float32, and the scale of each, float64: the source of the prototype."""
    rng = np.random.default_rng(seed)
    scales = np.ones((size, size))

    def paint(top: int, left: int, side: int, depth: int) -> None:
        if side > 16 and (depth < 2 or rng.random() < 0.45):
            half = side // 2
            for i in (0, half):
                for j in (0, half):
                    paint(top + i, left + j, half, depth + 1)
        else:
            scales[top : top + side, left : left + side] = 10 ** rng.uniform(-2, 0)

    for i in range(0, size, 128):
        for j in range(0, size, 128):
            paint(i, j, 128, 0)
    return (scales * rng.standard_normal((size, size))).astype(np.float32), scales


def oracle_bits(weights: np.ndarray, scales: np.ndarray, step: float) -> float:
    """Ideal bits of the rounded levels of all weights."""
    levels = torch.from_numpy(np.abs(np.rint(weights / np.float32(step))).astype(np.float64))
    ratio = torch.from_numpy(step / scales)
    upper, lower = torch.special.ndtr((0.5 - levels) * ratio), torch.special.ndtr((-0.5 - levels) * ratio)
    return float(-(upper - lower).clamp(min=1e-300).log2().sum())


def level_entropy(weights: np.ndarray, step: float) -> float:
    """Bits of all levels at their entropy without context."""
    counts = np.unique(np.rint(weights / np.float32(step)), return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum())


def flat(task: Task) -> tuple[Scales, int | None]:
    """No codes of rows and columns."""
    rows, columns = (np.where(codes == OFF, OFF, 0).astype(np.int16) for codes in (task.scales.rows, task.scales.columns))
    return replace(lower_shift(task), rows=rows, columns=columns), None


def without_tree(task: Task) -> tuple[Scales, int | None]:
    return task.scales, None


def fixed(side: int) -> Choice:
    """All CUs of one size."""

    def choose(task: Task) -> tuple[Scales, int | None]:
        found = replace(task, scales=flat(task)[0], depth=SIZES[side])
        trees, model, _ = grow(found, find_window(found))
        return replace(found.scales, trees=trees), model

    return choose


def encode(
    weights: np.ndarray, step: float, search: Search, choose: Choice = choose_trees, bank: ModelBank = ModelBank()
) -> EncodedTensor:
    with patch("nnc.encoder.choose_trees", choose):
        return encode_coded("w", torch.from_numpy(weights), measure_powers(weights), step, search, bank)


def spent(encoded: EncodedTensor) -> int:
    """Bytes in the unit, and of the fields of a tree in the directory."""
    return len(encoded.data) + (HEAD // 8 if encoded.record.coding.tools.tree else 0)


def made_tables(weights: np.ndarray, step: float) -> ModelBank:
    """The tables that fit the levels of one scale best."""
    kept: list[Task] = []

    def keep(task: Task) -> tuple[Scales, int | None]:
        kept.append(replace(task, scales=flat(task)[0]))
        return kept[0].scales, None

    encode(weights, step, ROUNDED, keep)
    counts = kept[0].count(np.zeros((1 + weights.shape[0] // 8, 1 + weights.shape[1] // 8), np.int16))
    assert counts.shape == (TABLES, WIDTH)
    return ModelBank((fit_explicit_set(counts, START_SHAPE),))


def decode(encoded: EncodedTensor, bank: ModelBank = ModelBank()) -> torch.Tensor:
    unit = Unit(1, True, checksum(encoded.data), chain_digests(encoded.digests))
    return decode_unit(unit, (encoded.record,), encoded.data, bank)()[0]


def measure_blocks() -> tuple[Table, list[Bound]]:
    weights, scales = make_blocks()
    oracle = oracle_bits(weights, scales, STEP)
    note("blocks 512 x 512")
    coded = {"tree": spent(encode(weights, STEP, ROUNDED))}
    coded |= {f"fixed {side} x {side}": spent(encode(weights, STEP, ROUNDED, fixed(side))) for side in SIZES}
    made = made_tables(weights, STEP)
    coded["global"] = spent(encode(weights, STEP, ROUNDED, flat))
    coded["global, tables made for it"] = spent(encode(weights, STEP, ROUNDED, flat, made))
    rows = [("oracle", oracle / weights.size, 1.0), ("entropy of the levels", level_entropy(weights, STEP) / weights.size, None)]
    rows[1] = (*rows[1][:2], level_entropy(weights, STEP) / oracle)
    rows += [(name, 8 * size / weights.size, 8 * size / oracle) for name, size in coded.items()]
    one = min(size for name, size in coded.items() if name.startswith("global"))
    tree = coded["tree"]
    bounds = [Bound("tree over the oracle", 8 * tree / oracle, 1.01), Bound("tree over one class", tree / one, 0.82)]
    for side in SIZES:
        bounds.append(
            Bound(f"tree over CUs of {side} x {side}", tree / coded[f"fixed {side} x {side}"], 1.0 if side == 16 else 0.99)
        )
    return Table("blocks", (Column("coder"), Column("bits/weight", ".4f"), Column("to the oracle", ".4f")), tuple(rows)), bounds


def plain_sources(size: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    normal = rng.standard_normal((size, size))
    spread = np.exp(0.7 * rng.standard_normal((size, 1))) * np.exp(0.7 * rng.standard_normal(size))
    return {
        "one scale": normal.astype(np.float32),
        "rows and columns": (normal * spread).astype(np.float32),
        "heavy tails": rng.standard_t(3, (size, size)).astype(np.float32),
    }


def measure_plain(size: int) -> tuple[Table, list[Bound]]:
    rows, bounds = [], []
    for name, weights in plain_sources(size).items():
        for search in (ROUNDED, SEARCHED):
            note(f"plain: {name}, {search.states} states")
            step = 0.3 * float(weights.std())
            got, without = encode(weights, step, search), encode(weights, step, search, without_tree)
            rows.append(
                (
                    name,
                    search.states,
                    8 * spent(without) / weights.size,
                    got.record.coding.tools.tree is not None,
                    spent(got) / spent(without),
                )
            )
            bounds.append(Bound(f"bytes with a tree allowed, {name}, {search.states} states", spent(got) / spent(without), 1.001))
    columns = (
        Column("weights"),
        Column("states", "d"),
        Column("bits/weight", ".4f"),
        Column("tree", ""),
        Column("bytes to those without", ".5f"),
    )
    return Table("plain", columns, tuple(rows)), bounds


def fastest(work: Callable[[], object], rounds: int = 5) -> float:
    """Seconds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def measure_speed(size: int) -> tuple[Table, list[Bound]]:
    block = make_blocks()[0]
    weights = np.tile(block, (-(-size // 512), -(-size // 512)))[:size, :size].copy()
    rows, bounds = [], []
    for states, step in ((1, 0.06), (8, 0.06), (8, 0.2)):
        note(f"speed {size} x {size}, {states} states, step {step}")
        search = Search(states, 0, 0.1 if states == 1 else 0.38, 1, trees=True)
        times = []
        for choose in (lambda task: (lower_shift(task), None), choose_trees, fixed(8)):
            encoded = encode(weights, step, search, choose)
            times.append(fastest(lambda: decode(encoded)))
        coding = encoded.record.coding
        tree = coding.tools.tree
        alone = fastest(
            lambda: decode_trees(encoded.data[: tree.length], tree.model, Grid(size, size, coding.height, coding.width))
        )
        rows.append((states, step, *(1e9 * t / weights.size for t in (*times, alone)), times[1] / times[0], times[2] / times[0]))
        for name, t in (("with the best tree", times[1]), ("with CUs of 8 x 8", times[2])):
            bounds.append(Bound(f"time {name} to that without, {states} states, step {step:g}", t / times[0], 1.5))
    names = "plain", "tree", "CUs of 8 x 8", "reading those alone"
    columns = (
        Column("states", "d"),
        Column("step", "g"),
        *(Column(f"{name}, ns/weight", ".2f") for name in names),
        Column("ratio", ".2f"),
        Column("ratio of 8 x 8", ".2f"),
    )
    return Table("speed", columns, tuple(rows)), bounds


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser("trees below the CTU: bytes and speed")
    parser.add_argument("--size", type=int, default=2048, help="rows and columns of the planes of `plain` and `speed`")
    parser.add_argument(
        "--part", action="append", choices=("blocks", "plain", "speed"), help="only this part; may be given several times"
    )
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    parts = {"blocks": measure_blocks, "plain": lambda: measure_plain(asked.size), "speed": lambda: measure_speed(asked.size)}
    found = [parts[name]() for name in asked.part or parts]
    return finish([table for table, _ in found], [bound for _, more in found for bound in more], asked.out, asked.check)


if __name__ == "__main__":
    sys.exit(main())
