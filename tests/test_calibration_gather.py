"""Statistics of the loss: the formula, against measured losses, groups, doubt, files."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from calibration_networks import MIXED, Mixed, Tied, check_product, check_same, mlp, seeded, trace  # noqa: F401
from torch import nn

from nnc.calibration.gather import gather
from nnc.calibration.labels import DOUBT, Labels
from nnc.calibration.statistics import Statistics, TensorStatistics
from nnc.errors import InvalidArgument


def test_loss_is_the_formula():
    rng = np.random.default_rng(0)
    c, r, e = (rng.normal(size=shape).astype(np.float32) for shape in ((4, 4), (3, 3), (3, 4)))
    c, r = c @ c.T, r @ r.T
    sides = [(r, r), (np.diag(r).copy(), np.diag(np.diag(r)))], [(c, c), (np.diag(c).copy(), np.diag(np.diag(c)))]
    for (rows, full_rows), (columns, full_columns) in product(*sides):
        found = TensorStatistics(rows, columns, (5, 9))
        expected = 0.5 * np.trace(full_rows.astype(np.float64) @ e @ full_columns @ e.T)
        assert found.loss(e) == pytest.approx(expected, rel=1e-5) and found.shape == (3, 4)
        other = found.transposed
        assert other.loss(e.T) == pytest.approx(expected, rel=1e-5) and (other.shape, other.samples) == ((4, 3), (9, 5))
        with pytest.raises(InvalidArgument, match=r"\(4, 3\), the statistics are of a plane \(3, 4\)"):
            found.loss(e.T)


def test_predicted_is_measured_kl():
    model, x = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 5)), torch.randn(300, 6)
    found = gather(model, [(x,)], "logits", draws=20, doubt=0.0)
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


def test_groups_give_what_one_pass_gives():
    model, calls = Mixed(), []
    whole = gather(model, MIXED, "logits")
    assert whole.unseen == ("unused.weight", "unused.bias") and whole.predictions == 48
    parts = gather(model, MIXED, "logits", memory=1, progress=lambda *a: calls.append(a))
    check_same(whole, parts)
    assert calls[-1][:2] == (2 * 9, 2 * 9) and calls[0][2] == "looking at the network"


def test_draws_are_deterministic():
    x = [(torch.randn(4, 6),)]
    model = mlp()
    check_same(gather(model, x, "logits", seed=3), gather(model, x, "logits", seed=3))
    a, b = (gather(model, x, "logits", seed=s, draws=1).tensors["0.weight"].rows for s in (3, 4))
    assert not np.allclose(a, b)


def test_one_sample_and_dead_inputs():
    found = gather(mlp(), [(torch.randn(1, 6),)], "logits")
    assert all(np.isfinite(s.rows).all() and np.isfinite(s.columns).all() for s in found.tensors.values())
    dead = gather(mlp(), [(torch.zeros(3, 6),)], "logits").tensors["0.weight"]
    assert not dead.rows.any() and not dead.columns.any() and dead.loss(np.ones((10, 6), np.float32)) == 0


def test_logits_that_rule_a_class_out():
    class Ruled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()

        def forward(self, x):
            return self.inner(x).masked_fill(torch.tensor([False, True, False, False]), -math.inf)

    found = gather(Ruled(), [(torch.randn(3, 6),)], "logits").tensors["inner.2.weight"]
    assert not found.rows[1].any() and found.rows[0, 0] > 0


def test_save_and_load(tmp_path):
    found = gather(Mixed(), MIXED, "logits")
    found.save(tmp_path / "a.safetensors")
    again = Statistics.load(tmp_path / "a.safetensors")
    check_same(found, again)
    assert again.fingerprint == found.fingerprint and [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    found = gather(Tied(), MIXED, "logits")
    found.save(tmp_path / "b.safetensors")
    again = Statistics.load(tmp_path / "b.safetensors").tensors
    assert found.tensors["table.weight"] is found.tensors["last"] and again["table.weight"] is again["last"]
    check_same(found, Statistics.load(tmp_path / "b.safetensors"))


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
    for change in (dict(seed=1), dict(draws=2), dict(joint=False), dict(doubt=0.5)):
        with pytest.raises(InvalidArgument, match=f"another {next(iter(change))}"):
            gather(model, MIXED, "logits", file=file, **change)
    with pytest.raises(InvalidArgument, match="another kind"):
        gather(model, MIXED, "values", file=file)
    with pytest.raises(InvalidArgument, match="another data"):
        gather(model, MIXED[:1], "logits", file=file)
    with pytest.raises(InvalidArgument, match="another model"):
        gather(Mixed(), MIXED, "logits", file=file)


def test_positions_that_no_gradient_reaches_do_not_count():
    """All others of a batch count the same, and a batch as much as it has positions."""

    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 10), nn.Linear(10, 4)

        def forward(self, x, length):
            return self.last(self.first(x).tanh()[:, :length].mean(1))

    batches = [(torch.randn(2, 5, 6), 5), (torch.randn(3, 4, 6), 1)]
    found = gather(Padded(), batches, "logits").tensors["first.weight"]
    used = [x[:, :length].reshape(-1, 6).double() for x, length in batches]
    moment = sum(x.t() @ x * (len(y) * y.shape[1] / len(x)) for x, (y, _) in zip(used, batches)).numpy()
    np.testing.assert_allclose(found.columns / trace(found.columns), moment / np.trace(moment), rtol=1e-4, atol=1e-6)
    assert found.samples[1] == sum(map(len, used))


def test_labels_with_doubt():
    """The covariance of p mixed with the uniform distribution over what is possible."""
    logits = torch.tensor([[9.0, 0.0, -3.0, -math.inf]])
    for doubt in (0.0, 0.03, 1.0):
        labels = Labels(logits.expand(1000, 4), "logits", 0, 0, doubt)
        draws = torch.cat([labels.draw(number) for number in range(200)]).double()
        p = (1 - doubt) * logits[0].double().softmax(-1) + doubt * torch.tensor([1 / 3, 1 / 3, 1 / 3, 0])
        expected = torch.diag(p) - torch.outer(p, p)
        torch.testing.assert_close(draws.t() @ draws / len(draws), expected, rtol=0.02, atol=3e-4)
        assert not draws[:, 3].any()


def test_a_sure_network_is_given_doubt():
    """However sure it is, an error in a class that seems impossible has its price."""
    model, x = mlp(), [(torch.randn(50, 6),)]
    model[2].weight.data *= 200
    sure, found = gather(model, x, "logits", doubt=0.0), gather(model, x, "logits")
    assert found.settings["doubt"] == DOUBT
    rows = np.diagonal(found.tensors["2.weight"].rows) * trace(found.tensors["2.weight"].columns)
    power = float(model[:2](x[0][0]).detach().square().sum(1).mean())
    assert rows.min() > 0.5 * power * DOUBT / len(rows)
    assert rows.min() > 2 * (np.diagonal(sure.tensors["2.weight"].rows) * trace(sure.tensors["2.weight"].columns)).min()
    assert trace(found.tensors["0.weight"].columns) > trace(sure.tensors["0.weight"].columns)
    check_same(gather(model, x, "values", doubt=0.5), gather(model, x, "values"))  # only logits have one


def test_draws_and_seeds_do_not_depend_on_how_often_they_are_asked_for():
    y = torch.randn(3, 4)
    for kind in ("logits", "unit", "values"):
        labels = Labels(y, kind, 0, 0)
        assert torch.equal(labels.draw(1), labels.draw(1)) and not torch.equal(labels.draw(0), labels.draw(1))
    sums = [Labels(y, "logits", 0, 0, t).draw(0).sum(-1).abs().max() for t in (1.0, 3.0)]
    assert max(sums) < 1e-6  # a constant added to all logits changes nothing


def test_other_rows_of_a_table_that_the_data_hardly_know():
    """Many rows seen once: other data use other rows, so the layers after the table see them, too; not so for rows in order."""
    from nnc.calibration.ops import Survey

    once, often, first = (
        torch.zeros(100, dtype=torch.int64),
        torch.zeros(100, dtype=torch.int64),
        torch.zeros(100, dtype=torch.int64),
    )
    once[10:40] = 1
    often[10:40] = 500
    first[:30] = 1
    survey = Survey()
    survey.rows.update(once=once, often=often, first=first)
    assert survey.thin == {"once"}
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Embedding(200, 6), torch.nn.Linear(6, 4)).eval()
    thin = gather(net, [(torch.arange(50, 80)[None],)], "logits", joint=False)
    known = gather(net, [(torch.arange(50, 80).repeat(200)[None],)], "logits", joint=False)
    table = net[0].weight.detach().double()
    seen = table[50:80].T @ table[50:80]

    def distance(found, to):
        c = torch.from_numpy(found.tensors["1.weight"].columns).double()
        return float((c / c.trace() - to / to.trace()).norm())

    assert distance(known, seen) < 1e-5 < 0.01 < distance(thin, seen)
    assert (thin.tensors["0.weight"].rows > 0).all()
