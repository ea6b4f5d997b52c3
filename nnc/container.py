"""The file: a valid `.safetensors` whose entry "nnc" holds the directory and the small units, while large units have entries of
their own.

Standard tools can list it; nothing is pickled.  Every number of the header is checked before anything is allocated.  A compressed
checkpoint is one such
file, a folder with `model.safetensors`, or a folder of shards with `model.safetensors.index.json`, the names of Hugging Face; each
shard is complete in itself.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import BinaryIO
from zlib import compress, decompressobj, error

import torch

from .coder import checksum
from .directory import MAX_DIRECTORY, MAX_EXPANSION, MIN_EXPANSION, Directory, Unit
from .errors import Corruption, InvalidArgument, Unsupported
from .storage import Storage, open_storage
from .unit import Record

VERSION = 1
ENTRY = "nnc"
FILE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
OWN_ENTRY = 1 << 14  # units of at least this many bytes get an entry of their own
MAX_HEADER = 100_000_000
AHEAD = 1 << 12  # bytes of a file that are read at once when it is opened
MIN_INFLATED, MAX_INFLATED = 1 << 16, 128  # a directory inflates to at most this many bytes, plus this many per packed byte
DEFLATED, MIXED = 0, 1  # coders of the directory
CODER_SHIFT = 29
MAX_MIXED = 1 << 18  # bytes of a directory that may be mixed, at about a microsecond per bit
_PREAMBLE = struct.Struct("<III")  # packed length, raw length with the coder above it, CRC-32 of the packed bytes
_NAMES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float64": "F64",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "complex64": "C64",
}


def entry_dtype(dtype: torch.dtype) -> str | None:
    """Name of a dtype in a safetensors header, None if it has none there."""
    return _NAMES.get(str(dtype).removeprefix("torch."))


def entry_key(name: str) -> str:
    """Key of the own entry of a tensor."""
    return name + "#" if name.startswith((ENTRY, "__metadata__")) else name


def build_file(directory: Directory, units: list[bytes]) -> Iterator[bytes]:
    """The bytes of a container in order: header, directory and small units, large units."""
    raw = directory.write()
    coder, packed = _pack(raw, sum(map(len, units)))
    preamble = _PREAMBLE.pack(len(packed), coder << CODER_SHIFT | len(raw), checksum(packed))
    small = [data for unit, data in zip(directory.units, units) if not unit.own]
    header: dict[str, object] = {"__metadata__": {"nnc": str(VERSION)}}
    offset = 0

    def add(key: str, dtype: str, shape: list[int], length: int) -> None:
        nonlocal offset
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + length]}
        offset += length

    first = len(preamble) + len(packed) + sum(map(len, small))
    add(ENTRY, "U8", [first], first)
    for record, unit, data in _first_records(directory, units):
        if unit.own and record.kind == "plain":
            add(entry_key(record.name), entry_dtype(record.dtype), list(record.shape), len(data))
        elif unit.own:
            add(entry_key(record.name), "U8", [len(data)], len(data))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    yield preamble
    yield packed
    yield from small
    yield from (data for unit, data in zip(directory.units, units) if unit.own)


def _pack(raw: bytes, rest: int) -> tuple[int, bytes]:
    """The directory in the coder that is worth its time: the one that learns takes some milliseconds to open, which a thousandth of the
    file must pay; rest: bytes of all units."""
    packed = compress(raw, 9)
    if len(raw) > MIN_INFLATED + MAX_INFLATED * len(packed):
        packed = compress(raw, 0)  # readers refuse to inflate so much from so little
    if len(raw) <= MAX_MIXED and 1000 * len(packed) > rest:
        mixed = import_module(".entropy.mixing", __package__).encode_mixed(raw)  # imports numba
        if 1000 * (len(packed) - len(mixed)) >= rest + len(packed) and len(raw) <= MIN_INFLATED + MAX_INFLATED * len(mixed):
            return MIXED, mixed
    return DEFLATED, packed


def _first_records(directory: Directory, units: list[bytes]) -> Iterator[tuple[Record, Unit, bytes]]:
    at = 0
    for unit, data in zip(directory.units, units):
        yield directory.records[at], unit, data
        at += unit.count


@dataclass(frozen=True)
class Container:
    """One open file: its directory and where each unit lies (absolute offset, length); identity: checksum of the directory, which holds
    those of all units."""

    path: Path
    directory: Directory
    places: tuple[tuple[int, int], ...]
    size: int
    overhead: int
    storage: Storage
    identity: int

    def read_unit(self, index: int) -> bytes:
        return self.read_part(index, 0, self.places[index][1])

    def read_part(self, index: int, at: int, length: int) -> bytes:
        """Bytes of a unit from its byte `at`."""
        offset = self.places[index][0] + at
        data = self.storage.read(offset, length)
        if len(data) != length:
            raise Corruption(f"{self.path}: truncated at byte {offset + len(data)}: fetch the file again")
        return data

    def unit_records(self) -> list[tuple[Record, ...]]:
        """Records by unit."""
        parts, at = [], 0
        for unit in self.directory.units:
            parts.append(self.directory.records[at : at + unit.count])
            at += unit.count
        return parts


def open_file(source: str | os.PathLike | BinaryIO) -> Container:
    """Read and check the header and the directory of one file: of a path, or of a seekable binary object."""
    storage = open_storage(source)
    try:
        return _read_container(storage, Path(storage.label))
    except BaseException:
        storage.close()
        raise


def _read_container(storage: Storage, path: Path) -> Container:
    size = storage.size
    head = storage.read(0, min(size, AHEAD))  # one read, where every read is a request
    if len(head) < 8:
        raise Corruption(f"{path}: {size} bytes are too few for a header: the file is truncated")
    length = struct.unpack_from("<Q", head)[0]
    if length > min(MAX_HEADER, size - 8):
        raise Corruption(f"{path}: header of {length} bytes in a file of {size}: not a safetensors file, or a damaged one")

    def read(offset: int, length: int) -> bytes:
        known = head[offset : offset + length]
        return known if len(known) == length else known + storage.read(offset + len(known), length - len(known))

    entries = _parse_header(path, read(8, length), size - 8 - length)
    start = 8 + length
    offset, end = entries[ENTRY][2]
    body = read(start + offset, min(end - offset, _PREAMBLE.size))
    if len(body) < _PREAMBLE.size:
        raise Corruption(f"{path}: entry {ENTRY!r} of {end - offset} bytes is too short: the file is damaged")
    packed, raw, crc = _PREAMBLE.unpack(body)
    coder, raw = raw >> CODER_SHIFT, raw & (1 << CODER_SHIFT) - 1
    if coder > MIXED:
        raise Unsupported(
            f"{path}: the directory is in the coder {coder}, this release reads {DEFLATED} and {MIXED}: upgrade nnc"
        )
    if packed > end - offset - _PREAMBLE.size or raw > min(
        MAX_DIRECTORY, MIN_INFLATED + MAX_INFLATED * packed, *((MAX_MIXED,) if coder else ())
    ):
        raise Corruption(
            f"{path}: directory of {packed} bytes, {raw} inflated, in an entry of {end - offset}: the file is damaged"
        )
    data = read(start + offset + _PREAMBLE.size, packed)
    if checksum(data) != crc:
        raise Corruption(f"{path}: checksum of the directory differs: the file is damaged")
    directory = Directory.read(_unmix(path, data, raw) if coder == MIXED else _inflate(path, data, raw))
    # what comes from a reference is as large as that
    expanded = sum(record.nbytes for record in directory.records if not (record.tied or record.referenced))
    if expanded > MIN_EXPANSION + MAX_EXPANSION * size:
        raise Corruption(f"{path}: {expanded} bytes of tensors in a file of {size}: the file is damaged")
    if entries[ENTRY][:2] != ("U8", [end - offset]):
        raise Corruption(f"{path}: entry {ENTRY!r} is not of bytes: the file is damaged")
    places = _place_units(path, directory, entries, start, offset + _PREAMBLE.size + packed, end)
    return Container(path, directory, places, size, start + _PREAMBLE.size + packed, storage, crc)


def _unmix(path: Path, data: bytes, raw: int) -> bytes:
    try:
        return import_module(".entropy.mixing", __package__).decode_mixed(data, raw)
    except Corruption as problem:
        raise Corruption(f"{path}: directory: {problem}") from None


def _inflate(path: Path, data: bytes, raw: int) -> bytes:
    inflater = decompressobj()
    try:
        text = inflater.decompress(data, raw + 1)
    except error as problem:
        raise Corruption(f"{path}: directory: {problem}: the file is damaged") from None
    if len(text) != raw or not inflater.eof or inflater.unused_data:
        raise Corruption(f"{path}: directory of {len(text)} bytes instead of {raw}: the file is damaged")
    return text


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)


def _parse_header(path: Path, text: bytes, data_bytes: int) -> dict[str, tuple[str, list[int], tuple[int, int]]]:
    """Entries of a safetensors header: key -> (dtype, shape, (begin, end))."""
    try:
        header = json.loads(text.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise Corruption(f"{path}: the header is not JSON: not a safetensors file, or a damaged one") from None
    if not isinstance(header, dict):
        raise Corruption(f"{path}: the header is not a JSON object: the file is damaged")
    metadata = header.pop("__metadata__", {})
    version = metadata.get("nnc") if isinstance(metadata, dict) else None
    if version is None or ENTRY not in header:
        raise Corruption(f"{path}: no nnc directory in this safetensors file: not compressed by nnc, or damaged")
    if version != str(VERSION):
        raise Unsupported(f"{path}: format version {version!r}, this release reads {VERSION}: upgrade nnc")
    entries = {}
    for key, entry in header.items():
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise Corruption(f"{path}: entry {key!r} is malformed: the file is damaged")
        numbers = [entry["shape"], entry["data_offsets"]]
        if (
            not all(isinstance(part, list) and all(type(v) is int and v >= 0 for v in part) for part in numbers)
            or len(numbers[1]) != 2
        ):
            raise Corruption(f"{path}: entry {key!r} is malformed: the file is damaged")
        begin, end = numbers[1]
        if not begin <= end <= data_bytes:
            raise Corruption(
                f"{path}: entry {key!r} lies at {begin}..{end} of {data_bytes} bytes: the file is truncated or damaged"
            )
        entries[key] = (entry["dtype"], numbers[0], (begin, end))
    covered = 0
    for begin, end in sorted(place for _, _, place in entries.values()):
        if begin != covered:
            raise Corruption(f"{path}: a gap or overlap at byte {covered} of the data: the file is damaged")
        covered = end
    if covered != data_bytes:
        raise Corruption(f"{path}: {data_bytes - covered} bytes after the last entry: the file is damaged")
    return entries


def _place_units(path: Path, directory: Directory, entries: dict, start: int, at: int, end: int) -> tuple[tuple[int, int], ...]:
    places = []
    used = {ENTRY}
    first = 0
    for unit in directory.units:
        if unit.count == 0 or (unit.own and unit.count > 1):
            raise Corruption(f"{path}: a unit with {unit.count} tensors where one must be: the file is damaged")
        records = directory.records[first : first + unit.count]
        first += unit.count
        length = sum(record.stored for record in records) + unit.stream
        if unit.own:
            key = entry_key(records[0].name)
            dtype, shape, (begin, stop) = entries.get(key, ("", [], (0, 0)))
            plain = records[0].kind == "plain"
            expected = (entry_dtype(records[0].dtype), list(records[0].shape)) if plain else ("U8", [length])
            if key in used or (dtype, shape) != expected or stop - begin != length:
                raise Corruption(f"{path}: entry {key!r} is missing or does not fit its directory record: the file is damaged")
            used.add(key)
            places.append((start + begin, length))
        else:
            if any(record.kind == "plain" for record in records) or at + length > end:
                raise Corruption(f"{path}: unit of {records[0].name!r} does not fit its entry: the file is damaged")
            places.append((start + at, length))
            at += length
    if at != end or used != entries.keys():
        raise Corruption(f"{path}: bytes or entries that no unit owns: the file is damaged")
    return tuple(places)


def shard_paths(path: str | os.PathLike) -> list[Path]:
    """The files of a compressed checkpoint; InvalidArgument if there is none at `path`."""
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InvalidArgument(f"{path}: no such file or folder")
    single, sharded = (path / FILE_NAME).is_file(), (path / INDEX_NAME).is_file()
    if single and sharded:
        raise InvalidArgument(f"{path}: has {FILE_NAME} and {INDEX_NAME}, two checkpoints: remove the one that is not meant")
    if sharded:
        return [path / name for name in sorted(set(read_index(path).values()))]
    if single:
        return [path / FILE_NAME]
    raise InvalidArgument(f"{path}: no {FILE_NAME} in this folder: not a folder written by nnc compress")


def is_compressed(path: str | os.PathLike) -> bool:
    """Whether `path` is (or is a folder with) a file written by nnc; looks at the header only."""
    path = Path(path)
    if path.is_dir():
        return any(is_compressed(file) for file in _folder_files(path))
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            text = file.read(min(length, 256))
            if text.startswith(b'{"__metadata__":{"nnc":'):  # as nnc writes it
                return True
            if not text.lstrip().startswith(b"{") or length > MAX_HEADER:
                return False
            header = json.loads(text + file.read(length - len(text)))
    except OSError as problem:
        raise InvalidArgument(f"{path}: {problem.strerror}") from None
    except (ValueError, RecursionError):
        return False
    return isinstance(header, dict) and isinstance(header.get("__metadata__"), dict) and "nnc" in header["__metadata__"]


def _folder_files(folder: Path) -> list[Path]:
    """What may hold the weights of a folder of either kind; an index that cannot be read names nothing, reading it says why."""
    names = [FILE_NAME]
    if (folder / INDEX_NAME).is_file():
        try:
            names += dict.fromkeys(json.loads((folder / INDEX_NAME).read_bytes())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass
    return [folder / name for name in names if isinstance(name, str) and os.path.isfile(folder / name)]


def read_index(folder: Path) -> dict[str, str]:
    """The index of a folder of shards: tensor name -> file name, in the order of the checkpoint; every file is there."""
    index = folder / INDEX_NAME
    try:
        weight_map = json.loads(index.read_text("utf-8"), object_pairs_hook=_unique)["weight_map"]
        names = set(weight_map.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Corruption(f"{index}: not an index of shards: the file is damaged") from None
    if not names:
        raise Corruption(f"{index}: no shards in the index: the file is damaged")
    for name in names:
        if not isinstance(name, str) or len(name) > 200 or Path(name).name != name or not name.isprintable():
            raise Corruption(f"{index}: shard name {str(name)[:200]!r} must be a plain file name: the file is damaged")
        if not (folder / name).is_file():
            raise InvalidArgument(f"{folder / name}: the index names this shard, but it is missing: fetch it")
    return weight_map
