"""Write the golden files of tests/golden: `python tests/make_golden.py [--force]`.

A golden file is written only when it is absent: it shows that a later release still reads what an earlier one wrote.  With
--force all are made afresh, which is right only while the version of the format may still change.  Beside each stands a
.json with its origin (release, options, seed) and the dtype, shape and SHA-256 of every tensor, or for the damaged files of
golden/bad the class of the error.  Nothing is written on which the reference decoder disagrees with the package.
"""
from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

import nnc
from nnc.calibration.statistics import Statistics, TensorStatistics
from nnc.encoder import make_plane
from nnc.entropy.scales import MOST
from nnc.quantize.steps import StepCodes
from nnc.sensitivity import choose_codes

sys.path.insert(0, str(Path(__file__).parent))
import reference_decoder as reference  # noqa: E402

GOLDEN = Path(__file__).parent / "golden"
STATES = (1, 4, 8, 16, 32, 64, 128, 256)
Source = dict[str, Tensor] | nn.Module


@dataclass(frozen=True)
class Case:
    """A golden file: `source` makes the checkpoint from a seeded generator; `folder`: with shards; `calibrated`: with made-up
    statistics of the loss; `unit`: of all step codes, whatever the encoder would choose."""
    name: str
    source: Callable[[torch.Generator], Source]
    options: dict = field(default_factory=dict)
    seed: int = 1
    folder: bool = False
    calibrated: bool = False
    unit: int | None = None

    @property
    def path(self) -> Path:
        return GOLDEN / (self.name if self.folder else f"{self.name}.safetensors")

    @property
    def note(self) -> Path:
        return GOLDEN / f"{self.name}.json"


def normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g)


def layers(g: torch.Generator) -> Source:
    return {"linear.weight": normal(g, 24, 20), "conv.weight": normal(g, 6, 4, 3, 3) * 0.5, "linear.bias": normal(g, 24)}


def outliers(g: torch.Generator) -> Source:
    w = normal(g, 50, 40)
    w[3, 4], w[20, 7], w[20, 8], w[31, 0] = 1e6, -1e6, 3e3, -40.0
    return {"w": w}


def uneven(g: torch.Generator) -> Source:
    return {"rows": normal(g, 64, 16) * torch.exp(2 * normal(g, 64, 1)),
            "columns": normal(g, 16, 64) * torch.exp(2 * normal(g, 64)),
            "both": normal(g, 40, 40) * torch.exp(normal(g, 40, 1)) * torch.exp(normal(g, 40))}


def smooth(g: torch.Generator) -> Source:
    return {"rows": normal(g, 150, 12) * torch.logspace(-2, 2, 150)[:, None],
            "columns": normal(g, 12, 150) * torch.logspace(-2, 2, 150)}


def dead(g: torch.Generator) -> Source:
    return {"rows": normal(g, 500, 8) * (torch.arange(500) % 10 == 0)[:, None],
            "columns": normal(g, 8, 500) * (torch.arange(500) % 10 == 0)}


def positive(g: torch.Generator) -> Source:
    return {"gain": torch.rand(100, generator=g) + 0.5, "wide": torch.exp(3 * normal(g, 80)),
            "narrow": 1 + 0.01 * torch.rand(70, generator=g),
            "half": (torch.rand(50, generator=g) + 0.5).half(), "brain": (torch.rand(50, generator=g) + 0.5).bfloat16()}


def lattice(g: torch.Generator) -> Source:
    return {"ternary": torch.randint(-1, 2, (90, 90), generator=g).float(),
            "five": torch.randint(-2, 3, (30, 40), generator=g) * 1.5}


def parametric(g: torch.Generator) -> Source:
    """Weights drawn from each parametric shape: scale index 29 is a deviation of 8 levels, so theirs is 1."""
    def draw(shape: int) -> Tensor:
        weights = torch.tensor(reference.level_weights(shape, 29, 0, -128, 128), dtype=torch.float64)
        level = torch.multinomial(weights / weights.sum(), 40 * 50, replacement=True, generator=g) - 128
        return ((level + torch.rand(40 * 50, generator=g) - 0.5) / 8).reshape(40, 50)
    return {f"shape.{shape}": draw(shape) for shape in range(8)}


