"""What tools are worth where the curves of `tools.py` scatter too much to tell: pairs of files at one common factor of all steps.

    python examples/benchmarks/paired.py --free --case kws_dscnn --number 100

The two files of a pair differ only in the tensors that use a tool, so most of the scatter of the network's answer is common to both and
cancels.  The ratio is exp(log(bytes / bytes without) - slope * log(error / error without)), the slope that of log(bytes) over log(error)
of the files without tools; printed with the standard error of its mean over the pairs.
"""
from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from math import exp
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from calibrated import KINDS, LOWEST
from sources import ZOO, chosen_cases, import_zoo
from tables import Bound, Column, Table, finish, make_parser, note
from zoo_curves import read_peer

from nnc.calibration.gather import gather
from nnc.checkpoint import open_checkpoint
from nnc.config import make_config
from nnc.encoding import Encoding
from nnc.plan import plan_tensors, survey_bases
from nnc.siblings import find_siblings
from nnc.targets import meet_size
from nnc.tuning import decode_all
from nnc.workers import Workers

MOST = 1.001


def measure_case(name: str, zoo: Path, number: int, free: bool, tools: str) -> tuple[str, int, float, float, float, float]:
    """Name, pairs, mean ratios of bytes and of errors at one factor, ratio at equal error and its standard error."""
    networks = import_zoo(zoo)
    case = networks.CASES[name]
    model, peer = networks.load(case), read_peer(zoo, name)
    reference = case.outputs(model)
    statistics = None if free else gather(model, case.calibration(), KINDS[case.kind])
    ends = (peer.low, peer.high) if free else (max(LOWEST, 0.45 * peer.low), 0.8 * peer.high)
    with open_checkpoint(case.weights()) as checkpoint:
        ways = []
        for chosen in ("none", tools):
            asked, workers = make_config(None, bits=3.0, tools=chosen), Workers()
            siblings = find_siblings(checkpoint, asked, workers)
            bases = survey_bases(checkpoint, asked, workers, None, siblings)
            plans = plan_tensors(checkpoint, asked, workers, None, statistics, None, bases, siblings)
            ways.append(Encoding(checkpoint, plans, asked, workers, None, None, None, tuple(bases.matrices), siblings))
        weights = sum(plan.weights for plan in ways[0].plans)
        low, high = (meet_size(ways[0], bits * weights / 8, f"bits = {bits:g}")[1] for bits in ends)
        found = []
        for factor in np.geomspace(low, high, number):
            for way in ways:
                assembly = way.encode(float(factor))
                model.load_state_dict(decode_all(assembly, way), strict=True)
                found.append((assembly.size, float(case.fidelity(case.outputs(model), reference))))
    sizes, errors = np.log(np.array(found)).reshape(number, 2, 2).transpose(2, 1, 0)
    slope = np.polyfit(errors[0], sizes[0], 1)[0]
    more, worse = sizes[1] - sizes[0], errors[1] - errors[0]
    ratio = more - slope * worse
    return name, number, exp(more.mean()), exp(worse.mean()), exp(ratio.mean()), float(ratio.std(ddof=1)) / number**0.5


def measure_cases(zoo: Path, names: list[str], jobs: int, **options) -> Iterator[tuple]:
    with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        yield from pool.map(partial(measure_case, zoo=zoo, **options), names)


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser("tools of coded tensors, in pairs of files with the same steps")
    parser.add_argument("--zoo", type=Path, default=ZOO, help="folder of the zoo")
    parser.add_argument("--case", action="append", default=[], help="only this one; may be given several times")
    parser.add_argument("--number", type=int, default=24, help="how many pairs")
    parser.add_argument("--free", action="store_true", help="without calibration")
    parser.add_argument("--tools", default="all", help="set of tools that is compared with none")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time")
    asked = parser.parse_args(arguments)
    names = chosen_cases(parser, asked)
    if not names:
        return 0
    rows = []
    for row in measure_cases(asked.zoo, names, asked.jobs, number=asked.number, free=asked.free, tools=asked.tools):
        note(f"{row[0]}: {row[4]:.4f} +- {row[5]:.4f}")
        rows.append(row)
    columns = (Column("case"), Column("pairs", "d"), Column("bytes over none", ".4f"), Column("error over none", ".3f"),
               Column("ratio at equal error", ".4f"), Column("standard error", ".4f"))
    bounds = [Bound(f"bytes with {asked.tools} tools over none at equal error, {row[0]}", row[4], MOST) for row in rows]
    name = f"paired_{'free' if asked.free else 'calibrated'}_{asked.tools}"
    return finish([Table(name, columns, tuple(rows))], bounds, asked.out, asked.check)


if __name__ == "__main__":
    sys.exit(main())
