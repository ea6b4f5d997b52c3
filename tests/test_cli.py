"""The command line: what it prints where, exit codes, and that nothing half-written stays behind."""
from __future__ import annotations

import ast
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from argparse import ArgumentTypeError, Namespace, _SubParsersAction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import nnc
from nnc.__main__ import main, make_parser
from nnc.commands.options import parse_size
from nnc.commands.progress import show_progress
from nnc.config import DEFAULT_SNR, make_config
from nnc.evaluation.models import find_function

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "examples" / "digits_cnn.safetensors"
CODE = ROOT / "examples" / "digits_cnn.py"
ENCODING = {"--effort", "--states", "--labelling", "--lagrangian", "--tools", "--access", "--entropy", "--config", "--rule"}
CHOSEN = {"--task", "--data", "--model", "--option", "--device"}
DATA = {"-d", "--data", "--task", "--model", "--option", "--kind", "--samples", "--seed", "--memory"}
WRITING = {"-o", "--output", "--threads", "--overwrite", "--quiet", "--json"}
OPTIONS = {
    "compress": {*WRITING, *ENCODING, "--bits", "--size", "--snr", "--step", "--kl", "--weights-key",
                 "--shard-size", *DATA, "--statistics", "--substitution", "--tune", "--lossless", "--reference", "--key-every"},
    "calibrate": {*DATA, "-o", "--output", "--draws", "--weights-key", "--quiet", "--json"},
    "decompress": {*WRITING, "--reference"},
    "verify": {"--reference", "--threads", "--quiet", "--json"},
    "info": {"--sort", "--statistics", "--original", "--tree", "-o", "--output", "--json"},
    "eval": {*CHOSEN, "--original", "--layers", "--statistics", "--per-tensor", "--quiet", "--json"},
    "sweep": {*CHOSEN, *ENCODING, "--bits", "--threads", "-o", "--output", "--no-plot", "--quiet", "--json"},
}
NET = """
import numpy as np
from torch import nn
from nnc.evaluation import classification

def build():
    return nn.Sequential(nn.Linear(16, 40), nn.ReLU(), nn.Linear(40, 4))

def task(batch="8"):
    rng = np.random.default_rng(0)
    return classification(rng.standard_normal((30, 16)).astype(np.float32), rng.integers(0, 4, 30), batch=batch, name="tiny")
"""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """The digits at 3 bits."""
    path = tmp_path_factory.mktemp("small") / "digits.safetensors"
    nnc.compress(DIGITS, path, bits=3)
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A folder with net.safetensors of random weights, small.safetensors, and net.py with its model and task."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    save_file({"0.weight": torch.randn(40, 16), "0.bias": torch.randn(40), "2.weight": torch.randn(4, 40),
               "2.bias": torch.randn(4)},
              folder / "net.safetensors")
    nnc.compress(folder / "net.safetensors", folder / "small.safetensors", snr=30)
    (folder / "net.py").write_text(NET)
    return folder


def net(folder: Path) -> list[str]:
    """The options that name the task and the model of `tiny`."""
    return ["--task", f"{folder / 'net.py'}:task", "--model", f"{folder / 'net.py'}:build"]


@pytest.fixture
def run(capsys):
    """Run a command that must succeed; what it printed on stdout."""
    def call(*argv: object) -> str:
        assert main([str(part) for part in argv]) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        return captured.out
    return call


@pytest.fixture
def refuse(capsys):
    """Run a command that must fail with this code; its one line on stderr."""
    def call(code: int, *argv: object) -> str:
        assert main([str(part) for part in argv]) == code
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.startswith("nnc: error: ") and captured.err.count("\n") == 1
        assert captured.err.endswith("\n")
        return captured.err
    return call


# ------------------------------------------------------------------------------------------------------- help and usage

@pytest.mark.parametrize("command", OPTIONS)
def test_help_explains_every_option(run, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    parser = next(action for action in make_parser()._actions if isinstance(action, _SubParsersAction)).choices[command]
    assert {name for action in parser._actions for name in action.option_strings} == OPTIONS[command] | {"-h", "--help"}
    assert all(action.help and not re.search(r"\b(TODO|FIXME)\b", action.help) for action in parser._actions)
    text = run(command, "--help")
    assert all(re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text) for name in OPTIONS[command])
    assert f"  nnc {command} " in text, "an example"
    assert max(map(len, text.splitlines())) <= 110


