"""Tuning of what stays float: distillation wins back what it can and leaves no trace, and nothing but vectors changes."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from nnc.calibration.gather import gather
from nnc.checkpoint import open_checkpoint
from nnc.coder import checksum
from nnc.config import make_config
from nnc.decoder import decode_unit
from nnc.distillation import Budget, distill, hold_back
from nnc.encoded import tensor_bytes
from nnc.encoding import Encoding
from nnc.plan import plan_tensors
from nnc.targets import meet_size
from nnc.tuning import Tuned, apply_tuning, decode_all
from nnc.workers import open_workers

SHORT = Budget(steps=20, together=1)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Networks this small only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Convolutions(nn.Module):
    def __init__(self, classes: int = 10):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.last = nn.Linear(16, classes)

    def forward(self, x):
        return self.last(self.norm(self.first(x)).relu().mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 16)
        self.cell = nn.LSTM(16, 16, batch_first=True)
        self.out = nn.Linear(16, 20)
        self.out.weight = self.table.weight

    def forward(self, ids):
        return self.out(self.cell(self.table(ids))[0])


def build(kind: str) -> tuple[nn.Module, list[tuple], str]:
    torch.manual_seed(0)
    if kind == "tokens":
        ids = torch.randint(0, 20, (32, 12), generator=torch.Generator().manual_seed(3))
        return Recurrent().eval(), [(part,) for part in ids.split(16)], "logits"
    model = Convolutions()
    x = 1 + random_tensor(64, 3, 8, 8, seed=2)
    model(x)  # running statistics
    if kind == "sure":
        with torch.no_grad():
            model.last.weight.mul_(60)
    return model.eval(), [(part,) for part in x.split(32)], "values" if kind == "values" else "logits"


def disturb(model: nn.Module) -> tuple[dict, list[str]]:
    """Weights with a common error in every output, as coarse quantization leaves it, and the names of vectors."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for weight in (tensor for tensor in state.values() if tensor.ndim > 1):
        weight.mul_(0.9).add_(0.03 * weight.std() * random_tensor(*weight.shape, seed=5))
    if "out.weight" in state:
        state["out.weight"] = state["table.weight"]
    vectors = [name for name, tensor in state.items() if tensor.ndim == 1 and tensor.is_floating_point()]
    return state, vectors


@contextmanager
def left_untouched(model: nn.Module):
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    flags, random = [p.requires_grad for p in model.parameters()], torch.random.get_rng_state()
    yield
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags and all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("kind", ["logits", "sure", "values", "tokens"])
def test_distillation_wins_back(kind):
    model, batches, output = build(kind)
    state, vectors = disturb(model)
    original = {name: tensor.clone() for name, tensor in state.items()}
    tuner = distill(model, batches, [], output, budget=SHORT)
    with left_untouched(model):
        tuned = tuner(state, vectors)
    assert all(torch.equal(tensor, original[name]) for name, tensor in state.items())
    assert tuned.left < 0.95 and tuned.before > 0 and set(tuned.vectors) == set(vectors)
    assert all(tensor.shape == state[name].shape and tensor.dtype == state[name].dtype for name, tensor in tuned.vectors.items())
    assert tuner.compare(state, {**state, **tuned.vectors}) == pytest.approx(tuned.left, rel=1e-3)
    again = tuner(state, vectors)
    assert all(torch.equal(tensor, again.vectors[name]) for name, tensor in tuned.vectors.items())


def test_running_statistics_are_learnt():
    model, batches, _ = build("logits")
    state = dict(model.state_dict())
    state["norm.running_mean"] = state["norm.running_mean"] + 0.2
    state["norm.running_var"] = state["norm.running_var"] * 1.3
    tuned = distill(model, batches, [], "logits", budget=SHORT)(state, ["norm.running_mean", "norm.running_var"])
    assert tuned.left < 0.8 and (tuned.vectors["norm.running_var"] > 0).all()
    held = hold_back(batches)[1]
    with torch.no_grad():
        wanted = [model(*args).log_softmax(-1) for args in held]
        model.load_state_dict({**state, **tuned.vectors})
        found = [model(*args).log_softmax(-1) for args in held]
    parts = [(p.exp() * (p - q)).sum(-1) for p, q in zip(wanted, found)]
    assert float(torch.cat(parts).mean()) == pytest.approx(
        tuned.after, rel=1e-3
    )  # the normalisation as spelled out is that of torch