def tiles(g: torch.Generator) -> Source:
    rows, columns, grid = torch.zeros(40000, 4), torch.zeros(4, 40000), torch.zeros(600, 640)
    rows[::999], columns[:, ::999], grid[::40] = normal(g, 41, 4), normal(g, 4, 41), normal(g, 15, 640)
    return {"rows": rows, "columns": columns, "grid": grid}


def halves(g: torch.Generator) -> Source:
    return {"half": normal(g, 30, 20).half(), "brain": normal(g, 30, 20).bfloat16(), "tiny": (normal(g, 30, 20) * 2e-6).half(),
            "large": (normal(g, 30, 20) * 25000).clamp(-65504, 65504).half()}


def exact(g: torch.Generator) -> Source:
    """Every dtype, and data for which each filter is the best."""
    small = torch.randint(0, 9, (100,), generator=g)
    return {"float32.near": normal(g, 100) + 100, "float32.noise": torch.randint(0, 256, (80,), generator=g,
                                                                                 dtype=torch.uint8).view(torch.float32)[1:],
            "float32.special": torch.tensor([1.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-45]),
            "float64": normal(g, 60).double(),
            "float16": normal(g, 60).half() + 3, "bfloat16": normal(g, 60).bfloat16() + 3, "int64": torch.arange(300) - 5,
            "int32": small.cumsum(0).int(),
            "int16": (torch.arange(300) * 37).short(), "int8": small.to(torch.int8) - 4,
            "uint8": torch.randint(0, 256, (90,), generator=g, dtype=torch.uint8),
            "bool": torch.arange(300) % 3 == 0, "float8_e4m3fn": normal(g, 40).to(torch.float8_e4m3fn),
            "float8_e5m2": normal(g, 40).to(torch.float8_e5m2),
            "float8_e4m3fnuz": normal(g, 40).to(torch.float8_e4m3fnuz),
            "float8_e5m2fnuz": normal(g, 40).to(torch.float8_e5m2fnuz),
            "complex64": torch.complex(normal(g, 30), normal(g, 30)),
            "complex128": torch.complex(normal(g, 30), normal(g, 30)).to(torch.complex128),
            "uint16": torch.arange(200).to(torch.uint16), "uint32": small.to(torch.uint32),
            "uint64": torch.arange(100).to(torch.uint64)}


def constants(g: torch.Generator) -> Source:
    return {"zero": torch.zeros(7, 5), "minus zero": torch.full((3,), -0.0), "one": torch.ones(9, dtype=torch.float16),
            "nan": torch.full((4,), float("nan")),
            "true": torch.ones(5, dtype=torch.bool), "wide": torch.full((2, 2), 1 + 2j, dtype=torch.complex128),
            "number": torch.tensor(12345),
            "large": torch.full((300, 300), 0.1)}


def shapes(g: torch.Generator) -> Source:
    return {"scalar": torch.tensor(3.14159), "scalar.int": torch.tensor(-7, dtype=torch.int32), "empty": torch.zeros(0),
            "empty.rows": torch.zeros(0, 3), "empty.columns": torch.zeros(3, 0, dtype=torch.int16),
            "empty.wide": torch.zeros(2, 0, dtype=torch.complex128), "one": normal(g, 1), "ones": normal(g, 1, 1, 1, 1),
            "many": normal(g, 2, 1, 3, 1, 2, 1, 2, 2), "row": normal(g, 1, 60), "column": normal(g, 60, 1),
            "vector": normal(g, 61)}


class Tied(nn.Module):
    """Weights that are shared, and one that is merely equal."""

    def __init__(self, g: torch.Generator) -> None:
        super().__init__()
        self.embedding, self.head, self.copy = nn.Embedding(20, 12), nn.Linear(12, 20, bias=False), nn.Linear(12, 20, bias=False)
        self.embedding.weight.data = normal(g, 20, 12)
        self.head.weight = self.embedding.weight
        self.copy.weight.data = self.embedding.weight.data.clone()
        self.register_buffer("steps", torch.arange(40))
        self.register_buffer("same", torch.arange(40))


def names(g: torch.Generator) -> Source:
    """Names that would clash with the keys of the container, and others that are unusual."""
    unusual = ("nnc", "nnc#", "nnc_gain", "__metadata__", "__metadata__#", "", "größe/Ω\n", "a" * 500)
    return {name: normal(g, 5) for name in unusual}


