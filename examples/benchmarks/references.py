"""Prediction from another checkpoint, and from earlier tensors of the same one, on the networks of the private zoo and on a source whose limit is known.

    python examples/benchmarks/references.py --check

Printed: bits per weight of a permuted, drifted matrix beside theory (METHODS S6 (c)); bytes of the epochs of a training run given the
one before, against each alone, lossy and without loss; bytes of fine-tuned networks given their base at equal cross-entropy;
bytes of checkpoints that hold several of them in one file, with and without the tool `inter`.
"""
from __future__ import annotations

import sys
import tempfile
from math import e, log2, pi
from pathlib import Path

import numpy as np
import torch
from curves import Point, compare_curves
from safetensors.torch import load_file
from sources import ZOO, import_zoo
from tables import Bound, Column, Table, finish, make_parser, note

import nnc

STEP, SIZE = 0.05, 256
EPOCHS = range(21, 26)
TUNED = ("textgenrnn_ft_hacker_news", "textgenrnn_ft_apple_android")
SNR = 80.0  # dB: a relative error of 1e-4 of the tensors with two or more axes
RATES = (24.0, 28.0, 32.0, 36.0)
TOGETHER = {"ESPCN, epochs 21 to 25": tuple(f"espcn_x3_epoch{epoch}" for epoch in EPOCHS), "textgenrnn and two fine-tunes": ("textgenrnn_base", *TUNED)}


def measure_drift(folder: Path) -> tuple[Table, list[Bound]]:
    rng = np.random.default_rng(0)
    base = rng.standard_normal((SIZE, SIZE)).astype(np.float32)
    rows, bounds = [], []
    for drift in (0.05, 0.2):
        order = rng.permutation(SIZE)
        tuned = {"w": torch.from_numpy((base[order] + drift * rng.standard_normal(base.shape)).astype(np.float32))}
        path = folder / "drift.safetensors"
        sizes = []
        for reference in (None, {"w": torch.from_numpy(base)}):
            nnc.compress(tuned, path, step=STEP, effort="fast", reference=reference, overwrite=True)
            sizes.append(8 * path.stat().st_size / SIZE**2)
        theory = log2(drift * (2 * pi * e) ** 0.5 / STEP)
        rows.append((drift, *sizes, theory))
        bounds.append(Bound(f"bits per weight above theory, drift {drift:g}", sizes[1] - theory, 0.2))
    columns = (Column("drift", "g"), *(Column(name, ".3f") for name in ("alone b/w", "against base b/w", "theory b/w")))
    return Table("references_drift", columns, tuple(rows)), bounds


def measure_epochs(zoo: Path, folder: Path) -> tuple[Table, list[Bound]]:
    """Every epoch given the one before: lossy the decoded one, without loss the original."""
    paths = {epoch: import_zoo(zoo).CASES[f"espcn_x3_epoch{epoch}"].weights() for epoch in EPOCHS}
    rows, bounds = [], []
    for epoch, path in paths.items():
        mine = folder / f"{epoch}.safetensors"
        alone = nnc.compress(path, folder / "alone.safetensors", snr=SNR, overwrite=True).file_bytes
        kept = nnc.compress(path, folder / "kept.safetensors", lossless=True, overwrite=True).file_bytes
        if epoch == EPOCHS[0]:
            nnc.compress(path, mine, snr=SNR)
            continue
        given = nnc.compress(path, mine, snr=SNR, reference=folder / f"{epoch - 1}.safetensors").file_bytes
        same = nnc.compress(path, folder / "same.safetensors", lossless=True, reference=paths[epoch - 1], overwrite=True).file_bytes
        before, after = load_file(str(path)), nnc.load(mine)
        planes = [name for name in before if before[name].ndim > 1]
        power = [sum(float(t.double().square().sum()) for t in ts)
                 for ts in ((before[n] - after[n] for n in planes), (before[n] for n in planes))]
        rows.append((epoch, alone, given, given / alone, (power[0] / power[1]) ** 0.5, kept, same, same / kept))
        bounds += [Bound(f"epoch {epoch} given {epoch - 1}, at 1e-4", given / alone, 0.45),
                   Bound(f"epoch {epoch} given {epoch - 1}, without loss", same / kept, 0.85)]
    columns = (Column("epoch", "d"), Column("alone B", ",d"), Column("given B", ",d"), Column("ratio", ".3f"), Column("error of planes", ".2e"),
               Column("lossless alone B", ",d"), Column("given B", ",d"), Column("ratio", ".3f"))
    return Table("references_epochs", columns, tuple(rows)), bounds


