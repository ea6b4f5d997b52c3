"""Outliers and codebooks (METHODS S15): against k-means and the uniform quantizer, kernels as points, and what the codec chooses.

    python examples/benchmarks/clusters.py --out results --check

`inliers`: SNR less 6.02 dB for every bit beyond the one asked for.  k-means and the min-max quantizer have fixed lengths; the rates of
the codec are bytes of the unit.  Clusters are a scalar codebook with outliers, both forced, at the fraction and price that
are best at a rate within a quarter bit.  `choice`: the same tensor coded without tools and with those that the codec chooses, whole
files.  `vectors`: a codebook against the scalar quantizer (one state, rounding), the same with its Lagrangian search, and the trellis of 8
states, at equal rate.  `zoo`: how often the tools win on networks, without calibration; needs the private zoo.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from sources import ZOO
from tables import Bound, Column, Table, finish, make_parser, note

import nnc
from nnc.archive import open_compressed
from nnc.assembly import assemble_files
from nnc.cluster.choice import Request, encode_best
from nnc.cluster.encode import Clusters, encode_codebook
from nnc.cluster.outlying import take_outliers
from nnc.cluster.rules import largest_weights
from nnc.encoded import EncodedTensor
from nnc.encoder import encode_coded, make_plane
from nnc.entropy.explicit import ModelBank
from nnc.powers import measure_powers
from nnc.rdo import Search

BIT = 6.02  # dB
FRACTIONS = (0.001, 0.003, 0.01)
ROUNDING, SCALAR, TRELLIS = Search(1, 0, 0.0, 2), Search(1, 0, 0.14, 2), Search(8, 0, 0.38, 2)
NETWORKS = ("cifar10_resnet20", "dncnn_s25", "kws_dscnn", "textgenrnn_base", "stories260K")


@cache
def _draw(source: str) -> torch.Tensor:
    rng = np.random.default_rng(0)
    if source == "student-t":
        x = rng.standard_t(3, 200_000)
    elif source == "outliers":
        x = np.where(rng.random(200_000) < 0.005, 10, 1) * rng.standard_normal(200_000)
    elif source == "laplace":
        x = rng.laplace(size=200_000)
    elif source == "gaussian":
        x = rng.standard_normal(200_000)
    else:
        x = _train_digits()
    return torch.tensor((x / x.std()).reshape(-1, 500 if x.size == 200_000 else 128), dtype=torch.float32)


def _train_digits() -> np.ndarray:
    """The first layer of a network of 64, 128, 64 and 10 units for the digits of scikit-learn."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from sklearn.neural_network import MLPClassifier

    x, y = load_digits(return_X_y=True)
    x, _, y, _ = train_test_split(x / 16.0, y, test_size=0.4, random_state=0)
    return MLPClassifier((128, 64), activation="tanh", alpha=1e-4, max_iter=400, random_state=0).fit(x, y).coefs_[0]


SOURCES: dict[str, Callable[[], torch.Tensor]] = {
    name: lambda name=name: _draw(name) for name in ("student-t", "outliers", "laplace", "gaussian", "digits")
}


def snr(tensor: torch.Tensor, error: float) -> float:
    """dB, of the sum of squared errors."""
    return float(10 * np.log10(tensor.double().square().sum().item() / max(error, 1e-300)))


def bits_of(encoded: EncodedTensor) -> float:
    """Bits per weight of the unit."""
    return 8 * len(encoded.data) / encoded.record.elements


def file_bits(encoded: EncodedTensor) -> float:
    """Bits per weight of a whole file of one tensor."""
    origin = '{"kind":"module","metadata":[],"wrapper":"","extras":""}'
    return 8 * assemble_files([encoded], {}, ModelBank(), origin, None, None).size / encoded.record.elements


@dataclass(frozen=True)
class Compared:
    """Net SNR of each way in dB; rate: bits per weight of the clusters; fraction: of outliers."""

    uniform: float
    k_means: float
    clusters: float
    rate: float
    fraction: float