def test_nothing_to_win():
    model, batches, _ = build("logits")
    state = dict(model.state_dict())
    tuned = distill(model, batches, [], "logits", budget=SHORT)(state, ["last.bias"])
    assert not tuned.vectors and tuned.left == 1
    assert not distill(model, batches, [], "logits", budget=SHORT)(state, ["unknown"]).vectors


def test_names_of_data_parallel_and_other_dtypes():
    model, batches, _ = build("values")
    state, vectors = disturb(model)
    state = {f"module.{name}": tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    tuned = distill(model, batches, [], "values", budget=SHORT)(state, [f"module.{name}" for name in vectors])
    assert set(tuned.vectors) == {f"module.{name}" for name in vectors}
    assert all(tensor.dtype == torch.bfloat16 for tensor in tuned.vectors.values())


def test_hold_back():
    data = torch.arange(20)
    learn, held = hold_back([(data, {"x": data})])
    assert held[0][0].tolist() == [7, 15] and held[0][1]["x"].tolist() == [7, 15] and len(learn[0][0]) == 18
    learn, held = hold_back([(data[:1],), (data[1:2],), (data[2:3],)])
    assert [b[0].tolist() for b in learn] == [[0], [1]] and held[0][0].tolist() == [2]
    learn, held = hold_back([data[:3]])
    assert learn[0].tolist() == [0, 1] and held[0].tolist() == [2]
    assert hold_back([data[:1]])[1] == []


@pytest.fixture(scope="module")
def compressed():
    """A network compressed to 4 bits with calibration: its encoding, assembly, factor, goal, and divergence of a state."""
    model, batches, kind = build("values")
    statistics = gather(model, batches, kind)
    asked = make_config(None, (), bits=5.0)
    outputs = [model(*args).detach() for args in batches]

    def measure(state):
        other = copy.deepcopy(model)
        other.load_state_dict(state)
        with torch.no_grad():
            return sum(float((other(*args) - y).square().mean()) for args, y in zip(batches, outputs))

    with open_checkpoint(model, None) as checkpoint, open_workers(1) as workers:
        plans = plan_tensors(checkpoint, asked, workers, None, statistics)
        encoding = Encoding(checkpoint, plans, asked, workers, None, None)
        assembly, factor = meet_size(encoding, 1300.0, "size = 1300")
        yield model, batches, kind, encoding, assembly, factor, measure


def test_decode_all_is_what_readers_see(compressed):
    *_, encoding, assembly, _, _ = compressed
    state = decode_all(assembly, encoding)
    file = assembly.files[0]
    records = [record for record in file.directory.records]
    at = 0
    for unit, data in zip(file.directory.units, file.units):
        mine = tuple(records[at : at + unit.count])
        at += unit.count
        for record, tensor in zip(mine, decode_unit(unit, mine, data, file.directory.bank)()):
            assert torch.equal(state[record.name], tensor)


def test_tuning_is_kept_where_it_pays(compressed):
    model, batches, kind, encoding, assembly, factor, measure = compressed
    before = measure(decode_all(assembly, encoding))
    tuner = distill(model, batches, [], kind, budget=Budget(steps=40))
    new = apply_tuning(encoding, assembly, factor, tuner, tuner.compare, 1300)
    assert new is not assembly and new.size <= 1300
    state = decode_all(new, encoding)
    assert measure(state) < 0.97 * before
    assert {e.record.name: e.content for e in new.encoded} == {name: checksum(tensor_bytes(t)) for name, t in state.items()}
    sensitivities = {plan.name: plan.sensitivity for plan in encoding.plans}
    for old, e in zip(assembly.encoded, new.encoded):
        if e.record.name in ("first.weight", "last.weight"):
            assert e is old
        elif e.record.kind == "coded":  # told against the network's own vector, not against the tuned one
            wrong = state[e.record.name] - model.state_dict()[e.record.name]
            assert e.error == pytest.approx(float(wrong.double().square().sum()), rel=1e-5)
            assert e.loss == pytest.approx(sensitivities[e.record.name].statistics.loss(wrong[None].numpy()), rel=1e-5)


def test_tuning_that_harms_is_thrown_away(compressed):
    *_, encoding, assembly, factor, measure = compressed

    def worse(state, vectors):
        return Tuned({name: state[name] + 1 for name in vectors}, 1.0, 0.5, 0.5)

    def compare(old, new):
        return measure(new) / measure(old)

    assert apply_tuning(encoding, assembly, factor, worse, compare) is assembly
    assert apply_tuning(encoding, assembly, factor, lambda *_: Tuned({}), compare) is assembly
    assert apply_tuning(encoding, assembly, factor, worse, lambda *_: 0.5) is not assembly