def plain(g: torch.Generator) -> Source:
    return names(g) | {"half": normal(g, 3, 4).half(), "brain": normal(g, 3).bfloat16(), "flags": torch.arange(9) % 2 == 0,
                       "numbers": torch.arange(6), "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 2),
                       "coded": normal(g, 12, 12)}


def several(g: torch.Generator) -> Source:
    others = {"lattice": torch.randint(-1, 2, (60, 60), generator=g).float(), "steps": torch.arange(50)}
    return {f"layer.{i}.weight": normal(g, 40, 50) for i in range(4)} | others


def uneven_losses(g: torch.Generator) -> Source:
    return {"w": normal(g, 60, 50), "few rows": normal(g, 9, 70), "conv": normal(g, 8, 6, 3, 3).half(),
            "few columns": normal(g, 70, 9).bfloat16(), "bias": normal(g, 40)}


def insensitive_gains(g: torch.Generator) -> Source:
    return {"w": normal(g, 40, 30)} | {f"gain.{n}": torch.exp(normal(g, 90)) for n in range(6)}


CASES = [
    *(Case(f"states-{n}", layers, {"step": 0.4, "states": n, "labelling": "plain"}, seed=n) for n in STATES),
    *(Case(f"states-{n}-sign-symmetric", layers, {"step": 0.8, "states": n, "labelling": "sign-symmetric"}, seed=n)
      for n in STATES[1:]),
    Case("bypass", layers, {"step": 3e-4}),
    Case("bypass-follow", uneven, {"snr": 60}),
    Case("bypass-one-state", layers, {"step": 1e-3, "states": 1}),
    Case("escapes", outliers, {"step": 1.0}),
    Case("escapes-bypass", lambda g: {"w": outliers(g)["w"].clamp(-3e3, 3e3)}, {"step": 0.01}),
    Case("codes-uneven", uneven, {"step": 0.3}),
    Case("codes-uneven-follow", uneven, {"snr": 15}),
    Case("codes-smooth", smooth, {"step": 0.5}),
    Case("codes-smooth-follow", smooth, {"snr": 20}),
    Case("codes-dead", dead, {"step": 0.3}),
    Case("codes-dead-follow", dead, {"snr": 12}),
    Case("logarithmic", positive, {"snr": 20}),
    Case("parametric", parametric, {"step": 0.5}, seed=5),
    Case("explicit", lattice, {"step": 0.25}),
    Case("explicit-one-state", lattice, {"step": 0.5, "states": 1}),
    Case("ctus", tiles, {"snr": 10}),
    Case("ctus-dense", lambda g: {"w": normal(g, 300, 300)}, {"snr": 2}),
    Case("halves", halves, {"snr": 14}),
    Case("exact", exact, {"rules": ("*=exact",)}),
    Case("constants", constants),
    Case("shapes", shapes, {"snr": 20}),
    Case("ties", Tied, {"bits": 8}),
    Case("own-coded", lambda g: {"nnc_weight": normal(g, 120, 140), "small": normal(g, 30)}, {"snr": 48}),
    Case("own-exact", lambda g: {"noise": torch.randint(0, 256, (16400,), generator=g, dtype=torch.uint8),
                                 "small": normal(g, 9)}),
    Case("plain", plain, {"rules": ("*=skip", "coded=finer:4")}),
    Case("names", names, {"snr": 20}),
    Case("nothing", lambda g: {"nothing": torch.zeros(0)}),
    Case("effort-fast", several, {"bits": 2.5, "effort": "fast"}),
    Case("effort-max", several, {"bits": 2.5, "effort": "max"}),
    *(Case(f"calibrated-{n}", uneven_losses, {"bits": 4, "states": n}, seed=n, calibrated=True) for n in (1, 8, 64)),
    Case("calibrated-sign-symmetric", uneven_losses, {"bits": 2.5, "labelling": "sign-symmetric"}, calibrated=True),
    Case("calibrated-ctus", lambda g: {"w": normal(g, 300, 300)}, {"bits": 2}, calibrated=True),
    Case("calibrated-logarithmic", insensitive_gains, {"bits": 5}, calibrated=True),
    *(Case(f"step-unit-{unit}", uneven_losses, {"bits": 5}, seed=unit, calibrated=True, unit=unit)
      for unit in reference.UNITS),
    Case("shards", several, {"snr": 18, "shard_bytes": 1800}, folder=True),
]


