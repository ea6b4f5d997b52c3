"""Whole files with statistics of the loss: round trips, the same bytes with any number of threads, predictions that are kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import nnc
from nnc import compression
from nnc.calibration.statistics import Statistics, TensorStatistics
from nnc.encoder import encode_calibrated, make_plane
from nnc.entropy.explicit import ModelBank
from nnc.errors import InvalidArgument
from nnc.rdo import Search
from nnc.sensitivity import measure_sensitivity

SHAPES = [(1, 5), (3, 1), (9, 32, 3, 3), (64, 64), (300, 40), (40, 300), (16, 16, 3, 3)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def moment(rng, size: int) -> np.ndarray:
    x = (rng.normal(size=(3 * size + 5, size)) + rng.normal(size=(3 * size + 5, 1))) * np.exp(0.5 * rng.normal(size=size))
    return (x.T @ x / len(x)).astype(np.float32)


def make_case(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, TensorStatistics]:
    """Weights and statistics of both sides, R of the size that errors of a network have."""
    rng = np.random.default_rng(seed)
    tensor = torch.from_numpy(rng.normal(size=shape).astype(np.float32)).to(dtype)
    m, n = make_plane(tensor)[1].shape
    return tensor, TensorStatistics(1e-3 * moment(rng, m), moment(rng, n), (2000, 1000))


def known(**tensors: TensorStatistics) -> Statistics:
    return Statistics(tensors, "logits", 1000)


def compress(folder, tensors, statistics, threads=1, **options):
    path = folder / f"{threads}.safetensors"
    return path, nnc.compress(tensors, path, statistics=statistics, threads=threads, overwrite=True, **options)


def error_of(path, tensors, name="w") -> np.ndarray:
    return make_plane(nnc.load(path)[name].float() - tensors[name].float())[1]


def wanted_loss(tensor, statistics) -> float:
    """One percent of what losing the tensor would cost."""
    return 0.01 * statistics.loss(make_plane(tensor)[1])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_round_trip(shape, dtype, tmp_path):
    tensor, statistics = make_case(shape, dtype)
    other, of_other = make_case((20, 30), torch.float32, 1)  # vectors alone would leave nothing to quantize
    tensors, found = {"w": tensor, "other": other}, known(w=statistics, other=of_other)
    path, summary = compress(tmp_path, tensors, found, kl=wanted_loss(tensor, statistics) + wanted_loss(other, of_other))
    back = nnc.load(path)["w"]
    assert back.dtype == dtype and back.shape == tensor.shape and not summary.unseen
    total = statistics.loss(error_of(path, tensors)) + of_other.loss(error_of(path, tensors, "other"))
    # what is lost where float32 becomes bfloat16 is not in the prediction
    assert summary.loss == pytest.approx(total, rel=1e-3 if dtype != torch.bfloat16 else 1e-2)
    assert nnc.verify(path) == 2


@pytest.mark.parametrize("shape, states", [((9, 32, 3, 3), 1), ((300, 40), 8), ((40, 300), 8), ((280, 260), 8), ((64, 64), 64)])
def test_the_bytes_do_not_depend_on_threads(shape, states, tmp_path):
    tensor, statistics = make_case(shape, torch.float32)
    for rows in (statistics.rows, np.diagonal(statistics.rows).copy()):
        found = known(w=TensorStatistics(rows, statistics.columns, statistics.samples))
        files = [compress(tmp_path, {"w": tensor}, found, threads, bits=3.2, states=states)[0].read_bytes() for threads in (1, 2)]
        assert files[0] == files[1]


def test_rows_that_do_not_see_each_other(tmp_path):
    """Without R the bands of rows are searched apart from each other, in threads."""
    rng = np.random.default_rng(0)
    tensor = torch.from_numpy(rng.normal(size=(700, 130)).astype(np.float32))
    statistics = TensorStatistics(np.full(700, 1e-3, np.float32), moment(rng, 130), (2000, 1000))
    path, summary = compress(tmp_path, {"w": tensor}, known(w=statistics), bits=3)
    assert nnc.inspect(path).tensors[0].ctus > 1
    assert summary.loss == pytest.approx(statistics.loss(error_of(path, {"w": tensor})), rel=1e-3)
    again, _ = compress(tmp_path, {"w": tensor}, known(w=statistics), 2, bits=3)
    assert path.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("shape", [(300, 40), (40, 300), (16, 16, 3, 3)], ids=str)
def test_statistics_lower_the_loss_at_the_same_size(shape, tmp_path):
    tensor, statistics = make_case(shape, torch.float32)
    with_statistics, summary = compress(tmp_path, {"w": tensor}, known(w=statistics), bits=4)
    without, plain = compress(tmp_path, {"w": tensor}, None, threads=2, bits=4)
    losses = [statistics.loss(error_of(p, {"w": tensor})) for p in (with_statistics, without)]
    assert losses[0] < 0.7 * losses[1] and plain.loss is None and summary.snr < plain.snr


def test_dead_inputs_and_outputs_and_weights(tmp_path):
    tensor, statistics = make_case((80, 90), torch.float32)
    tensor[5], tensor[:, 11] = 0, 0
    rows, columns = statistics.rows.copy(), statistics.columns.copy()
    rows[[7, 8]] = rows[:, [7, 8]] = columns[3] = columns[:, 3] = 0
    for side in (rows, np.diagonal(rows).copy()):
        found = TensorStatistics(side, columns, statistics.samples)
        path, summary = compress(tmp_path, {"w": tensor}, known(w=found), bits=3.5)
        assert summary.loss == pytest.approx(found.loss(error_of(path, {"w": tensor})), rel=1e-3)


@pytest.mark.slow
def test_tensors_that_calibration_did_not_see(tmp_path):
    tensor, statistics = make_case((40, 50), torch.float32)
    zero = TensorStatistics(np.zeros(40, np.float32), np.zeros((50, 50), np.float32), (1, 1))
    tensors = {"seen": tensor, "zero": tensor + 1, "unseen": tensor - 1}
    path, summary = compress(tmp_path, tensors, known(seen=statistics, zero=zero), bits=4)
    assert summary.unseen == ("zero", "unseen")
    assert summary.loss == pytest.approx(statistics.loss(error_of(path, tensors, "seen")), rel=1e-3)
    assert all(np.abs(error_of(path, tensors, name)).mean() < 0.5 for name in tensors)


@pytest.mark.parametrize("factor", [1e-9, 1e-3, 1e9])
@pytest.mark.parametrize("states", [1, 8])
def test_any_factor_gives_a_tensor(factor, states):
    """Finer than float32 can tell: without loss; coarser than the weights: capped, so that something is left of them."""
    tensor, statistics = make_case((60, 70), torch.float32)
    found = encode_calibrated("w", tensor, measure_sensitivity(statistics), factor, Search(states, 0, 0.3, 1), ModelBank())
    if factor == 1e-9:
        assert found.record.kind == "exact"
    else:
        nothing = statistics.loss(make_plane(tensor)[1])  # the loss of a tensor of zeros; the error itself may well be larger than that
        assert found.record.kind == "coded" and found.loss < nothing
        assert 8 * len(found.data) / tensor.numel() > 0.2


def test_positive_vectors_on_a_coarser_grid(tmp_path):
    """The less a vector matters, the coarser its logarithmic grid, down to a quarter of an octave; the prediction is kept."""
    gain = torch.from_numpy(np.exp(np.random.default_rng(0).normal(size=200)).astype(np.float32))
    weights, of_weights = make_case((60, 70), torch.float32)
    sizes = []
    for power in (1e-2, 1e-5, 1e-8):
        vector = TensorStatistics(np.ones(1, np.float32), np.full(200, power, np.float32), (100, 100))
        tensors, found = {"w": weights, "gain": gain}, known(w=of_weights, gain=vector)
        path, summary = compress(tmp_path, tensors, found, kl=wanted_loss(weights, of_weights))
        total = of_weights.loss(error_of(path, tensors)) + vector.loss(error_of(path, tensors, "gain"))
        assert summary.loss == pytest.approx(total, rel=1e-3)
        back = nnc.load(path)["gain"]
        assert (back > 0).all() and (back / gain).log2().abs().max() < 0.13
        sizes.append(next(t.bytes for t in nnc.inspect(path).tensors if t.name == "gain"))
    assert sizes[0] > sizes[1] >= sizes[2]


@pytest.mark.slow
def test_substitution_is_a_choice(tmp_path):
    """Feedback costs less than the weights as they are, and a search by gradients after it never more; decoders do not know."""
    rng = np.random.default_rng(5)
    weight = torch.from_numpy(rng.normal(size=(16, 32)).astype(np.float32))
    inputs = rng.normal(size=(500, 32)) @ rng.normal(size=(32, 32))
    found = TensorStatistics(np.ones(16, np.float32), (inputs.T @ inputs / 500).astype(np.float32), (500, 500))
    known = Statistics({"w": found}, "values", 500)
    goal = 0.02 * found.loss(weight.numpy())
    cost = {}
    for way in ("none", "feedback", "gradient"):
        path = tmp_path / f"{way}.safetensors"
        summary = compression.compress({"w": weight}, path, kl=goal, statistics=known, substitution=way)
        cost[way] = 8 * summary.file_bytes / weight.numel() + np.log2(summary.loss) / 2  # bits at equal loss
        assert summary.loss == pytest.approx(goal, rel=0.2) and nnc.load(path)["w"].shape == weight.shape
    assert cost["feedback"] < cost["none"] - 0.2 and cost["gradient"] <= cost["feedback"] + 0.05


def test_options_that_need_calibration_say_so(tmp_path):
    weight = {"w": torch.randn(20, 30)}
    with pytest.raises(InvalidArgument, match="substitution none needs calibration"):
        nnc.compress(weight, tmp_path / "a.safetensors", substitution="none")
    with pytest.raises(InvalidArgument, match="kl = 0.1 is predicted from calibration"):
        nnc.compress(weight, tmp_path / "a.safetensors", kl=0.1)
    with pytest.raises(InvalidArgument, match="must be one of feedback, gradient, none"):
        nnc.compress(weight, tmp_path / "a.safetensors", substitution="magic")


def test_tuning_runs_and_is_kept_only_if_it_helps(tmp_path):
    """The whole way with data: calibrate, meet the size, tune, judge what would be decoded, measure."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(16, 48), torch.nn.ReLU(), torch.nn.Linear(48, 5)).eval()
    batches = [(torch.randn(32, 16),) for _ in range(4)]
    found = [nnc.compress(net, tmp_path / f"{t}.safetensors", size=1500, data=batches, kind="logits", tune=t) for t in (False, True)]
    assert all(s.file_bytes <= 1500 and s.measured > 0 for s in found) and found[1].measured <= 1.5 * found[0].measured
