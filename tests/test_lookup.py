"""nnc.lookup: index tables against explicit multiplication, the network of the same values in floats, threads, files and errors."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import nnc
from nnc import lookup
from nnc.errors import Corruption, InsufficientData, InvalidArgument, NncError, Unsupported
from nnc.kernels import lookup as kernels
from nnc.lookup import layers as layer_module
from nnc.lookup import network as network_module
from nnc.lookup import storage
from nnc.lookup.layers import Float, Quantizer, Sums
from nnc.lookup.levels import find_indices, place_levels, quantize
from nnc.lookup.tables import SUMS, make_table

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))
METHODS = [(8, 16), (16, 32), (32, 100), (32, 1000)]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("lookup_digits", EXAMPLES / "04_lookup_digits.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def digits(example):
    """The perceptron of the example, its training images, test images and test labels."""
    training, images, training_labels, labels = (torch.from_numpy(array) for array in example.split())
    return example.train_perceptron(training, training_labels), training, images, labels


@pytest.fixture(scope="module")
def converted(digits):
    model, training, _, _ = digits
    return {pair: lookup.convert(model, training, activations=pair[0], weights=pair[1]) for pair in METHODS}


def alone(work, lines, gathers):
    work(0, lines)


def small_network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 5)
    )
    net[1].running_mean.copy_(torch.linspace(-0.5, 0.5, 6))
    net[1].running_var.copy_(torch.linspace(0.1, 2, 6))
    return net.eval()


def pictures(n: int = 40, channels: int = 2, height: int = 6, width: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, channels, height, width, generator=torch.Generator().manual_seed(seed))


def explicit_sums(layer: Sums, x: np.ndarray) -> np.ndarray:
    """What a layer's sums must be, by multiplication: bias + sum of round(a w 2^k / step) over the inputs of each output."""
    values = torch.from_numpy(layer.given[x].astype(np.float64))
    weights = torch.from_numpy(layer.codebook[layer.indices].astype(np.float64))
    window, outputs = layer.window, len(layer.indices)
    if window.axes == 0:
        shape = (*x.shape[:-1], outputs)
        values = values.reshape(-1, x.shape[-1], 1, 1)
    elif window.axes == 1:
        values = values[:, :, None]
    (top, left), (bottom, right) = window.before, window.after
    rows, columns = window.size(*values.shape[2:])
    patches = F.unfold(F.pad(values, (left, right, top, bottom)), window.kernel, window.dilations, 0, window.strides)
    patches = patches.reshape(len(values), layer.groups, -1, patches.shape[-1])
    weights = weights.reshape(layer.groups, outputs // layer.groups, -1)
    sums = np.empty((len(values), outputs, patches.shape[-1]), np.int64)
    for output in range(outputs):
        group, number = divmod(output, outputs // layer.groups)
        products = patches[:, group] * weights[group, number][None, :, None] * 2.0**layer.shift / float(layer.step)
        sums[:, output] = products.round().sum(1).numpy().astype(np.int64) + int(layer.bias[output])
    sums = sums.reshape(len(values), outputs, rows, columns)
    return sums.reshape(shape) if window.axes == 0 else sums[:, :, 0] if window.axes == 1 else sums


def explicit_indices(layer: Sums, sums: np.ndarray) -> np.ndarray:
    """What the activation table makes of sums, by division and rounding down."""
    axis = -1 if layer.window.axes == 0 else 1
    moved = np.moveaxis(sums, axis, -1)
    at = np.floor(moved / 2.0 ** (layer.shift - layer.fine)).clip(0, layer.activation.shape[1] - 1).astype(np.int64)
    tables = np.broadcast_to(layer.activation, (sums.shape[axis], layer.activation.shape[1]))
    return np.moveaxis(tables[np.arange(len(tables)), at], -1, axis)


def check_layers(network: lookup.LookupNetwork, x) -> int:
    """Every look-up layer of a network against the explicit references; returns how many sums were compared."""
    flowing = network.indices(x, threads=1)
    compared = 0
    for layer in network.layers:
        if isinstance(layer, Sums):
            wanted = explicit_sums(layer, flowing[layer.source])
            got = replace(layer, activation=None).run(flowing[layer.source], alone)
            assert got.dtype == SUMS[layer.dtype] and int((got != wanted).sum()) == 0
            assert np.abs(wanted).max() <= layer.bound <= np.iinfo(got.dtype).max
            compared += wanted.size
            if layer.activation is not None:
                assert (flowing[layer.name] == explicit_indices(layer, wanted)).all()
    return compared


def float_outputs(network: lookup.LookupNetwork, functions: dict[str, nn.Module], x: torch.Tensor) -> torch.Tensor:
    """The network in float64 on the same codebooks and levels: products, sums and activations as torch has them, nearest levels."""
    values = {network.entry: x.double()}
    for layer in network.layers:
        if isinstance(layer, Quantizer):
            values[layer.name] = torch.from_numpy(layer.levels[find_indices(values[layer.source], layer.levels)]).double()
        elif isinstance(layer, Sums):
            bias = torch.from_numpy(layer.bias * layer.scale + layer.low)
            weight = torch.from_numpy(layer.codebook[layer.indices]).double()
            sums = (
                F.linear(values[layer.source], weight[:, :, 0, 0], bias)
                if layer.window.axes == 0
                else F.conv2d(
                    values[layer.source],
                    weight,
                    bias,
                    layer.window.strides,
                    layer.window.before,
                    layer.window.dilations,
                    layer.groups,
                )
            )
            for label in layer.fused:
                sums = functions[label](sums)
            values[layer.name] = (
                sums if layer.levels is None else torch.from_numpy(layer.levels[find_indices(sums, layer.levels)]).double()
            )
        elif layer.title == "MaxPool2d":
            values[layer.name] = F.max_pool2d(values[layer.source], layer.window.kernel)
        else:
            values[layer.name] = values[layer.source].flatten(1)
    return values[network.exit]


# ------------------------------------------------------------------------------------------------ the digits, METHODS S4 (c)


@pytest.mark.slow
def test_digits_stay_within_half_a_point_and_within_one(digits, converted):
    model, _, images, labels = digits
    with torch.no_grad():
        original = model(images)

    def accuracy(outputs):
        return 100 * float((outputs.argmax(1) == labels).double().mean())

    found = {pair: accuracy(network(images)) for pair, network in converted.items()}
    print(f"\nfloat {accuracy(original):.2f}", *(f"{a}/{w} {value:.2f}" for (a, w), value in found.items()))
    assert accuracy(original) >= 96
    assert found[32, 100] >= accuracy(original) - 0.5 and found[32, 1000] >= accuracy(original) - 0.5
    assert found[8, 16] >= accuracy(original) - 1 and found[16, 32] >= accuracy(original) - 1


def test_no_sum_of_the_digits_differs_from_explicit_multiplication(digits, converted):
    for pair in ((8, 16), (32, 100)):
        assert check_layers(converted[pair], digits[2][:150]) == 150 * (128 + 64 + 10)


def test_the_first_choice_is_that_of_the_float_network_on_the_same_values(digits, converted):
    model, _, images, _ = digits
    functions = {name: module for name, module in model.named_modules() if isinstance(module, nn.Tanh)}
    shares = []
    for network in converted.values():
        same = float_outputs(network, functions, images).argmax(1) == network(images).argmax(1)
        shares.append(float(same.double().mean()))
    print("\nsame first choice", *(f"{100 * share:.2f} %" for share in shares))
    assert min(shares) >= 0.995


def test_bytes_of_the_tables_and_entropy_of_the_indices(converted):
    for (activations, weights), network in converted.items():
        report = network.report()
        sums = [layer for layer in network.layers if isinstance(layer, Sums)]
        assert [len(layer.given) for layer in sums] == [
            min(17, activations),
            activations,
            activations,
        ]  # a digit has 17 grey levels
        assert report.table_bytes == sum(len(s.given) * len(s.codebook) * 2 for s in sums) + 2 * 1024
        assert all(layer.table.dtype == np.int16 and layer.table.nbytes == layer.table_bytes for layer in sums)
        assert all(len(layer.codebook) <= weights for layer in sums)
        everything = [np.unique(s.indices, return_counts=True)[1] / s.indices.size for s in sums]
        bits = sum(s.indices.size * -(p * np.log2(p)).sum() for s, p in zip(sums, everything))
        assert report.entropy == pytest.approx(bits / 17024) and report.weights == 17024
    report = converted[32, 100].report()
    assert report.table_bytes == (17 + 32 + 32) * 100 * 2 + 2 * 1024 == 18248
    assert 6.2 < report.entropy < 6.6


def test_the_integer_part_dispatches_nothing_and_holds_integers(digits, converted, monkeypatch):
    _, _, images, _ = digits
    network = converted[32, 100]
    dispatched, dtypes, calls = [], [], []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            dispatched.append((str(func), len(calls)))
            return func(*args, **(kwargs or {}))

    def recorded(name, module):
        kernel = getattr(module, name)

        def call(*arguments):
            calls.append(name)
            result = kernel(*arguments)
            if name != "quantize":
                dtypes.extend(a.dtype for a in arguments if isinstance(a, np.ndarray))
                assert all(isinstance(a, (int, np.integer, np.ndarray, tuple)) for a in arguments)
            else:
                dtypes.append(result[0].dtype)
            return result

        monkeypatch.setattr(module, name, call)

    recorded("quantize", network_module)
    for name in ("index_lines", "sum_lines", "largest_lines"):
        recorded(name, layer_module)
    with Recorder():
        logits = network.logits(images, threads=1)
    assert calls == ["quantize", "index_lines", "index_lines", "sum_lines"]
    assert logits.dtype == np.int32
    assert {np.dtype(kind).kind for kind in dtypes} <= {"i", "u"} and len(dtypes) >= 15
    assert [name for name, after in dispatched if after] == []  # nothing at all after the first quantization
    forbidden = ("mul", "mm", "dot", "conv", "linear", "exp", "tanh", "sigmoid", "relu", "div")
    assert not [name for name, _ in dispatched if any(word in name for word in forbidden)]


def test_kernels_take_integers_and_multiply_addresses_only(digits, converted):
    converted[8, 16](digits[2][:2])
    lookup.convert(small_network(), pictures())(pictures())
    for kernel in (kernels.index_lines, kernels.sum_lines, kernels.largest_lines, kernels._gather):
        assert kernel.signatures or kernel is kernels._gather  # which is compiled into the others
        for signature in kernel.signatures:
            assert "float" not in str(signature) and "complex" not in str(signature), signature
        addresses = {"strides", "pads", "steps", "kernel", "row", "column", "i", "j", "group", "outputs", "depth"}
        tree = ast.parse(inspect.getsource(kernel.py_func))
        for node in ast.walk(tree):
            if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Mult, ast.Div, ast.Pow, ast.MatMult)):
                assert {leaf.id for leaf in ast.walk(node) if isinstance(leaf, ast.Name)} <= addresses, ast.unparse(node)
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name in ("range", "min", "max", "_gather", "np.empty", "x.dtype.type", "njit"), name


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_change_no_bit(digits, converted, monkeypatch, threads):
    monkeypatch.setattr(network_module, "ALONE", 0)
    for network, x in ((converted[32, 100], digits[2]), (lookup.convert(small_network(), pictures()), pictures(7))):
        one = network.indices(x, threads=1)
        many = network.indices(x, threads=threads)
        assert all((one[name] == many[name]).all() for name in one)
        assert torch.equal(network(x, threads=1), network(x, threads=threads))


