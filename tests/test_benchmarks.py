"""The arithmetic of the benchmark scripts, and the Gaussian one at a reduced size."""
from __future__ import annotations

import csv
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nnc import InsufficientData

SCRIPTS = Path(__file__).resolve().parents[1] / "examples" / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """Imports a script by name, as Python does when one of them runs; their short names are free again afterwards."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield importlib.import_module
    for path in SCRIPTS.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def curves(script):
    return script("curves")


def make_curve(curves, sizes, scale=1.0, slope=-6.0):
    """Errors fall exponentially with the bytes, as 2^(-2R) does; a little unevenly."""
    return [curves.Point(round(scale * size), float(np.exp(slope * size / 1e5) * (1 + 0.2 * np.sin(size)))) for size in sizes]


def test_a_curve_with_bytes_times_four_fifths_gives_four_fifths(curves):
    peer = make_curve(curves, range(10_000, 100_000, 5_000))
    got = curves.compare_curves([curves.Point(p.bytes * 4 // 5, p.error) for p in peer], peer)
    assert (got.ratio, got.lowest, got.highest) == pytest.approx((0.8, 0.8, 0.8), rel=1e-12)
    front = curves.pareto_front(peer)
    assert (got.finest, got.coarsest) == pytest.approx((front[-1].error, front[0].error))


def test_a_curve_with_other_points_on_the_same_line_gives_the_same_ratio(curves):
    # log(bytes) linear in log(error): bytes = 1000 error^(-1/2), ours four fifths of it at other errors
    peer = [curves.Point(1000 * 2**n, 4.0**-n) for n in range(8)]
    ours = [curves.Point(800 * 2**n * 2, 4.0**-(n + 1)) for n in range(9)]
    sparse = [ours[0], ours[3], ours[8]]
    assert curves.compare_curves(sparse, peer).ratio == pytest.approx(0.8, rel=1e-12)


def test_the_ratio_is_the_mean_of_its_logarithm_over_the_overlap(curves):
    # from 1 to 1/2 over the overlap, linear in the logarithm: the mean is 1 / sqrt(2); beyond the overlap nothing counts
    peer = [curves.Point(1000, 1.0), curves.Point(1000 * 64, 1e-3), curves.Point(1000 * 64**2, 1e-6)]
    ours = [curves.Point(1000, 1.0), curves.Point(1000 * 32, 1e-3)]
    got = curves.compare_curves(ours, peer)
    assert (got.ratio, got.lowest, got.highest) == pytest.approx((0.5**0.5, 0.5, 1.0))
    assert (got.finest, got.coarsest) == pytest.approx((1e-3, 1.0))


def test_the_front_leaves_out_what_a_smaller_file_does_better(curves):
    points = [curves.Point(*p) for p in [(300, 0.1), (100, 1.0), (200, 1.5), (250, 0.1), (400, 0.0), (250, 0.2), (500, 0.05)]]
    assert curves.pareto_front(points) == [curves.Point(100, 1.0), curves.Point(250, 0.1), curves.Point(500, 0.05)]


def test_bad_points_change_no_ratio(curves):
    peer = make_curve(curves, range(10_000, 100_000, 5_000))
    ours = [curves.Point(p.bytes // 2, p.error) for p in peer]
    worse = [curves.Point(p.bytes + 3, p.error * 2) for p in ours]
    assert curves.compare_curves(ours + worse, peer) == curves.compare_curves(ours, peer)


@pytest.mark.parametrize("errors", [(1e-5, 1e-6), (5.0, 4.0)])
def test_curves_that_do_not_overlap_are_refused(curves, errors):
    peer = [curves.Point(1000, 1.0), curves.Point(2000, 0.1)]
    with pytest.raises(InsufficientData, match="do not overlap"):
        curves.compare_curves([curves.Point(500 + n, e) for n, e in enumerate(errors)], peer)


def test_a_curve_of_one_point_is_refused(curves):
    with pytest.raises(InsufficientData, match="a curve of 1 points"):
        curves.compare_curves([curves.Point(500, 0.5), curves.Point(600, 0.6)], make_curve(curves, range(10_000, 20_000, 5_000)))


def test_bounds_and_tables(script, tmp_path, capsys):
    tables = script("tables")
    table = tables.Table("made", (tables.Column("name"), tables.Column("value", ".2f")), (("a", 1.23456), ("long", None)))
    kept, missed = tables.Bound("small", 1.0, 1.0), tables.Bound("fast", 1.9, 2.0, at_least=True)
    assert tables.finish([table], [kept], tmp_path / "new", True) == 0
    assert tables.finish([], [kept, missed], None, False) == 0
    assert tables.finish([], [kept, missed], None, True) == 1
    printed = capsys.readouterr().out
    assert "name  value\na      1.23\nlong\n" in printed and "MISSED  fast: 1.9, at least 2" in printed
    with open(tmp_path / "new" / "made.csv", newline="") as file:
        assert list(csv.reader(file)) == [["name", "value"], ["a", "1.23456"], ["long", ""]]


def test_the_oracle_spends_the_entropy_of_a_uniform_quantizer(script):
    gaussian = script("gaussian")
    weights = gaussian.make_gaussian(500, 500)
    ones = torch.ones(1, dtype=torch.float64)
    # fine steps: differential entropy 1/2 log2(2 pi e) - log2(step)
    assert gaussian.oracle_bits(weights, ones, 0.1) == pytest.approx(2.0471 + np.log2(10), abs=0.01)
    assert gaussian.oracle_bits(weights, ones, 0.5) == pytest.approx(gaussian.factorized_bits(weights, 0.5), abs=0.002)
    scaled, scales = gaussian.make_scaled(200, 200)
    assert gaussian.oracle_bits(scaled, scales, 0.5) < 0.9 * gaussian.factorized_bits(scaled, 0.5)


def test_the_distance_is_zero_at_the_limit(script):
    gaussian = script("gaussian")
    assert gaussian.Distance(3.0, 2.0**-6).distance == pytest.approx(0)
    assert gaussian.Distance(2.5, 2.0**-4).distance == pytest.approx(10 * np.log10(2), abs=1e-9)  # half a bit more than needed


@pytest.mark.slow
def test_gaussian_script_at_a_reduced_size(script, tmp_path):
    gaussian = script("gaussian")
    options = ["--size", "300", "--effort", "fast", "--effort", "default", "--threads", "1", "--out", str(tmp_path)]
    assert gaussian.main(options) == 0
    with open(tmp_path / "gaussian.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    asked = [(row["asked bits"], row["effort"]) for row in rows]
    assert asked == [("2.0", "fast"), ("2.0", "default"), ("3.0", "fast"), ("3.0", "default")]
    for row in rows:
        assert float(row["bits"]) <= float(row["asked bits"])
        assert 0 < float(row["distance dB"]) < gaussian.BOUNDS[row["effort"]] + 0.4  # headers weigh more in a small file
    with open(tmp_path / "scales.csv", newline="") as file:
        ratios = {row["coder"]: float(row["to the oracle"]) for row in csv.DictReader(file)}
    assert 1 < ratios["nnc, rounded"] < 1.05 < ratios["factorized"]


@pytest.mark.slow
def test_correlated_script_at_a_reduced_size(script, tmp_path):
    correlated = script("correlated")
    assert correlated.main(["--inputs", "96", "--size", "128", "--out", str(tmp_path)]) == 0
    with open(tmp_path / "correlated.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(correlated.RATES) * len(correlated.CODERS)
    distance = {(row["coder"], row["states"]): float(row["distance dB"]) for row in rows[: len(correlated.CODERS)]}
    assert distance["no feedback", "1"] > distance["equal steps", "1"] > distance["column steps", "1"] > distance["column steps", "8"] > 0
    assert all(abs(float(row["bits"]) - rate) < 0.05 for row, rate in zip(rows, np.repeat(correlated.RATES, len(correlated.CODERS))))
    with open(tmp_path / "substitution.csv", newline="") as file:
        gains = [float(row["gain dB"]) for row in csv.DictReader(file)]
    assert len(gains) == 6 and min(gains) > 1


def test_the_sources_of_correlated_errors(script):
    correlated = script("correlated")
    moment = correlated.make_moment(50)
    s = np.sqrt(np.diagonal(moment))
    assert moment[3, 7] == pytest.approx(0.9**4 * s[3] * s[7]) and np.log(s).std() == pytest.approx(0.7, abs=0.2)
    values = np.linalg.eigvalsh(correlated.make_decaying(50, 0.9))[::-1]
    assert values.sum() == pytest.approx(50)
    np.testing.assert_allclose(values / values[0], (0.9 ** np.arange(50) + 1e-3) / (1 + 1e-3), rtol=1e-6)
    assert correlated.Point(2.0, 0.5, 1.0).above(-3.0) == pytest.approx(-3.0103 + 3 + 12.0412, abs=1e-3)


def test_random_checkpoints_have_the_shapes_they_stand_for(script):
    sources = script("sources")
    assert sum(int(np.prod(shape)) for shape in sources.minilm_shapes().values()) == 22_713_216
    assert sum(int(np.prod(shape)) for name, shape in sources.resnet20_shapes().items() if "running" not in name) == 269_722


def test_the_weight_error_counts_matrices_only(script):
    sources = script("sources")
    state = {"w": torch.tensor([[3.0, 4.0]]), "b": torch.tensor([7.0]), "i": torch.tensor([[5]])}
    decoded = {"w": torch.tensor([[3.0, 3.0]]), "b": torch.tensor([0.0]), "i": torch.tensor([[9]])}
    assert sources.weight_error(state, decoded) == pytest.approx(1 / 25)
    assert sources.count_parameters(state) == 3


@pytest.mark.slow
def test_the_ways_to_run_an_integer_network(script):
    networks = script("integer_networks")
    levels, values = networks.trace(networks.make_field(48))
    samples = networks.Samples.make(values, levels, np.ones(len(levels), np.float32))
    table, bounds = networks.measure_identity(samples, levels, networks.Shadow("context", networks.SEEN, (9,), 8, seed=1))
    kept = {bound.name: bound.kept for bound in bounds}
    assert kept["hashes of the tables by the integer ways"] and kept["largest sum in magnitude"] and kept["float32 outputs that differ"]
    assert [row[2] for row in table.rows[:7]] == [0] * 7 and len({row[3] for row in table.rows[:7]}) == 1
    start = networks.saturated(samples)
    outputs = start.layers[0](networks.torch.from_numpy(values[:, list(networks.SEEN)]).float())
    assert float(outputs.detach().min()) == 255


def test_networks_are_learned_from_networks_of_the_script(script):
    make = script("make_network")
    name, state = next(make.checkpoints(1))
    assert name == "mlp" and sum(tensor.numel() for tensor in state.values()) > 30_000