def compare(source: str, tensor: torch.Tensor, bits: int) -> Compared:
    x, number = tensor.double().numpy().reshape(-1), 1 << bits
    step = (x.max() - x.min()) / (number - 1)
    uniform = snr(tensor, float(np.square(x - (x.min() + np.round((x - x.min()) / step) * step)).sum()))
    k_means = snr(tensor, _k_means_error(x, number))
    best = max(_forced(tensor, bits), key=lambda found: found[0])
    return Compared(uniform, k_means, *best)


def _k_means_error(x: np.ndarray, number: int) -> float:
    from sklearn.cluster import KMeans

    return float(KMeans(number, n_init=1, random_state=0).fit(x[:, None]).inertia_)


def _forced(tensor: torch.Tensor, bits: int) -> list[tuple[float, float, float]]:
    """Net SNR, rate and fraction at several fractions and prices, at rates within a quarter bit."""
    out = []
    for fraction in FRACTIONS:
        outliers = take_outliers(tensor, largest_weights(make_plane(tensor)[1], fraction))
        for price in 4.0**-bits * np.geomspace(0.7, 9, 8):
            encoded = encode_codebook("w", tensor, Clusters("scalar", 6 << bits), price, outliers)
            rate = bits_of(encoded)
            if abs(rate - bits) <= 0.25:
                out.append((snr(tensor, encoded.error) - BIT * (rate - bits), rate, fraction))
    return out


def plain_coder(tensor: torch.Tensor, step: float, search: Search) -> Callable:
    powers = measure_powers(make_plane(tensor)[1])
    return lambda outliers=None: encode_coded("w", tensor, powers, step, search, ModelBank(), outliers=outliers)


def compare_choice(tensor: torch.Tensor, bits: float) -> tuple[float, float]:
    """SNR less 6.02 dB per bit of the file, without tools and with what is chosen, at about the rate asked for."""
    step = float(tensor.std()) * 2.0 ** -(bits - 0.7) / 2
    plain = plain_coder(tensor, step, TRELLIS)
    return tuple(
        snr(tensor, encoded.error) - BIT * file_bits(encoded)
        for encoded in (plain(), encode_best(Request("w", tensor, plain, measure_powers(make_plane(tensor)[1]), step, TRELLIS)))
    )


def at_rate(tensor: torch.Tensor, search: Search, rate: float) -> float:
    """SNR of the codec without tools at a rate, in dB, between the two nearest of a row of steps."""
    points = []
    for step in np.geomspace(0.1, 2.5, 24):
        encoded = plain_coder(tensor, step, search)()
        points.append((bits_of(encoded), snr(tensor, encoded.error)))
    points.sort()
    return float(np.interp(rate, *zip(*points)))


@cache
def kernels() -> torch.Tensor:
    """60,000 kernels of 3 x 3 with the correlation 0.85^distance."""
    places = np.array([(i, j) for i in range(3) for j in range(3)])
    distance = np.sqrt(np.square(places[:, None] - places[None]).sum(-1))
    factor = np.linalg.cholesky(0.85**distance)
    points = np.random.default_rng(0).standard_normal((60_000, 9)) @ factor.T
    return torch.tensor(points.reshape(300, 200, 3, 3), dtype=torch.float32)


@cache
def kernel_row(centroids: int) -> tuple:
    encoded = encode_codebook("w", kernels(), Clusters("kernel", centroids), 0.05)
    rate, reached = bits_of(encoded), snr(kernels(), encoded.error)
    gains = [reached - at_rate(kernels(), search, rate) for search in (ROUNDING, SCALAR, TRELLIS)]
    return f"correlated kernels, {centroids} centroids", rate, reached, *gains


def kernel_gain(centroids: int) -> float:
    """dB over the scalar quantizer at the same rate, the bytes of the centroids counted."""
    return kernel_row(centroids)[3]


@cache
def independent_row() -> tuple:
    tensor = torch.tensor(np.random.default_rng(0).standard_normal((1000, 600)), dtype=torch.float32)
    encoded = encode_codebook("w", tensor, Clusters("sub-vector", 128, 2), 0.12)
    rate, reached = bits_of(encoded), snr(tensor, encoded.error)
    gains = [reached - at_rate(tensor, search, rate) for search in (ROUNDING, SCALAR, TRELLIS)]
    return "independent Gaussian, pairs, 128 centroids", rate, reached, *gains


