"""Calibrated compression on the networks of the private zoo, beside the recorded curves of NNCodec and GPTQ.

    python examples/benchmarks/calibrated.py --jobs 2 --check

Statistics come from the calibration inputs of the zoo, the figures from its other data.  Printed per network: bytes over NNCodec's at
equal distance of the outputs (log mean over the overlap of the curves), the smallest file from which on the loss of the metric stays
within what the zoo allows, bytes over GPTQ's at its distance, and predicted over measured distance.
"""
from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import exp, inf, log
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
import torch
from curves import Comparison, Point, compare_curves, pareto_front
from sources import ZOO, chosen_cases, import_zoo
from tables import Bound, Column, Table, finish, make_parser, note
from zoo_curves import read_peer

import nnc
from nnc.calibration.gather import gather

KINDS = {"logits": "logits", "unit": "unit", "image": "values"}
PIXELS = 255.0**2  # the zoo measures squared errors of pixels on the scale 0..255
LOWEST = 1.2  # bits per weight
BOUNDS = {"cifar10_resnet20": 72_000, "minilm_stsb_dev": 4_900_000, "stories260K": 140_000, "babyllama_tok105": 430_000,
          "textgenrnn_base": 265_000, "dncnn_s25": 200_000, "kws_dscnn": 13_500, "espcn_x3_epoch25": 20_000}


@dataclass(frozen=True)
class Measured:
    """One file.  error: distance of the zoo; predicted: by the statistics; loss: of the metric, in the zoo's units."""

    asked: float
    bytes: int
    error: float
    predicted: float
    score: float
    loss: float
    seconds: float


@dataclass(frozen=True)
class CaseResult:
    """allowed: loss of the metric that counts as none; gptq: our bytes over GPTQ's at its distance, by setting."""

    case: str
    points: tuple[Measured, ...]
    comparison: Comparison
    allowed: float
    gptq: dict[str, float]
    calibration: float

    @property
    def smallest(self) -> Measured | None:
        """The smallest file from which on every larger one has an allowed loss, too."""
        found = None
        for point in sorted(self.points, key=lambda p: -p.bytes):
            if point.loss > self.allowed:
                break
            found = point
        return found


def measure_case(name: str, zoo: Path, rates: list[float], number: int, effort: str, tune: bool) -> CaseResult:
    """Calibrate on one network and compress it to several rates."""
    case = import_zoo(zoo).CASES[name]
    model = import_zoo(zoo).load(case)
    reference = case.outputs(model)
    peer = read_peer(zoo, name)
    batches, kind = case.calibration(), KINDS[case.kind]
    start = time.process_time()
    statistics = gather(model, batches, kind)
    calibration = time.process_time() - start
    original = import_zoo(zoo).load(case)
    points: list[Measured] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.safetensors"
        for bits in rates or np.geomspace(max(LOWEST, 0.45 * peer.low), 0.8 * peer.high, number):
            start = time.process_time()
            try:
                more = {"data": batches, "kind": kind, "model": original, "tune": True} if tune else {}
                summary = nnc.compress(case.weights(), path, bits=float(bits), effort=effort, threads=1, overwrite=True,
                                       statistics=statistics, **more)
            except nnc.InvalidArgument as problem:  # smaller than the smallest possible file
                note(f"{name}: {problem}")
                continue
            seconds = time.process_time() - start
            model.load_state_dict(nnc.load(path, threads=1), strict=True)
            outputs = case.outputs(model)
            score = case.score(outputs)["value"]
            scale = PIXELS if case.kind == "image" else 1.0
            points.append(Measured(float(bits), path.stat().st_size, case.fidelity(outputs, reference), summary.loss * scale, score,
                                   case.loss(score), seconds))
    points.sort(key=lambda p: p.bytes)
    comparison = compare_curves([Point(p.bytes, p.error) for p in points], peer.points)
    return CaseResult(name, tuple(points), comparison, case.allowed, _over_gptq(zoo, name, points), calibration)