def test_overview_and_version(run):
    text = run("--help")
    assert f"default: --snr {DEFAULT_SNR:g}," in run("compress", "--help")
    assert all(re.search(rf"^    {command}\b", text, re.MULTILINE) for command in OPTIONS) and "exit codes" in text
    assert run("--version") == f"nnc {nnc.__version__}\n"


@pytest.mark.parametrize("argv, said", [
    ([], "COMMAND"), (["shrink"], "invalid choice: 'shrink'"), (["compress"], "SOURCE, -o/--output"),
    (["compress", "a", "-o", "b", "--bit", "3"], "--bit 3"),
    (["compress", "a", "-o", "b", "--bits", "3", "--size", "3MB"], "not allowed with"),
    (["compress", "a", "-o", "b", "--bits", "many"], "invalid float value: 'many'"),
    (["compress", "a", "-o", "b", "--quiet", "--json"], "not allowed with"),
    (["compress", "a", "-o", "b", "--size", "3 apples"], "'3 apples' is no size"),
    (["info", "a", "--sort", "colour"], "invalid choice: 'colour'"),
    (["sweep", "a", "--task", "t", "--bits", "2;3"], "'2;3' is no list of numbers"),
    (["eval", "a", "--task", "t", "--option", "batch"], "'batch' is no option"), (["verify"], "PATH"),
])
def test_wrong_usage_is_one_line_that_points_to_the_help(refuse, argv, said):
    line = refuse(2, *argv)
    assert said in line and re.search(r": see nnc( \w+)? --help$", line.rstrip())


@pytest.mark.parametrize("options, said", [
    (["--bits", "nan"], "bits = nan"), (["--bits", "-1"], "bits = -1.0"), (["--bits", "0.001"], "0.001"),
    (["--snr", "inf"], "snr = inf"), (["--step", "0"], "step = 0.0"),
    (["--effort", "huge"], "fast, default, high, max"), (["--states", "5"], "number of states = 5"),
    (["--labelling", "odd"], "labelling 'odd'"),
    (["--lagrangian", "-3"], "lagrangian = -3.0"), (["--tools", "hammer"], "hammer"), (["--access", "columns"], "columns"), (["--entropy", "odd"], "entropy 'odd'"), (["--threads", "0"], "threads = 0"), (["--rule", "conv*"], "conv*"),
    (["--rule", "conv*=finer:much"], "GLOB=exact"), (["--rule", "conv*=vanish"], "vanish"),
    (["--rule", "nothing*=exact"], "'nothing*' matches no tensor"), (["--config", "nowhere.toml"], "nowhere.toml"),
    (["--weights-key", "model"], "weights_key"),
    (["--shard-size", "1MB"], "--shard-size splits a folder"),
])
def test_options_of_compress_are_checked(refuse, tmp_path, options, said):
    assert said in refuse(2, "compress", DIGITS, "-o", tmp_path / "out.safetensors", *options)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("text, size", [
    ("1", 1), ("50000", 50_000), ("50000B", 50_000), ("500kB", 500_000), ("500KB", 500_000), ("2 MB", 2_000_000),
    ("1.1MB", 1_100_000), ("1.5MiB", 1_572_864), ("0.0015kB", 1), ("5GB", 5 * 10**9), ("3gib", 3 * 2**30), ("1TiB", 2**40),
])
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "kB", "-1", "1e6", "1,000", "1.MB", ".5MB", "5 apples", "5M", "0", "0.5B", "9999999999TB",
                                  "9" * 5000, "\u0663MB", "5MB\n", "nan"])
def test_what_is_no_size(text):
    with pytest.raises(ArgumentTypeError, match="write bytes|must be 1 to"):
        parse_size(text)


# ------------------------------------------------------------------------------------------- compress, decompress, verify

def test_compress_says_what_it_did(run, refuse, tmp_path):
    out = tmp_path / "out.safetensors"
    text = run("compress", DIGITS, "-o", out, "--bits", "3", "--threads", "1")
    labels = [line.split("  ")[0] for line in text.splitlines()]
    assert labels == ["source", "output", "bytes", "bits/weight", "weights SNR", "seconds"]
    assert f"539,856 -> {out.stat().st_size:,}, ratio " in text and "33 tensors" in text and str(DIGITS) in text
    assert str(out) in text
    before = out.read_bytes()
    assert "exists" in refuse(2, "compress", DIGITS, "-o", out) and out.read_bytes() == before
    assert run("compress", DIGITS, "-o", out, "--overwrite", "--quiet") == "" and out.read_bytes() != before


