"""Tensors that earlier ones of the same file foretell: what is found, what it saves, who may be a source, and every way to read them."""
from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch

import nnc
from nnc.archive import open_compressed
from nnc.checkpoint import open_checkpoint
from nnc.config import Rule, make_config
from nnc.container import open_file
from nnc.directory import Directory
from nnc.errors import Corruption
from nnc.kept import Kept
from nnc.siblings import find_siblings
from nnc.workers import Workers


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def averaged(part: float = 0.1, number: int = 3) -> dict[str, torch.Tensor]:
    """Weights and averages of them."""
    weights = {f"w{n}": normal(120, 100, seed=n) for n in range(number)}
    return weights | {f"mean.{name}": w + part * normal(120, 100, seed=100 + n) for n, (name, w) in enumerate(weights.items())}


def found_in(state: dict[str, torch.Tensor], rules: tuple = (), **options) -> dict[str, str]:
    with open_checkpoint(state) as checkpoint:
        siblings = find_siblings(checkpoint, make_config(None, rules, snr=20, **options), Workers())
    return {name: sibling.base for name, sibling in siblings.found.items()}


def bases_of(path) -> dict[str, str]:
    with open_compressed(path) as archive:
        return {record.name: record.base for record in archive.records if record.base}


def test_those_that_are_alike_are_found():
    state = averaged()
    pairs = {f"mean.w{n}": f"w{n}" for n in range(3)}
    assert found_in(state) == pairs
    turned = dict(reversed(state.items()))
    assert found_in(turned) == {base: name for name, base in pairs.items()}, "the earlier one is the source"
    assert found_in({name: -w if "mean" in name else w for name, w in state.items()}) == {}
    assert found_in({f"w{n}": normal(120, 100, seed=n) for n in range(40)}) == {}
    assert found_in(state, tools="transform,memory") == found_in(state, tools="none") == {}


def test_no_source_has_one():
    """A row of copies: all go back to the first."""
    state = {"w0": normal(80, 90)}
    for n in range(1, 6):
        state[f"w{n}"] = state[f"w{n - 1}"] + 0.2 * normal(80, 90, seed=n)
    assert found_in(state) == {f"w{n}": "w0" for n in range(1, 6)}


def test_what_is_left_out():
    """Small tensors, vectors, integers, those of other shapes, those that rules keep, those that are not finite."""
    w = normal(120, 100)
    near = w + 0.1 * normal(120, 100, seed=1)
    infinite = near.clone()
    infinite[119, 99] = torch.inf
    assert found_in({"a": w, "b": near.T.contiguous()}) == {}
    assert found_in({"a": w[:30], "b": near[:30]}) == {}
    assert found_in({"a": w.flatten(), "b": near.flatten()}) == {}
    assert found_in({"a": (9 * w).to(torch.int32), "b": (9 * w).to(torch.int32)}) == {}
    assert found_in({"a": w, "b": infinite}) == {}
    assert found_in({"a": w, "b": near}, rules=(Rule("b", "exact"),)) == {}
    assert found_in({"a": w, "b": near.bfloat16()}) == {"b": "a"}


@pytest.mark.parametrize("part", [0.02, 0.1, 0.3])
def test_what_they_save(tmp_path, part):
    """At the same error no more than the rate of the residual: what the source wants at first, its error then, less the part of a weight that is left."""
    state, sizes = averaged(part), {}
    for tools in ("default", "transform,memory"):
        sizes[tools] = nnc.compress(state, tmp_path / "t.safetensors", snr=18, tools=tools, overwrite=True).bits_per_weight
    d = 10 ** (-18 / 10)
    theory = 0.5 * np.log2((part**2 + d) / d)  # of N(0, part^2 + d) at the error d
    assert sizes["default"] < sizes["transform,memory"] / 2 + (theory + 0.25) / 2 + 0.05


