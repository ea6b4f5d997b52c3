"""Statistics of the loss: against explicit sums over samples, against measured losses, and what can go wrong."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from nnc.calibration.gather import gather
from nnc.calibration.labels import Labels
from nnc.calibration.recurrent import run_cell, run_layers
from nnc.calibration.statistics import Statistics, TensorStatistics
from nnc.errors import Corruption, InsufficientData, InvalidArgument

FACTORS = {"logits": 1, "unit": 1, "values": 2}


@pytest.fixture(autouse=True)
def _seeded():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny networks: threads would only wait for each other
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


class Head(nn.Module):
    """A network, then a mean over all axes but the first and last, then a small softmax layer."""

    def __init__(self, body: nn.Module, width: int, space: int = 0):
        super().__init__()
        self.body, self.head, self.space = body, nn.Linear(width, 5), space

    def forward(self, x):
        y = self.body(x)
        y = y[0] if isinstance(y, tuple) else y
        return self.head(y.flatten(2).mean(2) if self.space else y)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.place = nn.Parameter(torch.randn(1, 7, 6))
        self.mix = nn.Linear(6, 6)

    def forward(self, ids):
        return F.linear(torch.tanh(self.mix(self.table(ids) + self.place[:, : ids.shape[1]])), self.table.weight)


class Transposed(nn.Module):
    """A matrix product with (inputs, outputs) weights, as in GPT-2."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, 9)), nn.Parameter(torch.randn(9))
        self.second = nn.Parameter(torch.randn(9, 4))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight).tanh() @ self.second


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 5)

    def forward(self, x, memory=None):
        return self.head(self.attention(x, *(2 * [x if memory is None else memory]), need_weights=False)[0])


def mlp():
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4))


def explicit(model, batches, kind, output_of, draws, seed=0):
    """Per tensor name: sum over batches, draws and samples of g^2 by output, and of x x^T, by autograd and hooks only."""
    layer, x_of = output_of
    seen = {}
    hook = layer.register_forward_hook(lambda _, inputs, out: seen.update(x=inputs[0].detach(), y=out))
    rows = moment = total = joint = count = 0
    for number, args in enumerate(batches):
        y = model(*args)
        count += y.numel() if kind == "values" else y.numel() // y.shape[-1]
        xs = x_of(seen["x"])  # (positions, groups, columns)
        moment = moment + torch.einsum("pgi,pgj->ij", xs.double(), xs.double())
        labels = Labels(y, kind, seed, number)
        for draw in range(draws):
            g, w = torch.autograd.grad(y, [seen["y"], layer.weight], labels.draw(draw), retain_graph=True)
            g = (g.movedim(1, -1) if isinstance(layer, (nn.Conv1d, nn.Conv2d)) else g).reshape(len(xs), xs.shape[1], -1).double()
            rows = rows + g.square().sum(0).flatten() / draws
            total += float((g.square().sum(-1) * xs.double().square().sum(-1)).sum()) / draws
            joint += float(w.double().square().sum()) / draws
    hook.remove()
    scale = FACTORS[kind] / count
    return rows * scale, moment, total * scale, joint * scale


def check_matrix(model, batches, layer, x_of, name, kind="logits"):
    draws = 3
    rows, moment, total, joint = explicit(model.eval(), batches, kind, (layer, x_of), draws)
    for together, trace in ((False, total), (True, joint)):
        found = gather(model, batches, kind, focus=0, draws=draws, joint=together).tensors[name]
        assert found.full.dtype == found.diagonal.dtype == np.float32
        np.testing.assert_allclose(found.diagonal, rows, rtol=1e-4, atol=1e-9)
        np.testing.assert_allclose(found.full, moment * (trace / float(rows.sum() * moment.trace())), rtol=1e-4, atol=1e-6)
        assert float(found.diagonal.sum() * np.trace(found.full)) == pytest.approx(trace, rel=1e-4)


def linear_rows(x):
    return x.reshape(-1, 1, x.shape[-1])


