"""Substitutes in front of a frozen codec: straight-through gradients, the gradient generator, feedback, and the former after the latter.

    python examples/benchmarks/substitution.py --out results --check

All are coded with the same steps, scales and tables.  cost: loss + price * bits, of the weights as given it is one; dB: how much the loss
is below theirs; weight error: squared error of the weights, of theirs.

`correlated`: Gaussian weights of a layer whose inputs have the powers r^i along random directions; all steps are equal.  Straight-through
gradients take the trellis for the identity: whatever their step size, the loss rises or hardly falls.
`layers`: of networks of the private zoo, where it is installed, with statistics of both sides and the steps that these ask for.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from math import log10
from pathlib import Path

import numpy as np
import torch
from sources import ZOO, import_zoo
from tables import Bound, Column, Table, finish, make_parser, note

from nnc.calibration.gather import gather
from nnc.calibration.statistics import TensorStatistics
from nnc.encoder import make_plane
from nnc.entropy.explicit import ModelBank
from nnc.feedback import find_levels_with_feedback
from nnc.partition.grid import choose_grid
from nnc.quantize.steps import StepCodes, rebuild_steps
from nnc.quantize.trellis import make_trellis
from nnc.powers import fit_scales, measure_powers
from nnc.rdo import START_SHAPE, Search, level_bits
from nnc.sensitivity import DAMPING, Sensitivity, Steps, choose_steps, measure_sensitivity, short_step
from nnc.substitution import FrozenCodec, Options, PredictedLoss, measure_loss, substitute

SEARCH = Search(8, 0, 0.38, 1)
DECAYS = {0.97: (3.5, 4.0), 0.93: (6.0, 7.0)}  # of the powers of the inputs, and the least dB of gradients and of feedback
MOST_STRAIGHT = 1.0  # dB
BITS = (1.5, 2.5)
NAIVE_STEPS = 100
LAYERS = {
    "cifar10_resnet20": ("layer2.1.conv1.weight", "layer3.2.conv2.weight", "linear.weight"),
    "kws_dscnn": ("blocks.1.pw.weight", "blocks.3.pw.weight"),
    "stories260K": ("layers.2.feed_forward.w1.weight",),
}
COLUMNS = (
    Column("source"),
    Column("substitute"),
    Column("bits", ".3f"),
    Column("dB", ".2f"),
    Column("weight error", ".2f"),
    Column("cost", ".4f"),
    Column("seconds", ".1f"),
    Column("steps", "d"),
    Column("stopped by"),
)


@dataclass(frozen=True, eq=False)
class Task:
    """A plane, what its errors cost, and the codec that it is given to."""

    plane: np.ndarray
    sensitivity: Sensitivity
    loss: PredictedLoss
    codec: FrozenCodec
    price: float
    fed: tuple[list[np.ndarray], np.ndarray]
    seconds: float

    def measure(self, levels: list[np.ndarray]) -> tuple[float, float, float]:
        """Bits per weight, loss, squared error of the weights."""
        decoded = self.codec.rebuild(levels)
        error = float(np.square(decoded - self.plane, dtype=np.float64).sum())
        return self.codec.count_bits(levels) / self.plane.size, float(self.loss(torch.from_numpy(decoded))), error


def make_correlated(size: int, decay: float, seed: int = 0) -> tuple[np.ndarray, TensorStatistics]:
    """Weights N(0, 1), float32 (size, size), and statistics of the inputs alone."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    power = (basis * decay ** torch.arange(size)) @ basis.T
    plane = torch.randn(size, size, generator=generator)
    return plane.numpy(), TensorStatistics(np.ones(size, np.float32), power.float().numpy(), (1 << 30, 1 << 30))


def make_task(plane: np.ndarray, statistics: TensorStatistics, bits: float, equal: bool = False) -> Task:
    """The codec as feedback at about `bits` per weight leaves it.  equal: all steps the same, so that the weights as given are not coded
    worse than they need be."""
    sensitivity = measure_sensitivity(statistics)
    if sensitivity.transposed:
        plane, statistics = np.ascontiguousarray(plane.T), statistics.transposed
    if equal:
        step = 2 ** (1.05 - bits) * float(np.sqrt(np.square(plane).mean()))
        factor = step / 2**sensitivity.mean_octave
        steps = Steps(short_step(step), *map(StepCodes.even, plane.shape))
    else:
        factor = 2 ** (0.25 - bits) * float(np.sqrt(np.square(sensitivity.relative_plane(plane)).mean()))
        steps = choose_steps(sensitivity, plane, factor, SEARCH.states)
    relative = np.outer(*(1 / rebuild_steps(codes, 1.0) for codes in (steps.rows, steps.columns)))
    grid, spacing = choose_grid(*plane.shape), make_trellis(SEARCH.states).spacing * steps.step
    lengths, replaced = level_bits(ModelBank(), START_SHAPE), plane
    started = time.perf_counter()
    for _ in range(2):  # the weights that feedback leaves are wider than those given
        scales = fit_scales(measure_powers((replaced * relative).astype(np.float32)), spacing, steps=(steps.rows, steps.columns))
        fed = find_levels_with_feedback(plane, grid, scales, steps.step, lengths, SEARCH, sensitivity, map)
        replaced = fed[1]
    seconds = time.perf_counter() - started
    codec = FrozenCodec(grid, scales, steps.step, lengths, SEARCH)
    loss = measure_loss(plane, statistics, (DAMPING[sensitivity.transposed], DAMPING[1 - sensitivity.transposed]))
    return Task(plane, sensitivity, loss, codec, 0.5 * factor**2 * SEARCH.lagrangian, fed, seconds)