# -------------------------------------------------------------------------------------------------------- other layers

CONVOLUTIONS = {
    "3x3": dict(kernel_size=3),
    "padded": dict(kernel_size=3, padding=1),
    "1x1": dict(kernel_size=1),
    "strides": dict(kernel_size=(3, 2), stride=(2, 1), padding=(2, 0)),
    "dilated": dict(kernel_size=3, dilation=(1, 2), padding=2),
    "same, even": dict(kernel_size=(4, 2), padding="same"),
    "groups": dict(kernel_size=3, groups=2, bias=False),
    "depthwise": dict(kernel_size=5, groups=4, padding=2, stride=2),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolutions_equal_explicit_multiplication(case):
    torch.manual_seed(1)
    settings = CONVOLUTIONS[case]
    net = nn.Sequential(nn.Conv2d(4, 8, **settings), nn.ReLU(), nn.Conv2d(8, 4, **settings))
    x = pictures(20, 4, 11, 9)
    network = lookup.convert(net, x, weights=300, activations=256)
    assert all(isinstance(layer, (Quantizer, Sums)) for layer in network.layers)
    check_layers(network, x)
    with torch.no_grad():
        wanted = net(x)
    assert network(x).shape == wanted.shape
    assert float((network(x) - wanted).norm() / wanted.norm()) < 0.02


def test_signals_and_sequences():
    torch.manual_seed(2)
    net = nn.Sequential(
        nn.Conv1d(3, 6, 5, stride=2, padding=1, groups=3), nn.Hardtanh(), nn.MaxPool1d(3, 2, 1), nn.Conv1d(6, 4, 2, dilation=2)
    )
    x = torch.randn(30, 3, 40)
    network = lookup.convert(net, x, weights=200, activations=200)
    assert not [layer for layer in network.layers if isinstance(layer, Float)]
    check_layers(network, x)
    assert torch.allclose(network(x), net(x), atol=0.05)
    tokens = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3))
    x = torch.randn(30, 7, 6)
    network = lookup.convert(tokens, x, weights=200, activations=200)
    check_layers(network, x)
    assert torch.allclose(network(x), tokens(x), atol=0.05)


