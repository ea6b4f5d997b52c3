"""Checkpoints in and out: every form survives a round trip bit for bit, hostile and damaged input is refused by name."""
from __future__ import annotations

import json
import os
import resource
import struct
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from nnc.checkpoint import Origin, TensorSpec, open_checkpoint, write_checkpoint
from nnc.errors import InvalidArgument

ORIGINAL = Path(__file__).resolve().parents[2] / "shared" / "zoo" / "data" / "cifar10_resnet20_original.th"
FORMS = ("folder", "a.safetensors", "a.pt", "a.pth", "a.bin", "a.th", "a.ckpt", "a.pth.tar")


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    flat = tensor.detach().contiguous().reshape(-1)
    return tensor.dtype, tuple(tensor.shape), flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def contents(source: object, **options: str) -> dict[str, tuple]:
    with open_checkpoint(source, **options) as checkpoint:
        return {spec.name: bits(checkpoint.read(spec.name)) for spec in checkpoint.specs}


def awkward() -> dict[str, torch.Tensor]:
    """All dtypes that both forms hold, awkward shapes, and every NaN there is in float16."""
    generator = torch.Generator().manual_seed(1)
    raw = torch.randint(0, 256, (96,), generator=generator, dtype=torch.uint8)
    dtypes = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64,
              torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.float8_e4m3fn,
              torch.float8_e5m2]
    tensors = {str(dtype): raw.view(dtype) for dtype in dtypes}
    patterns = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    tensors |= {"bool": raw > 99, "nan": patterns[patterns.isnan()], "scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4),
                "odd.bytes": raw[:3], "5-d": torch.randn(2, 1, 3, 2, 2, generator=generator), "ünï / ☃": torch.ones(1, 1),
                "strided": torch.arange(12.0).reshape(3, 4).t()[::2], "expanded": torch.tensor([7.0]).expand(2, 3)}
    return tensors


def rewrite(source: object, destination: Path, **options: object) -> list[Path]:
    with open_checkpoint(source) as checkpoint:
        return write_checkpoint(destination, checkpoint.specs, checkpoint.read, checkpoint.origin, checkpoint.side_files,
                                **options)


@pytest.mark.parametrize("form", FORMS)
def test_round_trip_keeps_every_bit(tmp_path, form):
    tensors = awkward()
    expected = {name: bits(tensor) for name, tensor in tensors.items()}
    (tmp_path / "one").mkdir()
    first = tmp_path / "one" / form
    rewrite(tensors, first)
    assert contents(first) == expected
    second = tmp_path / form
    rewrite(first, second)
    assert contents(second) == expected
    third = tmp_path / "one" / f"again-{form}"
    rewrite(tensors, third)
    for path in first.rglob("*") if first.is_dir() else [first]:
        assert path.read_bytes() == (third / path.relative_to(first)).read_bytes()


def test_safetensors_is_what_other_loaders_expect(tmp_path):
    rewrite(awkward(), tmp_path / "a.safetensors")
    loaded = load_file(tmp_path / "a.safetensors")
    assert {name: bits(tensor) for name, tensor in loaded.items()} == {name: bits(tensor) for name, tensor in awkward().items()}
    write_checkpoint(tmp_path / "b.safetensors", [TensorSpec("w", torch.float32, (1,))], lambda name: torch.ones(1),
                     Origin("safetensors", (("k", "v"),)))
    header = b'{"__metadata__":{"k":"v"},"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    padded = header + b" " * (-len(header) % 8)
    assert (tmp_path / "b.safetensors").read_bytes() == struct.pack("<Q", len(padded)) + padded + b"\0\0\x80\x3f"
    with open_checkpoint(tmp_path / "b.safetensors") as checkpoint:
        assert checkpoint.origin == Origin("safetensors", (("k", "v"),)) and checkpoint.source == tmp_path / "b.safetensors"


def test_order_is_kept(tmp_path):
    names = ["z", "layer.10", "layer.2", "a"]
    tensors = {name: torch.ones(1) for name in names}
    torch.save(tensors, tmp_path / "a.pt")
    assert [spec.name for spec in open_checkpoint(tensors).specs] == names
    assert [spec.name for spec in open_checkpoint(tmp_path / "a.pt").specs] == names


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_file_keeps_wrapper_and_extras(tmp_path, zipped):
    tree = {"epoch": 7, "state_dict": {"module.w": nn.Parameter(torch.randn(2, 3)), "module.n": torch.tensor(4), "version": 2},
            "best_prec1": 91.25, "arch": "resnet20", "classes": ["cat", None, True, {"lr": float("inf")}], "sizes": (1, 2)}
    torch.save(tree, tmp_path / "a.th", _use_new_zipfile_serialization=zipped)
    rewrite(tmp_path / "a.th", tmp_path / "b.th")
    with open_checkpoint(tmp_path / "b.th") as checkpoint:
        assert checkpoint.origin.wrapper == "state_dict" and checkpoint.origin.kind == "torch" and checkpoint.left_out == ()
        assert [spec.name for spec in checkpoint.specs] == ["module.w", "module.n"]
        assert Origin.from_json(checkpoint.origin.to_json()) == checkpoint.origin
    written = torch.load(tmp_path / "b.th", weights_only=True)
    assert bits(written["state_dict"].pop("module.w")) == bits(tree["state_dict"].pop("module.w"))
    assert written["state_dict"].pop("module.n") == 4 == tree["state_dict"].pop("module.n")
    assert written == {**tree, "sizes": [1, 2]}