def independent_gain() -> tuple[float, float]:
    """Rate and dB over the scalar quantizer at that."""
    row = independent_row()
    return row[1], row[3]


def measure_inliers() -> tuple[Table, list[Bound]]:
    rows, bounds = [], []
    for source, make in SOURCES.items():
        for bits in (3, 4):
            found = compare(source, make(), bits)
            rows.append((source, bits, found.uniform, found.k_means, found.clusters, found.rate, found.fraction))
            if source in ("student-t", "outliers"):
                bounds.append(Bound(f"{source}, {bits} bits, over k-means: dB", found.clusters - found.k_means, 4, at_least=True))
                bounds.append(
                    Bound(f"{source}, {bits} bits, over min-max: dB", found.clusters - found.uniform, 15, at_least=True)
                )
    columns = [Column(name, ".2f") for name in ("min-max dB", "k-means dB", "clusters dB", "rate")]
    return Table("inliers", (Column("source"), Column("bits", "d"), *columns, Column("outliers", "g")), tuple(rows)), bounds


def measure_choice() -> tuple[Table, list[Bound]]:
    rows, bounds = [], []
    for source, make in SOURCES.items():
        for bits in (1, 2, 3, 4):
            plain, best = compare_choice(make(), bits)
            rows.append((source, bits, best - plain))
            bounds.append(Bound(f"{source}, {bits} bits, chosen over none: dB", best - plain, 0, at_least=True))
    return Table("choice", (Column("source"), Column("bits", "d"), Column("gain dB", ".3f")), tuple(rows)), bounds


def measure_vectors() -> tuple[Table, list[Bound]]:
    rows = kernel_row(256), kernel_row(1024), independent_row()
    bounds = [Bound(f"{row[0]}: dB over the scalar quantizer", row[3], 6, at_least=True) for row in rows[:2]]
    rate, gain = independent_gain()
    bounds += [
        Bound("independent weights: bits", rate, 2, at_least=True),
        Bound("independent weights: dB", gain, 0, at_least=True),
    ]
    bounds += [Bound("independent weights: dB", gain, 1.53)]
    columns = ["bits", "SNR dB", "over scalar dB", "over scalar with search dB", "over trellis dB"]
    return Table("vectors", (Column("source"), *(Column(name, ".2f") for name in columns)), rows), bounds


def measure_zoo(zoo: Path) -> Table:
    rows = []
    for network in NETWORKS:
        path = zoo / "data" / f"{network}.safetensors"
        if not path.is_file():
            continue
        for bits in (1.5, 3.0, 5.0):
            note(f"{network}, {bits:g} bits")
            with tempfile.TemporaryDirectory() as folder:
                nnc.compress(path, Path(folder) / "w.safetensors", bits=bits, tools="outliers,codebook")
                with open_compressed(Path(folder) / "w.safetensors", None, None) as archive:
                    codings = [record.coding for file in archive.files for record in file.directory.records if record.coding]
            rows.append(
                (
                    network,
                    bits,
                    sum(coding.labelling < 2 and coding.split > 0 for coding in codings),
                    sum(coding.tools.outliers is not None for coding in codings),
                    sum(coding.tools.codebook is not None for coding in codings),
                )
            )
    return Table(
        "zoo",
        (Column("network"), Column("bits", "g"), *(Column(n, "d") for n in ("coded", "outliers", "codebooks"))),
        tuple(rows),
    )


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser("outliers and codebooks")
    parser.add_argument("--zoo", type=Path, default=ZOO, metavar="FOLDER", help="folder of the zoo; left out where it is not")
    asked = parser.parse_args(arguments)
    tables, bounds = [], []
    for measure in (measure_inliers, measure_choice, measure_vectors):
        table, more = measure()
        tables.append(table)
        bounds += more
    zoo = measure_zoo(asked.zoo)
    tables += [zoo] if zoo.rows else []
    return finish(tables, bounds, asked.out, asked.check)


if __name__ == "__main__":
    sys.exit(main())