ACTIVATIONS = [
    nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.2), nn.Tanh(), nn.Sigmoid(), nn.GELU(), nn.SiLU(), nn.Hardtanh(), nn.Mish(), nn.ELU(),
    nn.Hardswish(), nn.Softplus(), nn.PReLU(), nn.PReLU(12), nn.Softshrink(), nn.ReLU(inplace=True), nn.Dropout(), nn.Identity(),
]  # fmt: skip


@pytest.mark.parametrize("function", ACTIVATIONS, ids=lambda f: type(f).__name__)
def test_activations_are_tables(function):
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(8, 12), function, nn.Linear(12, 4)).eval()
    x = 2 * torch.randn(200, 8)
    network = lookup.convert(net, x, weights=256, activations=256)
    assert [type(layer) for layer in network.layers] == [Quantizer, Sums, Sums]
    check_layers(network, x)
    with torch.no_grad():
        wanted = net(x)
    assert float((network(x) - wanted).norm() / wanted.norm()) < 0.03


class Branches(nn.Module):
    """A residual addition, functions instead of modules, and what no table can do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.hidden, self.last, self.out = nn.Linear(54, 20), nn.LayerNorm(20), nn.Linear(20, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.first(x)))
        x = torch.relu(x + self.second(x))
        x = F.max_pool2d(x, 2)
        x = self.last(self.hidden(x.view(x.size(0), -1)))
        return torch.softmax(self.out(F.gelu(x)), -1)


def test_what_no_table_can_do_stays_float_and_says_why(tmp_path):
    torch.manual_seed(4)
    net, x = Branches().eval(), pictures()
    network = lookup.convert(net, x, weights=256, activations=256)
    rows = {row.layer: row for row in network.report().rows}
    assert {name for name, row in rows.items() if row.runs == "look-up"} == {
        "first",
        "second",
        "max_pool2d",
        "view",
        "hidden",
        "out",
    }
    assert rows["last"].note == "divides by a norm of its input" and rows["softmax"].note == "divides by a sum over its input"
    assert rows["add"].note == "takes several values, of different levels" and rows["gelu"].runs == "float"
    assert rows["first"].note == "then 1024 steps to 256 levels, relu" and rows["first"].title == "Conv2d+BatchNorm2d"
    check_layers(network, x)
    with torch.no_grad():
        assert torch.allclose(network(x), net(x), atol=0.01)
    with pytest.raises(Unsupported, match="the last layer is a float one"):
        network.logits(x)
    file = network.save(tmp_path / "net.safetensors")
    with pytest.raises(InvalidArgument, match="some layers stay float: give a module like the one"):
        lookup.load(file)
    assert torch.equal(lookup.load(file, model=Branches())(x), network(x))  # of other weights
    with pytest.raises(InvalidArgument, match="the model does not fit: 'last.weight' is not in it"):
        lookup.load(file, model=small_network())


def test_recurrence_and_attention_run_between_integer_parts():
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.up = nn.Embedding(9, 8), nn.Linear(8, 8)
            self.mix, self.cells, self.out = (
                nn.MultiheadAttention(8, 2, batch_first=True),
                nn.LSTM(8, 6, batch_first=True),
                nn.Linear(6, 4),
            )

        def forward(self, x):
            x = torch.tanh(self.up(self.table(x)))
            x = self.mix(x, x, x, need_weights=False)[0]
            return self.out(self.cells(x)[0])

    torch.manual_seed(5)
    net, x = Mixed().eval(), torch.randint(9, (40, 7))
    network = lookup.convert(net, [(x,)], activations=128)
    notes = {row.layer: row.note for row in network.report().rows if row.runs == "float"}
    assert (
        notes["mix"] == "multiplies activations with each other"
        and notes["cells"] == "recurrent"
        and notes["table"] == "picks rows, adds nothing"
    )
    with torch.no_grad():
        assert torch.allclose(network(x), net(x), atol=0.05)
    with pytest.raises(InvalidArgument, match="the input is torch.float32, must be integers"):
        network(x.float())


def test_norms_fold_pools_move_and_averages_are_sums():
    torch.manual_seed(6)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.MaxPool2d(2, ceil_mode=True), nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(2, 1, padding=1),
        nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1), nn.MaxPool2d(2), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    ).eval()  # fmt: skip
    net[2].running_mean.uniform_(-0.3, 0.3), net[5].running_var.uniform_(0.01, 2)
    x = pictures(60, 2, 9, 9)
    network = lookup.convert(net, x, weights=256, activations=256)
    assert [(row.layer, row.title) for row in network.report().rows] == [
        ("0", "Conv2d+BatchNorm2d"), ("1", "MaxPool2d"), ("4", "AvgPool2d"), ("6", "Conv2d"), ("7", "MaxPool2d"), ("8", "GELU"),
        ("9", "AdaptiveAvgPool2d"), ("10", "Flatten"), ("11", "Linear"),
    ]  # fmt: skip
    check_layers(network, x)
    with torch.no_grad():
        wanted = net(x)
    assert float((network(x) - wanted).norm() / wanted.norm()) < 0.05
    with pytest.raises(InvalidArgument, match=r"the input has the shape \(1, 2, 10, 9\), must be \(samples, 2, 9, 9\)"):
        network(torch.zeros(1, 2, 10, 9))


@pytest.mark.slow
def test_few_values_of_a_checkpoint_are_kept_to_the_bit(tmp_path):
    net, x = small_network(), pictures(60)
    coarse = {name: (value * 8).round() / 8 if value.ndim > 1 else value.clone() for name, value in net.state_dict().items()}
    coarse["0.weight"][4] *= 16  # an output that spreads more: the others need finer steps
    coarse["1.running_var"][4] *= 256
    nnc.compress(coarse, tmp_path / "c.safetensors", lossless=True)
    network = lookup.convert(small_network(1), x, source=tmp_path / "c.safetensors", activations=256)
    sums = [layer for layer in network.layers if isinstance(layer, Sums)]
    assert (sums[0].codebook == coarse["0.weight"].unique().numpy()).all() and (
        sums[1].codebook == coarse["5.weight"].unique().numpy()
    ).all()
    assert sums[0].fused == ("1", "2") and sums[0].activation.shape == (6, 1024) and sums[0].fine.max() > 0
    check_layers(network, x)
    net.load_state_dict(coarse)
    with torch.no_grad():
        wanted = net(x)
    assert float((network(x) - wanted).norm() / wanted.norm()) < 0.02
    again = lookup.load(network.save(tmp_path / "n.safetensors"))
    assert (again.logits(x) == network.logits(x)).all()
    few = lookup.convert(small_network(1), x, source=coarse, weights=4)
    assert max(row.weights or 0 for row in few.report().rows) == 4


def test_inputs_of_other_sizes_and_kinds():
    torch.manual_seed(7)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1))
    x = pictures(20, 1, 8, 8)
    network = lookup.convert(net, x, weights=200, activations=200)
    larger = pictures(3, 1, 13, 5)
    assert network(larger).shape == (3, 1, 13, 5) and network(larger.numpy()[:0]).shape == (0, 1, 13, 5)
    check_layers(network, larger)
    assert torch.equal(network(larger.double()), network(larger.numpy()))
    assert torch.equal(network(torch.full((1, 1, 8, 8), torch.inf)), network(torch.full((1, 1, 8, 8), 1e30)))  # the last level


# ------------------------------------------------------------------------------------------------------- tables and levels


def test_levels_on_a_line_are_no_worse_than_any_division():
    rng = np.random.default_rng(0)
    values = np.round(rng.standard_normal(14), 2).astype(np.float32)
    ranked = np.sort(np.unique(values))
    best = min(
        sum(((part - part.mean()) ** 2).sum() for part in np.split(ranked.astype(np.float64), cuts))
        for cuts in combinations(range(1, len(ranked)), 3)
    )
    levels = place_levels(ranked, 4)
    assert len(levels) == 4
    assert ((ranked - levels[find_indices(ranked, levels)]).astype(np.float64) ** 2).sum() == pytest.approx(best, rel=1e-5)
    assert (place_levels(np.array([3, -0.0, 0, 3, 1]), 3) == [0, 1, 3]).all()
    assert len(place_levels(np.r_[np.zeros(10**5), rng.standard_normal(10**5)], 8)) == 8  # half of them one value


def test_nearest_levels_are_those_of_numpy_and_nan_is_counted():
    levels = np.array([-1, 0, 0.5, 3], np.float32)
    values = np.array([-9, -0.5, -0.49, 0.25, 0.26, 1.75, 1.76, np.inf, np.nan], np.float32)
    got, missing = quantize(values, levels)
    assert missing == 1 and got[:-1].tolist() == [0, 0, 1, 1, 2, 2, 3, 3] == find_indices(values[:-1], levels).tolist()


def test_table_entries_round_half_to_even():
    table = make_table(np.array([0.5, 1, -1], np.float32), np.array([1, 3, 5], np.float32), 0, np.float32(1), np.dtype(np.int16))
    assert table.tolist() == [[0, 2, 2], [1, 3, 5], [-1, -3, -5]]
    with pytest.raises(InvalidArgument, match="a product is beyond int16 at step 1 and shift 14"):
        make_table(np.ones(1, np.float32), np.full(1, 2, np.float32), 14, np.float32(1), np.dtype(np.int16))


def test_one_large_weight_gets_wide_tables_that_do_not_overflow():
    torch.manual_seed(8)
    net = nn.Sequential(nn.Linear(40, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        net[0].weight[0, 0] = 3e4
    x = torch.randn(50, 40)
    network = lookup.convert(net, x, weights=256, activations=64)
    first = network.layers[1]
    assert first.dtype == np.int32 and SUMS[first.dtype] == np.int64
    check_layers(network, x)
    flat = lookup.convert(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.zeros(20, 4))  # nothing varies
    assert check_layers(flat, torch.ones(2, 4)) == 10


# ------------------------------------------------------------------------------------------------------ reports and files


def test_report_as_text_and_as_data(converted):
    report = converted[32, 100].report()
    data = json.loads(json.dumps(report.data()))
    assert data["table_bytes"] == 18248 and [row["layer"] for row in data["layers"]] == ["0", "1", "3", "5"]
    row = data["layers"][2]
    assert (row["levels"], row["weights"], row["entries"], row["sums"]) == (32, 100, "int16", "int32")
    assert 0 < row["saturation"] < 1 and row["bound"] < 2**31 and row["shift"] >= 4
    text = str(report).splitlines()
    assert text[0].split()[:3] == ["layer", "runs", "as"] and text[-1].startswith("18,248 bytes of tables, 17,024 weights of 6.")
    assert len(text) == 6 and "integer sums leave" in text[4]


def test_a_file_gives_the_same_integers(digits, converted, tmp_path):
    images = digits[2]
    for (activations, weights), network in converted.items():
        file = network.save(tmp_path / f"{activations}-{weights}.safetensors")
        again = lookup.load(file)
        assert (again.logits(images) == network.logits(images)).all() and again.scale == network.scale
        assert again.table_hash == network.table_hash and again.report() == network.report()
        coded = sum(tensor.bytes for tensor in nnc.inspect(file).tensors if tensor.name.startswith("indices"))
        print(f"\n{activations}/{weights}: {8 * coded / 17024:.3f} bits per weight for indices of {network.report().entropy:.3f}")
        assert 8 * coded / 17024 < 1.05 * network.report().entropy + 0.1
    with pytest.raises(InvalidArgument, match="exists"):
        network.save(file)
    network.save(file, overwrite=True)
    with pytest.raises(InvalidArgument, match="give it a name that ends in .safetensors"):
        network.save(tmp_path / "folder")


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A saved network, and a way to save it with other tensors."""
    network = lookup.convert(small_network(), pictures(), weights=20, activations=16)
    file = network.save(tmp_path / "net.safetensors")
    state = nnc.load(file)

    def change(**changes):
        page = json.loads(state["description"].numpy().tobytes())
        altered = {**state, **{name.replace("__", "."): value for name, value in changes.items() if name != "page"}}
        if "page" in changes:
            changes["page"](page)
            altered["description"] = torch.tensor(list(json.dumps(page).encode()), dtype=torch.uint8)
        nnc.compress({name: value for name, value in altered.items() if value is not None}, file, lossless=True, overwrite=True)
        return file

    return network, file, state, change


