"""Time and memory: a checkpoint of 22.7 million weights (MiniLM, or random weights of its shapes) at 3.4 bits.

    python examples/benchmarks/speed.py --out results --check

Times of one thread are CPU seconds of this process, medians of several runs after one that is not counted (kernels are compiled
then).  NNCodec runs beside nnc if its package is installed; it starts from arrays in memory, nnc from files.  `kernel`: decoding
of one tensor by the fused kernel (contexts, trellis, reconstruction) beside constriction's decoder with one static table for the
same levels.
"""
from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from unittest import mock

import constriction
import numpy as np
import torch
from memory import import_seconds, measure_peak
from numba import njit
from peer import peer_is_installed, run_peer
from sources import minilm_or_random, read_state
from tables import Bound, Column, Table, finish, make_parser, note

import nnc
from nnc import coded, decoder
from nnc.archive import open_compressed
from nnc.kernels.bands import decode_tiles

PARTS = ("speed", "kernel", "threads", "start")
STEP = 0.0110  # 3.3 to 3.4 bits with a trellis ...
SCALAR_STEP = 2 * STEP  # ... and with one state, whose grid is not split in two
EFFORTS = {"fast": SCALAR_STEP, "default": STEP, "high": STEP}
PEER_QP = -26  # 3.42 bits
FASTER = {"fast": 5.0, "default": 2.0}  # CPU seconds of the peer's encoder over ours
FASTER_LOAD = 2.0
FASTER_KERNEL = 2.0
FASTER_TWO_THREADS = 1.7
CONTROL, VECTORS = 300_000_000, 400_000  # turns
SHORT = 3  # times as many runs of what takes a tenth of the time
IMPORT_BOUND = 1.5  # seconds
KERNEL_SHAPE = (4096, 4096)
KERNEL_STEP = 0.19  # about 3.4 bits for N(0, 1)


@dataclass(frozen=True)
class Stopwatch:
    """runs: that are counted; clock: of CPU or of the wall."""

    runs: int
    clock: Callable[[], float] = time.process_time

    def median(self, work: Callable[[], object]) -> float:
        """Seconds; one more run goes before."""
        work()
        return median(self._one(work) for _ in range(self.runs))

    def _one(self, work: Callable[[], object]) -> float:
        start = self.clock()
        work()
        return self.clock() - start


def measure_codec(name: str, weights: Path, folder: Path, watch: Stopwatch, with_peer: bool) -> tuple[Table, list[Bound]]:
    """CPU seconds of compress and load, and of the peer."""
    peer = None
    if with_peer:
        state = read_state(weights)
        note(f"NNCodec, {watch.runs} runs")
        runs = [run_peer(state, PEER_QP) for _ in range(watch.runs)]
        peer = median(run.encode for run in runs), median(run.decode for run in runs)
        bits = 8 * runs[0].bytes / sum(value.numel() for value in state.values() if value.is_floating_point())
    rows, bounds = [], []
    for effort, step in EFFORTS.items():
        note(f"compress and load, effort {effort}")
        path = folder / f"{effort}.safetensors"
        encode = watch.median(lambda: nnc.compress(weights, path, step=step, effort=effort, threads=1, overwrite=True))
        decode = watch.median(lambda: nnc.load(path, threads=1))
        ratios = (peer[0] / encode, peer[1] / decode) if peer else (None, None)
        rows.append((f"nnc {effort}", step, nnc.inspect(path).bits_per_weight, encode, decode, *ratios))
        if peer and effort in FASTER:
            bounds.append(Bound(f"CPU time of the peer's encoder over effort {effort}", ratios[0], FASTER[effort], True))
        if peer and effort == "default":
            bounds.append(Bound("CPU time of the peer's decoder over load", ratios[1], FASTER_LOAD, True))
    if peer:
        rows.append((f"NNCodec qp {PEER_QP}", None, bits, *peer, 1.0, 1.0))
    columns = (Column(name), Column("step", ".4f"), Column("bits", ".4f"), Column("encode CPU s", ".3f"),
               Column("decode CPU s", ".3f"), Column("peer / encode", ".2f"), Column("peer / decode", ".2f"))
    return Table("speed", columns, tuple(rows)), bounds


def measure_kernel(folder: Path, watch: Stopwatch, shape: tuple[int, int] = KERNEL_SHAPE) -> tuple[Table, list[Bound]]:
    """Million levels per second of the decoder of a unit, of its kernel alone, and of constriction."""
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    path = folder / "kernel.safetensors"
    note(f"kernel on {shape[0]} x {shape[1]} weights")
    nnc.compress({"weight": weights}, path, step=KERNEL_STEP, labelling="plain", threads=1, overwrite=True)
    with open_compressed(path) as archive:
        file = archive.files[0]
        unit, records, data = file.directory.units[0], file.unit_records()[0], file.read_unit(0)

    def decode() -> torch.Tensor:
        return decoder.decode_unit(unit, records, data, file.directory.bank)()[0]

    with mock.patch.object(coded, "decode_tiles", wraps=decode_tiles) as kernel:  # what the kernel is called with
        values = decode()
    calls = [call.args for call in kernel.call_args_list]

    # value = (2 k + q) step with q = 0 or 1, so k is the floor of half of it
    levels = np.floor_divide(np.rint(values.numpy().reshape(-1) / np.float32(KERNEL_STEP)).astype(np.int32), 2)
    symbols = levels - levels.min()
    counts = np.bincount(symbols).astype(np.float64) + 1e-3
    model = constriction.stream.model.Categorical(counts / counts.sum(), perfect=False)
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(symbols, model)
    words = coder.get_compressed()
    seconds = (watch.median(decode), watch.median(lambda: [decode_tiles(*call) for call in calls]),
               watch.median(lambda: constriction.stream.stack.AnsCoder(words).decode(model, symbols.size)))
    rates = [symbols.size / s / 1e6 for s in seconds]
    stored = (8 * len(data) / symbols.size, 8 * len(data) / symbols.size, 32 * len(words) / symbols.size)
    names = ("decode_unit", "decode_tiles alone", "constriction, static table")
    rows = tuple((name, bits, rate, rate / rates[2]) for name, bits, rate in zip(names, stored, rates))
    bounds = [Bound(f"{row[0]} over constriction's static decoder", row[3], FASTER_KERNEL, True) for row in rows[:2]]
    columns = (Column("decoder"), Column("bits", ".4f"), Column("million levels/s", ".1f"), Column("to constriction", ".2f"))
    return Table("kernel", columns, rows), bounds