@pytest.mark.parametrize("options, check", [
    (["--bits", "2"], lambda s: 1.9 < s["bits_per_weight"] <= 2),
    (["--size", "60kB"], lambda s: 59_000 < s["file_bytes"] <= 60_000),
    (["--snr", "30"], lambda s: abs(s["snr_db"] - 30) < 0.1), (["--step", "0.02"], lambda s: s["factor"] == 0.02),
    ([], lambda s: abs(s["snr_db"] - DEFAULT_SNR) < 0.1),
])
def test_targets(run, tmp_path, options, check):
    data = json.loads(run("compress", DIGITS, "-o", tmp_path / "o.safetensors", "--json", *options))
    assert check(data) and data["file_bytes"] == (tmp_path / "o.safetensors").stat().st_size
    assert list(data) == ["source", "output", "files", "original_bytes", "file_bytes", "ratio", "parameters", "tensors",
                          "bits_per_weight", "snr_db", "factor", "kept_exact", "left_out", "kind", "calibrated_on",
                          "predicted_divergence", "measured_divergence", "reference", "same", "predicted", "unseen", "notes", "seconds"]


@pytest.mark.slow
def test_encoding_options_reach_the_file(run, tmp_path):
    out = tmp_path / "o.safetensors"
    run("compress", DIGITS, "-o", out, "--states", "16", "--labelling", "sign-symmetric", "--lagrangian", "0.3",
        "--rule", "*.bias=exact", "--rule", "conv1*=skip", "--rule", "hidden.weight=finer:3", "--step", "0.01", "--quiet")
    tensors = {tensor.name: tensor for tensor in nnc.inspect(out).tensors}
    assert tensors["conv2.weight"].states == 16 and tensors["conv2.weight"].labelling == "sign-symmetric"
    assert tensors["hidden.bias"].kind == "exact"
    assert tensors["conv1.weight"].kind == "plain" and tensors["hidden.weight"].step == pytest.approx(0.01 / 3)
    sizes = {}
    for lagrangian in ("0.05", "0.3"):
        sizes[lagrangian] = json.loads(run("compress", DIGITS, "-o", out, "--step", "0.01", "--lagrangian", lagrangian,
                                           "--overwrite", "--json"))["file_bytes"]
    assert sizes["0.05"] > sizes["0.3"]
    assert json.loads(run("compress", DIGITS, "-o", out, "--step", "0.01", "--lagrangian", "0.3", "--entropy", "context", "--overwrite",
                          "--json"))["file_bytes"] <= sizes["0.3"]


def test_what_is_kept_and_what_is_left_out(run, tmp_path):
    torch.manual_seed(0)
    broken = torch.randn(40, 40)
    broken[3, 3] = float("nan")
    torch.save({"model": {"good": torch.randn(40, 40), "broken": broken}, "optimizer": {"momentum": torch.zeros(40)}},
               tmp_path / "net.pt")
    text = run("compress", tmp_path / "net.pt", "-o", tmp_path / "o", "--weights-key", "model")
    assert "kept exact   1 for NaN or Inf: broken" in text and "left out     1 of the source: optimizer" in text
    data = json.loads(run("compress", tmp_path / "net.pt", "-o", tmp_path / "o", "--weights-key", "model", "--overwrite",
                          "--json"))
    assert data["kept_exact"] == ["broken"] and "optimizer" in data["left_out"][0]
    save_file({"broken": broken}, tmp_path / "broken.safetensors")
    data = json.loads(run("compress", tmp_path / "broken.safetensors", "-o", tmp_path / "b.safetensors", "--json", "--snr", "30"))
    assert data["snr_db"] is None, "nothing was quantized: Inf, which JSON lacks"
    assert "weights SNR  no error" in run("compress", tmp_path / "broken.safetensors", "-o", tmp_path / "b.safetensors",
                                          "--overwrite", "--snr", "30")


def test_folders_and_shards(run, tmp_path):
    (tmp_path / "net").mkdir()
    shutil.copy(DIGITS, tmp_path / "net" / "model.safetensors")
    (tmp_path / "net" / "notes.txt").write_text("kept")
    data = json.loads(run("compress", tmp_path / "net", "-o", tmp_path / "out", "--shard-size", "20kB", "--json"))
    assert len(data["files"]) > 3 and (tmp_path / "out" / "notes.txt").read_text() == "kept"
    text = run("info", tmp_path / "out")
    assert f"{len(data['files']) - 1} files" in text
    text = run("decompress", tmp_path / "out", "-o", tmp_path / "back")
    assert (tmp_path / "back" / "notes.txt").read_text() == "kept" and str(tmp_path / "back") in text
    assert load_file(tmp_path / "back" / "model.safetensors").keys() == load_file(DIGITS).keys()


