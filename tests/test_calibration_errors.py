"""Calibration: what can go wrong, and that the model is left as it was."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from calibration_networks import Mixed, mlp, seeded  # noqa: F401
from safetensors.numpy import load, save_file
from torch import nn

from nnc.calibration.gather import gather
from nnc.calibration.statistics import Statistics
from nnc.errors import Corruption, InsufficientData, InvalidArgument


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).train()
    model[0].weight.requires_grad_(False)
    model[2].eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    random = torch.get_rng_state()

    def check():
        assert [m.training for m in model.modules()] == [True, True, True, False]
        assert [p.requires_grad for p in model.parameters()] == [False, True, True, True, True, True]
        assert all(
            torch.equal(t, before[name]) and not model.state_dict()[name].requires_grad for name, t in model.state_dict().items()
        )
        assert all(p.grad is None for p in model.parameters()) and not any(b.requires_grad for b in model.buffers())
        assert torch.equal(random, torch.get_rng_state())
        assert not any(m._forward_hooks for m in model.modules())

    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        gather(model, [(x,)], "logits")
    check()
    with pytest.raises(InvalidArgument):
        gather(model, [(x,), (x * math.nan,)], "logits")
    check()
    with pytest.raises(RuntimeError):
        gather(model, [(x,), (x[:, :2],)], "logits")
    check()


def bad_sides(folder, data, change):
    """A file whose first matrix was changed."""
    arrays, path = load(data), folder / "changed.safetensors"
    arrays["0.rows"] = np.ascontiguousarray(change(arrays["0.rows"]))
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    save_file(arrays, path, header["__metadata__"])
    return path


def test_damaged_files(tmp_path):
    file = tmp_path / "a.safetensors"
    with pytest.raises(InvalidArgument, match="no such file"):
        Statistics.load(file)
    gather(mlp(), [(torch.randn(2, 6),)], "logits").save(file)
    data = file.read_bytes()
    for length in (0, 7, 100, len(data) - 1):
        file.write_bytes(data[:length])
        with pytest.raises(Corruption, match="calibrate anew, to another file"):
            Statistics.load(file)
    file.write_bytes(data.replace(b'"nnc statistics"', b'"nnc statistixx"'))
    with pytest.raises(InvalidArgument, match="not a file of statistics"):
        Statistics.load(file)
    file.write_bytes(data.replace(b'"version":"1"', b'"version":"7"'))
    with pytest.raises(InvalidArgument, match="version 7"):
        Statistics.load(file)
    found = Statistics.load(bad_sides(tmp_path, data, lambda a: a))
    assert set(found.tensors) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    for what, change in (
        ("shape", lambda a: a[:, :-1]),
        ("dtype", lambda a: a.astype(np.float64)),
        ("shape", lambda a: a[None]),
        ("not finite", lambda a: a * np.float32(np.nan)),
    ):
        with pytest.raises(Corruption, match=what):
            Statistics.load(bad_sides(tmp_path, data, change))
    with pytest.raises(InvalidArgument, match="No such file"):
        gather(mlp(), [(torch.randn(2, 6),)], "logits").save(tmp_path / "none" / "a.safetensors")


class Failing(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.layer, self.output = nn.Linear(6, 4), output

    def forward(self, x):
        return self.output(self.layer(x))


@torch.no_grad()
def without_gradient(y):
    return y * 2


def test_errors():
    x = [(torch.randn(2, 6),)]
    for output in (lambda y: (y, y), lambda y: {"logits": y}, lambda y: SimpleNamespace(logits=y), lambda y: y.argmax(-1)):
        with pytest.raises(InvalidArgument, match="must be a tensor of floats; pass run="):
            gather(Failing(output), x, "logits")
    picked = gather(Failing(lambda y: {"logits": y}), x, "logits", run=lambda m: lambda *a: m(*a)["logits"])
    assert "layer.weight" in picked.tensors
    with pytest.raises(InvalidArgument, match="no_grad or detaches"):
        gather(Failing(without_gradient), x, "logits")
    with pytest.raises(InsufficientData, match="no batch"):
        gather(mlp(), [], "logits")
    with pytest.raises(InsufficientData, match="no prediction"):
        gather(mlp(), [(torch.randn(0, 6),)], "logits")
    with pytest.raises(InvalidArgument, match="only once"):
        gather(mlp(), iter(x), "logits")
    for wrong in (
        dict(kind="image"),
        dict(draws=0),
        dict(memory=0),
        dict(doubt=-0.1),
        dict(doubt=math.nan),
    ):
        with pytest.raises(InvalidArgument, match=next(iter(wrong))):
            gather(mlp(), x, **{"kind": "logits", **wrong})
    with pytest.raises(InvalidArgument, match="table.weight: the data has token ids 3 to 12, the table has 9 rows"):
        gather(Mixed(), [(torch.tensor([[3, 12]]),)], "logits")
    model = mlp()
    model[2].weight.data[0, 0] = math.nan
    with pytest.raises(InvalidArgument, match=r"the output of 2 \(Linear\) is not finite in batch 0"):
        gather(model, x, "logits")
    with pytest.raises(InvalidArgument, match="single number"):
        gather(Failing(lambda y: y.sum()), x, "logits")
    with pytest.raises(InvalidArgument, match="must be a torch.nn.Module"):
        gather(torch.relu, x, "logits")


def test_inference_tensors():
    with torch.inference_mode():
        model, x = mlp(), [(torch.randn(2, 6),)]
    with pytest.raises(InvalidArgument, match="build it outside"):
        gather(model, x, "logits")
    assert not gather(mlp(), x, "logits").unseen