def bytes_of(tensor: Tensor) -> bytes:
    tensor = tensor.detach().contiguous()
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def loaded(path: Path, threads: int | None = None) -> dict[str, reference.Tensor]:
    """What the package makes of a file, in the form of the reference decoder."""
    return {name: (str(t.dtype).removeprefix("torch."), tuple(t.shape), bytes_of(t)) for name,
            t in nnc.load(path, threads=threads).items()}


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def make_statistics(source: Source, seed: int) -> Statistics:
    """Second moments of small integers that have a part in common; of vectors a diagonal, the first one
    very large, each a tenth of that before."""
    rng, found, vectors = np.random.default_rng(seed), {}, 0

    def moment(size: int) -> np.ndarray:
        x = rng.integers(-4, 5, (256, size)) * rng.integers(1, 5, size) + 3 * rng.integers(-3, 4, (256, 1))
        return (x.T @ x / 4096).astype(np.float32)

    for name, tensor in source.items():
        m, n = make_plane(tensor)[1].shape
        if m > 1:
            found[name] = TensorStatistics(moment(m), moment(n), (4096, 4096))
        else:
            found[name] = TensorStatistics(np.ones(1, np.float32), np.diagonal(moment(n)) * np.float32(1e10 * 0.1**vectors), (4096, 4096))
            vectors += 1
    return Statistics(found, "logits", 4096)


def choose_unit(unit: int) -> Callable[[np.ndarray, int], tuple[StepCodes, float]]:
    """As `choose_codes`, but for the unit."""
    def choose(octaves: np.ndarray, weights: int) -> tuple[StepCodes, float]:
        middle = choose_codes(octaves, weights)[1]
        return StepCodes(np.clip(np.round((octaves - middle) * (128 / unit)), -MOST, MOST).astype(np.int16), unit), middle
    return choose


def write_golden(case: Case) -> None:
    remove(case.path)
    source = case.source(torch.Generator().manual_seed(case.seed))
    statistics = make_statistics(source, case.seed) if case.calibrated else None
    with patch("nnc.sensitivity.choose_codes", choose_unit(case.unit) if case.unit else choose_codes):
        nnc.compress(source, case.path, threads=1, statistics=statistics, **case.options)
    tensors = loaded(case.path)
    if list(tensors.items()) != list(reference.decode(case.path).items()):
        remove(case.path)
        raise SystemExit(f"{case.name}: the reference decoder disagrees")
    origin = {"made by": "tests/make_golden.py", "nnc": nnc.__version__, "torch": torch.__version__, "options": case.options,
              "seed": case.seed, "calibrated": case.calibrated, "unit": case.unit}
    listing = {name: {"dtype": dtype, "shape": shape, "sha256": hashlib.sha256(data).hexdigest()} for name,
               (dtype, shape, data) in tensors.items()}
    case.note.write_text(json.dumps({"origin": origin, "tensors": listing}, indent=1) + "\n")


# ---- damaged files: made from one small file, with the checksums set right again where the damage lies deeper ---------

def container_bytes(container: reference.Container, version: str = "1") -> bytes:
    """Section 2, with the checksum of the directory."""
    packed = zlib.compress(container.directory, 9)
    data = struct.pack("<III", len(packed), len(container.directory), zlib.crc32(packed)) + packed + container.small
    header: dict = {"__metadata__": {"nnc": version}, "nnc": {"dtype": "U8", "shape": [len(data)],
                                                              "data_offsets": [0, len(data)]}}
    for key, (dtype, shape, entry) in container.entries.items():
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(entry)]}
        data += entry
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 16]) + data[position + 1:]


@dataclass(frozen=True)
class Bad:
    """A damaged file: `damage` turns a sound one into bytes that readers must refuse with `error`."""
    name: str
    error: str
    damage: Callable[[bytes], bytes]

    @property
    def path(self) -> Path:
        return GOLDEN / "bad" / f"{self.name}.safetensors"


def rebuilt(change: Callable[[reference.Container], None], units: bool = False) -> Callable[[bytes], bytes]:
    """Damage to the directory or the units; units: with the checksum set right again of the one unit, whose head comes last."""
    def damage(file: bytes) -> bytes:
        container = reference.read_container(file)
        change(container)
        if units:
            container.directory = container.directory[:-8] + struct.pack("<I",
                                                                         zlib.crc32(container.small)) + container.directory[-4:]
        return container_bytes(container)
    return damage