@pytest.mark.parametrize("kind", ["logits", "unit", "values"])
def test_linear(kind):
    model = mlp()
    batches = [(torch.randn(5, 6),), (torch.randn(3, 6),)]
    check_matrix(model, batches, model[0], linear_rows, "0.weight", kind)
    check_matrix(model, batches, model[2], linear_rows, "2.weight", kind)


@pytest.mark.parametrize(
    "options",
    [
        dict(kernel_size=3),
        dict(kernel_size=(3, 2), stride=(2, 1), padding=(1, 2)),
        dict(kernel_size=3, dilation=2, padding=2),
        dict(kernel_size=(4, 3), padding="same"),
        dict(kernel_size=3, groups=2),
        dict(kernel_size=3, groups=4, padding=1),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Using padding")
def test_convolution(options):
    layer = nn.Conv2d(4, 8, **options)
    k, s, d = layer.kernel_size, layer.stride, layer.dilation
    pad = layer._reversed_padding_repeated_twice if layer.padding == "same" else [layer.padding[1]] * 2 + [layer.padding[0]] * 2

    def patches(x):
        u = F.unfold(F.pad(x, pad), k, d, 0, s)
        return u.transpose(1, 2).reshape(-1, layer.groups, 4 // layer.groups * k[0] * k[1])

    model = Head(nn.Sequential(layer, nn.Tanh()), 8, 2)
    check_matrix(model, [(torch.randn(3, 4, 9, 8),), (torch.randn(2, 4, 9, 8),)], layer, patches, "body.0.weight")


def test_convolution_of_one_axis_and_in_small_chunks(monkeypatch):
    layer = nn.Conv1d(4, 6, 3, stride=2)
    model = Head(nn.Sequential(layer, nn.Tanh()), 6, 1)
    batches = [(torch.randn(3, 4, 11),)]
    patches = lambda x: x.unfold(2, 3, 2).permute(0, 2, 1, 3).reshape(-1, 1, 12)  # noqa: E731
    check_matrix(model, batches, layer, patches, "body.0.weight")
    monkeypatch.setattr("nnc.calibration.patches.CHUNK", 24)
    check_matrix(model, batches, layer, patches, "body.0.weight")


def test_one_output_channel_is_projected_on_its_plane():
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Conv2d(6, 1, 3))
    found = gather(model, [(torch.randn(2, 1, 9, 9),)], "values").tensors["2.weight"]
    assert found.shape == (6, 9) and found.full.ndim == 2


def test_embedding_with_tied_head():
    model, ids = Tied(), torch.randint(0, 9, (4, 7))
    found = gather(model, [(ids,)], "logits", draws=2)
    table = found.tensors["table.weight"]
    assert table.axis == 1 and table.shape == (11, 6) and table.full.shape == (6, 6)
    assert (table.diagonal > 0).all()
    assert found.tensors["place"].shape == (7, 6) and table.uses == 2 * 28 and not found.unseen


def test_embedding_counts():
    model = Head(nn.Embedding(6, 4), 4)
    ids = torch.tensor([[0, 1, 1, 3]])
    found = gather(model, [(ids,)], "logits", draws=1).tensors["body.weight"]
    np.testing.assert_allclose(found.diagonal / found.diagonal.sum(), (np.array([1, 2, 0, 1, 0, 0]) + 0.5) / 7, rtol=1e-5)


def test_indexing_is_a_lookup():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Parameter(torch.randn(6, 4)), nn.Linear(4, 3)

        def forward(self, ids):
            return self.head(self.table[ids])

    found = gather(Table(), [(torch.tensor([0, 1, 5]),)], "logits").tensors["table"]
    assert found.axis == 1 and found.full.shape == (4, 4) and found.uses == 3


def test_inputs_by_outputs_matrix():
    model, x = Transposed(), torch.randn(7, 6)
    found = gather(model, [(x,)], "logits", focus=0, draws=2).tensors
    first, second = found["weight"], found["second"]
    assert (first.axis, first.shape) == (0, (6, 9)) and (second.axis, second.shape) == (0, (9, 4))
    c = (x.T @ x).numpy()
    np.testing.assert_allclose(first.full / np.trace(first.full), c / np.trace(c), rtol=1e-4, atol=1e-6)


def test_weight_on_the_left():
    class Left(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 6))

        def forward(self, x):
            return (self.weight @ x.transpose(1, 2)).transpose(1, 2)

    model, x = Left(), torch.randn(2, 5, 6)
    same = nn.Linear(6, 4, bias=False)
    same.weight.data.copy_(model.weight)
    a, b = gather(model, [(x,)], "logits").tensors["weight"], gather(same, [(x,)], "logits").tensors["weight"]
    np.testing.assert_allclose(a.full, b.full, rtol=1e-4)
    np.testing.assert_allclose(a.diagonal, b.diagonal, rtol=1e-4)


def test_attention():
    x = torch.randn(3, 4, 8)
    found = gather(Attention(), [(x,)], "logits", focus=0, draws=2)
    inner = found.tensors["attention.in_proj_weight"]
    c = torch.einsum("bti,btj->ij", x, x).numpy()
    np.testing.assert_allclose(inner.full / np.trace(inner.full), c / np.trace(c), rtol=1e-3, atol=1e-6)
    assert inner.shape == (24, 8) and (inner.diagonal > 0).all() and not found.unseen
    assert found.tensors["attention.out_proj.weight"].full.shape == (8, 8)
    # queries and keys of their own: slices of rows
    sliced = gather(Attention(), [(x, torch.randn(3, 5, 8))], "logits").tensors["attention.in_proj_weight"]
    assert sliced.shape == (24, 8) and (sliced.diagonal > 0).all() and sliced.uses == 12 + 15


def test_encoder_layer_without_its_fast_path():
    model = nn.Sequential(nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2), nn.Linear(8, 3))
    found = gather(model, [(torch.randn(2, 4, 8),)], "logits")
    assert not found.unseen and all(found.tensors[n].full.ndim == 2 for n in found.tensors if n.endswith("linear1.weight"))


