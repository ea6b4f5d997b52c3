"""The damaged files of golden/bad: made from two small ones, with the checksums set right again where the damage lies deeper."""
from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import reference_decoder as decoder
import torch
from golden_cases import GOLDEN, smooth_field
from network_cases import forcing, random_network

import nnc
from nnc.directory import Directory, Unit
from nnc.entropy.network import Network
from nnc.fields import Codes, Orders

BAD_FOLDER = GOLDEN / "bad"
BASES = tuple(f"base-{number}.safetensors" for number in range(5))  # sound files: the references of the others


def container_bytes(container: decoder.Container, version: str = "1") -> bytes:
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


def flipped(data: bytes, position: int, bits: int = 16) -> bytes:
    return data[:position] + bytes([data[position] ^ bits]) + data[position + 1:]


@dataclass(frozen=True)
class Bad:
    """A damaged file: `damage` turns a sound one into bytes that readers must refuse with `error`; referenced: one that is a
    difference to base-0.safetensors; tiled: one of a tiled tensor; learned: one whose tables a network chooses."""
    name: str
    error: str
    damage: Callable[[bytes], bytes]
    referenced: bool = False
    tiled: bool = False
    learned: bool = False

    @property
    def sound(self) -> str:
        return "learned" if self.learned else "tiled" if self.tiled else "referenced" if self.referenced else "coded"

    @property
    def path(self) -> Path:
        return BAD_FOLDER / f"{self.name}.safetensors"


def rebuilt(change: Callable[[decoder.Container], None], units: bool = False) -> Callable[[bytes], bytes]:
    """Damage to the directory or the units; units: with the checksum set right again of the one unit, whose head comes last."""
    def damage(file: bytes) -> bytes:
        container = decoder.read_container(file)
        change(container)
        if units:
            container.directory = container.directory[:-8] + struct.pack("<I",
                                                                         zlib.crc32(container.small)) + container.directory[-4:]
        return container_bytes(container)
    return damage


def preamble(file: bytes) -> int:
    """Where the entry nnc, which comes first, begins."""
    return 8 + struct.unpack_from("<Q", file)[0]