def test_decompress_and_verify(run, refuse, small, tmp_path):
    data = json.loads(run("decompress", small, "-o", tmp_path / "a.safetensors", "--json", "--threads", "1"))
    assert list(data) == ["path", "output", "files", "file_bytes", "seconds"]
    assert data["file_bytes"] == (tmp_path / "a.safetensors").stat().st_size
    expected = nnc.load(small)
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], value) for name, value in expected.items())
    assert "bytes " in run("decompress", small, "-o", tmp_path / "a.pt")
    assert torch.load(tmp_path / "a.pt").keys() == expected.keys()
    assert "exists" in refuse(2, "decompress", small, "-o", tmp_path / "a.pt")
    assert run("decompress", small, "-o", tmp_path / "a.pt", "--overwrite", "--quiet") == ""
    assert run("verify", small) == f"{small}: 33 tensors are intact\n" and run("verify", small, "--quiet") == ""
    data = json.loads(run("verify", small, "--json"))
    assert list(data) == ["path", "tensors", "seconds"] and data["tensors"] == 33
    assert "threads = 0" in refuse(2, "verify", small, "--threads", "0")


# ----------------------------------------------------------------------------------------------------------------- info

def test_info(run, small):
    lines = run("info", small).splitlines()
    labels = [line.split("  ")[0] for line in lines[:7]]
    assert labels == ["path", "bytes", "bits/weight", "payload", "side information", "exact", "overhead"]
    assert lines[8].split() == ["name", "shape", "dtype", "kind", "step", "states", "bytes", "bits/weight", "SNR", "dB", "share"]
    rows = [line.split() for line in lines[9:]]
    assert [row[0] for row in rows] == [tensor.name for tensor in nnc.inspect(small).tensors]
    assert {len(row) for row in rows} == {10}
    by_name = {row[0]: row[1:] for row in rows}
    assert by_name["conv2.weight"][:3] == ["32x32x3x3", "float32", "coded"]
    assert by_name["norm1.num_batches_tracked"][:3] == ["scalar", "int64", "constant"]
    assert by_name["norm1.running_var"][2] == "logarithmic" and by_name["norm2.num_batches_tracked"][2] == "alias"
    assert sum(float(row[-1].rstrip("%")) for row in rows) == pytest.approx(98, abs=2)


def test_info_json(run, small):
    data = json.loads(run("info", small, "--json"))
    assert list(data) == ["path", "files", "origin", "reference", "original_bytes", "file_bytes", "ratio", "parameters", "bits_per_weight",
                          "payload_bytes", "side_bytes", "exact_bytes",
                          "overhead_bytes", "tensors"]
    assert list(data["tensors"][0]) == ["name", "shape", "dtype", "kind", "step", "states", "labelling", "ctus", "bytes",
                                        "bits_per_weight", "snr_db",
                                        "share", "tools"]
    parts = [data[f"{part}_bytes"] for part in ("payload", "side", "exact", "overhead")]
    assert sum(parts) == data["file_bytes"] == small.stat().st_size and min(parts) >= 0
    assert data["bits_per_weight"] == 8 * data["file_bytes"] / data["parameters"] and len(data["tensors"]) == 33


def test_info_sorts(run, small):
    def column(key: str, order: str) -> list:
        return [tensor[key] for tensor in json.loads(run("info", small, "--json", "--sort", order))["tensors"]]

    assert column("bytes", "size") == sorted(column("bytes", "name"), reverse=True)
    assert column("bits_per_weight", "bits") == sorted(column("bits_per_weight", "name"), reverse=True)
    assert column("name", "name") == sorted(column("name", "size"))
    assert run("info", small, "--sort", "size").splitlines()[9].startswith("hidden.weight ")


