"""What each part of the codec is worth: bytes at equal behaviour, part after part, on the networks of the private zoo and on digits.

    python examples/benchmarks/ablation.py --out results
    python examples/benchmarks/ablation.py --case cifar10_resnet20 --number 8

    scalar, static     one quantizer, one table for a tensor, the directory deflated
    + trellis          two dependent quantizers, 8 states
    + scales           a table for the scale of the row and the column; every array of codes in a mode of its own
    + learned          latents: codes chosen by what they and the levels cost, in a coder that learns and is shipped with a prior; streams joined;
                       the directory mixed
    + dependent        latents of two dependent quantizers where they cost less (the second trellis)
    + hyper            tables that an integer network picks from the latents, where that saves bytes
    + context          ... and from the levels before
    + calibration      steps of rows and columns and feedback of errors from inputs of the network (without networks)
    + substitution     weights moved by gradients before that (only with --substitution: slow)

Every row is compared with the one before at equal squared error of the weights, all tensors with the same step, and at equal distance of the network's outputs (log means over
the overlap of the curves, curves.py); distances scatter, by some per cent on small networks, where the levels differ.  From `+ scales` to `+ context` they are the same levels, and the
ratio is exact.  `latents` is their share of the file in the middle of the curve.  A part that does not pay is turned off by what it costs, tensor by tensor, and shows 1.0000.
"""
from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from calibrated import KINDS
from curves import Point, compare_curves
from sources import ZOO, import_zoo
from tables import Column, Table, finish, make_parser, note

import nnc
from nnc import container, encoder, latent_choice, packing, powers, rdo
from nnc.calibration.gather import gather
from nnc.checkpoint import open_checkpoint

CASES = ("cifar10_resnet20", "kws_dscnn", "stories260K", "espcn_x3_epoch25")
DIGITS = "digits_cnn"
LOW, HIGH = 1.2, 5.0  # bits per weight


@dataclass(frozen=True)
class Step:
    """One row: options of nnc.compress, and parts of the encoder that are taken away."""

    name: str
    options: dict
    without: tuple[str, ...] = ()


OLD = ("scales", "learned", "dependent")
STEPS = (
    Step("scalar, static", {"states": 1}, OLD),
    Step("+ trellis", {"states": 8}, OLD),
    Step("+ scales", {}, OLD[1:]),
    Step("+ learned", {}, OLD[2:]),
    Step("+ dependent", {}),
    Step("+ hyper", {"entropy": "hyper"}),
    Step("+ context", {"entropy": "context"}),
    Step("+ calibration", {"calibrated": True}),
)
SUBSTITUTION = Step("+ substitution", {"calibrated": True, "substitution": "gradient", "tools": "none"})


def same_scales(found: powers.Powers, *arguments: object, **more: object) -> rdo.Scales:
    """`fit_scales` for one scale of all rows and columns; those that are dead stay so."""
    rows = np.where(found.rows > 0, found.rms**2, 0)
    return powers.fit_scales(replace(found, rows=rows, columns=(found.columns > 0).astype(float)), *arguments, **more)


@contextmanager
def taken_away(parts: tuple[str, ...]) -> Iterator[None]:
    changes = {
        "scales": [mock.patch.object(encoder, "fit_scales", same_scales)],
        "learned": [
            mock.patch.object(encoder, "may_join", lambda coding, data: False),
            mock.patch.object(encoder, "choose_codes", lambda scales, *rest: scales),
            mock.patch.object(packing, "pays", lambda saved, total: False),
            mock.patch.object(container, "MAX_MIXED", 0),
        ],
        "dependent": [mock.patch.object(latent_choice, "_choose_dependent", lambda *rest: None)],
    }
    with ExitStack() as stack:
        for part in parts:
            for change in changes[part]:
                stack.enter_context(change)
        yield


@dataclass(frozen=True)
class Network:
    """What is measured.  distance: of the outputs of its state to those of the original."""

    weights: object
    calibrate: Callable[[], object]
    distance: Callable[[dict], float]