def flip_payload(c: reference.Container) -> None:
    c.small = flipped(c.small, len(c.small) // 2)


def flip_digest(c: reference.Container) -> None:
    c.directory = flipped(c.directory, len(c.directory) - 1)


def swap_levels(c: reference.Container) -> None:
    """The first stream keeps its length and ends with another word."""
    c.small = flipped(c.small, reference.read_directory(c).records[0].stored - 1)


def lengthen_directory(c: reference.Container) -> None:
    c.directory += b"\0"


def lengthen_units(c: reference.Container) -> None:
    c.small += b"\0"


def unknown_kind(c: reference.Container) -> None:
    c.directory = c.directory.replace(bytes([2, 4 << 5, 4 << 5]), bytes([2, 4 << 5, 5 << 5]), 1)


def enormous_axis(c: reference.Container) -> None:
    """One axis of 60 becomes 2^39: more than the file may claim."""
    axis = b"\x80\x80\x80\x80\x80\x10"
    lane = bytes([6, 2, 40, 50, 2, 30, 60])
    c.directory = c.directory.replace(lane, bytes([11]) + lane[1:-1] + axis, 1)


BAD = [
    Bad("empty", "Corruption", lambda file: b""),
    Bad("truncated", "Corruption", lambda file: file[:-20]),
    Bad("truncated-header", "Corruption", lambda file: file[:50]),
    Bad("huge-header", "Corruption", lambda file: struct.pack("<Q", 1 << 62) + file[8:]),
    Bad("long-header", "Corruption", lambda file: struct.pack("<Q", 99_999_999) + file[8:]),
    Bad("not-json", "Corruption", lambda file: file[:8] + b"<" + file[9:]),
    Bad("other-version", "Unsupported", lambda file: container_bytes(reference.read_container(file), version="2")),
    Bad("no-version", "Corruption", lambda file: file.replace(b'"nnc":"1"', b'"mmc":"1"', 1)),
    Bad("bytes-after-the-end", "Corruption", lambda file: file + b"\0"),
    Bad("directory-checksum", "Corruption", lambda file: flipped(file, file.index(b"\x78\xda") + 9)),
    Bad("directory-longer", "Corruption", rebuilt(lengthen_directory)),
    Bad("units-longer", "Corruption", rebuilt(lengthen_units)),
    Bad("unit-checksum", "Corruption", rebuilt(flip_payload)),
    Bad("unit-digest", "Corruption", rebuilt(flip_digest)),
    Bad("stream", "Corruption", rebuilt(flip_payload, units=True)),
    Bad("stream-end", "Corruption", rebuilt(swap_levels, units=True)),
    Bad("unknown-kind", "Corruption", rebuilt(unknown_kind)),
    Bad("enormous-tensor", "Corruption", rebuilt(enormous_axis)),
]


def write_bad(cases: list[Bad]) -> None:
    sound = GOLDEN / "bad" / "sound.safetensors"
    g = torch.Generator().manual_seed(5)
    nnc.compress({"a": normal(g, 40, 50), "b": normal(g, 30, 60)}, sound, threads=1, step=1.0, overwrite=True)
    file = sound.read_bytes()
    sound.unlink()
    for case in cases:
        damaged = case.damage(file)
        if damaged == file:
            raise SystemExit(f"{case.name}: the damage changes nothing")
        case.path.write_bytes(damaged)
        origin = {"made by": "tests/make_golden.py", "nnc": nnc.__version__}
        case.path.with_suffix(".json").write_text(json.dumps({"origin": origin, "error": case.error}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--force", action="store_true", help="make all files afresh")
    torch.set_num_threads(1)
    if parser.parse_args().force and GOLDEN.exists():
        shutil.rmtree(GOLDEN)
    (GOLDEN / "bad").mkdir(parents=True, exist_ok=True)
    for case in CASES:
        if not (case.path.exists() and case.note.exists()):
            write_golden(case)
            print("wrote", case.path.relative_to(GOLDEN.parent.parent))
    missing = [case for case in BAD if not (case.path.exists() and case.path.with_suffix(".json").exists())]
    if missing:
        write_bad(missing)
        print("wrote", *(case.path.relative_to(GOLDEN.parent.parent) for case in missing))


if __name__ == "__main__":
    main()
