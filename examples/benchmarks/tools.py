"""What the tools are worth on the networks of the private zoo: bytes at equal behaviour over those without tools, and which tool won where.

    python examples/benchmarks/tools.py --jobs 2 --check
    python examples/benchmarks/tools.py --free --case cifar10_resnet20

`default` and `all` are the sets of `nnc compress --tools`; the ratio is the log mean over the overlap of the curves (`curves.py`), so
one per cent is about what neighbouring rates scatter.  CPU seconds are of one thread, encoding with the calibration left out.  The
winners are shares of the weights of tensors with more than one long axis, over all rates, each under all tools that it uses.
"""
from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import prod
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
import torch
from calibrated import KINDS, LOWEST
from curves import Comparison, Point, compare_curves
from sources import ZOO, chosen_cases, import_zoo
from tables import Bound, Column, Table, finish, make_parser, note
from zoo_curves import read_peer

import nnc
from nnc.calibration.gather import gather

SETS = ("none", "default", "all")


@dataclass(frozen=True)
class Way:
    """One set of tools on one network: points of its curve, CPU seconds per file, weights by tool."""

    points: tuple[Point, ...]
    encode: float
    decode: float
    winners: Counter


@dataclass(frozen=True)
class CaseResult:
    case: str
    ways: dict[str, Way]

    def over_none(self, name: str) -> Comparison:
        return compare_curves(self.ways[name].points, self.ways["none"].points)


def measure_case(name: str, zoo: Path, number: int, free: bool, effort: str) -> CaseResult:
    """The curves of one network with each set of tools, at the same rates."""
    case = import_zoo(zoo).CASES[name]
    model = import_zoo(zoo).load(case)
    reference = case.outputs(model)
    peer = read_peer(zoo, name)
    more = {} if free else {"statistics": gather(model, case.calibration(), KINDS[case.kind])}
    rates = np.geomspace(peer.low, peer.high, number) if free else np.geomspace(max(LOWEST, 0.45 * peer.low), 0.8 * peer.high, number)
    ways = {}
    for tools in SETS:
        points, encode, decode, winners = [], [], [], Counter()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "small.safetensors"
            for bits in rates:
                start = time.process_time()
                try:
                    nnc.compress(case.weights(), path, bits=float(bits), effort=effort, threads=1, overwrite=True, tools=tools, **more)
                except nnc.InvalidArgument as problem:  # smaller than the smallest possible file
                    note(f"{name}: {problem}")
                    continue
                encode.append(time.process_time() - start)
                start = time.process_time()
                state = nnc.load(path, threads=1)
                decode.append(time.process_time() - start)
                model.load_state_dict(state, strict=True)
                points.append(Point(path.stat().st_size, case.fidelity(case.outputs(model), reference)))
                for tensor in nnc.inspect(path).tensors:
                    if tensor.kind in ("coded", "tiled") and sum(size > 1 for size in tensor.shape) > 1:
                        names = ("tiles",) if tensor.kind == "tiled" else tensor.tools or ("none",)
                        winners.update({tool: prod(tensor.shape) for tool in names})
                        winners["weights"] += prod(tensor.shape)
        ways[tools] = Way(tuple(points), median(encode), median(decode), winners)
    return CaseResult(name, ways)


def measure_cases(zoo: Path, names: list[str], jobs: int, **options) -> Iterator[CaseResult]:
    with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        yield from pool.map(partial(measure_case, zoo=zoo, **options), names)


def make_table(results: list[CaseResult], name: str) -> Table:
    rows = []
    for r in results:
        none, default, every = (r.ways[tools] for tools in SETS)
        shares = {tool: count / every.winners["weights"] for tool, count in every.winners.most_common() if tool != "weights"}
        won = ", ".join(f"{tool} {100 * share:.0f} %" for tool, share in shares.items())
        rows.append((r.case, r.over_none("default").ratio, r.over_none("all").ratio, none.encode, default.encode / none.encode,
                     every.encode / default.encode, default.decode / none.decode, every.decode / none.decode, won))
    columns = (Column("case"), Column("default/none", ".4f"), Column("all/none", ".4f"), Column("encode s, none", ".2f"),
               Column("default/none", ".2f"), Column("all/default", ".2f"), Column("decode default/none", ".2f"),
               Column("decode all/none", ".2f"), Column("winners with all"))
    return Table(name, columns, tuple(rows))


def make_bounds(results: list[CaseResult]) -> list[Bound]:
    bounds = []
    for r in results:
        none, default, every = (r.ways[tools] for tools in SETS)
        bounds += [Bound(f"bytes with all tools over none, {r.case}", r.over_none("all").ratio, 1.001),
                   Bound(f"encoding with all tools over default, {r.case}", every.encode / default.encode, 6.0),
                   Bound(f"decoding with all tools over none, {r.case}", every.decode / none.decode, 1.5)]
    return bounds


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser("tools of coded tensors on the zoo")
    parser.add_argument("--zoo", type=Path, default=ZOO, help="folder of the zoo")
    parser.add_argument("--case", action="append", default=[], help="only this one; may be given several times")
    parser.add_argument("--number", type=int, default=6, help="how many rates")
    parser.add_argument("--free", action="store_true", help="without calibration")
    parser.add_argument("--effort", default="default", choices=("fast", "default", "high", "max"))
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time")
    asked = parser.parse_args(arguments)
    names = chosen_cases(parser, asked)
    if not names:
        return 0
    results = []
    options = {"number": asked.number, "free": asked.free, "effort": asked.effort}
    for result in measure_cases(asked.zoo, names, asked.jobs, **options):
        note(f"{result.case}: default {result.over_none('default').ratio:.4f}, all {result.over_none('all').ratio:.4f}")
        results.append(result)
    name = f"tools_{'free' if asked.free else 'calibrated'}_{asked.effort}"
    return finish([make_table(results, name)], make_bounds(results), asked.out, asked.check)


if __name__ == "__main__":
    sys.exit(main())
