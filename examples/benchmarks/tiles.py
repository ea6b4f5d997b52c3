"""Tiled coding with spatial context prediction: its figures against the bounds of theory, by real bytes.

    python examples/benchmarks/tiles.py --out results --check

`prediction`: a separable field, correlation rho between neighbours, tiles of t x t.  Open loop: variance of the pixels over that of what the
learned predictor leaves (learned on one field, measured on another), beside the best linear one.  Closed loop: error at the same
bytes over coding without prediction, both with a transform; the limit is that of the two ideal transforms at high rate, without
side information.
`steps`: every tile stopped after t steps: bytes and error, and the bytes without the trained entropy coder.
`noise`: white noise, which is not to be predicted, and its distance to the limit of rate and distortion.
`folded`: a source that no linear predictor follows.
`coded`: the same fields as coded tensors (trellis of 8 states) at the same squared error.
"""

from __future__ import annotations

import sys
from math import log10

import numpy as np
import torch
from tables import Bound, Column, Table, finish, make_parser, note

from nnc.encoded import EncodedTensor
from nnc.encoder import encode_coded, make_plane
from nnc.entropy.explicit import ModelBank
from nnc.powers import measure_powers
from nnc.rdo import Search
from nnc.tiling.encode import Asked, encode_plane, encode_tiled
from nnc.tiling.learning import apply_linear, choose_linear, collect_tiles

FIELDS = ((0.8, 8), (0.9, 4), (0.9, 8), (0.9, 16), (0.95, 8))
STEP = 0.1
BOUNDED = (0.9, 8)  # whose bounds are asked for: 90 % of the open loop in dB, 1.5 dB in the closed one
OCTAVE = 20 * log10(2)


def make_field(size: int, rho: float, seed: int) -> torch.Tensor:
    field = np.random.default_rng(seed).standard_normal((size, size))
    for _ in range(2):
        for i in range(1, size):
            field[i] = rho * field[i - 1] + (1 - rho * rho) ** 0.5 * field[i]
        field = field.T
    return torch.tensor(np.ascontiguousarray(field), dtype=torch.float32)