def mixed(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """Damage to a mixed directory, whose checksum is set right again."""
    def damage(file: bytes) -> bytes:
        at = preamble(file)
        packed, raw = struct.unpack_from("<II", file, at)
        assert raw >> 29 == 1, "a small file, whose directory is mixed"
        coded = change(file[at + 12:at + 12 + packed])
        data = struct.pack("<III", len(coded), raw, zlib.crc32(coded)) + coded + file[at + 12 + packed:]
        header = json.loads(file[8:at])
        own = header.pop("nnc")
        shift = len(coded) - packed
        length = own["data_offsets"][1] + shift
        header = {"__metadata__": header.pop("__metadata__"), "nnc": {"dtype": "U8", "shape": [length], "data_offsets": [0, length]}, **{
            key: entry | {"data_offsets": [place + shift for place in entry["data_offsets"]]} for key, entry in header.items()}}
        text = json.dumps(header, separators=(",", ":")).encode()
        return struct.pack("<Q", len(text)) + text + data
    return damage


def flip_payload(c: decoder.Container) -> None:
    c.small = flipped(c.small, len(c.small) // 2)


def flip_digest(c: decoder.Container) -> None:
    c.directory = flipped(c.directory, len(c.directory) - 1)


def swap_levels(c: decoder.Container) -> None:
    """The first stream keeps its length and ends with another word."""
    c.small = flipped(c.small, decoder.read_directory(c).records[0].stored - 1)


def lengthen_directory(c: decoder.Container) -> None:
    c.directory += b"\0"


def lengthen_units(c: decoder.Container) -> None:
    c.small += b"\0"


def unknown_kind(c: decoder.Container) -> None:
    c.directory = c.directory.replace(bytes([2, 4 << 5, 4 << 5]), bytes([2, 4 << 5, 7 << 5]), 1)


def enormous_axis(c: decoder.Container) -> None:
    """One axis of 60 becomes 2^39: more than the file may claim."""
    axis = b"\x80\x80\x80\x80\x80\x10"
    lane = bytes([6, 2, 40, 50, 2, 30, 60])
    c.directory = c.directory.replace(lane, bytes([11]) + lane[1:-1] + axis, 1)


# ---- damage to what a file says of its reference ----------------------------------------------------------------------

Change = Callable[[Directory, bytes], tuple[Directory, bytes]]


def changed(change: Change) -> Callable[[bytes], bytes]:
    """Damage to the directory and the small units, whose checksum is set right again if there is only one of them."""
    def damage(file: bytes) -> bytes:
        container = decoder.read_container(file)
        directory, small = change(Directory.read(container.directory), container.small)
        if len(directory.units) == 1:
            directory = replace(directory, units=(replace(directory.units[0], checksum=zlib.crc32(small)),))
        return container_bytes(decoder.Container(0, directory.write(), small, container.entries))
    return damage


def hint(name: str) -> Callable[[bytes], bytes]:
    return changed(lambda d, small: (replace(d, reference=replace(d.reference, hint=name)), small))


def order(change: Callable[[list[int]], list[int]]) -> Callable[[bytes], bytes]:
    """Damage to the first permutation: the numbers that its steps are computed from."""
    def damage(d: Directory, small: bytes) -> tuple[Directory, bytes]:
        numbers = np.array(change(d.reference.permutations[0].tolist()))
        return replace(d, reference=replace(d.reference, permutations=(numbers, *d.reference.permutations[1:]))), small
    return changed(damage)


def first_prediction(**fields) -> Callable[[bytes], bytes]:
    """Other fields of the prediction of the first tensor."""
    def damage(d: Directory, small: bytes) -> tuple[Directory, bytes]:
        coding = d.records[0].coding
        coding = replace(coding, prediction=replace(coding.prediction, **fields))
        return replace(d, records=(replace(d.records[0], coding=coding), *d.records[1:])), small
    return changed(damage)


def confidence(code: int) -> Callable[[bytes], bytes]:
    """All confidences of the first tensor are this code."""
    def damage(d: Directory, small: bytes) -> tuple[Directory, bytes]:
        record = d.records[0]
        coding, rows = record.coding, record.shape[0]
        before = sum(codes.length for codes in (coding.rows, coding.columns, coding.row_steps.codes, coding.column_steps.codes))
        data = zlib.compress(bytes([code % 256]) * rows)
        small = small[:before] + data + small[before + coding.prediction.confidence.length:]
        prediction = replace(coding.prediction, confidence=Codes("deflated", 0, len(data)))
        record = replace(record, coding=replace(coding, prediction=prediction))
        return replace(d, records=(record, *d.records[1:])), small
    return changed(damage)


def first_tiles(**fields) -> Callable[[bytes], bytes]:
    """Other fields of the first tensor, a tiled one, or of its predictor."""
    def damage(d: Directory, small: bytes) -> tuple[Directory, bytes]:
        tiles = d.records[0].tiles
        inner = {key: value for key, value in fields.items() if hasattr(tiles.predictor, key)}
        outer = {key: value for key, value in fields.items() if key not in inner}
        tiles = replace(tiles, **outer, predictor=replace(tiles.predictor, **inner))
        return replace(d, records=(replace(d.records[0], tiles=tiles), *d.records[1:])), small
    return changed(damage)


def network(change: Callable[[Network], Network]) -> Callable[[bytes], bytes]:
    """Another network in place of the one that the file holds."""
    return changed(lambda d, small: (replace(d, bank=replace(d.bank, networks=(change(d.bank.networks[0]),))), small))


def last_layer(**fields: Callable[[np.ndarray], np.ndarray]) -> Callable[[bytes], bytes]:
    """Other numbers in the last layer of the network."""
    def change(found: Network) -> Network:
        layer = found.layers[-1]
        layer = replace(layer, **{name: turn(getattr(layer, name).copy()) for name, turn in fields.items()})
        return replace(found, layers=(*found.layers[:-1], layer))
    return network(change)


def first_coding(**fields) -> Callable[[bytes], bytes]:
    """Other fields of the first tensor, a coded one."""
    def damage(d: Directory, small: bytes) -> tuple[Directory, bytes]:
        return replace(d, records=(replace(d.records[0], coding=replace(d.records[0].coding, **fields)), *d.records[1:])), small
    return changed(damage)


def without_reference(d: Directory, small: bytes) -> tuple[Directory, bytes]:
    return replace(d, reference=None), small


def only_same(d: Directory, small: bytes) -> tuple[Directory, bytes]:
    """One record of kind 5, and no reference."""
    record = next(record for record in d.records if record.kind == "same")
    unit = Unit(1, False, 0, 0, bytes(8))
    return replace(d, reference=None, records=(record,), units=(unit,)), b""


def other_digest(d: Directory, small: bytes) -> tuple[Directory, bytes]:
    return replace(d, units=(replace(d.units[0], reference=flipped(d.units[0].reference, 3)),)), small


def two_references(file: bytes) -> bytes:
    """The number before the hint is 2."""
    container = decoder.read_container(file)
    name = BASES[0].encode()
    at = container.directory.index(bytes([1, len(name)]) + name)
    container.directory = container.directory[:at] + b"\2" + container.directory[at + 1:]
    return container_bytes(container)


BAD = [
    Bad("empty", "Corruption", lambda file: b""),
    Bad("truncated", "Corruption", lambda file: file[:-20]),
    Bad("truncated-header", "Corruption", lambda file: file[:50]),
    Bad("huge-header", "Corruption", lambda file: struct.pack("<Q", 1 << 62) + file[8:]),
    Bad("long-header", "Corruption", lambda file: struct.pack("<Q", 99_999_999) + file[8:]),
    Bad("not-json", "Corruption", lambda file: file[:8] + b"<" + file[9:]),
    Bad("other-version", "Unsupported", lambda file: container_bytes(decoder.read_container(file), version="2")),
    Bad("no-version", "Corruption", lambda file: file.replace(b'"nnc":"1"', b'"mmc":"1"', 1)),
    Bad("bytes-after-the-end", "Corruption", lambda file: file + b"\0"),
    Bad("directory-checksum", "Corruption", lambda file: flipped(file, preamble(file) + 12 + 9)),
    Bad("directory-coder", "Unsupported", lambda file: flipped(file, preamble(file) + 7, 0x60)),
    Bad("directory-mixed-longer", "Corruption", mixed(lambda coded: coded + b"\0")),
    Bad("directory-mixed-shorter", "Corruption", mixed(lambda coded: coded[:-1])),
    Bad("directory-mixed-otherwise", "Corruption", mixed(lambda coded: flipped(coded, 9))),
    Bad("directory-longer", "Corruption", rebuilt(lengthen_directory)),
    Bad("units-longer", "Corruption", rebuilt(lengthen_units)),
    Bad("unit-checksum", "Corruption", rebuilt(flip_payload)),
    Bad("unit-digest", "Corruption", rebuilt(flip_digest)),
    Bad("stream", "Corruption", rebuilt(flip_payload, units=True)),
    Bad("stream-end", "Corruption", rebuilt(swap_levels, units=True)),
    Bad("unknown-kind", "Corruption", rebuilt(unknown_kind)),
    Bad("enormous-tensor", "Corruption", rebuilt(enormous_axis)),
    *(Bad(name, error, damage, referenced=True) for name, error, damage in (
        ("reference-missing", "InvalidArgument", hint("base-9.safetensors")),
        ("reference-unnamed", "InvalidArgument", hint("")),
        ("reference-with-other-values", "InvalidArgument", hint(BASES[1])),
        ("reference-without-tensor", "InvalidArgument", hint(BASES[2])),
        ("reference-of-other-shape", "InvalidArgument", hint(BASES[3])),
        ("reference-of-other-dtype", "InvalidArgument", hint(BASES[4])),
        ("reference-digest", "InvalidArgument", changed(other_digest)),
        ("reference-damaged", "Corruption", hint("truncated.safetensors")),
        ("reference-itself", "Corruption", hint("reference-itself.safetensors")),
        ("reference-circle-1", "Corruption", hint("reference-circle-2.safetensors")),
        ("reference-circle-2", "Corruption", hint("reference-circle-1.safetensors")),
        ("reference-in-a-folder", "Corruption", hint(f"../bad/{BASES[0]}")),
        ("reference-above", "Corruption", hint("..")),
        ("reference-twice", "Corruption", two_references),
        ("predicted-without-reference", "Corruption", changed(without_reference)),
        ("same-without-reference", "Corruption", changed(only_same)),
        ("confidence-above", "Corruption", confidence(1)),
        ("confidence-below", "Corruption", confidence(-9)),
        ("order-with-a-number-twice", "Corruption", order(lambda numbers: numbers[:-1] + numbers[:1])),
        ("order-of-another-length", "Corruption", order(lambda numbers: sorted(numbers)[:-1])),
        ("order-that-does-not-exist", "Corruption", first_prediction(orders=Orders(2, 0))),
    )),
    *(Bad(name, "Corruption", damage, tiled=True) for name, damage in (
        ("tiles-stream", changed(lambda d, small: (d, flipped(small, len(small) - 20)))),
        ("tiles-mean", first_tiles(mean=1 << 31)),
        ("tiles-steps", first_tiles(steps=23)),
        ("tiles-side", first_tiles(height=0)),
        ("tiles-depth", first_tiles(depth=0)),
        ("tiles-other-shift", first_tiles(shift=3)),
        ("tiles-more-weights-than-elements", first_tiles(height=16, width=16, depth=2, reach=16)),
        ("tiles-step", first_tiles(step=3e38)),
    )),
    *(Bad(name, error, damage, learned=True) for name, error, damage in (
        ("network-unknown", "Unsupported", network(lambda found: replace(found, shipped=99))),
        ("network-without-inputs", "Corruption", network(lambda found: replace(found, inputs=()))),
        ("network-of-nine-bits", "Corruption", network(lambda found: replace(found, bits=9))),
        ("network-divisor", "Corruption", last_layer(divisor=lambda c: c + (1 << 18))),
        ("network-sums", "Corruption", last_layer(bias=lambda b: b + (1 << 31))),
        ("network-otherwise", "Corruption", last_layer(bias=lambda b: b * 3 + 999)),
        ("network-missing", "Corruption", first_coding(model=73)),
        ("network-logarithmic", "Corruption", first_coding(labelling=2, states=1, follow=False)),
        ("model-between", "Corruption", first_coding(model=8)),
    )),
]


def make_bases() -> list[dict[str, torch.Tensor]]:
    """The reference of the referenced files, and four that differ: in values, by a tensor that is missing, in a shape, in a
    dtype."""
    g = torch.Generator().manual_seed(6)
    base = {"a": torch.randn(12, 10, generator=g), "b": torch.randn(9, 12, generator=g), "same": torch.arange(20)}
    return [base, base | {"a": torch.randn(12, 10, generator=g)}, {"a": base["a"], "same": base["same"]},
            base | {"a": torch.randn(10, 12, generator=g)}, base | {"same": base["same"].int()}]


def make_sound() -> dict[str, bytes]:
    """Sound files by what `Bad.sound` calls them."""
    g = torch.Generator().manual_seed(5)
    coded = {"a": torch.randn(40, 50, generator=g), "b": torch.randn(30, 60, generator=g)}
    base = make_bases()[0]
    hidden = torch.randperm(12, generator=g)
    a = base["a"][hidden] + 0.1 * torch.randn(12, 10, generator=g)
    b = base["b"][:, hidden] + 0.1 * torch.randn(9, 12, generator=g)
    a[:2] = torch.randn(2, 10, generator=g)
    sound = BAD_FOLDER / "sound.safetensors"
    nnc.compress(coded, sound, threads=1, step=1.0)
    files = {"coded": sound.read_bytes()}
    moved = {"a": a, "b": b, "same": base["same"]}
    nnc.compress(moved, sound, threads=1, step=0.2, reference=BAD_FOLDER / BASES[0], overwrite=True)
    files["referenced"] = sound.read_bytes()
    nnc.compress({"field": smooth_field(g, 48, 40)}, sound, threads=1, snr=34, tools="tiles", overwrite=True)
    files["tiled"] = sound.read_bytes()
    with forcing([random_network("hyper", 1)]):
        nnc.compress({"a": coded["a"]}, sound, threads=1, step=1.0, entropy="hyper", overwrite=True)
    files["learned"] = sound.read_bytes()
    sound.unlink()
    return files


def write_bad(cases: list[Bad]) -> None:
    for name, base in zip(BASES, make_bases()):
        if not (BAD_FOLDER / name).exists():
            nnc.compress(base, BAD_FOLDER / name, threads=1, step=0.5)
    files = make_sound()
    for case in cases:
        damaged = case.damage(files[case.sound])
        if damaged == files[case.sound]:
            raise SystemExit(f"{case.name}: the damage changes nothing")
        case.path.write_bytes(damaged)
        origin = {"made by": "tests/make_golden.py", "nnc": nnc.__version__}
        case.path.with_suffix(".json").write_text(json.dumps({"origin": origin, "error": case.error}, indent=1) + "\n")
