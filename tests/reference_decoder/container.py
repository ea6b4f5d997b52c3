"""Section 2 of the page: the container."""
from __future__ import annotations

import json
import zlib
from dataclasses import dataclass

from .mixing import unmix
from .notation import Bytes, OtherVersion, inflate, must


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
    coder, raw = raw >> 29, raw % (1 << 29)
    if coder > 1:
        raise OtherVersion(f"coder {coder} of the directory")
    must(raw <= min(1 << 28, (1 << 16) + 128 * packed) and (coder == 0 or raw <= 1 << 18), "a directory that is too long")
    deflated = source.take(packed)
    must(zlib.crc32(deflated) == checksum, "checksum of the directory")
    return Container(len(file), unmix(deflated, raw) if coder else inflate(deflated, raw), data[source.position:], entries)