@pytest.mark.slow
def test_info_of_many_tensors_and_strange_names(run, tmp_path, monkeypatch):
    tensors = {f"model.decoder.layers.{index}.a_rather_long_name_of_a_part.{'x' * 60}.weight": torch.full((2, 2), index + 1.0)
               for index in range(1000)}
    save_file({**tensors, "evil\x1b[2J\nname": torch.zeros(2), "\u0394": torch.ones(3)}, tmp_path / "many.safetensors")
    nnc.compress(tmp_path / "many.safetensors", tmp_path / "o.safetensors", effort="fast")
    text = run("info", tmp_path / "o.safetensors", "--sort", "name")
    assert all(f"{name} " in text for name in tensors) and len(text.splitlines()) == 9 + 1002
    assert "evil\\x1b[2J\\nname " in text and "\x1b" not in text and "\u0394 " in text
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["info", str(tmp_path / "o.safetensors")]) == 0
    rows = terminal.getvalue().splitlines()[8:]
    assert len(rows) == 1003 and max(map(len, rows)) == 120 and any("..." in row and ".weight " in row for row in rows)
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", narrow)
    assert main(["info", str(tmp_path / "o.safetensors")]) == 0
    assert rb"\u0394 " in narrow.buffer.getvalue()


# ------------------------------------------------------------------------------------------------------- eval and sweep

REPORT = ["task", "metric", "value", "higher_is_better", "count", "finite", "reference_value", "fidelity", "layers", "notes",
          "seconds", "predicted", "tensors", "loss", "perplexity"]


def test_eval(run, small, tmp_path):
    example = find_function(f"{CODE}:write_data")
    example(tmp_path / "digits.npz")
    text = run("eval", small, "--task", "classification", "--data", tmp_path / "digits.npz", "--model", f"{CODE}:build",
               "--option", "batch=64", "--option", "limit=100", "--original", DIGITS, "--layers", "--device", "cpu")
    assert re.search(r"^top-1 %  \d+\.\d{4}$", text, re.MULTILINE) and "classification, 100 outputs" in text
    assert re.search(r"^lost     [+-]\d", text, re.MULTILINE) and re.search(r"^conv4 +Conv2d +0\.\d+$", text, re.MULTILINE)
    assert re.search(r"^KL nats  \S+ from the original, same first choice", text, re.MULTILINE)
    data = json.loads(run("eval", small, "--task", f"{CODE}:task", "--model", f"{CODE}:build", "--json"))
    assert list(data) == ["path", "original", *REPORT] and data["count"] == 599 and data["value"] > 97 and data["loss"] is None


def test_eval_without_a_reference_or_finite_outputs(run, tiny, tmp_path):
    text = run("eval", tiny / "small.safetensors", *net(tiny), "--quiet", "--option", "batch=7")
    assert [line.split("  ")[0] for line in text.splitlines()] == ["path", "task", "top-1 %"]
    save_file({**load_file(tiny / "net.safetensors"), "2.bias": torch.full((4,), torch.inf)}, tmp_path / "inf.safetensors")
    text = run("eval", tmp_path / "inf.safetensors", *net(tiny), "--original", tiny / "net.safetensors")
    assert "note     outputs of the model are not finite" in text
    data = json.loads(run("eval", tmp_path / "inf.safetensors", *net(tiny), "--json"))
    assert data["value"] is None and data["finite"] is False


@pytest.mark.parametrize("options, said", [
    (["--layers"], "original"), (["--option", "spec=1"], "use --task or --data"),
    (["--option", "data=1"], "use --task or --data"),
    (["--option", "a=1", "--option", "a=2"], "a is given twice"), (["--option", "colour=1"], "colour"),
    (["--device", "tpu9"], "device tpu9"), (["--original", "nowhere.pt"], "nowhere.pt"), (["--option", "batch=many"], "batch"),
])
def test_eval_refuses(refuse, tiny, options, said):
    assert said in refuse(2, "eval", tiny / "small.safetensors", *net(tiny), *options)


def test_eval_needs_a_task_and_a_model(refuse, tiny):
    np.savez(tiny / "images.npz", images=np.zeros((3, 16), np.float32), labels=np.zeros(3, np.int64))
    assert "'guess'" in refuse(2, "eval", tiny / "small.safetensors", "--task", "guess")
    assert "needs a data file" in refuse(2, "eval", tiny / "small.safetensors", "--task", "classification")
    assert "what to build" in refuse(2, "eval", tiny / "small.safetensors", "--task", "classification", "--data",
                                     tiny / "images.npz")


def test_sweep(run, tiny, tmp_path):
    pytest.importorskip("matplotlib")
    text = run("sweep", tiny / "net.safetensors", *net(tiny), "--bits", "5,8", "--effort", "fast", "-o", tmp_path / "s")
    assert text == (tmp_path / "s" / "sweep.md").read_text() and text.count("\n|") == 5
    assert sorted(os.listdir(tmp_path / "s")) == ["sweep.csv", "sweep.md", "sweep.png"]


