"""Damaged and hostile files: every one ends in one of the four errors or in bit-identical tensors, without a warning (they are
errors here), and without taking memory that the tensors of the file do not need.

The damage is of three kinds: bytes of a good file cut, changed, added or moved; directories whose checksums were made good again;
files built by hand from records that no writer makes.
"""
from __future__ import annotations

import gc
import json
import os
import random
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
import torch

import nnc
from nnc.bits import Writer
from nnc.coder import chain_digests, checksum, pack_words
from nnc.container import INDEX_NAME, Container, open_file
from nnc.directory import Directory, Unit
from nnc.entropy.explicit import CodedTable, ExplicitSet, ModelBank
from nnc.entropy.parametric import level_frequencies
from nnc.fields import Codes, Lanes, Steps
from nnc.kernels.words import encode_tile
from nnc.quantize.trellis import make_trellis
from nnc.unit import Coding, Record

pytestmark = pytest.mark.slow  # twenty seconds in all
FOUR = (nnc.InvalidArgument, nnc.Unsupported, nnc.Corruption, nnc.InsufficientData)
MEGABYTE = 1 << 20
REFUSAL = 64 * MEGABYTE  # a file that is refused may have taken this much
ORIGIN = '{"kind":"module","metadata":[],"wrapper":"","extras":""}'
State = dict[str, torch.Tensor]


@contextmanager
def folder_in_memory() -> Iterator[Path]:
    """A folder in memory where the machine has one: ten thousand small files are written to it."""
    fast = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=fast, prefix="nnc-damage-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with folder_in_memory() as folder:
        yield folder


def sample_state() -> State:
    """Few bytes, many kinds of record: five CTUs (four of one shape), logarithmic, bfloat16, exact, constant, aliases, plain."""
    draw = torch.Generator().manual_seed(5)
    matrix = torch.randn(1025, 256, generator=draw) * (torch.arange(1025) % 103 == 0)[:, None]  # ten live rows
    bias = torch.randn(12, generator=draw)
    return {"matrix": matrix, "bias": bias, "variance": torch.rand(9, generator=draw) + 0.5,
            "half": torch.randn(6, 5, generator=draw).bfloat16(), "steps": torch.tensor([3, 1 << 40, -7, 11]),
            "zeros": torch.zeros(5, 3), "tied": matrix, "equal": bias.clone(), "empty": torch.zeros(0, 3),
            "nnc_gain": torch.randn(4, generator=draw).half(), "flags": torch.tensor([True, False, True])}


@pytest.fixture(scope="module")
def small(place: Path) -> tuple[bytes, State]:
    path = place / "small.safetensors"
    nnc.compress(sample_state(), path, step=0.4, threads=1, rules=("nnc_gain=skip",))
    kinds = {record.kind for record in open_file(path).directory.records}
    assert kinds == {"coded", "exact", "constant", "alias", "plain"} and path.stat().st_size < 2500
    return path.read_bytes(), nnc.load(path, threads=1)


@pytest.fixture(scope="module")
def large(place: Path) -> tuple[bytes, State]:
    """Two units of 17,000 bytes in entries of their own, and small units before and between them."""
    path = place / "large.safetensors"
    draw = torch.Generator().manual_seed(6)
    first, second = torch.randint(0, 256, (2, 17_000), generator=draw, dtype=torch.uint8)
    a, b = torch.randn(2, 20, 20, generator=draw)
    nnc.compress({"a": a, "first": first, "b": b, "second": second}, path, step=0.05, threads=1)
    container = open_file(path)
    assert [unit.own for unit in container.directory.units] == [False, True, False, True]
    return path.read_bytes(), nnc.load(path, threads=1)


@pytest.fixture(scope="module")
def shards(place: Path) -> tuple[Path, State]:
    folder = place / "shards"
    state = {name: value for name, value in sample_state().items() if name != "matrix"}
    nnc.compress(state, folder, step=0.1, shard_bytes=60, threads=1)
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder, nnc.load(folder, threads=1)


def is_same(one: State, other: State) -> bool:
    """Names, order, dtypes, shapes and bytes."""
    return list(one) == list(other) and all(
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (a, b)))
        for a, b in zip(one.values(), other.values()))


def check_reading(path: Path, expected: State | None, read: Callable = nnc.load) -> nnc.NncError | None:
    """The error of a read, checked for form; None if it went through, with the `expected` tensors if there are any."""
    try:
        state = read(path, threads=1)
    except nnc.NncError as problem:
        assert type(problem) in FOUR
        message = str(problem)
        assert message and len(message.encode().splitlines()) == 1
        return problem
    assert expected is None or is_same(state, expected)
    return None


def check_bytes(place: Path, data: bytes, expected: State | None) -> nnc.NncError | None:
    path = place / "damaged.safetensors"
    path.write_bytes(data)
    return check_reading(path, expected)