@njit(nogil=True)
def _count(n: int) -> int:
    x = 1
    for i in range(n):
        x = (x * 6364136223846793005 + i) ^ (x >> 7)
    return x


@njit(nogil=True, fastmath=True)
def _add_squares(n: int) -> np.float32:
    values, total = np.ones(4096, np.float32), np.float32(0)
    for _ in range(n):
        for i in range(values.size):
            total += values[i] * values[i]
    return total


def measure_threads(weights: Path, folder: Path, runs: int) -> tuple[Table, list[Bound]]:
    """Wall clock of one and two threads, in turns.

    The last rows are loops without memory, twice: what two threads gain on this machine at this moment.  The first one waits for each of its steps, the second
    needs all that a core has: where two processors of a virtual machine are one core of its host, only the first one gains."""
    path = folder / "threads.safetensors"
    note("two threads against one")

    def twice(loop: Callable, turns: int, threads: int) -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(loop, [turns] * 2))

    def compress(threads: int) -> None:
        nnc.compress(weights, path, step=STEP, threads=threads, overwrite=True)

    def load(threads: int) -> None:
        nnc.load(path, threads=threads)

    works = {"compress": (compress, runs), "load": (load, SHORT * runs), "control, in sequence": (partial(twice, _count, CONTROL), runs),
             "control, vectors": (partial(twice, _add_squares, VECTORS), SHORT * runs)}
    rows = []
    for name, (work, number) in works.items():
        one, two = _in_turns(work, number)
        rows.append((name, one, two, one / two))
    controls = " and ".join(f"{row[3]:.2f}" for row in rows[2:])
    bounds = [Bound(f"one thread over two, {name} (controls {controls})", ratio, FASTER_TWO_THREADS, True) for name, _, _, ratio in rows[:2]]
    columns = (Column("wall clock"), Column("1 thread s", ".3f"), Column("2 threads s", ".3f"), Column("ratio", ".2f"))
    return Table("threads", columns, tuple(rows)), bounds


def _in_turns(work: Callable[[int], None], runs: int) -> tuple[float, float]:
    """Median seconds of one and of two threads, whose runs take turns; one of each goes before."""
    found: dict[int, list[float]] = {1: [], 2: []}
    for run in range(1 + runs):
        for threads, seconds in found.items():
            start = time.perf_counter()
            work(threads)
            if run:
                seconds.append(time.perf_counter() - start)
    return median(found[1]), median(found[2])


def measure_start(weights: Path, folder: Path, runs: int) -> tuple[Table, list[Bound]]:
    """Seconds of the import, peak memory of compress; both in fresh processes."""
    note("import and memory, in fresh processes")
    seconds = median(import_seconds() for _ in range(runs))
    peak = median(measure_peak(weights, folder / "memory.safetensors", STEP) for _ in range(runs))
    largest = max(4 * value.numel() for value in read_state(weights).values() if value.is_floating_point())
    allowed = weights.stat().st_size + 4 * largest + 300e6
    rows = (("import nnc and all its names, after torch, s", seconds, IMPORT_BOUND),
            ("memory of compress beyond the imports, MB", peak / 1e6, allowed / 1e6))
    columns = (Column("what"), Column("measured", ".2f"), Column("bound", ".2f"))
    return Table("start", columns, rows), [Bound(*row) for row in rows]


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser("time and memory of nnc")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this part; may be given several times")
    parser.add_argument("--runs", type=int, default=3, help="runs whose median is taken")
    parser.add_argument("--no-peer", action="store_true", help="leave NNCodec out even if it is installed")
    asked = parser.parse_args(arguments)
    watch = Stopwatch(asked.runs)
    torch.set_num_threads(1)
    with_peer = peer_is_installed() and not asked.no_peer
    if not with_peer and "speed" in (asked.part or PARTS):
        note("NNCodec is left out" if asked.no_peer else "the package nncodec is not installed: its times are left out")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        name, weights = minilm_or_random(folder)
        measure = {"speed": lambda: measure_codec(name, weights, folder, watch, with_peer),
                   "kernel": lambda: measure_kernel(folder, watch),
                   "threads": lambda: measure_threads(weights, folder, asked.runs),
                   "start": lambda: measure_start(weights, folder, asked.runs)}
        parts = [measure[part]() for part in asked.part or PARTS]
    return finish([table for table, _ in parts], [bound for _, bounds in parts for bound in bounds], asked.out, asked.check)


if __name__ == "__main__":
    sys.exit(main())
