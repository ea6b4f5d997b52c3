"""Training runs: members predict each other, any one decodes alone from its key frame, and bad input leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import nnc
from nnc.__main__ import main
from nnc.errors import InvalidArgument
from nnc.runs import sort_members


@pytest.fixture
def epochs(tmp_path):
    """Ten checkpoints that drift."""
    rng = np.random.default_rng(0)
    state = {"a": rng.standard_normal((48, 64)), "b": rng.standard_normal((10, 48)), "bias": rng.standard_normal(48)}
    folder = tmp_path / "epochs"
    folder.mkdir()
    paths = []
    for number in range(1, 11):
        state = {name: value + 0.02 * rng.standard_normal(value.shape) for name, value in state.items()}
        paths.append(folder / f"epoch-{number}.safetensors")
        save_file({name: torch.from_numpy(value.astype(np.float32)) for name, value in state.items()}, paths[-1])
    return paths


def reads_of(path: Path, monkeypatch) -> list[str]:
    """Names of the compressed files that are opened to load one."""
    from nnc import archive

    opened: list[str] = []
    original = archive.open_file
    monkeypatch.setattr(archive, "open_file", lambda shard: opened.append(shard.name) or original(shard))
    nnc.load(path)
    monkeypatch.undo()
    return opened


def test_members_and_key_frames(tmp_path, epochs, monkeypatch):
    run = nnc.compress_run(epochs, tmp_path / "run", key_every=4, snr=50)
    assert run.names == tuple(path.name for path in epochs)
    assert run.keys == ("epoch-1.safetensors", "epoch-5.safetensors", "epoch-9.safetensors")
    sizes = {name: (tmp_path / "run" / name).stat().st_size for name in run.names}
    assert sum(sizes.values()) == run.file_bytes < 0.3 * run.original_bytes
    keys = [sizes[name] for name in run.keys]
    assert max(size for name, size in sizes.items() if name not in run.keys) < 0.65 * min(keys)
    assert reads_of(tmp_path / "run" / "epoch-8.safetensors", monkeypatch) == [f"epoch-{n}.safetensors" for n in (8, 7, 6, 5)]
    assert reads_of(tmp_path / "run" / "epoch-5.safetensors", monkeypatch) == ["epoch-5.safetensors"]


@pytest.mark.slow
def test_errors_do_not_add_up(tmp_path, epochs):
    run = nnc.compress_run(epochs, tmp_path / "run", key_every=10, snr=40)
    assert len(run.keys) == 1
    for path in (epochs[1], epochs[-1]):
        state, decoded = load_file(path), nnc.load(tmp_path / "run" / path.name)
        error = sum(float((state[n] - decoded[n]).double().square().sum()) for n in "ab")
        energy = sum(float(state[n].double().square().sum()) for n in "ab")
        assert abs(10 * np.log10(energy / error) - 40) < 0.1


def test_lossless_run(tmp_path, epochs):
    nnc.compress_run(epochs, tmp_path / "run", lossless=True)
    for path in epochs:
        state, decoded = load_file(path), nnc.load(tmp_path / "run" / path.name)
        assert all(torch.equal(state[name], decoded[name]) for name in state)


def test_missing_key_frame_is_named(tmp_path, epochs):
    nnc.compress_run(epochs[:4], tmp_path / "run", snr=30)
    (tmp_path / "run" / "epoch-1.safetensors").unlink()
    with pytest.raises(
        InvalidArgument, match="epoch-2.safetensors: needs its reference 'epoch-1.safetensors', which is not beside it"
    ):
        nnc.load(tmp_path / "run" / "epoch-4.safetensors")


def test_folders_keep_their_side_files(tmp_path, epochs):
    folders = []
    for number, path in enumerate(epochs[:3], 8):
        folders.append(tmp_path / "hf" / f"epoch-{number}")
        folders[-1].mkdir(parents=True)
        (folders[-1] / "config.json").write_text("{}")
        path.rename(folders[-1] / "model.safetensors")
    run = nnc.compress_run(sorted(folders), tmp_path / "run", snr=30)
    assert run.names == ("epoch-8", "epoch-9", "epoch-10")
    assert (tmp_path / "run" / "epoch-10" / "config.json").is_file()
    assert nnc.load(tmp_path / "run" / "epoch-10").keys() == {"a", "b", "bias"}


def test_order_of_members():
    names = [Path(f"e-{n}.pt") for n in (1, 10, 2, 9)]
    assert [path.name for path in sort_members(names)] == ["e-1.pt", "e-2.pt", "e-9.pt", "e-10.pt"]
    chosen = [Path("b.pt"), Path("a.pt"), Path("c.pt")]
    assert sort_members(chosen) == chosen  # somebody's own order
    assert sort_members([Path("a"), Path("a1"), Path("b")]) == [Path("a"), Path("a1"), Path("b")]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"key_every": 0}, "key_every = 0: must be a whole number, 1 or more"),
        ({"reference": "x"}, "reference is for one checkpoint"),
        ({"statistics": "x"}, "statistics is for one checkpoint"),
        ({"destination": "run.safetensors"}, "become a folder: name one"),
        ({"twice": True}, "two members would be called epoch-1.safetensors"),
        ({"absent": True}, "absent.safetensors does not exist"),
        ({"empty": True}, "no checkpoints to compress"),
        ({"damaged": True}, "epoch-2.safetensors"),
    ],
)
def test_bad_input_leaves_nothing(tmp_path, epochs, change, message):
    sources, destination = epochs[:3], tmp_path / change.pop("destination", "run")
    if change.pop("twice", False):
        (tmp_path / "other").mkdir()
        sources = [*sources, Path(sources[0]).rename(tmp_path / "other" / sources[0].name), sources[0]]
        save_file({"a": torch.zeros(2)}, sources[0])
    if change.pop("absent", False):
        sources = [*sources, tmp_path / "absent.safetensors"]
    if change.pop("empty", False):
        sources = []
    if change.pop("damaged", False):
        sources[1].write_bytes(sources[1].read_bytes()[:-5])
    with pytest.raises(nnc.NncError, match=message):
        nnc.compress_run(sources, destination, **change)
    assert {path.name for path in tmp_path.iterdir()} <= {"epochs", "other"}


class TestCommandLine:
    def run(self, capsys, *arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    def test_run_and_delta(self, tmp_path, epochs, capsys):
        code, out, err = self.run(
            capsys, "compress", *epochs[:3], "-o", tmp_path / "run", "--snr", 40, "--key-every", 2, "--json"
        )
        assert code == 0, err
        members = json.loads(out)["members"]
        assert [member["key"] for member in members] == [True, False, True]
        code, out, _ = self.run(capsys, "info", tmp_path / "run" / "epoch-2.safetensors")
        assert code == 0 and "reference" in out and "epoch-1.safetensors" in out and "predicted" in out
        delta = tmp_path / "delta.safetensors"
        code, out, _ = self.run(capsys, "compress", epochs[4], "-o", delta, "--reference", epochs[3], "--lossless", "--json")
        assert code == 0 and sorted(json.loads(out)["predicted"]) == ["a", "b", "bias"]
        code, _, err = self.run(capsys, "verify", delta)
        assert code == 2 and err.count("\n") == 1 and "needs its reference 'epoch-4.safetensors'" in err
        assert self.run(capsys, "verify", delta, "--reference", epochs[3])[0] == 0
        code, _, err = self.run(capsys, "decompress", delta, "-o", tmp_path / "back.safetensors", "--reference", epochs[2])
        assert code == 2 and "not what it was" in err and not (tmp_path / "back.safetensors").exists()
        assert self.run(capsys, "decompress", delta, "-o", tmp_path / "back.safetensors", "--reference", epochs[3])[0] == 0
        before, after = load_file(epochs[4]), load_file(tmp_path / "back.safetensors")
        assert all(torch.equal(before[name], after[name]) for name in before)

    @pytest.mark.parametrize(
        "arguments, message",
        [
            (("--key-every", "3"), "--key-every is for several checkpoints"),
            (("--lossless", "--bits", "3"), "lossless keeps every value, bits asks for a loss"),
            (("--reference", "nowhere"), "nowhere: there is no such reference"),
        ],
    )
    def test_wrong_options(self, tmp_path, epochs, capsys, arguments, message):
        code, out, err = self.run(capsys, "compress", epochs[0], "-o", tmp_path / "x.safetensors", *arguments)
        assert code == 2 and out == "" and err.count("\n") == 1 and message in err
        assert not (tmp_path / "x.safetensors").exists()
