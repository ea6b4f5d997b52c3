"""Compress and load: round trips of every kind of tensor and source, targets, rules, determinism, errors.  One helper checks all of them."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import nnc
from nnc.checkpoint import open_checkpoint

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "examples" / "digits_cnn.safetensors"


def make_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """One of everything."""
    g = torch.Generator().manual_seed(seed)
    r = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    nan = r(20, 20)
    nan[3, 4], nan[5, 5] = float("nan"), float("-inf")
    return {
        "linear": r(70, 130), "half": r(40, 90).half(), "brain": r(64, 33).bfloat16(), "conv": r(16, 8, 3, 3) * 0.05, "conv5": r(6, 2, 3, 2, 4),
        "depthwise": r(32, 1, 3, 3), "bias": r(130) * 0.1, "variance": torch.exp(3 * r(50)), "one row": r(1, 40), "wide": r(2, 5000), "tall": r(5000, 2),
        "scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4), "zeros": torch.zeros(30, 30), "ones": torch.ones(64), "steps": torch.tensor(7),
        "ids": torch.arange(600).reshape(1, 600), "mask": torch.tensor([True, False, True]), "float8": r(8, 8).to(torch.float8_e4m3fn),
        "double": r(5, 5).double(), "nan": nan, "sparse rows": r(40, 50) * (torch.arange(40) % 3 == 0)[:, None], "tiny": r(3, 3) * 1e-30,
        "huge": r(30, 30) * 1e30, "outlier": torch.cat([r(500), torch.tensor([1e6])]).reshape(3, 167), "two values": torch.tensor([[0.0, 1.0], [1.0, 0.0]]),
        "int8": torch.randint(-128, 127, (300,), generator=g, dtype=torch.int8), "uint8": torch.full((4,), 9, dtype=torch.uint8),
    }


EXACT = {"scalar", "empty", "zeros", "ones", "steps", "ids", "mask", "float8", "double", "nan", "int8", "uint8"}


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    view = lambda t: t.contiguous().flatten().view(torch.uint8)  # noqa: E731
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(view(a), view(b))


def check_round_trip(source, path, exact=(), **options) -> tuple[nnc.Summary, dict[str, torch.Tensor]]:
    """Compress and load: same names, shapes, dtypes; exact tensors to the bit; the same from one and two threads; file bytes as reported."""
    summary = nnc.compress(source, path, overwrite=True, **options)
    state = nnc.load(path, threads=1)
    again = nnc.load(path, threads=2)
    with open_checkpoint(source) as checkpoint:
        originals = {spec.name: checkpoint.read(spec.name) for spec in checkpoint.specs}
    assert list(state) == list(originals)
    for name, tensor in originals.items():
        assert (state[name].shape, state[name].dtype) == (tensor.shape, tensor.dtype)
        assert same_bits(state[name], again[name])
        if name in exact:
            assert same_bits(state[name], tensor)
    assert summary.file_bytes == sum(Path(file).stat().st_size for file in summary.files) == nnc.inspect(path).file_bytes
    assert nnc.verify(path) == len(originals)
    return summary, state


@pytest.mark.slow
@pytest.mark.parametrize("effort", ["fast", "default", "high", "max"])
@pytest.mark.parametrize("options", [{"bits": 3.0}, {"step": 0.05}, {"snr": 30.0}])
def test_one_of_everything_comes_back(tmp_path, effort, options):
    state = make_state()
    summary, back = check_round_trip(state, tmp_path / "x.safetensors", EXACT, effort=effort, **options)
    assert summary.kept == ("nan",)
    for name in state.keys() - EXACT:
        error = (back[name].double() - state[name].double()).norm() / state[name].double().norm()
        assert error < 0.95 or (name == "tiny" and "step" in options), name  # 1e-30 is below any absolute step
    assert (back["variance"] > 0).all()
    assert (back["sparse rows"][torch.arange(40) % 3 != 0] == 0).all()  # dead rows stay dead


def test_a_fine_step_reproduces_weights_within_it(tmp_path):
    state = {"w": torch.randn(200, 300), "v": torch.randn(40, 9)}
    for states in (1, 4, 8, 16, 32, 64, 128, 256):
        _, back = check_round_trip(state, tmp_path / "x.safetensors", step=0.001, states=states)
        assert all((back[n] - state[n]).abs().max() <= 0.0021 for n in state)


@pytest.mark.parametrize("labelling", ["plain", "sign-symmetric"])
@pytest.mark.parametrize("states", [4, 8, 64])
def test_both_labellings(tmp_path, labelling, states):
    state = {"w": torch.randn(100, 100)}
    summary, _ = check_round_trip(state, tmp_path / "x.safetensors", bits=1.5, labelling=labelling, states=states)
    assert nnc.inspect(tmp_path / "x.safetensors").tensors[0].labelling == labelling


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 2), (3, 1000), (1000, 3), (255, 256), (256, 257), (257, 255), (513, 1), (1, 1, 5, 5), (5, 1, 1), (300, 300), (2, 3, 4, 5, 6)])
def test_awkward_shapes(tmp_path, shape):
    g = torch.Generator().manual_seed(1)
    state = {"w": torch.randn(*shape, generator=g), "b": torch.randn(shape[0], generator=g)}
    _, back = check_round_trip(state, tmp_path / "x.safetensors", bits=12.0 if np.prod(shape) > 100 else 4000.0)
    assert (back["w"] - state["w"]).norm() <= 0.05 * state["w"].norm() + 1e-6


@pytest.mark.parametrize("bits", [1.0, 2.0, 3.0, 5.0, 8.0])
def test_bits_and_size_are_met(tmp_path, bits):
    state = {f"w{i}": torch.randn(100, 200) * 2.0**i for i in range(4)} | {"b": torch.randn(200)}
    n = sum(t.numel() for t in state.values())
    summary, _ = check_round_trip(state, tmp_path / "x.safetensors", bits=bits)
    assert 0.98 * bits <= summary.bits_per_weight <= bits
    size = int(bits * n / 8)
    summary, _ = check_round_trip(state, tmp_path / "x.safetensors", size=size)
    assert 0.98 * size <= summary.file_bytes <= size


def test_size_is_met_on_a_real_network(tmp_path):
    for size in (20_000, 40_000, 77_777, 150_000):
        summary, _ = check_round_trip(DIGITS, tmp_path / "x.safetensors", size=size)
        assert 0.98 * size <= summary.file_bytes <= size


@pytest.mark.slow
def test_impossible_size_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(nnc.InvalidArgument, match="size = 100 cannot be met"):
        nnc.compress(DIGITS, tmp_path / "x.safetensors", size=100)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("snr", [10.0, 25.0, 60.0])
def test_snr_is_met(tmp_path, snr):
    state = {"a": torch.randn(200, 200), "b": torch.randn(100, 300) * 3}
    summary, back = check_round_trip(state, tmp_path / "x.safetensors", snr=snr)
    error = sum(float((back[n] - state[n]).double().square().sum()) for n in state)
    energy = sum(float(state[n].double().square().sum()) for n in state)
    assert abs(10 * np.log10(energy / error) - snr) < 0.1
    assert abs(summary.snr - 10 * np.log10(energy / error)) < 1e-3


def test_one_step_for_all(tmp_path):
    state = {"a": torch.randn(64, 64), "b": torch.randn(64, 64) * 10}
    check_round_trip(state, tmp_path / "x.safetensors", step=0.01)
    assert {info.step for info in nnc.inspect(tmp_path / "x.safetensors").tensors} == {float(np.float32(0.01))}


def test_more_effort_is_better(tmp_path):
    state = {"w": torch.randn(300, 300, generator=torch.Generator().manual_seed(0))}
    reached = [check_round_trip(state, tmp_path / "x.safetensors", bits=2.5, effort=effort)[0].snr for effort in ("fast", "default", "high", "max")]
    assert reached == sorted(reached) and reached[1] - reached[0] > 0.8


def test_vectors_cost_at_most_twelve_bits(tmp_path):
    g = torch.Generator().manual_seed(0)
    state = {f"v{i}": torch.randn(512, generator=g) * 10.0**-i + i % 2 for i in range(8)} | {f"var{i}": torch.exp(2 * torch.randn(512, generator=g)) for i in range(8)}
    summary, back = check_round_trip(state | {"w": torch.randn(64, 64, generator=g)}, tmp_path / "x.safetensors", bits=20.0)
    infos = [info for info in nnc.inspect(tmp_path / "x.safetensors").tensors if info.name != "w"]
    assert sum(info.bytes for info in infos) * 8 / sum(info.shape[0] for info in infos) <= 12
    for name in state:
        assert (back[name] - state[name]).norm() <= 0.006 * state[name].norm()


def test_scale_codes_pay_on_uneven_rows_and_columns_and_stay_away_elsewhere(tmp_path):
    rng = np.random.default_rng(0)
    flat = torch.from_numpy(rng.normal(size=(256, 256)).astype(np.float32))
    uneven = flat * torch.from_numpy(np.exp(0.7 * rng.normal(size=(256, 1)) + 0.7 * rng.normal(size=(1, 256))).astype(np.float32))
    for tensor, expected in ((flat, False), (uneven, True)):
        nnc.compress({"w": tensor}, tmp_path / "x.safetensors", step=0.2, overwrite=True)
        info = nnc.inspect(tmp_path / "x.safetensors")
        assert (info.side > 0) == expected and info.side < 0.02 * info.file_bytes


def test_tied_tensors_are_stored_once_and_tied_again(tmp_path):
    weight = nn.Parameter(torch.randn(50, 40))
    model = nn.ModuleDict({"embed": nn.Embedding(50, 40), "head": nn.Linear(40, 50, bias=False)})
    model["embed"].weight = model["head"].weight = weight
    summary, back = check_round_trip(model, tmp_path / "x.safetensors", bits=6.0)
    assert summary.parameters == 2000
    assert back["embed.weight"].data_ptr() == back["head.weight"].data_ptr()
    assert {info.kind for info in nnc.inspect(tmp_path / "x.safetensors").tensors} == {"coded", "tied"}
    nnc.decompress(tmp_path / "x.safetensors", tmp_path / "back.pt")
    state = torch.load(tmp_path / "back.pt", weights_only=True)
    assert state["embed.weight"].data_ptr() == state["head.weight"].data_ptr()


def test_equal_tensors_are_stored_once_but_not_tied(tmp_path):
    w = torch.randn(60, 60)
    _, back = check_round_trip({"a": w, "b": w.clone(), "c": torch.randn(60, 60)}, tmp_path / "x.safetensors", bits=4.0)
    assert same_bits(back["a"], back["b"]) and back["a"].data_ptr() != back["b"].data_ptr()
    infos = {info.name: info for info in nnc.inspect(tmp_path / "x.safetensors").tensors}
    assert infos["b"].bytes == 0 and infos["b"].kind == "alias"


def test_rules(tmp_path):
    g = torch.Generator().manual_seed(0)
    state = {f"layer.{i}.weight": torch.randn(64, 64, generator=g) for i in range(4)} | {"layer.0.bias": torch.randn(64, generator=g)}
    rules = ("layer.0.*=exact", "layer.1.*=skip", "layer.2.*=finer:4", nnc.Rule("layer.3.*", "coarser", 2))
    _, back = check_round_trip(state, tmp_path / "x.safetensors", {"layer.0.weight", "layer.0.bias", "layer.1.weight"}, step=0.2, rules=rules)
    infos = {info.name: info for info in nnc.inspect(tmp_path / "x.safetensors").tensors}
    assert infos["layer.1.weight"].kind == "plain"
    assert same_bits(load_file(tmp_path / "x.safetensors")["layer.1.weight"], state["layer.1.weight"])  # readable by anyone
    assert infos["layer.2.weight"].step == pytest.approx(0.05) and infos["layer.3.weight"].step == pytest.approx(0.4)


@pytest.mark.parametrize("rule, message", [("nothing*=exact", "matches no tensor"), ("w=wrong", "action"), ("w", "write GLOB"), ("w=finer:0.5", "at least 1"), ("w=finer:x", "write GLOB"), ("=exact", "write GLOB"), ("w=exact:3", "takes no factor"), ("w=skip:2", "takes no factor")])
def test_bad_rules_are_refused(tmp_path, rule, message):
    with pytest.raises(nnc.InvalidArgument, match=message):
        nnc.compress({"w": torch.randn(8, 8)}, tmp_path / "x.safetensors", rules=[rule])


@pytest.mark.parametrize("options, message", [({"bits": 0}, "positive"), ({"bits": float("nan")}, "positive"), ({"bits": 3, "size": 10}, "different targets"), ({"size": 10.5}, "whole number"),
                                              ({"effort": "extreme"}, "effort"), ({"states": 7}, "states"), ({"labelling": "odd"}, "labelling"), ({"threads": 0}, "threads"),
                                              ({"colour": 1}, "unknown"), ({"lagrangian": -1}, "positive"), ({"config": "/nonexistent.toml"}, "No such file")])
def test_bad_options_are_refused(tmp_path, options, message):
    with pytest.raises(nnc.InvalidArgument, match=message):
        nnc.compress({"w": torch.randn(8, 8)}, tmp_path / "x.safetensors", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_same_bytes_at_any_thread_count_and_twice(tmp_path):
    state = make_state() | {"big": torch.randn(600, 700)}
    for options in ({"bits": 3.0}, {"step": 0.1, "effort": "high"}):
        contents = []
        for threads in (1, 2, 2, 5):
            nnc.compress(state, tmp_path / "x.safetensors", overwrite=True, threads=threads, **options)
            contents.append((tmp_path / "x.safetensors").read_bytes())
        assert len(set(contents)) == 1


def test_hugging_face_folder_keeps_its_side_files(tmp_path):
    source = tmp_path / "model"
    (source / "1_Pooling").mkdir(parents=True)
    save_file({"w": torch.randn(80, 80), "b": torch.randn(80)}, source / "model.safetensors", {"format": "pt"})
    for name in ("config.json", "tokenizer.json", "1_Pooling/config.json"):
        (source / name).write_text(json.dumps({"name": name}))
    summary, state = check_round_trip(source, tmp_path / "small", bits=4.0)
    assert {str(p.relative_to(tmp_path / "small")) for p in (tmp_path / "small").rglob("*") if p.is_file()} == {
        "model.safetensors", "config.json", "tokenizer.json", "1_Pooling/config.json"}
    nnc.decompress(tmp_path / "small", tmp_path / "back")
    assert (tmp_path / "back" / "1_Pooling" / "config.json").read_text() == (source / "1_Pooling/config.json").read_text()
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert all(same_bits(back[name], state[name]) for name in state)


def test_shards_are_complete_and_indexed(tmp_path):
    state = {f"w{i}": torch.randn(120, 120) for i in range(6)}
    state["twin"] = state["w0"]
    summary, back = check_round_trip(state, tmp_path / "small", bits=4.0, shard_bytes=16_000)
    index = json.loads((tmp_path / "small" / "model.safetensors.index.json").read_text())
    shards = set(index["weight_map"].values())
    assert len(shards) == 3 and index["weight_map"].keys() == state.keys()
    assert index["weight_map"]["twin"] == index["weight_map"]["w0"]
    one = nnc.load(tmp_path / "small", names=["w5", "twin"])
    assert list(one) == ["twin", "w5"] or list(one) == ["w5", "twin"]
    assert same_bits(one["w5"], back["w5"])
    nnc.decompress(tmp_path / "small", tmp_path / "back.safetensors")
    assert all(same_bits(tensor, back[name]) for name, tensor in load_file(tmp_path / "back.safetensors").items())
    (tmp_path / "small" / sorted(shards)[1]).unlink()
    with pytest.raises(nnc.InvalidArgument, match="missing"):
        nnc.load(tmp_path / "small")


def test_torch_files_come_back_as_torch_files(tmp_path):
    state = {"module.w": torch.randn(50, 50), "module.b": torch.randn(50)}
    torch.save({"state_dict": state, "epoch": 7}, tmp_path / "x.pth")
    check_round_trip(tmp_path / "x.pth", tmp_path / "x.safetensors", bits=5.0)
    nnc.decompress(tmp_path / "x.safetensors", tmp_path / "y.pth")
    back = torch.load(tmp_path / "y.pth", weights_only=True)
    assert back["epoch"] == 7 and back["state_dict"].keys() == state.keys()


def test_a_valid_safetensors_file_that_standard_tools_list(tmp_path):
    nnc.compress(DIGITS, tmp_path / "x.safetensors", bits=4.0)
    entries = load_file(tmp_path / "x.safetensors")
    assert "nnc" in entries and all(t.dtype == torch.uint8 for t in entries.values())


def test_load_into_checks_names_and_shapes(tmp_path):
    model = nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30))
    nnc.compress(model, tmp_path / "x.safetensors", bits=12.0)
    other = nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30))
    assert nnc.load_into(other, tmp_path / "x.safetensors") is other
    assert (other[0].weight - model[0].weight).abs().max() < 0.05
    with pytest.raises(nnc.InvalidArgument, match="tensors differ"):
        nnc.load_into(nn.Sequential(nn.Linear(20, 30)), tmp_path / "x.safetensors")
    nnc.load_into(nn.Sequential(nn.Linear(20, 30)), tmp_path / "x.safetensors", strict=False)
    with pytest.raises(nnc.InvalidArgument, match="shape"):
        nnc.load_into(nn.Sequential(nn.Linear(21, 30), nn.BatchNorm1d(30)), tmp_path / "x.safetensors")


def test_load_refuses_unknown_names_and_other_files(tmp_path):
    nnc.compress({"w": torch.randn(9, 9)}, tmp_path / "x.safetensors")
    with pytest.raises(nnc.InvalidArgument, match="no tensor 'v'"):
        nnc.load(tmp_path / "x.safetensors", names=["v"])
    with pytest.raises(nnc.InvalidArgument, match="threads"):
        nnc.load(tmp_path / "x.safetensors", threads=0)
    for missing in ("y.safetensors", "."):
        with pytest.raises(nnc.InvalidArgument):
            nnc.load(tmp_path / missing)
    with pytest.raises(nnc.Corruption, match="not compressed by nnc"):
        nnc.load(DIGITS)


def test_destinations(tmp_path):
    state = {"w": torch.randn(9, 9)}
    nnc.compress(state, tmp_path / "x.safetensors")
    before = (tmp_path / "x.safetensors").read_bytes()
    with pytest.raises(nnc.InvalidArgument, match="exists"):
        nnc.compress(state, tmp_path / "x.safetensors")
    with pytest.raises(nnc.InvalidArgument, match="cannot be met"):
        nnc.compress(state, tmp_path / "x.safetensors", size=1, overwrite=True)
    assert (tmp_path / "x.safetensors").read_bytes() == before
    with pytest.raises(nnc.InvalidArgument, match="compressed checkpoint"):
        nnc.compress(state, tmp_path / "x.pt")
    with pytest.raises(nnc.InvalidArgument):
        nnc.compress(state, tmp_path / "no" / "x.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_compression_leaves_nothing(tmp_path, error):
    def stop(done, total, text):
        if text.startswith("compress") and done > 0:
            raise error

    with pytest.raises(error):
        nnc.compress(DIGITS, tmp_path / "x.safetensors", bits=3, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_compress_is_still_a_checkpoint(tmp_path):
    summary = nnc.compress({"ids": torch.arange(10)}, tmp_path / "x.safetensors", step=0.1)
    assert summary.parameters == 0 and nnc.load(tmp_path / "x.safetensors")["ids"].tolist() == list(range(10))
    with pytest.raises(nnc.InsufficientData):
        nnc.compress({}, tmp_path / "y.safetensors")


@pytest.mark.slow
def test_finite_weights_stay_finite(tmp_path):
    """Weights next to the largest number of their dtype, and next to the smallest: no infinity, no warning."""
    g = torch.Generator().manual_seed(0)
    state = {"half": (torch.randn(300, 300, generator=g) * 20000).clamp(-65504, 65504).half(), "brain": (torch.randn(60, 60, generator=g) * 1e38).bfloat16(),
             "large": torch.randn(60, 60, generator=g).clamp(-3, 3) * 1e38, "small": torch.randn(60, 60, generator=g) * 1e-38, "subnormal": torch.randn(60, 60, generator=g) * 1e-42,
             "variance": torch.rand(60, generator=g) * 1e-38 + 1e-39}
    state["brain"][~torch.isfinite(state["brain"])] = 3e38
    for options in ({"bits": 4.0}, {"snr": 30.0}, {"step": 1e-3}, {"bits": 2.5, "effort": "fast"}):
        for name, tensor in state.items():
            if options.get("step") and name != "half":
                continue
            _, back = check_round_trip({name: tensor, "other": torch.randn(70, 70, generator=g)}, tmp_path / "x.safetensors", **(options if "bits" not in options else {"bits": 24.0}))
            assert torch.isfinite(back[name]).all()


def test_a_plain_path_of_extremes_in_one_tensor(tmp_path):
    """Rows whose scales span 60 octaves."""
    scale = 2.0 ** torch.linspace(-30, 30, 64)[:, None]
    tensor = torch.randn(64, 100, generator=torch.Generator().manual_seed(1)) * scale
    for options in ({"snr": 20.0}, {"step": 1.0}, {"step": 1e-4}):
        _, back = check_round_trip({"w": tensor}, tmp_path / "x.safetensors", **options)
        assert torch.isfinite(back["w"]).all() and (back["w"] - tensor).norm() < 0.2 * tensor.norm()


def test_options_that_cannot_take_effect_are_refused(tmp_path):
    state = {"w": torch.randn(30, 30)}
    with pytest.raises(nnc.InvalidArgument, match="more than one state"):
        nnc.compress(state, tmp_path / "x.safetensors", labelling="sign-symmetric", effort="fast")
    with pytest.raises(nnc.InvalidArgument, match="shard_bytes splits a folder"):
        nnc.compress(state, tmp_path / "x.safetensors", shard_bytes=1000)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_sources_that_deflate_to_nothing_still_fit_the_bounds_of_readers(tmp_path):
    """A directory of repeated text, and shapes that no reader takes."""
    save_file({"w": torch.randn(20, 20)}, tmp_path / "m.safetensors", {"notes": "v" * 1_000_000})
    check_round_trip(tmp_path / "m.safetensors", tmp_path / "x.safetensors", step=0.1)
    check_round_trip({f"{n}{'a' * 4000}": torch.tensor([n]) for n in range(300)}, tmp_path / "x.safetensors", step=0.1)
    check_round_trip({"w": torch.zeros(0, 1 << 20, 1 << 19)}, tmp_path / "x.safetensors", {"w"}, step=0.1)
    with pytest.raises(nnc.Unsupported, match="elements"):
        nnc.compress({"w": torch.zeros(0, 1 << 30, 1 << 30)}, tmp_path / "y.safetensors")
    check_round_trip({"zeros": torch.zeros(3000, 3000), "w": torch.randn(9, 9)}, tmp_path / "x.safetensors", {"zeros"}, step=0.1)


def test_bool_with_every_filter(tmp_path):
    state = {"a": torch.rand(3000) < 0.5, "b": torch.arange(3000) % 2 == 0, "c": torch.arange(3000) < 1500}
    check_round_trip(state, tmp_path / "x.safetensors", set(state), step=0.1)


def test_a_config_object_and_options_that_win(tmp_path):
    config = nnc.Config(bits=2.0, effort="fast", rules=(nnc.Rule("a", "exact"),))
    state = {"a": torch.randn(40, 40), "b": torch.randn(80, 80)}
    nnc.compress(state, tmp_path / "x.safetensors", config=config, snr=30.0, rules=["b=finer:4"])
    infos = {info.name: info for info in nnc.inspect(tmp_path / "x.safetensors").tensors}
    assert infos["a"].kind == "exact" and infos["b"].states == 1 and abs(infos["b"].snr - 30) <= 0.5


@pytest.mark.parametrize("part", [0.24, 0.3, 0.4])
def test_sizes_where_vectors_take_most_of_it(tmp_path, part):
    """Where steps are capped the size hardly changes with them."""
    g = torch.Generator().manual_seed(0)
    state = {f"norm{k}.bias": torch.randn(300, generator=g) for k in range(8)}
    state |= {f"w{k}": torch.randn(40, 60, generator=g) for k in range(4)}
    most = nnc.compress(state, tmp_path / "most.safetensors", bits=8).file_bytes
    summary = nnc.compress(state, tmp_path / "x.safetensors", size=int(part * most))
    assert 0.98 * part * most <= summary.file_bytes <= part * most