def test_tables_that_differ_from_the_saved_ones_are_refused(saved):
    _, file, state, change = saved
    codebook = state["exact.1.codebook"].clone()
    codebook[3] = (codebook[3] + codebook[4]) / 2
    with pytest.raises(Corruption, match="the tables made from codebooks and levels are not those that were saved"):
        lookup.load(change(exact__1__codebook=codebook))


def test_addresses_outside_a_table_are_refused(saved):
    _, file, state, change = saved
    wrong = state["indices.1"].clone()
    wrong[0, 0, 0, 0] = 20
    with pytest.raises(Corruption, match=r"layer 1: an index is outside 0..19: the file is damaged"):
        lookup.load(change(indices__1=wrong))
    wrong[0, 0, 0, 0] = torch.nan
    with pytest.raises(Corruption, match="an index that is no number"):
        lookup.load(change(indices__1=wrong))
    with pytest.raises(Corruption, match="its activation table points outside the levels"):
        lookup.load(change(exact__1__activation=torch.full_like(state["exact.1.activation"], 16)))
    with pytest.raises(Corruption, match="levels must be 1 to 256 rising numbers"):
        lookup.load(change(exact__1__levels=state["exact.1.levels"].flip(0)))
    with pytest.raises(Corruption, match="layer 1: no codebook, or of a wrong dtype"):
        lookup.load(change(exact__1__codebook=None))
    with pytest.raises(Corruption, match="tensor 'more' belongs to no layer"):
        lookup.load(change(more=torch.ones(3)))
    with pytest.raises(Corruption, match="beyond int32"):
        lookup.load(change(exact__1__bias=torch.full_like(state["exact.1.bias"], 2**40)))