def open_network(name: str, zoo: Path) -> Network:
    if name == DIGITS:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
        from digits_cnn import WEIGHTS, build, split

        images = [torch.from_numpy(part) for part in split()[:2]]
        model = build().eval()
        original = nnc_state(WEIGHTS)
        model.load_state_dict(original)
        with torch.inference_mode():
            wanted = model(images[1]).double().log_softmax(1)

        def distance(state: dict) -> float:
            model.load_state_dict(state)
            with torch.inference_mode():
                found = model(images[1]).double().log_softmax(1)
            return float((wanted.exp() * (wanted - found)).sum(1).mean())

        def calibrate() -> object:
            model.load_state_dict(original)
            return gather(model, list(images[0].split(64)), "logits")

        return Network(WEIGHTS, calibrate, distance)
    case = import_zoo(zoo).CASES[name]
    model, reference = import_zoo(zoo).load(case), None
    reference = case.outputs(model)

    def of_case(state: dict) -> float:
        model.load_state_dict(state, strict=True)
        return case.fidelity(case.outputs(model), reference)

    return Network(case.weights(), lambda: gather(import_zoo(zoo).load(case), case.calibration(), KINDS[case.kind]), of_case)


def nnc_state(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


@dataclass(frozen=True)
class Result:
    """A row.  weights, outputs: its curves by error of the weights and by distance of the outputs; share: of the latents, in the middle."""

    step: Step
    weights: list[Point]
    outputs: list[Point]
    share: float


def scale_of(weights: object) -> float:
    """Root mean square of all weights of tensors with more than one axis."""
    with open_checkpoint(weights) as checkpoint:
        tensors = [checkpoint.read(spec.name) for spec in checkpoint.specs if len(spec.shape) > 1]
        tensors = [tensor.double() for tensor in tensors if tensor.is_floating_point()]
        return float((sum(tensor.square().sum() for tensor in tensors) / sum(tensor.numel() for tensor in tensors)).sqrt())


def measure_case(name: str, zoo: Path, number: int, steps: tuple[Step, ...]) -> list[Result]:
    network, statistics, results = open_network(name, zoo), None, []
    scale = scale_of(network.weights)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.safetensors"
        for step in steps:
            options = dict(step.options)
            if options.pop("calibrated", False):
                statistics = statistics or network.calibrate()
                options["statistics"] = statistics
            weights, outputs, shares = [], [], []
            for bits in np.geomspace(LOW, HIGH, number):
                spacing = scale * 2 ** (2.05 - float(bits))  # of a Gaussian source, about
                target = {"bits": float(bits)} if "statistics" in options else {"step": spacing / (1 if options.get("states") == 1 else 2)}
                try:
                    with taken_away(step.without):
                        summary = nnc.compress(network.weights, path, threads=1, overwrite=True, **target, **options)
                except nnc.InvalidArgument as problem:  # smaller than the smallest possible file
                    note(f"{name}, {step.name}: {problem}")
                    continue
                info = nnc.inspect(path)
                shares.append(info.side / info.file_bytes)
                weights.append(Point(info.file_bytes, 10 ** (-summary.snr / 10)))
                outputs.append(Point(info.file_bytes, network.distance(nnc.load(path, threads=1))))
            note(f"{name}: {step.name}")
            results.append(Result(step, weights, outputs, shares[len(shares) // 2]))
    return results


def show(name: str, results: list[Result]) -> Table:
    rows, before = [], results[0]
    for result in results:
        calibrated = "calibrated" in result.step.options
        middle = result.outputs[len(result.outputs) // 2]
        weights = None if calibrated else compare_curves(result.weights, before.weights).ratio
        outputs = [compare_curves(result.outputs, other.outputs).ratio for other in (before, results[0])]
        rows.append((result.step.name, middle.bytes, middle.error, 100 * result.share, weights, *outputs))
        before = result
    columns = (Column(name), Column("bytes, middle", ",d"), Column("distance", ".3g"), Column("latents %", ".2f"),
               Column("at equal weights", ".4f"), Column("at equal outputs", ".4f"), Column("all so far", ".4f"))
    return Table(f"ablation_{name}", columns, tuple(rows))


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser("bytes at equal behaviour, part after part")
    parser.add_argument("--case", action="append", help="only this network; may be given several times; digits_cnn needs no zoo")
    parser.add_argument("--number", type=int, default=6, help="rates of a curve")
    parser.add_argument("--substitution", action="store_true", help="the last row, too")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--zoo", type=Path, default=ZOO)
    asked = parser.parse_args(arguments)
    steps = STEPS + ((SUBSTITUTION,) if asked.substitution else ())
    cases = asked.case or [DIGITS, *(CASES if asked.zoo.is_dir() else ())]
    with ProcessPoolExecutor(asked.jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        results = list(pool.map(partial(measure_case, zoo=asked.zoo, number=asked.number, steps=steps), cases))
    return finish([show(name, result) for name, result in zip(cases, results)], [], asked.out, asked.check)


if __name__ == "__main__":
    sys.exit(main())
