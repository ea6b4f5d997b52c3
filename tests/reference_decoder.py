"""A slow second decoder of the nnc bitstream, written from nnc/FORMAT.md alone and laid out in the order of that page.

It shares no code with the package: Python integers up to the levels, NumPy only for the float32 products at the end.
`decode(path)` gives all tensors of a file or folder.  Everything that the page refuses is a ValueError; another version is
an `OtherVersion`, which is one too.
"""
from __future__ import annotations

import json
import math
import struct
import zlib
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from pathlib import Path

import numpy as np

Tensor = tuple[str, tuple[int, ...], bytes]  # name of the dtype, shape, little endian bytes in row-major order


class OtherVersion(ValueError):
    """Not damage: a version that this page does not describe."""


def must(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


# ---- 1. Notation -----------------------------------------------------------------------------------------------------

class Bytes:
    """A read position in a string of bytes."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0

    def take(self, length: int) -> bytes:
        must(length <= len(self.data) - self.position, "fewer bytes than a field needs")
        self.position += length
        return self.data[self.position - length:self.position]

    def byte(self) -> int:
        return self.take(1)[0]

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def varint(self, most: int) -> int:
        value = 0
        for group in range(10):
            byte = self.byte()
            value |= (byte & 127) << 7 * group
            if byte < 128:
                must(value <= most, f"{value} is beyond {most}")
                return value
        raise ValueError("a varint of more than ten groups")

    def signed(self, most: int) -> int:
        z = self.varint(2 * most)
        return z // 2 if z % 2 == 0 else -(z + 1) // 2

    def block(self, most: int) -> bytes:
        return self.take(self.varint(most))

    def end(self) -> None:
        must(self.position == len(self.data), "bytes are left over")


def inflate(data: bytes, length: int) -> bytes:
    """One complete zlib stream that ends where its bytes end and holds exactly `length` bytes."""
    stream = zlib.decompressobj()
    try:
        out = stream.decompress(data, length + 1)
    except zlib.error as error:
        raise ValueError(f"not a deflated stream: {error}") from error
    must(stream.eof and not stream.unused_data and len(out) == length, "a deflated stream of another length")
    return out


# ---- 2. Container ----------------------------------------------------------------------------------------------------

@dataclass
class Container:
    size: int                                                          # bytes of the file
    directory: bytes
    small: bytes                                                       # all units without an entry of their own
    entries: dict[str, tuple[str, list[int], bytes]]                   # key: dtype, shape, bytes; without `nnc`


def object_of(pairs: list[tuple[str, object]]) -> dict:
    must(len({key for key, _ in pairs}) == len(pairs), "a JSON key occurs twice")
    return dict(pairs)


def read_json(data: bytes) -> dict:
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=object_of)
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply") from error
    must(type(value) is dict, "JSON that is not an object")
    return value


def is_size_list(value: object) -> bool:
    return type(value) is list and all(type(v) is int and v >= 0 for v in value)


def read_header(file: bytes) -> tuple[dict, int]:
    must(len(file) >= 8, "no header")
    length = int.from_bytes(file[:8], "little")
    must(length <= min(100_000_000, len(file) - 8), "a header that is too long")
    return read_json(file[8:8 + length]), 8 + length


def check_version(metadata: object) -> None:
    version = metadata.get("nnc") if type(metadata) is dict else None
    must(type(version) is str, "no version")
    if version != "1":
        raise OtherVersion(f"version {version}")


def read_entries(header: dict, data: bytes) -> dict[str, tuple[str, list[int], bytes]]:
    entries, spans = {}, []
    for key, entry in header.items():
        must(type(entry) is dict and set(entry) == {"dtype", "shape", "data_offsets"}, f"entry {key} has other fields")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        must(type(dtype) is str and is_size_list(shape) and is_size_list(offsets) and len(offsets) == 2,
             f"entry {key} is malformed")
        must(offsets[0] <= offsets[1] <= len(data), f"entry {key} lies outside")
        spans.append(offsets)
        entries[key] = dtype, shape, data[offsets[0]:offsets[1]]
    position = 0
    for begin, end in sorted(spans):
        must(begin == position, "gap or overlap of entries")
        position = end
    must(position == len(data), "bytes after the last entry")
    return entries


def read_container(file: bytes) -> Container:
    header, start = read_header(file)
    check_version(header.pop("__metadata__", None))
    entries = read_entries(header, file[start:])
    must("nnc" in entries, "no entry nnc")
    dtype, shape, data = entries.pop("nnc")
    must(dtype == "U8" and shape == [len(data)], "entry nnc has another type")
    source = Bytes(data)
    packed, raw, checksum = source.u32(), source.u32(), source.u32()
    must(raw <= min(1 << 28, (1 << 16) + 128 * packed), "a directory that is too long")
    deflated = source.take(packed)
    must(zlib.crc32(deflated) == checksum, "checksum of the directory")
    return Container(len(file), inflate(deflated, raw), data[source.position:], entries)


# ---- 3. Directory ----------------------------------------------------------------------------------------------------

LANES = "names kinds shapes recipes quantizers steps fine models bases noises codes grids lengths values".split()


@dataclass
class Directory:
    shards: int                                                        # files of the checkpoint
    shard: int                                                         # number of this one
    identity: int                                                      # the same in all of them
    sets: list[ExplicitSet]
    records: list[Record]
    units: list[UnitHead]


def read_directory(container: Container) -> Directory:
    source = Bytes(container.directory)
    shards, shard, identity = source.varint(1 << 16), 0, 0
    must(shards >= 1, "a checkpoint of no files")
    if shards > 1:
        shard, identity = source.varint(shards - 1), source.u32()
    sets = [read_set(source) for _ in range(source.varint(64))]
    source.block(1 << 24).decode("utf-8")                              # the origin: not needed for tensors
    count = source.varint(1 << 24)
    lanes = {name: Bytes(source.block(1 << 28)) for name in LANES}
    records = []
    for _ in range(count):
        records.append(read_record(lanes, len(sets)))
    for lane in lanes.values():
        lane.end()
    units = read_unit_heads(source, records)
    source.end()
    must(len({record.name for record in records}) == count, "two tensors with one name")
    for index, record in enumerate(records):
        check_alias(records, index, record)
    total = sum(record.elements * record.size for record in records if not record.tied)
    must(total <= (1 << 26) + (container.size << 12), "tensors that are too large for their file")
    return Directory(shards, shard, identity, sets, records, units)


# ---- 4. Explicit sets ------------------------------------------------------------------------------------------------

@dataclass
class Table:
    low: int
    frequencies: list[int]
    starts: list[int] = field(init=False)                              # F of section 10

    def __post_init__(self) -> None:
        assert min(self.frequencies) >= 1 and sum(self.frequencies) == 1 << 24
        self.starts = [0, *accumulate(self.frequencies)][:-1]


@dataclass
class ExplicitSet:
    shape: int
    coded: dict[int, Table]                                            # 2 * scale index + quantizer: table


def read_set(source: Bytes) -> ExplicitSet:
    shape = source.byte()
    must(shape <= 7, "an explicit set on an unknown shape")
    coded, number = {}, 1
    for _ in range(source.varint(74)):
        before, number = number, source.byte()
        must(before < number <= 73, "numbers of tables that do not rise")
        low, symbols = source.signed(258), source.varint(258)
        must(symbols >= 2, "a table of one symbol")
        lengths = list(accumulate((source.signed(192) for _ in range(symbols)), initial=64))[1:]
        must(all(0 <= length <= 192 for length in lengths), "a code length out of range")
        coded[number] = Table(low, normalise([exponential(32 * length) for length in lengths]))
    return ExplicitSet(shape, coded)


# ---- 5. Records ------------------------------------------------------------------------------------------------------

PLAIN, EXACT, CONSTANT, ALIAS, CODED = range(5)
STATES = (1, 4, 8, 16, 32, 64, 128, 256)
UNITS = (64, 32, 16, 8, 4)


@dataclass
class Codes:
    """Scale codes or step codes; unit: of a step code, in 1/128 octave."""
    mode: int
    spread: int
    length: int
    unit: int = 0


@dataclass
class Coding:
    """What a coded record says beyond name and shape; rows and columns: of the plane, after it was transposed."""
    transposed: int
    follow: int
    labelling: int
    split: int
    states: int
    shift: int
    step: np.float32
    model: int
    base: int
    row_codes: Codes
    column_codes: Codes
    row_steps: Codes
    column_steps: Codes
    rows: int
    columns: int
    height: int
    width: int
    lengths: list[int]                                                 # of the streams


@dataclass
class Record:
    name: str
    kind: int
    dtype: str
    size: int                                                          # bytes of an element
    shape: tuple[int, ...]
    filter: int = 0
    value: bytes = b""
    target: int = 0
    tied: bool = False
    stored: int = 0
    coding: Coding | None = None

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def read_record(lanes: dict[str, Bytes], sets: int) -> Record:
    name = lanes["names"].block(4096).decode("utf-8")
    byte = lanes["kinds"].byte()
    kind, dtype = byte >> 5, byte & 31
    must(kind <= CODED and dtype < len(DTYPES), "an unknown kind or dtype")
    axes = lanes["shapes"].byte()
    must(axes <= 15, "too many axes")
    shape = tuple(lanes["shapes"].varint(1 << 40) for _ in range(axes))
    must(math.prod(axis for axis in shape if axis) <= 1 << 40, "too many elements")
    record = Record(name, kind, DTYPES[dtype].name, DTYPES[dtype].size, shape)
    if kind == PLAIN:
        must(DTYPES[dtype].container != "", "a plain tensor of a dtype that a container does not have")
        record.stored = record.elements * record.size
    elif kind == EXACT:
        record.filter = lanes["values"].byte()
        must(record.filter <= 3, "an unknown filter")
        must(record.filter != 3 or record.size <= 8, "differences of wide elements")
        record.stored = lanes["lengths"].varint(1 << 43)
    elif kind == CONSTANT:
        record.value = lanes["values"].take(record.size)
    elif kind == ALIAS:
        value = lanes["values"].varint(1 << 25)
        record.target, record.tied = value >> 1, value & 1 == 1
    else:
        must(dtype <= 2 and record.elements >= 1, "a coded tensor without elements or of another dtype")
        record.coding = coding = read_coding(lanes, shape, sets)
        codes = coding.row_codes, coding.column_codes, coding.row_steps, coding.column_steps
        record.stored = sum(c.length for c in codes) + sum(coding.lengths)
    return record


def read_coding(lanes: dict[str, Bytes], shape: tuple[int, ...], sets: int) -> Coding:
    recipe = lanes["recipes"].byte()
    transposed, follow, labelling, split = recipe >> 7, recipe >> 6 & 1, recipe >> 4 & 3, recipe & 15
    must(labelling <= 2 and split <= len(shape), "an illegal recipe")
    quantizer = lanes["quantizers"].byte()
    states, shift = STATES[quantizer >> 5], quantizer & 31
    must(shift <= 16, "too many bypass bits")
    must(labelling != 1 or states > 1, "the sign-symmetric labelling needs states")
    must(labelling != 2 or (states == 1 and follow == 0 and transposed == 0 and math.prod(shape) <= 1 << 20),
         "what the logarithmic labelling does not go with")
    lower, upper = lanes["fine"].take(2), lanes["steps"].take(2)
    step = np.float32(struct.unpack("<f", lower + upper)[0])
    must(bool(np.isfinite(step)) and step > 0, "a step that is not positive and finite")
    model, base = lanes["models"].byte(), lanes["bases"].byte()
    must(model < 8 + sets, "an entropy model that does not exist")
    must(base <= 36, "a base that is too large")
    lanes["noises"].byte()
    row_codes, column_codes = read_codes(lanes), read_codes(lanes)
    row_steps, column_steps = read_steps(lanes), read_steps(lanes)
    must(labelling != 2 or column_steps.mode == 0, "column steps on the logarithmic grid")
    rows, columns = math.prod(shape[:split]), math.prod(shape[split:])
    if transposed:
        rows, columns = columns, rows
    height = lanes["grids"].varint(rows)
    width = lanes["grids"].varint(columns) if height else columns
    must(width >= 1, "a CTU without columns")
    height = height or rows
    ctus = -(-rows // height) * -(-columns // width)
    must(ctus == 1 or height * width >= 1 << 12, "several CTUs that are too small")
    lengths = [lanes["lengths"].varint(1 << 43) for _ in range(ctus)]
    return Coding(transposed, follow, labelling, split, states, shift, step, model, base, row_codes, column_codes, row_steps,
                  column_steps, rows, columns, height, width, lengths)


def read_codes(lanes: dict[str, Bytes]) -> Codes:
    mode, spread = divmod(lanes["codes"].byte(), 24)
    must(mode <= 3, "an unknown mode of scale codes")
    return Codes(mode, spread, lanes["lengths"].varint(1 << 43) if mode else 0)


def read_steps(lanes: dict[str, Bytes]) -> Codes:
    codes = read_codes(lanes)
    if codes.mode:
        unit = lanes["codes"].byte()
        must(unit < len(UNITS), "an unknown unit of step codes")
        codes.unit = UNITS[unit]
    return codes


def check_alias(records: list[Record], index: int, record: Record) -> None:
    if record.kind == ALIAS:
        must(record.target < len(records) and record.target != index, "an alias to nothing or itself")
        target = records[record.target]
        must(target.kind != ALIAS and (target.dtype, target.shape) == (record.dtype, record.shape),
             "an alias to an alias or to another dtype or shape")


# ---- 6. Units --------------------------------------------------------------------------------------------------------

@dataclass
class UnitHead:
    records: list[Record]
    own: bool
    checksum: int
    digest: int

    @property
    def length(self) -> int:
        return sum(record.stored for record in self.records)


def read_unit_heads(source: Bytes, records: list[Record]) -> list[UnitHead]:
    units, first = [], 0
    for _ in range(source.varint(len(records))):
        count, own = divmod(source.varint(2 * len(records) + 1), 2)
        must(1 <= count <= len(records) - first, "units and records do not add up")
        unit = UnitHead(records[first:first + count], own == 1, source.u32(), source.u32())
        must(count == 1 or not own, "several records in an own entry")
        must(own or all(record.kind != PLAIN for record in unit.records), "a plain tensor in a small unit")
        units.append(unit)
        first += count
    must(first == len(records), "units and records do not add up")
    return units


def key_of(name: str) -> str:
    return name + "#" if name.startswith(("nnc", "__metadata__")) else name


def unit_bytes(container: Container, units: list[UnitHead]) -> list[bytes]:
    small, entries, out = Bytes(container.small), dict(container.entries), []
    for unit in units:
        if unit.own:
            record = unit.records[0]
            entry = entries.pop(key_of(record.name), None)
            container_dtype = {dtype.name: dtype.container for dtype in DTYPES}[record.dtype]
            expected = (container_dtype, list(record.shape)) if record.kind == PLAIN else ("U8", [unit.length])
            must(entry is not None and entry[:2] == expected and len(entry[2]) == unit.length, f"entry of {record.name}")
            data = entry[2]
        else:
            data = small.take(unit.length)
        must(zlib.crc32(data) == unit.checksum, f"checksum of the unit of {unit.records[0].name}")
        out.append(data)
    small.end()
    must(not entries, "an entry that no unit owns")
    return out


def decode_unit(unit: UnitHead, data: bytes, sets: list[ExplicitSet]) -> dict[str, Tensor]:
    source, digests, out = Bytes(data), [], {}
    for record in unit.records:
        stored = source.take(record.stored)
        if record.kind == PLAIN:
            out[record.name] = record.dtype, record.shape, stored
        elif record.kind == EXACT:
            out[record.name] = record.dtype, record.shape, exact_bytes(record, stored)
        elif record.kind == CONSTANT:
            out[record.name] = record.dtype, record.shape, record.value * record.elements
        elif record.kind == CODED:
            out[record.name] = record.dtype, record.shape, coded_bytes(record, stored, sets, digests)
    must(all(set(data) <= {0, 1} for dtype, _, data in out.values() if dtype == "bool"), "a bool byte that is neither 0 nor 1")
    must(unit_digest(digests) == unit.digest, f"digest of the unit of {unit.records[0].name}")
    return out


# ---- 7. Exact bytes --------------------------------------------------------------------------------------------------

def exact_bytes(record: Record, stored: bytes) -> bytes:
    n, size = record.elements, record.size
    if record.filter == 0:
        must(len(stored) == n * size, "exact bytes of another length")
        return stored
    data = inflate(stored, n * size)
    if record.filter == 1:
        return data
    elements = [int.from_bytes(data[i::n], "little") for i in range(n)]
    if record.filter == 3:
        elements = [value % (1 << 8 * size) for value in accumulate(elements)]
    return b"".join(value.to_bytes(size, "little") for value in elements)


# ---- 8. Coded tensors ------------------------------------------------------------------------------------------------

def coded_bytes(record: Record, stored: bytes, sets: list[ExplicitSet], digests: list[int]) -> bytes:
    coding, source = record.coding, Bytes(stored)
    row, column, row_step, column_step = [
        all_codes(source.take(codes.length), codes, count) for codes, count in (
            (coding.row_codes, coding.rows), (coding.column_codes, coding.columns), (coding.row_steps, coding.rows),
            (coding.column_steps, coding.columns))]
    row_exponent = [coding.row_steps.unit * code for code in row_step]
    column_exponent = [coding.column_steps.unit * code for code in column_step]
    row_index = [None if code == -64 else code - drop(e) for code, e in zip(row, row_exponent)]
    column_index = [None if code == -64 else code - drop(e) for code, e in zip(column, column_exponent)]
    number = np.zeros((coding.rows, coding.columns), np.int64)  # what is multiplied by the step of the row
    coded = np.zeros((coding.rows, coding.columns), bool)
    lengths = iter(coding.lengths)
    for top in range(0, coding.rows, coding.height):
        for left in range(0, coding.columns, coding.width):
            place = slice(top, top + coding.height), slice(left, left + coding.width)
            digests.append(decode_ctu(source.take(next(lengths)), coding, sets, row_index[place[0]], column_index[place[1]],
                                      number[place], coded[place]))
    if coding.follow:
        row_exponent = [e + 16 * code for e, code in zip(row_exponent, row)]
    plane = values(coding, row_exponent, column_exponent, number, coded)
    return rounded(plane.T if coding.transposed else plane, record.dtype)


def drop(exponent: int) -> int:
    return (exponent + 16) // 32


def all_codes(data: bytes, codes: Codes, count: int) -> list[int]:
    if codes.mode == 0:
        return [0] * count
    if codes.mode == 3:
        out = list(struct.unpack(f"{count}b", inflate(data, count)))
    else:
        coder, table = Coder(data), scale_table(codes.spread)
        out = [coder.symbol(table) - 128 for _ in range(count)]
        coder.end()
        if codes.mode == 2:
            out = list(accumulate(out))
    must(all(-64 <= code <= 64 for code in out), "a scale or step code out of range")
    return out


def decode_ctu(data: bytes, coding: Coding, sets: list[ExplicitSet], row: list[int | None], column: list[int | None],
               number: np.ndarray, coded: np.ndarray) -> int:
    """row, column: what each adds to the scale index, None if its weights are not coded."""
    coder, s, digest = Coder(data), 0, 0
    for j in range(len(column)):
        for i in range(len(row)):
            if row[i] is None or column[j] is None:
                continue
            c = min(max(row[i] + coding.base + column[j], 1), 36)
            q = s & 1
            k = coder.level(table_of(coding.model, sets, 2 * c + (1 if coding.shift else q)))
            if coding.shift:
                k = (k << coding.shift) + coder.bits(coding.shift)
            number[i, j], coded[i, j] = numerator(coding, k, q), True
            s = next_state(coding.states, s, k & 1)
            digest = chained(digest, k)
    coder.end()
    return digest


# ---- 9. Tables -------------------------------------------------------------------------------------------------------

def root(n: int, times: int) -> int:
    for _ in range(times):
        n = math.isqrt(n)
    return n


POWERS = [root(1 << (8192 - i), 8) for i in range(256)]
R = (65536, 77935, 92681, 110217)
SHAPES = ((2, 1048576, 1521536), (2, 196608, 325711), (2, 98304, 209554), (2, 45875, 160503), (2, 16384, 139663),
          (4, 65536, 497712), (4, 32768, 390751),
          (4, 3276, 318321))                                           # order, d, a


def exponential(t: int) -> int:
    return POWERS[t & 255] >> min(t >> 8, 62)


def normalise(weights: list[int]) -> list[int]:
    total, n = sum(weights), len(weights)
    frequencies = [1 + w * ((1 << 24) - n) // total for w in weights]
    frequencies[weights.index(max(weights))] += (1 << 24) - sum(frequencies)
    return frequencies


def level_weights(shape: int, c: int, q: int, low: int, high: int) -> list[int]:
    order, d, a = SHAPES[shape]
    n = 17 - c
    m = R[n % 4] << (n // 4 + 8)
    out = []
    for k in range(low, high + 1):
        y = (abs(2 * k + q) * m) >> 9
        r = math.isqrt(d * d + y * y)
        g = r - d if order == 2 else math.isqrt(r << 16) - math.isqrt(d << 16)
        out.append(exponential((a * g) >> 24))
    return out


@cache
def parametric_table(shape: int, c: int, q: int) -> Table:
    n = c - 17
    v = (R[n % 4] << (n // 4 + 8)) >> 16
    reach = min(127, 2 + ((6 * v) >> 8))
    w = level_weights(shape, c, q, -reach - q, reach)
    return Table(-reach - q, normalise([*w, max(1, sum(w) >> 14)]))


@cache
def scale_table(spread: int) -> Table:
    return Table(-128, normalise(level_weights(2, spread + 8, 0, -128, 128)))


def table_of(model: int, sets: list[ExplicitSet], number: int) -> Table:
    shape = model
    if model >= 8:
        explicit = sets[model - 8]
        if number in explicit.coded:
            return explicit.coded[number]
        shape = explicit.shape
    return parametric_table(shape, number >> 1, number & 1)


# ---- 10. Entropy decoding --------------------------------------------------------------------------------------------

class Coder:
    """Asymmetric numeral system: state x, words from the last to the first."""

    def __init__(self, stream: bytes) -> None:
        must(not stream.endswith(b"\0"), "a stream that ends with a zero byte")
        stream += bytes(-len(stream) % 4)
        self.words = list(struct.unpack(f"<{len(stream) // 4}I", stream))
        self.x = self.words.pop() if self.words else 0
        if self.words:
            self.x = self.x << 32 | self.words.pop()

    def refill(self) -> None:
        if self.x < 1 << 32 and self.words:
            self.x = self.x << 32 | self.words.pop()

    def symbol(self, table: Table) -> int:
        v = self.x & 0xFFFFFF
        a = bisect_right(table.starts, v) - 1
        self.x = table.frequencies[a] * (self.x >> 24) + v - table.starts[a]
        self.refill()
        return a

    def bits(self, count: int) -> int:
        value = 0
        while count:
            n = min(count, 16)
            v = self.x & 0xFFFFFF
            value = value << n | v >> (24 - n)
            self.x = (self.x >> 24 << (24 - n)) + v % (1 << (24 - n))
            self.refill()
            count -= n
        return value

    def level(self, table: Table) -> int:
        a, symbols = self.symbol(table), len(table.frequencies)
        if a < symbols - 1:
            return table.low + a
        side, length = self.bits(1), min(self.bits(5), 22)
        excess = (1 << length) + self.bits(length) - 1
        return table.low - 1 - excess if side else table.low + symbols - 1 + excess

    def end(self) -> None:
        must(self.x == 0 and not self.words, "a stream that does not end exactly")


# ---- 11. State machines and values -----------------------------------------------------------------------------------

CODES = {4: (0o5, 0o2), 8: (0o13, 0o4), 16: (0o23, 0o4), 32: (0o45, 0o10), 64: (0o103, 0o24), 128: (0o235, 0o126),
         256: (0o515, 0o362)}
MANTISSAS = [root(1 << (2944 + j), 7) for j in range(128)]


def next_state(states: int, s: int, parity: int) -> int:
    if states == 1:
        return 0
    h0, h1 = CODES[states]
    return (s >> 1) ^ (h0 >> 1 if s & 1 else 0) ^ (h1 >> 1 if parity else 0)


def numerator(coding: Coding, k: int, q: int) -> int:
    if coding.labelling == 1:
        return 2 * k - q * ((k > 0) - (k < 0))
    return k if coding.states == 1 else 2 * k + q


def power(k: np.ndarray) -> np.ndarray:
    """2^(k / 128) cut to 24 bits, as float32."""
    return np.ldexp(np.array(MANTISSAS, np.float32)[k % 128], (k // 128 - 23).astype(np.int32))


def values(coding: Coding, row_exponent: list[int], column_exponent: list[int], number: np.ndarray,
           coded: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):                                    # overflow to infinity is the rule
        if coding.labelling == 2:                                      # weights that are not coded have level 0
            exponent = number.astype(np.float32) * power(np.array(row_exponent, np.int64))[:, None]
            must(bool(((-12801 < exponent) & (exponent < 12928)).all()), "a logarithmic exponent out of range")
            plane = power(exponent.astype(np.int64)) * coding.step     # cut towards zero
        else:
            row_step = power(np.array(row_exponent, np.int64)) * coding.step
            must(bool(np.isfinite(row_step).all()), "the step of a row is infinite")
            column_step = power(np.array(column_exponent, np.int64))
            plane = np.where(coded, number.astype(np.float32) * row_step[:, None] * column_step, np.float32(0))
    must(bool(np.isfinite(plane).all()), "an infinite value")
    return plane


def rounded(plane: np.ndarray, dtype: str) -> bytes:
    if dtype == "float32":
        return plane.astype("<f4").tobytes()
    if dtype == "float16":
        return np.clip(plane, np.float32(-65504), np.float32(65504)).astype("<f2").tobytes()
    most = np.array([0x7F7F0000], np.uint32).view(np.float32)[0]
    bits = np.clip(plane, -most, most).astype("<f4").view("<u4").astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()  # the upper half, ties to the even one


# ---- 12. Checks ------------------------------------------------------------------------------------------------------

MASK = (1 << 64) - 1


def chained(digest: int, number: int) -> int:
    return ((digest ^ (number & MASK)) * 0x9E3779B97F4A7C15) & MASK


def unit_digest(digests: list[int]) -> int:
    t = 0
    for digest in digests:
        t = chained(t, digest)
    return (t ^ t >> 32) & 0xFFFFFFFF


# ---- 13. Folders and shards ------------------------------------------------------------------------------------------

def decode_shard(path: Path) -> tuple[Directory, dict[str, Tensor]]:
    container = read_container(path.read_bytes())
    directory = read_directory(container)
    decoded: dict[str, Tensor] = {}
    for unit, data in zip(directory.units, unit_bytes(container, directory.units)):
        decoded |= decode_unit(unit, data, directory.sets)
    stands_for = {r.name: directory.records[r.target].name if r.kind == ALIAS else r.name for r in directory.records}
    return directory, {name: decoded[other] for name, other in stands_for.items()}


def decode_file(path: Path) -> dict[str, Tensor]:
    directory, tensors = decode_shard(path)
    must(directory.shards == 1, "one shard of several")
    return tensors


def decode_shards(index: Path) -> dict[str, Tensor]:
    weight_map = read_json(index.read_bytes()).get("weight_map")
    must(type(weight_map) is dict and all(type(name) is str for name in weight_map.values()), "an index without weight_map")
    names = sorted(set(weight_map.values()))
    directories, found = [], {}
    for name in names:
        must(name not in ("", ".", "..") and "/" not in name and "\\" not in name, f"{name} is not a plain file name")
        must((index.parent / name).is_file(), f"{name} is missing")
        directory, tensors = decode_shard(index.parent / name)
        must(set(tensors) == {tensor for tensor, file in weight_map.items() if file == name}, f"{name} does not match the index")
        directories.append(directory)
        found |= tensors
    must(len({d.identity for d in directories}) == 1, "shards of different checkpoints")
    must(all(d.shards == len(names) for d in directories) and len({d.shard for d in directories}) == len(names),
         "a shard is missing or there twice")
    return {tensor: found[tensor] for tensor in weight_map}


def decode(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a compressed file or folder, in the order of the checkpoint: dtype, shape, bytes."""
    path = Path(path)
    if not path.is_dir():
        return decode_file(path)
    index = path / "model.nnc.safetensors.index.json"
    return decode_shards(index) if index.exists() else decode_file(path / "model.nnc.safetensors")


# ---- 16. Ids ---------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Dtype:
    name: str
    size: int
    container: str                                                     # "": none, so it cannot be plain


DTYPES = [Dtype(*row) for row in (
    ("float32", 4, "F32"), ("float16", 2, "F16"), ("bfloat16", 2, "BF16"), ("float64", 8, "F64"), ("int64", 8, "I64"),
                                  ("int32", 4, "I32"), ("int16", 2, "I16"),
    ("int8", 1, "I8"), ("uint8", 1, "U8"), ("bool", 1, "BOOL"), ("float8_e4m3fn", 1, "F8_E4M3"), ("float8_e5m2", 1, "F8_E5M2"),
                                  ("complex64", 8, "C64"),
    ("complex128", 16, ""), ("uint16", 2, "U16"), ("uint32", 4, "U32"), ("uint64", 8, "U64"), ("float8_e4m3fnuz", 1, ""),
                                  ("float8_e5m2fnuz", 1, ""))]