@pytest.mark.slow
def test_any_change_of_the_description_is_an_error_of_a_known_kind(saved):
    network, _, state, change = saved
    original = json.loads(state["description"].numpy().tobytes())
    wanted = network.logits(pictures())
    refused = 0
    for key, value in ((k, v) for k in original["layers"][1] for v in (None, -1, "x", 10**30, [])):
        try:
            got = lookup.load(change(page=lambda page: page["layers"][1].update({key: value}))).logits(pictures())
            assert got.shape == wanted.shape and key in ("label", "title", "fused", "saturation", "learned", "name", "source"), (
                key
            )
        except (Corruption, Unsupported, InvalidArgument) as problem:
            assert "\n" not in str(problem)
            refused += 1
    assert refused > 40
    linear = len(original["layers"]) - 1
    with pytest.raises(Corruption, match="its window has 0 axes, but looks along others"):
        lookup.load(change(page=lambda page: page["layers"][linear]["window"].update(before=[0, 1])))
    with pytest.raises(Corruption, match=r"strides \(0, 1\) of its window"):
        lookup.load(change(page=lambda page: page["layers"][1]["window"].update(strides=[0, 1])))
    with pytest.raises(Corruption, match=r"inputs of float32 \(2, -6, 6\)"):
        lookup.load(change(page=lambda page: page.update(shape=[2, -6, 6])))
    with pytest.raises(Unsupported, match="version 2 of look-up networks, this is 1: update nnc"):
        lookup.load(change(page=lambda page: page.update(version=2)))
    with pytest.raises(Corruption, match="no layer makes the output 'y'"):
        lookup.load(change(page=lambda page: page.update(exit="y")))


