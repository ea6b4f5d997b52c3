"""Checkpoints that cannot be used: hostile, damaged, incomplete or ambiguous input is refused in one line that names it."""
from __future__ import annotations

import json
import os
import pickle
import random
import struct
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nnc.checkpoint import open_checkpoint, write_checkpoint
from nnc.errors import Corruption, InsufficientData, InvalidArgument, NncError, Unsupported


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    flat = tensor.detach().contiguous().reshape(-1)
    return tensor.dtype, tuple(tensor.shape), flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def contents(source: object, **options: str) -> dict[str, tuple]:
    with open_checkpoint(source, **options) as checkpoint:
        return {spec.name: bits(checkpoint.read(spec.name)) for spec in checkpoint.specs}


class Attack:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("entry, named", [(Attack(), r"posix.mkdir"), (nn.Linear(1, 1), r"torch.nn.modules.linear.Linear")])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, monkeypatch, zipped, entry, named):
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.ones(1), "x": entry}, "a.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(Unsupported, match=rf"^a.pt: needs {named} to load, which is refused; save model.state_dict\(\) instead$"):
        open_checkpoint("a.pt")
    assert os.listdir() == ["a.pt"]


@pytest.mark.parametrize("form", ["a.pt", "a.th", "a.safetensors"])
def test_damage_raises_one_of_our_errors(tmp_path, form):
    tensors = {"w": torch.randn(3, 4), "v": torch.zeros(5, dtype=torch.bfloat16)}
    if form == "a.safetensors":
        save_file(tensors, tmp_path / form)
    else:
        torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / form, _use_new_zipfile_serialization=form == "a.pt")
    whole = (tmp_path / form).read_bytes()
    cases = [whole[:cut] for cut in range(0, len(whole), 7)]
    generator = random.Random(5)
    for _ in range(150):
        changed = bytearray(whole)
        changed[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        cases.append(bytes(changed))
    refused = 0
    for case in cases:
        (tmp_path / form).write_bytes(case)
        try:
            contents(tmp_path / form)
        except NncError as error:
            assert "\n" not in str(error) and form in str(error)
            refused += 1
    assert refused >= len(whole) // 7


@pytest.mark.parametrize("form", ["a.pt", "a.safetensors", "folder"])
def test_garbage_and_missing_files(tmp_path, form):
    path = tmp_path / form
    with pytest.raises(InvalidArgument, match="does not exist"):
        open_checkpoint(path)
    if form != "folder":
        path.write_bytes(b"garbage" * 30)
        with pytest.raises(Corruption, match="damaged or not a"):
            open_checkpoint(path)


def test_a_file_that_shrinks_after_opening(tmp_path):
    save_file({"w": torch.ones(100)}, tmp_path / "a.safetensors")
    with open_checkpoint(tmp_path / "a.safetensors") as checkpoint:
        os.truncate(tmp_path / "a.safetensors", 200)
        with pytest.raises(Corruption, match="ends inside tensor 'w'"):
            checkpoint.read("w")


def test_compressed_archive_is_read_by_value(tmp_path):
    torch.save({"w": torch.zeros(1000)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as stored, zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    assert contents(tmp_path / "b.pt") == {"w": bits(torch.zeros(1000))}


@pytest.mark.parametrize("content, error, message", [
    ({}, InsufficientData, "no tensors"), ({"epoch": 3}, InsufficientData, "no tensors"),
    ([torch.ones(1)], Unsupported, "holds a list"), (torch.ones(1), Unsupported, "holds a Tensor"),
    ({0: torch.ones(1)}, Unsupported, "names must be strings, found 0"),
    ({"all": [torch.ones(1)]}, Unsupported, "only without names, at all"),
    ({"a.b": {"w": torch.ones(1)}}, Unsupported, "key with a dot"),
    ({"w": torch.ones(2).to_sparse()}, Unsupported, "tensor 'w' is sparse_coo"),
    ({"w": torch.zeros(1, device="meta")}, InvalidArgument, "tensor 'w' is on the meta device"),
])
def test_unusable_content(tmp_path, content, error, message):
    torch.save(content, tmp_path / "a.pt")
    for source in (tmp_path / "a.pt", *([content] if isinstance(content, dict) else [])):
        with pytest.raises(error, match=message):
            open_checkpoint(source)


def test_unusable_live_sources(tmp_path):
    with pytest.raises(InsufficientData, match="the module holds no tensors"):
        open_checkpoint(nn.ReLU())
    with pytest.raises(InvalidArgument, match="not initialized yet"):
        open_checkpoint(nn.LazyLinear(3))
    with pytest.raises(InvalidArgument, match="entry 'b' is neither a tensor nor a plain value"):
        open_checkpoint({"a": torch.ones(1), "b": torch.ones(1).numpy()})
    with pytest.raises(InvalidArgument, match="cannot open a int"):
        open_checkpoint(3)
    (tmp_path / "a.xyz").touch()
    with pytest.raises(InvalidArgument, match="unknown suffix '.xyz'; expected a folder or .safetensors, .pt"):
        open_checkpoint(tmp_path / "a.xyz")


def test_self_containing_and_exploding_extras(tmp_path):
    loop: dict = {"state_dict": {"w": torch.ones(1)}, "epoch": 1}
    loop["loop"] = loop
    laughs: list = ["ha"]
    for _ in range(40):
        laughs = [laughs, laughs]
    deep: list = []
    for _ in range(200):
        deep = [deep]
    torch.save({**loop, "laughs": laughs, "deep": deep}, tmp_path / "a.pt")
    with open_checkpoint(tmp_path / "a.pt") as checkpoint:
        assert json.loads(checkpoint.origin.extras) == {"epoch": 1} and checkpoint.left_out == ("loop", "laughs", "deep")


def test_a_tensor_that_claims_more_than_there_is(tmp_path):
    torch.save({"w": torch.zeros(1).expand(1 << 50)}, tmp_path / "a.pt")
    with open_checkpoint(tmp_path / "a.pt") as checkpoint:
        with pytest.raises(InvalidArgument, match=f"tensor 'w' of {4 << 50} bytes does not fit into memory"):
            checkpoint.read("w")


def test_a_state_dict_that_is_also_in_a_list(tmp_path):
    state = {"w": torch.ones(1)}
    torch.save({"history": [state], "state_dict": state}, tmp_path / "a.pt")
    with pytest.raises(InvalidArgument, match="several places: state_dict, history; .*weights_key='state_dict'"):
        open_checkpoint(tmp_path / "a.pt")
    assert contents(tmp_path / "a.pt", weights_key="state_dict") == {"w": bits(torch.ones(1))}


def test_dtype_that_safetensors_lacks(tmp_path):
    tensors = {"w": torch.tensor([1 + 2j], dtype=torch.complex128), "conj": torch.tensor([1 + 2j]).conj()}
    specs, read, origin = (checkpoint := open_checkpoint(tensors)).specs, checkpoint.read, checkpoint.origin
    write_checkpoint(tmp_path / "a.pt", specs, read, origin)
    assert contents(tmp_path / "a.pt") == {"w": bits(tensors["w"]), "conj": bits(torch.tensor([1 - 2j]))}
    with pytest.raises(Unsupported, match="tensor 'w' is torch.complex128, which .safetensors cannot hold; write a .pt file"):
        write_checkpoint(tmp_path / "a.safetensors", specs, read, origin)
    header = b'{"w":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}'
    (tmp_path / "b.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0")
    with pytest.raises(Unsupported, match="tensor 'w' has dtype F4"):
        open_checkpoint(tmp_path / "b.safetensors")
    assert sorted(os.listdir(tmp_path)) == ["a.pt", "b.safetensors"]


def test_pickle_without_torch_is_not_a_checkpoint(tmp_path):
    (tmp_path / "a.pt").write_bytes(pickle.dumps({"w": [1, 2]}))
    with pytest.raises(NncError, match="a.pt"):
        open_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("weight_map, error, message", [
    ({"w": "one.safetensors", "v": "two.safetensors"}, InsufficientData, "two.safetensors, which is missing"),
    ({"w": "one.safetensors", "x": "one.safetensors"}, InsufficientData, "lists tensor 'x' in one.safetensors, which does"),
    ({"x": "one.safetensors"}, Corruption, "holds tensor 'w', but the index does not list it"),
    ({"w": "../one.safetensors"}, Corruption, "not a plain relative path"), ({"w": 3}, Corruption, "weight_map"),
    ([], Corruption, "weight_map"), ({}, InsufficientData, "names no tensors"), (None, Corruption, "not valid JSON"),
])
def test_broken_index(tmp_path, weight_map, error, message):
    save_file({"w": torch.ones(1)}, tmp_path / "one.safetensors")
    text = "{" if weight_map is None else json.dumps({"weight_map": weight_map})
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(error, match=message):
        open_checkpoint(tmp_path)


def test_folder_without_weights(tmp_path):
    with pytest.raises(InvalidArgument, match="it holds no weights"):
        open_checkpoint(tmp_path)
    save_file({"w": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(InvalidArgument, match="it holds adapter_model.safetensors, pass that file"):
        open_checkpoint(tmp_path)
    save_file({"w": torch.ones(1)}, tmp_path / "model.safetensors")
    (tmp_path / "vocab.txt").symlink_to("nowhere")
    with pytest.raises(InvalidArgument, match="vocab.txt is a link to a file that does not exist"):
        open_checkpoint(tmp_path)
