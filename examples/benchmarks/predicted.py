"""Predicted against measured divergence, on the networks of the private zoo whose outputs are distributions.

    python examples/benchmarks/predicted.py --jobs 2 --check

Every other input of a network's own test set is for calibration, those between are for measuring: inputs of one kind that never meet.  (The
zoo's calibration inputs are of another kind where a network learnt them by heart, or where the text is another; `calibrated.py` shows that.)
`statistics` is what the second moments alone predict for the file that comes out, `checked` what `--kl` says of it after it was corrected by what it
measured on calibration inputs that it held back.
"""
from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from sources import ZOO, chosen_cases, import_zoo
from tables import Bound, Column, Table, finish, make_parser, note

import nnc

ASKED = (0.015, 0.03, 0.06)  # nats
WITHIN = 0.25  # of the measured one
ENOUGH = 3  # networks


@dataclass(frozen=True)
class Point:
    """Divergences in nats: asked for; predicted by the statistics; measured by nnc on held-back inputs; measured here on inputs of neither."""

    asked: float
    bytes: int
    predicted: float
    checked: float
    measured: float

    @property
    def holds(self) -> bool:
        """Whether the statistics alone told the divergence."""
        return abs(self.predicted / self.measured - 1) <= WITHIN


def halve(batches: list[tuple]) -> tuple[list[tuple], list[tuple]]:
    """Every other input, and those between."""
    return tuple([tuple(part[first::2] for part in batch) for batch in batches] for first in (0, 1))


def measure_case(name: str, zoo: Path) -> list[Point]:
    """Files of one network at several divergences."""
    case = import_zoo(zoo).CASES[name]
    first, second = halve(case.batches())
    case = replace(case, batches=lambda: second)
    original, model = import_zoo(zoo).load(case), import_zoo(zoo).load(case)
    reference = case.outputs(original)
    points = []
    with tempfile.TemporaryDirectory() as folder:
        path, statistics = Path(folder) / "small.safetensors", Path(folder) / "statistics.safetensors"
        for asked in ASKED:
            summary = nnc.compress(case.weights(), path, kl=asked, data=first, model=original, kind="logits", statistics=statistics,
                                   threads=1, overwrite=True)
            model.load_state_dict(nnc.load(path, threads=1), strict=True)
            measured = case.fidelity(case.outputs(model), reference)
            points.append(Point(asked, path.stat().st_size, summary.loss, summary.measured, measured))
    return points


def measure_cases(zoo: Path, names: list[str], jobs: int) -> Iterator[list[Point]]:
    with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        yield from pool.map(partial(measure_case, zoo=zoo), names)


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser("predicted against measured divergence on the zoo")
    parser.add_argument("--zoo", type=Path, default=ZOO, help="folder of the zoo")
    parser.add_argument("--case", action="append", default=[], help="only this one; may be given several times")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time")
    asked = parser.parse_args(arguments)
    names = chosen_cases(parser, asked, "logits")
    if not names:
        return 0
    rows, holding = [], 0
    for name, points in zip(names, measure_cases(asked.zoo, names, asked.jobs)):
        note(f"{name}: " + ", ".join(f"{p.predicted / p.measured:.2f}" for p in points))
        rows += [(name, p.asked, p.bytes, p.predicted, p.checked, p.measured, p.predicted / p.measured, p.checked / p.measured) for p in points]
        holding += all(p.holds for p in points)
    columns = (Column("case"), Column("asked", ".3f"), Column("bytes", ",d"), Column("statistics", ".4f"), Column("checked", ".4f"),
               Column("measured", ".4f"), Column("statistics / measured", ".2f"), Column("checked / measured", ".2f"))
    bounds = [] if asked.case else [Bound(f"networks whose divergence is predicted within {WITHIN:.0%}", float(holding), float(ENOUGH), True)]
    return finish([Table("predicted", columns, tuple(rows))], bounds, asked.out, asked.check)


if __name__ == "__main__":
    sys.exit(main())