def spell(layer, kind, x, state):
    return run_layers(
        F.linear,
        kind,
        x,
        state,
        layer._flat_weights,
        layer.bias,
        layer.num_layers,
        0.0,
        False,
        layer.bidirectional,
        layer.batch_first,
    )


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_recurrent_layers_equal_those_of_torch(kind, both, first, bias):
    options = dict(num_layers=2, bidirectional=both, batch_first=first, bias=bias)
    layer = (
        {"lstm": nn.LSTM, "gru": nn.GRU}[kind](3, 4, **options)
        if kind in ("lstm", "gru")
        else nn.RNN(3, 4, nonlinearity=kind[4:], **options)
    )
    x = torch.randn(2, 5, 3)
    h = torch.randn(4 if both else 2, 2 if first else 5, 4)
    state = (h, h.cos()) if kind == "lstm" else h
    mine, theirs = spell(layer, kind, x, state), layer(x, state)
    for a, b in zip(mine, (theirs[0], *(theirs[1] if kind == "lstm" else theirs[1:]))):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_packed_sequences(kind):
    layer = {"lstm": nn.LSTM, "gru": nn.GRU}[kind](3, 4, 2, bidirectional=True)
    packed = pack_padded_sequence(torch.randn(6, 4, 3), [6, 5, 5, 2])
    h = torch.randn(4, 4, 4)
    state = (h, h.sin()) if kind == "lstm" else h
    mine = run_layers(F.linear, kind, packed.data, packed.batch_sizes, state, layer._flat_weights, True, 2, 0.0, False, True)
    theirs = layer(packed, state)
    torch.testing.assert_close(mine[0], theirs[0].data, rtol=1e-5, atol=1e-6)
    for a, b in zip(mine[1:], theirs[1] if kind == "lstm" else theirs[1:]):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_projected_lstm_and_cells():
    layer = nn.LSTM(3, 6, 2, proj_size=4, bidirectional=True)
    x, state = torch.randn(5, 2, 3), (torch.randn(4, 2, 4), torch.randn(4, 2, 6))
    theirs = layer(x, state)
    for a, b in zip(spell(layer, "lstm", x, state), (theirs[0], *theirs[1])):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    for kind, cell in (("lstm", nn.LSTMCell(3, 4)), ("gru", nn.GRUCell(3, 4)), ("rnn_tanh", nn.RNNCell(3, 4))):
        x, h = torch.randn(2, 3), torch.randn(2, 4)
        state = (h, h.cos()) if kind == "lstm" else h
        mine = run_cell(F.linear, kind, x, state, cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
        torch.testing.assert_close(mine, cell(x, state), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_statistics_of_recurrent_layers(kind):
    layer = {"lstm": nn.LSTM, "gru": nn.GRU}[kind](3, 4, 2, bidirectional=True, batch_first=True)
    model, x = Head(layer, 8), torch.randn(6, 5, 3)
    found = gather(model, [(x,)], "logits", focus=0, draws=2)
    assert not found.unseen and all(
        found.tensors[f"body.{n}"].full.ndim == (2 if "weight" in n else 1) for n, _ in layer.named_parameters()
    )
    c = torch.einsum("bti,btj->ij", x, x).numpy()
    for name in ("body.weight_ih_l0", "body.weight_ih_l0_reverse"):
        full = found.tensors[name].full
        np.testing.assert_allclose(full / np.trace(full), c / np.trace(c), rtol=1e-4, atol=1e-6)
    assert found.tensors["body.weight_hh_l1"].uses == 30


def test_packed_statistics():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 5)

        def forward(self, x, n):
            return self.head(pad_packed_sequence(self.body(pack_padded_sequence(x, n, True))[0], True)[0])

    found = gather(Packed(), [(torch.randn(2, 5, 3), torch.tensor([5, 2]))], "logits")
    assert found.tensors["body.weight_ih_l0"].uses == 7 and not found.unseen


def test_normalization_has_statistics_of_its_running_figures():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 4))
    for tensor in (model[1].running_mean, model[1].bias.data):
        tensor.copy_(torch.randn(3))
    model[1].running_var.copy_(torch.rand(3) + 0.5)
    x = torch.randn(8, 2, 6, 6)
    found = gather(model, [(x,)] * 4, "values", draws=40)
    assert not found.unseen and "1.num_batches_tracked" not in found.tensors
    model.eval().requires_grad_(False)
    base = model(x)
    for name in ("1.running_mean", "1.running_var", "1.weight", "1.bias"):
        tensor, error = model.state_dict()[name], 1e-2 * torch.randn(200, 3)
        predicted, measured = 0.0, 0.0
        before = tensor.clone()
        for e in error:
            tensor.copy_(before + e)
            measured += float((model(x) - base).square().mean())
            predicted += found.tensors[name].loss(e[None].numpy())
        tensor.copy_(before)
        assert predicted == pytest.approx(measured, rel=0.25), name


