"""Sections 6 and 7 of the page: the bytes of the units, and exact tensors."""
from __future__ import annotations

import zlib
from itertools import accumulate

from .checks import reference_digest, unit_digest
from .coded import all_codes, coded_bytes, rounded
from .container import Container
from .directory import Directory, UnitHead
from .entropy import Coder
from .latents import Latents
from .notation import DTYPES, Bytes, Tensor, WrongReference, inflate, must
from .records import CODED, CONSTANT, EARLIER, EXACT, PLAIN, PREDICTED, REFERENCE, SAME, TILED, Record
from .tiled import tiled_bytes

# ---- 6. Units --------------------------------------------------------------------------------------------------------

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


def taken(record: Record, state: dict[str, Tensor]) -> Tensor:
    """The tensor of the reference that a record is a difference to."""
    if record.name not in state:
        raise WrongReference(f"the reference has no tensor {record.name}")
    dtype, shape, data = state[record.name]
    fits = dtype in ("float32", "float16", "bfloat16") if record.kind == PREDICTED else dtype == record.dtype
    if not fits or shape != record.shape:
        raise WrongReference(f"the reference has {record.name} in another dtype or shape")
    return dtype, shape, data


def decode_unit(unit: UnitHead, data: bytes, directory: Directory, state: dict[str, Tensor], decoded: dict[str, Tensor]) -> dict[str, Tensor]:
    """state: the reference; empty where nothing in the file is taken from one; decoded: tensors of the units before."""
    source, digests, out = Bytes(data[:len(data) - unit.stream]), [], {}
    joined = Latents(Coder(data[len(data) - unit.stream:])) if unit.joined else None
    bases = {record.name: taken(record, state) for record in unit.referenced}
    if bases and reference_digest(list(bases.values())) != unit.reference:
        raise WrongReference(f"the reference has other tensors for the unit of {unit.records[0].name}")
    for record in unit.records:
        stored, base = source.take(record.stored), bases.get(record.name)
        base = (decoded | out)[record.source] if record.source else base
        if record.kind == PLAIN:
            out[record.name] = record.dtype, record.shape, stored
        elif record.kind == EXACT:
            out[record.name] = record.dtype, record.shape, exact_bytes(record, stored, base)
        elif record.kind == CONSTANT:
            out[record.name] = record.dtype, record.shape, record.value * record.elements
        elif record.kind == SAME:
            out[record.name] = base
        elif record.kind in (CODED, PREDICTED):
            permutations = directory.reference.permutations if directory.reference else []
            data = coded_bytes(record, stored, directory.sets, digests, permutations, base, directory.matrices,
                               directory.networks, joined)
            out[record.name] = record.dtype, record.shape, data
        elif record.kind == TILED:
            out[record.name] = record.dtype, record.shape, tiled_bytes(record.tiling, record.dtype, stored, digests, all_codes, rounded)
    if joined:
        joined.coder.end()
    must(all(set(data) <= {0, 1} for dtype, _, data in out.values() if dtype == "bool"), "a bool byte that is neither 0 nor 1")
    must(unit_digest(digests) == unit.digest, f"digest of the unit of {unit.records[0].name}")
    return out


# ---- 7. Exact bytes --------------------------------------------------------------------------------------------------

def exact_bytes(record: Record, stored: bytes, base: Tensor | None) -> bytes:
    """base: the tensor of the reference, or an earlier one, of records that are a difference to it."""
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
    if record.filter in (REFERENCE, EARLIER):
        there = [int.from_bytes(base[2][i * size:(i + 1) * size], "little") for i in range(n)]
        elements = [(u + (z // 2 if z % 2 == 0 else -((z + 1) // 2))) % (1 << 8 * size) for u, z in zip(there, elements)]
    return b"".join(value.to_bytes(size, "little") for value in elements)