def test_sweep_json(run, tiny, tmp_path):
    data = json.loads(run("sweep", tiny / "net.safetensors", *net(tiny), "--bits", "12", "-o", tmp_path / "t", "--no-plot",
                          "--json",
                          "--threads", "1", "--config", ROOT / "configs" / "small.toml", "--rule", "*.bias=exact"))
    assert list(data) == ["source", "task", "effort", "points", "files"] and data["effort"] == "high" and data["task"] == "tiny"
    assert sorted(data["files"]) == sorted(str(file) for file in (tmp_path / "t").iterdir()) and len(data["files"]) == 2
    assert [point["bits_asked"] for point in data["points"]] == [None, 12]
    assert list(data["points"][1]) == ["bits_asked", "file_bytes", "bits_per_weight", "ratio", "encode_seconds", "decode_seconds",
                                       "report"]
    assert list(data["points"][1]["report"]) == REPORT


def test_sweep_without_a_folder_only_prints(run, refuse, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = run("sweep", tiny / "net.safetensors", *net(tiny), "--bits", "6", "--effort", "fast", "--quiet")
    assert text.startswith("# net.safetensors, tiny\n") and os.listdir(tmp_path) == []
    assert "no tensor" in refuse(2, "sweep", tiny / "net.safetensors", *net(tiny), "--bits", "6", "--rule", "nothing=exact")
    assert "must be numbers > 0" in refuse(2, "sweep", tiny / "net.safetensors", *net(tiny), "--bits", "0")


# ---------------------------------------------------------------------------------------------------------------- configs

def test_every_example_config_is_tested():
    assert sorted(path.name for path in (ROOT / "configs").iterdir()) == ["archive.toml", "careful.toml", "small.toml"]
    assert make_config(ROOT / "configs" / "small.toml").target == ("bits", 2.5)
    assert make_config(ROOT / "configs" / "archive.toml").target == ("snr", 60)


def test_config_small_and_archive(run, tmp_path):
    data = json.loads(run("compress", DIGITS, "-o", tmp_path / "s.safetensors", "--config", ROOT / "configs" / "small.toml",
                          "--json"))
    assert 2.4 < data["bits_per_weight"] <= 2.5
    assert {t.states for t in nnc.inspect(tmp_path / "s.safetensors").tensors if t.name == "conv2.weight"} == {64}
    data = json.loads(run("compress", DIGITS, "-o", tmp_path / "a.safetensors", "--config", ROOT / "configs" / "archive.toml",
                          "--json"))
    assert data["snr_db"] == pytest.approx(60, abs=0.1)
    data = json.loads(run("compress", DIGITS, "-o", tmp_path / "b.safetensors", "--config", ROOT / "configs" / "archive.toml",
                          "--bits", "2", "--json"))
    assert data["bits_per_weight"] <= 2, "the command line wins"


def test_config_careful(run, refuse, tmp_path):
    torch.manual_seed(0)
    state = {"model.embed_tokens.weight": torch.randn(300, 64), "model.layers.0.mlp.weight": torch.randn(300, 64),
             "model.norm.weight": 1 + torch.rand(64),
             "embeddings.LayerNorm.weight": torch.rand(64)}
    save_file(state, tmp_path / "llm.safetensors")
    run("compress", tmp_path / "llm.safetensors", "-o", tmp_path / "o.safetensors", "--config", ROOT / "configs" / "careful.toml")
    tensors = {tensor.name: tensor for tensor in nnc.inspect(tmp_path / "o.safetensors").tensors}
    assert tensors["model.embed_tokens.weight"].step == pytest.approx(tensors["model.layers.0.mlp.weight"].step / 2, rel=0.02)
    assert {tensors["model.norm.weight"].kind, tensors["embeddings.LayerNorm.weight"].kind} == {"exact"}
    run("compress", DIGITS, "-o", tmp_path / "d.safetensors", "--config", ROOT / "configs" / "careful.toml")  # its rules are optional
    assert "matches no tensor" in refuse(2, "compress", DIGITS, "-o", tmp_path / "e.safetensors", "--rule", "*embed*=exact")


# -------------------------------------------------------------------------------------------------- progress and streams

@pytest.mark.parametrize("command", ["compress", "decompress", "verify", "eval", "sweep"])
@pytest.mark.parametrize("mode", ["terminal", "--quiet", "--json", "pipe"])
def test_progress_bars_are_for_terminals(tiny, tmp_path, monkeypatch, capsys, command, mode):
    source, small = tiny / "net.safetensors", tiny / "small.safetensors"
    argv = {"compress": [source, "-o", tmp_path / "o", "--effort", "fast"], "decompress": [small, "-o", tmp_path / "o"],
            "verify": [small], "eval": [small, *net(tiny)], "sweep": [source, *net(tiny), "--bits", "6", "--effort", "fast"]}
    stderr = io.StringIO() if mode == "pipe" else Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    assert main([command, *map(str, argv[command]), *([mode] if mode.startswith("--") else [])]) == 0
    drawn = stderr.getvalue()
    if mode == "terminal":
        assert re.search(rf"\r{command}: +\d+%\|.*\[\d\d:\d\d<", drawn), "a share, the time that passed, the time left"
        assert drawn.endswith(" \r"), "no bar is left behind"
    else:
        assert drawn == ""
    assert "%|" not in capsys.readouterr().out


def test_progress_of_passes_and_of_unknown_length(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with show_progress(Namespace(command="compress", quiet=False, json=False), "B") as show:
        for done, total in ((0, 2000), (2000, 2000), (0, 2000), (1000, 2000), (2000, 2000), (3, 0), (7, 0), (0, 10)):
            show(done, total, "compress evil\x1b[2J")
    drawn = sys.stderr.getvalue()
    assert "\x1b[2J" not in drawn and drawn.count(" 0.00/2.00k [") == 2 and drawn.count(" 0.00/10.0 [") == 1
    assert "compress evil" not in drawn
    monkeypatch.setattr(sys, "stderr", None)
    with show_progress(Namespace(command="compress", quiet=False, json=False), "B") as show:
        assert show is None


def test_streams_that_are_closed(small, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["info", str(small)]) == 0 and main(["info", "nowhere"]) == 2


def process(*argv: object, **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "nnc", *map(str, argv)], cwd=ROOT, **options)


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_closed_pipe(small, unbuffered):
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with process("info", small, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as running:
        running.stdout.close()
        assert running.stderr.read() == b"" and running.wait() == 141


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk(small):
    with open("/dev/full", "wb") as full, process("info", small, stdout=full, stderr=subprocess.PIPE) as running:
        assert running.stderr.read() == b"nnc: error: No space left on device\n" and running.wait() == 1


# ----------------------------------------------------------------------------------------------------------------- errors

NAMED = net(Path())


@pytest.fixture(scope="module")
def bad(tmp_path_factory, tiny) -> Path:
    """A folder of inputs that are refused."""
    folder = tmp_path_factory.mktemp("bad")
    save_file({}, folder / "empty.safetensors")
    torch.save(torch.nn.Linear(2, 2), folder / "code.pt")
    shutil.copy(tiny / "net.py", folder / "net.py")
    data = (tiny / "small.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(data[:-100])
    (folder / "flip.safetensors").write_bytes(data[:-100] + bytes([data[-100] ^ 1]) + data[-99:])
    (folder / "new.safetensors").write_bytes(data.replace(b'"nnc":"1"', b'"nnc":"9"'))
    (folder / "empty.npz").write_bytes(b"")
    return folder


@pytest.mark.parametrize("code, argv", [
    (2, ["compress", "nowhere", "-o", "o"]), (2, ["compress", DIGITS, "-o", "nofolder/o"]),
    (2, ["compress", DIGITS, "-o", "o.pt"]), (2, ["compress", "code.txt", "-o", "o"]),
    (3, ["compress", "code.pt", "-o", "o"]), (4, ["compress", "empty.npz.safetensors", "-o", "o"]),
    (5, ["compress", "empty.safetensors", "-o", "o"]),
    *((4, [command, path, *more]) for command, more in (("verify", []), ("decompress", ["-o", "o"]), ("eval", NAMED))
      for path in ("cut.safetensors", "flip.safetensors")),
    *((3, [command, "new.safetensors", *more]) for command, more in (("verify", []), ("info", []), ("decompress", ["-o", "o"]))),
    (4, ["info", "cut.safetensors"]), (4, ["info", DIGITS]), (2, ["info", "nowhere"]), (2, ["verify", "."]),
    (2, ["decompress", "nowhere", "-o", "o"]),
    (5, ["eval", "empty.safetensors", *NAMED]),
    (2, ["eval", "empty.safetensors", "--task", "classification", "--data", "empty.npz"]),
    (5, ["sweep", "empty.safetensors", *NAMED, "--bits", "3"]), (2, ["sweep", DIGITS, *NAMED, "--bits", "3", "-o", "empty.npz"]),
    (1, ["info", "x" * 5000]),
])
def test_every_error_is_one_line_and_a_code(refuse, bad, monkeypatch, code, argv):
    (bad / "empty.npz.safetensors").write_bytes(b"")
    (bad / "code.txt").write_bytes(b"")
    monkeypatch.chdir(bad)
    before = sorted(os.listdir(bad))
    assert "Traceback" not in refuse(code, *argv)
    assert sorted(os.listdir(bad)) == before, "nothing is left behind"


@pytest.mark.parametrize("error, code, line", [
    (MemoryError(), 1, "nnc: error: not enough memory\n"), (MemoryError("2 TiB"), 1, "nnc: error: not enough memory: 2 TiB\n"),
    (OSError(5, "Input/output error", "disk"), 1, "nnc: error: disk: Input/output error\n"),
    (OSError("odd"), 1, "nnc: error: odd\n"),
    (nnc.NncError("odd\nlines \x1b[2J"), 2, "nnc: error: odd lines \\x1b[2J\n"), (KeyboardInterrupt(), 130, "nnc: interrupted\n"),
    (BrokenPipeError(), 141, ""),
])
def test_what_else_may_happen(monkeypatch, capsys, small, error, code, line):
    def fail(*_, **__):
        raise nnc.InvalidArgument(str(error)) if type(error) is nnc.NncError else error

    monkeypatch.setattr("nnc.restoration.verify", fail)
    assert main(["verify", str(small)]) == code and capsys.readouterr() == ("", line)


def test_interrupt_while_writing_leaves_nothing(monkeypatch, capsys, tmp_path):
    def interrupted(path, *_):
        assert path.exists() and len(os.listdir(tmp_path)) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr("nnc.compression._verify", interrupted)
    for name in ("o.safetensors", "o"):
        assert main(["compress", str(DIGITS), "-o", str(tmp_path / name)]) == 130
        assert capsys.readouterr() == ("", "nnc: interrupted\n") and os.listdir(tmp_path) == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")
def test_interrupt_of_a_real_process(tmp_path):
    import pty

    torch.manual_seed(0)
    save_file({f"layer{index}.weight": torch.randn(512, 1024) for index in range(16)}, tmp_path / "big.safetensors")
    terminal, other = pty.openpty()
    drawn = b""
    with process("compress", tmp_path / "big.safetensors", "-o", tmp_path / "o.safetensors", "--effort", "max",
                 "--threads", "2", stdout=subprocess.PIPE, stderr=other,
                 preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) as running:  # a shell in the background ignores it
        os.close(other)
        sent = False
        try:
            while chunk := os.read(terminal, 4096):
                drawn += chunk
                if not sent and re.search(rb", layer\d", drawn):  # the bar is in the middle of encoding
                    running.send_signal(signal.SIGINT)
                    sent = True
        except OSError:  # the end of a pseudo terminal
            pass
        assert running.stdout.read() == b"" and running.wait() == 130
    os.close(terminal)
    assert drawn.endswith(b"\rnnc: interrupted\r\n") and b"Traceback" not in drawn and os.listdir(tmp_path) == ["big.safetensors"]


# ------------------------------------------------------------------------------------------------------------- structure

def test_commands_import_nothing_heavy_before_they_run():
    ours = {"", "commands", "commands.options", "commands.output", "errors", "options", "output", "progress"}
    for file in (ROOT / "nnc" / "__main__.py", ROOT / "nnc" / "errors.py", *sorted((ROOT / "nnc" / "commands").glob("*.py"))):
        for node in ast.parse(file.read_text()).body:  # imports of functions are deeper
            if isinstance(node, ast.Import):
                assert {alias.name.partition(".")[0] for alias in node.names} <= sys.stdlib_module_names, file
            elif isinstance(node, ast.ImportFrom):
                allowed = (node.module or "") in ours if node.level else node.module.partition(".")[0] in sys.stdlib_module_names
                assert allowed, f"{file}: {node.module}"


def test_only_the_command_line_prints():
    for file in sorted((ROOT / "nnc").rglob("*.py")):
        nodes = ast.walk(ast.parse(file.read_text()))
        calls = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
        assert ("print" in calls) == (file.name == "__main__.py"), file
