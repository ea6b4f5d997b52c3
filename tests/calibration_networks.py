"""Small networks for the tests of calibration, and statistics of one layer computed position by position."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnc.calibration.gather import gather
from nnc.calibration.labels import Labels

FACTORS = {"logits": 1, "unit": 1, "values": 2}


@pytest.fixture(autouse=True)
def seeded():
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
    """A table of vectors that is the last layer, too; tied=False: two tensors of the same values."""

    def __init__(self, tied: bool = True):
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.place = nn.Parameter(torch.randn(1, 7, 6))
        self.mix = nn.Linear(6, 6)
        self.last = self.table.weight if tied else nn.Parameter(self.table.weight.detach().clone())

    def forward(self, ids):
        return F.linear(torch.tanh(self.mix(self.table(ids) + self.place[:, : ids.shape[1]])), self.last)


class Transposed(nn.Module):
    """A matrix product with (inputs, outputs) weights, as in GPT-2."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, 9)), nn.Parameter(torch.randn(9))
        self.second = nn.Parameter(torch.randn(9, 4))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight).tanh() @ self.second


class Straight(nn.Module):
    """The same network with (outputs, inputs) weights."""

    def __init__(self, model: Transposed):
        super().__init__()
        self.first, self.second = nn.Linear(6, 9), nn.Linear(9, 4, bias=False)
        self.first.weight.data, self.first.bias.data = model.weight.data.t().contiguous(), model.bias.data
        self.second.weight.data = model.second.data.t().contiguous()

    def forward(self, x):
        return self.second(self.first(x).tanh())


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 5)

    def forward(self, x, memory=None):
        return self.head(self.attention(x, *(2 * [x if memory is None else memory]), need_weights=False)[0])


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


def mlp():
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4))


def linear_rows(x):
    return x.reshape(-1, 1, x.shape[-1])


def trace(side):
    return float(side.sum() if side.ndim == 1 else np.trace(side))


def check_product(found, rows, columns, total=None):
    """Both sides up to a factor, and the trace of their Kronecker product."""
    for side, expected in ((found.rows, rows), (found.columns, columns)):
        expected = np.asarray(expected, np.float64)
        assert side.dtype == np.float32 and side.shape == expected.shape
        np.testing.assert_allclose(side / trace(side), expected / trace(expected), rtol=1e-3, atol=1e-5)
    if total is not None:
        assert trace(found.rows) * trace(found.columns) == pytest.approx(total, rel=1e-4)


def explicit(model, batches, kind, layer, x_of, draws, seed=0):
    """Rows, columns and trace of the Fisher matrix with independent positions, and with those of a batch together: sums over batches,
    draws and positions of g g^T and of x x^T.  By autograd, hooks and loops only."""
    seen = {}
    hook = layer.register_forward_hook(lambda _, inputs, out: seen.update(x=inputs[0].detach(), y=out))
    outputs, columns = layer.weight.shape[0], layer.weight[0].numel()
    rows, moment = np.zeros((outputs, outputs)), np.zeros((columns, columns))
    total, joint, count = 0.0, 0.0, 0
    for number, args in enumerate(batches):
        y = model(*args)
        count += y.numel() if kind == "values" else y.numel() // y.shape[-1]
        xs = x_of(seen["x"]).double().numpy()  # (positions, groups, columns)
        labels = Labels(y, kind, seed, number)
        for x in xs:
            moment += x.T @ x
        for draw in range(draws):
            g, w = torch.autograd.grad(y, [seen["y"], layer.weight], labels.draw(draw), retain_graph=True)
            g = (g.movedim(1, -1) if isinstance(layer, (nn.Conv1d, nn.Conv2d)) else g).reshape(len(xs), xs.shape[1], -1)
            for mine, x in zip(g.double().numpy(), xs):
                rows += np.outer(mine, mine) / draws
                total += float(((mine**2).sum(1) * (x**2).sum(1)).sum()) / draws
            joint += float(w.double().square().sum()) / draws
    hook.remove()
    scale = FACTORS[kind] / count
    return (rows, moment, total * scale), (rows, moment, joint * scale)


def check_matrix(model, batches, layer, x_of, name, kind="logits"):
    draws = 3
    for together, expected in enumerate(explicit(model.eval(), batches, kind, layer, x_of, draws)):
        found = gather(model, batches, kind, draws=draws, joint=bool(together)).tensors[name]
        check_product(found, *expected)
        assert found.samples[0] == draws * found.samples[1]


def check_same(a, b):
    assert list(a.tensors) == list(b.tensors) and a.unseen == b.unseen and (a.kind, a.predictions) == (b.kind, b.predictions)
    for name, entry in a.tensors.items():
        other = b.tensors[name]
        assert entry.samples == other.samples
        np.testing.assert_allclose(entry.rows, other.rows, rtol=1e-4, atol=1e-6 * np.abs(entry.rows).max())
        np.testing.assert_allclose(entry.columns, other.columns, rtol=1e-4, atol=1e-6 * np.abs(entry.columns).max())