@pytest.mark.parametrize("path", ["model", "params_ema", "deep.down.net"])
def test_state_dict_is_found_by_structure(tmp_path, path):
    tree: object = {"w": torch.ones(2)}
    for key in reversed(path.split(".")):
        tree = {key: tree, "step": 1}
    torch.save(tree, tmp_path / "a.pt")
    with open_checkpoint(tmp_path / "a.pt") as checkpoint:
        assert checkpoint.origin.wrapper == path and [spec.name for spec in checkpoint.specs] == ["w"]


def test_several_places_need_a_key(tmp_path):
    net = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    torch.save({"model": net.state_dict(), "ema": {"w": torch.zeros(1)}, "optimizer": optimizer.state_dict(), "epoch": 3,
                "kind": torch.float32}, tmp_path / "a.pt")
    with pytest.raises(InvalidArgument, match="places: model, ema, optimizer.state; .*weights_key='model' / --weights-key 'mo"):
        open_checkpoint(tmp_path / "a.pt")
    with pytest.raises(InvalidArgument, match="no named tensors at weights_key 'modle'; tensors are at: model, ema"):
        open_checkpoint(tmp_path / "a.pt", weights_key="modle")
    with open_checkpoint(tmp_path / "a.pt", weights_key="model") as checkpoint:
        assert [spec.name for spec in checkpoint.specs] == ["weight", "bias"]
        assert checkpoint.left_out == ("ema", "optimizer", "kind") and json.loads(checkpoint.origin.extras) == {"epoch": 3}
    torch.save({"w": torch.zeros(1), "ema": {"w": torch.ones(1)}}, tmp_path / "b.pt")
    assert contents(tmp_path / "b.pt", weights_key="") == {"w": bits(torch.zeros(1))}
    save_file({"w": torch.zeros(1)}, tmp_path / "c.safetensors")
    for source in (tmp_path / "c.safetensors", net):
        with pytest.raises(InvalidArgument, match="weights_key 'model' is for torch files"):
            open_checkpoint(source, weights_key="model")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5)
        self.head.weight = self.embed.weight
        self.register_buffer("part", self.embed.weight.detach()[:2])
        self.register_buffer("none", torch.zeros(0))
        self.register_buffer("void", torch.zeros(0))


@pytest.mark.parametrize("form", FORMS)
def test_tied_tensors(tmp_path, form):
    module = Tied()
    with open_checkpoint(module) as checkpoint:
        tied = {spec.name: spec.tied_to for spec in checkpoint.specs}
        assert {name: first for name, first in tied.items() if first} == {"head.weight": "embed.weight"} and len(tied) == 6
        assert checkpoint.nbytes == 4 * (15 + 5 + 6) and checkpoint.source is None
        asked = []

        def read(name: str) -> torch.Tensor:
            asked.append(name)
            return checkpoint.read(name)

        write_checkpoint(tmp_path / form, checkpoint.specs, read, checkpoint.origin)
        assert "head.weight" not in asked
    with open_checkpoint(tmp_path / form) as checkpoint:
        held = {spec.name: spec.tied_to for spec in checkpoint.specs}
        assert held.keys() == tied.keys() and (held == tied) == (form not in ("folder", "a.safetensors"))
        assert bits(checkpoint.read("head.weight")) == bits(module.embed.weight)


def test_a_tensor_read_is_the_callers_own(tmp_path):
    tensors = {"w": torch.arange(6.0).reshape(2, 3).t()}
    rewrite(tensors, tmp_path / "a.pt")
    rewrite(tensors, tmp_path / "a.safetensors")
    for source in (tensors, tmp_path / "a.pt", tmp_path / "a.safetensors", nn.Linear(2, 2)):
        with open_checkpoint(source) as checkpoint:
            name = checkpoint.specs[0].name
            before = bits(checkpoint.read(name))
            taken = checkpoint.read(name)
            assert taken.is_contiguous() and not taken.requires_grad
            taken.zero_()
            assert bits(checkpoint.read(name)) == before
            with pytest.raises(InvalidArgument, match="no tensor 'nothing'"):
                checkpoint.read("nothing")
        with pytest.raises(InvalidArgument, match="closed"):
            checkpoint.read(name)