@pytest.mark.parametrize("bits", [0.7, 2, 5])
def test_those_that_are_little_alike(tmp_path, bits):
    """The gain at a cosine r is 10 lg(1 / (1 - r^2 + r^2 D)) for half of the weights, whatever the rate; a source cannot cost anything."""
    w = normal(300, 250)
    state = {"a": w, "b": 0.45 * w + (1 - 0.45**2) ** 0.5 * normal(300, 250, seed=1)}
    assert found_in(state) == {"b": "a"}
    snr = [nnc.compress(state, tmp_path / "t.safetensors", bits=bits, tools=tools, overwrite=True).snr for tools in ("transform,memory", "inter")]
    gain = -5 * np.log10(1 - 0.45**2 * (1 - 10 ** (-snr[0] / 10)))
    assert snr[1] - snr[0] > gain - 0.15


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("siblings") / "t.safetensors"
    big = normal(300, 400, seed=7)
    state = {"b": normal(100), "big": big, "w0": normal(120, 100), "copy": normal(120, 100)} | averaged()
    state |= {"mean.big": big + 0.1 * normal(300, 400, seed=8), "tied": state["mean.w1"]}
    nnc.compress(state, path, bits=4)
    assert bases_of(path) == {"mean.big": "big"} | {f"mean.w{n}": f"w{n}" for n in range(3)}
    return path


@pytest.mark.parametrize("threads", [1, 2])
def test_every_way_to_read_them(file, tmp_path, threads):
    state = nnc.load(file, threads=threads)
    for name in ("mean.big", "mean.w0", "tied"):
        assert torch.equal(nnc.load(file, names=[name], threads=threads)[name], state[name])
        with nnc.open(file, threads=threads) as archive:
            assert torch.equal(archive.tensor(name), state[name])
            assert torch.equal(archive.tensor(name, rows=[3, 1, 77]), state[name][[3, 1, 77]])
    for order in list(permutations(("w0", "mean.w0", "mean.big")))[:4]:
        with nnc.open(file, threads=threads) as archive:
            assert all(torch.equal(archive.read(name), state[name]) for name in order)
    with open_compressed(file) as archive:  # no room to keep what will be needed
        assert all(torch.equal(tensor, state[name]) for name, tensor in archive.tensors(ahead=0))
    nnc.decompress(file, tmp_path / "back.safetensors", threads=threads)
    assert all(torch.equal(tensor, state[name]) for name, tensor in nnc.load(file).items())
    assert nnc.verify(file, threads=threads) == len(state)
    kinds = {tensor.name: tensor.tools for tensor in nnc.inspect(file).tensors}
    assert kinds["mean.big"] == ("inter",) and kinds["big"] == ()


def test_shards_hold_both(tmp_path):
    state = averaged(0.1, 6)
    nnc.compress(state, tmp_path / "out", bits=3, shard_bytes=7000)
    with open_compressed(tmp_path / "out") as archive:
        files = {record.name: number for number, file in enumerate(archive.files) for record in file.directory.records}
    assert len(set(files.values())) == 6 and all(files[name] == files[f"mean.{name}"] for name in files if "mean" not in name)
    assert nnc.load(tmp_path / "out").keys() == state.keys()


def test_same_bytes_with_any_number_of_threads(tmp_path):
    for threads in (1, 2, 3):
        nnc.compress(averaged(), tmp_path / f"{threads}.safetensors", bits=3, threads=threads)
    assert len({(tmp_path / f"{threads}.safetensors").read_bytes() for threads in (1, 2, 3)}) == 1


def test_tables_that_are_read_by_rows_stay_alone(tmp_path):
    table = normal(5000, 20)
    state = {"a": table, "b": table + 0.1 * normal(5000, 20, seed=1)}
    for access, expected in (("tensor", {"b": "a"}), ("rows", {})):
        nnc.compress(state, tmp_path / "t.safetensors", bits=3, access=access, overwrite=True)
        assert bases_of(tmp_path / "t.safetensors") == expected


def test_sources_that_cannot_be(file):
    """An alias, a predicted tensor, another shape, none at all."""
    directory = open_file(file).directory
    index = {record.name: number for number, record in enumerate(directory.records)}

    def read_with(name: str, base: int) -> None:
        record = directory.records[index[name]]
        coding = replace(record.coding, prediction=replace(record.coding.prediction, back=index[name] - base))
        records = list(directory.records)
        records[index[name]] = replace(record, coding=coding)
        Directory.read(replace(directory, records=tuple(records)).write())

    read_with("mean.w1", index["w2"])
    for base in ("b", "big", "copy", "mean.w0"):
        with pytest.raises(Corruption, match=f"foretold by '{base}', which does not match"):
            read_with("mean.w1", index[base])
    with pytest.raises(Corruption, match="distance"):
        read_with("mean.w1", -1)
    with pytest.raises(Corruption, match="none"):
        read_with("mean.w1", index["mean.w1"])