def make_folded(size: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    columns = [rng.standard_normal(size) * 0.3]
    for _ in range(size - 1):
        columns.append(1 - 1.5 * np.abs(columns[-1]) + 0.1 * rng.standard_normal(size))
    return torch.tensor(np.stack(columns, 1), dtype=torch.float32)


def bound_of(rho: float, t: int) -> tuple[float, float]:
    """dB of the best linear prediction from the tiles left, above, above-left and above-right, and what it adds to a transform."""
    y, x = (axis.ravel() for axis in np.meshgrid(np.arange(2 * t), np.arange(3 * t), indexing="ij"))
    covariance = rho ** (np.abs(y[:, None] - y) + np.abs(x[:, None] - x))
    own = (y >= t) & (x >= t) & (x < 2 * t)
    known = (y < t) | ((y >= t) & (x < t))
    alone = covariance[np.ix_(own, own)]
    cross = covariance[np.ix_(own, known)]
    left = alone - cross @ np.linalg.solve(covariance[np.ix_(known, known)], cross.T)
    gain = [np.log10(np.linalg.eigvalsh(matrix)).mean() for matrix in (alone, left)]
    return -10 * log10(np.trace(left) / t / t), 10 * (gain[0] - gain[1])


def bits_of(encoded: EncodedTensor) -> float:
    return 8 * len(encoded.data) / encoded.record.elements


def decibels(encoded: EncodedTensor) -> float:
    return 10 * log10(encoded.error / encoded.record.elements)


def error_at(rate: float, field: torch.Tensor, step: float, asked: Asked) -> float:
    """Error in dB at a rate, between steps around this one."""
    curve = [encode_tiled("w", field, factor * step, asked) for factor in (1.7, 1.4, 1.2, 1.0, 0.85)]
    return float(np.interp(rate, [bits_of(e) for e in curve], [decibels(e) for e in curve]))


def measure_prediction(size: int) -> tuple[Table, list[Bound]]:
    rows, bounds = [], []
    for rho, t in FIELDS:
        note(f"prediction {rho:g}, {t} x {t}")
        field, other = make_field(size, rho, 2), make_field(size, rho, 3).double().numpy() / STEP
        asked = Asked(t, t, "linear")
        target = field.double().numpy() / STEP
        decoded = encode_plane(field.numpy(), 1, STEP, Asked(t, t, "none"))[2].pixels
        learned, _ = choose_linear(target - target.mean(), decoded, t, t)
        tiles = collect_tiles(other, np.round(other * 64).astype(np.int32), learned.layout)
        rest = tiles.pixels - apply_linear(tiles.contexts, learned.layout, learned.codes / (1 << learned.shift))
        open_gain = 10 * log10(np.square(tiles.pixels).mean() / np.square(rest).mean())
        predicted = encode_tiled("w", field, STEP, asked)
        gain = error_at(bits_of(predicted), field, STEP, Asked(t, t, "none")) - decibels(predicted)
        most = bound_of(rho, t)
        rows.append(
            (rho, t, open_gain, most[0], bits_of(predicted), gain, most[1], predicted.record.tiles.predictor.codes.length)
        )
        if (rho, t) == BOUNDED:
            bounds.append(Bound("open-loop gain in dB", open_gain, 4.45, True))
            bounds.append(Bound("closed-loop gain at the same bytes in dB", gain, 1.5, True))
    columns = (
        Column("rho", "g"),
        Column("tile", "d"),
        Column("open dB", ".2f"),
        Column("best dB", ".2f"),
        Column("bits", ".3f"),
        Column("closed dB", ".2f"),
        Column("limit dB", ".2f"),
        Column("bytes of weights", "d"),
    )
    return Table("prediction", columns, tuple(rows)), bounds


def measure_steps(size: int) -> tuple[Table, list[Bound]]:
    field, rows = make_field(size, 0.9, 4), []
    most = encode_tiled("w", field, STEP, Asked(predictor="linear")).record.tiles.steps
    for steps in range(1, most + 1):
        note(f"steps {steps}")
        trained, raw = (
            encode_tiled("w", field, STEP, Asked(predictor="linear", most_steps=steps, trained=t)) for t in (True, False)
        )
        rows.append((steps, bits_of(trained), bits_of(raw), decibels(trained)))
    falls = [before[3] - after[3] for before, after in zip(rows, rows[1:])]
    bounds = [
        Bound("steps", most, 4, True),
        Bound("least fall of the error with a step in dB", min(falls), 0.01, True),
        Bound("largest size with the trained coder over raw bits", max(row[1] / row[2] for row in rows), 1.0),
    ]
    columns = (Column("steps", "d"), Column("bits", ".3f"), Column("raw bits", ".3f"), Column("error dB", ".2f"))
    return Table("steps", columns, tuple(rows)), bounds


def measure_noise(size: int) -> tuple[Table, list[Bound]]:
    noise, rows, bounds = torch.tensor(np.random.default_rng(7).standard_normal((size, size)), dtype=torch.float32), [], []
    for step in (1.0, 0.5, 0.25):
        note(f"noise {step:g}")
        alone, asked = (encode_tiled("w", noise, step, Asked(predictor=p)) for p in ("none", "hidden"))
        cost = len(asked.data) / len(alone.data) - 1
        rows.append((step, bits_of(alone), decibels(alone) + OCTAVE * bits_of(alone), 100 * cost))
        bounds.append(Bound(f"cost of prediction that is off, in %, at step {step:g}", 100 * cost, 0.1))
    columns = (Column("step", "g"), Column("bits", ".3f"), Column("over the limit dB", ".3f"), Column("cost %", ".4f"))
    return Table("noise", columns, tuple(rows)), bounds


def measure_folded(size: int) -> tuple[Table, list[Bound]]:
    plane, rows = make_folded(size, 1), []
    for predictor in ("none", "linear", "hidden"):
        note(f"folded {predictor}")
        found = encode_tiled("w", plane, STEP, Asked(8, 1, predictor))
        rows.append((predictor, bits_of(found), decibels(found)))
    columns = (Column("predictor"), Column("bits", ".3f"), Column("error dB", ".2f"))
    return Table("folded", columns, tuple(rows)), [
        Bound("bits with a hidden layer over a linear one", rows[2][1] / rows[1][1], 1.0)
    ]


def measure_coded(size: int) -> Table:
    rows = []
    for rho in (0.5, 0.7, 0.9):
        note(f"coded {rho:g}")
        field = make_field(size, rho, 2)
        tiled = encode_tiled("w", field, STEP, Asked(predictor="linear"))
        powers, curve = measure_powers(make_plane(field)[1]), []
        for factor in (0.7, 0.6, 0.5, 0.45):
            curve.append(encode_coded("w", field, powers, factor * STEP, Search(8, 0, 0.38, 2), ModelBank()))
        rate = float(np.interp(-decibels(tiled), [-decibels(e) for e in curve], [bits_of(e) for e in curve]))
        rows.append((rho, decibels(tiled), bits_of(tiled), rate))
    columns = (Column("rho", "g"), Column("error dB", ".2f"), Column("tiled bits", ".3f"), Column("coded bits", ".3f"))
    return Table("coded", columns, tuple(rows))


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser("tiles with spatial context prediction against their bounds")
    parser.add_argument("--size", type=int, default=512, help="rows and columns of the sources; the bounds are for 512")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = [part(asked.size) for part in (measure_prediction, measure_steps, measure_noise, measure_folded)]
    tables = [table for table, _ in found] + [measure_coded(asked.size)]
    return finish(tables, [bound for _, bounds in found for bound in bounds], asked.out, asked.check)


if __name__ == "__main__":
    sys.exit(main())
