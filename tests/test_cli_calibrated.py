"""Bad input to `nnc compress` with data and to `nnc calibrate`: one line that names it, an exit code, and nothing left behind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nnc.__main__ import main

CODE = """
import torch
from torch import nn

def build(): return nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 5))
def raises(): raise RuntimeError("out of luck")
def silent(): raise ValueError
def leaves(): raise SystemExit(0)
def number(): return 3
def late():
    yield torch.zeros(2, 6)
    raise KeyError("later")
class Strict(nn.Sequential):
    def forward(self, x):
        assert x.shape[1] == 7, "seven wanted"
        return super().forward(x)
def strict(): return Strict(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 5))
"""
MODEL = ["--model", "net.py:build"]
DATA = ["-d", "x.npz", *MODEL]
COMPRESS = ["compress", "net.safetensors", "-o", "new.safetensors"]
CALIBRATE = ["calibrate", "net.safetensors"]


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 5))


def changed(array: np.ndarray, value: float) -> np.ndarray:
    result = array.copy()
    result[7, 2] = value
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A network, its code, data and statistics, and what is none of these."""
    here, before, threads = tmp_path_factory.mktemp("bad"), os.getcwd(), torch.get_num_threads()
    os.chdir(here)
    torch.set_num_threads(1)
    x = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    save_file(network().state_dict(), "net.safetensors")
    save_file(network(1).state_dict(), "other.safetensors")
    Path("net.py").write_text(CODE)
    Path("syntax.py").write_text("def build(:\n")
    Path("leaving.py").write_text("raise SystemExit('bye')\n")
    arrays = {
        "x": x,
        "wide": x[:, :5],
        "flat": x[:, 0],
        "scalar": np.float32(3),
        "none": x[:0],
        "words": np.array(["a", "b"]),
        "tokens": np.arange(100),
        "nan": changed(x, np.nan),
        "huge": changed(x.astype(np.float64), 1e60),
    }
    for name, array in arrays.items():
        np.savez(f"{name}.npz", x=array) if name != "tokens" else np.savez(f"{name}.npz", tokens=array)
    np.savez("objects.npz", x=np.array([{}], object))
    np.savez("named.npz", left=x, right=x)
    np.savez("nothing.npz")
    np.savez_compressed("packed.npz", x=x)
    packed = bytearray(Path("packed.npz").read_bytes())
    packed[100:140] = bytes(40)
    Path("damaged.npz").write_bytes(packed)
    np.save("header.npy", x)
    header = bytearray(Path("header.npy").read_bytes())
    header[20] = ord("(")
    Path("header.npy").write_bytes(header)
    Path("empty.npz").write_bytes(b"")
    Path("text.npz").write_text("some text")
    Path("text.txt").write_text("some text")
    Path("here").mkdir()
    for source, name in (("net", "stats"), ("other", "stats_of_other")):
        assert main(["calibrate", f"{source}.safetensors", *DATA, "-o", f"{name}.safetensors", "--quiet"]) == 0
    Path("cut.safetensors").write_bytes(Path("stats.safetensors").read_bytes()[:-100])
    assert main(["compress", "net.safetensors", "-o", "small.safetensors", "--quiet"]) == 0
    yield here
    os.chdir(before)
    torch.set_num_threads(threads)


def contents(folder: Path) -> dict[str, bytes | None]:
    files = [path for path in folder.rglob("*") if "__pycache__" not in path.parts]
    return {str(path): path.read_bytes() if path.is_file() else None for path in files}


@pytest.fixture
def refuse(folder, capsys):
    """Run a command that must fail with this code, print one line and leave all files as they were."""

    def call(code: int, argv: list[str]) -> str:
        before = contents(folder)
        capsys.readouterr()
        assert main(argv) == code
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.startswith("nnc: error: ") and captured.err.count("\n") == 1
        assert contents(folder) == before
        return captured.err

    return call


