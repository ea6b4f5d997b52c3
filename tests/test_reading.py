"""Partial reads: one tensor or some rows of a compressed checkpoint, from paths and seekable objects, without the rest."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import nnc
from nnc.container import FILE_NAME, open_file
from nnc.errors import Corruption, InvalidArgument


def weights(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.05


def alike(rows: int, columns: int) -> torch.Tensor:
    """Rows of a few clusters, for which a memory pays."""
    centres = weights(8, columns, seed=3) * 4
    return centres[torch.arange(rows) % 8] + weights(rows, columns, seed=4) * 0.3


def blocks(rows: int, columns: int) -> torch.Tensor:
    """Variances that differ by blocks, for which a tree pays."""
    scale = torch.exp2(torch.randint(-3, 4, (rows // 32, columns // 32), generator=torch.Generator().manual_seed(1)).float())
    return weights(rows, columns) * scale.repeat_interleave(32, 0).repeat_interleave(32, 1)


def smooth(*shape: int) -> torch.Tensor:
    """Kernels whose taps are alike, for which a transform pays."""
    return weights(*shape[:2], 1, 1) + 0.1 * weights(*shape, seed=2)


STATE = {
    "plain.weight": weights(300, 400),  # several CTUs in both directions
    "table.weight": alike(6000, 192),
    "blocks.weight": blocks(512, 512),
    "kernels.weight": smooth(384, 64, 3, 3),
    "one_axis_first": weights(1, 300, 400),
    "four": weights(2, 4, 60, 300),
    "bfloat": weights(400, 300).bfloat16(),
    "small.weight": weights(8, 9),
    "bias": weights(300),
    "scalar": torch.tensor(1.5),
    "counter": torch.arange(5000),
    "bools": torch.arange(70) % 3 == 0,
    "empty": torch.zeros(0, 4),
    "skipped.weight": weights(200, 50),
    "constant": torch.full((40, 30), 0.25),
}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A file that uses every tool that default and 'all' would."""
    path = tmp_path_factory.mktemp("reading") / "small.safetensors"
    nnc.compress(STATE, path, bits=4, tools="transform,memory,tree", rules=[nnc.Rule("skipped*", "skip")])
    return path


@pytest.fixture(scope="module")
def full(file):
    return nnc.load(file)


ROWS = (0, -1, slice(None), slice(1, None, 3), slice(5, 2), slice(None, None, -1), range(0, 1), [0], [-1, 0, 0], [],
        np.array([0], np.int32), torch.tensor([0, -1]))


def index(rows):
    return list(rows) if isinstance(rows, range) else rows


@pytest.mark.parametrize("name", [name for name in STATE if STATE[name].dim() and len(STATE[name])])
def test_rows_are_those_of_the_tensor(file, full, name):
    with nnc.open(file, threads=1) as archive:
        assert torch.equal(archive.tensor(name), full[name]) and archive.tensor(name).dtype == STATE[name].dtype
        for rows in ROWS:
            places = np.arange(len(full[name]))[index(rows)] if not isinstance(rows, torch.Tensor) else rows.numpy()
            found = archive.tensor(name, rows=rows)
            assert found.dtype == full[name].dtype and found.is_contiguous()
            assert torch.equal(found, full[name][torch.from_numpy(np.array(places, np.int64))]), rows


def test_the_file_uses_the_tools(file):
    tools = {tensor.name: tensor.tools for tensor in nnc.inspect(file).tensors}
    assert "memory" in tools["table.weight"] and "tree" in tools["blocks.weight"] and "transform" in tools["kernels.weight"]
    with nnc.open(file) as archive:
        for name in ("plain.weight", "table.weight", "blocks.weight", "kernels.weight", "one_axis_first", "bfloat"):
            assert len(archive.record(name).coding.streams) > 1, name


@pytest.mark.parametrize("seed", range(3))
def test_random_rows(file, full, seed):
    random = np.random.default_rng(seed)
    with nnc.open(file) as archive:
        for name in ("plain.weight", "table.weight", "blocks.weight", "kernels.weight", "four"):
            rows = random.integers(0, len(full[name]), random.integers(1, 40))
            assert torch.equal(archive.tensor(name, rows=rows), full[name][torch.from_numpy(rows)])
            start, stop = sorted(random.integers(0, len(full[name]), 2))
            assert torch.equal(archive.tensor(name, rows=range(start, stop)), full[name][start:stop])


