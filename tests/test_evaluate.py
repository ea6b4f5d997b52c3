"""nnc.evaluation: loading of networks, fidelity, layers, reports, and the example network."""
from __future__ import annotations

import json
import math
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import nnc
from nnc.errors import InsufficientData, InvalidArgument
from nnc.evaluation import Task, build_model, classification, evaluate, fidelity, make_task
from nnc.evaluation.fidelity import FidelityMeter
from nnc.evaluation.models import find_function, fit, open_network

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def digits_like(n: int = 30, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, 6)).astype(np.float32), rng.integers(0, 4, n)


def small_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(inplace=True), nn.Linear(5, 4))


def logits_task(batches: list[tuple], **more) -> Task:
    return Task("given", "logits", "none", True, lambda: batches, **more)


# -------------------------------------------------------------------------------------------- fitting weights to modules

def test_weights_that_do_not_fit_are_named():
    state = small_net().state_dict()
    state["extra.weight"] = torch.zeros(1)
    state["3.weight"] = torch.zeros(4, 7)
    del state["0.bias"]
    with pytest.raises(InvalidArgument) as caught:
        fit(small_net(), state)
    assert str(caught.value) == ("the weights do not fit the model: missing 0.bias; unexpected extra.weight; "
                                 "3.weight is (4, 7), must be (4, 5); check the option model")
    with pytest.raises(InvalidArgument, match="missing 0.weight, 0.bias, 1.weight and 5 more; unexpected a; check"):
        fit(small_net(), {"a": torch.zeros(1)})


def test_harmless_differences_are_noted():
    images, labels = digits_like()
    model = small_net(1)
    state = {f"module.{key}": value for key, value in model.state_dict().items() if "num_batches" not in key}
    report = evaluate(state, classification(images, labels), small_net, original=model)
    assert report.fidelity.kl == 0
    assert report.notes == ("the prefix 'module.' of all tensor names was left out",
                            "1 num_batches_tracked are not in the weights; they have no effect here")
    report = evaluate(model, classification(images, labels), small_net, original=state)
    assert report.notes[0].startswith("original: the prefix")


def test_tied_tensors_may_be_named_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside, self.outside = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.outside.weight = self.inside.weight

    weight = torch.randn(5, 3)
    model = Tied()
    assert fit(model, {"inside.weight": weight}) == ("tied to other tensors: outside.weight",)
    assert torch.equal(model.outside.weight, weight)
    with pytest.raises(InvalidArgument, match="missing inside.weight, outside.weight"):
        fit(Tied(), {"x": weight})


def test_building_leaves_the_callers_things_alone():
    images, labels = digits_like()
    template, state = small_net(3), small_net(4).state_dict()
    before = {key: value.clone() for key, value in template.state_dict().items()}
    seed = torch.get_rng_state()
    network, _ = open_network(state, template)
    other, _ = open_network(state, lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4)))
    assert torch.equal(torch.get_rng_state(), seed)
    assert network is not template and not network.training and not other.training and template.training
    assert all(torch.equal(value, before[key]) for key, value in template.state_dict().items())
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_half_precision_weights_run_in_the_models_precision():
    state = {key: value.half() if value.is_floating_point() else value for key, value in small_net().state_dict().items()}
    network, _ = open_network(state, small_net)
    assert network[0].weight.dtype == torch.float32 and torch.equal(network[0].weight, state["0.weight"].float())