def change_bytes(data: bytes, draw: random.Random, begin: int, end: int) -> bytes:
    """One to four bytes in begin..end - 1 replaced by others."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        changed[draw.randrange(begin, end)] ^= draw.randint(1, 255)
    return bytes(changed)


def data_start(data: bytes) -> int:
    return 8 + struct.unpack("<Q", data[:8])[0]


def edit_header(data: bytes, edit: Callable[[dict], object]) -> bytes:
    start = data_start(data)
    header = json.loads(data[8:start])
    edit(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[start:]


# ---- bytes of a good file --------------------------------------------------------------------------------------------


def test_every_cut_is_refused(place, small):
    data, _ = small
    for length in range(len(data)):
        assert isinstance(check_bytes(place, data[:length], None), nnc.Corruption), length


def test_cuts_of_a_file_with_large_units_are_refused(place, large):
    data, _ = large
    for length in [*range(0, len(data), 41), len(data) - 1]:
        assert isinstance(check_bytes(place, data[:length], None), nnc.Corruption), length


@pytest.mark.parametrize("seed", range(5))
def test_changed_bytes_are_refused_or_harmless(place, small, seed):
    data, expected = small
    draw = random.Random(seed)
    start = data_start(data)
    for _ in range(600):
        check_bytes(place, change_bytes(data, draw, 0, len(data)), expected)
    for _ in range(200):
        check_bytes(place, change_bytes(data, draw, 0, start), expected)
    refused = [check_bytes(place, change_bytes(data, draw, start, len(data)), expected) for _ in range(200)]
    assert sum(map(bool, refused)) >= 199  # two changes may cancel


def test_changed_bytes_of_large_units_are_refused(place, large):
    data, expected = large
    draw = random.Random(11)
    for _ in range(300):
        check_bytes(place, change_bytes(data, draw, 0, len(data)), expected)


@pytest.mark.parametrize("more", [b"\0", b" ", b"}", bytes(8), b"x" * 1000])
def test_added_bytes_are_refused(place, small, more):
    data, _ = small
    start = data_start(data)
    for at in (0, 8, start, start + 12, len(data)):
        assert check_bytes(place, data[:at] + more + data[at:], None)


def test_added_bytes_that_the_header_owns_are_refused(place, small):
    def grow(header: dict) -> None:
        header["nnc"]["data_offsets"][1] += 8
        header["nnc_gain#"]["data_offsets"] = [offset + 8 for offset in header["nnc_gain#"]["data_offsets"]]

    data, _ = small
    end = json.loads(data[8:data_start(data)])["nnc"]["data_offsets"][1] + data_start(data)
    assert isinstance(check_bytes(place, edit_header(data[:end] + bytes(8) + data[end:], grow), None), nnc.Corruption)
    last = len(data) - data_start(data)
    more = {"dtype": "U8", "shape": [8], "data_offsets": [last, last + 8]}
    spare = edit_header(data + bytes(8), lambda header: header.update(more=more))
    assert isinstance(check_bytes(place, spare, None), nnc.Corruption)


def test_swapped_units_are_refused(place, large):
    data, _ = large
    path = place / "large.safetensors"
    places = open_file(path).places
    (a, size), (b, other) = places[1], places[3]
    assert size == other
    swapped = data[:a] + data[b:b + size] + data[a + size:b] + data[a:a + size] + data[b + size:]
    assert isinstance(check_bytes(place, swapped, None), nnc.Corruption)

    def exchange(header: dict) -> None:
        header["first"], header["second"] = header["second"], header["first"]

    assert isinstance(check_bytes(place, edit_header(data, exchange), None), nnc.Corruption)


def change_entry(key: str, **fields) -> Callable[[dict], object]:
    return lambda header: header[key].update(fields)


@pytest.mark.parametrize("edit, error", [
    (lambda h: h["__metadata__"].update(nnc="2"), nnc.Unsupported),
    (lambda h: h["__metadata__"].update(nnc=1), nnc.Unsupported),
    (lambda h: h["__metadata__"].update(nnc=[]), nnc.Unsupported),
    (lambda h: h["__metadata__"].pop("nnc"), nnc.Corruption),
    (lambda h: h.update(__metadata__="1"), nnc.Corruption),
    (lambda h: h.pop("nnc"), nnc.Corruption),
    (lambda h: h.update({"other": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}), nnc.Corruption),
    (change_entry("nnc", data_offsets=[0, 1 << 60]), nnc.Corruption),
    (change_entry("nnc", data_offsets=[0, -1]), nnc.Corruption),
    (change_entry("nnc", data_offsets=[0.0, 1.0]), nnc.Corruption),
    (change_entry("nnc", data_offsets=[False, True]), nnc.Corruption),
    (change_entry("nnc", data_offsets=[0]), nnc.Corruption),
    (change_entry("nnc", data_offsets=None), nnc.Corruption),
    (change_entry("nnc", more=1), nnc.Corruption),
    (change_entry("nnc_gain#", shape=[1 << 62, 1 << 62]), nnc.Corruption),
    (change_entry("nnc_gain#", shape=[2, 2]), nnc.Corruption),
    (change_entry("nnc_gain#", dtype="BF16"), nnc.Corruption),
    (change_entry("nnc_gain#", dtype=["F16"]), nnc.Corruption),
])
def test_edited_headers_are_refused(place, small, edit, error):
    assert type(check_bytes(place, edit_header(small[0], edit), None)) is error


@pytest.mark.parametrize("text", [
    b"", b"[]", b"null", b"{", b"[" * 200_000, b'{"a":' * 200_000, b'"' + b"\xff" * 20 + b'"', b"9" * 10_000, b"\xef\xbb\xbf{}",
    b'{"__metadata__":{"nnc":"1"},"nnc":{"dtype":"U8","shape":[' + b"1" * 9000 + b'],"data_offsets":[0,0]}}',
    b'{"__metadata__":{"nnc":"1"},"nnc":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
], ids=lambda text: repr(text[:20]))
def test_headers_that_are_no_header_are_refused(place, text):
    assert isinstance(check_bytes(place, struct.pack("<Q", len(text)) + text, None), nnc.Corruption)


@pytest.mark.parametrize("length", [1 << 63, (1 << 64) - 1, 100_000_001, 10_000])
def test_header_lengths_beyond_the_file_are_refused(place, small, length):
    assert isinstance(check_bytes(place, struct.pack("<Q", length) + small[0][8:], None), nnc.Corruption)


# ---- checksums made good again ---------------------------------------------------------------------------------------


def seal(directory: bytes, rest: bytes = b"", entries: dict | None = None, raw: int | None = None) -> bytes:
    """A file around a directory, deflated, with a good checksum; `rest`: all bytes after it; `raw`: the length it claims."""
    packed = zlib.compress(directory, 9)
    preamble = struct.pack("<III", len(packed), len(directory) if raw is None else raw, zlib.crc32(packed))
    size = len(preamble) + len(packed) + len(rest)
    header = {"__metadata__": {"nnc": "1"}, "nnc": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}, **(entries or {})}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + preamble + packed + rest


def one_unit(place: Path) -> tuple[bytes, Container, bytes, State]:
    """A file without own entries: its directory inflated, the container, the bytes after the directory."""
    path = place / "one.safetensors"
    if not path.exists():
        state = {name: value for name, value in sample_state().items() if name != "nnc_gain"}
        nnc.compress(state, path, step=0.4, threads=1)
    container = open_file(path)
    (offset, length), data = container.places[0], path.read_bytes()
    assert len(container.places) == 1 and offset + length == len(data)
    return container.directory.write(), container, data[offset:], nnc.load(path, threads=1)


def test_changed_directories_with_good_checksums_never_crash(place):
    directory, _, rest, expected = one_unit(place)
    assert check_bytes(place, seal(directory, rest), expected) is None
    draw = random.Random(21)
    refused = 0
    for _ in range(1500):
        refused += check_bytes(place, seal(change_bytes(directory, draw, 0, len(directory)), rest), None) is not None
    for length in range(len(directory)):
        assert isinstance(check_bytes(place, seal(directory[:length], rest), None), nnc.Corruption)
    assert refused > 500


def test_digest_finds_changed_streams_with_good_checksums(place):
    _, container, rest, expected = one_unit(place)
    record = container.directory.records[0]
    assert record.name == "matrix" and len(record.coding.streams) == 5 and record.joined
    begin, end = len(rest) - container.directory.units[0].stream, len(rest)
    draw = random.Random(22)
    for _ in range(600):
        changed = change_bytes(rest, draw, begin, end)
        unit = replace(container.directory.units[0], checksum=checksum(changed))
        assert changed == rest or check_bytes(place, seal(replace(container.directory, units=(unit,)).write(), changed), expected)


def test_changed_units_with_good_checksums_never_crash(place):
    _, container, rest, _ = one_unit(place)
    draw = random.Random(23)
    for _ in range(600):
        changed = change_bytes(rest, draw, 0, len(rest))
        unit = replace(container.directory.units[0], checksum=checksum(changed))
        check_bytes(place, seal(replace(container.directory, units=(unit,)).write(), changed), None)


# ---- records that no writer makes ------------------------------------------------------------------------------------

NONE = Codes("none", 0, 0)
EVEN = Steps(NONE, 64)


def coded(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, **choices) -> Record:
    """One row, one CTU, one state, scale index 17, no bytes; `choices` replace fields of its Coding."""
    coding = Coding(0, False, False, 1, max(1, torch.Size(shape).numel()), 1, 0, 0, 1.0, 0, 17, 0, NONE, NONE, EVEN, EVEN, (0,))
    return Record("t", dtype, shape, "coded", coding=replace(coding, **choices))


def constant(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, name: str = "t") -> Record:
    return Record(name, dtype, shape, "constant", value=bytes(dtype.itemsize))


def exact(shape: tuple[int, ...], data: bytes, chosen: str = "deflate", dtype: torch.dtype = torch.uint8) -> Record:
    return Record("t", dtype, shape, "exact", filter=chosen, length=len(data))


def pack(*records: Record, data: bytes = b"", bank: ModelBank = ModelBank(), units: tuple[Unit, ...] | None = None) -> bytes:
    """A file with these records in one unit of the bytes `data`."""
    units = (Unit(len(records), False, checksum(data), 0),) if units is None else units
    return seal(Directory(bank, ORIGIN, records, units).write(), data)


def zeros(length: int) -> bytes:
    return zlib.compress(bytes(length), 9)


def alias(name: str, target: int, shape: tuple[int, ...] = (3,)) -> Record:
    return Record(name, torch.float32, shape, "alias", target=target)


def codes(mode: str, data: bytes, spread: int = 3) -> Codes:
    return Codes(mode, spread, len(data))


EMPTY_SET = ExplicitSet(2, ())
REFUSED = {
    "elements": pack(constant((1 << 40,))),
    "elements beyond the limit": pack(constant((1 << 40, 2))),
    "elements of 15 axes": pack(constant((1 << 40,) * 15)),
    "coded elements": pack(coded((1 << 40,))),
    "coded rows": pack(coded((1 << 40,), split=1, height=1 << 40, width=1)),
    "exact elements": pack(exact((1 << 40,), b"", "none")),
    "inflating elements": pack(exact((1 << 40,), zeros(1 << 20)), data=zeros(1 << 20)),
    "many constants": pack(*[constant((1 << 26,), name=str(n)) for n in range(1 << 14)]),
    "axes": pack(replace(constant(()), shape=(1,) * 16)),
    "stream length": pack(coded((4,), streams=(1 << 42,))),
    "stream length beyond the limit": pack(coded((4,), streams=(1 << 44,))),
    "exact length": pack(replace(exact((4,), b""), length=1 << 43)),
    "row codes length": pack(coded((4,), rows=Codes("direct", 0, 1 << 40))),
    "CTUs": pack(coded((1 << 30,), width=1, streams=(0,) * 2)),
    "CTU height": pack(coded((4,), height=2, streams=(0, 0))),
    "CTU width": pack(coded((4,), width=5, streams=(0, 0))),
    "CTU width zero": pack(coded((4,), height=1, width=0, streams=(0, 0))),
    "plane recipe": pack(coded((4,), split=2)),
    "coded dtype": pack(coded((4,), torch.int32)),
    "coded without elements": pack(coded((0, 4))),
    "states and labelling": pack(coded((4,), labelling=1)),
    "logarithmic states": pack(coded((4,), labelling=2, states=8)),
    "logarithmic follow": pack(coded((4,), labelling=2, follow=True)),
    "reserved labelling": pack(coded((4,), labelling=3)),
    "bypass bits": pack(coded((4,), shift=17)),
    "base": pack(coded((4,), base=37)),
    "step zero": pack(coded((4,), step=0.0)),
    "step negative": pack(coded((4,), step=-1.0)),
    "step infinite": pack(coded((4,), step=float("inf"))),
    "step NaN": pack(coded((4,), step=float("nan"))),
    "model": pack(coded((4,), model=8)),
    "model beyond the bank": pack(coded((4,), model=9), bank=ModelBank((EMPTY_SET,))),
    "logarithmic elements": pack(coded(((1 << 20) + 1,), labelling=2, base=0)),
    "small CTUs": pack(coded((1 << 13,), width=1 << 11, streams=(0,) * 4)),
    "shards": seal(b"\0\0" + bytes(20)),
    "shard beyond their number": seal(b"\2\2" + bytes(30)),
    "one shard of two": seal(b"\2\0" + bytes(4) + Directory(ModelBank(), ORIGIN, (), ()).write()[1:]),
    "digest": pack(coded((4,))),
    "sets": pack(constant(()), bank=ModelBank((EMPTY_SET,) * 65)),
    "set shape": pack(constant(()), bank=ModelBank((replace(EMPTY_SET, shape=8),))),
    "set number": pack(constant(()), bank=ModelBank((ExplicitSet(0, ((1, CodedTable(0, (8, 8))),)),))),
    "set order": pack(constant(()), bank=ModelBank((ExplicitSet(0, ((5, CodedTable(0, (8, 8))),) * 2),))),
    "set symbols": pack(constant(()), bank=ModelBank((ExplicitSet(0, ((5, CodedTable(0, (8,))),)),))),
    "set symbols beyond the limit": pack(constant(()), bank=ModelBank((ExplicitSet(0, ((5, CodedTable(0, (8,) * 259)),)),))),
    "set length": pack(constant(()), bank=ModelBank((ExplicitSet(0, ((5, CodedTable(0, (8, 193))),)),))),
    "set low": pack(constant(()), bank=ModelBank((ExplicitSet(0, ((5, CodedTable(-259, (8, 8))),)),))),
    "codes outside": pack(coded((6,), columns=codes("deflated", d := zlib.compress(b"\x41" * 6))), data=d),
    "codes too few": pack(coded((6,), columns=codes("deflated", d := zeros(5))), data=d),
    "codes too many": pack(coded((6,), columns=codes("deflated", d := zeros(1 << 20))), data=d),
    "codes not deflated": pack(coded((6,), columns=codes("deflated", d := b"deflated")), data=d),
    "codes with more behind": pack(coded((6,), base=0, columns=codes("deflated", d := zeros(6) + b"more", 0)), data=d),
    "codes that end in a zero word": pack(coded((6,), columns=codes("direct", d := b"\1" + bytes(7))), data=d),
    "codes of zeros": pack(coded((6,), columns=codes("differences", d := bytes(4))), data=d),
    "codes that do not end": pack(coded((6,), columns=codes("direct", d := bytes(range(1, 200)))), data=d),
    "codes of an empty stream": pack(coded((6,), columns=codes("direct", b""))),
    "stream that does not end": pack(coded((6,), streams=(40,)), data=bytes(range(1, 41))),
    "differences of 16 bytes": pack(exact((1,), d := zeros(16), "differences", torch.complex128), data=d),
    "exact too long": pack(exact((4,), d := zeros(5)), data=d),
    "exact too short": pack(exact((4,), d := zeros(3)), data=d),
    "exact with more behind": pack(exact((4,), d := zeros(4) + b"more"), data=d),
    "exact not deflated": pack(exact((4,), b"abcdefgh"), data=b"abcdefgh"),
    "exact of another length": pack(exact((4,), b"abc", "none"), data=b"abc"),
    "plain in a small unit": pack(Record("t", torch.uint8, (4,), "plain"), data=b"abcd"),
    "equal names": pack(constant((3,)), constant((4,))),
    "alias to itself": pack(alias("a", 0)),
    "alias cycle": pack(alias("a", 1), alias("b", 0)),
    "alias to an alias": pack(constant((3,)), alias("a", 0), alias("b", 1)),
    "alias to nothing": pack(constant((3,)), alias("a", 2)),
    "alias far away": pack(constant((3,)), alias("a", 1 << 23)),
    "alias of another shape": pack(constant((3,)), alias("a", 0, (3, 1))),
    "alias of another dtype": pack(constant((3,), torch.float16), alias("a", 0)),
    "no unit": pack(constant((3,)), units=()),
    "unit without records": pack(constant((3,)), units=(Unit(1, False, 0, 0), Unit(0, False, 0, 0))),
    "unit of too many records": pack(constant((3,)), units=(Unit(2, False, 0, 0),)),
    "digest of constants": pack(constant((3,)), units=(Unit(1, False, 0, 1),)),
    "checksum of constants": pack(constant((3,)), units=(Unit(1, False, 1, 0),)),
    "raw length": seal(bytes(50), raw=(1 << 29) - 1),
    "raw length at the limit": seal(bytes(50), raw=1 << 28),
    "references": seal(b"\1\0\0" + b"\2" + bytes(20)),
    "tensors": seal(b"\1\0\0\0" + b"\xff\xff\xff\x07" + bytes(16)),
    "tensors beyond the limit": seal(b"\1\0\0\0" + b"\xff" * 8 + b"\x01" + bytes(16)),
    "endless varint": seal(b"\1\0\0\0" + b"\x80" * 1000),
}


@pytest.mark.parametrize("case", REFUSED)
def test_hostile_files_are_refused_at_once(place, small, case):
    path = place / "hostile.safetensors"
    path.write_bytes(REFUSED[case])
    with at_most(REFUSAL):
        assert isinstance(check_reading(path, None), nnc.Corruption | nnc.InvalidArgument)
        assert isinstance(check_reading(path, None, nnc.verify), nnc.Corruption | nnc.InvalidArgument)


@pytest.mark.parametrize("raw", [100, 1 << 26])
def test_directories_that_inflate_to_much_are_refused_at_once(place, small, raw):
    data = seal(bytes(1 << 26), raw=raw)
    with at_most(REFUSAL):
        assert isinstance(check_bytes(place, data, None), nnc.Corruption)


def test_few_bytes_do_not_ask_for_many_objects(place, small):
    """A directory deflates a thousand times: what is made of each of its bytes must stay small, or be bounded by the tensors."""
    tiles, count = 1 << 18, 1 << 18
    lanes = Lanes.make(Writer)
    constant(()).write(lanes)
    directory = Writer()
    directory.varint(1)
    directory.varint(0)
    directory.block(ORIGIN.encode())
    directory.varint(0)
    directory.varint(count)
    for lane in lanes:  # the same record again and again; only the name differs in a good file
        directory.block(lane.data() * count)
    directory.varint(0)
    for data in (pack(coded((tiles,), width=1, streams=(0,) * tiles)), seal(directory.data())):
        assert len(data) < 3000
        with at_most(REFUSAL):
            assert isinstance(check_bytes(place, data, None), nnc.Corruption)


def test_many_aliases_take_linear_time(place, small):
    seconds = []
    for count in (1 << 11, 1 << 13):
        data = pack(constant((3,)), *[alias(str(n), 0) for n in range(count)])
        start = perf_counter()
        assert check_bytes(place, data, None) is None
        seconds.append(perf_counter() - start)
    assert seconds[1] < 1.0 or seconds[1] < 8 * seconds[0]


def overflowing_level() -> bytes:
    """A stream whose only level is 127 in the table of scale index 36, then zero bits."""
    counts = level_frequencies(0, 36, 1).counts
    return int(counts[:-2].sum()).to_bytes(4, "little").rstrip(b"\0")


LEVEL = overflowing_level()
LARGEST_CODE = zlib.compress(b"\x40")
DEAD_ROW = zlib.compress(b"\xc0")  # the code -64
NO_CRASH = {
    "no elements, long axes": pack(constant((1 << 40, 1 << 40, 0))),
    "no elements, long axes, exact": pack(exact((1 << 40, 1 << 40, 0), b"", "none")),
    "no elements, fifteen axes": pack(constant((1 << 40,) * 14 + (0,))),
    "row steps beyond float32": pack(
        coded((1, 6), split=1, follow=True, step=3e38, base=0, rows=codes("deflated", LARGEST_CODE)), data=LARGEST_CODE),
    "logarithmic beyond float32": pack(coded((1,), labelling=2, step=3e38, shift=1, base=36, streams=(len(LEVEL),)), data=LEVEL),
    "logarithmic level out of range": pack(coded((1,), labelling=2, shift=16, base=36, streams=(len(LEVEL),)), data=LEVEL),
    "largest step": pack(coded((4,), step=3.4e38, base=0)),
    "smallest step": pack(coded((4,), torch.float16, step=1e-45, base=0)),
    "bool that sums up to neither": pack(exact((3,), d := zlib.compress(b"\1\1\1"), "differences", torch.bool), data=d),
    "bool that is neither": pack(replace(constant((3,), torch.bool), value=b"\2")),
    "no tensors": pack(units=()),
}


@pytest.mark.parametrize("case", NO_CRASH)
def test_odd_files_end_in_tensors_or_errors(place, small, case):
    with at_most(REFUSAL):
        check_bytes(place, NO_CRASH[case], None)


@pytest.mark.parametrize("case", ["constant", "not coded", "not coded, bfloat16", "not coded, steps", "not coded, transposed",
                                  "logarithmic", "deflated", "differences"])
def test_tensors_that_cost_no_bytes_take_a_few_times_their_size(place, small, case):
    size = 1 << 25
    inflating, no_steps, dead_rows = zeros(size), zeros(size // 4), zlib.compress(b"\xc0" * (size >> 14))
    record, stored = {
        "constant": (constant((size // 4,)), b""),
        "not coded": (coded((size // 4,), rows=codes("deflated", DEAD_ROW, 0)), DEAD_ROW),
        "not coded, bfloat16": (coded((size // 2,), torch.bfloat16, rows=codes("deflated", DEAD_ROW, 0)), DEAD_ROW),
        "not coded, steps": (
            coded((size // 4,), rows=codes("deflated", DEAD_ROW, 0), column_steps=steps(no_steps)), DEAD_ROW + no_steps),
        "not coded, transposed": (
            coded((1 << 12, size >> 14), split=1, transposed=True, height=size >> 14, width=1 << 12,
                  rows=codes("deflated", dead_rows, 0)), dead_rows),
        "logarithmic": (coded((1 << 20,), labelling=2, rows=codes("deflated", DEAD_ROW, 0)), DEAD_ROW),
        "deflated": (exact((size,), inflating), inflating),
        "differences": (exact((size // 8,), inflating, "differences", torch.int64), inflating),
    }[case]
    data = pack(record, data=stored)
    with at_most(6 * size + 4 * MEGABYTE):
        assert check_bytes(place, data, None) is None


# ---- step codes and transposed planes --------------------------------------------------------------------------------


class OddUnit(Steps):
    """Step codes whose unit has an id that is not in the table."""

    def write(self, out: Lanes) -> None:
        self.codes.write(out)
        out.codes.byte(self.unit)


STEP = zlib.compress(b"\x40")  # the code 64 for one row or column
SMALL_STEP = zlib.compress(b"\xc0")  # the code -64
ODD = zlib.compress(b"\x01")  # the code 1: with the unit 64 half an octave
COARSEST = zlib.compress(b"\x0a")  # the code 10: with the unit 64 a step of 2^5, the largest of writers on the logarithmic grid
BIG = 2.0 ** 110


def one_level(codes: bytes = b"", scale: int = 36, level: int = 127, dtype: torch.dtype = torch.float32, shift: int = 0,
              **choices) -> bytes:
    """A file of one weight at a level and with the scale index `scale`, a stream after its codes; all checks are right."""
    words = np.empty(8, np.uint32)
    number, digest = encode_tile(np.array([level], np.int32), np.array([scale], np.uint8), ModelBank().table_set(0).arrays,
                                 make_trellis(1).next_state, shift, words)
    stream = pack_words(words[:number])
    unit = Unit(1, False, checksum(codes + stream), chain_digests([digest]))
    return pack(coded((1,), dtype, base=36, shift=shift, streams=(len(stream),), **choices), data=codes + stream, units=(unit,))


def steps(data: bytes, mode: str = "deflated", unit: int = 64, spread: int = 0) -> Steps:
    return Steps(codes(mode, data, spread), unit)


STEPS_REFUSED = {
    "unit of row steps": ("unit of step codes", pack(coded((4,), row_steps=OddUnit(codes("deflated", STEP), 5)), data=STEP)),
    "unit of column steps": ("unit of step codes", pack(coded((1,), column_steps=OddUnit(codes("direct", b""), 255)))),
    "length of row steps": ("does not fit its entry", pack(coded((4,), row_steps=Steps(Codes("direct", 0, 1 << 40), 64)))),
    "length of column steps": ("length", pack(coded((4,), column_steps=Steps(Codes("direct", 0, 1 << 44), 64)))),
    "mode of row steps": ("scale code mode", pack(coded((4,), row_steps=Steps(Codes("deflated", 24, 0), 64)))),
    "row steps outside": ("outside", pack(coded((4,), row_steps=steps(d := zlib.compress(b"\x41"))), data=d)),
    "column steps outside": ("outside", pack(coded((2,), column_steps=steps(d := zlib.compress(b"\xbf\0"))), data=d)),
    "too few row steps": ("0 of 1 codes", pack(coded((4,), row_steps=steps(d := zeros(0))), data=d)),
    "too many row steps": ("of 1 codes", pack(coded((4,), row_steps=steps(d := zeros(1 << 20))), data=d)),
    "too few column steps": ("3 of 4 codes", pack(coded((4,), column_steps=steps(d := zeros(3))), data=d)),
    "too many column steps": ("of 4 codes", pack(coded((4,), column_steps=steps(d := zeros(1 << 20))), data=d)),
    "column steps not deflated": ("scale codes", pack(coded((4,), column_steps=steps(d := b"deflated")), data=d)),
    "column steps that do not end": (
        "does not end", pack(coded((4,), column_steps=steps(d := bytes(range(1, 200)), "direct")), data=d)),
    "row steps cut by the column steps": (
        "codes", pack(coded((4,), row_steps=steps(STEP[:-1]), column_steps=steps(STEP[-1:] + zeros(4))), data=STEP + zeros(4))),
    "steps of the plane that is not transposed": (
        "of 2 codes", pack(coded((3, 2), split=1, transposed=True, height=2, width=3, row_steps=steps(d := zeros(3))), data=d)),
    "codes of the plane that is not transposed": (
        "of 2 codes", pack(coded((3, 2), split=1, transposed=True, height=2, width=3, rows=codes("deflated", d := zeros(3), 0)),
                           data=d)),
    "CTUs of the plane that is not transposed": (
        "CTU", pack(coded((4, 1 << 13), split=1, transposed=True, height=4, width=1 << 12, streams=(0, 0)))),
    "plane recipe, transposed": ("plane recipe", pack(coded((4,), split=2, transposed=True))),
    "logarithmic, transposed": ("logarithmic", pack(coded((4,), labelling=2, transposed=True))),
    "logarithmic with column steps": ("logarithmic", pack(coded((1,), labelling=2, column_steps=steps(STEP)), data=STEP)),
    "row step beyond float32": ("a step is beyond float32", pack(coded((4,), step=BIG, row_steps=steps(STEP)), data=STEP)),
    "row step that follows beyond float32": (
        "a step is beyond float32", pack(coded((4,), step=BIG, follow=True, row_steps=steps(STEP, unit=32),
                                               rows=codes("deflated", STEP, 0)), data=STEP + STEP)),
    "logarithmic exponent beyond int64": (
        "logarithmic", one_level(STEP, 1, (1 << 31) - 1, shift=16, labelling=2, row_steps=steps(STEP))),
    "logarithmic exponent below int64": (
        "logarithmic", one_level(STEP, 1, -1 << 31, shift=16, labelling=2, row_steps=steps(STEP))),
    "logarithmic exponent beyond int32": ("logarithmic", one_level(STEP, 1, labelling=2, row_steps=steps(STEP))),
    "logarithmic exponent of octave 101": ("logarithmic", one_level(COARSEST, 16, 404, labelling=2, row_steps=steps(COARSEST))),
    "logarithmic exponent of octave -101": ("logarithmic", one_level(COARSEST, 16, -401, labelling=2, row_steps=steps(COARSEST))),
    "value beyond float32": ("value is beyond float32", one_level(step=3e38)),
    "value beyond float32, not of float32": (
        "value is beyond float32", one_level(step=3e38, dtype=torch.bfloat16)),
    "value beyond float32 by its column": (
        "value is beyond float32", one_level(STEP, 1, step=BIG, column_steps=steps(STEP, unit=32))),
    "value beyond float32 before its column": ("value is beyond float32", one_level(SMALL_STEP, step=3e38,
                                                                                    column_steps=steps(SMALL_STEP))),
}


@pytest.mark.parametrize("case", STEPS_REFUSED)
def test_hostile_steps_are_refused(place, case):
    message, data = STEPS_REFUSED[case]
    path = place / "hostile.safetensors"
    path.write_bytes(data)
    with at_most(REFUSAL):
        for read in (nnc.load, nnc.verify):
            with pytest.raises(nnc.Corruption, match=message):
                read(path, threads=1)


@pytest.mark.parametrize("value, data", [
    (127.0, one_level()),
    (127 * BIG, one_level(step=BIG)),
    (127 * 2.0**-32, one_level(SMALL_STEP, column_steps=steps(SMALL_STEP))),
    (127 * 2.0**-30, one_level(STEP + SMALL_STEP, row_steps=steps(STEP, unit=4), column_steps=steps(SMALL_STEP))),
    (127 * 2.0**100, one_level(STEP, 1, step=2.0**84, column_steps=steps(STEP, unit=32))),
    (0.0, one_level(SMALL_STEP, step=1e-45, row_steps=steps(SMALL_STEP))),
    (2.0**100.75 // 2**77 * 2**77, one_level(COARSEST, 16, 403, labelling=2, row_steps=steps(COARSEST))),
    (2.0**-100, one_level(COARSEST, 16, -400, labelling=2, row_steps=steps(COARSEST))),
    (1.0, one_level(SMALL_STEP, labelling=2, row_steps=steps(SMALL_STEP))),  # 127 / 2^32 is cut to 0
    (2.0 ** (4 / 128) // 2**-23 * 2**-23, one_level(ODD, 34, 3, labelling=2, row_steps=steps(ODD))),  # 4.24 is cut to 4
    (2.0 ** (124 / 128) // 2**-23 * 2**-24, one_level(ODD, 34, -3, labelling=2, row_steps=steps(ODD))),  # -4.24 to -4
])
def test_steps_at_their_limits_are_read(place, value, data):
    path = place / "limit.safetensors"
    path.write_bytes(data)
    assert nnc.load(path, threads=1)["t"].tolist() == [value]


@contextmanager
def at_most(limit: int) -> Iterator[None]:
    """Checks the growth of the resident memory at its peak, and caps the address space, so that a failure is a failure and not
    the end of the machine.  Where the system does not tell, nothing is checked."""
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")

    def field(name: str) -> int:
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith(name))

    gc.collect()
    try:
        reset.write_text("5")
    except OSError:
        yield
        return
    from resource import RLIMIT_AS, getrlimit, setrlimit

    before, (soft, hard) = field("VmRSS"), getrlimit(RLIMIT_AS)
    setrlimit(RLIMIT_AS, (field("VmSize") + 2 * limit + 1024 * MEGABYTE, hard))
    try:
        yield
        growth = field("VmHWM") - before
    finally:
        setrlimit(RLIMIT_AS, (soft, hard))
    assert growth <= limit, f"took {growth >> 20} MiB, the limit is {limit >> 20}"


# ---- folders of shards -----------------------------------------------------------------------------------------------


def test_every_cut_of_an_index_is_refused(shards):
    folder, expected = shards
    index = folder / INDEX_NAME
    good = index.read_bytes()
    try:
        for length in range(len(good) - 2):
            index.write_bytes(good[:length])
            assert check_reading(folder, None), length
    finally:
        index.write_bytes(good)
    assert check_reading(folder, expected) is None


def test_changed_bytes_of_an_index_are_refused_or_harmless(shards):
    folder, expected = shards
    index = folder / INDEX_NAME
    good = index.read_bytes()
    draw = random.Random(31)
    try:
        refused = 0
        for _ in range(800):
            index.write_bytes(change_bytes(good, draw, 0, len(good)))
            refused += check_reading(folder, expected) is not None
    finally:
        index.write_bytes(good)
    assert refused > 400


LONG = json.dumps({"weight_map": {"a": "x" * 300}})


@pytest.mark.parametrize("text", [
    "", "[]", "null", "{}", "[" * 100_000, '{"weight_map":[]}', '{"weight_map":{}}', '{"weight_map":{"bias":1}}',
    '{"weight_map":{"bias":["x"]}}', '{"weight_map":{"bias":"x","half":1}}', '{"weight_map":{"bias":""}}',
    '{"weight_map":{"bias":".."}}', '{"weight_map":{"bias":"../shards/x"}}', '{"weight_map":{"bias":"/etc/passwd"}}',
    '{"weight_map":{"bias":"a\\u0000b"}}', '{"weight_map":{"bias":"a\\nb"}}', '{"weight_map":{"bias":"\\ud800"}}', LONG,
    json.dumps({"weight_map": {"bias": INDEX_NAME}}),
], ids=lambda text: text[:40])
def test_indexes_that_are_no_index_are_refused(shards, text):
    folder, _ = shards
    index = folder / INDEX_NAME
    good = index.read_bytes()
    try:
        index.write_text(text)
        assert check_reading(folder, None)
        assert check_reading(folder, None, nnc.verify)
    finally:
        index.write_bytes(good)


def test_shards_that_do_not_belong_together_are_refused(place, shards):
    folder, expected = shards
    first, second = sorted(folder.glob("*.safetensors"))[:2]
    one, two = first.read_bytes(), second.read_bytes()
    try:
        second.write_bytes(one)
        assert isinstance(check_reading(folder, None), nnc.Corruption)
        second.unlink()
        assert isinstance(check_reading(folder, None), nnc.InvalidArgument)
        second.write_bytes(two[:-1])
        assert isinstance(check_reading(folder, None), nnc.Corruption)
        first.write_bytes(two)  # all there, but not where the index says
        second.write_bytes(one)
        assert isinstance(check_reading(folder, None), nnc.Corruption)
    finally:
        first.write_bytes(one)
        second.write_bytes(two)
    assert check_reading(folder, expected) is None
