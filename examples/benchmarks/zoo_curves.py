"""Size against behaviour on the networks of the private zoo: our curve, the peer's, and their ratio at equal behaviour.

The peer's curve was recorded in `peers.json`: both of its lambdas pooled, whole bitstreams, all of its points.
"""
from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import inf
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from curves import Comparison, Point, compare_curves, pareto_front
from sources import import_zoo

import nnc

LOWEST = 0.75  # bits per weight; networks whose peer spends less are broken, and nnc refuses to zero a tensor
BELOW = 0.85  # our lowest rate over the peer's: the same damage takes us fewer bits
MORE = 6  # rates added at either end, each BELOW times or over the one before, until our curve covers the peer's


@dataclass(frozen=True)
class PeerCurve:
    """points: all that were recorded; low, high: bits per weight at the ends of their Pareto front."""

    points: tuple[Point, ...]
    low: float
    high: float


@dataclass(frozen=True)
class Measured:
    """asked: bits; bits, bytes: of the file; error: fidelity of the zoo; score: its metric."""

    asked: float
    bits: float
    bytes: int
    error: float
    score: float


@dataclass(frozen=True)
class CaseResult:
    """A network at several rates, and our bytes over the peer's.  skipped: rates below the smallest possible file."""

    case: str
    metric: str
    baseline: float
    points: tuple[Measured, ...]
    skipped: tuple[float, ...]
    comparison: Comparison


def read_peer(zoo: Path, case: str) -> PeerCurve:
    """The peer's recorded curve on one case."""
    rows = [row for row in json.loads((zoo / "peers.json").read_text())
            if row["case"] == case and row["method"] == "nncodec"]
    points = tuple(Point(row["bytes"], row["fidelity"]) for row in rows)
    front = {(point.bytes, point.error) for point in pareto_front(points)}
    bits = [row["bits_per_weight"] for row in rows if (row["bytes"], row["fidelity"]) in front]
    return PeerCurve(points, min(bits), max(bits))


def spread_rates(peer: PeerCurve, number: int) -> list[float]:
    """Bits per weight for our curve, evenly in their logarithm."""
    return [float(f"{bits:.4g}") for bits in np.geomspace(max(LOWEST, BELOW * peer.low), peer.high, number)]


def measure_case(zoo: Path, name: str, number: int, effort: str) -> CaseResult:
    """Compress one network without data at `number` rates or some more, load every file back and compare its outputs."""
    module = import_zoo(zoo)
    case = module.CASES[name]
    model = module.load(case)
    reference = case.outputs(model)
    parameters = sum(value.numel() for value in model.state_dict().values() if value.is_floating_point())
    peer = read_peer(zoo, name)
    points: list[Measured] = []
    skipped: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.safetensors"

        def measure(bits: float) -> None:
            try:
                nnc.compress(case.weights(), path, bits=bits, effort=effort, threads=1, overwrite=True)
            except nnc.InvalidArgument:  # smaller than the smallest possible file
                skipped.append(bits)
                return
            model.load_state_dict(nnc.load(path, threads=1), strict=True)
            outputs = case.outputs(model)
            size = path.stat().st_size
            error, score = case.fidelity(outputs, reference), case.score(outputs)["value"]
            points.append(Measured(bits, 8 * size / parameters, size, error, score))

        rates = spread_rates(peer, number)
        for bits in rates:
            measure(bits)
        errors = [point.error for point in pareto_front(peer.points)]
        for n in range(1, MORE + 1):
            if not skipped and max((p.error for p in points), default=inf) < errors[0]:
                measure(rates[0] * BELOW**n)
            if min((p.error for p in points), default=inf) > errors[-1]:
                measure(rates[-1] / BELOW**n)
    points.sort(key=lambda p: p.bytes)
    comparison = compare_curves([Point(p.bytes, p.error) for p in points], peer.points)
    return CaseResult(name, case.metric, case.baseline, tuple(points), tuple(skipped), comparison)


def measure_cases(zoo: Path, names: list[str], number: int, effort: str, jobs: int) -> Iterator[CaseResult]:
    """All cases in order, `jobs` at a time, each in a process with one thread."""
    with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        yield from pool.map(partial(measure_case, zoo, number=number, effort=effort), names)
