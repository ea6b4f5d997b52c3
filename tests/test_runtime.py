"""Modules that run from a compressed checkpoint: the same outputs, and no more decoded weights than the cache may hold."""

from __future__ import annotations

import copy
import gc
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nnc
from nnc.errors import Corruption, InvalidArgument
from nnc.runtime import attach, detach
from nnc.runtime.cache import WeightCache


class Scaled(nn.Embedding):
    """An embedding with a forward of its own."""

    def forward(self, input):
        return super().forward(input) * 3


class Net(nn.Module):
    """One of each kind of module; the output layer shares the weight of the embedding."""

    def __init__(self, plain: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(600, 128, padding_idx=0)
        self.scaled = Scaled(300, 128)
        self.conv = nn.Conv1d(128, 96, 3, padding=1)
        self.back = nn.ConvTranspose1d(96, 128, 3, padding=1)
        self.lstm = nn.LSTM(128, 64, num_layers=2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(128, 128, batch_first=True)
        self.attention = nn.MultiheadAttention(128, 4, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(128, 4, 256, batch_first=True)
        self.linear = nn.Linear(128, 128)
        if not plain:
            nn.utils.parametrizations.weight_norm(self.linear)
        self.bilinear = nn.Bilinear(128, 8, 128)
        self.norm = nn.BatchNorm1d(128)
        self.head = nn.Linear(128, 600, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids) + self.scaled(ids % 300)
        x = self.back(torch.relu(self.conv(x.transpose(1, 2)))).transpose(1, 2)
        x, _ = self.lstm(x)
        x, _ = self.gru(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = self.linear(self.encoder(x))
        x = self.bilinear(x.contiguous(), x[..., :8].contiguous())
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return self.head(x) + F.linear(x, self.embed.weight)  # a use from outside


def make(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net().eval()


IDS = torch.randint(0, 600, (3, 11), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("runtime") / "small.safetensors"
    nnc.compress(make(), path, bits=5)
    return path


@pytest.fixture(scope="module")
def dense(path):
    return nnc.load_into(make(1), path).requires_grad_(False)  # torch takes another path through an LSTM in float64 if weights have gradients


def run(model: nn.Module, ids=IDS) -> torch.Tensor:
    with torch.no_grad():
        return model(ids)


def held(model: nn.Module) -> int:
    """Bytes of the parameters."""
    return sum(parameter.nbytes for parameter in model.parameters())


@pytest.mark.parametrize("cache", ["all", "none", 0, 1, 300_000, 1_000_000, 10**9])
def test_outputs_are_those_of_the_dense_module(path, dense, cache):
    model = make(2)
    runtime = attach(model, path, cache=cache)
    assert held(model) < 0.1 * held(dense) and isinstance(model.conv, nn.Conv1d) and type(model.conv).__name__ == "CodedConv1d"
    for _ in range(3):
        assert torch.equal(run(model), run(dense)) and torch.equal(run(model, IDS[:1, :1]), run(dense, IDS[:1, :1]))
        limit = {"all": float("inf"), "none": 0}.get(cache, cache)
        assert runtime.cache.held + (runtime._room if runtime._coming else 0) <= limit
    if cache in ("all", 10**9):
        decoded = runtime.used["decoded"] + runtime.used["ahead"]
        run(model)
        assert runtime.used["decoded"] + runtime.used["ahead"] == decoded, "everything is there"
    runtime.close()


def test_nothing_stays_decoded_without_a_cache(path):
    model = make()
    runtime = attach(model, path, cache="none")
    run(model)
    gc.collect()
    assert not runtime._alive and not runtime._coming and runtime.cache.held == 0 and runtime.used["ahead"] == 0


def test_a_cache_for_half_saves_half_of_the_decoding(path):
    model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(10)))
    file = path.parent / "ten.safetensors"
    nnc.compress(model, file, bits=5)
    runtime = attach(model, file, cache=5 * 64 * 64 * 4)
    run(model, torch.ones(1, 64))
    before = sum(runtime.used[kind] for kind in ("decoded", "ahead"))
    for _ in range(4):
        run(model, torch.ones(1, 64))
    again = sum(runtime.used[kind] for kind in ("decoded", "ahead")) - before
    assert again <= 4 * 6 + 1 and runtime.used["ahead"] > runtime.used["decoded"], "one of the five is for reading ahead"


def test_rows_of_an_embedding(tmp_path):
    table = nn.Embedding(4000, 256)
    nnc.compress(table, tmp_path / "t.safetensors", bits=4, tools="none")
    dense = nnc.load_into(nn.Embedding(4000, 256), tmp_path / "t.safetensors")
    runtime = attach(table, tmp_path / "t.safetensors", cache="none")
    storage = runtime.archive.files[0].storage
    before = storage.count
    for ids in (torch.tensor([[5, 7, 5], [6, 5, 5]]), torch.tensor(3), torch.tensor([], dtype=torch.long)):
        assert torch.equal(run(table, ids), run(dense, ids))
    assert storage.count - before < storage.size / 4 and runtime.used["decoded"] <= 1
    assert torch.equal(run(table, torch.arange(4000)), dense.weight)
    with pytest.raises((IndexError, InvalidArgument)):
        table(torch.tensor([4000]))


def test_state_dict_and_loading(path, dense):
    model = make(2)
    attach(model, path, cache="none")
    state, wanted = model.state_dict(), dense.state_dict()
    assert list(state) == list(wanted) and all(torch.equal(state[name], wanted[name]) for name in wanted)
    with pytest.raises(RuntimeError, match=r"is coded: nnc.runtime.detach\(model\) before other weights are loaded"):
        model.load_state_dict(wanted)
    with pytest.raises(InvalidArgument, match="weight 'conv.weight' is coded"):
        model.conv.weight = torch.zeros(1)
    nnc.compress(model, path.parent / "again.safetensors", bits=8)  # as any other module


def test_detach(path, dense):
    model = make(2)
    runtime = attach(model, path)
    assert detach(model) is model
    runtime.close()
    assert type(model.conv) is nn.Conv1d and model.head.weight is model.embed.weight
    assert list(model.state_dict()) == list(dense.state_dict()) and torch.equal(run(model), run(dense))
    model.load_state_dict(dense.state_dict())
    with pytest.raises(InvalidArgument, match="not attached"):
        detach(model)
    attach(model, path)
    with pytest.raises(InvalidArgument, match="attached already"):
        attach(model, path)


@pytest.mark.slow
def test_copies_and_pickles(tmp_path):
    def make(seed: int) -> nn.Module:  # torch refuses to pickle modules with a parametrization, coded or not
        torch.manual_seed(seed)
        return Net(plain=True).eval()

    path = tmp_path / "plain.safetensors"
    nnc.compress(make(0), path, bits=5)
    dense = nnc.load_into(make(1), path)
    model = make(2)
    attach(model, path, cache=500_000)
    wanted = run(dense)
    other = copy.deepcopy(model)
    assert torch.equal(run(other), wanted) and other.conv._coded["weight"].runtime is model.conv._coded["weight"].runtime
    data = pickle.dumps(model)
    assert len(data) < 0.2 * held(dense)
    assert torch.equal(run(pickle.loads(data)), wanted)
    torch.save(model, tmp_path / "model.pt")
    assert torch.equal(run(torch.load(tmp_path / "model.pt", weights_only=False)), wanted)
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(path.read_bytes())
    attach(model := make(2), moved)
    data = pickle.dumps(model)
    nnc.compress(make(3), moved, bits=5, overwrite=True)
    with pytest.raises(Corruption, match="is not the checkpoint that the module was attached to"):
        pickle.loads(data)
    with open(path, "rb") as file:
        attach(model := make(2), file)
        assert torch.equal(run(model), wanted)
        with pytest.raises(InvalidArgument, match="cannot be pickled: attach a path"):
            pickle.dumps(model)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_dtypes_follow_the_module(path, dense, kind):
    model = make(2)
    attach(model, path, cache=500_000)
    state, wanted = model.to(kind).state_dict(), copy.deepcopy(dense).to(kind).state_dict()
    assert all(torch.equal(state[name], wanted[name]) and state[name].dtype == wanted[name].dtype for name in wanted)
    x = torch.ones(2, 128, dtype=kind)
    assert torch.equal(model.head(x), copy.deepcopy(dense).to(kind).head(x))
    if kind == torch.float64:
        assert torch.equal(run(model), run(copy.deepcopy(dense).to(kind)))
    assert torch.equal(model.to(torch.float32).head.weight, dense.head.weight), "what is decoded again has lost nothing"


def test_meta_modules_never_exist_dense(path, dense):
    with torch.device("meta"):
        model = Net().eval()
    runtime = attach(model, path, cache="none")
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    assert torch.equal(run(model), run(dense)) and runtime.cache.held == 0

    class Rotary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 64)
            self.register_buffer("angles", torch.ones(4), persistent=False)

    with torch.device("meta"):
        model = Rotary()
    nnc.compress(Rotary(), path.parent / "rotary.safetensors", bits=5)
    with pytest.raises(InvalidArgument, match="'angles' is on the meta device and not in .*: make the module on the CPU"):
        attach(model, path.parent / "rotary.safetensors")


def test_gradients_reach_the_inputs(path, dense):
    model = make(2)
    attach(model, path, cache="none")
    grads = []
    for module in (model, dense):
        x = torch.ones(2, 128, requires_grad=True)
        module.head(x).square().sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads) and model.head._parameters == {"bias": None}


@pytest.mark.slow
def test_compile(path, dense):
    model = make(2)
    attach(model, path)
    compiled = torch.compile(model.encoder, backend="eager")
    x = torch.ones(1, 5, 128)
    assert torch.allclose(run(compiled, x), run(dense.encoder, x), atol=1e-6)
    with pytest.raises(Exception, match="(?i)graph|disable"):
        run(torch.compile(model.head, backend="eager", fullgraph=True), x)


def test_threads_share_a_module(path, dense):
    model = make(2)
    runtime = attach(model, path, cache=400_000, threads=2)
    wanted, wrong = run(dense), []

    def work() -> None:
        for _ in range(5):
            if not torch.equal(run(model), wanted):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    runtime.close()
    with pytest.raises(InvalidArgument, match="is closed"):
        for _ in range(2):  # what was read ahead may still be there
            run(model)


def test_weights_with_a_norm_stay_dense(tmp_path):
    model = nn.Embedding(200, 64, max_norm=1.0)
    nnc.compress(model, tmp_path / "e.safetensors", bits=6)
    attach(model, tmp_path / "e.safetensors")
    assert type(model) is nn.Embedding and torch.equal(model.weight, nnc.load(tmp_path / "e.safetensors")["weight"])


def test_what_does_not_fit(path, tmp_path):
    with pytest.raises(InvalidArgument, match="tensors differ, the first is .*: pass strict=False"):
        attach(nn.Linear(3, 4), path)
    assert type(attach(nn.Linear(3, 4), path, strict=False)).__name__ == "Runtime"
    model = make()
    model.conv = nn.Conv1d(128, 95, 3)
    with pytest.raises(InvalidArgument, match="tensor 'conv.weight' has the shape"):
        attach(model, path)
    for cache in ("some", -1, True, None, float("nan")):
        with pytest.raises(InvalidArgument, match="cache = .*: must be 'all', 'none' or a number of bytes"):
            attach(make(), path, cache=cache)
    with pytest.raises(InvalidArgument, match="no such file"):
        attach(make(), tmp_path / "none")
    with pytest.raises(InvalidArgument, match="threads = 0"):
        attach(make(), path, threads=0)


def test_a_file_that_changes_meanwhile(path, tmp_path):
    file = tmp_path / "copy.safetensors"
    file.write_bytes(path.read_bytes())
    model = make()
    attach(model, file, cache="none")
    run(model)
    file.write_bytes(b"short")
    with pytest.raises(Corruption, match="changed since it was opened"):
        run(model)


def test_damage_is_found_when_a_weight_is_used(path, tmp_path):
    data = bytearray(path.read_bytes())
    data[-2000] ^= 1
    (tmp_path / "damaged.safetensors").write_bytes(data)
    model = make()
    attach(model, tmp_path / "damaged.safetensors", cache="none")
    with pytest.raises(Corruption, match="checksum differs"):
        run(model)


def test_the_cache_keeps_what_it_has_until_it_is_stale():
    cache = WeightCache(100, 4)
    tensors = {key: torch.zeros(10) for key in "abcd"}  # 40 bytes each

    def use(key: str) -> bool:
        if cache.find(key) is not None:
            return True
        if cache.reserve(40):
            cache.keep(key, tensors[key])
        return False

    found = [use(key) for _ in range(5) for key in "abcd"]
    assert found == [False] * 4 + [True, True, False, False] * 4 and cache.held == 80
    assert [use(key) for key in "cdcdcdcd"].count(True) >= 2, "after a round without them a and b give way"
    assert cache.holds("c") and cache.holds("d") and cache.held == 80
    assert not cache.reserve(101)
    cache.clear()
    assert cache.held == 0