def test_what_is_kept_for_later():
    decoded, given = [], {name: torch.zeros(10) for name in "abc"}

    def decode(name: str) -> torch.Tensor:
        decoded.append(name)
        return given[name]

    kept = Kept(Counter(a=2, b=1), 50, decode)
    assert [name for name, _ in kept.watch(iter(given.items()))] == ["a", "b", "c"]
    assert kept.take("a") is kept.take("a") is given["a"] and not decoded
    assert kept.take("b") is given["b"] and decoded == ["b"] and kept.room == 50


def test_with_a_reference_there_are_none(tmp_path):
    """Which foretells both tensors of a pair, and more of them."""
    state = averaged()
    reference = {name: tensor + 0.01 for name, tensor in state.items() if name != "mean.w0"}
    nnc.compress(state, tmp_path / "t.safetensors", snr=20, reference=reference)
    assert bases_of(tmp_path / "t.safetensors") == {}


def test_copies_of_a_source_are_aliases(tmp_path):
    """Equal tensors, of which only the first is a source."""
    state = {"w": normal(120, 100), "copy": normal(120, 100)} | averaged(number=1)
    nnc.compress(state, tmp_path / "t.safetensors", snr=20)
    assert bases_of(tmp_path / "t.safetensors") == {"mean.w0": "w"}
    kinds = {tensor.name: tensor.kind for tensor in nnc.inspect(tmp_path / "t.safetensors").tensors}
    assert kinds == {"w": "coded", "copy": "alias", "w0": "alias", "mean.w0": "coded"}
    near = {"w": state["w"], "w0": state["w0"], "near": state["w"] * 1.0001}  # a rule that asks for what lossless does anyway
    nnc.compress(near, tmp_path / "l.safetensors", lossless=True, rules=(Rule("w", "exact"),))
    assert bases_of(tmp_path / "l.safetensors") == {"near": "w"} and torch.equal(nnc.load(tmp_path / "l.safetensors")["near"], near["near"])


def test_without_loss(tmp_path):
    """Differences to the original of an earlier tensor, where they are shorter; every bit comes back, by every way to read."""
    w = normal(120, 100)
    state = {"w": w, "near": w * (1 + 1e-4 * normal(120, 100, seed=1)), "half": w.half(), "other": normal(120, 100, seed=2)}
    state |= {"near half": (w + 1e-3 * normal(120, 100, seed=3)).half(), "nan": torch.where(normal(120, 100, seed=4) > 2, torch.nan, w)}
    path, sizes = tmp_path / "t.safetensors", []
    for tools in ("default", "none"):
        sizes.append(nnc.compress(state, path, lossless=True, tools=tools, overwrite=True).file_bytes)
        loaded = nnc.load(path)
        assert all(loaded[name].view(torch.uint8).equal(tensor.view(torch.uint8)) for name, tensor in state.items())
        if tools == "default":
            assert bases_of(path) == {"near": "w", "near half": "half"}
            with nnc.open(path) as archive:
                assert torch.equal(archive.tensor("near half"), state["near half"])
                assert torch.equal(archive.tensor("near", rows=[5, 2]), state["near"][[5, 2]])
            assert {t.name: t.tools for t in nnc.inspect(path).tensors}["near"] == ("inter",)
    assert sizes[0] < 0.87 * sizes[1] and bases_of(path) == {}
    nnc.compress(state, path, lossless=True, overwrite=True)
    directory = open_file(path).directory
    index = {record.name: number for number, record in enumerate(directory.records)}
    for base in ("w", "half", "near half"):
        records = list(directory.records)
        records[index["near half"]] = replace(records[index["near half"]], target=index["near half"] - index[base])
        if base == "half":
            Directory.read(replace(directory, records=tuple(records)).write())
        else:
            with pytest.raises(Corruption, match="does not match" if base == "w" else "cannot be a difference"):
                Directory.read(replace(directory, records=tuple(records)).write())
