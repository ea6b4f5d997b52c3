"""Every way in which a network uses its weights, against sums over positions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from calibration_networks import (
    Attention,
    Head,
    Straight,
    Tied,
    Transposed,
    check_matrix,
    check_product,
    check_same,
    explicit,
    linear_rows,
    mlp,
    seeded,  # noqa: F401
    trace,
)
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from nnc.calibration.gather import gather
from nnc.calibration.labels import Labels
from nnc.calibration.moments import SPREAD, UNSEEN
from nnc.calibration.recurrent import run_cell, run_layers


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
    batches, layer = [(torch.randn(2, 1, 9, 9),)], model[2]
    found = gather(model, batches, "values", draws=2).tensors["2.weight"]
    unfold = lambda x: F.unfold(x, 3).transpose(1, 2).reshape(-1, 1, 54)  # noqa: E731
    _, (_, moment, joint) = explicit(model, batches, "values", layer, unfold, 2)
    blocks = moment.reshape(6, 9, 6, 9)
    check_product(found, np.einsum("ijkj->ik", blocks), np.einsum("ijil->jl", blocks), joint)


def test_embedding_with_tied_head():
    model, ids = Tied(), torch.randint(0, 9, (4, 7))
    found = gather(model, [(ids,)], "logits", draws=2)
    table = found.tensors["table.weight"]
    assert table.rows.shape == (11, 11) and table.columns.shape == (6, 6) and (np.diagonal(table.rows) > 0).all()
    assert table is found.tensors["last"] and not found.unseen and found.tensors["place"].shape == (7, 6)
    # the sum of what the lookup and the product say, of the same trace
    apart = Tied(tied=False)
    apart.load_state_dict(model.state_dict())
    parts = gather(apart, [(ids,)], "logits", draws=2).tensors
    lookup, product = parts["table.weight"], parts["last"]
    assert lookup.rows.ndim == 1 and product.rows.ndim == 2
    rows = np.diag(lookup.rows) * trace(lookup.columns) + product.rows * trace(product.columns)
    columns = lookup.columns * trace(lookup.rows) + product.columns * trace(product.rows)
    check_product(table, rows, columns, sum(trace(p.rows) * trace(p.columns) for p in (lookup, product)))
    assert lookup.samples == (28, 56) and product.samples == (56, 28) and table.samples == (84, 84)


def test_embedding_counts():
    model = Head(nn.Embedding(6, 4), 4)
    ids = torch.tensor([[0, 1, 1, 3]])
    found = gather(model, [(ids,)], "logits", draws=1).tensors["body.weight"]
    counts = np.array([1, 2, 0, 1, 0, 0])
    expected = counts + SPREAD + UNSEEN * counts.mean()  # other data use other rows
    np.testing.assert_allclose(found.rows / found.rows.sum(), expected / expected.sum(), rtol=1e-5)
    assert found.columns.shape == (4, 4) and found.samples == (4, 4)


def test_gradients_of_a_table():
    model, ids = Head(nn.Embedding(6, 4), 4), torch.tensor([[0, 1, 1, 3], [2, 5, 0, 1]])
    found = gather(model, [(ids,)], "logits", draws=2).tensors["body.weight"]
    x = model.body.weight.detach()[ids].requires_grad_()
    y = model.head(x)
    grads = [torch.autograd.grad(y, x, Labels(y, "logits", 0, 0).draw(n), retain_graph=True)[0].reshape(-1, 4) for n in range(2)]
    check_product(found, found.rows, sum(np.outer(g, g) for grad in grads for g in grad.double().numpy()))


def test_indexing_is_a_lookup():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Parameter(torch.randn(6, 4)), nn.Linear(4, 3)

        def forward(self, ids):
            return self.head(self.table[ids])

    found = gather(Table(), [(torch.tensor([0, 1, 5]),)], "logits").tensors["table"]
    assert found.rows.shape == (6,) and found.columns.shape == (4, 4) and found.samples[0] == 3


def test_inputs_by_outputs_matrix():
    """The plane of (inputs, outputs) weights has inputs for rows: its statistics are those of the usual layer, transposed."""
    model, x = Transposed(), torch.randn(7, 6)
    found = gather(model, [(x,)], "logits", draws=2).tensors
    same = gather(Straight(model), [(x,)], "logits", draws=2).tensors
    for mine, theirs in (("weight", "first.weight"), ("second", "second.weight")):
        other = same[theirs]
        # which side carries the scale is not told
        check_product(found[mine], other.columns, other.rows, trace(other.rows) * trace(other.columns))
        assert found[mine].samples == other.samples[::-1] == (7, 14)
    c = (x.T @ x).numpy()
    apart = gather(model, [(x,)], "logits", joint=False).tensors["weight"].rows
    np.testing.assert_allclose(apart / trace(apart), c / np.trace(c), rtol=1e-4, atol=1e-6)


def test_weights_of_one_row_or_column():
    """Their plane is one row, whatever the axis that is long."""

    class Thin(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down, self.other = nn.Linear(1, 6), nn.Linear(6, 1), nn.Parameter(torch.randn(6, 1))

        def forward(self, x):
            h = self.up(x).tanh()
            return self.down(h) + h @ self.other + (self.up(x) @ self.other).sin()

    found = gather(Thin(), [(torch.randn(9, 1),)], "values", draws=3).tensors
    for name in ("up.weight", "down.weight", "other"):
        assert found[name].shape == (1, 6) and found[name].columns.ndim == 2 and trace(found[name].columns) > 0
    assert found["up.weight"].samples == (18, 54) and found["down.weight"].samples == (27, 9)


def test_many_outputs_have_a_diagonal(monkeypatch):
    """Where there are more than WIDEST outputs, rows are the diagonal of the matrix; slices of rows may be narrow themselves."""
    model, x, own = Attention(), torch.randn(3, 4, 8), torch.randn(3, 5, 8)
    transposed, batch = Transposed(), [(torch.randn(7, 6),)]
    cases = [(model, [(x,)]), (model, [(x, own)]), (transposed, batch)]
    whole = [gather(m, b, "logits", draws=2) for m, b in cases]
    for module in ("moments", "ops"):
        monkeypatch.setattr(f"nnc.calibration.{module}.WIDEST", 8)
    for (m, b), before in zip(cases, whole):
        after = gather(m, b, "logits", draws=2)
        for name, entry in before.tensors.items():
            narrow = after.tensors[name]
            wide = [n > 8 and "bias" not in name for n in entry.shape]
            if m is transposed:
                wide[0] = False  # rows are inputs
            for side, full, cut in zip((narrow.rows, narrow.columns), (entry.rows, entry.columns), wide):
                full = np.diagonal(full) if cut and full.ndim == 2 else full
                np.testing.assert_allclose(side, full, rtol=1e-4, atol=1e-6 * np.abs(full).max(), err_msg=name)


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
    np.testing.assert_allclose(a.rows, b.rows, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(a.columns, b.columns, rtol=1e-4, atol=1e-6)
    assert a.samples == b.samples


def test_attention():
    x = torch.randn(3, 4, 8)
    found = gather(Attention(), [(x,)], "logits", draws=2, joint=False)
    inner = found.tensors["attention.in_proj_weight"]
    c = torch.einsum("bti,btj->ij", x, x).numpy()
    np.testing.assert_allclose(inner.columns / np.trace(inner.columns), c / np.trace(c), rtol=1e-3, atol=1e-6)
    assert inner.rows.shape == (24, 24) and (np.diagonal(inner.rows) > 0).all() and not found.unseen
    assert found.tensors["attention.out_proj.weight"].columns.shape == (8, 8)
    # queries and keys of their own: slices of rows
    sliced = gather(Attention(), [(x, torch.randn(3, 5, 8))], "logits", joint=False).tensors["attention.in_proj_weight"]
    assert sliced.shape == (24, 8) and (np.diagonal(sliced.rows) > 0).all() and sliced.samples[1] == 12 + 15
    assert not sliced.rows[:8, 8:].any()  # queries and keys are products of their own


def test_encoder_layer_without_its_fast_path():
    model = nn.Sequential(nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2), nn.Linear(8, 3))
    found = gather(model, [(torch.randn(2, 4, 8),)], "logits")
    assert not found.unseen and all(found.tensors[n].rows.ndim == 2 for n in found.tensors if n.endswith("linear1.weight"))


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
    found = gather(model, [(x,)], "logits", draws=2, joint=False)
    assert not found.unseen and all(
        found.tensors[f"body.{n}"].columns.ndim == (2 if "weight" in n else 1) for n, _ in layer.named_parameters()
    )
    c = torch.einsum("bti,btj->ij", x, x).numpy()
    for name in ("body.weight_ih_l0", "body.weight_ih_l0_reverse"):
        full = found.tensors[name].columns
        np.testing.assert_allclose(full / np.trace(full), c / np.trace(c), rtol=1e-4, atol=1e-6)
    assert found.tensors["body.weight_hh_l1"].samples == (60, 30)


def test_packed_statistics():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 5)

        def forward(self, x, n):
            return self.head(pad_packed_sequence(self.body(pack_padded_sequence(x, n, True))[0], True)[0])

    found = gather(Packed(), [(torch.randn(2, 5, 3), torch.tensor([5, 2]))], "logits")
    assert found.tensors["body.weight_ih_l0"].samples[1] == 7 and not found.unseen


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
    assert not found.unseen and {n: s.rows.ndim for n, s in found.tensors.items()} == dict.fromkeys(
        ("up.weight", "up.bias", "mix", "scale", "offset"), 1
    )


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