def _over_gptq(zoo: Path, case: str, points: list[Measured]) -> dict[str, float]:
    """Our bytes over those of every recorded GPTQ file at its distance, between our points; nothing beyond them."""
    front = pareto_front([Point(p.bytes, p.error) for p in points])
    errors = np.log([point.error for point in front[::-1]])
    sizes = np.log([point.bytes for point in front[::-1]])
    rows = [row for row in json.loads((zoo / "peers.json").read_text()) if row["case"] == case and row["method"] == "gptq"]
    return {row["setting"]: exp(np.interp(log(row["fidelity"]), errors, sizes)) / row["bytes"]
            for row in rows if errors[0] <= log(row["fidelity"]) <= errors[-1]}


def measure_cases(zoo: Path, names: list[str], jobs: int, **options) -> Iterator[CaseResult]:
    """All cases in order, `jobs` at a time, each in a process with one thread."""
    with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        yield from pool.map(partial(measure_case, zoo=zoo, **options), names)


def make_tables(results: list[CaseResult], effort: str) -> list[Table]:
    rows = []
    for r in results:
        c, best = r.comparison, r.smallest
        useful = [p.predicted / p.error for p in r.points if p.error > 0]
        rows.append((r.case, len(r.points), c.ratio, c.lowest, c.highest, best and best.bytes, BOUNDS.get(r.case),
                     r.gptq.get("4 bit g64"), r.gptq.get("3 bit g64"), median(useful), r.calibration,
                     median(p.seconds for p in r.points)))
    ratios = [r.comparison.ratio for r in results]
    rows += [(name, None, value, *[None] * 9) for name, value in (("median", median(ratios)), ("worst", max(ratios)))]
    columns = (Column("case"), Column("rates", "d"), *(Column(name, ".3f") for name in ("ratio", "least", "most")),
               Column("bytes at allowed loss", ",d"), Column("bound", ",d"), Column("over GPTQ 4", ".3f"),
               Column("over GPTQ 3", ".3f"), Column("predicted/measured", ".2f"), Column("calibrate CPU s", ".1f"),
               Column("compress CPU s", ".1f"))
    fields = ("case", "asked bits", "bytes", "error", "predicted", "score", "loss", "CPU s")
    points = [(r.case, p.asked, p.bytes, p.error, p.predicted, p.score, p.loss, p.seconds) for r in results for p in r.points]
    every = Table(f"calibrated_{effort}_points", tuple(map(Column, fields)), tuple(points), printed=False)
    return [Table(f"calibrated_{effort}", columns, tuple(rows)), every]


def make_bounds(results: list[CaseResult], whole: bool, tune: bool) -> list[Bound]:
    ratios = [r.comparison.ratio for r in results]
    bounds = [Bound("bytes over NNCodec's at equal behaviour, worst case", max(ratios), 0.80)]
    if whole:
        bounds.insert(0, Bound("bytes over NNCodec's at equal behaviour, median", median(ratios), 0.55 if tune else 0.60))
    for r in results:
        if r.case in BOUNDS:
            bounds.append(Bound(f"bytes at the allowed loss, {r.case}", r.smallest.bytes if r.smallest else inf, BOUNDS[r.case]))
        bounds += [Bound(f"bytes over GPTQ {setting}, {r.case}", value, 1.0) for setting, value in r.gptq.items()]
    return bounds


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser("calibrated compression against NNCodec and GPTQ on the zoo")
    parser.add_argument("--zoo", type=Path, default=ZOO, help="folder of the zoo")
    parser.add_argument("--case", action="append", default=[], help="only this one; may be given several times")
    parser.add_argument("--rates", type=lambda text: [float(part) for part in text.split(",")], default=[],
                        help="bits per weight, separated by commas (default: spread over the peer's)")
    parser.add_argument("--number", type=int, default=8, help="how many rates, if they are not given")
    parser.add_argument("--effort", default="default", choices=("fast", "default", "high", "max"))
    parser.add_argument("--tune", action="store_true", help="with tuning of what is not quantized")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time")
    asked = parser.parse_args(arguments)
    names = chosen_cases(parser, asked)
    if not names:
        return 0
    results = []
    for result in measure_cases(asked.zoo, names, asked.jobs, rates=asked.rates, number=asked.number, effort=asked.effort,
                                tune=asked.tune):
        note(f"{result.case}: {result.comparison.ratio:.3f}")
        results.append(result)
    return finish(make_tables(results, asked.effort), make_bounds(results, not asked.case, asked.tune), asked.out, asked.check)


if __name__ == "__main__":
    sys.exit(main())