def test_sources_and_models_that_are_refused(tmp_path):
    task = classification(*digits_like())
    for call, message in (
        (lambda: evaluate({}, task, small_net), "state dict: no tensors"),
        (lambda: evaluate({"a": 3}, task, small_net), "'a' is a int, must be a tensor"),
        (lambda: evaluate({"a": torch.zeros(1)}, task), "state dict: no config.json"),
        (lambda: evaluate(tmp_path, task), "no config.json beside the weights; say what to build"),
        (lambda: evaluate(tmp_path / "none.pt", task, small_net), "no such file or folder"),
        (lambda: evaluate(small_net().state_dict(), task, lambda: 3), "returned a int, must return a torch.nn.Module"),
        (lambda: evaluate(small_net().state_dict(), task, lambda size: None), "missing a required argument: 'size'"),
        (lambda: evaluate(small_net(), task, small_net), "there are no weights to put into it"),
        (lambda: evaluate(small_net(), task, device="warp:9"), "device warp:9: not usable here"),
        (lambda: evaluate(small_net(), task, layers=True), "give the original or leave layers out"),
        (lambda: evaluate(small_net(), classification(digits_like()[0], None)), "nothing to measure without an original"),
        (lambda: build_model(None, None), "no config.json"),
        (lambda: build_model("nothing"), "not of the form module:function"),
    ):
        with pytest.raises((InvalidArgument, InsufficientData), match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------- fidelity

def noisy(model: nn.Module, amount: float) -> nn.Module:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += amount * torch.randn(parameter.shape, generator=generator)
    return model


def test_kl_and_agreement_against_their_definitions(monkeypatch):
    images, labels = digits_like(33)
    model, reference = noisy(small_net(), 0.3), small_net()
    first = evaluate(model, classification(images, labels, batch=5), original=reference)
    p, q = (m.eval()(torch.from_numpy(images)).double().softmax(-1) for m in (reference, model))
    assert first.fidelity.kl == pytest.approx((p * (p / q).log()).sum(-1).mean().item(), rel=1e-5)
    assert first.fidelity.top1_agreement == pytest.approx((p.argmax(-1) == q.argmax(-1)).double().mean().item())
    assert first.fidelity.count == 33 and first.fidelity.mse is None and first.fidelity.one_minus_cosine is None
    assert first.fidelity.value == first.fidelity.kl and first.fidelity.name == "KL nats"
    assert first.loss == first.reference_value - first.value
    monkeypatch.setattr(fidelity, "CHUNK", 7)
    again = evaluate(model, classification(images, labels, batch=5), original=reference)
    assert again.fidelity.kl == pytest.approx(first.fidelity.kl, rel=1e-12)


def test_the_same_network_has_no_distance():
    images, labels = digits_like()
    report = evaluate(small_net(), classification(images, labels), original=small_net(), layers=True)
    assert (report.fidelity.kl, report.fidelity.top1_agreement, report.loss) == (0, 1, 0)
    assert [(layer.name, layer.relative_error) for layer in report.layers] == [("0", 0), ("1", 0), ("3", 0)]
    same = small_net()
    report = evaluate(same, classification(images, labels), original=same, layers=True)
    assert [layer.relative_error for layer in report.layers] == [0, 0, 0]


def test_distance_grows_with_noise():
    images, labels = digits_like(60)
    reports = [evaluate(noisy(small_net(), amount), classification(images, labels), original=small_net(), layers=True)
               for amount in (1e-3, 1e-2, 1e-1)]
    values = [report.fidelity.kl for report in reports]
    assert 0 < values[0] < values[1] / 50 < values[2] / 2500
    for finer, coarser in zip(reports, reports[1:]):
        assert all(0 < a.relative_error < b.relative_error for a, b in zip(finer.layers, coarser.layers))


def test_impossible_classes_cost_nothing_and_surprises_cost_everything():
    meter = FidelityMeter("logits")
    meter.add(torch.tensor([[0.0, 0.0, -math.inf]]), torch.tensor([[0.0, 0.0, -math.inf]]))
    assert meter.result().kl == 0
    meter.add(torch.tensor([[0.0, -math.inf]]), torch.tensor([[0.0, 0.0]]))
    assert meter.result().kl == math.inf


def test_a_broken_prediction_never_agrees():
    meter = FidelityMeter("logits")
    meter.add(torch.tensor([[0.0, math.nan], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
    assert meter.result().top1_agreement == 0.5 and math.isnan(meter.result().kl)


def test_small_kl_is_not_lost_to_rounding():
    r = torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64)
    y = r + torch.tensor([[1e-6, 0.0, -1e-6]], dtype=torch.float64)
    meter = FidelityMeter("logits")
    meter.add(y, r)
    p, d = r.softmax(-1)[0], (y - r)[0]
    variance = float((p * d * d).sum() - (p * d).sum() ** 2)
    assert meter.result().kl == pytest.approx(variance / 2, rel=1e-3)


def test_unit_and_value_outputs():
    a, b = F.normalize(torch.randn(9, 5), dim=-1), F.normalize(torch.randn(9, 5), dim=-1)
    meter = FidelityMeter("unit")
    meter.add(a, b)
    assert meter.result().one_minus_cosine == pytest.approx(float(1 - (a * b).sum(-1).mean()), rel=1e-5)
    assert meter.result().name == "1 - cosine" and meter.result().count == 9
    meter = FidelityMeter("values")
    x, y = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    meter.add(x[:1], y[:1])
    meter.add(x[1:], y[1:])
    found = meter.result()
    assert found.mse == pytest.approx(float(F.mse_loss(x, y)), rel=1e-5) and found.count == 48 and found.name == "MSE"
    assert found.relative_error == pytest.approx(float((x - y).norm() / y.norm()), rel=1e-5)
    meter = FidelityMeter("values")
    meter.add(torch.ones(2), torch.zeros(2))
    assert meter.result().relative_error == math.inf
    assert FidelityMeter("values").result() is None
    with pytest.raises(InvalidArgument, match=r"the model returned shape \(2,\), the reference \(3,\)"):
        meter.add(torch.ones(2), torch.ones(3))


# --------------------------------------------------------------------------------------------------------------- layers

def test_layers_are_compared_before_an_in_place_activation_writes_over_them():
    images, labels = digits_like()
    model, reference = noisy(small_net(), 0.2).eval(), small_net().eval()
    layers = evaluate(model, classification(images, labels, batch=7), original=reference, layers=True).layers
    with torch.inference_mode():
        mine, theirs = (net[1](net[0](torch.from_numpy(images))) for net in (model, reference))
    assert layers[1].relative_error == pytest.approx(float((mine - theirs).norm() / theirs.norm()), rel=1e-4)
    assert (layers[1].name, layers[1].kind, layers[1].count) == ("1", "BatchNorm1d", 150)
    assert not any(module._forward_hooks for net in (model, reference) for module in net.modules())


def test_layers_called_twice_and_layers_with_several_outputs():
    class Recurrent(nn.Module):
        def __init__(self, calls: int) -> None:
            super().__init__()
            self.calls = calls
            self.mix = nn.Linear(4, 4)
            self.memory = nn.LSTM(4, 3, batch_first=True)
            self.unused = nn.Linear(2, 2)

        def forward(self, x):
            for _ in range(self.calls):
                x = self.mix(x)
            return self.memory(x)[0]

    torch.manual_seed(0)
    reference = Recurrent(2)
    model = Recurrent(2)
    model.load_state_dict(reference.state_dict())
    task = Task("seq", "values", "none", True, lambda: [(torch.ones(2, 5, 4),), (torch.zeros(1, 3, 4),)])
    report = evaluate(noisy(model, 0.1), task, original=reference, layers=True)
    assert [(layer.name, layer.count) for layer in report.layers] == [("mix", 2 * (40 + 12)), ("memory", 30 + 9)]
    assert report.notes == ("1 layers could not be compared: not run, or outputs of another shape",)
    assert report.value is None and report.loss is None and report.count == 39
    with pytest.raises(InvalidArgument, match="no layer with parameters in common"):
        evaluate(nn.Identity(), task, original=reference, layers=True)


def test_hooks_are_removed_when_the_network_fails():
    model, reference = small_net(), small_net()
    with pytest.raises(InvalidArgument, match="does not run on batch 0"):
        evaluate(model, classification(np.zeros((2, 3), np.float32), np.zeros(2, int)), original=reference, layers=True)
    assert not any(module._forward_hooks for net in (model, reference) for module in net.modules())
    assert model.training and reference.training


# --------------------------------------------------------------------------------------------------------------- report

def test_evaluation_is_in_eval_mode_and_puts_the_flags_back():
    model = nn.Sequential(nn.Dropout(0.9), nn.Linear(6, 4))
    model[1].eval()
    images, labels = digits_like()
    a, b = (evaluate(model, classification(images, labels), original=model) for _ in range(2))
    assert a.value == b.value and a.fidelity.kl == 0
    assert model.training and model[0].training and not model[1].training
    assert not any(parameter.requires_grad is False for parameter in model.parameters())


def test_outputs_that_are_not_finite_are_reported_and_not_ranked():
    images, labels = digits_like()
    model = small_net()
    with torch.no_grad():
        model[3].bias[2] = math.nan
    report = evaluate(model, classification(images, labels), original=small_net())
    assert not report.finite and math.isnan(report.value)
    assert math.isnan(report.fidelity.kl) and report.fidelity.top1_agreement == 0
    assert report.notes == ("outputs of the model are not finite",) and math.isfinite(report.reference_value)
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert plain["value"] is None and plain["finite"] is False and plain["fidelity"]["kl"] is None
    back = evaluate(small_net(), classification(images, labels), original=model)
    assert back.finite and math.isnan(back.reference_value) and back.notes == ("outputs of the reference are not finite",)


def test_a_ruled_out_class_counts_as_finite():
    images, labels = digits_like()
    model = small_net()
    with torch.no_grad():
        model[3].bias[2] = -math.inf
    report = evaluate(model, classification(images, labels), original=model)
    assert report.finite and report.fidelity.kl == 0
    with torch.no_grad():
        model[3].bias[2] = math.inf
    assert not evaluate(model, classification(images, labels)).finite


def test_progress_and_dictionary():
    images, labels = digits_like()
    seen = []
    report = evaluate(small_net(), classification(images, labels, batch=8), progress=lambda *step: seen.append(step))
    assert seen == [(i, 4, "classification") for i in (1, 2, 3, 4)]
    plain = report.to_dict()
    assert plain["value"] == report.value and plain["layers"] == [] and plain["perplexity"] is None and plain["fidelity"] is None
    seen.clear()
    unsized = (batch for batch in [(torch.ones(1, 2),)])
    evaluate(nn.Identity(), logits_task(unsized, measure=len), progress=lambda *step: seen.append(step))
    assert seen == [(1, 0, "given")]


def test_tasks_without_batches_and_outputs_that_are_no_tensors():
    with pytest.raises(InsufficientData, match="task given: no batches"):
        evaluate(nn.Identity(), logits_task([], measure=len))
    with pytest.raises(InvalidArgument, match="batch 0 is a Tensor, must be a tuple of arguments"):
        evaluate(nn.Identity(), logits_task([torch.ones(1, 2)], measure=len))
    for value, what in ((torch.ones(2, dtype=torch.int64), "torch.int64 of shape"), ({"x": 1}, "returned dict"),
                        (torch.tensor(1.0), r"shape \(\)")):
        with pytest.raises(InvalidArgument, match=what):
            evaluate(nn.Identity(), logits_task([(value,)], measure=len))
    one = torch.ones(1, 2)
    for wrapped in ((one, None), [one], {"logits": one}, types.SimpleNamespace(last_hidden_state=one)):
        assert evaluate(nn.Identity(), logits_task([(wrapped,)], measure=len)).count == 1


# ------------------------------------------------------------------------------------------------------ example network

def test_the_example_network_reads_digits(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    spec = f"{EXAMPLES / 'digits_cnn.py'}"
    weights = load_file(EXAMPLES / "digits_cnn.safetensors")
    report = evaluate(weights, make_task(f"{spec}:task"), f"{spec}:build", original=weights, layers=True)
    assert report.value >= 98 and report.count == 599 and report.fidelity.kl == 0 and report.notes == ()
    assert len(report.layers) == 11
    assert 100_000 < sum(p.numel() for p in build_model(f"{spec}:build").parameters()) < 200_000
    find_function(f"{spec}:write_data")(tmp_path / "digits.npz")
    again = evaluate(weights, make_task("classification", tmp_path / "digits.npz", batch=100), f"{spec}:build")
    assert again.value == report.value


def test_the_example_network_through_the_codec(tmp_path):
    """The one test with the real codec: files are told apart, read, and measured."""
    pytest.importorskip("sklearn")
    original, small = EXAMPLES / "digits_cnn.safetensors", tmp_path / "small.safetensors"
    nnc.compress(original, small, bits=4)
    code = EXAMPLES / "digits_cnn.py"
    report = evaluate(small, make_task(f"{code}:task"), f"{code}:build", original=original)
    assert small.stat().st_size < original.stat().st_size / 6
    assert report.value > 95 and 0 < report.fidelity.kl < 0.1


@pytest.mark.slow
def test_nothing_heavy_is_imported():
    code = "import sys, nnc.evaluation; sys.exit(any(name in sys.modules for name in ('transformers', 'matplotlib', 'sklearn')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=EXAMPLES.parent).returncode == 0
