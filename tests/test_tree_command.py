"""`nnc info --tree`: the partition of a tensor as text, data and picture."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import nnc
from nnc.__main__ import main
from nnc.dissection import dissect
from nnc.errors import Corruption


def blocks(g: torch.Generator, rows: int, columns: int) -> torch.Tensor:
    scales = torch.exp(1.5 * torch.randn(-(-rows // 24), -(-columns // 24), generator=g))
    weights = torch.randn(rows, columns, generator=g) * scales.repeat_interleave(24, 0).repeat_interleave(24, 1)[:rows, :columns]
    weights[24:48, 24:72] = 0
    return weights


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    g = torch.Generator().manual_seed(0)
    path = tmp_path_factory.mktemp("tree") / "small.safetensors"
    plain = torch.randn(70, 50, generator=g)
    tensors = {
        "blocks": blocks(g, 290, 260),
        "plain": plain,
        "steps": torch.arange(20),
        "gain": torch.rand(50, generator=g) + 0.5,
    }
    nnc.compress(tensors | {"twin": plain}, path, step=0.3, threads=1, tools="tree")
    return path


@pytest.fixture
def run(capsys):
    def work(*arguments):
        assert main([str(argument) for argument in arguments]) == 0
        return capsys.readouterr().out

    return work


@pytest.mark.parametrize("name", ["blocks", "plain", "gain", "twin"])
def test_bits_are_those_of_the_streams(small, name):
    found = dissect(small, name)
    records = {record.name: record for record in nnc.archive.open_archive(small).records}
    coding = records["plain" if name == "twin" else name].coding
    bits = sum(unit.bits for unit in found.units)
    assert bits == pytest.approx(found.bits.sum())
    if coding.joined:
        shares = {tensor.name: tensor.bytes for tensor in nnc.inspect(small).tensors}
        assert abs(8 * shares["plain" if name == "twin" else name] - bits) <= 64 and found.bytes == round(bits / 8)
    else:
        assert 0 <= 8 * sum(coding.streams) - bits <= 64 * len(coding.streams)  # what is left in the coder's state at the end
        assert found.bytes == coding.length
    assert coding.joined == (name != "blocks") and found.tree_bytes == (coding.tools.tree.length if name == "blocks" else 0)


def test_units_cover_every_weight_once(small):
    found = dissect(small, "blocks")
    covered = np.zeros((found.grid.rows, found.grid.columns), int)
    for unit in found.units:
        covered[unit.top : unit.bottom, unit.left : unit.right] += 1
        assert (unit.code is None) <= (unit.bits == 0)
    assert (covered == 1).all() and len(found.units) > found.grid.count > 1
    skipped = [unit for unit in found.units if unit.code is None]
    assert skipped and np.isnan(found.indices[3:6, 3:9]).all()
    values = nnc.load(small)["blocks"]
    assert all(not values[unit.top : unit.bottom, unit.left : unit.right].any() for unit in skipped)


def test_text(run, small):
    text = run("info", small, "--tree", "blocks")
    labels = [line.split()[0] for line in text.splitlines()[:7]]
    assert labels == ["tensor", "plane", "CTUs", "CUs", "tree", "step", "bits/weight"]
    picture = text.split("\n\n")[1].splitlines()
    assert len(picture) == 37 and max(map(len, picture)) == 33  # a character per cell
    assert picture[4][3:9].strip() == "" and "skip" in text and "% of the weights skipped" in text
    assert "none: every CTU is one CU" in run("info", small, "--tree", "plain")


def test_a_large_plane_is_shown_by_squares(run, tmp_path):
    nnc.compress({"w": torch.randn(1000, 600)}, tmp_path / "w.safetensors", step=0.5)
    picture = run("info", tmp_path / "w.safetensors", "--tree", "w").split("\n\n")[1].splitlines()
    assert len(picture) <= 40 and len(set(map(len, picture))) == 1


def test_json(run, small):
    data = json.loads(run("info", small, "--tree", "blocks", "--json"))
    assert data["tensor"] == "blocks" and (data["rows"], data["columns"]) == (290, 260)
    assert {unit["mode"] for unit in data["coding_units"]} == {"skip", "scale"}
    assert len(data["cell_scale_indices"]) == 37 and data["cell_scale_indices"][4][4] is None


def test_picture(run, small, tmp_path):
    pytest.importorskip("matplotlib")
    for name in ("blocks", "gain"):
        run("info", small, "--tree", name, "-o", tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_needs_matplotlib(small, tmp_path, monkeypatch, capsys):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("nnc.evaluation.plot.importlib.import_module", missing)
    assert main(["info", str(small), "--tree", "blocks", "-o", str(tmp_path / "x.png")]) == 2
    assert "needs matplotlib" in capsys.readouterr().err and not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--tree", "nothing"], "no tensor 'nothing'"),
        (["--tree", "steps"], "only coded tensors have a partition"),
        (["--tree", "plain", "-o", "x.jpg"], "ends in .png"),
        (["-o", "x.png"], "name a tensor with --tree"),
        (["--tree", "plain", "--sort", "size"], "leave out --sort"),
    ],
)
def test_errors_of_one_line(small, capsys, arguments, message):
    assert main(["info", str(small), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_damage_is_refused(small, tmp_path):
    data = bytearray(small.read_bytes())
    data[-100] ^= 1
    (tmp_path / "bad.safetensors").write_bytes(data)
    with pytest.raises(Corruption):
        for name in ("blocks", "plain"):
            dissect(tmp_path / "bad.safetensors", name)
