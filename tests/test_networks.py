"""Networks that choose the tables of levels: the integers, the bank, the bytes, both decoders, training, and what the encoder chooses."""
from __future__ import annotations

import hashlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import golden_cases as cases  # noqa: E402
import reference_decoder as decoder  # noqa: E402
from make_golden import loaded  # noqa: E402
from network_cases import NETWORKS_OF, forcing, random_network, shipped_networks  # noqa: E402

import nnc  # noqa: E402
from nnc.bits import Reader, Writer  # noqa: E402
from nnc.container import open_file  # noqa: E402
from nnc.entropy import network as networks  # noqa: E402
from nnc.entropy.explicit import NETWORKS  # noqa: E402
from nnc.entropy.fine import FINE_TABLES, fine_table, fine_tables, table_number  # noqa: E402
from nnc.entropy.inputs import CONTEXT, HYPER, INPUTS, magnitude_table  # noqa: E402
from nnc.entropy.network import ACTIVATIONS, Network, activation_table, divide  # noqa: E402
from nnc.entropy.parametric import exponential, level_frequencies  # noqa: E402
from nnc.learning.rounding import ALPHA, BETA, activate, clamp_through, round_through  # noqa: E402
from nnc.learning.samples import Samples  # noqa: E402
from nnc.learning.shadow import Shadow  # noqa: E402
from nnc.learning.training import Recipe, soft_bits, train, true_bits  # noqa: E402
from nnc.levels import run  # noqa: E402


def some_networks() -> list[Network]:
    return [network for kind in ("hyper", "context", "shipped") for network in NETWORKS_OF[kind]()]