def folder_with_everything(root: Path, limit: int = 5_000_000_000) -> Path:
    folder = root / "in"
    tensors = {"a": torch.randn(8, 4), "b": torch.randn(6), "c": torch.ones(3, dtype=torch.bfloat16)}
    rewrite(tensors, folder, max_shard_bytes=limit)
    files = ["config.json", "tokenizer.model", "1_Pooling/config.json", "2_Dense/model.safetensors", "3_Other/pytorch_model.bin",
             "pytorch_model.bin", "tf_model.h5", "onnx/model.onnx", "onnx/model.onnx.data", "x.gguf", "checkpoint-10/config.json",
             ".git/config", ".gitattributes", "flax_model.msgpack", "pytorch_model.bin.index.json", "model.fp16.safetensors"]
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}, {"idx": 3}]))
    (root / "blob").write_text("linked")
    (folder / "vocab.txt").symlink_to("../blob")
    return folder


@pytest.mark.parametrize("limit", [5_000_000_000, 64])
def test_folder_carries_its_side_files(tmp_path, limit):
    folder = folder_with_everything(tmp_path, limit)
    carried = ["1_Pooling/config.json", "2_Dense/model.safetensors", "config.json", "modules.json", "tokenizer.model",
               "vocab.txt"]
    with open_checkpoint(folder) as checkpoint:
        assert [name for name, _ in checkpoint.side_files] == carried
        assert all(path == (folder / name).absolute() for name, path in checkpoint.side_files)
        assert checkpoint.origin == Origin("hf", (("format", "pt"),)) and checkpoint.source == folder
        assert checkpoint.left_out == ("3_Other/pytorch_model.bin", "flax_model.msgpack", "model.fp16.safetensors",
                                       "onnx/model.onnx", "onnx/model.onnx.data", "pytorch_model.bin", "tf_model.h5", "x.gguf")
    written = rewrite(folder, tmp_path / "out", max_shard_bytes=limit)
    assert sorted(written) == sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    weights = ["model.safetensors"]
    if limit == 64:
        weights = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    assert [path.relative_to(tmp_path / "out").as_posix() for path in written] == [*weights, *carried]
    assert (tmp_path / "out" / "vocab.txt").read_text() == "linked" and not (tmp_path / "out" / "vocab.txt").is_symlink()
    assert contents(tmp_path / "out") == contents(folder)
    if limit == 64:
        index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
        assert index == {"metadata": {"total_size": 128 + 24 + 6},
                         "weight_map": {"a": weights[0], "b": weights[1], "c": weights[1]}}
    rewrite(folder, tmp_path / "alone.pt")
    assert contents(tmp_path / "alone.pt") == contents(folder)


def test_folder_with_torch_shards(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "one.bin")
    torch.save({"v": torch.zeros(3), "note": 1}, tmp_path / "two.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"w": "one.bin", "v": "two.bin"}}))
    with open_checkpoint(tmp_path) as checkpoint:
        assert [spec.name for spec in checkpoint.specs] == ["w", "v"] and checkpoint.left_out == ("note",)
        assert checkpoint.origin.kind == "hf" and checkpoint.side_files == ()


def test_reading_shards_is_lazy(tmp_path):
    """4 GiB of holes on disk: opening and reading a small tensor must not take them into memory."""
    large = 2 << 30
    for shard in ("one", "two"):
        header = json.dumps({shard: {"dtype": "U8", "shape": [large], "data_offsets": [0, large]},
                             f"{shard}.small": {"dtype": "F32", "shape": [1], "data_offsets": [large, large + 4]}}).encode()
        with open(tmp_path / f"{shard}.safetensors", "wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            file.seek(large, os.SEEK_CUR)
            file.write(struct.pack("<f", 2.5))
    index = {name: f"{shard}.safetensors" for shard in ("one", "two") for name in (shard, f"{shard}.small")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.nbytes == 2 * (large + 4) and checkpoint.read("two.small").item() == 2.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


def test_writing_safetensors_holds_one_tensor(tmp_path):
    previous: list[weakref.ref] = []

    def read(name: str) -> torch.Tensor:
        assert all(reference() is None for reference in previous)
        tensor = torch.full((1000,), float(name))
        previous.append(weakref.ref(tensor))
        return tensor

    specs = [TensorSpec(str(number), torch.float32, (1000,)) for number in range(5)]
    write_checkpoint(tmp_path / "out", specs, read, Origin("module"), max_shard_bytes=9000)
    last = load_file(tmp_path / "out" / "model-00003-of-00003.safetensors")
    assert len(previous) == 5 and bits(last["4"]) == bits(torch.full((1000,), 4.0))


@pytest.mark.skipif(not ORIGINAL.is_file(), reason="needs the private test data")
def test_a_real_checkpoint(tmp_path):
    expected = contents(ORIGINAL)
    assert len(expected) == 97 and all(name.startswith("module.") for name in expected)
    rewrite(ORIGINAL, tmp_path / "copy.th")
    assert contents(tmp_path / "copy.th") == expected
    original, copy = (torch.load(path, map_location="cpu", weights_only=True) for path in (ORIGINAL, tmp_path / "copy.th"))
    assert copy.keys() == original.keys() and copy["best_prec1"] == original["best_prec1"]
    assert list(copy["state_dict"]) == list(expected)
