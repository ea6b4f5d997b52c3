"""Checkpoint outputs: complete or absent, never over the source, never outside the folder; what cannot be written is refused."""
from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
import torch

from nnc.checkpoint import Origin, TensorSpec, atomic_output, check_destination, check_side_name, write_checkpoint
from nnc.errors import Corruption, InsufficientData, InvalidArgument, Unsupported


@pytest.mark.parametrize("text", [
    "", "[]", "{}", '{"kind":"hf"}', '{"kind":"zip","metadata":[],"wrapper":"","extras":""}', "[" * 100_000,
    '{"kind":"hf","metadata":[["a",1]],"wrapper":"","extras":""}', '{"kind":"hf","metadata":{},"wrapper":"","extras":""}',
    '{"kind":"hf","metadata":[["a","1"],["a","2"]],"wrapper":"","extras":""}',
    '{"kind":"hf","metadata":[],"wrapper":3,"extras":""}', '{"kind":"torch","metadata":[],"wrapper":"a..b","extras":""}',
    '{"kind":"torch","metadata":[],"wrapper":"","extras":"[]"}', '{"kind":[],"metadata":[],"wrapper":"","extras":""}',
    '{"kind":"torch","metadata":[],"wrapper":"a","extras":"{\\"a\\":1}"}',
])
def test_malformed_origin(text):
    with pytest.raises(Corruption, match="origin"):
        Origin.from_json(text)


@pytest.mark.parametrize("name", ["", ".", "/etc/passwd", "../a", "a/../../b", "a\\b", "C:a", "a\0b"])
def test_unsafe_side_names(tmp_path, name):
    with pytest.raises(Corruption, match="not a plain relative path"):
        check_side_name(name)
    with pytest.raises(Corruption):
        write_checkpoint(tmp_path / "out", [TensorSpec("w", torch.float32, ())], lambda name: torch.tensor(1.0), Origin("hf"),
                         [(name, tmp_path)])
    assert os.listdir(tmp_path) == []


def test_write_refuses_what_does_not_fit(tmp_path):
    spec = TensorSpec("w", torch.float32, (2,))

    def write(specs: list, value: torch.Tensor = torch.ones(2), place: str = "out", **options: object) -> None:
        write_checkpoint(tmp_path / place, specs, lambda name: value, Origin("module"), **options)

    for value in (torch.ones(3), torch.ones(2, dtype=torch.float64)):
        for place in ("out", "a.pt", "a.safetensors"):
            with pytest.raises(Corruption, match="tensor 'w' came as .* expected torch.float32"):
                write([spec], value, place)
    for specs, message in (([spec, spec], "given twice"), ([TensorSpec("v", torch.float32, (2,), "w"), spec], "tied to 'w'"),
                           ([spec, TensorSpec("v", torch.float32, (3,), "w")], "tied to 'w'")):
        with pytest.raises(InvalidArgument, match=message):
            write(specs)
    with pytest.raises(InsufficientData, match="no tensors"):
        write([])
    with pytest.raises(InvalidArgument, match="max_shard_bytes is 0"):
        write([spec], max_shard_bytes=0)
    with pytest.raises(InvalidArgument, match="cannot write .gguf"):
        write([spec], place="a.gguf")
    with pytest.raises(Corruption, match="has the name of another file"):
        write([spec], side_files=[("model.safetensors", tmp_path)])
    with pytest.raises(Unsupported, match="__metadata__"):
        write([TensorSpec("__metadata__", torch.float32, (2,))])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("form", ["out", "a.pt", "a.safetensors"])
def test_disk_limit_leaves_nothing(tmp_path, form):
    specs = [TensorSpec("w", torch.float32, (100_000,))]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(InvalidArgument, match=f"{form}.*File too large"):
            write_checkpoint(tmp_path / form, specs, lambda name: torch.zeros(100_000), Origin("module"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("folder", [True, False])
@pytest.mark.parametrize("raised, seen", [(KeyboardInterrupt, KeyboardInterrupt), (ZeroDivisionError, ZeroDivisionError),
                                          (OSError, InvalidArgument), (None, None)])
def test_atomic_output(tmp_path, folder, raised, seen):
    target = tmp_path / "x"
    inside = Path("model.safetensors") if folder else Path()

    def produce(text: str, overwrite: bool, error: type[BaseException] | None) -> None:
        with atomic_output(target, folder=folder, overwrite=overwrite) as temporary:
            assert temporary.parent == tmp_path and temporary.name.startswith(".x.") and temporary.name.endswith(".tmp")
            (temporary / inside).write_text(text)
            if error:
                raise error(28, "No space left on device")

    if raised:
        with pytest.raises(seen):
            produce("first", False, raised)
        assert os.listdir(tmp_path) == []
    produce("old", False, None)
    with pytest.raises(InvalidArgument, match=r"exists; pass overwrite=True / --overwrite"):
        produce("new", False, None)
    if raised:
        with pytest.raises(seen, match="No space left on device"):
            produce("new", True, raised)
    else:
        produce("new", True, None)
    assert (target / inside).read_text() == ("old" if raised else "new") and os.listdir(tmp_path) == ["x"]


def test_output_is_not_replaced_by_another_kind(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").touch()
    os.mkfifo(tmp_path / "fifo")
    monkeypatch.chdir(tmp_path / "photos")
    cases = [("file", True, "is not a folder"), ("photos", False, "is a folder"), ("fifo", False, "not a regular file"),
             ("photos", True, "holds the current folder"), ("no/where", False, "does not exist; make it first"),
             ("..", True, "no name")]
    for name, folder, message in cases:
        with pytest.raises(InvalidArgument, match=message), atomic_output(tmp_path / name, folder=folder, overwrite=True):
            raise AssertionError("the body must not run")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidArgument, match="holds other files and no weights"), \
            atomic_output(tmp_path / "photos", folder=True, overwrite=True):
        raise AssertionError("the body must not run")
    assert sorted(os.listdir(tmp_path)) == ["fifo", "file", "photos"] and os.listdir("photos") == ["me.jpg"]


def test_output_that_appears_meanwhile_is_kept(tmp_path):
    with pytest.raises(InvalidArgument, match="meanwhile"), \
            atomic_output(tmp_path / "x", folder=False, overwrite=False) as temporary:
        temporary.write_text("mine")
        (tmp_path / "x").write_text("theirs")
    assert (tmp_path / "x").read_text() == "theirs" and os.listdir(tmp_path) == ["x"]


def test_check_destination(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    (source / "model.safetensors").touch()
    (tmp_path / "link").symlink_to("in")
    os.link(source / "model.safetensors", tmp_path / "hard.safetensors")
    check_destination(source, tmp_path / "out", False)
    check_destination(None, tmp_path / "in", True)
    cases = [(source, source, "is the source itself"), (source, tmp_path / "link", "is the source itself"),
             (source, source / "out", "lies inside the source"), (tmp_path / "link", source / "out", "lies inside the source"),
             (source / "model.safetensors", tmp_path / "hard.safetensors", "is the source itself"),
             (source / "model.safetensors", source, "holds the source")]
    for origin, destination, message in cases:
        with pytest.raises(InvalidArgument, match=message):
            check_destination(origin, destination, True)