def test_rows_read_fewer_bytes(file, full):
    """A row costs the header, the side information and the CTUs that it lies in."""
    for name in ("plain.weight", "table.weight", "kernels.weight"):
        with nnc.open(io.BytesIO(file.read_bytes())) as archive:
            container = archive.files[0]
            opened = container.storage.count
            assert opened <= max(4096, container.overhead)
            row = archive.tensor(name, rows=7)
            coding = archive.record(name).coding
            assert container.storage.count - opened < coding.length * 0.75 and torch.equal(row, full[name][7])
            before = container.storage.count
            archive.tensor(name, rows=7)
            assert container.storage.count - before < coding.length - coding.side, "side information is read once"
    with nnc.open(io.BytesIO(file.read_bytes())) as archive:  # as it is stored: nothing but the row
        before = archive.files[0].storage.count
        archive.tensor("skipped.weight", rows=[3, 4, 5, 190])
        assert archive.files[0].storage.count - before == 4 * 50 * 4
        before = archive.files[0].storage.count
        assert archive.tensor("plain.weight", rows=[]).shape == (0, 400) and archive.files[0].storage.count == before


@pytest.mark.parametrize("shape", [(4096, 24), (6000, 192), (20000, 7), (4099, 260)])
def test_access_to_rows(tmp_path, shape):
    """Tables are cut into strips of whole rows, and nothing that joins rows is used on them."""
    state = {"table": alike(*shape), "matrix": weights(300, 400)}
    sizes = {}
    for access in ("tensor", "rows"):
        nnc.compress(state, tmp_path / access, bits=4, access=access)
        full = nnc.load(tmp_path / access)
        sizes[access] = {tensor.name: tensor.bytes for tensor in nnc.inspect(tmp_path / access).tensors}
        with nnc.open(tmp_path / access) as archive:
            assert torch.equal(archive.tensor("table", rows=[5, shape[0] - 1, 5]), full["table"][[5, shape[0] - 1, 5]])
            if access == "rows":
                coding, storage = archive.record("table").coding, archive.files[0].storage
                before = storage.count
                archive.tensor("table", rows=shape[0] // 2)
                largest = max(coding.streams)
                assert storage.count - before <= largest and largest < 1.5 * 8 * max(4096, shape[1]) and not coding.tools.memory
    with pytest.raises(InvalidArgument, match="access 'columns': must be one of tensor, rows"):
        nnc.compress(state, tmp_path / "x", bits=4, access="columns")


def test_slices_have_the_interface_of_safetensors(file, full, tmp_path):
    from safetensors import safe_open

    plain = {name: full[name].contiguous() for name in ("plain.weight", "four", "bias", "counter", "scalar", "bfloat")}
    save_file(plain, tmp_path / "dense.safetensors")
    with safe_open(tmp_path / "dense.safetensors", "pt") as dense, nnc.open(file) as archive:
        for name in plain:
            ours, theirs = archive.get_slice(name), dense.get_slice(name)
            assert ours.get_shape() == theirs.get_shape() and ours.get_dtype() == theirs.get_dtype()
            assert torch.equal(ours[...], theirs[...])
        for name, places in {"plain.weight": (slice(2, 9), (slice(2, 9), slice(0, 3)), (slice(None), slice(5, 6))),
                             "four": ((slice(0, 1), slice(1, 3), slice(4, 9)),)}.items():
            for place in places:
                assert torch.equal(archive.get_slice(name)[place], dense.get_slice(name)[place])
        part = archive.get_slice("four")
        for place in ((1, 2, slice(0, 5)), (..., 3), ([0, 1], 2), None, (slice(None), None), torch.tensor([True, False])):
            assert torch.equal(part[place], full["four"][place]), place
        assert archive.get_slice("scalar")[()] == full["scalar"]


def test_an_archive_is_a_mapping_of_names(file, full):
    with nnc.open(file) as archive:
        assert archive.keys() == list(full) == list(archive) and len(archive) == len(full)
        assert "bias" in archive and "other" not in archive


def test_file_objects(file, full):
    class Remote(io.RawIOBase):
        """Returns few bytes at a time, as sockets do."""

        def __init__(self, data: bytes) -> None:
            self.data, self.place, self.reads = data, 0, 0

        def seekable(self):
            return True

        def seek(self, offset, whence=0):
            self.place = offset if whence == 0 else (self.place if whence == 1 else len(self.data)) + offset
            return self.place

        def read(self, size=-1):
            part = self.data[self.place : self.place + min(size, 1000)]
            self.place += len(part)
            self.reads += 1
            return part

    remote = Remote(file.read_bytes())
    with nnc.open(remote) as archive:
        assert torch.equal(archive.tensor("table.weight", rows=3), full["table.weight"][3])
        assert torch.equal(archive.tensor("plain.weight"), full["plain.weight"])
    assert not remote.closed, "it belongs to the caller"
    with open(file, "rb") as opened, nnc.open(opened) as archive:
        assert torch.equal(archive.tensor("bias"), full["bias"])


def test_shards_and_ties(tmp_path):
    shared = weights(300, 300)
    state = {"a.weight": shared, "b.weight": weights(300, 300, seed=5), "c.weight": shared}
    nnc.compress(state, tmp_path / "out", bits=4, shard_bytes=40_000)
    full = nnc.load(tmp_path / "out")
    with nnc.open(tmp_path / "out") as archive:
        assert len(archive.files) > 1 and archive.keys() == ["a.weight", "b.weight", "c.weight"]
        for name in state:
            assert torch.equal(archive.tensor(name, rows=[17, 3]), full[name][[17, 3]])
    shard = sorted((tmp_path / "out").glob("*.safetensors"))[0]
    with open(shard, "rb") as opened, pytest.raises(InvalidArgument, match="one of .* shards: open the folder"):
        nnc.open(opened)


def test_references(tmp_path):
    base = {"w.weight": weights(300, 300), "v.weight": weights(64, 64), "b": weights(300)}
    tuned = {"w.weight": base["w.weight"] + 0.1 * weights(300, 300, seed=9), "v.weight": base["v.weight"], "b": base["b"]}
    nnc.compress(base, tmp_path / "base.safetensors", bits=6)
    nnc.compress(tuned, tmp_path / "delta.safetensors", bits=3, reference=tmp_path / "base.safetensors")
    full = nnc.load(tmp_path / "delta.safetensors")
    with nnc.open(tmp_path / "delta.safetensors") as archive:
        for name in tuned:
            assert torch.equal(archive.tensor(name), full[name]) and torch.equal(archive.tensor(name, rows=5), full[name][5])


def test_threads_read_at_once(file, full):
    with nnc.open(file, threads=2) as archive:
        failed = []

        def read(number: int) -> None:
            for step in range(20):
                name = list(full)[(number + step) % len(full)]
                if not torch.equal(archive.tensor(name), full[name]):
                    failed.append(name)

        threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failed


@pytest.mark.parametrize("name, rows, message", [
    ("plain.weight", 300, "tensor 'plain.weight': row 300, it has 300 rows"),
    ("plain.weight", [0, -301], "row -301, it has 300 rows"),
    ("plain.weight", 1.5, "rows must be a number, a slice, a range or a list of numbers"),
    ("plain.weight", [[1]], "rows must be"), ("plain.weight", "ab", "rows must be"), ("plain.weight", [True, False], "rows must be"),
    ("plain.weight", slice("a", None), "rows slice"),
    ("scalar", 0, "tensor 'scalar' has no axes: read it without rows"),
    ("other", None, "no tensor 'other' in this file"), ("other", 1, "no tensor 'other' in this file"),
])
def test_wrong_rows(file, name, rows, message):
    with nnc.open(file) as archive, pytest.raises(InvalidArgument, match=message):
        archive.tensor(name, rows=rows)


def test_what_cannot_be_opened(tmp_path, file):
    class Pipe(io.BytesIO):
        def seekable(self):
            return False

    for source, message in ((tmp_path / "none", "no such file"), (3, "int is neither a path nor a seekable binary file"),
                            (Pipe(b"x"), "cannot seek"), (io.StringIO("text"), "opened as text"),
                            (tmp_path, f"no {FILE_NAME}")):
        with pytest.raises(InvalidArgument, match=message):
            nnc.open(source)
    with pytest.raises(InvalidArgument, match="threads = 0"):
        nnc.open(file, threads=0)
    for data in (b"", b"1234567", b"\xff" * 100, file.read_bytes()[:5000]):
        with pytest.raises(Corruption):
            nnc.open(io.BytesIO(data))
    archive = nnc.open(file)
    archive.close()
    with pytest.raises(InvalidArgument, match="is closed: open it again"):
        archive.tensor("bias")


def test_a_file_that_changes_under_the_map(tmp_path, file, full):
    path = tmp_path / "copy.safetensors"
    path.write_bytes(file.read_bytes())
    archive = nnc.open(path)
    other = tmp_path / "other"
    other.write_bytes(b"something else")
    os.replace(other, path)  # renamed over: the map still has what was opened
    assert torch.equal(archive.tensor("plain.weight"), full["plain.weight"])
    path.unlink()
    assert torch.equal(archive.tensor("plain.weight", rows=4), full["plain.weight"][4])
    for change in (lambda: path.write_bytes(b"short"), lambda: os.utime(path, (1, 1)), lambda: os.truncate(path, 100)):
        path.write_bytes(file.read_bytes())
        archive = nnc.open(path)
        assert torch.equal(archive.tensor("bias"), full["bias"])
        change()
        for rows in (None, 2):
            with pytest.raises(Corruption, match="changed since it was opened"):
                archive.tensor("plain.weight", rows=rows)


def test_damage_in_what_is_read(file, full):
    """Rows have no checksum of their own; the streams do not end where they should."""
    data, found = bytearray(file.read_bytes()), 0
    container = open_file(file)
    for name in ("plain.weight", "table.weight"):
        with nnc.open(file) as archive:
            place, coding = archive._places[name], archive.record(name).coding
        start = container.places[place.index][0] + place.at
        for at in range(start, start + coding.length, coding.length // 23):
            damaged = bytearray(data)
            damaged[at] ^= 0x10
            with nnc.open(io.BytesIO(damaged)) as archive:
                try:
                    rows = archive.tensor(name)
                except Corruption:
                    found += 1
                for row in range(0, len(full[name]), len(full[name]) // 5):
                    try:
                        rows = archive.tensor(name, rows=row)
                    except Corruption:
                        continue
                    assert torch.equal(rows, full[name][row]), (name, at, row)
    assert found >= 46


@pytest.mark.slow
def test_checksums_of_parts_are_as_the_page_says(file, tmp_path):
    """In golden files and in this one, read by the slow decoder; `nnc verify` finds one that does not hold."""
    from reference_decoder.checkpoint import open_shard
    from reference_decoder.coded import parts_hold

    several = 0
    for path in (*sorted((Path(__file__).parent / "golden").glob("*.safetensors")), file):
        directory, data = open_shard(path)
        for unit, stored in zip(directory.units, data):
            at = 0
            for record in unit.records:
                if record.coding and len(record.coding.lengths) > 1 and not record.joined:
                    assert parts_hold(record, stored[at : at + record.stored]), (path, record.name)
                    several += 1
                at += record.stored
        if directory.shards == 1 and not directory.reference:
            nnc.verify(path)
    assert several > 5
    with nnc.open(file) as archive:
        place, coding = archive._places["plain.weight"], archive.record("plain.weight").coding
        begin = place.file.places[place.index][0]
    data = bytearray(file.read_bytes())
    data[begin + place.at + coding.length - 1] ^= 1
    with nnc.open(io.BytesIO(data)) as archive, pytest.raises(Corruption, match="checksum of CTU .* differs"):
        archive.tensor("plain.weight", rows=299)
    (tmp_path / "damaged.safetensors").write_bytes(data)
    with pytest.raises(Corruption, match="checksum differs"):
        nnc.verify(tmp_path / "damaged.safetensors")


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")
def test_pages_that_were_read_are_given_back(tmp_path):
    """What is mapped counts as memory of the process only while it is read; the system maps up to 64 kB on either side of what is asked for, too."""
    path = tmp_path / "t.safetensors"
    nnc.compress({f"w{n}": torch.randn(800, 500, generator=torch.Generator().manual_seed(n)) for n in range(8)}, path, bits=8, effort="fast")

    def mapped() -> int:
        lines = Path("/proc/self/smaps").read_text().splitlines()
        at = [number for number, line in enumerate(lines) if line.endswith(str(path))]
        return sum(1024 * int(next(line for line in lines[n:] if line.startswith("Rss:")).split()[1]) for n in at)

    with nnc.open(path) as file:
        for name in file.keys():
            file.tensor(name)
            assert mapped() <= 1 << 18
    assert path.stat().st_size > 3e6
