"""Damaged and hostile files that are the difference to a reference, and damaged references: every one ends in one of the four
errors or in bit-identical tensors, without a warning, and without taking memory before the reference is known to fit."""
from __future__ import annotations

import random
import sys
import zlib
from collections.abc import Iterator
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import nnc
from nnc.bits import Writer
from nnc.coder import checksum
from nnc.container import open_file
from nnc.directory import Directory, ReferenceEntry, Unit
from nnc.entropy.explicit import ModelBank
from nnc.fields import Codes, Orders, Prediction
from nnc.unit import DTYPES, Record

sys.path.insert(0, str(Path(__file__).parent))
import test_damage as damage  # noqa: E402
from golden_damage import container_bytes  # noqa: E402
from reference_decoder import Container  # noqa: E402
from test_damage import (  # noqa: E402
    NONE,
    ORIGIN,
    REFUSAL,
    at_most,
    change_bytes,
    check_bytes,
    check_reading,
    seal,
)

pytestmark = pytest.mark.slow  # half a minute in all
State = dict[str, torch.Tensor]
BASE, PLAIN_BASE = "base.safetensors", "plain.safetensors"


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder with two references of the same tensors, one compressed without loss."""
    with damage.folder_in_memory() as folder:
        save_file(base_state(), folder / PLAIN_BASE)
        nnc.compress(base_state(), folder / BASE, lossless=True, threads=1)
        yield folder


def base_state() -> State:
    draw = torch.Generator().manual_seed(5)
    return {"first": torch.randn(12, 10, generator=draw), "second": torch.randn(8, 12, 2, generator=draw),
            "half": torch.randn(14, 10, generator=draw).half(), "steps": torch.randint(0, 1 << 40, (30,), generator=draw),
            "flags": torch.arange(9) % 2 == 0,
            "spare": torch.randn(5, generator=draw)}


def sample_state() -> State:
    """Rows and columns in another order, some rows unrelated; a tensor that is the same, one that differs without loss, and one
    of its own."""
    draw, base = torch.Generator().manual_seed(6), base_state()
    order = torch.randperm(12, generator=draw)
    first = base["first"][order] + 0.1 * torch.randn(12, 10, generator=draw)
    first[:3] = torch.randn(3, 10, generator=draw)
    return {"first": first, "second": base["second"][:, order] + 0.1 * torch.randn(8, 12, 2, generator=draw),
            "half": (base["half"] + 0.1 * torch.randn(14, 10, generator=draw)).half(),
            "steps": base["steps"] + torch.arange(30) % 2, "flags": base["flags"], "own": torch.randn(6, 7, generator=draw)}


@pytest.fixture(scope="module", params=[BASE, PLAIN_BASE])
def small(place: Path, request: pytest.FixtureRequest) -> tuple[bytes, State]:
    path = place / "small.safetensors"
    nnc.compress(sample_state(), path, step=0.4, threads=1, reference=place / request.param, overwrite=True)
    directory = open_file(path).directory
    assert [r.kind for r in directory.records if r.referenced] == ["coded", "coded", "coded", "exact", "same"]
    assert directory.records[0].coding.prediction.orders == Orders(1, 0) and path.stat().st_size < 1500
    return path.read_bytes(), nnc.load(path, threads=1)


# ---- bytes of a good file, and of its reference -----------------------------------------------------------------------

def test_every_cut_is_refused(place, small):
    data, expected = small
    assert check_bytes(place, data, expected) is None
    for length in range(len(data)):
        assert isinstance(check_bytes(place, data[:length], None), nnc.Corruption), length


@pytest.mark.parametrize("seed", range(3))
def test_changed_bytes_are_refused_or_harmless(place, small, seed):
    data, expected = small
    draw = random.Random(seed)
    start = damage.data_start(data)
    for _ in range(500):
        check_bytes(place, change_bytes(data, draw, 0, len(data)), expected)
    for _ in range(100):
        check_bytes(place, change_bytes(data, draw, 0, start), expected)
    refused = [check_bytes(place, change_bytes(data, draw, start, len(data)), expected) for _ in range(200)]
    assert sum(map(bool, refused)) >= 199  # two changes may cancel


@pytest.fixture
def reference(place: Path, small: tuple[bytes, State]) -> Iterator[Path]:
    """The reference of `small`, which is put right again after a test."""
    path = place / open_file(place / "small.safetensors").directory.reference.hint
    good = path.read_bytes()
    yield path
    path.write_bytes(good)


def test_every_cut_of_the_reference_is_refused(place, small, reference):
    good = reference.read_bytes()
    for length in range(len(good)):
        reference.write_bytes(good[:length])
        assert check_bytes(place, small[0], None), length


def test_changed_bytes_of_the_reference_are_refused_or_harmless(place, small, reference):
    data, expected = small
    good, draw, refused = reference.read_bytes(), random.Random(41), 0
    for _ in range(800):
        reference.write_bytes(change_bytes(good, draw, 0, len(good)))
        refused += check_bytes(place, data, expected) is not None
    assert refused > 700  # one tensor of the reference is not taken


# ---- checksums made good again ---------------------------------------------------------------------------------------

def parts(place: Path) -> tuple[bytes, Directory, bytes]:
    """Of the good file: the directory inflated and parsed, the bytes of its only unit."""
    path = place / "small.safetensors"
    container, data = open_file(path), path.read_bytes()
    (offset, length), = container.places
    assert offset + length == len(data)
    return container.directory.write(), container.directory, data[offset:]


def test_changed_directories_with_good_checksums_never_crash(place, small):
    directory, _, rest = parts(place)
    assert check_bytes(place, seal(directory, rest), small[1]) is None
    draw, refused = random.Random(21), 0
    for _ in range(1000):
        refused += check_bytes(place, seal(change_bytes(directory, draw, 0, len(directory)), rest), None) is not None
    for length in range(len(directory)):
        assert isinstance(check_bytes(place, seal(directory[:length], rest), None), nnc.Corruption)
    assert refused > 500


def test_changed_units_with_good_checksums_never_crash(place, small):
    _, directory, rest = parts(place)
    draw = random.Random(23)
    for _ in range(500):
        changed = change_bytes(rest, draw, 0, len(rest))
        unit = replace(directory.units[0], checksum=checksum(changed))
        check_bytes(place, seal(replace(directory, units=(unit,)).write(), changed), None)


def test_changed_digests_of_the_reference_are_refused(place, small):
    _, directory, rest = parts(place)
    for bit in range(64):
        digest = (int.from_bytes(directory.units[0].reference, "little") ^ 1 << bit).to_bytes(8, "little")
        changed = replace(directory, units=(replace(directory.units[0], reference=digest),))
        assert isinstance(check_bytes(place, seal(changed.write(), rest), None), nnc.InvalidArgument)


def test_levels_of_a_prediction_are_in_the_digest(place, small):
    """A changed stream of a predicted tensor, with the checksum set right again."""
    _, directory, rest = parts(place)
    draw, end = random.Random(24), len(rest)
    begin = end - directory.units[0].stream
    assert directory.records[0].joined and begin < end
    for _ in range(300):
        changed = change_bytes(rest, draw, begin, end)
        unit = replace(directory.units[0], checksum=checksum(changed))
        assert changed == rest or check_bytes(place, seal(replace(directory, units=(unit,)).write(), changed), None)


# ---- fields that no writer makes -------------------------------------------------------------------------------------

def reference_field(name: bytes = BASE.encode(), permutations: tuple[tuple[int, bytes], ...] = (),
                    number: int | None = None) -> bytes:
    """What a directory says of its reference, whatever it be; number: of permutations, as it is claimed."""
    out = Writer()
    out.block(name)
    out.varint(len(permutations) if number is None else number)
    for length, packed in permutations:
        out.varint(length)
        out.block(packed)
    return out.data()


def pack(*records: Record, data: bytes = b"", taken: bytes = bytes(8), field: bytes = b"\1" + reference_field()) -> bytes:
    """A file with these records in one unit; field: the number of references and what follows it; taken: digest of what they
    take from the reference."""
    units = (Unit(len(records), False, checksum(data), 0, taken if any(r.referenced for r in records) else b""),)
    text = Directory(ModelBank(), ORIGIN, records, units).write()
    at = text.index(ORIGIN.encode()) + len(ORIGIN)
    assert text[at] == 0  # no reference
    return seal(text[:at] + field + text[at + 1:], data)


def predicted(shape: tuple[int, ...] = (12, 10), orders: tuple[int, int] = (0, 0), confidence: Codes = NONE, **choices) -> Record:
    """A record that is the difference to `first`: one CTU, no bytes."""
    record = damage.coded(shape, **{"split": 1, "height": shape[0], "width": max(1, int(np.prod(shape[1:])))} | choices)
    return replace(record, name="first", coding=replace(record.coding, prediction=Prediction(Orders(*orders), confidence)))


def same(name: str = "first", shape: tuple[int, ...] = (12, 10), dtype: torch.dtype = torch.float32) -> Record:
    return Record(name, dtype, shape, "same")


def differing(shape: tuple[int, ...], data: bytes, name: str = "steps", dtype: torch.dtype = torch.int64) -> Record:
    return Record(name, dtype, shape, "exact", filter="reference", length=len(data))


def digest_of(*names: str) -> bytes:
    """Section 12 of the page."""
    base = base_state()
    data = [bytes([DTYPES.id(base[n].dtype)]) + base[n].flatten().view(torch.uint8).numpy().tobytes() for n in names]
    each = [blake2b(tensor, digest_size=8).digest() for tensor in data]
    return blake2b(b"".join(each), digest_size=8).digest()


def order_of(steps: list[int], width: int = 1) -> bytes:
    """An order from its steps, in planes."""
    return zlib.compress(b"".join(bytes(step >> 8 * b & 255 for step in steps) for b in range(width)))


def with_order(length: int, packed: bytes, **more) -> bytes:
    return pack(same(), field=b"\1" + reference_field(permutations=((length, packed),), **more), taken=digest_of("first"))


def named(name: bytes) -> bytes:
    return pack(same(), field=b"\1" + reference_field(name), taken=digest_of("first"))


def codes(data: bytes, mode: str = "deflated", spread: int = 0) -> Codes:
    return Codes(mode, spread, len(data))


def trusting(data: bytes, mode: str = "deflated", spread: int = 0) -> bytes:
    """The rows are not coded, and their confidences are these bytes."""
    dead = zlib.compress(b"\xc0" * 12)
    record = predicted(rows=codes(dead), confidence=codes(data, mode, spread))
    return pack(record, data=dead + data, taken=digest_of("first"))


TURNED = order_of([1, 11] + [0] * 10)  # of 12: 1, 1, ...
BOMB = zlib.compress(bytes(1 << 26), 9)
DAMAGED = {
    "two references": pack(same(), field=b"\2" + 2 * reference_field()),
    "number of references that does not end": pack(same(), field=b"\x80" * 20),
    "same without reference": pack(same(), field=b"\0"),
    "predicted without reference": pack(predicted(), field=b"\0"),
    "difference without reference": pack(differing((30,), b""), field=b"\0"),
    "folder above": named(b".."), "folder itself": named(b"."), "slash": named(b"../base.safetensors"),
    "absolute": named(b"/etc/passwd"), "inner folder": named(b"a/base.safetensors"),
    "trailing slash": named(b"base.safetensors/"),
    "backslash": named(b"..\\base.safetensors"), "drive": named(b"C:base.safetensors"), "zero byte": named(b"base\0.safetensors"),
    "line break": named(b"base\n.safetensors"), "escape": named(b"\x1b[2Jbase"), "not UTF-8": named(b"\xffbase"),
    "surrogate": named(b"\xed\xa0\x80"), "right to left": named("\u202ebase".encode()),
    "line separator": named("a\u2028b".encode()),
    "no-break space": named("a\xa0b".encode()), "long name": named(b"n" * 201),
    "longer name than the directory": pack(same(), field=b"\1\xff\x01abc"),
    "permutations": pack(same(), field=b"\1" + reference_field(number=(1 << 19) + 1)),
    "permutations beyond the directory": pack(same(), field=b"\1" + reference_field(number=1 << 12)),
    "length 0": with_order(0, zlib.compress(b"")), "length 1": with_order(1, order_of([0])),
    "length beyond 2^20": with_order((1 << 20) + 1, zlib.compress(bytes(3 * ((1 << 20) + 1)), 9)),
    "length beyond its bytes": with_order(1 << 20, b"x" * 11),
    "length of 2^40": with_order(1 << 40, b""), "order without bytes": with_order(2, b""),
    "order not deflated": with_order(12, b"not deflated"), "order cut": with_order(12, TURNED[:-1]),
    "order with more behind": with_order(12, TURNED + b"\0"), "order too short": with_order(12, zlib.compress(bytes(11))),
    "order too long": with_order(12, zlib.compress(bytes(13))),
    "order of another width": with_order(257, zlib.compress(bytes(257))),
    "order of a width too many": with_order(256, zlib.compress(bytes(512))), "order that inflates to much": with_order(12, BOMB),
    "place twice": with_order(12, TURNED), "place twice, at the end": with_order(3, order_of([0, 0, 1])),
    "step of the length": with_order(3, order_of([0, 3, 0])), "step beyond the length": with_order(3, order_of([255, 0, 0])),
    "step beyond the length in an upper plane": with_order(257, order_of([1 << 8 | 1] + [0] * 256, 2)),
    "rows in an order that is not there": pack(predicted(orders=(1, 0))),
    "columns in an order that is not there": pack(predicted(orders=(0, 7))),
    "rows of another length": pack(
        predicted(orders=(1, 0)), field=b"\1" + reference_field(permutations=((5, order_of([0] * 5)),))),
    "columns of another length": pack(
        predicted(orders=(0, 1)), field=b"\1" + reference_field(permutations=((12, order_of([0] * 12)),))),
    "order longer than the axis": pack(
        predicted(orders=(1, 0)), field=b"\1" + reference_field(permutations=((24, order_of([0] * 24)),))),
    "order of the transposed plane": pack(predicted(orders=(1, 0), transposed=True, height=10, width=12),
                                          field=b"\1" + reference_field(permutations=((10, order_of([0] * 10)),))),
    "prediction on the logarithmic grid": pack(predicted(labelling=2)),
    "prediction of integers": pack(replace(predicted(), dtype=torch.int32)),
    "prediction of nothing": pack(predicted((0, 10), height=1)),
    "difference of 16 bytes": pack(differing((2,), b"", dtype=torch.complex128)),
    "mode of the confidences": pack(predicted(confidence=Codes("deflated", 24, 0))),
    "length of the confidences": pack(predicted(confidence=Codes("direct", 0, 1 << 44))),
    "length of the confidences beyond the file": pack(predicted(confidence=Codes("direct", 0, 1 << 40))),
}
DAMAGED_UNITS = {
    "confidence of 9 eighths": trusting(zlib.compress(b"\1" + bytes(11))),
    "confidence below 0": trusting(zlib.compress(b"\xf7" * 12)),
    "confidence that says not coded": trusting(zlib.compress(b"\xc0" * 12)),
    "too few confidences": trusting(zlib.compress(bytes(11))),
    "too many confidences": trusting(zlib.compress(bytes(13))), "confidences not deflated": trusting(b"not deflated"),
    "confidences that inflate to much": trusting(BOMB),
    "confidences that do not end": trusting(bytes(range(1, 200)), "direct", 3),
    "confidences that end in zero": trusting(b"\1\0", "differences", 3),
    "confidences of an empty stream": trusting(b"", "direct", 3),
    "difference too long": pack(differing((30,), d := zlib.compress(bytes(241))), data=d, taken=digest_of("steps")),
    "difference too short": pack(differing((30,), d := zlib.compress(bytes(239))), data=d, taken=digest_of("steps")),
    "difference that inflates to much": pack(differing((30,), BOMB), data=BOMB, taken=digest_of("steps")),
    "difference not deflated": pack(differing((30,), b"deflated"), data=b"deflated", taken=digest_of("steps")),
    "bool that becomes 2": pack(
        differing((9,), d := zlib.compress(b"\2" * 9), "flags", torch.bool), data=d, taken=digest_of("flags")),
}


def check_refused(place: Path, data: bytes, error: type[nnc.NncError]) -> None:
    path = place / "hostile.safetensors"
    path.write_bytes(data)
    with at_most(REFUSAL):
        assert type(check_reading(path, None)) is error
        assert type(check_reading(path, None, nnc.verify)) is error


@pytest.mark.parametrize("case", DAMAGED | DAMAGED_UNITS)
def test_hostile_fields_are_refused_at_once(place, case):
    check_refused(place, (DAMAGED | DAMAGED_UNITS)[case], nnc.Corruption)


def test_the_same_fields_are_read_where_they_are_right(place):
    """What the hostile files are made of is sound but for one thing."""
    turned = order_of([1] + [0] * 11)
    for data in (pack(same(), taken=digest_of("first")), trusting(zlib.compress(bytes(12))), with_order(12, turned),
                 trusting(zlib.compress(b"\xf8" * 12)), named(BASE.encode()), named(PLAIN_BASE.encode()),
                 pack(differing((30,), d := zlib.compress(bytes(240))), data=d, taken=digest_of("steps"))):
        assert check_bytes(place, data, None) is None


HUGE = 1 << 40
ELSEWHERE = {
    "no such file": named(b"nowhere.safetensors"), "no name": named(b""), "a folder": named(b"folder"),
    "same, no such tensor": pack(same("nothing")),
    "same of 2^40": pack(same(shape=(HUGE,))), "same of many axes": pack(same(shape=(1,) * 13 + (12, 10))),
    "same of another dtype": pack(same(dtype=torch.int32), taken=digest_of("first")),
    "same of other values": pack(same()), "same of the other axes": pack(same(shape=(10, 12)), taken=digest_of("first")),
    "predicted of 2^40": pack(predicted((1 << 20, 1 << 20))), "predicted row of 2^40": pack(predicted((1, HUGE))),
    "predicted column of 2^40": pack(predicted((HUGE, 1), transposed=True, height=1, width=HUGE)),
    "predicted of other values": pack(predicted()),
    "predicted from integers": pack(replace(predicted((30, 1)), name="steps"), taken=digest_of("steps")),
    "difference of 2^40": pack(differing((HUGE,), BOMB), data=BOMB),
    "difference of another dtype": pack(differing((30,), b"", dtype=torch.float64), taken=digest_of("steps")),
    "many of 2^40": pack(*[same(f"t{number}", (HUGE,)) for number in range(1 << 12)]),
}


@pytest.mark.parametrize("case", ELSEWHERE)
def test_what_the_reference_does_not_have_is_refused_at_once(place, case):
    (place / "folder").mkdir(exist_ok=True)
    check_refused(place, ELSEWHERE[case], nnc.InvalidArgument)


# ---- much from little ------------------------------------------------------------------------------------------------

def whole(directory: Directory) -> bytes:
    """A file without bytes of units, as writers lay it out."""
    return container_bytes(Container(0, directory.write(), b"", {}))


def padded(permutations: tuple[tuple[int, bytes], ...], padding: int) -> bytes:
    """A file with these permutations, and so many bytes in a set-aside tensor name that its directory may inflate to them."""
    noise = random.Random(3).randbytes(padding).hex()[:4096]
    return pack(same(noise), field=b"\1" + reference_field(permutations=permutations))


@pytest.mark.parametrize("length, count", [(1 << 12, (1 << 8) + 1), (1 << 20, 2), (1 << 24, 3)])
def test_few_bytes_do_not_ask_for_long_orders(place, length, count):
    """The order that changes nothing deflates well, and deflates again with the directory around it."""
    width = 1 + (length > 1 << 8) + (length > 1 << 16)
    data = padded(((length, zlib.compress(bytes(width * length), 9)),) * count, 2048)
    assert len(data) < 4000
    with at_most(REFUSAL):
        assert check_bytes(place, data, None)


def test_time_grows_with_the_length_of_a_chain(place):
    """Two units per file, whose tensors alternate between the units of the file below."""
    state = {f"t{number:02d}": torch.full((3,), float(number)) for number in range(32)}
    save_file(state, place / "chain-0.safetensors")
    each = {name: blake2b(b"\0" + t.numpy().tobytes(), digest_size=8).digest() for name, t in state.items()}
    names, seconds = list(state), []
    for number in range(1, 7):
        order = names if number % 2 else names[::2] + names[1::2]
        units = tuple(Unit(16, False, 0, 0, blake2b(b"".join(each[n] for n in half), digest_size=8).digest())
                      for half in (order[:16], order[16:]))
        records = tuple(Record(name, torch.float32, (3,), "same") for name in order)
        path = place / f"chain-{number}.safetensors"
        entry = ReferenceEntry(f"chain-{number - 1}.safetensors")
        path.write_bytes(whole(Directory(ModelBank(), ORIGIN, records, units, reference=entry)))
        start = perf_counter()
        assert check_reading(path, {name: state[name] for name in order}) is None
        seconds.append(perf_counter() - start)
    assert seconds[-1] < 0.2 or seconds[-1] < 10 * seconds[0]
