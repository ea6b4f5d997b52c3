"""Files whose tensors use all the tools: single changed bytes of the directory and of the units, with checksums set right again.  Both
decoders read the same tensors, or both refuse."""
from __future__ import annotations

import sys
import zlib
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch

import nnc
from nnc.container import open_file

sys.path.insert(0, str(Path(__file__).parent))
import reference_decoder as decoder  # noqa: E402
from golden_damage import container_bytes  # noqa: E402
from make_golden import coded_kinds, loaded  # noqa: E402

pytestmark = pytest.mark.slow  # half a minute in all


def near_columns(g: torch.Generator, rows: int, columns: int) -> torch.Tensor:
    plane = torch.randn(rows, columns, generator=g)
    for j in range(1, columns):
        plane[:, j] = 0.97 * plane[:, j - 1] + 0.2 * plane[:, j]
    return plane


def tensors() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(5)
    kernels = torch.randn(12, 8, 3, 3, generator=g).cumsum(2).cumsum(3)
    clusters = torch.randn(3, 20, generator=g)[torch.randint(0, 3, (40,), generator=g)] + 0.1 * torch.randn(40, 20, generator=g)
    blocks = torch.randn(48, 48, generator=g) * torch.exp(2 * torch.randn(3, 3, generator=g)).repeat_interleave(16, 0).repeat_interleave(16, 1)
    heavy = torch.randn(60, 50, generator=g)
    heavy.view(-1)[torch.randperm(3000, generator=g)[:90]] *= 1e3
    few = torch.tensor([-1.0, 0.1, 0.7])[torch.randint(0, 3, (180, 190), generator=g)]
    many = torch.randn(5, 16, generator=g)[torch.randint(0, 5, (500,), generator=g)] + 0.3 * torch.randn(500, 16, generator=g)
    first = torch.randn(20, 24, generator=g)
    return {"first": first, "second": first + 0.3 * torch.randn(20, 24, generator=g), "many": many, "some": many[:200], "kernels": kernels, "walk": near_columns(g, 24, 30), "clusters": clusters, "blocks": blocks, "heavy": heavy, "few": few}


SETS = {"transform": ("kernels",), "memory": ("walk", "clusters", "some"), "tree": ("blocks",), "outliers": ("heavy",), "codebook": ("few",), "labels": ("many",), "inter": ("first", "second")}


@pytest.fixture(scope="module", params=SETS)
def file(request, tmp_path_factory) -> Path:
    """A file of the tensors that use one tool."""
    path = tmp_path_factory.mktemp("tools") / "t.safetensors"
    chosen = {name: tensor for name, tensor in tensors().items() if name in SETS[request.param]}
    target = {"step": 0.5} if request.param in ("outliers", "codebook", "tree") else {"snr": 20}
    tool = "memory" if request.param == "labels" else request.param
    with as_large_table() if request.param == "labels" else patch("nnc.siblings.LEAST", 1):
        nnc.compress(chosen, path, tools=tool, threads=1, **target)
    assert {tensor.name: tensor.tools for tensor in nnc.inspect(path).tensors} == {name: () if name == "first" else (tool,) for name in chosen}
    if request.param == "labels":
        (record,) = open_file(path).directory.records
        assert record.coding.tools.memory.centres and record.coding.tools.memory.labels is None and len(record.coding.streams) == 2
    return path


@contextmanager
def as_large_table():
    """Of a small table: strips, with labels of centres in front of each."""
    table = patch("nnc.plan.TABLE_ROWS", 400), patch.dict("nnc.plan.STRIPS", tensor=1 << 12), patch("nnc.packing.OWN_ENTRY", 0)
    with table[0], table[1], table[2], patch("nnc.memories.find_kinds", coded_kinds(7)):
        yield


def check_agreement(path: Path) -> bool:
    """Whether both decoders read the file; they agree."""
    try:
        expected = decoder.decode(path)
    except ValueError:
        with pytest.raises((nnc.Corruption, nnc.Unsupported)):
            nnc.load(path, threads=1)
        return False
    assert list(loaded(path, threads=1).items()) == list(expected.items())
    return True


def test_changed_directories(file, tmp_path):
    container, path = decoder.read_container(file.read_bytes()), tmp_path / "c.safetensors"
    sound, read, tried = container.directory, 0, 0
    for position in range(0, len(sound), 1 if file.stat().st_size < 1500 else 12):  # the slow decoder is slow
        for bit in {position % 8, 0}:
            container.directory = sound[:position] + bytes([sound[position] ^ 1 << bit]) + sound[position + 1 :]
            path.write_bytes(container_bytes(container))
            read += check_agreement(path)
            tried += 1
    assert 0 < read < tried  # the origin changes no tensor


def test_changed_units(file, tmp_path):
    """Of what stands before the streams, and of a few bytes of these."""
    container, path = decoder.read_container(file.read_bytes()), tmp_path / "c.safetensors"
    assert container.small
    small, directory = container.small, container.directory
    old = zlib.crc32(small).to_bytes(4, "little")
    assert directory.count(old) == 1
    draw = np.random.default_rng(1)
    number = 150 if len(small) < 1500 else 10
    positions = sorted({*range(min(len(small), number)), *draw.integers(0, len(small), number).tolist()})
    for position in positions:
        container.small = small[:position] + bytes([small[position] ^ 1 << int(draw.integers(8))]) + small[position + 1 :]
        container.directory = directory.replace(old, zlib.crc32(container.small).to_bytes(4, "little"))
        path.write_bytes(container_bytes(container))
        check_agreement(path)