def test_predicted_is_measured_kl():
    model, x = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 5)), torch.randn(300, 6)
    found = gather(model, [(x,)], "logits", draws=20)
    model.requires_grad_(False)
    p = model(x).log_softmax(-1)
    for name in ("0.weight", "2.weight"):
        weight, before = model.state_dict()[name], model.state_dict()[name].clone()
        predicted = measured = 0.0
        for _ in range(30):
            e = 0.01 * torch.randn(weight.shape)
            weight.copy_(before + e)
            q = model(x).log_softmax(-1)
            measured += float((p.exp() * (p - q)).sum(-1).double().mean())
            predicted += found.tensors[name].loss(e.numpy())
        weight.copy_(before)
        assert predicted == pytest.approx(measured, rel=0.2), name


def test_loss_is_the_formula():
    rng = np.random.default_rng(0)
    c, r, e = (
        rng.normal(size=(4, 4)).astype(np.float32),
        rng.random(3).astype(np.float32),
        rng.normal(size=(3, 4)).astype(np.float32),
    )
    c = c @ c.T
    expected = 0.5 * sum(r[i] * e[i] @ c @ e[i] for i in range(3))
    assert TensorStatistics(1, c, r, 1).loss(e) == pytest.approx(expected, rel=1e-5)
    assert TensorStatistics(0, c, r, 1).loss(e.T) == pytest.approx(expected, rel=1e-5)
    assert TensorStatistics(1, np.diag(c).copy(), r, 1).loss(e) == pytest.approx(
        0.5 * (r[:, None] * e**2 * np.diag(c)).sum(), rel=1e-5
    )
    with pytest.raises(InvalidArgument, match="shape"):
        TensorStatistics(1, c, r, 1).loss(e.T)


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.lstm, self.norm, self.head = (
            nn.Embedding(9, 6),
            nn.LSTM(6, 5, batch_first=True),
            nn.LayerNorm(5),
            nn.Linear(5, 4),
        )
        self.unused = nn.Linear(3, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, ids):
        return self.head(self.drop(F.relu(self.norm(self.lstm(self.table(ids))[0]), inplace=True)))