def test_damaged_and_foreign_files(saved, tmp_path):
    _, file, _, _ = saved
    data = bytearray(file.read_bytes())
    for place in range(len(data) // 3, len(data), len(data) // 12):
        data[place] ^= 16
        file.write_bytes(data)
        with pytest.raises(NncError):
            lookup.load(file)
        data[place] ^= 16
    nnc.compress({"w": torch.randn(8, 8)}, tmp_path / "other.safetensors", lossless=True)
    with pytest.raises(InvalidArgument, match="is no look-up network: make one with nnc.lookup.convert"):
        lookup.load(tmp_path / "other.safetensors")
    with pytest.raises(NncError):
        lookup.load(tmp_path / "absent.safetensors")


def test_indices_that_the_coder_would_change_are_kept_as_they_are(saved, monkeypatch, tmp_path):
    network = saved[0]
    load = storage.load_state
    monkeypatch.setattr(storage, "load_state", lambda path: {n: v + n.startswith("indices") for n, v in load(path).items()})
    file = network.save(tmp_path / "kept.safetensors")
    monkeypatch.undo()
    assert nnc.load(file)["indices.1"].dtype == torch.uint8
    assert (lookup.load(file).logits(pictures()) == network.logits(pictures())).all()


# ------------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(weights=1), "weights = 1: must be a whole number from 2 to 65536"),
        (dict(weights=70000), "weights = 70000: must be"),
        (dict(activations=300), "activations = 300: must be a whole number from 2 to 256"),
        (dict(activations=2.5), "activations = 2.5: must be"),
        (dict(steps=3), "steps = 3: must be a whole number from 16 to 65536"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(InvalidArgument, match=message):
        lookup.convert(small_network(), pictures(), **options)


def test_data_and_networks_that_do_not_do():
    net = small_network()
    with pytest.raises(InsufficientData, match="15 samples, 16 at least are needed to place levels"):
        lookup.convert(net, pictures(15))
    with pytest.raises(InvalidArgument, match="must be an nn.Module"):
        lookup.convert("net.safetensors", pictures())
    bad = pictures()
    bad[3, 0, 0, 0] = torch.nan
    with pytest.raises(InvalidArgument, match="NaN"):
        lookup.convert(net, bad)
    with pytest.raises(InvalidArgument, match="run"):
        lookup.convert(net, pictures(20, 3))
    with torch.no_grad():
        net[5].weight[0, 0] = torch.inf
    with pytest.raises(InvalidArgument):
        lookup.convert(net, pictures())
    with pytest.raises(InvalidArgument, match="0: 108 distinct weights, at most 100|distinct"):
        big = nn.Sequential(nn.Linear(300, 300))
        lookup.convert(big, torch.randn(16, 300), source=big.state_dict())

    class Loops(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(Unsupported, match="cannot be followed"):
        lookup.convert(Loops(), torch.randn(20, 4))

    class Two(nn.Module):
        def forward(self, x, y):
            return x + y

    with pytest.raises(Unsupported, match="takes one tensor"):
        lookup.convert(Two(), [(torch.randn(20, 4), torch.randn(20, 4))])
    inside = lookup.convert(nn.Sequential(Loops(), nn.Linear(4, 2)), torch.randn(20, 4))
    assert [row.runs for row in inside.report().rows] == ["float", "look-up"]


def test_inputs_that_do_not_fit():
    network = lookup.convert(small_network(), pictures())
    with pytest.raises(InvalidArgument, match="the input holds 2 NaN"):
        x = pictures(2)
        x[1, 1, 2, 2:4] = torch.nan
        network(x)
    for shape, message in {
        (3, 2, 6): r"the input has the shape \(3, 2, 6\), must be \(samples, 2, 6, 6\)",
        (3, 3, 6, 6): "0: the input has 3 channels, must have 2",
        (3, 2, 9, 9): "5: the input has 96 channels, must have 54",
        (3, 2, 1, 1): "3: an input of 1 x 1 is smaller than its kernel",
    }.items():
        with pytest.raises(InvalidArgument, match=message):
            network(torch.zeros(shape))
    with pytest.raises(InvalidArgument, match="the input is torch.int64, must be floating point"):
        network(torch.zeros((1, 2, 6, 6), dtype=torch.int64))
    with pytest.raises(InvalidArgument, match="the input is a list, must be a tensor or an array"):
        network([1.0])
    with pytest.raises(InvalidArgument, match="threads = 0"):
        network(pictures(), threads=0)


def test_the_model_is_not_changed():
    net = small_network().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    lookup.convert(net, pictures(), weights=4, activations=4)
    assert net.training and all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.slow
def test_the_example_prints_what_it_promises(example, capsys, monkeypatch):
    monkeypatch.setattr(example, "SETTINGS", ((8, 16), (32, 100)))
    monkeypatch.setattr(example, "train_perceptron", lambda *data: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    example.main()
    out = capsys.readouterr().out
    assert "loaded again: 0 logits differ" in out and "convolutions: 99.83 % as float32" in out
    best = next(line for line in out.split("convolutions")[1].splitlines() if line.startswith("  32/100"))
    assert float(best.split()[1]) >= 99.3
