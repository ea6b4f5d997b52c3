"""Columns that foretell each other: DPCM against theory, clusters, copies; off where nothing pays."""
from __future__ import annotations

import numpy as np
import pytest
import torch

import nnc
from nnc.archive import open_compressed
from nnc.errors import Corruption
from nnc.memories import choose_memory
from nnc.prediction.memory import MemoryCodes, read_memory


def walk(rows: int, columns: int, correlation: float, seed: int = 0) -> np.ndarray:
    """Rows that are autoregressive along the columns, of variance one."""
    g = np.random.default_rng(seed)
    x = g.standard_normal((rows, columns))
    for j in range(1, columns):
        x[:, j] = correlation * x[:, j - 1] + np.sqrt(1 - correlation**2) * x[:, j]
    return x.astype(np.float32)


def file_of(tmp_path, weights: np.ndarray, tools: str, **options) -> tuple[float, float]:
    """Bits per weight of the whole file and mean squared error."""
    path = tmp_path / f"{tools}.safetensors"
    summary = nnc.compress({"w": torch.from_numpy(weights)}, path, tools=tools, overwrite=True, **options)
    return summary.bits_per_weight, float(np.square(nnc.load(path)["w"].numpy() - weights).mean())


def gain(tmp_path, weights: np.ndarray, tools: str = "memory", **options) -> float:
    """dB at the same rate of a file with the tools over one without."""
    (rate, error), (plain, before) = (file_of(tmp_path, weights, t, **options) for t in (tools, "none"))
    return 10 * np.log10(before / error) - 6.02 * (rate - plain)


def memory_of(path) -> object:
    with open_compressed(path) as archive:
        return archive.records[0].coding.tools.memory


@pytest.mark.slow
@pytest.mark.parametrize("correlation, theory", [(0.8, 4.44), (0.9, 7.21), (0.95, 10.11)])
@pytest.mark.parametrize("bits", [3.0, 4.0])
@pytest.mark.parametrize("down", [False, True])
def test_autoregressive_rows_come_near_to_theory(tmp_path, correlation, theory, bits, down):
    """METHODS S14 (c) 5: within .4 dB at 3 bits and more, along the rows or down the columns, with all tools allowed."""
    weights = walk(400, 400, correlation)
    found = gain(tmp_path, weights.T.copy() if down else weights, "transform,memory", bits=bits, effort="fast")
    print(f"correlation {correlation}, {bits} bits: {found:.2f} dB (theory {theory})")
    assert found >= theory - 0.4
    assert memory_of(tmp_path / "transform,memory.safetensors").limit == 0


def test_the_trellis_keeps_its_gain(tmp_path):
    assert gain(tmp_path, walk(400, 400, 0.9), bits=3.0) >= 7.21 - 0.4


@pytest.mark.slow
def test_clusters_of_rows(tmp_path):
    """Rows in eight clusters: the gain comes near to what knowing the centres would give."""
    g = np.random.default_rng(0)
    rows = g.standard_normal((8, 256))[g.integers(0, 8, 2000)] + 0.25 * g.standard_normal((2000, 256))
    found = gain(tmp_path, rows.astype(np.float32), bits=3.0)
    assert found >= 10 * np.log10(1.0625 / 0.0625) - 1.0
    memory = memory_of(tmp_path / "memory.safetensors")
    assert memory.centres.number == 8


@pytest.mark.slow
def test_kernels_like_those_of_the_channel_before(tmp_path):
    """The same filter for all channels but for a little: one memory per tap."""
    g = np.random.default_rng(0)
    weights = (g.standard_normal((128, 1, 3, 3)) + 0.3 * g.standard_normal((128, 64, 3, 3))).astype(np.float32)
    assert gain(tmp_path, weights, "all", bits=3.0, effort="fast") >= 8.0


def test_off_costs_nothing(tmp_path):
    g = np.random.default_rng(0)
    for shape in ((300, 300), (2000, 64), (64, 30, 3, 3)):
        weights = g.standard_normal(shape).astype(np.float32)
        assert choose_memory(weights.reshape(shape[0], -1), int(np.prod(shape[2:]))) is None
        sizes = [file_of(tmp_path, weights, tools, step=0.1)[0] for tools in ("all", "none")]
        assert sizes[0] <= 1.001 * sizes[1]


def test_codes_from_a_file_are_checked():
    labels, codes = np.array([0, 64, 1], np.int16), np.array([0, -16, -3], np.int16)
    assert read_memory(3, labels, codes).floor == 0.125
    for labels_, codes_ in ((labels + 1, codes), (labels - 1, codes), (labels, codes + 1), (labels, codes - 1)):
        with pytest.raises(Corruption):
            read_memory(3, labels_, codes_)


def test_residuals_and_values_are_inverse():
    g = np.random.default_rng(1)
    plane = g.standard_normal((30, 50)).astype(np.float32)
    for limit in (0, 3, 15):
        codes = MemoryCodes(limit, g.integers(0, 5, 50).astype(np.int16), g.integers(-16, 1, 50).astype(np.int16))
        rest = codes.residual(plane)
        assert not np.allclose(rest, plane)
        np.testing.assert_allclose(codes.add(rest, [(0, 30, 0, 50)]).T, plane, atol=1e-5)


@pytest.mark.slow
def test_same_bytes_with_any_number_of_threads(tmp_path):
    weights = {"w": torch.from_numpy(walk(300, 500, 0.9)), "v": torch.from_numpy(walk(90, 70, 0.9).T.copy())}
    for threads in (1, 2, 3):
        nnc.compress(weights, tmp_path / f"{threads}.safetensors", bits=3, threads=threads)
    files = {(tmp_path / f"{threads}.safetensors").read_bytes() for threads in (1, 2, 3)}
    assert len(files) == 1


def test_tools_are_named_or_refused(tmp_path):
    weights = {"w": torch.randn(20, 20)}
    for tools in ("other", "memory,other", "", 3):
        with pytest.raises(nnc.InvalidArgument, match="tools"):
            nnc.compress(weights, tmp_path / "a.safetensors", tools=tools)
    for tools, others, said in (
        ("memory,transform", {"step": 0.1}, "transform"),
        ("tiles", {"step": 0.1}, "tiles"),
        ("memory", {"substitution": "gradient"}, "memory"),
        ("codebook", {"data": [torch.ones(2, 20)]}, "codebook"),
    ):
        with pytest.raises(nnc.InvalidArgument, match=f"tools {said}"):
            nnc.compress(torch.nn.Linear(20, 20), tmp_path / "a.safetensors", tools=tools, **others)
    nnc.compress(weights, tmp_path / "a.safetensors", tools="memory, transform")