MIXED = [(torch.randint(0, 9, (4, 6), generator=torch.Generator().manual_seed(b)),) for b in range(2)]


def check_same(a, b):
    assert list(a.tensors) == list(b.tensors) and a.unseen == b.unseen and (a.kind, a.predictions) == (b.kind, b.predictions)
    for name, entry in a.tensors.items():
        other = b.tensors[name]
        assert (entry.axis, entry.uses) == (other.axis, other.uses)
        np.testing.assert_allclose(entry.full, other.full, rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(entry.diagonal, other.diagonal, rtol=1e-5, atol=1e-12)


def test_groups_give_what_one_pass_gives():
    model, calls = Mixed(), []
    whole = gather(model, MIXED, "logits")
    assert whole.unseen == ("unused.weight", "unused.bias") and whole.predictions == 48
    parts = gather(model, MIXED, "logits", memory=1, progress=lambda *a: calls.append(a))
    check_same(whole, parts)
    assert calls[-1][:2] == (2 * 9, 2 * 9) and calls[0][2] == "looking at the network"


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


def test_inputs_overwritten_in_place():
    class Overwriting(nn.Module):
        def __init__(self, inplace):
            super().__init__()
            self.a, self.b, self.inplace = nn.Linear(4, 4), nn.Linear(4, 4), inplace

        def forward(self, x):
            y = self.a(x)
            z = self.b(y)
            return z + F.relu(y, inplace=self.inplace)

    x, model = torch.randn(6, 4), Overwriting(False)
    other = Overwriting(True)
    other.load_state_dict(model.state_dict())
    check_same(gather(model, [(x,)], "logits"), gather(other, [(x,)], "logits"))


def test_save_and_load(tmp_path):
    found = gather(Mixed(), MIXED, "logits")
    found.save(tmp_path / "a.safetensors")
    again = Statistics.load(tmp_path / "a.safetensors")
    check_same(found, again)
    assert again.fingerprint == found.fingerprint and [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    tied = Tied()
    tied.other = nn.Linear(6, 11, bias=False)
    tied.other.weight = tied.table.weight
    found = gather(tied, MIXED, "logits")
    found.save(tmp_path / "b.safetensors")
    again = Statistics.load(tmp_path / "b.safetensors").tensors
    assert found.tensors["table.weight"] is found.tensors["other.weight"] and again["table.weight"] is again["other.weight"]


def test_damaged_files(tmp_path):
    file = tmp_path / "a.safetensors"
    with pytest.raises(InvalidArgument, match="no such file"):
        Statistics.load(file)
    gather(mlp(), [(torch.randn(2, 6),)], "logits").save(file)
    data = file.read_bytes()
    for length in (0, 7, 100, len(data) - 1):
        file.write_bytes(data[:length])
        with pytest.raises(Corruption, match="gather anew"):
            Statistics.load(file)
    file.write_bytes(data.replace(b'"nnc statistics"', b'"nnc statistixx"'))
    with pytest.raises(InvalidArgument, match="not a file of statistics"):
        Statistics.load(file)
    file.write_bytes(data.replace(b'"version":"1"', b'"version":"7"'))
    with pytest.raises(InvalidArgument, match="version 7"):
        Statistics.load(file)
    with pytest.raises(InvalidArgument, match="No such file"):
        gather(mlp(), [(torch.randn(2, 6),)], "logits").save(tmp_path / "none" / "a.safetensors")


def test_an_interrupted_run_goes_on(tmp_path):
    file, model, whole = tmp_path / "a.safetensors", Mixed(), None
    whole = gather(model, MIXED, "logits")

    class Stop(Exception):
        pass

    def stop(done, total, what):
        if what.startswith("gathering") and done == 9:
            raise Stop

    with pytest.raises(Stop):
        gather(model, MIXED, "logits", memory=1, file=file, progress=stop)
    kept = len(Statistics.load(file).tensors)
    calls = []
    check_same(whole, gather(model, MIXED, "logits", memory=1, file=file, progress=lambda *a: calls.append(a)))
    assert kept == 4 and calls[-1][1] == 2 * (9 - kept)
    calls.clear()
    check_same(whole, gather(model, MIXED, "logits", file=file, progress=lambda *a: calls.append(a)))
    assert calls == []
    for change in (dict(seed=1), dict(draws=2), dict(focus=0.25), dict(joint=False)):
        with pytest.raises(InvalidArgument, match=f"another {next(iter(change))}"):
            gather(model, MIXED, "logits", file=file, **change)
    with pytest.raises(InvalidArgument, match="another kind"):
        gather(model, MIXED, "values", file=file)
    with pytest.raises(InvalidArgument, match="another data"):
        gather(model, MIXED[:1], "logits", file=file)
    with pytest.raises(InvalidArgument, match="another model"):
        gather(Mixed(), MIXED, "logits", file=file)


def test_one_sample_and_dead_inputs():
    found = gather(mlp(), [(torch.randn(1, 6),)], "logits")
    assert all(np.isfinite(s.full).all() for s in found.tensors.values())
    dead = gather(mlp(), [(torch.zeros(3, 6),)], "logits").tensors["0.weight"]
    assert not dead.full.any() and dead.loss(np.ones((10, 6), np.float32)) == 0


def test_draws_are_deterministic():
    x = [(torch.randn(4, 6),)]
    model = mlp()
    check_same(gather(model, x, "logits", seed=3), gather(model, x, "logits", seed=3))
    a, b = (gather(model, x, "logits", seed=s, draws=1).tensors["0.weight"].diagonal for s in (3, 4))
    assert not np.allclose(a, b)


def test_logits_that_rule_a_class_out():
    class Ruled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()

        def forward(self, x):
            return self.inner(x).masked_fill(torch.tensor([False, True, False, False]), -math.inf)

    found = gather(Ruled(), [(torch.randn(3, 6),)], "logits").tensors["inner.2.weight"]
    assert found.diagonal[1] == 0 and found.diagonal[0] > 0


def test_unknown_functions_have_elementwise_statistics():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.mix = nn.ConvTranspose1d(3, 4, 2), nn.Parameter(torch.randn(4, 5))
            self.scale = nn.Parameter(torch.randn(3, 1))
            self.register_buffer("offset", torch.randn(5))

        def forward(self, x):
            return torch.einsum("bct,cd->btd", self.up(x * self.scale), self.mix) + self.offset

    found = gather(Odd(), [(torch.randn(2, 3, 6),)], "values")
    assert not found.unseen and {n: s.full.ndim for n, s in found.tensors.items()} == dict.fromkeys(
        ("up.weight", "up.bias", "mix", "scale", "offset"), 1
    )


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
    for wrong in (dict(kind="image"), dict(focus=2), dict(draws=0), dict(memory=0)):
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