@pytest.mark.parametrize(
    "options, said",
    [
        (["--kl", "0.1"], "kl = 0.1 is predicted from calibration: give data or statistics, or ask for bits or snr"),
        (["--kl", "-1", *DATA], "kl = -1.0: must be a positive number"),
        (["--kl", "nan", *DATA], "kl = nan: must be a positive number"),
        (["--kl", "much"], "argument --kl: invalid float value: 'much'"),
        (["--tune"], "tune is given, but no data to use it with; give data or leave it out"),
        (["--tune", "--statistics", "stats.safetensors"], "tune is given, but no data to use it with"),
        (["--substitution", "none"], "substitution none needs calibration: give data or statistics, or leave it out"),
        (["--step", "0.1", *DATA], "leave out step, or data and statistics"),
        (["--step", "0.1", "--statistics", "stats.safetensors"], "leave out step, or data and statistics"),
        (["--samples", "0", *DATA], "samples = 0: must be 1 or more"),
        (["--samples", "-3", *DATA], "samples = -3: must be 1 or more"),
        (["--samples", "1.5", *DATA], "argument --samples: invalid int value: '1.5'"),
        (["--seed", "x", *DATA], "argument --seed: invalid int value: 'x'"),
        (["--seed", "-1", *DATA], "seed = -1: must be a whole number"),
        (["--memory", "0", *DATA], "argument --memory: '0' is 0 bytes: must be 1 to"),
        (["--threads", "0", *DATA], "threads = 0"),
        (["--rule", "no*=exact", *DATA], "rule 'no*' matches no tensor"),
        (["--option", "shape=7", "-d", "self", *MODEL], "option shape: the network does not run on samples of shape (7,)"),
        (["--model", "missing.py:build", "-d", "x.npz"], "'missing.py:build': no file"),
        (["--model", "net.py:missing", "-d", "x.npz"], "'net.py:missing': net.py has no function missing"),
        (
            ["--model", "net.py:raises", "-d", "x.npz"],
            "net.py:raises: raised RuntimeError: out of luck (net.py, line 6); mend it",
        ),
        (["--model", "net.py:silent", "-d", "x.npz"], "net.py:silent: raised ValueError (net.py, line 7); mend it"),
        (["--model", "net.py:leaves", "-d", "x.npz"], "net.py:leaves: raised SystemExit: 0 (net.py, line 8)"),
        (["--model", "net.py:number", "-d", "x.npz"], "net.py:number: returned a int, must return a torch.nn.Module"),
        (["--model", "net.py:strict", "-d", "x.npz"], "(seven wanted); check that data and model belong together"),
        (["--model", "syntax.py:build", "-d", "x.npz"], "syntax.py:build: raised SyntaxError"),
        (["--model", "leaving.py:build", "-d", "x.npz"], "leaving.py:build: raised SystemExit: bye (leaving.py, line 1)"),
        (["--model", "builtins:type", "-d", "x.npz"], "builtins:type: raised TypeError"),
        (["--model", "net.py", "-d", "x.npz"], "'net.py': not of the form module:function"),
        (["-d", "net.py:raises", *MODEL], "net.py:raises: raised RuntimeError: out of luck"),
        (["-d", "net.py:late", *MODEL], "net.py:late: raised KeyError: 'later' (net.py, line 12); mend it"),
        (["--task", "net.py:raises", *MODEL], "net.py:raises: raised RuntimeError: out of luck"),
        (["-d", "", *MODEL], "argument -d/--data: the name is empty"),
    ],
)
def test_options(refuse, options, said):
    assert said in refuse(2, [*COMPRESS, *options])


@pytest.mark.parametrize(
    "code, name, said",
    [
        (2, "missing.npz", "not found, check the name"),
        (2, "here", "is a folder, name a file"),
        (2, "empty.npz", "not a plain .npy or .npz file; write plain numbers with numpy.save"),
        (2, "text.npz", "not a plain .npy or .npz file; write plain numbers with numpy.save"),
        (2, "objects.npz", "not a plain .npy or .npz file (Object arrays"),
        (2, "damaged.npz", "not a plain .npy or .npz file (Error"),
        (2, "header.npy", "not a plain .npy or .npz file ("),
        (2, "nothing.npz", "no array images or x; it has nothing"),
        (2, "named.npz", "no array images or x; it has left, right"),
        (2, "wide.npz", "does not run on batch 0 with inputs (32, 5)"),
        (2, "flat.npz", "shape of the images is (40,), must be (n, ...)"),
        (2, "scalar.npz", "a single number is no sample"),
        (5, "none.npz", "no images, shape is (0, 6)"),
        (2, "words.npz", "must be uint8 or floating point"),
        (2, "tokens.npz", "check that data and model belong together"),
        (2, "nan.npz", "sample 7 holds NaN or Inf, as float32; remove it"),
        (2, "huge.npz", "sample 7 holds NaN or Inf, as float32; remove it"),
        (2, "text.txt", "text needs the option tokenizer"),
    ],
)
def test_data_files(refuse, code, name, said):
    for command in (COMPRESS, [*CALIBRATE, "-o", "new.safetensors"]):
        assert said in refuse(code, [*command, "-d", name, *MODEL])


