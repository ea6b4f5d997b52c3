"""Changes of basis of a plane's columns: the encoder's inverse, the loss that they leave as it is, what they gain on correlated kernels."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.fft import dct

import nnc
from nnc.archive import open_compressed
from nnc.bases import Basis, choose_bases, survey_plane
from nnc.calibration.statistics import TensorStatistics
from nnc.encoder import make_plane


def smooth_kernels(number: int, seed: int = 0) -> np.ndarray:
    """3x3 kernels whose taps have the correlation 0.85^distance (METHODS S14)."""
    taps = np.array([(i, j) for i in range(3) for j in range(3)])
    covariance = 0.85 ** np.sqrt(((taps[:, None] - taps[None]) ** 2).sum(-1))
    g = np.random.default_rng(seed)
    return (g.standard_normal((number, 9)) @ np.linalg.cholesky(covariance).T).astype(np.float32)


def chosen_for(tensor: np.ndarray) -> Basis | None:
    plane = make_plane(torch.from_numpy(tensor))[1]
    return choose_bases([survey_plane("w", tuple(tensor.shape), plane)]).chosen.get("w")


def random_basis(g: np.random.Generator, columns: int) -> Basis:
    steps = []
    for size in (2, 3, 5):
        stride = int(g.choice([d for d in range(1, columns // size + 1) if columns % (size * d) == 0]))
        matrix = np.round(100 * np.linalg.qr(g.standard_normal((size, size)))[0]).astype(np.int8)
        steps.append((0, matrix, stride))
    return Basis(tuple(steps), 0.0)


@pytest.mark.parametrize("seed", range(8))
def test_the_decoder_undoes_the_encoder(seed):
    g = np.random.default_rng(seed)
    basis, plane = random_basis(g, 60), g.standard_normal((7, 60)).astype(np.float32)
    np.testing.assert_allclose(basis.plane(basis.coefficients(plane)), plane, atol=2e-5)


@pytest.mark.parametrize("diagonal", [False, True])
def test_loss_of_coefficients_is_that_of_the_weights(diagonal):
    g = np.random.default_rng(1)
    basis, x, y = random_basis(g, 60), g.standard_normal((200, 60)), g.standard_normal((50, 9))
    columns = np.square(x).mean(0) if diagonal else x.T @ x / 200
    found = TensorStatistics((y.T @ y / 50).astype(np.float32), columns.astype(np.float32), (50, 200))
    errors = [g.standard_normal((9, 60)).astype(np.float32) for _ in range(200 if diagonal else 3)]
    pairs = np.array([(basis.statistics(found).loss(e), found.loss(basis.plane(e))) for e in errors])
    if diagonal:  # what lies beside the diagonal is lost, the mean over white errors is not
        assert pairs[:, 0].mean() == pytest.approx(pairs[:, 1].mean(), rel=0.05)
    else:
        np.testing.assert_allclose(pairs[:, 0], pairs[:, 1], rtol=1e-3)


def test_cosines_are_found_for_smooth_kernels_and_nothing_for_others():
    basis = chosen_for(smooth_kernels(64 * 40).reshape(64, 40, 3, 3))
    waves = dct(np.eye(3), norm="ortho", axis=0)
    assert [(stride, np.abs(matrix / 128 - waves).max() < 1 / 128) for _, matrix, stride in basis.steps] == [(3, True), (1, True)]
    g = np.random.default_rng(0)
    for shape in ((64, 40, 3, 3), (64, 64), (32, 1, 3, 3), (16, 8, 5), (128, 512), (500, 72), (16, 16, 7, 7), (9, 8)):
        assert chosen_for(g.standard_normal(shape).astype(np.float32)) is None


def test_other_kernels_get_principal_components():
    g = np.random.default_rng(2)
    mixing = np.linalg.qr(g.standard_normal((9, 9)))[0] * np.geomspace(1, 0.01, 9)[:, None]
    basis = chosen_for((g.standard_normal((64 * 40, 9)) @ mixing).astype(np.float32).reshape(64, 40, 3, 3))
    assert [(len(matrix), stride) for _, matrix, stride in basis.steps] == [(9, 1)]


def test_channels_that_are_alike_get_a_hadamard_matrix():
    g = np.random.default_rng(3)
    alike = np.repeat(g.standard_normal((64, 8, 1)), 8, 2).reshape(64, 64) + 0.2 * g.standard_normal((64, 64))
    basis = chosen_for(alike.astype(np.float32))
    assert [(len(matrix), stride, set(np.abs(matrix).ravel())) for _, matrix, stride in basis.steps] == [(8, 1, {45})]


def rate_and_distortion(tmp_path, weights: torch.Tensor, bits: float, tools: str) -> tuple[float, float]:
    path = tmp_path / f"{tools}.safetensors"
    summary = nnc.compress({"w": weights}, path, bits=bits, tools=tools, effort="fast", overwrite=True)
    return summary.bits_per_weight, float((nnc.load(path)["w"].float() - weights.float()).square().mean())


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2.0, 3.0])
def test_gain_on_smooth_kernels(tmp_path, bits):
    """METHODS S14 (c) 4: 5 dB at the same rate, whole file, scalar quantizer in both."""
    weights = torch.from_numpy(smooth_kernels(256 * 240).reshape(256, 240, 3, 3))
    (rate, error), (plain, before) = (rate_and_distortion(tmp_path, weights, bits, tools) for tools in ("transform", "none"))
    gain = 10 * np.log10(before / error) - 6.02 * (rate - plain)
    print(f"cosine transform at {bits} bits: {gain:.2f} dB")
    assert gain >= 5.0


def test_off_costs_nothing(tmp_path):
    g = torch.Generator().manual_seed(0)
    weights = {"conv": torch.randn(64, 64, 3, 3, generator=g), "linear": torch.randn(256, 256, generator=g)}
    sizes = [nnc.compress(weights, tmp_path / f"{t}.safetensors", step=0.1, tools=t).file_bytes for t in ("all", "none")]
    assert sizes[0] <= 1.001 * sizes[1]
    sizes = [nnc.compress(weights, tmp_path / f"{t}.safetensors", snr=15, tools=t, overwrite=True).file_bytes for t in ("all", "none")]
    assert sizes[0] <= 1.001 * sizes[1]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_a_reference(tmp_path, dtype):
    """A tensor that a reference foretells keeps its basis; others get one."""
    weights = {"w": torch.from_numpy(smooth_kernels(64 * 40).reshape(64, 40, 3, 3)).to(dtype)}
    nnc.compress(weights, tmp_path / "a.safetensors", snr=20)
    near = {"w": weights["w"] * 1.01, "new": torch.from_numpy(smooth_kernels(64 * 40, 1).reshape(64, 40, 3, 3)).to(dtype)}
    nnc.compress(near, tmp_path / "b.safetensors", snr=20, reference=weights)
    with open_compressed(tmp_path / "b.safetensors") as archive:
        assert [bool(record.coding.tools.transform) for record in archive.records] == [False, True]
    found = nnc.load(tmp_path / "b.safetensors", reference=weights)
    for name, tensor in near.items():
        assert found[name].dtype == dtype and (found[name].float() - tensor.float()).square().mean() < 0.03


def test_one_step_for_all_bounds_every_error(tmp_path):
    weights = torch.from_numpy(smooth_kernels(64 * 40).reshape(64, 40, 3, 3))
    nnc.compress({"w": weights}, tmp_path / "a.safetensors", step=0.1, states=1, lagrangian=1e-9, tools="all")
    assert (nnc.load(tmp_path / "a.safetensors")["w"] - weights).abs().max() < 0.0501