def measure_tuned(zoo: Path, folder: Path, name: str) -> tuple[tuple, list[Bound]]:
    """A fine-tuned network with and without its base: bytes at equal excess cross-entropy."""
    networks = import_zoo(zoo)
    case, base = networks.CASES[name], networks.CASES["textgenrnn_base"].weights()
    model = networks.load(case)
    best = case.score(case.outputs(model))["value"]
    curves: list[list[Point]] = []
    for reference in (base, None):
        points = []
        for snr in RATES:
            path = folder / "tuned.safetensors"
            nnc.compress(case.weights(), path, snr=snr, reference=reference, overwrite=True)
            model.load_state_dict(nnc.load(path, reference=reference), strict=True)
            points.append(Point(path.stat().st_size, case.score(case.outputs(model))["value"] - best))
        curves.append(points)
    ratio = compare_curves(*curves).ratio
    path, kept = folder / "kept.safetensors", []
    for reference in (base, None):
        kept.append(nnc.compress(case.weights(), path, lossless=True, reference=reference, overwrite=True).file_bytes)
    before, after = load_file(str(base)), load_file(str(case.weights()))
    same = float((before["embedding.weight"] == after["embedding.weight"]).all(1).float().mean())
    nnc.compress(case.weights(), path, snr=RATES[0], reference=base, overwrite=True)
    decoded = nnc.load(path, reference=base)["embedding.weight"]
    found = float((before["embedding.weight"] == decoded).all(1).float().mean())
    row = (name, ratio, kept[0] / kept[1], same, found)
    return row, [Bound(f"{name} given its base, equal cross-entropy", ratio, 0.85),
                 Bound(f"{name}: rows of the embedding that stay the same", found, same, at_least=True)]


def measure_together(zoo: Path, folder: Path) -> tuple[Table, list[Bound]]:
    """Several states of a network as one checkpoint, at equal errors."""
    rows, path, cases = [], folder / "together.safetensors", import_zoo(zoo).CASES
    for title, names in TOGETHER.items():
        state = {f"{name}.{key}": tensor for name in names for key, tensor in load_file(str(cases[name].weights())).items()}
        for snr in (25.0, 40.0):
            without, given = (nnc.compress(state, path, snr=snr, tools=tools, overwrite=True) for tools in ("transform,memory", "default"))
            rows.append((title, f"{snr:.0f}", without.file_bytes, given.file_bytes, given.file_bytes / without.file_bytes, given.snr - without.snr))
        kept = [nnc.compress(state, path, lossless=True, tools=tools, overwrite=True).file_bytes for tools in ("none", "default")]
        rows.append((title, "lossless", *kept, kept[1] / kept[0], 0.0))
    columns = (Column("checkpoint"), Column("dB"), Column("without B", ",d"), Column("with inter B", ",d"), Column("ratio", ".3f"), Column("dB more", ".2f"))
    return Table("references_together", columns, tuple(rows)), [Bound("bytes with inter over without, largest", max(row[4] for row in rows), 1.0)]


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser("prediction from another checkpoint")
    parser.add_argument("--zoo", type=Path, default=ZOO, help="folder of the zoo")
    options = parser.parse_args(arguments)
    if import_zoo(options.zoo) is None:
        note(f"{options.zoo}: no zoo there: nothing to measure")
        return 0
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        drift, bounds = measure_drift(folder)
        epochs, more = measure_epochs(options.zoo, folder)
        tuned = [measure_tuned(options.zoo, folder, case) for case in TUNED]
        together, last = measure_together(options.zoo, folder)
    columns = (Column("network"), *(Column(name, ".3f") for name in ("ratio", "lossless ratio", "same rows", "rows found")))
    table = Table("references_tuned", columns, tuple(row for row, _ in tuned))
    bounds += more + [bound for _, found in tuned for bound in found] + last
    return finish([drift, epochs, table, together], bounds, options.out, options.check)


if __name__ == "__main__":
    sys.exit(main())