@pytest.mark.parametrize(
    "code, name, said",
    [
        (2, "missing.safetensors", "there is no such file of statistics; make it with nnc calibrate"),
        (2, "here", "is a folder; statistics are one .safetensors file"),
        (2, "net.safetensors", "not a file of statistics; name another"),
        (
            4,
            "cut.safetensors",
            "or a damaged one (Error while deserializing header: incomplete metadata, file not fully covered)",
        ),
        (4, "x.npz", "not a file of statistics, or a damaged one"),
        (2, "stats_of_other.safetensors", "calibrate anew"),
        (2, "", "argument --statistics: the name is empty"),
    ],
)
def test_statistics_to_read(refuse, code, name, said):
    assert said in refuse(code, [*COMPRESS, "--statistics", name])


@pytest.mark.parametrize(
    "code, name, said",
    [
        (2, "none/stats.safetensors", "none does not exist; make it first"),
        (2, "here", "is a folder; statistics are one .safetensors file"),
        (2, "net.safetensors", "not a file of statistics; name another"),
        (4, "cut.safetensors", "calibrate anew, to another file"),
        (2, "stats_of_other.safetensors", "holds statistics of another model"),
        (2, "", "the name is empty"),
    ],
)
def test_statistics_to_write(refuse, code, name, said):
    for command in ([*CALIBRATE, "-o", name], [*COMPRESS, "--statistics", name]):
        assert said in refuse(code, [*command, *DATA])


def test_statistics_are_kept_apart_from_the_output(refuse):
    for more in (["--statistics", "new.safetensors", *DATA], ["--statistics", "stats.safetensors", "-o", "stats.safetensors"]):
        assert "would replace the statistics" in refuse(2, [*COMPRESS, *more, "--overwrite"])


@pytest.mark.parametrize(
    "name, said",
    [
        ("small.safetensors", "small.safetensors exists; pass overwrite=True / --overwrite"),
        ("here", "here exists; pass overwrite=True / --overwrite"),
        ("none/new.safetensors", "none does not exist; make it first"),
        ("new.pt", "a compressed checkpoint is a .safetensors file or a folder"),
        ("", "argument -o/--output: the name is empty"),
    ],
)
def test_destinations(refuse, name, said):
    for more in ([], DATA):
        assert said in refuse(2, ["compress", "net.safetensors", "-o", name, *more])


def test_nothing_is_computed_for_an_output_that_is_refused(refuse, monkeypatch):
    """A long calibration is not thrown away for what could be told at once."""
    monkeypatch.setattr("nnc.calibrated.gather", None)
    for more in (
        ["-o", "new.pt"],
        ["--threads", "0"],
        ["--shard-size", "1MB"],
        ["--rule", "no*=exact"],
        ["-o", "small.safetensors"],
    ):
        refuse(2, [*COMPRESS, *DATA, *more])
    assert "compressed already" in refuse(2, ["compress", "small.safetensors", "-o", "new.safetensors", *DATA])
    monkeypatch.setattr("nnc.checkpoint.paths.os.access", lambda *_: False)
    for command in (COMPRESS, [*CALIBRATE, "-o", "new.safetensors"], [*COMPRESS, "--statistics", "more.safetensors"]):
        assert "must not be written to; choose another" in refuse(2, [*command, *DATA])


def test_a_full_disk_leaves_nothing(refuse, monkeypatch):
    from safetensors import SafetensorError

    def full(arrays, path, metadata):
        Path(path).write_bytes(b"half")
        raise SafetensorError('Error while serializing: I/O error: No space left on device (os error 28) at path ".tmpX"')

    monkeypatch.setattr("nnc.calibration.statistics.save_file", full)
    assert "new.safetensors: No space left on device\n" in refuse(2, [*CALIBRATE, "-o", "new.safetensors", *DATA])


@pytest.mark.parametrize(
    "options", [["--samples", "1"], ["--samples", "1", "--kl", "0.01"], ["--samples", "1", "--tune"]], ids=" ".join
)
def test_one_sample_is_enough(folder, tmp_path, capsys, options):
    """There is nothing to measure with, and the summary says so."""
    capsys.readouterr()
    assert main(["compress", "net.safetensors", "-o", str(tmp_path / "o.safetensors"), *DATA, *options, "--json"]) == 0
    captured = capsys.readouterr()
    data = json.loads(captured.out)
    assert captured.err == "" and data["measured_divergence"] is None and data["predicted_divergence"] > 0
    assert any("the divergence is not measured" in note for note in data["notes"])