def descend_straight_through(task: Task) -> list[np.ndarray]:
    """Levels after gradient steps that take decoded weights for the weights themselves; the step size falls to zero."""
    codec, spacing = task.codec, make_trellis(SEARCH.states).spacing
    x = task.plane.astype(np.float64)
    for number in range(NAIVE_STEPS):
        decoded = torch.from_numpy(codec.rebuild(codec.find_levels(x))).requires_grad_()
        (gradient,) = torch.autograd.grad(task.loss(decoded), decoded)
        move = gradient.double().numpy() * codec.steps
        rms = np.sqrt(np.square(move).mean())
        x -= Options.step_size * (1 - number / NAIVE_STEPS) * spacing * codec.steps * move / max(rms, 1e-300)
    return codec.find_levels(x)


def compare(source: str, task: Task) -> list[tuple]:
    """One row per way."""
    plain = task.measure(task.codec.find_levels(task.plane))
    cost = plain[1] + task.price * plain[0] * task.plane.size

    def row(way: str, levels: list[np.ndarray], seconds: float, steps: int | None = None, stopped: str | None = None) -> tuple:
        bits, loss, error = task.measure(levels)
        relative = (loss + task.price * bits * task.plane.size) / cost
        return source, way, bits, 10 * log10(plain[1] / loss), error / plain[2], relative, seconds, steps, stopped

    rows = [row("none", task.codec.find_levels(task.plane), 0.0)]
    note(f"{source}: straight through")
    started = time.perf_counter()
    levels = descend_straight_through(task)
    rows.append(row("straight through", levels, time.perf_counter() - started, NAIVE_STEPS))
    for way, start in (("gradient", None), ("gradient after feedback", task.fed)):
        note(f"{source}: {way}")
        started = time.perf_counter()
        found = substitute(task.plane, task.loss, task.codec, task.price, start)
        if start:
            rows.append(row("feedback", task.fed[0], task.seconds))
        rows.append(row(way, found.levels, time.perf_counter() - started, found.steps, found.stopped_by))
    return rows


def measure_correlated(size: int) -> tuple[Table, list[Bound]]:
    rows, bounds = [], []
    for decay, least in DECAYS.items():
        source = f"{decay:g}^i"
        new = compare(source, make_task(*make_correlated(size, decay), 2.5, equal=True))
        cost = {row[1]: row[5] for row in new}
        gain = {row[1]: row[3] for row in new}
        rows += new
        bounds.append(Bound(f"straight-through gradients at {source}: dB", gain["straight through"], MOST_STRAIGHT))
        bounds.append(Bound(f"the gradient generator at {source}: dB", gain["gradient"], least[0], at_least=True))
        bounds.append(Bound(f"feedback at {source}: dB", gain["feedback"], least[1], at_least=True))
        ratio = cost["gradient after feedback"] / cost["feedback"]
        bounds.append(Bound(f"the gradient generator after feedback at {source}: cost over that of feedback", ratio, 1.0))
    return Table("correlated", COLUMNS, tuple(rows)), bounds


def measure_layers(zoo) -> tuple[Table, list[Bound]]:
    rows, bounds = [], []
    for name, layers in LAYERS.items():
        case = zoo.CASES[name]
        note(f"{name}: statistics")
        network = zoo.load(case)
        statistics, state = gather(network, case.calibration(), "logits"), network.state_dict()
        for layer in layers:
            for bits in BITS:
                source = f"{name} {layer} {bits:g}"
                new = compare(source, make_task(make_plane(state[layer])[1], statistics.tensors[layer], bits))
                cost = {row[1]: row[5] for row in new}
                rows += new
                ratio = cost["gradient"] / min(1.0, cost["straight through"])
                bounds.append(Bound(f"{source}: cost of gradients over that of straight-through ones", ratio, 1.0))
                ratio = cost["gradient after feedback"] / cost["feedback"]
                bounds.append(Bound(f"{source}: cost of gradients after feedback over that of feedback", ratio, 1.0))
    return Table("layers", COLUMNS, tuple(rows)), bounds


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser("substitutes in front of a frozen codec")
    parser.add_argument("--size", type=int, default=256, help="rows and columns of the correlated source; the bounds are for 256")
    parser.add_argument(
        "--zoo", type=Path, default=ZOO, metavar="FOLDER", help="folder of the zoo; nothing is measured where it is not"
    )
    asked = parser.parse_args(arguments)
    table, bounds = measure_correlated(asked.size)
    tables = [table]
    zoo = import_zoo(asked.zoo)
    if zoo is not None:
        table, more = measure_layers(zoo)
        tables, bounds = [*tables, table], bounds + more
    return finish(tables, bounds, asked.out, asked.check)


if __name__ == "__main__":
    sys.exit(main())