def plain_run(network: Network, inputs: list[int], order: np.random.Generator | None = None) -> list[int]:
    """Python integers, terms of the sums in any order."""
    u = [inputs[i] for i in network.inputs]
    for layer in network.layers:
        terms = [[int(h) * x for h, x in zip(row, u)] + [int(b)] for row, b in zip(layer.kernel, layer.bias)]
        if order is not None:
            terms = [[row[n] for n in order.permutation(len(row))] for row in terms]
        v = [min(max((2 * sum(row) + c) // (2 * c), -512), 511) for row, c in zip(terms, layer.divisor.tolist())]
        u = v if layer.activation is None else [int(activation_table(layer.activation)[x + 512]) for x in v]
    return u


def torch_run(network: Network, values: np.ndarray) -> np.ndarray:
    u = torch.from_numpy(values[:, list(network.inputs)].astype(np.int64))
    for layer in network.layers:
        a, c = u @ torch.from_numpy(layer.kernel).T + torch.from_numpy(layer.bias), torch.from_numpy(layer.divisor)
        v = torch.div(2 * a + c, 2 * c, rounding_mode="floor").clamp(-512, 511)
        u = v if layer.activation is None else torch.from_numpy(activation_table(layer.activation).copy())[v + 512].long()
    return u.numpy()


# ---- integers ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("number", range(len(some_networks())))
def test_every_way_to_run_a_network_agrees(number):
    network, rng = some_networks()[number], np.random.default_rng(number)
    values = rng.integers(0, 256, (3000, INPUTS[network.kind]), np.uint8)
    values[:2] = [[0], [255]]
    found = network.run(values)
    assert np.array_equal(found, run(network, values)) and np.array_equal(found, torch_run(network, values))
    assert found[:60].tolist() == [plain_run(network, row.tolist(), rng) for row in values[:60]]
    assert network.bound < 1 << 31 and len(np.unique(found, axis=0)) > 1


def test_division_rounds_to_nearest_for_all_signs():
    a, c = np.arange(-4000, 4001)[:, None], np.array([1, 2, 3, 7, 10])
    assert np.array_equal(divide(a, c), np.clip(np.floor(a / c + 0.5), -512, 511))
    assert divide(np.array([-15, -5, 5, 15]), np.array(10)).tolist() == [-1, 0, 1, 2]


def test_division_by_reciprocals_is_exact(rng=np.random.default_rng(0)):
    """The kernels multiply by a reciprocal: the ends of every quotient, for small, large and random divisors."""
    for c in [1, 2, 3, 5, 255, 256, 257, (1 << 18) - 1, 1 << 18, *rng.integers(1, 1 << 18, 200).tolist()]:
        edges = np.arange(-512, 512) * c + (c + 1) // 2
        a = np.clip(np.concatenate([edges - 1, edges, edges + 1]), -512 * c, 511 * c)
        quotients = ((2 * a + c + 1024 * c) * ((1 << 52) // (2 * c) + 1) >> 52) - 512
        assert np.array_equal(quotients, divide(a, np.array(c))), c


def test_activations_are_tables_of_their_formulas():
    v = range(-512, 512)
    assert activation_table("clip").tolist() == [min(max(x, 0), 255) for x in v]
    small = [int(exponential(np.array(4 * abs(x)))) >> 16 for x in v]
    high = [(2 * 255 * 65536 + 65536 + e) // (2 * (65536 + e)) for e in small]
    sigmoid = activation_table("sigmoid")
    assert sigmoid.tolist() == [h if x >= 0 else 255 - h for x, h in zip(v, high)]
    exact = 255 / (1 + 2.0 ** (-np.arange(-512, 512) / 64))
    assert np.abs(sigmoid - exact).max() <= 0.501 and (np.diff(sigmoid) >= 0).all()
    assert all(not activation_table(name).flags.writeable for name in ACTIVATIONS.values())


# ---- the bank ----------------------------------------------------------------------------------------------------------

def test_fine_tables():
    for c in (1, 2, 17, 30, 36):
        for shape in range(8):
            for q in (0, 1):
                low, counts = fine_table(int(table_number(np.array(4 * c), np.array(shape), np.array(q))))
                parametric = level_frequencies(shape, c, q)
                assert low == parametric.low and np.array_equal(counts, parametric.counts)
    cumulative, entries, low, escape = fine_tables()
    assert len(low) == FINE_TABLES and (cumulative[:, -1] == 1 << 24).all()
    for number in range(0, FINE_TABLES, 37):
        widths = np.diff(cumulative[number, : escape[number] + 2].astype(np.int64))
        assert widths.min() >= 1 and widths.sum() == 1 << 24 and fine_table(number)[0] == low[number]
        for byte in (0, 100, 255):
            symbol = int(np.searchsorted(np.cumsum(widths), byte << 16, side="right"))
            level = -(1 << 15) if symbol == escape[number] else low[number] + symbol
            start = int(cumulative[number, symbol])
            assert int(entries[number, byte]) == (int(level) % (1 << 16)) << 48 | int(widths[symbol]) << 24 | start
    assert table_number(np.array([-9, 999]), np.array([-1, 99]), np.array([0, 1])).tolist() == [0, FINE_TABLES - 1]


def test_magnitudes():
    table = magnitude_table()
    twice = np.arange(512)
    for c in (1, 10, 17, 25, 36):
        exact = 32 * np.log2(1 + 2 * twice / 2 ** ((c - 17) / 4))
        assert np.abs(table[c] - np.minimum(255, exact)).max() <= 1.01 and (np.diff(table[c].astype(int)) >= 0).all()
    assert table[:, 0].tolist() == [0] * 37


# ---- bytes -------------------------------------------------------------------------------------------------------------

def read(data: bytes) -> Network:
    reader = Reader(data)
    found = Network.read(reader, INPUTS)
    reader.finish("network")
    return found


def written(network: Network) -> bytes:
    out = Writer()
    network.write(out)
    return out.data()


@pytest.mark.parametrize("number", range(len(some_networks())))
def test_networks_come_back(number):
    network = some_networks()[number]
    back = read(written(network))
    assert (back.kind, back.inputs, back.bits, back.shipped) == (network.kind, network.inputs, network.bits, network.shipped)
    for one, two in zip(network.layers, back.layers, strict=True):
        assert one.activation == two.activation
        assert all(np.array_equal(getattr(one, part), getattr(two, part)) for part in ("kernel", "bias", "divisor"))
    assert len(written(network)) == (1 if network.shipped else 1 + len(network.data()))


@pytest.mark.parametrize("number", range(3))
def test_networks_cut_or_changed(number):
    """Every shorter string is refused; with a changed byte it is refused or a network whose sums fit 32 bits."""
    data = written(some_networks()[number])
    for length in range(len(data)):
        with pytest.raises(nnc.Corruption):
            read(data[:length])
    for place in range(len(data)):
        for bit in (1, 16, 128):
            changed = data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]
            try:
                network = read(changed)
            except (nnc.Corruption, nnc.Unsupported):
                continue
            assert network.bound < 1 << 31
            values = np.random.default_rng(place).integers(0, 256, (20, INPUTS[network.kind]), np.uint8)
            assert np.array_equal(network.run(values), run(network, values))


def test_numbers_beyond_their_range():
    network = random_network("hyper", 1)
    data = written(network)
    for change, message in (
        ({"bits": 9}, "bits of a network = 9"), ({"bits": 1}, "1 bits"), ({"inputs": ()}, "without inputs"),
        ({"inputs": (8,)}, "inputs of a network"), ({"layers": network.layers[:1] * 4 + network.layers[1:]}, "hidden layers"),
        ({"shipped": 77}, "network 77, this release has"),
    ):
        with pytest.raises((nnc.Corruption, nnc.Unsupported), match=message):
            read(written(replace(network, **change)))
    for change, message in (({"divisor": np.array([1, (1 << 18) + 1])}, "divisor"), ({"bias": np.array([0, 1 << 31])}, "sums of a layer")):
        with pytest.raises(nnc.Corruption, match=message):
            read(written(replace(network, layers=(network.layers[0], replace(network.layers[1], **change)))))
    with pytest.raises(nnc.Corruption, match="a layer without units"):
        place = data.index(bytes([8, 1, 7, 0]))  # K, one hidden layer, 7 units that are clipped
        read(data[: place + 2] + b"\0" + data[place + 3 :])
    with pytest.raises(nnc.Corruption, match="kind of network"):
        read(data[:1] + b"\2" + data[2:])


def test_shipped_networks(monkeypatch):
    found = shipped_networks()
    assert {network.kind for network in found} == {"hyper", "context"} and all(network.bound < 1 << 31 for network in found)
    folder = Path(networks.__file__).parent
    files = [folder / f"network-{number}.bin" for number in range(1, len(found) + 1)]
    assert [hashlib.sha256(path.read_bytes()).hexdigest() for path in files] == list(networks.SHIPPED)
    page = (Path(nnc.__file__).parent / "FORMAT.md").read_text()
    assert all(hash in page for hash in networks.SHIPPED)
    assert sum(path.stat().st_size for path in (*files, folder / "prior.bin")) <= 100_000
    networks.read_shipped.cache_clear()
    monkeypatch.setattr(networks, "SHIPPED", ("0" * 64,))
    with pytest.raises(nnc.Corruption, match="is not the network 1 of this release: install nnc again"):
        read(b"\1")
    with pytest.raises(nnc.Unsupported, match="network 2, this release has 1: upgrade nnc"):
        read(b"\2")
    networks.read_shipped.cache_clear()


# ---- files -------------------------------------------------------------------------------------------------------------

FILES = {
    "trellis": (cases.layers, {"step": 0.4}),
    "most states": (cases.layers, {"step": 0.8, "states": 256, "labelling": "sign-symmetric"}),
    "one state": (cases.layers, {"step": 0.4, "states": 1}),
    "bypass": (cases.uneven, {"snr": 60}),
    "dead": (cases.dead, {"step": 0.3}),
    "escapes": (cases.outliers, {"step": 1.0}),
    "halves": (cases.halves, {"snr": 14}),
    "several CTUs": (lambda g: {"w": cases.normal(g, 300, 260)}, {"step": 1.0}),
    "memory": (lambda g: {name: value for name, value in cases.alike(g).items() if name != "clusters"}, {"snr": 14}),  # which takes centres
}


def forced(path: Path, kind: str, source, threads: int = 1, **options) -> Path:
    with forcing(NETWORKS_OF[kind]()):
        nnc.compress(source, path, threads=threads, entropy="context", overwrite=True, **options)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["both", "shipped"])
def test_both_decoders_agree(tmp_path, name, kind):
    source, options = FILES[name]
    state = source(torch.Generator().manual_seed(3))
    path = forced(tmp_path / "x.safetensors", kind, state, **options)
    models = [record.coding.model for record in open_file(path).directory.records if record.coding]
    assert min(models) >= NETWORKS
    found = loaded(path, 1)
    assert found == loaded(path, 3) == decoder.decode(path)
    nnc.compress(state, tmp_path / "static.safetensors", threads=1, **options)
    assert found == loaded(tmp_path / "static.safetensors")  # the levels are the same


def test_threads_change_no_byte(tmp_path):
    source = {"w": torch.randn(300, 260, generator=torch.Generator().manual_seed(1))}
    one, two = (forced(tmp_path / f"{threads}.safetensors", "both", source, threads, step=1.0) for threads in (1, 3))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("kind", ["hyper", "context"])
def test_bands_of_rows(tmp_path, kind):
    """Rows are read without the CTUs that hold others, of planes that are transposed and of those that are not."""
    g = torch.Generator().manual_seed(2)
    alike = 0.3 * cases.normal(g, 700, 260)
    for row in range(1, 700):
        alike[row] += 0.95 * alike[row - 1]
    state = {"w": cases.normal(g, 700, 300), "conv": cases.normal(g, 600, 30, 3, 3), "alike": alike, "wide": alike.T.contiguous()}
    path = forced(tmp_path / "x.safetensors", kind, state, snr=12)
    full = nnc.load(path)
    with nnc.open(path) as archive:
        assert {archive.record(name).coding.transposed for name in state} == {False, True}
        assert all(len(archive.record(name).coding.streams) > 1 for name in ("w", "conv"))
        for name, tensor in full.items():
            assert archive.record(name).coding.model >= NETWORKS
            for rows in (range(0, 3), range(250, 258), range(len(tensor) - 2, len(tensor))):
                assert torch.equal(archive.tensor(name, rows=rows), tensor[rows.start : rows.stop])


@pytest.mark.slow
def test_what_networks_do_not_go_with(tmp_path):
    g = torch.Generator().manual_seed(1)
    path = forced(tmp_path / "x.safetensors", "hyper", cases.blocks(g) | {"gain": torch.rand(100, generator=g) + 0.5}, snr=14, tools="tree")
    for record in open_file(path).directory.records:
        learned = record.coding.model >= NETWORKS
        assert learned == (not record.coding.tools.tree and record.coding.labelling != 2)
    alike = cases.normal(g, 5, 60)[torch.randint(0, 5, (700,), generator=g)] + 0.2 * cases.normal(g, 700, 60)
    (record,) = open_file(forced(tmp_path / "z.safetensors", "hyper", {"alike": alike}, snr=12)).directory.records
    assert record.coding.tools.memory.centres and record.coding.model < NETWORKS
    path = forced(tmp_path / "y.safetensors", "hyper", {"w": torch.randn(40, 30, generator=g)}, step=0.5)
    from nnc.dissection import dissect

    with pytest.raises(nnc.InvalidArgument, match="a network chooses them"):
        dissect(path, "w")


# ---- what the encoder chooses -----------------------------------------------------------------------------------------

@pytest.mark.slow
def test_a_network_is_taken_where_it_saves_bytes(tmp_path):
    state = cases.waves(torch.Generator().manual_seed(1))
    sizes, tensors = {}, []
    for entropy in ("static", "hyper", "context"):
        sizes[entropy] = nnc.compress(state, tmp_path / entropy, entropy=entropy, step=0.7, labelling="sign-symmetric").file_bytes
        tensors.append(nnc.load(tmp_path / entropy))
    assert sizes["context"] < 0.98 * sizes["static"] and sizes["hyper"] <= sizes["static"]
    for other in tensors[1:]:
        assert all(torch.equal(tensor, other[name]) for name, tensor in tensors[0].items())
    directory = open_file(tmp_path / "context" / "model.safetensors").directory
    assert "context" in [network.kind for network in directory.bank.networks]
    nnc.compress(state, tmp_path / "again", entropy="context", step=0.7, labelling="sign-symmetric", threads=1)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (tmp_path / "context" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_network_that_saves_nothing_is_left_out(tmp_path):
    state = {"w": torch.randn(200, 150, generator=torch.Generator().manual_seed(1))}
    sizes = {entropy: nnc.compress(state, tmp_path / entropy, entropy=entropy, step=0.5).file_bytes for entropy in ("static", "context")}
    assert sizes["context"] <= sizes["static"]


def test_unknown_entropy(tmp_path):
    with pytest.raises(nnc.InvalidArgument, match="entropy 'learned': must be one of static, hyper, context"):
        nnc.compress({"w": torch.randn(9, 9)}, tmp_path / "x", entropy="learned")


# ---- training ----------------------------------------------------------------------------------------------------------

def test_gradients():
    x = torch.tensor([-2.5, -0.5, 0.4, 1.5], requires_grad=True)
    y = round_through(x)
    y.sum().backward()
    assert y.tolist() == [-2.0, 0.0, 0.0, 2.0] and x.grad.tolist() == [1.0] * 4
    v = torch.tensor([-90.0, -20.0, 0.0, 127.5, 255.0, 300.0], requires_grad=True)
    w = activate(v, "clip")
    w.sum().backward()
    assert w.tolist() == [0, 0, 0, 127.5, 255, 255]
    expected = torch.exp(-(ALPHA**BETA) * (2 * v.detach() / 255 - 1).abs() ** BETA)
    assert torch.allclose(v.grad, expected) and v.grad[3] == 1 and 0 < v.grad[0] < v.grad[1]
    v.grad = None
    activate(v, "clip", surrogate=False).sum().backward()
    assert v.grad.tolist() == [0, 0, 1, 1, 1, 0]
    x.grad = None
    assert clamp_through(x, 0, 1).tolist() == pytest.approx([0, 0, 0.4, 1])
    assert torch.autograd.grad(clamp_through(x, 0, 1).sum(), x)[0].tolist() == [0, 0, 1, 1]  # downhill is further out for the first two
    assert torch.autograd.grad(-clamp_through(x, 0, 1).sum(), x)[0].tolist() == [-1, -1, -1, 0]


def scale_mixture(seed: int, number: int = 20000) -> Samples:
    """Laplace levels whose scale the input 8 tells."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 256, (number, CONTEXT), np.uint8)
    values[:, 0], values[:, 4] = 7 * 20, 255 * rng.integers(0, 2, number)
    deviation = 2 ** ((values[:, 8].astype(float) - 128) / 64) * 2 ** (3 / 4)
    return Samples.make(values, np.round(rng.laplace(0, deviation / 2**0.5)).astype(np.int64), np.ones(number, np.float32))


@pytest.mark.slow
def test_training_lowers_the_rate_and_rounding_costs_little():
    samples, inputs = scale_mixture(0), (0, 4, 8, 9)
    untrained = Shadow("context", inputs, (8,), 8)
    shadow = train(samples, "context", inputs, Recipe(hidden=(8,), bits=8, steps=300))
    network, fresh = shadow.freeze(), scale_mixture(1)
    assert true_bits(fresh, network) < 0.93 * true_bits(fresh, untrained.freeze())
    assert true_bits(fresh, network) < 1.005 * soft_bits(fresh, shadow, rounded=False)
    assert np.array_equal(network.run(fresh.values), read(written(network)).run(fresh.values))
    again = train(samples, "context", inputs, Recipe(hidden=(8,), bits=8, steps=300)).freeze()
    assert again.data() == network.data()


def test_frozen_integers_are_those_of_training():
    """But for the coarser grid of biases and divisors, and the interpolation of the outputs."""
    shadow = Shadow("hyper", range(HYPER), (12, 6), 7, seed=4)
    values = np.random.default_rng(0).integers(0, 256, (500, HYPER), np.uint8)
    with torch.no_grad():
        outputs = shadow(torch.from_numpy(values).float()).numpy()
    assert np.abs(shadow.freeze().run(values) - outputs).max() <= 1.5
